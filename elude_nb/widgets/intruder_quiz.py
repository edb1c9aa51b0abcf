"""IntruderQuiz: which image does not belong? A class finds out whether sub-units are easier than whole channels."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import pandas as pd
import traitlets
from markupsafe import Markup

from elude_nb._util.checks import check_count, check_flag
from elude_nb.core.result import Disentanglement
from elude_nb.data.images import Images
from elude_nb.figures.html import GREY, PALETTE, tile
from elude_nb.interpret.exemplars import crop_at
from elude_nb.interpret.gallery import Gallery
from elude_nb.interpret.quiz import CHANNEL, SUB_UNIT, Question, Quiz, Share, clearest_question, make_questions
from elude_nb.widgets import parts
from elude_nb.widgets.panel import GalleryPanel

_SIDE, _SMALL_SIDE = 160, 84
KIND_NAMES = {CHANNEL: "whole channels", SUB_UNIT: "sub-units"}


class IntruderQuiz(GalleryPanel):
    """Questions for people: all but one of these images activate a unit most; which one does not belong.

    Half of the questions are about whole channels and half about sub-units of the same channels, mixed; which is which
    is shown only after the answer. Questions are drawn as those of `elude_nb.scores`.

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
    practice
        Whether a question to practise comes first, the clearest that is found; it is not counted.

    Attributes
    ----------
    player
        Who answers (trait, settable); it stands beside each answer in the results.
    crops
        How much of an image's side is shown, around the patch at which the unit is most active, or ``None`` for whole
        images (trait, settable). The activation is at one place; the rest of the photograph misleads.
    question
        Number of the question that is shown, from 1 (trait, read-only); 0 while images are still coming, or to
        practise.
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
    crops = traitlets.Float(0.45, allow_none=True, help="how much of an image's side is shown; None: all of it")
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
        practice: bool = True,
    ) -> None:
        super().__init__(gallery, images)
        check_count("per_kind", per_kind)
        check_flag("practice", practice)
        self._size, self._seed = check_count("size", size, 3), check_count("seed", seed, 0)
        self._per_kind, self._units, self._practice = per_kind, units, practice
        self._quiz = Quiz()
        self._waiting = False  # whether the question that is shown waits for an answer
        self._shown: tuple[Question, int | None] | None = None  # the question, and what was chosen
        self._build()
        self.observe(self._repaint, "crops")
        self.begin()

    def _build(self) -> None:
        hint: dict[str, Any] = {"placeholder": "your name, if you like", "layout": {}, "style": {}}
        self._player = parts.make(ipywidgets.Text, "player", "player", **hint)
        ipywidgets.link((self, "player"), (self._player, "value"))
        hint = {"tooltip": "begin again with other questions; results are kept"}
        self._again = parts.make_button("new questions", "restart", self.restart, **hint)
        self._whole = parts.make(
            ipywidgets.Checkbox, "whole images", "whole", self._take_whole, indent=False, layout={"width": "auto"}
        )
        self._title, self._score, self._link = (parts.make_place(name) for name in ("question", "score", "download"))
        self._pictures = [parts.make_place("picture") for _ in range(self._size)]
        self._answers = [self._make_answer(place) for place in range(self._size)]
        look = {"button_style": "primary", "disabled": True}
        self._next = parts.make_button("next question", "next", self.next, **look)
        choices = [
            ipywidgets.VBox(both, layout={"width": f"{_SIDE + 20}px"}).add_class("elude-choice")
            for both in zip(self._pictures, self._answers, strict=True)
        ]
        style = Path(__file__).with_name("quiz.css").read_text(encoding="utf-8")
        self.children = (
            ipywidgets.HTML(f"<style>{style}</style>"),
            parts.make_row(self._player, self._again, self._whole),
            self._bar,
            self._title,
            parts.make_row(*choices).add_class("elude-choices"),
            self._status,
            self._next,
            self._score,
            self._link,
        )

    def _make_answer(self, place: int) -> Any:
        name = f"image {place + 1}"
        hint = {"tooltip": f"{name} does not belong", "disabled": True}
        button = parts.make_button(name, f"answer-{place + 1}", partial(self.answer, place), **hint)
        return button.add_class("elude-answer")

    # ------------------------------------------------------------------ actions

    def answer(self, place: int) -> None:
        """Answer the question that is shown with the place of an image, from 0."""
        if not self._waiting:
            self.say("There is no question to answer now: go to the next one, or begin again.", error=True)
            return
        with self.guarded():
            question = self._quiz.current
            practice = self._quiz.practice is not None
            right = self._quiz.answer(place, self.player.strip(), crop=self.crops)
            self._waiting = False
            self.set_trait("finished", self._quiz.finished)
            self._paint(question, chosen=place)
            verdict, odd = "Right" if right else "Wrong", question.trial.intruder + 1
            then = " From now on answers count." if practice else ""
            self.say(f"{verdict}: image {odd} did not belong. The question was about {name_unit(question)}.{then}")
            (self._again if self.finished else self._next).focus()

    def next(self) -> None:
        """Go to the next question."""
        if self._waiting:
            self.say("Answer this question first.", error=True)
        elif self._quiz.finished:
            self.say("There is no other question; begin again with new ones.", error=True)
        else:
            self._ask()
            self._answers[0].focus()

    def restart(self, seed: int | None = None) -> None:
        """Begin again with other questions (by default of the next seed); earlier results are kept."""
        if self.gallery.ready < len(self.gallery.images):
            self.say(f"There are no questions yet: {self.describe_images()}.", error=True)
            return
        with self.guarded():
            new = self._seed + 1 if seed is None else check_count("seed", seed, 0)
            self._quiz.restart(self._questions(new))  # who plays again knows how
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
        """Write the results to a CSV file (an atomic write).

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
        """Begin when all images are ready: with fewer, other images would be a unit's top-activating ones."""
        if self.gallery.ready < len(self.gallery.images):
            self.say(f"{self.describe_images()}. The questions come when all are ready.")
        elif not self._quiz.round:
            questions, practice = self._questions(self._seed), None
            if self._practice:
                asked = [question.channel for question in questions]
                practice = clearest_question(self.gallery, size=self._size, seed=self._seed, leave_out=asked)
            self._quiz.restart(questions, practice)
            self._ask()

    def _ask(self) -> None:
        self._waiting = True
        self.set_trait("question", 0 if self._quiz.practice else self._quiz.answered + 1)
        self._paint(self._quiz.current)
        self.say("Choose the image that does not belong to the others.")
        self._quiz.begin()

    def _take_whole(self, whole: bool) -> None:
        if whole != (self.crops is None):
            self.crops = None if whole else type(self).crops.default_value

    @traitlets.validate("crops")
    def _valid_crops(self, proposal: Any) -> float | None:
        value: float | None = proposal["value"]
        if value is not None and not 0 < value <= 1:
            raise traitlets.TraitError(f"crops={value} must be above 0 and at most 1, or None for whole images.")
        return value

    def _repaint(self, _: object) -> None:
        self._whole.value = self.crops is None
        if self._shown is not None:
            self._paint(*self._shown)

    def _paint(self, question: Question, chosen: int | None = None) -> None:
        """Show a question; once an image was chosen, also what was right."""
        self._shown = question, chosen
        count, crops = len(self.questions), self.crops
        self._title.value = parts.fill("question.html", number=self.question, count=count, size=self._size, crops=crops)
        for place, picture in enumerate(pictures_of(self.gallery, question, crops)):
            said, colour = "", GREY
            if chosen is not None:
                odd = place == question.trial.intruder
                said, colour = ("did not belong", PALETTE[3]) if odd else ("belongs", PALETTE[2])
                said += ", your choice" if place == chosen else ""
            alt = f"image {place + 1}" + (f", {said}" if said else "")
            shown = tile(picture, alt, side=_SIDE, colour=colour)
            self._pictures[place].value = parts.fill("quiz_picture.html", tile=shown, said=said)
            self._answers[place].disabled = chosen is not None
        self._next.disabled = self._waiting or self._quiz.finished
        self._paint_score()

    def _paint_score(self) -> None:
        score, results = self._quiz.score(), self._quiz.results
        self.set_trait("score", score)
        rows = [(KIND_NAMES[kind], share) for kind, share in score.items()]
        if self._quiz.finished:
            of_model = self._quiz.score_of_embedding(self.gallery.outputs - self.gallery.outputs.mean(0))
            rows += [
                (f"{KIND_NAMES[kind]}, the model itself on whole images", share) for kind, share in of_model.items()
            ]
        verdict, seen = _judge(score) if self._quiz.finished else "", self.gallery.seen
        self._score.value = parts.fill("quiz_score.html", chance=1 / self._size, rows=rows, verdict=verdict, seen=seen)
        data = base64.b64encode(results.to_csv(index=False).encode("utf-8")).decode("ascii")
        self._link.value = parts.fill("quiz_link.html", data=data, count=len(results))

    def static_html(self) -> Markup:
        """Return the questions of this round as a sheet to print, with the answers folded away."""
        if not self._quiz.round:
            return Markup("<p>{}</p>").format(self.message)
        show, pictures = partial(tile, side=_SMALL_SIDE), partial(pictures_of, self.gallery, share=self.crops)
        asked: dict[str, Any] = {"questions": self.questions, "name": name_unit, "seen": self.gallery.seen}
        return parts.fill("quiz_sheet.html", tile=show, pictures=pictures, **asked)


def pictures_of(gallery: Gallery, question: Question, share: float | None) -> list[np.ndarray[Any, Any]]:
    """Return the images of a question, whole or so much of their side around where the unit is most active."""
    whole = [gallery.pictures_of(image) for image in question.trial.images]
    if share is None:
        return whole
    return [crop_at(each, patch, gallery.grid, share) for each, patch in zip(whole, question.patches, strict=True)]


def name_unit(question: Question) -> str:
    """Return in words what a question is about."""
    what = "the whole channel" if question.unit is None else f"sub-unit {question.unit} of channel"
    return f"{what} {question.channel}"


def _judge(score: dict[str, Share]) -> str:
    """Return in words what a round showed, and no more than that."""
    whole, parts = score[CHANNEL], score[SUB_UNIT]
    if parts.low > whole.high:
        found = "The odd image was found more often for sub-units than for whole channels."
    elif whole.low > parts.high:
        found = "The odd image was found more often for whole channels than for sub-units."
    else:
        found = "The intervals overlap: this round alone does not tell sub-units from whole channels."
    return f"All {whole.count + parts.count} questions are answered. {found}"
