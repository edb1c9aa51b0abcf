"""What a lecturer opens and shows: the index, the sheet, and slide after slide."""

from __future__ import annotations

import pytest

from elude_nb.app.class_files import write_class
from tests.browser.accessibility import serious

pytestmark = pytest.mark.browser


def test_pages_of_a_course_read_well(page, tmp_path) -> None:
    write_class(tmp_path, report=False)
    for name in ("index", "sheet"):
        page.goto((tmp_path / f"{name}.html").as_uri())
        assert page.get_by_role("main").count() == 1
        assert serious(page) == []
    page.goto((tmp_path / "slides.html").as_uri())
    page.keyboard.press("n")  # with notes
    count = page.locator("section.slide").count()
    for number in range(1, count + 1):
        assert page.evaluate("location.hash") == f"#{number}"
        assert serious(page) == []
        page.keyboard.press("ArrowRight")
    assert page.evaluate("location.hash") == f"#{count}"
