"""Exit codes, JSON on standard output alone, and words that this surface has."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import elude_nb as en
from elude_nb import course
from elude_nb.app import cli
from elude_nb.app.cli import _options_of
from tests.app.test_cli import run
from tests.tiny import random_images

MAIN = [sys.executable, "-c", "from elude_nb.app.cli import main; main()"]


def raising(error: BaseException) -> Any:
    def stop(*_: object, **__: object) -> None:
        raise error

    return stop


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("max_memory=1 is too little."), 2, "elude-nb: --max-memory 1 is too little.\n"),
        (KeyboardInterrupt(), 130, "elude-nb: interrupted.\n"),
        (KeyError("oops"), 70, "KeyError: 'oops'\nelude-nb: this is a fault of elude-nb; please report it"),
    ],
)
def test_what_stops_a_command_has_a_code_of_its_own(
    error: BaseException, code: int, said: str, split_file: str, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.setattr(en.Disentanglement, "load", raising(error))
    assert run("report", split_file, "--out", str(Path(split_file).parent / "x.html")) == code
    printed = capsys.readouterr()
    assert said in printed.err
    assert ("Traceback" in printed.err) == (code == 70)
    assert not printed.out


def test_a_difference_is_code_1(tiny, split_file: str, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr("elude_nb.core.verify.Certificate.problems", lambda _: ["the lens changed the outputs"])
    load = en.Disentanglement.load
    monkeypatch.setattr(en.Disentanglement, "load", lambda path: load(path, en.load_model("tiny")))
    assert run("verify", split_file, "--count", "2", "--json") == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out)["images"] == 2
    assert "problem: the lens changed the outputs" in printed.err


def test_a_reader_that_stops_is_no_traceback() -> None:
    """As of ``elude-nb methods | head``: the pipe is closed before anything is written."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        done = subprocess.run([*MAIN, "methods"], stdout=pipe, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_an_interrupt_is_one_line() -> None:
    waits = "import time; from elude_nb.app import cli; "
    waits += "cli.load_model = lambda *_: (print('ready', flush=True), time.sleep(60)); cli.main(['sites'])"
    with subprocess.Popen([sys.executable, "-c", waits], stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "elude-nb: interrupted.\n")


def test_the_codes_are_in_the_help_and_in_the_docs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    printed = capsys.readouterr().out
    page = (Path(cli.__file__).parents[2] / "docs" / "shell.md").read_text()
    for code in (0, 1, 2, 70, 130, 141):
        assert re.search(rf"\b{code}\b", printed)
        assert f"| {code} |" in page


