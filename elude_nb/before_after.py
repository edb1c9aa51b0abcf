"""What an edit did, as HTML: neighbours, probabilities and the output before and after it."""

from __future__ import annotations

import html
from collections.abc import Mapping

import pandas as pd

from elude_nb.tiles import PALETTE

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
