"""Figures as they look: compared with stored pictures, tolerantly, and with the numbers that they show."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from elude_nb.figures import (
    activation_map,
    before_after,
    concept_atlas,
    concept_profile,
    routing_bars,
    routing_sankey,
    theme,
    unit_maps,
)
from elude_nb.figures.theme import SETTINGS, THEMES, shade
from elude_nb.interpret.gallery import Gallery
from elude_nb.interpret.profiles import depth_profile, route_table
from tests.looks import FOLDER, drawings, made, rendered, stored, unlikeness

ALIKE = 0.07  # an unchanged picture differs by 0.06 at most, in another font by 0.04, one that lost a part by 0.08


@pytest.fixture(scope="module")
def drawn() -> Any:
    return made()


@pytest.fixture(scope="module")
def channel(drawn) -> int:
    return int(drawn[0].routing.is_split().nonzero()[0])


def test_every_picture_looks_as_it_did(drawn) -> None:
    found = {name: draw() for name, draw in drawings(*drawn).items()}
    kept = {path.stem: Image.open(path) for path in FOLDER.glob("*.png")}
    assert set(kept) == set(found)
    unlike = {name: unlikeness(kept[name], stored(rendered(picture))) for name, picture in found.items()}
    assert max(unlike.values()) < ALIKE, unlike
    assert all(picture.alt for picture in found.values())


def test_no_text_is_below_9_points(drawn) -> None:
    small = [
        (name, text.get_text(), text.get_fontsize())
        for name, draw in drawings(*drawn).items()
        for text in draw().findobj(Text)
        if text.get_text() and text.get_fontsize() < 9
    ]
    assert small == []


def test_the_comparison_sees_what_breaks(drawn) -> None:
    draw = drawings(*drawn)
    kept = Image.open(FOLDER / "routing_bars.png")

    def changed(change: Any) -> float:
        picture = draw["routing_bars"]()
        change(picture)
        return unlikeness(kept, stored(rendered(picture)))

    assert changed(lambda picture: None) < ALIKE
    assert changed(lambda picture: picture.axes[0].containers[1].remove()) > ALIKE  # one sub-unit is missing
    assert changed(lambda picture: picture.axes[0].set_ylim(0, 10 * picture.axes[0].get_ylim()[1])) > ALIKE
    assert changed(lambda picture: picture.set_size_inches(8, 8)) > ALIKE
    assert unlikeness(kept, Image.open(FOLDER / "routing_bars_sources.png")) > ALIKE
    dark = Image.open(FOLDER / "concept_profile_dark.png")
    assert unlikeness(dark, Image.open(FOLDER / "concept_profile.png")) > ALIKE


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("activation_map", lambda picture: picture.axes[0].images[1].remove()),  # the photograph without its heat
        ("accuracy_bars", lambda picture: picture.axes[0].containers[2].remove()),
        ("before_after_beside", lambda picture: picture.axes[3].remove()),
        ("concept_profile", lambda picture: picture.axes[1].images[0].set_cmap("Greys")),
        ("factor_heatmap_dark", lambda picture: picture.axes[0].images[0].set_cmap("Blues")),
        ("routing_bars_heads_dark", lambda picture: picture.axes[0].containers[0].remove()),
        ("score_distributions", lambda picture: picture.axes[0].collections[1].remove()),  # a control is missing
        ("tradeoff", lambda picture: picture.axes[0].set_xlim(-1, 1)),
        ("unit_maps", lambda picture: picture.axes[3].images[1].remove()),
        ("unit_maps_dark", lambda picture: picture.axes[2].images[1].set_cmap("RdBu_r")),
    ],
)
def test_the_comparison_sees_each_figure_break(drawn, name, change) -> None:
    picture = drawings(*drawn)[name]()
    kept = Image.open(FOLDER / f"{name}.png")
    assert unlikeness(kept, stored(rendered(picture))) < ALIKE
    change(picture)
    assert unlikeness(kept, stored(rendered(picture))) > ALIKE


def test_another_font_is_forgiven(drawn, monkeypatch) -> None:
    monkeypatch.setitem(SETTINGS, "font.family", "DejaVu Serif")
    for name in ("accuracy_bars", "concept_profile", "factor_heatmap_dark", "routing_bars", "tradeoff"):
        assert unlikeness(Image.open(FOLDER / f"{name}.png"), stored(rendered(drawings(*drawn)[name]()))) < ALIKE


def test_stored_pictures_are_small() -> None:
    assert max(path.stat().st_size for path in FOLDER.glob("*.png")) < 30_000


def test_themes(drawn) -> None:
    _, gallery = drawn
    with theme("dark"):
        picture = concept_profile(gallery, 2)
    assert picture.axes[0].title.get_color() == THEMES["dark"]["ink"]
    background = rendered(picture).getpixel((2, 2))
    assert background == (0x11, 0x11, 0x11)
    assert rendered(concept_profile(gallery, 2)).getpixel((2, 2)) == (255, 255, 255)
    with pytest.raises(ValueError, match=r"'darc'.*'dark'"), theme("darc"):
        pass
    assert shade("ink") == THEMES["light"]["ink"]


def part_table(split, channel, by="contribution"):
    """One row a sub-unit, one column a (block, part)."""
    table = route_table(split, channel)
    values = {"contribution": "magnitude", "sources": "sources"}[by]
    mine = table[table["unit"] > 0]
    return mine.pivot_table(values, "unit", ["block", "part"], aggfunc="sum", fill_value=0.0)


@pytest.mark.parametrize("by", ["contribution", "sources"])
def test_bars_are_as_high_as_the_table_says(drawn, channel, by) -> None:
    split, _ = drawn
    table = part_table(split, channel, by=by)
    picture: Any = routing_bars(split, channel, by=by)
    bars = [bar for bars in picture.axes[0].containers for bar in bars]
    assert sum(bar.get_height() for bar in bars) == pytest.approx(float(table.to_numpy().sum()))
    assert len(picture.axes[0].get_legend().get_texts()) == len(table)
    if by == "sources":
        sizes = split.routing.sizes()[channel]
        assert table.sum(axis=1).tolist() == [int(sizes[unit]) for unit in table.index]


def test_axes_of_ones_own(drawn, channel) -> None:
    from matplotlib.figure import Figure

    split, gallery = drawn
    axes = Figure().subplots(1, 2)
    assert routing_bars(split, channel, axes=axes[0]) is axes[0]
    heat = np.arange(16.0).reshape(4, 4)
    assert activation_map(gallery.pictures_of(0), heat, axes=axes[1]) is axes[1]
    assert axes[0].patches
    assert len(axes[1].images) == 2


def test_flows_balance_at_every_node(drawn, channel) -> None:
    split, _ = drawn
    figure = routing_sankey(split, channel)
    link, labels = figure.data[0].link, figure.data[0].node.label
    into, out = np.zeros(len(labels)), np.zeros(len(labels))
    np.add.at(out, np.array(link.source), np.array(link.value))
    np.add.at(into, np.array(link.target), np.array(link.value))
    whole = float(part_table(split, channel).to_numpy().sum())
    for number, label in enumerate(labels):
        if label.startswith("block"):
            assert into[number] == 0
        elif label == f"channel {channel}":
            assert into[number] == pytest.approx(whole)
            assert out[number] == 0
        else:
            assert into[number] == pytest.approx(out[number])
    assert "units of channel" in figure.layout.meta["alt"]
    few = routing_sankey(split, channel, max_blocks=1)
    assert sum(label.startswith(("block", "other")) for label in few.data[0].node.label) == 2


def test_depth_profile_is_the_sum_over_sub_units(drawn) -> None:
    split, _ = drawn
    concept = 2
    rows = split.units[split.units["concept"] == concept]
    total = 0.0
    for channel, unit in zip(rows["channel"], rows["unit"], strict=True):
        sign = int(split.signs[channel, unit])
        amount = float(split.contributions(channel, unit)["contribution"].sum())
        total += sign * amount / float(split.channel_variance[channel]) ** 0.5
    assert float(depth_profile(split, concept).to_numpy().sum()) == pytest.approx(total)


def test_the_map_of_concepts(drawn) -> None:
    split, gallery = drawn
    figure = concept_atlas(gallery, thumbnails=5)
    assert len(figure.data[0].x) == len(split.book)
    assert len(figure.layout.images) == 5
    assert all(image.source.startswith("data:image/jpeg") for image in figure.layout.images)
    units = split.units[split.units["concept"] == 3]
    assert f"{len(units)} sub-units in {units['channel'].nunique()} channels" in figure.data[0].hovertext[3]
    named = Gallery(split.with_names({3: "<b>x"}), gallery.images).fill(progress=False)
    assert "&lt;b&gt;x" in concept_atlas(named).data[0].hovertext[3]


@pytest.mark.parametrize("units", [[1], [0, 2], 1, 9])
def test_maps_share_a_scale_and_add_up(drawn, channel, units) -> None:
    _, gallery = drawn
    picture = unit_maps(gallery, 3, channel, units=units)
    shown = [axes for axes in picture.axes if len(axes.images) == 2]
    assert len({axes.images[1].get_clim() for axes in shown}) == 1
    whole, *parts = (float(axes.get_title().rpartition("\n")[2]) for axes in shown)
    assert sum(parts) == pytest.approx(whole, abs=0.005 * (len(parts) + 1))  # rounded to two places
    view = gallery.channel(channel)
    deepest = (view.maps[3].sum(-1) - float(gallery.split.book.channel_mean()[channel])).abs().max()
    assert abs(whole) == pytest.approx(float(deepest), abs=0.006)
    signs = [text.get_text() for axes in shown for text in axes.texts]
    assert signs == ["=", *["+"] * (len(parts) - 1)]
    assert f"whole channel {whole:+.2f}" in picture.alt


def test_map_titles_do_not_overlap(drawn, channel) -> None:
    _, gallery = drawn
    picture = unit_maps(gallery, 0, channel, units=9)
    picture.canvas.draw()
    boxes = [text.get_window_extent() for axes in picture.axes for text in (axes.title, *axes.texts)]
    boxes = [box for box in [*boxes, *(text.get_window_extent() for text in picture.texts)] if box.width]
    assert not any(one.overlaps(other) for number, one in enumerate(boxes) for other in boxes[number + 1 :])


def test_crops_stand_beside_their_photographs(drawn, channel) -> None:
    _, gallery = drawn
    exemplars = gallery.exemplars(gallery.channel(channel), count=3, units=2)
    picture = before_after(exemplars, crops=0.5, beside=True)
    assert len(picture.axes) == 2 * 3 * len(exemplars.rows)
    whole, crop = picture.axes[0].images[0].get_array(), picture.axes[1].images[0].get_array()
    assert whole is not None
    assert crop is not None
    assert whole.shape[:2] == (32, 32)
    assert crop.shape[:2] == (16, 16)
    with pytest.raises(ValueError, match="crops"):
        before_after(exemplars, beside=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, g, c: activation_map(np.zeros((4, 4)), np.zeros((2, 2))), r"\(4, 4\)"),
        (lambda s, g, c: activation_map(np.zeros((4, 4, 3)), np.full((2, 2), np.nan)), "finite"),
        (lambda s, g, c: unit_maps(g, 99, c), "image=99"),
        (lambda s, g, c: unit_maps(g, 0, c, units=[77]), "77"),
        (lambda s, g, c: routing_bars(s, 99), "channel=99"),
        (lambda s, g, c: routing_bars(s, c, by="colour"), "by='colour'"),
        (lambda s, g, c: concept_profile(g, 99), "concept=99"),
        (lambda s, g, c: concept_atlas(Gallery(s, g.images)), "fill"),
    ],
)
def test_bad_input_is_named(drawn, channel, call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call(*drawn, channel)
