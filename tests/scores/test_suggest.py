"""G and K from the data: what is given is kept, what is chosen follows the stated criterion."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elude_nb import Recording, disentangle, find_site, record
from elude_nb.core.concepts import suggest_concepts
from elude_nb.core.routing import means_on_concepts
from elude_nb.core.strategies import ConceptRouting
from elude_nb.models.hooks import for_analysis
from elude_nb.scores import planted_recovery
from elude_nb.scores.planted import planted_network
from elude_nb.scores.similarity import top_similarity
from elude_nb.scores.suggest import UNITS, _Trial, suggest_settings
from tests.tiny import hook_count, random_images


def chosen_for(model, images, **settings):
    return suggest_settings(model, images, tokens_per_image=8, **settings)


@given(st.integers(1, 10**8))
def test_concepts_are_the_power_of_two_next_to_the_root_of_the_tokens(tokens) -> None:
    found = suggest_concepts(tokens)
    assert 8 <= found <= 512
    assert found & (found - 1) == 0
    if 8 < found < 512:
        assert found / 2**0.5 <= tokens**0.5 * 1.0001
        assert tokens**0.5 <= found * 2**0.5 * 1.0001


def test_numbers_are_kept_and_nothing_is_run_for_them(vit, images) -> None:
    choice = chosen_for(vit, images, concepts=7, units=3, shared=0.7)
    assert (choice.concepts, choice.units, choice.shared) == (7, 3, 0.7)
    assert not len(choice.table)
    assert chosen_for(vit, images, units=3, shared=0.7).concepts == suggest_concepts(20 * 8)


def test_the_best_separation_is_taken(vit) -> None:
    choice = chosen_for(vit, random_images(40, 32), concepts=16)
    table = choice.table
    assert set(table["units"]) == {k for k in UNITS if k <= 16}
    torch.testing.assert_close(
        torch.tensor(table["separation"].to_numpy(copy=True)),
        torch.tensor((table["similarity"] - table["siblings"]).to_numpy(copy=True)),
    )
    best = table.sort_values("separation").iloc[-1]
    assert choice.units == best["units"]
    assert choice.shared is None
    assert "Suggestion(concepts=16" in repr(choice)
    assert hook_count(vit.network) == 0


def test_what_is_given_is_not_tried_otherwise(vit) -> None:
    whole, unclear = (chosen_for(vit, random_images(40, 32), concepts=16, shared=rho) for rho in (None, 0.5))
    assert unclear.shared == 0.5
    assert not unclear.table.equals(whole.table)  # what is left over counts


def test_the_same_seed_chooses_the_same(vit) -> None:
    one, other = (chosen_for(vit, random_images(40, 32), seed=3) for _ in range(2))
    assert one.table.equals(other.table)


def test_disentangle_takes_the_settings_as_keywords(vit) -> None:
    images = random_images(40, 32)
    settings: dict[str, Any] = {"tokens_per_image": 8, "progress": False}
    split = disentangle(vit, images, **chosen_for(vit, images).settings, **settings)
    assert split.settings.concepts == 16
    assert split.settings.units in UNITS
    assert split.settings.shared is None
    again = disentangle(vit, images, concepts=16, units=split.settings.units, **settings)
    assert again.routing.routes.equal(split.routing.routes)


def test_suggested_settings_recover_a_planted_network() -> None:
    planted = planted_network()
    here: dict[str, Any] = {"site": planted.site, "tokens": "class"}
    suggested = suggest_settings(planted.model, planted.images, concepts=12, **here)
    split = disentangle(planted.model, planted.images, progress=False, **suggested.settings, **here)
    found = planted_recovery(split.routing.routes, planted.truth)[split.routing.is_split().numpy()]
    assert found.mean() > 0.9


@pytest.mark.parametrize("name", ["units", "concepts", "shared"])
def test_auto_of_version_02_is_led_to_the_suggestion(vit, images, name) -> None:
    with pytest.raises(TypeError, match="suggest_settings"):
        disentangle(vit, images, **{name: "auto"})  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"units": "many"}, {"concepts": "Auto"}, {"shared": "automatic"}])
def test_words_are_refused(vit, images, wrong) -> None:
    with pytest.raises(TypeError, match="must be a"):
        suggest_settings(vit, images, **wrong)


def test_tokens_are_pooled_by_their_image_however_many_each_has(vit) -> None:
    """Sentences have different numbers of words: 0.2 pooled in runs of equal length, and crashed or mixed them."""
    images = random_images(24, 32)
    whole = Recording.join(list(record(vit, images, find_site(vit, "stream"), tokens_per_image=8)))
    generator = torch.Generator().manual_seed(0)
    kept = torch.rand(len(whole), generator=generator) < 0.6
    kept[::8] = True  # none is left without a token
    ragged = whole.rows(kept)
    weight = for_analysis(find_site(vit, "stream").weight(vit.network))
    trial = _Trial(ragged, weight, 1, ConceptRouting(), seed=0)
    book = trial.book(8)

    odd = [number for number in range(24) if number % 2]
    tokens = [ragged.rows(ragged.images == number) for number in odd]
    means = torch.stack([part.channels.mean(0) for part in tokens])
    routing = ConceptRouting().route(trial._weight.unflatten(1, (-1, 1)), book, book, units=3, shared=1.0)
    channels, numbers = routing.rows()
    channels, numbers = channels[numbers > 0], numbers[numbers > 0]
    signs = torch.where(means_on_concepts(trial._weight, routing, book)[channels, numbers] < 0, -1, 1)
    matrix = routing.masked(trial._weight, channels, numbers).T * signs
    highest = torch.stack([((part.sources - book.source_mean()) @ matrix).amax(0) for part in tokens])
    by_hand = top_similarity(highest, means - means.mean(0), 5).mean()
    found, _ = trial.score(book, 3, 1.0)
    assert found == pytest.approx(float(by_hand))


def test_too_few_images_are_refused(vit) -> None:
    with pytest.raises(ValueError, match="9 images"):
        chosen_for(vit, random_images(9, 32))
