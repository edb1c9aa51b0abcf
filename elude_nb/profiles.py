"""Where a concept arises: in which blocks, and whether in attention or in the MLP."""

from __future__ import annotations

import pandas as pd
import torch

from elude_nb.checks import check_count
from elude_nb.disentanglement import Disentanglement


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
    check_count("concept", concept, 0, len(split.book) - 1)
    routing = split.routing
    channels, places = (routing.concepts == concept).nonzero(as_tuple=True)
    if not len(channels):
        raise ValueError(f"No sub-unit belongs to concept {concept}; see .units for those that have some.")
    mine = routing.routes[channels] == (places + 1)[:, None]  # (c, s)
    products = split.weight[channels] * split.book.mean_sources()[concept]
    products = products.unflatten(1, (-1, split.site.kernel)).sum(2) * mine
    scale = split.signs[channels, places + 1] / split.channel_variance[channels].sqrt().clamp(min=1e-12)
    table = split.site.source_table(split.model.network)
    table["contribution"] = (products * scale.to(products)[:, None]).sum(0).numpy()
    table["block"] = table["block"].fillna(0).astype(int)
    found: pd.DataFrame = table.pivot_table("contribution", "block", "part", aggfunc="sum", fill_value=0.0)
    return found


def part_table(split: Disentanglement, channel: int, *, by: str = "contribution") -> pd.DataFrame:
    """Return what the units of a channel are made of: one row a unit, one column a (block, part) of the site.

    Parameters
    ----------
    split, channel
        The channel, which must have been split.
    by
        ``"contribution"``: absolute mean contributions on the sub-unit's concept, summed; ``"sources"``: their number.

    Raises
    ------
    ValueError
        If the channel was left alone, or there is no such channel or quantity.
    """
    check_count("channel", channel, 0, split.site.channels - 1)
    if by not in {"contribution", "sources"}:
        raise ValueError(f"by={by!r} is not known; choose 'contribution' or 'sources'.")
    routes, concepts = split.routing.routes[channel].long(), split.routing.concepts[channel]
    if not bool((routes > 0).any()):
        raise ValueError(f"Channel {channel} was {split.routing.reasons[channel]}; see .channels for split ones.")
    table = split.site.source_table(split.model.network)
    units = [unit for unit in range(1, split.routing.units + 1) if bool((routes == unit).any())]
    amounts = torch.ones(len(routes), dtype=split.weight.dtype)
    if by == "contribution":
        # A sub-unit without a concept is weighed by its largest mean contribution on any.
        means = split.book.mean_sources()
        for unit in units:
            owner = int(concepts[unit - 1])
            rows = means[owner : owner + 1] if owner >= 0 else means
            products = (split.weight[channel] * rows).unflatten(1, (-1, split.site.kernel)).sum(2).abs().amax(0)
            amounts = torch.where(routes == unit, products, amounts)
    table["amount"], table["unit"] = amounts.numpy(), routes.numpy()
    table["block"] = table["block"].fillna(0).astype(int)
    found: pd.DataFrame = table[table["unit"] > 0].pivot_table(
        "amount", "unit", ["block", "part"], aggfunc="sum", fill_value=0.0
    )
    return found
