"""ELUDe: cluster each channel by its contributions, and route each contribution to the clusters that it drives.

The method of Bagci, Schiele, Schaub-Meyer, Fischer and Hesse (arXiv 2605.31304, section 3): `EludeRouting`, rule
``"published"``. The rule ``"signed"`` is this project's: same clusters, one owner for every contribution, by its sign.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from elude_nb._util.checks import check_choice, check_count, check_fraction
from elude_nb._util.progress import progress_bar
from elude_nb._util.ranks import Ranks
from elude_nb.core.clustering import unit_vectors
from elude_nb.core.concepts import ConceptBook, on_device
from elude_nb.core.density import cluster_by_density, cluster_groups_by_density, expected_bytes
from elude_nb.core.recording import Recording
from elude_nb.core.routing import MOST_UNITS, NO_CONCEPT, Routing, pack_bits

RULES = ("published", "signed", "absolute")
RHOS = tuple(round(0.05 * step, 2) for step in range(1, 21))
"""What rho is chosen from, for each channel: 0.05, 0.10, ..., 1.00."""

FEWEST = 8
"""Smallest cluster that a fraction of the instances leads to: with 1,200 instances a channel it gives the paper's
expansion factor of 8. The paper has 400,000, where its fraction is 1,000."""

_STEADY = 1e-5  # in the criterion for rho, as in arXiv 2504.12939


@dataclass(frozen=True, eq=False)
class Instances:
    """What the routing of a channel is decided by: the sources of tokens, or of groups of tokens.

    Attributes
    ----------
    sources
        ``q``, (t, s * kernel), not centred.
    channels
        The channels' values there, (t, d).
    counts
        How many tokens each stands for, (t,): 1, or the tokens of a micro-cluster.
    squares
        For micro-clusters the means of the sources' squares, (t, s * kernel): how far their tokens spread.
    """

    sources: Tensor = field(repr=False)
    channels: Tensor = field(repr=False)
    counts: Tensor = field(repr=False)
    squares: Tensor | None = None

    @staticmethod
    def of_tokens(kept: Recording) -> Instances:
        """Return recorded tokens as instances; raise ``ValueError`` if there are none."""
        if not len(kept):
            raise ValueError("There are no tokens to split by.")
        return Instances(kept.sources, kept.channels, torch.ones(len(kept)))

    @staticmethod
    def of_groups(fine: ConceptBook) -> Instances:
        """Return groups of tokens as instances: their means, each standing for as many tokens as it has.

        If the book was made without squares, the tokens of a group count as all alike.
        """
        counts = fine.counts[:, None]
        means = fine.source_sums / counts
        squares = means.square() if fine.source_squares is None else fine.source_squares / counts
        return Instances(means, (fine.channel_sums / counts).to(means), fine.counts, squares)

    @property
    def tokens(self) -> int:
        """How many tokens all instances stand for."""
        return int(self.counts.sum())

    def __len__(self) -> int:
        return len(self.sources)


@dataclass(frozen=True)
class EludeRouting:
    """The published method: HDBSCAN over a channel's contributions, and a rule that gives each to clusters.

    For channel ``u`` the ``top_k`` instances with the highest value are kept. Their contributions ``W[u] * q`` are
    scaled to length 1 and clustered. A cluster is represented by the mean of its contributions, weighted by HDBSCAN's
    membership probability: ``r`` (k, s).

    Attributes
    ----------
    top_k
        How many instances of a channel are clustered: a share of all of them, or a whole number. The paper has 400,000
        of 2.56 million.
    min_cluster_size
        Smallest cluster: a share of ``top_k`` (but 8 at least), or a whole number. The paper has 1,000 of 400,000.
    min_samples
        HDBSCAN's; ``None`` takes ``min_cluster_size``, as the library does.
    selection
        HDBSCAN's ``cluster_selection_method``: ``"leaf"`` (the paper) or ``"eom"`` (its ablation).
    rule
        ``"published"``: a set of clusters wins source ``j`` if ``rho * min |r[c, j]|`` over it exceeds the largest
        ``|r[c, j]|`` of all others; if exactly one set wins, its members share the weight evenly, else all clusters do.
        rho is chosen for each channel from 0.05 to 1 by the predecessor's criterion (arXiv 2504.12939), which is our
        reading: the paper says only that each sub-unit is to be high on its own cluster and low on the others.
        ``"signed"`` (ours): one owner, the cluster with the largest ``W[u, j] * (mean of q[j] over it - over all)``,
        even where that is negative. ``"absolute"``: one owner by the largest ``|r[c, j]|``; a control.
    groups
        ``"hdbscan"``, or ``"random"``: instances are assigned at random to clusters of the same sizes, the paper's
        control.
    instances
        ``"tokens"`` keeps the sources of the recorded tokens, at most ``max_tokens`` of them, drawn at random;
        ``"micro-clusters"`` takes the groups of tokens that one pass leaves, so that neither memory nor time grow with
        the number of images. They are clustered as if their tokens were there (`cluster_groups_by_density`), and
        ``top_k`` and ``min_cluster_size`` count tokens all the same.
    max_tokens, micro_clusters
        See ``instances``: how many tokens, or groups, at most.
    seed
        Of what is drawn.

    Raises
    ------
    TypeError, ValueError
        If a setting is out of range.
    """

    top_k: float = 0.16
    min_cluster_size: float = 0.0025
    min_samples: int | None = None
    selection: Literal["leaf", "eom"] = "leaf"
    rule: Literal["published", "signed", "absolute"] = "published"
    groups: Literal["hdbscan", "random"] = "hdbscan"
    instances: Literal["tokens", "micro-clusters"] = "tokens"
    max_tokens: int = 16_384
    micro_clusters: int = 2048
    seed: int = 0
    name: str = "elude"

    def __post_init__(self) -> None:
        _check_amount("top_k", self.top_k)
        _check_amount("min_cluster_size", self.min_cluster_size)
        if self.min_samples is not None:
            check_count("min_samples", self.min_samples)
        check_choice("selection", self.selection, ("leaf", "eom"))
        check_choice("rule", self.rule, RULES)
        check_choice("groups", self.groups, ("hdbscan", "random"))
        check_choice("instances", self.instances, ("tokens", "micro-clusters"))
        check_count("max_tokens", self.max_tokens, 2)
        check_count("micro_clusters", self.micro_clusters, 2)
        check_count("seed", self.seed, 0)
        if isinstance(self.top_k, int):  # whatever the images
            self.sizes(self.top_k)

    def sizes(self, count: int) -> tuple[int, int]:
        """Return how many of ``count`` tokens are clustered for each channel, and the smallest cluster.

        Raises
        ------
        ValueError
            If there are too few for two clusters, or for ``min_samples``.
        """
        top = min(count, self.top_k if isinstance(self.top_k, int) else round(self.top_k * count))
        smallest = self.min_cluster_size
        least = smallest if isinstance(smallest, int) else max(FEWEST, round(smallest * top))
        if top < 2 * least:
            raise ValueError(
                f"top_k={self.top_k} of {count:,} instances is {top:,}, too few for two clusters of "
                f"min_cluster_size={least}; use more images or tokens_per_image, a larger top_k or smaller clusters."
            )
        if self.min_samples is not None and self.min_samples > top:
            raise ValueError(
                f"min_samples={self.min_samples} exceeds the {top:,} instances that top_k={self.top_k} keeps of "
                f"{count:,}; take fewer, or a larger top_k."
            )
        return int(top), int(least)

    def expected_bytes(self, count: int, channels: int, width: int) -> int:
        """Return about how much memory the routing takes beside the instances: a channel a thread, and who shares what.

        Parameters
        ----------
        count
            How many tokens there are to choose from.
        channels, width
            Channels, and sources with their kernel positions.
        """
        rows, (top, least) = self._rows(count), self.sizes(count)
        clusters = channels * max(2, top // (4 * least))  # of noise there are so many, of pictures fewer
        each = 20 * rows * width + expected_bytes(rows, width)
        return clusters * (width + 20 * channels) + max(1, torch.get_num_threads()) * each

    def _rows(self, count: int) -> int:
        """Return how many instances are clustered for a channel, of ``count`` tokens."""
        top, _ = self.sizes(count)
        if self.instances == "tokens":
            return top
        return min(top, max(2, round(min(count, self.micro_clusters) * top / count)))

    def expected_seconds(self, count: int, channels: int, width: int) -> float:
        """Return about how long the routing of ``channels`` by ``count`` instances of ``width`` sources takes.

        Two channels of noise are clustered; the published rule then tries 20 values of rho, which takes as long again.
        """
        rows, (top, least) = self._rows(count), self.sizes(count)
        noise = torch.randn(rows, width, generator=torch.Generator().manual_seed(0))
        alone = replace(self, top_k=top, min_cluster_size=least, min_samples=None)
        counts = torch.full((rows,), -(-top // rows))
        squares = noise.square() + 1 if self.instances == "micro-clusters" else None
        found = Instances(noise, noise[:, :1].repeat(1, 2), counts, squares)
        start = time.perf_counter()
        alone.route_instances(torch.ones(2, width, 1), found)
        each = (time.perf_counter() - start) / 2
        return each * channels * (2 if self.rule == "published" else 1)

    def route(
        self,
        weight: Tensor,
        book: ConceptBook,  # noqa: ARG002 - the same call as other strategies'
        fine: ConceptBook,
        *,
        units: int = MOST_UNITS,  # noqa: ARG002
        shared: float | None = None,  # noqa: ARG002
    ) -> Routing:
        """Decide the routing by groups of tokens, whatever ``instances`` says; see `route_instances`."""
        return self.route_instances(weight, Instances.of_groups(fine))[0]

    def route_instances(
        self, weight: Tensor, found: Instances, *, progress: bool = False, ranks: Ranks | None = None
    ) -> tuple[Routing, list[Tensor]]:
        """Decide the routing of all channels.

        Parameters
        ----------
        weight
            W, (d, s, kernel).
        found
            The instances, on the same device, where the work is done; what is returned is on the CPU.
        progress
            Whether to show a progress bar over the channels.
        ranks
            The processes that share the channels, each with the same weights and instances.

        Returns
        -------
        routing, centres
            The routing, its concepts not yet filled in; and for each channel the mean channels of each of its clusters,
            less the mean over all instances, (k, d).
        """
        self.sizes(found.tokens)
        for name, values in (("sources", found.sources), ("channels", found.channels)):
            if not bool(values.isfinite().all()):
                bad = int((~values.isfinite().all(1)).nonzero()[0])
                raise ValueError(f"The {name} of instance {bad} hold NaN or infinite values; look at the images.")
        mean, middle = _means(found)

        ranks = ranks or Ranks()
        mine = range(ranks.rank, len(weight), ranks.count)

        def one(number: int) -> _Split:
            channel = mine[number]
            clusters = self._find_clusters(weight[channel], found, channel)
            return on_device(self._split_channel(weight[channel], found, clusters, mean, middle), "cpu")

        at_once = max(1, min(torch.get_num_threads(), len(mine)))
        with progress_bar(description="channels", total=len(mine), show=progress, unit="channel") as bar:
            several = []
            for split in _in_threads(one, len(mine), at_once):
                several.append(split)
                bar.update()
                ranks.check()
        shares = ranks.all(several)
        made = [shares[channel % ranks.count][channel // ranks.count] for channel in range(len(weight))]
        return _joined(made, weight.shape[1]), [split.centres for split in made]

    def trace(self, weight: Tensor, found: Instances, channel: int) -> tuple[Clusters, Routing]:
        """Return what the clustering of one channel found, and its routing, d = 1; arguments as `route_instances`."""
        row, mean, middle = weight[channel], *_means(found)
        clusters = self._find_clusters(row, found, channel)
        split = self._split_channel(row, found, clusters, mean, middle)
        return clusters, _joined([split], weight.shape[1])

    def _find_clusters(self, row: Tensor, found: Instances, channel: int) -> Clusters:
        """Cluster what contributes to a channel; ``row`` is (s, kernel)."""
        _, least = self.sizes(found.tokens)
        values = found.channels[:, channel]
        chosen, contributions, directions = self._strongest(row, found, values)
        made = Clusters(
            "", chosen, contributions, directions, torch.full_like(chosen, -1), values.new_zeros(len(chosen))
        )
        # Copies of one image differ by rounding, which must not be clustered.
        size = float(contributions.abs().sum(1).max()) if len(chosen) else 0.0
        if float(values.max() - values.min()) <= size * torch.finfo(contributions.dtype).eps ** 0.5:
            return replace(made, reason="not split: it is constant")
        counts = found.counts[chosen]
        if len(chosen) < 2 or int(counts.sum()) < max(2 * least, self.min_samples or 0):
            return replace(made, reason="not split: too few instances contribute to it")
        how: dict[str, Any] = {
            "min_cluster_size": least, "min_samples": self.min_samples, "selection": self.selection,
        }  # fmt: skip
        if found.squares is None:
            groups, membership = cluster_by_density(directions, **how)
        else:
            groups, membership = cluster_groups_by_density(directions, counts, **how)
        k = min(int(groups.max()) + 1, MOST_UNITS)
        if k < 2:
            return replace(made, reason="not split: its contributions form fewer than two clusters")
        groups = torch.where(groups < k, groups, -1)
        if self.groups == "random":
            generator = torch.Generator().manual_seed(self.seed + channel)
            order = torch.randperm(len(groups), generator=generator)
            groups, membership = groups[order.to(groups.device)], membership[order.to(groups.device)]
        return replace(made, groups=groups, membership=membership)

    def _split_channel(self, row: Tensor, found: Instances, clusters: Clusters, mean: Tensor, middle: Tensor) -> _Split:
        """Give the contributions of a channel to its clusters; ``mean`` and ``middle`` are those of `_means`."""
        if clusters.reason:
            return _Split(clusters.reason, None, None, middle.new_zeros(0, len(middle)))
        chosen, groups, k = clusters.chosen, clusters.groups, len(clusters)
        counts = found.counts[chosen].to(found.sources)
        share = torch.nn.functional.one_hot(groups + 1, k + 1)[:, 1:].to(counts)
        share = share * (clusters.membership * counts)[:, None]
        share = share / share.sum(0).clamp(min=1e-30)  # (n, k)
        centres = share.T @ found.channels[chosen].to(counts) - middle
        if self.rule == "signed":
            gains = _by_source(row.flatten() * (share.T @ found.sources[chosen] - mean), row.shape[1])  # (k, s)
            return _Split("split", gains.argmax(0), None, centres)
        strength = unit_vectors(share.T @ clusters.directions).abs()
        if self.rule == "absolute":
            return _Split("split", strength.argmax(0), None, centres)
        rho = choose_rho(strength, clusters.contributions * counts[:, None], groups)
        return _Split("split", None, winning_sets(strength, rho), centres)

    def _strongest(self, row: Tensor, found: Instances, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the instances on which a channel is highest, ``top_k`` tokens of them, and what contributes to it.

        Returns
        -------
        chosen, contributions, directions
            The instances (n,), ``W[u] * q`` (n, s), and the means of the tokens' contributions scaled to length 1,
            (n, s): of length 1 for a token, and shorter the more the tokens of a group spread. Instances without any
            contribution have no direction and are left out.
        """
        top, _ = self.sizes(found.tokens)
        order = values.topk(min(top, len(values))).indices  # each stands for a token or more
        before = found.counts[order].cumsum(0) - found.counts[order]
        chosen = order[before < top]
        contributions = _by_source(row.flatten() * found.sources[chosen], row.shape[1])
        some = contributions.abs().amax(1) > 0
        chosen, contributions = chosen[some], contributions[some]
        if found.squares is None:
            return chosen, contributions, unit_vectors(contributions)
        spread = (found.squares[chosen] - found.sources[chosen].square()).clamp(min=0)
        length = (contributions.square().sum(1) + spread @ row.flatten().square()).sqrt()
        return chosen, contributions, contributions / length[:, None]


