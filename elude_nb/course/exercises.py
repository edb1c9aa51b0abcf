"""The exercise notebooks: each is its own solution, and the students' version is made from it."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import TYPE_CHECKING

from elude_nb._util.files import installed_notebooks
from elude_nb.errors import CourseError

if TYPE_CHECKING:
    from nbformat import NotebookNode

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
YOURS = "# your answer"
_REGION = re.compile(rf"^( *){BEGIN}\n(?:.*\n)*?\1{END}$", re.MULTILINE)


def find_exercises() -> list[Path]:
    """Return the exercise notebooks of this installation, which have the solutions, in order.

    Raises
    ------
    CourseError
        If there are none.
    """
    found = installed_notebooks("exercises")
    if not found:
        raise CourseError("The exercises are missing from this installation; install elude-nb anew.")
    return found


def clear_source(source: str) -> str:
    r"""Return the lines of a cell without its solutions; in the place of each stands a line for the student's.

    Raises
    ------
    CourseError
        If a solution begins and does not end, or ends and did not begin.

    Examples
    --------
    >>> print(clear_source("total = ...\n### BEGIN SOLUTION\ntotal = 1 + 2\n### END SOLUTION"))
    total = ...
    # your answer
    """
    cleared = _REGION.sub(rf"\1{YOURS}", source)
    if BEGIN in cleared or END in cleared:
        raise CourseError(f"{BEGIN!r} and {END!r} must stand in pairs, equally far to the right, in:\n{source}")
    return cleared


def clear_solutions(notebook: NotebookNode) -> NotebookNode:
    """Return the students' version of an exercise: without solutions, outputs, and what only tests need.

    nbgrader makes its own in the same way, from the same marks; the cells have its metadata.

    Raises
    ------
    CourseError
        As in `clear_source`.
    """
    cleared = copy.deepcopy(notebook)
    for cell in cleared.cells:
        cell.metadata.pop("nbmake", None)
        if cell.cell_type == "code":
            cell.source = clear_source(cell.source)
            cell.outputs, cell.execution_count = [], None
    return cleared
