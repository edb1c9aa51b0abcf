"""The report in a real browser: opened from disk, with the network off, by pointer and by keyboard."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from elude_nb import Disentanglement, ImageSet
from elude_nb._util.glossary import GLOSSARY
from elude_nb.app.report.build import write_report
from tests.browser.accessibility import serious

NOTHING = "\N{EN DASH}"
HOSTILE = '</script><img src=x onerror="window.hacked = 1"><script>window.hacked = 1</script>'

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def file(split: Disentanglement, images: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    named = split.with_names({0: HOSTILE, 1: "night sky"})
    odd = replace(images, names=tuple(f"{i} {HOSTILE.replace('/', '|')}" for i in range(len(images))))
    path = tmp_path_factory.mktemp("report") / "report.html"
    return write_report(named, odd, path, title=HOSTILE, count=4, progress=False)


def opened(browser: Browser, file: Path, fragment: str = "", **settings) -> Iterator[Page]:
    """A page without network; any error, in the script or on the console, and any other request is a failure."""
    context = browser.new_context(
        **{"viewport": {"width": 1100, "height": 900}, "reduced_motion": "reduce", **settings}
    )
    context.set_offline(True)
    page = context.new_page()
    page.set_default_timeout(5000)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    page.on("console", lambda said: wrong.append(f"console: {said.text}") if said.type == "error" else None)
    own = file.as_uri()
    page.on(
        "request",
        lambda request: None if request.url.startswith(("data:", own)) else wrong.append(f"request: {request.url}"),
    )
    page.goto(own + fragment)
    yield page
    hacked = page.evaluate("'hacked' in window") if settings.get("java_script_enabled", True) else False
    context.close()
    assert not wrong
    assert not hacked


@pytest.fixture
def page(browser: Browser, file: Path) -> Iterator[Page]:
    yield from opened(browser, file)


@pytest.fixture
def phone(browser: Browser, file: Path) -> Iterator[Page]:
    yield from opened(browser, file, viewport={"width": 400, "height": 800}, has_touch=True, color_scheme="dark")


@pytest.fixture
def scriptless(browser: Browser, file: Path) -> Iterator[Page]:
    yield from opened(browser, file, java_script_enabled=False)


@pytest.fixture
def linked(browser: Browser, file: Path) -> Iterator[Page]:
    yield from opened(browser, file, "#channel-5")


def data(page: Page, path: str) -> object:
    return page.evaluate(f"JSON.parse(document.getElementById('data').textContent){path}")


def spread(canvas: Locator) -> float:
    """Return by how much the pixels of a canvas differ: nothing, if nothing was drawn."""
    found = canvas.evaluate(
        "c => { const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        " const g = []; for (let i = 0; i < d.length; i += 4) g.push(d[i] + d[i + 1] + d[i + 2]);"
        " return Math.max(...g) - Math.min(...g); }"
    )
    return float(found)


def numbers(page: Page, column: int) -> list[float | None]:
    cells = page.locator(f"#channel-table tbody tr:visible > :nth-child({column})")
    return [None if text == NOTHING else float(text) for text in cells.all_text_contents()]


def test_the_page_shows_a_map_with_pictures(page: Page) -> None:
    expect(page.get_by_role("heading", level=1)).to_have_text(HOSTILE)
    nodes = page.locator(".elude-map a")
    expect(nodes).to_have_count(8)
    assert spread(nodes.first.locator("canvas")) > 20
    places = {tuple(node.bounding_box().values()) for node in nodes.all() if node.bounding_box()}  # type: ignore[union-attr]
    assert len(places) == 8
    expect(page.locator("noscript p")).to_have_count(0)
    assert page.evaluate("document.querySelectorAll('script').length") == 2


def test_hovering_shows_a_concepts_best_images_with_heat(page: Page) -> None:
    node = page.get_by_label("concept 1: night sky")
    node.hover()
    expect(page.locator(".peek h3")).to_have_text("concept 1: night sky")
    images = page.locator(".peek canvas")
    expect(images).to_have_count(6)
    first = data(page, ".concepts[1].images[0][0]")
    expect(images.first).to_have_attribute("aria-label", page_alt(page, first))
    assert spread(images.first) > 20


def page_alt(page: Page, index: object) -> re.Pattern[str]:
    alt = page.locator(f"#image-{index} img").get_attribute("alt")
    return re.compile("^" + re.escape(str(alt)) + ": the concept is ")


def test_a_click_opens_a_concept_and_its_channel(page: Page) -> None:
    page.get_by_label("concept 1: night sky").click()
    panel = page.locator("#concept-view")
    expect(panel.get_by_role("heading", level=3)).to_have_text("Concept 1: night sky")
    expect(panel).to_be_focused()
    expect(panel.locator(".tiles canvas")).to_have_count(8)
    expect(panel.locator("svg.elude-depth rect")).to_have_count(6)
    assert page.url.endswith("#concept-1")
    units = data(page, ".concepts[1].units")
    assert isinstance(units, list)
    expect(panel.locator("tbody tr")).to_have_count(min(20, len(units)))
    panel.locator("tbody a").first.click()
    expect(page.locator("#channel-view h3")).to_have_text(f"Channel {units[0][0]}")
    expect(page.locator("#channel-view")).to_be_in_viewport()
    page.go_back()
    assert page.url.endswith("#concept-1")
    expect(panel).to_be_focused()


def test_a_channel_comes_apart_before_and_after(linked: Page) -> None:
    panel = linked.locator("#channel-view")
    expect(panel.get_by_role("heading", level=3)).to_have_text("Channel 5")
    rows = panel.locator(".row")
    entry = data(linked, ".channels[5]")
    assert isinstance(entry, dict)
    expect(rows).to_have_count(len(entry["rows"]))
    expect(rows.first).to_contain_text("Whole channel, before")
    expect(rows.first.locator("canvas")).to_have_count(4)
    expect(panel.locator("tbody tr")).to_have_count(len(entry["units"]))
    unit = entry["units"][1]
    expect(panel.locator("tbody tr").nth(1)).to_contain_text(f"sub-unit {unit['unit']}concept {unit['concept']}")
    expect(panel.locator("tbody tr").nth(1).locator("svg rect")).to_have_count(6)
    links = [tile.get_attribute("href") for tile in rows.nth(1).locator("a:has(canvas)").all()]
    assert links == [f"#image-{image[0]}" for image in entry["rows"][1]["images"]]
    expect(linked.locator("#channel-table tr.open th")).to_have_text("5")


def test_activations_are_shown_in_the_way_that_is_chosen_and_remembered(linked: Page) -> None:
    canvas = linked.locator("#channel-view .row canvas").nth(1)
    pixels = "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data].reduce((a, b) => a + b, 0)"
    choice = linked.locator("#channel-view").get_by_label("activation")
    expect(choice).to_have_value("outline")
    totals = {"outline": canvas.evaluate(pixels)}
    for way in ("none", "dark", "heat", "crop"):
        choice.select_option(way)
        totals[way] = canvas.evaluate(pixels)
    assert len(set(totals.values())) == 5
    assert totals["none"] > 1.05 * totals["dark"]
    for other in linked.locator("select.way").all():
        expect(other).to_have_value("crop")
    linked.reload()
    expect(linked.locator("#channel-view").get_by_label("activation")).to_have_value("crop")
    linked.locator("#channel-view").get_by_label("activation").select_option("outline")
    assert linked.locator("#channel-view .row canvas").nth(1).evaluate(pixels) == totals["outline"]


def test_it_opens_on_the_best_channels(page: Page) -> None:
    best = page.locator("#best article")
    expect(best).to_have_count(3)
    expect(best.first).to_contain_text(re.compile(r"How alike the \d+ best images are: channel"))
    expect(best.first.locator(".row").first).to_contain_text("Whole channel, before")
    assert best.first.locator("canvas").first.bounding_box()["y"] < 600  # type: ignore[index]
    assert spread(best.first.locator("canvas").first) > 20
    best.first.get_by_role("link", name="sub-units").last.click()
    expect(page.locator("#channel-view h3")).to_have_text(f"Channel {data(page, '.best[0].channel')}")


def test_the_list_is_sorted_by_any_column(page: Page) -> None:
    def head(name: str) -> Locator:
        return page.locator("#channel-table thead th", has=page.get_by_role("button", name=name))

    expect(head("separation")).to_have_attribute("aria-sort", "descending")
    for name, column in (("channel", 1), ("variance", 3), ("before", 4), ("after", 5)):
        head(name).get_by_role("button").click()
        up = name == "channel"
        expect(head(name)).to_have_attribute("aria-sort", "ascending" if up else "descending")
        found = [value for value in numbers(page, column) if value is not None]
        assert found == sorted(found, reverse=not up)
        head(name).get_by_role("button").click()
        found = [value for value in numbers(page, column) if value is not None]
        assert found == sorted(found, reverse=up)
    expect(page.locator("#channel-table [aria-sort]")).to_have_count(1)


def test_the_list_is_searched_by_number_concept_and_name(page: Page) -> None:
    search, status = page.get_by_label("Find channels"), page.locator("#channel-tools [role=status]")
    expect(status).to_have_text("24 of 24 channels")
    search.fill("17")
    assert numbers(page, 1) == [17]
    expect(status).to_have_text("1 of 24 channels")
    search.fill("concept 1")
    entries = data(page, ".channels")
    assert isinstance(entries, dict)
    having = {int(c) for c, entry in entries.items() if any(unit["concept"] == 1 for unit in entry["units"])}
    assert set(numbers(page, 1)) == having
    search.fill("NIGHT sky")
    assert set(numbers(page, 1)) == having
    search.fill("nothing of the kind")
    expect(status).to_have_text("0 of 24 channels")
    search.fill("17")
    search.press("Enter")
    expect(page.locator("#channel-view h3")).to_have_text("Channel 17")


def test_everything_goes_by_keyboard(page: Page) -> None:
    first = page.locator(".elude-map a").first
    first.focus()
    reached = {page.evaluate("document.activeElement.hash")}
    for key in ["ArrowRight"] * 4 + ["ArrowDown"] * 4 + ["ArrowLeft"] * 8 + ["ArrowUp"] * 8:
        page.keyboard.press(key)
        reached.add(page.evaluate("document.activeElement.hash"))
    assert len(reached) >= 4
    at = page.evaluate("document.activeElement.hash")
    expect(page.locator(".peek a").first).to_have_attribute("href", at)
    assert page.locator(".elude-map a[tabindex='0']").count() == 1
    page.keyboard.press("Enter")
    expect(page.locator("#concept-view")).to_be_focused()
    page.keyboard.press("Tab")  # the choice of how activations are shown
    expect(page.locator("#concept-view select.way")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # Close
    expect(page.locator("#concept-view")).to_be_hidden()
    expect(page.locator(f".elude-map a[href='{at}']")).to_be_focused()
    page.locator("#channel-table thead button").first.focus()
    page.keyboard.press("Enter")
    assert numbers(page, 1) == [float(i) for i in range(24)]
    page.locator("#channel-table tbody a").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#channel-view h3")).to_have_text("Channel 0")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # Next
    expect(page.locator("#channel-view h3")).to_have_text("Channel 1")


def test_the_map_is_zoomed_and_dragged_and_a_drag_opens_nothing(page: Page) -> None:
    def width() -> float:
        boxes = [node.bounding_box() for node in page.locator(".elude-map a").all()]
        lefts = [box["x"] for box in boxes if box]
        return max(lefts) - min(lefts)

    whole = width()
    page.get_by_role("button", name="Zoom in").click()
    assert 1.3 * whole < width() <= 1.51 * whole
    first = page.locator(".elude-map a").first
    page.get_by_role("button", name="Show the whole map").click()
    assert width() == pytest.approx(whole, rel=0.02)
    first.focus()
    for _ in range(3):
        page.keyboard.press("+")
    expect(first).to_be_in_viewport()
    before = first.bounding_box()
    area = page.locator(".elude-map").bounding_box()
    assert before
    assert area
    x, y = before["x"] + before["width"] / 2, before["y"] + before["height"] / 2
    dx = -60 if x < area["x"] + area["width"] / 2 else 60  # the map ends at its edges
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + dx, y, steps=4)
    page.mouse.up()
    after = first.bounding_box()
    assert after
    assert after["x"] != before["x"]
    assert "#concept" not in page.url
    expect(page.locator("#concept-view")).to_be_hidden()
    page.mouse.move(area["x"] + 100, area["y"] + 100)
    page.keyboard.down("Control")
    page.mouse.wheel(0, 2000)
    page.keyboard.up("Control")
    assert width() == pytest.approx(whole, rel=0.02)


def test_a_phone_needs_no_sideways_scrolling_and_is_dark(phone: Page) -> None:
    phone.get_by_label("concept 1: night sky").first.tap()
    expect(phone.locator("#concept-view h3")).to_be_visible()
    phone.locator("#channel-table tbody a").first.tap()
    expect(phone.locator("#channel-view h3")).to_be_visible()
    assert phone.evaluate("document.documentElement.scrollWidth") == 400
    assert phone.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(17, 17, 17)"


def test_without_a_script_the_tables_charts_and_images_are_there(scriptless: Page) -> None:
    expect(scriptless.locator("noscript p")).to_contain_text("Without JavaScript")
    expect(scriptless.locator("#channel-table tbody tr")).to_have_count(24)
    expect(scriptless.locator(".images img")).to_have_count(20)
    assert scriptless.locator("svg.chart").count() >= 4
    scriptless.get_by_text("concepts as a list").click()
    expect(scriptless.get_by_text("concept 1: night sky")).to_be_visible()
    scriptless.get_by_text("Words of this page").click()
    expect(scriptless.get_by_text(GLOSSARY["specificity"])).to_be_visible()
    expect(scriptless.locator("#channel-tools")).to_be_hidden()


def test_all_that_can_be_reached_says_what_it_is(linked: Page) -> None:
    nameless = linked.evaluate(
        "[...document.querySelectorAll('a, button, input, img, [role=img], [role=region]')].filter(e => !("
        "e.getAttribute('aria-label') || e.alt || e.textContent.trim() || e.labels?.length"
        " || e.querySelector('[aria-label]'))).map(e => e.outerHTML.slice(0, 80))"
    )
    assert nameless == []
    ids = linked.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))


def test_it_prints_with_what_is_open(linked: Page) -> None:
    linked.emulate_media(media="print")
    expect(linked.locator("#channel-view .row").first).to_be_visible()
    expect(linked.locator("#channel-tools")).to_be_hidden()
    assert len(linked.pdf()) > 10_000


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(linked: Page, scheme: Literal["light", "dark"]) -> None:
    """It is run with a channel open."""
    linked.emulate_media(color_scheme=scheme)
    found = serious(linked)
    linked.emulate_media(color_scheme=None)
    assert found == []
