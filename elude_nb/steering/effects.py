"""What an edit does: to the class meant, to all others, to the outputs, beside controls of the same strength."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from elude_nb._util.arguments import knows_arguments
from elude_nb._util.arithmetic import own_arithmetic
from elude_nb._util.checks import check_choice, check_count, check_fraction, shortly
from elude_nb.baselines.sae import SparseAutoencoder
from elude_nb.core.edit import Edit
from elude_nb.core.result import Disentanglement, check_split
from elude_nb.core.seen import Seen
from elude_nb.data.images import Images, ImageSet
from elude_nb.errors import EditError
from elude_nb.models.forward import Rest, features
from elude_nb.models.hooks import evaluating
from elude_nb.scores.intervals import mean_interval
from elude_nb.steering.controls import CONTROLS, Controls, check_fixed_edit, describe_edit, edited_tokens
from elude_nb.steering.heads import HEADS, Head, class_codes, class_number, fit_on_outputs
from elude_nb.steering.interventions import Intervention, Outcomes, run_interventions

_TRIED = (0.2, 0.4, 0.7, 1.0, 1.5, 2.5, 4.0)
"""Strengths at which methods are tried to find the one of an equal drop."""


@dataclass(frozen=True, eq=False)
class Effect:
    """What an edit and its controls did.

    Drops are of the probability of the true class, and of accuracy, in points of 1; the lower those of the others, the
    better. Intervals are 95 % bootstrap intervals over images.

    Attributes
    ----------
    edit, target, head
        The edit, the class it is meant for, and the head whose probabilities are compared.
    table
        One row a method, the edit first: ``drop`` on the target (with ``low``, ``high``), ``others`` (mean over the
        other classes, with interval), ``worst`` and ``worst_class`` of them, ``specificity`` (drop over the mean
        absolute change of the other classes), the same of accuracy, ``cosine`` of outputs before and after (centred)
        on the target and on the others, and the ``largest_change`` of an output.
    curve
        The same at each strength.
    by_class
        Drop in probability of each class, one row a method, at full strength.
    accuracy
        Of the head on the model as it is, one value a class.
    left_out
        Controls that the edit does not have, with the reason.
    before, after
        What the head looks at, (n, e), of the model as it is and with the edit at full strength.
    seen
        How many images were measured, and how many of them the discovery saw.
    at_equal_drop
        One row a method, but for those drawn at random, as in the table, at the ``strength`` at which it took
        ``equal_drop`` off the target on the images to choose on; ``reached`` says whether it did (else the row is of
        the strength at which it came nearest). ``None`` unless asked for.
    """

    edit: Edit
    target: str
    head: Head
    table: pd.DataFrame
    curve: pd.DataFrame
    by_class: pd.DataFrame
    accuracy: pd.Series[float]
    left_out: tuple[str, ...]
    before: Tensor
    after: Tensor
    seen: Seen
    at_equal_drop: pd.DataFrame | None = None

    @property
    def images(self) -> int:
        """Return how many images were measured."""
        return self.seen.total

    def damage(self, up_to: float = 0.5) -> pd.Series[float]:
        """Return what the other classes lose on average while the target falls to ``up_to``, one value a method.

        The area under the line of `elude_nb.figures.selectivity_curves`, from no edit to that drop, divided by the
        drop: straight lines between the strengths measured, ``others`` against ``drop``. A method whose drop does not
        reach ``up_to`` at any strength has NaN; give `effect` larger ``strengths``.

        Raises
        ------
        ValueError
            If ``up_to`` is not between 0 and 1.
        """
        check_fraction("up_to", up_to, open_ends=True)
        areas = {}
        for method, rows in self.curve.groupby("method", sort=False):
            ordered = rows[rows["strength"] > 0].sort_values("strength")
            areas[method] = _area(ordered["drop"].tolist(), ordered["others"].tolist(), up_to) / up_to
        return pd.Series(areas, name=f"damage up to {up_to}", dtype=float)

    def __str__(self) -> str:
        first = self.table.iloc[0]
        names = ("drop", "accuracy_drop", "others", "accuracy_others", "worst")
        drop, accuracy, others, other_accuracy, worst = (f"{-100 * first[name]:+z.1f}" for name in names)
        return (
            f"{self.target}: probability {drop} points, accuracy {accuracy}; the others {others} and {other_accuracy} "
            f"(worst: {first['worst_class']} {worst}); specificity {first['specificity']:z.1f}"
        )

    def __repr__(self) -> str:
        return f"Effect({self}; {self.seen})"

    def _repr_html_(self) -> str:
        shown = self.table.drop(columns=["low", "high", "others_low", "others_high"])
        notes = "".join(f"<br>{html.escape(note)}" for note in self.left_out)
        return (
            f"<p>{html.escape(repr(self.edit))} on {self.seen}; {html.escape(self.head.name)}<br>"
            f"{html.escape(str(self))}{notes}</p>{shown.to_html(index=False, float_format='{:z.3f}'.format)}"
        )


def _area(drops: Iterable[float], others: Iterable[float], up_to: float) -> float:
    """Return the area under the line from (0, 0) through (drops, others) to the first point whose drop is ``up_to``."""
    before, line, area = 0.0, 0.0, 0.0
    for drop, other in zip(drops, others, strict=True):
        share = 1.0 if drop < up_to else (up_to - before) / (drop - before)
        stop = line + share * (other - line)
        area += (min(drop, up_to) - before) * (line + stop) / 2
        if drop >= up_to:
            return area
        before, line = drop, other
    return float("nan")


@knows_arguments
@own_arithmetic()
def effect(
    split: Disentanglement,
    edit: Edit,
    images: Images,
    *,
    head: str | Head = "probe",
    target: str | None = None,
    fit: Images | None = None,
    controls: Sequence[str] = tuple(CONTROLS),
    beside: Mapping[str, Edit] | None = None,
    strengths: Sequence[float] = (0.25, 0.5, 0.75, 1.0),
    equal_drop: float | None = None,
    draws: int = 5,
    sae: SparseAutoencoder | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool | None = None,
) -> Effect:
    """Measure what an edit does to the class it is meant for and to all others, beside controls.

    One half of the images fits the head and chooses target, channel and latent; the other half is measured.

    Parameters
    ----------
    split, edit
        The split and the edit.
    images
        Images with labels; not those of the discovery.
    head
        ``"probe"`` or ``"knn"``, fitted here on the labels; or a head, as `fit_head` or `OwnClassifier` make one.
    target
        The label meant; without it, the one whose true probability falls most on the first half.
    fit
        Images with labels to fit and choose on; then all of ``images`` are measured.
    controls
        Which of ``elude_nb.steering.controls.CONTROLS``. ``"same channels"`` does to the edited channels as a whole
        what the edit does to their sub-units; ``"best channel"`` is the one that tells the target best; ``"mean
        direction"`` projects the concept's mean out; ``"SAE latent"`` takes away what the best latent adds; three take
        out a direction that is learned on the first half (`elude_nb.steering.directions`); two are drawn at random.
    beside
        Other edits to measure on the same images, by the name that each has in the tables: the same concepts with
        another ``exclusive``, or another way to choose concepts.
    strengths
        For the dose-response curve: shares of all that the edit does. 1 is always measured.
    equal_drop
        Tune all methods on the first half until the target's probability falls by so much there, as 0.5, and measure
        each at that strength as well: `Effect.at_equal_drop`. What else falls can then be compared.
    draws
        Draws of each random control.
    sae
        A fitted autoencoder; by default one is trained on the first half's tokens.
    seed
        Of the halves, the draws and the autoencoder.
    batch_size, progress
        In place of the model's own settings.

    Raises
    ------
    EditError, ModelMismatchError
        If the split cannot carry out the edit, or it has a schedule.
    ValueError
        If there are no labels or too few, or a name is unknown. Nothing has run by then.

    Examples
    --------
    ``effect(split, Edit.ablate(concept=12), held_out, target="cat").table``
    """
    split = split.using(batch_size=batch_size, progress=progress)
    check_fixed_edit(split, edit, "effect")
    check_split(split, "effect")
    wanted = [controls] if isinstance(controls, str) else list(controls)
    for control in wanted:
        check_choice("controls", control, CONTROLS)
    doses = sorted({*(float(strength) for strength in strengths), 1.0})
    if not np.isfinite(doses).all():
        raise EditError(f"strengths={doses} must be finite.")
    others = dict(beside or {})
    for name, other in others.items():
        if name in {"edit", *CONTROLS}:
            raise ValueError(f"beside={name!r} is the name of a control or of the edit itself; give it another.")
        check_fixed_edit(split, other, "effect")
    check_count("draws", draws)
    if equal_drop is not None:
        check_fraction("equal_drop", equal_drop, open_ends=True)
    if isinstance(head, str):
        check_choice("head", head, HEADS)
    elif not all(hasattr(head, part) for part in ("classes", "read", "probabilities")):
        raise TypeError(f"head must be a name or what fit_head returns, not {shortly(head)}.")
    weights = edited_tokens(split, edit)
    if weights is not None and not weights.any():
        raise EditError("The mask is 0 everywhere: there is no token at which anything could be measured.")
    chosen, measured = _halves(split, images, fit, seed)
    targets = _targets(head, _labels(chosen), _labels(measured))
    if target is not None:
        check_choice("target", target, targets)
    main = describe_edit(split, edit)
    with evaluating(split.model.network):
        rest = Rest(split.model, split.site, features if isinstance(head, str) else head.read)
        tunes = equal_drop is not None
        edits = [main, *(replace(describe_edit(split, other), name=name) for name, other in others.items())]
        # What the edits do on the images to choose on is asked for by the tuning and by the choice of the target.
        first, tried = edits if tunes else [main] if target is None else [], _TRIED if tunes else (1.0,)
        seen = run_interventions(split, rest, chosen, first, tried, weights=weights, seed=seed, keep=tunes)
        if isinstance(head, str):
            head = fit_on_outputs(seen.before, _labels(chosen), head, k=min(5, len(chosen)))
        target = target or _most_affected(head, seen, _labels(chosen), targets)
        is_target = torch.tensor([label == target for label in _labels(chosen)])
        made, left_out = Controls(split, edit, draws, seed, seen, is_target, sae).make_all(wanted)
        every = [*edits, *made]
        on_chosen = Measure(head, seen.before, class_codes(head, _labels(chosen)), class_number(head, target))
        own = {} if equal_drop is None else _tuned(equal_drop, split, rest, chosen, every, seen, on_chosen, weights)
        of_each = [[*doses, *({own[place][0]} if place in own else ())] for place in range(len(every))]
        found = run_interventions(split, rest, measured, every, of_each, weights=weights)
    measure = Measure(head, found.before, class_codes(head, _labels(measured)), class_number(head, target))
    counted = split.announce_seen(measured, "effect")
    made_of = _effect(edit, measure, every, doses, found, left_out, counted)
    rows = [
        {"method": every[place].name, "detail": every[place].detail, "strength": strength, "reached": reached,
         **measure.of(found.after[place, strength])}
        for place, (strength, reached) in own.items()
    ]  # fmt: skip
    return replace(made_of, at_equal_drop=pd.DataFrame(rows)) if rows else made_of


def _tuned(
    drop: float,
    split: Disentanglement,
    rest: Rest,
    chosen: ImageSet,
    every: Sequence[Intervention],
    seen: Outcomes,
    measure: Measure,
    weights: Tensor | None,
) -> dict[int, tuple[float, bool]]:
    """Return the strength of an equal drop for each intervention that is not drawn at random, by its number.

    ``seen`` is what came of the first of them, the edits; the others change channels, and go on from there.
    """
    after = dict(seen.after)
    tried = {number for number, _ in after}
    others = [i for i, each in enumerate(every) if i not in tried and not each.is_random]
    changes = [every[i] for i in others]
    found = run_interventions(split, rest, seen.captured or chosen, changes, _TRIED, weights=weights)
    after |= {(others[i], strength): outputs for (i, strength), outputs in found.after.items()}
    return {i: _strength_for(drop, measure, after, i) for i in [*sorted(tried), *others]}


def _strength_for(
    drop: float, measure: Measure, after: Mapping[tuple[int, float], Sequence[Tensor]], place: int
) -> tuple[float, bool]:
    """Return the smallest strength at which an intervention takes ``drop`` off the target, and whether it does.

    Without any that reaches it, the nearest is returned.
    """
    drops = [float(measure.by_class(after[place, strength])[measure.target]) for strength in _TRIED]
    found = strength_at(drop, [0.0, *_TRIED], [0.0, *drops])
    return (_TRIED[int(np.argmax(drops))], False) if np.isnan(found) else (found, True)


def strength_at(drop: float, strengths: Sequence[float], drops: Sequence[float]) -> float:
    """Return the smallest strength at which a drop is reached, with straight lines between those measured.

    Parameters
    ----------
    drop
        The drop.
    strengths, drops
        Strengths in order, 0 first, and the drop at each.

    Returns
    -------
    float
        NaN if none of them reaches it.

    Examples
    --------
    >>> strength_at(0.25, [0, 0.5, 1], [0, 0.1, 0.4])
    0.75
    """
    for i in range(1, len(drops)):
        if drops[i] >= drop:
            share = (drop - drops[i - 1]) / (drops[i] - drops[i - 1])
            return float(strengths[i - 1] + share * (strengths[i] - strengths[i - 1]))
    return float("nan")


def _most_affected(head: Head, seen: Outcomes, labels: Sequence[str], targets: Sequence[str]) -> str:
    """Return the label among ``targets`` whose true probability falls most."""
    measure = Measure(head, seen.before, class_codes(head, labels), 0)
    return str(measure.by_class(seen.after[0, 1.0])[list(targets)].idxmax())


def _effect(
    edit: Edit,
    measure: Measure,
    interventions: Sequence[Intervention],
    strengths: Sequence[float],
    found: Outcomes,
    left_out: tuple[str, ...],
    seen: Seen,
) -> Effect:
    curve = pd.DataFrame(
        [
            {
                "method": each.name,
                "detail": each.detail,
                "strength": strength,
                **measure.of(found.after[place, strength]),
            }
            for place, each in enumerate(interventions)
            for strength in strengths
        ]
    )
    by_class = [measure.by_class(found.after[place, 1.0]) for place in range(len(interventions))]
    return Effect(
        edit=edit,
        target=measure.target,
        head=measure.head,
        table=curve[curve["strength"] == 1.0].drop(columns="strength").reset_index(drop=True),
        curve=curve,
        by_class=pd.DataFrame(by_class, index=pd.Index([each.name for each in interventions], name="method")),
        accuracy=measure.accuracy,
        left_out=left_out,
        before=found.before,
        after=found.after[0, 1.0][0],
        seen=seen,
    )


class Measure:
    """Outcomes before and after, image by image; draws are averaged first."""

    def __init__(self, head: Head, before: Tensor, codes: Tensor, target: int) -> None:
        self.head, self.target = head, head.classes[target]
        self._before, self._codes, self._is_target = before, codes, codes == target
        self._probability, self._right = self._judged(before)

    @property
    def accuracy(self) -> pd.Series[float]:
        """Accuracy on each class of the model as it is."""
        return self._means(self._right).rename("accuracy")

    def by_class(self, after: Sequence[Tensor]) -> pd.Series[float]:
        """Return the drop in probability of each class."""
        return self._means(self._drops(after)[0])

    def of(self, after: Sequence[Tensor]) -> dict[str, Any]:
        """Return a row of the table."""
        drops, lost = self._drops(after)
        cosine = torch.stack([self._cosine(each) for each in after]).mean(0)
        others, accuracies = (self._means(values).drop(self.target) for values in (drops, lost))
        meant = self._is_target
        # Weighted so that their mean is that over classes, however many images each has.
        counts = torch.bincount(self._codes)[self._codes[~meant]]
        drop = mean_interval(drops[meant])
        rest = mean_interval(drops[~meant] * len(counts) / (len(others) * counts))
        moved = float(others.abs().mean())
        return {
            "drop": drop.mean,
            "low": drop.low,
            "high": drop.high,
            "others": others.mean(),
            "others_low": rest.low,
            "others_high": rest.high,
            "worst": others.max(),
            "worst_class": others.idxmax(),
            "specificity": drop.mean / moved if moved > 0 else float("nan") if drop.mean == 0 else float("inf"),
            "accuracy_drop": float(lost[meant].mean()),
            "accuracy_others": accuracies.mean(),
            "accuracy_worst": accuracies.max(),
            "target_cosine": float(cosine[meant].mean()),
            "others_cosine": float(cosine[~meant].mean()),
            "largest_change": max(float((each - self._before).abs().max()) for each in after),
        }

    def _judged(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the probability of each image's true class, and whether it is the most probable, (n,) each."""
        probabilities = self.head.probabilities(outputs).double()
        return probabilities.gather(1, self._codes[:, None])[:, 0], (probabilities.argmax(1) == self._codes).double()

    def _drops(self, after: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return what probability and accuracy lose, image by image."""
        judged = [self._judged(each) for each in after]
        lost = [(self._probability - probability, self._right - right) for probability, right in judged]
        drops, wrong = (torch.stack(parts).mean(0) for parts in zip(*lost, strict=True))
        return drops, wrong

    def _means(self, values: Tensor) -> pd.Series[float]:
        """Return the mean over each class's images."""
        grouped = pd.Series(values.numpy()).groupby(self._codes.numpy()).mean()
        return grouped.rename(index=dict(enumerate(self.head.classes)))

    def _cosine(self, after: Tensor) -> Tensor:
        centre = self._before.mean(0)
        return torch.nn.functional.cosine_similarity(self._before - centre, after - centre, dim=1)


def _halves(split: Disentanglement, images: Images, fit: Images | None, seed: int) -> tuple[ImageSet, ImageSet]:
    """Return the images to choose on and those to measure on."""
    photos = split.model.inputs(images).without_copies()
    apart = photos.split(0.5, seed=seed) if fit is None else (split.model.inputs(fit).without_copies(), photos)
    chosen, measured = apart
    for part, use in ((measured, "measure"), (chosen, "choose")):
        if len(set(_labels(part))) < 2:
            raise ValueError(f"The images to {use} on are all labelled {set(_labels(part))}: who are the others?")
    return chosen, measured


def _targets(head: str | Head, chosen: Sequence[str], measured: Sequence[str]) -> list[str]:
    """Return the labels that can be the target; raise ``ValueError`` if the head would not know a label."""
    fitted, shown = set(chosen), set(measured)
    known = fitted if isinstance(head, str) else set(head.classes)
    unknown = (shown | (set() if isinstance(head, str) else fitted)) - known
    if unknown:
        few = " (a label needs images in both halves)" if isinstance(head, str) else ""
        raise ValueError(f"The head knows {sorted(known)}, but some images are labelled {sorted(unknown)}{few}.")
    if not fitted & shown:
        raise ValueError(f"No label is among both {sorted(fitted)} to choose on and {sorted(shown)} to measure on.")
    return sorted(fitted & shown)


def _labels(images: ImageSet) -> tuple[str, ...]:
    if images.labels is None:
        raise ValueError("effect needs images with labels: which class is meant, and which are the others?")
    return images.labels
