"""IntruderQuiz: which image does not belong? A class finds out whether sub-units are easier than whole channels."""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import ipywidgets
import pandas as pd
import traitlets

from elude_nb._util.checks import check_count
from elude_nb.core.result import Disentanglement
from elude_nb.data.images import Images
from elude_nb.figures.html import PALETTE, tile
from elude_nb.interpret.gallery import Gallery
from elude_nb.interpret.quiz import CHANNEL, SUB_UNIT, Question, Quiz, Share, make_questions
from elude_nb.widgets.panel import GalleryPanel, open_gallery, picture

_SIDE, _SMALL = 136, 84
_CALLED = {CHANNEL: "whole channels", SUB_UNIT: "sub-units"}
# The button's label lies below the picture, but what can be clicked is both.
_STYLE = """<style>
.elude-choice { position: relative; padding: 4px; overflow: visible; border: 3px solid transparent; border-radius: 6px }
.elude-choice .elude-answer { position: static; overflow: visible; width: 100%; margin: 2px 0 0 }
.elude-choice .elude-answer::after { content: ""; position: absolute; inset: 0; cursor: pointer }
.elude-choice .elude-answer:disabled::after { cursor: default }
.elude-choice:focus-within { border-color: var(--jp-brand-color1, #2C8FCC) }
</style>"""