def test_json_stands_alone_on_standard_output(
    tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, out = str(tmp_path / "split.safetensors"), str(tmp_path / "out")
    load = en.Disentanglement.load
    monkeypatch.setattr(en.Disentanglement, "load", lambda path: load(path, en.load_model("tiny")))
    monkeypatch.setattr("elude_nb.app.tour.run_tour", lambda out, only: out / "index.html")
    monkeypatch.setattr("elude_nb._util.progress._LONG", 0.0)  # everything is said beforehand
    monkeypatch.setattr("elude_nb.core.saving.load_named_model", lambda *_, **__: en.load_model("tiny"))
    part, merged = str(tmp_path / "part.safetensors"), str(tmp_path / "merged.safetensors")
    lines: dict[str, list[str]] = {
        "disentangle": ["--concepts", "5", "--units", "3", "--out", file],
        "collect": ["--shard", "1/1", "--concepts", "5", "--units", "3", "--out", part],
        "merge": [part, "--out", merged],
        "verify": [file, "--count", "3"],
        "score": [file, "--k", "4"],
        "compare": ["--methods", "channels,PCA,sub-units", "--units", "8", "--k", "4", "--out", out],
        "report": [file, "--count", "12", "--channels", "3,1", "--out", str(tmp_path / "report.html")],
        "name": [file],
        "sites": [],
        "models": ["test_vit*"],
        "methods": [],
        "tour": ["--out", out],
        "class": [out, "--no-report"],
        "answers": [str(tmp_path / "handed in")],
    }
    (tmp_path / "handed in").mkdir()
    course.practice_answers(2).query("kind == 'channel'").to_csv(tmp_path / "handed in" / "a.csv")  # none of the other
    assert set(lines) == set(_commands())
    found = {}
    for command, words in lines.items():
        assert run(command, *words, "--json") == 0, command
        printed = capsys.readouterr()
        found[command] = json.loads(printed.out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        said_beforehand = command in {"disentangle", "verify", "score", "compare", "report"}
        assert bool(re.search(rf"^{command}: .*about", printed.err, re.MULTILINE)) == said_beforehand, printed.err
    split = en.Disentanglement.load(file)
    assert found["answers"]["shares"]["sub-unit"] == {"right": None, "low": None, "high": None}
    assert found["disentangle"]["file"] == file
    assert found["disentangle"]["settings"]["concepts"] == 5
    assert found["disentangle"]["sub_units"] == len(split.live_units)
    weights = split.channel_variance / split.channel_variance.sum()
    assert found["disentangle"]["share_of_unit_0"] == pytest.approx(float((split.unit_shares[:, 0] * weights).sum()))
    assert found["collect"] == {"file": part, "images": 20, "of": 20, "tokens": 320}
    assert found["merge"] == found["disentangle"] | {"file": merged}
    assert found["verify"]["images"] == 3
    assert {"kind", "score", "mean", "low", "high"} <= found["score"][0].keys()
    assert found["compare"]["rows"][0]["method"] == "channels"
    assert len(found["compare"]["verdicts"]) == 3
    assert Path(found["compare"]["files"][0]).name == "compare.csv"
    assert found["report"]["path"] == str(tmp_path / "report.html")
    assert found["report"]["seconds"] > 0
    assert "blocks.0.mlp.fc2" in {row["site"] for row in found["sites"]}
    assert "test_vit2" in found["models"]
    assert {"name": "sub-units", "by_default": True} in found["methods"]
    assert found["tour"]["path"] == str(tmp_path / "out" / "index.html")
    data = json.loads((tmp_path / "report.html").read_text().split('id="data">')[1].split("</script>")[0])
    assert sorted(int(name) for name in data["channels"]) == [1, 3]


def test_scores_of_some_channels(
    tiny, split_file: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = en.Disentanglement.load
    monkeypatch.setattr(en.Disentanglement, "load", lambda path: load(path, en.load_model("tiny")))
    split = en.Disentanglement.load(split_file)
    assert run("score", split_file, "--k", "4", "--channels", "1,3", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    counts = {row["kind"]: row["units"] for row in rows if row["score"] == "top_similarity"}
    assert counts["channel"] == 4  # each of two, and its negative
    assert counts["sub-unit"] == sum(split.live_units["channel"].isin([1, 3]))
    assert run("score", split_file, "--k", "4", "--channels", "1,3") == 0
    assert f"{counts['sub-unit']} sub-units" in capsys.readouterr().out
    assert run("score", split_file, "--channels", "99999") == 2
    assert "--channels 99999 is out of range" in capsys.readouterr().err


# ------------------------------------------------------------------ words


def _commands() -> dict[str, Any]:
    import typer

    commands: dict[str, Any] = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    return commands


PYTHON_WORDS = re.compile(r"\ben\.|\w\(\)|\b[a-z_]+=|\b(?:None|True|False)\b|_[a-z]+\b")


def errors(command: str, folder: Path, split_file: str) -> list[list[str]]:
    """Return words that a command refuses, for one reason after the other."""
    (folder / "empty").mkdir(exist_ok=True)
    random_images(1, 16)[0].save(folder / "a.png")
    (folder / "broken").mkdir(exist_ok=True)
    (folder / "broken" / "b.png").write_bytes(b"no picture")
    text = ["--images", str(folder / "broken")]  # holds no picture, though its name ends as one
    model = ["--model", "test_vit", "--no-pretrained"]
    torch.save({"weight": torch.zeros(2)}, folder / "x.pt")
    several: dict[str, list[list[str]]] = {
        "--images": [["--images", str(folder / "empty")], ["--images", "no"], [*model, *text], ["--images", "photos"]],
        "--model": [
            ["--model", "resnet5"], ["--model", str(folder / "x.pt")], ["--model", "no.pt"],
            ["--model", str(folder / "x.pt"), "--architecture", "vit_smal"], [*model, "--image-size", "65"],
            [*model, "--device", "moon"],
        ],
        "--site": [[*model, "--site", "stream:99"], [*model, "--site", "blocks.0.attn"]],
        "--count": [[*model, "--count", "1"]] if command in {"score", "compare"} else [],
        "--concepts": [[*model, "--concepts", "999", "--count", "4"]],
        "--blocks": [[*model, "--blocks", "99"]],
        "--tokens": [[*model, "--tokens", "registers", "--count", "8"]],
        "--max-memory": [[*model, "--max-memory", "1e-9", "--count", "20"]],
        "--channels": [[*model, "--channels", "9999,"], [*model, "--channels", "4,9999"]],
        "--only": [["--only", "99"]],
    }  # fmt: skip
    options = _options_of([command]).values()
    return [line for option in options for line in several.get(option, [])]


@pytest.mark.parametrize("command", ["disentangle", "verify", "score", "compare", "report", "sites", "tour"])
def test_messages_advise_what_the_command_has(
    command: str, split_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    known = {option for param in _commands()[command].params for option in (*param.opts, *param.secondary_opts)}
    file = [split_file] if command in {"verify", "score", "report"} else []
    out = ["--out", "made"] if "--out" in known else []
    seen = set()
    for words in errors(command, tmp_path, split_file):
        code = run(command, *file, *words, *out)
        assert code == 2, words
        said = capsys.readouterr().err
        seen.add(said)
        assert "Traceback" not in said
        for line in said.splitlines():
            ours = re.sub(r"""(?<!\w)'[^']*'|"[^"]*"|\([^()]*Error[^()]*\)""", "", line)
            assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", ours)) <= known, said
            assert not PYTHON_WORDS.search(ours), said
    assert len(seen) >= (1 if command == "tour" else 5)