@dataclass(frozen=True, eq=False)
class Clusters:
    """The instances on which a channel is highest, clustered by what contributes to it.

    Attributes
    ----------
    reason
        Why the channel is not split, in words; empty if it is.
    chosen
        Which instances, the highest first, (n,).
    contributions
        ``W[u] * q`` of each, (n, s), the positions of a kernel added up.
    directions
        What is clustered: the same scaled to length 1, (n, s).
    groups, membership
        The cluster of each, or -1 for noise, (n,); and how strongly it belongs to it, (n,).
    """

    reason: str
    chosen: Tensor = field(repr=False)
    contributions: Tensor = field(repr=False)
    directions: Tensor = field(repr=False)
    groups: Tensor = field(repr=False)
    membership: Tensor = field(repr=False)

    def __len__(self) -> int:
        return int(self.groups.max()) + 1 if len(self.groups) else 0


@dataclass(frozen=True, eq=False)
class _Split:
    """One channel's outcome: ``owner`` (s,) or ``sets`` (k, s), bool; ``centres`` (k, d)."""

    reason: str
    owner: Tensor | None
    sets: Tensor | None
    centres: Tensor


def _means(found: Instances) -> tuple[Tensor, Tensor]:
    """Return the mean sources (s * kernel,) and the mean channels (d,) of all tokens."""
    share = found.counts.to(found.sources) / found.counts.sum()
    return share @ found.sources, share @ found.channels.to(found.sources)


