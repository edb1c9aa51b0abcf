"""Routing strategies: ways to decide where contributions go, behind one interface, so that they can be compared."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from elude_nb._util.checks import check_choice, check_count, check_fraction
from elude_nb.core.clustering import cluster_directions
from elude_nb.core.concepts import ConceptBook
from elude_nb.core.elude import EludeRouting
from elude_nb.core.routing import CONTRIBUTIONS_AT_ONCE, MOST_UNITS, NO_CONCEPT, Routing, shuffled


class RoutingStrategy(Protocol):
    """Anything with a ``name`` and this one method decides a routing."""

    @property
    def name(self) -> str:
        """Name of the strategy, as it is saved with the result."""
        ...  # pragma: no cover

    def route(
        self, weight: Tensor, book: ConceptBook, fine: ConceptBook, *, units: int, shared: float | None
    ) -> Routing:
        """Decide the routing.

        Parameters
        ----------
        weight
            W, (d, s, kernel), on the device of the model, as both books are; what is returned may lie anywhere.
        book
            The concept book, g groups.
        fine
            A finer book over the same tokens (micro-clusters, or single tokens where there were few).
        units
            k, the largest number of sub-units of a channel.
        shared
            rho: see `owners`; ``None`` leaves nothing over.
        """
        ...  # pragma: no cover


@dataclass(frozen=True)
class ConceptRouting:
    """The default: a channel's sub-units are the concepts that drive it most (method, step 3).

    Candidates of channel ``j`` are the ``units`` concepts with the largest mean value, if above the channel's mean.
    Contribution ``i`` goes to the candidate with the largest ``W[j, i] * m[g, i]``. Two variants can be asked for;
    docs/method.md has what each is worth.

    Attributes
    ----------
    one_meaning
        A channel whose strongest concepts' directions have a mean cosine of at least this (weighted by how strongly
        each drives the channel, and turned round where it drives it down) is driven by one concept and not split.
    both_signs
        Whether concepts on which a channel is low are candidates too, by ``|mean value|``; their contributions are
        those with the largest ``-W[j, i] * m[g, i]``. By default only concepts on which it is high.
    unlike
        Whether candidates are taken one after the other, each time the one with the largest mean value times its
        novelty: 1 less its largest cosine with those already taken.
    """

    one_meaning: float = 0.8
    both_signs: bool = False
    unlike: bool = False
    name: str = "concepts"

    def route(
        self,
        weight: Tensor,
        book: ConceptBook,
        fine: ConceptBook,  # noqa: ARG002
        *,
        units: int,
        shared: float | None,
        channels: Sequence[int] | None = None,
    ) -> Routing:
        """See `RoutingStrategy.route`; with ``channels``, W has the rows of these only, and so has the routing."""
        means, directions = book.mean_sources(), book.directions()
        mine = slice(None) if channels is None else list(channels)
        strongest = [found[mine] for found in strongest_concepts(book, units, both_signs=self.both_signs)]
        reasons = [
            why_not_split(v.abs() if self.both_signs else v, directions[c] * v.sign()[:, None], self.one_meaning)
            for v, c in zip(*strongest, strict=True)
        ]
        split = torch.tensor([not reason for reason in reasons]).to(weight.device)
        if self.unlike:
            strongest = [found[mine] for found in unlike_concepts(book, units, both_signs=self.both_signs)]
        values, concepts = strongest
        signs = values.sign() if self.both_signs else torch.ones_like(values)
        routes = torch.zeros(weight.shape[:2], dtype=torch.uint8, device=weight.device)
        for chunk in _chunks(len(weight), CONTRIBUTIONS_AT_ONCE // (concepts.shape[1] * weight[0].numel())):
            contributions = _mean_contributions(weight[chunk], means[concepts[chunk]])
            turned = contributions * signs[chunk, :, None]
            routes[chunk] = owners(turned, values[chunk] * signs[chunk] > 0, shared) * split[chunk, None]
        routing = Routing(routes, concepts, _reasons(routes, reasons))
        return replace(routing, concepts=concepts.masked_fill(routing.sizes()[:, 1:] == 0, NO_CONCEPT))


@dataclass(frozen=True)
class ChannelClusterRouting:
    """PURE's view (Dreyer et al., arXiv 2404.06453): per channel, cluster the tokens it is high on by contributions.

    The tokens are the groups of the finer book. The sub-units of different channels have nothing to do with each
    other, so there are no concepts that go through all channels.

    Attributes
    ----------
    strongest
        How many groups of the finer book, those on which the channel is highest, are clustered.
    one_meaning
        A channel is not split if these groups' directions have a mean cosine of at least this.
    seed
        Of the clustering.
    """

    strongest: int = 128
    one_meaning: float = 0.8
    seed: int = 0
    name: str = "channel-clusters"

    def route(
        self,
        weight: Tensor,
        book: ConceptBook,  # noqa: ARG002
        fine: ConceptBook,
        *,
        units: int,
        shared: float | None,
    ) -> Routing:
        """See `RoutingStrategy.route`."""
        means, values, directions = fine.mean_sources(), fine.mean_channels(), fine.directions()
        routes = torch.zeros(weight.shape[:2], dtype=torch.uint8, device=weight.device)
        reasons = []
        for channel in range(len(weight)):
            high = values[:, channel].topk(min(self.strongest, len(fine))).indices
            high = high[values[high, channel] > 0]
            if len(high) < units:
                reasons.append(f"not split: only {len(high)} groups of tokens drive it up")
                continue
            reason = why_not_split(values[high, channel] * fine.counts[high], directions[high], self.one_meaning)
            if reason:
                reasons.append(reason)
                continue
            row = weight[channel : channel + 1]
            contributions = _mean_contributions(row, means[high][None])[0]  # (high, s)
            counts = fine.counts[high].float()
            groups = cluster_directions(contributions, counts, units, seed=self.seed)
            centres = _weighted_means(contributions, counts, groups, units)
            present = torch.bincount(groups, minlength=units) > 0
            routes[channel] = owners(centres[None], present[None], shared)[0]
            reasons.append("")
        none = torch.full((len(weight), units), NO_CONCEPT, device=weight.device)
        return Routing(routes, none, _reasons(routes, reasons))


@dataclass(frozen=True)
class RandomRouting:
    """The control: another strategy's sub-units with the same sizes, but contributions assigned at random.

    Whatever gain it shows is owed to having more and smaller units, not to their meaning.
    """

    like: RoutingStrategy = ConceptRouting()
    seed: int = 0
    name: str = "random"

    def route(
        self, weight: Tensor, book: ConceptBook, fine: ConceptBook, *, units: int, shared: float | None
    ) -> Routing:
        """See `RoutingStrategy.route`."""
        return shuffled(self.like.route(weight, book, fine, units=units, shared=shared), self.seed)


ROUTINGS: dict[str, Callable[[int], Any]] = {
    "elude": lambda seed: EludeRouting(seed=seed),
    "elude-signed": lambda seed: EludeRouting(rule="signed", seed=seed, name="elude-signed"),
    "concepts": lambda _: ConceptRouting(),
    "channel-clusters": lambda seed: ChannelClusterRouting(seed=seed),
    "random": lambda seed: RandomRouting(seed=seed),
}
"""What ``routing=`` takes as text: from a seed to a strategy."""


def find_routing(routing: str | RoutingStrategy, seed: int = 0) -> RoutingStrategy:
    """Return the strategy of that name, with ``seed`` if it draws or clusters, or the object itself if it can route."""
    if isinstance(routing, str):
        made: RoutingStrategy = ROUTINGS[check_choice("routing", routing, ROUTINGS)](seed)
        return made
    named = isinstance(getattr(routing, "name", None), str)
    if isinstance(routing, type) or not named or not callable(getattr(routing, "route", None)):
        raise TypeError(f"routing={routing!r}: give one of {list(ROUTINGS)}, or an object with a name and route().")
    return routing


def check_routing_settings(units: int, shared: float | None) -> tuple[int, float | None]:
    """Return both as plain numbers; raise unless ``units`` is 2 to 255 and ``shared`` is ``None`` or in [0, 1]."""
    return check_count("units", units, 2, MOST_UNITS), None if shared is None else check_fraction("shared", shared)


def strongest_concepts(book: ConceptBook, units: int, *, both_signs: bool = False) -> tuple[Tensor, Tensor]:
    """Return, for each channel, the largest centred mean values over concepts and which they are: (d, k) twice.

    With ``both_signs`` the largest by their absolute value, the sign kept.
    """
    values = book.mean_channels().T  # (d, g)
    concepts = (values.abs() if both_signs else values).topk(min(units, len(book)), dim=1).indices
    return values.gather(1, concepts), concepts


def unlike_concepts(book: ConceptBook, units: int, *, both_signs: bool = False) -> tuple[Tensor, Tensor]:
    """Return concepts that drive each channel and are unlike each other, with their mean values: (d, k) twice.

    Greedy: each time the largest strength times novelty, which is 1 less the largest cosine (if positive) of a
    concept's direction with those already taken.
    """
    values, directions = book.mean_channels().T, book.directions()  # (d, g), (g, d)
    strength = values.abs() if both_signs else values.clamp(min=0)
    apart = 1 - (directions @ directions.T).clamp(min=0)  # (g, g)
    novelty = torch.ones_like(strength)
    taken: list[Tensor] = []
    for _ in range(min(units, len(book))):
        worth = (strength * novelty).scatter(1, torch.stack(taken, 1), -torch.inf) if taken else strength
        best = worth.argmax(1)  # (d,)
        taken.append(best)
        novelty = torch.minimum(novelty, apart[best])
    concepts = torch.stack(taken, 1)
    return values.gather(1, concepts), concepts


def agreement_of(strength: Tensor, directions: Tensor) -> float:
    """Return the mean cosine between different unit vectors (k, d), weighted by ``strength`` (k,) of both."""
    share = strength / strength.sum()
    resultant = (share[:, None] * directions).sum(0).square().sum()
    same = share.square().sum()
    return float((resultant - same) / (1 - same))


def why_not_split(values: Tensor, directions: Tensor, one_meaning: float) -> str:
    """Return why a channel is not to be split, in words, or nothing.

    ``values`` (k,) say how strongly each group of tokens drives the channel, ``directions`` (k, d) where it lies.
    """
    strength = values.clamp(min=0)
    if int((strength > 0).sum()) < 2:
        return "not split: fewer than two concepts drive it up"
    agreement = agreement_of(strength, directions)
    if agreement >= one_meaning:
        return f"not split: driven by one concept (its concepts agree to {agreement:.2f})"
    return ""


def owners(contributions: Tensor, allowed: Tensor, shared: float | None = None) -> Tensor:
    """Return who takes each contribution, (c, s) uint8: 1 + the best candidate; 0 (unit 0) where it is left over.

    Parameters
    ----------
    contributions
        Mean contribution of each source on each candidate concept, (c, k, s).
    allowed
        Which candidates take part, (c, k), bool.
    shared
        ``None`` leaves nothing over: the best candidate takes a contribution even where it is negative. A number is
        rho: a contribution is left over where the second best exceeds rho times the best, or the best is not
        positive.
    """
    ranked = contributions.masked_fill(~allowed[:, :, None], -torch.inf)
    best, route = ranked.max(dim=1)
    if shared is None:
        return (route + 1).masked_fill(~allowed.any(1, keepdim=True), 0).to(torch.uint8)
    second = ranked.scatter(1, route[:, None], -torch.inf).amax(dim=1)
    unclear = (second > shared * best) | (best <= 0)
    return (route + 1).masked_fill(unclear, 0).to(torch.uint8)


def _reasons(routes: Tensor, why_not_split: list[str]) -> tuple[str, ...]:
    """Say for each channel why it was not split, or that it was split."""
    unowned = "not split: no contribution is clearly one sub-unit's"
    return tuple(
        reason or ("split" if split else unowned)
        for reason, split in zip(why_not_split, routes.any(dim=1).tolist(), strict=True)
    )


def _mean_contributions(weight: Tensor, means: Tensor) -> Tensor:
    """Return ``W[j, i] * m[g, i]``, the kernel's positions added up: (c, s, p) and (c, k, s * p) to (c, k, s)."""
    products: Tensor = weight[:, None] * means.unflatten(-1, weight.shape[1:])
    return products.squeeze(-1) if weight.shape[2] == 1 else products.sum(-1)


