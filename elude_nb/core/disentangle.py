"""Find the sub-units of a site: record, make the concept book, route. One pass over the images, nothing trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from elude_nb._util.arguments import knows_arguments
from elude_nb._util.arithmetic import own_arithmetic
from elude_nb._util.checks import check_kind
from elude_nb._util.progress import say
from elude_nb._util.ranks import Ranks, together
from elude_nb.core.clustering import cluster_directions, unit_vectors
from elude_nb.core.concepts import ConceptBook, make_books, on_device
from elude_nb.core.elude import Instances
from elude_nb.core.one_pass import elude_of, measure, plan_pass, run_pass
from elude_nb.core.recording import Recording
from elude_nb.core.result import Disentanglement, Settings
from elude_nb.core.routing import NO_CONCEPT, Routing, shuffled
from elude_nb.core.saving import Stamp, difference_of_weights
from elude_nb.core.statistics import Limits, Statistics, collect_recording
from elude_nb.core.strategies import RandomRouting, RoutingStrategy, read_strategy
from elude_nb.data.images import Images
from elude_nb.errors import ModelMismatchError
from elude_nb.models.find_sites import find_site
from elude_nb.models.hooks import widened
from elude_nb.models.load import Model, as_model
from elude_nb.models.sites import Site

_MICRO_CLUSTERS = 1024  # where a recording is split
_FEW_TOKENS = 20
_CHANNELS_AT_ONCE = 32


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
    model = as_model(model, "disentangle", progress=progress)
    with together() as ranks:
        planned = plan_pass(
            model,
            images,
            site,
            purpose="disentangle",
            blocks=blocks,
            concepts=concepts,
            units=units,
            shared=shared,
            routing=routing,
            tokens=tokens,
            tokens_per_image=tokens_per_image,
            seed=seed,
            batch_size=batch_size,
            max_memory=max_memory,
            progress=progress if ranks.first else False,
        )
        if planned.model.progress:
            say(f"disentangle: {measure(planned, ranks.count)}")
        share = ranks.rank + 1, ranks.count
        found = ranks.add_up(run_pass(planned, share, ranks=ranks if ranks.count > 1 else None))
        split = _split_checked(found, planned.model, planned.strategy, ranks)
    return replace(split, model=model)


@knows_arguments
@own_arithmetic()
def build_split(
    statistics: Statistics,
    model: Model | nn.Module,
    routing: RoutingStrategy | None = None,
    *,
    progress: bool | None = None,
) -> Disentanglement:
    """Split the channels of a site by what a pass over images left; the images are not needed any more.

    Parameters
    ----------
    statistics
        From `elude_nb.core.one_pass.collect`, or the sum of those of all shards.
    model
        The model that they are of.
    routing
        The strategy, if it is one of your own; by default the one that the statistics were collected for.
    progress
        Whether to show a progress bar; by default the model's own setting.

    Raises
    ------
    StatisticsError
        If some images have not been seen.
    ModelMismatchError
        If the statistics are of another model.
    ValueError
        If there are too few tokens for the concepts, or the strategy is not known here and was not given.
    """
    check_kind("statistics", statistics, Statistics, "a Statistics, from elude_nb.core.one_pass.collect")
    model = as_model(model, "build_split", progress=progress)
    strategy = routing or read_strategy(statistics.settings.strategy)
    return replace(_split_checked(statistics, model.using(progress=progress), strategy, Ranks()), model=model)


def _split_checked(statistics: Statistics, model: Model, strategy: RoutingStrategy, ranks: Ranks) -> Disentanglement:
    """Check that the statistics are whole and of this model, and split by them; warn of concepts with few tokens."""
    if ranks.first:  # the others have a part of them
        statistics.check_complete()
    stamp = Stamp(model)
    difference = difference_of_weights(model, statistics.origin, stamp.fingerprint)
    if difference:
        raise ModelMismatchError(f"The statistics are not of {model.name!r}: {difference}. Load the model they name.")
    site = find_site(model, statistics.settings.site, blocks=statistics.settings.blocks)
    split = _split_by(statistics, model, site, strategy, ranks, stamp)
    few = int((split.book.counts < _FEW_TOKENS).sum())
    if few and model.progress:
        say(
            f"disentangle: {few} of {len(split.book)} concepts have fewer than {_FEW_TOKENS} tokens; what is said of "
            "them rests on little. Take more images, more tokens_per_image, or fewer concepts."
        )
    return split


def split_recording(
    model: Model, site: Site, recording: Recording, strategy: RoutingStrategy, settings: Settings
) -> Disentanglement:
    """Split the channels of ``site`` by tokens that were recorded there: the part of `disentangle` without the model.

    Parameters
    ----------
    model, site
        What the recording is of.
    recording
        The tokens.
    strategy
        Decides the routing.
    settings
        ``concepts``, ``units``, ``shared`` and ``seed`` are followed; the rest is kept with the result.
    """
    elude = elude_of(strategy)
    by_groups = elude is not None and elude.instances == "micro-clusters"
    micro = elude.micro_clusters if elude is not None and by_groups else _MICRO_CLUSTERS
    few = len(recording) <= 4 * micro
    kept = len(recording) if few else 0 if elude is None or by_groups else elude.max_tokens
    seed = settings.seed if elude is None else elude.seed
    limits = Limits(micro, 0 if few else len(recording), kept, seed, squares=by_groups)
    return replace(_split_by(collect_recording(recording, settings, limits), model, site, strategy, Ranks()), seen=None)


@own_arithmetic()
def _split_by(
    statistics: Statistics,
    model: Model,
    site: Site,
    strategy: RoutingStrategy,
    ranks: Ranks,
    stamp: Stamp | None = None,
) -> Disentanglement:
    """Split in the first process, the others helping; all have the result, which lies on the CPU."""
    weight = widened(site.weight(model.network))
    decided = _decide(statistics, weight.unflatten(1, (-1, site.kernel)), strategy, model.progress, ranks)
    if ranks.first:
        moments = statistics.moments
        variance = moments.channel_variance.to(weight)
        shares = unit_shares(weight, decided[0], moments.products, moments.squares)
        decided = *decided, variance.cpu(), shares.cpu(), statistics.hashes
    route, book, settings, variance, shares, seen = ranks.from_first(decided)
    return Disentanglement(model, site, route, book, settings, variance, shares, seen=seen, stamp=stamp)


def _decide(statistics: Statistics, kernels: Tensor, strategy: RoutingStrategy, progress: bool, ranks: Ranks) -> Any:
    """Return the routing, the book and the settings in the first process; the others do their share of channels."""
    settings, elude = replace(statistics.settings, images=len(statistics)), elude_of(strategy)
    if not ranks.first:
        if elude is not None:
            received: Any = ranks.from_first(None)
            elude.route_instances(kernels, on_device(received, kernels.device), ranks=ranks)
        return None
    book, fine = make_books(statistics.groups(), settings.concepts, statistics.limits.micro_clusters, settings.seed)
    device = kernels.device
    if elude is None:
        books = on_device(book, device), on_device(fine, device)
        route = strategy.route(kernels, *books, units=settings.units, shared=settings.shared)
        return on_device(route, "cpu"), book, settings
    by_tokens = elude.instances == "tokens"
    found = Instances.of_tokens(statistics.sample(elude.max_tokens)) if by_tokens else Instances.of_groups(fine)
    fine = replace(fine, source_squares=None)
    shared = on_device(ranks.from_first(found), device)
    route, centres = elude.route_instances(kernels, shared, progress=progress, ranks=ranks)
    if isinstance(strategy, RandomRouting):
        route = shuffled(route, strategy.seed)
    route, book = with_concepts(route, centres, fine, settings.concepts, settings.seed)
    return route, book, replace(settings, units=max(2, route.units), shared=None, concepts=len(book))


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


def unit_shares(weight: Tensor, routing: Routing, covariance: Tensor, variance: Tensor) -> Tensor:
    """Return the share of its channel's variance that each unit carries, (d, k + 1); each row adds up to 1.

    By linearity the variance of ``h = sum of z[k]`` is the sum of the covariances of ``z[k]`` with ``h``. What comes
    from outside the sources is in unit 0. A channel that never varies has all of its share there. Only the ratio of
    ``covariance`` (s * kernel, d) and ``variance`` (d,) counts: both may be sums over tokens, and of another dtype.
    """
    kernel, variance = weight.shape[1] // routing.routes.shape[1], variance.to(weight)
    sums = []
    for rows in torch.arange(len(weight)).split(_CHANNELS_AT_ONCE):
        products = weight[rows] * covariance[:, rows].T.to(weight)
        sums.append(routing.add_by_unit(products.unflatten(1, (-1, kernel)).sum(2), rows.tolist()))
    shares = torch.where(variance[:, None] > 0, torch.cat(sums) / variance[:, None], 0)
    shares[:, 0] = 1 - shares[:, 1:].sum(1)
    return shares
