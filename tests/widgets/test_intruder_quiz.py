"""The quiz asks, says right or wrong, counts, and hands its results out."""

from __future__ import annotations

import asyncio
import base64
import io
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import traitlets

from elude_nb.figures.html import data_uri
from elude_nb.interpret.exemplars import crop_at
from elude_nb.interpret.gallery import Gallery
from elude_nb.interpret.quiz import CHANNEL, KINDS, SUB_UNIT, make_questions
from elude_nb.scores.intruder import grade
from elude_nb.widgets.intruder_quiz import IntruderQuiz
from tests.markup import Page


@pytest.fixture(scope="module")
def gallery(split, images) -> Gallery:
    return Gallery(split, images).fill(progress=False)


@pytest.fixture
def quiz(gallery) -> IntruderQuiz:
    return IntruderQuiz(gallery, per_kind=3, size=4, practice=False)


def shown(quiz: IntruderQuiz) -> list[dict[str, str]]:
    return [Page(place.value).find("img")[0] for place in quiz._pictures]


def odd(quiz: IntruderQuiz) -> int:
    return quiz.questions[quiz.question - 1].trial.intruder


def play(quiz: IntruderQuiz, *, well: set[str]) -> None:
    """Answer all questions, those about these kinds rightly, by clicking."""
    while True:
        right = quiz.questions[quiz.question - 1].kind in well
        quiz._answers[odd(quiz) if right else (odd(quiz) + 1) % 4].click()
        if quiz.finished:
            return
        quiz._next.click()


def test_the_questions_are_the_librarys(quiz, gallery) -> None:
    assert quiz.questions == make_questions(gallery, per_kind=3, size=4, seed=0)
    assert (quiz.question, quiz.finished) == (1, False)
    assert "Question 1 of 6" in quiz._title.value


def test_before_the_answer_nothing_gives_it_away(quiz) -> None:
    assert [image["alt"] for image in shown(quiz)] == [f"image {place}" for place in (1, 2, 3, 4)]
    assert len({image["style"] for image in shown(quiz)}) == 1
    words = " ".join([quiz._title.value, quiz.message])
    assert not any(kind in words for kind in KINDS)
    assert all(str(image["title"]) == str(image["alt"]) for image in shown(quiz))


def test_a_click_answers(quiz, caplog) -> None:
    question = quiz.questions[0]
    place = odd(quiz)
    quiz._answers[place].click()
    assert quiz.message.startswith(f"Right: image {place + 1} ")
    assert f"channel {question.channel}" in quiz.message
    assert shown(quiz)[place]["alt"] == f"image {place + 1}, did not belong, your choice"
    assert all(button.disabled for button in quiz._answers)
    assert quiz.score[question.kind].right == 1
    assert not quiz._next.disabled
    quiz._next.click()
    assert (quiz.question, quiz._next.disabled) == (2, True)
    assert not any(button.disabled for button in quiz._answers)
    wrong = (odd(quiz) + 1) % 4
    quiz._answers[wrong].click()
    assert quiz.message.startswith(f"Wrong: image {odd(quiz) + 1} ")
    assert shown(quiz)[wrong]["alt"] == f"image {wrong + 1}, belongs, your choice"
    assert shown(quiz)[odd(quiz)]["alt"] == f"image {odd(quiz) + 1}, did not belong"
    assert quiz.results["right"].tolist() == [True, False]
    assert quiz.results["answer"].tolist() == [place, wrong]
    assert not caplog.records


def test_every_image_of_the_trial_is_shown_in_its_place_around_its_peak_or_whole(quiz, gallery) -> None:
    question = quiz.questions[0]
    of_unit = gallery.maps_of([(question.channel, question.unit or 0)])[..., 0]
    turned = int(gallery.split.signs[question.channel, question.unit]) if question.unit else 1
    whole = [gallery.pictures_of(image) for image in question.trial.images]
    peaks = [int((of_unit[image] * turned).argmax()) for image in question.trial.images]
    crops = [crop_at(picture, patch, gallery.grid, 0.45) for picture, patch in zip(whole, peaks, strict=True)]
    assert [image["src"] for image in shown(quiz)] == [data_uri(crop, 160) for crop in crops]
    assert "where it is most active" in quiz._title.value
    quiz._whole.value = True
    assert quiz.crops is None
    assert [image["src"] for image in shown(quiz)] == [data_uri(picture, 160) for picture in whole]
    assert "where it is most active" not in quiz._title.value
    quiz.answer(0)
    quiz.crops = 0.45
    assert quiz._whole.value is False
    assert shown(quiz)[0]["alt"].endswith("your choice")  # it is still answered
    quiz.next()
    quiz.answer(0)
    assert quiz.results["crop"].isna().tolist() == [True, False]
    with pytest.raises(traitlets.TraitError, match=r"crops=1.5"):
        quiz.crops = 1.5


