"""Notebooks are short cells of library calls between paragraphs, stored without outputs."""

import ast
import importlib
import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

TUTORIALS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
EXERCISES = sorted((Path(__file__).parent.parent / "notebooks" / "exercises").glob("*.ipynb"))
NOTEBOOKS = [*TUTORIALS, *EXERCISES]


def read(path: Path) -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return cells


def code_of(path: Path) -> list[str]:
    return ["".join(cell["source"]) for cell in read(path) if cell["cell_type"] == "code"]


def test_there_are_notebooks() -> None:
    assert [path.stem[:2] for path in TUTORIALS] == [path.stem[:2] for path in EXERCISES]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_outputs_are_stored(path: Path) -> None:
    for cell in read(path):
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_are_short(path: Path) -> None:
    lengths = [len(source.splitlines()) for source in code_of(path)]
    assert max(lengths) <= 12
    assert statistics.median(lengths) <= 5


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)  # in exercises students write functions
def test_logic_lives_in_the_library(path: Path) -> None:
    for source in code_of(path):
        defined = [
            node
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda)
        ]
        assert not defined, source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_imports_exist_and_are_not_deprecated(path: Path) -> None:
    """A kernel only prints a DeprecationWarning. A module's own name is its present path, whoever imported it first."""
    nodes = [node for source in code_of(path) for node in ast.parse(source).body]
    imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    assert imports
    for node in imports:
        exec(ast.unparse(node), {})  # noqa: S102 - the notebook's own lines
        for name in [node.module] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names]:
            assert importlib.import_module(str(name)).__name__ == name


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_teaches(path: Path) -> None:
    cells = read(path)
    text = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    assert "What you will know afterwards" in text
    assert "## Try it yourself" in text
    assert re.search(r"\n\n\*\*Time\*\*: about \d+ (seconds|minutes?) on two cores", "".join(cells[0]["source"]))
    tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1
    assert cells.index(tagged[0]) <= 2


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_the_tests_make_smaller_is_a_parameter(path: Path) -> None:
    """Where nbmake puts another value in a parameter's place, so that the tests take minutes less."""
    cells = read(path)
    (cell,) = (each for each in cells if "parameters" in each["metadata"].get("tags", []))
    smaller = cell["metadata"].get("nbmake", {}).get("mock", {})
    given: dict[str, Any] = {}
    exec("".join(cell["source"]), given)  # noqa: S102 - the notebook's own lines, which only assign
    assert all(smaller[name] < given[name] for name in smaller)
    assert [each for each in cells if "nbmake" in each["metadata"]] == [cell] * bool(smaller)
