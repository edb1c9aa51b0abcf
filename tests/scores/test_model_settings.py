"""Functions that run the model do so with its own settings, or with those that are given in their place."""

from __future__ import annotations

import pytest

from elude_nb import Model, compare, score
from elude_nb.scores import suggest_settings
from tests.tiny import random_images

CALLS = {
    "score": lambda split, images, **more: score(split, images, k=4, **more),
    "suggest_settings": lambda split, images, **more: suggest_settings(split.model, images, concepts=8, **more),
    "compare": lambda split, images, **more: compare(split.model, images, methods=["PCA"], k=4, **more),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_models_settings_count_and_others_can_be_given(split, name, monkeypatch) -> None:
    sizes: list[int] = []
    prepare = Model.prepare

    def note(self, images):
        sizes.append(len(images))
        return prepare(self, images)

    monkeypatch.setattr(Model, "prepare", note)
    images, own = random_images(40, 32), split.using(batch_size=7, progress=False)
    CALLS[name](own, images)
    assert max(sizes) == 7
    sizes.clear()
    CALLS[name](own, images, batch_size=5)
    assert max(sizes) == 5
    assert own.model.batch_size == 7
    with pytest.raises(ValueError, match="batch_size=0"):
        CALLS[name](own, images, batch_size=0)
