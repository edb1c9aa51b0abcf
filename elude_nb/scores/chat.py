"""Chat models as judges: a client of OpenAI-compatible servers, what is asked, and how answers are read."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from PIL import Image, ImageOps

from elude_nb._util.checks import check_count, check_number
from elude_nb.data.arrays import as_rgb
from elude_nb.errors import JudgeError
from elude_nb.scores.judges import Choice

_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
"""Statuses after which a server may answer if it is asked again."""


@dataclass(frozen=True)
class ChatServer:
    """A client of a server with ``/v1/chat/completions`` as OpenAI's has (vLLM, llama.cpp, Ollama, ...).

    Nothing but the standard library is used, and redirects are not followed.

    Attributes
    ----------
    url
        The address, such as ``http://localhost:8000`` or ``https://api.openai.com/v1``; ``/v1`` is added if missing.
    key_variable
        The environment variable with the key, which is read at each question. Without it no key is sent.
    timeout
        Seconds to wait for an answer.
    retries
        How often to ask again, where the server is busy, fails or cannot be reached.
    wait
        Seconds before the first of these, doubled each time.

    Raises
    ------
    ValueError
        If the address is not one of http or https.
    """

    url: str
    key_variable: str = "OPENAI_API_KEY"
    timeout: float = 120.0
    retries: int = 3
    wait: float = 1.0

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url={self.url!r} must begin with http:// or https://, as in http://localhost:8000/v1.")
        check_count("retries", self.retries, 0)
        if check_number("timeout", self.timeout) <= 0 or check_number("wait", self.wait) < 0:
            raise ValueError(f"timeout={self.timeout} must be above 0, and wait={self.wait} not below.")

    @property
    def chat(self) -> SimpleNamespace:
        """Return what clients of OpenAI have: ``chat.completions.create``."""
        return SimpleNamespace(completions=SimpleNamespace(create=self.create))

    def create(self, *, model: str, messages: Sequence[Any]) -> SimpleNamespace:
        """Ask; return the answer as an object with ``choices[0].message.content``.

        Raises
        ------
        JudgeError
            If the server cannot be reached, refuses, or answers with something else. The key is never in the message.
        """
        data = json.dumps({"model": model, "messages": list(messages)}).encode()
        found = self._post(data)
        try:
            answer = json.loads(found)
            texts = [choice["message"]["content"] for choice in answer["choices"]]
        except (ValueError, KeyError, TypeError) as error:
            raise JudgeError(f"{self._address} answered {found[:200]!r}, which is no chat completion.") from error
        return SimpleNamespace(choices=[SimpleNamespace(message=SimpleNamespace(content=text)) for text in texts])

    @property
    def _address(self) -> str:
        base = self.url.rstrip("/")
        return f"{base if base.endswith('/v1') else base + '/v1'}/chat/completions"

    def _post(self, data: bytes) -> str:
        key = os.environ.get(self.key_variable)
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        request = urllib.request.Request(self._address, data, headers)  # noqa: S310 - http or https, checked above
        opener, why = urllib.request.build_opener(_NoRedirects), ""
        for attempt in range(self.retries + 1):
            time.sleep(self.wait * 2 ** (attempt - 1) if attempt else 0)
            try:
                with opener.open(request, timeout=self.timeout) as answer:
                    return str(answer.read().decode("utf-8", "replace"))
            except urllib.error.HTTPError as error:
                with error:
                    said = error.read(300).decode("utf-8", "replace").strip()
                why = f"HTTP {error.code} {error.reason}: {said}"
                if error.code not in _PASSING:
                    cure = f"; is the key in ${self.key_variable}?" if error.code in {401, 403} else ""
                    raise JudgeError(f"{self._address} refused: {why}{cure}") from None
            except OSError as error:  # no connection, or none in time
                why = str(getattr(error, "reason", error)) or type(error).__name__
        raise JudgeError(
            f"{self._address} did not answer in {self.retries + 1} attempts ({why}); is it running, and timeout="
            f"{self.timeout} s enough?"
        )


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Refuse to go elsewhere: the key is for the server that was named."""

    def redirect_request(self, *_: Any) -> None:
        return None


DESCRIBE = (
    "These images all make one unit of a vision model fire strongly. In one short phrase, what do they have in common "
    "that other photographs lack? Answer with the phrase only."
)
MATCH = (
    "How well does this description fit these images as a group?\nDescription: {description}\n"
    "Answer with one whole number from 0 (not at all) to 100 (perfectly) and nothing else."
)

PREFER = (
    "Two pictures follow; call the first one left and the second one right. Each shows a grid of photographs that make "
    "one unit of a vision network respond most. In which picture do the photographs have more in common: one subject, "
    "part, texture or scene that runs through all of them? Answer with JSON and nothing else, either "
    '{"choice": "left"} or {"choice": "right"}.'
)

