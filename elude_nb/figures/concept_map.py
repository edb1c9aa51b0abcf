"""The concept atlas: all concepts as thumbnails, near each other if alike."""

from __future__ import annotations

import html
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from torch import Tensor

from elude_nb._util.checks import check_count, check_kind
from elude_nb.core.result import Disentanglement
from elude_nb.figures.html import data_uri
from elude_nb.figures.theme import BLUE, FAINT, PAPER, SEQUENCE, Picture, dress, house_style, shade
from elude_nb.interpret.concept_map import Atlas, lay_out, spread
from elude_nb.interpret.gallery import Gallery
from elude_nb.interpret.profiles import depth_profile, spatial_profile

Places = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
_MOST_SVG_POINTS = 2000  # above that plotly draws with WebGL
_GOLDEN = np.pi * (3 - 5**0.5)  # points turned by this angle each never stand in line


def concept_atlas(
    atlas: Atlas | Gallery, *, thumbnails: int = 150, sub_units: bool = False, height: int = 640, seed: int = 0
) -> Any:
    """Show all concepts on a map: what they look like where they are strongest, and words while the pointer rests.

    Parameters
    ----------
    atlas
        From `elude_nb.interpret.concept_map.lay_out`; of a gallery, it is laid out here.
    thumbnails
        At most so many, of the concepts with most tokens, pushed apart where they would cover each other; the others
        are points. An atlas without a gallery has none.
    sub_units
        Whether to draw every sub-unit as a point around its concept, coloured as that is. Colours come again after
        seven concepts; who a point belongs to is said while the pointer rests.
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
    shown = np.isin(np.arange(len(atlas)), largest)
    cell = _cell(len(largest))
    side = cell * (0.6 if sub_units else 1)
    places = atlas.positions.copy()
    places[largest] = spread(places[largest], 1.04 * cell)
    sizes = 7 + 15 * np.sqrt(tokens / max(tokens.max(), 1))
    # Under a thumbnail a point is never seen, but it is what the pointer finds: as large as the thumbnail.
    sizes = np.where(shown, 0.75 * side * height, sizes)
    traces = [_points(places, _concept_texts(atlas), sizes, shade(BLUE), opacity=np.where(shown, 0.0, 0.65).tolist())]
    if sub_units and len(atlas.units):
        concepts = atlas.units["concept"].to_numpy(dtype=np.int64)
        colours = [shade(SEQUENCE[concept % len(SEQUENCE)]) for concept in concepts.tolist()]
        around = places[concepts] + _around(atlas, cell / 2, hollow=len(largest) > 0)
        traces.append(_points(around, _unit_texts(atlas), 4, colours, opacity=0.8))
    figure = go.Figure(traces)
    where: dict[str, Any] = {"xref": "x", "yref": "y", "xanchor": "center", "yanchor": "middle", "layer": "below"}
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
    figure.update_layout(images=images)  # at once: added one by one, plotly checks all of them each time
    low, high = places.min(axis=0) - 0.7 * cell, places.max(axis=0) + 0.7 * cell
    x, y = ({"visible": False, "range": [float(one), float(other)]} for one, other in zip(low, high, strict=True))
    figure.update_layout(xaxis=x, yaxis={**y, "scaleanchor": "x"}, showlegend=False, dragmode="pan")
    figure.update_layout(hovermode="closest")
    also = f" and {len(atlas.units):,} sub-units" if sub_units else ""
    alt = (
        f"Map of {len(atlas)} concepts{also}, {len(largest)} with a picture; concepts that drive the channels alike "
        "lie near each other"
    )
    title = f"{len(atlas)} concepts{also}: neighbours drive the channels alike"
    return dress(figure, title=title, alt=alt, height=height)


def fill_square(positions: Places) -> Places:
    """Return positions (g, 2) stretched until they fill the unit square, for maps whose axes have no common scale."""
    low, extent = positions.min(0), np.ptp(positions, axis=0)
    found: Places = np.where(extent > 1e-9, (positions - low) / np.maximum(extent, 1e-9), 0.5)
    return found


def _points(
    places: Places,
    texts: list[str],
    sizes: Any,
    colours: Any,
    *,
    opacity: Any,
) -> Any:
    import plotly.graph_objects as go

    kind = go.Scatter if len(places) <= _MOST_SVG_POINTS else go.Scattergl
    edge = {"width": 0.5, "color": shade(PAPER)}
    return kind(
        x=places[:, 0],
        y=places[:, 1],
        mode="markers",
        marker={"size": sizes, "color": colours, "opacity": opacity, "line": edge},
        hovertext=texts,
        hoverinfo="text",
    )


def _cell(number: int) -> float:
    """Return the side of a concept's cell on a map of side 1, so that cells cover a good third of it."""
    return float(np.clip(0.6 / max(number, 1) ** 0.5, 0.03, 0.12))


