"""The map of concepts, and where concepts arise."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch

from elude_nb.core.routing import NO_CONCEPT
from elude_nb.figures import concept_atlas, concept_profile, theme
from elude_nb.figures.theme import THEMES
from elude_nb.interpret.concept_map import Atlas, lay_out
from elude_nb.interpret.gallery import Gallery
from elude_nb.interpret.profiles import depth_profile, spatial_profile


@pytest.fixture(scope="module")
def gallery(split, images) -> Gallery:
    return Gallery(split, images[:10]).fill(progress=False)


def large(concepts: int, units: int) -> Atlas:
    """Return a made-up atlas without images."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {"name": "", "title": "concept 0", "tokens": rng.integers(1, 500, concepts), "share": 0.1},
        index=range(concepts),
    )
    table["sub_units"] = table["channels"] = units
    owned = pd.DataFrame({"channel": 0, "unit": 1, "concept": np.repeat(np.arange(concepts), units)})
    places = rng.uniform(-0.5, 0.5, (concepts, 2))
    return Atlas(places, table, owned, np.zeros((concepts, 0), np.int64), np.zeros((0, 8, 8, 3), np.uint8))


def test_an_atlas_knows_its_concepts(split, gallery) -> None:
    named = split.with_names({3: "sky"})
    atlas = lay_out(named, gallery, count=3, side=20)
    table, units = atlas.concepts, split.units[split.units["unit"] > 0]
    assert len(atlas) == len(split.book) == len(table)
    assert table["name"][3] == "sky"
    assert table["tokens"].tolist() == split.book.counts.tolist()
    assert table["share"].sum() == pytest.approx(1)
    for concept in range(len(atlas)):
        mine = units[units["concept"] == concept]
        assert (table["sub_units"][concept], table["channels"][concept]) == (len(mine), mine["channel"].nunique())
        strongest = gallery.concept_maps[..., concept].amax(1).argsort(descending=True)[:3]
        assert atlas.best[concept].tolist() == strongest.tolist()
    assert len(atlas.units) == len(units)
    assert atlas.thumbnails.shape == (len(atlas), 20, 20, 3)
    assert np.array_equal(atlas.positions, lay_out(split).positions)
    assert "8 concepts" in repr(atlas)


def test_a_thumbnail_is_cut_at_the_peak(split, gallery) -> None:
    atlas = lay_out(split, gallery, side=13)  # 0.4 of 32 pixels: as it was cut, not resized
    concept = 5
    maps = gallery.concept_maps[..., concept]
    image, patch = divmod(int(maps.argmax()), maps.shape[1])
    row, column = divmod(patch, 4)
    top, left = (min(max(round((place + 0.5) * 8 - 6.5), 0), 32 - 13) for place in (row, column))
    expected = gallery.pictures_of(image)[top : top + 13, left : left + 13]
    assert np.array_equal(atlas.thumbnails[concept], expected)


def test_without_a_gallery_there_are_no_pictures(split) -> None:
    atlas = lay_out(split)
    assert atlas.best.shape == (len(split.book), 0)
    assert len(atlas.thumbnails) == 0
    figure = concept_atlas(atlas)
    assert not figure.layout.images
    assert "images" not in figure.data[0].hovertext[0]


def test_another_splits_gallery_is_refused(split, gallery, images) -> None:
    other = replace(split, routing=split.routing.only(torch.tensor([0, 1])))
    with pytest.raises(ValueError, match=re.escape(repr(split))):
        lay_out(other, gallery)
    with pytest.raises(ValueError, match="fill"):
        lay_out(split, Gallery(split, images[:2]))
    bare = replace(split, routing=replace(split.routing, concepts=torch.full_like(split.routing.concepts, NO_CONCEPT)))
    with pytest.raises(ValueError, match="concepts"):
        lay_out(bare, Gallery(bare, images[:2]).fill(progress=False))
    assert len(lay_out(bare).units) == 0


def test_thumbnails_do_not_hide_each_other_and_all_is_in_sight(split, gallery) -> None:
    figure = concept_atlas(gallery, sub_units=True)
    images = figure.layout.images
    places = np.array([[image.x, image.y] for image in images])
    gaps = np.abs(places[:, None] - places[None]).max(2) + np.eye(len(places))
    assert gaps.min() >= images[0].sizex
    for trace in figure.data:
        for values, axis in ((trace.x, figure.layout.xaxis), (trace.y, figure.layout.yaxis)):
            assert np.isfinite(values).all()
            assert axis.range[0] < np.min(values) <= np.max(values) < axis.range[1]
    assert len(figure.data[1].x) == len(lay_out(split).units)
    assert figure.data[1].hovertext[0].startswith("channel 0, sub-unit 1<br>concept ")


