"""Sets of images and sentences can be pickled, and read by the worker processes of a `DataLoader`."""

from __future__ import annotations

import pickle
from multiprocessing import get_all_start_methods
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader
from torchvision.datasets import ImageFolder

from elude_nb import load_images
from elude_nb.data.cues import add_cue
from elude_nb.data.images import ImageSet
from elude_nb.text import load_sentences


@pytest.fixture
def sets(tmp_path: Path) -> dict[str, ImageSet]:
    """Small sets from every source."""
    (tmp_path / "cat").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 12, 10, 3), dtype=np.uint8)
    drawn, turned = Image.fromarray(pixels[0]), Image.Exif()
    turned[274] = 6
    drawn.save(tmp_path / "cat" / "a.png", exif=turned)
    with Image.open(tmp_path / "cat" / "a.png") as opened:
        opened.load()
    shapes = load_images("shapes", count=6)
    return {
        "folder": load_images(tmp_path),
        "list": load_images([drawn, opened, tmp_path / "cat" / "a.png"], labels=["x", "y", "z"]),
        "array": load_images(pixels),
        "data set": load_images(ImageFolder(str(tmp_path))),
        "floats": load_images(pixels / 255),
        "photographs": load_images("photographs", count=4),
        "shapes": shapes,
        "border": add_cue(shapes, only=shapes[:1].labels),
        "two cues": add_cue(add_cue(shapes), "watermark", share=0.5),
        "subset": shapes.subset([4, 0]),
        "sentences": load_sentences("topics", count=3),
    }


def as_values(item: Image.Image | str) -> Any:
    return item if isinstance(item, str) else np.asarray(item).tolist()


@pytest.mark.parametrize(
    "name",
    [
        "folder",
        "list",
        "array",
        "data set",
        "floats",
        "photographs",
        "shapes",
        "border",
        "two cues",
        "subset",
        "sentences",
    ],
)
def test_a_set_comes_back_from_its_pickle(sets: dict[str, ImageSet], name: str) -> None:
    images = sets[name]
    back = pickle.loads(pickle.dumps(images))  # noqa: S301 - our own
    assert type(back) is type(images)
    assert (back.names, back.labels, back.source) == (images.names, images.labels, images.source)
    assert [as_values(item) for item in back] == [as_values(item) for item in images]
    assert (back.factors is None) == (images.factors is None)
    if back.factors is not None and images.factors is not None:
        pd.testing.assert_frame_equal(back.factors, images.factors)


def test_the_pickle_of_a_subset_holds_its_own_images_only() -> None:
    images = load_images(np.zeros((50, 40, 40, 3), np.uint8))
    assert len(pickle.dumps(images[:2])) < len(pickle.dumps(images)) / 10


@pytest.mark.parametrize("method", sorted({*get_all_start_methods()} - {"fork"}))
def test_a_worker_process_reads_every_kind_of_set(sets: dict[str, ImageSet], method: str) -> None:
    images: Any = ConcatDataset(list(sets.values()))  # type: ignore[arg-type] # any sequence will do
    loader = DataLoader(images, batch_size=None, num_workers=1, multiprocessing_context=method)
    assert [as_values(item) for item in loader] == [as_values(item) for each in sets.values() for item in each]
