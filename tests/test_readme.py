"""The README's first screen: one sentence, one picture, two commands, and figures that were filled in."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import elude_nb
from elude_nb import load_images

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


@pytest.mark.parametrize("heading", ["I have a folder of pictures", "I have a model", "I teach"])
def test_five_lines_for_each_reader_run_as_they_stand(heading: str, tmp_path: Path) -> None:
    section = README.split(f"## {heading}\n")[1].split("\n## ")[0]
    language, code = re.findall(r"```(sh|python)\n(.*?)```", section, flags=re.DOTALL)[0]
    assert len([line for line in code.splitlines() if line and "import" not in line]) <= 5
    photographs = load_images("photographs", count=20)
    for number, (image, label) in enumerate(zip(photographs, photographs.labels or (), strict=True)):
        (tmp_path / "my_pictures" / label).mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "my_pictures" / label / f"{number}.png")
    command = ["bash", "-euo", "pipefail", "-c"] if language == "sh" else [sys.executable, "-c"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    ran = subprocess.run(
        [*command, code], cwd=tmp_path, capture_output=True, text=True, check=False, env={**os.environ, "PATH": path}
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    expected = {"sh": "none seen in discovery", "python": ""}[language]
    assert expected in ran.stdout
    made = {"I have a folder of pictures": "report.html", "I teach": "answers.csv"}.get(heading)
    assert made is None or (tmp_path / made).stat().st_size > 0
