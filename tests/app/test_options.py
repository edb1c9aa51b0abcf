"""Wrong words are found out before anything is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from elude_nb.app import options
from elude_nb.app.options import METHODS, ROUTINGS, TOKENS, USUAL_METHODS
from elude_nb.baselines import METHODS as METHODS_THERE
from elude_nb.baselines.compare import DEFAULT_METHODS
from elude_nb.core import strategies
from elude_nb.data.folders import IMAGE_SETS
from elude_nb.models import sites
from tests.app.test_cli import run
from tests.tiny import random_images

WRONG = {
    "disentangel": "Did you mean 'disentangle'?",
    "disentangle": "Missing option '--out'",
    "disentangle --oops --out x": "No such option: --oops",
    "disentangle --units 0 --out x": "'--units': 0; give a whole number from 2 to 255",
    "disentangle --units 3.5 --out x": "'--units': 3.5; give a whole number",
    "disentangle --concepts 1 --out x": "'--concepts': 1; give a whole number from 2",
    "disentangle --count 0 --out x": "'--count': 0; give a whole number from 1",
    "disentangle --batch-size 0 --out x": "'--batch-size': 0; give",
    "disentangle --tokens-per-image 0 --out x": "'--tokens-per-image': 0; give",
    "disentangle --seed -1 --out x": "'--seed': -1; give a whole number from 0 to 4294967295",
    "disentangle --routing elud --out x": "'--routing': 'elud' is not known; choose one of 'elude', 'elude-signed'",
    "disentangle --tokens patches --out x": "Did you mean 'patch'?",
    "disentangle --site stream:x --out x": "'--site': 'stream:x'; give 'stream', 'stream:8', or the path",
    "disentangle --blocks 0 --out x": "'--blocks': '0'; give a whole number from 1, or 'all'",
    "disentangle --shared 1.5 --out x": "'--shared': '1.5'; give a number from 0 to 1",
    "disentangle --max-memory -1 --out x": "'--max-memory': '-1'; give a positive number of GiB",
    "disentangle --max-memory nan --out x": "'--max-memory': 'nan'; give",
    "disentangle --image-size 0 --out x": "'--image-size': '0'; give a whole number, or two as in 224x336",
    "disentangle --image-size 2x3x4 --out x": "'--image-size': '2x3x4'; give",
    "disentangle --dtype int8 --out x": "'--dtype': 'int8' is not known; choose one of 'float32'",
    "disentangle --value-range 9,9 --out x": "'--value-range': '9,9'; give two numbers, the lower first",
    "disentangle --out no/x": "'no/x': there is no folder 'no'",
    "disentangle --out .": "'.' is a folder; name a file in it",
    "disentangle --model notes.txt --out notes.txt": "--out 'notes.txt' is --model as well; name another",
    "disentangle --images no/such --out x": "There is no folder 'no/such'; name a folder, or a set: 'photographs'",
    "disentangle --images empty --out x": "No image lies below 'empty'; it is empty",
    "disentangle --images . --out x": "No image lies below '.'; 1 file left out: notes.txt",
    "verify missing": "There is no file 'missing'",
    "verify notes.txt": "'notes.txt' is not a whole safetensors file",
    "verify notes.txt --verify-images some": "'--verify-images': 'some'; give a whole number from 1, or 'all'",
    "score notes.txt --k 1": "'--k': 1; give a whole number from 2",
    "score notes.txt --channels 8-3": "'--channels': '8-3'; give channels from 0 as in 3,17,40-47",
    "score notes.txt --channels 99999999": "'--channels': '99999999'; give channels",
    "compare --k 3 --out x": "'--k': 3; give a whole number from 4",
    "compare --methods foo --out x": "'--methods': 'foo' is not known. `elude-nb methods` lists all",
    "compare --methods PCAA --out x": "Did you mean 'PCA'",
    "compare --methods PCA,PCA --out x": "'PCA' is there twice",
    "compare --out notes.txt": "'notes.txt' is a file, not a folder",
    "compare --images empty --out empty": "--out 'empty' is --images as well; name another",
    "report notes.txt --out no/x": "there is no folder 'no'",
    "report notes.txt --channels -1 --out x": "'--channels': '-1'; give channels",
    "report notes.txt --count 1 --out x": "'--count': 1; give a whole number from 2",
}
ALL_AT_ONCE = """
import sys
from elude_nb.app.cli import main
for line in sys.stdin.read().splitlines():
    try:
        main(line.split())
    except SystemExit as stopped:
        print(stopped.code, file=sys.stderr)
    if {"torch", "timm", "pandas", "matplotlib"} & sys.modules.keys():
        print("imported for", line, file=sys.stderr)
"""


def test_what_is_wrong_is_said_in_one_line_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "empty").mkdir()
    lines = ["--help", "--version", "methods", "methods --json", *WRONG]
    done = subprocess.run(
        [sys.executable, "-c", ALL_AT_ONCE], input="\n".join(lines), cwd=tmp_path, capture_output=True, text=True,
        timeout=60, check=True,
    )  # fmt: skip
    said = done.stderr.splitlines()
    assert said[:4] == ["0"] * 4
    assert len(said) == 4 + 2 * len(WRONG), done.stderr
    for (line, expected), words, code in zip(WRONG.items(), said[4::2], said[5::2], strict=True):
        assert words.startswith("elude-nb: "), line
        assert expected in words, line
        assert code == "2", line
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", "empty"}


def test_the_names_in_the_shell_are_those_of_the_library() -> None:
    assert tuple(METHODS_THERE) == METHODS
    assert DEFAULT_METHODS == USUAL_METHODS
    assert tuple(strategies.ROUTINGS) == ROUTINGS
    assert sites.TOKENS == TOKENS
    asked = options.ImagesOption.__metadata__[0].help  # type: ignore[attr-defined]
    assert all(name in asked for name in IMAGE_SETS)


@pytest.mark.parametrize(
    ("text", "expected"), [("8", 8), ("8,", [8]), ("3,17,40-42", [3, 17, 40, 41, 42]), ("2,1-2", [2, 1])]
)
def test_channels_are_a_number_or_a_list(text: str, expected: object) -> None:
    assert options._channels(text) == expected


def test_a_split_that_is_also_the_page_is_not_overwritten(split_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = Path(split_file).read_bytes()
    assert run("report", split_file, "--out", split_file) == 2
    assert "is FILE as well" in capsys.readouterr().err
    assert Path(split_file).read_bytes() == before


def test_broken_pictures_are_found_before_the_forward_passes(tmp_path: Path, capsys, monkeypatch) -> None:
    import elude_nb as en

    for name in ("a.png", "b.png"):
        random_images(1, 16)[0].save(tmp_path / name)
    whole = (tmp_path / "a.png").read_bytes()
    monkeypatch.setattr(en, "disentangle", lambda *_, **__: pytest.fail("minutes went by"))
    what = ["disentangle", "--model", "test_vit", "--no-pretrained", "--images", str(tmp_path)]
    (tmp_path / "c.png").write_bytes(whole[:-40])
    assert run(*what, "--out", str(tmp_path / "x")) == 2
    said = capsys.readouterr().err
    assert "c.png' is too large or a broken image" in said
    assert said.endswith("or leave such files out: --skip-broken.\n")
    (tmp_path / "d.png").touch()
    assert run(*what, "--out", str(tmp_path / "x")) == 2
    assert "2 of 4 images cannot be used; --skip-broken leaves them out. The first: " in capsys.readouterr().err
