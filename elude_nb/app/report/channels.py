"""The channels of a report: one line each with its scores, and what those that can be opened come apart into."""

from __future__ import annotations

from typing import Any

import pandas as pd

from elude_nb._util.progress import progress_bar
from elude_nb.app.report.looks import Looks
from elude_nb.app.report.packing import pack_heat, rounded
from elude_nb.core.result import Disentanglement
from elude_nb.interpret.exemplars import Exemplars
from elude_nb.scores.overview import mixed_channels


def channel_table(split: Disentanglement, scores: pd.DataFrame) -> pd.DataFrame:
    """Return one row a channel, those first that mixed most and came apart best; channels left alone come last.

    Columns are those of ``split.channels`` and of `mixed_channels`.
    """
    own = scores[(scores["kind"] == "channel") & (scores["unit"] == 1)].set_index("channel")["top_similarity"]
    found = mixed_channels(scores).drop(columns="before")
    table = split.channels.join(own.rename("before"), on="channel").join(found, on="channel")
    return table.sort_values(["separation", "channel"], ascending=[False, True], na_position="last", ignore_index=True)


def channel_entries(
    split: Disentanglement,
    looks: Looks,
    scores: pd.DataFrame,
    channels: list[int],
    *,
    count: int,
    units: int,
    progress: bool,
) -> dict[str, dict[str, Any]]:
    """Return for each channel its ``rows`` of images, before and after, and its table of ``units``.

    A row has ``unit`` (-1 is the whole channel), ``title``, ``labels``, ``alike`` and ``images``: number, value, packed
    heat. A unit has ``unit``, ``concept``, ``sources``, ``share``, ``mean``, ``top`` (its top similarity) and
    ``depth``, one number a block and part.
    """
    tables = dict(iter(split.units.groupby("channel")))
    scored = scores[scores["kind"] == "sub-unit"].set_index(["channel", "unit"])["top_similarity"].to_dict()
    entries = {}
    for channel in progress_bar(channels, description="channels", show=progress, unit="channel"):
        exemplars, depths = looks.channel(channel, count, units)
        entries[str(channel)] = {
            "rows": _rows(exemplars),
            "units": [
                {
                    "unit": int(row["unit"]),
                    "concept": None if pd.isna(row["concept"]) else int(row["concept"]),
                    "sources": int(row["sources"]),
                    "share": rounded(row["share_of_variance"]),
                    "mean": None if pd.isna(row["mean_on_concept"]) else rounded(row["mean_on_concept"]),
                    "top": rounded(scored.get((channel, row["unit"]))),
                    "depth": _flat(depths.get(int(row["unit"]))),
                }
                for row in tables[channel].to_dict("records")
            ],
        }
    return entries


def _rows(exemplars: Exemplars) -> list[dict[str, Any]]:
    rows = []
    for unit, name, alike, row in zip(
        exemplars.units, exemplars.names, exemplars.similarity, exemplars.rows, strict=True
    ):
        title, _, labels = name.partition("\n")
        brightest = max(found.value for found in row)
        images = [[found.index, rounded(found.value), pack_heat(found.heat, brightest)] for found in row]
        rows.append({"unit": unit, "title": title, "labels": labels, "alike": rounded(alike), "images": images})
    return rows


def _flat(depth: pd.DataFrame | None) -> list[float | None]:
    return [] if depth is None else [rounded(value, 3) for value in depth.to_numpy().ravel()]
