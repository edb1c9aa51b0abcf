"""What a disentanglement will need, and how much of the tokens it keeps: chosen before the long work."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from elude_nb._util.arguments import knows_arguments
from elude_nb._util.arithmetic import own_arithmetic
from elude_nb._util.checks import check_choice, check_count, check_number
from elude_nb._util.progress import in_words
from elude_nb._util.words import counted
from elude_nb.core.concepts import Cells, Moments, on_device, suggest_concepts
from elude_nb.core.elude import EludeRouting
from elude_nb.core.recording import real_tokens_at, record
from elude_nb.core.routing import CONTRIBUTIONS_AT_ONCE
from elude_nb.core.statistics import Limits
from elude_nb.core.strategies import check_routing_settings
from elude_nb.data.images import Images, ImageSet
from elude_nb.models.default_site import choose_site
from elude_nb.models.load import Model, check_model
from elude_nb.models.sites import TOKENS, Site

_GIB = 1 << 30
UNIT = 16
"""Shares of images begin at multiples of this, so that usual batches are the same in every share."""


@dataclass(frozen=True)
class Estimate:
    """What a disentanglement is expected to need, beside the model itself.

    Attributes
    ----------
    seconds
        Wall-clock time; measured on a few images and scaled.
    memory
        Peak memory in bytes.
    tokens, sources
        Tokens that will be recorded, and sources of each.
    capacity, micro_clusters
        Tokens that are kept whole if there are no more, and else are grouped into cells; and how many cells.
    concepts
        Number of concepts.
    """

    seconds: float
    memory: int
    tokens: int
    sources: int
    capacity: int
    micro_clusters: int
    concepts: int

    def __str__(self) -> str:
        return (
            f"{counted(self.tokens, 'token')} with {self.sources:,} sources each, "
            f"{counted(self.concepts, 'concept')} of {self.tokens / self.concepts:.0f} tokens on average: "
            f"{in_words(self.seconds)} and {self.memory / _GIB:.1f} GiB"
        )


@knows_arguments
@own_arithmetic()
def estimate(
    model: Model,
    images: Images,
    site: str | None = None,
    *,
    blocks: int | Literal["all"] = "all",
    concepts: int | None = None,
    units: int = 8,
    tokens: str | None = None,
    tokens_per_image: int | None = 24,
    batch_size: int | None = None,
    max_memory: float | None = None,
) -> Estimate:
    """Say what `disentangle` with these settings will need; a few images are run to measure the speed.

    Raises
    ------
    TypeError, ValueError
        If a setting is out of range, it cannot be done within ``max_memory`` (GiB), or there are fewer tokens than
        concepts.
    """
    check_model(model)
    model = model.using(batch_size=batch_size)
    concepts, tokens_per_image = check_counts(concepts, tokens, tokens_per_image, max_memory)
    units, _ = check_routing_settings(units, None)
    chosen = model.inputs(images)
    place = choose_site(model, site, blocks=blocks, tokens=tokens, purpose="estimate")
    tokens = tokens or place.layout.usual
    plan = make_plan(model, chosen, place, concepts, units, tokens, tokens_per_image, max_memory)
    return replace(plan, seconds=expected_seconds(model, chosen, place, plan, tokens, tokens_per_image))


def check_counts(
    concepts: int | None, tokens: str | None, tokens_per_image: int | None, max_memory: float | None
) -> tuple[int | None, int | None]:
    """Return the counts as plain numbers, before any forward pass; raise if a setting is out of range."""
    if tokens is not None:
        check_choice("tokens", tokens, TOKENS)
    if max_memory is not None and not check_number("max_memory", max_memory) > 0:
        raise ValueError(f"max_memory={max_memory} must be a positive number of GiB.")
    return (
        None if concepts is None else check_count("concepts", concepts, 2),
        None if tokens_per_image is None else check_count("tokens_per_image", tokens_per_image),
    )


def make_plan(
    model: Model,
    images: ImageSet,
    place: Site,
    concepts: int | None,
    units: int,
    tokens: str,
    tokens_per_image: int | None,
    max_memory: float | None,
    fewest: int = 0,
) -> Estimate:
    """Return what will be needed but for the time, which only a measurement tells; choose G if it is not given.

    ``fewest`` micro-clusters, with the squares of their sources, are kept at the least.
    """
    if not len(images):
        raise ValueError("There are no images to disentangle on.")
    positions = place.layout.positions(tokens)
    per_image = min(len(positions), tokens_per_image or len(positions))
    total = _count_tokens(model, images, place, positions, per_image)
    concepts = suggest_concepts(total) if concepts is None else concepts
    if total < concepts:
        raise ValueError(
            f"{counted(len(images), 'image')} with {counted(per_image, f'{tokens} token')} each: "
            f"{counted(total, 'token')}, too few for concepts={concepts}; use more images, more "
            "tokens_per_image, or fewer concepts."
        )
    item = max(4, model.dtype.itemsize)
    at_once = per_image * model.batch_size
    capacity, micro = _capacity(place, total, concepts, units, at_once, max_memory, item, fewest)
    memory = _expected_memory(place, concepts, units, capacity, micro, at_once, item, squares=bool(fewest))
    return Estimate(float("nan"), memory, total, place.sources * place.kernel, capacity, micro, concepts)


def _count_tokens(model: Model, images: ImageSet, place: Site, positions: Tensor, per_image: int) -> int:
    """Return how many tokens are drawn of all images: as many of each, but for sentences that have fewer."""
    if real_tokens_at(model, model.noise(), place, positions) is None:
        return per_image * len(images)
    batches = model.using(progress=False).batches(images)
    every = (real_tokens_at(model, batch, place, positions) for batch in batches)
    return sum(int(real.sum(1).clamp(max=per_image).sum()) for real in every if real is not None)


def choose_limits(plan: Estimate, images: int, elude: EludeRouting | None, seed: int) -> Limits:
    """Return how much a pass over so many images keeps: all tokens if they are few, else sums over cells.

    What ELUDe splits by is kept besides: a sample of tokens, or the squares of the cells' sources.
    """
    by_tokens = elude is not None and elude.instances == "tokens"
    squares = elude is not None and not by_tokens
    tokens_seed = seed if elude is None else elude.seed
    if plan.tokens <= plan.capacity:
        return Limits(plan.micro_clusters, 0, plan.tokens, tokens_seed, squares)
    sample = max(1, plan.capacity * images // plan.tokens)
    kept = min(plan.tokens, elude.max_tokens) if elude is not None and by_tokens else 0
    return Limits(plan.micro_clusters, sample - sample % UNIT if sample > UNIT else sample, kept, tokens_seed, squares)


def expected_seconds(
    model: Model, images: ImageSet, place: Site, plan: Estimate, tokens: str, tokens_per_image: int | None
) -> float:
    """Record a few images, take in their tokens and group some, and scale what that took."""
    model, few = model.using(progress=False), images[:4]
    for _ in record(model, few[:1], place, tokens=tokens, tokens_per_image=tokens_per_image):
        pass  # the first pass warms up
    start = time.perf_counter()
    parts = list(record(model, few, place, tokens=tokens, tokens_per_image=tokens_per_image))
    recorded = time.perf_counter()
    points = torch.randn(plan.capacity, place.channels, generator=torch.Generator().manual_seed(0))
    cells = Cells.of(points, plan.micro_clusters, 0)
    grouped = time.perf_counter()
    for part in parts:
        on_device(cells, part.channels.device).nearest(part.channels).cpu()  # which waits for the device
        Moments.of(part.channels, part.sources)
    per_token = (time.perf_counter() - grouped) / sum(map(len, parts))
    per_image = (recorded - start) / len(few)
    # The routing and the careful grouping into concepts take about as long as two or three groupings.
    return per_image * len(images) + per_token * plan.tokens + (grouped - recorded) * 4


def _expected_memory(
    site: Site,
    concepts: int,
    units: int,
    capacity: int,
    micro: int,
    batch_tokens: int,
    item: int,
    *,
    squares: bool = False,
) -> int:
    width = site.sources * site.kernel
    kept = Limits(micro, 1, capacity, 0, squares).expected_bytes(site.channels, width, item)
    batch = 2 * batch_tokens * width * item  # recorded, and centred for the covariance
    weights = 3 * site.channels * width * item
    chunk = min(max(CONTRIBUTIONS_AT_ONCE, units * width), site.channels * units * width)
    routing = 6 * chunk * item + 9 * site.channels * site.sources  # bytes, and their sizes counted
    return kept + batch + weights + routing + 3 * concepts * width * item


def _capacity(
    site: Site,
    total: int,
    concepts: int,
    units: int,
    batch_tokens: int,
    max_memory: float | None,
    item: int,
    fewest: int = 0,
) -> tuple[int, int]:
    """Choose how many tokens wait and how many micro-clusters are kept, within ``max_memory`` GiB."""
    micro, squares = max(1024, 4 * concepts, fewest), bool(fewest)
    capacity = min(total, 4 * micro)
    if max_memory is None:
        return capacity, micro
    smallest = 2 * concepts

    def needed(capacity: int, micro: int) -> int:
        return _expected_memory(site, concepts, units, capacity, micro, batch_tokens, item, squares=squares)

    while needed(capacity, micro) > max_memory * _GIB:
        if capacity <= smallest and micro <= smallest:
            raise ValueError(
                f"max_memory={max_memory} GiB is too little: this site needs at least "
                f"{needed(smallest, smallest) / _GIB:.3g} GiB. "
                "Take fewer blocks, fewer concepts, a smaller batch_size or fewer tokens_per_image."
            )
        capacity, micro = max(smallest, capacity * 3 // 4), max(smallest, micro * 3 // 4)
    return capacity, micro
