"""Bad text for `fuzz`: files and lists of sentences, and folders of sentence encoders that were tampered with."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from fuzz_calls import hostile  # type: ignore[import-not-found]  # beside this file
from fuzz_files import ODD_HEADERS, damaged, other_tensors, tampered  # type: ignore[import-not-found]
from fuzz_watch import Case, Family, Ground  # type: ignore[import-not-found]
from safetensors.torch import load_file, save_file

from elude_nb.text import load_sentences, load_text_model

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "dog", "sleeps", "barks", "a", "."]
LENGTH = 8
GOOD = "animals\tThe cat sleeps.\nanimals\tA dog barks.\nplants\tÉin Baum.\n"
ODD_TEXTS = [
    b"",
    b"\n\n \t\n",
    b"\t",
    b"a\t",
    b"\tx",
    b"a\tx\ny",
    b"\xff\xfea\0",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"\0" * 5000,
    b"x" * 1_000_000,
    b"a\tx\n" * 50_000,
    "\u202e\u2028\x0b\x1c\n".encode(),
    b"\r\r\n",
    b'"a\n',
]


def _use(source: Any, more: dict[str, Any]) -> None:
    found = load_sentences(source, **more)
    repr(found), found[0], len(found.subset([0])), list(found)[:2]


def sentence_files(ground: Ground) -> Iterator[Case]:
    """Files of sentences: damaged, empty, in other encodings, with tabs in the wrong places; and wrong options."""
    file = ground.folder / "sentences.tsv"
    while True:
        content = ground.pick(ODD_TEXTS) if ground.rng.random() < 0.4 else damaged(GOOD.encode(), ground)
        if ground.rng.random() < 0.1:
            content = GOOD.encode("utf-16")
        file.write_bytes(content)
        more = ground.pick([{}, {}, {}, {"count": 2}, {"count": 10**9}, {"count": 0}, {"seed": -1, "count": 1}])
        use = partial(_use, ground.pick([file, str(file)]), more)
        yield Case(f"sentences {content[:60]!r} {more}", use, reader=not more)  # a wrong option is no wrong file


def sentence_lists(ground: Ground) -> Iterator[Case]:
    """Yield lists of sentences with items that are none, and wrong labels and counts."""
    while True:
        found: Any = ["The cat sleeps.", "A dog barks.", "x"]
        said, value = ground.pick(hostile(ground).items())
        more: dict[str, Any] = {}
        match int(ground.rng.integers(0, 4)):
            case 0:
                found[1], what = value, "item"
            case 1:
                found, what = value, "list"
            case 2:
                more, what = {"labels": value}, "labels"
            case _:
                key = ground.pick(["count", "seed"])
                more, what = {"count": 2, key: value}, key
        yield Case(f"sentences with {what} {said}", partial(_use, found, more), reader=False)


def save_encoder(folder: Path) -> None:
    """Write the folder of a sentence encoder, as the sentence-transformers have it: a BERT of one block, 11 words."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 16, "max_position_embeddings": 16, "vocab_size": len(WORDS), "pad_token_id": 0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = transformers.BertModel(transformers.BertConfig(**sizes))
    transformers.utils.logging.disable_progress_bar()
    network.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))  # noqa: S106 - no password
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(folder / "tokenizer.json"))
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}', encoding="utf-8")


def _load(folder: Path, length: int) -> None:
    model = load_text_model(folder, length=length)
    model(model.prepare(["the cat sleeps", "a dog"]))  # what was accepted must run
    model.spans("the cat"), repr(model)


JSON_FILES = ["config.json", "tokenizer.json", "modules.json", "1_Pooling/config.json"]


def encoders(ground: Ground) -> Iterator[Case]:
    """Folders of a sentence encoder in which one file is damaged, tampered with, missing, or a folder."""
    whole, folder = ground.folder / "whole", ground.folder / "encoder"
    whole.mkdir()
    save_encoder(whole)
    _load(whole, LENGTH)
    trees = {name: json.loads((whole / name).read_text(encoding="utf-8")) for name in JSON_FILES}
    tensors = load_file(whole / "model.safetensors")
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        name = ground.pick([*JSON_FILES, *JSON_FILES, "model.safetensors"])
        file, length = folder / name, ground.pick([LENGTH, LENGTH, 3, 16, 17, 10**6])
        match int(ground.rng.integers(0, 8)):
            case 0:
                content = damaged((whole / name).read_bytes(), ground)
                file.write_bytes(content)
                said = f"damaged {content[:60]!r}"
            case 1:
                file.unlink()
                said = ground.pick(["gone", "a folder"])
                if said == "a folder":
                    file.mkdir()
            case _ if name == "model.safetensors":
                held = other_tensors(tensors, ground)
                save_file(held, file, metadata={"format": "pt"})
                said = str(
                    {key: (tuple(t.shape), str(t.dtype)) for key, t in held.items() if t is not tensors.get(key)}
                )
            case 2:
                said = ground.pick(ODD_HEADERS)
                file.write_text(said, encoding="utf-8")
            case _:
                said = json.dumps(
                    _larger(trees[name], ground) if ground.rng.random() < 0.2 else tampered(trees[name], ground)
                )
                file.write_bytes(said.encode("utf-8", "backslashreplace"))
        yield Case(f"{name}, length {length}: {said[:1500]}", partial(_load, folder, length))


def _larger(tree: Any, ground: Ground) -> Any:
    """Return a copy in which one number is large, but not so large that no memory could hold it."""
    tree = copy.deepcopy(tree)
    numbers = [key for key, value in tree.items() if type(value) is int] if isinstance(tree, dict) else []
    if numbers:
        tree[ground.pick(numbers)] = ground.pick([10**3, 10**5, 10**7])
    return tree


FAMILIES: dict[str, tuple[Family, float]] = {
    "sentences: files": (sentence_files, 0.03),
    "sentences: lists": (sentence_lists, 0.02),
}
if find_spec("transformers") is not None:
    FAMILIES["sentence encoders: folders"] = encoders, 0.03
