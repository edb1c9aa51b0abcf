"""Similarities: how alike a model finds inputs, and what an edit does to that, beside controls of the same strength.

Where there are no classes, as in a sentence encoder, the cosine of two outputs is what a model is used for. An edit
that does what its name says moves the similarities among the inputs meant, and no others.
"""

from __future__ import annotations

import html
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from elude_nb._util.checks import check_choice, check_count
from elude_nb.core.edit import Edit
from elude_nb.core.result import Disentanglement, check_split
from elude_nb.data.images import Images, ImageSet
from elude_nb.models.forward import Rest
from elude_nb.models.hooks import evaluating
from elude_nb.models.load import Model
from elude_nb.steering.controls import Controls, check_fixed_edit, describe_edit, edited_tokens
from elude_nb.steering.heads import read_outputs
from elude_nb.steering.interventions import run_interventions

Matrix = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Mask = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]

CONTROLS = ("random sub-units", "random concept", "same channels", "mean direction")
_FEWEST = 3  # of the target and of the others: two have one pair, of which nothing can be said
_RESAMPLES = 1000


def similarities(
    model: Model, inputs: Images, *, batch_size: int | None = None, progress: bool | None = None
) -> pd.DataFrame:
    """Return the cosine of every two inputs, (n, n), with the inputs' names.

    It is that of a sentence encoder's embeddings, and of a vision model's `elude_nb.models.forward.features`: its
    output beside the mean of its patch tokens, where it has any.

    Inside ``with split.edit(edit):`` these are the similarities of the edited model.

    Examples
    --------
    ``similarities(model, load_sentences(["He plays the bass.", "He caught a bass."]))``
    """
    found = cosines(read_outputs(model, inputs, batch_size=batch_size, progress=progress))
    names = list(model.inputs(inputs).names)
    return pd.DataFrame(found, index=names, columns=names)


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
        Controls that the edit does not have, with the reason.
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
    split: Disentanglement,
    edit: Edit,
    inputs: Images,
    *,
    target: str,
    draws: int = 5,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool | None = None,
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
        In place of the model's own settings.

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
    split = split.using(batch_size=batch_size, progress=progress)
    check_fixed_edit(split, edit, "similarity_effect")
    check_split(split, "similarity_effect")
    check_count("draws", draws)
    chosen = split.model.inputs(inputs)
    is_target = _targets(chosen, target)
    made, left_out = Controls(split, edit, draws, seed).make_all(CONTROLS)
    methods = [describe_edit(split, edit), *made]
    with evaluating(split.model.network):
        rest = Rest(split.model, split.site)
        found = run_interventions(split, rest, chosen, methods, weights=edited_tokens(split, edit))
    plain = cosines(found.before)
    measure = _Measure(is_target, seed)
    rows = []
    for place, method in enumerate(methods):
        after = found.after[place, 1.0]
        change = np.mean([cosines(outputs) for outputs in after], axis=0) - plain
        moved = max(float((outputs - found.before).abs().max()) for outputs in after)
        rows.append({"method": method.name, "detail": method.detail, **measure.of(change), "largest_change": moved})
    before = pd.Series({kind: plain[pairs].mean() for kind, pairs in measure.pairs.items()}, name="similarity")
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


class _Measure:
    """Means over pairs of different inputs, with intervals over inputs: pairs that share one are not independent."""

    def __init__(self, is_target: Mask, seed: int) -> None:
        n = len(is_target)
        apart = ~np.eye(n, dtype=bool)
        both, neither = np.outer(is_target, is_target), np.outer(~is_target, ~is_target)
        self.pairs = {"within": both & apart, "across": ~both & ~neither, "elsewhere": neither & apart}
        rng = np.random.default_rng(seed)
        self._draws = np.zeros((_RESAMPLES, n))  # how often each input is drawn; the target's by themselves
        for side in (np.flatnonzero(is_target), np.flatnonzero(~is_target)):
            self._draws[:, side] = rng.multinomial(len(side), np.full(len(side), 1 / len(side)), size=_RESAMPLES)

    def of(self, change: Matrix) -> dict[str, float]:
        """Return the mean change over each kind of pairs, with the ends of its interval."""
        found: dict[str, float] = {}
        for kind, pairs in self.pairs.items():
            sums = ((self._draws @ (change * pairs)) * self._draws).sum(1)
            counts = ((self._draws @ pairs) * self._draws).sum(1)
            means = sums[counts > 0] / counts[counts > 0]  # an input drawn alone, again and again, has no pair
            low, high = np.quantile(means, [0.025, 0.975])
            found |= {kind: float(change[pairs].mean()), f"{kind}_low": float(low), f"{kind}_high": float(high)}
        return found
