"""Images that are there twice, and what they would do to scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from elude_nb import Disentanglement, ImageSet, Model, compare, find_exemplars, load_images, score
from elude_nb.data.copies import find_originals, sketch
from elude_nb.interpret import name_concepts
from elude_nb.interpret.gallery import Gallery
from elude_nb.interpret.quiz import make_questions
from elude_nb.text import load_sentences
from tests.tiny import random_images


@pytest.fixture
def with_copies(images: ImageSet) -> ImageSet:
    """Twenty images, the fourth of them there ten times more."""
    assert images.labels is not None
    return load_images([*images, *[images[3]] * 10], labels=[*images.labels, *[images.labels[3]] * 10])


def test_copies_and_on_request_near_ones_are_left_out_and_named(tmp_path: Path) -> None:
    whole = load_images("photographs", count=20)
    for number, image in enumerate(whole):
        image.save(tmp_path / f"{number:02}.png")
    whole[4].save(tmp_path / "other.bmp")
    whole[5].save(tmp_path / "pressed.jpg", quality=80)
    whole[6].resize((whole[6].width * 3 // 4, whole[6].height * 3 // 4)).save(tmp_path / "smaller.png")
    with pytest.warns(UserWarning, match=r"1 of 23 .*: 'other.bmp' \(of '04.png'\)$"):
        once = load_images(tmp_path).without_copies()
    assert len(once) == 22
    assert once.without_copies() is once
    with pytest.warns(UserWarning, match=r"2 of 22 .*: 'pressed.jpg' \(of '05.png'\), 'smaller.png' \(of '06.png'\)$"):
        assert once.without_copies(near=True).names == tuple(f"{number:02}.png" for number in range(20))


def test_other_images_are_no_copies() -> None:
    for images in (
        load_images("shapes", count=40),
        load_images([Image.new("RGB", (8, 8), (i, i, i)) for i in range(5)]),
        random_images(8, 32),
    ):
        assert images.without_copies(near=True) is images
    one = np.zeros((2, 40, 40, 3), np.uint8)
    one[1, 20, 30, 2] = 1  # a single pixel, by a single level
    assert len(load_images(one).without_copies()) == 2
    sentences = load_sentences(["A cat sleeps.", "A cat slept."])
    assert sentences.without_copies() is sentences
    with pytest.warns(UserWarning, match="1 of 2"):
        assert len(load_sentences(["A cat sleeps.", "A cat sleeps."]).without_copies()) == 1


def test_copies_of_another_set_are_left_out(images: ImageSet) -> None:
    with pytest.warns(UserWarning, match="5 of 15"):
        assert images[:10].without_copies(of=images[5:10]).names == images[:5].names  # five are copies
    assert images[:10].without_copies(of=images[10:]).names == images[:10].names


def test_a_sketch_keeps_distances() -> None:
    images = torch.randn(12, 3, 40, 30, generator=torch.Generator().manual_seed(1))
    sketches = sketch(images)[:, :-2]
    ratio = torch.pdist(sketches) / torch.pdist(images.flatten(1))
    assert 0.85 < float(ratio.min()) <= float(ratio.max()) < 1.15
    several = sketch(torch.cat([images, images[[4, 2]] + 1e-3, images[[7]]]))
    assert find_originals(several).tolist() == [*range(14), 7]
    assert find_originals(several, near=0.1).tolist() == [*range(12), 4, 2, 7]


def test_the_first_original_is_found() -> None:
    sketches = torch.randn(30, 258, generator=torch.Generator().manual_seed(2))
    sketches[:, -1] = 0
    sketches[:, -2] = torch.arange(30) % 3 * 0.01 + 0.001  # how near a copy may be
    sketches[7, :-2] = sketches[3, :-2]
    sketches[[12, 13, 29], :-2] = sketches[7, :-2] + 1e-5
    sketches[20, :-2] = sketches[19, :-2] + 0.002  # farther than one of the two allows
    slow = list(range(30))
    for row in range(30):
        for other in reversed(range(row)):
            apart = float((sketches[row, :-2] - sketches[other, :-2]).norm())
            if apart <= min(sketches[row, -2], sketches[other, -2]):
                slow[row] = slow[other]
    assert find_originals(sketches).tolist() == slow
    assert [slow[row] for row in (7, 12, 13, 20, 29)] == [3, 3, 3, 20, 3]


def test_scores_of_copies_are_those_of_each_image_once(
    split: Disentanglement, images: ImageSet, with_copies: ImageSet
) -> None:
    with pytest.warns(UserWarning, match=r"10 of 30 images are copies .*'image 20' \(of 'image 3'\)"):
        found = score(split, with_copies, k=5, progress=False)
    expected = score(split, images, k=5, progress=False)
    for column in expected.select_dtypes("number"):
        np.testing.assert_allclose(found[column], expected[column], atol=1e-9, err_msg=str(column))


@pytest.mark.filterwarnings("ignore:10 of 30 images are copies")
def test_a_copy_is_no_second_exemplar(split: Disentanglement, images: ImageSet, with_copies: ImageSet) -> None:
    channel = int(split.routing.is_split().nonzero()[0])
    found, expected = (find_exemplars(split, each, channel, count=6) for each in (with_copies, images))
    assert [[e.index for e in row] for row in found.rows] == [[e.index for e in row] for row in expected.rows]
    np.testing.assert_allclose(found.similarity, expected.similarity)
    tables = [split.top_images(channel, 1, each, 6, progress=False) for each in (with_copies, images)]
    assert tables[0]["image"].tolist() == tables[1]["image"].tolist()
    gallery, other = (Gallery(split, each).fill(progress=False) for each in (with_copies, images))
    assert gallery.distinct.tolist() == list(range(20))
    rows = [each.exemplars(each.channel(channel), count=6).rows for each in (gallery, other)]
    assert [[e.index for e in row] for row in rows[0]] == [[e.index for e in row] for row in rows[1]]
    names = [name_concepts(split, each, top=5).table for each in (with_copies, images)]
    np.testing.assert_allclose(names[0]["p"], names[1]["p"])


def test_no_copy_lies_on_the_other_side_of_a_comparison(vit: Model) -> None:
    images = random_images(40, 32)
    twice = load_images([*images, *images])
    how = {"methods": ["channels"], "n_units": 8, "concepts": 4, "k": 4, "progress": False}
    with pytest.warns(UserWarning, match="40 of 80"):
        found = compare(vit, twice, "stream:2", blocks=1, **how)  # type: ignore[arg-type]
    assert (found.settings["discovery_images"], found.settings["scored_images"]) == (20, 20)


def test_the_quiz_shows_no_copies(split: Disentanglement, with_copies: ImageSet) -> None:
    gallery = Gallery(split, with_copies)
    with pytest.warns(UserWarning, match="10 of 30"):
        gallery.fill(progress=False)
    questions = make_questions(gallery, per_kind=3)
    assert max(image for question in questions for image in question.trial.images) < 20


def test_too_few_different_images_are_told_of_by_the_name_of_the_setting(
    split: Disentanglement, images: ImageSet, with_copies: ImageSet
) -> None:
    with pytest.warns(UserWarning, match="copies"), pytest.raises(ValueError, match=r"k=25 needs as .* 10 of 30 are"):
        score(split, with_copies, k=25, progress=False)
    with pytest.warns(UserWarning, match="copies"), pytest.raises(ValueError, match=r"top=25 needs more"):
        name_concepts(split, with_copies, top=25)
    with pytest.raises(ValueError, match="embeddings"):
        find_exemplars(split, images, 0, embeddings=torch.zeros(21, 4), progress=False)
