from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score
from sklearn.tree import DecisionTreeClassifier

from elude_nb.scores import labels as labels_module
from elude_nb.scores.labels import (
    auroc,
    average_precision,
    best_unit_precision,
    class_selectivity,
    feature_monosemanticity,
    labels_covered,
)

ALL = (average_precision, auroc, best_unit_precision, class_selectivity, feature_monosemanticity)


def drawn(n: int, u: int, labels: int = 3, seed: int = 0, levels: int = 0) -> tuple[torch.Tensor, list[str]]:
    """Random activations, of ``levels`` different values if given, and labels, each at least four times."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, levels, (n, u)).astype(float) if levels else rng.normal(size=(n, u))
    names = [f"label {i % labels}" for i in range(n)]
    return torch.from_numpy(values), [str(name) for name in rng.permutation(names)]


def knowing_one(n: int = 60, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """Four units: 0 predicts label a (with some errors), 1 is a copy of it, 2 and 3 are noise."""
    rng = np.random.default_rng(seed)
    y = np.array(["a", "b", "c"] * (n // 3))
    unit = 2.0 * (y == "a") + rng.normal(size=n)
    return torch.from_numpy(np.stack([unit, unit, *rng.normal(size=(2, n))], axis=1)), y


# ------------------------------------------------------------- average precision and ROC


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(6, 25),
    u=st.integers(0, 4),
    labels=st.integers(2, 3),
    levels=st.integers(0, 4),
    seed=st.integers(0, 999),
)
def test_precision_and_roc_are_those_of_scikit_learn(n, u, labels, levels, seed) -> None:
    activations, y = drawn(n, u, labels, seed, levels)
    precision, area = average_precision(activations, y), auroc(activations, y)
    assert precision.shape == area.shape == (labels, u)
    for unit in range(u):
        scores = activations[:, unit].numpy()
        for label in sorted(set(y)):
            truth = np.array(y) == label
            if scores.min() == scores.max():
                assert np.isnan(precision[unit][label])
                assert np.isnan(area[unit][label])
            else:
                assert precision.loc[label, unit] == pytest.approx(average_precision_score(truth, scores), abs=1e-12)
                assert area.loc[label, unit] == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)


def test_precision_of_hand_cases() -> None:
    y = ["a", "b", "a", "b"]
    in_order = torch.tensor([[4.0], [3.0], [2.0], [1.0]])
    assert average_precision(in_order, y)[0].tolist() == pytest.approx([(1 / 1 + 2 / 3) / 2, (1 / 2 + 2 / 4) / 2])
    tied = torch.tensor([[1.0], [1.0], [1.0], [0.0]])  # the three come at once: two of three, then b's second of four
    assert average_precision(tied, y)[0].tolist() == pytest.approx([2 / 3, (1 / 3 + 2 / 4) / 2])
    assert auroc(tied, y)[0].tolist() == pytest.approx([0.75, 0.25])  # a-b pairs: two ties and two won


def test_tables_have_labels_and_units_by_name() -> None:
    table = average_precision(torch.rand(6, 2), [3, 1, 2, 3, 1, 2])
    assert table.index.tolist() == [1, 2, 3]
    assert (table.index.name, table.columns.name) == ("label", "unit")
    assert table.columns.equals(pd.RangeIndex(2))


def test_units_ranked_in_several_parts_score_the_same(monkeypatch) -> None:
    activations, y = drawn(40, 9, levels=5)
    whole = average_precision(activations, y), auroc(activations, y)
    monkeypatch.setattr(labels_module, "_AT_ONCE", 80)  # two units at once
    pd.testing.assert_frame_equal(average_precision(activations, y), whole[0])
    pd.testing.assert_frame_equal(auroc(activations, y), whole[1])


def test_areas_of_a_unit_and_its_negative_add_up_to_one() -> None:
    activations, y = drawn(40, 5, levels=6)
    assert (auroc(activations, y) + auroc(-activations, y)).to_numpy() == pytest.approx(1)


def test_three_thousand_units_take_seconds() -> None:
    import time

    start = time.perf_counter()
    table = average_precision(torch.randn(1000, 3000), np.arange(1000) % 50)
    assert time.perf_counter() - start < 30  # one or two, on two cores
    assert table.to_numpy().mean() == pytest.approx(0.03, abs=0.005)  # chance, a little above 1/50


# --------------------------------------------------------------------------- invariances


@settings(deadline=None, max_examples=30)
@given(
    score=st.sampled_from([average_precision, auroc, class_selectivity]),
    levels=st.integers(0, 5),
    seed=st.integers(0, 999),
)
def test_order_of_images_and_scale_of_units_make_no_difference(score, levels, seed) -> None:
    activations, y = drawn(24, 4, seed=seed, levels=levels)
    order = np.random.default_rng(seed).permutation(24)
    scale = torch.tensor([1e-6, 0.5, 1, 1000]).double()
    moved = activations[order] * scale + torch.arange(4) * scale  # offset as large as the scale, so no rounding
    expected, found = score(activations, y), score(moved, [y[i] for i in order])
    assert found.to_numpy() == pytest.approx(expected.to_numpy(), abs=1e-9, nan_ok=True)


@settings(deadline=None, max_examples=20)
@given(score=st.sampled_from([best_unit_precision, feature_monosemanticity]), seed=st.integers(0, 999))
def test_chosen_units_depend_neither_on_order_nor_on_scale(score, seed) -> None:
    activations, y = drawn(24, 4, seed=seed)
    half = np.arange(24) % 2 == 0
    y = sorted(y)  # label by label, so that both halves have four of each
    order = np.random.default_rng(seed).permutation(24)
    moved = activations[order] * torch.tensor([1e-9, 0.5, 1, 1000])
    expected = score(activations, y, choose=half)
    found = score(moved, [y[i] for i in order], choose=half[order])
    pd.testing.assert_frame_equal(found, expected)


# --------------------------------------------------------------------------- best unit


def test_a_unit_is_chosen_on_one_half_and_scored_on_the_other() -> None:
    activations, y = drawn(60, 7, seed=3)
    half = np.random.default_rng(0).random(60) < 0.5
    table = best_unit_precision(activations, y, choose=half)
    for label, row in table.iterrows():
        truth = np.array(y) == label
        chosen = [average_precision_score(truth[half], activations[half, unit]) for unit in range(7)]
        assert row["unit"] == np.argmax(chosen)
        assert row["precision_when_chosen"] == pytest.approx(max(chosen))
        held_out = average_precision_score(truth[~half], activations[~half, int(row["unit"])])
        assert row["average_precision"] == pytest.approx(held_out)
        assert row["chance"] == pytest.approx(truth[~half].mean())


@settings(deadline=None, max_examples=30)
@given(counts=st.lists(st.integers(4, 9), min_size=2, max_size=5), seed=st.integers(0, 999))
def test_halves_have_half_of_each_label(counts, seed) -> None:
    codes = torch.tensor(np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts)))
    first = labels_module._draw_half(codes, seed)
    assert torch.bincount(codes[first], minlength=len(counts)).tolist() == [count // 2 for count in counts]


def test_halves_are_decided_by_their_seed() -> None:
    codes = torch.arange(40) % 2
    halves = [labels_module._draw_half(codes, seed).tolist() for seed in (0, 0, 1)]
    assert halves[0] == halves[1] != halves[2]


def test_noise_scores_chance_on_the_other_half_but_not_on_the_choosing_half() -> None:
    activations, y = drawn(400, 300, labels=4)
    table = best_unit_precision(activations, y)
    assert (table["precision_when_chosen"] > table["chance"] + 0.08).all()
    assert (table["average_precision"] - table["chance"]).abs().max() < 0.08
    assert labels_covered(average_precision(activations, y), 0.3) == 4
    assert labels_covered(table, 0.3) < 4


def test_a_unit_that_falls_silent_on_the_other_half_scores_chance() -> None:
    y = ["a", "b"] * 6
    half = np.arange(12) < 6
    activations = torch.zeros(12, 2)
    activations[:6:2, 1] = 1.0  # knows a on the choosing half, and says nothing afterwards
    table = best_unit_precision(activations, y, choose=half)
    assert list(table.loc["a", ["unit", "precision_when_chosen", "average_precision", "chance"]]) == [1, 1, 0.5, 0.5]
    assert table["unit"].tolist() == [1, 1]  # unit 0 is constant and never chosen


def test_labels_covered_counts_labels_with_a_unit_above_the_threshold() -> None:
    table = pd.DataFrame([[0.5, 0.2], [0.1, 0.6], [np.nan, 0.9], [np.nan, np.nan]], index=list("abcd"))
    assert [labels_covered(table, t) for t in (0.0, 0.4, 0.5, 0.6, 1.0)] == [3, 3, 2, 1, 0]
    held_out = pd.DataFrame({"unit": [7, 8], "precision_when_chosen": [1.0, 1.0], "average_precision": [0.4, 0.6]})
    assert labels_covered(held_out) == 1
    with pytest.raises(ValueError, match=r"threshold=1\.5 "):
        labels_covered(table, 1.5)


# --------------------------------------------------------------------------- selectivity


def slow_selectivity(values: list[float], y: list[str]) -> float:
    shifted = [value - min(values) for value in values]
    means = []
    for label in set(y):
        mine = [value for value, name in zip(shifted, y, strict=True) if name == label]
        means.append(sum(mine) / len(mine))
    highest = means.pop(means.index(max(means)))
    others = sum(means) / len(means)
    return (highest - others) / (highest + others)


@settings(deadline=None, max_examples=30)
@given(n=st.integers(6, 20), labels=st.integers(2, 4), seed=st.integers(0, 999))
def test_selectivity_is_that_of_a_literal_loop(n, labels, seed) -> None:
    activations, y = drawn(n, 3, labels, seed)
    expected = [slow_selectivity(activations[:, unit].tolist(), y) for unit in range(3)]
    assert class_selectivity(activations, y).tolist() == pytest.approx(expected, abs=1e-12)


def test_selectivity_of_hand_cases() -> None:
    y = ["a", "a", "b", "c"]
    only_a, same, mixed = [2.0, 4, 0, 0], [1.0, 0, 0.5, 0.5], [0.0, 2, 3, 0]
    table = class_selectivity(torch.tensor([only_a, same, mixed, [5.0] * 4]).T, y)
    assert table[:3].tolist() == pytest.approx([1, 0, (3 - 0.5) / (3 + 0.5)])
    assert math.isnan(table[3])
    assert table.name == "class_selectivity"


# ------------------------------------------------------------------------------------ FMS


def slow_monosemanticity(activations, y, half, removed: int, added: int) -> pd.DataFrame:
    """Literal second implementation, over all units: every stump is tried in turn and ranked by its Gini impurity."""
    values, rows = activations.numpy(), {}

    def impurity(unit: int, truth: np.ndarray) -> float:
        weight = np.where(truth[half], 0.5 / truth[half].sum(), 0.5 / (~truth[half]).sum())
        v, best = values[half, unit], 1.0
        for cut in np.unique(v)[:-1]:
            parts = []
            for side in (v <= cut, v > cut):
                p = weight[side & truth[half]].sum() / weight[side].sum()
                parts.append(weight[side].sum() * 2 * p * (1 - p))
            best = min(best, sum(parts))
        return best

    def accuracy(units: list[int], truth: np.ndarray) -> float:
        if not units:
            return 0.5
        tree = DecisionTreeClassifier(max_depth=len(units), class_weight="balanced", random_state=0)
        tree.fit(values[half][:, units], truth[half])
        return float(balanced_accuracy_score(truth[~half], tree.predict(values[~half][:, units])))

    for label in sorted(set(y)):
        truth = np.array(y) == label
        order = sorted(range(values.shape[1]), key=lambda unit: impurity(unit, truth))
        alone, left = accuracy(order[:1], truth), accuracy(order[removed : removed + 1], truth)
        more = [accuracy(order[:i], truth) - alone for i in range(1, added + 1)]
        local, rest = min(max(2 * (alone - left), 0), 1), min(max(1 - sum(more) / added, 0), 1)
        rows[label] = (order[0], alone, local, rest, alone * (local + rest) / 2)
    return pd.DataFrame.from_dict(rows, orient="index")


@pytest.mark.parametrize(("removed", "added"), [(1, 3), (2, 2), (3, 1)])
def test_monosemanticity_is_that_of_a_literal_loop(removed, added) -> None:
    rng = np.random.default_rng(1)
    y = rng.permutation(["a", "b", "c"] * 30)
    strength = np.array([[3.0, 0, 0, 1, 0], [0, 2, 0, 1, 0.5], [0, 0, 1, 0, 1]])  # (labels, units), all different
    activations = torch.from_numpy(strength[np.searchsorted(list("abc"), y)] + rng.normal(size=(90, 5)))
    half = rng.random(90) < 0.5
    found = feature_monosemanticity(activations, y, removed=removed, added=added, choose=half)
    expected = slow_monosemanticity(activations, list(y), half, removed, added)
    assert found.to_numpy() == pytest.approx(expected.to_numpy(), abs=1e-12)


def test_one_unit_that_knows_is_monosemantic_and_its_copy_undoes_it() -> None:
    activations, y = knowing_one()
    activations[:, :2] = torch.from_numpy((y == "a").astype(float))[:, None]
    alone = feature_monosemanticity(activations[:, [0, 2, 3]], y).loc["a"]
    assert list(alone[["unit", "capacity", "global"]]) == [0, 1, 1]
    assert alone["local"] > 0.6  # noise is left, near 0.5
    assert alone["monosemanticity"] > 0.8
    twice = feature_monosemanticity(activations, y).loc["a"]
    assert list(twice[["capacity", "local", "global", "monosemanticity"]]) == [1, 0, 1, 0.5]
    again = feature_monosemanticity(activations, y, removed=2).loc["a"]
    assert again["local"] > 0.6


def test_with_a_single_unit_chance_is_left() -> None:
    activations, y = knowing_one(n=300)
    found = feature_monosemanticity(activations[:, :1], y, added=4).loc["a"]
    assert found["local"] == pytest.approx(2 * (found["capacity"] - 0.5))
    assert found["global"] == 1
    assert 0.7 < found["capacity"] < 0.95


def test_trees_look_at_the_candidates_only(monkeypatch) -> None:
    activations, y = knowing_one()
    activations[:, 3] = 1.0  # constant: never a candidate
    widths = []
    grown = labels_module._Trees.__init__

    def noting(self, values, *rest) -> None:
        widths.append(values.shape[1])
        grown(self, values, *rest)

    monkeypatch.setattr(labels_module._Trees, "__init__", noting)
    assert feature_monosemanticity(activations, y, candidates=2).loc["a", "unit"] in {0, 1}
    feature_monosemanticity(activations, y)
    assert widths == [2] * 3 + [3] * 3


def test_a_unit_against_a_label_knows_it_too() -> None:
    activations, y = knowing_one()
    found, turned = (feature_monosemanticity(v[:, [0, 2, 3]], y, candidates=1) for v in (activations, -activations))
    assert turned.loc["a", "unit"] == 0
    assert turned.loc["a", "capacity"] == pytest.approx(found.loc["a", "capacity"])


def test_tiny_differences_on_a_large_offset_are_seen() -> None:
    activations, y = knowing_one()
    found = feature_monosemanticity(activations, y)
    assert feature_monosemanticity(1e-9 * activations, y).equals(found)
    shifted = feature_monosemanticity(activations + 2.0**30, y)  # float32 would see 64 at once
    assert shifted.to_numpy() == pytest.approx(found.to_numpy())


# ------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize("score", ALL)
def test_what_does_not_fit_is_refused(score) -> None:
    activations, y = drawn(12, 2)
    with pytest.raises(ValueError, match=r"11 labels .* 12 images"):
        score(activations, y[1:])
    with pytest.raises(ValueError, match="'a'"):
        score(activations, ["a"] * 12)
    with pytest.raises(ValueError, match="1 label "):
        score(activations, pd.Series([None, *y[1:]]))
    activations[3, 1] = math.nan
    with pytest.raises(ValueError, match="row 3, column 1"):
        score(activations, y)


@pytest.mark.parametrize("score", [best_unit_precision, feature_monosemanticity])
def test_halves_that_are_too_small_are_refused(score) -> None:
    activations, y = drawn(12, 2)
    with pytest.raises(ValueError, match=r"1 label .*'rare'.* 4 "):
        score(torch.rand(15, 2), [*y, "rare", "rare", "rare"])
    with pytest.raises(ValueError, match="3 labels "):
        score(activations, y, choose=[True] * 12)
    for wrong in ([1] * 12, [True] * 11, torch.ones(12)):
        with pytest.raises(ValueError, match="12"):
            score(activations, y, choose=wrong)
    for nothing in (torch.ones(12, 3), torch.ones(12, 0)):
        with pytest.raises(ValueError, match=r"None of . units varies over the 6 images"):
            score(nothing, y)


@pytest.mark.parametrize("name", ["removed", "added", "candidates"])
def test_counts_of_units_are_at_least_one(name) -> None:
    activations, y = drawn(12, 2)
    with pytest.raises(ValueError, match=f"{name}=0 "):
        feature_monosemanticity(activations, y, **{name: 0})  # type: ignore[arg-type]
