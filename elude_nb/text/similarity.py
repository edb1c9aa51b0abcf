"""Similarities: how alike a model finds inputs, and what an edit does to that, beside controls of the same strength.

Where there are no classes, as in a sentence encoder, the cosine of two outputs is what a model is used for. An edit
that does what its name says moves the similarities among the inputs meant, and no others.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from elude_nb._util.checks import check_choice, check_count
from elude_nb._util.progress import progress_bar
from elude_nb.core.edit import Edit
from elude_nb.core.plan import Splittable
from elude_nb.core.result import check_split
from elude_nb.core.steer import check_edit
from elude_nb.data.images import Images, ImageSet
from elude_nb.errors import EditError
from elude_nb.models.forward import features
from elude_nb.models.hooks import evaluating
from elude_nb.models.load import Model, check_model
from elude_nb.steering.controls import Trial
from elude_nb.steering.heads import read_outputs
from elude_nb.steering.interventions import (
    Intervention,
    edited_concepts,
    edited_tokens,
    edited_units,
    projected_out,
    random_concepts,
    random_units,
    removal,
    whole_channels,
)

Matrix = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Mask = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]

_FEWEST = 3  # of the target and of the others: two have one pair, of which nothing can be said
_RESAMPLES = 1000


def similarities(model: Model, inputs: Images, *, batch_size: int = 16) -> pd.DataFrame:
    """Return the cosine of every two inputs, (n, n), with the inputs' names.

    It is that of a sentence encoder's embeddings, and of a vision model's `elude_nb.models.forward.features`: its output
    beside the mean of its patch tokens, where it has any.

    Inside ``with split.edit(edit):`` these are the similarities of the edited model.

    Examples
    --------
    ``similarities(model, load_sentences(["He plays the bass.", "He caught a bass."]))``
    """
    check_model(model)
    chosen = model.inputs(inputs)
    found = cosines(read_outputs(model, chosen, batch_size=batch_size))
    return pd.DataFrame(found, index=list(chosen.names), columns=list(chosen.names))


def cosines(outputs: Tensor) -> Matrix:
    """Return the cosine of every two rows of (n, e), (n, n) in float64."""
    rows = torch.nn.functional.normalize(outputs.double(), dim=1)
    return (rows @ rows.T).numpy()


@dataclass(frozen=True, eq=False)
class SimilarityEffect:
    """What an edit and its controls did to similarities.

    Attributes
    ----------
    edit, target
        The edit, and the label whose inputs it is meant for.
    before
        Mean cosine (as in `similarities`) of the model as it is: ``within`` the target, ``across`` (one of the target,
        one other), and ``elsewhere`` (neither).
    table
        One row a method, the edit first: by how much these means changed, each with the ends ``low`` and ``high`` of
        its 95 % bootstrap interval over inputs (random controls: the outcomes of their draws averaged), and the
        ``largest_change`` of one output.
    left_out
        Controls that could not be had, with the reason.
    inputs
        How many inputs were measured.
    """

    edit: Edit
    target: str
    before: pd.Series[float]
    table: pd.DataFrame
    left_out: tuple[str, ...]
    inputs: int

    def __str__(self) -> str:
        first = self.table.iloc[0]
        return (
            f"{self.target}: similarity within {first['within']:+.3f} (it was {self.before['within']:.3f}), "
            f"across {first['across']:+.3f}, elsewhere {first['elsewhere']:+.3f}"
        )

    def __repr__(self) -> str:
        return f"SimilarityEffect({self})"

    def _repr_html_(self) -> str:
        notes = "".join(f"<br>{html.escape(note)}" for note in self.left_out)
        shown = self.table.to_html(index=False, float_format=lambda value: f"{value:+.3f}")
        heading = f"{html.escape(repr(self.edit))} on {self.inputs} inputs<br>{html.escape(str(self))}{notes}"
        return f"<p>{heading}</p>{shown}"


def similarity_effect(
    split: Splittable,
    edit: Edit,
    inputs: Images,
    *,
    target: str,
    draws: int = 5,
    seed: int = 0,
    batch_size: int = 16,
    progress: bool = True,
) -> SimilarityEffect:
    """Measure what an edit does to the similarities among inputs of one label, and to all others, beside controls.

    The controls do the same to as many other sub-units of the same channels and to as many other concepts (each drawn
    at random ``draws`` times), to the edited channels as a whole, and along the concepts' mean directions.

    Parameters
    ----------
    split, edit
        The split and the edit.
    inputs
        Sentences (or images) with labels; not those of the discovery.
    target
        The label that the edit is meant for.
    draws, seed
        Draws of each random control, and the seed of these and of the intervals.
    batch_size, progress
        Inputs in one forward pass, and whether to show a bar.

    Raises
    ------
    EditError, ModelMismatchError
        If the split cannot carry out the edit, it has a schedule, or an edit is active already.
    ValueError
        If there are no labels, or fewer than three inputs of the target or of the others.

    Examples
    --------
    ``similarity_effect(split, Edit.scale(concept=12, by=3.0), held_out, target="music")``
    """
    plan = check_edit(split, edit)
    if not edit.changes or any(change.scheduled for change in edit.changes):
        raise EditError("similarity_effect measures an edit at its full strength: one that changes something always.")
    check_split(split, "similarity_effect")
    check_count("draws", draws)
    check_count("batch_size", batch_size)
    chosen = split.model.inputs(inputs)
    is_target = _targets(chosen, target)
    made, left_out = _controls(split, edit, draws, seed)
    methods = [Intervention("edit", f"{len(edited_units(split, edit))} sub-units", (plan,)), *made]
    with (
        evaluating(split.model.network),
        progress_bar(description="similarities", total=len(chosen), show=progress, unit="input") as bar,
    ):
        trial = Trial(split, features, edited_tokens(split, edit), batch_size, bar)
        found = trial.through(chosen, methods, [1.0])
    measure = _Measure(cosines(found.before), is_target, seed)
    rows = []
    for place, method in enumerate(methods):
        after = found.after[place, 1.0]
        change = np.mean([cosines(outputs) for outputs in after], axis=0) - cosines(found.before)
        moved = max(float((outputs - found.before).abs().max()) for outputs in after)
        rows.append({"method": method.name, "detail": method.detail, **measure.of(change), "largest_change": moved})
    before = pd.Series({name: measure.mean(cosines(found.before), name) for name in _KINDS}, name="similarity")
    return SimilarityEffect(edit, target, before, pd.DataFrame(rows), left_out, len(chosen))


def _targets(inputs: ImageSet, target: str) -> Mask:
    """Return which inputs are of the target, (n,)."""
    if inputs.labels is None:
        raise ValueError("similarity_effect needs inputs with labels: which are meant, and which are the others?")
    check_choice("target", target, sorted(set(inputs.labels)))
    found = np.array([label == target for label in inputs.labels])
    fewest = min(int(found.sum()), int((~found).sum()))
    if fewest < _FEWEST:
        raise ValueError(
            f"{int(found.sum())} of {len(found)} inputs are labelled {target!r}; at least {_FEWEST} of these and "
            f"{_FEWEST} others are needed."
        )
    return found


def _controls(split: Splittable, edit: Edit, draws: int, seed: int) -> tuple[list[Intervention], tuple[str, ...]]:
    """Return the controls, and in words those that cannot be had."""
    share = removal(edit)

    def directions() -> Intervention:
        concepts = edited_concepts(split, edit)
        if share is None or not concepts:
            raise EditError("the edit does not scale all of a concept about its mean.")
        return projected_out(split, concepts, share)

    def channels() -> Intervention:
        if share is None:
            raise EditError("the edit does not scale activations about their mean.")
        return whole_channels(split, [channel for channel, _ in edited_units(split, edit)], share, "same channels")

    makers: dict[str, Callable[[], Intervention]] = {
        "random sub-units": lambda: random_units(split, edit, draws, seed),
        "random concept": lambda: random_concepts(split, edit, draws, seed),
        "same channels": channels,
        "mean direction": directions,
    }
    made, left_out = list[Intervention](), list[str]()
    for name, make in makers.items():
        try:
            made.append(make())
        except EditError as error:
            left_out.append(f"{name} left out: {error}")
    return made, tuple(left_out)


_KINDS = ("within", "across", "elsewhere")


class _Measure:
    """Means over pairs of different inputs, with intervals over inputs: pairs that share one are not independent."""

    def __init__(self, like: Matrix, is_target: Mask, seed: int) -> None:
        n = len(like)
        apart = ~np.eye(n, dtype=bool)
        both, neither = np.outer(is_target, is_target), np.outer(~is_target, ~is_target)
        self._pairs = {"within": both & apart, "across": ~both & ~neither, "elsewhere": neither & apart}
        rng = np.random.default_rng(seed)
        sides = [np.flatnonzero(is_target), np.flatnonzero(~is_target)]
        draws = np.zeros((_RESAMPLES, n))  # how often each input is drawn; the target's by themselves
        for side in sides:
            draws[:, side] = rng.multinomial(len(side), np.full(len(side), 1 / len(side)), size=_RESAMPLES)
        self._draws = draws

    def mean(self, values: Matrix, kind: str) -> float:
        return float(values[self._pairs[kind]].mean())

    def of(self, change: Matrix) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for kind, pairs in self._pairs.items():
            sums = ((self._draws @ (change * pairs)) * self._draws).sum(1)
            counts = ((self._draws @ pairs) * self._draws).sum(1)
            means = sums[counts > 0] / counts[counts > 0]  # an input drawn alone, again and again, has no pair
            low, high = np.quantile(means, [0.025, 0.975])
            found |= {kind: self.mean(change, kind), f"{kind}_low": float(low), f"{kind}_high": float(high)}
        return found
