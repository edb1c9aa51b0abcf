"""Heads: what tells classes apart from a model's outputs, fitted here on the user's labels or the model's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from elude_nb._util.arguments import knows_arguments
from elude_nb._util.arithmetic import own_arithmetic
from elude_nb._util.checks import check_choice, check_count
from elude_nb._util.words import counted
from elude_nb.data.images import Images
from elude_nb.models.forward import features
from elude_nb.models.hooks import check_pristine, evaluating, for_analysis
from elude_nb.models.load import Model, check_model
from elude_nb.scores.fidelity import fit_probe, nearest_neighbours

HEADS = ("probe", "knn")


class Head(Protocol):
    """What `elude_nb.effect` asks of a head."""

    @property
    def name(self) -> str:
        """What it is, as tables show it."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of its classes."""

    def read(self, model: Model, batch: Tensor) -> Tensor:
        """Return what the head looks at, (n, e), of a prepared batch."""

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Return the probability of each class, (n, c)."""


class _OnFeatures:
    """A head that looks at the model's `features`: its output and mean patch token, side by side."""

    def read(self, model: Model, batch: Tensor) -> Tensor:
        """Return the features (n, e)."""
        return features(model, batch)


@dataclass(frozen=True, eq=False)
class LinearProbe(_OnFeatures):
    """Multinomial logistic regression on the model's `features` (output and mean patch token, side by side).

    Attributes
    ----------
    weight, bias
        (c, e) and (c,), on features as they are: the standardisation that it was fitted with is folded in.
    classes
        Names of the classes, in the order of the rows.
    """

    weight: Tensor = field(repr=False)
    bias: Tensor = field(repr=False)
    classes: tuple[str, ...]
    name: str = "linear probe"

    def logits(self, outputs: Tensor) -> Tensor:
        """Return the logits (n, c); gradients flow through."""
        return outputs.to(self.weight) @ self.weight.T + self.bias

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Return the softmax of the logits, (n, c)."""
        return self.logits(outputs).softmax(1)

    def logit(self, label: str) -> Callable[[Tensor], Tensor]:
        """Return the logit of one class as a function of outputs (n, e): what `elude_nb.attribute` asks for."""
        column = class_number(self, label)
        return partial(self._logits_less, column, None)

    def margin(self, label: str, over: str) -> Callable[[Tensor], Tensor]:
        """Return by how much one class's logit lies above another's, as a function of outputs (n, e)."""
        first, second = class_number(self, label), class_number(self, over)
        return partial(self._logits_less, first, second)

    def _logits_less(self, column: int, other: int | None, outputs: Tensor) -> Tensor:
        logits = self.logits(outputs)
        return logits[:, column] if other is None else logits[:, column] - logits[:, other]


@dataclass(frozen=True, eq=False)
class NearestNeighbours(_OnFeatures):
    """The labels of the k nearest features by cosine vote.

    Attributes
    ----------
    features, codes
        Unit-length features (m, e) of the images it was fitted on, and their classes, (m,).
    classes
        Names of the classes.
    k
        How many neighbours vote.
    """

    features: Tensor = field(repr=False)
    codes: Tensor = field(repr=False)
    classes: tuple[str, ...]
    k: int
    name: str = "k-NN"

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Return the share of the votes, (n, c)."""
        _, near = nearest_neighbours(outputs.to(self.features), self.features, self.k)  # (n, k)
        votes = torch.nn.functional.one_hot(self.codes[near], len(self.classes))  # (n, k, c)
        return votes.to(self.features).mean(1)


