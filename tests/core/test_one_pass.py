"""A pass over images in shares: the same split, however the images are cut, and wherever a process was killed."""

from __future__ import annotations

import functools
import operator
from typing import Any

import pytest
import torch

from elude_nb import Disentanglement, EludeRouting, disentangle
from elude_nb.core.disentangle import build_split
from elude_nb.core.one_pass import collect, share_of
from tests.tiny import random_images

IMAGES = random_images(70, 32)
QUICK: dict[str, Any] = {"concepts": 6, "tokens_per_image": 6, "batch_size": 8, "progress": False}
ELUDE: dict[str, Any] = {"top_k": 0.6, "min_cluster_size": 8, "min_samples": 1}
WAYS: dict[str, tuple[str | None, dict[str, Any]]] = {
    "all tokens": (None, {}),
    "cells": (None, {"max_memory": 0.006}),
    "published": ("blocks.2.mlp.fc2", {"routing": EludeRouting(max_tokens=200, **ELUDE), "max_memory": 0.002}),
    "micro-clusters": (
        "blocks.2.mlp.fc2", {"routing": EludeRouting(instances="micro-clusters", micro_clusters=60, **ELUDE)}
    ),
    "by channel": (None, {"routing": "channel-clusters", "max_memory": 0.006}),
}  # fmt: skip


def same(one: Disentanglement, other: Disentanglement) -> None:
    """Check that counts, routes and the images seen are equal, and sums but for rounding."""
    assert one.settings == other.settings
    assert one.routing.routes.equal(other.routing.routes)
    assert one.routing.concepts.equal(other.routing.concepts)
    assert (one.routing.owner_sets is None) == (other.routing.owner_sets is None)
    assert one.routing.owner_sets is None or one.routing.owner_sets.equal(other.routing.owner_sets)
    assert one.book.counts.equal(other.book.counts)
    assert one.seen is not None
    assert one.seen.equal(other.seen)
    pairs = [(each.book.channel_sums, each.book.source_sums, each.unit_shares) for each in (one, other)]
    for found, wanted in zip(*pairs, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("way", WAYS)
def test_shares_add_up_to_the_split_of_one_pass(way, vit) -> None:
    site, how = WAYS[way]
    whole = disentangle(vit, IMAGES, site, **QUICK, **how)
    for count in (3, 7):
        parts = [collect(vit, IMAGES, site, shard=(i, count), **QUICK, **how) for i in range(count, 0, -1)]
        assert sum(map(len, parts)) == 70
        assert 0 in map(len, parts) or count == 3
        found = functools.reduce(operator.add, parts)
        assert bool(found.limits.sample) == (way not in {"all tokens", "micro-clusters"})
        same(build_split(found, vit, how.get("routing") if way == "published" else None, progress=False), whole)


def test_the_order_and_the_batches_do_not_matter(vit) -> None:
    site, how = WAYS["cells"]
    whole = disentangle(vit, IMAGES, site, **QUICK, **how)
    same(disentangle(vit, IMAGES, site, **QUICK | {"batch_size": 5}, **how), whole)


@pytest.mark.parametrize("numbers", [range(70), range(5), range(0)])
@pytest.mark.parametrize("count", [1, 2, 3, 64])
def test_each_image_is_in_one_share(numbers, count) -> None:
    shares = [share_of(numbers, (index, count)) for index in range(1, count + 1)]
    assert [each for share in shares for each in share] == list(numbers)
    assert all(share[0] % 16 == 0 for share in shares if share)
