"""Which rule gives better sub-units from the same clusters? The paper's MS-Score on images that discovery has not seen.

``python benchmarks/elude_rules.py`` splits one layer of DINOv2 ViT-S/14 by each rule, on half of the photographs, and
scores up to 400 sub-units (dead ones left out) on the other half, all tokens of each image, for each seed. The
published method is `EludeRouting`'s default; the other rules and the random groups are controls, or this project's.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from held_out import HeldOut

import elude_nb as en

RULES: dict[str, dict[str, Any]] = {
    "published": {"rule": "published"},
    "signed": {"rule": "signed"},
    "absolute value, one owner": {"rule": "absolute"},
    "signed, random groups": {"rule": "signed", "groups": "random"},
    "signed, micro-clusters": {"rule": "signed", "instances": "micro-clusters"},
}


def main() -> None:
    """Print a line a rule and seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", default="photographs")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--site", default="blocks.11.mlp.fc2")
    parser.add_argument("--tokens-per-image", type=int, default=48)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    asked = parser.parse_args()
    model = en.load_model("dinov2-small").using(progress=False)
    place = en.find_site(model, asked.site)
    for seed in asked.seeds:
        discover, held_out = en.load_images(asked.images).sample(asked.count, seed=seed).split(0.5, seed=seed)
        seen = HeldOut.record(model, held_out, place)
        print(f"seed {seed}, channels: {seen.ms_score(seen.channels())}", flush=True)
        for name, how in RULES.items():
            start = time.perf_counter()
            split = en.disentangle(
                model, discover, asked.site, routing=en.EludeRouting(seed=seed, **how), concepts=64,
                tokens_per_image=asked.tokens_per_image, seed=seed,
            )  # fmt: skip
            took = time.perf_counter() - start
            live = torch.stack(split.routing.live_rows(), dim=1)
            some = live[torch.randperm(len(live), generator=torch.Generator().manual_seed(0))[:400]]
            values = seen.read(split.unit_readout([(channel, unit) for channel, unit in some.tolist()]))
            dead = int(split.channels["units"].sum()) - len(live)
            each = split.channels["units"].mean()
            about = f"{each:.1f} sub-units a channel, {dead:,} dead, {took:.0f} s"
            print(f"seed {seed}, {name}: {seen.ms_score(values)}; {about}", flush=True)


if __name__ == "__main__":
    main()
