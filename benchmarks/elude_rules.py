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

import elude_nb as en
from elude_nb.scores import mean_interval, ms_score

RULES: dict[str, dict[str, Any]] = {
    "published": {"rule": "published"},
    "signed": {"rule": "signed"},
    "absolute value, one owner": {"rule": "absolute"},
    "signed, random groups": {"rule": "signed", "groups": "random"},
    "signed, micro-clusters": {"rule": "signed", "instances": "micro-clusters"},
}


def scored(values: torch.Tensor, seen: torch.Tensor) -> str:
    """Return the MS-Score of units (n, t, u), of the top tenth of the images, and the same centred, in percent."""
    count = max(2, len(values) // 10)
    parts = []
    for centred in (False, True):
        found = mean_interval(ms_score(values, seen, count=count, centred=centred).dropna(), seed=0)
        parts.append(f"{100 * found.mean:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]")
    return f"MS-Score {parts[0]}, centred {parts[1]}"


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
        recording = en.Recording.join(list(en.record(model, held_out, place, tokens="all")))
        seen = recording.channels.unflatten(0, (len(held_out), -1))
        print(f"seed {seed}, channels: {scored(seen, seen)}", flush=True)
        for name, how in RULES.items():
            start = time.perf_counter()
            split = en.disentangle(
                model, discover, asked.site, routing=en.EludeRouting(seed=seed, **how), concepts=64,
                tokens_per_image=asked.tokens_per_image, seed=seed,
            )  # fmt: skip
            took = time.perf_counter() - start
            channels, units = split.routing.rows()
            alive = ((units > 0) & (split.routing.exclusive_sizes()[channels, units] > 0)).nonzero().flatten()
            order = torch.randperm(len(alive), generator=torch.Generator().manual_seed(0))[:400]
            pairs = torch.stack([channels, units], dim=1)[alive[order]].tolist()
            readout = split.unit_readout([(channel, unit) for channel, unit in pairs])
            values = (recording.sources @ readout.matrix + readout.offset).unflatten(0, (len(held_out), -1))
            dead = int((units > 0).sum()) - len(alive)
            each = split.channels["units"].mean()
            about = f"{each:.1f} sub-units a channel, {dead:,} dead, {took:.0f} s"
            print(f"seed {seed}, {name}: {scored(values, seen)}; {about}", flush=True)


if __name__ == "__main__":
    main()
