from __future__ import annotations

import pandas as pd
import pytest

from elude_nb import disentangle, score
from elude_nb.data.images import as_image_set
from elude_nb.interpret.descriptions import describe_concepts
from elude_nb.interpret.scored_gallery import ScoredGallery


def test_it_grows_and_describes_concepts_by_what_is_ready(split, images) -> None:
    gallery = ScoredGallery(split, images)
    ready, found = [], []
    for count in gallery.growing(first=6):
        ready.append(count)
        found.append(gallery.split.names.descriptions)
        assert len(gallery.pictures) == count
    assert ready == [6, 12, 20]
    assert found[2] == describe_concepts(split, images).descriptions
    assert found[0]
    assert found[0] != found[2]  # 6 images say something else than 20
    assert split.names.descriptions == {}


def test_a_name_given_on_the_way_stays(split, images) -> None:
    gallery = ScoredGallery(split, images)
    for count in gallery.growing(first=6):
        if count == 6:
            gallery.split = gallery.split.with_names({1: "mine"})
    assert gallery.split.names == {1: "mine"}


@pytest.mark.parametrize("given", ["split", "conv_split"])
def test_its_scores_are_those_of_score_without_another_pass(request, given, images, small_images) -> None:
    split = request.getfixturevalue(given)
    photos = images[:12] if given == "split" else small_images[:12]
    gallery = ScoredGallery(split, photos, seed=3)
    passes: list[int] = []
    layer = split.model.network.get_submodule(split.site.exit)
    hook = layer.register_forward_hook(lambda *_: passes.append(1))
    for _ in gallery.growing(first=4):
        pass
    there = len(passes)
    found = gallery.scores(k=4, n_distinct=6)
    assert len(passes) == there == 3
    hook.remove()
    expected = score(split, photos, k=4, n_distinct=6, seed=3)
    pd.testing.assert_frame_equal(found, expected, check_exact=False, rtol=1e-4, atol=1e-5)
    assert found.attrs == expected.attrs


def test_tokens_that_are_no_patches_are_scored_by_a_pass_of_their_own(vit, images) -> None:
    split = disentangle(vit, images, concepts=8, units=3, tokens="class", progress=False)
    gallery = ScoredGallery(split, images[:8])
    assert list(gallery.growing()) == [8]
    pd.testing.assert_frame_equal(gallery.scores(k=3, n_distinct=4), score(split, images[:8], k=3, n_distinct=4))


def test_what_is_out_of_range_is_refused(split, images) -> None:
    gallery = ScoredGallery(split, as_image_set(images)[:8])
    with pytest.raises(ValueError, match="first=0"):
        next(gallery.growing(first=0))
    next(gallery.growing(first=4))
    with pytest.raises(ValueError, match="4 of 8 images are ready"):
        gallery.scores(k=3)
    list(gallery.growing())
    with pytest.raises(ValueError, match="k=9"):
        gallery.scores(k=9)
