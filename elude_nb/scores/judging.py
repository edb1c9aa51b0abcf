"""Judge by description: a judge describes a unit from some of its best images, and must know the others by that.

A judge is anything with two methods, `describe` and `match`: a vision-language model, or the offline
`EmbeddingJudge`; ``types.SimpleNamespace(describe=f, match=g)`` makes one of two functions. The score is the rank of
the true unit among others, reported as Rank-1 to Rank-4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from elude_nb.checks import check_count, check_whole, shortly
from elude_nb.embedding import outputs_of
from elude_nb.images import Images, ImageSet, as_image_set
from elude_nb.models import Model
from elude_nb.scores.coherence import best_images
from elude_nb.scores.inputs import Array, as_activations, as_embeddings, is_constant, unit_vectors
from elude_nb.scores.intervals import mean_interval

Description = Any


class Judge(Protocol):
    """Describes images, and says how well other images fit a description."""

    def describe(self, images: Sequence[Image.Image]) -> Description:
        """Return what the images have in common: words, or whatever `match` understands."""
        ...  # pragma: no cover

    def match(self, description: Description, images: Sequence[Image.Image]) -> float | Sequence[float]:
        """Return how well images fit the description, one number for all or one an image; higher fits better."""
        ...  # pragma: no cover


@dataclass(frozen=True)
class EmbeddingJudge:
    """A judge that needs no network: a description is a mean embedding, and what fits is near it by cosine.

    Attributes
    ----------
    embedder
        From images to embeddings (n, e), less the mean over a set if the encoder's embeddings are all alike.

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
        """Return a judge that sees with a model, less the model's mean output over ``images``."""
        mean = outputs_of(model, images).mean(0)
        return cls(lambda shown: outputs_of(model, shown) - mean)

    def describe(self, images: Sequence[Image.Image]) -> Tensor:
        """Return the mean unit embedding, (e,)."""
        return self._unit_embeddings(images).mean(0)

    def match(self, description: Tensor, images: Sequence[Image.Image]) -> float:
        """Return the mean cosine with the description."""
        return float((self._unit_embeddings(images) @ unit_vectors(description[None])[0]).mean())

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
    """Have a judge describe units by half of their best images and find them by the other half among other units.

    Of the other units only images are shown that were not described: a judge knows those again without understanding
    anything. A unit costs one description and as many matches as there are candidates.

    Parameters
    ----------
    activations
        (n, u).
    images
        The n images.
    judge
        A `Judge`.
    units
        Which units are described; by default all that are not constant.
    top
        Best images of a unit, at least 2: every other one, from the best down, is described, the rest are to be
        matched.
    candidates
        Among how many units, the true one with them, the judge has to find it. The others are drawn at random.
    seed
        Of the drawing.

    Returns
    -------
    DataFrame
        One row a unit: ``unit``, ``description``, ``rank`` of the true unit (1 is best; a tie counts against it, so a
        judge that finds everything alike is below chance) and ``candidates``.

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
    if not all(hasattr(judge, part) for part in ("describe", "match")):
        raise TypeError(f"judge must be a Judge, such as EmbeddingJudge(...), not {shortly(judge)}.")
    if len(photos) != len(values):
        raise ValueError(f"{len(photos)} images and activations of {len(values)}: give the same images.")
    live = (~is_constant(values)).nonzero().flatten().tolist()
    check_count("candidates", candidates, 2)
    if len(live) < candidates:
        raise ValueError(f"{len(live)} live units are fewer than candidates={candidates}; ask for fewer.")
    asked = live if units is None else [check_whole("unit", unit) for unit in units]
    dead = sorted(set(asked) - set(live))
    if dead:
        raise ValueError(f"Unit {dead[0]} is constant or does not exist; it has no best images to describe.")
    best = best_images(values, top)  # (top, u)
    rows = []
    for unit in asked:
        rng = np.random.default_rng([seed, unit])
        others = rng.choice([other for other in live if other != unit], candidates - 1, replace=False)
        described, held_out = best[0::2, unit], best[1::2, unit]
        description = judge.describe(_open(photos, described))
        true = _fit(judge, description, _open(photos, held_out))
        fits = [_fit(judge, description, _open(photos, _undescribed(best[:, int(i)], described))) for i in others]
        rank = 1 + sum(fit >= true for fit in fits)
        rows.append({"unit": unit, "description": description, "rank": rank, "candidates": candidates})
    return pd.DataFrame(rows, columns=["unit", "description", "rank", "candidates"])


def rank_scores(judged: pd.DataFrame, ranks: Sequence[int] = (1, 4)) -> pd.DataFrame:
    """Return the share of units found at each rank or better, with 95 % intervals, beside chance; higher is better.

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
    """Return the images by which another unit is shown, as many as are held out of the true one.

    They are its own held-out ones where those were not described, filled up from its others: of ``top`` images, at
    most the described half drops out.
    """
    order = torch.cat([best[1::2], best[0::2]])
    return order[~torch.isin(order, described)][: len(best) // 2]


def _fit(judge: Judge, description: Description, images: Sequence[Image.Image]) -> float:
    found = np.asarray(judge.match(description, images), dtype=np.float64).ravel()
    if len(found) not in {1, len(images)} or not np.isfinite(found).all():
        raise ValueError(f"The judge's match() gave {found}; it must return a finite number, or one an image.")
    return float(found.mean())