class IntruderQuiz(GalleryPanel):
    """Questions for people: which of these images, all but one of which a unit likes, does not belong.

    Half of the questions are about whole channels and half about sub-units of the same channels, mixed, and nobody is
    told which is which before the answer. Questions are drawn as those of `elude_nb.scores`.

    Parameters
    ----------
    gallery
        A `Gallery`, or a `Disentanglement` (then ``images`` are needed).
    images
        Images to ask about, if ``gallery`` is a split; not those of the discovery.
    per_kind
        How many questions about channels, and as many about sub-units.
    size
        Images of a question; guessing is right in 1 of ``size``.
    seed
        Of the questions.
    units
        Sub-units, (channel, number), to ask about instead of drawing any.

    Attributes
    ----------
    player
        Who answers (trait, settable); it stands beside each answer in the results.
    question
        Number of the question that is shown, from 1 (trait, read-only); 0 while images are still coming.
    score
        Right answers of this round, a `Share` for ``"channel"`` and one for ``"sub-unit"`` (trait, read-only).
    finished
        Whether all questions of this round were answered (trait, read-only).

    Raises
    ------
    TypeError, ValueError
        If a setting is out of range, or there are too few images or units.

    Examples
    --------
    ``quiz = IntruderQuiz(split, held_out)``; afterwards ``quiz.results`` and ``quiz.save_csv("answers.csv")``.
    """

    player = traitlets.Unicode(help="who answers")
    question = traitlets.Int(0, read_only=True, help="number of the question that is shown, from 1")
    score: traitlets.Dict[str, Share] = traitlets.Dict(read_only=True, help="right answers of this round, by kind")
    finished = traitlets.Bool(default_value=False, read_only=True, help="whether the round is over")

    def __init__(
        self,
        gallery: Gallery | Disentanglement,
        images: Images | None = None,
        *,
        per_kind: int = 10,
        size: int = 5,
        seed: int = 0,
        units: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        super().__init__(open_gallery(gallery, images))
        check_count("per_kind", per_kind)
        self._size, self._seed = check_count("size", size, 3), check_count("seed", seed, 0)
        self._per_kind, self._units = per_kind, units
        self._quiz = Quiz()
        self._open = False  # whether the question that is shown waits for an answer
        self._sheet: tuple[int, str] | None = None
        self._build()
        self.begin()

    # ------------------------------------------------------------------- parts

    def _build(self) -> None:
        self._player = ipywidgets.Text(description="player", placeholder="your name, if you like").add_class(
            "elude-player"
        )
        ipywidgets.link((self, "player"), (self._player, "value"))
        self._again = ipywidgets.Button(
            description="new questions", tooltip="begin again with other questions; results are kept"
        ).add_class("elude-restart")
        self._again.on_click(lambda _: self.restart())
        self._title = picture("elude-question")
        self._pictures = [picture("elude-picture") for _ in range(self._size)]
        self._answers = []
        choices = []
        for place, shown in enumerate(self._pictures):
            button = ipywidgets.Button(
                description=f"image {place + 1}", tooltip=f"image {place + 1} does not belong", disabled=True
            )
            button.add_class("elude-answer").add_class(f"elude-answer-{place + 1}")
            button.on_click(partial(self._clicked, place))
            self._answers.append(button)
            choice = ipywidgets.VBox([shown, button], layout={"width": f"{_SIDE + 20}px"})
            choices.append(choice.add_class("elude-choice").add_class(f"elude-choice-{place + 1}"))
        self._next = ipywidgets.Button(description="next question", button_style="primary", disabled=True).add_class(
            "elude-next"
        )
        self._next.on_click(lambda _: self.next())
        self._score, self._link = picture("elude-score"), picture("elude-download")
        wrap = {"flex_flow": "row wrap"}
        self.children = (
            ipywidgets.HTML(_STYLE),
            ipywidgets.HBox([self._player, self._again], layout=wrap),
            self._bar,
            self._title,
            ipywidgets.HBox(choices, layout=wrap).add_class("elude-choices"),
            self._status,
            self._next,
            self._score,
            self._link,
        )

    def _clicked(self, place: int, _: object) -> None:
        self.answer(place)

    # ------------------------------------------------------------------ actions

    def answer(self, place: int) -> None:
        """Answer the question that is shown with the place of an image, from 0; what is wrong is said."""
        if not self._open:
            self.say("There is no question to answer now: go to the next one, or begin again.", error=True)
            return
        with self.guarded():
            question, odd = self._quiz.current, self._quiz.current.trial.intruder
            right = self._quiz.answer(place, self.player.strip())
            self._open = False
            self.set_trait("finished", self._quiz.finished)
            self._paint(question, chosen=place)
            about = f"the whole channel {question.channel}"
            if question.unit is not None:
                about = f"sub-unit {question.unit} of channel {question.channel}"
            verdict = "Right" if right else "Wrong"
            self.say(f"{verdict}: image {odd + 1} did not belong. The question was about {about}.")
            (self._again if self.finished else self._next).focus()

    def next(self) -> None:
        """Go to the next question."""
        if self._open:
            self.say("Answer this question first.", error=True)
        elif self._quiz.finished:
            self.say("There is no other question; begin again with new ones.", error=True)
        else:
            self._ask()
            self._answers[0].focus()

    def restart(self, seed: int | None = None) -> None:
        """Begin again with other questions (by default of the next seed); earlier results are kept."""
        if self.gallery.ready < len(self.gallery.images):
            self.say("The images are still coming; wait a moment.", error=True)
            return
        with self.guarded():
            new = self._seed + 1 if seed is None else check_count("seed", seed, 0)
            self._quiz.restart(self._questions(new))
            self._seed = new
            self.set_trait("finished", False)
            self._ask()

    @property
    def results(self) -> pd.DataFrame:
        """One row an answer of any round and player; see `elude_nb.interpret.quiz.Quiz.results`."""
        return self._quiz.results

    @property
    def questions(self) -> tuple[Question, ...]:
        """Return the questions of this round, with their answers."""
        return self._quiz.questions

    def save_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the results to a CSV file, which appears whole or not at all.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        self._quiz.save_csv(path)

    def _questions(self, seed: int) -> tuple[Question, ...]:
        return make_questions(self.gallery, per_kind=self._per_kind, size=self._size, seed=seed, units=self._units)

    # -------------------------------------------------------------------- paint

    def refresh(self) -> None:
        """Begin when all images are there: with fewer, other images would be a unit's best ones."""
        count, ready = len(self.gallery.images), self.gallery.ready
        if ready < count:
            self.say(f"{ready} of {count} images are there; the questions come when all are.")
        elif not self._quiz.round:
            # Once the kernel is at other work there is nobody to catch an error: it is said.
            with nullcontext() if self._task is None else self.guarded():
                self._quiz.restart(self._questions(self._seed))
                self._ask()

    def _ask(self) -> None:
        self._open = True
        self.set_trait("question", self._quiz.answered + 1)
        self._paint(self._quiz.current)
        self.say("Choose the image that does not belong to the others.")
        self._quiz.begin()

    def _paint(self, question: Question, chosen: int | None = None) -> None:
        """Show a question; once an image was chosen, also what was right."""
        self._title.value = (
            f'<h4 style="margin:0.4em 0">Question {self.question} of {len(self._quiz.questions)}: '
            "which image does not belong?</h4>"
        )
        pictures = self.gallery.pictures
        for place, image in enumerate(question.trial.images):
            odd, mine = place == question.trial.intruder, place == chosen
            said, colour = "", "#767676"
            if chosen is not None:
                said, colour = ("did not belong", PALETTE[3]) if odd else ("belongs", PALETTE[2])
                said += ", your choice" if mine else ""
            shown = tile(
                pictures[image], f"image {place + 1}" + (f", {said}" if said else ""), side=_SIDE, colour=colour
            )
            self._pictures[place].value = f'{shown}<div style="min-height:1.4em;line-height:1.4em">{said}</div>'
            self._answers[place].disabled = chosen is not None
        self._next.disabled = self._open or self._quiz.finished
        score = self._quiz.score()
        self.set_trait("score", score)
        self._score.value = self._score_html(score)
        self._link.value = _csv_link(self._quiz.results)

    def _score_html(self, score: dict[str, Share]) -> str:
        rows = [f'<tr><th scope="row">{_CALLED[kind]}</th><td>{share}</td></tr>' for kind, share in score.items()]
        summary = ""
        if self._quiz.finished:
            of_model = self._quiz.score_of_embedding(self.gallery.outputs - self.gallery.outputs.mean(0))
            rows += [
                f'<tr><th scope="row">{_CALLED[kind]}, the model itself</th><td>{share}</td></tr>'
                for kind, share in of_model.items()
            ]
            summary = f"<p>{html.escape(_verdict(score))}</p>"
        return (
            '<table style="line-height:1.35"><caption style="text-align:left;white-space:nowrap">'
            "odd image found: share and 95 % interval; guessing finds "
            f"{1 / self._size:.2f}</caption><tbody>{''.join(rows)}</tbody></table>{summary}"
        )

    def static_html(self) -> str:
        """Return the questions of this round as a sheet to print, with the answers folded away."""
        if not self._quiz.round:
            return f"<p>{html.escape(self.message)}</p>"
        if self._sheet is None or self._sheet[0] != self._quiz.round:
            self._sheet = self._quiz.round, _sheet(self._quiz.questions, self.gallery.pictures)
        return self._sheet[1]


def _verdict(score: dict[str, Share]) -> str:
    """Say in words what a round showed, and no more than that."""
    whole, parts = score[CHANNEL], score[SUB_UNIT]
    if parts.low > whole.high:
        found = "The odd image was found more often for sub-units than for whole channels."
    elif whole.low > parts.high:
        found = "The odd image was found more often for whole channels than for sub-units."
    else:
        found = "The intervals overlap: this round alone does not tell sub-units from whole channels."
    return f"All {whole.count + parts.count} questions are answered. {found}"


def _csv_link(results: pd.DataFrame) -> str:
    count = "1 answer" if len(results) == 1 else f"{len(results)} answers"
    data = base64.b64encode(results.to_csv(index=False).encode("utf-8")).decode("ascii")
    return (
        '<a style="color:var(--jp-content-link-color,#0b64c0)" download="intruder_quiz.csv" '
        f'href="data:text/csv;charset=utf-8;base64,{data}">download CSV</a> <small>({count})</small>'
    )


def _sheet(questions: Sequence[Question], pictures: Any) -> str:
    rows, answers = [], []
    for number, question in enumerate(questions, 1):
        tiles = "".join(
            f'<figure style="display:inline-block;margin:2px 6px;text-align:center">'
            f"{tile(pictures[image], f'question {number}, image {place}', side=_SMALL)}"
            f"<figcaption>{place}</figcaption></figure>"
            for place, image in enumerate(question.trial.images, 1)
        )
        rows.append(f'<li style="break-inside:avoid">{tiles}</li>')
        what = "whole channel" if question.unit is None else f"sub-unit {question.unit} of channel"
        answers.append(f"<li>image {question.trial.intruder + 1} ({what} {question.channel})</li>")
    return (
        f'<div class="elude-sheet"><h4>Which image does not belong?</h4><ol>{"".join(rows)}</ol>'
        f"<details><summary>answers</summary><ol>{''.join(answers)}</ol></details></div>"
    )
