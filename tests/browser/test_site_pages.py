"""The site is built without a warning, its links lead somewhere, and its pages open offline."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent.parent / "docs"
PAGES = ("index.html", "steering.html", "api/front_door.html", "api/course.html")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sphinx", reason="Sphinx is of the extra docs")
    out = tmp_path_factory.mktemp("site") / "pages"
    made = subprocess.run(
        [sys.executable, DOCS / "build_site.py", "--out", out], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stdout + made.stderr
    return out


def test_it_is_built_and_its_links_lead_somewhere(site: Path) -> None:
    for name in PAGES:
        assert (site / name).stat().st_size > 1000
    assert "check_random_routes" in (site / "api" / "course.html").read_text(encoding="utf-8")


@pytest.mark.browser
def test_pages_open_offline_on_a_phone_too(page, site: Path) -> None:
    failed = list[str]()
    page.on("requestfailed", lambda request: failed.append(request.url))
    page.on("console", lambda said: failed.append(said.text) if said.type == "error" else None)
    page.set_viewport_size({"width": 400, "height": 800})
    for name in PAGES:
        page.goto((site / name).as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert failed == []
