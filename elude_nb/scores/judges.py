"""Judges of units: an embedding model offline, or a CLIP model of yours; `elude_nb.scores.chat` has chat models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from elude_nb._util.checks import check_count, check_kind, check_whole
from elude_nb.data.images import Images, ImageSet, as_image_set
from elude_nb.models.forward import outputs_of
from elude_nb.models.hooks import is_intercepted
from elude_nb.models.load import Model
from elude_nb.models.outputs import main_tensor
from elude_nb.scores.inputs import Array, as_activations, as_embeddings, is_constant, unit_vectors
from elude_nb.scores.intervals import mean_interval
from elude_nb.scores.similarity import best_images

Description = Any
Choice = Literal["left", "right"]


@runtime_checkable
class Judge(Protocol):
    """Describes images, and rates how well other images fit a description."""

    def describe(self, images: Sequence[Image.Image]) -> Description:
        """Return what the images have in common: words, or whatever `match` understands."""
        ...  # pragma: no cover

    def match(self, description: Description, images: Sequence[Image.Image]) -> float | Sequence[float]:
        """Return how well images fit the description, one number for all or one an image; higher fits better."""
        ...  # pragma: no cover


@dataclass(frozen=True, eq=False)
class _Outputs:
    """Embeds images by a model's outputs less a mean; a picture that was shown before is not run again."""

    model: Model
    mean: Tensor
    known: dict[int, Tensor] = field(default_factory=dict, repr=False)

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        photos = self.model.inputs(images)
        if is_intercepted(self.model.network):  # by an edit: these are not the outputs of the model as it is
            return outputs_of(self.model, photos) - self.mean
        hashes = photos.hashes().tolist()
        new = {each: number for number, each in enumerate(hashes) if each not in self.known}
        if new:
            self.known.update(zip(new, outputs_of(self.model, photos.subset([*new.values()])), strict=True))
        return torch.stack([self.known[each] for each in hashes]) - self.mean


@dataclass(frozen=True)
class EmbeddingJudge:
    """A judge that needs no network: a description is a mean embedding, and images fit by their cosine with it.

    Of two sets of images it prefers the one with the larger mean cosine (`judge_pairs`).

    Attributes
    ----------
    embedder
        From images to embeddings (n, e), less the mean over a set if the encoder's embeddings are all similar.

    Examples
    --------
    >>> judge = EmbeddingJudge(lambda images: torch.tensor([[float(image.size == (8, 8)), 1.0] for image in images]))
    >>> small, large = Image.new("RGB", (8, 8)), Image.new("RGB", (16, 16))
    >>> judge.match(judge.describe([small]), [small]) > judge.match(judge.describe([small]), [large])
    True
    """

    embedder: Callable[[Sequence[Image.Image]], Tensor]

    @classmethod
    def of(cls, model: Model, images: Images) -> EmbeddingJudge:
        """Return a judge that embeds by a model's output, less the mean output over ``images``.

        It runs the model once on each picture, however often that is shown.
        """
        photos = model.inputs(images)
        outputs = outputs_of(model, photos)
        return cls(_Outputs(model, outputs.mean(0), dict(zip(photos.hashes().tolist(), outputs, strict=True))))

    def describe(self, images: Sequence[Image.Image]) -> Tensor:
        """Return the mean unit embedding, (e,)."""
        return self._unit_embeddings(images).mean(0)

    def match(self, description: Tensor, images: Sequence[Image.Image]) -> float:
        """Return the mean cosine with the description."""
        return float((self._unit_embeddings(images) @ unit_vectors(description[None])[0]).mean())

    def coherence(self, images: Sequence[Image.Image]) -> float:
        """Return the mean cosine of all pairs of these images, in [-1, 1]; at least two images."""
        units = self._unit_embeddings(images).double()
        check_count("the number of images", len(units), 2)
        together = units.sum(0).square().sum() - units.square().sum()
        return float(together / (len(units) * (len(units) - 1)))

    def prefer(self, left: Sequence[Image.Image], right: Sequence[Image.Image]) -> Choice | None:
        """Return which images are more alike by `coherence`, ``None`` if equally: a stand-in for a model that sees.

        It sees what the embedding sees, so it is no independent judge of units of the model that embeds.
        """
        first, second = self.coherence(left), self.coherence(right)
        return None if first == second else "left" if first > second else "right"

    def _unit_embeddings(self, images: Sequence[Image.Image]) -> Tensor:
        with torch.no_grad():
            return unit_vectors(as_embeddings(self.embedder(images), len(images)))


