import json
from pathlib import Path

import pytest
import torch

import elude_nb as en
from elude_nb.app.cli import main
from elude_nb.baselines import METHODS
from elude_nb.baselines.compare import DEFAULT_METHODS
from elude_nb.scores.verdict import HIGHER_IS_BETTER
from tests.tiny import random_images, tiny_vit


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
    assert [Path(line).name for line in capsys.readouterr().out.split()] == [
        "compare.csv",
        "units.csv",
        "compare.json",
        "compare.html",
    ]
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
        (["disentangle", "--units", "1", "--out", "x"], "units=1 is out of range"),
        (["disentangle", "--blocks", "some", "--out", "x"], "a whole number or 'all'"),
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


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Whatever model and images are named, a tiny network and noise are loaded; what was asked for is kept."""
    asked: dict[str, object] = {}

    def model(name: str) -> en.Model:
        asked["model"] = name
        return tiny_vit(torch.float32)

    def pictures(name: str, *, count: int | None = None) -> en.ImageSet:
        asked["images"], asked["count"] = name, count
        return random_images(count or 40, 32)

    monkeypatch.setattr(en, "load_model", model)
    monkeypatch.setattr(en, "load_images", pictures)
    return asked


QUICK = ["--units", "8", "--concepts", "5", "--k", "4", "--sparsity", "2", "--seed", "3"]


def test_compare_writes_what_the_library_finds(tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, names = tmp_path / "deep" / "out", ["sub-units", "channels", "PCA"]
    what = ["--model", "some model", "--images", "shapes", "--count", "36", "--methods", " sub-units,channels , PCA"]
    assert run("compare", *what, *QUICK, "--site", "stream:2", "--blocks", "1", "--out", str(out)) == 0
    assert tiny == {"model": "some model", "images": "shapes", "count": 36}
    printed = capsys.readouterr().out.splitlines()
    assert printed == [str(out / name) for name in ("compare.csv", "units.csv", "compare.json", "compare.html")]
    found = json.loads((out / "compare.json").read_text())
    expected = en.compare(
        tiny_vit(torch.float32), random_images(36, 32), "stream:2", blocks=1, methods=names, n_units=8, concepts=5, k=4,
        sparsity=2, seed=3, progress=False,
    )  # fmt: skip
    for key in ("site", "blocks", "units", "concepts", "sparsity", "k", "seed", "scored_images", "equal_units"):
        assert found["settings"][key] == expected.settings[key], key
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
def test_score_prints_a_table_or_json(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    split = en.disentangle(tiny_vit(torch.float32), random_images(40, 32), concepts=5, units=3, progress=False)
    monkeypatch.setattr(en.Disentanglement, "load", lambda _: split)
    assert run("score", str(tmp_path / "any"), "--k", "4", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert run("score", str(tmp_path / "any"), "--k", "4") == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1 + len(rows)
    kinds = ("channel", "sub-unit", "random route")
    assert {row["kind"] for row in rows} == {*kinds, *(f"distinct {kind}" for kind in kinds)}


def test_report_writes_the_page_of_the_library(tiny, tmp_path: Path, capsys, monkeypatch) -> None:
    split = en.disentangle(tiny_vit(torch.float32), random_images(40, 32), concepts=5, units=3, progress=False)
    monkeypatch.setattr(en.Disentanglement, "load", lambda _: split)
    out = tmp_path / "report.html"
    what = ["--images", "my folder", "--count", "12", "--channels", "2", "--title", "<My> title"]
    assert run("report", str(tmp_path / "any"), *what, "--out", str(out)) == 0
    assert tiny == {"images": "my folder", "count": 12}
    assert capsys.readouterr().out.splitlines() == [f"Done. Open {out.resolve()}"]
    page = out.read_text(encoding="utf-8")
    assert "<h1>&lt;My&gt; title</h1>" in page
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert (len(data["channels"]), len(data["concepts"])) == (2, 5)
    assert page.count("data:image/jpeg") == 12
    assert run("report", str(tmp_path / "any"), "--max-memory", "0", "--out", str(out)) == 2
    assert "max_memory=0" in capsys.readouterr().err
    assert out.read_text(encoding="utf-8") == page


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "PCA,PCA"], "['PCA', 'PCA']"),
        (["--methods", ""], "method='' is not known"),
        (["--k", "30"], "20 images to score on are too few for the k=30 best"),
        (["--blocks", "two"], "a whole number or 'all'"),
        (["--tokens", "patches"], "Did you mean 'patch'"),
        (["--max-memory", "0.000001"], "more than max_memory"),
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


def test_every_method_is_listed_once_and_the_usual_ones_are_marked(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("methods") == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.removesuffix(" (by default)") for line in printed] == list(METHODS)
    assert {line.removesuffix(" (by default)") for line in printed if line.endswith(")")} == set(DEFAULT_METHODS)
