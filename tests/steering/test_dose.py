"""Doses of one concept, step by step, are what the effect measures at once."""

from __future__ import annotations

import pytest

from elude_nb import Edit, effect, fit_head
from elude_nb.errors import EditError
from elude_nb.steering.dose import DoseCurve
from elude_nb.steering.heads import OwnClassifier
from elude_nb.steering.live import LiveSteering


@pytest.mark.parametrize("own", [False, True])
def test_it_is_what_the_effect_measures(split, images, own) -> None:
    head = OwnClassifier(("label 0", "label 1", "label 2", "d", "e")) if own else fit_head(split.model, images)
    curve = DoseCurve(LiveSteering(split, head=head), 1, images)
    assert list(curve.steps(8)) == [8, 16, 20]
    table = curve.table
    target = table["target"].iloc[0]
    expected = effect(
        split, Edit.scale(concept=1, by=0.0), images, head=head, target=target, fit=images, controls=(), progress=False
    ).curve
    assert table["dose"].tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    for column in ("drop", "others", "worst", "specificity"):
        assert table[column].tolist()[1:] == pytest.approx(expected[column].tolist(), rel=1e-6, abs=1e-9)
    assert table["worst_class"].tolist()[1:] == expected["worst_class"].tolist()
    assert not table[["drop", "others", "worst"]].iloc[0].any()
    full = effect(
        split, Edit.scale(concept=1, by=0.0), images, head=head, target="label 0", fit=images, controls=(),
        progress=False,
    )  # fmt: skip
    assert full.by_class.loc["edit"].idxmax() == target


def test_what_it_cannot_measure_is_said(split, images) -> None:
    head = fit_head(split.model, images)
    with pytest.raises(ValueError, match="head"):
        DoseCurve(LiveSteering(split), 1, images)
    live = LiveSteering(split, head=head)
    one = images.subset([number for number, label in enumerate(images.labels) if label == "label 1"])
    with pytest.raises(ValueError, match="two classes"):
        DoseCurve(live, 1, one)
    curve = DoseCurve(live, 1, images)
    with pytest.raises(ValueError, match="0 of 20"):
        curve.table  # noqa: B018
    with split.edit(Edit.ablate(concept=0)), pytest.raises(EditError):
        next(curve.steps())


def test_labels_that_the_head_does_not_know_are_left_out(split, images) -> None:
    known = [number for number, label in enumerate(images.labels) if label != "label 2"]
    live = LiveSteering(split, head=fit_head(split.model, images.subset(known)))
    assert DoseCurve(live, 1, images).images.names == images.subset(known).names
