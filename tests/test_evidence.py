"""benchmarks/evidence.py on a tiny network: its parts, its page, and that nothing is computed twice."""

from __future__ import annotations

import dataclasses
import json
from types import ModuleType, SimpleNamespace

import pytest

import elude_nb as en
from tests.programs import load_program
from tests.tiny import tiny_vit, to_tensor


@pytest.fixture
def program(monkeypatch) -> ModuleType:
    found: ModuleType = load_program("benchmarks/evidence.py", monkeypatch)
    load = en.load_images

    def made(*_: object, **__: object) -> en.Model:
        return dataclasses.replace(tiny_vit(), preprocess=lambda image: to_tensor(image.resize((32, 32))))

    monkeypatch.setattr(found.en, "load_model", made)
    monkeypatch.setattr("elude_nb.models.forward.load_model", made)
    monkeypatch.setattr(found.en, "load_images", lambda source, **more: load(
        "shapes" if isinstance(source, str) else source, **more))  # fmt: skip
    names = SimpleNamespace(names={0: "circle", 1: "circle (2)"})
    monkeypatch.setattr(found.en, "name_concepts", lambda *_: names)
    monkeypatch.setattr(found, "NETWORKS", {"first": None, "second": None})
    monkeypatch.setattr(found, "STEERED", (("first", "crops", "circle"),))
    monkeypatch.setattr(found, "BASELINES", ("LEACE", "best channel"))
    monkeypatch.setattr(found, "STEERING_IMAGES", 64)
    monkeypatch.setattr(found, "CUT_OUTS", ["cross", "star"])
    return found


def test_the_page_has_every_table_and_a_second_run_computes_nothing(program: ModuleType, tmp_path, monkeypatch) -> None:
    asked = ["--out", str(tmp_path), "--seeds", "0", "--count", "32", "--pictures", "crops", "stamps"]
    program.main(asked)
    page = (tmp_path / "evidence.md").read_text()
    counts = {"top similarity": 8, "monosemanticity": 8, "The same on drawings?": 4, "A shape is exchanged": 6,
              "One of two cut-outs is exchanged": 6}  # fmt: skip
    for title, count in counts.items():
        section = page.partition(f"## {title}\n")[2].partition("\n## ")[0]
        rows = [line for line in section.splitlines() if line.startswith("| ") and "---" not in line]
        assert len(rows) == count + 1, title
    steered = json.loads(next(tmp_path.glob("steer-*")).read_text())
    assert {"edit", "ablated to others", "LEACE", "best channel"} == {row["method"] for row in steered["rows"]}
    kinds = json.loads(next(tmp_path.glob("score-first_crops_second*")).read_text())["top_similarity"]
    assert all(-1 <= kinds[kind] <= 1 for kind in ("sub-unit", "channel", "random route"))

    monkeypatch.setattr(program, "network", None)  # nothing could be computed now
    (tmp_path / "evidence.md").unlink()
    program.main(asked)
    assert (tmp_path / "evidence.md").read_text() == page
