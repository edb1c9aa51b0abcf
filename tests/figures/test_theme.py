"""Themes, and axes of somebody's own."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
import plotly.graph_objects as go
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from elude_nb.figures import (
    Picture,
    accuracy_bars,
    factor_heatmap,
    house_style,
    plotly_template,
    score_distributions,
    theme,
    tradeoff,
)
from elude_nb.figures.theme import (
    SEQUENCE,
    THEMES,
    current_theme,
    diverging,
    readable_on,
    sequential,
    shade,
)
from tests.looks import methods, scores, shares

Colour = tuple[float, float, float]


def luminance(colour: Colour) -> float:
    """WCAG 2.2, relative luminance, written out."""
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: Colour, other: Colour) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_a_theme_lasts_as_long_as_its_block() -> None:
    with theme("dark"):
        assert shade("ink") == THEMES["dark"]["ink"]
        with house_style():
            assert mpl.rcParams["text.color"] == THEMES["dark"]["ink"]
        with theme("light"), house_style():
            assert mpl.rcParams["text.color"] == THEMES["light"]["ink"]
    assert shade("ink") == THEMES["light"]["ink"]
    assert current_theme() == "light"


def test_a_theme_ends_with_an_exception() -> None:
    with pytest.raises(KeyError), theme("dark"), house_style():
        raise KeyError
    assert current_theme() == "light"
    assert shade("paper").lower() == "#ffffff"


def test_both_themes_have_the_same_names_and_dark_words_are_read() -> None:
    assert THEMES["light"].keys() == THEMES["dark"].keys()
    for name, colour in THEMES["dark"].items():
        if name != "paper":
            assert contrast(to_rgb(colour), to_rgb(THEMES["dark"]["paper"])) >= 5, name
    assert len({THEMES["dark"][name] for name in SEQUENCE}) == len(SEQUENCE)


@pytest.mark.parametrize("name", ["light", "dark"])
def test_nothing_looks_like_paper_and_much_stands_out(name) -> None:
    with theme(name):
        paper = to_rgb(shade("paper"))
        for middle, end in ((diverging()(0.5), diverging()(1.0)), (diverging()(0.5), diverging()(0.0))):
            assert contrast(middle[:3], paper) < 1.25
            assert contrast(end[:3], paper) > 5
        assert contrast(sequential()(0.0)[:3], paper) < 1.25
        assert contrast(sequential()(1.0)[:3], paper) > 5


@pytest.mark.parametrize("grey", np.linspace(0, 1, 11))
def test_words_are_read_on_any_grey(grey) -> None:
    assert contrast((grey,) * 3, to_rgb(readable_on((grey,) * 3))) >= 3.4


@pytest.mark.parametrize("name", ["light", "dark"])
def test_the_template_has_the_colours_of_the_theme(name) -> None:
    with theme(name):
        template = plotly_template()
    assert template.layout.paper_bgcolor == THEMES[name]["paper"]
    assert template.layout.font.color == THEMES[name]["ink"]
    assert list(template.layout.colorway) == [THEMES[name][colour] for colour in SEQUENCE]
    assert go.Figure(layout={"template": template}).layout.template.layout.font.family.startswith("DejaVu")


DRAWINGS = {
    "score_distributions": lambda axes: score_distributions(scores(), axes=axes),
    "tradeoff": lambda axes: tradeoff(methods(), axes=axes),
    "accuracy_bars": lambda axes: accuracy_bars(shares()[:3], axes=axes),
    "factor_heatmap": lambda axes: factor_heatmap(shares(), axes=axes),
}


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
def test_a_figure_draws_into_ones_own_axes(draw) -> None:
    before = dict(mpl.rcParams)
    figure = Figure(figsize=(9, 4))
    places = figure.subplots(1, 2)
    with theme("dark"):
        assert draw(places[0]) is places[0]
    assert not places[1].has_data()
    assert places[0].has_data() or places[0].images
    words = [text for text in places[0].findobj() if hasattr(text, "get_color")]
    assert not [text for text in words if str(text.get_color()) in THEMES["dark"]]  # they know no theme any more
    assert dict(mpl.rcParams) == before
    picture: Any = draw(None)
    assert isinstance(picture, Picture)
    assert picture.alt


def test_a_picture_of_ones_own_keeps_its_theme() -> None:
    with theme("dark"), house_style():
        picture = Picture(figsize=(8, 3))
        places: Any = picture.subplots(1, 2)
        score_distributions(scores(), axes=places[0])
        accuracy_bars(shares()[:3], axes=places[1])
    assert picture.png() != b""
    assert picture.theme == "dark"


def test_what_are_no_axes_are_refused() -> None:
    with pytest.raises(TypeError, match="ndarray"):
        score_distributions(scores(), axes=Figure().subplots(1, 2))


def test_scores_without_values_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'top similarty'.*'top_similarity'"):
        score_distributions(scores(), "top similarty")
    with pytest.raises(ValueError, match="top_similarity"):
        score_distributions(scores().assign(top_similarity=np.nan))


def test_score_distributions_show_before_and_after_with_the_controls() -> None:
    picture = score_distributions(scores())
    place: Axes = picture.axes[0]
    words = [label.get_text() for label in place.get_yticklabels()]
    assert [text.partition("\n")[0] for text in words] == ["channels", "random routes", "sub-units"]
    table = scores().groupby("kind")["top_similarity"].mean()
    marked = [float(line.get_segments()[0][0][0]) for line in place.collections if hasattr(line, "get_segments")]
    assert marked == pytest.approx([table["channel"], table["random route"], table["sub-unit"]])