def _in_threads(work: Callable[[int], _Split], number: int, at_once: int) -> Iterator[_Split]:
    """Yield what ``work`` makes of 0 to ``number - 1``, in order; each thread computes with one thread of its own.

    If the caller stops early or is interrupted, nothing new is begun, and what runs is waited for.
    """
    from threadpoolctl import threadpool_limits

    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(at_once, initializer=torch.set_num_threads, initargs=(1,))
    try:
        with threadpool_limits(1, user_api="blas"):
            yield from pool.map(work, range(number))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(threads)  # a thread's setting is that of all threads to come


def winning_sets(strength: Tensor, rho: float) -> Tensor:
    """Return which clusters share each source under the published rule, (k, s), bool.

    Parameters
    ----------
    strength
        ``|r|``, (k, s), at least 0, k of 2 or more.
    rho
        A set wins if ``rho`` times its smallest strength exceeds the largest of all others. Sorted by strength only the
        first ``m`` clusters can be such a set. If exactly one proper set wins it shares the source, else all do.
    """
    ordered, places = strength.sort(dim=0, descending=True)
    return _members(places, _set_sizes(ordered, rho))


def _set_sizes(ordered: Tensor, rho: float) -> Tensor:
    """Return how many clusters share each source, (s,), of strengths (k, s) that are sorted, the largest first."""
    wins = rho * ordered[:-1] > ordered[1:]  # (k - 1, s): whether the first m + 1 clusters win
    return torch.where(wins.sum(0) == 1, wins.to(torch.uint8).argmax(0) + 1, len(ordered))


