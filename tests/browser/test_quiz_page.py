"""The page on which a class answers, on a phone in a real browser, and the board that counts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from elude_nb.interpret.gallery import Gallery
from elude_nb.interpret.quiz import KINDS, SUB_UNIT
from elude_nb.widgets.quiz_board import QuizBoard
from tests.browser.accessibility import serious

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def board(split, images) -> Iterator[QuizBoard]:
    board = QuizBoard(Gallery(split, images).fill(progress=False), per_kind=3, size=4, port=0)
    yield board
    board.close()


def play(page: Any, board: QuizBoard, name: str, *, well: set[str]) -> None:
    page.goto(board.address)
    page.fill("#player", name)
    choices = page.locator("#choices button")
    choices.first.click()  # to practise
    for question in board.questions:
        page.click("#next")
        odd = question.trial.intruder
        choices.nth(odd if question.kind in well else (odd + 1) % 4).click()
        page.locator("#choices .odd").wait_for()
        assert page.locator("#choices .odd img").get_attribute("alt") == f"image {odd + 1}"
    page.click("#next")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_answers_and_the_board_counts(page, board, scheme) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    page.emulate_media(color_scheme=scheme)
    page.goto(board.address)
    assert page.locator("#choices img").count() == 4
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert serious(page) == []
    play(page, board, scheme, well={SUB_UNIT})
    assert "whole channels: 0 of 3; sub-units: 3 of 3" in page.inner_text("#said")
    page.reload()  # what was answered is not asked again
    assert page.locator("#choices button").count() == 0
    board.update()
    assert board.result is not None
    assert [board.result.shares[kind].mean for kind in KINDS] == [0.0, 1.0]
    assert set(board.results["player"]) >= {scheme}
    page.set_content(f"<html lang='en'><title>x</title><main>{board._address.value}{board.static_html()}</main>")
    assert serious(page) == []


def test_the_page_says_when_the_server_is_gone(page, split, images) -> None:
    board = QuizBoard(Gallery(split, images).fill(progress=False), per_kind=2, size=4, port=0)
    page.goto(board.address)
    board.close()
    page.locator("#choices button").first.click()
    page.get_by_text("The answer did not arrive").wait_for()
    assert page.locator("#choices button").first.is_enabled()
