"""What the script of a report draws from: concepts and channels as numbers, rounded and packed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from elude_nb._util.progress import progress_bar
from elude_nb.app.report.images import ReportImages
from elude_nb.core.result import Disentanglement
from elude_nb.figures.concept_map import fill_square
from elude_nb.interpret.concept_map import lay_out
from elude_nb.interpret.exemplars import Exemplars
from elude_nb.interpret.profiles import places_of_sources, sum_by_place
from elude_nb.scores.overview import mixed_channels

LEVELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
"""One letter for each of 64 degrees of brightness; an eye cannot distinguish more of them in a heat map."""
_LETTERS = np.frombuffer(LEVELS.encode("ascii"), dtype=np.uint8)

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def concept_entries(split: Disentanglement, images: ReportImages, *, count: int) -> list[dict[str, Any]]:
    """Return one entry a concept, in the order of the book; none if no concept goes through all channels.

    An entry has ``concept``, ``name``, ``title`` (see `Disentanglement.concept_title`), ``tokens``, ``x`` and ``y`` in
    [0, 1], ``images`` (number, value, packed heat; the highest first), ``alike`` (the concepts of the most similar
    directions), ``units`` (channel, unit, mean on the concept, share of the channel's variance; the strongest first)
    and ``depth``, one number a block and part.
    """
    maps = images.concept_maps
    if maps is None:
        return []
    places, directions = fill_square(lay_out(split).positions), split.book.directions()
    cosines = (directions @ directions.T).fill_diagonal_(-2)
    alike = cosines.topk(min(5, len(cosines) - 1)).indices.tolist()
    depths, counts = concept_depths(split), split.book.counts.tolist()
    owned = dict(iter(split.units.dropna(subset=["concept"]).groupby("concept")))
    return [
        {
            "concept": concept,
            "name": split.names.get(concept, ""),
            "title": split.concept_title(concept, number=True),
            "tokens": int(counts[concept]),
            "x": round_to(places[concept, 0]),
            "y": round_to(places[concept, 1]),
            "images": _top_images(maps[..., concept], count, images.distinct),
            "alike": alike[concept],
            "units": _units_of(owned[concept]) if concept in owned else [],
            "depth": [round_to(value, 3) for value in depths[concept]],
        }
        for concept in range(len(split.book))
    ]


def _top_images(heat: Tensor, count: int, distinct: Tensor) -> list[list[Any]]:
    values, order = heat[distinct].amax(1).topk(min(count, len(distinct)))
    return [
        [i, round_to(value), pack_heat(heat[i].numpy(), float(values[0]))]
        for i, value in zip(distinct[order].tolist(), values.tolist(), strict=True)
    ]


def concept_depths(split: Disentanglement) -> Array:
    """Return where each concept's read-out arises on its own tokens, (g, blocks * parts): sums of contributions."""
    products = split.concept_readout().matrix.T * split.book.mean_sources()  # (g, s * kernel)
    by_source = products.unflatten(1, (-1, split.site.kernel)).sum(2)
    return np.stack([table.to_numpy().ravel() for table in sum_by_place(by_source, places_of_sources(split))])


def _units_of(table: pd.DataFrame) -> list[list[Any]]:
    strongest = table.sort_values("share_of_variance", ascending=False)
    columns = ["channel", "unit", "mean_on_concept", "share_of_variance"]
    return [
        [int(channel), int(unit), round_to(mean), round_to(share)]
        for channel, unit, mean, share in strongest[columns].itertuples(index=False)
    ]


def channel_table(split: Disentanglement, scores: pd.DataFrame) -> pd.DataFrame:
    """Return one row a channel, most mixed and best separated first; channels that are not split come last.

    Columns are those of ``split.channels`` and of `mixed_channels`.
    """
    own = scores[(scores["kind"] == "channel") & (scores["unit"] == 1)].set_index("channel")["top_similarity"]
    found = mixed_channels(scores).drop(columns="before")
    table = split.channels.join(own.rename("before"), on="channel").join(found, on="channel")
    return table.sort_values(["separation", "channel"], ascending=[False, True], na_position="last", ignore_index=True)


def best_entries(table: pd.DataFrame, opened: list[int], count: int, k: int) -> list[dict[str, Any]]:
    """Return the ``channel`` and a ``caption`` of the best channels that can be opened, from `channel_table`.

    ``k`` is of how many best images the scores are.
    """
    rows = table[table["channel"].isin(opened) & table["separation"].notna()].head(count)
    return [
        {
            "channel": int(row["channel"]),
            "caption": f"How alike the {k} best images are: channel {row['before']:.2f}, its sub-units on average "
            f"{row['after']:.2f}, random routes {row['random routes']:.2f}.",
        }
        for row in rows.to_dict("records")
    ]


def channel_entries(
    split: Disentanglement,
    images: ReportImages,
    scores: pd.DataFrame,
    channels: list[int],
    *,
    count: int,
    max_units: int,
) -> dict[str, dict[str, Any]]:
    """Return for each channel its ``rows`` of images, before and after, and its table of ``units``.

    A row has ``unit`` (-1 is the whole channel), ``title``, ``labels``, ``alike`` and ``images``: number, value, packed
    heat. A unit has ``unit``, ``concept``, ``sources``, ``share``, ``mean``, ``top`` (its top similarity), ``copies``
    in other channels (none for unit 0) and ``depth``, one number a block and part.
    """
    tables = dict(iter(split.units.groupby("channel")))
    tops = scores[scores["kind"] == "sub-unit"].set_index(["channel", "unit"])["top_similarity"].to_dict()
    entries = {}
    for channel in progress_bar(channels, description="channels", show=split.model.progress, unit="channel"):
        exemplars, depths = images.channel(channel, count, max_units)
        units = [
            {
                "unit": int(row["unit"]),
                "concept": None if pd.isna(row["concept"]) else int(row["concept"]),
                "sources": int(row["sources"]),
                "share": round_to(row["share_of_variance"]),
                "mean": round_to(row["mean_on_concept"]),
                "top": round_to(tops.get((channel, row["unit"]))),
                "copies": int(split.copies[channel, row["unit"]]) if row["unit"] else None,
                "depth": [round_to(v, 3) for v in depths[row["unit"]].to_numpy().flat] if row["unit"] in depths else [],
            }
            for row in tables[channel].to_dict("records")
        ]
        entries[str(channel)] = {"rows": _rows(exemplars), "units": units}
    return entries


def _rows(exemplars: Exemplars) -> list[dict[str, Any]]:
    rows = []
    for unit, name, alike, row in zip(
        exemplars.units, exemplars.names, exemplars.similarity, exemplars.rows, strict=True
    ):
        title, _, labels = name.partition("\n")
        brightest = max((found.value for found in row), default=1.0)
        found = [[each.index, round_to(each.value), pack_heat(each.heat, brightest)] for each in row]
        rows.append({"unit": unit, "title": title, "labels": labels, "alike": round_to(alike), "images": found})
    return rows


def pack_heat(heat: Any, brightest: float) -> str:
    """Return a heat map as one letter a patch, row by row: "A" for 0 and below, "/" for ``brightest`` and above.

    Examples
    --------
    >>> pack_heat([[0.0, 1.0], [2.0, -3.0]], 2.0)
    'Ag/A'
    """
    share = np.clip(np.asarray(heat, dtype=np.float64).ravel() / max(brightest, 1e-12), 0, 1)
    letters: bytes = _LETTERS[np.rint(share * (len(LEVELS) - 1)).astype(int)].tobytes()
    return letters.decode("ascii")


def round_to(value: Any, digits: int = 4) -> float | None:
    """Return a number with so many significant digits, or ``None`` where there is none (JSON has no NaN).

    Examples
    --------
    >>> round_to(0.123456), round_to(float("nan"))
    (0.1235, None)
    """
    number = math.nan if value is None or pd.isna(value) else float(value)
    return float(f"{number:.{digits}g}") if math.isfinite(number) else None
