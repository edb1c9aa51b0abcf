"""A pass over images in shares: the same split, however the images are cut, and wherever a process was killed."""

from __future__ import annotations

import functools
import inspect
import operator
import random
import signal
from typing import Any

import pytest
import torch

from elude_nb import Disentanglement, EludeRouting, disentangle, load_images
from elude_nb.core.disentangle import build_split
from elude_nb.core.one_pass import collect, load_shards, plan_pass, share_of
from elude_nb.core.statistics import Statistics
from elude_nb.core.strategies import ConceptRouting
from elude_nb.errors import ImageError, ModelMismatchError, SiteError, StatisticsError, StoreError
from tests.parts import same_statistics
from tests.tiny import random_images, tiny_vit
from tests.workers import collect_until, model_that_dies, start

IMAGES = random_images(70, 32)
QUICK: dict[str, Any] = {"concepts": 6, "tokens_per_image": 6, "batch_size": 8, "progress": False}
ELUDE: dict[str, Any] = {"top_k": 0.6, "min_cluster_size": 8, "min_samples": 1}
WAYS: dict[str, tuple[str | None, dict[str, Any]]] = {
    "all tokens": (None, {}),
    "cells": (None, {"max_memory": 0.004}),
    "published": ("blocks.2.mlp.fc2", {"routing": EludeRouting(max_tokens=200, **ELUDE),}),
    "micro-clusters": (
        "blocks.2.mlp.fc2", {"routing": EludeRouting(instances="micro-clusters", micro_clusters=60, **ELUDE)}
    ),
    "by channel": (None, {"routing": "channel-clusters", "max_memory": 0.004}),
}  # fmt: skip


def settings_of(way: str) -> tuple[str | None, dict[str, Any]]:
    """Return the site and the settings of a way; the published method gets less memory than all tokens take."""
    site, how = WAYS[way]
    if way != "published":
        return site, how
    planned = plan_pass(tiny_vit(), IMAGES, site, purpose="test", **QUICK, **how)  # it depends on the threads
    return site, how | {"max_memory": (planned.plan.memory - 1) / 2**30}


def same(one: Disentanglement, other: Disentanglement) -> None:
    """Check that counts, routes and the images seen are equal, and sums but for rounding."""
    assert one.settings == other.settings
    assert one.routing.routes.equal(other.routing.routes)
    assert one.routing.concepts.equal(other.routing.concepts)
    sets = [torch.zeros(0) if each.routing.owner_sets is None else each.routing.owner_sets for each in (one, other)]
    assert sets[0].equal(sets[1])
    assert one.book.counts.equal(other.book.counts)
    assert one.seen is not None
    assert other.seen is not None
    assert one.seen.equal(other.seen)
    pairs = [(each.book.channel_sums, each.book.source_sums, each.unit_shares) for each in (one, other)]
    for found, wanted in zip(*pairs, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("way", WAYS)
def test_shares_add_up_to_the_split_of_one_pass(way, vit) -> None:
    site, how = settings_of(way)
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


@pytest.mark.parametrize("way", ["all tokens", "cells"])
def test_a_shard_that_is_killed_again_and_again_is_that_of_one_run(way, vit, tmp_path) -> None:
    site, how = settings_of(way)
    how = {**QUICK, **how, "every": 8}
    path, rng, kills = tmp_path / "part.safetensors", random.Random(3), 0  # noqa: S311
    for attempt in range(30):
        images, saves = (rng.randrange(3, 20), 99) if attempt % 2 else (999, rng.randrange(2))
        worker = start(collect_until, images, saves, len(IMAGES), path, (1, 2), how)
        worker.join()
        kills += worker.exitcode == -signal.SIGKILL
        if worker.exitcode == 0:
            break
    assert kills > 3
    same_statistics(Statistics.load(path), collect(vit, IMAGES, site, shard=(1, 2), **how))


def test_a_shard_that_is_there_is_not_run_again(vit, tmp_path, capsys) -> None:
    path = tmp_path / "part.safetensors"
    found = collect(vit, IMAGES, shard=(2, 2), out=path, **QUICK)
    before = path.stat()
    dead = model_that_dies(0)
    again = collect(dead, IMAGES, shard=(2, 2), out=path, **QUICK | {"progress": True})
    same_statistics(again, found)
    assert path.stat() == before
    assert f"{str(path)!r} has 38 of 38 images already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "is of another pass.*seed is 0 in one and 1 in the other. Name another file, or delete it"),
        ({"units": 3}, "units is 8 in one and 3"),
        ({"site": "blocks.0.mlp.fc2"}, "site is 'stream:3' in one and 'blocks.0.mlp"),
        ({"images": IMAGES[::-1]}, "image list is"),
        ({"model": tiny_vit(seed=1)}, "fingerprint is"),
        ({"shard": (2, 3)}, "has image 48, which is not in shard 2 of 3"),
    ],
)  # fmt: skip
def test_a_file_of_another_pass_is_not_written_over(change, message, vit, tmp_path) -> None:
    path = tmp_path / "part.safetensors"
    given: dict[str, Any] = {"model": vit, "images": IMAGES, "shard": (2, 2), "out": path, **QUICK}
    collect(**given)
    before = path.read_bytes()
    with pytest.raises(StatisticsError, match=message):
        collect(**given | change)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"shard": (0, 3)}, ValueError, "the shard=0 is out of range: it must be between 1 and 3"),
        ({"shard": (4, 3)}, ValueError, "the shard=4"),
        ({"shard": "3/64"}, TypeError, r"shard must be a pair such as \(3, 64\)"),
        ({"every": 0}, ValueError, "every=0"),
        ({"unit": 3}, TypeError, "unit"),
        ({"site": "nowhere"}, SiteError, "nowhere"),
        ({"out": "nowhere/part.safetensors"}, FileNotFoundError, "there is no folder 'nowhere'"),
    ],
)  # fmt: skip
def test_wrong_settings_of_a_shard_are_refused(wrong, error, message, vit) -> None:
    with pytest.raises(error, match=message):
        collect(**{"model": vit, "images": IMAGES, **QUICK, **wrong})


