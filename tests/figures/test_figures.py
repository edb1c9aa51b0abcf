"""Structure of the pictures; that they are good to look at is seen, not tested."""

import io
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.patches import Rectangle
from PIL import Image

from elude_nb import Disentanglement, ImageSet, find_exemplars
from elude_nb.figures import (
    Picture,
    before_after,
    contact_sheet,
    contributions_by_block,
    score_distributions,
    score_intervals,
    tradeoff,
)
from elude_nb.figures.html import OUTSIDE, WAYS, draw_activation
from elude_nb.figures.images import draw_exemplar
from elude_nb.interpret.exemplars import Exemplar, Exemplars
from tests.markup import Page


def split_channel(split: Disentanglement) -> int:
    return int(split.routing.is_split().nonzero()[0])


def opened(picture: Picture) -> Image.Image:
    return Image.open(io.BytesIO(picture.png()))


def test_a_picture_shows_itself_with_an_alt_text() -> None:
    picture = Picture(figsize=(2, 1))
    picture.alt = 'a "quoted" <word>'
    (image,) = Page(picture._repr_html_()).find("img")
    assert image["alt"] == 'a "quoted" <word>'
    assert opened(picture).format == "PNG"


def test_before_after_has_a_tile_an_exemplar_and_a_name_a_row(split: Disentanglement, images: ImageSet) -> None:
    exemplars = find_exemplars(split, images, split_channel(split), count=4, units=2, progress=False)
    picture = before_after(exemplars)
    assert len(picture.axes) == len(exemplars.rows) * 4
    words = " ".join(text.get_text() for text in picture.texts)
    assert f"Channel {exemplars.channel}" in words
    assert "whole channel" in words
    assert all(f"sub-unit {unit}" in words for unit in exemplars.units[1:-1])
    assert "rest (unit 0)" in words
    assert "whole channel" in picture.alt


def test_tiles_do_not_overlap_each_other_or_the_names(split: Disentanglement, images: ImageSet) -> None:
    picture = before_after(find_exemplars(split, images, split_channel(split), count=4, units=2, progress=False))
    picture.canvas.draw()
    tiles = [axes.get_window_extent() for axes in picture.axes]
    names = [text.get_window_extent() for text in picture.texts]
    for number, tile in enumerate(tiles):
        assert not any(tile.overlaps(other) for other in tiles[number + 1 :])
        assert not any(tile.overlaps(name) for name in names)
    for number, name in enumerate(names):
        assert not any(name.overlaps(other) for other in names[number + 1 :])


