"""How exclusive should an edit be? Drop of the class meant against that of the others, at equal drop.

``python benchmarks/exclusive_edits.py`` splits the whole residual stream of DINOv2 ViT-S/14 on half of the photographs,
ablates all concepts named after a class at several strengths, for each ``exclusive``, and measures on the other half
with a linear probe (`elude_nb.effect`). Where the curves of two settings reach the same drop of the class meant, the
one with less drop of the other classes is better.
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd

import elude_nb as en

STRENGTHS = (0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)


def at_equal_drop(curve: pd.DataFrame, drop: float) -> dict[str, float]:
    """Return strength, mean and worst drop of the other classes where the class meant has fallen by ``drop``."""
    curve = curve.sort_values("strength")
    drops = np.maximum.accumulate([0.0, *curve["drop"]])
    if drops[-1] < drop:
        return dict.fromkeys(("strength", "others", "worst"), float("nan"))
    return {name: float(np.interp(drop, drops, [0.0, *curve[name]])) for name in ("strength", "others", "worst")}


def main() -> None:
    """Print one row a seed, class and exclusiveness, and the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", default="photographs")
    parser.add_argument("--count", type=int, default=160)
    parser.add_argument("--classes", nargs="+", default=["cat", "rocket", "astronaut"])
    parser.add_argument("--exclusive", type=float, nargs="+", default=[1.0, 0.9, 0.8, 0.6, 0.4])
    parser.add_argument("--drops", type=float, nargs="+", default=[0.3, 0.5, 0.7], help="where edits are compared")
    parser.add_argument("--routing", default="concepts")
    parser.add_argument("--site", default="stream")
    parser.add_argument("--concepts", type=int, default=64)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    asked = parser.parse_args()
    model = en.load_model("dinov2-small").using(progress=False)
    routing = en.EludeRouting(rule="signed") if asked.routing == "signed" else asked.routing
    rows = []
    for seed in asked.seeds:
        train, test = en.load_images(asked.images, count=asked.count).split(0.5, seed=seed)
        split = en.disentangle(model, train, asked.site, routing=routing, concepts=asked.concepts, seed=seed)
        split = split.with_names(en.name_concepts(split, train).names)
        for label in asked.classes:
            concepts = split.concepts_named(label)
            beside = {str(e): en.Edit.ablate(concept=concepts, exclusive=e) for e in asked.exclusive}
            found = en.effect(
                split, en.Edit.ablate(concept=concepts), test, fit=train, target=label, controls=(), beside=beside,
                strengths=STRENGTHS, seed=seed,
            )  # fmt: skip
            for name, curve in found.curve.groupby("method", sort=False):
                whole = curve[curve["strength"] == 1.0].iloc[0]
                row = {"seed": seed, "class": label, "exclusive": "all" if name == "edit" else name}
                row |= {f"{score} at 1": whole[score] for score in ("drop", "others", "worst")}
                for drop in asked.drops:
                    row |= {f"{key} at {drop}": value for key, value in at_equal_drop(curve, drop).items()}
                rows.append(row)
                print(pd.DataFrame([row]).round(3).to_string(index=False, header=len(rows) == 1), flush=True)
    table = pd.DataFrame(rows)
    table = table.drop(columns="seed")
    print(table.groupby(["class", "exclusive"], sort=False).mean(numeric_only=True).round(3).to_string())
    print(table.groupby("exclusive", sort=False).mean(numeric_only=True).round(3).to_string())


if __name__ == "__main__":
    main()
