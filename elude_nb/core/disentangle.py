"""Find the sub-units of a site: record, make the concept book, route. One pass over the images, nothing trained."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from elude_nb._util.arguments import knows_arguments
from elude_nb._util.arithmetic import own_arithmetic
from elude_nb._util.checks import check_choice, check_count, check_number
from elude_nb._util.progress import in_words, say
from elude_nb._util.words import counted
from elude_nb.core.clustering import cluster_directions, unit_vectors
from elude_nb.core.concepts import BookBuilder, ConceptBook, suggest_concepts
from elude_nb.core.elude import EludeRouting, Instances
from elude_nb.core.recording import Recording, record
from elude_nb.core.result import Disentanglement, Settings
from elude_nb.core.routing import CONTRIBUTIONS_AT_ONCE, NO_CONCEPT, Routing, shuffled
from elude_nb.core.strategies import RandomRouting, RoutingStrategy, check_routing_settings, find_routing
from elude_nb.data.images import Images, ImageSet
from elude_nb.models.default_site import choose_site
from elude_nb.models.hooks import check_pristine, for_analysis
from elude_nb.models.load import Model, as_model, check_model
from elude_nb.models.sites import TOKENS, Site

_GIB = 1 << 30
_FEW_TOKENS = 20


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
        Tokens that wait in memory, and micro-clusters kept between merges.
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
def disentangle(
    model: Model | nn.Module,
    images: Images,
    site: str | None = None,
    *,
    blocks: int | Literal["all"] = "all",
    concepts: int | None = None,
    units: int = 8,
    shared: float | None = None,
    routing: str | RoutingStrategy = "concepts",
    tokens: str | None = None,
    tokens_per_image: int | None = 24,
    seed: int = 0,
    batch_size: int | None = None,
    max_memory: float | None = None,
    progress: bool | None = None,
) -> Disentanglement:
    """Split the channels of a site into sub-units, in one pass over the images, without touching the model.

    Records channels and sources at sampled tokens, groups the tokens into concepts, and routes every contribution to
    the concept it contributes to most. Nothing is trained, and labels are not looked at.

    Parameters
    ----------
    model
        From `load_model` or `wrap_network`; a network by itself is wrapped, and that is said.
    images
        From `load_images`, any sequence of PIL images, or a source that `load_images` takes.
    site
        ``"stream"`` (the residual stream after the last block), ``"stream:8"`` (after block 8), or the path of a linear
        layer or convolution; `find_sites` lists them. By default the stream, or where there is none the deepest layer
        before the classifier that has patches, and 16 sources a channel; which one is said.
    blocks
        For a stream: how many of the blocks before the site bring the sources, or ``"all"``.
    concepts
        G, the number of groups of tokens; by default the power of two next to the square root of the number of tokens
        (`suggest_concepts`), so that more images bring more concepts and more tokens of each.
    units
        K, the largest number of sub-units of one channel, 2 to 255; `elude_nb.scores.suggest_settings` chooses it from
        the images.
    shared
        ``None``: every contribution has an owner, and unit 0 of a channel is what it must be: the bias, and what enters
        the site from outside the sources. A number is rho: contributions whose second best owner exceeds this share of
        the best, and those that no concept gains by, are left over for unit 0; `Disentanglement.units` says how much.
    routing
        ``"elude"`` (the published method, see `EludeRouting`; ``units`` and ``shared`` are nothing to it),
        ``"elude-signed"`` (its clusters, and our rule: one owner for every contribution, by its sign), ``"concepts"``
        (ours), ``"channel-clusters"``, ``"random"``, or an object with ``name`` and ``route()``.
    tokens, tokens_per_image
        Which tokens count (``"class"``, ``"registers"``, ``"patch"``, ``"all"``; by default ``"all"`` for
        ``routing="elude"``, as in the paper, and where there are no patches, and ``"patch"`` otherwise) and how many
        are drawn for each image (``None``: every one). What is to be read at the class token is found better on class
        tokens (docs/method.md).
    seed
        Of the drawing and the clustering; the same seed gives the same result.
    batch_size
        Images in one forward pass, in place of the model's own setting.
    max_memory
        Upper bound on the memory for the analysis, in GiB, beside the model.
    progress
        Whether to say beforehand what time and memory to expect, and to show a progress bar; by default the model's
        own setting.

    Returns
    -------
    Disentanglement

    Raises
    ------
    SiteError, ValueError, TypeError
        If the site cannot be split, a setting is out of range, there are too few tokens for the concepts, or
        ``max_memory`` is too small.
    """
    given_model = as_model(model, "disentangle", progress=progress)
    model = given_model.using(batch_size=batch_size, progress=progress)
    strategy = find_routing(routing, seed)
    elude = _elude_of(strategy)
    tokens = tokens or (None if elude is None else "all")
    seed = check_count("seed", seed, 0, 2**32 - 1)  # what scikit-learn takes
    blocks = blocks if blocks == "all" else check_count("blocks", blocks)
    given: dict[str, object] = {"concepts": concepts, "units": units, "shared": shared}
    for name, value in given.items():
        if value == "auto":
            raise TypeError(
                f"{name}='auto' is not a number; leave concepts out, or take all numbers from "
                "elude_nb.scores.suggest_settings(model, images).settings."
            )
    sub_units, rho = check_routing_settings(units, shared)  # before any forward pass
    concepts, tokens_per_image = _check_counts(concepts, tokens, tokens_per_image, max_memory)
    chosen = model.inputs(images)
    check_pristine(model.network, "disentangle")
    place = choose_site(model, site, blocks=blocks, tokens=tokens, purpose="disentangle")
    tokens = tokens or place.layout.usual
    fewest = elude.micro_clusters if elude is not None and elude.instances == "micro-clusters" else 0
    plan = _plan(model, chosen, place, concepts, sub_units, tokens, tokens_per_image, max_memory, fewest)
    seconds = 0.0
    if elude is not None:  # too few instances are reported before the long work
        count = plan.tokens if fewest else min(plan.tokens, elude.max_tokens)
        size = count, place.channels, place.sources * place.kernel
        plan = replace(plan, memory=plan.memory + elude.expected_bytes(*size))
        if model.progress:
            seconds = elude.expected_seconds(*size)
    if model.progress:
        seconds += _expected_seconds(model, chosen, place, plan, tokens, tokens_per_image)
        plan = replace(plan, seconds=seconds)
        say(f"disentangle: {plan}")
    take: dict[str, Any] = {"tokens": tokens, "tokens_per_image": tokens_per_image, "seed": seed}
    recordings = record(model, chosen, place, **take, announce=False)
    settings = Settings(
        site=place.name,
        blocks=blocks,
        concepts=plan.concepts,
        units=sub_units,
        shared=rho,
        routing=strategy.name,
        strategy=repr(strategy),
        tokens=tokens,
        tokens_per_image=tokens_per_image,
        seed=seed,
        images=len(chosen),
        images_from=chosen.source,
    )
    builder = BookBuilder(plan.capacity, plan.micro_clusters, seed, squares=bool(fewest))
    split = split_recordings(given_model, place, recordings, strategy, settings, builder)
    few = int((split.book.counts < _FEW_TOKENS).sum())
    if few and model.progress:
        say(
            f"disentangle: {few} of {len(split.book)} concepts have fewer than {_FEW_TOKENS} tokens; what is said of "
            "them rests on little. Take more images, more tokens_per_image, or fewer concepts."
        )
    return replace(split, seen=torch.from_numpy(chosen.hashes()))


@own_arithmetic()
def split_recordings(
    model: Model,
    site: Site,
    recordings: Iterable[Recording],
    strategy: RoutingStrategy,
    settings: Settings,
    builder: BookBuilder | None = None,
) -> Disentanglement:
    """Split the channels of ``site`` by tokens that were recorded there: the part of `disentangle` without the model.

    Parameters
    ----------
    model, site
        What the recordings are of.
    recordings
        They are gone through once.
    strategy
        Decides the routing.
    settings
        ``concepts``, ``units``, ``shared`` and ``seed`` are followed; the rest is kept with the result.
    builder
        Gathers the concept book; by default one that keeps up to 4,096 tokens waiting.
    """
    kept, elude = _Reservoir.of(strategy), _elude_of(strategy)
    if builder is None and elude is not None and kept is None:
        builder = BookBuilder(4 * elude.micro_clusters, elude.micro_clusters, settings.seed, squares=True)
    builder = builder or BookBuilder(seed=settings.seed)
    for recording in recordings:
        builder.add(recording)
        if kept is not None:
            kept.add(recording)
    book, fine, moments = builder.finish(settings.concepts)
    weight = for_analysis(site.weight(model.network))
    kernels = weight.unflatten(1, (-1, site.kernel))
    if elude is None:
        route = strategy.route(kernels, book, fine, units=settings.units, shared=settings.shared)
    else:
        found = Instances.of_groups(fine) if kept is None else kept.instances()
        fine = replace(fine, source_squares=None)
        route, centres = elude.route_instances(kernels, found, progress=model.progress)
        if isinstance(strategy, RandomRouting):
            route = shuffled(route, strategy.seed)
        route, book = with_concepts(route, centres, fine, settings.concepts, settings.seed)
        settings = replace(settings, units=max(2, route.units), shared=None, concepts=len(book))
    shares = unit_shares(weight, route, moments.covariance, moments.channel_variance)
    return Disentanglement(model, site, route, book, settings, moments.channel_variance, shares)


def with_concepts(
    routing: Routing, centres: Sequence[Tensor], fine: ConceptBook, number: int, seed: int
) -> tuple[Routing, ConceptBook]:
    """Group the clusters of all channels by direction into concepts, and tokens with them.

    Parameters
    ----------
    routing
        Its concepts are filled in.
    centres
        For each channel the mean channels of its clusters, less the overall mean, (k, d).
    fine
        The tokens, as micro-clusters.
    number
        How many concepts at most.
    seed
        Of the clustering.

    Returns
    -------
    routing, book
        Each live sub-unit has the concept that its cluster's direction is in; the tokens of a concept are those whose
        channels lie along the mean direction of its clusters more than along any other's.
    """
    live = routing.live()[:, 1:]
    every = unit_vectors(torch.cat([several[live[i, : len(several)]] for i, several in enumerate(centres)]))
    if not len(every):
        return routing, fine.regroup(torch.zeros(len(fine), dtype=torch.int64), 1)
    groups = cluster_directions(every, torch.ones(len(every)), min(number, len(every)), seed=seed, careful=True)
    middles = unit_vectors(every.new_zeros(int(groups.max()) + 1, every.shape[1]).index_add_(0, groups, every))
    nearest = (fine.directions().to(middles) @ middles.T).argmax(1)
    used, nearest = nearest.unique(return_inverse=True)  # a concept without any token is none
    place = torch.full((len(middles),), NO_CONCEPT).index_put_((used,), torch.arange(len(used)))
    place[place == NO_CONCEPT] = (middles[place == NO_CONCEPT] @ middles[used].T).argmax(1)
    concepts = routing.concepts.clone()
    concepts[live] = place[groups]  # both go through the channels, and through the live sub-units of each
    return replace(routing, concepts=concepts), fine.regroup(nearest, len(used))


class _Reservoir:
    """A uniform random sample of all recorded tokens, of bounded size (algorithm R; Vitter, 1985)."""

    def __init__(self, size: int, seed: int) -> None:
        self._size, self._random, self._seen = size, np.random.default_rng(seed), 0
        self._sources: Tensor | None = None
        self._channels: Tensor | None = None

    @classmethod
    def of(cls, strategy: object) -> _Reservoir | None:
        elude = _elude_of(strategy)
        return None if elude is None or elude.instances != "tokens" else cls(elude.max_tokens, elude.seed)

    def add(self, recording: Recording) -> None:
        if self._sources is None or self._channels is None:
            self._sources = recording.sources.new_empty(self._size, recording.sources.shape[1], device="cpu")
            self._channels = recording.channels.new_empty(self._size, recording.channels.shape[1], device="cpu")
        numbers = np.arange(self._seen, self._seen + len(recording))
        drawn = np.where(numbers < self._size, numbers, self._random.integers(0, numbers + 1))
        self._seen += len(recording)
        keep = np.flatnonzero(drawn < self._size)
        # Of several tokens that are drawn for one place, the last stays.
        places, last = np.unique(drawn[keep][::-1], return_index=True)
        rows = torch.from_numpy(keep[::-1][last].copy())
        self._sources[torch.from_numpy(places)] = recording.sources[rows].cpu()
        self._channels[torch.from_numpy(places)] = recording.channels[rows].cpu()

    def instances(self) -> Instances:
        if self._sources is None or self._channels is None:
            raise ValueError("There are no tokens to split by.")
        count = min(self._seen, self._size)
        return Instances(self._sources[:count], self._channels[:count], torch.ones(count))


def _elude_of(strategy: object) -> EludeRouting | None:
    """Return the ELUDe routing that a strategy is, or shuffles."""
    found = strategy.like if isinstance(strategy, RandomRouting) else strategy
    return found if isinstance(found, EludeRouting) else None


def unit_shares(weight: Tensor, routing: Routing, covariance: Tensor, variance: Tensor) -> Tensor:
    """Return the share of its channel's variance that each unit carries, (d, k + 1); each row adds up to 1.

    By linearity the variance of ``h = sum of z[k]`` is the sum of the covariances of ``z[k]`` with ``h``. What comes
    from outside the sources is in unit 0. A channel that never varies has all of its share there.
    """
    kernel = weight.shape[1] // routing.routes.shape[1]
    shares = routing.add_by_unit((weight * covariance.T).unflatten(1, (-1, kernel)).sum(2))
    shares = torch.where(variance[:, None] > 0, shares / variance[:, None], 0)
    shares[:, 0] = 1 - shares[:, 1:].sum(1)
    return shares


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
    concepts, tokens_per_image = _check_counts(concepts, tokens, tokens_per_image, max_memory)
    units, _ = check_routing_settings(units, None)
    chosen = model.inputs(images)
    place = choose_site(model, site, blocks=blocks, tokens=tokens, purpose="estimate")
    tokens = tokens or place.layout.usual
    plan = _plan(model, chosen, place, concepts, units, tokens, tokens_per_image, max_memory)
    return replace(plan, seconds=_expected_seconds(model, chosen, place, plan, tokens, tokens_per_image))


def _check_counts(
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


def _plan(
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
    per_image = len(place.layout.positions(tokens))
    per_image = min(per_image, tokens_per_image or per_image)
    total = per_image * len(images)
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


def _expected_seconds(
    model: Model, images: ImageSet, place: Site, plan: Estimate, tokens: str, tokens_per_image: int | None
) -> float:
    """Record a few images, take in their tokens and group some, and scale what that took."""
    model, few = model.using(progress=False), images[:4]
    take = {"tokens": tokens, "tokens_per_image": tokens_per_image}
    for _ in record(model, few[:1], place, tokens=tokens, tokens_per_image=tokens_per_image):
        pass  # the first pass warms up
    start = time.perf_counter()
    sample = Recording.join(list(record(model, few, place, **take)))  # type: ignore[arg-type]
    recorded = time.perf_counter()
    builder = BookBuilder(len(sample), len(sample))
    builder.add(sample)
    added = time.perf_counter()
    points = torch.randn(plan.capacity, place.channels, generator=torch.Generator().manual_seed(0))
    cluster_directions(points, torch.ones(len(points)), min(plan.micro_clusters, len(points)), seed=0)
    clustered = time.perf_counter() - added
    merges = plan.tokens / plan.capacity
    per_image = (recorded - start) / len(few)
    per_token = (added - recorded) / len(sample)
    # The routing and the last, careful grouping take about as long as two or three merges.
    return per_image * len(images) + per_token * plan.tokens + clustered * (merges + 3)


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
    builder = BookBuilder.expected_bytes(capacity, micro, site.channels, width, item, squares=squares)
    batch = 2 * batch_tokens * width * item  # recorded, and centred for the covariance
    weights = 3 * site.channels * width * item
    chunk = min(max(CONTRIBUTIONS_AT_ONCE, units * width), site.channels * units * width)
    routing = 6 * chunk * item + 9 * site.channels * site.sources  # bytes, and their sizes counted
    return builder + batch + weights + routing + 3 * concepts * width * item


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
