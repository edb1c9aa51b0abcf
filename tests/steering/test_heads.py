"""Heads: the same numbers as scikit-learn's, and errors that come before the model runs."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from elude_nb import ImageSet, Model
from elude_nb.models.forward import features
from elude_nb.steering.heads import (
    LinearProbe,
    NearestNeighbours,
    OwnClassifier,
    class_codes,
    class_number,
    fit_head,
    fit_on_outputs,
    read_outputs,
)
from tests.tiny import hook_count


def outputs_and_labels(
    classes: int, *, count: int = 60, width: int = 7, seed: int = 0
) -> tuple[torch.Tensor, list[str], torch.Tensor]:
    """Return outputs of very different scales, their labels, and other outputs."""
    rng = np.random.default_rng(seed)
    labels = [f"class {number % classes}" for number in range(count)]
    centres = rng.normal(size=(classes, width))
    scales = 10.0 ** np.arange(-3, width - 3)
    x = (centres[np.arange(count) % classes] + rng.normal(size=(count, width))) * scales + 5
    new = (centres[np.arange(20) % classes] + rng.normal(size=(20, width))) * scales + 5
    return torch.from_numpy(x), labels, torch.from_numpy(new)


def pipeline(x: torch.Tensor, labels: list[str]) -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000)).fit(x.double().numpy(), labels)


@pytest.mark.parametrize("classes", [2, 3, 6])
@pytest.mark.parametrize("constant", [None, 0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_probe_is_scikit_learns(classes, constant, dtype) -> None:
    x, labels, new = outputs_and_labels(classes)
    if constant is not None:  # 60 times 0.1 is not 6, so its spread is not quite 0
        x[:, 2] = constant
        new[:, 2] = constant + torch.linspace(0, 1, 20)
    x, new = x.to(dtype), new.to(dtype)
    probe = fit_on_outputs(x, labels)
    assert isinstance(probe, LinearProbe)
    reference = pipeline(x, labels)
    assert probe.classes == tuple(reference.classes_)
    # Folded or not, numbers of 1e4 times their spread lose some digits.
    within: dict[str, Any] = {"rtol": 1e-7, "atol": 1e-8}
    for some in (x, new):
        expected = torch.from_numpy(reference.predict_proba(some.double().numpy()))
        torch.testing.assert_close(probe.probabilities(some), expected, **within)
        torch.testing.assert_close(probe.logits(some).softmax(1), expected, **within)
    assert probe.weight.shape == (classes, 7)


def test_a_logit_has_gradients() -> None:
    x, labels, _ = outputs_and_labels(3)
    probe = fit_on_outputs(x, labels)
    assert isinstance(probe, LinearProbe)
    wanted = x[:4].clone().requires_grad_()
    found = probe.logit("class 1")(wanted)
    assert found.shape == (4,)
    torch.testing.assert_close(found, probe.logits(x[:4])[:, 1])
    found.sum().backward()
    torch.testing.assert_close(wanted.grad, probe.weight[1].expand(4, -1))
    with pytest.raises(ValueError, match=r"label='class 9'.*'class 1'"):
        probe.logit("class 9")


@pytest.mark.parametrize("k", [1, 5, 60])
@pytest.mark.parametrize("classes", [2, 4])
def test_nearest_neighbours_are_scikit_learns(k, classes) -> None:
    x, labels, new = outputs_and_labels(classes)
    knn = fit_on_outputs(x, labels, "knn", k=k)
    assert isinstance(knn, NearestNeighbours)
    reference = KNeighborsClassifier(n_neighbors=k, metric="cosine").fit(x.numpy(), labels)
    assert knn.classes == tuple(reference.classes_)
    for some in (x, new, 3 * new):
        expected = torch.from_numpy(reference.predict_proba(some.numpy()))
        torch.testing.assert_close(knn.probabilities(some), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(knn.features.norm(dim=1), torch.ones(60, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["probe", "knn"])
def test_a_head_is_fitted_on_the_features(vit: Model, images: ImageSet, kind) -> None:
    head = fit_head(vit, images, kind, batch_size=7)
    outputs = read_outputs(vit, images)
    assert images.labels is not None
    again = fit_on_outputs(outputs, images.labels, kind)
    torch.testing.assert_close(head.probabilities(outputs), again.probabilities(outputs))
    batch = vit.prepare(list(images[:3]))
    torch.testing.assert_close(outputs[:3], features(vit, batch))
    assert head.read(vit, batch).equal(features(vit, batch))
    assert head.classes == ("label 0", "label 1", "label 2")
    assert hook_count(vit.network) == 0


def test_labels_can_be_given_apart(mlp: Model, smallest_images: ImageSet) -> None:
    labels = [number % 2 for number in range(40)]
    head = fit_head(mlp, smallest_images, labels=labels)
    assert head.classes == ("0", "1")
    assert head.probabilities(read_outputs(mlp, smallest_images)).shape == (40, 2)


def test_the_models_own_classifier(vit: Model, images: ImageSet) -> None:
    head = OwnClassifier(("a", "b", "c", "d", "e"))
    batch = vit.prepare(list(images[:3]))
    logits = head.read(vit, batch)
    assert logits.equal(vit(batch))
    expected = logits.exp() / logits.exp().sum(1, keepdim=True)
    torch.testing.assert_close(head.probabilities(logits), expected)
    assert head.name == "own classifier"
    with pytest.raises(ValueError, match=r"2 .*\(3, 5\)"):
        OwnClassifier(("a", "b")).read(vit, batch)


def test_classes_are_looked_up() -> None:
    head = OwnClassifier(("cat", "dog"))
    assert class_number(head, "dog") == 1
    assert class_codes(head, ["dog", "cat", "dog"]).tolist() == [1, 0, 1]
    with pytest.raises(ValueError, match=r"'cats'.*'cat'"):
        class_codes(head, ["cat", "cats"])


def test_bad_input_is_refused_before_the_model_runs(mlp: Model, smallest_images: ImageSet) -> None:
    passes = []
    handle = mlp.network.register_forward_hook(lambda *_: passes.append(1))
    unlabelled = dataclasses.replace(smallest_images, labels=None)
    try:
        with pytest.raises(ValueError, match="kind='svm'"):
            fit_head(mlp, smallest_images, "svm")
        with pytest.raises(ValueError, match="labels="):
            fit_head(mlp, unlabelled)
        with pytest.raises(ValueError, match=r"3 .* 40"):
            fit_head(mlp, smallest_images, labels=["a", "b", "c"])
        with pytest.raises(ValueError, match="batch_size=0"):
            fit_head(mlp, smallest_images, batch_size=0)
        with pytest.raises(ValueError, match=r"\['a'\]"):
            fit_head(mlp, smallest_images, labels=["a"] * 40)
        with pytest.raises(ValueError, match="k=41"):
            fit_head(mlp, smallest_images, "knn", k=41)
    finally:
        handle.remove()
    assert not passes


def test_bad_outputs_are_refused() -> None:
    x, labels, _ = outputs_and_labels(3)
    with pytest.raises(ValueError, match="k=0"):
        fit_on_outputs(x, labels, "knn", k=0)
    for kind in ("probe", "knn"):
        with pytest.raises(ValueError, match=r"59 .* 60"):
            fit_on_outputs(x, labels[:-1], kind)
        with pytest.raises(ValueError, match=r"\['one'\]"):
            fit_on_outputs(x, ["one"] * 60, kind)
    with pytest.raises(ValueError, match="kind='none'"):
        fit_on_outputs(x, labels, "none")
