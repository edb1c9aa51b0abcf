import dataclasses
import json
from pathlib import Path

import pytest
import torch

import elude_nb as en
from elude_nb._util.files import load_result
from elude_nb.core.saving import KIND
from tests.app.test_cli import run
from tests.tiny import random_images, tiny_clip, tiny_vit


@pytest.fixture
def split(monkeypatch: pytest.MonkeyPatch) -> en.Disentanglement:
    """A split of a tiny network, and noise, of which every third image is called a cat, in place of what is named."""
    images = random_images(48, 32)
    made = en.disentangle(tiny_vit(torch.float32), images, concepts=5, units=3, progress=False)
    best = made.concept_activations(images).amax(1)[:, 1].topk(12).indices.tolist()
    labels = ["cat" if i in best else ("sea", "sky")[i % 2] for i in range(48)]
    bare = dataclasses.replace(images, labels=None, names=tuple(f"IMG_{i}.jpg" for i in range(48)))
    monkeypatch.setattr(en.Disentanglement, "load", lambda _: made)
    monkeypatch.setattr(en, "load_images", lambda name, **_: bare if name == "shapes" else images.with_labels(labels))
    return made


def test_concepts_are_named_after_labels_and_saved(split, split_file: str, tmp_path: Path, capsys) -> None:
    out = tmp_path / "named.safetensors"
    assert run("name", split_file, "--images", "photographs", "--out", str(out)) == 0
    printed, said = capsys.readouterr()
    assert "names rest on 48 images, all seen in discovery" in said
    first, _, *rows, last = printed.splitlines()
    assert first.startswith("ConceptNames(1 of 5 concepts named by labels; 4: ")
    assert last == f"Saved to {out}"
    assert "cat" in rows[1].split()
    assert "12 of 12 top images" in rows[1]
    assert "no label commoner than by chance: best " in rows[0]
    _, manifest = load_result(out, KIND)
    assert manifest["names"] == {"1": "cat"}
    assert len(manifest["descriptions"]) == 5
    assert split.names == {}
    assert run("name", split_file, "--images", "photographs", "--json") == 0
    table = json.loads(capsys.readouterr().out)  # nothing else is on standard output
    assert [row["name"] for row in table] == ["", "cat", "", "", ""]
    assert [bool(row["reason"]) for row in table] == [True, False, True, True, True]


@pytest.mark.usefixtures("split")
def test_without_labels_concepts_are_described(split_file: str, capsys) -> None:
    assert run("name", split_file, "--images", "shapes") == 0
    first, *rows = capsys.readouterr().out.splitlines()
    assert first.startswith("The images have no labels, and --words is not given")
    assert [row.split()[:2] for row in rows] == [[str(concept), "like"] for concept in range(5)]


@pytest.mark.usefixtures("split")
def test_words_need_a_model_that_reads_them(split_file: str, tmp_path: Path, capsys) -> None:
    pytest.importorskip("transformers")
    words, clip = tmp_path / "words.txt", tmp_path / "clip"
    words.write_text("cat\n\na blue sea\n", encoding="utf-8")
    options = ["--images", "shapes", "--words", str(words), "--encoder"]
    assert run("name", split_file, *options, str(tiny_clip(clip))) == 0
    assert "concepts named by texts" in capsys.readouterr().out
    words.write_text("\n")
    assert run("name", split_file, *options, str(clip)) == 2
    assert "texts must be words or phrases" in capsys.readouterr().err
    assert run("name", split_file, "--words", str(tmp_path / "none.txt")) == 2
    assert "none.txt" in capsys.readouterr().err
