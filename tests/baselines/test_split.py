"""ELUDe's units behind the interface of all methods: the same numbers as the disentanglement's own."""

from __future__ import annotations

import pytest
import torch

from elude_nb import find_site
from elude_nb.baselines import Concepts, RandomRoutes, SubUnits
from elude_nb.core.strategies import ConceptRouting
from elude_nb.errors import NotFittedError
from tests.tiny import hook_count


def test_sub_units_are_the_activations_turned_to_be_high_on_their_concept(split, images) -> None:
    method = SubUnits.of(split)
    seen = split.recording(images)
    units = split.units.query("unit > 0")
    pairs = list(zip(units["channel"], units["unit"], strict=True))
    expected = (
        split.activations(images, pairs).flatten(0, 1)
        * split.signs[units["channel"].to_list(), units["unit"].to_list()]
    )
    torch.testing.assert_close(method.encode(seen), expected)
    torch.testing.assert_close(method.reconstruct(seen), seen.channels, rtol=0, atol=1e-10)
    with pytest.raises(NotImplementedError, match="sub-units"):
        method.decode(expected)


def test_concepts_are_the_concept_activations(split, images) -> None:
    found = Concepts.of(split).encode(split.recording(images))
    torch.testing.assert_close(found, split.concept_activations(images).flatten(0, 1))


def test_random_routes_have_the_same_sizes_and_other_sources(split, images) -> None:
    method = RandomRoutes.of(split)
    assert method.split_.routing.sizes().equal(split.routing.sizes())
    assert not method.split_.routing.routes.equal(split.routing.routes)
    assert method.encode(split.recording(images)).shape[1] == len(split.units.query("unit > 0"))


def test_fitting_on_a_recording_is_disentangling(vit, images, split) -> None:
    site = find_site(vit, "stream")
    seen = split.recording(images, tokens_per_image=6, seed=0)
    method = SubUnits(vit, site, concepts=8, units=3, seed=0).fit(seen)
    assert method.split_.routing.routes.equal(split.routing.routes)
    assert method.size_in_bytes() == split.routing.routes.nbytes


@pytest.mark.parametrize("kind", [SubUnits, Concepts, RandomRoutes])
def test_before_the_fit_there_is_nothing(kind, vit, split, images) -> None:
    method = kind(vit, find_site(vit, "stream"))
    for ask in (method.encode, lambda _: method.split_, lambda _: method.size_in_bytes()):
        if kind is not Concepts and ask is not method.encode:
            continue
        with pytest.raises(NotFittedError, match=method.name):
            ask(split.recording(images[:2]))


def test_beside_leaves_outputs_and_hooks_alone(vit, images, split) -> None:
    batch = vit.prepare(list(images[:4]))
    with torch.no_grad():
        before = vit(batch)
        for kind in (SubUnits, Concepts, RandomRoutes):
            with kind.of(split).beside(vit.network, split.site):
                assert hook_count(vit.network) > 0
                assert torch.equal(vit(batch), before)
    assert hook_count(vit.network) == 0


def test_units_that_are_low_on_their_concept_are_turned(vit, images, split) -> None:
    site, seen = find_site(vit, "stream"), split.recording(images, tokens_per_image=6, seed=0)
    method = SubUnits(vit, site, concepts=8, units=4, routing=ConceptRouting(both_signs=True)).fit(seen)
    channels, numbers = method.split_.routing.rows()
    channels, numbers = channels[numbers > 0], numbers[numbers > 0]
    signs = method.split_.signs[channels, numbers]
    assert set(signs.tolist()) == {-1, 1}
    # Turned, every unit is above 0, its overall mean, on the mean of its own concept.
    means = method.split_.means_on_concepts[channels, numbers] * signs
    assert (means > 0).all()
