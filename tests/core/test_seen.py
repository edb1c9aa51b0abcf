"""A split remembers which images its discovery saw; scores, effects, pages and panels say so."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import elude_nb as en
from elude_nb.app.report.build import write_report
from elude_nb.core.seen import Seen
from elude_nb.data.copies import hash_image
from elude_nb.scores import verdict
from elude_nb.widgets import ChannelExplorer, IntruderQuiz
from tests.tiny import random_images


@pytest.fixture(scope="module")
def pictures() -> en.ImageSet:
    return random_images(24, 32).with_labels(["a", "b"] * 12)


@pytest.fixture(scope="module")
def halves(pictures: en.ImageSet) -> tuple[en.ImageSet, en.ImageSet]:
    return pictures.split(0.5, seed=0)


@pytest.fixture(scope="module")
def split(vit32, halves) -> en.Disentanglement:
    return en.disentangle(vit32, halves[0], concepts=4, units=2, tokens_per_image=None, progress=False)


def test_unseen_images_are_the_held_out_ones(split, pictures, halves) -> None:
    discover, held_out = halves
    assert split.count_seen(discover) == Seen(12, 12)
    assert split.count_seen(held_out) == Seen(0, 12)
    assert split.count_seen(pictures) == Seen(12, 24)
    assert split.unseen(pictures).names == held_out.names
    with pytest.raises(ValueError, match=r"saw all of these 12 images"):
        split.unseen(discover)


def test_the_same_pixels_in_another_file_were_seen(split, halves, tmp_path: Path) -> None:
    halves[0][3].save(tmp_path / "copy.png")
    assert split.count_seen([tmp_path / "copy.png"]).count == 1


def test_it_is_saved_with_the_split(split, vit32, pictures, tmp_path: Path) -> None:
    split.save(tmp_path / "split.safetensors")
    assert len(load_file(tmp_path / "split.safetensors")["seen"]) == 12
    again = en.Disentanglement.load(tmp_path / "split.safetensors", vit32)
    assert again.count_seen(pictures) == Seen(12, 24)
    assert again.with_names({0: "cat"}).using(batch_size=2).count_seen(pictures) == Seen(12, 24)


def test_a_file_that_does_not_say_leaves_it_open(split, pictures) -> None:
    old = replace(split, seen=None)
    assert str(old.count_seen(pictures)) == "24 images, not known which were seen in discovery"
    assert not old.count_seen(pictures).warning
    with pytest.raises(ValueError, match="not known which images"):
        old.unseen(pictures)


def test_scores_and_their_verdict_say_it(split, pictures, halves, capsys) -> None:
    new = en.score(split, halves[1], k=4)
    assert "12 images, none seen in discovery" in str(verdict(new))
    assert "optimistic" not in capsys.readouterr().err
    old = en.score(split, pictures, k=4)
    assert "24 images, 12 seen in discovery" in str(verdict(old, distinct=True))
    said = capsys.readouterr().err
    assert "score: 24 images, 12 seen in discovery: figures on these are optimistic; split.unseen(images)" in said


def test_effects_say_it(split, pictures, halves) -> None:
    few: dict[str, Any] = {"controls": ["same channels"], "draws": 1, "progress": False}
    edit = en.Edit.ablate(concept=0)
    found = en.effect(split, edit, halves[1], target="a", fit=halves[0], **few)
    assert found.seen == Seen(0, 12)
    assert "12 images, none seen in discovery" in repr(found)
    assert (
        "12 images, all seen in discovery"
        in en.effect(split, edit, halves[0], target="a", fit=halves[1], **few)._repr_html_()
    )


def test_panels_and_the_report_say_it(split, pictures, tmp_path: Path) -> None:
    explorer = ChannelExplorer(split, pictures)
    assert "24 images, 12 seen in discovery" in explorer.message
    quiz = IntruderQuiz(split, pictures, per_kind=1, size=3)
    assert "24 images, 12 seen in discovery" in quiz._score.value
    page = write_report(split, pictures, tmp_path / "page.html", channels=1, progress=False).read_text(encoding="utf-8")
    words = re.sub(r"\s+", " ", page)
    assert "24 images, 12 seen in discovery: scores on images that it saw are optimistic" in words


@pytest.mark.parametrize("pair", [
    (torch.zeros(1, 2, 8), torch.zeros(1, 4, 4)),
    (Image.new("RGB", (4, 8)), Image.new("RGB", (8, 4))),
    ("a cat", "a cat "),
])  # fmt: skip
def test_hashes_tell_sizes_and_contents_apart(pair) -> None:
    assert hash_image(pair[0]) != hash_image(pair[1])
    assert hash_image(pair[0]) == hash_image(pair[0])


def test_each_image_is_opened_once_for_its_hash() -> None:
    opened = []

    def opener(item: int) -> Image.Image:
        opened.append(item)
        return Image.fromarray(np.full((8, 8, 3), item, np.uint8))

    images = en.ImageSet(tuple("abcd"), None, "a test", None, [0, 1, 2, 2], opener)
    first = images.subset([3, 0])
    first[0]  # a subset notes what it opens for the whole set
    hashes = images.hashes()
    assert sorted(opened) == [0, 1, 2, 2]
    assert len(set(hashes.tolist())) == 3
    assert first.hashes().tolist() == hashes[[3, 0]].tolist()
    assert len(opened) == 4
