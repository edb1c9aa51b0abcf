"""The parents: PURE's virtual neurons, and the split by labelled classes of Hesse et al. with its form for n groups.

All are **reconstructions**, written from short descriptions: neither the papers' full texts nor their authors' code was
at hand. Each class says what is known of the paper and what was chosen.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from elude_nb._util.checks import check_count, check_fraction, check_kind
from elude_nb.baselines.base import Method
from elude_nb.baselines.linear import tokens_of
from elude_nb.core.recording import Recording

_CONTRIBUTIONS_AT_ONCE = 1 << 24  # 64 MB of float32, a few times over


class _Parent(Method):
    """What works on contributions: keeps the site's weights, which are the model's and so not counted in its size."""

    needs_sources = True

    def __init__(self, weight: Tensor, bias: Tensor | None, kernel: int, *, name: str) -> None:
        self.name, self.kernel = name, check_count("kernel", kernel)
        check_kind("weight", weight, Tensor, "a tensor; Site.weight(network) gives it")
        check_kind("bias", bias, Tensor | None, "a tensor or None; Site.bias(network) gives it")
        self.weight, self.bias = weight, weight.new_zeros(len(weight)) if bias is None else bias
        if weight.ndim != 2 or weight.shape[1] % kernel or self.bias.shape != weight.shape[:1]:
            raise ValueError(
                f"weight must be (d, s * kernel) and bias (d,) with kernel={kernel}, not {tuple(weight.shape)} and "
                f"{tuple(self.bias.shape)}; Site.weight(network) and Site.bias(network) give them."
            )

    def size_in_bytes(self) -> int:
        """See `Method.size_in_bytes`; weight and bias are the model's and are not counted."""
        return super().size_in_bytes() - self.weight.nbytes - self.bias.nbytes

    def _seen(self, recording: Recording) -> tuple[Tensor, Tensor]:
        """Return channels (t, d) and sources (t, s * kernel) to fit on; raise if they are not those of the site."""
        channels, sources = tokens_of(recording), recording.sources
        if (channels.shape[1], sources.shape[1]) != tuple(self.weight.shape):
            raise ValueError(
                f"The recording has {channels.shape[1]} channels and {sources.shape[1]} sources, the weight is "
                f"{tuple(self.weight.shape)}; record the site that the weight is of, with its sources."
            )
        if not sources.isfinite().all():
            raise ValueError("The recorded sources hold NaN or infinite values; look at the model and its input.")
        return channels, sources

    def _summed(self, products: Tensor) -> Tensor:
        """Add up the kernel positions of each source: (..., s * kernel) to (..., s)."""
        if self.kernel == 1:  # a copy of all products would take longer than the rest
            return products
        summed: Tensor = products.unflatten(-1, (-1, self.kernel)).sum(-1)
        return summed

    def _repeated(self, per_source: Tensor) -> Tensor:
        """Give each kernel position what its source has: (..., s) to (..., s * kernel)."""
        return per_source.repeat_interleave(self.kernel, dim=-1)


