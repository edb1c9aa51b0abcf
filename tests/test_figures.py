"""Structure of the pictures; that they are good to look at is seen, not tested."""

import io

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.patches import Rectangle
from PIL import Image

from elude_nb import Disentanglement, ImageSet, find_exemplars
from elude_nb.exemplars import Exemplar
from elude_nb.figures import Picture, before_after, contact_sheet, contributions_by_block, score_distributions
from elude_nb.figures.grids import draw_exemplar


def split_channel(split: Disentanglement) -> int:
    return int(split.routing.is_split().nonzero()[0])


def opened(picture: Picture) -> Image.Image:
    return Image.open(io.BytesIO(picture.png()))


def test_a_picture_shows_itself_with_an_alt_text() -> None:
    picture = Picture(figsize=(2, 1))
    picture.alt = 'a "quoted" <word>'
    page = picture._repr_html_()
    assert page.startswith("<img ")
    assert 'alt="a &quot;quoted&quot; &lt;word&gt;"' in page
    assert opened(picture).format == "PNG"


def test_before_after_has_a_tile_an_exemplar_and_a_name_a_row(split: Disentanglement, images: ImageSet) -> None:
    exemplars = find_exemplars(split, images, split_channel(split), count=4, units=2, progress=False)
    picture = before_after(exemplars)
    assert len(picture.axes) == len(exemplars.rows) * 4
    words = " ".join(text.get_text() for text in picture.texts)
    assert f"Channel {exemplars.channel}" in words
    assert "whole channel" in words
    assert all(f"sub-unit {unit}" in words for unit in exemplars.units[1:])
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


def test_a_tile_keeps_its_colours_where_the_unit_is_active() -> None:
    red = np.zeros((32, 32, 3), dtype=np.float32)
    red[..., 0] = 1
    heat = np.zeros((4, 4), dtype=np.float32)
    heat[:, 2:] = 2.0
    axes = Picture(figsize=(1, 1)).subplots()
    draw_exemplar(axes, Exemplar(red, heat, 0, 2.0), brightest=2.0)
    shown = axes.images[0].get_array()
    assert shown is not None
    assert shown[:, -4:, 0].mean() > 0.95
    assert shown[:, :4, 0].mean() < 0.4


def test_contact_sheet_shows_labels_and_no_more_than_there_are(images: ImageSet) -> None:
    labelled = ImageSet(images.names, ("a", "b") * 10, images.source, None, images._open, images._places)
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
            "top similarity": [0.0, 0.1, 0.2, 0.3, 0.6, 0.7, 0.8, float("nan")],
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
