"""Sub-units beside the channels they came from and random routes, unit by unit, on one set of images."""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor

from elude_nb._util.checks import check_count
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
    batch_size, progress
        In place of the model's own settings.

    Returns
    -------
    DataFrame
        One row a unit: ``kind`` ("channel", "random route", "sub-unit"), ``channel``, ``unit``, ``top_similarity``,
        ``monosemanticity``, ``redundancy`` (largest correlation with another unit of its kind), ``sibling_similarity``
        (not for channels), and where the images have labels ``top_purity``. Channels are there
        with both signs: unit 1 is the channel itself and unit -1 its negative. Of the routed, the sub-units 1 to k are
        scored, not the shared rest, each turned so that it is high on its concept.

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
    routings = split.routing, shuffled(split.routing, seed)
    routed = [_sub_units(routing) for routing in routings]
    matrices = [_turned_matrix(split, routing, *rows) for routing, rows in zip(routings, routed, strict=True)]
    mean = split.book.source_mean()
    pooled: list[list[Tensor]] = [[], [], []]
    with overheard(split.model, wanted=embeddings is None) as outputs:
        for part in record(
            split.model,
            photos,
            split.site,
            tokens=split.settings.tokens if tokens is None else tokens,
            tokens_per_image=tokens_per_image,
            seed=seed,
        ):
            centred = part.sources - mean
            both_signs = torch.cat([part.channels, -part.channels], dim=1)
            for kept, values in zip(pooled, [both_signs, *(centred @ matrix for matrix in matrices)], strict=True):
                kept.append(pool_recorded(values, part.images))
    reference = outputs.embeddings() if embeddings is None else embeddings
    every = torch.arange(split.site.channels)
    whole = every.repeat(2), torch.tensor([1, -1]).repeat_interleave(len(every))
    tables = []
    for kind, (channels, numbers), parts in zip(
        ("channel", "sub-unit", "random route"), [whole, *routed], pooled, strict=True
    ):
        activations = torch.cat(parts)
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


def score_means(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the means of `score` with their 95 % bootstrap intervals: one row a kind and score.

    Parameters
    ----------
    scores
        From `score`.

    Returns
    -------
    DataFrame
        ``kind``, ``score``, ``mean``, ``low``, ``high``, ``units`` (averaged over) and ``without`` (units that
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


def _turned_matrix(split: Disentanglement, routing: Routing, channels: Tensor, numbers: Tensor) -> Tensor:
    """Return the read-out of sub-units, (s * kernel, u), each turned so that it is high on its concept."""
    means = means_on_concepts(split.weight, routing, split.book)[channels, numbers]
    return routing.masked(split.weight, channels, numbers).T * torch.where(means < 0, -1, 1)


def _sub_units(routing: Routing) -> tuple[Tensor, Tensor]:
    """Return channels and numbers of all sub-units without the shared ones, (u,) each."""
    channels, numbers = routing.rows()
    return channels[numbers > 0], numbers[numbers > 0]
