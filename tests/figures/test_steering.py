"""Figures of effects: their bars, lines and colours are the numbers of the tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from elude_nb import Edit, effect
from elude_nb.figures import (
    class_drops,
    dose_response,
    neighbour_grid,
    patch_changes,
    selectivity_curves,
    side_effects,
    similarity_bars,
    trial_sheet,
)
from elude_nb.figures.html import change_layer
from elude_nb.interpret.neighbours import find_neighbours
from elude_nb.scores import make_trials
from elude_nb.steering import patch_change
from elude_nb.text.similarity import SimilarityEffect


@pytest.fixture(scope="module")
def found(split, images) -> Any:
    edit = Edit.ablate(concept=1)
    return effect(split, edit, images, target="label 1", controls=("random sub-units", "same channels"), progress=False)


def test_side_effects_are_the_columns_of_the_table(found) -> None:
    place = side_effects(found).axes[0]
    table = found.table.iloc[::-1]
    for bars, column in zip(place.containers, ("drop", "others", "worst"), strict=True):
        assert [bar.get_width() for bar in bars] == pytest.approx((100 * table[column]).tolist())
    names = [label.get_text().partition("\n")[0] for label in place.get_yticklabels()]
    assert names == table["method"].tolist()
    assert "label 1" in side_effects(found).alt


def test_a_dose_response_begins_at_nothing_and_has_every_strength(found) -> None:
    picture: Any = dose_response(found)
    for place, column in zip(picture.axes, ("drop", "others"), strict=True):
        lines = {line.get_label(): line for line in place.lines}
        for method, rows in found.curve.groupby("method"):
            rows = rows.sort_values("strength")  # noqa: PLW2901
            assert lines[method].get_xdata().tolist() == [0, *rows["strength"]]
            assert lines[method].get_ydata() == pytest.approx([0, *(100 * rows[column])])
        (band,) = place.collections
        prefix = "" if column == "drop" else "others_"
        edit = found.curve[found.curve["method"] == "edit"]
        assert band.get_paths()[0].vertices[:, 1].max() == pytest.approx(100 * max(edit[f"{prefix}high"].max(), 0))


def test_selectivity_curves_are_others_against_the_target(found) -> None:
    lines = {line.get_label(): line for line in selectivity_curves(found).axes[0].lines}
    for method, rows in found.curve.groupby("method"):
        rows = rows.sort_values("strength")  # noqa: PLW2901
        assert lines[method].get_xdata() == pytest.approx([0, *(100 * rows["drop"])])
        assert lines[method].get_ydata() == pytest.approx([0, *(100 * rows["others"])])


def test_class_drops_are_written_in_their_cells(found) -> None:
    place = class_drops(found).axes[0]
    assert np.allclose(place.images[0].get_array(), 100 * found.by_class)
    texts = np.array([text.get_text() for text in place.texts]).reshape(found.by_class.shape)
    assert np.abs(texts.astype(float) - 100 * found.by_class.to_numpy()).max() <= 0.5
    bold = [label.get_text() for label in place.get_xticklabels() if label.get_fontweight() == "bold"]
    assert bold == ["label 1"]


def test_similarity_bars_are_the_columns_of_the_table() -> None:
    kinds = ("within", "across", "elsewhere")
    table = pd.DataFrame({"method": ["edit", "same channels"], "detail": ["a", "b " * 40], "largest_change": 1.0})
    for number, kind in enumerate(kinds):
        table[kind] = [0.3 - 0.1 * number, 0.2]
        table[f"{kind}_low"], table[f"{kind}_high"] = table[kind] - 0.05, table[kind] + 0.05
    before = pd.Series(0.1, index=list(kinds))
    place = similarity_bars(SimilarityEffect(Edit(), "cat", before, table, (), 9)).axes[0]
    for bars, kind in zip(place.containers, kinds, strict=True):
        assert [bar.get_width() for bar in bars] == pytest.approx(table[kind].tolist()[::-1])
    assert max(len(label.get_text()) for label in place.get_yticklabels()) < 60  # long details are cut


def test_neighbours_are_shown_in_their_order(split, images) -> None:
    neighbours = find_neighbours(split, images[3], images, {"fade": Edit.ablate(concept=1)}, k=4)
    picture = neighbour_grid(neighbours, columns=3)
    titles = [axes.get_title() for axes in picture.axes]
    expected = [
        f"{images.labels[number]} {cosine:.2f}"
        for name, numbers in neighbours.found.items()
        for number, cosine in list(zip(numbers, neighbours.cosines[name], strict=True))[:3]
    ]
    assert titles == ["the image", *expected]
    assert [text.get_text() for text in picture.texts] == list(neighbours.found)


def test_trials_are_framed_where_the_answer_is_known(images) -> None:
    values = torch.rand(20, 3, generator=torch.Generator().manual_seed(0))
    trials = make_trials(values, size=4, top=5, trials_per_unit=1)
    assert len(trial_sheet(trials, images).axes) == 4 * len(trials)
    answers = [(trial.intruder + (row % 2)) % 4 for row, trial in enumerate(trials)]
    axes = np.array(trial_sheet(trials, images, answers).axes).reshape(len(trials), 4)
    for row, trial in enumerate(trials):
        framed = {place for place in range(4) if axes[row, place].spines["left"].get_visible()}
        assert framed == {trial.intruder, answers[row]}


def test_patch_changes_show_distance_and_colours(split, images) -> None:
    change = patch_change(split, Edit.ablate(concept=1), images[:3])
    picture: Any = patch_changes(change, count=2)
    assert len(picture.axes) == 8
    layers = [place.images[-1].get_array() for place in picture.axes[4:]]  # of the second image
    np.testing.assert_array_equal(layers[1], change_layer(change.distance[1].numpy()))
    for layer, colours in zip(layers[2:], change.colours, strict=True):
        np.testing.assert_allclose(layer, colours[1].numpy())
    assert f"{float(change.distance[1].max()):.2f}" in picture.axes[5].get_title(loc="center")
    assert "2 images" in picture.alt


def test_the_layer_of_the_change_is_clear_where_nothing_moved() -> None:
    layer = change_layer(np.array([[0.0, 0.25], [0.5, 1.7]]))
    assert layer[..., 3].tolist() == [[0, 89], [178, 178]]
    assert len({tuple(pixel) for pixel in layer[..., :3].reshape(-1, 3).tolist()}) == 1