def _members(places: Tensor, sizes: Tensor) -> Tensor:
    """Return the first so many (s,) of the clusters in order (k, s), as bool (k, s)."""
    first = torch.arange(len(places), device=places.device)[:, None] < sizes
    return torch.zeros_like(first).scatter(0, places, first)


def choose_rho(strength: Tensor, contributions: Tensor, groups: Tensor) -> float:
    """Return the rho under which sub-units are highest on their own cluster and lowest on the others.

    The criterion of arXiv 2504.12939, averaged over the sub-units: the sum of ``relu(z)`` over the sub-unit's own
    cluster, divided by that over the others plus 1e-5.

    Parameters
    ----------
    strength
        ``|r|``, (k, s).
    contributions
        ``W[u] * q`` of the clustered instances, (n, s).
    groups
        The cluster of each, or -1, (n,).
    """
    own = groups[:, None] == torch.arange(len(strength), device=groups.device)  # (n, k)
    other = (groups >= 0)[:, None] & ~own
    best, chosen = -float("inf"), RHOS[-1]
    ordered, places = strength.sort(dim=0, descending=True)
    parts, before = contributions.new_zeros(strength.shape), places.new_zeros(strength.shape[1])
    sums = contributions.new_zeros(own.shape)  # (n, k): what each sub-unit adds up
    for rho in RHOS:
        sizes = _set_sizes(ordered, rho)
        changed = (sizes != before).nonzero().flatten()  # from one rho to the next, few sources change their owners
        made = _members(places[:, changed], sizes[changed]).to(parts) / sizes[changed]
        sums += contributions[:, changed] @ (made - parts[:, changed]).T
        parts[:, changed], before = made, sizes
        units = sums.relu()
        ratio = (units * own).sum(0) / ((units * other).sum(0) + _STEADY)
        if float(ratio.mean()) > best:
            best, chosen = float(ratio.mean()), rho
    return chosen


