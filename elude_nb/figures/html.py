"""Pictures and charts as HTML, for panels and pages."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from torch import Tensor

from elude_nb.interpret.exemplars import Exemplars
from elude_nb.interpret.gallery import Gallery

SIDE = 96  # pixels of a tile
# Okabe and Ito, a little lighter, so that text in them is read on light and on dark pages.
PALETTE = ("#2C8FCC", "#C98500", "#0AA67B", "#DE6A1F", "#C56B9E", "#3FA0DC", "#9C9000")
Array = np.ndarray[tuple[int, ...], np.dtype[Any]]


def lightened(picture: Array, heat: Array, brightest: float) -> Array:
    """Return a photograph (h, w, 3), uint8 or in [0, 1], in full colour where ``heat`` (rows, columns) is bright.

    At 0 and below it is dark, at ``brightest`` as it is. The result is in [0, 1].
    """
    image = np.asarray(picture, dtype=np.float32) / (255 if picture.dtype == np.uint8 else 1)
    share = np.clip(np.asarray(heat, dtype=np.float32) / max(brightest, 1e-12), 0, 1)
    light = enlarged(share, image.shape).clip(0, 1)[..., None]  # bicubic overshoots
    grey = image.mean(axis=2, keepdims=True)
    shown: Array = light * image + (1 - light) * (0.12 + 0.25 * (0.6 * grey + 0.4 * image))
    return shown.clip(0, 1)


def lit(picture: Array, heat: Array, brightest: float) -> Array:
    """Return what `lightened` does as uint8."""
    found: Array = (lightened(picture, heat, brightest) * 255).round().astype(np.uint8)
    return found


def enlarged(heat: Array, shape: tuple[int, ...]) -> Array:
    """Return a heat map (rows, columns) resampled smoothly to the first two sides of ``shape``, float32."""
    small = Image.fromarray(heat.astype(np.float32))
    return np.asarray(small.resize((shape[1], shape[0]), Image.Resampling.BICUBIC))


def data_uri(picture: Array, side: int | None = SIDE) -> str:
    """Return a picture (h, w, 3), uint8, as a JPEG data URI, ``side`` pixels high and wide (or as large as it is)."""
    image = Image.fromarray(picture)
    if side is not None:
        image = image.resize((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def tile(picture: Array, alt: str, *, side: int = SIDE, colour: str = "#767676", title: str = "") -> str:
    """Return one ``<img>``; ``title`` shows while the pointer rests on it."""
    return (
        f'<img alt="{html.escape(alt)}" title="{html.escape(title or alt)}" width="{side}" height="{side}" '
        f'style="border:2px solid {colour};border-radius:3px" src="{data_uri(picture, side)}">'
    )


def best_images(gallery: Gallery, maps: Tensor, count: int, *, colour: str = "#767676") -> str:
    """Return tiles of the images on which a map (n, t) is highest, the best first, lit on one scale."""
    labels, brightest = gallery.labels or gallery.images.names, float(maps.amax())
    return "".join(
        tile(
            lit(gallery.pictures_of(image), maps[image].view(*gallery.grid).numpy(), brightest),
            f"image {image}: {labels[image]}",
            colour=colour,
        )
        for image in maps.amax(1).topk(min(count, len(maps))).indices.tolist()
    )


def exemplar_rows(exemplars: Exemplars, colours: Sequence[str], *, side: int = SIDE) -> list[str]:
    """Return a string of tiles for each row of exemplars; ``colours`` are of the rows."""
    rows = []
    for name, row, colour in zip(exemplars.names, exemplars.rows, colours, strict=True):
        brightest = max(exemplar.value for exemplar in row)
        said = name.partition("\n")[0]
        tiles = [
            tile(
                lit(exemplar.image, exemplar.heat, brightest),
                f"image {exemplar.index}, which {said} likes ({exemplar.value:.2f})",
                side=side,
                colour=colour,
            )
            for exemplar in row
        ]
        rows.append("".join(tiles))
    return rows


def exemplar_grid(exemplars: Exemplars, colours: Sequence[str], *, side: int = SIDE) -> str:
    """Return a table: what the whole channel likes, and below it what each of its sub-units likes."""
    rows = []
    tiles = exemplar_rows(exemplars, colours, side=side)
    for number, (name, found, colour) in enumerate(zip(exemplars.names, tiles, colours, strict=True)):
        title, _, labels = name.partition("\n")
        below = f"<br><small>{html.escape(labels)}</small>" if labels else ""
        alike = f"<br><small>alike: {exemplars.similarity[number]:.2f}</small>"
        gap = "border-bottom:6px solid transparent" if number == 0 else ""
        rows.append(
            f'<tr style="{gap}"><th scope="row" style="text-align:left;color:{colour};padding-right:8px;'
            f'font-weight:600;min-width:9em">{html.escape(title)}{below}{alike}</th>'
            f'<td style="white-space:nowrap">{found}</td></tr>'
        )
    return (
        f'<div style="overflow-x:auto"><table class="elude-grid" style="border-collapse:collapse">{"".join(rows)}'
        f"</table></div>"
    )


def depth_chart(table: pd.DataFrame, *, width: int = 180, height: int = 34) -> str:
    """Return an SVG of small bars, one group a row of the table (a block), one bar a column (a part of it)."""
    values = table.to_numpy(dtype=np.float64)
    highest, lowest = max(values.max(initial=0.0), 0.0), min(values.min(initial=0.0), 0.0)
    scale = (height - 2) / max(highest - lowest, 1e-12)
    zero = 1 + highest * scale
    step = width / max(values.size, 1)
    bars = []
    for place, (row, column) in enumerate(np.ndindex(values.shape)):
        size = float(values[row, column]) * scale
        bars.append(
            f'<rect x="{place * step:.1f}" y="{zero - max(size, 0):.1f}" width="{0.8 * step:.1f}" '
            f'height="{abs(size):.1f}" fill="currentColor" opacity="{1 if column % 2 else 0.45}">'
            f"<title>block {table.index[row]}, {html.escape(str(table.columns[column]))}: "
            f"{values[row, column]:.3g}</title></rect>"
        )
    said = "no contributions"
    if values.size:
        row, column = np.unravel_index(np.abs(values).argmax(), values.shape)
        said = f"mean contributions by block; the largest from {table.columns[column]} of block {table.index[row]}"
    return (
        f'<svg role="img" aria-label="{html.escape(said)}" width="{width}" height="{height}">'
        f'{"".join(bars)}<line x1="0" x2="{width}" y1="{zero:.1f}" y2="{zero:.1f}" stroke="currentColor" '
        f'stroke-width="0.6"/></svg>'
    )


_WIDEST = 150  # pixels of a bar
_DULL = "var(--jp-ui-font-color3,#999)"
_AREA = (
    "font-family:var(--jp-code-font-family,monospace);background:var(--jp-input-background,#f5f5f5);"
    "color:var(--jp-ui-font-color1,#111);border:1px solid var(--jp-border-color1,#bbb)"
)


def moved_line(cosine: float, largest: float) -> str:
    """Say how far an output moved; ``0.0`` stands only for no change at all."""
    change = "0.0" if largest == 0 else f"{largest:.3g}"
    return f"<div>How far the output moved: cosine <b>{cosine:.4f}</b>, largest change <b>{change}</b></div>"


def probability_bars(table: pd.DataFrame, *, most: int = 8) -> str:
    """Return the ``most`` likeliest classes, before or after, with a bar for either.

    ``table`` has one row a class, and the columns ``before`` and ``after``.
    """
    likeliest = table[["before", "after"]].max(axis=1).sort_values(ascending=False, kind="stable").index[:most]
    rows = []
    for name in likeliest:
        cells = []
        for when, colour in (("before", _DULL), ("after", PALETTE[0])):
            value = float(table[when][name])
            cells.append(
                f'<div style="display:flex;align-items:center;gap:6px;line-height:1.2"><span aria-hidden="true" '
                f'style="display:inline-block;height:9px;width:{_WIDEST * value:.1f}px;background:{colour}"></span>'
                f'<small class="elude-{when}">{when} {value:.3f}</small></div>'
            )
        rows.append(
            f'<tr><th scope="row" style="text-align:right;padding:2px 8px">{html.escape(str(name))}</th>'
            f"<td>{''.join(cells)}</td></tr>"
        )
    more = len(table) - len(likeliest)
    rest = f"<small>and {more} classes that are less likely</small>" if more else ""
    return (
        '<table style="border-collapse:collapse;line-height:1.35">'
        '<caption style="text-align:left;white-space:nowrap">probability of each class</caption>'
        f"<tbody>{''.join(rows)}</tbody></table>{rest}"
    )


def neighbour_rows(before: pd.DataFrame, after: pd.DataFrame, tiles: Mapping[int, str]) -> str:
    """Return two rows of tiles; neighbours that an edit brought are marked, in words too.

    Both tables have the columns ``image``, ``label`` and ``cosine``; ``tiles`` has the HTML of each image.
    """
    known, rows = set(before["image"]), []
    for when, table in (("before", before), ("after", after)):
        cells = []
        for image, label, cosine in zip(table["image"], table["label"], table["cosine"], strict=True):
            new = image not in known
            mark = f";box-shadow:0 0 0 3px {PALETTE[3]};border-radius:3px" if new else ""
            cells.append(
                '<td style="padding:4px;text-align:center;font-size:smaller;max-width:100px;overflow:hidden">'
                f'<div style="display:inline-block;line-height:0{mark}">{tiles[image]}</div><br>'
                f"{html.escape(str(label))}{' (new)' if new else ''}<br>{cosine:.3f}</td>"
            )
        title = f'<th scope="row" style="text-align:left;padding-right:8px">nearest {when}</th>'
        rows.append(f'<tr class="elude-{when}">{title}{"".join(cells)}</tr>')
    both = f'<table style="border-collapse:collapse;line-height:1.35">{"".join(rows)}</table>'
    return f'<div style="overflow-x:auto">{both}</div>'


def code_box(code: str, label: str) -> str:
    """Return code in a box from which it can be marked and copied, but not changed."""
    return (
        f'<textarea readonly rows="4" cols="64" aria-label="{html.escape(label)}" style="{_AREA}">'
        f"{html.escape(code)}</textarea>"
    )
