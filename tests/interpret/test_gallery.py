from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from elude_nb import Disentanglement, disentangle, embed, find_exemplars
from elude_nb.core.edit import Edit
from elude_nb.core.strategies import ChannelClusterRouting, ConceptRouting, RandomRouting
from elude_nb.errors import EditError, SiteError
from elude_nb.interpret.gallery import Gallery, look
from elude_nb.interpret.profiles import find_contributors
from tests.tiny import hook_count, random_images

ROUNDING = 0.02  # sources are kept in bfloat16, which has 8 bits


@pytest.fixture(scope="module", params=["split", "elude_split", "conv_split"])
def gallery(request) -> Gallery:
    split: Disentanglement = request.getfixturevalue(request.param)
    images = request.getfixturevalue("small_images" if request.param == "conv_split" else "images")
    return Gallery(split, images[:12]).fill(progress=False)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) < ROUNDING * max(float(expected.abs().max()), 1e-6)


def split_channel(split: Disentanglement) -> int:
    return int(split.routing.is_split().nonzero()[0])


def test_units_are_what_the_split_says(gallery) -> None:
    split = gallery.split
    for channel in range(split.site.channels):
        view = gallery.channel(channel)
        assert view.units["unit"].tolist() == split.units.loc[split.units["channel"] == channel, "unit"].tolist()
        pairs = [(channel, unit) for unit in view.units["unit"]]
        expected = split.activations(gallery.images, pairs, tokens="patch").float()
        close(view.maps, expected)
        mine = split.units[split.units["channel"] == channel]
        assert view.units["sources"].tolist() == mine["sources"].tolist()
        assert view.units["concept"].isna().tolist() == mine["concept"].isna().tolist()
        means = torch.tensor(mine["mean_on_concept"].fillna(0.0).to_numpy(dtype="float64"))
        torch.testing.assert_close(torch.tensor(view.units["mean_on_concept"].fillna(0.0).tolist()).double(), means)


def test_units_add_up_to_the_channel_and_shares_to_one(gallery) -> None:
    channel = split_channel(gallery.split)
    view = gallery.channel(channel)
    whole = gallery.split.recording(gallery.images, tokens="patch").channels[:, channel]
    torch.testing.assert_close(view.maps.sum(-1).flatten(), whole.float(), rtol=1e-4, atol=1e-4)
    assert view.units["share_of_variance"].sum() == pytest.approx(1.0, abs=1e-4)


def test_concept_maps_pictures_and_outputs(gallery) -> None:
    split = gallery.split
    expected = split.concept_activations(gallery.images, tokens="patch").float()
    torch.testing.assert_close(gallery.concept_maps, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gallery.outputs - gallery.outputs.mean(0), embed(split.model, gallery.images))
    assert gallery.pictures.shape == (12, *split.model.input_size[1:], 3)
    assert gallery.pictures.dtype == "uint8"
    assert hook_count(split.model.network) == 0


def test_other_numbers_of_sub_units(gallery) -> None:
    split = gallery.split
    channel = split_channel(split)
    if not gallery.can_reroute:
        with pytest.raises(ValueError, match=split.settings.routing):
            gallery.channel(channel, units=2)
        return
    weight = split.weight.unflatten(1, (-1, split.site.kernel))
    for units, shared in ((2, 0.8), (5, 0.5), (5, 1.0)):
        everything = ConceptRouting().route(weight, split.book, split.book, units=units, shared=shared)
        view = gallery.channel(channel, units=units, shared=shared)
        assert view.routing.routes[0].equal(everything.routes[channel])
        assert view.routing.concepts[0].equal(everything.concepts[channel])
        assert view.reason == everything.reasons[channel]
        again = replace(split, routing=everything)
        pairs = [(channel, unit) for unit in view.units["unit"]]
        close(view.maps, again.activations(gallery.images, pairs, tokens="patch").float())


