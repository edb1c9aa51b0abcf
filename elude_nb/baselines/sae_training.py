"""Train a sparse autoencoder on tokens: hold images out, take steps, revive dead latents, stop early.

Letters: ``b`` tokens of a batch, ``t`` tokens, ``d`` channels, ``u`` latents (units).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
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

HISTORY = ("step", "loss", "held_out_fvu", "active", "dead_share", "seconds")
"""Columns of a history; ``active`` is the mean number of active latents a held-out token."""


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
        2406.04093) or, in `ReLU`, by a pre-activation loss.
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
    """What is learned: encoder (d, u), bias (u,), decoder (u, d) with rows of length 1, centre (d,)."""

    encoder: Tensor
    bias: Tensor
    decoder: Tensor
    centre: Tensor

    @staticmethod
    def random(d: int, u: int, generator: Generator) -> Weights:
        """Return random directions as decoder, its transpose as encoder, and zeros (Gao et al. 2024)."""
        decoder = unit_rows(torch.randn(u, d, generator=generator))
        return Weights(decoder.T.clone(memory_format=torch.contiguous_format), torch.zeros(u), decoder, torch.zeros(d))

    def values(self, tokens: Tensor) -> Tensor:
        """Return the latents before the choice of active ones, (b, d) to (b, u)."""
        return torch.addmm(self.bias, tokens - self.centre, self.encoder)

    def decode(self, latents: Tensor) -> Tensor:
        """Return tokens (b, d) from latents (b, u)."""
        return torch.addmm(self.centre, latents, self.decoder)

    def copy(self) -> Weights:
        """Return a copy that training does not change."""
        return Weights(*(tensor.detach().clone() for tensor in self))


def train(method: SparseAutoencoder, tokens: Tensor, images: Tensor) -> tuple[Weights, Tensor, float, pd.DataFrame]:
    """Train on tokens (t, d) of ``images`` (t,); return the best weights, for tokens less a mean (d,) over a scale.

    The tokens of a tenth of the images are held out; the weights with the smallest loss on them are kept. Tokens are
    centred and scaled to a mean length of 1, so that one learning rate suits all sites. Everything random depends on
    the method's seed alone, and torch's global generator is not used.

    Returns
    -------
    weights, mean, scale, history
        The history has one row for each evaluation on the held-out tokens.

    Raises
    ------
    ValueError
        If there are fewer than two images, fewer tokens than latents, all tokens are the same, or the loss overflows.
    """
    if len(tokens) < method.width:
        raise ValueError(
            f"{len(tokens):,} tokens are too few for width={method.width:,}; record more tokens or ask for fewer "
            "latents."
        )
    generator = torch.Generator().manual_seed(method.training.seed)
    held = hold_out(images, generator)
    mean = tokens[~held].mean(0)
    centred = tokens - mean
    scale = float(centred[~held].norm(dim=1).mean())
    if scale <= torch.finfo(tokens.dtype).eps * float(mean.norm()):
        raise ValueError("All tokens are the same; there is nothing to learn from. Record other images or tokens.")
    centred /= scale
    run = _Run(method, centred[~held], centred[held], generator)
    with torch.enable_grad():  # the caller may have switched gradients off
        history = run.train()
    return run.best, mean, scale, history


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


def pre_activation_loss(values: Tensor, dead: Tensor) -> Tensor:
    """Return how far the dead latents are below 0: their sum, mean over tokens.

    A latent whose values are all negative has no gradient in any loss of active latents; this one raises it until it
    fires. It follows the pre-activation loss of Anthropic's Circuits Updates of January 2025, at a threshold of 0.

    Examples
    --------
    >>> float(pre_activation_loss(torch.tensor([[-1.0, -3.0], [-5.0, 1.0]]), torch.tensor([False, True])))
    1.5
    """
    return values[:, dead].neg().relu().sum(1).mean()


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


def check_positive(name: str, value: Any) -> float:
    """Return ``value`` as a float if it is a finite number above 0."""
    number = check_number(name, value)
    if not 0 < number < math.inf:
        raise ValueError(f"{name}={number} is out of range: it must be above 0 and finite.")
    return number


class _Run:
    """One training: the weights, the optimiser, and for how many steps each latent has not fired."""

    def __init__(self, method: SparseAutoencoder, tokens: Tensor, held: Tensor, generator: Generator) -> None:
        self.method, self.tokens, self.held = method, tokens, held
        self.settings, self.generator = method.training, generator
        self.weights = Weights.random(tokens.shape[1], method.width, generator)
        for tensor in self.weights:
            tensor.requires_grad_()
        self.optimizer = torch.optim.Adam([*self.weights], lr=self.settings.learning_rate, fused=True)
        self.idle = torch.zeros(method.width, dtype=torch.long)
        self.max_idle = min(MAX_IDLE, math.ceil(len(tokens) / self.settings.batch_size))
        self.best = self.weights.copy()

    def train(self) -> pd.DataFrame:
        """Take steps until the held-out loss no longer falls, or all are done; return the history."""
        start, smallest, waited, losses, rows = time.perf_counter(), math.inf, 0, [], []
        steps, rate = self.settings.steps, self.settings.learning_rate
        drawn = batches(len(self.tokens), self.settings.batch_size, self.generator)
        show = self.settings.progress
        with progress_bar(description=self.method.name, total=steps, show=show, unit="step") as bar:
            for step in range(1, steps + 1):
                self.optimizer.param_groups[0]["lr"] = rate * (1 - (step - 1) / steps)
                losses.append(self.step(self.tokens[next(drawn)]))
                bar.update()
                if step % EVALUATE_EVERY and step < steps:
                    continue
                loss, held_out = self.evaluate()
                if not math.isfinite(loss):
                    raise ValueError(f"The loss is {loss} after {step} steps; lower learning_rate={rate}.")
                rows.append((step, sum(losses) / len(losses), *held_out, time.perf_counter() - start))
                losses.clear()
                bar.set_postfix_str(f"FVU {held_out[0]:.3f}")
                waited = 0 if loss < (1 - MIN_GAIN) * smallest else waited + 1
                if loss < smallest:
                    smallest, self.best = loss, self.weights.copy()
                if waited >= self.settings.patience:
                    break
        return pd.DataFrame(rows, columns=list(HISTORY))

    def step(self, tokens: Tensor) -> float:
        """Take one step on a batch (b, d); return its loss, without what revives dead latents."""
        values = self.weights.values(tokens)
        latents = self.method.activate(values)
        loss, left = self.method.loss(tokens, latents, self.weights)
        total = loss
        if self.settings.revive:
            total = loss + REVIVAL_WEIGHT * self.method.revival(left, values, self.dead(), self.weights)
        self.optimizer.zero_grad()
        total.backward()
        project_out(self.weights.decoder)
        self.optimizer.step()
        with torch.no_grad():
            self.weights.decoder.copy_(unit_rows(self.weights.decoder))
            self.idle += 1
            self.idle[(latents > 0).any(0)] = 0
        return float(loss.detach())

    def dead(self) -> Tensor:
        """Return which latents are dead, (u,), bool."""
        return self.idle >= self.max_idle

    @torch.no_grad()
    def evaluate(self) -> tuple[float, tuple[float, float, float]]:
        """Return the held-out loss; and fraction of variance unexplained, active latents a token, dead share."""
        latents = self.method.activate(self.weights.values(self.held))
        loss, left = self.method.loss(self.held, latents, self.weights)
        variance = self.held.square().sum().clamp(min=torch.finfo(self.held.dtype).tiny)  # about the training mean
        active = (latents > 0).sum(1).double().mean()
        unexplained, dead = left.square().sum() / variance, self.dead().double().mean()
        return float(loss), (float(unexplained), float(active), float(dead))


def project_out(decoder: Tensor) -> None:
    """Remove from the decoder's gradient what would only change the length of its rows."""
    if decoder.grad is not None:
        rows = decoder.detach()
        decoder.grad -= (decoder.grad * rows).sum(1, keepdim=True) * rows
