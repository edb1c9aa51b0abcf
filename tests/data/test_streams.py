"""Streams: their first images are taken, encoded where the stream has them so, and no more than a bound."""

from __future__ import annotations

import dataclasses
import io
import itertools
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import IterableDataset

from elude_nb import load_images
from elude_nb.data import streams
from elude_nb.errors import ImageError
from tests.tiny import random_images


def as_bytes(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


PICTURES = list(random_images(6, 32))
FILES = [as_bytes(image) for image in PICTURES]


def same(found: Any, count: int = 4) -> None:
    for image, wanted in zip(found, PICTURES[:count], strict=True):
        assert np.array_equal(np.asarray(image), np.asarray(wanted))


class Shards(IterableDataset[Any]):
    """What WebDataset yields: of each image a dictionary by endings, nothing decoded."""

    def __iter__(self) -> Any:
        for number, file in enumerate(FILES):
            yield {"__key__": f"shard/{number}", "__url__": "x.tar", "png": file, "cls": f"{number % 2}".encode()}


@dataclasses.dataclass
class Picture:
    """The feature of Hugging Face for images."""

    mode: str | None = None
    decode: bool = True


Picture.__name__ = "Image"


class Kinds:
    names = ("ant", "bee")


class Rows:
    """A stream of Hugging Face: rows with pictures that are decoded, or on request not."""

    def __init__(self, mode: str | None = None, path: str | None = None) -> None:
        self.features: Any = {"image": Picture(mode), "label": Kinds()}
        self.path = path

    def cast_column(self, name: str, feature: Any) -> Rows:
        made = Rows(path=self.path)
        made.features[name] = feature
        return made

    def __iter__(self) -> Any:
        for number, (image, file) in enumerate(zip(PICTURES, FILES, strict=True)):
            held = {"bytes": None if self.path else file, "path": self.path}
            yield {"image": image if self.features["image"].decode else held, "label": number % 2}


def test_files_of_webdataset_stay_encoded() -> None:
    found = load_images(Shards(), count=4)
    same(found)
    assert (found.labels, found.names[1], found.source) == (("0", "1", "0", "1"), "shard/1", "stream Shards")
    assert found._open.keywords["dataset"][0]["png"] is FILES[0]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("rows", "encoded"), [(Rows(), True), (Rows("RGB"), False), (Rows(path="zip://0.png::/x.zip"), False)]
)
def test_pictures_of_hugging_face_stay_encoded_where_they_can(rows, encoded) -> None:
    """Not where it would change their mode, or where only the stream can open them."""
    found = load_images(rows, count=4)
    same(found)
    assert found.labels == ("ant", "bee", "ant", "bee")
    assert isinstance(found._open.keywords["dataset"][0]["image"], dict) == encoded  # type: ignore[attr-defined]


def test_generators_are_gone_through_once_and_no_further_than_they_have_to() -> None:
    same(load_images(itertools.cycle(PICTURES), count=4))  # which has no end
    same(load_images(iter(PICTURES[:4])))
    pairs = zip(FILES, itertools.cycle("ab"), strict=False)
    assert load_images(pairs, count=3).labels == ("a", "b", "a")
    with pytest.raises(ImageError, match="empty"):
        load_images(iter(()))
    same(load_images(FILES[:4]))
    with pytest.raises(ImageError, match="'image 1' is not an image"):
        load_images([FILES[0], b"no image"])[1]


def test_a_stream_that_is_too_large_is_refused_with_the_cure(monkeypatch) -> None:
    """A decoded picture takes four bytes a pixel in Pillow, an array what it has, an encoded picture its file."""
    monkeypatch.setattr(streams, "MOST_HELD", 4 * 32 * 32 * 4)
    assert len(load_images(iter(PICTURES), count=4)) == 4
    for source in (
        iter(PICTURES),
        iter([(image, 0) for image in PICTURES]),
        iter(map(np.asarray, PICTURES)),
        Rows("L"),
    ):
        with pytest.raises(ValueError, match=r"[56] images of \w+ take .* Give them encoded"):
            load_images(source, count=6)
    smooth = as_bytes(Image.new("RGB", (500, 375)))
    assert len(load_images(itertools.repeat(smooth), count=8)) == 8
    assert len(load_images(PICTURES)) == 6  # which whoever calls holds already


def test_hugging_face(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    for number, image in enumerate(PICTURES[:4]):
        folder = tmp_path / "pictures" / "ab"[number // 2]
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{number}.png")
    how: dict[str, Any] = {"data_dir": str(tmp_path / "pictures"), "cache_dir": str(tmp_path / "cache")}
    table = datasets.load_dataset("imagefolder", split="train", **how)
    stream = datasets.load_dataset("imagefolder", split="train", **how, streaming=True)
    plain = table.cast_column("image", datasets.Image(decode=False))
    for found in (load_images(table), load_images(plain), load_images(stream, count=9)):
        same(found)
        assert found.labels == ("a", "a", "b", "b")


def test_webdataset(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for number, file in enumerate(FILES[:4]):
            for ending, content in (("png", file), ("cls", f"{number % 2}".encode())):
                info = tarfile.TarInfo(f"{number}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    plain = webdataset.WebDataset(str(tmp_path / "shard.tar"), shardshuffle=False)
    decoded = plain.decode("pil")
    for stream in (plain, plain.to_tuple("png", "cls"), decoded, decoded.to_tuple("png", "cls")):
        found = load_images(stream, count=9)
        same(found)
        assert found.labels == ("0", "1", "0", "1")
    with pytest.raises(TypeError, match=r"is a batch.*without batched"):
        load_images(plain.decode("torchrgb").to_tuple("png", "cls").batched(2), count=2)
