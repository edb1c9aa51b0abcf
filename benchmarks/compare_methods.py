"""Compare methods over several seeds, on crops of the photographs or on a folder; write every row, print the means.

    python benchmarks/compare_methods.py --out DIR [--images 240] [--seeds 0,1,2] [--tokens patch,class] [--only NAMES]
    python benchmarks/compare_methods.py --out DIR --pictures FOLDER --site blocks.11.mlp.fc2 --tokens all --only rules

The seed is that of the halves (discovery and scoring), the clustering and the training. A crop's label is its
photograph. Variants of our method have rows of their own; docs/method.md says which of them was kept.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import pandas as pd

import elude_nb as en
from elude_nb.baselines import METHODS, Concepts, Method, Overcomplete, Plan, SubUnits, TopK
from elude_nb.core.concepts import suggest_concepts
from elude_nb.core.strategies import ConceptRouting
from elude_nb.models.sites import Site
from elude_nb.scores.suggest import suggest_settings

BASELINES = ("channels", "random routes", "PCA", "ICA", "NMF", "k-means")
RULES = ("channels", "random groups", "TopK SAE", "BatchTopK SAE", "transcoder", "ELUDe as published", "signed rule",
         "concepts", "k-means")  # fmt: skip
"""Methods of one layer, the published one among them: what ``--only rules`` compares."""
SHOWN = ("units", "ms_score", "ms_score_low", "ms_score_high", "label_share_over_chance", "top_similarity",
         "best_unit_precision", "redundancy", "effective_rank", "intruder_accuracy", "polysemanticity",
         "unexplained_variance", "output_change", "seconds_to_fit")  # fmt: skip


def variants(model: en.Model, site: Site, discovery: en.ImageSet, tokens: str, seed: int, n_units: int) -> list[Method]:
    """Return our method with its defaults, with other candidates, and with settings chosen from the discovery."""
    how = {"tokens": tokens, "seed": seed}
    choice = suggest_settings(model, discovery, site.name, tokens=tokens, seed=seed)
    print(f"{tokens}, seed {seed}: {choice}", flush=True)
    return [
        SubUnits(model, site, **how),
        SubUnits(model, site, routing=ConceptRouting(unlike=True), name="sub-units, unlike", **how),
        SubUnits(model, site, routing=ConceptRouting(both_signs=True), name="sub-units, both signs", **how),
        SubUnits(model, site, name="sub-units, suggested", **choice.settings, **how),
        Concepts(model, site, concepts=n_units, **how),
        Concepts(model, site, concepts=n_units, routing=ConceptRouting(unlike=True), name="concepts, unlike", **how),
    ]


def autoencoders(n_units: int, seed: int) -> list[Method]:
    """Return sparse autoencoders; `elude_nb.baselines` has more."""
    return [
        *(TopK(n_units, k, seed=seed, name=f"TopK SAE, k {k}") for k in (8, 16)),
        Overcomplete("BatchTopK", n_units, 8, seed=seed),
    ]


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=240)
    parser.add_argument("--pictures", default="photographs")
    parser.add_argument("--site", default="stream")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--tokens", default="patch,class")
    parser.add_argument("--tokens-per-image", type=int, default=24)
    parser.add_argument("--units", type=int, default=128)
    parser.add_argument("--only", default="variants,baselines,autoencoders")
    chosen = parser.parse_args()
    model = en.load_model("dinov2-small").using(progress=False)
    images = en.load_images(chosen.pictures).sample(chosen.images, seed=0)
    site = en.find_site(model, chosen.site)
    tables = []
    chosen.out.mkdir(parents=True, exist_ok=True)
    for tokens in chosen.tokens.split(","):
        for seed in map(int, chosen.seeds.split(",")):
            start = time.perf_counter()
            count = len(images) // 2 * (1 if tokens == "class" else chosen.tokens_per_image)
            plan = Plan(model, site, n_units=chosen.units, concepts=suggest_concepts(count), tokens=tokens, seed=seed)
            methods: list[Method] = []
            if chosen.only == "rules":
                methods += [METHODS[name](plan) for name in RULES]
            elif "variants" not in chosen.only:
                methods += [METHODS[name](plan) for name in ("sub-units", "concepts")]
            else:
                first = images.split(0.5, seed=seed)[0]  # as compare splits them
                methods += variants(model, site, first, tokens, seed, chosen.units)
            methods += [METHODS[name](plan) for name in BASELINES] if "baselines" in chosen.only else []
            methods += autoencoders(chosen.units, seed) if "autoencoders" in chosen.only else []
            found = en.compare(
                model, images, chosen.site, methods=methods, n_units=chosen.units, tokens=tokens, seed=seed,
                tokens_per_image=chosen.tokens_per_image, fidelity_images=16, progress=False,
            )  # fmt: skip
            tables.append(found.table.assign(tokens=tokens, seed=seed))
            pd.concat(tables).to_csv(chosen.out / "rows.csv", index=False)
            print(f"{tokens}, seed {seed}: {time.perf_counter() - start:.0f} s", flush=True)
    rows = pd.concat(tables)
    means = rows.groupby(["tokens", "size", "method"], sort=False)[list(SHOWN)].mean()
    with pd.option_context("display.width", 240, "display.max_rows", None, "display.max_columns", None):
        print(means.round(3).to_string())


if __name__ == "__main__":
    main()
