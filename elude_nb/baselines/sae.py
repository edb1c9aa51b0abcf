"""Sparse autoencoders of our own: TopK, Matryoshka, and a transcoder; `overcomplete` has the other kinds.

Letters: ``t`` tokens, ``d`` channels, ``s`` sources, ``u`` units (the latents), ``b`` tokens of a batch.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from elude_nb._util.checks import check_count, check_fraction, check_kind
from elude_nb._util.files import load_result, save_result
from elude_nb.baselines.base import Method
from elude_nb.baselines.sae_training import (
    Training,
    Weights,
    batches,
    check_positive,
    finite,
    keep_strongest,
    squared_error,
    train,
)
from elude_nb.core.recording import Recording
from elude_nb.errors import StoreError

_KIND = "sparse autoencoder"
_TOKENS_AT_ONCE = 4096  # encoded at once: there are several copies of the latents meanwhile


class SparseAutoencoder(Method):
    """The base of all kinds: units ``z = active((x - c) E + b)``, channels ``x = z D + c``.

    For the training, tokens are centred by their mean and scaled to a mean length of 1; afterwards this is folded into
    the weights, so that units and decoded channels are on the channels' own scale. Training is in float32.

    Parameters
    ----------
    width
        How many latents, u.
    k
        How many of them are active at a token in training.
    name
        As it is shown in tables.
    **training
        The settings of `elude_nb.baselines.sae_training.Training`.

    Attributes
    ----------
    encoder_, bias_, decoder_, centre_
        E (d, u), b (u,), D (u, d) with rows of length 1, c (d,).
    scale_
        Mean length of the centred tokens.
    """

    learns: tuple[str, ...] = Weights._fields
    own_settings: tuple[str, ...] = ("k",)
    encoder_: Tensor
    bias_: Tensor
    decoder_: Tensor
    centre_: Tensor
    scale_: float

    def __init__(self, width: int, k: int, *, name: str | None = None, **training: Any) -> None:
        check_kind("name", name, str | None, "text")
        self.name, self.width = name or self.name, check_count("width", width)
        self.training, self.k = Training(**training), check_count("k", k, 1, width)

    @abstractmethod
    def activate(self, values: Tensor) -> Tensor:
        """Return the latents in training, (b, u), from their values before the choice of active ones, (b, u)."""

    def values(self, inputs: Tensor, weights: Weights) -> Tensor:
        """Return the latents before the choice of active ones, from inputs (b, d) to (b, u)."""
        return torch.addmm(weights.bias, inputs - weights.centre, weights.encoder)

    def loss(self, targets: Tensor, latents: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
        """Return the loss of a batch (b, d), its mean squared error; and the residual, (b, d)."""
        left = targets - weights.decode(latents)
        return squared_error(left), left

    def choose(self, values: Tensor) -> Tensor:
        """Return the latents after training, (t, u), from their values before the choice of active ones, (t, u)."""
        return self.activate(values)

    def settings(self) -> dict[str, Any]:
        """Return the arguments that make this autoencoder again."""
        own = {name: getattr(self, name) for name in self.own_settings}
        return {**own, "width": self.width, **asdict(self.training), "name": self.name}

    def fit(self, recording: Recording, labels: Sequence[Any] | None = None) -> Self:  # noqa: ARG002 - needs none
        """Train on the channels (t, d) of a recording.

        Raises
        ------
        ValueError
            If there are fewer tokens than latents or fewer than two images, all tokens are the same, a value is not
            finite, or the loss diverges because of a high learning rate.
        """
        channels = finite(_checked(recording).channels, "channels")
        weights, _, (mean, scale) = train(self, channels, channels, recording.images)
        self.encoder_, self.decoder_, self.scale_ = weights.encoder, weights.decoder, scale
        self.bias_, self.centre_ = scale * weights.bias, mean + scale * weights.centre
        return self

    def encode(self, recording: Recording) -> Tensor:
        """See `Method.encode`; units are 0 or above, in the dtype of the recording."""
        nothing = recording.channels.new_empty(0, len(self.learned("bias_")))
        weights = Weights(*(self.learned(f"{name}_") for name in Weights._fields))
        parts = recording.parts(_TOKENS_AT_ONCE)
        return torch.cat(
            [nothing, *(self.choose(self.values(self._inputs(part), weights)).to(nothing) for part in parts)]
        )

    def decode(self, units: Tensor) -> Tensor:
        """See `Method.decode`."""
        decoder = self.learned("decoder_")
        return torch.addmm(self.centre_, units.float(), decoder).to(units.dtype)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the fitted autoencoder to one safetensors file, atomically; return its path."""
        tensors = {name: self.learned(f"{name}_") for name in self.learns}
        about = {"class": type(self).__name__, "settings": self.settings(), "scale": self.scale_}
        return save_result(path, _KIND, tensors, about)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote; ``SparseAutoencoder.load`` reads any kind.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        StoreError
            If the file is damaged, or holds something else.
        """
        tensors, manifest = load_result(path, _KIND)
        found = str(manifest.get("class"))
        kind = _KINDS.get(found)
        if kind is None or not issubclass(kind, cls):
            raise StoreError(f"{str(path)!r} holds a {found!r}, not a {cls.__name__!r}; load it with its own class.")
        try:
            made = kind(**manifest["settings"])
            made._check(tensors)
            made.scale_ = check_positive("scale", manifest["scale"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{str(path)!r} holds no complete {found!r} ({error}); save it again.") from error
        for name in made.learns:
            setattr(made, f"{name}_", tensors[name])
        return made

    def _check(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise unless all weights are there, finite, and fit each other and the settings."""
        u, d = self.width, tensors["centre"].numel()
        shapes = {"encoder": (self._width_of_inputs(tensors), u), "bias": (u,), "decoder": (u, d), "centre": (d,)}
        for name in self.learns:
            found, expected = tuple(tensors[name].shape), shapes.get(name, ())
            if found != expected:
                raise ValueError(f"{name} has shape {found}, not {expected}")
            if tensors[name].dtype != torch.float32 or not bool(tensors[name].isfinite().all()):
                raise ValueError(f"{name} holds other than finite float32 numbers")

    def _width_of_inputs(self, tensors: Mapping[str, Tensor]) -> int:
        return tensors["centre"].numel()

    def _inputs(self, recording: Recording) -> Tensor:
        return finite(recording.channels, "channels", len(self.encoder_), self.name)