_THOUGHTS = re.compile(r"<think>.*?</think>", re.DOTALL)  # some reasoning models leave it in the answer
_SCALE = re.compile(r"\b0\s*(?:\([^)]*\)\s*)?(?:to|and|-|\u2013)\s*100\b")
_SHARE = re.compile(r"(-?\d+(?:\.\d+)?)\s*(?:/|out of)\s*(100|10)\b")
_FENCE = re.compile(r"^```(?:json)?\s*(.*?)\s*```$", re.DOTALL)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@dataclass(frozen=True)
class ChatJudge:
    """A vision-language model behind a chat client, as a judge.

    Attributes
    ----------
    client
        An object with ``chat.completions.create(model=..., messages=...)``, as OpenAI's and compatible clients have; or
        the address of a server, which makes a `ChatServer`.
    model
        The model's name there; it must accept images.
    side
        Images are sent as PNG, with at most so many pixels a side.
    cell
        Pixels a side of each image in the two pictures of `prefer`; the paper has 336.

    Raises
    ------
    TypeError
        If the client has no ``chat.completions.create``.

    Examples
    --------
    >>> from types import SimpleNamespace as Some
    >>> answer = Some(choices=[Some(message=Some(content="**85**/100, since all show petals"))])
    >>> client = Some(chat=Some(completions=Some(create=lambda model, messages: answer)))
    >>> ChatJudge(client, "a-model").match("flowers", [Image.new("RGB", (8, 8))])
    85.0
    """

    client: Any
    model: str
    side: int = 256
    cell: int = 336

    def __post_init__(self) -> None:
        if isinstance(self.client, str) and "://" in self.client:
            object.__setattr__(self, "client", ChatServer(self.client))
        create = getattr(getattr(getattr(self.client, "chat", None), "completions", None), "create", None)
        if not callable(create):
            raise TypeError(
                f"client must have chat.completions.create(model=..., messages=...), as OpenAI's has, not "
                f"{type(self.client).__name__}; other clients need a judge of their own (see Judge)."
            )
        check_count("side", self.side)
        check_count("cell", self.cell)

    def describe(self, images: Sequence[Image.Image]) -> str:
        """Return the model's phrase for what the images have in common."""
        return self._ask(DESCRIBE, images)

    def match(self, description: str, images: Sequence[Image.Image]) -> float:
        """Return the model's rating of how well the images fit, from 0 to 100.

        Raises
        ------
        ValueError
            If the answer contains no number from 0 to 100.
        """
        answer = self._ask(MATCH.format(description=description), images)
        found = read_rating(answer)
        if found is None:
            raise ValueError(f"{self.model!r} was asked for a number from 0 to 100 and answered {answer!r}.")
        return found

    def prefer(self, left: Sequence[Image.Image], right: Sequence[Image.Image]) -> Choice | None:
        """Return which of two sets of images has more in common; ``None`` if the answer is not the JSON asked for.

        Each set is sent as one picture, a grid.
        """
        pictures = [make_grid(images, self.cell) for images in (left, right)]
        return read_choice(self._ask(PREFER, pictures, side=max(max(picture.size) for picture in pictures)))

    def _ask(self, text: str, images: Sequence[Image.Image], side: int | None = None) -> str:
        content: list[dict[str, Any]] = [{"type": "text", "text": text}]
        urls = [_data_url(image, side or self.side) for image in images]
        content += [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        answer = self.client.chat.completions.create(model=self.model, messages=[{"role": "user", "content": content}])
        found = _THOUGHTS.sub("", (answer.choices[0].message.content if answer.choices else None) or "").strip()
        if not found:
            raise ValueError(f"{self.model!r} gave an empty answer; does it take images?")
        return found


def read_rating(answer: str) -> float | None:
    """Return the rating from 0 to 100 in a model's answer, or ``None`` if there is none.

    ``85/100`` and ``8.5 out of 10`` are ratings, and so is the number that an answer begins with; otherwise it is the
    last one. The scale itself (``from 0 to 100``) is not a rating.

    Examples
    --------
    >>> read_rating("On a scale from 0 to 100: 85."), read_rating("8.5/10"), read_rating("I cannot see the images.")
    (85.0, 85.0, None)
    """
    plain = _SCALE.sub(" ", answer.replace("*", ""))
    shares = _SHARE.findall(plain)
    if shares:
        rating = 100 * float(shares[-1][0]) / float(shares[-1][1])
    else:
        numbers = _NUMBER.findall(plain)
        if not numbers:
            return None
        rating = float(numbers[0] if _NUMBER.match(plain.lstrip()) else numbers[-1])
    return rating if 0 <= rating <= 100 else None


def read_choice(answer: str) -> Choice | None:
    """Return the choice in a model's answer, ``None`` unless it is ``{"choice": "left"}`` or ``"right"`` and no more.

    A fence around the JSON is taken off. Nothing is guessed from other words.

    Examples
    --------
    >>> read_choice('{"choice": "left"}'), read_choice("I prefer the left one.")
    ('left', None)
    """
    fenced = _FENCE.match(answer.strip())
    try:
        found = json.loads(fenced[1] if fenced else answer)
    except ValueError:
        return None
    if not isinstance(found, dict) or set(found) != {"choice"}:
        return None
    choice = found["choice"]
    return "left" if choice == "left" else "right" if choice == "right" else None


def make_grid(images: Sequence[Image.Image], cell: int = 336) -> Image.Image:
    """Return images as one picture, row by row in a square grid; each is cut to a square of ``cell`` pixels a side."""
    check_count("the number of images", len(images))
    check_count("cell", cell)
    side = math.ceil(math.sqrt(len(images)))
    grid = Image.new("RGB", (side * cell, math.ceil(len(images) / side) * cell), "white")
    for number, image in enumerate(images):
        grid.paste(ImageOps.fit(as_rgb(image), (cell, cell)), (number % side * cell, number // side * cell))
    return grid


def _data_url(image: Image.Image, side: int) -> str:
    """Return an image as a data URL, with at most ``side`` pixels a side."""
    small = as_rgb(image)
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
