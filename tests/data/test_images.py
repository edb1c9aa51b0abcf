from __future__ import annotations

import io
import os
import re
import shutil
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageFile

from elude_nb.data.decode import open_rgb
from elude_nb.data.images import ImageSet, load_images
from elude_nb.data.photographs import PHOTOGRAPHS, photograph
from elude_nb.errors import ImageError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def numbered(count: int) -> list[Image.Image]:
    """Plain images whose grey is their number."""
    return [Image.new("RGB", (8, 8), (i, i, i)) for i in range(count)]


def greys(images: ImageSet) -> list[int]:
    return [pixel(image)[0] for image in images]


def pixel(image: Image.Image, x: int = 0, y: int = 0) -> tuple[int, int, int]:
    found = image.getpixel((x, y))
    assert isinstance(found, tuple)
    return found  # type: ignore[return-value]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two labels, one of them nested, one file without label, and hidden files that do not count."""
    top = tmp_path / "set"
    for place, grey in {"cat/b.png": 2, "cat/a.PNG": 1, "dog/young/c.jpeg": 3, "loose.bmp": 4}.items():
        (top / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (grey, grey, grey)).save(top / place, quality=100)
    for other in ("cat/.hidden.png", ".ipynb_checkpoints/a-checkpoint.png"):
        (top / other).parent.mkdir(parents=True, exist_ok=True)
        (top / other).write_bytes(b"x")
    return top


# ------------------------------------------------------------------------ folders


def test_a_folder_gives_its_images_sorted_with_the_first_subfolder_as_label(folder: Path) -> None:
    images = load_images(folder)
    assert [name.replace(os.sep, "/") for name in images.names] == [
        "cat/a.PNG",
        "cat/b.png",
        "dog/young/c.jpeg",
        "loose.bmp",
    ]
    assert images.labels == ("cat", "cat", "dog", "")
    assert greys(images) == [1, 2, 3, 4]
    assert repr(images) == "ImageSet(4 images from folder set, 3 labels)"


def test_a_flat_folder_has_no_labels(folder: Path) -> None:
    images = load_images(str(folder / "cat"))
    assert images.labels is None
    assert greys(images) == [1, 2]
    assert repr(images) == "ImageSet(2 images from folder cat)"


def test_count_draws_evenly_from_the_labels(folder: Path) -> None:
    images = load_images(folder, count=3)
    assert len(images) == 3
    assert set(images.labels or ()) == {"cat", "dog", ""}
    assert len(load_images(folder, count=99)) == 4


@pytest.mark.parametrize(
    ("count", "drawn"),
    [(1, [0, 0, 1]), (2, [0, 1, 1]), (6, [2, 2, 2]), (8, [2, 3, 3]), (13, [3, 5, 5]), (29, [3, 13, 13])],
)
def test_a_sample_has_as_many_of_each_label_as_there_are(count: int, drawn: list[int]) -> None:
    images = load_images(numbered(53), labels=["a"] * 30 + ["b"] * 20 + ["c"] * 3)
    for seed in range(5):
        labels = images.sample(count, seed=seed).labels
        assert labels is not None
        assert sorted(labels.count(label) for label in "abc") == drawn


def test_every_label_gets_the_odd_image_in_turn() -> None:
    images = load_images(numbered(30), labels=["a", "b", "c"] * 10)
    odd = Counter(Counter(images.sample(4, seed=seed).labels).most_common(1)[0][0] for seed in range(60))
    assert set(odd) == {"a", "b", "c"}
    assert min(odd.values()) > 8  # 20 expected, with a deviation of 3.7


def test_a_sample_is_seeded_in_order_and_without_repeats() -> None:
    images = load_images(numbered(60), labels=["a"] * 30 + ["b"] * 20 + ["c"] * 10)
    drawn = images.sample(12, seed=1)
    assert greys(drawn) == sorted(set(greys(drawn)))
    assert len(drawn) == 12
    assert greys(drawn) == greys(images.sample(12, seed=1))
    assert greys(drawn) != greys(images.sample(12, seed=2))
    assert images.sample(60) is images


