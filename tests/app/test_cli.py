import argparse
import errno
import json
import os
import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch

import elude_nb as en
from elude_nb.app.cli import main
from elude_nb.baselines import METHODS
from elude_nb.baselines.compare import DEFAULT_METHODS
from elude_nb.core.seen import Seen
from elude_nb.scores.verdict import HIGHER_IS_BETTER
from tests.tiny import random_images, redraw, tiny_vit


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    return int(stopped.value.code or 0)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out.strip() == en.__version__


def test_a_path_that_is_no_utf8_is_printed_as_it_is(monkeypatch, capfdbinary) -> None:
    monkeypatch.setattr("elude_nb.app.tour.run_tour", lambda out, only: Path(os.fsdecode(b"/tmp/caf\xe9/index.html")))
    assert run("tour") == 0
    assert b"/tmp/caf\xe9/index.html" in capfdbinary.readouterr().out


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


def test_score_and_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the real DINOv2, a few photographs and its last block."""
    file, few = str(tmp_path / "split.safetensors"), ["--images", "photographs", "--count", "20"]
    assert run("disentangle", *few, "--blocks", "1", "--concepts", "8", "--units", "2", "--out", file) == 0
    capsys.readouterr()
    assert run("score", file, *few, "--k", "4", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    kinds = ("channel", "sub-unit", "random route")
    assert {row["kind"] for row in rows} == {*kinds, *(f"distinct {kind}" for kind in kinds)}
    assert all(row["low"] <= row["mean"] <= row["high"] for row in rows)
    out = str(tmp_path / "compared")
    methods = [
        "--methods",
        "concepts, channels, k-means",
        "--units",
        "8",
        "--concepts",
        "8",
        "--blocks",
        "1",
        "--k",
        "5",
    ]
    assert run("compare", *few, *methods, "--out", out) == 0
    written = capsys.readouterr().out.splitlines()[-1]
    assert all(name in written for name in ("compare.csv", "compare.html"))
    found = json.loads((tmp_path / "compared" / "compare.json").read_text())["rows"]
    assert {row["output_change"] for row in found if row["method"] == "concepts"} == {0.0}
    assert {row["output_change"] > 0 for row in found if row["method"] == "k-means"} == {True}


def test_the_methods_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("methods") == 0
    printed = capsys.readouterr().out.splitlines()
    assert "sub-units (by default)" in printed
    assert "Matryoshka SAE" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["disentangle", "--model", "dinov2-smal", "--out", "x"], "Did you mean 'dinov2-small'"),
        (["disentangle", "--images", "no/such/folder", "--out", "x"], "no folder 'no/such/folder'"),
        (["disentangle", "--units", "1", "--out", "x"], "'--units': 1; give a whole number from 2 to 255"),
        (["disentangle", "--blocks", "some", "--out", "x"], "a whole number from 1, or 'all'"),
        (["verify", "missing.safetensors"], "There is no file 'missing.safetensors'"),
        (["score", "missing.safetensors"], "There is no file 'missing.safetensors'"),
        (["report", "missing.safetensors", "--out", "x.html"], "There is no file 'missing.safetensors'"),
        (["report", "missing.safetensors", "--out", "no/x.html"], "there is no folder 'no'"),
        (["report", "missing.safetensors", "--out", "."], "'.' is a folder"),
        (["compare", "--methods", "TopK", "--count", "20", "--out", "x"], "Did you mean 'TopK SAE'"),
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


# ------------------------------------------------------------------ on a tiny network


def finetuned(folder: Path) -> Path:
    """Write what timm's trainer writes, but for the name of the architecture; an averaged network among it."""
    state = redraw(timm.create_model("test_vit", num_classes=3)).state_dict()
    old = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    held = {"state_dict": old, "state_dict_ema": state, "args": argparse.Namespace(model="x"), "epoch": 3}
    torch.save(held, folder / "finetuned.pth.tar")
    return folder / "finetuned.pth.tar"