@pytest.fixture
def half_red() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A red photograph, and a heat map that is high in its right half."""
    red = np.zeros((64, 64, 3), dtype=np.float32)
    red[..., 0] = 0.8
    heat = np.full((4, 4), -1.0, dtype=np.float32)
    heat[:, 2:] = 2.0
    return red, heat


def test_an_outline_leaves_the_active_side_as_it_is_and_stands_between_the_sides(half_red) -> None:
    red, heat = half_red
    axes = Picture(figsize=(1, 1)).subplots()
    draw_exemplar(axes, Exemplar(red, heat, 0, 2.0), brightest=2.0)
    shown = np.asarray(axes.images[0].get_array())
    assert shown[:, 40:] == pytest.approx(red[:, 40:])
    assert shown[:, :24] == pytest.approx(OUTSIDE * red[:, :24])
    assert np.flatnonzero(shown[32].min(1) > 0.9).tolist() in ([31], [32], [31, 32])  # white
    assert shown[32, 29, 0] < 0.99 * OUTSIDE * 0.8  # its halo
    assert shown[32, 34, 0] < 0.99 * 0.8
    assert draw_activation(red, -np.abs(heat), 1.0) == pytest.approx(red)  # nowhere above the mean
    assert draw_activation(red, heat[:1, 3:], 1.0, "dark") == pytest.approx(red)  # one patch: nothing is known of where


def test_the_other_ways_to_show_an_activation(half_red) -> None:
    red, heat = half_red
    dark, hot, crop, none = (draw_activation(red, heat, 2.0, way) for way in list(WAYS)[1:])
    assert dark[:, 48:] == pytest.approx(red[:, 48:], abs=0.02)
    assert dark[:, :16].max() < 0.4
    assert hot[:, :16] == pytest.approx(red[:, :16], abs=0.02)
    assert hot[:, 48:].mean((0, 1)) == pytest.approx((0.95, 0.0, 0.0), abs=0.02)  # 0.25 * red + 0.75 * full colour
    assert crop.shape == (32, 32, 3)
    assert none == pytest.approx(red)
    with pytest.raises(ValueError, match=r"'outlin'.*outline"):
        before_after(Exemplars(0, (), (), (), ()), activation="outlin")


def test_contact_sheet_shows_labels_and_no_more_than_there_are(images: ImageSet) -> None:
    labelled = images.with_labels(("a", "b") * 10)
    picture = contact_sheet(labelled[:3], count=20)
    assert [axes.get_title() for axes in picture.axes] == ["a", "b", "a"]
    with pytest.raises(ValueError, match="count=0"):
        contact_sheet(images, count=0)


def test_bars_are_the_summed_contributions(split: Disentanglement) -> None:
    channel = split_channel(split)
    unit = int(split.units.query("channel == @channel and unit > 0")["unit"].iloc[0])
    picture = contributions_by_block(split, channel, [unit])
    drawn = sum(patch.get_height() for patch in picture.axes[0].patches if isinstance(patch, Rectangle))
    assert drawn == pytest.approx(split.contributions(channel, unit)["contribution"].sum())
    assert [label.get_text() for label in picture.axes[0].get_xticklabels()] == ["1", "2", "3"]


def test_distributions_mark_the_means_of_what_is_there() -> None:
    scores = pd.DataFrame(
        {
            "kind": ["channel"] * 4 + ["sub-unit"] * 4,
            "top_similarity": [0.0, 0.1, 0.2, 0.3, 0.6, 0.7, 0.8, float("nan")],
        }
    )
    picture = score_distributions(scores)
    assert [label.get_text() for label in picture.axes[0].get_yticklabels()] == [
        "channels\nmean 0.15 of 4",
        "sub-units\nmean 0.70 of 3",
    ]
    assert "sub-unit 0.70" in picture.alt


def test_global_settings_are_left_alone(images: ImageSet) -> None:
    before = dict(mpl.rcParams)
    contact_sheet(images, count=2).png()
    assert dict(mpl.rcParams) == before


# ------------------------------------------------------------------ methods beside each other

METHODS = pd.DataFrame(
    {
        "method": ["sub-units", "channels", "PCA", "TopK SAE", "PCA"],
        "size": ["equal"] * 4 + ["own"],
        "units": [8, 8, 8, 8, 30],
        "top_similarity": [0.5, 0.49, 0.3, 0.6, 0.1],
        "top_similarity_low": [0.4, 0.4, 0.2, 0.5, 0.0],
        "top_similarity_high": [0.6, 0.55, 0.4, 0.7, 0.2],
        "redundancy": [0.2, 0.1, 0.4, 0.3, 0.9],
        "unexplained_variance": [0.0, 0.0, 0.25, 0.5, 0.01],
    }
)


def test_the_tradeoff_has_each_method_at_its_place_and_in_its_alt_text() -> None:
    picture = tradeoff(METHODS)
    assert picture.alt == (
        "top similarity against unexplained variance: sub-units 0.50 at 0.00, channels 0.49 at 0.00, "
        "PCA 0.30 at 0.25, TopK SAE 0.60 at 0.50"
    )
    place = picture.axes[0]
    containers: Any = place.containers
    drawn = {tuple(map(float, bars[0].get_xydata()[0])) for bars in containers}
    assert drawn == {(0.0, 0.5), (0.0, 0.49), (0.25, 0.3), (0.5, 0.6)}
    names = {text.get_text() for text in place.texts}
    assert names == {"nothing is lost", "sub-units (8)", "channels (8)", "PCA (8)", "TopK SAE (8)"}
    low, high = place.get_xlim()
    assert low < 0
    assert high > 0.5
    assert opened(picture).format == "PNG"


def test_names_of_lossless_methods_are_pushed_apart() -> None:
    picture = tradeoff(METHODS)
    texts: Any = picture.axes[0].texts
    heights = {text.get_text(): text.xyann[1] for text in texts}
    assert heights["sub-units (8)"] - heights["channels (8)"] == pytest.approx(0.05 * 0.5)
    assert heights["sub-units (8)"] + heights["channels (8)"] == pytest.approx(0.99)
    assert heights["PCA (8)"] == pytest.approx(0.3)


def test_tables_put_together_are_one_picture() -> None:
    both = pd.concat([METHODS, METHODS.assign(method=METHODS["method"] + " of another model")])
    assert len(tradeoff(both).axes[0].containers) == 8
    picture = score_intervals(both, ["redundancy"])
    assert len(picture.axes[0].get_yticklabels()) == 8


def test_intervals_are_sorted_by_the_first_score_and_lie_at_their_values() -> None:
    picture = score_intervals(METHODS, ["top_similarity", "redundancy"])
    first = picture.axes[0]
    assert [label.get_text() for label in first.get_yticklabels()] == [
        "PCA (8)",
        "channels (8)",
        "sub-units (8)",
        "TopK SAE (8)",
    ]
    assert [place.get_title(loc="left") for place in picture.axes] == ["top similarity →", "redundancy ←"]
    lines: Any = first.collections[0]
    ends = [segment[:, 0].tolist() for segment in lines.get_segments()]
    assert ends == [[0.2, 0.4], [0.4, 0.55], [0.4, 0.6], [0.5, 0.7]]
    assert [np.asarray(place.collections[1].get_offsets())[:, 0].tolist() for place in picture.axes] == [
        [0.3, 0.49, 0.5, 0.6],
        [0.4, 0.1, 0.2, 0.3],
    ]
    assert picture.alt == "top similarity, redundancy of 4 methods; highest top similarity: TopK SAE"


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: tradeoff(METHODS, "top similarty"), "'top similarty'.*'top_similarity'"),
        (lambda: tradeoff(METHODS, loss="loss"), "loss"),
        (lambda: tradeoff(METHODS, size="some"), "'some'.*'equal', 'own'"),
        (lambda: score_intervals(METHODS, size="some"), "'some'.*'equal', 'own'"),
        (lambda: score_intervals(METHODS, ["redundancy", "redundance"]), "'redundance'.*'redundancy'"),
        (lambda: score_intervals(METHODS, ["redundance"]), "'redundance'.*'redundancy'"),
        (lambda: score_intervals(METHODS, []), "scores"),
    ],
)
def test_what_is_not_in_the_table_cannot_be_drawn(draw, message) -> None:
    with pytest.raises(ValueError, match=message):
        draw()