def test_a_sample_without_labels_is_drawn_from_all() -> None:
    images = load_images(numbered(20))
    seen = Counter(grey for seed in range(200) for grey in greys(images.sample(5, seed=seed)))
    assert len(seen) == 20
    assert min(seen.values()) > 25  # 50 expected, with a deviation of 6
    assert greys(images.sample(5, seed=0)) == sorted(greys(images.sample(5, seed=0)))


def test_a_missing_folder_is_named_with_the_sets_that_need_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"photo'.*'photographs'.*'shapes'"):
        load_images(tmp_path / "photo")
    with pytest.raises(FileNotFoundError, match="'photograph'"):
        load_images("photograph")


def test_a_folder_without_images_names_what_lies_there(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=rf"{tmp_path.name}'; it is empty"):
        load_images(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ImageError, match=rf"{tmp_path.name}'; 1 file left out: notes\.txt"):
        load_images(tmp_path)


ENDINGS = "png apng jpg jpeg jpe jfif mpo webp avif bmp dib gif ico tif tiff ppm pgm pnm pcx qoi jp2 j2k jpx tga sgi"


def test_every_kind_of_picture_is_taken_by_its_ending_or_its_first_bytes(tmp_path: Path) -> None:
    kinds = Image.registered_extensions()
    for ending in ENDINGS.split():
        if kinds[f".{ending}"] in Image.SAVE:
            Image.new("RGB", (16, 16), (9, 9, 9)).save(tmp_path / f"{ending}.{ending.upper()}")
    shutil.copy(tmp_path / "png.PNG", tmp_path / "noending")
    images = load_images(tmp_path)
    assert {Path(name).suffix[1:].lower() for name in images.names} == {"", *ENDINGS.split()}
    assert all(image.size == (16, 16) for image in images)


def test_what_is_left_out_is_counted_and_named(folder: Path) -> None:
    Image.new("RGB", (8, 8)).save(folder / "cat" / "figure.eps")  # for which Pillow would start another program
    (folder / "dog" / "LICENSE").write_text("x")
    with pytest.warns(UserWarning, match=r"4 images .*2 files left out: cat.figure\.eps, dog.LICENSE"):
        images = load_images(folder, count=3)
    assert images.left_out == (f"cat{os.sep}figure.eps", f"dog{os.sep}LICENSE")
    assert repr(images).startswith("ImageSet(3 images from folder set, 3 labels; 2 files left out: cat")


def test_linked_folders_are_classes_and_loops_end(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    Image.new("RGB", (8, 8), (9, 9, 9)).save(elsewhere / "d.png")
    (elsewhere / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "bird").symlink_to(elsewhere, target_is_directory=True)
    (folder / "cat" / "dogs").symlink_to(folder / "dog", target_is_directory=True)
    with pytest.warns(UserWarning, match="2 files left out"):
        images = load_images(folder)
    assert images.labels == ("bird", "cat", "cat", "dog", "")
    assert images.left_out == (f"bird{os.sep}loop", f"cat{os.sep}dogs")


def test_labels_for_a_folder_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="labels"):
        load_images(folder, labels=["a"] * 4)


def test_a_large_folder_costs_its_paths_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for label in range(3):
        (tmp_path / str(label)).mkdir()
        for number in range(1000):
            (tmp_path / str(label) / f"{number:04}.png").touch()
    opened: list[str] = []
    real = Image.open

    def counted(file: str, **settings: Any) -> Image.Image:
        opened.append(file)
        return real(file, **settings)

    monkeypatch.setattr(Image, "open", counted)
    images = load_images(tmp_path)
    first, second = images.split(0.5)
    assert len(images[100:200]) == 100
    assert Counter(images.labels) == {"0": 1000, "1": 1000, "2": 1000}
    assert (len(first), len(second)) == (1500, 1500)
    assert opened == []
    with pytest.raises(ImageError, match=r"0007\.png"):
        images[7]
    assert opened == [str(tmp_path / "0" / "0007.png")]


