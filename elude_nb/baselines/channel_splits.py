"""Earlier ways to split channels: PURE's virtual neurons, and the split by classes of Hesse et al., for 2 or n classes.

All are **reconstructions** from short descriptions: neither the full papers nor their authors' code was available. Each
class says what is known of the paper and what was chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from elude_nb._util.checks import check_count, check_fraction, check_kind
from elude_nb.baselines.base import Method
from elude_nb.baselines.linear import MAX_SEED, quiet, tokens_of
from elude_nb.core.recording import Recording
from elude_nb.scores.inputs import as_codes

_CONTRIBUTIONS_AT_ONCE = 1 << 24  # 64 MB of float32, a few times over


class _OfContributions(Method):
    """A method that works on contributions; its weights are the model's, and do not count in its size."""

    needs_sources = True

    def __init__(self, weight: Tensor, bias: Tensor | None, kernel: int, *, name: str) -> None:
        self.name, self.kernel = name, check_count("kernel", kernel)
        check_kind("weight", weight, Tensor, "a tensor, as Site.weight(network) gives it")
        check_kind("bias", bias, Tensor | None, "a tensor, as Site.bias(network) gives it, or None")
        self.weight, self.bias = weight, weight.new_zeros(len(weight)) if bias is None else bias
        if weight.ndim != 2 or weight.shape[1] % kernel or self.bias.shape != weight.shape[:1]:
            shapes = f"{tuple(weight.shape)} and {tuple(self.bias.shape)}"
            raise ValueError(f"weight must be (d, s * kernel) and bias (d,) with kernel={kernel}, not {shapes}.")

    def size_in_bytes(self) -> int:
        """See `Method.size_in_bytes`; weight and bias are not counted."""
        return super().size_in_bytes() - self.weight.nbytes - self.bias.nbytes

    def _checked(self, recording: Recording) -> tuple[Tensor, Tensor]:
        """Return channels (t, d) and sources (t, s * kernel) to fit on; raise if they are not those of the site."""
        channels, sources = tokens_of(recording), recording.sources
        if (channels.shape[1], sources.shape[1]) != tuple(self.weight.shape):
            raise ValueError(
                f"The recording has {channels.shape[1]} channels and {sources.shape[1]} sources, the weight is "
                f"{tuple(self.weight.shape)}; record the site of the weight, with its sources."
            )
        if not sources.isfinite().all():
            raise ValueError("The recorded sources hold NaN or infinite values; look at the model and its input.")
        return channels, sources

    def _sum_kernel(self, products: Tensor) -> Tensor:
        """Sum over the kernel positions of each source: (..., s * kernel) to (..., s)."""
        if self.kernel == 1:  # a copy of all products would take longer than the rest
            return products
        sums: Tensor = products.unflatten(-1, (-1, self.kernel)).sum(-1)
        return sums

    def _repeat_kernel(self, per_source: Tensor) -> Tensor:
        """Repeat each source's value at all its kernel positions: (..., s) to (..., s * kernel)."""
        return per_source.repeat_interleave(self.kernel, dim=-1)


