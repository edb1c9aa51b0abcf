"""Which rule gives better sub-units from the same clusters? The paper's MS-Score on images that discovery has not seen.

``python benchmarks/elude_rules.py`` splits channels of layers by each rule, on half of the images, and scores the
sub-units (dead ones left out) on the other half, all tokens of each image, for each seed. All rules get the same
tokens and channels. The first column has as many units of every row, drawn at random (at most ``--units``); the second
is the difference to the published rule on the same channels, all live sub-units of a channel averaged, with a 95 %
bootstrap interval over the channels. The published method is `EludeRouting`'s default; the other rules and the random
groups are controls, or this project's.

    python benchmarks/elude_rules.py --sites blocks.5.mlp.fc2 blocks.11.attn.proj --channels 24
    python benchmarks/elude_rules.py --images DIR                 # a folder, such as that of debian_pictures.py
    python benchmarks/elude_rules.py --model minilm --sites encoder.encoder.layer.4.output.dense
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from held_out import interval_text
from torch import Tensor

import elude_nb as en
from elude_nb.core.concepts import Cells, ConceptBook
from elude_nb.core.elude import Instances
from elude_nb.scores import mean_interval, ms_score

RULES: dict[str, dict[str, Any]] = {
    "published": {"rule": "published"},
    "signed": {"rule": "signed"},
    "absolute value, one owner": {"rule": "absolute"},
    "signed, random groups": {"rule": "signed", "groups": "random"},
    "signed, micro-clusters": {"rule": "signed", "instances": "micro-clusters"},
}
AT_ONCE = 400
"""Units scored at once: their values at all tokens are in memory."""


class Seen(NamedTuple):
    """What the halves of the images gave: instances to split by, and what to score on."""

    instances: Instances
    groups: Instances
    sources: Tensor  # (n * t, s), held out
    channels: Tensor  # (n, t, d), held out


def scored(values: torch.Tensor, seen: torch.Tensor) -> str:
    """Return the MS-Score of units (n, t, u), of the top tenth of the images, and the same centred, in percent."""
    count = max(2, len(values) // 10)
    parts = []
    for centred in (False, True):
        parts.append(interval_text(100 * ms_score(values, seen, count=count, centred=centred).dropna(), digits=1))
    return f"MS-Score {parts[0]}, centred {parts[1]}"


def look(model: Any, place: Any, images: Any, asked: argparse.Namespace, seed: int) -> Seen:
    """Record both halves of the images at one site."""
    discover, held_out = images.sample(asked.count, seed=seed).split(0.5, seed=seed)
    take = {"tokens": "all", "seed": seed}
    parts = list(en.record(model, discover, place, tokens_per_image=asked.tokens_per_image, **take))
    micro = en.EludeRouting().micro_clusters
    found = en.Recording.join(parts)
    some = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))[: 4 * micro]
    cells = Cells.of(found.channels[some], micro, seed).nearest(found.channels)
    used, cells = cells.unique(return_inverse=True)
    fine = ConceptBook.of_tokens(found.channels, found.sources, squares=True).regroup(cells, len(used))
    other = en.Recording.join(list(en.record(model, held_out, place, tokens_per_image=asked.held_out_tokens, **take)))
    lengths = torch.bincount(other.images)  # sentences differ in length: those with enough tokens are kept
    other = other.rows(lengths[other.images] == lengths.max())
    return Seen(
        Instances(found.sources, found.channels, torch.ones(len(found))),
        Instances.of_groups(fine),
        other.sources,
        other.channels.unflatten(0, (-1, int(lengths.max()))),
    )


def split_channels(weight: Tensor, seen: Seen, chosen: Tensor, how: dict[str, Any], seed: int) -> tuple[Tensor, Tensor]:
    """Split the chosen channels by one rule; return the rows of its live sub-units (u, s) and their channels (u,)."""
    found = seen.groups if how.get("instances") == "micro-clusters" else seen.instances
    few = replace(found, channels=found.channels[:, chosen])
    routing, _ = en.EludeRouting(seed=seed, **how).route_instances(weight[chosen], few)
    channels, units = routing.live_rows()
    return routing.masked(weight[chosen].flatten(1), channels, units), channels


def values_of(rows: Tensor, seen: Seen) -> Tensor:
    """Return units' activations, (n, t, u); a bias would not change the score."""
    return (seen.sources @ rows.T).unflatten(0, seen.channels.shape[:2])


