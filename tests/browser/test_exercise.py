"""A student's afternoon: an exercise in JupyterLab is answered wrongly, then rightly, and its check says so."""

from __future__ import annotations

import nbformat
import pytest

from elude_nb.course import clear_solutions, find_exercises
from tests.browser.servers import jupyterlab
from tests.browser.test_together import open_notebook

pytestmark = pytest.mark.browser

GIVEN = "import torch\nfrom elude_nb import course\nW, q, channel = torch.randn(5, 30), torch.randn(4, 30), 2"


@pytest.fixture
def exercise(tmp_path):
    """The second part of the first exercise, on numbers drawn at random in place of a model's."""
    notebook = clear_solutions(nbformat.read(find_exercises()[0], as_version=4))
    part = [cell for cell in notebook.cells if cell.id.startswith("contributions")]
    place = notebook.cells.index(part[0])
    notebook.cells = [nbformat.v4.new_code_cell(GIVEN), notebook.cells[place - 1], *part]
    nbformat.write(notebook, tmp_path / "exercise.ipynb")
    with jupyterlab(tmp_path) as address:
        yield f"{address}/lab/tree/exercise.ipynb"


def run(page, number: int, source: str | None = None):
    """Write a cell anew, or leave it, and run it; return it when it has run."""
    cell = page.locator(".jp-CodeCell").nth(number)
    cell.locator(".cm-content").click()
    if source is not None:
        page.keyboard.press("Control+a")
        page.keyboard.insert_text(source)
    before = cell.locator(".jp-InputPrompt").inner_text()
    page.keyboard.press("Control+Enter")
    page.wait_for_function(
        "([cell, before]) => /\\d/.test(cell.textContent) && cell.textContent.trim() !== before.trim()",
        arg=[cell.locator(".jp-InputPrompt").element_handle(), before],
    )
    return cell


def test_an_exercise_is_answered_wrongly_and_then_rightly(page, exercise) -> None:
    open_notebook(page, exercise)
    hint = page.locator(".jp-MarkdownCell details")
    assert not hint.locator("p").is_visible()
    hint.locator("summary").click()
    assert "one row of" in hint.locator("p").inner_text()
    run(page, 0)
    run(page, 1)
    check = run(page, 2)
    assert "There is no answer yet" in check.locator(".jp-OutputArea").inner_text()
    run(page, 1, "c = W[channel] @ q[0]")
    check = run(page, 2)
    said = check.locator(".jp-OutputArea").inner_text()
    assert "Not yet. That is already their sum" in said
    assert "Traceback" not in said
    run(page, 1, "c = W[channel] * q[0]")
    green = run(page, 2).locator(".elude-look")
    green.wait_for()
    assert green.inner_text() == "✓ Right. 30 contributions, one for each source; some are positive and some negative."
    assert green.evaluate("e => getComputedStyle(e).borderLeftColor") == "rgb(0, 105, 76)"