def judge_units(
    activations: Array,
    images: Images,
    judge: Judge,
    *,
    units: Sequence[int] | None = None,
    top: int = 10,
    candidates: int = 8,
    seed: int = 0,
) -> pd.DataFrame:
    """Let a judge describe units by half of their best images, and find them among other units by the other half.

    Of the other units only images are shown that were not described: a judge would recognise those. A unit costs one
    description and as many matches as there are candidates.

    Parameters
    ----------
    activations
        (n, u).
    images
        The n images.
    judge
        A `Judge`.
    units
        Numbers of the units to describe; by default all that are not constant.
    top
        How many best images of a unit, at least 2: every other one, from the best down, is described, the rest are
        to be matched.
    candidates
        Among how many units, including the true one, the judge has to find it. The others are drawn at random.
    seed
        Of the draw.

    Returns
    -------
    DataFrame
        One row a unit: ``unit``, ``description``, ``rank`` of the true unit (1 is best; ties count against it, so a
        judge that rates all images equally is below chance) and ``candidates``.

    Raises
    ------
    ValueError
        If there are fewer images than ``top``, fewer live units than ``candidates``, or the judge gives no number.

    Examples
    --------
    >>> images = [Image.new("RGB", (8, 8), colour) for colour in 4 * ["red", "blue"]]
    >>> judge = EmbeddingJudge(lambda shown: torch.tensor([image.getpixel((0, 0)) for image in shown]).float())
    >>> judge_units(torch.eye(2).repeat(4, 1), images, judge, top=4, candidates=2)[["unit", "rank"]].values.tolist()
    [[0, 1], [1, 1]]
    """
    values, photos = as_activations(activations), as_image_set(images)
    check_count("top", top, 2, len(values))
    check_count("seed", seed, 0)
    check_kind("judge", judge, Judge, "a Judge, such as EmbeddingJudge(...)")
    if len(photos) != len(values):
        raise ValueError(f"{len(photos)} images and activations of {len(values)}: give the same images.")
    live = (~is_constant(values)).nonzero().flatten().tolist()
    check_count("candidates", candidates, 2)
    if len(live) < candidates:
        raise ValueError(f"{len(live)} live units are fewer than candidates={candidates}; ask for fewer.")
    chosen = live if units is None else [check_whole("unit", unit) for unit in units]
    dead = sorted(set(chosen) - set(live))
    if dead:
        raise ValueError(f"Unit {dead[0]} is constant or does not exist; it has no best images to describe.")
    best = best_images(values, top)  # (top, u)
    rows = []
    for unit in chosen:
        rng = np.random.default_rng([seed, unit])
        others = rng.choice([other for other in live if other != unit], candidates - 1, replace=False)
        described, held_out = best[0::2, unit], best[1::2, unit]
        description = judge.describe(_open(photos, described))
        shown = [held_out, *(_undescribed(best[:, int(other)], described) for other in others)]
        true, *fits = (_rate(judge, description, _open(photos, numbers)) for numbers in shown)
        rank = 1 + sum(fit >= true for fit in fits)
        rows.append((unit, description, rank, candidates))
    return pd.DataFrame(rows, columns=["unit", "description", "rank", "candidates"])


def rank_scores(judged: pd.DataFrame, ranks: Sequence[int] = (1, 4)) -> pd.DataFrame:
    """Return the share of units found at each rank or better, with 95 % intervals and chance; higher is better.

    Parameters
    ----------
    judged
        From `judge_units`.
    ranks
        As in the published Rank-1 and Rank-4.

    Returns
    -------
    DataFrame
        One row a rank: ``rank``, ``share``, ``low``, ``high``, ``chance``, all but the first in [0, 1]. Without units
        they are NaN.

    Examples
    --------
    >>> judged = pd.DataFrame({"rank": [1, 1], "candidates": [8, 8]})
    >>> rank_scores(judged, ranks=[1])[["share", "chance"]].values.tolist()
    [[1.0, 0.125]]
    """
    rows = []
    for rank in ranks:
        check_count("ranks", rank)
        found = mean_interval((judged["rank"] <= rank).astype(float))
        chance = float(np.minimum(1, rank / judged["candidates"]).mean())
        rows.append({"rank": rank, "share": found.mean, "low": found.low, "high": found.high, "chance": chance})
    return pd.DataFrame(rows)


def _open(photos: ImageSet, numbers: Tensor) -> list[Image.Image]:
    return [photos[int(i)] for i in numbers]


