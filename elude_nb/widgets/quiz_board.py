"""QuizBoard: the teacher's screen of the intruder quiz; everybody answers in their own browser."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ipywidgets
import pandas as pd
import traitlets
from markupsafe import Markup

from elude_nb._util.checks import check_count
from elude_nb._util.words import counted
from elude_nb.core.result import Disentanglement
from elude_nb.data.images import Images
from elude_nb.figures.html import GREY, PALETTE, data_uri, tile
from elude_nb.interpret.gallery import Gallery
from elude_nb.interpret.quiz import (
    KINDS,
    SUB_UNIT,
    ClassResult,
    Question,
    class_result,
    clearest_question,
    make_questions,
    save_answers,
)
from elude_nb.widgets import parts
from elude_nb.widgets.class_server import ClassServer
from elude_nb.widgets.intruder_quiz import KIND_NAMES, name_unit, pictures_of
from elude_nb.widgets.panel import GalleryPanel

_SIDE, _SMALL = 200, 96
_EVERY = 1.0  # seconds between two looks at the answers


class QuizBoard(GalleryPanel):
    """The intruder quiz for a whole class: phones and laptops answer on a page of this computer, the board counts.

    Everybody gets the same questions, as `IntruderQuiz` asks them. The board shows the address of the page, how many
    answer, the running result with its intervals, and question by question what was chosen.

    Parameters
    ----------
    gallery, images
        As in `IntruderQuiz`.
    per_kind, size, seed, units
        As in `IntruderQuiz`.
    crops
        How much of an image's side is shown around where the unit is most active; ``None``: whole images.
    host
        ``"127.0.0.1"``: the page is reached from this computer only. ``"0.0.0.0"``: from all of its network, which is
        what a class needs; anyone there can answer then.
    port
        Of the address; 0 is any that is free.

    Attributes
    ----------
    address
        Of the page (trait, read-only); empty while images are still coming, and once it is closed.
    result
        The running `elude_nb.interpret.quiz.ClassResult` (trait, read-only).

    Examples
    --------
    ``board = QuizBoard(split, held_out, host="0.0.0.0")``; afterwards ``board.results`` and
    ``board.save_csv("class.csv")``.
    """

    address = traitlets.Unicode(read_only=True, help="of the page")
    result = traitlets.Instance(ClassResult, allow_none=True, read_only=True)

    def __init__(
        self,
        gallery: Gallery | Disentanglement,
        images: Images | None = None,
        *,
        per_kind: int = 10,
        size: int = 5,
        seed: int = 0,
        units: Sequence[tuple[int, int]] | None = None,
        crops: float | None = 0.45,
        host: str = "127.0.0.1",
        port: int = 8750,
    ) -> None:
        super().__init__(gallery, images)
        self._asked: dict[str, Any] = {
            "per_kind": check_count("per_kind", per_kind),
            "size": size,
            "seed": seed,
            "units": units,
        }
        self._crops, self._where = crops, (host, check_count("port", port, 0, 65_535))
        self._server: ClassServer | None = None
        self._watch: asyncio.Task[None] | None = None
        self.questions: tuple[Question, ...] = ()
        self._tiles: dict[int, list[Markup]] = {}  # of the questions that were answered
        self._kept = pd.DataFrame()  # answers of a server that was closed
        self._address, self._result, self._by_question = map(parts.make_place, ("address", "result", "by-question"))
        hint = {"tooltip": "the page is taken down; answers are kept"}
        self._stop = parts.make_button("close the page", "close", self.close_page, disabled=True, **hint)
        self._path = parts.make(
            ipywidgets.Text, "save as", "path", value="class.csv", continuous_update=False, layout={"width": "260px"}
        )
        self._save = parts.make_button("save the answers", "save", self._take_path)
        self.children = (
            self._address,
            self._bar,
            self._result,
            self._status,
            parts.make_row(self._path, self._save, self._stop),
            parts.make_closed("Question by question (shows what is right)", self._by_question),
        )
        self.begin()

    # ------------------------------------------------------------------ actions

    @property
    def results(self) -> pd.DataFrame:
        """One row an answer of the class; see `elude_nb.interpret.quiz.Quiz.results`."""
        return self._kept if self._server is None else self._server.answers

    def save_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write the answers to a CSV file (an atomic write); return the path.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        save_answers(self.results, path)
        return Path(path)

    def close_page(self) -> None:
        """Take the page down; the answers are kept."""
        if self._watch is not None:
            self._watch.cancel()
        if self._server is not None:
            server, self._kept = self._server, self._server.answers
            self._server = None
            server.close()
            self.set_trait("address", "")
            self._stop.disabled = True
            self.update()

    def close(self) -> None:
        """Take the page down, and the panel."""
        self.close_page()
        super().close()

    def _take_path(self) -> None:
        with self.guarded():
            path = self.save_csv(self._path.value.strip() or "class.csv")
            self.say(f"Saved {path}: {counted(len(self.results), 'answer')}.")

    # -------------------------------------------------------------------- paint

    def refresh(self) -> None:
        """Say that images are coming: with fewer, other images would be a unit's top-activating ones."""
        if self.gallery.ready < len(self.gallery.images):
            self.say(f"{self.describe_images()}. The page opens when all are ready.")

    def complete(self) -> None:
        """Open the page."""
        if self.questions:
            return
        self.questions = make_questions(self.gallery, **self._asked)
        size, seed = self._asked["size"], self._asked["seed"]
        asked = [question.channel for question in self.questions]
        practice = clearest_question(self.gallery, size=size, seed=seed, leave_out=asked)
        host, port = self._where
        self._server = ClassServer(
            self._page(practice), self.questions, practice, about=name_unit, crop=self._crops, host=host, port=port
        )
        self.set_trait("address", self._server.address)
        self._stop.disabled = False
        self.update()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return  # `update` is called by hand then
        self._watch = loop.create_task(self._follow())

    async def _follow(self) -> None:
        """Paint anew whenever somebody has answered."""
        while self._server is not None:
            if len(self._server.answers) != (self.result.answers if self.result else 0):
                with self.guarded():
                    self.update()
            await asyncio.sleep(_EVERY)

    def _page(self, practice: Question) -> str:
        shown = [
            [data_uri(picture, _SIDE) for picture in pictures_of(self.gallery, question, self._crops)]
            for question in (practice, *self.questions)
        ]
        script = Path(__file__).with_name("quiz_page.js").read_text(encoding="utf-8")
        return str(
            parts.fill(
                "quiz_page.html",
                data={"questions": shown, "names": KIND_NAMES},
                script=Markup(script),  # noqa: S704 - our own file
                size=self._asked["size"],
                crops=self._crops,
            )
        )

    def update(self) -> None:
        """Count the answers and paint the result; in a running kernel it is called once a second."""
        answers = self.results
        found = class_result(answers) if len(answers) else None
        self.set_trait("result", found)
        host = self._where[0]
        local = host.startswith("127.") or host == "localhost"
        self._address.value = parts.fill("quiz_address.html", address=self.address, local=local)
        bars = [] if found is None else [
            (KIND_NAMES[kind], found.shares[kind], PALETTE[2] if kind == SUB_UNIT else GREY) for kind in KINDS
        ]  # fmt: skip
        chance = 1 / self._asked["size"]
        self._result.value = parts.fill("quiz_board.html", result=found, bars=bars, chance=chance)
        self._by_question.value = parts.fill("quiz_questions.html", rows=self._rows(answers))
        people = "nobody has answered yet" if found is None else (
            f"{counted(found.people, 'player')}, {counted(found.answers, 'answer')} of "
            f"{found.people * len(self.questions)}"
        )  # fmt: skip
        self.say(f"{people}; {self.gallery.seen}")

    def _rows(self, answers: pd.DataFrame) -> list[tuple[str, list[tuple[Markup, str]]]]:
        """Return each answered question in words, with its images and how many chose each."""
        rows = []
        for number, question in enumerate(self.questions, start=1):
            chosen = answers.loc[answers["question"] == number, "answer"] if len(answers) else answers
            if not len(chosen):
                continue
            counts, odd = chosen.value_counts(), question.trial.intruder
            if number not in self._tiles:
                self._tiles[number] = [
                    tile(picture, f"image {place + 1}", side=_SMALL, colour=PALETTE[3] if place == odd else GREY)
                    for place, picture in enumerate(pictures_of(self.gallery, question, self._crops))
                ]
            said = [f"{counts.get(place, 0)}{' (odd)' if place == odd else ''}" for place in range(self._asked["size"])]
            pictures = list(zip(self._tiles[number], said, strict=True))
            share = counts.get(odd, 0) / len(chosen)
            rows.append((f"{number}. {name_unit(question)}: {share:.0%} of {len(chosen)} right", pictures))
        return rows

    def static_html(self) -> Markup:
        """Return the result, and question by question what was chosen."""
        return Markup(self._result.value + self._by_question.value)  # noqa: S704 - made by templates
