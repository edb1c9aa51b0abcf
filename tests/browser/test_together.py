"""Panels that share a selection, and what is left of them without a kernel, in a real JupyterLab."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.browser.servers import jupyterlab, voila
from tests.browser.test_panels import open_tab, until

pytestmark = pytest.mark.browser
ROOT = Path(__file__).parent.parent.parent
SET_UP = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from elude_nb import disentangle
from elude_nb.widgets import ConceptAtlas, Gallery, ImageInspector, SteeringPanel, Workbench
from tests.tiny import random_images, tiny_vit
split = disentangle(tiny_vit(), random_images(20, 32), concepts=8, units=3, tokens_per_image=6, progress=False)
gallery = Gallery(split, random_images(12, 32)).fill(progress=False)
"""
CELLS = {
    "set up": SET_UP,
    "app": "app = Workbench(gallery=gallery)\napp",
    "atlas": "atlas = ConceptAtlas(gallery)\natlas",
    "inspector": "ImageInspector(gallery)",
    "steering": "SteeringPanel(gallery, concepts=[0])",
    "seen": "print(sum(panel._presence.views > 0 for panel in atlas.selection.panels))",
    "chosen": "print(sorted(atlas.selected), len(atlas.sub_units))",
    "again": "eval(app.code())",
}


