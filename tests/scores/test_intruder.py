from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elude_nb.scores import (
    IntruderTrial,
    grade,
    guess_by_embedding,
    intruder_accuracy,
    intruder_result,
    make_trials,
    mean_interval,
)
from elude_nb.scores import intruder as room


def drawn(n: int, u: int, e: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    activations = torch.randn(n, u, generator=generator, dtype=torch.float64)
    return activations, torch.randn(n, e, generator=generator, dtype=torch.float64)


def slow_guess(images: tuple[int, ...], embeddings: torch.Tensor) -> int:
    """Return the place of the image with the smallest mean over the others j of cos(e_i, e_j)."""
    means = []
    for i in images:
        cosines = []
        for j in images:
            if j != i:
                norms = float(embeddings[i].norm() * embeddings[j].norm())
                cosines.append(float(embeddings[i] @ embeddings[j]) / norms if norms else 0.0)
        means.append(sum(cosines) / len(cosines))
    return means.index(min(means))


def check_trial(trial: IntruderTrial, activations: torch.Tensor, size: int, top: int) -> None:
    """Check a trial against the activations."""
    column = activations[:, trial.unit].tolist()
    odd = trial.images[trial.intruder]
    others = [i for place, i in enumerate(trial.images) if place != trial.intruder]
    assert len(trial.images) == size == len(set(trial.images))
    assert all(sum(value > column[i] for value in column) < top for i in others)
    assert sum(value < column[odd] for value in column) < len(column) // 2
    assert all(column[i] > column[odd] for i in others)


@settings(deadline=None, max_examples=30)
@given(
    n=st.integers(8, 30), u=st.integers(1, 5), size=st.integers(3, 5), seed=st.integers(0, 999), sparse=st.booleans()
)
def test_a_trial_shows_best_images_of_the_unit_and_one_of_its_lower_half(n, u, size, seed, sparse) -> None:
    activations = drawn(n, 4, seed=seed)[0]
    activations = (activations - 0.8).relu() if sparse else activations.round(decimals=1)  # many ties, or some
    top = n // 2
    trials = make_trials(activations, size=size, top=top, trials_per_unit=4, seed=seed)
    for trial in trials:
        check_trial(trial, activations, size, top)
    raised = [(column > column.kthvalue(n // 2)[0]).sum() for column in activations.T]
    asked = [unit for unit in range(4) if min(int(raised[unit]), top) >= size - 1]
    assert [trial.unit for trial in trials] == [unit for unit in asked for _ in range(4)]


def test_the_intruder_is_a_best_image_of_another_unit_if_there_is_one() -> None:
    numbers = torch.arange(40.0)
    activations = torch.stack([-numbers, numbers], dim=1)
    activations[25:29, 1] += 100  # what unit 1 likes best, before 39, 38, 37 and 36
    trials = make_trials(activations, size=4, top=8, trials_per_unit=200)
    odd = {unit: {t.images[t.intruder] for t in trials if t.unit == unit} for unit in (0, 1)}
    assert odd == {0: {25, 26, 27, 28, 36, 37, 38, 39}, 1: set(range(8))}


def test_without_another_unit_the_intruder_is_any_image_of_the_lower_half() -> None:
    activations = torch.arange(12.0)[:, None]
    trials = make_trials(activations, size=3, top=4, trials_per_unit=300)
    assert {t.images[t.intruder] for t in trials} == set(range(6))
    assert {i for t in trials for place, i in enumerate(t.images) if place != t.intruder} == set(range(8, 12))


def test_every_place_of_the_intruder_is_as_likely() -> None:
    activations = drawn(40, 40)[0]
    places = np.bincount([t.intruder for t in make_trials(activations, size=5, trials_per_unit=50)], minlength=5)
    assert places.sum() == 2000
    assert abs(places - 400).max() < 5 * math.sqrt(2000 * 0.2 * 0.8)  # five standard deviations


def test_trials_repeat_with_their_seed_and_a_units_do_not_depend_on_the_others_asked() -> None:
    activations = drawn(30, 5)[0]
    every = make_trials(activations, seed=3)
    assert every == make_trials(activations.numpy(), seed=3)
    assert every != make_trials(activations, seed=4)
    assert make_trials(activations, units=[3, 1], seed=3) == every[15:20] + every[5:10]


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 999))
def test_order_of_images_and_scale_of_units_do_not_matter(seed) -> None:
    activations, embeddings = drawn(24, 3, seed=seed)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(seed))
    moved = make_trials(activations[order], seed=seed)
    restored = [dataclasses.replace(t, images=tuple(order[list(t.images)].tolist())) for t in moved]
    assert restored == make_trials(activations, seed=seed)
    found = intruder_accuracy(activations, embeddings, seed=seed)
    scaled = activations * torch.tensor([1e-3, 2.0, 50.0]) + 7
    pd.testing.assert_series_equal(intruder_accuracy(scaled, 3 * embeddings, seed=seed), found)


def test_units_with_too_few_best_images_get_no_trial_and_no_score() -> None:
    activations, embeddings = drawn(20, 4)
    activations[:, 1] = 2.5
    activations[:, 2] = 0
    activations[:3, 2] = 1.0  # three, where a trial of five shows four
    assert {trial.unit for trial in make_trials(activations)} == {0, 3}
    assert intruder_accuracy(activations, embeddings).isna().tolist() == [False, True, True, False]
    assert intruder_accuracy(activations[:, 1:2], embeddings).isna().tolist() == [True]
    assert {trial.unit for trial in make_trials(activations, size=4)} == {0, 2, 3}


@settings(deadline=None, max_examples=30)
@given(n=st.integers(10, 20), e=st.integers(2, 5), size=st.integers(3, 5), seed=st.integers(0, 999))
def test_the_guess_is_the_smallest_mean_cosine(n, e, size, seed) -> None:
    activations, embeddings = drawn(n, 3, e, seed)
    trials = make_trials(activations, size=size, top=n // 2, seed=seed)
    if size > 3:  # else the two others are tied
        embeddings[trials[0].images[0]] = 0  # like no other, and not like itself either
    assert guess_by_embedding(trials, embeddings) == [slow_guess(t.images, embeddings) for t in trials]


def test_the_guesses_do_not_depend_on_how_many_are_made_at_once(monkeypatch) -> None:
    activations, embeddings = drawn(30, 6)
    trials = make_trials(activations)
    found = guess_by_embedding(trials, embeddings)
    monkeypatch.setattr(room, "_TRIALS_AT_ONCE", 7)
    assert guess_by_embedding(trials, embeddings) == found


def test_accuracy_is_one_where_units_are_kinds_and_chance_where_embeddings_say_nothing() -> None:
    kinds = torch.eye(4).repeat_interleave(10, dim=0)  # ten images of each of four kinds
    kinds = kinds * torch.linspace(1, 2, 40)[:, None]
    assert intruder_accuracy(kinds, kinds).tolist() == [1.0] * 4
    activations, embeddings = drawn(60, 200)
    found = intruder_result(intruder_accuracy(activations, embeddings))
    assert found.accuracy.mean == pytest.approx(0.2, abs=0.06)  # 1,000 trials of few images
    same = intruder_accuracy(activations, torch.ones(60, 3), trials_per_unit=10)  # always the first, as good as any
    assert same.mean() == pytest.approx(0.2, abs=0.05)


def test_accuracy_is_the_grade_of_the_guesses() -> None:
    activations, embeddings = drawn(30, 4)
    trials = make_trials(activations, size=4, top=8, trials_per_unit=7, seed=5)
    right = {unit: [] for unit in range(4)}  # type: ignore[var-annotated]
    for trial in trials:
        right[trial.unit].append(slow_guess(trial.images, embeddings) == trial.intruder)
    found = intruder_accuracy(activations, embeddings, size=4, top=8, trials_per_unit=7, seed=5)
    assert found.tolist() == pytest.approx([sum(right[unit]) / 7 for unit in range(4)])
    assert (found.name, found.index.name) == ("intruder_accuracy", "unit")


def test_answers_of_people_are_graded_unit_by_unit() -> None:
    trials = [IntruderTrial(4, (0, 1, 2), 2), IntruderTrial(9, (3, 4, 5), 0), IntruderTrial(4, (1, 0, 2), 2)]
    assert grade(trials, [2, 1, 0]).to_dict() == {4: 0.5, 9: 0.0}
    assert grade(trials, np.array([2, 0, 2])).to_dict() == {4: 1.0, 9: 1.0}  # type: ignore[arg-type]
    assert grade([], []).empty


def test_the_result_prints_chance_interval_and_who_was_left_out() -> None:
    accuracies = pd.Series([0.2, 0.8, math.nan, 0.6])
    found = intruder_result(accuracies, size=4, seed=1)
    assert found.accuracy == mean_interval(accuracies, seed=1)
    low, high = found.accuracy.low, found.accuracy.high
    assert str(found) == f"odd one found: 0.533 [{low:.3f}, {high:.3f}] (chance 0.250, 3 units, 1 without a trial)"
    assert "without" not in str(intruder_result(accuracies.dropna()))


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"size": 2}, "size=2 "),
        ({"size": 8, "top": 6}, r"top=6 must lie between size - 1 = 7 and half of the 20 images"),
        ({"top": 11}, r"top=11 must lie between size - 1 = 4 and half of the 20 images"),
        ({"trials_per_unit": 0}, "trials_per_unit=0 "),
        ({"units": [2]}, r"unit=2 .*0 and 1"),
        ({"units": [-1]}, "unit=-1 "),
    ],
)
def test_trials_that_cannot_be_are_refused(settings_, message) -> None:
    with pytest.raises(ValueError, match=message):
        make_trials(drawn(20, 2)[0], **settings_)


