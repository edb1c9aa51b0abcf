"""Measure a forward pass with an edit against the plain model's, in one run.

For the stream over the last block and over all 12: the ratio with no edit, with one concept faded, with more and more
of the concepts, and with a clamp, which reads each sub-unit by itself. Plain and edited passes take turns, so that a
drift of the machine's speed meets both; the median of the ratios is printed, and their quartiles. A permanent network
is measured in the same way.

    python benchmarks/steering_cost.py
    python benchmarks/steering_cost.py --batch 32 --repeats 40
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

import elude_nb as en
from elude_nb.core.edit import Edit
from elude_nb.steering import edited_units, make_permanent


def ratios(plain: Callable[[], object], other: Callable[[], object], repeats: int) -> list[float]:
    """Return how long ``other`` takes over ``plain``, ``repeats`` times in turn."""
    found = []
    plain(), other()  # warm up
    for number in range(repeats):
        pair = (plain, other) if number % 2 else (other, plain)
        seconds = {}
        for run in pair:
            start = time.perf_counter()
            run()
            seconds[run] = time.perf_counter() - start
        found.append(seconds[other] / seconds[plain])
    return found


def line(name: str, units: int, found: list[float]) -> None:
    """Print one row."""
    low, middle, high = statistics.quantiles(found, n=4)
    print(f"{name:<46}{units:>10,}{middle:>9.3f}   [{low:.3f}, {high:.3f}]", flush=True)


def measure(split: en.Disentanglement, batch: Tensor, repeats: int) -> None:
    """Print all rows of one split."""
    model = split.model
    sizes = [int((split.routing.concepts == concept).sum()) for concept in range(len(split.book))]
    order = sorted((c for c, size in enumerate(sizes) if size), key=lambda c: sizes[c])
    middle = order[len(order) // 2]

    def plain() -> Tensor:
        with torch.inference_mode():
            found: Tensor = model(batch)
        return found

    def steered(edit: Edit) -> list[float]:
        return in_turn(split, edit, batch, repeats)

    line("no edit", 0, steered(Edit()))
    for name, edit in {
        "one concept of middling size": Edit.scale(concept=middle, by=0.0),
        "the largest concept": Edit.scale(concept=order[-1], by=0.0),
        "a quarter of the concepts": Edit.scale(concept=order[::4], by=0.0),
        "all concepts": Edit.scale(concept=order, by=0.0),
        "one concept clamped": Edit.clamp(concept=middle, high=0.5),
        "a quarter of the concepts clamped": Edit.clamp(concept=order[::4], high=0.5),
    }.items():
        line(name, len(edited_units(split, edit)), steered(edit))
    fade = Edit.scale(concept=middle, by=0.0)
    made = make_permanent(split, fade)

    def permanent() -> Tensor:
        with torch.inference_mode():
            found: Tensor = made(batch)
        return found

    line("one concept of middling size, permanent", len(edited_units(split, fade)), ratios(plain, permanent, repeats))


def in_turn(split: en.Disentanglement, edit: Edit, batch: Tensor, repeats: int) -> list[float]:
    """Run the model with the edit and without it, by switching the edit itself; looking it up is not timed."""
    model = split.model

    def run() -> object:
        with torch.inference_mode():
            return model(batch)

    found = []
    with split.edit(edit):
        run()
    run()
    for number in range(repeats):
        seconds = {}
        for edited in (bool(number % 2), not number % 2):
            context = split.edit(edit if edited else Edit())
            with context:
                start = time.perf_counter()
                run()
                seconds[edited] = time.perf_counter() - start
        found.append(seconds[True] / seconds[False])
    return found


def main() -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=120, help="crops to disentangle on")
    parser.add_argument("--batch", type=int, default=16, help="images in a forward pass")
    parser.add_argument("--repeats", type=int, default=30, help="pairs of passes")
    chosen = parser.parse_args()
    model = en.load_model("dinov2-small", progress=False)
    images = en.load_images("photographs", count=chosen.images)
    batch = model.prepare([images[i] for i in range(chosen.batch)])
    print(f"dinov2-small, batches of {chosen.batch}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for blocks in (1, "all"):
        split = en.disentangle(model, images, blocks=blocks, tokens_per_image=24, progress=False)
        print(f"\nstream, blocks={blocks}: {split.site.sources:,} sources\n{'edit':<46}{'sub-units':>10}{'ratio':>9}")
        measure(split, batch, chosen.repeats)


if __name__ == "__main__":
    main()