@pytest.mark.parametrize(
    "strategy",
    [ConceptRouting(one_meaning=1.0, both_signs=True), ConceptRouting(unlike=True), RandomRouting(seed=3)],
    ids=repr,
)
def test_other_numbers_go_by_the_strategy_of_the_split(vit, images, strategy) -> None:
    quick: Any = {"concepts": 8, "tokens_per_image": 6, "progress": False}
    split, other = (disentangle(vit, images, units=units, routing=strategy, **quick) for units in (3, 5))
    gallery = Gallery(split, images[:4]).fill(progress=False)
    assert (gallery.can_reroute, gallery.why_not_reroute) == (True, "")
    for channel in other.routing.is_split().nonzero().flatten().tolist():
        found = gallery.channel(channel, units=5).routing
        assert found.routes[0].equal(other.routing.routes[channel])
        assert found.concepts[0].equal(other.routing.concepts[channel])


def test_what_cannot_be_routed_anew_says_so(vit, images) -> None:
    quick: Any = {"concepts": 8, "units": 3, "tokens_per_image": 6, "progress": False}
    for routing in ("channel-clusters", RandomRouting(ChannelClusterRouting())):
        split = disentangle(vit, images, routing=routing, **quick)
        gallery = Gallery(split, images[:4]).fill(progress=False)
        assert not gallery.can_reroute
        assert "channel-clusters" in gallery.why_not_reroute
        with pytest.raises(ValueError, match="channel-clusters"):
            gallery.channel(split_channel(split), units=2)
        assert gallery.channel(split_channel(split), units=3).routing.is_split().all()
    mine = replace(split, settings=replace(split.settings, strategy="Mine(3)"))
    assert "Mine" in Gallery(mine, images[:4]).why_not_reroute


def test_contributions_that_several_sub_units_share(vit) -> None:
    """The published rule gives some contributions to several sub-units; it needs more than the book to route anew."""
    images = random_images(40, 32)
    split = disentangle(vit, images, "blocks.1.mlp.fc2", routing="elude", progress=False)
    assert split.routing.owner_sets is not None
    gallery = Gallery(split, images[:6]).fill(progress=False)
    for channel in split.routing.is_split().nonzero().flatten().tolist():
        view = gallery.channel(channel)
        pairs = [(channel, unit) for unit in view.units["unit"]]
        close(view.maps, split.activations(gallery.images, pairs, tokens="patch").float())
    assert "elude" in gallery.why_not_reroute


def test_exemplars_are_those_of_find_exemplars(gallery) -> None:
    split = gallery.split
    channel = split_channel(split)
    found = gallery.exemplars(gallery.channel(channel), count=4, units=3)
    expected = find_exemplars(split, gallery.images, channel, count=4, units=3, progress=False)
    assert found.units == expected.units
    assert found.names == expected.names
    for mine, theirs in zip(found.rows, expected.rows, strict=True):
        assert [exemplar.value for exemplar in mine] == pytest.approx([e.value for e in theirs], rel=0.05, abs=0.02)
    assert len(set(found.rows[0][0].image.shape)) == 2


def test_depths_are_the_contributions(gallery) -> None:
    split = gallery.split
    channel = split_channel(split)
    view = gallery.channel(channel)
    depths = gallery.depths(view)
    assert set(depths) == set(view.units.loc[view.units["concept"].notna(), "unit"])
    for unit, table in depths.items():
        expected = split.contributions(channel, unit)
        assert float(table.to_numpy().sum()) == pytest.approx(float(expected["contribution"].sum()), rel=1e-4, abs=1e-5)
        block = int(expected["block"].fillna(0).iloc[0])
        part = expected["part"].iloc[0]
        mine = expected[(expected["block"].fillna(0) == block) & (expected["part"] == part)]
        assert float(table.loc[block, part]) == pytest.approx(float(mine["contribution"].sum()), rel=1e-3, abs=1e-5)


def test_it_fills_step_by_step(split, images) -> None:
    gallery = Gallery(split, images[:10])
    assert len(gallery) == 0
    with pytest.raises(ValueError, match=r"call \.fill\(\)"):
        gallery.channel(0)
    steps = gallery.steps(4)
    assert next(steps) == 4
    assert gallery.ready == 4
    assert gallery.channel(0).maps.shape[0] == 4
    other = gallery.steps(4)  # two widgets may fill one gallery in turn
    assert [next(other), next(steps)] == [4, 2]
    assert list(other) == []
    whole = Gallery(split, images[:10]).fill(progress=False)
    assert whole.channel(3).maps.equal(gallery.channel(3).maps)