def write(folder: Path, cells: dict[str, str]) -> Path:
    empty: dict[str, Any] = {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None}
    written = [
        {**empty, "id": f"cell-{place}", "source": source.strip()} for place, source in enumerate(cells.values())
    ]
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    path = folder / "together.ipynb"
    path.write_text(json.dumps({"cells": written, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))
    return path


@pytest.fixture
def lab(tmp_path) -> Iterator[tuple[str, Path]]:
    path = write(tmp_path, CELLS)
    with jupyterlab(tmp_path) as address:
        yield f"{address}/lab/tree/{path.name}", path


def cell(page: Any, name: str) -> Any:
    return page.locator(".jp-CodeCell").nth(list(CELLS).index(name))


def run(page: Any, name: str) -> Any:
    """Run a cell and wait until it has run; return it."""
    found = cell(page, name)
    found.locator(".cm-content").click()
    page.keyboard.press("Control+Enter")
    until(lambda: bool(re.fullmatch(r"\[\d+\]:", found.locator(".jp-InputPrompt").inner_text().strip())), 90)
    return found


def open_notebook(page: Any, address: str) -> None:
    page.goto(address, timeout=120_000)
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
    page.get_by_text("| Idle").wait_for(timeout=60_000)
    for dialog in page.locator(".jp-Dialog button.jp-mod-accept").all():
        dialog.click()


def choose_on_the_map(page: Any, number: int) -> None:
    """A click on a concept leads the panels in the other cells."""
    channels, picture = cell(page, "app").locator(".elude-some"), cell(page, "inspector").locator(".elude-picker img")
    sliders, before = cell(page, "steering").locator(".elude-strengths"), picture.get_attribute("alt")
    node = cell(page, "atlas").locator(".elude-map-node").nth(number)
    name = str(node.get_attribute("aria-label")).partition(";")[0]
    node.click()
    until(lambda: f"with sub-units of {name}" in str(channels.text_content()))
    until(lambda: name in str(sliders.text_content()))
    until(lambda: picture.get_attribute("alt") != before)


def choose_it_again(page: Any) -> None:
    """After a look at another image, another click on the same concept leads to its image again."""
    picture = cell(page, "inspector").locator(".elude-picker img")
    before = picture.get_attribute("alt")
    cell(page, "steering").locator(".elude-thumbnails button:not([aria-pressed=true])").last.click()
    until(lambda: picture.get_attribute("alt") != before)
    cell(page, "atlas").locator(".elude-map-node.chosen").click()
    until(lambda: picture.get_attribute("alt") == before)


def lasso(page: Any) -> None:
    """Draw around the left half of the map, and read in Python what is in it."""
    atlas = cell(page, "atlas")
    nodes, area = atlas.locator(".elude-map-node"), atlas.locator(".elude-map")
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    places = [node.bounding_box() for node in nodes.all()]
    half = box["x"] + box["width"] / 2
    inside = [number for number, at in enumerate(places) if at["x"] + at["width"] / 2 < half]
    assert 0 < len(inside) < len(places)
    atlas.get_by_role("button", name="Lasso").click()
    corners = [(box["x"] + 1, box["y"] + 1), (half, box["y"] + 1), (half, box["y"] + box["height"] - 1)]
    corners.append((box["x"] + 1, corners[-1][1]))
    page.mouse.move(*corners[0])
    page.mouse.down()
    for corner in corners[1:]:
        page.mouse.move(*corner, steps=5)
    assert atlas.locator(".elude-map-lasso").count() == 1
    page.mouse.up()
    assert atlas.locator(".elude-map-lasso").count() == 0
    until(lambda: atlas.locator(".elude-map-node.chosen").count() == len(inside))
    atlas.get_by_role("button", name="Lasso").click()
    printed = run(page, "chosen").locator(".jp-OutputArea-output").inner_text()
    assert printed.startswith(f"{inside} ")
    assert int(printed.split()[-1]) > 0


def run_a_cell_again(page: Any) -> None:
    """The panel that it showed before is seen by nobody and computes nothing any more."""
    before = run(page, "seen").locator(".jp-OutputArea-output").inner_text()
    assert int(before) == 4  # one of the bench
    run(page, "inspector").locator(".elude-picker img").wait_for()
    until(lambda: run(page, "seen").locator(".jp-OutputArea-output").inner_text() == before)


def go_back(page: Any) -> None:
    atlas, app = cell(page, "atlas"), cell(page, "app")
    app.locator(".elude-back").click()
    until(lambda: atlas.locator(".elude-map-node.chosen").count() == 1)
    assert app.locator(".elude-forward").is_enabled()


def open_the_same_again(page: Any) -> None:
    """What the line of code opens shows the same panel, image and patch."""
    app = cell(page, "app")
    open_tab(page, "Image")
    shown = app.locator(".elude-picker img")
    shown.wait_for()
    page.wait_for_timeout(500)
    again = run(page, "again")
    again.locator(".elude-picker img").wait_for()
    for what in (".elude-picker img", ".elude-others h4"):
        both = [one.locator(what).first for one in (app, again)]
        until(partial(_say_the_same, both))


def _say_the_same(several: list[Any]) -> bool:
    said = {one.evaluate("one => one.alt ?? one.innerText") for one in several}
    return len(said) == 1 and "" not in said


def stop_the_kernel(page: Any) -> None:
    """A panel without a kernel says so, once, and its controls cannot be used."""
    page.get_by_role("menuitem", name="Kernel", exact=True).click()
    page.get_by_text("Restart Kernel…", exact=True).first.click()
    page.locator(".jp-Dialog button.jp-mod-accept").click()
    page.locator(".elude-panel.jupyter-widgets-disconnected").first.wait_for()
    sign = "one => { const style = getComputedStyle(one, '::before'); return style.display + style.content; }"
    app = cell(page, "app").locator(".elude-panel").first
    assert "Kernel stopped: pictures as they were" in app.evaluate(sign)
    inner = app.locator(".jupyter-widgets-disconnected").all()
    assert len(inner) > 10
    assert all(one.evaluate(sign).startswith("none") for one in inner[:40])
    assert app.locator(".elude-back").evaluate("one => getComputedStyle(one).pointerEvents") == "none"
    assert cell(page, "app").locator(".elude-picker img").is_visible()


def open_without_a_kernel(page: Any, path: Path) -> None:
    """A saved notebook shows the pictures, not that the widget is not found."""
    page.keyboard.press("Control+s")
    until(lambda: "elude-stored" in path.read_text())
    outputs = json.loads(path.read_text())["cells"][1]["outputs"]
    assert [sorted(output["data"]) for output in outputs] == [
        ["application/vnd.jupyter.widget-view+json", "text/plain"],
        ["text/html", "text/plain"],
    ]
    page.reload(timeout=120_000)
    kept = page.locator(".elude-stored")
    kept.first.wait_for(timeout=60_000)
    page.get_by_text("Error displaying widget").first.wait_for(state="attached")
    for one in page.get_by_text("Error displaying widget").all():
        assert not one.is_visible()
    assert kept.first.get_by_text("Pictures as they were").is_visible()
    assert kept.first.locator("img").count() > 10
    assert kept.first.get_by_role("heading", name="Image", exact=True).is_visible()  # as it was last


def test_panels_share_what_is_chosen_and_outlive_their_kernel(page, lab) -> None:
    address, path = lab
    open_notebook(page, address)
    for name in list(CELLS)[:5]:
        run(page, name)
    cell(page, "steering").locator(".elude-strengths").wait_for()
    assert not page.locator(".elude-stored").first.is_visible()
    choose_on_the_map(page, 3)
    run_a_cell_again(page)
    choose_on_the_map(page, 5)
    choose_it_again(page)
    lasso(page)
    go_back(page)
    open_the_same_again(page)
    page.wait_for_timeout(6000)  # what is kept of a panel is stored when it rests
    stop_the_kernel(page)
    open_without_a_kernel(page, path)


def test_voila_says_that_its_kernel_has_stopped(page, tmp_path) -> None:
    cells = {name: CELLS[name] for name in ("set up", "app")}
    stop = "import os, threading\nthreading.Timer(12, os._exit, (1,)).start()"
    with voila(write(tmp_path, {**cells, "stop": stop})) as address:
        page.goto(address, timeout=100_000)
        panel = page.locator(".elude-panel").first
        panel.locator(".elude-channel img").first.wait_for(timeout=100_000)
        assert page.locator(".elude-stored").count() == 0
        assert "jupyter-widgets-disconnected" not in str(panel.get_attribute("class"))
        until(lambda: "Kernel stopped" in panel.evaluate("one => getComputedStyle(one, '::before').content"), 60)
