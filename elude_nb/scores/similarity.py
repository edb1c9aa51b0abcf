"""How similar a unit's top-activating images are: similarity, monosemanticity, polysemanticity."""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor

from elude_nb._util.checks import check_count
from elude_nb.scores.inputs import (
    Array,
    as_activations,
    as_embeddings,
    as_numbers,
    is_constant,
    per_unit,
    unit_vectors,
)

_STEPS = 20  # of k-means, at most
_UNITS_AT_ONCE = 64  # whose vectors are looked up together


def top_similarity(activations: Array, embeddings: Array, k: int = 10) -> pd.Series[float]:
    """Return the mean pairwise cosine of each unit's ``k`` best images, in [-1/(k-1), 1]; higher is better.

    In linear time: ``(|sum e|^2 - k) / (k (k - 1))`` over unit vectors ``e``. This is the clarity of semanticlens
    (Nature Machine Intelligence 2025); over embeddings less their mean, unrelated images score 0.

    Parameters
    ----------
    activations
        (n, u).
    embeddings
        (n, e), centred as wanted; they need not be unit vectors.
    k
        How many best images, at least 2 and at most n.

    Raises
    ------
    ValueError
        If there are fewer than ``k`` images, the shapes disagree, or a value is not finite.

    Examples
    --------
    >>> same = torch.ones(4, 3)
    >>> top_similarity(torch.arange(4.0)[:, None], same, k=3).round(3).tolist()
    [1.0]
    """
    check_count("k", k, 2)
    values, unit = _checked(activations, embeddings)
    total = k * top_centres(values, unit, k)  # (u, e)
    selves = unit.square().sum(1)[best_images(values, k)].sum(0)  # k; less where embeddings are zero: their cosine is 0
    similarity = (total.square().sum(1) - selves) / (k * (k - 1))
    return per_unit("top_similarity", similarity, missing=is_constant(values))


