"""The table as people read it: every value, every interval, the best of each column and no other."""

from __future__ import annotations

from html.parser import HTMLParser

import pandas as pd
import pytest

from elude_nb.baselines.compare import table_of_methods
from elude_nb.scores.verdict import HIGHER_IS_BETTER

NAN = float("nan")
TABLE = pd.DataFrame(
    {
        "method": ["a <b> & c", "other", "third", "third"],
        "size": ["equal", "equal", "equal", "own"],
        "units": [1234, 8, 8, 900],
        "top_similarity": [0.25, 0.75, 0.5, 0.99],
        "top_similarity_low": [0.2, 0.7, 0.4, 0.9],
        "top_similarity_high": [0.3, 0.8, 0.6, 1.0],
        "output_change": [0.0, 0.0, 1.5e-7, 0.0],
        "redundancy": [NAN, 0.5, 0.25, 0.1],
        "bytes": [5e6, 10.0, 1.5, 2.0],
    }
)


class Cells(HTMLParser):
    """Gathers the text of all cells, row by row, and which of them are marked."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.best: set[tuple[int, int]] = set()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            if ("class", "best") in attrs:
                self.best.add((len(self.rows) - 1, len(self.rows[-1]) - 1))

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.rows[-1][-1] += data


def read(table: pd.DataFrame, size: str = "equal") -> Cells:
    cells = Cells()
    cells.feed(table_of_methods(table, size))
    assert not cells.open
    return cells


def test_cells_are_readable_and_intervals_stand_with_their_means() -> None:
    assert read(TABLE).rows == [
        ["method", "units", "top similarity ↑", "output change ↓", "redundancy ↓", "bytes"],
        ["a <b> & c", "1,234", "0.250 [0.200, 0.300]", "0", "\N{EN DASH}", "5,000,000"],
        ["other", "8", "0.750 [0.700, 0.800]", "0", "0.5", "10"],
        ["third", "8", "0.500 [0.400, 0.600]", "1.5e-07", "0.25", "1.5"],
    ]


def test_the_best_of_each_judged_column_is_marked_and_ties_are_shared() -> None:
    assert read(TABLE).best == {(2, 2), (1, 3), (2, 3), (3, 4)}


def test_only_the_rows_of_one_size_count() -> None:
    own = read(TABLE, "own")
    assert [row[0] for row in own.rows] == ["method", "third"]
    assert own.best == {(1, 2), (1, 3), (1, 4)}


def test_a_column_without_any_value_marks_nothing() -> None:
    cells = read(TABLE.assign(redundancy=NAN))
    assert [row[4] for row in cells.rows[1:]] == ["\N{EN DASH}"] * 3
    assert not [place for place in cells.best if place[1] == 4]


@pytest.mark.parametrize("name", HIGHER_IS_BETTER)
def test_arrow_and_mark_point_the_same_way(name) -> None:
    cells = read(pd.DataFrame({"method": ["low", "high"], "size": "equal", name: [0.25, 0.5]}))
    assert cells.rows[0][1] == f"{name.replace('_', ' ')} {'↑' if HIGHER_IS_BETTER[name] else '↓'}"
    assert cells.best == {(2 if HIGHER_IS_BETTER[name] else 1, 1)}
