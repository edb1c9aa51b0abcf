"""Measure what ``routing="elude"`` costs beside the forward passes, by tokens (exact) and micro-clusters (summarised).

``python benchmarks/elude_cost.py`` runs images through DINOv2 ViT-S/14 once, recording one layer, and then splits
channels by both roads, with one set of instances. Printed are: seconds of the forward passes; of both roads, for the
channels split and scaled to all; how the exact road grows with ``top_k`` (exponent of a fit); how far the two agree
(sub-units, adjusted Rand index of the clusters' owners, MS-Score under the signed rule on held-out images); and what
the paper's own work would take here by each road, from the measured parts.
"""

from __future__ import annotations

import argparse
import math
import time
from typing import Any

import numpy as np
import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

import elude_nb as en
from elude_nb.core.concepts import Cells, ConceptBook
from elude_nb.core.elude import Instances
from elude_nb.scores import mean_interval, ms_score

PAPER = {"tokens": 2_560_000, "channels": 768, "sources": 3072, "top_k": 400_000}


def split(weight: Tensor, found: Instances, chosen: Tensor, **how: Any) -> tuple[Any, float]:
    """Split the chosen channels; return the routing and the seconds."""
    few = Instances(found.sources, found.channels[:, chosen], found.counts, found.squares)
    start = time.perf_counter()
    routing, _ = en.EludeRouting(**how).route_instances(weight[chosen], few)
    return routing, time.perf_counter() - start


