"""The site is built without a warning, and its links lead somewhere; those that do not are found on written pages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.programs import load_program

DOCS = Path(__file__).parent.parent / "docs"


def test_links_that_lead_nowhere_and_requests_are_found(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "api").mkdir()
    (tmp_path / "api" / "b.html").write_text(
        '<h1 id="here">b</h1><a href="../a.html#top">a</a><a href="https://elsewhere">x</a>'
    )
    (tmp_path / "a.html").write_text(
        '<p id="top"><a href="api/b.html#here">b</a> <a href="api/b.html#there">?</a> <a href="c.html">c</a>'
        '<a href="#top">up</a><img src="none.png"><script src="https://cdn/x.js"></script>'
    )
    assert sorted(load_program("docs/build_site.py", monkeypatch).find_faults(tmp_path)) == [
        "a.html leads to api/b.html#there; the page has no such place",
        "a.html leads to c.html, which is not there",
        "a.html leads to none.png, which is not there",
        "a.html loads https://cdn/x.js",
    ]


def test_it_is_built_and_its_links_lead_somewhere(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="Sphinx is of the extra docs")
    made = subprocess.run(
        [sys.executable, DOCS / "build_site.py", "--out", tmp_path / "site"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    for page in ("index.html", "steering.html", "api/front_door.html", "api/course.html"):
        assert (tmp_path / "site" / page).stat().st_size > 1000
    assert "check_random_routes" in (tmp_path / "site" / "api" / "course.html").read_text(encoding="utf-8")


def test_every_page_of_the_docs_is_on_the_site_once() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    trees = [part.partition("```")[0].splitlines()[1:] for part in index.split("```{toctree}")[1:]]
    listed = [line for tree in trees for line in tree if line and not line.startswith(":")]
    pages = {path.stem for path in DOCS.glob("*.md")} - {"index"}
    assert sorted(name for name in listed if not name.startswith("api/")) == sorted(pages)
