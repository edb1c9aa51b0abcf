from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from elude_nb import course
from elude_nb.course import by_player, class_answers
from elude_nb.errors import CourseError
from elude_nb.figures import quiz_result
from elude_nb.interpret.quiz import class_result


def save(path: Path, answers: pd.DataFrame) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    answers.to_csv(path, index=False)


def test_a_class_in_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some = course.practice_answers(4, seed=0)
    one, two = (some[some["player"] == name] for name in ("made up 1", "made up 2"))
    save(tmp_path / "a.csv", one.assign(player="Anna"))
    save(tmp_path / "b" / "b.csv", two.assign(player="Anna", seconds=6.5))  # another Anna
    save(tmp_path / "c.csv", two.assign(player="", seconds=7.25))
    save(tmp_path / "a again.csv", one.assign(player="Anna"))
    save(tmp_path / "marks.csv", pd.DataFrame({"name": ["Anna"], "mark": [1]}))
    save(tmp_path / "forged.csv", one.assign(right=True))
    (tmp_path / "empty.csv").write_text("")
    found = class_answers(tmp_path)
    assert sorted(found["player"].unique()) == ["Anna", "Anna (b/b.csv)", "c"]
    assert len(found) == 3 * 8
    said = capsys.readouterr().err
    assert "left out 3 files" in said
    assert "marks.csv (no column 'player')" in said
    assert "forged.csv (column 'right'" in said
    assert "left out 8 answers that had been handed in twice" in said
    assert class_result(found).people == 3
    table = by_player(found)
    assert len(table) == 6
    assert table["answers"].eq(4).all()
    assert ((table["low"] <= table["right"]) & (table["right"] <= table["high"])).all()


def test_a_quiz_file_is_read_as_it_was_saved(tmp_path: Path) -> None:
    answers = course.practice_answers(3)
    answers.loc[0, "crop"] = float("nan")
    save(tmp_path / "all.csv", answers)
    found = class_answers(tmp_path).drop(columns="file")
    pd.testing.assert_frame_equal(found, answers)


@pytest.mark.parametrize(
    ("make", "said"), [(lambda p: None, "0 CSV files"), (lambda p: (p / "x.csv").write_text("a\n1"), "x.csv")]
)
def test_no_answers(tmp_path: Path, make: Any, said: str) -> None:
    make(tmp_path)
    with pytest.raises(CourseError, match=said):
        class_answers(tmp_path)
    with pytest.raises(CourseError, match="no folder"):
        class_answers(tmp_path / "elsewhere")


def test_the_figure_says_what_it_shows() -> None:
    answers = course.practice_answers(5)
    picture = quiz_result(answers)
    assert "whole channels" in picture.alt
    assert "2 players, 20 answers" in picture.axes[0].get_title(loc="left")
    assert quiz_result(answers[answers["kind"] == "channel"]).alt  # of one kind alone
    with pytest.raises(ValueError, match="no answers"):
        quiz_result(answers[:0])


def test_made_up_answers_are_said_to_be_made_up() -> None:
    answers = course.practice_answers(40, seed=3)
    assert all(name.startswith("made up") for name in answers["player"])
    assert (answers["right"] == (answers["answer"] == answers["intruder"])).all()
    shares = answers.groupby("kind")["right"].mean()
    assert shares["sub-unit"] > shares["channel"]