def _undescribed(best: Tensor, described: Tensor) -> Tensor:
    """Return the images that are shown of another unit, as many as are held out of the true one.

    These are its own held-out images that were not described, then its others: of ``top`` images, at most the described
    half drops out.
    """
    order = torch.cat([best[1::2], best[0::2]])
    return order[~torch.isin(order, described)][: len(best) // 2]


def _rate(judge: Judge, description: Description, images: Sequence[Image.Image]) -> float:
    found = np.asarray(judge.match(description, images), dtype=np.float64).ravel()
    if len(found) not in {1, len(images)} or not np.isfinite(found).all():
        raise ValueError(f"The judge's match() gave {found}; it must return a finite number, or one an image.")
    return float(found.mean())


@dataclass(frozen=True)
class ClipJudge:
    """A CLIP-like pair of encoders as a judge: it chooses the best phrase from a list.

    `from_open_clip` and `from_transformers` wrap a loaded model, which runs as it is: call its ``eval()`` first.

    Attributes
    ----------
    encode_images, encode_texts
        From images, and from phrases, to embeddings in one space, (n, e) each.
    phrases
        The vocabulary, embedded once.

    Raises
    ------
    ValueError
        If there are no phrases.

    Examples
    --------
    >>> judge = ClipJudge(lambda images: torch.eye(2)[:1], lambda texts: torch.eye(2)[: len(texts)], ("sky", "sea"))
    >>> judge.describe([Image.new("RGB", (8, 8))])
    'sky'
    """

    encode_images: Callable[[Sequence[Image.Image]], Tensor]
    encode_texts: Callable[[Sequence[str]], Tensor]
    phrases: Sequence[str]

    def __post_init__(self) -> None:
        phrases = (self.phrases,) if isinstance(self.phrases, str) else tuple(self.phrases)  # a word is one phrase
        object.__setattr__(self, "phrases", phrases)
        if not self.phrases:
            raise ValueError("phrases is empty; give words to choose from, such as ('a dog', 'a wheel').")

    @classmethod
    def from_open_clip(
        cls,
        model: Any,
        preprocess: Callable[[Image.Image], Tensor],
        tokenizer: Callable[[list[str]], Tensor],
        phrases: Sequence[str],
    ) -> ClipJudge:
        """Return a judge from what ``open_clip.create_model_and_transforms`` and ``open_clip.get_tokenizer`` return."""
        device = next(model.parameters()).device

        def encode_images(images: Sequence[Image.Image]) -> Tensor:
            pixels = torch.stack([preprocess(image) for image in images])
            return _tensor(model.encode_image(pixels.to(device)))

        def encode_texts(texts: Sequence[str]) -> Tensor:
            return _tensor(model.encode_text(tokenizer(list(texts)).to(device)))

        return cls(encode_images, encode_texts, phrases)

    @classmethod
    def from_transformers(cls, model: Any, processor: Any, phrases: Sequence[str]) -> ClipJudge:
        """Return a judge from a CLIP or SigLIP model of transformers and its processor."""
        device = next(model.parameters()).device

        def encode_images(images: Sequence[Image.Image]) -> Tensor:
            inputs = processor(images=list(images), return_tensors="pt")
            return _tensor(model.get_image_features(**inputs.to(device)))

        def encode_texts(texts: Sequence[str]) -> Tensor:
            # Padded to full length, as SigLIP was trained; CLIP reads no further than the end of the text.
            inputs = processor(text=list(texts), padding="max_length", truncation=True, return_tensors="pt")
            return _tensor(model.get_text_features(**inputs.to(device)))

        return cls(encode_images, encode_texts, phrases)

    def describe(self, images: Sequence[Image.Image]) -> str:
        """Return the phrase nearest to the images' mean embedding."""
        with torch.no_grad():
            mean = unit_vectors(self.encode_images(images)).mean(0)
        return self.phrases[int((self._phrase_vectors @ mean).argmax())]

    def match(self, description: str, images: Sequence[Image.Image]) -> float:
        """Return the mean cosine between the phrase and the images."""
        with torch.no_grad():
            text = unit_vectors(self.encode_texts([description]))
            return float((unit_vectors(self.encode_images(images)) @ text.T).mean())

    @cached_property
    def _phrase_vectors(self) -> Tensor:
        with torch.no_grad():
            return unit_vectors(self.encode_texts(self.phrases))


def _tensor(found: Any) -> Tensor:
    """Return embeddings (n, e) on the CPU; transformers wraps them since version 5."""
    return main_tensor(found).float().cpu()
