"""Sparse autoencoders of the package overcomplete (KempnerInstitute), as methods of ours: the rivals of ELUDe's paper.

The package is the extra ``baselines``; without it these methods say what to install, and everything else works.
Letters: ``t`` tokens, ``d`` channels, ``u`` units (the latents), ``b`` tokens of a batch.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from elude_nb._util.checks import check_choice, check_count, check_kind
from elude_nb.baselines.base import Method
from elude_nb.baselines.sae_training import Scale, batches, check_enough, check_positive, finite
from elude_nb.core.recording import Recording

KINDS = ("ReLU", "TopK", "BatchTopK", "JumpReLU", "matching pursuit", "archetypal", "relaxed archetypal")
_TOKENS_AT_ONCE = 2048
_ARCHETYPAL_DELTA = 1e-6  # 0 divides 0 by 0 in overcomplete 0.3.0
_BANDWIDTH = 0.1  # of JumpReLU's pseudo-gradient; its default of 1e-3 sees no value of a batch this small
_FASTER = 30  # learning rate of JumpReLU's log thresholds, relative: they have a long way to go

Loss = Callable[..., Tensor]  # of tokens, reconstruction, values before the choice, codes, dictionary


class Overcomplete(Method):
    """A sparse autoencoder of overcomplete, trained by its own ``train_sae``.

    Tokens are centred by their mean and scaled so that their values have a standard deviation of about 1, as
    overcomplete advises; units and decoded channels are on the channels' own scale.

    Parameters
    ----------
    kind
        ``"ReLU"`` (vanilla, with a penalty on the sum of latents), ``"TopK"`` (arXiv 2406.04093), ``"BatchTopK"``
        (arXiv 2412.06410), ``"JumpReLU"`` (arXiv 2407.14435; its thresholds are trained towards ``k`` active latents),
        ``"matching pursuit"`` (arXiv 2506.03093), ``"archetypal"`` and ``"relaxed archetypal"`` (arXiv 2502.12892:
        TopK whose atoms are convex combinations of tokens, exactly or within a distance of 1).
    width
        How many latents, u.
    k
        How many are active at a token; steps of matching pursuit; not used by ``"ReLU"``.
    steps, batch_size, learning_rate
        Of Adam, the learning rate falling to 0 along a cosine.
    l1
        Weight of the penalty of ``"ReLU"``, in mean lengths of the centred tokens; with a higher one fewer are active.
    seed
        Of the initialisation, the batches and the archetypes' tokens. torch's global generator is left as it was.
    name
        As it is shown in tables.

    Attributes
    ----------
    sae_
        The fitted module of overcomplete, in evaluation mode.
    decoder_, mean_
        Its dictionary (u, d), and the mean of the tokens, (d,).
    scale_
        What the centred tokens were divided by.

    Raises
    ------
    ImportError
        If overcomplete is not installed; the message says what to type.
    """

    sae_: nn.Module
    decoder_: Tensor
    mean_: Tensor
    scale_: float

    def __init__(
        self,
        kind: str,
        width: int,
        k: int = 8,
        *,
        steps: int = 1500,
        batch_size: int = 512,
        learning_rate: float = 1e-3,
        l1: float = 0.1,
        seed: int = 0,
        name: str | None = None,
    ) -> None:
        check_kind("name", name, str | None, "text")
        self.kind, self.name = check_choice("kind", kind, KINDS), name or f"{kind} SAE"
        self.width, self.k = check_count("width", width), check_count("k", k, 1, width)
        self.steps, self.batch_size = check_count("steps", steps), check_count("batch_size", batch_size)
        self.learning_rate, self.l1 = check_positive("learning_rate", learning_rate), check_positive("l1", l1)
        self.seed = check_count("seed", seed, 0, 2**63 - 1)
        if find_spec("overcomplete") is None:
            raise ImportError(_missing(self.name))

    def fit(self, recording: Recording, labels: Sequence[Any] | None = None) -> Self:  # noqa: ARG002 - needs none
        """Train on the channels (t, d) of a recording.

        Raises
        ------
        ValueError
            If there are fewer tokens than latents, all tokens are the same, a value is not finite, or the training
            diverges.
        """
        check_kind("recording", recording, Recording, "a Recording, such as split.recording(images)")
        channels = finite(recording.channels, "channels")
        check_enough(channels, self.width)
        mean, length = Scale.of(channels)
        scale = length / math.sqrt(channels.shape[1])
        tokens = (channels - mean) / scale
        library = _import_sae(self.name)
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(self.seed)
            made = self._make(library, tokens)
            self._train(library, made, tokens)
        with torch.no_grad():
            made.eval()  # fuses the dictionary
            decoder = made.get_dictionary().detach()
        if not all(bool(value.isfinite().all()) for value in (decoder, *made.state_dict().values())):
            raise ValueError(f"{self.name!r} diverged; lower learning_rate={self.learning_rate}.")
        self.sae_, self.decoder_, self.mean_, self.scale_ = (
            made.requires_grad_(requires_grad=False),
            decoder,
            mean,
            scale,
        )
        return self

    def encode(self, recording: Recording) -> Tensor:
        """See `Method.encode`."""
        decoder = self.learned("decoder_")
        channels = finite(recording.channels, "channels", len(self.mean_), self.name)
        nothing = recording.channels.new_empty(0, len(decoder))
        with torch.no_grad():
            parts = ((part - self.mean_) / self.scale_ for part in channels.split(_TOKENS_AT_ONCE) if len(part))
            return torch.cat([nothing, *((self.scale_ * self.sae_.encode(part)[1]).to(nothing) for part in parts)])  # type: ignore[operator]

    def decode(self, units: Tensor) -> Tensor:
        """See `Method.decode`."""
        decoder = self.learned("decoder_")
        return torch.addmm(self.mean_, units.float(), decoder).to(units.dtype)

    def size_in_bytes(self) -> int:
        """Return the memory of the weights."""
        self.learned("decoder_")
        return sum(value.nbytes for value in self.sae_.state_dict().values())

    def _make(self, library: ModuleType, tokens: Tensor) -> Any:
        """Return overcomplete's module, untrained."""
        d, u, k = tokens.shape[1], self.width, self.k

        def archetypal(delta: float) -> Any:
            points = tokens[torch.randperm(len(tokens))[: 2 * u]]
            return library.RATopKSAE(d, u, points, top_k=k, delta=delta)

        makers = {
            "ReLU": lambda: library.SAE(d, u),
            "TopK": lambda: library.TopKSAE(d, u, top_k=k),
            "BatchTopK": lambda: library.BatchTopKSAE(d, u, top_k=k * min(self.batch_size, len(tokens))),  # of a batch
            "JumpReLU": lambda: library.JumpSAE(d, u, bandwidth=_BANDWIDTH),
            "matching pursuit": lambda: library.MpSAE(d, u, k=k),
            "archetypal": lambda: archetypal(_ARCHETYPAL_DELTA),
            "relaxed archetypal": lambda: archetypal(1.0),
        }
        return makers[self.kind]()

    def _train(self, library: ModuleType, made: Any, tokens: Tensor) -> None:
        rows = _Batches(tokens, self.batch_size, self.seed)
        epochs = math.ceil(self.steps / len(rows))
        slow = [value for name, value in made.named_parameters() if name != "thresholds"]
        groups = [{"params": slow, "lr": self.learning_rate}]
        if self.kind == "JumpReLU":
            groups.append({"params": [made.thresholds], "lr": _FASTER * self.learning_rate})
        optimizer = torch.optim.Adam(groups)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(rows))
        library.train_sae(made, rows, self._loss(library, made, tokens), optimizer, schedule, epochs, monitoring=0)

    def _loss(self, library: ModuleType, made: Any, tokens: Tensor) -> Loss:
        """Return the loss: overcomplete's own where it has one."""
        losses: Any = library.losses
        b, d = min(self.batch_size, len(tokens)), tokens.shape[1]
        if self.kind == "ReLU":  # its penalty adds over the whole batch, its error is a mean over all values
            penalty = self.l1 * math.sqrt(d) / (b * d)
            return lambda *each: losses.mse_l1(*each, penalty=penalty) + losses.reanimation_regularizer(*each, penalty)
        if self.kind == "JumpReLU":

            def towards_k(x: Tensor, x_hat: Tensor, before: Tensor, *_: Tensor) -> Tensor:
                active: Tensor = library.heaviside(before, made.thresholds.exp(), made.kernel_fn, made.bandwidth)
                return (x - x_hat).square().mean() + (active.sum(1).mean() / self.k - 1).square()

            return towards_k
        if self.kind == "matching pursuit":  # its codes before the choice are the residual: there is nothing to revive
            return cast(Loss, partial(losses.mse_l1, penalty=0.0))
        return cast(Loss, losses.top_k_auxiliary_loss)


