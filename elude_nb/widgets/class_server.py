"""A small web server for a class: it hands out a page with the questions of a quiz, and takes the answers."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

import pandas as pd

from elude_nb._util.checks import check_count
from elude_nb._util.words import one_line
from elude_nb.interpret.quiz import Question, as_row, as_table

MOST_PEOPLE = 500
_MOST_BYTES = 2000  # of an answer
_LONGEST_NAME = 40
# The page holds its script, style and pictures; it asks nobody but this server.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"


class ClassServer:
    """Serve one page, and take answers to its questions, until it is closed.

    It answers two requests only: the page, and one answer. Anyone who reaches the address can answer; nothing else on
    the computer can be reached through it. What is right is told only after an answer; the first answer to a question
    counts.

    Parameters
    ----------
    page
        The page, HTML.
    questions
        Those that are counted.
    practice
        One that is not: number 0.
    about
        Returns in words what a question was about.
    crop
        As in `Quiz.answer`.
    host, port
        Where it listens. ``"127.0.0.1"`` is reached from this computer only, ``"0.0.0.0"`` from the whole network;
        port 0 is any that is free.

    Raises
    ------
    OSError
        If the port is taken or the address is not of this computer.
    """

    def __init__(
        self,
        page: str,
        questions: Sequence[Question],
        practice: Question,
        *,
        about: Callable[[Question], str],
        crop: float | None,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self._questions, self._about, self._crop = (practice, *questions), about, crop
        self._rows: list[dict[str, object]] = []
        self._given: dict[tuple[str, int], int] = {}  # whose answer to which question
        self._names: dict[str, str] = {}
        self._lock = Lock()
        handler = type("Handler", (_Handler,), {"page": page.encode("utf-8"), "take": staticmethod(self._take)})
        try:
            self._server = ThreadingHTTPServer((host, check_count("port", port, 0, 65_535)), handler)
        except OSError as error:
            raise OSError(f"No page can be served at {host}:{port} ({error.strerror}); choose another port.") from error
        self._server.daemon_threads = True
        Thread(target=self._server.serve_forever, args=(0.2,), daemon=True, name="elude-class-server").start()
        self.address = f"http://{_address_of(host)}:{self._server.server_port}"

    @property
    def answers(self) -> pd.DataFrame:
        """One row an answer, as `elude_nb.interpret.quiz.Quiz.results` has them."""
        with self._lock:
            return as_table(self._rows)

    def close(self) -> None:
        """Stop serving; the answers are kept."""
        self._server.shutdown()
        self._server.server_close()

    def _take(self, said: Any) -> dict[str, object]:
        """Note an answer and return what was right; ``ValueError`` or ``TypeError`` if it is none."""
        who, name, seconds = said["who"], said["player"], float(said["seconds"])
        if not isinstance(who, str) or not 8 <= len(who) <= 64 or not isinstance(name, str):
            raise ValueError("who and player must be text")
        number = check_count("question", said["question"], 0, len(self._questions) - 1)
        question = self._questions[number]
        place = check_count("answer", said["answer"], 0, len(question.trial.images) - 1)
        if not 0 <= seconds < 1e6:
            raise ValueError(f"seconds={seconds}")
        with self._lock:
            if who not in self._names:
                if len(self._names) >= MOST_PEOPLE:
                    raise ValueError(f"{MOST_PEOPLE} people play already")
                self._names[who] = self._free_name(one_line(name).strip()[:_LONGEST_NAME])
            first = (who, number) not in self._given
            place = self._given.setdefault((who, number), place)
            if first and number:
                made = as_row(question, place, self._names[who], 1, number, crop=self._crop, seconds=seconds)
                self._rows.append(made)
        odd = question.trial.intruder
        return {"right": place == odd, "intruder": odd, "answer": place, "kind": question.kind,
                "about": self._about(question)}  # fmt: skip

    def _free_name(self, name: str) -> str:
        """Return a name that nobody else in the class has."""
        name, taken = name or "somebody", set(self._names.values())
        return next(one for one in (name, *(f"{name} ({i})" for i in range(2, MOST_PEOPLE + 2))) if one not in taken)


class _Handler(BaseHTTPRequestHandler):
    page: bytes
    take: Callable[[Any], dict[str, object]]
    timeout = 10  # seconds for which a browser may keep a connection without a word

    def do_GET(self) -> None:
        if self.path.partition("?")[0] == "/":
            self._reply(HTTPStatus.OK, self.page, "text/html; charset=utf-8")
        else:
            self._reply(HTTPStatus.NOT_FOUND, b"There is nothing here.")

    def do_POST(self) -> None:
        try:
            found = self.take(json.loads(self._read()))
        except (ValueError, TypeError, LookupError) as error:
            self._reply(HTTPStatus.BAD_REQUEST, str(error).encode("utf-8"))
        else:
            self._reply(HTTPStatus.OK, json.dumps(found).encode("utf-8"), "application/json")

    def _read(self) -> bytes:
        length = int(self.headers.get("Content-Length", "0"))
        # Pages of other sites cannot send this type without asking first, and are then refused.
        if self.path != "/answer" or self.headers.get_content_type() != "application/json":
            raise ValueError("This is no answer.")
        if not 0 <= length <= _MOST_BYTES:
            raise ValueError(f"{length} bytes are no answer.")
        return self.rfile.read(length)

    def _reply(self, status: HTTPStatus, content: bytes, kind: str = "text/plain; charset=utf-8") -> None:
        self.send_response(status)
        headers = {"Content-Type": kind, "Content-Length": str(len(content)), "Cache-Control": "no-store",
                   "Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"}  # fmt: skip
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as the base class calls it
        """Write nothing: a notebook is no log."""


def _address_of(host: str) -> str:
    """Return the address by which others reach a server on ``host``."""
    if host not in {"", "0.0.0.0"}:  # noqa: S104 - compared, not bound
        return host
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing; chooses the network card that leads outside
            return str(probe.getsockname()[0])
        except OSError:  # no network
            return socket.gethostname()
