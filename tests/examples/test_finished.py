"""The example that travels in the package: it is what the script would write, and it is shown at once."""

from __future__ import annotations

import hashlib
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import elude_nb as en
from elude_nb.examples.finished import FOLDER
from tests.markup import Page

SCRIPT = Path(__file__).parent.parent.parent / "docs" / "make_example.py"


@pytest.fixture(scope="module")
def stored() -> Any:
    return json.loads((FOLDER / "example.json").read_text(encoding="utf-8"))


def test_it_is_current(stored) -> None:
    """Made by the script as it is, for this version, and nothing was changed afterwards."""
    recipe = runpy.run_path(str(SCRIPT))["RECIPE"]
    assert stored["recipe"] == recipe, "run docs/make_example.py"
    assert stored["version"].split(".")[:2] == en.__version__.split(".")[:2], "run docs/make_example.py"
    rows = [row for entry in stored["channels"] for row in entry["rows"]]
    assert {row["picture"] for row in rows} == {file.name for file in FOLDER.glob("*.jpg")}
    width = recipe["pictures"] * (recipe["side"] + recipe["gap"]) - recipe["gap"]
    for row in rows:
        content = (FOLDER / row["picture"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == row["sha256"]
        with Image.open(FOLDER / row["picture"]) as strip:
            assert strip.size == (width, recipe["side"])
        assert len(row["labels"]) == recipe["pictures"]
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 1.5e6


def test_the_best_come_first_those_that_repeat_them_last(stored) -> None:
    entries, distinct = stored["channels"], stored["distinct"]
    assert len(entries) == stored["recipe"]["channels"]
    assert 0 < distinct <= len(entries)
    for part in (entries[:distinct], entries[distinct:]):
        values = [entry["separation"] for entry in part]
        assert values == sorted(values, reverse=True)
    assert stored["discovery"] + stored["unseen"] == stored["recipe"]["images"]


def test_it_shows_itself() -> None:
    example = en.example()
    assert repr(example) == "Example(dinov2-small on the photographs: the 20 channels that come apart best)"
    page = Page(example._repr_html_())
    assert len(page.find("img")) == sum(len(channel.rows) for channel in example.channels)
    assert all(attributes["alt"] for attributes in page.find("img"))
    first = example.channels[0]
    assert first.caption == (
        f"similarity {first.before:.2f} → {first.after:.2f} on unseen images; random routes {first.random:.2f}"
    )
    assert first.after - first.before > 0.5
    assert first.rows[0].title == "whole channel"
    assert re.fullmatch(r"sub-unit \d+, .+", first.rows[1].title)
    assert first.caption in example.html(most=1)
    assert example.channels[1].caption not in example.html(most=1)
    assert "&lt;b&gt; note" in example.html("<b> note")


def test_it_needs_no_model_and_no_torch() -> None:
    program = "import sys, elude_nb as en; en.example()._repr_html_(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
