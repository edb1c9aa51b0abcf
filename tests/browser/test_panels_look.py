"""Every panel in a real page, light and dark, wide and narrow: axe, sizes of text, nothing cut off."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from tests.browser.servers import voila

pytestmark = pytest.mark.browser
TABS = {
    "Channels": ".elude-channel img",
    "Concepts": ".elude-map-node",
    "Image": ".elude-picker",
    "Steering": ".elude-own img",
    "Intruder quiz": ".elude-answer-1",
}
CELL = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent.parent.parent)!r})
from elude_nb.widgets import Workbench
from tests.looks import made
Workbench(gallery=made()[1])
"""
RULES = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}}
SMALL = """() => {
    const panel = document.querySelector(".elude-panel"), found = new Set();
    const walker = document.createTreeWalker(panel, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const { parentElement: parent, data } = walker.currentNode;
        if (!data.trim() || !parent.checkVisibility() || ["STYLE", "TITLE"].includes(parent.tagName)) continue;
        const size = parseFloat(getComputedStyle(parent).fontSize);
        if (size < 12) found.add(`${data.trim().slice(0, 40)}: ${size}`);
    }
    return [...found];
}"""
CUT = """() => [...document.querySelectorAll(".lm-TabBar-tabLabel, .elude-panel :is(h4, p)")]
    .filter((element) => element.checkVisibility() && element.scrollWidth > element.clientWidth + 1)
    .map((element) => element.textContent)"""


@pytest.fixture(scope="module", params=["light", "dark"])
def page(request, browser: Browser, tmp_path_factory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("look")
    notebook: Any = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    nbformat.write(notebook, folder / "look.ipynb")
    with voila(folder / "look.ipynb", request.param) as address:
        context = browser.new_context(viewport={"width": 1400, "height": 1000})
        opened = context.new_page()
        opened.goto(address, timeout=120_000)
        opened.wait_for_selector(".elude-channel img", timeout=120_000)
        yield opened
        context.close()


def serious(page: Page) -> list[tuple[str, str]]:
    """Return what axe finds serious or critical."""
    found = Axe().run(page, context=".elude-panel", options=RULES).response["violations"]
    return [(each["id"], each["nodes"][0]["html"][:160]) for each in found if each["impact"] in {"serious", "critical"}]


@pytest.mark.parametrize("tab", TABS)
def test_a_panel_can_be_read_by_everybody(page: Page, tab: str) -> None:
    page.set_viewport_size({"width": 1400, "height": 1000})
    page.get_by_role("tab", name=tab, exact=True).click()
    page.locator(TABS[tab]).first.wait_for(timeout=30_000)
    if tab == "Channels":
        closed = page.locator(".elude-k [role=slider]")
        if not closed.is_visible():
            page.get_by_text("Split this channel otherwise").first.click()
            closed.wait_for()
    assert serious(page) == []
    page.set_viewport_size({"width": 400, "height": 1000})
    page.wait_for_timeout(300)
    assert serious(page) == []
    assert page.evaluate(SMALL) == []
    assert page.evaluate(CUT) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    for slider in page.locator("[role=slider]:visible").all():
        box = slider.bounding_box()
        assert box is not None
        assert box["width"] > 200
        assert slider.get_attribute("aria-label")