# ----------------------------------------------------------- files that are no use


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    with pytest.raises(ImageError, match=r"empty\.png"):
        load_images(tmp_path)[0]


def test_text_with_the_ending_of_an_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "page.jpg").write_text("<html>404 not found</html>")
    with pytest.raises(ImageError, match=r"page\.jpg"):
        load_images(tmp_path)[0]


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "bmp", "gif", "tif", "ppm"])
def test_a_truncated_file_is_named_and_never_half_shown(tmp_path: Path, ending: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    file = tmp_path / f"cut.{ending}"
    noise.save(file)
    whole = file.read_bytes()
    for share in (0.1, 0.5, 0.9):
        file.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ImageError, match=rf"cut\.{ending}"):
            open_rgb(file)


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "gif", "tif", "ppm"])
def test_damaged_bytes_give_an_image_or_an_image_error_and_nothing_else(tmp_path: Path, ending: str) -> None:
    rng = np.random.default_rng(1)
    file, exif = tmp_path / f"x.{ending}", Image.Exif()
    exif[274] = 6
    how: dict[str, Any] = {"exif": exif} if ending in {"png", "jpg", "webp", "tif"} else {}
    noise = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    noise.save(file, **how)
    whole = file.read_bytes()
    refused = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL grumbles about odd tags
        for _ in range(80):
            changed = bytearray(whole)
            for place in rng.integers(0, min(len(whole), 300), 4):
                changed[place] = rng.integers(256)
            file.write_bytes(bytes(changed))
            try:
                assert open_rgb(file).mode == "RGB"
            except ImageError as error:
                refused += 1
                assert str(file) in str(error)  # noqa: PT017 - either outcome is right
    assert refused


def test_a_file_that_went_away_is_named(folder: Path) -> None:
    images = load_images(folder)
    (folder / "cat" / "a.PNG").unlink()
    with pytest.raises(ImageError, match=r"a\.PNG"):
        images[0]


@pytest.mark.parametrize(("size", "limit"), [((7, 30), "8"), ((8, 401), "50")])
def test_sizes_that_no_network_can_use_are_named(tmp_path: Path, size: tuple[int, int], limit: str) -> None:
    for turned in (size, size[::-1]):
        Image.new("RGB", turned).save(tmp_path / "odd.png")
        with pytest.raises(ImageError, match=rf"odd\.png.*{turned[0]} x {turned[1]} .* {limit}"):
            open_rgb(tmp_path / "odd.png")
    Image.new("RGB", (8, 400)).save(tmp_path / "odd.png")
    assert open_rgb(tmp_path / "odd.png").size == (8, 400)


def test_a_decompression_bomb_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (100, 100)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match=r"bomb\.png.*10000"):
        open_rgb(tmp_path / "bomb.png")


def test_without_broken_warns_of_each_and_keeps_the_rest(folder: Path) -> None:
    (folder / "cat" / "aa.png").touch()
    (folder / "dog" / "z.jpg").write_text("no")
    images = load_images(folder)
    with pytest.warns(UserWarning, match="2 of 6") as caught:
        whole = images.without_broken()
    assert "aa.png" in str(caught[0].message)
    assert "z.jpg" in str(caught[0].message)
    assert "leave such files out" not in str(caught[0].message)  # that is what was asked for
    assert (greys(whole), whole.labels) == ([1, 2, 3, 4], ("cat", "cat", "dog", ""))
    assert greys(whole.without_broken()) == [1, 2, 3, 4]  # and no warning now
    assert whole.left_out == (f"cat{os.sep}aa.png", f"dog{os.sep}z.jpg")


# ------------------------------------------------------------------- lists and arrays


