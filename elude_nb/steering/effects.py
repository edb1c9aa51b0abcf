"""What an edit does: to the class meant, to all others, to the outputs, beside controls of the same strength."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from elude_nb._util.checks import check_choice, check_count, shortly
from elude_nb._util.progress import progress_bar
from elude_nb.baselines.sae import SparseAutoencoder
from elude_nb.core.edit import Edit
from elude_nb.core.plan import Splittable
from elude_nb.core.result import check_split
from elude_nb.core.steer import check_edit
from elude_nb.data.images import Images, ImageSet
from elude_nb.errors import EditError
from elude_nb.models.forward import features
from elude_nb.models.hooks import evaluating
from elude_nb.models.load import Model
from elude_nb.scores.intervals import mean_interval
from elude_nb.steering.controls import CONTROLS, Controls, Outcomes, Trial
from elude_nb.steering.heads import HEADS, Head, class_codes, class_number, fit_on_outputs
from elude_nb.steering.interventions import Intervention, edited_concepts, edited_tokens, edited_units


@dataclass(frozen=True, eq=False)
class Effect:
    """What an edit and its controls did.

    Drops are of the probability of the true class, and of accuracy, in points of 1; the lower those of the others, the
    better. Intervals are 95 % bootstrap intervals over images.

    Attributes
    ----------
    edit, target, head
        The edit, the class it is meant for, and the head that judged.
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
        Controls that could not be had, with the reason.
    before, after
        What the head looks at, (n, e), of the model as it is and with the edit at full strength.
    images
        How many images were measured.
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
    images: int

    def __str__(self) -> str:
        first = self.table.iloc[0]
        names = ("drop", "accuracy_drop", "others", "accuracy_others", "worst")
        drop, accuracy, others, other_accuracy, worst = (_rounded(-100 * first[name], "+.1f") for name in names)
        return (
            f"{self.target}: probability {drop} points, accuracy {accuracy}; the others {others} and {other_accuracy} "
            f"(worst: {first['worst_class']} {worst}); specificity {_rounded(first['specificity'], '.1f')}"
        )

    def __repr__(self) -> str:
        return f"Effect({self})"

    def _repr_html_(self) -> str:
        shown = self.table.drop(columns=["low", "high", "others_low", "others_high"])
        notes = "".join(f"<br>{html.escape(note)}" for note in self.left_out)
        return (
            f"<p>{html.escape(repr(self.edit))} on {self.images} images, {html.escape(self.head.name)}<br>"
            f"{html.escape(str(self))}{notes}</p>{shown.to_html(index=False, float_format=_thousandths)}"
        )


