import json
from pathlib import Path

import pytest

import elude_nb as en
from elude_nb.cli import main


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    return int(stopped.value.code or 0)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out.strip() == en.__version__


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    printed = capsys.readouterr().out
    assert all(command in printed for command in ("tour", "disentangle", "verify"))


def test_disentangle_then_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The two commands of the README, on the real DINOv2 and a few photographs."""
    file = str(tmp_path / "split.safetensors")
    few = ["--images", "photographs", "--count", "10"]
    made = run("disentangle", "--model", "dinov2-small", *few, "--blocks", "1", "--concepts", "16", "--out", file)
    assert made == 0
    assert "384 channels" in capsys.readouterr().out
    assert run("verify", file, "--images", "photographs", "--count", "3", "--json") == 0
    found = json.loads(capsys.readouterr().out)  # nothing else is on standard output
    assert found["lens"]["max_abs_diff"] == 0.0
    assert 0 < found["explicit"]["max_abs_diff"] < 1e-4
    assert found["explicit"]["top1_agreement"] == 1.0
    assert found["weights_partition_exact"] is True
    assert found["time_ratio"] > 0
    assert found["images"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["disentangle", "--model", "dinov2-smal", "--out", "x"], "Did you mean 'dinov2-small'"),
        (["disentangle", "--images", "no/such/folder", "--out", "x"], "no folder 'no/such/folder'"),
        (["disentangle", "--units", "1", "--out", "x"], "units=1 is out of range"),
        (["disentangle", "--blocks", "some", "--out", "x"], "a whole number or 'all'"),
        (["verify", "missing.safetensors"], "There is no file 'missing.safetensors'"),
        (["tour", "--only", "99"], "No notebook starts with '99'"),
    ],
)
def test_an_error_is_one_line_and_leaves_nothing(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert not list(tmp_path.iterdir())