class TopK(SparseAutoencoder):
    """The ``k`` largest latents of each token are active (Gao et al. 2024, arXiv 2406.04093).

    The settings after ``k`` are those of `SparseAutoencoder`.

    Examples
    --------
    >>> tokens = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    >>> none = torch.zeros(60, 0)
    >>> recording = Recording(tokens, none, torch.zeros(60, 8), torch.arange(60), torch.zeros(60))
    >>> autoencoder = TopK(width=16, k=3, steps=20).fit(recording)
    >>> units = autoencoder.encode(recording)
    >>> units.shape, int((units > 0).sum(1).max())
    (torch.Size([60, 16]), 3)
    """

    name = "TopK SAE"

    def activate(self, values: Tensor) -> Tensor:
        """Return the ``k`` largest of each token where they are positive, and 0 elsewhere, (b, u)."""
        return keep_strongest(values, self.k)


class Matryoshka(SparseAutoencoder):
    """Nested autoencoders: the first latents also reconstruct by themselves (Bussmann et al. 2025, arXiv 2503.17547).

    The loss is the mean error over nested prefixes of the latents, so early latents become general and late ones
    specific. In training the ``k b`` largest latents of a whole batch are active (BatchTopK, arXiv 2412.06410), later
    those above ``threshold_``: the smallest active latent of a batch, mean over batches.

    Parameters
    ----------
    prefixes
        Shares of the latents, increasing, the last one 1; powers of two are our choice. The other settings are those
        of `SparseAutoencoder`.
    """

    name = "Matryoshka SAE"
    own_settings = ("k", "prefixes")
    learns = (*SparseAutoencoder.learns, "threshold")
    threshold_: Tensor

    def __init__(
        self, width: int, k: int, *, prefixes: Sequence[float] = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0), **training: Any
    ) -> None:
        super().__init__(width, k, **training)
        self.prefixes = tuple(check_fraction("prefixes", share) for share in prefixes)
        if list(self.prefixes) != sorted({*self.prefixes, 1.0}) or not self.prefixes[0]:
            raise ValueError(f"prefixes={self.prefixes} must increase from above 0 to 1.")

    def activate(self, values: Tensor) -> Tensor:
        """Return the ``k b`` largest of the batch where they are positive, and 0 elsewhere, (b, u)."""
        return keep_strongest(values.reshape(1, -1), self.k * len(values)).view_as(values)

    def choose(self, values: Tensor) -> Tensor:
        """Return the latents above the threshold, and 0 elsewhere, (t, u)."""
        return values.relu() * (values >= self.learned("threshold_"))

    def loss(self, targets: Tensor, latents: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
        """Return the mean squared error, mean over prefixes; and the residual of all latents, (b, d)."""
        left, start, errors = targets - weights.centre, 0, []
        for end in self.ends():
            left = left - latents[:, start:end] @ weights.decoder[start:end]
            errors.append(squared_error(left))
            start = end
        return torch.stack(errors).mean(), left

    def ends(self) -> list[int]:
        """Return how many latents each prefix has, increasing, the last one all."""
        return sorted({max(1, round(share * self.width)) for share in self.prefixes})

    def fit(self, recording: Recording, labels: Sequence[Any] | None = None) -> Self:
        """See `SparseAutoencoder.fit`; the threshold is estimated at the end."""
        super().fit(recording, labels)
        size = min(self.training.batch_size, len(recording))
        drawn = batches(len(recording), size, torch.Generator().manual_seed(self.training.seed))
        weights = Weights(self.encoder_, self.bias_, self.decoder_, self.centre_)
        smallest = [torch.zeros(0)]
        for _ in range(len(recording) // size):
            active = self.activate(self.values(recording.channels[next(drawn)].float(), weights))
            smallest += [active[active > 0].min()[None]] if bool((active > 0).any()) else []
        self.threshold_ = torch.cat(smallest).mean().nan_to_num(0)
        return self


class Transcoder(TopK):
    """From the sources of a layer to its channels, by few latents: ``h = z D + c``, ``z`` of the sources.

    A sparse stand-in for the layer itself (Dunefsky et al. 2024, arXiv 2406.11944; at ``blocks.11.mlp.fc2`` as in
    arXiv 2605.31304: fc2's input to its output), with ``k`` active latents a token. The settings are those of `TopK`.

    Attributes
    ----------
    encoder_, bias_, decoder_, centre_
        E (s * kernel, u), b (u,), D (u, d) with rows of length 1, c (d,): ``z = top_k(q E + b)``.
    """

    name = "transcoder"
    needs_sources = True

    def values(self, inputs: Tensor, weights: Weights) -> Tensor:
        """Return the latents before the choice of active ones, from sources (b, s) to (b, u)."""
        return torch.addmm(weights.bias, inputs, weights.encoder)

    def fit(self, recording: Recording, labels: Sequence[Any] | None = None) -> Self:  # noqa: ARG002 - needs none
        """Train on the sources and channels of a recording; raises as `SparseAutoencoder.fit` does."""
        targets = finite(_checked(recording).channels, "channels")
        inputs = finite(recording.sources, "sources")
        weights, (middle, spread), (mean, scale) = train(self, inputs, targets, recording.images)
        self.encoder_, self.decoder_, self.scale_ = weights.encoder * (scale / spread), weights.decoder, scale
        self.bias_, self.centre_ = scale * weights.bias - middle @ self.encoder_, mean + scale * weights.centre
        return self

    def _width_of_inputs(self, tensors: Mapping[str, Tensor]) -> int:
        return len(tensors["encoder"])

    def _inputs(self, recording: Recording) -> Tensor:
        return finite(recording.sources, "sources", len(self.encoder_), self.name)


_KINDS: dict[str, type[SparseAutoencoder]] = {kind.__name__: kind for kind in (TopK, Matryoshka, Transcoder)}


def _checked(recording: Recording) -> Recording:
    check_kind("recording", recording, Recording, "a Recording, such as split.recording(images)")
    return recording