def test_the_first_question_is_to_practise_and_clear(gallery) -> None:
    quiz = IntruderQuiz(gallery, per_kind=3, size=4)
    practice = quiz._quiz.practice
    assert practice is not None
    assert (quiz.question, practice.kind) == (0, SUB_UNIT)
    assert practice.channel not in {question.channel for question in quiz.questions}
    assert "To practise" in quiz._title.value
    quiz._answers[practice.trial.intruder].click()
    assert quiz.message.startswith("Right")
    assert "From now on answers count" in quiz.message
    assert (len(quiz.results), quiz.finished) == (0, False)
    quiz._next.click()
    assert (quiz.question, len(quiz.questions)) == (1, 6)
    quiz.restart()
    assert quiz.question == 1  # who plays again knows how


def test_a_round_is_scored_by_kind(quiz) -> None:
    play(quiz, well={SUB_UNIT})
    assert quiz.finished
    assert [(quiz.score[kind].right, quiz.score[kind].count) for kind in KINDS] == [(0, 3), (3, 3)]
    for kind in KINDS:
        trials = [question.trial for question in quiz.questions if question.kind == kind]
        answers = quiz.results.loc[quiz.results["kind"] == kind, "answer"].tolist()
        assert grade(trials, answers).mean() == quiz.score[kind].share
    assert str(quiz.score[SUB_UNIT]) in quiz._score.value
    assert "sub-units, the model itself" in quiz._score.value
    assert "All 6 questions are answered" in quiz._score.value
    assert quiz._next.disabled
    assert (quiz.results["seconds"] >= 0).all()


@pytest.mark.parametrize(
    ("well", "said"),
    [
        ({SUB_UNIT}, "more often for sub-units than"),
        ({CHANNEL}, "more often for whole channels than"),
        (set(), "overlap"),
    ],
)
def test_the_verdict_says_what_the_intervals_say(gallery, well, said) -> None:
    quiz = IntruderQuiz(gallery, per_kind=6, size=4, practice=False)
    play(quiz, well=well)
    assert said in quiz._score.value


def test_what_makes_no_sense_is_reported_and_changes_nothing(quiz) -> None:
    quiz.next()
    assert 'role="alert"' in quiz._status.value
    quiz.answer(9)
    assert "answer=9" in quiz.message
    assert 'role="alert"' in quiz._status.value
    assert (len(quiz.results), quiz.question) == (0, 1)
    quiz.answer(0)
    quiz.answer(1)
    assert 'role="alert"' in quiz._status.value
    assert len(quiz.results) == 1
    quiz.restart(-3)
    assert "seed=-3" in quiz.message
    assert len(quiz.results) == 1
    with pytest.raises(traitlets.TraitError):
        quiz.finished = True
    with pytest.raises(traitlets.TraitError):
        quiz.player = 7


def test_several_players_and_rounds(quiz, gallery) -> None:
    quiz._player.value = "Ada"
    assert quiz.player == "Ada"
    play(quiz, well={SUB_UNIT, CHANNEL})
    first = quiz.questions
    quiz._again.click()
    assert (quiz.finished, quiz.question) == (False, 1)
    assert quiz.questions == make_questions(gallery, per_kind=3, size=4, seed=1) != first
    assert [share.count for share in quiz.score.values()] == [0, 0]
    quiz.player = " Bert "
    assert quiz._player.value == " Bert "
    play(quiz, well=set())
    assert quiz.results["player"].tolist() == ["Ada"] * 6 + ["Bert"] * 6
    assert quiz.results["round"].tolist() == [1] * 6 + [2] * 6
    quiz.restart(0)
    assert quiz.questions == first