def test_sub_units_surround_their_concept(split, gallery) -> None:
    atlas = lay_out(split, gallery)
    figure = concept_atlas(atlas, sub_units=True)
    owners = atlas.units["concept"].to_numpy()
    centres = np.stack([figure.data[0].x, figure.data[0].y], axis=1)
    around = np.stack([figure.data[1].x, figure.data[1].y], axis=1) - centres[owners]
    cell = figure.layout.images[0].sizex / 0.6
    away = np.linalg.norm(around, axis=1)
    assert away.min() > 0.42 * cell  # beside the thumbnail
    assert away.max() < 0.56 * cell


def test_few_thumbnails_are_those_of_the_largest_concepts(split, gallery) -> None:
    figure = concept_atlas(gallery, thumbnails=2)
    shown = {(image.x, image.y) for image in figure.layout.images}
    largest = split.book.counts.argsort(descending=True, stable=True)[:2].tolist()
    assert shown == {(figure.data[0].x[concept], figure.data[0].y[concept]) for concept in largest}
    hidden = np.array(figure.data[0].marker.opacity) == 0
    assert sorted(np.flatnonzero(hidden).tolist()) == sorted(largest)


def test_thousands_of_points_are_drawn_by_webgl() -> None:
    few, many = concept_atlas(large(500, 1)), concept_atlas(large(3000, 4), sub_units=True)
    assert isinstance(few.data[0], go.Scatter)
    assert [type(trace) for trace in many.data] == [go.Scattergl, go.Scattergl]
    assert len(many.data[1].x) == 12_000
    assert "3000 concepts and 12,000 sub-units" in many.layout.meta["alt"]


@pytest.mark.parametrize("name", ["light", "dark"])
def test_the_map_follows_the_theme(gallery, name) -> None:
    with theme(name):
        figure = concept_atlas(gallery)
    assert figure.layout.template.layout.paper_bgcolor == THEMES[name]["paper"]


# -------------------------------------------------------------------- profiles


def test_a_spatial_profile_is_the_mean_over_images(split, gallery) -> None:
    maps = gallery.concept_maps[..., 2]
    found = spatial_profile(split, maps)
    assert found.shape == (4, 4)
    assert float(found[1, 3]) == pytest.approx(sum(float(row[7]) for row in maps) / len(maps), rel=1e-5)


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        (torch.zeros(0, 16), r"\(0, 16\)"),
        (torch.zeros(3, 15), r"\(3, 15\)"),
        (torch.zeros(16), r"\(16,\)"),
        (torch.full((2, 16), torch.nan), "finite"),
    ],
)
def test_wrong_maps_are_named(split, maps, message) -> None:
    with pytest.raises(ValueError, match=message):
        spatial_profile(split, maps)


def test_a_site_without_patches_has_no_spatial_profile(mlp_split) -> None:
    with pytest.raises(ValueError, match="patches"):
        spatial_profile(mlp_split, torch.zeros(2, 1))


def test_a_profile_of_a_split_needs_no_gallery(split, gallery) -> None:
    concept = 2
    deep = concept_profile(split, concept)
    assert len(deep.axes) == 1
    both = concept_profile(split, concept, maps=gallery.concept_maps[:4, :, concept])
    assert len(both.axes) == 3  # bars, map, scale
    shown = both.axes[1].images[0].get_array()
    assert shown is not None
    assert np.allclose(shown, gallery.concept_maps[:4, :, concept].mean(0).view(4, 4))
    assert "4 images" in both.alt
    bars: Any = deep.axes[0].patches
    heights = [bar.get_height() for bar in bars]
    assert sum(heights) == pytest.approx(float(depth_profile(split, concept).to_numpy().sum()))


@pytest.mark.parametrize("kind", ["conv_split", "mlp_split"])
def test_a_single_layer_has_one_bar(kind, request) -> None:
    split = request.getfixturevalue(kind)
    concept = int(split.units["concept"].dropna().iloc[0])
    picture = concept_profile(split, concept)
    assert [label.get_text() for label in picture.axes[0].get_xticklabels()] == ["this layer"]
    assert picture.axes[0].get_legend() is None
