"""The concepts of a report: where each lies on the map, its best images, its units, and the blocks it arises in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from elude_nb.app.report.looks import Looks
from elude_nb.app.report.packing import pack_heat, rounded
from elude_nb.core.result import Disentanglement
from elude_nb.interpret.concept_map import lay_out
from elude_nb.interpret.profiles import places_of_sources

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def concept_entries(split: Disentanglement, looks: Looks, *, count: int) -> list[dict[str, Any]]:
    """Return one entry a concept, in the order of the book; none if no concept goes through all channels.

    An entry has ``concept``, ``name``, ``tokens``, ``x`` and ``y`` in [0, 1], ``images`` (number, value, packed heat;
    the best first), ``alike`` (the concepts of the most similar directions), ``units`` (channel, unit, mean on the
    concept, share of the channel's variance; the strongest first) and ``depth``, one number a block and part.
    """
    maps = looks.concept_maps
    if maps is None:
        return []
    places, directions = positions_of_concepts(split), split.book.directions()
    cosines = (directions @ directions.T).fill_diagonal_(-2)
    alike = cosines.topk(min(5, len(cosines) - 1)).indices.tolist()
    depths = concept_depths(split)
    counts = split.book.counts.tolist()
    owned = dict(iter(split.units.dropna(subset=["concept"]).groupby("concept")))
    return [
        {
            "concept": concept,
            "name": split.names.get(concept, ""),
            "tokens": int(counts[concept]),
            "x": rounded(places[concept, 0]),
            "y": rounded(places[concept, 1]),
            "images": best_images_of(maps[..., concept], count),
            "alike": alike[concept],
            "units": _units_of(owned[concept]) if concept in owned else [],
            "depth": [rounded(value, 3) for value in depths[concept]],
        }
        for concept in range(len(split.book))
    ]


def best_images_of(heat: Tensor, count: int) -> list[list[Any]]:
    """Return of heat maps (n, t) the ``count`` highest: number, value, and the map packed, the best first."""
    values, order = heat.amax(1).topk(min(count, len(heat)))
    brightest = float(values[0])
    return [
        [int(i), rounded(value), pack_heat(heat[i].numpy(), brightest)]
        for i, value in zip(order.tolist(), values.tolist(), strict=True)
    ]


def positions_of_concepts(split: Disentanglement) -> Array:
    """Return a place in the unit square for each concept, (g, 2): the atlas, stretched until it fills the square.

    The page draws it as wide as the window is, so the two axes have no common scale anyway.
    """
    places = lay_out(split).positions
    low, extent = places.min(0), np.ptp(places, axis=0)
    found: Array = np.where(extent > 1e-9, (places - low) / np.maximum(extent, 1e-9), 0.5)
    return found


def concept_depths(split: Disentanglement) -> Array:
    """Return where each concept's read-out arises on its own tokens, (g, blocks * parts): sums of contributions."""
    blocks, parts, codes = places_of_sources(split)
    products = split.concept_readout().matrix * split.book.mean_sources().T  # (s * kernel, g)
    by_source = products.unflatten(0, (-1, split.site.kernel)).sum(1)
    sums = by_source.new_zeros(len(blocks) * len(parts), by_source.shape[1]).index_add_(0, codes, by_source)
    found: Array = sums.T.double().numpy()
    return found


def _units_of(table: pd.DataFrame) -> list[list[Any]]:
    strongest = table.sort_values("share_of_variance", ascending=False)
    columns = ["channel", "unit", "mean_on_concept", "share_of_variance"]
    return [
        [int(channel), int(unit), rounded(mean), rounded(share)]
        for channel, unit, mean, share in strongest[columns].itertuples(index=False)
    ]
