"""Worker processes read what this process would read, and fail as it would."""

from __future__ import annotations

import dataclasses
import multiprocessing

import numpy as np
import pytest
import torch

from elude_nb import disentangle, embed, load_images
from elude_nb.errors import ImageError
from tests.tiny import random_images


def test_workers_read_the_same_batches_and_note_the_hashes(vit, images) -> None:
    fresh = random_images(20, 32)
    before = torch.random.get_rng_state()
    model = vit.using(workers=2, batch_size=6, progress=False)
    found = list(model.batches(fresh))
    assert [len(batch) for batch in found] == [6, 6, 6, 2]
    assert torch.cat(found).equal(vit.prepare(images))
    assert torch.random.get_rng_state().equal(before)
    known = dataclasses.replace(fresh, _items=[None] * 20)  # no image of it can be opened
    np.testing.assert_array_equal(known.hashes(), images.hashes())
    assert not multiprocessing.active_children()


def test_a_split_is_the_same_with_workers(vit, images, split) -> None:
    found = disentangle(
        vit.using(workers=1), random_images(20, 32), concepts=8, units=3, tokens_per_image=6, progress=False
    )
    assert found.routing.routes.equal(split.routing.routes)
    assert found.seen is not None
    assert found.seen.equal(split.seen)
    assert split.using(workers=1).model.workers == 1


def test_a_broken_image_is_named_as_without_workers(vit, images, tmp_path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    some = load_images([*images[:3], tmp_path / "broken.png"])
    said = []
    for workers in (0, 1):
        with pytest.raises(ImageError) as caught:
            embed(vit.using(workers=workers, batch_size=2, progress=False), some)
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert "broken.png" in said[0]


@pytest.mark.parametrize(("wrong", "error"), [(-1, ValueError), (1.5, TypeError), (True, TypeError)])
def test_workers_are_a_whole_number(vit, wrong, error) -> None:
    with pytest.raises(error, match="workers"):
        vit.using(workers=wrong)
