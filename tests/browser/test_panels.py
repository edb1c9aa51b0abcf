"""The app of notebook 07 in a real JupyterLab and under voila: run it, use every panel, reload, use it again."""

from __future__ import annotations

import base64
import io
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.browser.servers import jupyterlab, voila

pytestmark = pytest.mark.browser
NOTEBOOK = Path(__file__).parent.parent.parent / "notebooks" / "07_explorer.ipynb"
START = 300_000  # milliseconds: a model is loaded and disentangled
SMALL = {"image_count": 48, "concepts": 16}


def small_copy(folder: Path) -> Path:
    """Copy the notebook with fewer images; its other cells are as they are."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cell = next(cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", []))
    source = "".join(cell["source"])
    for name, value in SMALL.items():
        source, found = re.subn(rf"(?m)^{name} = \d+", f"{name} = {value}", source)
        assert found == 1
    cell["source"] = source
    path = folder / NOTEBOOK.name
    path.write_text(json.dumps(notebook), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("lab")
    small_copy(folder)
    with jupyterlab(folder) as address:
        yield f"{address}/lab/tree/{NOTEBOOK.name}"


@pytest.fixture(scope="module")
def classroom(tmp_path_factory) -> Iterator[str]:
    with voila(small_copy(tmp_path_factory.mktemp("voila"))) as address:
        yield address


def until_it_changes(read: Any, before: Any, seconds: float = 30) -> Any:
    """Return what ``read()`` gives once it is no longer ``before``."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = read()
        if found != before:
            return found
        time.sleep(0.05)
    raise AssertionError(f"It still is {str(before)[:300]!r} after {seconds} s.")


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait until a condition holds."""
    until_it_changes(lambda: bool(condition()), before=False, seconds=seconds)


def run_all(page: Any) -> None:
    """Run all cells; what is asked for before the kernel has started is lost or answered by a dialog, so ask again."""
    from playwright.sync_api import TimeoutError as TooLate

    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
    prompt = page.locator(".jp-CodeCell .jp-InputPrompt").first
    seen: list[str] = []
    for _ in range(20):
        for dialog in page.locator(".jp-Dialog").all():
            seen.append(dialog.inner_text())
            dialog.locator("button.jp-mod-accept").click()
        try:
            page.get_by_role("menuitem", name="Run", exact=True).click(timeout=10_000)
            page.get_by_text("Run All Cells", exact=True).first.click(timeout=10_000)
        except TooLate:  # a dialog has come meanwhile
            continue
        page.wait_for_timeout(3000)
        if prompt.inner_text().strip() != "[ ]:":
            return
    raise AssertionError(f"The cells do not run; dialogs said {seen}.")


def open_tab(page: Any, title: str) -> None:
    page.get_by_role("tab", name=title, exact=True).click()


def slide(page: Any, handle: Any, key: str = "ArrowRight", times: int = 1) -> None:
    handle.focus()
    for _ in range(times):
        page.keyboard.press(key)


def watch_the_clock(page: Any) -> None:
    """Note when the import is done, which takes what torch takes, and when there is something to see."""
    page.evaluate(
        """() => {
            window.seen = {};
            setInterval(() => {
                for (const cell of document.querySelectorAll('.jp-CodeCell'))
                    if (cell.innerText.includes('import Workbench') && /\\d/.test(cell.innerText.split(':')[0]))
                        seen.imported ??= Date.now();
                if (document.querySelector('.elude-finished .elude-example img')?.complete) seen.example ??= Date.now();
            }, 50);
        }"""
    )


def see_the_example(page: Any) -> None:
    """See something at once after running the cell: `benchmarks/panel_speed.py` prints how soon."""
    page.locator(".elude-finished .elude-example img").first.wait_for(timeout=START)
    assert "Yours is being made" in page.locator(".elude-finished .elude-example").inner_text()
    assert page.locator(".elude-finished .elude-example img:not([alt])").count() == 0
    assert page.locator(".elude-disentangle").inner_text() == "stop"
    until(lambda: page.evaluate("'example' in seen"))
    assert page.evaluate("seen.example >= seen.imported")


def use_channels(page: Any) -> None:
    page.wait_for_selector(".elude-channel table", timeout=START)
    shown = page.locator(".elude-channel h4")
    before = shown.inner_text()
    slide(page, page.locator(".elude-place [role=slider]").first)
    after = until_it_changes(shown.inner_text, before)
    assert after.startswith("Channel ")
    assert page.locator(".elude-channel img").count() >= 12
    assert page.locator(".elude-channel img:not([alt])").count() == 0
    units = page.locator(".elude-units tbody tr")
    until(lambda: units.count() > 3)
    page.get_by_text("Split this channel otherwise").first.click()
    slide(page, page.locator(".elude-k [role=slider]").first, "Home")  # K = 2, and unit 0
    until(lambda: units.count() <= 3)
    page.locator(".elude-search input").first.fill("999999")
    page.keyboard.press("Enter")
    page.get_by_text("There is no channel 999999").wait_for(timeout=20_000)


def use_concepts(page: Any) -> None:
    """Choose on the map by pointer, by keyboard and with a lasso; name a concept."""
    open_tab(page, "Concepts")
    page.wait_for_selector(".elude-concepts img", timeout=60_000)
    nodes, heads = page.locator(".elude-map-node"), page.locator(".elude-concepts h4")
    nodes.first.wait_for(timeout=60_000)
    assert page.locator(".elude-map-node:not([aria-label])").count() == 0
    count = nodes.count()
    for number in (count // 2, 1):  # one of them was not chosen before
        nodes.nth(number).click()
        page.locator(f".elude-map-node:nth-child({number + 1})[aria-pressed=true]").wait_for(timeout=30_000)
    name = str(nodes.nth(1).get_attribute("aria-label")).partition(";")[0]
    until(lambda: heads.all_inner_texts() == [name])
    nodes.nth(1).press("ArrowRight")
    if nodes.nth(1).evaluate("node => node === document.activeElement"):  # nothing lies there
        page.keyboard.press("ArrowLeft")
    page.keyboard.press("Space")
    until(lambda: heads.count() == 2)
    area = page.locator(".elude-map").bounding_box()
    assert area is not None
    page.keyboard.down("Shift")
    page.mouse.move(area["x"] + 2, area["y"] + 2)
    page.mouse.down()
    for x, y in ((1, 0), (1, 1), (0, 1)):
        page.mouse.move(area["x"] + 2 + x * (area["width"] - 4), area["y"] + 2 + y * (area["height"] - 4), steps=4)
    page.mouse.up()
    page.keyboard.up("Shift")
    until(lambda: page.locator(".elude-map-node.chosen").count() == count)
    nodes.nth(0).click()
    until(lambda: heads.count() == 1)
    meaning = f"meaning {time.monotonic():.0f}"
    page.locator(".elude-name input").first.fill(meaning)
    page.keyboard.press("Tab")
    page.locator(".elude-rename").first.click()
    page.get_by_text(f"is called '{meaning}' now").wait_for(timeout=20_000)
    until(lambda: page.locator(".elude-map-name").all_inner_texts().count(meaning) == 1)
    nodes.nth(2).click()
    until(lambda: meaning not in heads.all_inner_texts()[0])
    page.locator(".elude-name input").first.fill(meaning)  # a name that is taken
    page.keyboard.press("Tab")
    page.locator(".elude-rename").first.click()
    page.get_by_text("would all be called").wait_for(timeout=20_000)
    page.locator(".elude-path input").first.fill("/no such folder/named.safetensors")
    page.keyboard.press("Tab")
    page.locator(".elude-save").first.click()
    page.get_by_text("no such folder").last.wait_for(timeout=20_000)


def use_image(page: Any, folder: Path) -> None:
    open_tab(page, "Image")
    picker = page.locator(".elude-picker")
    picker.wait_for(timeout=60_000)
    lines = page.locator(".elude-contributors select")
    before = lines.inner_text()
    box = picker.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + 0.2 * box["width"], box["y"] + 0.8 * box["height"])
    before = until_it_changes(lines.inner_text, before)
    assert "deviations" in before
    picker.focus()
    page.keyboard.press("ArrowUp")
    until_it_changes(lines.inner_text, before)
    source = picker.locator("img").get_attribute("src")
    own, large, letter = folder / "own.png", folder / "large.bmp", folder / "letter.txt"
    Image.radial_gradient("L").convert("RGB").save(own)
    Image.linear_gradient("L").convert("RGB").resize((2200, 2200)).save(large)  # above Jupyter's 10 MiB a message
    letter.write_text("hello")
    upload(page, own)
    until_it_changes(lambda: picker.locator("img").get_attribute("src"), source)
    assert "own.png" in (picker.locator("img").get_attribute("alt") or "")
    upload(page, letter, large)
    page.get_by_text("'letter.txt' is not an image").wait_for(timeout=20_000)
    assert "large.bmp" in (picker.locator("img").get_attribute("alt") or "")


def upload(page: Any, *files: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.locator(".elude-upload button").first.click()
    chooser.value.set_files([str(file) for file in files])


def drop_an_image(page: Any) -> None:
    """Drop a small picture onto the image, as from the desktop, and then something that is no picture."""
    drop = """([kind, name]) => {
        const data = new DataTransfer();
        const bytes = Uint8Array.from(atob(kind), (letter) => letter.charCodeAt(0));
        data.items.add(new File([bytes], name));
        document.querySelector('.elude-picker')
            .dispatchEvent(new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true}));
    }"""
    buffer = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(buffer, "PNG")
    picture = page.locator(".elude-picker img")
    page.evaluate(drop, [base64.b64encode(buffer.getvalue()).decode(), "dropped.png"])
    until(lambda: "dropped.png" in (picture.get_attribute("alt") or ""))
    page.evaluate(drop, [base64.b64encode(b"hello").decode(), "letter.txt"])
    page.get_by_text("'letter.txt' is not an image").wait_for(timeout=20_000)
    assert "dropped.png" in (picture.get_attribute("alt") or "")


def use_steering(page: Any) -> None:
    open_tab(page, "Steering")
    page.locator(".elude-add").wait_for(timeout=60_000)
    if not page.locator(".elude-strength [role=slider]").count():
        page.locator(".elude-add").click()
    handle = page.locator(".elude-strength [role=slider]").first
    handle.wait_for(timeout=30_000)
    after = page.locator(".elude-neighbours")
    before = after.inner_html()
    slide(page, handle, "Home")  # fade it wholly
    code = page.locator(".elude-code textarea:visible")
    until(lambda: "Edit.scale(" in code.input_value())
    until_it_changes(after.inner_html, before)
    shown = page.locator(".elude-own")
    assert shown.locator("img").count() == 4  # the image, where it changed, its patches before and after
    assert "up to 0.00" not in (shown.locator("img").nth(1).get_attribute("alt") or "")
    thumbnail = page.locator(".elude-thumbnails button:not([aria-pressed=true])").first
    named = str(thumbnail.get_attribute("aria-label"))
    thumbnail.click()
    until(lambda: shown.locator("img").first.get_attribute("alt") == named)
    page.locator(".elude-reset:visible").last.click()
    until(lambda: "Edit.scale(" not in code.input_value())


def use_quiz(page: Any) -> None:
    open_tab(page, "Intruder quiz")
    answer = page.locator(".elude-answer-1:visible").first
    answer.wait_for(timeout=60_000)
    if not answer.is_enabled():  # answered already, before the page was loaded anew
        page.locator(".elude-next:visible").first.click()
        until(answer.is_enabled)
    if page.locator(".elude-question:visible").inner_text().startswith("To practise"):  # not counted
        answer.click()
        page.locator(".elude-next:visible").first.click()
        until(answer.is_enabled)
    score = page.locator(".elude-score")
    before = score.inner_text()
    answer.click()
    until_it_changes(score.inner_text, before)


@pytest.mark.slow
def test_every_panel_in_jupyterlab_and_once_more_after_a_reload(page, lab, tmp_path) -> None:
    page.goto(lab, timeout=120_000)
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
    watch_the_clock(page)
    run_all(page)
    see_the_example(page)
    use_channels(page)
    assert page.locator(".elude-finished .elude-example").count() == 0
    use_concepts(page)
    use_image(page, tmp_path)
    drop_an_image(page)
    use_steering(page)
    use_quiz(page)
    page.keyboard.press("Control+s")  # a reload shows what was saved
    page.wait_for_timeout(2000)
    page.reload(timeout=120_000)
    open_tab(page, "Channels")
    shown = page.locator(".elude-channel h4")
    shown.wait_for(timeout=60_000)
    before = shown.inner_text()
    slide(page, page.locator(".elude-place [role=slider]").first, times=3)
    until_it_changes(shown.inner_text, before)
    use_concepts(page)
    use_steering(page)
    use_quiz(page)


def steering_fits(page: Any) -> None:
    """Sliders, their effect and doses are on one screen; on a narrow page nothing is cut off."""
    page.locator(".elude-doses svg").first.wait_for(timeout=90_000)  # measured between moves
    before = page.viewport_size
    page.set_viewport_size({"width": 1400, "height": 900})
    for name in ("strengths", "own", "probabilities", "beside", "neighbours", "doses"):
        box = page.locator(f".elude-{name}:visible").bounding_box()
        top = page.locator(".elude-strengths:visible").bounding_box()["y"]
        assert box["y"] + box["height"] - top < 700, name  # above it are the tabs
    page.set_viewport_size({"width": 400, "height": 900})
    for handle in page.locator(".elude-strength [role=slider]:visible").all():
        assert handle.bounding_box()["width"] > 200
        assert handle.get_attribute("aria-label")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    page.set_viewport_size(before)


def test_the_classroom_under_voila(page, classroom) -> None:
    page.goto(classroom, timeout=START)
    page.locator(".elude-finished .elude-example img").first.wait_for()
    use_channels(page)
    use_concepts(page)
    use_steering(page)
    steering_fits(page)
    use_quiz(page)