def test_what_an_edit_makes_of_images_is_not_kept(split, images) -> None:
    gallery = Gallery(split, images[:6])
    next(gallery.steps(2))
    with split.edit(Edit.ablate(concept=1)), pytest.raises(EditError, match="gallery"):
        gallery.fill(progress=False)
    assert gallery.ready == 2
    assert gallery.fill(progress=False).ready == 6


def test_memory_is_bounded(split, images) -> None:
    per_image = 16 * split.site.sources * 2 / (1 << 30)
    gallery = Gallery(split, images, max_memory=5.5 * per_image)
    assert (len(gallery.images), gallery.total) == (5, 20)
    assert "0 of 5" in repr(gallery)
    assert "20" in repr(gallery)
    whole = Gallery(split, images)
    assert (len(whole.images), whole.total) == (20, 20)
    assert "sample" not in repr(whole)
    with pytest.raises(ValueError, match="1 fit"):
        Gallery(split, images, max_memory=1.5 * per_image)
    with pytest.raises(ValueError, match="0 images"):
        Gallery(split, images[:0])


def test_a_set_that_does_not_fit_is_sampled_over_its_labels(split, images) -> None:
    """Folders are sorted by label: their first images are all of the first one."""
    assert images.labels is not None
    by_label = images.subset(sorted(range(20), key=lambda i: images.labels[i]))
    per_image = 16 * split.site.sources * 2 / (1 << 30)
    gallery = Gallery(split, by_label, max_memory=6.5 * per_image).fill(progress=False)
    assert sorted(gallery.labels or ()) == ["label 0"] * 2 + ["label 1"] * 2 + ["label 2"] * 2
    again = Gallery(split, by_label, max_memory=6.5 * per_image)
    assert again.images.names == gallery.images.names


def test_a_site_without_patches_is_refused(mlp_split, smallest_images) -> None:
    with pytest.raises(SiteError):
        Gallery(mlp_split, smallest_images)
    with pytest.raises(SiteError):
        look(mlp_split, [smallest_images[0]])


def test_sub_units_without_concepts_can_be_looked_at(vit, images) -> None:
    split = disentangle(vit, images, concepts=8, units=3, routing="channel-clusters", progress=False)
    gallery = Gallery(split, images[:6]).fill(progress=False)
    assert gallery.concept_maps.shape == (6, 16, 0)
    view = gallery.channel(split_channel(split))
    assert view.units["concept"].isna().all()
    assert gallery.depths(view) == {}
    assert len(gallery.exemplars(view, count=3).rows) > 1


def test_wrong_numbers_are_named(split, images) -> None:
    gallery = Gallery(split, images[:4]).fill(progress=False)
    with pytest.raises(ValueError, match="channel=24"):
        gallery.channel(24)
    with pytest.raises(ValueError, match="units=1"):
        gallery.channel(0, units=1)
    with pytest.raises(ValueError, match="shared"):
        gallery.channel(0, shared=1.5)
    with pytest.raises(ValueError, match="count=5"):
        gallery.exemplars(gallery.channel(0), count=5)
    with pytest.raises(ValueError, match=r"\(0, 99\)"):
        gallery.images_of_unit(0, 99)


def test_contributors_are_the_most_active_sub_units(gallery) -> None:
    split = gallery.split
    seen = look(split, [gallery.images[2]])
    table = find_contributors(split, seen.sources[0, 5], count=7)
    values = split.activations(gallery.images[2:3], tokens="patch")[0, 5]
    units = split.units.assign(value=values.tolist())
    units["value"] *= [int(split.signs[c, u]) for c, u in zip(units["channel"], units["unit"], strict=True)]
    units["deviations"] = units["value"] / split.channel_variance[units["channel"].tolist()].sqrt().numpy()
    best = units[units["unit"] > 0].nlargest(len(table), "deviations")
    assert table["deviations"].tolist() == pytest.approx(best["deviations"].tolist(), rel=1e-5)
    assert list(zip(table["channel"], table["unit"], strict=True)) == list(
        zip(best["channel"], best["unit"], strict=True)
    )
    assert table["activation"].tolist() == pytest.approx(best["value"].tolist(), rel=1e-5)


def test_contributors_want_the_sources_of_one_token(split) -> None:
    with pytest.raises(ValueError, match=r"\(3,\)"):
        find_contributors(split, torch.zeros(3))
