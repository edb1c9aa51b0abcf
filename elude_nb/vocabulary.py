"""Names for concepts from a list of texts, by a CLIP-like pair of encoders, with the evidence for each."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from elude_nb.checks import check_count, check_fraction
from elude_nb.disentanglement import Disentanglement
from elude_nb.handles import Numbers, holm
from elude_nb.images import Images, ImageSet, as_image_set
from elude_nb.naming import ConceptNames, best_images, named
from elude_nb.progress import progress_bar
from elude_nb.scores.adapters import ClipJudge
from elude_nb.scores.inputs import unit_vectors

_AT_ONCE = 1 << 22  # numbers drawn at once: 32 MB
_ROUNDING = 1e-9  # a draw of the very same images may differ by so much


class TextImageEncoder(Protocol):
    """Whatever puts images and texts into one space; `ClipJudge` and `open_clip_encoder` do."""

    def encode_images(self, images: Sequence[Image.Image], /) -> Tensor:
        """Return embeddings of images, (n, e)."""

    def encode_texts(self, texts: Sequence[str], /) -> Tensor:
        """Return embeddings of texts, (m, e)."""


def name_concepts_by_text(
    split: Disentanglement,
    images: Images,
    texts: Sequence[str],
    encoder: TextImageEncoder,
    *,
    template: str = "{}",
    tokens: str | None = None,
    top: int = 20,
    level: float = 0.05,
    draws: int = 10_000,
    seed: int = 0,
    batch_size: int = 16,
    progress: bool = False,
) -> ConceptNames:
    """Name each concept after the text that lies nearer to its best images than to the others.

    The score of a text is its mean cosine with the concept's best images less that with all images: a text that fits
    everything names nothing. ``z`` is the score over what it would vary by if the images were drawn at random, so that
    texts can be compared; the text with the largest ``z`` is the candidate. Its p-value is the chance that the best
    text of ``top`` images drawn at random does so well, which corrects for the number of texts; Holm's correction does
    for that of concepts. Concepts that would have the same name are numbered, as in `name_concepts`.

    Parameters
    ----------
    split, images, tokens, top, level, batch_size, progress
        As for `name_concepts`.
    texts
        Words or phrases to choose from; those that fit become the names.
    encoder
        CLIP or its like: `open_clip_encoder`, a `ClipJudge`, or an object of yours with the two methods of
        `TextImageEncoder`.
    template
        What the encoder gets to read of a text, such as ``"a photo of a {}"``.
    draws, seed
        How many sets of images are drawn at random; at least the number of concepts over ``level``.

    Returns
    -------
    ConceptNames
        The table has ``text``, ``cosine`` with the best images, ``above all`` (the score), ``z`` (higher is better,
        0 is chance) and ``p`` of the text with the largest z, named or not.

    Raises
    ------
    TypeError
        If the encoder lacks a method, or a text is none.
    ValueError
        If texts are missing, empty or given twice, the template has no place for them, ``draws`` are too few, an
        embedding has the wrong shape, there are no more than ``top`` images, or the routing has no concepts.
    """
    check_fraction("level", level, open_ends=True)
    words, photos = _as_texts(texts), as_image_set(images)
    check_count("top", top, 1, len(photos) - 1)
    _check_encoder(encoder, template)
    if check_count("draws", draws) + 1 < len(split.book) / level:
        raise ValueError(
            f"draws={draws} are too few to tell level={level} with {len(split.book)} concepts; give at least "
            f"{int(np.ceil(len(split.book) / level))}."
        )
    best, idle = best_images(split, photos, tokens, top, batch_size, progress=progress)
    prompts = [template.replace("{}", word) for word in words]
    cosines = _cosines(encoder, photos, prompts, batch_size, progress=progress)  # (n, m)
    standard = _standard(cosines, top)
    z = standard[best].mean(1)  # (g, m)
    place, row = z.argmax(1), np.arange(len(z))
    null = _largest_by_chance(standard, top, draws, seed)
    p = (1 + (null >= z.max(1)[:, None] - _ROUNDING).sum(1)) / (draws + 1)
    p[idle] = 1
    cosine = cosines[best].mean(1)[row, place]
    table = pd.DataFrame(
        {
            "concept": row,
            "text": [words[i] for i in place],
            "cosine": cosine,
            "above all": cosine - cosines.mean(0)[place],
            "z": z[row, place],
            "p": p,
            "p corrected": holm(p),
        }
    )
    pairs = zip(table["above all"], table["z"], strict=True)
    found = [f"cosine {score:+.3f} against all images, z = {size:.1f}" for score, size in pairs]
    return named(table, "text", found, idle, -table["z"].to_numpy(), "texts", top, level)


def open_clip_encoder(name: str, pretrained: str | None = None) -> TextImageEncoder:
    """Return an encoder of the open_clip library, for `name_concepts_by_text`; its weights are fetched if need be.

    Parameters
    ----------
    name
        Such as ``"ViT-B-32"``; or with weights of its own, ``"hf-hub:..."`` or ``"local-dir:..."``.
    pretrained
        Which weights: a tag such as ``"openai"``, or the path of a file.

    Raises
    ------
    ImportError
        If open_clip is not installed.
    ValueError
        If no weights are named: the model would be random, and so would the names.
    """
    try:
        open_clip = importlib.import_module("open_clip")
    except ImportError as error:
        raise ImportError(f"open_clip_encoder needs open_clip ({error}): pip install open_clip_torch") from error
    if pretrained is None and ":" not in name:
        tags = [tag for model, tag in open_clip.list_pretrained() if model == name]
        known = f"one of {tags}" if tags else "see open_clip.list_pretrained()"
        raise ValueError(f"{name!r} without weights is random; give pretrained=, {known}.")
    model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=pretrained)
    # A judge needs phrases to describe by; as an encoder it does not describe.
    return ClipJudge.from_open_clip(model.eval(), preprocess, open_clip.get_tokenizer(name), ("an image",))


def _as_texts(texts: Sequence[str]) -> list[str]:
    """Return texts without blanks at the ends; a lone word is one text, not its letters."""
    given = [texts] if isinstance(texts, str) else list(texts)
    wrong = [text for text in given if not isinstance(text, str)]
    if wrong:
        raise TypeError(f"texts must be words or phrases, not {wrong[0]!r} ({type(wrong[0]).__name__}).")
    words = [text.strip() for text in given]
    if not all(words) or not words:
        raise ValueError("texts must be words or phrases to choose from, such as ['a dog', 'a wheel']; none is empty.")
    twice = {word for word in words if words.count(word) > 1}
    if twice:
        raise ValueError(f"texts hold {sorted(twice)[0]!r} more than once; give each text once.")
    return words


def _check_encoder(encoder: TextImageEncoder, template: str) -> None:
    if not all(callable(getattr(encoder, method, None)) for method in ("encode_images", "encode_texts")):
        raise TypeError(
            f"encoder must have encode_images and encode_texts, as open_clip_encoder(...) has, not "
            f"{type(encoder).__name__}."
        )
    if "{}" not in template:
        raise ValueError(f"template={template!r} has no place for a text; write {{}} there, as in 'a photo of a {{}}'.")


def _cosines(
    encoder: TextImageEncoder, images: ImageSet, prompts: list[str], batch_size: int, *, progress: bool
) -> Numbers:
    """Return the cosine of each image with each text, (n, m)."""
    starts = range(0, len(images), batch_size)
    with torch.no_grad():
        parts = []
        for start in progress_bar(starts, description="embeddings", show=progress, unit="batch"):
            batch = list(images[start : start + batch_size])
            parts.append(_directions("images", encoder.encode_images(batch), len(batch)))
        texts = _directions("texts", encoder.encode_texts(prompts), len(prompts))
    if parts[0].shape[1] != texts.shape[1]:
        raise ValueError(
            f"Images became {parts[0].shape[1]} numbers and texts {texts.shape[1]}; both must be of one space, (n, e)."
        )
    return (torch.cat(parts) @ texts.T).numpy()


def _directions(kind: str, found: Any, count: int) -> Tensor:
    """Return embeddings (count, e) at length 1, in float64 on the CPU."""
    vectors = torch.as_tensor(found).detach().cpu().double()
    if vectors.ndim != 2 or len(vectors) != count or not bool(vectors.isfinite().all()):
        raise ValueError(
            f"encode_{kind} gave {tuple(vectors.shape)} for {count} {kind}; it must give ({count}, e) finite numbers."
        )
    return unit_vectors(vectors)


def _standard(cosines: Numbers, top: int) -> Numbers:
    """Return cosines (n, m) so centred and scaled that the mean of ``top`` images at random has mean 0, variance 1."""
    n = len(cosines)
    error = cosines.std(0, ddof=1) * np.sqrt((1 - top / n) / top)  # of a mean, drawn without replacement
    says_something = error > _ROUNDING
    return np.where(says_something, cosines - cosines.mean(0), 0) / np.where(says_something, error, 1)


def _largest_by_chance(standard: Numbers, top: int, draws: int, seed: int) -> Numbers:
    """Return the largest z of any text for sets of ``top`` images drawn at random, (draws,)."""
    n, rng, found = len(standard), np.random.default_rng(seed), []
    size = max(1, _AT_ONCE // max(standard.shape))
    for start in range(0, draws, size):
        keys = rng.random((min(size, draws - start), n))
        drawn = np.zeros_like(keys)
        np.put_along_axis(drawn, keys.argpartition(top - 1, axis=1)[:, :top], 1 / top, axis=1)
        found.append((drawn @ standard).max(1))
    return np.concatenate(found)