class VirtualNeurons(_Parent):
    """PURE (Dreyer et al. 2024, arXiv 2404.06453): clusters of a channel's best tokens by attribution, as gates.

    Known of the paper: the attributions of the layer before, on the samples that activate a neuron most (the top 100),
    are clustered by k-means; a virtual neuron is the neuron where a sample's attributions are nearest to its cluster.

    We chose: tokens as samples; contributions ``W[j, i] a[i]`` as attributions (the kernel positions of a source added
    up); the channel's activation above its mean over the fit. The virtual neurons of a channel add up to the channel,
    but none of them is a sum of contributions: which one speaks is decided anew at each token. They are read beside the
    model.

    Parameters
    ----------
    weight, kernel
        W (d, s * kernel) of the site, and its kernel positions.
    bias
        Taken so that all parents are made alike, and not needed here.
    units
        Virtual neurons of a channel, k.
    strongest
        How many tokens, those on which a channel is highest, are clustered.
    channels
        Which channels get virtual neurons; by default all.
    seed
        Of the clustering.

    Attributes
    ----------
    channels_
        The channel of each unit, (c * k,); those of one channel stand together, the largest cluster first. A channel
        whose best tokens are all alike has units that are 0 everywhere.

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
        units: int = 2,
        strongest: int = 100,
        channels: Sequence[int] | None = None,
        seed: int = 0,
        name: str = "virtual neurons",
    ) -> None:
        super().__init__(weight, bias, kernel, name=name)
        self.units, self.seed = check_count("units", units, 2), check_count("seed", seed, 0, 2**32 - 1)
        self.strongest = check_count("strongest", strongest, units)
        chosen = range(len(weight)) if channels is None else channels
        self._chosen = torch.tensor([check_count("channel", number, 0, len(weight) - 1) for number in chosen])
        if len(self._chosen.unique()) < len(self._chosen) or not len(self._chosen):
            raise ValueError(f"channels={channels} must name one channel at least, and none of them twice.")

    def fit(self, recording: Recording, labels: Sequence[Any] | None = None) -> Self:  # noqa: ARG002 - needs none
        """See `Method.fit`; needs as many tokens as a channel gets units."""
        from threadpoolctl import threadpool_limits

        channels, sources = self._seen(recording)
        if len(channels) < self.units:
            raise ValueError(f"{len(channels)} tokens are too few for {self.units} clusters; record more.")
        with threadpool_limits(1):  # on problems this small, threads wait for each other longer than they work
            found = [self._clusters(channels[:, j], sources, j) for j in self._chosen.tolist()]
        centres, sizes = (torch.stack(parts) for parts in zip(*found, strict=True))  # (c, k, s), (c, k)
        self.mean_, self.channels_ = channels.mean(0), self._chosen.repeat_interleave(self.units)
        # |W a - x|^2 = |W a|^2 - 2 a (W x) + |x|^2, and the first term is the same for all clusters x of a channel: two
        # products of matrices find the nearest, and no contribution of any token is ever worked out.
        spread = self._repeated(centres) * self.weight[self._chosen][:, None]
        self.matrix_ = spread.flatten(0, 1).T.contiguous()  # (s * kernel, c * k)
        self.offset_ = (centres.square().sum(2) / 2).masked_fill(sizes == 0, torch.inf).flatten()
        return self

    def _clusters(self, values: Tensor, sources: Tensor, channel: int) -> tuple[Tensor, Tensor]:
        """Cluster one channel's contributions at its best tokens: centres (k, s) and sizes (k,), the largest first."""
        best = values.topk(min(self.strongest, len(values))).indices
        contributions = self._summed(sources[best] * self.weight[channel])  # (b, s)
        member = torch.nn.functional.one_hot(_cluster(contributions, self.units, self.seed), self.units)  # (b, k)
        sizes = member.sum(0)
        order = sizes.argsort(descending=True, stable=True)
        shares = member.to(contributions) / sizes.clamp(min=1)
        return (shares.T @ contributions)[order], sizes[order]

    def encode(self, recording: Recording) -> Tensor:
        """Return a channel's activation above its mean in the column of its nearest cluster, (t, c * k); else 0."""
        matrix = self.learned("matrix_").to(recording.sources)
        nearness = recording.sources @ matrix - self.offset_.to(matrix)
        nearest = nearness.unflatten(1, (-1, self.units)).argmax(2)  # (t, c)
        gates = torch.nn.functional.one_hot(nearest, self.units).to(matrix)  # (t, c, k)
        centred = (recording.channels - self.mean_.to(matrix))[:, self._chosen]
        return (gates * centred[:, :, None]).flatten(1)

    def decode(self, units: Tensor) -> Tensor:
        """Return the channels, each the sum of its virtual neurons and its mean; channels without any: their mean."""
        channels = self.learned("mean_").to(units).repeat(len(units), 1)
        return channels.index_add_(1, self.channels_, units)


