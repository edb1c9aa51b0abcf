"""What a class answered: the files of all students' quizzes as one table, and what it shows."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd

from elude_nb._util.progress import say
from elude_nb._util.words import counted
from elude_nb.errors import CourseError
from elude_nb.interpret.quiz import KINDS, as_table, share_of

_COLUMNS = list(as_table([]).columns)


def class_answers(folder: str | os.PathLike[str]) -> pd.DataFrame:
    """Return the answers in all CSV files of a folder, which `IntruderQuiz` or `QuizBoard` have saved, as one table.

    A player is who has a name in a file: of two files with one name, the second is "Anna (b.csv)". An answer that was
    handed in twice counts once. What was left out is said on standard error.

    Parameters
    ----------
    folder
        Its CSV files are read, and those of its subfolders.

    Returns
    -------
    DataFrame
        The columns of `elude_nb.interpret.quiz.Quiz.results`, and ``file``.

    Raises
    ------
    CourseError
        If there is no such folder, or no answer in it.
    """
    place = Path(folder)
    if not place.is_dir():
        raise CourseError(f"There is no folder {str(place)!r}; name the one with the students' files.")
    paths = sorted(path for path in place.rglob("*.csv") if path.is_file())
    parts, wrong = [], []
    for path in paths:
        try:
            parts.append(_read(path).assign(file=str(path.relative_to(place))))
        except (ValueError, OSError) as error:
            wrong.append(f"{path.relative_to(place)} ({str(error).splitlines()[0]})")
    if not any(map(len, parts)):
        left_out = f"; left out: {', '.join(wrong)}" if wrong else ""
        raise CourseError(f"No answers of a quiz are in {str(place)!r}: {counted(len(paths), 'CSV file')}{left_out}.")
    table = pd.concat([each for each in parts if len(each)], ignore_index=True)
    once = table[~table.duplicated([name for name in _COLUMNS if name != "crop"])].reset_index(drop=True)
    once["player"] = _names(once)
    if wrong:
        say(f"left out {counted(len(wrong), 'file')}: {', '.join(wrong)}")
    if len(once) < len(table):
        say(f"left out {counted(len(table) - len(once), 'answer')} that had been handed in twice")
    return once


def _read(path: Path) -> pd.DataFrame:
    """Return the answers in a file; ``ValueError`` if it has something else."""
    found = pd.read_csv(path, keep_default_na=True, dtype={"player": "string"})
    lacking = [name for name in _COLUMNS if name not in found]
    if lacking:
        raise ValueError(f"no column {lacking[0]!r}")
    table = as_table(
        [dict(zip(_COLUMNS, row, strict=True)) for row in found[_COLUMNS].itertuples(index=False)]
    )  # which checks the types
    table["player"] = table["player"].astype("object").fillna("").astype(str)
    unknown = set(table["kind"]) - set(KINDS)
    if unknown:
        raise ValueError(f"no kind of unit: {sorted(map(str, unknown))[0]!r}")
    if not (table["right"] == (table["answer"] == table["intruder"])).all():
        raise ValueError("column 'right' is not what follows from 'answer' and 'intruder'")
    return table


def _names(table: pd.DataFrame) -> pd.Series[str]:
    """Return the players' names, each with its file where several files have it or it is empty."""
    files = table.groupby("player")["file"].transform(lambda of: of != of.iloc[0])
    alone = (table["player"] != "") & ~files
    stems = table["file"].map(lambda name: Path(name).stem)
    both = table["player"] + " (" + table["file"] + ")"
    return table["player"].where(alone, both.where(table["player"] != "", stems))


def by_player(answers: pd.DataFrame) -> pd.DataFrame:
    """Return one row a player: how many answers of each kind, which share was right, and its 95 % interval (Wilson).

    Parameters
    ----------
    answers
        As `class_answers` returns them.
    """
    rows = []
    for (player, kind), right in answers.groupby(["player", "kind"])["right"]:
        found = share_of(int(right.sum()), len(right))
        rows.append(
            {
                "player": player,
                "kind": kind,
                "answers": found.count,
                "right": found.share,
                "low": found.low,
                "high": found.high,
            }
        )
    return pd.DataFrame(rows, columns=["player", "kind", "answers", "right", "low", "high"])
