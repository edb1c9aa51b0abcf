"""The chat judge against a local server that plays the OpenAI protocol: what it is asked, and how it can fail."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from elude_nb.errors import EludeError, JudgeError
from elude_nb.scores import ChatJudge, ChatServer, best_images, judge_pairs, win_rates
from elude_nb.scores.chat import PREFER, make_grid, read_choice
from tests.scores.test_judges import coloured, opened

LEFT, RIGHT = '{"choice": "left"}', '{"choice": "right"}'


class Server(ThreadingHTTPServer):
    """Answers each question by `reply`: a text, or (status, body), or what a function of the question returns."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies: list[Any] = []
        self.always: Any = LEFT
        self.seen: list[tuple[str, dict[str, str], Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, dict(self.headers), question))
        reply = self.server.replies.pop(0) if self.server.replies else self.server.always
        reply = reply(question) if callable(reply) else reply
        if isinstance(reply, str):
            reply = 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": reply}}]})
        status, body = reply
        self.send_response(status)
        if status in {301, 302, 307}:
            self.send_header("Location", body)
        self.send_header("Content-Length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *args: Any) -> None:
        """Print nothing."""


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    found = Server()
    thread = threading.Thread(target=found.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield found
    found.shutdown()
    found.server_close()
    thread.join()


def client(server: Server, **more: Any) -> ChatServer:
    return ChatServer(server.url, wait=0.0, **more)


SETS = [Image.new("RGB", (30, 20), "red")] * 9, [Image.new("RGB", (8, 8), "blue")] * 9


def test_two_pictures_go_out_in_one_question_and_a_choice_comes_back(server) -> None:
    judge = ChatJudge(server.url, "a-model", cell=12)
    assert judge.prefer(*SETS) == "left"
    (path, headers, question) = server.seen[0]
    assert path == "/v1/chat/completions"
    assert headers["Content-Type"] == "application/json"
    assert "Authorization" not in headers
    assert question["model"] == "a-model"
    (message,) = question["messages"]
    words, *pictures = message["content"]
    assert words == {"type": "text", "text": PREFER}
    found = [opened(part) for part in pictures]
    assert [picture.size for picture in found] == [(36, 36)] * 2
    assert [picture.getpixel((18, 18)) for picture in found] == [(255, 0, 0), (0, 0, 255)]


def test_addresses_with_and_without_the_version_are_the_same(server) -> None:
    for end in ("", "/", "/v1", "/v1/"):
        assert ChatJudge(server.url + end, "m").prefer(*SETS) == "left"
    assert {path for path, _, _ in server.seen} == {"/v1/chat/completions"}


def test_the_key_comes_from_the_environment_and_is_in_no_error(server, monkeypatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret-1234")
    judge = ChatJudge(client(server, key_variable="MY_KEY"), "m")
    judge.prefer(*SETS)
    assert server.seen[0][1]["Authorization"] == "Bearer secret-1234"
    server.replies = [(401, '{"error": "wrong key"}')]
    with pytest.raises(JudgeError, match=r"refused: HTTP 401.*wrong key.*\$MY_KEY") as found:
        judge.prefer(*SETS)
    assert "secret" not in str(found.value)
    assert issubclass(JudgeError, EludeError)
    assert "secret" not in repr(judge)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(server, status) -> None:
    server.replies = [(status, "later"), (status, "later"), RIGHT]
    assert ChatJudge(client(server), "m").prefer(*SETS) == "right"
    assert len(server.seen) == 3
    server.replies = [(status, "later")] * 2
    with pytest.raises(JudgeError, match=rf"2 attempts \(HTTP {status} .*later\)"):
        ChatJudge(client(server, retries=1), "m").prefer(*SETS)


def test_what_will_not_get_better_is_an_error_at_once(server) -> None:
    server.replies = [(404, "no such model")]
    with pytest.raises(JudgeError, match=r"HTTP 404 .*no such model"):
        ChatJudge(client(server), "m").prefer(*SETS)
    for body in ("no json", "[]", '{"choices": [{}]}', '{"choices": 3}'):
        server.replies = [(200, body)]
        with pytest.raises(JudgeError, match="no chat completion"):
            ChatJudge(client(server), "m").prefer(*SETS)
    server.replies = [(200, '{"choices": []}')]
    with pytest.raises(ValueError, match="empty answer"):
        ChatJudge(client(server), "m").prefer(*SETS)
    assert len(server.seen) == 6


def test_the_key_does_not_follow_a_redirect(server, monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    for status in (301, 302, 307):
        server.replies = [(status, f"{server.url}/elsewhere")]
        with pytest.raises(JudgeError, match=f"HTTP {status}"):
            ChatJudge(client(server), "m").prefer(*SETS)
    assert {path for path, _, _ in server.seen} == {"/v1/chat/completions"}


def test_a_server_that_is_not_there_or_does_not_answer(server) -> None:
    gone = threading.Event()

    def silent(question: Any) -> str:
        gone.wait(5)
        return LEFT

    server.always = silent
    with pytest.raises(JudgeError, match=r"2 attempts .*timed out.*timeout=0\.1 s"):
        ChatJudge(client(server, timeout=0.1, retries=1), "m").prefer(*SETS)
    gone.set()
    with pytest.raises(JudgeError, match=r"1 attempts .*refused"):
        ChatJudge(ChatServer("http://127.0.0.1:9", retries=0), "m").prefer(*SETS)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (LEFT, "left"),
        (RIGHT, "right"),
        ('  {"choice":\n"right"} ', "right"),
        (f"```json\n{LEFT}\n```", "left"),
        (f"```\n{RIGHT}\n```", "right"),
        ("left", None),
        ('"left"', None),
        ("I prefer the left picture.", None),
        (f"My answer: {LEFT}", None),
        ('{"choice": "Left"}', None),
        ('{"choice": "both"}', None),
        ('{"choice": ["left"]}', None),
        ('{"choice": "left", "why": "dogs"}', None),
        ('{"choice": null}', None),
        ('[{"choice": "left"}]', None),
        ("{}", None),
        ("", None),
    ],
)
def test_answers_are_read_strictly(answer, expected) -> None:
    assert read_choice(answer) == expected


def test_thoughts_are_no_part_of_the_answer(server) -> None:
    server.always = f"<think>{LEFT} or not?</think>\n{RIGHT}"
    assert ChatJudge(server.url, "m").prefer(*SETS) == "right"


def test_a_model_that_sees_ranks_methods(server) -> None:
    """The server looks at the two pictures and prefers the one with fewer colours; now and then it babbles."""
    count = 0

    def look(question: Any) -> str:
        nonlocal count
        count += 1
        _, *pictures = question["messages"][0]["content"]
        spread = [np.asarray(opened(part)).astype(float).std((0, 1)).sum() for part in pictures]
        return "They are nice." if count % 7 == 0 else LEFT if spread[0] < spread[1] else RIGHT

    server.always = look
    images, activations = coloured(3, 12)
    mixed = torch.rand(36, 3, generator=torch.Generator().manual_seed(0))
    best = {"mixed": best_images(mixed, 9), "one colour": best_images(activations, 9)}
    asked = judge_pairs(best, images, ChatJudge(server.url, "m", cell=8), pairs=3, draws=3)
    found = win_rates(asked)
    assert found["win_rate"].to_dict() == {"one colour": 1.0, "mixed": 0.0}
    assert found["bad_answers"].tolist() == [2, 2]
    assert asked["bad_answers"].sum() == 2


def test_grids_are_square_and_in_order() -> None:
    shades = [Image.new("RGB", (10, 30), (20 * i, 0, 0)) for i in range(9)]
    grid = make_grid(shades, 4)
    assert grid.size == (12, 12)
    assert np.asarray(grid)[1::4, 1::4, 0].flatten().tolist() == [20 * i for i in range(9)]
    assert make_grid(shades[:2], 4).size == (8, 4)
    with pytest.raises(ValueError, match="number of images=0"):
        make_grid([])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ChatServer("localhost:8000"), "url='localhost:8000' must begin with http"),
        (lambda: ChatServer("file:///etc/passwd"), "must begin with http"),
        (lambda: ChatJudge("ftp://x", "m"), "must begin with http"),
        (lambda: ChatServer("http://x", retries=-1), "retries=-1"),
        (lambda: ChatServer("http://x", timeout=0), "timeout=0"),
        (lambda: ChatJudge(ChatServer("http://x"), "m", cell=0), "cell=0"),
    ],
)
def test_settings_out_of_range_are_refused(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()