class TwoClassSplit(_Parent):
    """The split by labels of Hesse et al. (2025, arXiv 2504.12939): a unit for each of two classes, and a residual one.

    Known of the paper: for one polysemantic channel of a CNN and two labelled classes, relevance vectors decide which
    connections go to which class's new channel; the rest goes to a residual unit. The new channels are an inserted
    layer, which is added up again. tau = 0.03, gamma = 0.5, rho is swept.

    We chose: every channel is split, by the classes on which its mean is highest. A source's **relevance** to a class
    is its mean contribution, above its mean over all tokens, on those tokens of the class on which the channel is high:
    the highest share **gamma** of them, one at least. Relevance below **tau** times the class's largest counts as none.
    A source goes to the class that it is most relevant to, if its relevance to every other is at most **rho** times as
    large; what is relevant to several, or to none, goes to the residual unit. This is a partition.

    The units handed out are the class units; the residual unit, which nobody owns, is not one of them (just as the
    shared unit is none of ELUDe's), so `decode` asks for the recording.

    Parameters
    ----------
    weight, bias, kernel
        W (d, s * kernel) and bias (d,) of the site, and its kernel positions.
    tau, gamma, rho
        See above, each in [0, 1].

    Attributes
    ----------
    routes_
        (d, s), uint8: 0 is the residual unit, 1 and up a channel's classes.
    classes_
        The classes of each channel, (d, g), as numbers into ``class_names_``, in the order of its units.
    groups_
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
        self.gamma, self.groups = check_fraction("gamma", gamma), 2
        self.class_names_: tuple[Any, ...] = ()

    def fit(self, recording: Recording, labels: Sequence[Any] | None = None) -> Self:
        """See `Method.fit`; needs a label for each token and two classes at least."""
        channels, sources = self._seen(recording)
        codes, self.class_names_ = _codes(labels, len(channels), self.name)
        self.groups_ = min(self.groups, len(self.class_names_))
        means = torch.stack([channels[codes == c].mean(0) for c in range(len(self.class_names_))], 1)  # (d, classes)
        self.classes_ = means.topk(self.groups_, dim=1).indices
        self.mean_ = sources.mean(0)
        high = [self._high_tokens(channels, codes == c) for c in range(len(self.class_names_))]
        size = max(1, _CONTRIBUTIONS_AT_ONCE // (self.groups_ * sources.shape[1]))
        chunks = torch.arange(len(self.weight)).split(size)
        self.routes_ = torch.cat([self._routes(self._relevance(sources, high, chunk)) for chunk in chunks])
        self.matrix_ = self._matrix()
        return self

    def _high_tokens(self, channels: Tensor, of_class: Tensor) -> Tensor:
        """Return the tokens of a class on which each channel is highest, (gamma of the class's tokens, d)."""
        mine = of_class.nonzero().flatten()
        best: Tensor = mine[channels[mine].topk(max(1, round(self.gamma * len(mine))), dim=0).indices]
        return best

    def _relevance(self, sources: Tensor, high: list[Tensor], chunk: Tensor) -> Tensor:
        """Return the relevance of all sources to the classes of some channels, (c, g, s)."""
        shares = sources.new_zeros(len(chunk), self.groups_, len(sources))
        for row, channel in enumerate(chunk.tolist()):
            for group, number in enumerate(self.classes_[channel].tolist()):
                shares[row, group, high[number][:, channel]] = 1 / len(high[number])
        return self._summed((shares @ sources - self.mean_) * self.weight[chunk][:, None])

    def _routes(self, relevance: Tensor) -> Tensor:
        """Return which class takes each source, (c, s), from its relevance to each, (c, g, s); 0 is the residual."""
        relevant = relevance >= self.tau * relevance.amax(2, keepdim=True)
        counted = (relevance * relevant).clamp(min=0)
        best, winner = counted.max(1)
        second = counted.scatter(1, winner[:, None], 0).amax(1)
        return ((winner + 1) * ((best > 0) & (second <= self.rho * best))).to(torch.uint8)

    def _matrix(self) -> Tensor:
        """Return the weights of all class units, (s * kernel, d * g); with overlap, residual sources are in each."""
        matrix = self.weight.new_zeros(self.weight.shape[1], len(self.weight), self.groups_)
        for group in range(self.groups_):
            mine = (self.routes_ == group + 1) | (self.overlapping & (self.routes_ == 0))
            matrix[:, :, group] = (self.weight * self._repeated(mine)).T
        return matrix.flatten(1)

    def size_in_bytes(self) -> int:
        """Return the memory of the routes (one byte a contribution): the weights are the model's."""
        return self.learned("routes_").nbytes

    def residual(self, recording: Recording) -> Tensor:
        """Return the residual unit of each channel, without bias and what enters, (t, d)."""
        mine = self._repeated(self.learned("routes_") == 0)
        return recording.sources @ (self.weight * mine).to(recording.sources).T

    def encode(self, recording: Recording) -> Tensor:
        """Return the class units less their means over the fit, (t, d * g); those of one channel stand together."""
        matrix = self.learned("matrix_").to(recording.sources)
        return recording.sources @ matrix - self.mean_.to(matrix) @ matrix

    def decode(self, units: Tensor, recording: Recording | None = None) -> Tensor:
        """Return the channels (t, d) that units (t, d * g) and the rest of the recorded tokens add up to.

        Raises
        ------
        ValueError
            Without the recording that the units are from: residual unit and what enters are not in the units.
        """
        matrix = self.learned("matrix_").to(units)
        if recording is None:
            raise ValueError(f"The units of {self.name!r} lack the residual; use decode(units, recording).")
        return self._merged(units + self.mean_.to(units) @ matrix, recording)

    def reconstruct(self, recording: Recording) -> Tensor:
        """Return the channels (t, d) as the inserted layer would, in the recording's dtype: what rounding costs shows.

        Class units and residual, bias and what enters are added up, without centring.
        """
        matrix = self.learned("matrix_").to(recording.sources)
        return self._merged(recording.sources @ matrix, recording)

    def _merged(self, units: Tensor, recording: Recording) -> Tensor:
        sums = units.unflatten(1, (-1, self.groups_)).sum(2)
        surplus = self.groups_ - 1 if self.overlapping else -1  # how often the residual is in the sum too many times
        merged: Tensor = sums - surplus * self.residual(recording) + self.bias.to(sums) + recording.entering
        return merged


class OverlappingGroups(TwoClassSplit):
    """The form for n groups: they overlap in the residual's sources, and are merged with a cancelling term.

    Known of it: a public precursor of ELUDe splits a channel into up to 122 groups that share sources, merged as ``sum
    of groups - (n - 1) * residual``; it measured 98.66 % equal top-1 on a ViT-B/16.

    We chose: the classes and routes of `TwoClassSplit`, with n classes. Each group has its own sources and all of the
    residual's. In exact arithmetic the merge is the channel; in floating point large terms cancel. `reconstruct` does
    just that arithmetic in the recording's dtype, and `merge_error` measures it, to be held against a partition's.

    Parameters
    ----------
    weight, bias, kernel, tau, gamma, rho
        As in `TwoClassSplit`.
    groups
        n: the classes on which a channel's mean is highest, up to 255; with fewer classes, all of them.
    """

    overlapping = True

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        kernel: int = 1,
        *,
        groups: int = 8,
        name: str = "overlapping groups",
        **thresholds: float,
    ) -> None:
        super().__init__(weight, bias, kernel, name=name, **thresholds)
        self.groups = check_count("groups", groups, 2, 255)  # routes are kept as bytes


