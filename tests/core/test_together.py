"""Several processes split together: the same as one, and none waits for one that has ended."""

from __future__ import annotations

import json
import time

import pandas as pd
import pytest

from elude_nb import Disentanglement, disentangle, score, verify
from tests.core.test_one_pass import QUICK, same, settings_of
from tests.tiny import random_images, tiny_vit
from tests.workers import (
    call_alone_in_group,
    die_in_group,
    disentangle_in_group,
    fail_in_group,
    run_group,
    score_in_group,
)


@pytest.mark.parametrize(
    ("way", "count", "images"), [("all tokens", 3, 20), ("cells", 2, 70), ("cells", 3, 70), ("published", 2, 70)]
)
def test_processes_together_find_what_one_finds(way, count, images, vit, tmp_path) -> None:
    """Their shares are uneven: of 20 images, the first has none, and the last four."""
    site, how = settings_of(way)
    assert run_group(count, tmp_path, disentangle_in_group, images, site, QUICK | how) == [0] * count
    whole = disentangle(vit, random_images(images, 32), site, **QUICK | how)
    for rank in range(count):
        same(Disentanglement.load(tmp_path / f"split-{rank}.safetensors", vit), whole)


@pytest.mark.parametrize(("who", "after"), [(0, 10), (2, 0)])
def test_a_process_that_is_killed_ends_the_others_at_once(who, after, tmp_path) -> None:
    start = time.perf_counter()
    codes = run_group(3, tmp_path, die_in_group, who, after, QUICK)
    assert time.perf_counter() - start < 30
    assert codes == [-9 if rank == who else 2 for rank in range(3)]
    for rank in {0, 1, 2} - {who}:
        assert (tmp_path / f"error-{rank}").read_text().startswith("GroupError: Another process of the group has ended")


def test_a_process_that_fails_and_lives_on_ends_the_others(tmp_path) -> None:
    assert run_group(2, tmp_path, fail_in_group, QUICK) == [2, 2]
    assert "broken.png" in (tmp_path / "error-1").read_text()
    assert (tmp_path / "error-0").read_text().startswith("GroupError")


def test_a_call_that_the_others_do_not_make_is_not_waited_for_forever(tmp_path) -> None:
    assert run_group(2, tmp_path, call_alone_in_group, QUICK) == [2, 0]
    said = (tmp_path / "error-0").read_text()
    assert said.startswith("GroupError: Not all 2 processes of the group have made this call within 0:00:00.5")


def test_scores_and_certificates_are_those_of_one_process(vit, tmp_path) -> None:
    assert run_group(3, tmp_path, score_in_group, 40) == [0, 0, 0]
    split = disentangle(tiny_vit(), random_images(20, 32, seed=1), concepts=8, units=3, progress=False)
    wanted = score(split, random_images(40, 32), k=4, progress=False)
    judged = score(split, random_images(40, 32), k=4, progress=False, embeddings=split.model)
    certificate = verify(split, random_images(40, 32), max_images=None, batch_size=8, progress=False).to_dict()
    measured = {name for name in certificate if name.endswith("time_ratio")}
    for rank in range(3):
        found = pd.read_pickle(tmp_path / f"scores-{rank}")  # noqa: S301 - our own
        pd.testing.assert_frame_equal(found, wanted)
        assert found.attrs == wanted.attrs
        pd.testing.assert_frame_equal(pd.read_pickle(tmp_path / f"judged-{rank}"), judged)  # noqa: S301
        told = json.loads((tmp_path / f"certificate-{rank}").read_text())
        assert {name: told[name] for name in told.keys() - measured} == {
            name: certificate[name] for name in certificate.keys() - measured
        }
