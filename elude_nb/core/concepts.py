"""The concept book: groups of tokens found without labels, with each group's mean sources.

Sums are additive: books over the same groups add up, and groups can be merged. So one pass over the images is enough: a
sample of the tokens is grouped into cells, every token is counted in the cell that is nearest, and only sums are kept
(as in BIRCH; Zhang, Ramakrishnan and Livny, 1996). In the end the cells, micro-clusters, are grouped into concepts.
Nothing of this depends on the order of the images, nor on which of several processes ran them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from elude_nb._util.words import counted
from elude_nb.core.clustering import cluster_directions, unit_vectors

_FEWEST, _MOST = 8, 512  # concepts, where their number is not given
_ROWS_AT_ONCE = 4096
T = TypeVar("T")


def tensors_of(found: Any) -> dict[str, Tensor]:
    """Return the tensors among the fields of a dataclass, by name; those of ``None`` are none."""
    several = {} if found is None else {each.name: getattr(found, each.name) for each in fields(found)}
    return {name: value for name, value in several.items() if isinstance(value, Tensor)}


def on_device(found: T, device: torch.device | str) -> T:
    """Return the same dataclass with its tensors on a device; itself if they are there, and ``None`` for ``None``."""
    tensors = tensors_of(found)
    if all(value.device == torch.device(device) for value in tensors.values()):
        return found
    moved: Any = replace(found, **{name: value.to(device) for name, value in tensors.items()})  # type: ignore[type-var]
    return moved  # type: ignore[no-any-return]


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

    @staticmethod
    def of_tokens(channels: Tensor, sources: Tensor, *, squares: bool = False) -> ConceptBook:
        """Return a book in which each token is a group of its own; ``squares``: with those of the sources."""
        counts = torch.ones(len(channels), dtype=torch.int64)
        return ConceptBook(counts, channels.double(), sources, sources.square() if squares else None)

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
class Cells:
    """Where tokens are counted: each in the cell whose centre is nearest to its direction from the middle.

    Attributes
    ----------
    middle
        Mean channels of the sample that the cells were made from, (d,), float64.
    centres
        Mean direction of the sample's tokens in each cell, (m, d), float32.
    """

    middle: Tensor
    centres: Tensor

    @staticmethod
    def of(channels: Tensor, number: int, seed: int) -> Cells:
        """Group a sample of tokens, (t, d), into so many cells at most, by their channels."""
        middle = channels.double().mean(0)
        points = _directions(channels, middle)
        if len(points) <= number:
            return Cells(middle, points)
        ones = torch.ones(len(points))
        _, groups = cluster_directions(points, ones, number, seed=seed).unique(return_inverse=True)
        counts = torch.bincount(groups)[:, None]
        return Cells(middle, points.new_zeros(len(counts), points.shape[1]).index_add_(0, groups, points) / counts)

    def nearest(self, channels: Tensor) -> Tensor:
        """Return the cell of each token, (t, d) to (t,); of two that are as near, the first."""
        lengths = self.centres.square().sum(1) / 2
        return torch.addmm(-lengths, _directions(channels, self.middle), self.centres.T).argmax(1)

    def __len__(self) -> int:
        return len(self.centres)


def _directions(channels: Tensor, middle: Tensor) -> Tensor:
    return unit_vectors((channels.double() - middle).float())


@dataclass(frozen=True, eq=False)
class Moments:
    """Means and second moments of tokens: they say how much of a channel's variance each contribution carries.

    They add up by the formula of Chan, Golub and LeVeque (1983), which keeps sums around the mean: a mean that is large
    beside the variance costs no digits.

    Attributes
    ----------
    tokens
        How many tokens were seen.
    channel_mean, source_mean
        (d,) and (s * kernel,), float64.
    squares
        Sum of the squares of each channel around its mean, (d,), float64.
    products
        Sum of the products of sources and channels around their means, (s * kernel, d): float64, but of `Moments.of` in
        the dtype of the tokens.
    """

    tokens: int
    channel_mean: Tensor
    source_mean: Tensor
    squares: Tensor
    products: Tensor

    @staticmethod
    def empty(channels: int, sources: int) -> Moments:
        """Return the moments of no token."""
        means = torch.zeros(channels, dtype=torch.float64), torch.zeros(sources, dtype=torch.float64)
        products = torch.zeros((), dtype=torch.float64).expand(sources, channels)  # takes no memory; + makes a copy
        return Moments(0, *means, means[0].clone(), products)

    @staticmethod
    def of(channels: Tensor, sources: Tensor) -> Moments:
        """Return the moments of some tokens, (t, d) and (t, s * kernel), one at least."""
        means = tuple(values.sum(0, dtype=torch.float64) / len(values) for values in (channels, sources))
        centred, others = channels - means[0].to(channels), sources - means[1].to(sources)
        # That the means are rounded to the tokens' dtype moves the sums by the square of the rounding: by nothing.
        return Moments(len(channels), means[0], means[1], centred.double().square().sum(0), others.T @ centred)

    def __add__(self, other: Moments) -> Moments:
        products = self.products.to(torch.float64, copy=True)
        return Moments(self.tokens, self.channel_mean, self.source_mean, self.squares, products).absorb(other)

    def absorb(self, other: Moments) -> Moments:
        """Return the sum of both; the products, in float64, are added in place: this value is not to be used again."""
        tokens = self.tokens + other.tokens
        if not tokens:
            return self
        moved, shifted = other.channel_mean - self.channel_mean, other.source_mean - self.source_mean
        weight, share = self.tokens * other.tokens / tokens, (self.tokens / tokens, other.tokens / tokens)
        for mine, theirs in zip(self.products.split(_ROWS_AT_ONCE), other.products.split(_ROWS_AT_ONCE), strict=True):
            mine.add_(theirs)  # torch widens what it adds, as a whole
        return Moments(
            tokens,
            share[0] * self.channel_mean + share[1] * other.channel_mean,
            share[0] * self.source_mean + share[1] * other.source_mean,
            self.squares + other.squares + weight * moved.square(),
            self.products.addr_(shifted, moved, alpha=weight),
        )

    @property
    def channel_variance(self) -> Tensor:
        """Variance of each channel, (d,), float64."""
        return self.squares / self.tokens

    @property
    def covariance(self) -> Tensor:
        """Covariance of each source with each channel, (s * kernel, d), float64."""
        return self.products / self.tokens


def make_books(micro: ConceptBook, concepts: int, most: int, seed: int) -> tuple[ConceptBook, ConceptBook]:
    """Group micro-clusters, or single tokens, into a book of concepts and a finer book of ``most`` groups at most.

    Raises
    ------
    ValueError
        If there are fewer tokens than concepts are wanted.
    """
    seen = int(micro.counts.sum())
    if seen < concepts:
        raise ValueError(
            f"{counted(seen, 'token')}: too few for {concepts} concepts; use more images, more tokens_per_image, "
            "tokens='patch', or fewer concepts."
        )
    points = (micro.channel_sums / micro.counts[:, None] - micro.channel_mean()).float()
    weights = micro.counts.float()
    # Copies of one image can have been merged into fewer points than concepts.
    groups = cluster_directions(points, weights, min(concepts, len(points)), seed=seed, careful=True)
    # Directions can coincide (copies of one image), so fewer groups than asked may have members.
    used, groups = groups.unique(return_inverse=True)
    book = micro.regroup(groups, len(used))
    if len(points) <= most:
        return book, micro
    used, groups = cluster_directions(points, weights, most, seed=seed).unique(return_inverse=True)
    return book, micro.regroup(groups, len(used))


def suggest_concepts(tokens: int) -> int:
    """Return the power of two next to the square root of the number of tokens, from 8 to 512.

    Examples
    --------
    >>> suggest_concepts(240), suggest_concepts(4800), suggest_concepts(10_000_000)
    (16, 64, 512)
    """
    return int(min(_MOST, max(_FEWEST, 2 ** round(math.log2(max(tokens, 1)) / 2))))
