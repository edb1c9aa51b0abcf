"""benchmarks/paper_table.py on a tiny network: its rows, what it writes, and that nothing is computed twice."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from elude_nb.scores import coherence, effective_rank
from tests.programs import load_program
from tests.tiny import random_images, tiny_vit

QUICK = ["--site", "blocks.2.mlp.fc2", "--count", "70", "--scored", "24", "--head-images", "10",
         "--units", "6", "--latents", "24", "--steps", "3", "--pairs", "2"]  # fmt: skip


@pytest.fixture
def program(monkeypatch) -> ModuleType:
    found: ModuleType = load_program("benchmarks/paper_table.py", monkeypatch)
    monkeypatch.setattr(found.en, "load_model", lambda name: tiny_vit())
    monkeypatch.setattr(found.en, "load_images", lambda *_, **__: random_images(94, 32))
    return found


def run(program: ModuleType, out: Path, *more: str) -> list[dict[str, Any]]:
    program.main(["--out", str(out), *QUICK, *more])
    return [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()][1:]


def test_rows_are_written_and_not_computed_again(program, monkeypatch, tmp_path, capsys) -> None:
    rows = run(program, tmp_path, "--only", "channels", "TopK SAE", "signed rule")
    assert [row["row"] for row in rows] == ["channels", "TopK SAE", "signed rule"]
    channels, _, signed = rows
    weight = tiny_vit().network.get_parameter("blocks.2.mlp.fc2.weight").detach()
    assert channels["live"] == len(weight)
    assert channels["r2"] == signed["r2"] == pytest.approx(100)
    assert channels["coherence"] == pytest.approx(coherence(weight.float()))
    assert channels["rank"] == pytest.approx(effective_rank(weight.float(), standardise=False))
    assert channels["stability"] == 100
    assert torch.tensor(signed["best"]).shape[0] == 9
    printed = capsys.readouterr().out
    assert "| channels | 24 |" in printed
    assert "36.4, 36.2, 48.3" in printed
    monkeypatch.setattr(program.Bench, "row", lambda *_: pytest.fail("computed again"))
    monkeypatch.setattr(program, "judge_pairs", lambda *_, **__: pytest.fail("judged again"))
    assert run(program, tmp_path, "--only", "channels", "TopK SAE", "signed rule") == rows
    assert capsys.readouterr().out.splitlines() == printed.splitlines()[3:]  # the table, without the three rows before


def test_an_interrupt_loses_one_row(program, monkeypatch, tmp_path) -> None:
    real = program.Bench.row

    def interrupted(bench: Any, name: str, make: Any) -> Any:
        if name == "TopK SAE":
            raise KeyboardInterrupt
        return real(bench, name, make)

    monkeypatch.setattr(program.Bench, "row", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(program, tmp_path, "--only", "channels", "TopK SAE")
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [line.get("row") for line in lines] == [None, "channels"]
    with pytest.raises(SystemExit, match="other settings"):
        run(program, tmp_path, "--steps", "4")


def test_two_tokens_of_each_image_and_other_ones_each_draw(program, tmp_path) -> None:
    bench = program.Bench(program.read_arguments(["--out", str(tmp_path), *QUICK]))
    for draw, seed in zip(bench.draws, program.SEEDS, strict=True):
        assert draw.images.unique(return_counts=True)[1].tolist() == [2] * 70
        again = program.en.record(
            bench.model, bench.discovery, bench.place, tokens="all", tokens_per_image=2, seed=seed
        )
        torch.testing.assert_close(draw.sources, program.en.Recording.join(list(again)).sources)
    assert not bench.draws[0].positions.equal(bench.draws[1].positions)
