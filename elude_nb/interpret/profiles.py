"""Where things arise: a concept over all channels, and the units of one channel, by block, part, head or source."""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor

from elude_nb._util.checks import check_choice, check_count, check_kind
from elude_nb.core.result import Disentanglement, check_split
from elude_nb.core.routing import NO_CONCEPT
from elude_nb.errors import SiteError

DETAILS = ("part", "head", "source")


Places = tuple[list[int], list[str], Tensor]


def places_of_sources(split: Disentanglement) -> Places:
    """Return blocks, parts, and for each source its block and part as one number, block * parts + part, (s,)."""
    table = split.site.source_table(split.model.network)
    block, blocks = pd.factorize(table["block"].fillna(0).astype(int), sort=True)
    part, parts = pd.factorize(table["part"], sort=True)
    return [int(b) for b in blocks], [str(p) for p in parts], torch.from_numpy(block * len(parts) + part)


def sum_by_place(contributions: Tensor, places: Places) -> list[pd.DataFrame]:
    """Return for each row of contributions (r, s) their sums: one row a block, one column a part."""
    blocks, parts, codes = places
    sums = contributions.new_zeros(len(contributions), len(blocks) * len(parts)).index_add_(1, codes, contributions)
    index, columns = pd.Index(blocks, name="block"), pd.Index(parts, name="part")
    return [pd.DataFrame(row.reshape(len(blocks), -1), index=index, columns=columns) for row in sums.numpy()]


def mean_contributions(split: Disentanglement, channels: Tensor | int, concepts: Tensor | int) -> Tensor:
    """Return each source's mean contribution to a channel on a concept, above the mean over all tokens, (r, s)."""
    products: Tensor = split.weight[channels] * split.book.mean_sources()[concepts]
    by_position: Tensor = products.unflatten(-1, (-1, split.site.kernel))
    return by_position.sum(-1)


def depth_profile(split: Disentanglement, concept: int) -> pd.DataFrame:
    """Return where the contributions of a concept's sub-units arise, over all channels.

    Returns
    -------
    DataFrame
        One row a block, one column a part (``attention``, ``mlp``, ...): the sum over channels of the mean
        contributions on the concept's tokens, above the mean over all tokens, each divided by the standard deviation
        of its channel and turned round for sub-units that are low on the concept.

    Raises
    ------
    ValueError
        If there is no such concept, or no sub-unit belongs to it.
    """
    check_split(split)
    check_count("concept", concept, 0, len(split.book) - 1)
    routing = split.routing
    channels, places = (routing.concepts == concept).nonzero(as_tuple=True)
    if not len(channels):
        raise ValueError(f"No sub-unit belongs to concept {concept}; see .units for those that have some.")
    pairs = zip(channels.tolist(), (places + 1).tolist(), strict=True)
    mine = torch.stack([routing.fractions(channel)[unit] for channel, unit in pairs]).to(split.weight)  # (c, s)
    scale = split.signs[channels, places + 1] / split.channel_variance[channels].sqrt().clamp(min=1e-12)
    products = mean_contributions(split, channels, concept) * mine
    total = (products * scale.to(products)[:, None]).sum(0, keepdim=True)
    return sum_by_place(total, places_of_sources(split))[0]


def spatial_profile(split: Disentanglement, maps: Tensor) -> Tensor:
    """Return where in images a concept lies: the mean of its maps (n, t) over images, (rows, columns).

    Raises
    ------
    SiteError
        If the site has no patches.
    ValueError
        If the maps are not of this site's patches, there is none, or one is not finite.
    """
    check_split(split)
    check_kind("maps", maps, Tensor, "a tensor (n, t)")
    grid = split.site.layout.grid
    if grid is None:
        raise SiteError(f"{split.site.name!r} has no patches; a concept there has no place in an image.")
    if maps.ndim != 2 or not len(maps) or maps.shape[1] != grid[0] * grid[1]:
        raise ValueError(f"maps must be (n, {grid[0] * grid[1]}), one row an image, not {tuple(maps.shape)}.")
    mean = maps.double().mean(0)
    if not bool(mean.isfinite().all()):
        raise ValueError("maps have values that are not finite.")
    return mean.view(*grid)


