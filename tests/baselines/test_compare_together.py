"""Several processes compare together: the same figures as one, and none waits for one that has failed."""

from __future__ import annotations

import time
from typing import Any

import pandas as pd
import pytest

from elude_nb._util.ranks import Ranks
from elude_nb.baselines import PCA
from elude_nb.baselines.handing import hand_round
from tests.tiny import tiny_vit
from tests.workers import Unfit, compare_images, compare_in_group, die_comparing, run_group

METHODS = ["sub-units", "PCA", "channels", "k-means"]
QUICK: dict[str, Any] = {
    "n_units": 12, "concepts": 6, "sub_units": 3, "sparsity": 3, "k": 4, "tokens_per_image": 8, "progress": False,
    "batch_size": 16,
}  # fmt: skip


@pytest.mark.parametrize(("processes", "more"), [(3, {"stability": True}), (2, {"held_out": 16})])
def test_the_figures_are_those_of_one_process(processes, more, tmp_path) -> None:
    """Of 20 images the first of three processes has none, and of 16 one of two; methods are dealt unevenly, too."""
    assert run_group(processes, tmp_path, compare_in_group, METHODS, QUICK | more) == [0] * processes
    alone = compare_images(METHODS, QUICK | more)
    measured = ["seconds_to_fit", "seconds_per_1000_images"]
    for rank in range(processes):
        table, units = (pd.read_pickle(tmp_path / f"{name}-{rank}") for name in ("table", "units"))  # noqa: S301
        pd.testing.assert_frame_equal(table.drop(columns=measured), alone.table.drop(columns=measured), rtol=1e-6)
        assert (table[measured] > 0).all(axis=None)
        pd.testing.assert_frame_equal(units, alone.units, rtol=1e-6)
        assert (tmp_path / f"methods-{rank}").read_text() == f"{METHODS} { {tiny_vit().name} }"


def test_a_process_that_is_killed_ends_the_others_at_once(tmp_path) -> None:
    start = time.perf_counter()
    assert run_group(2, tmp_path, die_comparing, QUICK) == [2, -9]
    assert time.perf_counter() - start < 30
    assert (tmp_path / "error-0").read_text().startswith("GroupError: Another process of the group has ended")


def test_a_method_that_fails_in_one_process_ends_the_others(tmp_path) -> None:
    assert run_group(2, tmp_path, compare_in_group, [PCA(4), Unfit()], QUICK) == [2, 2]
    assert (tmp_path / "error-1").read_text() == "ValueError: This method cannot be fitted."
    assert (tmp_path / "error-0").read_text().startswith("GroupError")


def test_a_method_that_cannot_be_handed_over_is_named() -> None:
    method = PCA(4)
    method.helper = lambda: 0  # type: ignore[attr-defined]
    ranks = Ranks()
    ranks.count = 2
    with pytest.raises(TypeError, match="'PCA' cannot be handed to the other processes"):
        hand_round([method], tiny_vit(), ranks)
