"""What a split of DINOv2 S, B, L and g takes in memory, what the estimate says, and what the ways to take less lose.

The first table has random weights, small generated images and processes of their own: memory does not depend on the
weights, and on the size of the images only by the tokens of one batch. Beside the model means: above what the process
has when the model is loaded and has run one batch, and the libraries of the analysis are imported (some 60 MB).

The second (``--loss``) has DINOv2 S as it was trained, and photographs: the stream is split in full, and by each way to
take less. Routes are compared one by one, and sub-units are scored on images that no split has seen.

    python benchmarks/large_models.py                           # hours for ViT-g on two cores
    python benchmarks/large_models.py --networks small,base --places "a layer,last block"
    python benchmarks/large_models.py --loss
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from scaling import Noise, settings_of
from scipy.optimize import linear_sum_assignment
from torch import Tensor

import elude_nb as en
from elude_nb._util.ranks import Ranks
from elude_nb.core.concepts import Cells, ConceptBook, make_books
from elude_nb.core.disentangle import _split_by
from elude_nb.core.elude import EludeRouting
from elude_nb.core.estimate import _Need, _Size
from elude_nb.core.one_pass import plan_pass
from elude_nb.core.recording import Recording
from elude_nb.core.statistics import Limits, Statistics, collect_recording
from elude_nb.core.strategies import ConceptRouting
from elude_nb.models.find_sites import find_site
from elude_nb.models.forward import reference
from elude_nb.models.sites import Site
from elude_nb.scores.overview import Scoring

GIB = 2**30
NETWORKS = ("small", "base", "large", "giant")
PLACES = ("a layer", "last block", "all blocks")


def resident() -> int:
    """Return how much memory the process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def peak_beyond(work: Callable[[], object]) -> int:
    """Return by how much the memory of the process rises at most while it works (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = resident()
    work()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 - before


def child(
    network: str, place: str, image_size: int, tokens: int, batch_size: int, max_memory: float | None
) -> dict[str, Any]:
    """Split one network at one place in this process."""
    torch.set_num_threads(1)
    name = f"vit_{network}_patch14_dinov2"
    model = en.load_model(name, image_size=image_size, pretrained=False, progress=False)
    model = model.using(progress=False, batch_size=batch_size)
    each = (image_size // 14) ** 2
    images = en.load_images(Noise(-(-tokens // each), image_size))
    en.embed(model, images[:batch_size])
    en.disentangle(model, images[:4], "blocks.0.mlp.fc2", concepts=2, tokens_per_image=4)  # imports what is needed
    EludeRouting().expected_seconds(100, 2, 8)
    how = {**settings_of(place, model), "tokens_per_image": None, "max_memory": max_memory}
    planned = plan_pass(model, images, purpose="disentangle", **how)
    start = time.process_time()
    used = peak_beyond(lambda: en.disentangle(model, images, **how))
    return {
        "channels": planned.place.channels,
        "sources": planned.place.sources,
        "tokens": planned.plan.tokens,
        "estimate": planned.plan.memory,
        "used": used,
        "seconds": time.process_time() - start,
    }


def print_memory(asked: argparse.Namespace) -> None:
    """Print a row for each network and place, each from a process of its own."""
    print(f"{asked.tokens:,} tokens or a few more; memory beside the model, in GiB")
    print(f"{'network':>8}  {'place':>10}  {'channels':>8}  {'sources':>8}  {'tokens':>7}  "
          f"{'estimate':>8}  {'used':>6}  {'used / estimate':>15}  {'CPU time':>8}")  # fmt: skip
    for network in asked.networks:
        for place in asked.places:
            given = [network, place, asked.image_size, asked.tokens, asked.batch_size, asked.max_memory]
            ran = subprocess.run(  # noqa: S603 - itself
                [sys.executable, __file__, "--child", json.dumps(given)], stdout=subprocess.PIPE, check=False
            )
            if ran.returncode:
                print(f"{network:>8}  {place:>10}  ended with {ran.returncode}", flush=True)
                continue
            found = json.loads(ran.stdout.splitlines()[-1])
            print(f"{network:>8}  {place:>10}  {found['channels']:8,}  {found['sources']:8,}  {found['tokens']:7,}  "
                  f"{found['estimate'] / GIB:8.2f}  {found['used'] / GIB:6.2f}  "
                  f"{found['used'] / found['estimate']:15.2f}  {found['seconds']:6.0f} s", flush=True)  # fmt: skip


# ---------------------------------------------------------------- what it costs to take less


def same_routes(one: Tensor, other: Tensor) -> float:
    """Return the share of routes (d, s) that agree, units of a channel matched to each other as well as they can be."""
    agree, units = 0.0, int(max(one.max(), other.max())) + 1
    for row, there in zip(one.long(), other.long(), strict=True):
        table = torch.bincount(row * units + there, minlength=units**2).reshape(units, units).numpy()
        agree += table[linear_sum_assignment(table, maximize=True)].sum()
    return agree / one.numel()


def summed_in(dtype: torch.dtype, found: Statistics, recording: Recording, times: int = 20) -> Statistics:
    """Return the statistics with the cells' sources added up in a dtype, the tokens so many times over."""
    cells, micro = cast("tuple[Cells, ConceptBook]", (found.cells, found.micro))
    groups = cells.nearest(recording.channels).split(384)
    sums = torch.zeros_like(micro.source_sums, dtype=dtype)
    for _ in range(times):
        for part, where in zip(recording.parts(384), groups, strict=True):
            sums.index_add_(0, where, part.sources.to(dtype))
    return replace(found, micro=replace(micro, source_sums=sums.double() / times))


