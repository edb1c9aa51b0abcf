"""Tables of a split: its units, its channels, the contributions behind a unit, and its summary in a notebook."""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor, nn

from elude_nb._util.words import counted
from elude_nb.core.concepts import ConceptBook
from elude_nb.core.distinct import coverage_gains, find_copies
from elude_nb.core.names import UniqueNames
from elude_nb.core.routing import NO_CONCEPT, Routing
from elude_nb.core.saving import Settings
from elude_nb.data.images import ImageSet
from elude_nb.models.sites import Site


def concepts_of(routing: Routing, channels: Tensor, units: Tensor) -> Tensor:
    """Return the concepts of units, (u,), or -1 where one has none."""
    return routing.concepts[channels, (units - 1).clamp(min=0)].masked_fill(units == 0, NO_CONCEPT)


def unit_table(routing: Routing, shares: Tensor, means: Tensor, names: UniqueNames) -> pd.DataFrame:
    """Return one row a unit; see `elude_nb.Disentanglement.units`.

    Parameters
    ----------
    routing
        The routing.
    shares, means
        Share of the channel's variance, and mean on the concept, of each unit, (d, k + 1).
    names
        Names and descriptions of concepts; what there is none of has no column.
    """
    channels, units = routing.rows()
    concepts = concepts_of(routing, channels, units)
    table = pd.DataFrame(
        {
            "channel": channels.numpy(),
            "unit": units.numpy(),
            "concept": pd.array(concepts.numpy(), dtype="Int64"),
            "sources": routing.sizes()[channels, units].numpy(),
            "share_of_variance": shares[channels, units].numpy(),
            "mean_on_concept": means[channels, units].numpy(),
        }
    )
    table.loc[table["concept"] == NO_CONCEPT, ["concept", "mean_on_concept"]] = pd.NA
    for place, (column, texts) in enumerate(names.columns(concepts.tolist()).items(), 3):
        table.insert(place, column, texts)
    if routing.owner_sets is not None:
        table["exclusive_sources"] = routing.exclusive_sizes()[channels, units].numpy()
    return table


def channel_table(routing: Routing, variance: Tensor) -> pd.DataFrame:
    """Return one row a channel; see `elude_nb.Disentanglement.channels`."""
    return pd.DataFrame(
        {
            "channel": range(len(variance)),
            "split": routing.is_split().numpy(),
            "units": (routing.sizes()[:, 1:] > 0).sum(1).numpy(),
            "reason": routing.reasons,
            "variance": variance.numpy(),
        }
    )


def distinct_table(live: pd.DataFrame, standard: Tensor, chosen: Tensor, threshold: float) -> pd.DataFrame:
    """Return one row a distinct unit; see `elude_nb.Disentanglement.distinct_units`.

    Parameters
    ----------
    live
        The live sub-units, one row each.
    standard
        Their standardised activations, (x, u).
    chosen
        The rows of the distinct ones, the best first, (m,).
    threshold
        Correlation above which a sub-unit of another channel is a copy.
    """
    named = [name for name in ("channel", "unit", "concept", "name", "description") if name in live]
    table = live.iloc[chosen.tolist()][named].reset_index(drop=True)
    pairs = list(zip(live["channel"].tolist(), live["unit"].tolist(), strict=True))
    copies = [
        [pairs[j] for j in alike.nonzero().flatten().tolist() if pairs[j][0] != channel]
        for channel, alike in zip(table["channel"].tolist(), find_copies(standard, chosen, threshold), strict=True)
    ]
    table["copies"] = [len(each) for each in copies]
    table["copied_by"] = copies
    table["coverage_gained"] = coverage_gains(standard, chosen).numpy()
    return table


def contribution_table(network: nn.Module, site: Site, products: Tensor, share: Tensor) -> pd.DataFrame:
    """Return the sources of a unit, the strongest first, with their contributions.

    Parameters
    ----------
    network, site
        The network and its site.
    products
        What each source contributes to the channel, (s * kernel,).
    share
        Which part of each source's contribution the unit has, (s,).
    """
    table = site.source_table(network)
    table["contribution"] = (products.unflatten(0, (-1, site.kernel)).sum(1) * share).numpy()
    return table[share.numpy() > 0].sort_values("contribution", key=abs, ascending=False)


def top_table(
    images: ImageSet, distinct: Tensor, values: Tensor, sign: int, site: Site, tokens: str, k: int
) -> pd.DataFrame:
    """Return one row an image, the best first; see `elude_nb.Disentanglement.top_images`.

    Parameters
    ----------
    images, distinct
        The images, and the numbers of those that are no copies, (m,).
    values
        The unit's activation at each of the chosen tokens, (n, t); NaN where a sentence has none.
    sign
        -1 if the unit is low on its concept, else 1.
    site, tokens
        Where the tokens are.
    k
        How many rows.
    """
    turned = sign * values
    highest, where = turned.masked_fill(turned.isnan(), -torch.inf).max(1)
    best = distinct[highest[distinct].topk(k).indices]
    layout = site.layout
    positions = layout.positions(tokens)[where[best]]
    numbers = best.tolist()
    table = pd.DataFrame({"rank": range(1, k + 1), "image": numbers, "file": [images.names[i] for i in numbers]})
    if images.labels is not None:
        table["label"] = [images.labels[i] for i in numbers]
    table["value"] = (sign * highest[best]).numpy()
    table["position"] = positions.numpy()
    if layout.grid is not None:
        patches = positions - layout.classes - layout.registers
        for name, part in (("patch_row", patches // layout.grid[1]), ("patch_column", patches % layout.grid[1])):
            table[name] = pd.array(part.numpy(), dtype="Int64")
            table.loc[patches.numpy() < 0, name] = pd.NA
    return table


def summary(model: str, site: Site, routing: Routing, book: ConceptBook, settings: Settings) -> dict[str, str]:
    """Return what a split is, as rows of a small table."""
    split = int(routing.is_split().sum())
    units = int((routing.sizes()[:, 1:] > 0).sum())
    left = "nothing left over" if settings.shared is None else f"shared = {settings.shared}"
    rule = f"{settings.routing}, units = {settings.units}, {left}, seed = {settings.seed}"
    if settings.routing.startswith("elude"):
        rule = settings.strategy
    return {
        "model": model,
        "site": f"{site.name}, {site.channels} channels, {site.sources:,} sources",
        "split": f"{counted(split, 'channel')} in {counted(units, 'sub-unit')}; {site.channels - split} not split",
        "concepts": f"{len(book)} from {int(book.counts.sum()):,} {settings.tokens} tokens of "
        f"{counted(settings.images, 'image')} ({settings.images_from})",
        "routing": rule,
    }
