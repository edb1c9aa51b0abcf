"""Attribute swaps, on units whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from elude_nb.data.synthetic import SHAPES, draw_scene, sample_scenes, swap_factor
from elude_nb.scores.swaps import match_units, swap_response


def world(labels: list[str], seed: int) -> np.ndarray:
    """Units 0 to 2 stand for a, b and c, with some noise; unit 3 for nothing; unit 4 is constant."""
    rng = np.random.default_rng(seed)
    found = rng.normal(0, 0.1, (len(labels), 5))
    for row, label in enumerate(labels):
        found[row, "abc".index(label)] += 1
    found[:, 4] = 2
    return found


def test_units_are_matched_and_follow() -> None:
    labels = list("abcabcabcabc")
    matched = match_units(world(labels, 0), labels)
    assert matched["label"].tolist() == ["a", "b", "c"]
    assert matched["unit"].tolist() == [0, 1, 2]
    assert (matched["d_prime"] > 3).all()
    swapped = list("bcabcabcabca")
    found = swap_response(world(labels, 1), world(swapped, 2), labels, swapped, matched).set_index("label")
    assert found["follows"].tolist() == [1.0, 1.0, 1.0]
    assert (found["moves"] > 1.5).all()
    assert (found["others_move"] < 0.6).all()
    assert found["selectivity"].to_numpy() == pytest.approx((found["moves"] - found["others_move"]).to_numpy())


def test_a_unit_that_stands_for_nothing_follows_by_chance_and_one_that_is_turned_never() -> None:
    labels, swapped = list("abcabcabc" * 20), list("bcabcabca" * 20)
    matched = match_units(world(labels, 0), labels)
    blind = swap_response(world(labels, 1)[:, [3, 3, 3]], world(swapped, 2)[:, [3, 3, 3]], labels, swapped, matched)
    assert blind["follows"].between(0.35, 0.65).all()
    assert blind["selectivity"].max() < 0
    turned = swap_response(-world(labels, 1), -world(swapped, 2), labels, swapped, matched)
    assert turned["follows"].tolist() == [0.0, 0.0, 0.0]


def test_pairs_that_do_not_tell_count_for_nothing() -> None:
    labels, swapped = ["a", "a", "c"], ["a", "b", "c"]  # only the second is a swap
    matched = match_units(world(list("abc" * 4), 0), list("abc" * 4))
    found = swap_response(world(labels, 1), world(swapped, 2), labels, swapped, matched).set_index("label")
    assert found.loc[["a", "b"], "follows"].tolist() == [1.0, 1.0]
    assert found["follows"].isna().tolist() == [False, False, True]
    with pytest.raises(ValueError, match=r"3 and 2 labels"):
        swap_response(world(labels, 1), world(swapped, 2), labels, swapped[:2], matched)


def test_one_factor_of_a_scene_is_swapped_and_nothing_else() -> None:
    scenes = sample_scenes(40, seed=3)
    swapped = swap_factor(scenes, "shape", seed=1)
    assert (swapped["shape"] != scenes["shape"]).all()
    assert set(swapped["shape"]) <= set(SHAPES)
    others = ["colour", "texture", "size", "x", "y"]
    assert swapped[others].equals(scenes[others])
    assert swap_factor(scenes, "shape", seed=1).equals(swapped)
    first, other = ({**table.iloc[0]} for table in (scenes, swapped))
    assert draw_scene(other).tobytes() != draw_scene(first).tobytes()
    with pytest.raises(ValueError, match="factor"):
        swap_factor(scenes, "size")
