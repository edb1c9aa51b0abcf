from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from elude_nb.interpret.encoders import open_clip_encoder, transformers_encoder
from elude_nb.interpret.naming import _largest_by_chance, _standard, name_concepts_by_text
from elude_nb.scores.judges import ClipJudge
from tests.interpret.test_find_units import holm_literal
from tests.interpret.test_naming import highest
from tests.scores.test_judges import FakeClip
from tests.tiny import random_images, tiny_clip

COUNT = 40
TEXTS = ["cat", "photo", "noise", "grey"]


@pytest.fixture(scope="module")
def pictures():
    return random_images(COUNT, 32, seed=9)


class FakeEncoder:
    """Knows each image by its pixels, so that tests say what it shows.

    Directions 0 to 3 are the texts. All images are photos; those in ``cats`` are cats; noise is the same for no two.
    """

    def __init__(self, images, cats) -> None:
        rng = np.random.default_rng(3)
        rows = np.zeros((len(images), 5))
        rows[:, 1] = 3.0
        rows[:, 2:4] = rng.normal(size=(len(images), 2))
        rows[:, 4] = rng.normal(size=len(images))
        rows[list(cats), 0] = 2.0
        self._rows = {image.tobytes(): row for image, row in zip(images, rows, strict=True)}
        self.asked: list[list[str]] = []

    def encode_images(self, images):
        return torch.from_numpy(np.stack([self._rows[image.tobytes()] for image in images]))

    def encode_texts(self, texts):
        self.asked.append(list(texts))
        return 7 * torch.eye(5, dtype=torch.float64)[: len(texts)]


def best_of(split, images, concept: int, count: int) -> list[int]:
    found: list[int] = highest(split, images)[:, concept].argsort()[::-1][:count].tolist()
    return found


def test_every_number_is_that_of_a_literal_search(split, pictures) -> None:
    encoder = FakeEncoder(pictures, best_of(split, pictures, 2, 10))
    found = name_concepts_by_text(split, pictures, TEXTS, encoder, top=8, draws=2000, batch_size=7)
    rows = torch.cat([encoder.encode_images([image]) for image in pictures]).numpy()
    cosines = np.array([[row[text] / np.linalg.norm(row) for text in range(4)] for row in rows])
    rng, p = np.random.default_rng(11), []  # draws of our own, one after the other
    draws = [rng.choice(COUNT, 8, replace=False) for _ in range(4000)]
    spread = [np.std([cosines[drawn, text].mean() for drawn in draws]) for text in range(4)]
    best_by_chance = [
        max((cosines[drawn, text].mean() - cosines[:, text].mean()) / spread[text] for text in range(4))
        for drawn in draws
    ]
    for concept, shown in enumerate(found.table.to_dict("records")):
        best = best_of(split, pictures, concept, 8)
        scores = [cosines[best, text].mean() - cosines[:, text].mean() for text in range(4)]
        z = [score / size for score, size in zip(scores, spread, strict=True)]
        text = TEXTS.index(shown["text"])
        assert z[text] >= max(z) - 0.05  # the spread of draws is not known to the last digit
        assert shown["cosine"] == pytest.approx(cosines[best, text].mean(), abs=1e-9)
        assert shown["above_all"] == pytest.approx(scores[text], abs=1e-9)
        assert shown["z"] == pytest.approx(z[text], rel=0.06)
        assert shown["p"] == pytest.approx(np.mean([chance >= max(z) for chance in best_by_chance]), abs=0.04)
        p.append(shown["p"])
    assert found.table["p_corrected"].tolist() == pytest.approx(holm_literal(p))
    assert found.names[2] == "cat"
    row = found.table.loc[2]
    assert row["evidence"] == f"cosine {row['above_all']:+.3f} against all images, z = {row['z']:.1f}"
    assert "concepts named by texts; " in repr(found)
    assert found.table["reason"].eq("").equals(found.table["name"].ne(""))


def test_a_text_that_fits_everything_names_nothing(split, pictures) -> None:
    """Its cosine is the largest by far, and the same for the top images as for all."""
    encoder = FakeEncoder(pictures, [])
    found = name_concepts_by_text(split, pictures, ["cat", "photo"], encoder, top=8, draws=500)
    rows = torch.stack(list(encoder.encode_images(list(pictures))))
    assert (rows.argmax(1) == 1).float().mean() > 0.9
    assert "photo" not in found.names.values()
    doubtful = found.table[found.table["name"] == ""]
    assert doubtful["reason"].str.contains("no text nearer than by chance: best ").all()
    assert not found.table["z"].isna().any()  # "cat" is 0 for all images