def test_shards_are_added_up_from_their_files(vit, tmp_path) -> None:
    paths = [tmp_path / f"part-{index}.safetensors" for index in (1, 2, 3)]
    for index, path in enumerate(paths, 1):
        collect(vit, IMAGES, shard=(index, 3), out=path, **QUICK)
    same(build_split(load_shards(paths), vit, progress=False), disentangle(vit, IMAGES, **QUICK))
    with pytest.raises(StatisticsError, match="22 of 70 images have not been seen; add the statistics of all shards"):
        build_split(load_shards(paths[:2]), vit)
    with pytest.raises(StatisticsError, match=r"part-1.safetensors' and those before it: Both have seen image 0"):
        load_shards([*paths, paths[0]])
    with pytest.raises(ModelMismatchError, match=r"its weights have SHA-256"):
        build_split(load_shards(paths), tiny_vit(seed=1))
    with pytest.raises(ValueError, match="no file to add up"):
        load_shards([])
    paths[1].write_bytes(paths[1].read_bytes()[:-9])
    with pytest.raises(StoreError, match="not a whole safetensors file"):
        load_shards(paths)


def test_a_strategy_of_ones_own_is_named_again(vit, tmp_path) -> None:
    class Mine(ConceptRouting):
        pass

    found = collect(vit, IMAGES, routing=Mine(), **QUICK)
    with pytest.raises(ValueError, match="Mine"):
        build_split(found, vit)
    same(build_split(found, vit, Mine(), progress=False), disentangle(vit, IMAGES, routing=Mine(), **QUICK))


def test_a_pass_has_the_settings_of_disentangle() -> None:
    wanted, found = (inspect.signature(each).parameters for each in (disentangle, plan_pass))
    assert {name: each.default for name, each in wanted.items()} == {
        name: each.default for name, each in found.items() if name != "purpose"
    }


@pytest.mark.parametrize("way", ["all tokens", "cells"])
def test_broken_images_are_left_out_of_every_shard(way, vit, tmp_path, capsys) -> None:
    site, how = settings_of(way)
    (tmp_path / "broken.png").write_bytes(b"no image")
    items: list[Any] = [*IMAGES]
    for index in (0, 3, 17, 33, 69):
        items[index] = tmp_path / "broken.png"
    images = load_images(items)
    with pytest.raises(ImageError, match=r"broken\.png"):
        collect(vit, images, site, shard=(1, 3), **QUICK, **how)
    parts = []
    for index in (1, 2, 3):
        path = tmp_path / f"part-{index}.safetensors"
        for _ in range(2):
            collect(
                vit, images, site, shard=(index, 3), out=path, skip_broken=True, **QUICK | {"progress": True}, **how
            )
        parts.append(path)
    said = capsys.readouterr().err
    assert "left out" in said
    assert "broken.png" in said
    found = load_shards(parts)
    assert found.left_out.tolist() == [0, 3, 17, 33, 69]
    one = build_split(found, vit, progress=False)
    assert one.settings.images == len(found) == 65
    whole = collect(vit, images, site, skip_broken=True, **QUICK, **how)
    same(one, build_split(whole, vit, progress=False))
    with pytest.raises(StatisticsError, match="Both have seen image 0"):
        found + Statistics.load(parts[0])
