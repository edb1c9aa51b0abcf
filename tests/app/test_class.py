"""`elude-nb class` and `elude-nb answers`: what is handed out before a course, and put together after it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nbformat
import pytest

from elude_nb.app import class_files
from elude_nb.app.class_files import write_class
from elude_nb.course import find_exercises, practice_answers
from elude_nb.course.exercises import BEGIN
from elude_nb.errors import CourseError
from tests.app import test_cli


def run(*words: object) -> int:
    return test_cli.run(*map(str, words))


NAMES = [path.name for path in find_exercises()]


def test_a_lecturer_gets_everything_but_the_report_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "monday"
    assert run("class", out, "--no-report", "--json") == 0
    assert json.loads(capsys.readouterr().out)["path"] == str(out / "index.html")
    assert sorted(path.name for path in out.iterdir()) == [
        "environment.yml", "index.html", "requirements.txt", "sheet.html", "slides.html", "solutions", "students",
    ]  # fmt: skip
    for folder, solved in (("students", False), ("solutions", True)):
        assert sorted(path.name for path in (out / folder).iterdir()) == NAMES
        for path in (out / folder).iterdir():
            assert (BEGIN in path.read_text(encoding="utf-8")) == solved
            nbformat.validate(nbformat.read(path, as_version=4))
    for path, exercise in zip(sorted((out / "solutions").iterdir()), find_exercises(), strict=True):
        assert nbformat.read(path, as_version=4) == nbformat.read(exercise, as_version=4)


def test_the_pages_open_offline_and_their_links_lead_somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_files, "_write_report", lambda path, seed: path.write_text("a report"))
    index = write_class(tmp_path)
    for page in tmp_path.glob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"(?:https?:|//)", text)
    links = re.findall(r'href="([^"]+)"', index.read_text(encoding="utf-8"))
    assert len(links) == 3 + 2 * len(NAMES)
    assert all((tmp_path / link).exists() for link in links)


def test_the_sheet_names_slides_and_parts_that_there_are(tmp_path: Path) -> None:
    write_class(tmp_path, report=False)
    sheet, slides = ((tmp_path / name).read_text(encoding="utf-8") for name in ("sheet.html", "slides.html"))
    count = slides.count('<section class="slide')
    for some in re.findall(r"slides? ([\d, toand]+)", sheet):
        assert all(1 <= int(number) <= count for number in re.findall(r"\d+", some))
    parts = {
        int(path.name[:2]): path.read_text(encoding="utf-8").count('"## ') - 1
        for path in (tmp_path / "students").iterdir()
    }
    found = re.findall(r"exercise (\d)(?: \(|, )parts? ([\d, toand]+)", sheet)
    assert len(found) >= 10
    for exercise, some in found:
        assert all(1 <= int(number) <= parts[int(exercise)] for number in re.findall(r"\d+", some))
    assert re.search(r"<td>\s*Exercise 1\. A channel is a sum .*</td><td>80</td><td>\d+</td>", sheet)


def test_an_installation_without_exercises_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("elude_nb.course.exercises.Path.glob", lambda *_: [])
    with pytest.raises(CourseError, match="install elude-nb anew"):
        write_class(tmp_path, report=False)


def test_the_answers_of_a_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "handed in"
    folder.mkdir()
    practice_answers(6).to_csv(folder / "pair 1.csv", index=False)
    assert run("answers", folder, "--out", tmp_path / "class.png", "--table", tmp_path / "all.csv") == 0
    printed = capsys.readouterr().out
    assert "made up 1" in printed
    assert "guessing: 0.20" in printed
    assert (tmp_path / "class.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "all.csv").read_text().count("\n") == 1 + 24
    assert run("answers", folder, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["shares"]) == {"channel", "sub-unit"}
    assert len(found["players"]) == 4


def test_no_answers_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("answers", tmp_path) == 2
    assert "No answers of a quiz" in capsys.readouterr().err
