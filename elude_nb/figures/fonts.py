"""Fonts for words in any script: where DejaVu Sans lacks a letter, one of the installed fonts that has it."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from matplotlib import font_manager
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.text import Text

from elude_nb._util.warn import warn_caller

FONT = "DejaVu Sans"


def choose_fonts(artist: Artist) -> None:
    """Give each text of a picture, or of axes, the fonts that its letters need; warn of letters that no font has."""
    for axes in artist.findobj(Axes):
        for axis in (axes.xaxis, axes.yaxis):
            axis.get_majorticklabels()  # writes the words of ticks
    texts = [(text, _letters(text.get_text())) for text in artist.findobj(Text)]
    families = fonts_for(frozenset().union(*(letters for _, letters in texts)))
    if families:
        for text, letters in texts:
            if letters:
                text.set_fontfamily([*text.get_fontfamily(), *families])


@cache
def fonts_for(letters: frozenset[str]) -> tuple[str, ...]:
    """Return installed fonts that have these letters, beside DejaVu Sans.

    A letter that none has is drawn as a box. A warning, once for the same letters, names it.
    """
    left, families = letters, list[str]()
    for font in itertools.chain(_known_fonts(), _new_fonts()):
        had = left & _letters_of(font)
        left -= had
        if had and font.name != FONT:
            families.append(font.name)
        if not left:
            break
    if left:
        shown = " ".join(sorted(left)[:10]) + (f" and {len(left) - 10} others" if len(left) > 10 else "")
        warn_caller(
            f"No installed font has {shown}; {'they are' if len(left) > 1 else 'it is'} drawn as boxes. Install a font "
            "of that script, such as one of Noto (Debian: apt install fonts-noto-core fonts-noto-cjk; others: "
            "https://fonts.google.com/noto), and start Python again."
        )
    return tuple(families)


def _letters(text: str) -> frozenset[str]:
    """Return the letters of a text that need a font: no ASCII, and no marks that are never drawn."""
    return frozenset(letter for letter in text if not letter.isascii() and unicodedata.category(letter) != "Cf")


def _letters_of(font: font_manager.FontEntry) -> frozenset[str]:
    try:
        return frozenset(map(chr, font_manager.get_font(font.fname).get_charmap()))
    except (OSError, RuntimeError):  # a file that is gone or broken
        return frozenset()


def _known_fonts() -> list[font_manager.FontEntry]:
    """Return a regular font of each family that matplotlib knows: DejaVu Sans, others without serifs, the rest."""
    regular = (font for font in font_manager.fontManager.ttflist if (font.style, font.weight) == ("normal", 400))
    # matplotlib's Last Resort has a box for every letter.
    families = {font.name: font for font in regular if not font.name.startswith("Last Resort")}
    return sorted(families.values(), key=lambda font: (font.name != FONT, "Sans" not in font.name, font.name))


def _new_fonts() -> Iterable[font_manager.FontEntry]:
    """Yield fonts that were installed after matplotlib made its list; it makes it only once."""
    known = {Path(font.fname) for font in font_manager.fontManager.ttflist}
    for path in sorted(set(map(Path, font_manager.findSystemFonts())) - known):
        try:
            font_manager.fontManager.addfont(path)
        except Exception:  # noqa: BLE001, S112 - a font that matplotlib cannot use, such as one of coloured pictures
            continue
        yield font_manager.fontManager.ttflist[-1]
