"""A comparison on disk: the table as CSV and JSON, and one HTML page with table and pictures that opens offline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from markupsafe import Markup

from elude_nb._util.files import atomic_write
from elude_nb._util.html import render
from elude_nb._util.words import as_text
from elude_nb.baselines.compare import SIZES, Compared, table_of_methods
from elude_nb.figures.scores import score_intervals, tradeoff
from elude_nb.figures.theme import THEMES, theme


def write_comparison(compared: Compared, out: Path) -> list[Path]:
    """Write ``compare.csv``, ``units.csv``, ``compare.json`` and ``compare.html`` to a folder; each write is atomic.

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
    texts = {
        "compare.csv": compared.table.to_csv(index=False),
        "units.csv": compared.units.to_csv(index=False),
        "compare.json": json.dumps(as_records(compared), indent=1),
        "compare.html": comparison_page(compared),
    }
    for name, text in texts.items():
        with atomic_write(out / name) as part:
            part.write_text(as_text(text), encoding="utf-8")
    return [out / name for name in texts]


def as_records(compared: Compared) -> dict[str, Any]:
    """Return the settings and the rows of the table as JSON has them."""
    # Not pandas' to_json: it rounds to a number of decimals, and a method may lose less than the last of them.
    rows = compared.table.astype(object).where(compared.table.notna(), None).to_dict(orient="records")
    return {"settings": dict(compared.settings), "rows": rows}


def comparison_page(compared: Compared) -> str:
    """Return one HTML page with the tables, the pictures and the settings; it loads nothing."""
    shown = [name for name in ("top_similarity", "best_unit_precision", "redundancy") if name in compared.table]
    there = set(compared.table["size"])
    titles = {size: title.format(**compared.settings) for size, title in SIZES.items() if size in there}
    page = render(
        "elude_nb.app",
        "comparison.html",
        pictures=[(name, _draw(compared, shown, name)) for name in THEMES],
        tables=[
            (title, Markup(table_of_methods(compared.table, size)), compared.verdicts(size))  # noqa: S704
            for size, title in titles.items()
        ],
        notes=compared.notes(),
        settings=compared.settings,
    )
    return str(page)


def _draw(compared: Compared, shown: list[str], name: str) -> list[Markup]:
    """Return the pictures for pages of a theme."""
    with theme(name):
        drawn = [tradeoff(compared, score) for score in shown if score != "redundancy"]
        drawn.append(score_intervals(compared, shown))
        return [Markup(each._repr_html_()) for each in drawn]  # noqa: S704 - it escapes its alt text
