"""Pairs of units before judges: planted judges, literal counts, and what may not be asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from elude_nb.scores import EmbeddingJudge, best_images, judge_pairs, mean_interval, win_rates
from tests.scores.test_judges import coloured, mean_colour, number_of, numbered


class Planted:
    """A judge that is told what to say of the numbers of the images on both sides."""

    def __init__(self, say: Callable[[list[int], list[int]], Any]) -> None:
        self.say = say
        self.asked: list[tuple[list[int], list[int]]] = []

    def prefer(self, left: Any, right: Any) -> Any:
        sides = [number_of(image) for image in left], [number_of(image) for image in right]
        self.asked.append(sides)
        return self.say(*sides)


IMAGES = numbered(60)
GOOD = torch.arange(30).view(3, 10)  # units of the good method show images below 30
BAD = 30 + torch.arange(30).view(3, 10)
BEST = {"good": GOOD, "bad": BAD}


def knows(left: list[int], right: list[int]) -> str:
    return "left" if max(left) < 30 else "right"


def test_a_judge_that_knows_the_truth_gives_a_win_rate_of_one() -> None:
    asked = judge_pairs(BEST, IMAGES, Planted(knows), pairs=7, draws=2)
    assert len(asked) == 7 * 2 * 2
    found = win_rates(asked)
    assert found.index.tolist() == ["good", "bad"]
    assert found["win_rate"].tolist() == [1, 0]
    assert found["rank"].tolist() == [1, 2]
    assert found["pairs"].tolist() == [14, 14]
    assert found["undecided"].sum() == found["bad_answers"].sum() == 0


def test_a_coin_gives_a_half_within_its_interval() -> None:
    rng = np.random.default_rng(0)
    coin = Planted(lambda left, right: ("left", "right")[rng.integers(2)])
    found = win_rates(judge_pairs(BEST, IMAGES, coin, pairs=50, draws=3))
    assert ((found["low"] < 0.5) & (found["high"] > 0.5)).all()
    assert (found["high"] - found["low"]).between(0.05, 0.25).all()
    assert found["win_rate"].sum() == pytest.approx(1)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_judge_with_a_favourite_side_gives_exactly_a_half(side) -> None:
    found = win_rates(judge_pairs(BEST, IMAGES, Planted(lambda left, right: side), pairs=9, draws=1))
    assert found[["win_rate", "low", "high"]].eq(0.5).all(axis=None)
    assert found["rank"].tolist() == [1, 1]


def test_each_pair_is_asked_in_both_orders_with_the_units_own_images() -> None:
    judge = Planted(knows)
    asked = judge_pairs(BEST, IMAGES, judge, pairs=6, draws=2, seed=3)
    rows: list[Any] = list(asked.itertuples())
    for row, sides in zip(rows, judge.asked, strict=True):
        units = {"good": GOOD[:, row.first_unit].tolist(), "bad": BAD[:, row.second_unit].tolist()}
        right = "bad" if row.left == "good" else "good"
        assert sides == (units[row.left], units[right])
    questions = asked.groupby(["draw", "pair"])["left"].agg(list)
    assert all(sorted(both) == ["bad", "good"] for both in questions)
    assert len(asked[["draw", "pair", "first_unit", "second_unit"]].drop_duplicates()) == len(questions)
    for _, of_draw in asked.groupby("draw"):
        assert of_draw.drop_duplicates("pair")["first_unit"].is_unique  # enough units: none twice
    assert asked[asked["draw"] == 0]["first_unit"].tolist() != asked[asked["draw"] == 1]["first_unit"].tolist()


def test_which_units_are_drawn_does_not_depend_on_other_methods() -> None:
    alone = judge_pairs(BEST, IMAGES, Planted(knows), pairs=5, draws=2)
    more = judge_pairs({"other": BAD, **BEST}, IMAGES, Planted(knows), pairs=5, draws=2)
    both = more[(more["first"] == "good") & (more["second"] == "bad")].reset_index(drop=True)
    pd.testing.assert_frame_equal(both, alone)
    assert set(zip(more["first"], more["second"], strict=True)) == {
        ("other", "good"),
        ("other", "bad"),
        ("good", "bad"),
    }
    again = judge_pairs(BEST, IMAGES, Planted(knows), pairs=5, draws=2, seed=1)
    assert again["first_unit"].tolist() != alone["first_unit"].tolist()


def test_the_majority_decides_and_bad_answers_are_counted_and_never_guessed() -> None:
    say = [Planted(knows), Planted(lambda left, right: None), Planted(knows), Planted(lambda left, right: "left")]
    asked = judge_pairs(BEST, IMAGES, say, pairs=4, draws=1)
    assert (asked["winner"] == "good").all()
    assert (asked["judges"] == 4).all()
    assert (asked["bad_answers"] == 1).all()
    divided = judge_pairs(BEST, IMAGES, say[2:], pairs=4, draws=1)  # they differ where the good one is on the right
    assert divided["winner"].isna().sum() == 4
    assert divided[divided["left"] == "good"]["winner"].eq("good").all()
    found = win_rates(divided)
    assert list(found.loc["good", ["win_rate", "undecided", "questions"]]) == [1, 4, 8]
    silent = win_rates(judge_pairs(BEST, IMAGES, say[1], pairs=4, draws=1))
    assert silent[["win_rate", "low", "high"]].isna().all(axis=None)
    assert silent["bad_answers"].tolist() == silent["undecided"].tolist() == [8, 8]


def test_win_rates_are_those_of_a_literal_count() -> None:
    rng = np.random.default_rng(1)
    judge = Planted(lambda left, right: ("left", "right", None)[rng.integers(3)])
    best = {"a": GOOD, "b": BAD, "c": torch.arange(60).view(3, 20)}
    asked = judge_pairs(best, IMAGES, judge, pairs=8, draws=2)
    found, rows = win_rates(asked, seed=5), list[Any](asked.itertuples())
    for name in best:
        scores = []
        for other in best:
            for draw in range(2):
                for pair in range(8):
                    questions = [
                        row for row in rows
                        if {row.first, row.second} == {name, other} and (row.draw, row.pair) == (draw, pair)
                    ]  # fmt: skip
                    wins = [row.winner == name for row in questions if not pd.isna(row.winner)]
                    scores += [sum(wins) / len(wins)] if wins else []
        assert found.loc[name, "win_rate"] == pytest.approx(np.mean(scores))
        assert found.loc[name, "pairs"] == len(scores)
        expected = mean_interval(scores, seed=5)
        assert found.loc[name, "low"] == pytest.approx(expected.low, abs=0.05)
    order = found["win_rate"].tolist()
    assert order == sorted(order, reverse=True)


def test_the_offline_stand_in_prefers_what_its_embedding_finds_alike() -> None:
    images, activations = coloured(3, 12)
    judge = EmbeddingJudge(mean_colour)
    mixed = torch.rand(36, 3, generator=torch.Generator().manual_seed(0))
    best = {"mixed": best_images(mixed, 9), "one colour": best_images(activations, 9)}
    assert win_rates(judge_pairs(best, images, judge, pairs=3, draws=1)).index[0] == "one colour"
    same, other = [images[0], images[3]], [images[0], images[1]]
    embedded = [mean_colour([image])[0] / mean_colour([image])[0].norm() for image in (images[0], images[1])]
    assert judge.coherence(other) == pytest.approx(float(embedded[0] @ embedded[1]), abs=1e-6)
    assert judge.prefer(same, other) == "left"
    assert judge.prefer(other, same) == "right"
    assert judge.prefer(same, same) is None
    with pytest.raises(ValueError, match="number of images=1"):
        judge.coherence(same[:1])


def test_questions_that_cannot_be_put_are_refused() -> None:
    judge = Planted(knows)
    with pytest.raises(ValueError, match=r"\['good'\]; at least two"):
        judge_pairs({"good": GOOD}, IMAGES, judge)
    with pytest.raises(ValueError, match=r"\(3, 10\).*\[2, 3\]"):
        judge_pairs({"good": GOOD, "bad": BAD[:2]}, IMAGES, judge)
    with pytest.raises(ValueError, match=r"'bad'.* image 59 of 50"):
        judge_pairs(BEST, IMAGES[:50], judge)
    with pytest.raises(ValueError, match="pairs=0"):
        judge_pairs(BEST, IMAGES, judge, pairs=0)
    with pytest.raises(ValueError, match="judges is empty"):
        judge_pairs(BEST, IMAGES, [])
    with pytest.raises(TypeError, match="prefer"):
        judge_pairs(BEST, IMAGES, [object()])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="answered 'both'"):
        judge_pairs(BEST, IMAGES, Planted(lambda left, right: "both"))
    with pytest.raises(ValueError, match="winner"):
        win_rates(pd.DataFrame({"first": [], "second": [], "draw": [], "pair": [], "bad_answers": []}))
