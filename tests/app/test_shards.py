from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import pandas as pd
import pytest
import torch

from elude_nb import Disentanglement, load_model
from elude_nb.app.cli import main
from elude_nb.app.processes import own_device
from tests.workers import run_as_torchrun, start

TINY = ["--model", "test_vit", "--no-pretrained", "--image-size", "32"]
TAKE = [*TINY, "--images", "photographs", "--count", "40", "--hold-out", "0", "--concepts", "4", "--units", "2"]


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([str(each) for each in arguments])
    return int(stopped.value.code or 0)


def test_shards_are_collected_and_merged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = [tmp_path / f"part-{index}.safetensors" for index in (1, 2)]
    for index, part in enumerate(parts, 1):
        assert run("collect", *TAKE, "--shard", f"{index}/2", "--out", part, "--json") == 0
    assert json.loads(re.findall(r"\{[^}]+\}", capsys.readouterr().out)[1])["images"] == 24
    assert run("collect", *TAKE, "--shard", "2/2", "--out", parts[1]) == 0
    assert "has 24 of 24 images already" in capsys.readouterr().err
    assert run("merge", *parts, "--no-pretrained", "--out", tmp_path / "merged.safetensors") == 0
    assert run("disentangle", *TAKE, "--out", tmp_path / "whole.safetensors") == 0
    model = load_model("test_vit", pretrained=False, image_size=32)
    one, other = (Disentanglement.load(tmp_path / f"{name}.safetensors", model) for name in ("merged", "whole"))
    assert one.routing.routes.equal(other.routing.routes)
    assert one.settings == other.settings
    torch.testing.assert_close(one.unit_shares, other.unit_shares)
    capsys.readouterr()
    assert run("merge", parts[0], "--out", tmp_path / "half.safetensors") == 2
    assert "24 of 40 images have not been seen; add the statistics of all shards." in capsys.readouterr().err
    assert run("collect", *TAKE, "--shard", "2/2", "--seed", "4", "--out", parts[1]) == 2
    assert "seed is 0 in one and 4 in the other. Name another file, or delete it." in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["0/3", "4/3", "3", "a/b", "3/0"])
def test_shards_that_are_none_are_refused_at_once(wrong, tmp_path, capsys) -> None:
    assert run("collect", *TAKE, "--shard", wrong, "--out", tmp_path / "part.safetensors") == 2
    assert "from 1/64 to 64/64" in capsys.readouterr().err


def test_what_is_no_part_is_refused_before_anything_is_loaded(tmp_path, capsys) -> None:
    assert run("merge", tmp_path / "none.safetensors", "--out", tmp_path / "split.safetensors") == 2
    assert "There is no file" in capsys.readouterr().err


def run_two(folder: Path, words: list[str]) -> None:
    """Run a command in two processes, started as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workers = [start(run_as_torchrun, rank, 2, port, folder, words) for rank in (0, 1)]
    for worker in workers:
        worker.join()


def test_processes_of_torchrun_share_the_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They find what one process finds, and one of them prints."""
    words = ["disentangle", *TAKE, "--json", "--out"]
    run_two(tmp_path, [*words, "two.safetensors"])
    assert run(*words, tmp_path / "one.safetensors") == 0
    one, two = json.loads(capsys.readouterr().out), json.loads((tmp_path / "out-0").read_text())
    assert two == one | {"file": "two.safetensors", "share_of_unit_0": pytest.approx(one["share_of_unit_0"])}
    assert (tmp_path / "two.safetensors").is_file()
    assert "40 for the discovery" in (tmp_path / "err-0").read_text()
    assert (tmp_path / "out-1").read_text() == ""
    assert "discovery" not in (tmp_path / "err-1").read_text()


def test_processes_of_torchrun_compare(tmp_path: Path) -> None:
    few = ["--images", "photographs", "--count", "40", "--methods", "PCA,channels", "--units", "4", "--concepts", "4"]
    words = ["compare", *TINY, *few, "--k", "4", "--batch-size", "16", "--out"]
    run_two(tmp_path, [*words, "two"])
    assert run(*words, tmp_path / "one") == 0
    one, two = (pd.read_csv(tmp_path / name / "units.csv") for name in ("one", "two"))
    pd.testing.assert_frame_equal(one, two)
    assert "At 4 units each, the most selective" in (tmp_path / "out-0").read_text()
    assert (tmp_path / "out-1").read_text() == ""


def test_other_commands_are_for_one_process(monkeypatch, capsys) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert run("methods") == 2
    assert "methods works in one process, and torchrun started 2." in capsys.readouterr().err
    assert own_device("cuda") == "cuda:1"
    assert own_device("cpu") == "cpu"
