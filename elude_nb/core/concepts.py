"""The concept book: groups of tokens found without labels, with each group's mean sources.

Sums are additive: books over the same groups add up, and groups can be merged. So one pass over the images is enough:
tokens wait in a bounded buffer, and when it is full they are merged into micro-clusters, of which only the sums are
kept (as in BIRCH; Zhang, Ramakrishnan and Livny, 1996). In the end the micro-clusters are grouped into concepts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from elude_nb._util.words import counted
from elude_nb.core.clustering import cluster_directions, unit_vectors
from elude_nb.core.recording import Recording

_FEWEST, _MOST = 8, 512  # concepts, where their number is not given


@dataclass(frozen=True, eq=False)
class ConceptBook:
    """Groups of tokens and the sums over each group.

    Attributes
    ----------
    counts
        Tokens in each group, (g,), int64.
    channel_sums
        Sum of the channels over each group, (g, d), float64.
    source_sums
        Sum of the sources over each group, (g, s * kernel).
    source_squares
        Sum of the squares of the sources, (g, s * kernel), or ``None`` where nobody asked for them; they are not saved.
    """

    counts: Tensor
    channel_sums: Tensor
    source_sums: Tensor
    source_squares: Tensor | None = None

    def __len__(self) -> int:
        return len(self.counts)

    def __add__(self, other: ConceptBook) -> ConceptBook:
        """Merge two books over the same groups, made from different tokens."""
        if self.channel_sums.shape != other.channel_sums.shape or self.source_sums.shape != other.source_sums.shape:
            raise ValueError(
                f"Books of shapes {tuple(self.source_sums.shape)} and {tuple(other.source_sums.shape)} do not add up; "
                "only books over the same groups, channels and sources do."
            )
        return ConceptBook(
            self.counts + other.counts,
            self.channel_sums + other.channel_sums,
            self.source_sums + other.source_sums,
            None
            if self.source_squares is None or other.source_squares is None
            else self.source_squares + other.source_squares,
        )

    def regroup(self, groups: Tensor, number: int) -> ConceptBook:
        """Merge groups: old group ``i`` goes into new group ``groups[i]`` of ``number``; all sums are kept."""

        def added(sums: Tensor) -> Tensor:
            return sums.new_zeros(number, *sums.shape[1:]).index_add_(0, groups, sums)

        squares = None if self.source_squares is None else added(self.source_squares)
        return ConceptBook(added(self.counts), added(self.channel_sums), added(self.source_sums), squares)

    def channel_mean(self) -> Tensor:
        """Return the mean channels over all tokens, (d,), float64."""
        return self.channel_sums.sum(0) / self.counts.sum()

    def source_mean(self) -> Tensor:
        """Return the mean sources over all tokens, (s * kernel,)."""
        return self._source_mean.clone()

    @cached_property
    def _source_mean(self) -> Tensor:  # galleries ask for it with every batch and channel
        return (self.source_sums.double().sum(0) / self.counts.sum()).to(self.source_sums.dtype)

    def mean_channels(self) -> Tensor:
        """Return each group's mean channels less the mean over all tokens, (g, d)."""
        centred = self.channel_sums / self.counts[:, None] - self.channel_mean()
        return centred.to(self.source_sums.dtype)

    def mean_sources(self) -> Tensor:
        """Return ``m``: each group's mean sources less the mean over all tokens, (g, s * kernel)."""
        return self.source_sums / self.counts[:, None] - self.source_mean()

    def directions(self) -> Tensor:
        """Return the unit vectors along which the groups' mean channels lie from the overall mean, (g, d)."""
        return unit_vectors(self.mean_channels())

    def __repr__(self) -> str:
        return f"ConceptBook({counted(len(self), 'concept')} from {counted(int(self.counts.sum()), 'token')})"


@dataclass(frozen=True, eq=False)
class Moments:
    """Second moments of the tokens: they say how much of a channel's variance each contribution carries.

    Attributes
    ----------
    tokens
        How many tokens were seen.
    channel_variance
        (d,).
    covariance
        Covariance of each source with each channel, (s * kernel, d).
    """

    tokens: int
    channel_variance: Tensor
    covariance: Tensor