def _chunks(channels: int, size: int) -> Iterator[slice]:
    return (slice(start, start + max(1, size)) for start in range(0, channels, max(1, size)))


def _weighted_means(rows: Tensor, weights: Tensor, groups: Tensor, number: int) -> Tensor:
    """Return the weighted mean of the rows of each group, (number, columns); an empty group has zeros."""
    sums = rows.new_zeros(number, rows.shape[1]).index_add_(0, groups, rows * weights[:, None])
    total = weights.new_zeros(number).index_add_(0, groups, weights)
    return sums / total.clamp(min=1e-12)[:, None]


# ---------------------------------------------------------------- one channel again


def read_strategy(text: str) -> RoutingStrategy:
    """Return the strategy whose ``repr`` this is: what `Settings.strategy` keeps.

    Only the strategies of this module are made, of plain literals; nothing else in the text is run.

    Raises
    ------
    ValueError
        If it is no such ``repr``, as that of a strategy of one's own.

    Examples
    --------
    >>> read_strategy("RandomRouting(like=ConceptRouting(both_signs=True), seed=3)").like.both_signs
    True
    """
    several = (EludeRouting, ConceptRouting, ChannelClusterRouting, RandomRouting)
    kinds: dict[str, Any] = {kind.__name__: kind for kind in several}

    def read(node: ast.expr) -> Any:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args:
            return kinds[node.func.id](**{str(word.arg): read(word.value) for word in node.keywords})
        return ast.literal_eval(node)

    try:
        found = read(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, TypeError, KeyError, MemoryError, RecursionError) as error:
        raise ValueError(f"{text!r:.80} is the repr of no routing strategy that is known here.") from error
    if type(found).__name__ not in kinds:
        raise ValueError(f"{text!r:.80} is no routing strategy.")
    return found  # type: ignore[no-any-return]


