"""Train a sparse autoencoder on tokens: hold images out, step, keep latents alive, stop early.

Letters: ``b`` tokens of a batch, ``t`` tokens, ``d`` channels, ``u`` latents (units).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Protocol

import pandas as pd
import torch
from torch import Generator, Tensor

from elude_nb._util.checks import check_count, check_flag, check_number
from elude_nb._util.progress import progress_bar

HELD_OUT = 0.1  # share of the images whose tokens say when to stop
EVALUATE_EVERY = 50  # steps: a look at the held-out tokens costs about as much as two steps
LEAST_GAIN = 1e-3  # share of the held-out loss: less than this is no progress worth waiting for
LONGEST_IDLE = 100  # steps: after so many without firing a latent is dead, or after one pass over the tokens
REVIVAL_WEIGHT = 1 / 32  # of what revives dead latents (Gao et al. 2024)

HISTORY = ("step", "loss", "held_out_fvu", "active", "dead_share", "seconds")
"""Columns of a history; ``active`` is the mean number of active latents a held-out token."""


@dataclass(frozen=True)
class Training:
    """How an autoencoder is trained; `elude_nb.baselines.sae.SparseAutoencoder` says what each setting means."""

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
        for name in ("revive", "progress"):
            check_flag(name, getattr(self, name))


@dataclass(eq=False)
class Weights:
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
        """Return what the latents are before any is chosen, (b, d) to (b, u)."""
        return torch.addmm(self.bias, tokens - self.centre, self.encoder)

    def decode(self, latents: Tensor) -> Tensor:
        """Return tokens (b, d) from latents (b, u)."""
        return torch.addmm(self.centre, latents, self.decoder)

    def tensors(self) -> list[Tensor]:
        """Return all four."""
        return [getattr(self, field.name) for field in fields(self)]

    def copy(self) -> Weights:
        """Return a copy that training does not change."""
        return Weights(*(tensor.detach().clone() for tensor in self.tensors()))


class Rule(Protocol):
    """What one kind of autoencoder adds: which latents are active, and what is to be small."""

    def activate(self, values: Tensor) -> Tensor:
        """Return the active latents of a batch, (b, u) to (b, u)."""

    def loss(self, tokens: Tensor, latents: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
        """Return the loss, and what the reconstruction leaves of the tokens, (b, d)."""

    def revival(self, left: Tensor, values: Tensor, dead: Tensor, weights: Weights) -> Tensor:
        """Return what is added to the loss, with a small weight, for the sake of the dead latents, (u,), bool."""


@dataclass(frozen=True, eq=False)
class Trained:
    """Weights for tokens less ``mean`` (d,) over ``scale``, and their history: one row a look at held-out tokens."""

    weights: Weights
    mean: Tensor
    scale: float
    history: pd.DataFrame


def train(rule: Rule, tokens: Tensor, images: Tensor, width: int, training: Training, description: str) -> Trained:
    """Train ``width`` latents on tokens (t, d) of ``images`` (t,), and return the best weights seen.

    The tokens of a tenth of the images are held out; the weights with the smallest loss on them are kept. Tokens are
    centred and scaled to a mean length of 1, so that one learning rate does for all sites. What is drawn depends on
    ``training.seed`` alone, and torch's global generator is left alone.

    Raises
    ------
    ValueError
        If there are fewer than two images, fewer tokens than latents, all tokens are the same, or the loss overflows.
    """
    if len(tokens) < width:
        raise ValueError(
            f"{len(tokens):,} tokens are too few for width={width:,}; record more tokens or ask for fewer latents."
        )
    generator = torch.Generator().manual_seed(training.seed)
    held = hold_out(images, generator)
    mean = tokens[~held].mean(0)
    centred = tokens - mean
    scale = float(centred[~held].norm(dim=1).mean())
    if scale <= torch.finfo(tokens.dtype).eps * float(mean.norm()):
        raise ValueError("All tokens are the same; there is nothing to learn from. Record other images or tokens.")
    centred /= scale
    run = _Run(rule, centred[~held], centred[held], width, training, generator)
    with torch.enable_grad():  # the caller may be in the middle of forward passes
        history = run.all_steps(description)
    return Trained(run.best, mean, scale, history)


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
    """Return AuxK: how badly the dead latents alone give back what the reconstruction left (Gao et al. 2024).

    Of the dead latents the d / 2 strongest at a token take part. What is left counts as given: only the dead learn.

    Parameters
    ----------
    left
        Tokens less their reconstruction, (b, d).
    values
        Latents before any is chosen, (b, u).
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