def test_random_embeddings_name_hardly_anything(split, pictures) -> None:
    """30 encoders that know nothing: at level 0.05 one or two of them may give a name."""

    def encoder(seed: int) -> Any:
        rows = torch.randn(COUNT, 6, generator=torch.Generator().manual_seed(seed))
        given = iter(rows)
        return SimpleNamespace(
            encode_images=lambda images: torch.stack([next(given) for _ in images]),
            encode_texts=lambda texts: torch.eye(6)[: len(texts)],
        )

    named = [
        bool(name_concepts_by_text(split, pictures, TEXTS, encoder(seed), top=8, draws=400).names) for seed in range(30)
    ]
    assert sum(named) <= 4


def test_z_of_random_sets_has_mean_0_and_variance_1() -> None:
    """Also when nearly all images are drawn, where the formula for draws with replacement would be far off."""
    cosines = np.random.default_rng(0).random((12, 3))
    for top in (3, 10):
        standard, rng = _standard(cosines, top), np.random.default_rng(1)
        z = np.stack([standard[rng.choice(12, top, replace=False)].mean(0) for _ in range(20_000)])
        np.testing.assert_allclose(z.mean(0), 0, atol=0.03)
        np.testing.assert_allclose(z.std(0), 1, atol=0.03)


def test_a_text_alike_to_all_images_has_z_0() -> None:
    assert (_standard(np.full((6, 2), 0.3), 2) == 0).all()


def test_draws_by_chance_are_sets_without_replacement(monkeypatch) -> None:
    """One text whose value is 1 for image 0 only: a set has it once or not at all, with probability top / n."""
    standard = np.zeros((10, 1))
    standard[0] = 3.0
    found = _largest_by_chance(standard, 3, 5000, seed=0)
    assert set(found.round(9).tolist()) == {0.0, 1.0}
    assert found.mean() == pytest.approx(0.3, abs=0.03)
    monkeypatch.setattr("elude_nb.interpret.naming._AT_ONCE", 70)  # 7 draws at once
    in_parts = _largest_by_chance(standard, 3, 5000, seed=0)
    np.testing.assert_array_equal(found, in_parts)


def test_the_seed_draws_the_sets(split, pictures) -> None:
    encoder = FakeEncoder(pictures, best_of(split, pictures, 2, 10))
    one, same, other = (
        name_concepts_by_text(split, pictures, TEXTS, encoder, top=8, draws=300, seed=seed).table for seed in (1, 1, 2)
    )
    pd.testing.assert_frame_equal(one, same)
    assert one["p"].tolist() != other["p"].tolist()
    assert one["z"].tolist() == other["z"].tolist()


def test_the_template_is_what_the_encoder_reads(split, pictures) -> None:
    encoder = FakeEncoder(pictures, best_of(split, pictures, 2, 10))
    settings: dict[str, Any] = {"top": 8, "draws": 300}
    found = name_concepts_by_text(split, pictures, [" cat ", "sea"], encoder, template="a photo of a {}.", **settings)
    assert encoder.asked == [["a photo of a cat.", "a photo of a sea."]]
    assert found.names[2] == "cat"


def test_a_clip_judge_is_an_encoder(split, pictures) -> None:
    encoder = FakeEncoder(pictures, best_of(split, pictures, 2, 10))
    judge = ClipJudge(encoder.encode_images, encoder.encode_texts, ("any",))
    one, other = (name_concepts_by_text(split, pictures, TEXTS, kind, top=8, draws=300) for kind in (encoder, judge))
    pd.testing.assert_frame_equal(one.table, other.table)


# -------------------------------------------------------------- bad inputs


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"texts": []}, "texts"),
        ({"texts": ["cat", " "]}, "texts"),
        ({"texts": ["cat", "sea", "cat "]}, "'cat'"),
        ({"template": "a photo"}, "template='a photo'"),
        ({"draws": 100}, "draws=100 .* level=0.05 .* 8 .* 160"),
        ({"draws": 0}, "draws=0"),
        ({"top": COUNT}, f"top={COUNT}"),
        ({"level": 0}, "level=0.0"),
        ({"encode_texts": lambda texts: torch.eye(3)}, r"encode_texts .*\(3, 3\) .* 4"),
        ({"encode_texts": lambda texts: torch.full((4, 5), torch.nan)}, r"encode_texts .*\(4, e\)"),
        ({"encode_texts": lambda texts: torch.eye(4)}, " 5 .* 4"),
        ({"encode_images": lambda images: torch.zeros(5)}, r"encode_images .*\(5,\) .* 16"),
    ],
)
def test_what_is_wrong_is_said(split, pictures, settings, message) -> None:
    encoder = FakeEncoder(pictures, [])
    methods = {name: settings.pop(name) for name in ("encode_images", "encode_texts") if name in settings}
    for name, method in methods.items():
        setattr(encoder, name, method)
    given = {"texts": TEXTS, "top": 8, "draws": 300, **settings}
    with pytest.raises(ValueError, match=message):
        name_concepts_by_text(split, pictures, given.pop("texts"), encoder, **given)