def route_table(split: Disentanglement, channel: int, *, detail: str = "part") -> pd.DataFrame:
    """Return what each unit of a channel is made of.

    Parameters
    ----------
    split, channel
        The channel, which must have been split.
    detail
        ``"part"``: one row for attention and one for the MLP of a block; ``"head"``: one for each attention head;
        ``"source"``: one for each source.

    Returns
    -------
    DataFrame
        ``unit`` (0 is the rest), ``layer``, ``block`` (0 where there are none), ``part``, ``place`` (a name, such
        as ``"attention 3"``, ``"head 2 of 3"`` or ``"source 17"``), ``sources`` (how many), ``contribution`` (the sum
        of their mean contributions) and ``magnitude`` (the sum of the absolute ones). Means are over the tokens of the
        sub-unit's concept, above the mean over all tokens. A unit without a concept has no contribution; its magnitude
        is the mean over the channel's concepts, or over all if it has none.

    Raises
    ------
    ValueError
        If the channel was not split, or there is no such channel or detail.
    """
    check_split(split)
    check_count("channel", channel, 0, split.site.channels - 1)
    check_choice("detail", detail, DETAILS)
    if not bool(split.routing.is_split()[channel]):
        raise ValueError(f"Channel {channel} was {split.routing.reasons[channel]}; see .channels for split ones.")
    fractions = split.routing.fractions(channel).to(split.weight)
    units, sources = (fractions > 0).nonzero(as_tuple=True)  # a source that several units share has a row for each
    means, magnitudes = _amounts(split, channel, units, sources)
    table = split.site.source_table(split.model.network).iloc[sources.tolist()].reset_index(drop=True)
    table = table.assign(
        unit=units.numpy(),
        block=table["block"].fillna(0).astype(int),
        place=_places(table, detail),
        sources=1,
        contribution=(means * fractions[units, sources]).numpy(),
        magnitude=(magnitudes * fractions[units, sources]).numpy(),
    )
    keys = ["unit", "layer", "block", "part", "place"]
    grouped = table.groupby(keys, sort=False)[["sources", "contribution", "magnitude"]]
    return grouped.sum(min_count=1).reset_index().sort_values("unit", kind="stable", ignore_index=True)


def _amounts(split: Disentanglement, channel: int, units: Tensor, sources: Tensor) -> tuple[Tensor, Tensor]:
    """Return sources' mean contributions on the concepts of units, (r,), NaN without one, and their magnitudes."""
    concepts = split.routing.concepts[channel]
    owned = concepts[concepts != NO_CONCEPT]
    every = owned if len(owned) else torch.arange(len(split.book))
    products = mean_contributions(split, channel, every)
    magnitudes = products.abs().mean(0)[sources]
    means = torch.full_like(magnitudes, torch.nan)
    for row, concept in enumerate(owned.tolist()):
        mine = torch.isin(units, 1 + (concepts == concept).nonzero().flatten())
        means[mine] = products[row, sources[mine]]
        magnitudes[mine] = means[mine].abs()
    return means, magnitudes


def _places(table: pd.DataFrame, detail: str) -> list[str]:
    names = []
    rows = zip(table["part"], table["block"], table["head"], table["index"], strict=True)
    for part, block, head, index in rows:
        where = "" if pd.isna(block) else f" {block}"
        if detail == "source":
            names.append(f"source {index}" + (f" of {part}{where}" if where else ""))
        elif detail == "head" and head >= 0:
            names.append(f"head {head}{f' of{where}' if where else ''}")
        else:
            names.append(f"{str(part).replace('mlp', 'MLP')}{where}")
    return names


def find_contributors(split: Disentanglement, sources: Tensor, *, count: int = 12) -> pd.DataFrame:
    """Return the sub-units that are most active at one token.

    Parameters
    ----------
    split
        The disentanglement.
    sources
        The token's sources less their mean over the discovery, (s * kernel,), as `Gallery.sources_of` returns them.
    count
        How many.

    Returns
    -------
    DataFrame
        ``channel``, ``unit``, ``concept``, ``name``, ``title`` (of the concept), ``activation`` (turned round for
        a sub-unit that is low on its concept) and ``deviations``: the activation over the standard deviation of its
        channel; rows are sorted by it.

    Raises
    ------
    ValueError
        If the number of sources is not the site's.
    """
    width = split.weight.shape[1]
    check_count("count", count)
    if sources.shape != (width,):
        raise ValueError(f"sources must be ({width},), those of one token, not {tuple(sources.shape)}.")
    products = (split.weight * sources.to(split.weight)).unflatten(1, (-1, split.site.kernel)).sum(2)  # (d, s)
    values = (split.routing.add_by_unit(products) * split.signs)[:, 1:]  # (d, k)
    deviations = values / split.channel_variance.to(values).sqrt().clamp(min=1e-12)[:, None]
    channels, places = (split.routing.sizes()[:, 1:] > 0).nonzero(as_tuple=True)
    best = deviations[channels, places].topk(min(count, len(channels))).indices
    channels, places = channels[best], places[best]
    concepts = split.routing.concepts[channels, places].tolist()
    return pd.DataFrame(
        {
            "channel": channels.tolist(),
            "unit": (places + 1).tolist(),
            "concept": pd.array([None if c == NO_CONCEPT else c for c in concepts], dtype="Int64"),
            "name": [split.names.get(concept, "") for concept in concepts],
            "title": [
                "" if concept == NO_CONCEPT else split.concept_title(concept, number=True) for concept in concepts
            ],
            "activation": values[channels, places].tolist(),
            "deviations": deviations[channels, places].tolist(),
        }
    )