def test_lists_of_paths_and_images_may_be_mixed(folder: Path) -> None:
    images = load_images([folder / "cat" / "b.png", str(folder / "loose.bmp"), Image.new("L", (8, 8), 9)])
    assert greys(images) == [2, 4, 9]
    assert images.labels is None
    assert images.names == (str(folder / "cat" / "b.png"), str(folder / "loose.bmp"), "image 2")


def test_a_column_of_a_table_is_a_list_of_paths(folder: Path) -> None:
    table = pd.DataFrame({"path": [str(folder / "loose.bmp"), str(folder / "cat" / "a.PNG")], "kind": ["x", "y"]})
    images = load_images(table["path"], labels=table["kind"])  # type: ignore[arg-type]
    assert (greys(images), images.labels) == ([4, 1], ("x", "y"))
    assert greys(load_images(np.array([str(folder / "loose.bmp")]))) == [4]


def test_a_broken_image_of_the_users_is_named(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(buffer, "PNG")
    with Image.open(io.BytesIO(buffer.getvalue()[:2000])) as cut:
        images = load_images([*numbered(1), cut])
        with pytest.raises(ImageError, match="'image 1'"):
            images[1]
        with pytest.warns(UserWarning, match="1 of 2"):
            assert len(images.without_broken()) == 1


def test_what_is_no_image_is_named_by_place_and_type() -> None:
    with pytest.raises(TypeError, match=r"Item 1 .* 3 \(int\)"):
        load_images([*numbered(1), 3])
    with pytest.raises(TypeError, match=r"load_images\(\[image\]\)"):
        load_images(numbered(1)[0])  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="empty"):
        load_images([])


@pytest.mark.parametrize("count", [1, 3])
def test_labels_must_be_as_many_as_images(count: int) -> None:
    with pytest.raises(ValueError, match=f"{count} labels? .* 2 images"):
        load_images(numbered(2), labels=["a"] * count)


def test_labels_are_kept_as_text() -> None:
    assert load_images(numbered(2), labels=[0, 1]).labels == ("0", "1")  # type: ignore[list-item]


@pytest.mark.parametrize("of_torch", [False, True])
@pytest.mark.parametrize("channels_first", [False, True])
@pytest.mark.parametrize("floats", [False, True])
def test_arrays_come_in_every_usual_form(of_torch: bool, channels_first: bool, floats: bool) -> None:
    pixels: Any = np.random.default_rng(0).integers(0, 256, (2, 9, 10, 3), dtype=np.uint8)
    given: Any = pixels.astype(np.float64) / 255 if floats else pixels
    if channels_first:
        given = given.transpose(0, 3, 1, 2)
    images = load_images(torch.from_numpy(given.copy()) if of_torch else given)
    assert len(images) == 2
    np.testing.assert_array_equal(np.stack([np.asarray(image) for image in images]), pixels)


def test_a_grey_array_is_repeated() -> None:
    images = load_images(np.full((8, 9, 10), 7, np.uint8), labels=list("abcdefgh"), count=1)
    assert len(images) == 1
    assert images[0].size == (10, 9)
    assert pixel(images[0]) == (7, 7, 7)


