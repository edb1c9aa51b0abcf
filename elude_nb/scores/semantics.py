"""What a unit means: the field's scores over a reference embedding, each with its formula and source."""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor

from elude_nb.checks import check_count
from elude_nb.scores.coherence import best_images, top_centres, top_similarity
from elude_nb.scores.inputs import Array, as_activations, as_embeddings, as_numbers, is_constant, per_unit, unit_vectors

_STEPS = 20
_UNITS_AT_ONCE = 256


def monosemanticity(activations: Array, embeddings: Array) -> pd.Series[float]:
    """Return how alike the images are that raise a unit, all images weighted by how much, in [-1, 1]; higher is better.

    ``MS = sum_{i<j} a_i a_j cos(e_i, e_j) / sum_{i<j} a_i a_j`` (arXiv 2504.02821), activations scaled to [0, 1]; in
    linear time ``(|sum a_i e_i|^2 - sum a_i^2) / ((sum a_i)^2 - sum a_i^2)`` (arXiv 2602.12403). A unit that
    is constant, or raised by one image only, has no pair to compare: it scores NaN.

    Parameters
    ----------
    activations
        (n, u).
    embeddings
        (n, e), from an independent encoder if there is one.

    Examples
    --------
    >>> embeddings = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    >>> monosemanticity(torch.tensor([[1.0], [1.0], [0.0]]), embeddings).round(3).tolist()
    [0.707]
    """
    values = as_activations(activations)
    unit = unit_vectors(as_embeddings(embeddings, len(values))).to(values.dtype)
    return per_unit("monosemanticity", _weighted_similarity(_zero_to_one(values), unit))


def localised_monosemanticity(heat: Array, patches: Array, *, seed: int = 0) -> pd.DataFrame:
    """Return how alike the places are that a unit looks at, beside what random places give: the C2 score of FaCT.

    For each unit and image, the patches' embeddings are averaged, weighted by the unit's heat on them; these means take
    the images' place in `monosemanticity`, the images weighted by their largest heat. The mean of all patches is taken
    off first. This is a reconstruction from the paper's description, not its code.

    Parameters
    ----------
    heat
        Activation of each unit at each patch, (n, p, u); what is below 0 counts as 0.
    patches
        Embeddings of the patches, (n, p, e).
    seed
        Of the baseline.

    Returns
    -------
    DataFrame
        One row a unit: ``c2``, in [-1, 1], higher is better, and ``random``, the same after each image's heat was dealt
        out to its patches at random. A unit that is above 0 in fewer than two images scores NaN.

    Raises
    ------
    ValueError
        If the shapes do not fit, there is no patch, or a value is not finite.
    """
    hot, places = as_numbers("heat", heat).float(), as_numbers("patches", patches).float()
    if hot.ndim != 3 or places.ndim != 3 or hot.shape[:2] != places.shape[:2] or 0 in hot.shape[:2]:
        raise ValueError(f"heat {tuple(hot.shape)} and patches {tuple(places.shape)} must be (n, p, u) and (n, p, e).")
    if not (hot.isfinite().all() and places.isfinite().all()):
        raise ValueError("heat or patches hold NaN or infinite values.")
    hot, places = hot.clamp(min=0), places - places.mean((0, 1))
    generator = torch.Generator().manual_seed(check_count("seed", seed, 0, 2**63 - 1))
    order = torch.rand(hot.shape[:2], generator=generator).argsort(1)
    dealt = hot.gather(1, order[:, :, None].expand_as(hot))
    table = pd.DataFrame({"c2": _localised(hot, places), "random": _localised(dealt, places)})
    table.index.name = "unit"
    return table


def _localised(heat: Tensor, patches: Tensor) -> pd.Series[float]:
    """Return the weighted similarity of heat-weighted means, one number a unit."""
    weights = heat.amax(1)  # (n, u)
    weights = weights / weights.amax(0).clamp(min=torch.finfo(weights.dtype).tiny)
    found = []
    for unit in range(heat.shape[2]):
        means = unit_vectors(torch.einsum("np,npe->ne", heat[:, :, unit], patches))
        found.append(float(_weighted_similarity(weights[:, unit, None], means)))
    return pd.Series(found, dtype=float)


def clarity(activations: Array, embeddings: Array, k: int = 10) -> pd.Series[float]:
    """Return the mean pairwise cosine of each unit's ``k`` best images, as semanticlens defines it; higher is better.

    ``(|mean e|^2 - 1/k) k / (k - 1)`` over unit vectors ``e`` (Nature Machine Intelligence 2025): `top_similarity`
    under its other name.
    """
    return top_similarity(activations, embeddings, k).rename("clarity")


def redundancy(activations: Array, embeddings: Array, k: int = 10) -> pd.Series[float]:
    """Return the largest cosine between a unit's centre and that of another unit, in [-1, 1]; lower is better.

    A unit's centre is the mean embedding of its ``k`` best images (semanticlens, Nature Machine Intelligence 2025).
    `elude_nb.scores.largest_correlation` asks the same of the activations themselves. Constant units score NaN and are
    nobody's copy; a unit without others scores NaN.
    """
    values = as_activations(activations)
    centres = unit_vectors(top_centres(values, embeddings, k))
    constant = is_constant(values)
    cosines = centres @ centres.T
    cosines.fill_diagonal_(-torch.inf)
    cosines[:, constant] = -torch.inf
    if not len(cosines):
        return per_unit("redundancy", centres.new_zeros(0))
    largest = cosines.amax(1).clamp(max=1)
    return per_unit("redundancy", largest.masked_fill(constant | largest.isinf(), torch.nan))


