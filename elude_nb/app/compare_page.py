"""A comparison on disk: the table as CSV and JSON, and one HTML page with table and pictures that opens offline."""

from __future__ import annotations

import html
import json
from pathlib import Path

from elude_nb._util.files import atomic_write
from elude_nb.baselines.compare import Compared, table_of_methods
from elude_nb.figures.scores import score_intervals, tradeoff

_STYLE = """
 body { font: 15px/1.5 system-ui, sans-serif; max-width: 80rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
 .wide { overflow-x: auto } table { border-collapse: collapse; font-size: .85rem; white-space: nowrap }
 th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #ddd } th:first-child, td:first-child
 { text-align: left; position: sticky; left: 0; background: #fff } .best { font-weight: bold; color: #0072b2 }
 img { max-width: 100% } dt { font-weight: bold } dl { columns: 3 } dd { margin: 0 0 .4rem }
"""


def write_comparison(compared: Compared, out: Path) -> list[Path]:
    """Write ``compare.csv``, ``units.csv``, ``compare.json`` and ``compare.html`` to a folder, each one whole.

    Parameters
    ----------
    compared
        From `elude_nb.compare`.
    out
        The folder; it is made if needed.

    Returns
    -------
    list of Path
        The files.
    """
    # Not pandas' to_json: it rounds to a number of decimals, and what a method loses may be less than the last of them.
    rows = compared.table.astype(object).where(compared.table.notna(), None).to_dict(orient="records")
    texts = {
        "compare.csv": compared.table.to_csv(index=False),
        "units.csv": compared.units.to_csv(index=False),
        "compare.json": json.dumps({"settings": dict(compared.settings), "rows": rows}, indent=1),
        "compare.html": comparison_page(compared),
    }
    for name, text in texts.items():
        with atomic_write(out / name) as part:
            part.write_text(text, encoding="utf-8")
    return [out / name for name in texts]


def comparison_page(compared: Compared) -> str:
    """Return one HTML page with the tables, the pictures and the settings; it asks no server for anything."""
    pictures = []
    for score in ("top_similarity", "best_unit_precision"):
        if score in compared.table:
            pictures.append(tradeoff(compared, score)._repr_html_())
    shown = [name for name in ("top_similarity", "best_unit_precision", "redundancy") if name in compared.table]
    pictures.append(score_intervals(compared, shown)._repr_html_())
    settings = "".join(
        f"<dt>{html.escape(str(key))}</dt><dd>{html.escape(str(value))}</dd>"
        for key, value in compared.settings.items()
    )
    tables = "".join(
        f"<h2>{title}</h2><div class=wide>{table_of_methods(compared.table, size)}</div>"
        for size, title in (
            ("equal", f"At {compared.settings['equal_units']} units each"),
            ("own", "Each at its own number of live units"),
        )
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>elude_nb: methods compared</title><style>{_STYLE}</style></head><body><h1>Methods compared</h1>"
        "<p>Fitted on one half of the images, scored on the other. In brackets: 95 % bootstrap intervals. "
        "Blue: the best of its column, by its mean.</p>"
        f"{''.join(pictures)}{tables}<h2>Settings</h2><dl>{settings}</dl></body></html>\n"
    )