class VirtualNeurons(_OfContributions):
    """PURE (Dreyer et al. 2024, arXiv 2404.06453): a channel's activation, assigned to clusters of its best tokens.

    Known of the paper: the attributions of the layer before, on the samples that activate a neuron most (the top 100),
    are clustered by k-means; a virtual neuron is the neuron where a sample's attributions are nearest to its cluster.

    We chose: tokens as samples; contributions ``W[j, i] a[i]`` as attributions (summed over the kernel positions of a
    source); the channel's activation above its mean over the fit. The virtual neurons of a channel sum to the channel,
    but none is a sum of contributions: each token selects the one that is active. They are read beside the model.

    Parameters
    ----------
    weight, kernel
        W (d, s * kernel) of the site, and its kernel positions.
    bias
        Not used; accepted so that all methods here are made alike.
    units_per_channel
        k, how many virtual neurons a channel has.
    strongest
        How many of the channel's best tokens are clustered.
    channels
        Numbers of the channels that get virtual neurons; by default all.
    seed
        Of the clustering.

    Attributes
    ----------
    channels_
        The channel of each unit, (c * k,); those of one channel are adjacent, the largest cluster first. A channel
        whose best tokens are all equal has units that are 0 everywhere.

    Examples
    --------
    >>> sources = torch.tensor([[2.0, 0.0], [0.0, 3.0], [3.0, 0.0], [0.0, 0.0]])
    >>> channels = sources.sum(1, keepdim=True)  # high for one reason or for another
    >>> seen = Recording(channels, sources, 0 * channels, torch.arange(4), torch.zeros(4))
    >>> virtual = VirtualNeurons(torch.ones(1, 2), strongest=3).fit(seen)
    >>> virtual.encode(seen)[:3].tolist()  # the channel's mean is 2
    [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
    """

    lossless = True

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        kernel: int = 1,
        *,
        units_per_channel: int = 2,
        strongest: int = 100,
        channels: Sequence[int] | None = None,
        seed: int = 0,
        name: str = "virtual neurons",
    ) -> None:
        super().__init__(weight, bias, kernel, name=name)
        self.units_per_channel = check_count("units_per_channel", units_per_channel, 2)
        self.seed = check_count("seed", seed, 0, MAX_SEED)
        self.strongest = check_count("strongest", strongest, units_per_channel)
        chosen = range(len(weight)) if channels is None else channels
        self._chosen = torch.tensor([check_count("channel", number, 0, len(weight) - 1) for number in chosen])
        if len(self._chosen.unique()) < len(self._chosen) or not len(self._chosen):
            raise ValueError(f"channels={channels} must name at least one channel, and none of them twice.")

    def fit(self, recording: Recording, labels: Sequence[Any] | None = None) -> Self:  # noqa: ARG002 - needs none
        """See `Method.fit`; needs as many tokens as a channel has units."""
        from threadpoolctl import threadpool_limits

        channels, sources = self._checked(recording)
        k = self.units_per_channel
        if len(channels) < k:
            raise ValueError(f"{len(channels)} tokens are too few for {k} clusters; record more.")
        with threadpool_limits(1):  # on problems this small, threads cost more than they save
            found = [self._clusters(channels[:, j], sources, j) for j in self._chosen.tolist()]
        centres, sizes = (torch.stack(parts) for parts in zip(*found, strict=True))  # (c, k, s), (c, k)
        self.mean_, self.channels_ = channels.mean(0), self._chosen.repeat_interleave(k)
        # |W a - x|^2 = |W a|^2 - 2 a (W x) + |x|^2, and the first term is the same for all clusters x of a channel: two
        # matrix products find the nearest, without the contributions of each token.
        spread = self._repeat_kernel(centres) * self.weight[self._chosen][:, None]
        self.matrix_ = spread.flatten(0, 1).T.contiguous()  # (s * kernel, c * k)
        self.offset_ = (centres.square().sum(2) / 2).masked_fill(sizes == 0, torch.inf).flatten()
        return self

    def _clusters(self, values: Tensor, sources: Tensor, channel: int) -> tuple[Tensor, Tensor]:
        """Cluster one channel's contributions at its best tokens: centres (k, s) and sizes (k,), the largest first."""
        best = values.topk(min(self.strongest, len(values))).indices
        contributions, k = self._sum_kernel(sources[best] * self.weight[channel]), self.units_per_channel  # (b, s)
        member = torch.nn.functional.one_hot(_cluster(contributions, k, self.seed), k)  # (b, k)
        sizes = member.sum(0)
        order = sizes.argsort(descending=True, stable=True)
        shares = member.to(contributions) / sizes.clamp(min=1)
        return (shares.T @ contributions)[order], sizes[order]

    def encode(self, recording: Recording) -> Tensor:
        """Return a channel's activation above its mean in the column of its nearest cluster, (t, c * k); else 0."""
        matrix = self.learned("matrix_").to(recording.sources)
        nearness = recording.sources @ matrix - self.offset_.to(matrix)
        nearest = nearness.unflatten(1, (-1, self.units_per_channel)).argmax(2)  # (t, c)
        gates = torch.nn.functional.one_hot(nearest, self.units_per_channel).to(matrix)  # (t, c, k)
        centred = (recording.channels - self.mean_.to(matrix))[:, self._chosen]
        return (gates * centred[:, :, None]).flatten(1)

    def decode(self, units: Tensor) -> Tensor:
        """Return the channels, each the sum of its virtual neurons and its mean; without any, its mean."""
        channels = self.learned("mean_").to(units).repeat(len(units), 1)
        return channels.index_add_(1, self.channels_, units)