@dataclass(frozen=True)
class OwnClassifier:
    """The model's own classifier: its outputs are logits.

    Attributes
    ----------
    classes
        Names of its classes, one a logit; labels of images are looked up among them.
    """

    classes: tuple[str, ...]
    name: str = "own classifier"

    def read(self, model: Model, batch: Tensor) -> Tensor:
        """Return the logits (n, c)."""
        logits: Tensor = model(batch)
        if logits.ndim != 2 or logits.shape[1] != len(self.classes):
            raise ValueError(f"{len(self.classes)} classes were named for outputs of shape {tuple(logits.shape)}.")
        return logits

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Return the softmax of the logits, (n, c)."""
        return outputs.softmax(1)


@knows_arguments
@own_arithmetic()
def fit_head(
    model: Model,
    images: Images,
    kind: str = "probe",
    *,
    labels: Sequence[Any] | None = None,
    k: int = 5,
    batch_size: int | None = None,
    progress: bool | None = None,
) -> LinearProbe | NearestNeighbours:
    """Fit a head on the model's features of labelled images; the model is not trained.

    Parameters
    ----------
    model, images
        The model as it is, and images with labels.
    kind
        ``"probe"``, a `LinearProbe`, or ``"knn"``, `NearestNeighbours`.
    labels
        One an image, if the images have none.
    k
        Neighbours that vote.
    batch_size, progress
        In place of the model's own settings.

    Raises
    ------
    ValueError
        If there are no labels, or all are the same.
    """
    check_model(model)
    check_choice("kind", kind, HEADS)
    check_pristine(model.network, "fit_head")
    photos = model.inputs(images)
    photos = photos if labels is None else photos.with_labels(labels)
    if photos.labels is None:
        raise ValueError("The images have no labels to fit a head on; give labels=[...], one an image.")
    _classes(photos.labels)  # a mistake is reported before the model runs
    if kind == "knn":
        check_count("k", k, 1, len(photos))
    return fit_on_outputs(
        read_outputs(model, photos, batch_size=batch_size, progress=progress), photos.labels, kind, k=k
    )


@own_arithmetic()
def read_outputs(
    model: Model, images: Images, *, batch_size: int | None = None, progress: bool | None = None
) -> Tensor:
    """Return the `features` (n, e) of images, on the CPU and in at least float32: what heads are fitted on."""
    check_model(model)
    model = model.using(batch_size=batch_size, progress=progress)
    with evaluating(model.network):
        return torch.cat([for_analysis(features(model, batch)) for batch in model.batches(model.inputs(images))])


def fit_on_outputs(
    outputs: Tensor, labels: Sequence[str], kind: str = "probe", *, k: int = 5
) -> LinearProbe | NearestNeighbours:
    """Fit a head on features (n, e) that are there already; otherwise as `fit_head`."""
    check_choice("kind", kind, HEADS)
    classes = _classes(labels)
    if len(labels) != len(outputs):
        raise ValueError(f"{counted(len(labels), 'label')} for {counted(len(outputs), 'output')}; give one an image.")
    codes = torch.tensor([classes.index(label) for label in labels])
    if kind == "knn":
        check_count("k", k, 1, len(outputs))
        return NearestNeighbours(torch.nn.functional.normalize(outputs, dim=1), codes, classes, k)
    scaler, regression = fit_probe(outputs.double().numpy(), codes.numpy())
    weight, bias = regression.coef_, regression.intercept_
    if len(classes) == 2:  # scikit-learn keeps only the second class's logit
        weight, bias = np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias])
    weight = weight / scaler.scale_
    return LinearProbe(torch.from_numpy(weight), torch.from_numpy(bias - weight @ scaler.mean_), classes)


@own_arithmetic()
def predict(
    head: Head, model: Model, images: Images, *, batch_size: int | None = None, progress: bool | None = None
) -> pd.DataFrame:
    """Return what a head says of images: ``image``, ``label``, ``predicted``, ``probability`` of that, ``right``.

    Inside ``with split.edit(edit):`` that is what it says of the edited model.

    Returns
    -------
    DataFrame
        One row an image. Without labels there is no ``label`` and no ``right``.
    """
    model = model.using(batch_size=batch_size, progress=progress)
    photos = model.inputs(images)
    with evaluating(model.network):
        parts = [head.probabilities(for_analysis(head.read(model, batch))) for batch in model.batches(photos)]
    probability, best = torch.cat(parts).max(1)
    table = pd.DataFrame({"image": range(len(photos)), "predicted": [head.classes[i] for i in best.tolist()]})
    table["probability"] = probability.numpy()
    if photos.labels is not None:
        table.insert(1, "label", list(photos.labels))
        table["right"] = table["label"] == table["predicted"]
    return table


def class_number(head: Head, label: str) -> int:
    """Return the number of a class; raise ``ValueError`` with near matches if the head has none of that name."""
    return head.classes.index(check_choice("label", label, head.classes))


def class_codes(head: Head, labels: Sequence[str]) -> Tensor:
    """Return the number of each label's class, (n,); raises as `class_number` does."""
    number = {label: class_number(head, label) for label in sorted(set(labels))}
    return torch.tensor([number[label] for label in labels])


def _classes(labels: Sequence[str]) -> tuple[str, ...]:
    classes = tuple(sorted(set(labels)))
    if len(classes) < 2:
        raise ValueError(f"A head tells classes apart; all {len(labels)} images are labelled {list(classes)}.")
    return classes
