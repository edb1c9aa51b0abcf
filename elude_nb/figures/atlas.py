"""The concept atlas: all concepts as thumbnails, near each other if alike."""

from __future__ import annotations

import html
from typing import Any

import numpy as np

from elude_nb.atlas import Atlas, lay_out, spread
from elude_nb.checks import check_count
from elude_nb.figures.plotly_theme import dress
from elude_nb.figures.theme import BLUE
from elude_nb.gallery import Gallery
from elude_nb.tiles import crop_at, data_uri

_MOST_SVG_POINTS = 2000  # above that plotly draws with WebGL


def concept_atlas(gallery: Gallery, atlas: Atlas | None = None, *, thumbnails: int = 150, seed: int = 0) -> Any:
    """Show all concepts of a split on a map: thumbnails where they speak loudest, and a text while the pointer rests.

    Parameters
    ----------
    gallery
        Images that are ready; each concept is shown by the surroundings of the patch on which it is strongest.
    atlas
        From `lay_out`; by default it is laid out here.
    thumbnails
        At most so many, of the concepts with most tokens; the others are points.
    seed
        Of the layout.

    Returns
    -------
    plotly.graph_objects.Figure
        One point a concept, in their order.

    Raises
    ------
    ValueError
        If sub-units belong to no concepts, or no image is ready.
    """
    import plotly.graph_objects as go

    if not gallery.has_concepts or not len(gallery):
        raise ValueError("A map needs concepts across channels, and images that are ready; see Gallery.fill.")
    check_count("thumbnails", thumbnails, 0)
    split = gallery.split
    places = (atlas or lay_out(split, seed=seed)).positions.copy()
    counts = split.book.counts.tolist()
    largest = sorted(range(len(counts)), key=lambda concept: -counts[concept])[:thumbnails]
    side = 0.62 / max(len(largest), 1) ** 0.5
    places[largest] = spread(places[largest], side)
    owned: Any = split.units.groupby("concept").agg(units=("unit", "count"), channels=("channel", "nunique"))
    texts = []
    for concept, count in enumerate(counts):
        units, channels = (int(owned[column].get(concept, 0)) for column in ("units", "channels"))
        name = split.names.get(concept)
        title = f"concept {concept}" + (f": {html.escape(name)}" if name else "")
        texts.append(f"<b>{title}</b><br>{count:,} tokens, {units} sub-units in {channels} channels")
    kind = go.Scatter if len(counts) <= _MOST_SVG_POINTS else go.Scattergl
    size = 8 + 16 * np.sqrt(np.array(counts) / max(counts))
    figure = go.Figure(
        kind(
            x=places[:, 0],
            y=places[:, 1],
            mode="markers",
            marker={"size": size, "color": BLUE, "opacity": 0.6},
            hovertext=texts,
            hoverinfo="text",
        )
    )
    for concept in largest:
        figure.add_layout_image(
            source=data_uri(peak_crop(gallery, concept), 56),
            x=places[concept, 0],
            y=places[concept, 1],
            xref="x",
            yref="y",
            sizex=side,
            sizey=side,
            xanchor="center",
            yanchor="middle",
            opacity=0.95,
        )
    low, high = places.min(0) - side, places.max(0) + side
    ranges = [{"visible": False, "range": [float(a), float(b)]} for a, b in zip(low, high, strict=True)]
    figure.update_layout(xaxis=ranges[0], yaxis={**ranges[1], "scaleanchor": "x"}, showlegend=False, dragmode="pan")
    alt = f"Map of {len(counts)} concepts; concepts that drive the channels alike lie near each other"
    return dress(figure, title=f"{len(counts)} concepts", alt=alt, height=640)


def peak_crop(gallery: Gallery, concept: int, *, share: float = 0.4) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Return what surrounds the patch on which a concept is strongest, (c, c, 3): ``share`` of the image's side."""
    maps = gallery.concept_maps[..., concept]
    image, patch = divmod(int(maps.argmax()), maps.shape[1])
    return crop_at(gallery.pictures_of(image), patch, gallery.grid, share)