class TwoClassSplit(_OfContributions):
    """The split by labels of Hesse et al. (2025, arXiv 2504.12939): a unit for each of two classes, and a residual one.

    Known of the paper: for one polysemantic channel of a CNN and two labelled classes, relevance vectors decide which
    connections go to which class's new channel; the rest goes to a residual unit. The new channels are an inserted
    layer, which is summed again. tau = 0.03, gamma = 0.5, rho is swept.

    We chose: every channel is split, by the classes on which its mean is highest. A source's **relevance** to a class
    is its mean contribution, above its mean over all tokens, on those tokens of the class where the channel is high:
    the highest share **gamma** of them, at least one. Relevance below **tau** times the class's largest counts as 0. A
    source goes to the class with the highest relevance, if its relevance to each other class is at most **rho** times
    as large; all other sources go to the residual unit. This is a partition.

    The units are the class units; the residual unit is not one of them (as unit 0 is none of ELUDe's), so
    `decode` needs the recording.

    Parameters
    ----------
    weight, bias, kernel
        W (d, s * kernel) and bias (d,) of the site, and its kernel positions.
    tau, gamma, rho
        As above, each in [0, 1].

    Attributes
    ----------
    routes_
        (d, s), uint8: 0 is the residual unit, 1 and up a channel's classes.
    classes_
        The classes of each channel, (d, g), as numbers into ``class_names_``, in the order of its units.
    n_groups_
        g, how many classes a channel has: 2.

    Examples
    --------
    >>> sources = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 1.0], [0.0, 0.0, 0.0]])
    >>> channels = sources.sum(1, keepdim=True)
    >>> seen = Recording(channels, sources, 0 * channels, torch.arange(3), torch.zeros(3))
    >>> split = TwoClassSplit(torch.ones(1, 3)).fit(seen, ["cat", "dog", "sky"])
    >>> split.routes_.tolist(), [split.class_names_[i] for i in split.classes_[0]]
    ([[2, 1, 0]], ['dog', 'cat'])
    """

    needs_labels = True
    overlapping = False

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        kernel: int = 1,
        *,
        tau: float = 0.03,
        gamma: float = 0.5,
        rho: float = 0.8,
        name: str = "two-class split",
    ) -> None:
        super().__init__(weight, bias, kernel, name=name)
        self.tau, self.rho = check_fraction("tau", tau), check_fraction("rho", rho)
        self.gamma, self.n_groups = check_fraction("gamma", gamma), 2
        self.class_names_: tuple[Any, ...] = ()

    def fit(self, recording: Recording, labels: Sequence[Any] | None = None) -> Self:
        """See `Method.fit`; needs a label for each token, and at least two classes."""
        channels, sources = self._checked(recording)
        if labels is None:
            raise ValueError(f"{self.name!r} needs labels, one a token.")
        codes, names = as_codes(labels, len(channels), classes=2, of="tokens")
        members = [codes == code for code in range(len(names))]
        self.class_names_, self.n_groups_ = tuple(names), min(self.n_groups, len(names))
        means = torch.stack([channels[mine].mean(0) for mine in members], 1)  # (d, classes)
        self.classes_ = means.topk(self.n_groups_, dim=1).indices
        self.mean_ = sources.mean(0)
        high = [self._high_tokens(channels, mine) for mine in members]
        size = max(1, _CONTRIBUTIONS_AT_ONCE // (self.n_groups_ * sources.shape[1]))
        chunks = torch.arange(len(self.weight)).split(size)
        self.routes_ = torch.cat([self._routes(self._relevance(sources, high, chunk)) for chunk in chunks])
        self.matrix_ = self._matrix()
        return self

    def _high_tokens(self, channels: Tensor, of_class: Tensor) -> Tensor:
        """Return the tokens of a class where each channel is highest, (gamma of the class's tokens, d)."""
        mine = of_class.nonzero().flatten()
        best: Tensor = mine[channels[mine].topk(max(1, round(self.gamma * len(mine))), dim=0).indices]
        return best

    def _relevance(self, sources: Tensor, high: list[Tensor], chunk: Tensor) -> Tensor:
        """Return the relevance of all sources to the classes of some channels, (c, g, s)."""
        shares = sources.new_zeros(len(chunk), self.n_groups_, len(sources))
        for row, channel in enumerate(chunk.tolist()):
            for group, number in enumerate(self.classes_[channel].tolist()):
                shares[row, group, high[number][:, channel]] = 1 / len(high[number])
        return self._sum_kernel((shares @ sources - self.mean_) * self.weight[chunk][:, None])

    def _routes(self, relevance: Tensor) -> Tensor:
        """Return the class of each source, (c, s), from the relevances (c, g, s); 0 is the residual."""
        relevant = relevance >= self.tau * relevance.amax(2, keepdim=True)
        counted = (relevance * relevant).clamp(min=0)
        best, winner = counted.max(1)
        second = counted.scatter(1, winner[:, None], 0).amax(1)
        return ((winner + 1) * ((best > 0) & (second <= self.rho * best))).to(torch.uint8)

    def _matrix(self) -> Tensor:
        """Return the weights of all class units, (s * kernel, d * g); with overlap, residual sources are in each."""
        matrix = self.weight.new_zeros(self.weight.shape[1], len(self.weight), self.n_groups_)
        for group in range(self.n_groups_):
            mine = (self.routes_ == group + 1) | (self.overlapping & (self.routes_ == 0))
            matrix[:, :, group] = (self.weight * self._repeat_kernel(mine)).T
        return matrix.flatten(1)

    def size_in_bytes(self) -> int:
        """Return the memory of the routes (one byte a contribution); the weights are the model's."""
        return self.learned("routes_").nbytes

    def residual(self, recording: Recording) -> Tensor:
        """Return the residual unit of each channel, without bias and entering, (t, d)."""
        mine = self._repeat_kernel(self.learned("routes_") == 0)
        return recording.sources @ (self.weight * mine).to(recording.sources).T

    def encode(self, recording: Recording) -> Tensor:
        """Return the class units less their means over the fit, (t, d * g); those of one channel are adjacent."""
        matrix = self.learned("matrix_").to(recording.sources)
        return recording.sources @ matrix - self.mean_.to(matrix) @ matrix

    def decode(self, units: Tensor, recording: Recording | None = None) -> Tensor:
        """Return the channels (t, d): the sum of units (t, d * g), residual units, bias and entering.

        Raises
        ------
        ValueError
            Without the recording that the units are from, which has the rest.
        """
        matrix = self.learned("matrix_").to(units)
        if recording is None:
            raise ValueError(f"The units of {self.name!r} lack the residual; use decode(units, recording).")
        return self._merged(units + self.mean_.to(units) @ matrix, recording)

    def reconstruct(self, recording: Recording) -> Tensor:
        """Return the channels (t, d) as the inserted layer would, without centring, in the recording's dtype."""
        matrix = self.learned("matrix_").to(recording.sources)
        return self._merged(recording.sources @ matrix, recording)

    def _merged(self, units: Tensor, recording: Recording) -> Tensor:
        sums = units.unflatten(1, (-1, self.n_groups_)).sum(2)
        surplus = self.n_groups_ - 1 if self.overlapping else -1  # how often the residual is to be subtracted
        merged: Tensor = sums - surplus * self.residual(recording) + self.bias.to(sums) + recording.entering
        return merged


class OverlappingGroups(TwoClassSplit):
    """The split for n classes: groups overlap in the residual's sources, and the merge subtracts the surplus.

    Known of it: a public precursor of ELUDe splits a channel into up to 122 groups that share sources, merged as ``sum
    of groups - (n - 1) * residual``; it measured 98.66 % equal top-1 on a ViT-B/16.

    We chose: the classes and routes of `TwoClassSplit`, with n classes. Each group has its own sources and all of the
    residual's. In exact arithmetic the merge is the channel; in floating point large terms cancel. `reconstruct` uses
    that arithmetic in the recording's dtype, and `merge_error` measures the rounding error.

    Parameters
    ----------
    weight, bias, kernel, tau, gamma, rho
        As in `TwoClassSplit`.
    n_groups
        n: the classes on which a channel's mean is highest, up to 255; with fewer classes, all of them.
    """

    overlapping = True

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        kernel: int = 1,
        *,
        n_groups: int = 8,
        name: str = "overlapping groups",
        **thresholds: float,
    ) -> None:
        super().__init__(weight, bias, kernel, name=name, **thresholds)
        self.n_groups = check_count("n_groups", n_groups, 2, 255)  # routes are kept as bytes


def merge_error(method: Method, recording: Recording) -> float:
    """Return the largest absolute difference between recorded channels and a reconstruction of them; 0 is best."""
    return float((method.reconstruct(recording) - recording.channels).abs().max())


def _cluster(points: Tensor, groups: int, seed: int) -> Tensor:
    """Group a few points (b, s) by k-means; return groups (b,), some of them empty if points coincide."""
    from sklearn.cluster import KMeans

    # Points with the same products have the same distances: b coordinates a point instead of thousands.
    centred = points - points.mean(0)
    squares, directions = np.linalg.eigh((centred @ centred.T).double().numpy())
    with quiet():  # about fewer distinct points than groups
        fitted = KMeans(groups, n_init=3, random_state=seed).fit(directions * np.sqrt(squares.clip(min=0)))  # (b, b)
    return torch.from_numpy(fitted.labels_).long()
