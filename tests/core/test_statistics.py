"""Laws of what a pass leaves: however images are cut into parts, the parts add up to the same."""

from __future__ import annotations

import dataclasses
import functools
import operator
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elude_nb import Recording
from elude_nb.core.concepts import Cells
from elude_nb.core.statistics import Collector, Limits, Statistics, token_keys
from elude_nb.errors import StatisticsError, StoreError
from tests.parts import empty_of, recording_of, same_statistics, settings_of

IMAGES, EACH = 24, 5
_RNG = np.random.default_rng(0)
CHANNELS, SOURCES = (torch.from_numpy(_RNG.normal(size=(IMAGES * EACH, width)) + 3) for width in (6, 9))
TOKENS = recording_of(CHANNELS, SOURCES, EACH)
CELLS = Cells.of(TOKENS.channels[:40], 7, seed=0)
LIMITS = {
    "all tokens": Limits(7, 0, IMAGES * EACH, 0),
    "cells": Limits(7, 8, 0, 0),
    "cells and a sample": Limits(7, 8, 31, 3, squares=True),
}


def part_of(images: list[int], limits: Limits, batch: int = 4) -> Statistics:
    """Return what a pass over these images leaves, in the order given."""
    collector = Collector(empty_of(TOKENS, limits), CELLS if limits.sample else None)
    for start in range(0, len(images), batch):
        collector.add(Recording.join([TOKENS.rows(TOKENS.images == i) for i in images[start : start + batch]]))
    numbers = torch.tensor(images, dtype=torch.int64)
    return collector.finish(numbers, numbers * 7)


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
@given(owners=st.lists(st.integers(0, 4), min_size=IMAGES, max_size=IMAGES), order=st.permutations(range(5)))
@settings(deadline=None, max_examples=25)
def test_any_cut_in_any_order_adds_up_to_the_same_statistics(limits, owners, order) -> None:
    whole = part_of(list(range(IMAGES)), limits)
    parts = [part_of([i for i in range(IMAGES) if owners[i] == part][::-1], limits, batch=3) for part in order]
    same_statistics(functools.reduce(operator.add, parts), whole)
    a, b, *others = parts
    same_statistics((a + b) + others[0], a + (b + others[0]))
    same_statistics(a + b, b + a, exactly=True)
    for one in (whole + empty_of(TOKENS, limits), empty_of(TOKENS, limits) + whole):
        same_statistics(one, whole, exactly=True)


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
def test_sums_are_those_of_the_tokens(limits) -> None:
    found = part_of([7, 3, 11], limits)
    seen = torch.isin(TOKENS.images, torch.tensor([3, 7, 11]))
    channels, sources = TOKENS.channels[seen], TOKENS.sources[seen]
    assert found.images.tolist() == [3, 7, 11]
    assert found.hashes.tolist() == [21, 49, 77]
    torch.testing.assert_close(found.moments.channel_variance, channels.var(0, correction=0))
    groups = found.groups()
    assert int(groups.counts.sum()) == found.tokens == len(channels)
    torch.testing.assert_close(groups.channel_sums.sum(0), channels.sum(0))
    torch.testing.assert_close(groups.source_sums.sum(0), sources.sum(0))
    if limits.squares:
        assert groups.source_squares is not None
        torch.testing.assert_close(groups.source_squares.sum(0), sources.square().sum(0))


def test_the_tokens_that_are_kept_are_those_with_the_smallest_keys() -> None:
    found = part_of(list(range(IMAGES)), LIMITS["cells and a sample"])
    keys = token_keys(TOKENS.images, TOKENS.positions, 3)
    rows = torch.from_numpy(np.sort(np.argsort(keys)[:31]))
    assert len(set(keys.tolist())) == len(keys)
    assert found.kept.sources.equal(TOKENS.sources[rows])
    assert found.kept.positions.equal(TOKENS.positions[rows])
    assert found.sample(5).sources.equal(TOKENS.sources[torch.from_numpy(np.sort(np.argsort(keys)[:5]))])


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
def test_a_file_holds_all_of_it(limits, tmp_path) -> None:
    path = tmp_path / "part.safetensors"
    for found in (part_of([2, 5], limits), empty_of(TOKENS, limits)):
        found.save(path)
        same_statistics(Statistics.load(path), found, exactly=True)
    whole = Statistics.load(path) + part_of(list(range(IMAGES)), limits)
    assert repr(whole) == "Statistics(24 of 24 images, 120 tokens at 'layer')"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: dataclasses.replace(one, settings=settings_of(IMAGES, seed=1)), "seed is 0 in one and 1 in"),
        (lambda one: dataclasses.replace(one, settings=settings_of(IMAGES, site="other")), "site is 'layer'"),
        (lambda one: dataclasses.replace(one, settings=settings_of(99)), "images is 24 in one and 99"),
        (lambda one: dataclasses.replace(one, limits=LIMITS["cells"]), "tokens is 31 in one and 0"),
        (lambda one: dataclasses.replace(one, origin={**one.origin, "fingerprint": "c"}), "fingerprint is 'aaaaaa"),
        (lambda one: dataclasses.replace(one, origin={**one.origin, "image_list": "c"}), "image list is 'bbbb"),
        (lambda one: dataclasses.replace(one, cells=Cells(CELLS.middle, -CELLS.centres)), "their cells differ"),
        (lambda one: one, r"Both have seen image 4 \(2 in all\)"),
    ],
)  # fmt: skip
def test_what_does_not_belong_together_is_refused_and_named(change, message) -> None:
    one = part_of([4, 6], LIMITS["cells and a sample"])
    with pytest.raises(StatisticsError, match=message):
        one + change(one)


def test_damaged_files_and_other_files_are_refused(tmp_path, split) -> None:
    split.save(tmp_path / "split.safetensors")
    with pytest.raises(StoreError, match="disentanglement"):
        Statistics.load(tmp_path / "split.safetensors")
    found = part_of([2, 5], LIMITS["cells"])
    for wrong in (
        dataclasses.replace(found, hashes=found.hashes[:1]),
        dataclasses.replace(found, moments=dataclasses.replace(found.moments, tokens=3)),
        dataclasses.replace(found, images=found.images.flip(0)),
        dataclasses.replace(found, limits=dataclasses.replace(found.limits, tokens=-1)),
    ):
        wrong.save(tmp_path / "part.safetensors")
        with pytest.raises(StoreError, match="holds no whole statistics"):
            Statistics.load(tmp_path / "part.safetensors")


def test_what_is_sent_is_no_larger_than_what_it_holds() -> None:
    found = part_of([2, 5], LIMITS["all tokens"])
    held = sum(tensor.nbytes for tensor in found.tensors().values())
    assert len(pickle.dumps(found)) < held + 12_000