def difference(scores: dict[str, tuple[Tensor, Tensor]], rule: str) -> str:
    """Return the mean difference to the published rule over the channels that both split, in points."""
    means = []
    for name in (rule, "published"):
        values, channels = scores[name]
        means.append({int(c): float(values[channels == c].nanmean()) for c in channels.unique()})
    both = sorted(means[0].keys() & means[1].keys())
    found = mean_interval([100 * (means[0][c] - means[1][c]) for c in both], seed=0)
    return f"{found.mean:+.1f} [{found.low:+.1f}, {found.high:+.1f}] over {found.count} channels"


def compare_rules(weight: Tensor, seen: Seen, asked: argparse.Namespace, seed: int, where: str) -> None:
    """Print a line for the channels and one for each rule."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(weight), generator=generator)[: asked.channels].sort().values
    made, took = {}, {}
    for name, how in RULES.items():
        start = time.perf_counter()
        made[name] = split_channels(weight, seen, chosen, how, seed)
        took[name] = time.perf_counter() - start
    least = min(asked.units, *(len(rows) for name, (rows, _) in made.items() if "micro" not in name))
    drawn = torch.randperm(len(weight), generator=generator)[:least]
    print(f"{where}, channels, {len(drawn)} units: {scored(seen.channels[..., drawn], seen.channels)}", flush=True)
    count = max(2, len(seen.channels) // 10)
    scores: dict[str, tuple[Tensor, Tensor]] = {}
    for name, (rows, channels) in made.items():
        parts = [ms_score(values_of(few, seen), seen.channels, count=count) for few in rows.split(AT_ONCE)]
        scores[name] = torch.tensor([score for part in parts for score in part]), channels
        drawn = torch.randperm(len(rows), generator=generator)[:least]
        print(
            f"{where}, {name}, {len(drawn)} units: {scored(values_of(rows[drawn], seen), seen.channels)}; "
            f"over published {difference(scores, name)}; {len(rows) / len(chosen):.1f} live sub-units a channel, "
            f"{took[name]:.0f} s",
            flush=True,
        )


def main() -> None:
    """Print a block of lines a site and seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="dinov2-small", help="any name of load_model, or minilm")
    parser.add_argument("--images", default="photographs", help="what load_images takes; with minilm, sentences")
    parser.add_argument("--count", type=int, default=300, help="images, half for discovery")
    parser.add_argument("--sites", nargs="+", default=["blocks.11.mlp.fc2"])
    parser.add_argument("--channels", type=int, default=384, help="how many channels are split, drawn at random")
    parser.add_argument("--units", type=int, default=400, help="how many units of each row are scored, at most")
    parser.add_argument("--tokens-per-image", type=int, default=48, help="for discovery")
    parser.add_argument("--held-out-tokens", type=int, default=None, help="for scoring; all by default, 8 with minilm")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    asked = parser.parse_args()
    model: Any
    images: Any
    if asked.model == "minilm":
        from elude_nb.text import load_sentences, load_text_model

        model, images = load_text_model(asked.model), load_sentences(count=asked.count)
        asked.held_out_tokens = asked.held_out_tokens or 8
    else:
        model, images = en.load_model(asked.model, progress=False), en.load_images(asked.images)
    model = model.using(progress=False)
    for site in asked.sites:
        place = en.find_site(model, site)
        weight = place.weight(model.network).unflatten(1, (-1, place.kernel))
        for seed in asked.seeds:
            seen = look(model, place, images, asked, seed)
            compare_rules(weight, seen, asked, seed, f"{asked.model} {site} seed {seed}")


if __name__ == "__main__":
    main()