def sketched(book: ConceptBook, size: int) -> ConceptBook:
    """Return a book as it comes back from a projection to fewer numbers (a count sketch, the same for all tokens)."""
    s, generator = book.source_sums.shape[1], torch.Generator().manual_seed(0)
    where = torch.randint(size, (s,), generator=generator)
    sign = torch.randint(2, (s,), generator=generator).to(book.source_sums) * 2 - 1
    kept = book.source_sums.new_zeros(len(book), size).index_add_(1, where, book.source_sums * sign)
    return replace(book, source_sums=kept[:, where] * sign)


def print_loss(asked: argparse.Namespace) -> None:
    """Split DINOv2 S in full and by each way to take less memory; print what is left of routes and scores."""
    model = en.load_model("dinov2-small", progress=False).using(progress=False, batch_size=16)
    sets = en.load_images("photographs", count=2 * asked.images, seed=0).without_copies().split(0.5, seed=0)
    judged = reference("efficientnet-lite0", sets[1], progress=False)
    planned = plan_pass(model, sets[0], "stream", purpose="disentangle")
    site, settings, strategy = planned.place, planned.settings, ConceptRouting()
    seen, held = (
        Recording.join(list(en.record(model, images, site, tokens="patch", tokens_per_image=24))) for images in sets
    )
    need = _Need(site, 10**6, settings.concepts, settings.units, 16 * 24, 4, None)
    print(f"{len(sets[0])} images, {len(seen):,} tokens, {settings.concepts} concepts; scored on {len(sets[1])} others")
    print(f"{'way':>42}  {'memory':>8}  {'same routes':>11}  {'similarity':>10}  {'channels':>8}  {'random':>7}")

    def limits(cells: int) -> Limits:
        return Limits(cells, len(seen), 0, 0)

    def statistics(cells: int = 1024, seed: int = 0, recording: Recording = seen) -> Statistics:
        return collect_recording(recording, replace(settings, seed=seed), limits(cells))

    def bytes_of(cells: int = 1024, *, held: bool = False, of: _Need = need) -> int:
        return of.memory(_Size(4 * cells, cells, held))

    def last(recording: Recording, sources: int) -> Recording:
        return replace(recording, sources=recording.sources[:, -sources:])

    def show(way: str, memory: float, split: en.Disentanglement) -> None:
        sources = split.site.sources
        same = same_routes(full.routing.routes[:, -sources:], split.routing.routes)
        scoring = Scoring(split)
        for part in last(held, sources).parts(384):
            scoring.add(part)
        table = scoring.table(sets[1], torch.arange(len(sets[1])), judged, k=10, n_distinct=0)
        means = table.groupby("kind")["top_similarity"].mean()
        print(f"{way:>42}  {memory / GIB:6.2f} G  {same:11.1%}  {means['sub-unit']:10.4f}  {means['channel']:8.4f}  "
              f"{means['random route']:7.4f}", flush=True)  # fmt: skip

    def split_by(found: Statistics, place: Site = site) -> en.Disentanglement:
        return replace(_split_by(found, model, place, strategy, Ranks()), seen=None)

    of_all = statistics()
    full = split_by(of_all)
    show("as it is, sample held", bytes_of(held=True), full)
    show("as it is, sample run twice", bytes_of(), full)
    show("another seed", bytes_of(), split_by(statistics(seed=1)))
    for cells in (512, 256, 128):
        show(f"{cells} cells", bytes_of(cells), split_by(statistics(cells)))
    for blocks in (6, 3, 1):
        place = find_site(model, "stream", blocks=blocks)
        found = split_by(statistics(recording=last(seen, place.sources)), place)
        show(f"blocks={blocks}", bytes_of(of=replace(need, site=place)), found)
    for dtype in (torch.float32, torch.bfloat16):
        saved = (8 - dtype.itemsize) * 1024 * need.width
        show(f"cells added up in {dtype}", bytes_of() - saved, split_by(summed_in(dtype, of_all, seen)))
    for share in (2, 8):
        book = sketched(full.book, need.width // share)
        route = strategy.route(full.weight.unflatten(1, (-1, 1)), book, book, units=8, shared=None)
        show(f"projected to 1/{share} of the sources", math.nan, replace(full, routing=route))
    half = need.width // 2
    halves = [replace(seen, sources=part) for part in seen.sources.split(half, dim=1)]
    means = torch.cat([make_books(statistics(recording=part).groups(), settings.concepts, 1024, 0)[0].source_sums
                       for part in halves], dim=1)  # fmt: skip
    book = replace(full.book, source_sums=means)
    route = strategy.route(full.weight.unflatten(1, (-1, 1)), book, book, units=8, shared=None)
    part = replace(need, site=replace(site, sources=half))
    whole = 2 * 4 * (need.width - half) * site.channels  # the weights and routes of the other half
    show("two passes, half of the sources each", bytes_of(of=part) + whole, replace(full, routing=route))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=lambda text: text.split(","), default=NETWORKS)
    parser.add_argument("--places", type=lambda text: text.split(","), default=PLACES)
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--tokens", type=int, default=4200)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-memory", type=float, help="GiB, as in disentangle")
    parser.add_argument("--loss", action="store_true", help="of the ways to take less, on DINOv2 S")
    parser.add_argument("--images", type=int, default=240, help="for --loss: to split on, and as many to score on")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        print(json.dumps(child(*json.loads(asked.child))))
        return
    (print_loss if asked.loss else print_memory)(asked)


if __name__ == "__main__":
    main()