def silence(values: Tensor, dead: Tensor) -> Tensor:
    """Return how far the dead latents are below 0, their sum, mean over tokens.

    A latent whose values are all negative has a gradient of 0 in any loss of what is active; this one lifts it until it
    fires. It follows the pre-activation loss of Anthropic's Circuits Updates of January 2025, at a threshold of 0.

    Examples
    --------
    >>> float(silence(torch.tensor([[-1.0, -3.0], [-5.0, 1.0]]), torch.tensor([False, True])))
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
    """Return the squared length of what is left (b, d), mean over tokens."""
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
    """One training: the weights, the optimiser, and since when each latent has not fired."""

    def __init__(
        self, rule: Rule, tokens: Tensor, held: Tensor, width: int, training: Training, generator: Generator
    ) -> None:
        self.rule, self.tokens, self.held, self.training, self.generator = rule, tokens, held, training, generator
        self.weights = Weights.random(tokens.shape[1], width, generator)
        for tensor in self.weights.tensors():
            tensor.requires_grad_()
        self.optimizer = torch.optim.Adam(self.weights.tensors(), lr=training.learning_rate, fused=True)
        self.idle = torch.zeros(width, dtype=torch.long)
        self.patience_of_latents = min(LONGEST_IDLE, math.ceil(len(tokens) / training.batch_size))
        self.best = self.weights.copy()

    def all_steps(self, description: str) -> pd.DataFrame:
        """Train until the held-out loss falls no more, or all steps are done; return the history."""
        start, smallest, waited, losses, rows = time.perf_counter(), math.inf, 0, [], []
        steps, drawn = self.training.steps, batches(len(self.tokens), self.training.batch_size, self.generator)
        with progress_bar(description=description, total=steps, show=self.training.progress, unit="step") as bar:
            for step in range(1, steps + 1):
                self.optimizer.param_groups[0]["lr"] = self.training.learning_rate * (1 - (step - 1) / steps)
                losses.append(self.step(self.tokens[next(drawn)]))
                bar.update()
                if step % EVALUATE_EVERY and step < steps:
                    continue
                objective, held_out = self.look()
                if not math.isfinite(objective):
                    raise ValueError(
                        f"The loss is {objective} after {step} steps; lower "
                        f"learning_rate={self.training.learning_rate}."
                    )
                rows.append((step, sum(losses) / len(losses), *held_out, time.perf_counter() - start))
                losses.clear()
                bar.set_postfix_str(f"FVU {held_out[0]:.3f}")
                waited = 0 if objective < (1 - LEAST_GAIN) * smallest else waited + 1
                if objective < smallest:
                    smallest, self.best = objective, self.weights.copy()
                if waited >= self.training.patience:
                    break
        return pd.DataFrame(rows, columns=list(HISTORY))

    def step(self, tokens: Tensor) -> float:
        """Take one step on a batch (b, d); return its loss, without what revives dead latents."""
        values = self.weights.values(tokens)
        latents = self.rule.activate(values)
        loss, left = self.rule.loss(tokens, latents, self.weights)
        total = loss
        if self.training.revive:
            total = loss + REVIVAL_WEIGHT * self.rule.revival(left, values, self.dead(), self.weights)
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
        """Return which latents have not fired for long, (u,), bool."""
        return self.idle >= self.patience_of_latents

    @torch.no_grad()
    def look(self) -> tuple[float, tuple[float, float, float]]:
        """Return the held-out loss; and fraction of variance unexplained, active latents a token, dead share."""
        latents = self.rule.activate(self.weights.values(self.held))
        objective, left = self.rule.loss(self.held, latents, self.weights)
        variance = self.held.square().sum().clamp(min=torch.finfo(self.held.dtype).tiny)  # about the training mean
        active = (latents > 0).sum(1).double().mean()
        unexplained, dead = left.square().sum() / variance, self.dead().double().mean()
        return float(objective), (float(unexplained), float(active), float(dead))


def project_out(decoder: Tensor) -> None:
    """Take from the decoder's gradient what would only change the length of its rows."""
    if decoder.grad is not None:
        rows = decoder.detach()
        decoder.grad -= (decoder.grad * rows).sum(1, keepdim=True) * rows