@pytest.mark.parametrize("shape", [(8,), (2, 8, 8, 8), (2, 2, 8, 8, 3), (2, 9, 10), (4, 9, 10), (7, 9, 10)])
def test_arrays_of_other_shapes_are_refused_at_once(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match=re.escape(str(shape))):
        load_images(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("shape", [(3, 9, 10), (9, 10, 3), (1, 9, 10), (9, 10, 1), (9, 10)])
@pytest.mark.parametrize("of_torch", [False, True])
@pytest.mark.parametrize("listed", [False, True])
def test_one_image_as_an_array_is_not_taken_for_many_grey_ones(
    shape: tuple[int, ...], of_torch: bool, listed: bool
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    given: Any = torch.from_numpy(pixels) if of_torch else pixels
    images = load_images([given, given] if listed else given)
    assert len(images) == (2 if listed else 1)
    shown = np.asarray(images[-1])
    wanted = np.moveaxis(pixels, 0, -1) if shape[0] in {1, 3} else np.atleast_3d(pixels)
    np.testing.assert_array_equal(shown, np.broadcast_to(wanted, (9, 10, 3)))


@pytest.mark.parametrize("channels", [2, 4, 5, 13])
@pytest.mark.parametrize("last", [False, True])
def test_arrays_of_other_channels_come_out_as_tensors(channels: int, last: bool) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, channels, 15, 16), dtype=np.uint8)
    given = np.moveaxis(pixels, 1, -1) if last else pixels
    for images in (load_images(given), load_images(list(given))):
        assert len(images) == 6
        found: Any = images[5]
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found.numpy(), pixels[5] / 255, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.int64, np.uint16, np.bool_])
def test_arrays_of_ambiguous_dtype_are_refused(dtype: Any) -> None:
    with pytest.raises(ImageError, match=rf"{np.dtype(dtype)} .*value_range"):
        load_images(np.zeros((9, 8, 8), dtype))


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int64, np.float32, np.float64])
def test_a_stated_range_scales_and_cuts(dtype: Any) -> None:
    pixels = np.full((9, 8, 8), 100, dtype)
    pixels[:, 0, :4] = [0, 200, 1124, 3000]
    images = load_images(pixels, value_range=(100, 1124))
    assert np.asarray(images[8])[0, :5, 0].tolist() == [0, 25, 255, 255, 0]


@pytest.mark.parametrize(
    ("wrong", "error"), [((5, 5), ValueError), ((0, np.inf), ValueError), (4095, TypeError), (("0", 1), TypeError)]
)
def test_a_range_is_checked(wrong: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="value_range"):
        load_images(np.zeros((9, 8, 8)), value_range=wrong)


def test_an_empty_array_is_refused() -> None:
    with pytest.raises(ImageError, match=r"\(0, 8, 8, 3\)"):
        load_images(np.zeros((0, 8, 8, 3), np.uint8))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -0.01, 1.01, 255.0])
def test_floats_outside_0_to_1_are_named_by_image(wrong: float) -> None:
    pixels = np.zeros((2, 8, 8, 3), np.float32)
    pixels[1, 0, 0, 0] = wrong
    images = load_images(pixels)
    assert pixel(images[0]) == (0, 0, 0)
    with pytest.raises(ImageError, match="'image 1'"):
        images[1]


@pytest.mark.parametrize("count", [0, -1])
def test_count_is_checked(count: int) -> None:
    with pytest.raises(ValueError, match=f"count={count} "):
        load_images("shapes", count=count)


# ---------------------------------------------------------------------- parts of a set


def test_indexing_is_that_of_a_sequence() -> None:
    images = load_images(numbered(5), labels=list("abcde"))
    assert len(images) == 5
    assert pixel(images[-1]) == (4, 4, 4)
    assert greys(images[1:4]) == [1, 2, 3]
    assert images[::-2].labels == ("e", "c", "a")
    assert len(images[5:]) == 0
    for outside in (5, -6):
        with pytest.raises(IndexError):
            images[outside]


def test_a_subset_keeps_order_names_and_labels_and_may_be_taken_again() -> None:
    images = load_images(numbered(5), labels=list("abcde"))
    part = images.subset(np.array([4, -5, 2]))
    assert (greys(part), part.labels, part.names) == ([4, 0, 2], ("e", "a", "c"), ("image 4", "image 0", "image 2"))
    assert greys(part[1:].subset([1])) == [2]
    with pytest.raises(IndexError):
        images.subset([5])