def score(routing: Any, weight: Tensor, chosen: Tensor, held_out: en.Recording, images: int) -> str:
    """Return the MS-Score of up to 400 sub-units, of the top tenth of the images, in percent."""
    channels, units = routing.rows()
    alive = (units > 0).nonzero().flatten()
    order = torch.randperm(len(alive), generator=torch.Generator().manual_seed(0))[:400]
    rows = routing.masked(weight[chosen].flatten(1), channels[alive[order]], units[alive[order]])
    values = (held_out.sources @ rows.T).unflatten(0, (images, -1))
    seen = held_out.channels.unflatten(0, (images, -1))
    found = mean_interval(100 * ms_score(values, seen, count=max(2, images // 10)), seed=0)
    each = len(alive) / len(chosen)
    return f"{each:.1f} sub-units a channel, MS-Score {found.mean:.1f} [{found.low:.1f}, {found.high:.1f}]"


def growth(weight: Tensor, found: Instances, chosen: Tensor) -> tuple[float, float]:
    """Print seconds for some ``top_k``; return the exponent, and seconds a channel, instance and instance."""
    sizes = [top for top in (600, 1200, 2400, 4800) if top <= len(found)]
    seconds = []
    for top in sizes:
        took = split(weight, found, chosen[:4], top_k=top, min_cluster_size=max(8, top // 400), rule="signed")[1]
        seconds.append(took / len(chosen[:4]))
        print(f"exact, top_k={top:,}: {seconds[-1]:.3f} s a channel", flush=True)
    exponent = float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
    return exponent, seconds[-1] / sizes[-1] ** 2


def paper_line(each: float, pair: float, sources: int, micro: int) -> None:
    """Print what the paper's own work would take, from seconds a channel (micro) and a pair of instances (exact)."""
    wider = PAPER["sources"] / sources
    rounds = 1 + math.ceil(math.log2(PAPER["top_k"]) / 2)  # a table for the neighbours; trees halve at the least
    exact = pair * PAPER["top_k"] ** 2 * wider * PAPER["channels"] * rounds
    print(
        f"the paper's work ({PAPER['top_k']:,} of {PAPER['tokens']:,} tokens, {PAPER['channels']} channels) here, by "
        f"extrapolation: exact, about {rounds} tables of all cosines a channel, {exact / 86400:,.0f} days; {micro:,} "
        f"micro-clusters {each * wider * PAPER['channels'] / 60:.0f} min beside the forward passes of its images"
    )


def record_and_group(
    model: en.Model, images: en.ImageSet, place: Any, asked: argparse.Namespace
) -> tuple[en.Recording, ConceptBook, float, float]:
    """Run the images once; return all tokens, their groups, and the seconds of the passes and of the grouping."""
    start = time.perf_counter()
    parts = list(en.record(model, images, place, tokens="all", tokens_per_image=asked.tokens_per_image))
    passes = time.perf_counter() - start
    found = en.Recording.join(parts)
    start = time.perf_counter()
    some = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))[: 4 * asked.micro_clusters]
    cells = Cells.of(found.channels[some], asked.micro_clusters, 0).nearest(found.channels)
    used, cells = cells.unique(return_inverse=True)
    fine = ConceptBook.of_tokens(found.channels, found.sources, squares=True).regroup(cells, len(used))
    return found, fine, passes, time.perf_counter() - start


def main() -> None:
    """Record, split, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", default="photographs")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--held-out", type=int, default=150)
    parser.add_argument("--site", default="blocks.11.mlp.fc2")
    parser.add_argument("--tokens-per-image", type=int, default=48)
    parser.add_argument("--micro-clusters", type=int, default=2048)
    parser.add_argument("--max-tokens", type=int, default=16_384, help="for the exact road")
    parser.add_argument("--channels", type=int, default=384, help="split by micro-clusters")
    parser.add_argument("--exact-channels", type=int, default=24, help="split by tokens, and compared")
    asked = parser.parse_args()
    model = en.load_model("dinov2-small", progress=False).using(progress=False)
    images = en.load_images(asked.images).sample(asked.count + asked.held_out, seed=0)
    discover, held_out = images.split(asked.count / len(images), seed=0)
    place = en.find_site(model, asked.site)
    weight = place.weight(model.network).unflatten(1, (-1, place.kernel))
    print(f"{asked.site}, {torch.get_num_threads()} threads, {len(discover)} images", flush=True)

    recording, fine, passes, grouping = record_and_group(model, discover, place, asked)
    some = torch.randperm(len(recording), generator=torch.Generator().manual_seed(0))[: asked.max_tokens]
    tokens = Instances(recording.sources[some], recording.channels[some], torch.ones(len(some)))
    groups = Instances.of_groups(fine)
    every = torch.randperm(len(weight), generator=torch.Generator().manual_seed(1))[: asked.channels]
    few = every[: asked.exact_channels]
    print(f"forward passes {passes:.0f} s; {len(recording):,} tokens to {len(groups):,} groups {grouping:.0f} s")

    other = en.Recording.join(list(en.record(model, held_out, place, tokens="all")))
    for rule in ("signed", "published"):
        took = split(weight, groups, every, rule=rule)[1]
        whole = grouping + took * len(weight) / len(every)
        print(
            f"micro-clusters, {rule}: {took:.1f} s for {len(every)} channels; with the grouping, for all "
            f"{len(weight)}: {whole:.0f} s, {100 * whole / passes:.0f} % of the forward passes", flush=True,
        )  # fmt: skip
        exact, seconds = split(weight, tokens, few, rule=rule)
        print(
            f"tokens, {rule}: {seconds:.1f} s for {len(few)} channels, top_k {round(0.16 * len(tokens)):,}; for all "
            f"{len(weight)}: {seconds * len(weight) / len(few):.0f} s, "
            f"{100 * seconds * len(weight) / len(few) / passes:.0f} % of the forward passes", flush=True,
        )  # fmt: skip
        if rule == "signed":
            each = took / len(every)
            again = split(weight, groups, few, rule=rule)[0]
            alike = [adjusted_rand_score(a, b) for a, b in zip(exact.routes, again.routes, strict=True)]
            print(f"tokens: {score(exact, weight, few, other, len(held_out))}")
            print(f"micro-clusters: {score(again, weight, few, other, len(held_out))}")
            print(f"adjusted Rand index of the sources' owners, mean over {len(few)} channels: {np.mean(alike):.2f}")
    exponent, pair = growth(weight, tokens, few)
    print(f"exact road grows as top_k to the power of {exponent:.2f}")
    paper_line(each, pair, place.sources, asked.micro_clusters)


if __name__ == "__main__":
    main()
