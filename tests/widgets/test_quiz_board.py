"""A class answers on a page; the board counts what it said, and nothing else gets in."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from elude_nb.interpret.gallery import Gallery
from elude_nb.interpret.quiz import CHANNEL, KINDS, class_result, make_questions
from elude_nb.widgets.quiz_board import QuizBoard
from tests.markup import Page


@pytest.fixture(scope="module")
def gallery(split, images) -> Gallery:
    return Gallery(split, images).fill(progress=False)


@pytest.fixture
def board(gallery):
    board = QuizBoard(gallery, per_kind=3, size=4, port=0)
    yield board
    board.close()


def send(board: QuizBoard, said: Any, *, kind: str = "application/json", path: str = "/answer") -> dict[str, Any]:
    body = said if isinstance(said, bytes) else json.dumps(said).encode()
    request = urllib.request.Request(board.address + path, body, {"Content-Type": kind})
    with urllib.request.urlopen(request, timeout=10) as reply:
        found: dict[str, Any] = json.load(reply)
        return found


def said(
    question: int, answer: int, who: str = "12345678", player: str = "Ada", seconds: float = 2.0
) -> dict[str, Any]:
    return {"who": who, "player": player, "question": question, "answer": answer, "seconds": 2.0}


def test_the_page_holds_the_pictures_and_no_answers(board, gallery) -> None:
    with urllib.request.urlopen(board.address, timeout=10) as reply:
        page, policy = reply.read().decode(), reply.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    assert [len(pictures) for pictures in data["questions"]] == [4] * 7  # one to practise
    assert "intruder" not in json.dumps(data)
    assert board.questions == make_questions(gallery, per_kind=3, size=4)
    assert "http" not in page.replace(board.address, "")


def test_answers_are_counted_once_and_shown(board) -> None:
    first = board.questions[0].trial.intruder
    reply = send(board, said(1, first))
    assert (reply["right"], reply["intruder"], reply["kind"]) == (True, first, board.questions[0].kind)
    assert send(board, said(1, (first + 1) % 4))["answer"] == first  # the first answer counts
    assert send(board, said(0, 0))["intruder"] in range(4)  # to practise: not counted
    wrong = (board.questions[1].trial.intruder + 1) % 4
    assert send(board, said(2, wrong, who="87654321", player=" Ada "))["right"] is False
    table = board.results
    assert table["player"].tolist() == ["Ada", "Ada (2)"]  # two browsers are two people
    assert table["question"].tolist() == [1, 2]
    assert table["right"].tolist() == [True, False]
    assert table["crop"].tolist() == [0.45, 0.45]
    board.update()
    assert board.result == class_result(table)
    assert "2 players, 2 answers of 12" in board.message
    assert "100% of 1 right" in board._by_question.value
    assert len(Page(board.static_html()).find("img")) == 8


@pytest.mark.parametrize(
    ("wrong", "settings"),
    [
        (b"[1, 2", {}),
        (said(1, 4), {}),
        (said(9, 0), {}),
        (said(1, 0, who="short"), {}),
        ({**said(1, 0), "player": 7}, {}),
        ({**said(1, 0), "seconds": "inf"}, {}),
        ({"who": "12345678"}, {}),
        (b"x" * 3000, {}),
        (said(1, 0), {"kind": "text/plain"}),
        (said(1, 0), {"path": "/results"}),
    ],
)
def test_what_is_no_answer_is_refused(board, wrong, settings) -> None:
    with pytest.raises(urllib.error.HTTPError, match="400"):
        send(board, wrong, **settings)
    assert not len(board.results)


def test_nothing_else_is_served(board) -> None:
    for path in ("/../pyproject.toml", "/etc/passwd", "/answer"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(board.address + path, timeout=10)


def test_names_are_read_as_text(board) -> None:
    send(board, said(1, 0, player="<script>alert(1)</script>\n" + "x" * 99))
    board.update()
    assert board.results["player"][0].startswith("<script>")
    assert len(board.results["player"][0]) == 40
    assert not Page(board.static_html()).find("script")


def test_a_closed_page_keeps_its_answers(gallery, tmp_path: Path) -> None:
    board = QuizBoard(gallery, per_kind=2, size=4, port=0)
    address = board.address
    send(board, said(1, 0))
    board._stop.click()
    assert (board.address, len(board.results), board._stop.disabled) == ("", 1, True)
    assert "The page is closed" in board._address.value
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(address, timeout=10)
    board._path.value = str(tmp_path / "class.csv")
    board._save.click()
    assert pd.read_csv(tmp_path / "class.csv")["player"].tolist() == ["Ada"]


def test_a_port_that_is_taken_is_said(board, gallery) -> None:
    port = int(board.address.rpartition(":")[2])
    with pytest.raises(OSError, match=f"127.0.0.1:{port}.*choose another port"):
        QuizBoard(gallery, per_kind=2, size=4, port=port)


def test_in_a_kernel_the_board_follows_by_itself(split, images) -> None:
    async def play() -> None:
        board = QuizBoard(split, images, per_kind=3, size=4, port=0)
        assert (board.address, "opens when all are ready" in board.message) == ("", True)
        while not board.address:
            await asyncio.sleep(0.02)
        for number, question in enumerate(board.questions, start=1):
            right = question.trial.intruder if question.kind != CHANNEL else (question.trial.intruder + 1) % 4
            await asyncio.to_thread(send, board, said(number, right))
        for _ in range(100):
            if board.result is not None and board.result.answers == 6:
                break
            await asyncio.sleep(0.05)
        assert board.result is not None
        assert [board.result.shares[kind].mean for kind in KINDS] == [0.0, 1.0]
        assert "more often for sub-units" in board._result.value
        board.close()

    asyncio.run(asyncio.wait_for(play(), 30))
