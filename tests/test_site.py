"""The site's links are followed after it was built; here on pages written by hand."""

from __future__ import annotations

from pathlib import Path

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


def test_every_page_of_the_docs_is_on_the_site_once() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    trees = [part.partition("```")[0].splitlines()[1:] for part in index.split("```{toctree}")[1:]]
    listed = [line for tree in trees for line in tree if line and not line.startswith(":")]
    pages = {path.stem for path in DOCS.glob("*.md")} - {"index"}
    assert sorted(name for name in listed if not name.startswith("api/")) == sorted(pages)
