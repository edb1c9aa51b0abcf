"""Every exercise: its solution passes, its cleared version says that answers are missing, and no solution is left."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import Any

import nbformat
import pytest

import elude_nb as en
from elude_nb import course
from elude_nb.app.tour import lacking_packages
from elude_nb.course import clear_solutions, find_exercises
from elude_nb.course.answers import Right
from elude_nb.course.exercises import BEGIN, END, YOURS, clear_source
from elude_nb.errors import AnswerError, CourseError

PATHS = find_exercises()
load_once = cache(en.load_model)  # no exercise changes the model


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def role(cell: Any) -> str:
    marks = cell.metadata.get("nbgrader", {})
    return "answer" if marks.get("solution") else "check" if marks.get("grade") else "given"


def solutions_of(source: str) -> list[str]:
    """Return the lines between the marks."""
    lines, inside, found = source.splitlines(), False, []
    for line in lines:
        inside = (inside or line.strip() == BEGIN) and line.strip() != END
        if inside and line.strip() not in {BEGIN, ""}:
            found.append(line.strip())
    return found


def names_in(source: str) -> set[str]:
    return {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}


def test_there_is_one_for_each_notebook() -> None:
    assert [path.stem[:2] for path in PATHS] == [f"{number:02d}" for number in range(1, 9)]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_no_line_of_a_solution_is_left(path: Path) -> None:
    whole, cleared = read(path), clear_solutions(read(path))
    text = "\n".join(cell.source for cell in cleared.cells)
    assert BEGIN not in text
    assert END not in text
    for before, after in zip(whole.cells, cleared.cells, strict=True):
        secret = solutions_of(before.source)
        assert bool(secret) == (role(before) == "answer")
        assert (YOURS in after.source) == bool(secret)
        left = {line.strip() for line in after.source.splitlines()}
        assert not left & set(secret)
    # Nor elsewhere, in a later cell that does an exercise once more. Short lines, such as imports, may be anywhere.
    secrets = {line for cell in whole.cells for line in solutions_of(cell.source) if len(line) > 35}
    assert not {line.strip() for line in text.splitlines()} & secrets


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_nbgrader_takes_it_as_it_is(path: Path) -> None:
    cells = [cell for cell in read(path).cells if cell.cell_type == "code"]
    marks = [cell.metadata["nbgrader"] for cell in cells if "nbgrader" in cell.metadata]
    ids = [each["grade_id"] for each in marks]
    assert len(set(ids)) == len(ids)
    assert all(each["schema_version"] == 3 for each in marks)
    assert all(each["locked"] == each["grade"] == (not each["solution"]) for each in marks)
    assert [each["grade_id"] for each in marks if each["grade"]] == [
        f"{each['grade_id']}-check" for each in marks if each["solution"]
    ]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_each_exercise_says_minutes_how_hard_it_is_and_what_for(path: Path) -> None:
    parts = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown").split("\n## ")[1:-1]
    minutes = []
    for part in parts:
        line = part.splitlines()[2]
        assert line.startswith("*")
        assert line.count("·") == 2
        assert "· what for: " in line
        assert sum(map(line.count, "●○")) == 5
        minutes.append(int(line[1:].split(" minutes")[0]))
    said = int(re.search(r"and (\d+) minutes of yours", read(path).cells[0].source)[1])  # type: ignore[index]
    assert abs(said - sum(minutes)) <= 5
    assert 45 <= said <= 90


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_solutions_pass_and_nothing_else_does(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Everything runs once. Each answer is cleared first, and its check says so; then it is solved.

    Given cells that use an answer also run as they do for a student who has none: they must not crash.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(en, "load_model", load_once)
    notebook = read(path)
    if lacking := lacking_packages(notebook):
        pytest.skip(lacking)
    solved: dict[str, Any] = {}
    none: dict[str, Any] = {}  # what a student's notebook has in place of the answers
    latest: dict[str, Any] = {}
    for cell, cleared in zip(notebook.cells, clear_solutions(notebook).cells, strict=True):
        if cell.cell_type != "code":
            continue
        if role(cell) == "answer":
            trial = dict(solved)
            exec(cleared.source, trial)  # noqa: S102 - the notebook's own lines
            latest = {name: made for name, made in trial.items() if solved.get(name) is not made and name[:2] != "__"}
            none |= latest
            exec(cell.source, solved)  # noqa: S102
        elif role(cell) == "check":
            with pytest.raises(AnswerError):
                eval(cell.source, {**solved, **latest})  # noqa: S307
            assert isinstance(eval(cell.source, solved), Right)  # noqa: S307
        else:
            exec(cell.source, solved)  # noqa: S102
            if names_in(cell.source) & set(none):
                exec(cell.source, {**solved, **none})  # noqa: S102
    worth_asking = {"02": "len(r) > 2 and missing > 0", "03": "gain.std() > 0", "08": "0 < named.sum() < len(named)"}
    assert eval(worth_asking.get(path.stem[:2], "True"), solved)  # noqa: S307


def test_every_check_is_asked_for() -> None:
    called = {name for path in PATHS for cell in read(path).cells if role(cell) == "check" for name in names_of(cell)}
    assert called == {name for name in course.__all__ if name.startswith("check_")}


def names_of(cell: Any) -> set[str]:
    return {node.attr for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Attribute)} & set(
        course.__all__
    )


@pytest.mark.parametrize("source", [f"{BEGIN}\nx = 1", f"x = 1\n{END}", f"  {BEGIN}\nx = 1\n{END}"])
def test_marks_come_in_pairs(source: str) -> None:
    with pytest.raises(CourseError, match="must stand in pairs"):
        clear_source(source)


def test_several_solutions_in_one_cell() -> None:
    source = f"a = ...\n{BEGIN}\na = 1\n{END}\nb = 2\n{BEGIN}\nb = 3\n{END}"
    assert clear_source(source) == f"a = ...\n{YOURS}\nb = 2\n{YOURS}"