def test_a_subset_of_shapes_keeps_its_factors() -> None:
    images = load_images("shapes", count=6)
    part = images.subset([5, 1])
    assert part.factors is not None
    assert images.factors is not None
    assert list(part.factors.index) == [0, 1]
    assert list(part.factors["x"]) == list(images.factors["x"].iloc[[5, 1]])


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5, 0.8])
def test_split_is_a_partition_that_keeps_the_shares_of_labels(fraction: float) -> None:
    labels = ["a"] * 40 + ["b"] * 20 + ["c"] * 10
    images = load_images(numbered(70), labels=labels)
    first, second = images.split(fraction, seed=3)
    assert sorted(greys(first) + greys(second)) == list(range(70))
    assert (greys(first), greys(second)) == (sorted(greys(first)), sorted(greys(second)))
    assert len(first) == round(70 * fraction)
    counts = Counter(first.labels)
    for label, total in (("a", 40), ("b", 20), ("c", 10)):
        assert abs(counts[label] - total * fraction) < 1
    assert [labels[i] for i in greys(first)] == list(first.labels or ())


def test_split_is_decided_by_its_seed() -> None:
    images = load_images(numbered(40))
    assert greys(images.split(0.5, seed=1)[0]) == greys(images.split(0.5, seed=1)[0])
    assert greys(images.split(0.5, seed=1)[0]) != greys(images.split(0.5, seed=2)[0])
    assert greys(images.split(0.5)[0]) != list(range(20))  # shuffled: neighbours are alike in real folders


def test_split_draws_evenly_within_a_label() -> None:
    images = load_images(numbered(20), labels=["a", "b"] * 10)
    taken = Counter(i for seed in range(100) for i in greys(images.split(0.5, seed=seed)[0]))
    assert len(taken) == 20
    assert min(taken.values()) > 25  # 50 expected, with a deviation of 5


@pytest.mark.parametrize(("count", "fraction"), [(1, 0.5), (3, 0.1), (3, 0.95)])
def test_split_refuses_an_empty_part(count: int, fraction: float) -> None:
    with pytest.raises(ValueError, match=f"{count} images? .*fraction={fraction}"):
        load_images(numbered(count)).split(fraction)


@pytest.mark.parametrize("fraction", [0.0, 1.0, 2.0])
def test_split_checks_its_fraction(fraction: float) -> None:
    with pytest.raises(ValueError, match=f"fraction={fraction}"):
        load_images(numbered(4)).split(fraction)


# ------------------------------------------------------------------------ photographs


def test_photographs_have_ten_labels_in_turn() -> None:
    images = load_images("photographs", count=20)
    assert images.labels == (*PHOTOGRAPHS, *PHOTOGRAPHS)
    assert len(set(images.labels)) == 10
    assert images.names[0] == "astronaut 0"
    assert images.names[19] == "tissue 1"
    assert images.factors is not None
    assert images.factors["photograph"].tolist() == list(images.labels)
    assert images.factors[["x", "y", "area"]].to_numpy().min() > 0
    assert images.factors[["x", "y", "area"]].to_numpy().max() < 1
    assert len(load_images("photographs")) == 400


def test_a_crop_depends_on_seed_and_place_but_not_on_count() -> None:
    few, many, other = (load_images("photographs", count=n, seed=s) for n, s in ((10, 0), (30, 0), (30, 1)))
    for i in range(10):
        assert few[i].tobytes() == many[i].tobytes()
        assert few[i].tobytes() != other[i].tobytes()
        assert many[i].tobytes() != many[i + 10].tobytes()  # two crops of one photograph
    assert few[3].tobytes() == few[3].tobytes()


def test_drawing_on_a_photograph_or_a_crop_changes_no_later_one() -> None:
    images = load_images("photographs", count=10)
    place = list(PHOTOGRAPHS).index("cat")
    whole, crop = photograph("cat").tobytes(), images[place].tobytes()
    for handed_out in (photograph("cat"), images[place]):
        handed_out.paste((255, 0, 0), (0, 0, *handed_out.size))
    assert photograph("cat").tobytes() == whole
    assert images[place].tobytes() == crop