class _Batches:
    """Batches of tokens (b, d) in new order each pass, without an incomplete end."""

    def __init__(self, tokens: Tensor, size: int, seed: int) -> None:
        self._tokens, self._count = tokens, len(tokens) // min(size, len(tokens))
        self._drawn = batches(len(tokens), size, torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Tensor]:
        return (self._tokens[next(self._drawn)] for _ in range(self._count))


def _missing(name: str) -> str:
    needs = "" if sys.version_info < (3, 13) else "; it asks for Python below 3.13"
    return f"{name!r} is built by the package overcomplete: pip install 'elude-nb[baselines]'{needs}"


def _import_sae(name: str) -> ModuleType:
    """Return ``overcomplete.sae``.

    On import overcomplete 0.3.0 asks matplotlib for ``cm.get_cmap``, which matplotlib 3.11 no longer has: it is lent
    meanwhile.
    """
    try:
        colours, cm = import_module("matplotlib").colormaps, import_module("matplotlib.cm")
        lent = not hasattr(cm, "get_cmap")
        if lent:
            cm.get_cmap = colours.__getitem__  # type: ignore[attr-defined]
        try:
            return import_module("overcomplete.sae")
        finally:
            if lent:
                del cm.get_cmap
    except ImportError as error:
        raise ImportError(f"{_missing(name)} ({error})") from error
