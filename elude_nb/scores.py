"""Scores of interpretability over activations (n, u): one number a unit, higher is better."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from elude_nb.checks import check_count
from elude_nb.disentanglement import Disentanglement
from elude_nb.images import Images, as_image_set
from elude_nb.models import Model
from elude_nb.recording import for_analysis, record
from elude_nb.routing import Routing, shuffled
from elude_nb.taps import evaluating


def top_similarity(activations: Tensor, embeddings: Tensor, k: int = 10) -> Tensor:
    """Return the mean pairwise cosine of the ``k`` images that each unit likes best, (u,), in [-1, 1].

    Mean pairwise cosine without the pairs: ``(|sum e|^2 - k) / (k (k - 1))`` over unit vectors ``e`` (the clarity of
    semanticlens, Nature Machine Intelligence 2025). Higher means more alike. A unit that is constant has no best
    images: it scores NaN.

    Parameters
    ----------
    activations
        (n, u).
    embeddings
        (n, e), centred as wanted; they need not be unit vectors.
    k
        Number of best images, at least 2 and at most n.

    Raises
    ------
    ValueError
        If there are fewer than ``k`` images, the shapes disagree, or a value is not finite.

    Examples
    --------
    >>> same = torch.ones(4, 3)
    >>> top_similarity(torch.arange(4.0)[:, None], same, k=3)
    tensor([1.])
    """
    check_count("k", k, 2)
    n = len(activations)
    if activations.ndim != 2 or embeddings.ndim != 2 or len(embeddings) != n:
        raise ValueError(
            f"activations {tuple(activations.shape)} and embeddings {tuple(embeddings.shape)} must be (n, u), (n, e)."
        )
    if n < k:
        raise ValueError(f"k={k} best of {n} images cannot be chosen; use more images or a smaller k.")
    if not (activations.isfinite().all() and embeddings.isfinite().all()):
        raise ValueError("Activations or embeddings hold NaN or infinite values.")
    unit = torch.nn.functional.normalize(embeddings, dim=1)
    best = activations.topk(k, dim=0).indices  # (k, u)
    total = k * top_centres(activations, embeddings, k)  # (u, e)
    selves = unit.square().sum(1)[best].sum(0)  # k, but for embeddings of zeros: those are like no other, cosine 0
    similarity = (total.square().sum(1) - selves) / (k * (k - 1))
    constant = activations.amax(0) == activations.amin(0)
    return similarity.masked_fill(constant, torch.nan)


def top_centres(activations: Tensor, embeddings: Tensor, k: int = 10) -> Tensor:
    """Return the mean of the unit embeddings of the ``k`` images that each unit likes best, (u, e)."""
    unit = torch.nn.functional.normalize(embeddings, dim=1)
    total = unit.new_zeros(activations.shape[1], unit.shape[1])
    for row in activations.topk(k, dim=0).indices:
        total += unit[row]
    return total / k


def sibling_similarity(centres: Tensor, channels: Tensor) -> Tensor:
    """Return how alike each unit's best images are to those of the other units of its channel, (u,), in [-1, 1].

    The mean cosine between an image of the one and an image of the other, which is the product of their centres (PURE's
    distance between clusters, arXiv 2404.06453, as a similarity). Lower means that the units of a channel differ.
    A unit without siblings scores NaN.

    Parameters
    ----------
    centres
        From `top_centres`, (u, e).
    channels
        The channel of each unit, (u,).
    """
    places = channels.unique(return_inverse=True)[1]
    number = int(places.max()) + 1 if len(places) else 0
    sums = centres.new_zeros(number, centres.shape[1]).index_add_(0, places, centres)
    others = torch.bincount(places, minlength=number)[places] - 1
    similarity = (centres * (sums[places] - centres)).sum(1) / others.clamp(min=1)
    return similarity.masked_fill(others == 0, torch.nan)


def top_purity(activations: Tensor, labels: Sequence[str], k: int = 10) -> Tensor:
    """Return the share of each unit's ``k`` best images that bear their commonest label, (u,), in [1/k, 1].

    A unit that is constant scores NaN.
    """
    check_count("k", k, 1, len(labels))
    if len(labels) != len(activations):
        raise ValueError(f"{len(labels)} labels were given for {len(activations)} images; give one an image.")
    codes = torch.from_numpy(pd.factorize(np.asarray(labels))[0])
    best = codes[activations.topk(k, dim=0).indices]  # (k, u)
    purity = torch.nn.functional.one_hot(best, int(codes.max()) + 1).sum(0).amax(1) / k
    return purity.masked_fill(activations.amax(0) == activations.amin(0), torch.nan)


def score(
    split: Disentanglement,
    images: Images,
    *,
    tokens: str | None = None,
    tokens_per_image: int | None = 64,
    k: int = 10,
    seed: int = 0,
    embeddings: Tensor | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Score sub-units, the channels they came from, and random routes of the same sizes, on one set of images.

    Use images that discovery did not see.

    Parameters
    ----------
    split
        The disentanglement.
    images
        The images to score on.
    tokens, tokens_per_image
        Whose activations count (by default the discovery's kind); an image's activation is the largest of them.
    k
        Best images of each unit that are compared.
    seed
        Of the random routes and of the drawing of tokens.
    embeddings
        Reference embeddings (n, e) from an encoder of your choice; by default the model's own output, less its mean.
    progress
        Show a progress bar.

    Returns
    -------
    DataFrame
        One row a unit: ``kind`` ("channel", "random route", "sub-unit"), ``channel``, ``unit``, ``top similarity``,
        ``sibling similarity`` (not for channels), and where the images have labels ``top purity``. Channels are there
        with both signs: unit 1 is the channel itself and unit -1 its negative. Of the routed, the sub-units 1 to k are
        scored, not the shared rest.

    Examples
    --------
    >>> import elude_nb as en
    >>> model = en.load_model("vit_tiny_patch16_224", pretrained=False)
    >>> images = en.load_images("shapes", count=24)
    >>> split = en.disentangle(model, images, "blocks.11.mlp.fc2", concepts=8, units=2, progress=False)
    >>> sorted(en.score(split, images, k=4).kind.unique())
    ['channel', 'random route', 'sub-unit']
    """
    photos = as_image_set(images)
    check_count("k", k, 2, len(photos))
    reference = embed(split.model, photos) if embeddings is None else embeddings
    routings = split.routing, shuffled(split.routing, seed)
    routed = [_sub_units(routing) for routing in routings]
    matrices = [routing.masked(split.weight, *rows).T for routing, rows in zip(routings, routed, strict=True)]
    mean = split.book.source_mean()
    pooled: list[list[Tensor]] = [[], [], []]
    for part in record(
        split.model,
        photos,
        split.site,
        tokens=tokens or split.settings.tokens,
        tokens_per_image=tokens_per_image,
        seed=seed,
        progress=progress,
    ):
        centred, each = part.sources - mean, len(part.images.unique())
        both_signs = torch.cat([part.channels, -part.channels], dim=1)
        for kept, values in zip(pooled, [both_signs, *(centred @ matrix for matrix in matrices)], strict=True):
            kept.append(values.unflatten(0, (each, -1)).amax(1))
    every = torch.arange(split.site.channels)
    whole = every.repeat(2), torch.tensor([1, -1]).repeat_interleave(len(every))
    tables = []
    for kind, (channels, numbers), parts in zip(
        ("channel", "sub-unit", "random route"), [whole, *routed], pooled, strict=True
    ):
        activations = torch.cat(parts)
        table = pd.DataFrame({"kind": kind, "channel": channels.numpy(), "unit": numbers.numpy()})
        table["top similarity"] = top_similarity(activations, reference, k).numpy()
        if kind != "channel":
            table["sibling similarity"] = sibling_similarity(top_centres(activations, reference, k), channels).numpy()
        if photos.labels is not None:
            table["top purity"] = top_purity(activations, photos.labels, k).numpy()
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def mixed_channels(scores: pd.DataFrame) -> pd.DataFrame:
    """Return one row a split channel, those first that mixed most and came apart best.

    Parameters
    ----------
    scores
        From `score`.

    Returns
    -------
    DataFrame
        ``before``: top similarity of the channel. ``after``: its sub-units' mean. ``random routes``: the control's.
        ``siblings``: how alike the images of different sub-units are. ``separation``: ``after`` less the larger of
        ``before`` and ``siblings``, by which the rows are sorted; it is high where each sub-unit is of one kind, and
        neither the whole channel nor the sub-units together are.
    """
    own = scores[(scores["kind"] == "channel") & (scores["unit"] == 1)].set_index("channel")["top similarity"]
    means = scores.groupby(["kind", "channel"])[["top similarity", "sibling similarity"]].mean()
    table = pd.DataFrame(
        {
            "before": own,
            "after": means["top similarity"].get("sub-unit"),
            "random routes": means["top similarity"].get("random route"),
            "siblings": means["sibling similarity"].get("sub-unit"),
        }
    ).dropna()
    table["separation"] = table["after"] - table[["before", "siblings"]].max(axis=1)
    return table.sort_values("separation", ascending=False)


def _sub_units(routing: Routing) -> tuple[Tensor, Tensor]:
    """Return channels and numbers of all sub-units without the shared ones, (u,) each."""
    channels, numbers = routing.rows()
    return channels[numbers > 0], numbers[numbers > 0]


def embed(model: Model, images: Images) -> Tensor:
    """Return the model's output for each image less the mean over the images, (n, e)."""
    with evaluating(model.network):
        found = torch.cat([for_analysis(model(batch)).flatten(1) for batch in model.batches(as_image_set(images))])
    return found - found.mean(0)
