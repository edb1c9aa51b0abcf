"""People's words in figures: names of files, labels, concepts and methods are drawn as they are, whatever they are."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.text import Text
from PIL import Image

from elude_nb import Edit, effect, figures, find_exemplars
from elude_nb.data.images import ImageSet
from elude_nb.figures import fonts
from elude_nb.figures.theme import words, words_for_plotly
from elude_nb.interpret.gallery import Gallery
from elude_nb.interpret.neighbours import find_neighbours
from elude_nb.steering import patch_change
from elude_nb.text.similarity import SimilarityEffect
from tests.looks import methods

WORDS = [
    "$5 and $10",  # mathematics
    "$x^$",  # mathematics with an error in it
    "_hidden_",  # what matplotlib leaves out of legends
    b"caf\xe9.png".decode("utf-8", "surrogateescape"),
    "a long way " * 20,
    "two\nlines\x07",
    "<b>100 %</b> & %{x}",
    "שלום عالم \u202egnp.exe",
]


@pytest.fixture(scope="module")
def gallery(split, images: ImageSet) -> Gallery:
    named = split.with_names(dict(enumerate(WORDS)))
    labels = [WORDS[number % len(WORDS)] for number in range(len(images))]
    return Gallery(named, images.with_labels(labels)).fill(progress=False)


def table() -> pd.DataFrame:
    return methods().assign(method=WORDS[:4])


def similarities() -> SimilarityEffect:
    kinds = ["within", "across", "elsewhere"]
    columns = [f"{kind}{end}" for kind in kinds for end in ("", "_low", "_high")]
    numbers = pd.DataFrame(0.1, index=range(2), columns=columns).assign(method="edit", detail=WORDS[4])
    return SimilarityEffect(Edit(), WORDS[0], pd.Series(0.1, index=kinds), numbers, (), 9)


def effect_of(gallery: Gallery) -> Any:
    beside = {word: Edit.ablate(concept=number) for number, word in enumerate(WORDS[2:4], 1)}
    edit = Edit.ablate(concept=1)
    controls = ("random sub-units",)
    return effect(
        gallery.split, edit, gallery.images, target=WORDS[0], controls=controls, beside=beside, progress=False
    )


PLACES = pd.DataFrame(np.eye(4), index=WORDS[:4], columns=WORDS[4:])
FIGURES: dict[str, Callable[[Gallery], Any]] = {
    "accuracy_bars": lambda gallery: figures.accuracy_bars(PLACES, title=WORDS[1]),
    "activation_map": lambda gallery: figures.activation_map(
        gallery.pictures[0], np.eye(4), title=gallery.images.names[0] + WORDS[1]
    ),
    "before_after": lambda gallery: figures.before_after(
        find_exemplars(gallery.split, gallery.images, split_channel(gallery), count=4, units=2, progress=False)
    ),
    "class_drops": lambda gallery: figures.class_drops(effect_of(gallery)),
    "concept_profile": lambda gallery: figures.concept_profile(gallery, 1),
    "contact_sheet": lambda gallery: figures.contact_sheet(gallery.images),
    "dose_response": lambda gallery: figures.dose_response(effect_of(gallery)),
    "factor_heatmap": lambda gallery: figures.factor_heatmap(PLACES),
    "neighbour_grid": lambda gallery: figures.neighbour_grid(
        find_neighbours(gallery.split, gallery.images[3], gallery.images, {WORDS[1]: Edit.ablate(concept=1)}, k=4)
    ),
    "patch_changes": lambda gallery: figures.patch_changes(
        patch_change(gallery.split, Edit.ablate(concept=WORDS[1]), gallery.images[:1])
    ),
    "routing_bars": lambda gallery: figures.routing_bars(gallery.split, split_channel(gallery)),
    "score_intervals": lambda gallery: figures.score_intervals(table(), ["top_similarity"]),
    "selectivity_curves": lambda gallery: figures.selectivity_curves(effect_of(gallery)),
    "side_effects": lambda gallery: figures.side_effects(effect_of(gallery)),
    "similarity_bars": lambda gallery: figures.similarity_bars(similarities()),
    "tradeoff": lambda gallery: figures.tradeoff(table()),
    "unit_maps": lambda gallery: figures.unit_maps(gallery, 0, split_channel(gallery)),
}
# These show no words but the package's own.
OWN_WORDS = {
    "channel_steps", "contributions_by_block", "granularity_curve", "quiz_result", "score_distributions", "trial_sheet",
}  # fmt: skip
PLOTLY = {"concept_atlas", "routing_sankey"}
NOT_FIGURES = {"Picture", "house_style", "plotly_template", "theme"}


def split_channel(gallery: Gallery) -> int:
    return int(gallery.split.routing.is_split().nonzero()[0])


def test_no_figure_is_forgotten() -> None:
    assert {*FIGURES, *OWN_WORDS, *PLOTLY, *NOT_FIGURES} == set(figures.__all__)


@pytest.mark.parametrize("name", FIGURES)
def test_words_are_drawn_as_they_are(name: str, gallery: Gallery) -> None:
    picture = FIGURES[name](gallery)
    with Image.open(io.BytesIO(picture.png())) as opened:
        assert max(opened.size) < 2600  # 20 inches: no name makes a picture as wide as itself
    picture._repr_html_().encode("utf-8")
    texts = [text for text in picture.findobj(Text) if text.get_text()]
    assert not any(text.get_parse_math() for text in texts)
    assert not any(len(line) > 90 for text in texts for line in text.get_text().split("\n"))


@pytest.mark.parametrize("name", ["accuracy_bars", "dose_response", "selectivity_curves"])
def test_legends_have_what_begins_with_an_underscore(name: str, gallery: Gallery) -> None:
    picture = FIGURES[name](gallery)
    legends = [legend for legend in (picture.axes[0].get_legend(), *picture.legends) if legend]
    shown = [text.get_text() for text in legends[0].get_texts()]
    own = WORDS[4:] if name == "accuracy_bars" else WORDS[2:4]
    assert set(map(words, own)) <= set(shown)


@pytest.mark.parametrize("name", sorted(PLOTLY))
def test_plotly_reads_no_markup_and_no_mathematics_in_words(name: str, gallery: Gallery) -> None:
    make: dict[str, Callable[[], Any]] = {
        "concept_atlas": lambda: figures.concept_atlas(gallery),
        "routing_sankey": lambda: figures.routing_sankey(gallery.split, split_channel(gallery)),
    }
    page = make[name]().to_json()
    page.encode("utf-8")
    assert "$5 and" not in page
    assert "<b>100" not in page
    if name == "concept_atlas":
        assert "concept 0: &#36;5 and &#36;10" in page
    assert words_for_plotly("<b>$5$</b>") == "&lt;b&gt;&#36;5&#36;&lt;/b&gt;"


@pytest.fixture
def glyph_font(tmp_path: Path) -> Path:
    """A font with one letter that no real one has: U+F1234 of the private planes."""
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "mark"])
    builder.setupCharacterMap({0xF1234: "mark"})
    pen = TTGlyphPen(None)
    for point in ((100, 0), (100, 700), (900, 700)):
        (pen.lineTo if point != (100, 0) else pen.moveTo)(point)
    pen.closePath()
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "mark": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (1000, 0), "mark": (1000, 100)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Elude Test Sans", "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=800, usWinAscent=800, usWinDescent=200)
    builder.setupPost()
    builder.save(tmp_path / "test.ttf")
    return tmp_path / "test.ttf"


def test_a_letter_is_drawn_in_an_installed_font_that_has_it(
    glyph_font: Path, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    letter = "\U000f1234"
    monkeypatch.setattr(font_manager.fontManager, "ttflist", list(font_manager.fontManager.ttflist))
    monkeypatch.setattr(font_manager, "findSystemFonts", list)
    fonts.fonts_for.cache_clear()
    sheet = figures.contact_sheet(images[:1].with_labels([letter]))
    with pytest.warns(UserWarning, match=r"No installed font has \S+; it is drawn as boxes. Install .*Noto") as caught:
        sheet.png()
    assert len(caught) == 1
    with warnings.catch_warnings(action="error"):
        sheet.png()  # said once
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(glyph_font)])  # installed since
    fonts.fonts_for.cache_clear()
    sheet.png()
    found = [text.get_fontfamily() for text in sheet.findobj(Text) if text.get_text() == letter]
    assert found == [["DejaVu Sans", "Elude Test Sans"]]
    assert fonts.fonts_for(frozenset("ä→😀")) == ()  # DejaVu Sans has them
    fonts.fonts_for.cache_clear()


def test_axes_of_ones_own_get_the_fonts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("elude_nb.figures.fonts.fonts_for", lambda letters: ("Other",) if letters else ())
    axes = figures.Picture(figsize=(2, 2)).subplots()
    figures.factor_heatmap(PLACES.rename(index={WORDS[0]: "日本"}), axes=axes)
    found = [text.get_fontfamily() for text in axes.findobj(Text) if text.get_text() == "日本"]
    assert found
    assert all(family[-1] == "Other" for family in found)