def merge_error(method: Method, recording: Recording) -> float:
    """Return the largest absolute difference between recorded channels and a reconstruction of them; 0 is best."""
    return float((method.reconstruct(recording) - recording.channels).abs().max())


def _codes(labels: Sequence[Any] | None, tokens: int, name: str) -> tuple[Tensor, tuple[Any, ...]]:
    """Return labels as whole numbers (t,) and the names that they stand for, in sorted order."""
    if labels is None:
        raise ValueError(f"{name!r} needs labels, one a token.")
    if len(labels) != tokens:
        raise ValueError(f"{len(labels)} labels were given for {tokens} tokens; give one each.")
    codes, names = pd.factorize(pd.Series(list(labels)), sort=True)
    if (codes < 0).any():
        raise ValueError(f"{int((codes < 0).sum())} labels are missing; leave those tokens out.")
    if len(names) < 2:
        raise ValueError(f"Two classes are needed at least; the labels have only {list(names)}.")
    return torch.from_numpy(codes.astype("int64")), tuple(names)


def _cluster(points: Tensor, groups: int, seed: int) -> Tensor:
    """Group a few points (b, s) by k-means; return groups (b,), some of them empty if points coincide."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    # Points with the same products have the same distances: b numbers a point do instead of thousands.
    centred = points - points.mean(0)
    squares, turned = np.linalg.eigh((centred @ centred.T).double().numpy())
    places = turned * np.sqrt(squares.clip(min=0))  # (b, b)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct points than groups is no fault
        fitted = KMeans(groups, n_init=3, random_state=seed).fit(places)
    return torch.from_numpy(fitted.labels_).long()