def test_crops_lie_within_their_photograph_at_the_promised_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Image.new("RGB", (300, 400))
    monkeypatch.setattr("elude_nb.data.photographs._read_photograph", lambda label: whole)
    sizes = np.array([image.size for image in load_images("photographs", count=300)])
    area, ratio = sizes.prod(1) / (300 * 400), sizes[:, 0] / sizes[:, 1]
    assert 0.075 < area.min() < 0.1
    assert 0.5 < area.max() < 0.61
    assert 0.73 < ratio.min() < 0.78
    assert 1.29 < ratio.max() < 1.36


def test_half_of_the_crops_are_mirrored(monkeypatch: pytest.MonkeyPatch) -> None:
    ramp = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (256, 1))).convert("RGB")
    monkeypatch.setattr("elude_nb.data.photographs._read_photograph", lambda label: ramp)
    falls = [pixel(image)[0] > pixel(image, image.width - 1)[0] for image in load_images("photographs", count=200)]
    assert 70 < sum(falls) < 130


def test_a_photograph_that_is_not_installed_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    from elude_nb.data import photographs as module

    images = load_images("photographs", count=1)
    monkeypatch.setattr("elude_nb.data.photographs.find_spec", lambda name: None)
    module._read_photograph.cache_clear()
    with pytest.raises(ImageError, match=r"'astronaut'.*'skimage'"):
        images[0]


@pytest.mark.parametrize("name", ["photographs", "shapes"])
def test_labels_for_a_set_by_name_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}'"):
        load_images(name, labels=["a"])


def test_no_reading_setting_of_pil_is_changed(folder: Path) -> None:
    list(load_images(folder))
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_images_of_some_labels_and_of_all_others() -> None:
    images = load_images("photographs", count=30)
    assert set(images.only("cat").labels or ()) == {"cat"}
    assert len(images.only(["cat", "rocket"])) == 6
    assert len(images.without(["cat", "rocket"])) == 24
    assert set(images.without("cat").labels or ()) == set(images.labels or ()) - {"cat"}
    with pytest.raises(ValueError, match=r"'cta'.*'cat'"):
        images.only("cta")
    with pytest.raises(ValueError, match="'cat'"):
        load_images([Image.new("RGB", (4, 4))]).without("cat")


def test_images_in_bfloat16_are_those_in_float32() -> None:
    pixels = torch.arange(3 * 16 * 16 * 3).reshape(3, 16, 16, 3) % 129 / 128  # eight bits hold them
    low, full = (load_images(cast("Any", pixels.to(dtype)))[1] for dtype in (torch.bfloat16, torch.float32))
    assert np.array_equal(np.asarray(low), np.asarray(full))


def test_names_that_are_no_utf8_are_read_and_written_as_text(tmp_path: Path) -> None:
    """On Linux a name is bytes; Python hands out those that are no UTF-8 in a form that nothing can print."""
    for folder in (b"caf\xe9", b"caf\xe8"):
        inner = os.path.join(os.fsencode(tmp_path), folder)  # noqa: PTH118 - Path takes no bytes
        try:
            os.mkdir(inner)  # noqa: PTH102
        except OSError:
            pytest.skip("names are text on this system")
        Image.new("RGB", (9, 9)).save(os.fsdecode(inner) + "/a.png")
    images = load_images(tmp_path)
    assert images.names == ("caf%E8/a.png", "caf%E9/a.png")
    assert images.labels == ("caf%E8", "caf%E9")  # different names stay different
    assert [image.size for image in images] == [(9, 9)] * 2
    paths = [os.fsdecode(os.path.join(os.fsencode(tmp_path), folder, b"a.png")) for folder in (b"caf\xe9", b"caf\xe8")]  # noqa: PTH118
    listed = load_images(paths, labels=[os.fsdecode(b"caf\xe9"), "b"])
    assert [image.size for image in listed] == [(9, 9)] * 2
    assert len(listed.only(os.fsdecode(b"caf\xe9"))) == len(listed.only("caf%E9")) == 1
    repr(listed).encode("utf-8")
