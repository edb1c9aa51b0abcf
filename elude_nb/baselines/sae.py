"""Sparse autoencoders: TopK, BatchTopK, ReLU and Matryoshka, trained here or by other libraries.

Letters: ``t`` tokens, ``d`` channels, ``u`` units (the latents), ``b`` tokens of a batch.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import pandas as pd
import torch
from pandas.api.types import is_bool_dtype, is_numeric_dtype
from torch import Tensor

from elude_nb._util.checks import check_count, check_fraction, check_kind
from elude_nb._util.files import load_result, save_result
from elude_nb.baselines.base import Method
from elude_nb.baselines.sae_files import read_weights
from elude_nb.baselines.sae_training import (
    HISTORY,
    Training,
    Weights,
    auxiliary_loss,
    batches,
    check_positive,
    keep_strongest,
    pre_activation_loss,
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
    history_
        One row for each evaluation on the held-out tokens: ``step``, ``loss`` (mean over the steps since the last one),
        ``held_out_fvu`` (fraction of variance unexplained, about the mean of the tokens trained on; lower is better),
        ``active`` latents a token, ``dead_share`` of the latents, ``seconds``.
    """

    learns: tuple[str, ...] = Weights._fields
    own_settings: tuple[str, ...] = ()
    encoder_: Tensor
    bias_: Tensor
    decoder_: Tensor
    centre_: Tensor
    scale_: float
    history_: pd.DataFrame

    def __init__(self, width: int, *, name: str | None = None, **training: Any) -> None:
        check_kind("name", name, str | None, "text")
        self.name, self.width = name or self.name, check_count("width", width)
        self.training = Training(**training)

    @abstractmethod
    def activate(self, values: Tensor) -> Tensor:
        """Return the latents in training, (b, u), from their values before the choice of active ones, (b, u)."""

    def loss(self, tokens: Tensor, latents: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
        """Return the loss of a batch (b, d), its mean squared error; and the residual, (b, d)."""
        left = tokens - weights.decode(latents)
        return squared_error(left), left

    def revival(self, left: Tensor, values: Tensor, dead: Tensor, weights: Weights) -> Tensor:
        """Return AuxK, which is added to the loss to revive the dead latents."""
        return auxiliary_loss(left, values, dead, weights.decoder)

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
        check_kind("recording", recording, Recording, "a Recording, such as split.recording(images)")
        weights, mean, scale, history = train(self, _finite(recording.channels), recording.images)
        self.encoder_, self.decoder_ = weights.encoder, weights.decoder
        self.bias_, self.centre_ = scale * weights.bias, mean + scale * weights.centre
        self.scale_, self.history_ = scale, history
        return self

    def encode(self, recording: Recording) -> Tensor:
        """See `Method.encode`; units are 0 or above, in the dtype of the recording."""
        nothing = recording.channels.new_empty(0, len(self.learned("bias_")))
        parts = (self.choose(self._values(part)).to(nothing) for part in recording.parts(_TOKENS_AT_ONCE))
        return torch.cat([nothing, *parts])

    def decode(self, units: Tensor) -> Tensor:
        """See `Method.decode`."""
        return self._weights().decode(units.float()).to(units.dtype)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the fitted autoencoder to one safetensors file, atomically; return its path."""
        tensors = {name: self.learned(f"{name}_") for name in self.learns}
        about = {"scale": self.scale_, "history": self.history_.to_dict("list")}
        return save_result(path, _KIND, tensors, {"class": type(self).__name__, "settings": self.settings(), **about})

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
            made._set(tensors, check_positive("scale", manifest["scale"]), _history(manifest["history"]))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{str(path)!r} holds no complete {found!r} ({error}); save it again.") from error
        return made

    @classmethod
    def load_pretrained(
        cls,
        weights: str | os.PathLike[str] | Mapping[str, Tensor],
        *,
        names: Mapping[str, str] | None = None,
        channels: int | None = None,
        centred: bool = True,
        **settings: Any,
    ) -> Self:
        """Return an autoencoder with weights that another library trained, as they are.

        Parameters
        ----------
        weights
            A plain safetensors file, or tensors by name.
        names
            Which tensor is the ``"encoder"``, ``"decoder"``, ``"bias"`` (u,), ``"centre"`` (d,) and ``"threshold"``,
            (u,) or (), where their names are not among the common ones; all other tensors are then ignored.
        channels
            d, where the shapes do not determine which axis it is.
        centred
            Whether the encoder was trained on tokens less the centre (the decoder's bias); files do not contain this.
        **settings
            ``k`` of `TopK` (unless it is in the file), ``name``, and others of the class.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If a tensor is missing or unknown, or its shape does not fit the others.
        """
        found = read_weights(weights, names=names, channels=channels)
        if not centred:  # x E + b = (x - c) E + (b + c E)
            found["bias"] = found["bias"] + found["centre"] @ found["encoder"]
        made = cls(**{"width": found["encoder"].shape[1], **cls._settings_of(found, settings)})
        made._set(found, 1.0, pd.DataFrame(columns=list(HISTORY)))
        return made

    @classmethod
    def _settings_of(cls, tensors: Mapping[str, Tensor], settings: dict[str, Any]) -> dict[str, Any]:
        """Return settings, with those that pretrained weights contain; raise if one is missing."""
        if "threshold" in tensors:
            raise ValueError(
                f"The weights have a threshold, and {cls.__name__} has none; use BatchTopK.load_pretrained."
            )
        return settings

    def _check(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise unless all weights are there, finite, and fit each other and the settings."""
        u, d = self.width, tensors["centre"].numel()
        shapes = {"encoder": (d, u), "bias": (u,), "decoder": (u, d), "centre": (d,), "threshold": (u,)}
        for name in self.learns:
            found = tuple(tensors[name].shape)
            if found != shapes[name] and not (name == "threshold" and found == ()):
                raise ValueError(f"{name} has shape {found}, not {shapes[name]}")
            if tensors[name].dtype != torch.float32 or not bool(tensors[name].isfinite().all()):
                raise ValueError(f"{name} holds other than finite float32 numbers")

    def _set(self, tensors: Mapping[str, Tensor], scale: float, history: pd.DataFrame) -> None:
        for name in self.learns:
            setattr(self, f"{name}_", tensors[name])
        self.scale_, self.history_ = scale, history

    def _weights(self) -> Weights:
        return Weights(*(self.learned(f"{name}_") for name in Weights._fields))

    def _values(self, recording: Recording) -> Tensor:
        weights = self._weights()
        tokens = _finite(recording.channels)
        if tokens.shape[1] != len(weights.centre):
            raise ValueError(
                f"{self.name!r} was fitted on {len(weights.centre):,} channels; this recording has {tokens.shape[1]:,}."
            )
        return weights.values(tokens)


class _KActive(SparseAutoencoder):
    """An autoencoder with ``k`` active latents a token in training."""

    own_settings: tuple[str, ...] = ("k",)

    def __init__(self, width: int, k: int, **training: Any) -> None:
        super().__init__(width, **training)
        self.k = check_count("k", k, 1, width)


class TopK(_KActive):
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

    @classmethod
    def _settings_of(cls, tensors: Mapping[str, Tensor], settings: dict[str, Any]) -> dict[str, Any]:
        if "k" not in tensors and "k" not in settings:
            raise ValueError("How many latents are active at a token is not in the weights; give k=.")
        return {"k": int(tensors["k"]), **settings} if "k" in tensors else settings


class BatchTopK(_KActive):
    """The ``k b`` largest latents of a whole batch are active (Bussmann et al. 2024, arXiv 2412.06410).

    Some tokens have more than ``k``, some fewer. After training, a latent is active above ``threshold_``: the smallest
    active latent of a batch, mean over batches. The settings after ``k`` are those of `SparseAutoencoder`.
    """

    name = "BatchTopK SAE"
    learns = (*SparseAutoencoder.learns, "threshold")
    threshold_: Tensor

    def activate(self, values: Tensor) -> Tensor:
        """Return the ``k b`` largest of the batch where they are positive, and 0 elsewhere, (b, u)."""
        return keep_strongest(values.reshape(1, -1), self.k * len(values)).view_as(values)

    def choose(self, values: Tensor) -> Tensor:
        """Return the latents above the threshold, and 0 elsewhere, (t, u)."""
        return values.relu() * (values >= self.learned("threshold_"))

    def fit(self, recording: Recording, labels: Sequence[Any] | None = None) -> Self:
        """See `SparseAutoencoder.fit`; the threshold is estimated at the end."""
        super().fit(recording, labels)
        size = min(self.training.batch_size, len(recording))
        drawn = batches(len(recording), size, torch.Generator().manual_seed(self.training.seed))
        smallest = [torch.zeros(0)]
        for _ in range(len(recording) // size):
            active = self.activate(self._weights().values(recording.channels[next(drawn)].float()))
            smallest += [active[active > 0].min()[None]] if bool((active > 0).any()) else []
        self.threshold_ = torch.cat(smallest).mean().nan_to_num(0)
        return self

    @classmethod
    def _settings_of(cls, tensors: Mapping[str, Tensor], settings: dict[str, Any]) -> dict[str, Any]:
        if "threshold" not in tensors or bool((tensors["threshold"] < 0).any()):
            raise ValueError(
                "The weights have no threshold, or one below 0 that was never estimated; name it in names, or use "
                "TopK.load_pretrained with k=."
            )
        return {"k": int(tensors["k"]) if "k" in tensors else 1, **settings}  # k is for training only


class Matryoshka(BatchTopK):
    """BatchTopK whose first latents also reconstruct by themselves (Bussmann et al. 2025, arXiv 2503.17547).

    The loss is the mean error over nested prefixes of the latents, so early latents become general and late ones
    specific.

    Parameters
    ----------
    prefixes
        Shares of the latents, increasing, the last one 1; powers of two are our choice. The other settings are those
        of `BatchTopK`.
    """

    name = "Matryoshka SAE"
    own_settings = ("k", "prefixes")

    def __init__(
        self, width: int, k: int, *, prefixes: Sequence[float] = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0), **training: Any
    ) -> None:
        super().__init__(width, k, **training)
        self.prefixes = tuple(check_fraction("prefixes", share) for share in prefixes)
        if list(self.prefixes) != sorted({*self.prefixes, 1.0}) or not self.prefixes[0]:
            raise ValueError(f"prefixes={self.prefixes} must increase from above 0 to 1.")

    def ends(self) -> list[int]:
        """Return how many latents each prefix has, increasing, the last one all."""
        return sorted({max(1, round(share * self.width)) for share in self.prefixes})

    def loss(self, tokens: Tensor, latents: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
        """Return the mean squared error, mean over prefixes; and the residual of all latents, (b, d)."""
        left, start, errors = tokens - weights.centre, 0, []
        for end in self.ends():
            left = left - latents[:, start:end] @ weights.decoder[start:end]
            errors.append(squared_error(left))
            start = end
        return torch.stack(errors).mean(), left


class ReLU(SparseAutoencoder):
    """All positive latents are active, with a penalty on their sum (Bricken et al. 2023, "Towards Monosemanticity").

    Parameters
    ----------
    l1
        Weight of the penalty, in mean lengths of the centred tokens; with a higher one fewer latents are active. The
        other settings are those of `SparseAutoencoder`.
    """

    name = "ReLU SAE"
    own_settings = ("l1",)

    def __init__(self, width: int, l1: float = 0.1, **training: Any) -> None:
        super().__init__(width, **training)
        self.l1 = check_positive("l1", l1)

    def activate(self, values: Tensor) -> Tensor:
        """Return the positive values, and 0 elsewhere, (b, u)."""
        return values.relu()

    def loss(self, tokens: Tensor, latents: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
        """Return the mean squared error plus ``l1`` times the mean sum of latents; and the residual, (b, d)."""
        error, left = super().loss(tokens, latents, weights)
        return error + self.l1 * latents.sum(1).mean(), left

    def revival(self, left: Tensor, values: Tensor, dead: Tensor, weights: Weights) -> Tensor:  # noqa: ARG002
        """Return the pre-activation loss; resampling, as in the paper, disturbs short trainings."""
        return pre_activation_loss(values, dead)


_KINDS: dict[str, type[SparseAutoencoder]] = {kind.__name__: kind for kind in (TopK, BatchTopK, Matryoshka, ReLU)}


def _finite(channels: Tensor) -> Tensor:
    """Return channels (t, d) in float32; raise unless there are tokens and every value is finite."""
    if channels.ndim != 2 or not channels.isfinite().all():
        what = "NaN or infinite values" if channels.ndim == 2 else f"the shape {tuple(channels.shape)}"
        raise ValueError(f"The recording's channels must be (t, d) and finite; they have {what}.")
    return channels.detach().float()


def _history(found: Any) -> pd.DataFrame:
    """Return a saved history as a table; raise unless it has all columns, equally long and of numbers."""
    columns = {name.replace(" ", "_").replace("-", "_"): column for name, column in found.items()}  # words in 0.2
    if set(columns) != set(HISTORY) or not all(isinstance(column, list) for column in columns.values()):
        raise ValueError(f"the columns of its history are not {', '.join(HISTORY)}")
    table = pd.DataFrame(columns, columns=list(HISTORY))  # raises if they are not equally long
    if len(table) and not all(is_numeric_dtype(kind) and not is_bool_dtype(kind) for kind in table.dtypes):
        raise ValueError("its history contains other values than numbers")
    return table
