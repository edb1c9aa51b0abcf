"""Discover a concept book on patch tokens, class tokens or both, and read it at either.

``python benchmarks/token_choice.py`` reads each of the three books at the class token and at the patches of images
that discovery has not seen: how alike a unit's ten best images are, the best-unit precision over labels, and how often
two of ten best images share a label, over chance. Sub-units of all channels, and concepts.
"""

from __future__ import annotations

import argparse

import pandas as pd

import elude_nb as en
from elude_nb.core.recording import pool_recorded
from elude_nb.scores import best_unit_precision, label_share_over_chance, mean_interval, top_similarity


def main() -> None:
    """Print one row a seed, kind of token of the discovery, kind of token read, and kind of unit; then the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", default="photographs")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--site", default="stream")
    parser.add_argument("--concepts", type=int, default=64)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    asked = parser.parse_args()
    model = en.load_model("dinov2-small").using(progress=False)
    place, rows = en.find_site(model, asked.site), []
    for seed in asked.seeds:
        images = en.load_images(asked.images).sample(asked.count, seed=seed)
        discover, held_out = images.split(0.5, seed=seed)
        reference = en.embed(model, held_out)
        # The class token is one of an image's 257: as many are drawn of both kinds, so that neither book has more.
        splits = {
            tokens: en.disentangle(
                model, discover, asked.site, concepts=asked.concepts, tokens=tokens, tokens_per_image=number, seed=seed
            )
            for tokens, number in (("patch", 24), ("class", None), ("all", 24))
        }
        for where in ("class", "patch"):
            parts = list(en.record(model, held_out, place, tokens=where, tokens_per_image=24, seed=seed))
            recording = en.Recording.join(parts)
            for tokens, split in splits.items():
                for kind, readout in (("sub-units", split.live_readout()), ("concepts", split.concept_readout())):
                    values = pool_recorded(recording.sources @ readout.matrix + readout.offset, recording.images)
                    row: dict[str, object] = {"seed": seed, "discovered on": tokens, "read at": where, "units": kind}
                    row["top_similarity"] = mean_interval(top_similarity(values, reference, 10)).mean
                    row["best_unit_precision"] = best_unit_precision(values, held_out.labels or (), seed=seed)[
                        "average_precision"
                    ].mean()
                    shared = label_share_over_chance(values, held_out.labels or (), 10)
                    row["label_share_over_chance"] = mean_interval(shared).mean
                    rows.append(row)
                    print(pd.DataFrame([row]).round(3).to_string(index=False, header=len(rows) == 1), flush=True)
    keys = ["read at", "units", "discovered on"]
    print(pd.DataFrame(rows).groupby(keys, sort=False).agg(["mean", "std"]).round(3).drop(columns="seed").to_string())


if __name__ == "__main__":
    main()