class BookBuilder:
    """Reads recordings one after the other, in bounded memory, and makes the concept book of them.

    Parameters
    ----------
    capacity
        Tokens that wait in the buffer before they are merged into micro-clusters.
    micro_clusters
        How many micro-clusters are kept between merges.
    seed
        Of the clustering.
    squares
        Whether to keep the sums of the sources' squares, too: they say how far the tokens of a group spread.
    """

    def __init__(
        self, capacity: int = 4096, micro_clusters: int = 1024, seed: int = 0, *, squares: bool = False
    ) -> None:
        self.capacity, self.micro_clusters, self.seed, self.squares = capacity, micro_clusters, seed, squares
        self._micro: ConceptBook | None = None
        self._channels = torch.empty(0)
        self._sources = torch.empty(0)
        self._waiting = 0
        self._moments: _RunningMoments | None = None

    @staticmethod
    def expected_bytes(
        capacity: int, micro_clusters: int, channels: int, sources: int, item: int = 4, *, squares: bool = False
    ) -> int:
        """Return the memory that a builder needs at its peak: buffer, micro-clusters before and after, covariance."""
        rows = capacity + 2 * micro_clusters
        more = (2 * micro_clusters + capacity) * sources * item if squares else 0
        return more + rows * (sources * item + channels * (item + 8)) + 3 * sources * channels * item

    def add(self, recording: Recording) -> None:
        """Take in the tokens of one recording."""
        if self._moments is None:
            self._channels = recording.channels.new_empty(self.capacity, recording.channels.shape[1])
            self._sources = recording.sources.new_empty(self.capacity, recording.sources.shape[1])
            self._moments = _RunningMoments(recording)
        start = 0
        while start < len(recording):
            if self._waiting == self.capacity:
                self._merge_waiting()
            taken = min(len(recording) - start, self.capacity - self._waiting)
            place = slice(self._waiting, self._waiting + taken)
            channels, sources = (x[start : start + taken] for x in (recording.channels, recording.sources))
            self._channels[place], self._sources[place] = channels, sources
            self._moments.add(channels, sources)  # not of the tokens to come: batches make no difference
            self._waiting += taken
            start += taken

    def finish(self, concepts: int) -> tuple[ConceptBook, ConceptBook, Moments]:
        """Return the book of ``concepts`` groups, the finer book of micro-clusters, and the moments; let the tokens go.

        Raises
        ------
        ValueError
            If fewer tokens were seen than concepts are wanted.
        """
        seen = 0 if self._moments is None else self._moments.tokens
        if self._moments is None or seen < concepts:
            raise ValueError(
                f"{counted(seen, 'token')}: too few for {concepts} concepts; use more images, more tokens_per_image, "
                "tokens='patch', or fewer concepts."
            )
        points, weights = self._points()
        # Copies of one image can have been merged into fewer points than concepts.
        groups = cluster_directions(points, weights, min(concepts, len(points)), seed=self.seed, careful=True)
        # Directions can coincide (copies of one image), so fewer groups than asked may have members.
        used, groups = groups.unique(return_inverse=True)
        book = self._grouped(groups, len(used))
        fine = self._grouped(*self._micro_groups(points, weights))
        moments = self._moments.finish()
        self.__init__(self.capacity, self.micro_clusters, self.seed, squares=self.squares)  # type: ignore[misc]
        return book, fine, moments

    def _points(self) -> tuple[Tensor, Tensor]:
        """Return the centred channels of micro-clusters and waiting tokens, (m + t, d), and their counts."""
        assert self._moments is not None  # noqa: S101 - for the type checker; add() has run
        points = self._channels[: self._waiting].double()
        weights = torch.ones(self._waiting, dtype=torch.float64)
        if self._micro is not None:
            means = self._micro.channel_sums / self._micro.counts[:, None]
            points = torch.cat([means, points])
            weights = torch.cat([self._micro.counts.double(), weights])
        return (points - self._moments.mean_channels()).float(), weights.float()

    def _micro_groups(self, points: Tensor, weights: Tensor) -> tuple[Tensor, int]:
        if len(points) <= self.micro_clusters:
            return torch.arange(len(points)), len(points)
        groups = cluster_directions(points, weights, self.micro_clusters, seed=self.seed)
        used, groups = groups.unique(return_inverse=True)
        return groups, len(used)

    def _merge_waiting(self) -> None:
        self._micro = self._grouped(*self._micro_groups(*self._points()))
        self._waiting = 0

    def _grouped(self, groups: Tensor, number: int) -> ConceptBook:
        """Sum micro-clusters and waiting tokens by group, without a copy of the buffer."""
        channels, sources = self._channels[: self._waiting], self._sources[: self._waiting]
        old = 0 if self._micro is None else len(self._micro)
        if self._micro is None:
            book = ConceptBook(
                torch.zeros(number, dtype=torch.int64),
                torch.zeros(number, channels.shape[1], dtype=torch.float64),
                sources.new_zeros(number, sources.shape[1]),
                sources.new_zeros(number, sources.shape[1]) if self.squares else None,
            )
        else:
            book = self._micro.regroup(groups[:old], number)
        into = groups[old:]
        book.counts.index_add_(0, into, torch.ones_like(into))
        book.channel_sums.index_add_(0, into, channels.double())
        book.source_sums.index_add_(0, into, sources)
        if book.source_squares is not None:
            book.source_squares.index_add_(0, into, sources.square())
        return book


class _RunningMoments:
    """Means, channel variances and the covariance of sources with channels; sums are kept around an origin."""

    def __init__(self, first: Recording) -> None:
        self._channel_origin = first.channels.mean(0)
        self._source_origin = first.sources.mean(0)
        self.tokens = 0
        self._channels = torch.zeros_like(self._channel_origin, dtype=torch.float64)
        self._squares = torch.zeros_like(self._channels)
        self._sources = torch.zeros_like(self._source_origin, dtype=torch.float64)
        self._products = first.sources.new_zeros(first.sources.shape[1], first.channels.shape[1])

    def add(self, channels: Tensor, sources: Tensor) -> None:
        channels, sources = channels - self._channel_origin, sources - self._source_origin
        self.tokens += len(channels)
        self._channels += channels.sum(0)
        self._squares += channels.double().square().sum(0)
        self._sources += sources.sum(0)
        self._products.addmm_(sources.T, channels)

    def mean_channels(self) -> Tensor:
        return self._channel_origin.double() + self._channels / self.tokens

    def finish(self) -> Moments:
        channels, sources = self._channels / self.tokens, self._sources / self.tokens
        dtype = self._products.dtype
        covariance = (self._products / self.tokens).addr_(sources.to(dtype), channels.to(dtype), alpha=-1)
        variance = (self._squares / self.tokens - channels.square()).clamp(min=0)
        return Moments(self.tokens, variance.to(dtype), covariance)


def suggest_concepts(tokens: int) -> int:
    """Return the power of two next to the square root of the number of tokens, from 8 to 512.

    Examples
    --------
    >>> suggest_concepts(240), suggest_concepts(4800), suggest_concepts(10_000_000)
    (16, 64, 512)
    """
    return int(min(_MOST, max(_FEWEST, 2 ** round(math.log2(max(tokens, 1)) / 2))))
