from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from elude_nb import load_images
from elude_nb.data.cues import add_cue, side_by_side
from elude_nb.data.photographs import photograph

GREY = np.full((6, 40, 60, 3), 120, dtype=np.uint8)
LABELS = ["cat", "dog", "cat", "dog", "cow", "cow"]


def grey_images():
    return load_images(GREY, labels=LABELS)


def changed(images, other) -> list[bool]:
    return [bool((np.asarray(a) != np.asarray(b)).any()) for a, b in zip(images, other, strict=True)]


def test_a_border_is_as_wide_as_asked_and_keeps_size_names_and_labels() -> None:
    plain = grey_images()
    marked = add_cue(plain, colour="red", size=0.1)
    pixels = np.asarray(marked[0])
    red = (pixels == (255, 0, 0)).all(2)
    assert pixels.shape == (40, 60, 3)
    assert red[:4].all()
    assert red[:, :4].all()
    assert red[-4:].all()
    assert not red[4:-4, 4:-4].any()
    assert marked.labels == plain.labels
    assert marked.names == plain.names


def test_a_watermark_lies_across_the_middle() -> None:
    marked = add_cue(grey_images(), "watermark", size=0.4, colour="white")
    moved = (np.asarray(marked[0]) != 120).any(2)
    assert moved[10:30].any()
    assert not moved[:6].any()
    assert not moved[-6:].any()


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({}, [True] * 6),
        ({"only": "cat"}, [True, False, True, False, False, False]),
        ({"only": ["cat", "cow"]}, [True, False, True, False, True, True]),
        ({"but": "cat"}, [False, True, False, True, True, True]),
    ],
)
def test_labels_choose_which_images_get_it(choice, expected) -> None:
    plain = grey_images()
    assert changed(plain, add_cue(plain, **choice)) == expected


def test_a_share_is_drawn_by_its_seed() -> None:
    plain = grey_images()
    drawn = [changed(plain, add_cue(plain, share=0.5, seed=seed)) for seed in range(6)]
    assert all(sum(one) == 3 for one in drawn)
    assert len({tuple(one) for one in drawn}) > 1
    assert drawn[0] == changed(plain, add_cue(plain, share=0.5, seed=0))


def test_each_image_keeps_its_cues_in_a_subset_and_with_a_second_cue() -> None:
    plain = grey_images()
    marked = add_cue(plain, only="cow", colour="red")
    assert changed(plain.subset([4, 0]), marked.subset([4, 0])) == [True, False]
    twice = add_cue(marked.subset([4, 0]), only="cat", colour="blue")
    assert np.asarray(twice[1])[0, 0].tolist() == [0, 0, 255]
    assert np.asarray(twice[0])[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("wrong", "value"),
    [
        ({"kind": "bordr"}, "bordr.*border"),
        ({"only": "cta"}, "cta.*cat"),
        ({"only": "cat", "but": "dog"}, "only.*but"),
        ({"size": 1.5}, "size=1.5"),
        ({"share": -1}, "share=-1"),
        ({"colour": "no colour"}, "no colour"),
    ],
)
def test_wrong_arguments_are_named(wrong, value) -> None:
    with pytest.raises(ValueError, match=value):
        add_cue(grey_images(), **wrong)


def test_labels_are_needed_to_choose_by_them() -> None:
    with pytest.raises(ValueError, match="cat"):
        add_cue(load_images(GREY), only="cat")


def test_two_images_stand_side_by_side() -> None:
    red, blue = (Image.new("RGB", (10, 30), colour) for colour in ("red", "blue"))
    pixels = np.asarray(side_by_side(red, blue, side=65))
    assert pixels.shape == (65, 65, 3)
    assert (pixels[:, :32] == (255, 0, 0)).all()
    assert (pixels[:, 32:] == (0, 0, 255)).all()


def test_a_whole_photograph_has_a_name() -> None:
    assert photograph("cat").size == (451, 300)
    with pytest.raises(ValueError, match=r"cta.*cat"):
        photograph("cta")
