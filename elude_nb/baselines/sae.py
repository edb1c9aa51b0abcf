"""Sparse autoencoders: TopK, BatchTopK, ReLU and Matryoshka, trained here or loaded from elsewhere.

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
    silence,
    squared_error,
    train,
)
from elude_nb.core.recording import Recording
from elude_nb.errors import StoreError

_KIND = "sparse autoencoder"
_AT_ONCE = 4096  # tokens encoded at once: thousands of latents of all tokens would be held several times over


class SparseAutoencoder(Method):
    """What all kinds have in common: units ``z = active((x - c) E + b)``, channels ``x = z D + c``.

    Tokens are centred by their mean and scaled to a mean length of 1 while training; afterwards that is folded into the
    weights, so that units and what they decode to are in the channels' own units. Training is in float32.

    Parameters
    ----------
    width
        How many latents there are, u.
    steps
        Batches to train on, at most; the learning rate falls to 0 over them.
    batch_size
        Tokens of a batch.
    learning_rate
        Of Adam, at the start.
    patience
        Training stops once so many looks at the held-out tokens in a row, one every 50 steps, show no gain. The tokens
        of a tenth of the images are held out.
    revive
        Whether latents that have not fired for a pass over the tokens are brought back, by AuxK (Gao et al. 2024, arXiv
        2406.04093) or, in `ReLU`, by a pull towards firing.
    seed
        Of all that is drawn.
    progress
        Show a progress bar over the steps.
    name
        As it stands in tables.

    Attributes
    ----------
    encoder_, bias_, decoder_, centre_
        E (d, u), b (u,), D (u, d) with rows of length 1, c (d,).
    scale_
        Mean length of the centred tokens.
    history_
        One row for each look at the held-out tokens: ``step``, ``loss`` (mean over the steps since the last look),
        ``held_out_fvu`` (fraction of variance unexplained, about the mean of the tokens trained on; lower is better),
        ``active`` latents a token, ``dead_share`` of the latents, ``seconds``.
    """

    learns: tuple[str, ...] = ("encoder", "bias", "decoder", "centre")
    encoder_: Tensor
    bias_: Tensor
    decoder_: Tensor
    centre_: Tensor
    scale_: float
    history_: pd.DataFrame

    def __init__(
        self,
        width: int,
        *,
        steps: int = 1500,
        batch_size: int = 512,
        learning_rate: float = 2e-3,
        patience: int = 8,
        revive: bool = True,
        seed: int = 0,
        progress: bool = False,
        name: str,
    ) -> None:
        check_kind("name", name, str, "text")
        self.name, self.width = name, check_count("width", width)
        self.training = Training(steps, batch_size, learning_rate, patience, revive, seed, progress)

    @abstractmethod
    def activate(self, values: Tensor) -> Tensor:
        """Return the latents active while training, (b, u) from what they are before any is chosen, (b, u)."""

    def loss(self, tokens: Tensor, latents: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
        """Return the loss of a batch (b, d), its mean squared error; and what is left of the tokens, (b, d)."""
        left = tokens - weights.decode(latents)
        return squared_error(left), left

    def revival(self, left: Tensor, values: Tensor, dead: Tensor, weights: Weights) -> Tensor:
        """Return AuxK, what is added to the loss for the sake of the dead latents."""
        return auxiliary_loss(left, values, dead, weights.decoder)

    def choose(self, values: Tensor) -> Tensor:
        """Return the latents active after training, (t, u) from what they are before any is chosen, (t, u)."""
        return self.activate(values)

    def settings(self) -> dict[str, Any]:
        """Return the arguments that make this autoencoder again."""
        return {"width": self.width, **asdict(self.training), "name": self.name}

    def fit(self, recording: Recording, labels: Sequence[Any] | None = None) -> Self:  # noqa: ARG002 - needs none
        """Train on the channels (t, d) of a recording.

        Raises
        ------
        ValueError
            If there are fewer tokens than latents or fewer than two images, all tokens are the same, a value is not
            finite, or the learning rate is so high that the loss grows without end.
        """
        check_kind("recording", recording, Recording, "a Recording, such as split.recording(images)")
        trained = train(self, _finite(recording.channels), recording.images, self.width, self.training, self.name)
        weights, scale = trained.weights, trained.scale
        self.encoder_, self.decoder_ = weights.encoder, weights.decoder
        self.bias_, self.centre_ = scale * weights.bias, trained.mean + scale * weights.centre
        self.scale_, self.history_ = scale, trained.history
        return self

    def encode(self, recording: Recording) -> Tensor:
        """See `Method.encode`; units are 0 or above, in the dtype of the recording."""
        units = recording.channels.new_empty(len(recording), len(self.learned("bias_")))
        for part, here in zip(recording.parts(_AT_ONCE), units.split(_AT_ONCE), strict=False):  # no tokens: no parts
            here.copy_(self.choose(self._values(part)))
        return units

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
            raise StoreError(
                f"{str(path)!r} holds a {found!r}, not a {cls.__name__!r}; load it with the class it is of."
            )
        try:
            made = kind(**manifest["settings"])
            scale, history = check_positive("scale", manifest["scale"]), _history(manifest["history"])
            made._check(tensors)
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{str(path)!r} holds no whole {found!r} ({error}); make the file anew.") from error
        made._take(tensors, scale, history)
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
        """Return an autoencoder with weights that were trained elsewhere, as they are.

        Parameters
        ----------
        weights
            A plain safetensors file, or tensors by name.
        names
            Which tensor is the ``"encoder"``, ``"decoder"``, ``"bias"`` (u,), ``"centre"`` (d,) and ``"threshold"``,
            (u,) or (), where their names are not among the common ones; tensors of other names are then ignored.
        channels
            d, where shapes leave open which way round the weights are.
        centred
            Whether the encoder was trained on tokens less the centre (the decoder's bias); no file says so itself.
        **settings
            ``k`` of `TopK` (a ``k`` in the file will do, too), ``name``, and others of the class.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If a tensor is missing, not known, or of a shape that does not fit the others.
        """
        found = read_weights(weights, names=names, channels=channels)
        if not centred:  # x E + b = (x - c) E + (b + c E)
            found["bias"] = found["bias"] + found["centre"] @ found["encoder"]
        made = cls(**{"width": found["encoder"].shape[1], **cls._found(found, settings)})
        made._take({name: found[name] for name in cls.learns}, 1.0, pd.DataFrame(columns=list(HISTORY)))
        return made

    @classmethod
    def _found(cls, tensors: Mapping[str, Tensor], settings: dict[str, Any]) -> dict[str, Any]:
        """Return settings, with those that a pretrained file holds; raise if one is missing."""
        if "threshold" in tensors:
            raise ValueError(
                f"The weights have a threshold, which {cls.__name__} would pass over; use BatchTopK.load_pretrained."
            )
        return settings

    def _check(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise unless all weights are there, finite, and fit each other and the settings."""
        missing = [name for name in self.learns if name not in tensors]
        if missing:
            raise ValueError(f"it lacks {', '.join(missing)}")
        u, d = self.width, len(tensors["centre"]) if tensors["centre"].ndim else 0
        shapes = {"encoder": (d, u), "bias": (u,), "decoder": (u, d), "centre": (d,), "threshold": (u,)}
        for name in self.learns:
            found = tuple(tensors[name].shape)
            if found != shapes[name] and not (name == "threshold" and found == ()):
                raise ValueError(f"{name} has shape {found}, not {shapes[name]}")
            if tensors[name].dtype != torch.float32 or not bool(tensors[name].isfinite().all()):
                raise ValueError(f"{name} holds other than finite float32 numbers")

    def _take(self, tensors: Mapping[str, Tensor], scale: float, history: pd.DataFrame) -> None:
        for name in self.learns:
            setattr(self, f"{name}_", tensors[name])
        self.scale_, self.history_ = scale, history

    def _weights(self) -> Weights:
        return Weights(*(self.learned(f"{name}_") for name in ("encoder", "bias", "decoder", "centre")))

    def _values(self, recording: Recording) -> Tensor:
        weights = self._weights()
        tokens = _finite(recording.channels)
        if tokens.shape[1] != len(weights.centre):
            raise ValueError(
                f"{self.name!r} was fitted on {len(weights.centre):,} channels; this recording has {tokens.shape[1]:,}."
            )
        return weights.values(tokens)


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

    def __init__(self, width: int, k: int, *, name: str = "TopK SAE", **training: Any) -> None:
        super().__init__(width, name=name, **training)
        self.k = _active(k, width)

    def activate(self, values: Tensor) -> Tensor:
        """Return the ``k`` largest of each token where they are positive, and 0 elsewhere, (b, u)."""
        return keep_strongest(values, self.k)

    def settings(self) -> dict[str, Any]:
        """See `SparseAutoencoder.settings`."""
        return {"k": self.k, **super().settings()}

    @classmethod
    def _found(cls, tensors: Mapping[str, Tensor], settings: dict[str, Any]) -> dict[str, Any]:
        if "k" not in tensors and "k" not in settings:
            raise ValueError("How many latents are active at a token is not in the weights; say k=.")
        return {"k": int(tensors["k"]), **settings} if "k" in tensors else settings


class BatchTopK(SparseAutoencoder):
    """The ``k b`` largest latents of a whole batch are active (Bussmann et al. 2024, arXiv 2412.06410).

    Some tokens get more than ``k``, some fewer. After training, a latent is active above ``threshold_``: the smallest
    active latent of a batch, mean over batches. The settings after ``k`` are those of `SparseAutoencoder`.
    """

    learns = (*SparseAutoencoder.learns, "threshold")
    threshold_: Tensor

    def __init__(self, width: int, k: int, *, name: str = "BatchTopK SAE", **training: Any) -> None:
        super().__init__(width, name=name, **training)
        self.k = _active(k, width)

    def activate(self, values: Tensor) -> Tensor:
        """Return the ``k b`` largest of the batch where they are positive, and 0 elsewhere, (b, u)."""
        return keep_strongest(values.reshape(1, -1), self.k * len(values)).view_as(values)

    def choose(self, values: Tensor) -> Tensor:
        """Return the latents above the threshold, and 0 elsewhere, (t, u)."""
        return values.relu() * (values >= self.learned("threshold_"))

    def fit(self, recording: Recording, labels: Sequence[Any] | None = None) -> Self:
        """See `SparseAutoencoder.fit`; the threshold is estimated at the end."""
        super().fit(recording, labels)
        generator = torch.Generator().manual_seed(self.training.seed)
        size = min(self.training.batch_size, len(recording))
        drawn = batches(len(recording), size, generator)
        smallest: list[Tensor] = []
        for _ in range(len(recording) // size):
            active = self.activate(self._weights().values(recording.channels[next(drawn)].float()))
            smallest += [active[active > 0].min()] if bool((active > 0).any()) else []
        self.threshold_ = torch.stack(smallest).mean() if smallest else torch.zeros(())
        return self

    def settings(self) -> dict[str, Any]:
        """See `SparseAutoencoder.settings`."""
        return {"k": self.k, **super().settings()}

    @classmethod
    def _found(cls, tensors: Mapping[str, Tensor], settings: dict[str, Any]) -> dict[str, Any]:
        if "threshold" not in tensors or bool((tensors["threshold"] < 0).any()):
            raise ValueError(
                "The weights have no threshold, or one below 0 that was never estimated; name it in names, or use "
                "TopK.load_pretrained with k=."
            )
        return {"k": int(tensors["k"]) if "k" in tensors else 1, **settings}  # k is for training only


class Matryoshka(BatchTopK):
    """BatchTopK whose first latents must also do alone (Bussmann et al. 2025, arXiv 2503.17547).

    The loss is the mean over nested prefixes of the latents of what each prefix leaves, so early latents become general
    and late ones special.

    Parameters
    ----------
    prefixes
        Shares of the latents, rising, the last one 1; powers of two are our choice. The other settings are those of
        `BatchTopK`.
    """

    def __init__(
        self,
        width: int,
        k: int,
        *,
        prefixes: Sequence[float] = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0),
        name: str = "Matryoshka SAE",
        **training: Any,
    ) -> None:
        super().__init__(width, k, name=name, **training)
        self.prefixes = tuple(check_fraction("prefixes", share) for share in prefixes)
        if list(self.prefixes) != sorted({*self.prefixes, 1.0}) or not self.prefixes[0]:
            raise ValueError(f"prefixes={self.prefixes} must rise from above 0 to 1.")

    def ends(self) -> list[int]:
        """Return how many latents each prefix has, rising, the last one all."""
        return sorted({max(1, round(share * self.width)) for share in self.prefixes})

    def loss(self, tokens: Tensor, latents: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
        """Return the mean squared error, mean over prefixes; and what all latents leave of the tokens, (b, d)."""
        left, start, errors = tokens - weights.centre, 0, []
        for end in self.ends():
            left = left - latents[:, start:end] @ weights.decoder[start:end]
            errors.append(squared_error(left))
            start = end
        return torch.stack(errors).mean(), left

    def settings(self) -> dict[str, Any]:
        """See `SparseAutoencoder.settings`."""
        return {"prefixes": list(self.prefixes), **super().settings()}


class ReLU(SparseAutoencoder):
    """All positive latents are active, and their sum costs (Bricken et al. 2023, "Towards Monosemanticity").

    Parameters
    ----------
    l1
        What a latent costs, in mean lengths of the centred tokens; the more, the fewer are active. The other settings
        are those of `SparseAutoencoder`.
    """

    def __init__(self, width: int, l1: float = 0.1, *, name: str = "ReLU SAE", **training: Any) -> None:
        super().__init__(width, name=name, **training)
        self.l1 = check_positive("l1", l1)

    def activate(self, values: Tensor) -> Tensor:
        """Return what is positive, and 0 elsewhere, (b, u)."""
        return values.relu()

    def loss(self, tokens: Tensor, latents: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
        """Return the mean squared error plus ``l1`` times the mean sum of latents; and what is left, (b, d)."""
        error, left = super().loss(tokens, latents, weights)
        return error + self.l1 * latents.sum(1).mean(), left

    def revival(self, left: Tensor, values: Tensor, dead: Tensor, weights: Weights) -> Tensor:  # noqa: ARG002
        """Return how far dead latents are from firing; resampling, as in the paper, spoils short trainings."""
        return silence(values, dead)

    def settings(self) -> dict[str, Any]:
        """See `SparseAutoencoder.settings`."""
        return {"l1": self.l1, **super().settings()}


_KINDS: dict[str, type[SparseAutoencoder]] = {kind.__name__: kind for kind in (TopK, BatchTopK, Matryoshka, ReLU)}


def _active(k: int, width: int) -> int:
    if check_count("k", k) > width:
        raise ValueError(f"k={k} active latents of width={width} are more than there are; lower k or raise width.")
    return int(k)


def _finite(channels: Tensor) -> Tensor:
    """Return channels (t, d) in float32; raise unless there are tokens and every value is finite."""
    if channels.ndim != 2 or not channels.isfinite().all():
        what = "NaN or infinite values" if channels.ndim == 2 else f"the shape {tuple(channels.shape)}"
        raise ValueError(f"The recording's channels must be (t, d) and finite; they have {what}.")
    return channels.detach().float()


def _history(found: Any) -> pd.DataFrame:
    """Return a saved history as a table; raise unless it has all columns, equally long and of numbers."""
    if isinstance(found, dict):  # files of version 0.2 write the columns' names in words
        found = {str(name).replace(" ", "_").replace("-", "_"): column for name, column in found.items()}
    if not isinstance(found, dict) or set(found) != set(HISTORY):
        raise ValueError(f"the columns of its history are not {', '.join(HISTORY)}")
    columns = list(found.values())
    if not all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns):
        raise ValueError("the columns of its history are not equally long")
    if any(isinstance(x, bool) or not isinstance(x, int | float) for column in columns for x in column):
        raise ValueError("its history holds other things than numbers")
    return pd.DataFrame(found, columns=list(HISTORY))