def _around(atlas: Atlas, radius: float, *, hollow: bool) -> Places:
    """Return where each sub-unit lies, seen from its concept, (u, 2): as the seeds of a sunflower, or on its rim."""
    number = atlas.units.groupby("concept").cumcount().to_numpy(dtype=np.float64)
    of = atlas.units.groupby("concept")["unit"].transform("size").to_numpy(dtype=np.float64)
    start = 0.86 if hollow else 0.0  # the corners of a thumbnail of 0.6 of the cell reach to 0.85
    away = radius * np.sqrt(start**2 + (1.1**2 - start**2) * (number + 0.5) / of)
    angle = number * _GOLDEN
    placed: Places = np.stack([away * np.cos(angle), away * np.sin(angle)], axis=1)
    return placed


def _concept_texts(atlas: Atlas) -> list[str]:
    texts = []
    table = atlas.concepts
    rows = zip(table["name"], table["tokens"], table["share"], table["sub_units"], table["channels"], strict=True)
    for concept, (name, tokens, share, units, channels) in enumerate(rows):
        best = f"<br>strongest in images {', '.join(map(str, atlas.best[concept].tolist()))}" if atlas.best.size else ""
        texts.append(
            f"<b>{_title(concept, name)}</b><br>{tokens:,} tokens ({share:.1%})<br>"
            f"{units} sub-units in {channels} channels{best}"
        )
    return texts


def _unit_texts(atlas: Atlas) -> list[str]:
    names = atlas.concepts["name"].tolist()
    rows = zip(atlas.units["channel"], atlas.units["unit"], atlas.units["concept"], strict=True)
    return [
        f"channel {channel}, sub-unit {unit}<br>{_title(concept, names[concept])}" for channel, unit, concept in rows
    ]


def _title(concept: int, name: str) -> str:
    return f"concept {concept}" + (f": {html.escape(name)}" if name else "")


def concept_profile(of: Gallery | Disentanglement, concept: int, *, maps: Tensor | None = None) -> Picture:
    """Show in which blocks a concept's contributions arise (left), and where in images it lies on the mean (right).

    Parameters
    ----------
    of
        A gallery with images that are ready, or a split.
    concept
        The concept.
    maps
        Its read-out at every patch of some images, (n, t); by default the gallery's. A split without maps is shown by
        its depth alone.

    Raises
    ------
    ValueError
        If there is no such concept, it has no sub-units, no image is ready, or the maps are of another shape.
    """
    check_kind("of", of, Gallery | Disentanglement, "a Gallery or a Disentanglement")
    split = of if isinstance(of, Disentanglement) else of.split
    table = depth_profile(split, concept)
    if isinstance(of, Gallery) and maps is None:
        if not len(of):
            raise ValueError("No image is ready; call .fill() first.")
        maps = of.concept_maps[..., concept]
    mean = None if maps is None else spatial_profile(split, maps).numpy()
    name = split.names.get(concept)
    title = f"Concept {concept}" + (f": {name}" if name else "") + ", over all channels"
    with house_style():
        picture = Picture(figsize=(8.4, 3.0))
        if mean is None or maps is None:
            _depth(picture.subplots(), table, title)
        else:
            depth, space = picture.subplots(1, 2, gridspec_kw={"width_ratios": [2.4, 1], "wspace": 0.12})
            _depth(depth, table, title)
            shown = space.imshow(mean, cmap="cividis")
            space.set(xticks=[], yticks=[])
            space.spines[:].set_visible(False)
            space.set_title(f"where in the image:\nmean of {len(maps)} images", loc="center", fontsize=9)
            bar: Any = picture.colorbar(shown, ax=space, shrink=0.8)
            bar.outline.set_visible(False)
            bar.ax.tick_params(labelsize=7.5)
            bar.set_label("read-out", fontsize=8)
    total = table.sum(axis=1)
    picture.alt = f"Concept {concept}: contributions by block, most from block {total.idxmax()}"
    if mean is not None and maps is not None:
        row, column = np.unravel_index(mean.argmax(), mean.shape)
        picture.alt += f"; mean over {len(maps)} images, highest in row {row + 1}, column {column + 1} of {mean.shape}"
    return picture


def _depth(place: Axes, table: pd.DataFrame, title: str) -> None:
    width = 0.8 / table.shape[1]
    for number, part in enumerate(table.columns):
        places = np.arange(len(table)) + (number - (table.shape[1] - 1) / 2) * width
        label = str(part).replace("mlp", "MLP")
        place.bar(places, table[part], width * 0.94, color=SEQUENCE[number % len(SEQUENCE)], label=label)
    place.axhline(0, color=FAINT, linewidth=0.8)
    blocks = [str(block) if block else "this layer" for block in table.index]
    place.set_xticks(range(len(table)), blocks)
    place.set_xlabel("block in which the contribution arises" if len(table) > 1 else "")
    place.set_ylabel("contribution, in standard\ndeviations of the channels")
    place.set_title(title)
    place.margins(y=0.12)
    if table.shape[1] > 1:
        place.legend(loc="best", fontsize=8)
