"""The style of panels and pages: sizes, contrasts, and the words of the glossary."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import elude_nb
from elude_nb._util.glossary import GLOSSARY
from elude_nb._util.html import look_css, term

PACKAGE = Path(elude_nb.__file__).parent
STYLED = [path for kind in ("css", "html", "js", "py") for path in PACKAGE.rglob(f"*.{kind}")]
JUPYTER = {"light": ("#ffffff", "#eeeeee", "#000000"), "dark": ("#111111", "#424242", "#ffffff")}
"""Of JupyterLab's themes: --jp-layout-color0 and 2, and --jp-content-font-color0."""


def colours(scheme: int) -> dict[str, str]:
    """Return the colours of a page of its own, 0 for light or 1 for dark."""
    found = re.findall(r"--elude-(\w+): (?:var\(\S+ )?(?:light-dark\()?(#\w{6})(?:, (#\w{6}))?", look_css())
    return {name: both[scheme] or both[0] for name, *both in found}


def contrast(one: str, other: str) -> float:
    """Return the ratio of WCAG 2.1."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1])
def test_text_can_be_read_on_what_is_behind_it(scheme: int) -> None:
    own = colours(scheme)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)  # a known value
    jupyter = list(JUPYTER.values())[scheme]
    for ink in ("ink", "faint", "link", "good", "bad"):
        for behind in (own["paper"], own["soft"], *jupyter[:2]):
            assert contrast(own[ink], behind) >= 4.5, (ink, behind)
    for mark in ("grey", "blue"):  # frames of controls and lines
        assert contrast(own[mark], own["paper"]) >= 3, mark


def test_nothing_is_smaller_than_12_pixels() -> None:
    small = [
        (path.name, size)
        for path in STYLED
        for size, unit in re.findall(r"font(?:-size)?:\s*(?:\w+ )?([\d.]+)(px|rem|em|pt)\b", path.read_text("utf-8"))
        if float(size) * {"px": 1, "rem": 16, "em": 14, "pt": 4 / 3}[unit] < 12
    ]
    assert small == []


def test_every_colour_of_a_panel_is_defined() -> None:
    defined = set(re.findall(r"(--elude-[\w-]+):", look_css()))
    used = {name for path in STYLED for name in re.findall(r"var\((--elude-[\w-]+)", path.read_text("utf-8"))}
    assert used <= defined


def test_the_docs_have_the_glossary() -> None:
    rows = re.findall(r"(?m)^\| (.+?) \| (.+?) \|$", (PACKAGE.parent / "docs" / "glossary.md").read_text("utf-8"))
    assert rows[2:] == list(GLOSSARY.items())
    assert list(GLOSSARY) == sorted(GLOSSARY, key=str.lower)
    assert all(re.fullmatch(r"[A-Z].+\.", sentence) for sentence in GLOSSARY.values())
    assert term("K") == f'<abbr class="elude-term" title="{GLOSSARY["K"]}">K</abbr>'
