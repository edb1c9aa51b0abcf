"""Train a sparse autoencoder or a transcoder: hold images out, take steps, revive dead latents, stop early.

Letters: ``b`` tokens of a batch, ``t`` tokens, ``x`` inputs, ``d`` channels, ``u`` latents (units). An autoencoder has
``x = d``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Generator, Tensor

from elude_nb._util.checks import check_count, check_flag, check_number
from elude_nb._util.progress import progress_bar

if TYPE_CHECKING:
    from elude_nb.baselines.sae import SparseAutoencoder

HELD_OUT = 0.1  # share of the images whose tokens decide when to stop
EVALUATE_EVERY = 50  # steps: one evaluation costs about as much as two steps
MIN_GAIN = 1e-3  # share of the held-out loss: less does not count as progress
MAX_IDLE = 100  # steps without firing after which a latent is dead, or one pass over the tokens
REVIVAL_WEIGHT = 1 / 32  # of the loss that revives dead latents (Gao et al. 2024)


@dataclass(frozen=True)
class Training:
    """How an autoencoder is trained.

    Parameters
    ----------
    steps
        How many batches to train on, at most; the learning rate falls to 0 over them.
    batch_size
        Tokens of a batch.
    learning_rate
        Of Adam, at the start.
    patience
        Training stops after so many evaluations without a gain, one every 50 steps, on the tokens of a tenth of the
        images, which are held out.
    revive
        Whether to revive latents that have not fired for a pass over the tokens, by AuxK (Gao et al. 2024, arXiv
        2406.04093).
    seed
        Of everything random.
    progress
        Show a progress bar over the steps.
    """

    steps: int = 1500
    batch_size: int = 512
    learning_rate: float = 2e-3
    patience: int = 8
    revive: bool = True
    seed: int = 0
    progress: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "patience"):
            check_count(name, getattr(self, name))
        check_count("seed", self.seed, 0)
        check_positive("learning_rate", self.learning_rate)
        check_flag("revive", self.revive)
        check_flag("progress", self.progress)


class Weights(NamedTuple):
    """What is learned: encoder (x, u), bias (u,), decoder (u, d) with rows of length 1, centre (d,)."""

    encoder: Tensor
    bias: Tensor
    decoder: Tensor
    centre: Tensor

    @staticmethod
    def random(x: int, d: int, u: int, generator: Generator) -> Weights:
        """Return random directions as decoder, zeros, and the decoder's transpose as encoder if x is d."""
        decoder = unit_rows(torch.randn(u, d, generator=generator))
        inwards = decoder if x == d else unit_rows(torch.randn(u, x, generator=generator))
        return Weights(inwards.T.clone(memory_format=torch.contiguous_format), torch.zeros(u), decoder, torch.zeros(d))

    def decode(self, latents: Tensor) -> Tensor:
        """Return channels (b, d) from latents (b, u)."""
        return torch.addmm(self.centre, latents, self.decoder)

    def copy(self) -> Weights:
        """Return a copy that training does not change."""
        return Weights(*(tensor.detach().clone() for tensor in self))


def train(method: SparseAutoencoder, inputs: Tensor, targets: Tensor, images: Tensor) -> tuple[Weights, Scale, Scale]:
    """Train on tokens of ``images`` (t,): from inputs (t, x) to targets (t, d), the same tensor for an autoencoder.

    The tokens of a tenth of the images are held out; the weights with the smallest loss on them are kept. Inputs and
    targets are centred and scaled to a mean length of 1, so that one learning rate suits all sites. Everything random
    depends on the method's seed alone, and torch's global generator is not used.

    Returns
    -------
    weights, inwards, outwards
        The best weights, for inputs and targets less a mean over a scale, and these.

    Raises
    ------
    ValueError
        If there are fewer than two images, fewer tokens than latents, all tokens are the same, or the loss overflows.
    """
    check_enough(targets, method.width)
    generator = torch.Generator().manual_seed(method.training.seed)
    held = hold_out(images, generator)
    outwards = Scale.of(targets[~held])
    inwards = outwards if inputs is targets else Scale.of(inputs[~held])
    y = outwards.apply(targets)
    x = y if inputs is targets else inwards.apply(inputs)
    with torch.enable_grad():  # the caller may have switched gradients off
        run = _Run(method, (x[~held], y[~held]), (x[held], y[held]), generator)
        run.train()
    return run.best, inwards, outwards


