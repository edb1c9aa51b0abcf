"""Linear baselines: channels, hidden units, PCA, ICA, NMF and k-means directions, all on recorded channels (t, d).

Units are sorted by the variance that they explain, or by how many tokens belong to them, the largest first.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from elude_nb._util.checks import check_count, check_kind
from elude_nb._util.words import counted
from elude_nb.baselines.base import Method, both_signs, one_sign
from elude_nb.core.clustering import cluster_directions
from elude_nb.core.recording import Recording
from elude_nb.scores.fidelity import ridge

MAX_SEED = 2**32 - 1  # of scikit-learn
_RIDGE = 1e-3  # of the hidden units' mean sum of squares


class Channels(Method):
    """The channels as they are, with both signs: units 1 to c are ``h - mean``, units c + 1 to 2 c their negatives.

    Parameters
    ----------
    n_units
        Keep the ``n_units // 2`` channels of the largest variance (an odd number is rounded down); by default all.

    Examples
    --------
    >>> channels = torch.tensor([[0.0, 1.0], [3.0, 2.0], [6.0, 1.5]])
    >>> seen = Recording(channels, channels, 0 * channels, torch.arange(3), torch.zeros(3))
    >>> Channels(n_units=2).fit(seen).encode(seen).tolist()
    [[-3.0, 3.0], [0.0, -0.0], [3.0, -3.0]]
    """

    lossless = True

    def __init__(self, n_units: int | None = None, *, name: str = "channels") -> None:
        self.name = name
        self.n_units = None if n_units is None else check_count("n_units", n_units, 2)

    def fit(self, recording: Recording, labels: Sequence[Any] | None = None) -> Self:  # noqa: ARG002 - needs none
        """See `Method.fit`."""
        channels = tokens_of(recording)
        self.mean_ = channels.mean(0)
        self.kept_ = _strongest(channels, None if self.n_units is None else self.n_units // 2)
        return self

    def encode(self, recording: Recording) -> Tensor:
        """See `Method.encode`; 0 is a channel's mean over the fit."""
        kept = self.learned("kept_")
        return both_signs((recording.channels - self.mean_)[:, kept])

    def decode(self, units: Tensor) -> Tensor:
        """Return the channels, up to the rounding of one subtraction; those that were not kept have their mean."""
        kept = self.learned("kept_")
        channels = self.mean_.to(units).repeat(len(units), 1)
        channels[:, kept] += one_sign(units)
        return channels


class HiddenUnits(Method):
    """The hidden units of the last layer before the site, as they are: the usual neurons.

    Parameters
    ----------
    columns
        Which sources they are.
    n_units
        Keep so many, those of the largest variance; by default all.

    Examples
    --------
    >>> sources = torch.tensor([[0.0, 1.0, 5.0], [3.0, 2.0, 7.0], [6.0, 1.5, 0.0]])
    >>> seen = Recording(sources[:, :1] - sources[:, 1:2], sources, torch.zeros(3, 1), torch.arange(3), torch.zeros(3))
    >>> HiddenUnits(slice(0, 2), n_units=1).fit(seen).encode(seen).tolist()
    [[0.0], [3.0], [6.0]]
    """

    lossless = True
    needs_sources = True

    def __init__(self, columns: slice, n_units: int | None = None, *, name: str = "hidden units") -> None:
        check_kind("columns", columns, slice, "a slice of the sources")
        self.name, self.columns = name, columns
        self.n_units = None if n_units is None else check_count("n_units", n_units)

    def fit(self, recording: Recording, labels: Sequence[Any] | None = None) -> Self:  # noqa: ARG002 - needs none
        """See `Method.fit`; also raises if the recording has no sources in these columns."""
        channels, hidden = tokens_of(recording), self._hidden(recording)
        self.kept_ = _strongest(hidden, self.n_units)
        self.mean_, self.hidden_mean_ = channels.mean(0), hidden[:, self.kept_].mean(0)
        inputs = hidden[:, self.kept_] - self.hidden_mean_
        strength = _RIDGE * float(inputs.double().square().sum(0).mean())
        self.map_ = ridge(inputs, channels - self.mean_, strength or 1.0)  # 0 if nothing varies: any strength will do
        return self

    def encode(self, recording: Recording) -> Tensor:
        """See `Method.encode`; the units are not centred."""
        kept = self.learned("kept_")
        return self._hidden(recording)[:, kept]

    def decode(self, units: Tensor) -> Tensor:
        """Return the channels that a ridge regression predicts from the units."""
        matrix = self.learned("map_").to(units)
        return (units - self.hidden_mean_.to(units)) @ matrix + self.mean_.to(units)

    def _hidden(self, recording: Recording) -> Tensor:
        hidden = recording.sources[:, self.columns]
        if not hidden.shape[1]:
            raise ValueError(f"{self.columns} selects none of {recording.sources.shape[1]} sources; record them.")
        return hidden


