"""Scores of sub-units, of the channels they come from and of random routes, on one set of images."""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor

from elude_nb._util.checks import check_count
from elude_nb.core.concepts import ConceptBook
from elude_nb.core.recording import pool_recorded, record
from elude_nb.core.result import Disentanglement, check_split
from elude_nb.core.routing import Routing, means_on_concepts, shuffled
from elude_nb.data.images import Images
from elude_nb.models.forward import overheard
from elude_nb.scores.health import largest_correlation
from elude_nb.scores.inputs import check_table
from elude_nb.scores.intervals import mean_interval
from elude_nb.scores.similarity import monosemanticity, sibling_similarity, top_centres, top_purity, top_similarity


def score(
    split: Disentanglement,
    images: Images,
    *,
    tokens: str | None = None,
    tokens_per_image: int | None = 64,
    k: int = 10,
    seed: int = 0,
    embeddings: Tensor | None = None,
    batch_size: int | None = None,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Score sub-units, the channels they come from, and random routes of the same sizes.

    Use other images than those of the discovery.

    Parameters
    ----------
    split
        The disentanglement.
    images
        The images to score on.
    tokens, tokens_per_image
        Which tokens count (by default the discovery's kind) and how many are drawn for each image; an image's
        activation is the largest over its tokens.
    k
        How many best images of each unit are compared.
    seed
        Of the random routes and of the draw of tokens.
    embeddings
        Reference embeddings (n, e) from an encoder of your choice; by default the model's own output, less its mean.
    batch_size, progress
        In place of the model's own settings.

    Returns
    -------
    DataFrame
        One row a unit: ``kind`` ("channel", "random route", "sub-unit"), ``channel``, ``unit``, ``top_similarity``,
        ``monosemanticity``, ``redundancy`` (largest correlation with another unit of its kind), ``sibling_similarity``
        (not for channels), and where the images have labels ``top_purity``. Channels have a row for each sign: unit 1
        is the channel itself and unit -1 its negative. Shared units are not scored; each sub-unit has the sign with
        which it is high on its concept.

    Examples
    --------
    >>> import elude_nb as en
    >>> model = en.load_model("vit_tiny_patch16_224", pretrained=False)
    >>> images = en.load_images("shapes", count=24)
    >>> split = en.disentangle(model, images, "blocks.11.mlp.fc2", concepts=8, units=2, progress=False)
    >>> sorted(en.score(split, images, k=4).kind.unique())
    ['channel', 'random route', 'sub-unit']
    """
    check_split(split, "score")
    split = split.using(batch_size=batch_size, progress=progress)
    photos = split.model.inputs(images)
    check_count("k", k, 2, len(photos))
    routings = {"sub-unit": split.routing, "random route": shuffled(split.routing, seed)}
    routed = {kind: read_sub_units(split.weight, routing, split.book) for kind, routing in routings.items()}
    mean = split.book.source_mean()
    pooled: dict[str, list[Tensor]] = {"channel": [], **{kind: [] for kind in routed}}
    with overheard(split.model, wanted=embeddings is None) as outputs:
        which = split.settings.tokens if tokens is None else tokens
        for part in record(split.model, photos, split.site, tokens=which, tokens_per_image=tokens_per_image, seed=seed):
            centred = part.sources - mean
            pooled["channel"].append(pool_recorded(torch.cat([part.channels, -part.channels], dim=1), part.images))
            for kind, (_, _, matrix) in routed.items():
                pooled[kind].append(pool_recorded(centred @ matrix, part.images))
    reference = outputs.embeddings() if embeddings is None else embeddings
    every = torch.arange(split.site.channels)
    rows = {"channel": (every.repeat(2), torch.tensor([1, -1]).repeat_interleave(len(every)))}
    rows |= {kind: (channels, numbers) for kind, (channels, numbers, _) in routed.items()}
    tables = []
    for kind, (channels, numbers) in rows.items():
        activations = torch.cat(pooled[kind])
        table = pd.DataFrame({"kind": kind, "channel": channels.numpy(), "unit": numbers.numpy()})
        table["top_similarity"] = top_similarity(activations, reference, k)
        table["monosemanticity"] = monosemanticity(activations, reference)
        table["redundancy"] = largest_correlation(activations)
        if kind != "channel":
            table["sibling_similarity"] = sibling_similarity(top_centres(activations, reference, k), channels)
        if photos.labels is not None:
            table["top_purity"] = top_purity(activations, photos.labels, k)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def read_sub_units(weight: Tensor, routing: Routing, book: ConceptBook) -> tuple[Tensor, Tensor, Tensor]:
    """Return the linear read-out of all sub-units without unit 0, of centred sources.

    Returns
    -------
    channels, numbers
        Of each sub-unit, (u,) each.
    matrix
        (s * kernel, u), with the sign with which each sub-unit is high on its concept.
    """
    channels, numbers = routing.rows()
    channels, numbers = channels[numbers > 0], numbers[numbers > 0]
    means = means_on_concepts(weight, routing, book)[channels, numbers]
    return channels, numbers, routing.masked(weight, channels, numbers).T * torch.where(means < 0, -1, 1)


def score_means(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the means of `score` with their 95 % bootstrap intervals: one row a kind and score.

    Parameters
    ----------
    scores
        From `score`.

    Returns
    -------
    DataFrame
        ``kind``, ``score``, ``mean``, ``low``, ``high``, ``units`` (how many were averaged) and ``without`` (how many
        have no such score).
    """
    check_table("scores", scores, "kind")
    columns = [name for name in scores.columns if name not in {"kind", "channel", "unit"}]
    rows = []
    for kind, table in scores.groupby("kind"):
        for column in columns:
            found = mean_interval(table[column])
            if found.count:
                rows.append((kind, column, found.mean, found.low, found.high, found.count, found.missing))
    return pd.DataFrame(rows, columns=["kind", "score", "mean", "low", "high", "units", "without"])


def mixed_channels(scores: pd.DataFrame) -> pd.DataFrame:
    """Return one row a split channel, the clearest cases of polysemanticity first.

    Parameters
    ----------
    scores
        From `score`.

    Returns
    -------
    DataFrame
        ``before``: top similarity of the channel. ``after``: its sub-units' mean. ``random routes``: the control's.
        ``siblings``: how similar the images of different sub-units are. ``separation``: ``after`` less the larger of
        ``before`` and ``siblings``, by which the rows are sorted; it is high where the best images of each sub-unit
        are similar, but not those of the channel, nor those of different sub-units.
    """
    check_table("scores", scores, "kind", "channel", "unit", "top_similarity", "sibling_similarity")
    own = scores[(scores["kind"] == "channel") & (scores["unit"] == 1)].set_index("channel")["top_similarity"]
    means = scores.groupby(["kind", "channel"])[["top_similarity", "sibling_similarity"]].mean()
    table = pd.DataFrame(
        {
            "before": own,
            "after": means["top_similarity"].get("sub-unit"),
            "random routes": means["top_similarity"].get("random route"),
            "siblings": means["sibling_similarity"].get("sub-unit"),
        }
    ).dropna()
    table["separation"] = table["after"] - table[["before", "siblings"]].max(axis=1)
    return table.sort_values("separation", ascending=False)