class Scale(NamedTuple):
    """A mean (d,), and the mean length of tokens less it."""

    mean: Tensor
    length: float

    @staticmethod
    def of(tokens: Tensor) -> Scale:
        """Return those of tokens (t, d); raise ``ValueError`` if all are the same."""
        mean = tokens.mean(0)
        length = float((tokens - mean).norm(dim=1).mean())
        if length <= torch.finfo(tokens.dtype).eps * float(mean.norm()):
            raise ValueError("All tokens are the same; there is nothing to learn from. Record other images or tokens.")
        return Scale(mean, length)

    def apply(self, tokens: Tensor) -> Tensor:
        """Return tokens (t, d) centred and scaled."""
        return (tokens - self.mean) / self.length


def hold_out(images: Tensor, generator: Generator) -> Tensor:
    """Return which tokens are of the held-out images, (t,), bool: a tenth of the images, at least one."""
    numbers = images.unique()
    if len(numbers) < 2:
        raise ValueError(f"Tokens of {len(numbers)} image were given; to hold one out, record at least two images.")
    count = math.ceil(HELD_OUT * len(numbers))
    return torch.isin(images, numbers[torch.randperm(len(numbers), generator=generator)[:count]])


def batches(count: int, size: int, generator: Generator) -> Iterator[Tensor]:
    """Yield numbers of tokens without end, ``size`` at a time: each pass in new order, without an incomplete end."""
    size = min(size, count)
    while True:
        yield from torch.randperm(count, generator=generator).split(size)[: count // size]


def auxiliary_loss(left: Tensor, values: Tensor, dead: Tensor, decoder: Tensor) -> Tensor:
    """Return AuxK: the error of the dead latents as a reconstruction of the residual (Gao et al. 2024).

    Of the dead latents the d / 2 largest of each token are used. The residual is a constant: only dead latents learn.

    Parameters
    ----------
    left
        Tokens less their reconstruction, (b, d).
    values
        Latents before the choice of active ones, (b, u).
    dead
        Which latents are dead, (u,), bool.
    decoder
        (u, d).

    Examples
    --------
    >>> left, values = torch.tensor([[3.0, 4.0]]), torch.tensor([[9.0, 3.0, 1.0]])
    >>> dead = torch.tensor([False, True, True])
    >>> float(auxiliary_loss(left, values, dead, torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])))  # only [3, 0]
    16.0
    """
    count = min(int(dead.sum()), max(left.shape[1] // 2, 1))
    if not count:
        return left.new_zeros(())
    found = keep_strongest(values[:, dead], count)
    return squared_error(left.detach() - found @ decoder[dead])


def keep_strongest(values: Tensor, k: int) -> Tensor:
    """Return the ``k`` largest values of each row where they are positive, and 0 elsewhere, (b, u).

    Examples
    --------
    >>> keep_strongest(torch.tensor([[1.0, 3.0, 2.0], [-1.0, -3.0, 2.0]]), 2).tolist()
    [[0.0, 3.0, 2.0], [0.0, 0.0, 2.0]]
    """
    largest, where = values.topk(k, dim=1)
    return torch.zeros_like(values).scatter(1, where, largest.relu())


def squared_error(left: Tensor) -> Tensor:
    """Return the squared length of a residual (b, d), mean over tokens."""
    return left.square().sum(1).mean()


def unit_rows(matrix: Tensor) -> Tensor:
    """Return the rows at length 1."""
    return torch.nn.functional.normalize(matrix, dim=1)


def check_enough(tokens: Tensor, width: int) -> None:
    """Raise ``ValueError`` if there are fewer tokens (t, d) than latents."""
    if len(tokens) < width:
        raise ValueError(
            f"{len(tokens):,} tokens are too few for width={width:,}; record more tokens or ask for fewer latents."
        )


def finite(values: Tensor, name: str, columns: int | None = None, method: str = "") -> Tensor:
    """Return channels or sources (t, c) in float32.

    Raises
    ------
    ValueError
        Unless there are some, every value is finite, and there are as many ``columns`` as ``method`` was fitted on.
    """
    if values.ndim != 2 or not values.shape[1] or not values.isfinite().all():
        bad = values.ndim != 2 or not values.shape[1]
        what = f"the shape {tuple(values.shape)}" if bad else "NaN or infinite values"
        raise ValueError(f"The recording's {name} must be (t, c) and finite; they have {what}.")
    if columns is not None and values.shape[1] != columns:
        raise ValueError(f"{method!r} was fitted on {columns:,} {name}; this recording has {values.shape[1]:,}.")
    return values.detach().float()


def check_positive(name: str, value: Any) -> float:
    """Return ``value`` as a float if it is a finite number above 0."""
    number = check_number(name, value)
    if not 0 < number < math.inf:
        raise ValueError(f"{name}={number} is out of range: it must be above 0 and finite.")
    return number


class _Run:
    """One training: the weights, the optimiser, and for how many steps each latent has not fired."""

    def __init__(
        self, method: SparseAutoencoder, seen: tuple[Tensor, Tensor], held: tuple[Tensor, Tensor], generator: Generator
    ) -> None:
        self.method, self.settings, self.generator = method, method.training, generator
        self.inputs, self.targets = seen
        self.held = held
        self.weights = Weights.random(self.inputs.shape[1], self.targets.shape[1], method.width, generator)
        for tensor in self.weights:
            tensor.requires_grad_()
        self.optimizer = torch.optim.Adam([*self.weights], lr=self.settings.learning_rate, fused=True)
        self.idle = torch.zeros(method.width, dtype=torch.long)
        self.max_idle = min(MAX_IDLE, math.ceil(len(self.targets) / self.settings.batch_size))
        self.best = self.weights.copy()

    def train(self) -> None:
        """Take steps until the held-out loss no longer falls, or all are done; keep the best weights."""
        smallest, waited = math.inf, 0
        steps, rate = self.settings.steps, self.settings.learning_rate
        drawn = batches(len(self.targets), self.settings.batch_size, self.generator)
        show = self.settings.progress
        with progress_bar(description=self.method.name, total=steps, show=show, unit="step") as bar:
            for step in range(1, steps + 1):
                self.optimizer.param_groups[0]["lr"] = rate * (1 - (step - 1) / steps)
                self.step(next(drawn))
                bar.update()
                if step % EVALUATE_EVERY and step < steps:
                    continue
                loss = self.evaluate()
                if not math.isfinite(loss):
                    raise ValueError(f"The loss is {loss} after {step} steps; lower learning_rate={rate}.")
                bar.set_postfix_str(f"held-out loss {loss:.3f}")
                waited = 0 if loss < (1 - MIN_GAIN) * smallest else waited + 1
                if loss < smallest:
                    smallest, self.best = loss, self.weights.copy()
                if waited >= self.settings.patience:
                    break

    def step(self, rows: Tensor) -> None:
        """Take one step on the batch of these tokens, (b,)."""
        values = self.method.values(self.inputs[rows], self.weights)
        latents = self.method.activate(values)
        loss, left = self.method.loss(self.targets[rows], latents, self.weights)
        if self.settings.revive:
            loss = loss + REVIVAL_WEIGHT * auxiliary_loss(left, values, self.dead(), self.weights.decoder)
        self.optimizer.zero_grad()
        loss.backward()
        project_out(self.weights.decoder)
        self.optimizer.step()
        with torch.no_grad():
            self.weights.decoder.copy_(unit_rows(self.weights.decoder))
            self.idle += 1
            self.idle[(latents > 0).any(0)] = 0

    def dead(self) -> Tensor:
        """Return which latents are dead, (u,), bool."""
        return self.idle >= self.max_idle

    @torch.no_grad()
    def evaluate(self) -> float:
        """Return the loss on the held-out tokens."""
        inputs, targets = self.held
        latents = self.method.activate(self.method.values(inputs, self.weights))
        return float(self.method.loss(targets, latents, self.weights)[0])


def project_out(decoder: Tensor) -> None:
    """Remove from the decoder's gradient what would only change the length of its rows."""
    if decoder.grad is not None:
        rows = decoder.detach()
        decoder.grad -= (decoder.grad * rows).sum(1, keepdim=True) * rows
