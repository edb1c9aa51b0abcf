"""The README's first screen: one sentence, one picture, two commands, and figures that were filled in."""

import ast
import re
import subprocess
from pathlib import Path

import elude_nb

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_two_commands_that_do_their_own_set_up() -> None:
    tour, tests = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)[:2]
    for command in (tour, tests):
        assert len(command.strip().splitlines()) == 1
        assert command.startswith("python3 -m venv ")
    assert tour.strip().endswith("elude-nb tour --only 01,02")
    assert tests.strip().endswith("pytest -n 2 --dist worksteal")


def test_they_stand_on_the_first_screen() -> None:
    start = README.splitlines()[:25]
    assert sum(line.startswith("```sh") for line in start) == 2
    assert any(line.startswith("![") for line in start)


def test_pictures_and_links_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_python_blocks_use_names_that_exist() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    used = {
        node.attr
        for node in ast.walk(ast.parse("\n".join(blocks)))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "en"
    }
    assert {"disentangle", "verify"} <= used
    assert not [name for name in used if not hasattr(elude_nb, name)]


def test_no_figure_was_left_to_fill_in() -> None:
    assert not re.findall(r"\b(?:TIME|DISK|MEASURED|TODO)[A-Z_]*\b", README)


def test_ci_runs_the_test_command_of_this_page() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    extract = next(line for line in script.splitlines() if line.startswith("command=$(awk"))
    found = subprocess.run(
        ["bash", "-c", f'{extract}; printf %s "$command"'], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)[1].strip()
