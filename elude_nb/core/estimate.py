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
from elude_nb.core.statistics import TOKENS_AT_ONCE, Limits
from elude_nb.core.strategies import check_routing_settings
from elude_nb.data.images import Images, ImageSet
from elude_nb.models.default_site import choose_site
from elude_nb.models.load import Model, check_model
from elude_nb.models.sites import TOKENS, Site

_GIB = 1 << 30
_FEW_RUN_TWICE = 20  # what the cells are made from is run twice if it is at most one image in so many
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
    held
        Whether the tokens that the cells are made from are held with their sources, or their images run a second time.
    """

    seconds: float
    memory: int
    tokens: int
    sources: int
    capacity: int
    micro_clusters: int
    concepts: int
    held: bool = True

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
    elude: EludeRouting | None = None,
) -> Estimate:
    """Return what will be needed but for the time, which only a measurement tells; choose G if it is not given."""
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
    need = _Need(place, total, concepts, units, per_image * model.batch_size, max(4, model.dtype.itemsize), elude)
    size = _fitting(need, max_memory)
    return Estimate(float("nan"), need.memory(size), total, need.width, size.capacity, size.micro, concepts, size.held)


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
    twice = 0 if plan.held else plan.capacity / plan.tokens
    return per_image * len(images) * (1 + twice) + per_token * plan.tokens + (grouped - recorded) * 4


@dataclass(frozen=True)
class _Size:
    """How much is kept: see `Estimate`."""

    capacity: int
    micro: int
    held: bool


def elude_size(elude: EludeRouting, tokens: int, site: Site) -> tuple[int, int, int]:
    """Return by how many instances ELUDe splits how many channels, and of how many sources."""
    count = tokens if elude.instances == "micro-clusters" else min(tokens, elude.max_tokens)
    return count, site.channels, site.sources * site.kernel


@dataclass(frozen=True)
class _Need:
    """What decides about the memory, but for how much is kept; ``at_once`` tokens come in a batch."""

    site: Site
    total: int
    concepts: int
    units: int
    at_once: int
    item: int
    elude: EludeRouting | None

    @property
    def width(self) -> int:
        return self.site.sources * self.site.kernel

    @property
    def squares(self) -> bool:
        return self.elude is not None and self.elude.instances == "micro-clusters"

    def memory(self, size: _Size) -> int:
        """Return the most bytes at once: while images are run, or afterwards, when the channels are split."""
        d, width, item = self.site.channels, self.width, self.item
        weights, each, square = width * d, width * item + d * (item + 8), 2 if self.squares else 1
        few = self.total <= size.capacity
        sums = 8 * weights + (0 if few else 8 * size.micro * (square * width + d))
        tokens = 0 if few or self.elude is None or self.squares else min(self.total, self.elude.max_tokens) * each
        sample = size.capacity * each if few or size.held else 0
        batch, part = (min(self.at_once, most) * width for most in (self.total, TOKENS_AT_ONCE))
        # A batch is recorded, then joined; what was recorded stays with the process. Parts are widened or centred.
        run = sums + tokens + sample + 3 * item * batch + max(item * batch, 8 * part, item * (part + weights))
        groups = size.micro if not few else self.total if self.squares else 0
        chunk = min(max(CONTRIBUTIONS_AT_ONCE, self.units * width), self.units * weights)
        split = sums + tokens + (sample if few else 0) + (2 * item + 1) * weights
        split += item * width * (square * groups + 3 * self.concepts)
        if self.elude is None:
            return max(run, split + 6 * item * chunk)
        return max(run, split + self.elude.expected_bytes(*elude_size(self.elude, self.total, self.site)))


def _fitting(need: _Need, max_memory: float | None) -> _Size:
    """Choose how many tokens wait and how many micro-clusters are kept, within ``max_memory`` GiB.

    What costs time comes first, then what costs accuracy.
    """
    micro = max(1024, 4 * need.concepts, need.elude.micro_clusters if need.elude is not None and need.squares else 0)
    capacity = min(need.total, 4 * micro)
    size = _Size(capacity, micro, capacity * _FEW_RUN_TWICE > need.total)
    if max_memory is None:
        return size
    smallest = _Size(2 * need.concepts, 2 * need.concepts, held=False)

    while need.memory(size) > max_memory * _GIB:
        if size.held and size.capacity < need.total:
            size = replace(size, held=False)
            continue
        if size == smallest:
            raise ValueError(
                f"max_memory={max_memory} GiB is too little: this site needs at least "
                f"{need.memory(smallest) / _GIB:.3g} GiB. {_fewer_blocks(need, smallest, max_memory)}"
                "Take fewer blocks, fewer concepts, a smaller batch_size or fewer tokens_per_image"
                + (", or EludeRouting with a smaller max_tokens." if need.elude is not None else ".")
            )
        less = [max(2 * need.concepts, kept * 3 // 4) for kept in (size.capacity, size.micro)]
        size = _Size(less[0], less[1], held=False)
    return size


def _fewer_blocks(need: _Need, size: _Size, max_memory: float) -> str:
    """Say how many of the last blocks of a stream would do, if any would."""
    last = max((term.block or 0 for term in need.site.terms), default=0)
    for blocks in range((need.site.blocks or 1) - 1, 0, -1):
        terms = tuple(term for term in need.site.terms if (term.block or 0) > last - blocks)
        part = replace(need.site, terms=terms, sources=sum(term.sources for term in terms))
        if replace(need, site=part).memory(size) <= max_memory * _GIB:
            return f"blocks={blocks} would do. "
    return ""