def test_what_does_not_fit_is_refused() -> None:
    activations, embeddings = drawn(20, 2)
    trials = make_trials(activations)
    with pytest.raises(ValueError, match=r"9 answers .* 10 trials"):
        grade(trials, [0] * 9)
    with pytest.raises(ValueError, match=r"answer=5 .*0 and 4"):
        grade(trials, [0] * 9 + [5])
    with pytest.raises(TypeError, match="answer "):
        grade(trials, [0] * 9 + [None])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="3 images"):
        guess_by_embedding(trials, embeddings[:3])
    with pytest.raises(ValueError, match="over the same images"):
        intruder_accuracy(activations, embeddings[:19])
    for tensor in (activations, embeddings):
        kept = tensor[2, 0].item()
        tensor[2, 0] = math.nan
        with pytest.raises(ValueError, match="NaN or infinite"):
            intruder_accuracy(activations, embeddings)
        tensor[2, 0] = kept


def test_without_trials_there_is_nothing_to_guess_grade_or_print() -> None:
    assert guess_by_embedding([], torch.eye(3)) == []
    found = intruder_result(grade([], []))
    assert math.isnan(found.accuracy.mean)
    assert (found.accuracy.count, found.chance) == (0, 0.2)
    with pytest.raises(ValueError, match="size=2 "):
        intruder_result(pd.Series([1.0]), size=2)