def polysemanticity(activations: Array, embeddings: Array, k: int = 10) -> pd.Series[float]:
    """Return how far apart the two halves of a unit's best images lie, in [0, 2]; lower is better.

    The ``k`` best images of a unit are grouped in two by k-means over their unit embeddings; the score is 1 less the
    cosine of the two centres (semanticlens, Nature Machine Intelligence 2025: 1 less the clarity of the centres, which
    for two is their cosine). k-means starts from the two images that are least alike. Constant units score NaN; a unit
    whose images are all the same scores 0.

    Parameters
    ----------
    activations, embeddings
        (n, u) and (n, e).
    k
        Best images, at least 2.
    """
    check_count("k", k, 2)
    values = as_activations(activations)
    unit = unit_vectors(as_embeddings(embeddings, len(values)))
    first, second = _two_means(unit[best_images(values, k).T])  # (u, e) each
    apart = 1 - torch.nn.functional.cosine_similarity(first, second, dim=1)
    return per_unit("polysemanticity", apart.clamp(min=0).masked_fill(is_constant(values), torch.nan))


def cluster_separation(activations: Array, embeddings: Array, k: int = 100) -> pd.DataFrame:
    """Return the mean distances inside and between two clusters of each unit's ``k`` best images or patches.

    PURE (Dreyer et al., arXiv 2404.06453) judges a neuron so: far apart between, close inside, means that it was two.

    Returns
    -------
    DataFrame
        One row a unit: ``inside`` and ``between``, mean Euclidean distances of unit embeddings, in [0, 2]. A constant
        unit has NaN in both; one whose best images are all in one cluster has 0 between.
    """
    check_count("k", k, 3)
    values = as_activations(activations)
    unit = unit_vectors(as_embeddings(embeddings, len(values)))
    # The embeddings of all units' images, (u, k, e), would be many times the embeddings.
    found = torch.cat([_separation(unit[some]) for some in best_images(values, k).T.split(_UNITS_AT_ONCE)])
    table = pd.DataFrame(found.numpy(), columns=["inside", "between"])
    table[is_constant(values).numpy()] = float("nan")
    table.index.name = "unit"
    return table


def _separation(members: Tensor) -> Tensor:
    """Return the mean distances inside and between two clusters of each unit's vectors (u, k, e), (u, 2)."""
    mine = _nearer(members, *_two_means(members))  # (u, k)
    exact = members.double()  # cdist goes through products: in float32, equal vectors would lie 0.001 apart
    distances = torch.cdist(exact, exact)
    same = mine[:, :, None] == mine[:, None]
    pairs = same & ~torch.eye(members.shape[1], dtype=torch.bool), ~same
    return torch.stack([(distances * some).sum((1, 2)) / some.sum((1, 2)).clamp(min=1) for some in pairs], dim=1)


def _two_means(members: Tensor) -> tuple[Tensor, Tensor]:
    """Return the centres of two clusters of each unit's vectors (u, k, e), by k-means from the least similar pair."""
    cosines = members @ members.transpose(1, 2)
    pair = cosines.flatten(1).argmin(1)
    k, rows = members.shape[1], torch.arange(len(members))
    first, second = members[rows, pair // k], members[rows, pair % k]
    for _ in range(_STEPS):
        mine = _nearer(members, first, second).to(members)[:, :, None]  # 1 where nearer to the second
        found = _mean(members, 1 - mine, first), _mean(members, mine, second)
        if torch.equal(found[0], first) and torch.equal(found[1], second):
            break
        first, second = found
    return first, second


def _nearer(members: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return which vectors (u, k, e) lie nearer to the second centre, (u, k)."""
    away = [(members - centre[:, None]).square().sum(2) for centre in (first, second)]
    return away[1] < away[0]


def _mean(members: Tensor, chosen: Tensor, otherwise: Tensor) -> Tensor:
    """Return the mean of the chosen vectors of each unit, (u, e); of none, what stands otherwise."""
    count = chosen.sum(1)
    return torch.where(count > 0, (members * chosen).sum(1) / count.clamp(min=1), otherwise)


def _weighted_similarity(weights: Tensor, unit: Tensor) -> Tensor:
    """Return the mean cosine over pairs of images, by the product of their weights (n, u), (u,); of no pair, NaN.

    Each unit's first image stands apart from the rest: where they are tiny, the difference between the square of the
    sum and the sum of squares would be rounded away.
    """
    top = weights.argmax(0, keepdim=True)  # (1, u)
    most, rest = weights.gather(0, top)[0], weights.scatter(0, top, 0)
    total, centres, squares = rest.sum(0), rest.T @ unit, rest.square()
    lengths = unit.square().sum(1)  # 1, but for an embedding of zeros, which is like no other
    together = 2 * most * (unit[top[0]] * centres).sum(1) + centres.square().sum(1) - squares.T @ lengths
    pairs = 2 * most * total + total.square() - squares.sum(0)
    return (together / pairs).clamp(-1, 1).masked_fill(total == 0, torch.nan)


def _zero_to_one(values: Tensor) -> Tensor:
    """Return activations (n, u) scaled to [0, 1] unit by unit; constant ones are 0."""
    low, high = values.amin(0), values.amax(0)
    return (values - low) / (high - low).masked_fill(high == low, 1)