def _joined(made: list[_Split], sources: int) -> Routing:
    """Return the routing of all channels; a source that one cluster wins is owned, others are shared."""
    k = max(2, *(len(split.centres) for split in made))
    routes = torch.zeros(len(made), sources, dtype=torch.uint8)
    shared = any(split.sets is not None for split in made)
    sets = torch.zeros(len(made), sources, -(-k // 8), dtype=torch.uint8) if shared else None
    for channel, split in enumerate(made):
        if split.owner is not None:
            routes[channel] = (split.owner + 1).to(torch.uint8)
        if split.sets is not None and sets is not None:
            alone = split.sets.sum(0) == 1
            routes[channel] = torch.where(alone, split.sets.to(torch.uint8).argmax(0) + 1, 0).to(torch.uint8)
            members = torch.nn.functional.pad((split.sets & ~alone).T, (0, k - len(split.sets)))  # (s, k)
            sets[channel] = pack_bits(members)
    concepts = torch.full((len(made), k), NO_CONCEPT)
    return Routing(routes, concepts, tuple(split.reason for split in made), sets)


def _by_source(products: Tensor, kernel: int) -> Tensor:
    """Add up the kernel's positions: (n, s * kernel) to (n, s)."""
    return products if kernel == 1 else products.unflatten(1, (-1, kernel)).sum(2)


def _check_amount(name: str, value: float) -> None:
    """Check a whole number from 2 on, or a fraction."""
    if isinstance(value, int):
        check_count(name, value, 2)
    else:
        check_fraction(name, value, open_ends=True)