def why_not_route_channel(strategy: RoutingStrategy) -> str:
    """Return why a channel cannot be routed alone, from what a split keeps, in words; ``""`` if it can."""
    while isinstance(strategy, RandomRouting):
        strategy = strategy.like
    if isinstance(strategy, ConceptRouting):
        return ""
    return (
        f"routing={strategy.name!r} decides by more than the concept book that a split keeps; "
        "disentangle again with other numbers."
    )


def route_channel(
    strategy: RoutingStrategy, weight: Tensor, book: ConceptBook, channel: int, *, units: int, shared: float | None
) -> Routing:
    """Return the routing of one channel alone: its row of what the strategy makes of all channels.

    Parameters
    ----------
    strategy
        Concepts, or their sources drawn at random: then by the same drawing as for all channels.
    weight
        W of all channels, (d, s, kernel).
    book, units, shared
        As in `RoutingStrategy.route`.
    channel
        Which channel.

    Raises
    ------
    ValueError
        If the strategy needs more than the book; see `why_not_route_channel`.
    """
    reason = why_not_route_channel(strategy)
    if reason:
        raise ValueError(reason)
    if isinstance(strategy, RandomRouting):
        found = route_channel(strategy.like, weight, book, channel, units=units, shared=shared)
        order = _random_order(weight.shape[0], weight.shape[1], strategy.seed, slice(channel, channel + 1))
        return replace(found, routes=found.routes.gather(1, order))
    alone: Any = strategy
    routing: Routing = alone.route(
        weight[channel : channel + 1], book, book, units=units, shared=shared, channels=[channel]
    )
    return routing


def _random_order(channels: int, sources: int, seed: int, rows: slice) -> Tensor:
    """Return rows of the order in which `shuffled` takes the sources of each channel, (c, s)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((channels, sources), generator=generator)[rows].argsort(dim=1)
