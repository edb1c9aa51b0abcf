from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
import traitlets
from PIL import Image

from elude_nb.data.decode import read_rgb
from elude_nb.errors import ImageError
from elude_nb.interpret.gallery import Gallery, look
from elude_nb.interpret.profiles import find_contributors
from elude_nb.widgets.controls import MOST_BYTES
from elude_nb.widgets.image_inspector import ImageInspector


@pytest.fixture(scope="module")
def gallery(split, images) -> Gallery:
    return Gallery(split, images[:10]).fill(progress=False)


@pytest.fixture
def inspector(gallery) -> ImageInspector:
    return ImageInspector(gallery, count=6)


def png(side: int = 32) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


def test_first_paint(inspector) -> None:
    assert (inspector.image, inspector.row, inspector.column) == (0, 2, 2)
    assert inspector._picker.src.startswith("data:image/jpeg")
    assert inspector._picker.alt == "image 0, as the model sees it"
    assert len(inspector._list.options) == len(inspector.contributors) == 6
    assert inspector.unit == tuple(inspector.contributors.loc[0, ["channel", "unit"]])
    assert inspector._others.value.count("<img") == 7  # the image itself and six others


def test_contributors_are_those_of_the_patch(inspector, gallery) -> None:
    inspector.image, inspector.row, inspector.column = 3, 1, 2
    seen = look(gallery.split, [gallery.images[3]])
    expected = find_contributors(gallery.split, seen.sources[0, 1 * 4 + 2], count=6)
    found = inspector.contributors
    assert found["deviations"].tolist() == pytest.approx(expected["deviations"].tolist(), rel=0.03)
    assert inspector._picker.row == 1
    assert inspector._picker.column == 2


def test_the_picker_and_the_traits_follow_each_other(inspector) -> None:
    before = inspector._others.value
    inspector._picker.row, inspector._picker.column = 0, 3
    assert (inspector.row, inspector.column) == (0, 3)
    assert inspector._others.value != before
    inspector._choice.value = 5
    assert inspector.image == 5
    assert inspector._picker.alt.startswith("image 5")


def test_choosing_a_sub_unit_shows_its_images(inspector, gallery) -> None:
    _, value = inspector._list.options[3]
    inspector._list.value = value
    assert inspector.unit == value
    maps = gallery.images_of_unit(*value)
    best = maps.amax(1).argsort(descending=True)[:6].tolist()
    shown = inspector._others.value.partition("<span")[2]
    places = [shown.index(f'alt="image {i}:') for i in best]
    assert places == sorted(places)


def test_an_own_image(inspector) -> None:
    inspector.show(Image.fromarray(np.zeros((32, 32, 3), np.uint8)), "mine")
    assert inspector.image == -1
    assert inspector._picker.alt.startswith("mine")
    assert inspector._choice.value is None
    first = inspector._picker.src
    inspector.bring("other.png", png())
    assert inspector.image == -1
    assert inspector._picker.src != first
    inspector.image = 2
    assert inspector._picker.alt.startswith("image 2")


def send(control: Any, *files: tuple[str, bytes], refused: tuple[str, ...] = ()) -> None:
    """Send what send_files.js sends for one choice of files, in parts of 100 bytes."""
    for name, content in files:
        for start in range(0, max(len(content), 1), 100):
            part = memoryview(content[start : start + 100])
            control._handle_custom_msg({"kind": "part", "name": name, "start": start}, [part])
    for name in refused:
        control._handle_custom_msg({"kind": "refused", "name": name, "why": "cannot be read by this browser."}, [])
    control._handle_custom_msg({"kind": "end"}, [])


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.radial_gradient("L").convert("RGB").resize((32, 32)).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("control", ["_upload", "_picker"])
def test_an_upload_and_a_drop(inspector, control: str) -> None:
    taker = getattr(inspector, control)
    for _ in range(2):  # the same file twice
        send(taker, ("one.png", png()))
        assert inspector.image == -1
        assert inspector._picker.alt.startswith("one.png")
        inspector.image = 3


def test_several_files_at_once_and_what_cannot_be_read(inspector) -> None:
    send(inspector._upload, ("a.txt", b"hello"), ("b.png", png()), ("c.png", png()), refused=("folder",))
    assert inspector._picker.alt.startswith("b.png")
    assert all(name in inspector.message for name in ("'a.txt' is not an image", "'folder' cannot be read", "'c.png'"))
    assert 'role="alert"' in inspector._status.value
    send(inspector._upload, ("d.png", png()))
    assert inspector._picker.alt.startswith("d.png")
    assert 'role="alert"' not in inspector._status.value


def test_the_browser_offers_what_is_read(inspector) -> None:
    offered = inspector._upload.accept.split(",")
    kinds = {Image.registered_extensions()[ending] for ending in offered}
    assert {"JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP"} <= kinds
    for kind in kinds & set(Image.SAVE):
        with contextlib.suppress(KeyError, OSError):  # a Pillow without this codec
            send(inspector._upload, (f"picture.{kind}", encoded(kind)))
            assert inspector._picker.alt.startswith(f"picture.{kind}"), inspector.message
    assert not {".pdf", ".eps", ".svg", ".heic", ".txt"} & set(offered)


PDF, SVG, HEIC = b"%PDF-1.7\n", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an image"),
        (b"hello", "not an image"),
        (PDF, "not an image"),
        (SVG, "not an image"),
        (HEIC, "not an image"),
        (png()[:60], "broken image"),
        (png(4), "4 x 4 pixels"),
    ],
)
def test_bad_files_are_reported_and_nothing_changes(inspector, content, message) -> None:
    before = inspector.image, inspector._picker.src, inspector._others.value
    inspector.bring("bad.png", content)
    assert message in inspector.message
    assert "bad.png" in inspector.message
    assert (inspector.image, inspector._picker.src, inspector._others.value) == before
    with pytest.raises(ImageError, match=message):
        read_rgb(content, "bad.png")


def test_large_files_are_refused(inspector) -> None:
    inspector.bring("huge.png", b"0" * (MOST_BYTES + 1))
    assert "30,000,000" in inspector.message


@pytest.mark.parametrize(("name", "value"), [("image", 10), ("image", -1), ("row", 4), ("column", -1)])
def test_wrong_traits_are_refused(inspector, name, value) -> None:
    before = getattr(inspector, name)
    with pytest.raises(traitlets.TraitError, match=name):
        setattr(inspector, name, value)
    assert getattr(inspector, name) == before


def test_the_static_fallback(inspector) -> None:
    text = inspector.static_html()
    assert text.count("<img") == 8
    assert text.count("<li>") == 6
    assert 'alt=""' not in text