def effect(
    split: Splittable,
    edit: Edit,
    images: Images,
    *,
    head: str | Head = "probe",
    target: str | None = None,
    fit: Images | None = None,
    controls: Sequence[str] = tuple(CONTROLS),
    strengths: Sequence[float] = (0.25, 0.5, 0.75, 1.0),
    draws: int = 5,
    sae: SparseAutoencoder | None = None,
    seed: int = 0,
    batch_size: int = 16,
    progress: bool = True,
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
        Which of ``elude_nb.steering.controls.CONTROLS``. ``"same channels"`` does to the edited channels as a whole what the
        edit does to their sub-units; ``"best channel"`` is the one that tells the target best; ``"mean direction"``
        projects the concept's mean out; ``"SAE latent"`` takes away what the best latent adds; two are drawn at random.
    strengths
        For the dose-response curve: shares of all that the edit does. 1 is always measured.
    draws
        Draws of each random control.
    sae
        A fitted autoencoder; by default one is trained on the first half's tokens.
    seed
        Of the halves, the draws and the autoencoder.
    batch_size, progress
        Images in one forward pass, and whether to show a bar.

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
    plan = check_edit(split, edit)
    if not edit.changes or any(change.scheduled for change in edit.changes):
        raise EditError("effect measures an edit at fixed strengths; it must change something and have no schedule.")
    check_split(split, "effect")
    wanted = [check_choice("controls", control, CONTROLS) for control in _several(controls)]
    doses = sorted({*_checked(strengths), 1.0})
    check_count("draws", draws)
    check_count("batch_size", batch_size)
    if isinstance(head, str):
        check_choice("head", head, HEADS)
    elif not all(hasattr(head, part) for part in ("classes", "read", "probabilities")):
        raise TypeError(f"head must be a name or what fit_head returns, not {shortly(head)}.")
    weights = edited_tokens(split, edit)
    if weights is not None and not weights.any():
        raise EditError("The mask is 0 everywhere: there is no token at which anything could be measured.")
    chosen, measured = _halves(split.model, images, fit, seed)
    aims = _aims(head, chosen, measured)
    if target is not None:
        check_choice("target", target, aims)
    steps = len(chosen) + len(measured)
    main = Intervention("edit", _described(split, edit), (plan,))
    with (
        evaluating(split.model.network),
        progress_bar(description="effect", total=steps, show=progress, unit="image") as bar,
    ):
        read = features if isinstance(head, str) else head.read
        trial = Trial(split, read, weights, batch_size, bar)
        seen = trial.through(chosen, [main], [1.0], seed)
        judge = (
            fit_on_outputs(seen.before, _labels(chosen), head, k=min(5, len(chosen))) if isinstance(head, str) else head
        )
        aim = target if target is not None else _strongest(judge, seen, chosen, aims)
        is_target = torch.tensor([label == aim for label in _labels(chosen)])
        made, left_out = _made(Controls(split, edit, seen, is_target, draws, seed, sae), wanted)
        found = trial.through(measured, [main, *made], doses)
    return _effect(edit, aim, judge, measured, [main, *made], doses, found, left_out)


def _made(controls: Controls, wanted: Sequence[str]) -> tuple[list[Intervention], tuple[str, ...]]:
    """Return the controls, and in words those that could not be had."""
    made, left_out = [], []
    for name in wanted:
        try:
            made.append(controls.make(name))
        except EditError as error:
            left_out.append(f"{name} left out: {error}")
    return made, tuple(left_out)


def _strongest(judge: Head, seen: Outcomes, images: ImageSet, aims: Sequence[str]) -> str:
    """Return the label among ``aims`` whose true probability falls most."""
    codes = class_codes(judge, _labels(images))
    drop = _true(judge, seen.before, codes) - _true(judge, seen.after[0, 1.0][0], codes)
    means = {label: float(drop[codes == class_number(judge, label)].mean()) for label in aims}
    return max(means, key=means.__getitem__)


def _effect(
    edit: Edit,
    target: str,
    judge: Head,
    images: ImageSet,
    interventions: Sequence[Intervention],
    doses: Sequence[float],
    found: Outcomes,
    left_out: tuple[str, ...],
) -> Effect:
    codes = class_codes(judge, _labels(images))
    measure = _Measure(judge, found.before, codes, class_number(judge, target))
    rows = []
    for place, intervention in enumerate(interventions):
        for dose in doses:
            named = {"method": intervention.name, "detail": intervention.detail, "strength": dose}
            rows.append({**named, **measure.of(found.after[place, dose])})
    curve = pd.DataFrame(rows)
    full = curve[curve["strength"] == 1.0].reset_index(drop=True)
    by_class = pd.DataFrame(
        [measure.by_class(found.after[place, 1.0]) for place in range(len(interventions))],
        index=pd.Index([each.name for each in interventions], name="method"),
    )
    return Effect(
        edit=edit,
        target=target,
        head=judge,
        table=full.drop(columns="strength"),
        curve=curve,
        by_class=by_class,
        accuracy=measure.accuracy(),
        left_out=left_out,
        before=found.before,
        after=found.after[0, 1.0][0],
        images=len(images),
    )


class _Measure:
    """Outcomes before and after, image by image; draws are averaged first."""

    def __init__(self, judge: Head, before: Tensor, codes: Tensor, target: int) -> None:
        self._judge, self._before, self._codes, self._target = judge, before, codes, target
        self._probability = _true(judge, before, codes)
        self._right = _right(judge, before, codes)
        self._centre = before.mean(0)

    def of(self, after: Sequence[Tensor]) -> dict[str, Any]:
        drops = self._drops(after)
        accuracy = torch.stack([self._right - _right(self._judge, each, self._codes) for each in after]).mean(0)
        cosine = torch.stack([self._cosine(each) for each in after]).mean(0)
        meant = self._codes == self._target
        classes = self._class_means(drops)
        others = {name: value for name, value in classes.items() if name != self._judge.classes[self._target]}
        accuracies = self._class_means(accuracy)
        other_accuracies = [value for name, value in accuracies.items() if name in others]
        # Weighted so that their mean is that over classes, however many images each has.
        counts = torch.bincount(self._codes)[self._codes[~meant]]
        drop = mean_interval(drops[meant])
        rest = mean_interval(drops[~meant] * len(counts) / (len(others) * counts))
        worst = max(others, key=others.__getitem__)
        moved = float(np.mean(np.abs(list(others.values()))))
        return {
            "drop": drop.mean,
            "low": drop.low,
            "high": drop.high,
            "others": float(np.mean(list(others.values()))),
            "others_low": rest.low,
            "others_high": rest.high,
            "worst": others[worst],
            "worst_class": worst,
            "specificity": drop.mean / moved if moved > 0 else float("nan") if drop.mean == 0 else float("inf"),
            "accuracy_drop": float(accuracy[meant].mean()),
            "accuracy_others": float(np.mean(other_accuracies)),
            "accuracy_worst": max(other_accuracies),
            "target_cosine": float(cosine[meant].mean()),
            "others_cosine": float(cosine[~meant].mean()),
            "largest_change": max(float((each - self._before).abs().max()) for each in after),
        }

    def by_class(self, after: Sequence[Tensor]) -> dict[str, float]:
        return self._class_means(self._drops(after))

    def accuracy(self) -> pd.Series[float]:
        return pd.Series(self._class_means(self._right), name="accuracy")

    def _drops(self, after: Sequence[Tensor]) -> Tensor:
        return torch.stack([self._probability - _true(self._judge, each, self._codes) for each in after]).mean(0)

    def _class_means(self, values: Tensor) -> dict[str, float]:
        return {
            self._judge.classes[int(code)]: float(values[self._codes == code].mean()) for code in self._codes.unique()
        }

    def _cosine(self, after: Tensor) -> Tensor:
        return torch.nn.functional.cosine_similarity(self._before - self._centre, after - self._centre, dim=1)


def _true(judge: Head, outputs: Tensor, codes: Tensor) -> Tensor:
    """Return the probability of each image's true class, (n,)."""
    return judge.probabilities(outputs).double().gather(1, codes[:, None])[:, 0]


def _right(judge: Head, outputs: Tensor, codes: Tensor) -> Tensor:
    return (judge.probabilities(outputs).argmax(1) == codes).double()


def _halves(model: Model, images: Images, fit: Images | None, seed: int) -> tuple[ImageSet, ImageSet]:
    photos = model.inputs(images)
    chosen, measured = photos.split(0.5, seed=seed) if fit is None else (model.inputs(fit), photos)
    for photos, use in ((measured, "measure"), (chosen, "choose")):
        if len(set(_labels(photos))) < 2:
            raise ValueError(f"The images to {use} on are all labelled {set(_labels(photos))}: who are the others?")
    return chosen, measured


def _aims(head: str | Head, chosen: ImageSet, measured: ImageSet) -> list[str]:
    """Return the labels that can be the target; raise ``ValueError`` if the head would not know a label."""
    fitted, shown = set(_labels(chosen)), set(_labels(measured))
    unknown = shown - fitted if isinstance(head, str) else (shown | fitted) - set(head.classes)
    if unknown:
        known = sorted(fitted) if isinstance(head, str) else list(head.classes)
        few = " (a label needs images in both halves)" if isinstance(head, str) else ""
        raise ValueError(f"The head knows {known}, but some images are labelled {sorted(unknown)}{few}.")
    if not fitted & shown:
        raise ValueError(f"No label is among both {sorted(fitted)} to choose on and {sorted(shown)} to measure on.")
    return sorted(fitted & shown)


def _labels(images: ImageSet) -> tuple[str, ...]:
    if images.labels is None:
        raise ValueError("effect needs images with labels: which class is meant, and which are the others?")
    return images.labels


def _several(controls: Sequence[str]) -> Sequence[str]:
    return [controls] if isinstance(controls, str) else controls


def _checked(strengths: Sequence[float]) -> list[float]:
    found = [float(strength) for strength in strengths]
    if not np.isfinite(found).all():
        raise EditError(f"strengths={found} must be finite.")
    return found


def _rounded(number: float, form: str) -> str:
    """Return a number as text, without a sign if it is 0 as it stands there."""
    text = format(number, form)
    return text if float(text) != 0 else format(0.0, form)


def _thousandths(number: float) -> str:
    return _rounded(number, ".3f")


def _described(split: Splittable, edit: Edit) -> str:
    units = edited_units(split, edit)
    concepts = edited_concepts(split, edit)
    of = f" of concept {concepts[0]}" if len(concepts) == 1 else f" of {len(concepts)} concepts" if concepts else ""
    return f"{len(units)} sub-units{of}"
