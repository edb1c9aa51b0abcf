"""The map of concepts: all concepts as thumbnails, near each other if alike. Its interactive twin is concept_map.js."""

from __future__ import annotations

from typing import Any

import numpy as np

from elude_nb._util.checks import check_count
from elude_nb._util.words import counted
from elude_nb.figures.html import data_uri
from elude_nb.figures.theme import dress, nth_colour, shade, words_for_plotly
from elude_nb.interpret.concept_map import Atlas, lay_out, spread
from elude_nb.interpret.gallery import Gallery

Places = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
_MOST_SVG_POINTS = 2000  # above that plotly draws with WebGL
_GOLDEN = np.pi * (3 - 5**0.5)  # points turned by this angle each are never in line


def concept_atlas(
    atlas: Atlas | Gallery, *, thumbnails: int = 150, sub_units: bool = False, height: int = 640, seed: int = 0
) -> Any:
    """Show all concepts on a map: what they look like where they are strongest, and their numbers on hovering.

    Parameters
    ----------
    atlas
        From `elude_nb.interpret.concept_map.lay_out`; of a gallery, it is laid out here.
    thumbnails
        At most so many, of the concepts with most tokens, pushed apart where they would cover each other; the others
        are points. An atlas without a gallery has none.
    sub_units
        Whether to draw every sub-unit as a point around its concept, coloured as that is. Colours repeat after seven
        concepts; hovering shows to which one a point belongs.
    height
        Of the figure in pixels.
    seed
        Of the layout, if it is made here.

    Returns
    -------
    plotly.graph_objects.Figure
        Its first trace has one point a concept, in their order.

    Raises
    ------
    ValueError
        If a gallery has no concepts, or no image that is ready.
    """
    import plotly.graph_objects as go

    check_count("thumbnails", thumbnails, 0)
    check_count("height", height, 200)
    if isinstance(atlas, Gallery):
        atlas = lay_out(atlas.split, atlas, seed=seed)
    tokens = atlas.concepts["tokens"].to_numpy(dtype=np.float64)
    largest = np.argsort(-tokens, kind="stable")[: min(thumbnails, len(atlas.thumbnails))]
    cell = float(np.clip(0.6 / max(len(largest), 1) ** 0.5, 0.03, 0.12))  # cells cover a good third of the map
    side = cell * (0.6 if sub_units else 1)
    places = atlas.positions.copy()
    places[largest] = spread(places[largest], 1.04 * cell)
    # A point under a thumbnail is never seen, but the pointer finds it: it is as large as the thumbnail.
    sizes, opacity = 7 + 15 * np.sqrt(tokens / max(tokens.max(), 1)), np.full(len(atlas), 0.65)
    sizes[largest], opacity[largest] = 0.75 * side * height, 0.0
    traces = [_draw_points(places, _describe_concepts(atlas), size=sizes, color=shade("blue"), opacity=opacity)]
    if sub_units and len(atlas.units):
        concepts = atlas.units["concept"].to_numpy(dtype=np.int64)
        colours = [nth_colour(concept) for concept in concepts.tolist()]
        around = places[concepts] + _surround(atlas, cell / 2, hollow=len(largest) > 0)
        traces.append(_draw_points(around, _describe_units(atlas), size=4, color=colours, opacity=0.8))
    figure = go.Figure(traces)
    where = {"xref": "x", "yref": "y", "xanchor": "center", "yanchor": "middle", "layer": "below"}
    images = [
        {
            "source": data_uri(atlas.thumbnails[concept], None),
            "x": places[concept, 0],
            "y": places[concept, 1],
            "sizex": side,
            "sizey": side,
            **where,
        }
        for concept in largest[::-1].tolist()  # the largest lie on top
    ]
    ends = zip(places.min(axis=0) - 0.7 * cell, places.max(axis=0) + 0.7 * cell, strict=True)
    x, y = ({"visible": False, "range": [float(low), float(high)]} for low, high in ends)
    figure.update_layout(
        images=images,  # at once: added one by one, plotly checks all of them each time
        xaxis=x,
        yaxis={**y, "scaleanchor": "x"},
        showlegend=False,
        dragmode="pan",
        hovermode="closest",
    )
    title = f"{len(atlas)} concepts" + (f" and {len(atlas.units):,} sub-units" if sub_units else "")
    near = "concepts that drive the channels alike lie near each other"
    alt = f"Map of {title}, {len(largest)} with a picture; {near}"
    return dress(figure, title=f"{title}: neighbours drive the channels alike", alt=alt, height=height)


def fill_square(positions: Places) -> Places:
    """Return positions (g, 2) stretched until they fill the unit square, for maps whose axes have no common scale."""
    low, extent = positions.min(0), np.ptp(positions, axis=0)
    found: Places = np.where(extent > 1e-9, (positions - low) / np.maximum(extent, 1e-9), 0.5)
    return found


def _draw_points(places: Places, texts: list[str], **marker: Any) -> Any:
    import plotly.graph_objects as go

    kind = go.Scatter if len(places) <= _MOST_SVG_POINTS else go.Scattergl
    marker["line"] = {"width": 0.5, "color": shade("paper")}
    x, y = places.T
    return kind(x=x, y=y, mode="markers", marker=marker, hovertext=texts, hoverinfo="text")


def _surround(atlas: Atlas, radius: float, *, hollow: bool) -> Places:
    """Return where each sub-unit lies, seen from its concept, (u, 2): as the seeds of a sunflower, or on its rim."""
    concepts = atlas.units.groupby("concept")
    number, of = concepts.cumcount().to_numpy(dtype=np.float64), concepts["unit"].transform("size").to_numpy(np.float64)
    start = 0.86 if hollow else 0.0  # the corners of a thumbnail of 0.6 of the cell reach to 0.85
    away = radius * np.sqrt(start**2 + (1.1**2 - start**2) * (number + 0.5) / of)
    angle = number * _GOLDEN
    found: Places = np.stack([away * np.cos(angle), away * np.sin(angle)], axis=1)
    return found


def _describe_concepts(atlas: Atlas) -> list[str]:
    texts = []
    for concept, row in enumerate(atlas.concepts.to_dict("records")):
        best = f"<br>strongest in images {', '.join(map(str, atlas.best[concept].tolist()))}" if atlas.best.size else ""
        texts.append(
            f"<b>{_title(atlas, concept)}</b><br>{counted(row['tokens'], 'token')} ({row['share']:.1%})<br>"
            f"{counted(row['sub_units'], 'sub-unit')} in {counted(row['channels'], 'channel')}{best}"
        )
    return texts


def _describe_units(atlas: Atlas) -> list[str]:
    rows = atlas.units[["channel", "unit", "concept"]].itertuples(index=False)
    return [f"channel {channel}, sub-unit {unit}<br>{_title(atlas, concept)}" for channel, unit, concept in rows]


def _title(atlas: Atlas, concept: int) -> str:
    return words_for_plotly(atlas.concepts["title"].iloc[concept])