def test_a_round_can_be_left_half_way(quiz) -> None:
    quiz.answer(0)
    quiz.next()
    quiz.restart(5)
    assert (quiz.question, len(quiz.results)) == (1, 1)
    assert 'role="status"' in quiz._status.value


def test_results_go_to_a_file_and_to_a_link(quiz, tmp_path: Path) -> None:
    quiz.player = "Ada, the first"
    play(quiz, well={CHANNEL})
    quiz.save_csv(tmp_path / "answers.csv")
    link = Page(quiz._link.value).find("a")[0]
    assert link["download"] == "intruder_quiz.csv"
    data = base64.b64decode(str(link["href"]).partition("base64,")[2])
    assert data.decode() == (tmp_path / "answers.csv").read_text(encoding="utf-8")
    pd.testing.assert_frame_equal(
        pd.read_csv(io.BytesIO(data)), pd.read_csv(tmp_path / "answers.csv"), check_exact=True
    )
    assert set(pd.read_csv(tmp_path / "answers.csv")["player"]) == {"Ada, the first"}


def test_chosen_units(gallery, split) -> None:
    rows = split.units[split.units["unit"] > 0].iloc[:2]
    pairs = [(int(row.channel), int(row.unit)) for row in rows.itertuples()]
    quiz = IntruderQuiz(gallery, units=pairs)
    assert sorted((q.channel, q.unit) for q in quiz.questions if q.unit is not None) == pairs


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"per_kind": 0}, ValueError, "per_kind=0"),
        ({"size": 2}, ValueError, "size=2"),
        ({"seed": 1.5}, TypeError, "seed.*1.5"),
        ({"size": 15}, ValueError, "28.*20"),
        ({"per_kind": 1000}, ValueError, "per_kind=1000"),
    ],
)
def test_bad_settings_are_named(gallery, settings, error, message) -> None:
    with pytest.raises(error, match=message):
        IntruderQuiz(gallery, **settings)


def in_a_kernel(make: Any) -> IntruderQuiz:
    """Make a quiz where an event loop is running, and wait until all images are there."""

    async def wait() -> IntruderQuiz:
        quiz: IntruderQuiz = make()
        assert quiz.gallery.ready < len(quiz.gallery.images)
        assert (quiz.question, quiz._answers[0].disabled, len(quiz.results)) == (0, True, 0)
        assert f"{quiz.gallery.ready} of {len(quiz.gallery.images)} images" in quiz.message
        assert quiz.message in quiz.static_html()
        quiz.answer(0)
        quiz.restart()
        assert 'role="alert"' in quiz._status.value
        while quiz.gallery.ready < len(quiz.gallery.images):
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.2)
        return quiz

    return asyncio.run(asyncio.wait_for(wait(), 20))


def test_in_a_kernel_the_questions_wait_for_all_images(split, images, gallery) -> None:
    quiz = in_a_kernel(lambda: IntruderQuiz(split, images, per_kind=3, size=4))
    assert (quiz.question, "To practise" in quiz._title.value) == (0, True)
    assert quiz.questions == make_questions(gallery, per_kind=3, size=4)


def test_in_a_kernel_what_is_wrong_is_reported(split, images) -> None:
    quiz = in_a_kernel(lambda: IntruderQuiz(split, images, per_kind=1000))
    assert "per_kind=1000" in quiz.message
    assert quiz.question == 0


def test_the_sheet_hides_its_answers(quiz) -> None:
    bundle = quiz._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    page = data["text/html"]
    before, _, folded = page.partition("<details>")
    assert len(Page(page).find("img")) == 24
    assert [image["alt"] for image in Page(page).find("img")][:2] == ["question 1, image 1", "question 1, image 2"]
    assert "channel" not in before
    assert "unit" not in before
    for question in quiz.questions:
        assert f"image {question.trial.intruder + 1} (" in folded
    assert not Page(page).find("script")
    quiz.restart(7)
    assert quiz.static_html() not in page


def test_buttons_are_named(quiz) -> None:
    assert [button.description for button in quiz._answers] == ["image 1", "image 2", "image 3", "image 4"]
    assert quiz._player.description == "player"
    assert all("elude-answer" in button._dom_classes for button in quiz._answers)