def test_a_checkpoint_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, file = finetuned(tmp_path), tmp_path / "split.safetensors"
    few = ["--images", "shapes", "--count", "12"]
    made = ["disentangle", *few, "--blocks", "1", "--concepts", "4", "--units", "2", "--out", str(file)]
    made += ["--model", str(checkpoint)]
    assert run(*made) == 2
    said = capsys.readouterr().err
    assert "add --architecture with timm's name, for example --architecture vit_small_patch14_dinov2.lvd142m" in said
    how = ["--architecture", "test_vit", "--image-size", "64x96", "--dtype", "float64", "--device", "cpu"]
    assert run(*made, *how) == 0
    split = en.Disentanglement.load(file)
    assert (split.model.input_size, split.model.dtype) == ((3, 64, 96), torch.float64)
    assert split.site.layout.grid == (4, 6)
    assert "averaged weights (state_dict_ema)" in repr(split.model)
    moved = checkpoint.rename(tmp_path / "moved.pth.tar")
    capsys.readouterr()
    assert run("verify", str(file), *few, "--json") == 2
    assert "no file" in capsys.readouterr().err
    assert run("verify", str(file), *few, "--json", "--model", str(moved)) == 0
    assert json.loads(capsys.readouterr().out)["lens"]["max_abs_diff"] == 0.0
    assert run("verify", str(file), *few, "--model", str(moved), "--dtype", "float32") == 2
    assert "its dtype is torch.float32" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--image-size", "big", "'--image-size': 'big'; give a whole number, or two"),
        ("--image-size", "65", "--image-size 65 is no multiple of the patch side 16; take 64."),
        ("--image-size", "0", "'--image-size': '0'; give a whole number"),
        ("--dtype", "int8", "'--dtype': 'int8' is not known; choose one of 'float32'"),
        ("--device", "moon", "--device moon cannot be used here"),
        ("--device", "gpu", "Did you mean 'cuda'?"),
        ("--architecture", "test_vitt", "See `elude-nb models` for all names"),
    ],
)
def test_options_of_a_model_that_cannot_be(
    option: str, value: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    how = {"--model": str(finetuned(tmp_path)), "--architecture": "test_vit", option: value}
    assert run("sites", *(word for pair in how.items() for word in pair)) == 2
    assert message in capsys.readouterr().err


def test_sites_and_models_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sites", "--model", "test_vit", "--no-pretrained", "--image-size", "32") == 0
    assert "blocks.0.mlp.fc2" in capsys.readouterr().out
    assert run("models", "test_vit*") == 0
    assert "test_vit2" in capsys.readouterr().out.split()


QUICK = ["--units", "8", "--concepts", "5", "--k", "4", "--sparsity", "2", "--seed", "3"]


def test_compare_writes_what_the_library_finds(tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, names = tmp_path / "deep" / "out", ["sub-units", "channels", "PCA"]
    what = ["--model", "some model", "--images", "shapes", "--count", "36", "--methods", " sub-units,channels , PCA"]
    assert run("compare", *what, *QUICK, "--site", "stream:2", "--blocks", "1", "--out", str(out)) == 0
    assert tiny == {"model": "some model", "images": "shapes", "count": 36}
    printed = capsys.readouterr().out.splitlines()
    files = ("compare.csv", "units.csv", "compare.json", "compare.html")
    assert printed[-1] == f"Written: {', '.join(str(out / name) for name in files)}"
    found = json.loads((out / "compare.json").read_text())
    expected = en.compare(
        tiny_vit(torch.float32), random_images(36, 32), "stream:2", blocks=1, methods=names, n_units=8, concepts=5, k=4,
        sparsity=2, seed=3, progress=False,
    )  # fmt: skip
    for key in ("site", "blocks", "units", "concepts", "sparsity", "k", "seed", "scored_images", "equal_units"):
        assert found["settings"][key] == expected.settings[key], key
    assert printed[0].startswith(f"At {expected.settings['equal_units']} units each")
    assert len(printed[1].split()) <= 8  # columns
    assert [row.strip().partition("  ")[0] for row in printed[2:5]] == names
    assert printed[5:-1] == [*map(str, expected.verdicts()), *expected.notes()]
    scores = [name for name in HIGHER_IS_BETTER if name in expected.table]
    assert len(scores) > 10
    for row, (_, other) in zip(found["rows"], expected.table.iterrows(), strict=True):
        assert (row["method"], row["size"], row["units"]) == (other["method"], other["size"], other["units"])
        assert {name: row[name] for name in scores} == pytest.approx(other[scores].to_dict())


@pytest.mark.usefixtures("tiny")
def test_compare_takes_the_usual_methods_and_as_many_concepts_as_fit(tmp_path: Path) -> None:
    assert run("compare", "--units", "8", "--k", "4", "--out", str(tmp_path)) == 0
    found = json.loads((tmp_path / "compare.json").read_text())
    assert [row["method"] for row in found["rows"][::3]] == list(DEFAULT_METHODS)
    assert found["settings"]["concepts"] >= 2


@pytest.mark.usefixtures("tiny")
def test_score_prints_a_table_or_json(split_file: str, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    split = en.disentangle(tiny_vit(torch.float32), random_images(40, 32), concepts=5, units=3, progress=False)
    monkeypatch.setattr(en.Disentanglement, "load", lambda _: split)
    assert run("score", split_file, "--k", "4", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert run("score", split_file, "--k", "4") == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1 + len(rows) + 2  # and two verdicts in words
    assert printed[-2].startswith("top similarity (")
    kinds = ("channel", "sub-unit", "random route")
    assert {row["kind"] for row in rows} == {*kinds, *(f"distinct {kind}" for kind in kinds)}


@pytest.mark.parametrize(
    ("arguments", "run_on", "given"),
    [([], 16, 40), (["--count", "20"], 20, 20), (["--verify-images", "all"], 40, 40),
     (["--count", "20", "--verify-images", "3"], 3, 20)],
)  # fmt: skip
def test_verify_runs_sixteen_images_or_what_is_asked_for(
    tiny,
    split_file: str,
    arguments: list[str],
    run_on: int,
    given: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch,
) -> None:
    split = en.disentangle(tiny_vit(torch.float32), random_images(20, 32), concepts=5, units=3, progress=False)
    monkeypatch.setattr(en.Disentanglement, "load", lambda _: split)
    monkeypatch.setattr("elude_nb._util.progress._LONG", 0.0)
    assert run("verify", split_file, "--json", *arguments) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)  # nothing else is on standard output
    assert (found["images"], found["images_given"]) == (run_on, given)
    said = f"verify: {run_on} of {given} images, about" if run_on < given else f"verify: {run_on} images, about"
    assert said in printed.err
    assert run("verify", split_file, "--verify-images", "some") == 2
    assert "'--verify-images': 'some'; give a whole number from 1, or 'all'" in capsys.readouterr().err


def test_report_writes_the_page_of_the_library(tiny, split_file: str, tmp_path: Path, capsys, monkeypatch) -> None:
    split = en.disentangle(tiny_vit(torch.float32), random_images(40, 32), concepts=5, units=3, progress=False)
    monkeypatch.setattr(en.Disentanglement, "load", lambda _: split)
    out = tmp_path / "report.html"
    random_images(1, 16)[0].save(tmp_path / "a.png")
    what = ["--images", str(tmp_path), "--count", "12", "--channels", "2", "--title", "<My> title", "--seen"]
    assert run("report", split_file, *what, "--out", str(out)) == 0
    assert tiny == {"images": str(tmp_path), "count": 12}
    assert capsys.readouterr().out.splitlines() == [f"Done. Open {out.resolve()}"]
    page = out.read_text(encoding="utf-8")
    assert "<h1>&lt;My&gt; title</h1>" in page
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert (len(data["channels"]), len(data["concepts"])) == (2, 5)
    assert page.count("data:image/jpeg") == 12
    assert run("report", split_file, "--max-memory", "0", "--out", str(out)) == 2
    assert "'--max-memory': '0'; give a positive number" in capsys.readouterr().err
    assert out.read_text(encoding="utf-8") == page


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "PCA,PCA"], "'PCA' is there twice"),
        (["--methods", ""], "'' is not known"),
        (["--k", "30"], "20 images to score on: too few for the --k 30 best"),
        (["--blocks", "two"], "a whole number from 1, or 'all'"),
        (["--tokens", "patches"], "Did you mean 'patch'"),
        (["--max-memory", "0.000001"], "more than --max-memory"),
        (["--site", "steam"], "stream"),
    ],
)
def test_a_comparison_that_cannot_be_is_one_line_and_leaves_nothing(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("compare", *QUICK, *arguments, "--out", str(tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("elude-nb: ")
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("tiny")
def test_a_folder_that_cannot_be_is_found_out_first(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(en, "compare", lambda *_, **__: pytest.fail("minutes went by"))
    (tmp_path / "out").write_text("a file")
    assert run("compare", *QUICK, "--out", str(tmp_path / "out")) == 2
    assert "is a file, not a folder" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "a file"


@pytest.mark.parametrize(
    "arguments",
    [["disentangle", "--out", "x"], ["compare", "--out", "x"], ["tour", "--out", "x"], ["report", "f", "--out", "x"]],
)
def test_a_folder_that_cannot_be_written_is_found_out_first(
    arguments: list[str], split_file: str, tmp_path: Path, capsys, monkeypatch
) -> None:
    def read_only(*, dir: Path) -> None:  # noqa: A002 - as tempfile names it
        raise OSError(errno.EROFS, "Read-only file system", f"{dir}/part")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    for name in ("load_model", "load_images"):
        monkeypatch.setattr(en, name, lambda *_, **__: pytest.fail("minutes went by"))
    monkeypatch.setattr("elude_nb.app.tour._execute", lambda *_: pytest.fail("minutes went by"))
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert "Read-only file system" in error
    assert str(tmp_path) in error
    assert "part" not in error


def test_every_method_is_listed_once_and_the_usual_ones_are_marked(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("methods") == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.removesuffix(" (by default)") for line in printed] == list(METHODS)
    assert {line.removesuffix(" (by default)") for line in printed if line.endswith(")")} == set(DEFAULT_METHODS)


def test_scores_are_on_images_that_the_discovery_did_not_see(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shell holds out half of a folder, and scores on that half unless told otherwise."""
    folder, file = tmp_path / "folder", str(tmp_path / "split.safetensors")
    folder.mkdir()
    for number, image in enumerate(random_images(16, 32)):
        image.save(folder / f"{number}.png")
    model = tiny_vit(torch.float32)
    monkeypatch.setattr(en, "load_model", lambda *_, **__: model)
    how = ["--concepts", "4", "--units", "2", "--tokens-per-image", "16"]
    assert run("disentangle", "--images", str(folder), *how, "--hold-out", "0.25", "--out", file) == 0
    assert "16 images: 12 for the discovery, 4 held out" in capsys.readouterr().err
    split = en.Disentanglement.load(file, model)
    monkeypatch.setattr(en.Disentanglement, "load", lambda _: split)
    assert run("score", file, "--images", str(folder), "--k", "2") == 0
    out, said = capsys.readouterr()
    assert "16 images, 12 seen in discovery, and left out; --seen takes them in" in said
    assert "4 images, none seen in discovery" in out
    assert run("score", file, "--images", str(folder), "--k", "2", "--seen") == 0
    assert "16 images, 12 seen in discovery" in capsys.readouterr().out
    page = tmp_path / "page.html"
    assert run("report", file, "--images", str(folder), "--count", "3", "--channels", "1", "--out", str(page)) == 0
    assert "3 images, none seen in discovery" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("command", ["disentangle", "verify", "score", "compare", "report"])
def test_broken_images_are_left_out_on_request(
    command: str, split_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[en.ImageSet] = []

    def stop(*given: object, **_: object) -> None:
        taken.extend(each for each in given if isinstance(each, en.ImageSet))
        raise RuntimeError("far enough")

    monkeypatch.setattr(en, "load_model", lambda _: SimpleNamespace(using=lambda **_: None))
    counted = lambda images: Seen(0, len(images))  # noqa: E731
    monkeypatch.setattr(en.Disentanglement, "load", lambda _: SimpleNamespace(count_seen=counted))
    for name in ("elude_nb.disentangle", "elude_nb.verify", "elude_nb.score", "elude_nb.compare"):
        monkeypatch.setattr(name, stop)
    monkeypatch.setattr("elude_nb.app.report.build.write_report", stop)
    random_images(1, 16)[0].save(tmp_path / "a.png")
    (tmp_path / "b.png").touch()
    file = [] if command in {"disentangle", "compare"} else [split_file]
    out = [] if command in {"verify", "score"} else ["--out", str(tmp_path / "out")]
    out += ["--hold-out", "0"] if command == "disentangle" else []
    with warnings.catch_warnings(action="always"):
        assert run(command, *file, *out, "--images", str(tmp_path), "--skip-broken", "--count", "2") == 2
    said = capsys.readouterr().err
    assert re.search(r"^elude-nb: warning: 1 of 2 .*\n.*b\.png", said)
    assert "far enough" in said
    assert taken[0].names == ("a.png",)
    assert run(command, *file, *out, "--images", str(tmp_path), "--value-range", "low") == 2
    assert "'--value-range': 'low'; give two numbers" in capsys.readouterr().err


def test_a_split_of_random_weights_is_read_back_with_no_pretrained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, how = str(tmp_path / "split.safetensors"), ["--no-pretrained"]
    few = ["--images", "shapes", "--count", "12"]
    assert run("disentangle", "--model", "test_vit", *how, *few, "--concepts", "4", "--out", file) == 0
    assert run("score", file, *few, "--k", "4", *how) == 0
    assert run("score", file, *few, "--k", "4") == 2
    assert "weights that no name leads back to (random weights" in capsys.readouterr().err