def of_few(k: int, n: int) -> int:
    """Return how many best of ``n`` images to compare: ``k``, or a quarter of few (of few, the ``k`` are nearly all).

    Examples
    --------
    >>> of_few(10, 400), of_few(10, 24), of_few(10, 3)
    (10, 6, 2)
    """
    return min(k, max(2, n // 4))


def best_images(activations: Array, k: int) -> Tensor:
    """Return the numbers of the ``k`` images with the highest activations of each unit, (k, u), the highest first.

    This is what "a unit's best images" means everywhere.

    Parameters
    ----------
    activations
        (n, u); or those of one unit, (n,), which give (k,).
    k
        How many images, at most n.

    Raises
    ------
    ValueError
        If there are fewer than ``k`` images, or an activation is NaN.

    Examples
    --------
    >>> best_images(torch.tensor([0.1, 0.9, 0.5]), 2).tolist()
    [1, 2]
    """
    check_count("k", k)
    values = as_numbers("activations", activations)
    if values.ndim not in {1, 2}:
        raise ValueError(f"activations must be (n, u) or (n,), not {tuple(values.shape)}.")
    if len(values) < k:
        raise ValueError(f"k={k} best of {len(values)} images cannot be chosen; use more images or a smaller k.")
    if values.dtype == torch.bool:  # whether a unit fires: torch ranks only numbers
        values = values.byte()
    if bool((bad := values.isnan()).any()):  # which would be the highest of all
        raise ValueError(f"activations of image {int(bad.nonzero()[0, 0])} are NaN; leave it out.")
    return values.topk(k, dim=0).indices


def top_centres(activations: Array, embeddings: Array, k: int = 10) -> Tensor:
    """Return the mean of the normalised embeddings of each unit's ``k`` best images, (u, e)."""
    values, unit = _checked(activations, embeddings)
    total = unit.new_zeros(values.shape[1], unit.shape[1])
    for row in best_images(values, k):
        total += unit[row]
    return total / k


def sibling_similarity(centres: Tensor, channels: Tensor) -> pd.Series[float]:
    """Return how similar each unit's best images are to those of the other units of its channel, in [-1, 1].

    The mean cosine between an image of the one and an image of the other, which is the product of their centres (PURE's
    distance between clusters, arXiv 2404.06453, as a similarity). Lower means that the units of a channel differ. A
    unit that is alone in its channel scores NaN.

    Parameters
    ----------
    centres
        From `top_centres`, (u, e).
    channels
        The channel of each unit, (u,).

    Raises
    ------
    TypeError, ValueError
        If the shapes do not fit, or the centres are not finite.
    """
    centres, channels = as_numbers("centres", centres), as_numbers("channels", channels)
    if centres.ndim != 2 or not bool(centres.isfinite().all()):
        raise ValueError(f"centres {tuple(centres.shape)} must be (u, e), and finite.")
    if channels.shape != (len(centres),):
        raise ValueError(f"channels {tuple(channels.shape)} must be ({len(centres)},), one a unit.")
    places = channels.unique(return_inverse=True)[1]
    number = int(places.max()) + 1 if len(places) else 0
    sums = centres.new_zeros(number, centres.shape[1]).index_add_(0, places, centres)
    others = torch.bincount(places, minlength=number)[places] - 1
    similarity = (centres * (sums[places] - centres)).sum(1) / others.clamp(min=1)
    return per_unit("sibling_similarity", similarity, missing=others == 0)


def transfer_similarity(here: Array, there: Array) -> pd.Series[float]:
    """Return how much more alike a unit's best images are in two sets of images than those of two units, in [-2, 2].

    The cosine between the centre of its best images in one set and in the other, less the mean cosine between its
    centre in the one and those of all other units in the other. 0 is chance; a unit that means the same in photographs
    and in drawings is above it.

    Parameters
    ----------
    here, there
        From `top_centres`, (u, e), of the same units on two sets; the embeddings of each set less their mean, as
        `elude_nb.models.forward.embed` makes them, so that what sets the sets apart does not count.

    Raises
    ------
    TypeError, ValueError
        If there are fewer than two units, the shapes differ, or a centre is not finite.
    """
    first, second = as_numbers("here", here), as_numbers("there", there)
    if first.ndim != 2 or first.shape != second.shape or len(first) < 2:
        raise ValueError(
            f"here {tuple(first.shape)} and there {tuple(second.shape)} must be (u, e), of two units or more."
        )
    for name, centres in (("here", first), ("there", second)):
        if not bool(centres.isfinite().all()):
            raise ValueError(f"{name} is not finite.")
    first, second = unit_vectors(first.double()), unit_vectors(second.double())
    own = (first * second).sum(1)
    others = (first @ second.sum(0) - own) / (len(first) - 1)
    missing = (first.norm(dim=1) == 0) | (second.norm(dim=1) == 0)
    return per_unit("transfer_similarity", own - others, missing=missing)


def monosemanticity(activations: Array, embeddings: Array) -> pd.Series[float]:
    """Return how similar all images are, weighted by the unit's activation, in [-1, 1]; higher is better.

    ``MS = sum_{i<j} a_i a_j cos(e_i, e_j) / sum_{i<j} a_i a_j`` (arXiv 2504.02821), activations scaled to [0, 1]; in
    linear time ``(|sum a_i e_i|^2 - sum a_i^2) / ((sum a_i)^2 - sum a_i^2)`` (arXiv 2602.12403). A unit that
    is constant, or above its minimum on one image only, has no pair to compare: it scores NaN.

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
    values, unit = _checked(activations, embeddings)
    low, high = values.amin(0), values.amax(0)
    weights = (values - low) / (high - low).masked_fill(high == low, 1)  # in [0, 1]; 0 for constant units
    return per_unit("monosemanticity", _weighted_similarity(weights, unit.to(values.dtype)))


def ms_score(
    activations: Tensor, representations: Tensor, *, count: int = 100, centred: bool = False
) -> pd.Series[float]:
    """Return the MS-Score of ELUDe (arXiv 2605.31304, section 4), as a share of 1: higher is better.

    Of the images the ``count`` with the highest activation are taken, each by its maximum over tokens. ``e`` is the
    layer's own representation at that very token, scaled to length 1, ``w`` the activation there, scaled to [0, 1] over
    all images; ``(|sum w e|^2 - sum w^2) / ((sum w)^2 - sum w^2)``.

    `monosemanticity` differs: it weighs all images, by embeddings of whole images.

    Parameters
    ----------
    activations
        (n, t, u): of each image, token and unit.
    representations
        (n, t, e): the layer's output at the same tokens.
    count
        How many images at most.
    centred
        Whether to take the mean over all images and tokens away from the representations first. The paper does not;
        uncentred representations share a direction, which lifts every score.

    Returns
    -------
    Series
        One value a unit; NaN for a unit that never rises above 0 (the paper leaves out units that never fire), or is
        constant.

    Examples
    --------
    >>> same = torch.ones(4, 1, 3)
    >>> ms_score(torch.tensor([[[0.0]], [[1.0]], [[2.0]], [[3.0]]]), same).round(3).tolist()
    [1.0]
    """
    if activations.ndim != 3 or representations.shape[:2] != activations.shape[:2]:
        raise ValueError(
            f"activations must be (n, t, u) and representations (n, t, e) of the same images and tokens, not "
            f"{tuple(activations.shape)} and {tuple(representations.shape)}."
        )
    highest, tokens = activations.max(1)  # (n, u) each
    number = torch.arange(len(highest))[:, None] * activations.shape[1] + tokens
    return ms_score_at(highest, representations.flatten(0, 1), number, count=count, centred=centred)


def ms_score_at(
    highest: Tensor, representations: Tensor, tokens: Tensor, *, count: int = 100, centred: bool = False
) -> pd.Series[float]:
    """Return the `ms_score` of units whose best token in each image is known.

    Parameters
    ----------
    highest
        Each unit's largest activation in each image, (n, u).
    representations
        The layer's output at all tokens of all images, (t, e).
    tokens
        The number of the token in which it is, (n, u), from 0 to t - 1.
    count, centred
        As in `ms_score`.
    """
    check_count("count", count, 2)
    low, high = highest.amin(0), highest.amax(0)
    if centred:
        representations = representations - representations.mean(0)
    unit = unit_vectors(representations)
    span = torch.where(high > low, high - low, torch.nan)
    best = highest.topk(min(count, len(highest)), dim=0).indices  # (count, u)
    weights, places = (highest.gather(0, best) - low) / span, tokens.gather(0, best)
    parts = zip(weights.split(_UNITS_AT_ONCE, 1), places.split(_UNITS_AT_ONCE, 1), strict=True)
    found = [_weighted_similarity(those, unit[where].to(weights)) for those, where in parts]
    scores = torch.cat(found) if len(high) else high
    return per_unit("ms_score", scores.masked_fill(high <= 0, torch.nan))


def localised_monosemanticity(heat: Array, patches: Array, *, seed: int = 0) -> pd.DataFrame:
    """Return how similar the patches are on which a unit is active, beside random patches: the C2 score of FaCT.

    For each unit and image, the patches' embeddings are averaged, weighted by the unit's activation on them; these
    means take the images' place in `monosemanticity`, the images weighted by their largest activation. The mean of all
    patches is subtracted first. This is a reconstruction from the paper's description, not its code.

    Parameters
    ----------
    heat
        Activation of each unit at each patch, (n, p, u); what is below 0 counts as 0.
    patches
        Embeddings of the patches, (n, p, e).
    seed
        Of the random patches.

    Returns
    -------
    DataFrame
        One row a unit: ``c2``, in [-1, 1], higher is better, and ``random``, the same after each image's activations
        were shuffled among its patches. A unit that is above 0 in fewer than two images scores NaN.

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
    shuffled = hot.gather(1, order[:, :, None].expand_as(hot))
    return pd.DataFrame({"c2": _localised(hot, places), "random": _localised(shuffled, places)})


def _localised(heat: Tensor, patches: Tensor) -> pd.Series[float]:
    """Return the weighted similarity of the images' activation-weighted mean patches, one number a unit."""
    weights = heat.amax(1)  # (n, u)
    weights = weights / weights.amax(0).clamp(min=torch.finfo(weights.dtype).tiny)
    found = torch.zeros(heat.shape[2])
    for unit in range(len(found)):
        means = unit_vectors(torch.einsum("np,npe->ne", heat[:, :, unit], patches))
        found[unit] = _weighted_similarity(weights[:, unit, None], means)
    return per_unit("c2", found)


def polysemanticity(activations: Array, embeddings: Array, k: int = 10) -> pd.Series[float]:
    """Return how far apart two clusters of a unit's best images lie, in [0, 2]; lower is better.

    k-means groups the ``k`` best images of a unit in two by their normalised embeddings; the score is 1 less the cosine
    of the two centres (semanticlens, Nature Machine Intelligence 2025: 1 less the clarity of the centres, which for two
    is their cosine). k-means starts from the two least similar images. Constant units score NaN; a unit whose images
    are all the same scores 0.

    Parameters
    ----------
    activations, embeddings
        (n, u) and (n, e).
    k
        How many best images, at least 2.
    """
    check_count("k", k, 2)
    values, unit = _checked(activations, embeddings)
    first, second = _two_means(unit[best_images(values, k).T])  # (u, e) each
    apart = 1 - torch.nn.functional.cosine_similarity(first, second, dim=1)
    return per_unit("polysemanticity", apart.clamp(min=0), missing=is_constant(values))


def _checked(activations: Array, embeddings: Array) -> tuple[Tensor, Tensor]:
    """Return activations (n, u) and the unit vectors of the embeddings (n, e) of the same images."""
    values = as_activations(activations)
    return values, unit_vectors(as_embeddings(embeddings, len(values)))


def _two_means(members: Tensor) -> tuple[Tensor, Tensor]:
    """Return the centres of two clusters of each unit's vectors (u, k, e), by k-means from the least similar pair."""
    cosines = members @ members.transpose(1, 2)
    pair = cosines.flatten(1).argmin(1)
    k, rows = members.shape[1], torch.arange(len(members))
    first, second = members[rows, pair // k], members[rows, pair % k]
    for _ in range(_STEPS):
        away = [(members - centre[:, None]).square().sum(2) for centre in (first, second)]
        mine = (away[1] < away[0]).to(members)[:, :, None]  # 1 where nearer to the second
        found = _mean(members, 1 - mine, first), _mean(members, mine, second)
        if torch.equal(found[0], first) and torch.equal(found[1], second):
            break
        first, second = found
    return first, second


def _mean(members: Tensor, chosen: Tensor, otherwise: Tensor) -> Tensor:
    """Return the mean of the chosen vectors of each unit, (u, e); if there are none, ``otherwise``."""
    count = chosen.sum(1)
    return torch.where(count > 0, (members * chosen).sum(1) / count.clamp(min=1), otherwise)


def _weighted_similarity(weights: Tensor, unit: Tensor) -> Tensor:
    """Return the mean cosine over pairs of images, by the product of their weights (n, u), (u,); of no pair, NaN.

    The unit vectors are those of the images, (n, e), or each unit has its own, (n, u, e). Each unit's first image
    stands apart from the rest: where they are tiny, the difference between the square of the sum and the sum of squares
    would be rounded away.
    """
    top = weights.argmax(0, keepdim=True)  # (1, u)
    most, rest = weights.gather(0, top)[0], weights.scatter(0, top, 0)
    total, squares = rest.sum(0), rest.square()
    lengths = unit.square().sum(-1)  # 1; 0 for an embedding of zeros, whose cosine is 0
    if unit.ndim == 2:
        centres, first, selves = rest.T @ unit, unit[top[0]], squares.T @ lengths
    else:
        centres, first = torch.einsum("nu,nue->ue", rest, unit), unit[top[0], torch.arange(unit.shape[1])]
        selves = (squares * lengths).sum(0)
    together = 2 * most * (first * centres).sum(1) + centres.square().sum(1) - selves
    pairs = 2 * most * total + total.square() - squares.sum(0)
    return (together / pairs).clamp(-1, 1).masked_fill(total == 0, torch.nan)