class _Projection(Method):
    """Units that are projections with both signs: ``units = ±(h - mean) P``, and back ``h = units Q + mean``."""

    def __init__(self, n_units: int, *, seed: int, name: str) -> None:
        self.name, self.seed = name, check_count("seed", seed, 0, MAX_SEED)
        self.n_units = check_count("n_units", n_units, 2)

    def encode(self, recording: Recording) -> Tensor:
        """See `Method.encode`; 0 is the mean over the fit."""
        matrix = self.learned("project_").to(recording.channels)
        return both_signs((recording.channels - self.mean_.to(matrix)) @ matrix)

    def decode(self, units: Tensor) -> Tensor:
        """Return the channels that the components sum to, around the mean of the fit."""
        return one_sign(units) @ self.learned("back_").to(units) + self.mean_.to(units)

    def _principal(self, channels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the principal directions (c, d) in float64 and the variances along them (c,), the largest first.

        Directions along which tokens vary only by rounding are left out, since they cannot be whitened.
        """
        from sklearn.decomposition import PCA as Decomposition  # noqa: N811 - the name is taken here

        self.mean_ = channels.mean(0)
        count = min(self.n_units // 2, *channels.shape)
        found = Decomposition(count, random_state=self.seed).fit(channels.double().numpy())
        variances, directions = torch.from_numpy(found.explained_variance_), torch.from_numpy(found.components_)
        real = variances > variances.amax() * torch.finfo(channels.dtype).eps
        self.explained_ = torch.from_numpy(found.explained_variance_ratio_)[real]
        return directions[real], variances[real]


class PCA(_Projection):
    """Principal components, each with both signs: ``n_units // 2``, or as many as tokens and channels allow.

    Parameters
    ----------
    n_units
        How many units; an odd number is rounded down.
    seed
        Of the randomised solver that scikit-learn uses for large tables.

    Attributes
    ----------
    explained_
        The share of variance that each component explains, (c,), the largest first.

    Examples
    --------
    >>> channels = torch.tensor([[0.0, 1.0], [4.0, 1.0], [0.0, 3.0], [4.0, 3.0]])
    >>> seen = Recording(channels, channels, 0 * channels, torch.arange(4), torch.zeros(4))
    >>> PCA(4).fit(seen).explained_.tolist()
    [0.8, 0.2]
    """

    def __init__(self, n_units: int = 128, *, seed: int = 0, name: str = "PCA") -> None:
        super().__init__(n_units, seed=seed, name=name)

    def fit(self, recording: Recording, labels: Sequence[Any] | None = None) -> Self:  # noqa: ARG002 - needs none
        """See `Method.fit`."""
        directions, _ = self._principal(tokens_of(recording))
        self.back_ = directions.to(self.mean_)
        self.project_ = self.back_.T.contiguous()
        return self


class ICA(_Projection):
    """Independent components, each with both signs: FastICA (Hyvärinen, 1999) on whitened principal components.

    Units have variance 1; the component that explains most of the channels' variance comes first.

    Parameters
    ----------
    n_units
        How many units, for ``n_units // 2`` components; fewer if tokens or channels do not allow as many.
    iterations
        Of FastICA, at most.
    max_tokens
        Of more tokens, so many are drawn to fit on: time grows with tokens times iterations.
    seed
        Of the draw and the initialisation.

    Attributes
    ----------
    converged_
        Whether FastICA converged within its iterations.
    explained_
        The share of variance of each principal component that was whitened, (c,).

    Examples
    --------
    >>> channels = torch.rand(500, 2, generator=torch.Generator().manual_seed(0)) @ torch.tensor([[2.0, 1], [1, 1]])
    >>> seen = Recording(channels, channels, 0 * channels, torch.arange(500), torch.zeros(500))
    >>> ica = ICA(4).fit(seen)
    >>> ica.converged_, ica.encode(seen).std(0).round(decimals=2).tolist()
    (True, [1.0, 1.0, 1.0, 1.0])
    """

    def __init__(
        self, n_units: int = 128, *, iterations: int = 200, max_tokens: int = 8192, seed: int = 0, name: str = "ICA"
    ) -> None:
        super().__init__(n_units, seed=seed, name=name)
        self.iterations = check_count("iterations", iterations)
        self.max_tokens = check_count("max_tokens", max_tokens, 2)

    def fit(self, recording: Recording, labels: Sequence[Any] | None = None) -> Self:  # noqa: ARG002 - needs none
        """See `Method.fit`."""
        from sklearn.decomposition import FastICA

        channels = _draw(tokens_of(recording), self.max_tokens, self.seed)
        directions, variances = self._principal(channels)
        scale = variances.sqrt()[:, None]
        whiten = (directions / scale).T  # (d, c)
        search = FastICA(whiten=False, max_iter=self.iterations, tol=1e-3, random_state=self.seed)
        with quiet():  # converged_ has it
            search.fit(((channels - self.mean_).double() @ whiten).numpy())
        self.converged_ = search.n_iter_ < self.iterations
        rotation = torch.from_numpy(search.components_)  # (c, c), orthogonal
        back = rotation @ (directions * scale)
        order = back.square().sum(1).argsort(descending=True, stable=True)
        self.project_, self.back_ = (whiten @ rotation.T)[:, order].to(channels), back[order].to(channels)
        return self


class NMF(Method):
    """Non-negative matrix factorisation of the channels' positive and negative parts.

    The parts ``[relu(h - mean), relu(mean - h)]`` (t, 2 d) are not negative, and `decode` takes their difference.
    (CRAFT, arXiv 2211.10154, factorises activations after a ReLU.)

    Parameters
    ----------
    n_units
        How many; at most as many as there are tokens, and twice the channels.
    iterations
        Of coordinate descent when fitting, at most.
    encode_iterations
        When encoding, always so many: then a token's units do not depend on the other tokens.
    max_tokens
        Of more tokens, so many are drawn to fit on: time grows with tokens times iterations.
    seed
        Of the draw and the randomised initialisation.

    Attributes
    ----------
    parts_
        (u, 2 d), none negative; the unit with the largest sum of squares first.
    converged_
        Whether the fit converged within its iterations.

    Examples
    --------
    >>> channels = torch.tensor([[0.0, 1.0], [4.0, 1.0], [0.0, 3.0], [4.0, 3.0]])
    >>> seen = Recording(channels, channels, 0 * channels, torch.arange(4), torch.zeros(4))
    >>> NMF(4).fit(seen).reconstruct(seen).round(decimals=2).tolist()
    [[0.0, 1.0], [4.0, 1.0], [0.0, 3.0], [4.0, 3.0]]
    """

    def __init__(
        self,
        n_units: int = 128,
        *,
        iterations: int = 100,
        encode_iterations: int = 20,
        max_tokens: int = 8192,
        seed: int = 0,
        name: str = "NMF",
    ) -> None:
        self.name, self.seed = name, check_count("seed", seed, 0, MAX_SEED)
        self.n_units, self.iterations = check_count("n_units", n_units), check_count("iterations", iterations)
        self.encode_iterations = check_count("encode_iterations", encode_iterations)
        self.max_tokens = check_count("max_tokens", max_tokens, 2)

    def fit(self, recording: Recording, labels: Sequence[Any] | None = None) -> Self:  # noqa: ARG002 - needs none
        """See `Method.fit`."""
        from sklearn.decomposition import NMF as Decomposition  # noqa: N811 - the name is taken here

        channels = _draw(tokens_of(recording), self.max_tokens, self.seed)
        self.mean_ = channels.mean(0)
        count = min(self.n_units, len(channels), 2 * channels.shape[1])
        found = Decomposition(count, init="nndsvda", max_iter=self.iterations, tol=3e-3, random_state=self.seed)
        with quiet():  # converged_ has it
            units = torch.from_numpy(found.fit_transform(self._halves(channels)))
        self.converged_ = found.n_iter_ < self.iterations
        energy = units.square().mean(0) * torch.from_numpy(found.components_).square().sum(1)
        found.components_ = found.components_[energy.argsort(descending=True, stable=True).numpy()]
        self.parts_ = torch.from_numpy(found.components_)
        self._found = found.set_params(max_iter=self.encode_iterations, tol=0)
        return self

    def encode(self, recording: Recording) -> Tensor:
        """See `Method.encode`."""
        self.learned("parts_")
        return torch.from_numpy(self._found.transform(self._halves(recording.channels))).to(recording.channels)

    def decode(self, units: Tensor) -> Tensor:
        """Return the sum of the positive parts less that of the negative ones, and the mean."""
        above, below = (units @ self.learned("parts_").to(units)).chunk(2, dim=1)
        return above - below + self.mean_.to(units)

    def _halves(self, channels: Tensor) -> np.ndarray[Any, Any]:
        centred = channels.to(self.mean_) - self.mean_
        halves: np.ndarray[Any, Any] = torch.cat([centred.clamp(min=0), (-centred).clamp(min=0)], 1).numpy()
        return halves


class KMeansDirections(Method):
    """The mean directions of groups of tokens, read by cosine: concepts without the contributions of earlier layers.

    k-means on the unit vectors of the centred channels, as for the concept book of `disentangle`; the largest group
    comes first. Tokens in fewer directions than ``n_units`` give fewer groups.

    Parameters
    ----------
    n_units
        How many groups; at most as many as there are tokens.
    seed
        Of the clustering.

    Attributes
    ----------
    directions_
        Mean direction of each group, (u, d), of length 1.
    centres_
        Mean of each group's centred channels, (u, d).

    Examples
    --------
    >>> channels = torch.tensor([[1.0, 0.0], [2.0, 0.0], [-3.0, 0.0]])
    >>> seen = Recording(channels, channels, 0 * channels, torch.arange(3), torch.zeros(3))
    >>> KMeansDirections(2).fit(seen).encode(seen).tolist()
    [[1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]]
    """

    def __init__(self, n_units: int = 128, *, seed: int = 0, name: str = "k-means") -> None:
        self.name, self.seed = name, check_count("seed", seed, 0, MAX_SEED)
        self.n_units = check_count("n_units", n_units)

    def fit(self, recording: Recording, labels: Sequence[Any] | None = None) -> Self:  # noqa: ARG002 - needs none
        """See `Method.fit`."""
        channels = tokens_of(recording)
        self.mean_ = channels.mean(0)
        centred = channels - self.mean_
        count = min(self.n_units, len(centred))
        found = cluster_directions(centred, torch.ones(len(centred)), count, seed=self.seed, careful=True)
        groups, sizes = found.unique(return_inverse=True, return_counts=True)[1:]  # copies can leave groups empty
        order = sizes.argsort(descending=True, stable=True)
        nothing = centred.new_zeros(len(sizes), centred.shape[1])
        self.centres_ = (nothing.index_add(0, groups, centred) / sizes[:, None])[order]
        self.directions_ = normalize(nothing.index_add(0, groups, normalize(centred)))[order]
        return self

    def encode(self, recording: Recording) -> Tensor:
        """Return the cosine of each centred token with each direction, (t, u), in [-1, 1]."""
        directions = self.learned("directions_").to(recording.channels)
        return normalize(recording.channels - self.mean_.to(directions)) @ directions.T

    def decode(self, units: Tensor) -> Tensor:
        """Return the mean channels of the group with the nearest direction (vector quantisation), (t, d)."""
        return self.learned("centres_").to(units)[units.argmax(1)] + self.mean_.to(units)


def tokens_of(recording: Recording) -> Tensor:
    """Return the recorded channels (t, d).

    Raises
    ------
    TypeError
        If it is not a recording.
    ValueError
        If there are fewer than two tokens, all of them are the same, or a value is not finite.
    """
    check_kind("recording", recording, Recording, "a Recording, such as split.recording(images)")
    channels = recording.channels
    if len(channels) < 2:
        raise ValueError(f"{counted(len(channels), 'token')}: too few to fit on; record more images or tokens.")
    if not channels.isfinite().all():
        raise ValueError("The recorded channels hold NaN or infinite values; look at the model and its preprocessing.")
    if torch.equal(channels.amax(0), channels.amin(0)):
        raise ValueError(f"All {len(channels)} tokens have the same channels; record different images or positions.")
    return channels


def _strongest(values: Tensor, count: int | None) -> Tensor:
    """Return the numbers of the ``count`` columns of (t, c) with the largest variance, in that order."""
    return values.var(0).argsort(descending=True, stable=True)[:count]


def _draw(tokens: Tensor, count: int, seed: int) -> Tensor:
    """Return ``count`` of the tokens (t, d), drawn without replacement and in order; all if there are not more."""
    if len(tokens) <= count:
        return tokens
    chosen = np.random.default_rng(seed).choice(len(tokens), count, replace=False)
    return tokens[torch.from_numpy(np.sort(chosen))]


@contextmanager
def quiet() -> Iterator[None]:
    """Ignore scikit-learn's warnings about convergence."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield
