"""The intruder test for people asks fair questions, counts rightly and writes whole files."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from elude_nb import disentangle
from elude_nb.core.strategies import ConceptRouting
from elude_nb.interpret.gallery import Gallery
from elude_nb.interpret.quiz import (
    CHANNEL,
    KINDS,
    SUB_UNIT,
    Question,
    Quiz,
    class_result,
    clearest_question,
    make_questions,
    share_of,
)
from elude_nb.scores.intruder import grade


@pytest.fixture(scope="module")
def gallery(split, images) -> Gallery:
    return Gallery(split, images).fill(progress=False)


def activation(gallery: Gallery, question: Question) -> torch.Tensor:
    """Work the question's unit out in the slow way, (n,)."""
    view = gallery.channel(question.channel)
    if question.unit is None:
        return view.maps.sum(-1).amax(1)
    return gallery.images_of_unit(question.channel, question.unit).amax(1)


def test_maps_of_units_are_those_of_their_channels(gallery) -> None:
    view = gallery.channel(3)
    units = [int(unit) for unit in view.units["unit"] if unit > 0]
    maps = gallery.maps_of([(3, unit) for unit in [*units, 0]])
    torch.testing.assert_close(maps[..., :-1], view.maps[..., 1:])
    mean = float(gallery.split.book.channel_mean()[3])
    torch.testing.assert_close(maps[..., -1], view.maps.sum(-1) - mean, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"\(3, 9\)"):
        gallery.maps_of([(3, 9)])


def test_there_is_a_question_about_each_channel_and_one_of_its_sub_units(gallery) -> None:
    questions = make_questions(gallery, per_kind=6, size=4)
    by_kind = {kind: [q for q in questions if q.kind == kind] for kind in KINDS}
    assert [len(some) for some in by_kind.values()] == [6, 6]
    assert {q.channel for q in by_kind[CHANNEL]} == {q.channel for q in by_kind[SUB_UNIT]}
    assert all(q.unit is None for q in by_kind[CHANNEL])
    assert len({q.channel for q in questions}) == 6
    assert [q.kind for q in questions] != sorted(q.kind for q in questions)  # mixed


def test_all_images_but_the_intruder_activate_the_unit(gallery) -> None:
    for question in make_questions(gallery, per_kind=8):
        values = activation(gallery, question)
        half = values.sort()[0][: len(values) // 2]
        trial = question.trial
        odd = values[trial.images[trial.intruder]]
        liked = [values[image] for place, image in enumerate(trial.images) if place != trial.intruder]
        assert odd <= half[-1] + 1e-5
        assert all(value > half[-1] - 1e-5 for value in liked)
        assert len(set(trial.images)) == 5


def test_of_few_images_only_the_very_best_are_shown(gallery) -> None:
    for question in make_questions(gallery, per_kind=8):
        best = activation(gallery, question).topk(5).indices.tolist()  # 4, and 1 for rounding
        odd = question.trial.images[question.trial.intruder]
        assert set(question.trial.images) - {odd} <= set(best)


def test_a_sub_unit_that_is_low_on_its_concept_is_turned_round(split, images) -> None:
    turned = replace(split)
    vars(turned)["signs"] = -torch.ones_like(split.signs)
    gallery = Gallery(turned, images).fill(progress=False)
    for question in make_questions(gallery, per_kind=6):
        best = activation(gallery, question).topk(5).indices.tolist()
        odd = question.trial.images[question.trial.intruder]
        assert set(question.trial.images) - {odd} <= set(best)


def test_questions_follow_the_seed(gallery) -> None:
    assert make_questions(gallery, seed=3) == make_questions(gallery, seed=3)
    assert make_questions(gallery, seed=3) != make_questions(gallery, seed=4)


def test_places_of_intruders_tell_nothing_about_each_other(gallery) -> None:
    same, count = 0, 0
    for seed in range(12):
        places: dict[int, list[int]] = {}
        for question in make_questions(gallery, per_kind=8, seed=seed):
            places.setdefault(question.channel, []).append(question.trial.intruder)
        same += sum(first == second for first, second in places.values())
        count += len(places)
    assert 0.08 * count < same < 0.35 * count  # chance is a fifth


def test_chosen_units_are_asked_about(gallery, split) -> None:
    rows = split.units[split.units["unit"] > 0]
    pairs = [(int(row.channel), int(row.unit)) for row in rows.iloc[:3].itertuples()]
    questions = make_questions(gallery, units=[*pairs, pairs[0]])
    assert sorted((q.channel, q.unit) for q in questions if q.unit is not None) == sorted(pairs)
    assert sorted(q.channel for q in questions if q.kind == CHANNEL) == sorted({c for c, _ in pairs})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"per_kind": 0}, "per_kind=0"),
        ({"size": 2}, "size=2"),
        ({"size": 12}, " 12 .* 22 .* 20 "),
        ({"per_kind": 100}, "per_kind=100"),
        ({"units": [(0, 0)]}, r"\(0, 0\)"),
        ({"units": []}, r"units=\[\]"),
        ({"units": [(0, 77)]}, r"\(0, 77\)"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_bad_settings_are_reported(gallery, settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        make_questions(gallery, **settings)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_split_without_any_split_channel_says_so(vit, images) -> None:
    whole = disentangle(
        vit, images, concepts=6, units=3, tokens_per_image=6, progress=False, routing=ConceptRouting(one_meaning=-1.0)
    )
    with pytest.raises(ValueError, match="0 of 0 split channels"):
        make_questions(Gallery(whole, images).fill(progress=False))


def test_answers_are_counted_and_timed(gallery) -> None:
    clock = Clock()
    questions = make_questions(gallery, per_kind=4)
    quiz = Quiz(questions, clock=clock)
    said = []
    for number, question in enumerate(questions):
        assert quiz.current == question
        assert not quiz.finished
        clock.now += 2.5 + number
        place = question.trial.intruder if number % 3 else (question.trial.intruder + 1) % 5
        said.append(place)
        assert quiz.answer(place, "Ada") is bool(number % 3)
        quiz.begin()
    assert quiz.finished
    table = quiz.results
    assert table["answer"].tolist() == said
    assert table["right"].tolist() == [bool(number % 3) for number in range(8)]
    assert table["seconds"].tolist() == [2.5 + number for number in range(8)]
    assert table["question"].tolist() == list(range(1, 9))
    assert set(table["player"]) == {"Ada"}
    assert (table["unit"].isna() == (table["kind"] == CHANNEL)).all()
    for kind, share in quiz.score().items():
        trials = [q.trial for q in questions if q.kind == kind]
        graded = grade(trials, table.loc[table["kind"] == kind, "answer"].tolist())
        assert share.share == pytest.approx(graded.mean())  # one question a channel
        assert share.count == 4
    with pytest.raises(ValueError, match="restart"):
        quiz.answer(0)


def test_a_wrong_place_changes_nothing(gallery) -> None:
    quiz = Quiz(make_questions(gallery, per_kind=1))
    with pytest.raises(ValueError, match=r"answer=5 .* 4"):
        quiz.answer(5)
    assert (len(quiz.results), quiz.answered) == (0, 0)


def test_rounds_are_kept_and_scored_one_by_one(gallery) -> None:
    quiz = Quiz(make_questions(gallery, per_kind=1))
    for player in ("Ada", "Bert"):
        while not quiz.finished:
            quiz.answer(
                quiz.current.trial.intruder if player == "Ada" else (quiz.current.trial.intruder + 1) % 5, player
            )
        if player == "Ada":
            assert [share.right for share in quiz.score().values()] == [1, 1]
            quiz.restart(make_questions(gallery, per_kind=1, seed=1))
            assert [share.count for share in quiz.score().values()] == [0, 0]
    assert [share.right for share in quiz.score().values()] == [0, 0]
    assert quiz.results["player"].tolist() == ["Ada", "Ada", "Bert", "Bert"]
    assert quiz.results["round"].tolist() == [1, 1, 2, 2]
    with pytest.raises(ValueError, match="question"):
        quiz.restart([])


def test_an_embedding_can_be_asked_the_same(gallery) -> None:
    quiz = Quiz(make_questions(gallery, per_kind=6))
    found = quiz.score_of_embedding(gallery.outputs - gallery.outputs.mean(0))
    assert [share.count for share in found.values()] == [6, 6]
    centred = torch.nn.functional.normalize(gallery.outputs - gallery.outputs.mean(0), dim=1)
    right = 0
    for question in quiz.questions:
        shown = centred[list(question.trial.images)]
        alike = (shown @ shown.T).fill_diagonal_(0).sum(1)
        right += int(alike.argmin()) == question.trial.intruder
    assert sum(share.right for share in found.values()) == right


@pytest.mark.parametrize(("right", "count"), [(0, 10), (3, 10), (10, 10), (1, 1), (57, 80)])
def test_the_interval_is_wilsons(right, count) -> None:
    z = 1.959963984540054
    share = right / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    found = share_of(right, count)
    assert (found.low, found.high) == pytest.approx((middle - half, middle + half), abs=1e-9)
    assert found.share == share


def test_without_answers_there_is_no_share() -> None:
    assert math.isnan(share_of(0, 0).share)
    assert str(share_of(0, 0)) == "no answers yet"
    with pytest.raises(ValueError, match="right=3"):
        share_of(3, 2)


def test_a_csv_is_written_atomically(gallery, tmp_path: Path, monkeypatch) -> None:
    quiz = Quiz(make_questions(gallery, per_kind=2))
    while not quiz.finished:
        quiz.answer(0, 'Äda, "the first"')
    path = tmp_path / "answers.csv"
    quiz.save_csv(path)
    again = pd.read_csv(path)
    assert list(again.columns) == list(quiz.results.columns)
    assert again["right"].tolist() == quiz.results["right"].tolist()
    assert np.array_equal(
        again["unit"].to_numpy(dtype=float), quiz.results["unit"].to_numpy(dtype=float, na_value=np.nan), equal_nan=True
    )
    assert set(again["player"]) == {'Äda, "the first"'}
    before = path.read_bytes()

    def fails(self: pd.DataFrame, file: Path, **_: object) -> None:
        Path(file).write_text("half", encoding="utf-8")
        raise OSError("disk full")

    monkeypatch.setattr(pd.DataFrame, "to_csv", fails)
    with pytest.raises(OSError, match="disk full"):
        quiz.save_csv(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_before_the_first_round_there_is_nothing_to_answer() -> None:
    quiz = Quiz()
    assert (quiz.finished, quiz.round) == (True, 0)
    with pytest.raises(ValueError, match="restart"):
        quiz.answer(0)


def test_without_answers_the_table_has_its_columns(gallery) -> None:
    table = Quiz().results
    assert len(table) == 0
    assert list(table.columns) == [
        "player",
        "round",
        "question",
        "kind",
        "channel",
        "unit",
        "answer",
        "intruder",
        "right",
        "seconds",
        "crop",
    ]


def test_each_image_has_the_patch_of_its_unit(gallery) -> None:
    for question in make_questions(gallery, per_kind=4):
        maps = (
            gallery.channel(question.channel).maps.sum(-1)
            if question.unit is None
            else gallery.images_of_unit(question.channel, question.unit)
        )
        for image, patch in zip(question.trial.images, question.patches, strict=True):
            assert float(maps[image, patch]) == pytest.approx(float(maps[image].max()), abs=1e-4)


def test_the_clearest_question_is_the_clearest(gallery) -> None:
    centred = torch.nn.functional.normalize(gallery.outputs - gallery.outputs.mean(0), dim=1)

    def clear(question: Question) -> float:
        of = [centred[image] for image in question.trial.images]
        odd = of.pop(question.trial.intruder)
        among = [float(of[i] @ of[j]) for i in range(len(of)) for j in range(i)]
        return float(np.mean(among) - np.mean([float(odd @ one) for one in of]))

    found = clearest_question(gallery, size=4)
    left_out = clearest_question(gallery, size=4, leave_out=[found.channel])
    assert (found.kind, left_out.channel == found.channel) == (SUB_UNIT, False)
    every = range(gallery.split.site.channels)
    assert clearest_question(gallery, size=4, leave_out=every) == found  # there are no others
    assert clear(found) > clear(left_out)
    mean = np.mean([clear(q) for q in make_questions(gallery, per_kind=8, size=4) if q.kind == SUB_UNIT])
    assert clear(found) > mean


def answered(rights: dict[tuple[str, int], list[bool]]) -> pd.DataFrame:
    rows = [
        {"player": f"p{i}", "kind": kind, "channel": channel, "unit": None if kind == CHANNEL else 1, "right": right}
        for (kind, channel), some in rights.items()
        for i, right in enumerate(some)
    ]
    return pd.DataFrame(rows)


def test_a_class_is_counted_by_question() -> None:
    # one question that all of many people got right does not outweigh another that few answered
    answers = answered({(CHANNEL, 1): [True] * 9, (CHANNEL, 2): [False], (SUB_UNIT, 1): [True], (SUB_UNIT, 2): [True]})
    result = class_result(answers)
    assert (result.people, result.answers) == (9, 12)
    assert (result.shares[CHANNEL].mean, result.shares[SUB_UNIT].mean) == (0.5, 1.0)
    assert result.difference is not None
    assert result.difference.mean == 0.5
    assert (result.difference.low, result.difference.high) == (0.0, 1.0)
    assert "No difference so far" in str(result)


def test_a_class_that_agrees_gets_a_verdict() -> None:
    rights = {(CHANNEL, c): [False, False] for c in range(6)} | {(SUB_UNIT, c): [True, True] for c in range(6)}
    assert "more often for sub-units than for whole channels: +100 points" in str(class_result(answered(rights)))
    turned = {(kind, c): [not right for right in some] for (kind, c), some in rights.items()}
    assert "more often for whole channels than for sub-units: -100 points" in str(class_result(answered(turned)))
    assert "No answers to both" in str(class_result(answered({(CHANNEL, 1): [True]})))