def test_wrong_kinds_are_said(split, pictures) -> None:
    encoder: Any = FakeEncoder(pictures, [])
    with pytest.raises(TypeError, match=r"texts .*3 \(int\)"):
        name_concepts_by_text(split, pictures, ["cat", 3], encoder)  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"encode_images.*encode_texts.*str"):
        name_concepts_by_text(split, pictures, ["cat"], "ViT-B-32")  # type: ignore[arg-type]


# --------------------------------------------------------------- open_clip


class FakeTokens(list[str]):
    def to(self, device):
        assert device == torch.device("cpu")
        return torch.tensor([[float(len(word)), 1.0] for word in self])


@pytest.fixture
def open_clip(monkeypatch):
    """A module that looks like open_clip and writes down what it was asked for."""
    asked: list[Any] = []
    model = FakeClip(wrapped=False).train()

    def create(name, pretrained=None):
        asked.append((name, pretrained))
        return model, "for training", lambda image: torch.tensor([float(image.width), 1.0])

    def tokenizer(name):
        asked.append(name)
        return FakeTokens

    fake = SimpleNamespace(
        create_model_and_transforms=create,
        get_tokenizer=tokenizer,
        list_pretrained=lambda: [("RN50", "openai"), ("ViT-B-32", "openai"), ("ViT-B-32", "laion2b")],
        asked=asked,
        model=model,
    )
    monkeypatch.setitem(sys.modules, "open_clip", fake)
    return fake


def test_open_clip_makes_an_encoder(open_clip) -> None:
    encoder = open_clip_encoder("ViT-B-32", "openai")
    assert open_clip.asked == [("ViT-B-32", "openai"), "ViT-B-32"]
    assert not open_clip.model.training
    assert encoder.encode_images(random_images(3, 16)).tolist() == [[32.0, 2.0]] * 3  # FakeClip doubles
    assert encoder.encode_texts(["cat", "horse"]).tolist() == [[6.0, 2.0], [10.0, 2.0]]


def test_open_clip_without_weights_is_refused(open_clip) -> None:
    with pytest.raises(ValueError, match=r"'ViT-B-32' .*\['openai', 'laion2b'\]"):
        open_clip_encoder("ViT-B-32")
    with pytest.raises(ValueError, match=r"'ViT-C' .*list_pretrained"):
        open_clip_encoder("ViT-C")
    assert open_clip.asked == []
    open_clip_encoder("hf-hub:someone/some-clip")  # brings its own
    assert open_clip.asked[0] == ("hf-hub:someone/some-clip", None)


def test_open_clip_that_is_missing_says_how_to_get_it(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ImportError, match="pip install open_clip_torch"):
        open_clip_encoder("ViT-B-32", "openai")


# ------------------------------------------------------------ transformers


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    pytest.importorskip("transformers")
    return tiny_clip(tmp_path_factory.mktemp("clip"))


def test_a_clip_of_transformers_names_concepts(split, pictures, clip_folder) -> None:
    encoder = transformers_encoder(clip_folder)
    images = list(pictures[:3])
    assert encoder.encode_images(images).shape == (3, 6)
    words = ["cat", "a much longer text than sixteen letters"]  # cut, not refused
    assert encoder.encode_texts(words).shape == (2, 6)
    torch.testing.assert_close(encoder.encode_texts(words)[:1], encoder.encode_texts(words[:1]))
    found = name_concepts_by_text(split, pictures, ["cat", "dog", "sea"], encoder, template="a {}", top=8, draws=300)
    assert set(found.table["text"]) <= {"cat", "dog", "sea"}
    again = name_concepts_by_text(split, pictures, ["cat", "dog", "sea"], encoder, template="a {}", top=8, draws=300)
    pd.testing.assert_frame_equal(found.table, again.table)


def test_what_is_no_clip_is_said(clip_folder, tmp_path, monkeypatch) -> None:
    transformers = pytest.importorskip("transformers")
    only_images = transformers.CLIPVisionModel(transformers.CLIPModel.from_pretrained(clip_folder).vision_model.config)
    only_images.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="CLIPVisionModel, which does not read both"):
        transformers_encoder(tmp_path)
    with pytest.raises(OSError, match="nowhere"):
        transformers_encoder(tmp_path / "nowhere")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match="pip install transformers"):
        transformers_encoder(clip_folder)
