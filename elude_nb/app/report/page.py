"""The page of a report: one HTML file that holds its own pictures, style and script, and loads nothing.

What can be shown without a script stands in the page as it is; the script adds the map and opens concepts and channels.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from pathlib import PurePath
from typing import Any

import pandas as pd
from markupsafe import Markup

from elude_nb._util.glossary import GLOSSARY
from elude_nb._util.html import render
from elude_nb.app.report.charts import KINDS, draw_distribution, score_columns
from elude_nb.data.images import ImageSet
from elude_nb.figures.html import WAYS, data_uri, depth_chart
from elude_nb.figures.theme import in_words
from elude_nb.scores.overview import DISTINCT, score_means

SIDE = 192  # pixels of a picture: sharp on screens of two dots a pixel at the size of a tile
SCRIPTS = ("figures/concept_map.js", "app/report/base.js", "app/report/panels.js", "app/report/list.js")
STYLES = ("_util/look.css", "app/report/page.css", "figures/concept_map.css")
CHANNEL_COLUMNS = (
    ("channel", "channel", GLOSSARY["channel"]),
    ("units", "sub-units", GLOSSARY["sub-unit"]),
    ("variance", "variance", GLOSSARY["variance"]),
    ("before", "before", f"Of the channel. {GLOSSARY['similarity']}"),
    ("after", "after", f"Mean of its sub-units. {GLOSSARY['similarity']}"),
    ("random routes", "random routes", GLOSSARY["random routes"]),
    ("separation", "separation", GLOSSARY["separation"]),
)


def fill_page(
    *, images: ImageSet, pictures: Any, scores: pd.DataFrame, channels: pd.DataFrame, data: dict[str, Any], **texts: Any
) -> str:
    """Return the page: every text that a user may have written is escaped, and its policy forbids it the network.

    Parameters
    ----------
    images, pictures
        The images, and how the model sees them, (n, h, w, 3).
    scores
        From `elude_nb.score`.
    channels
        From `elude_nb.app.report.entries.channel_table`.
    data
        What the script draws from: ``grid``, ``blocks``, ``parts``, ``concepts``, ``channels``.
    texts
        Further values of the template, such as ``title``, ``split`` and ``certificate``.
    """
    script, style = (Markup("\n".join(map(_read, names))) for names in (SCRIPTS, STYLES))  # noqa: S704 - our own files
    policy = (
        "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"script-src '{_digest(script)}'; style-src '{_digest(style)}'"
    )
    empty = pd.DataFrame(0.0, index=pd.Index(data["blocks"]), columns=pd.Index(data["parts"]))
    page = render(
        "elude_nb.app",
        "report.html",
        policy=policy,
        script=script,
        style=style,
        columns=CHANNEL_COLUMNS,
        channels=channels.astype(object).where(channels.notna(), None).to_dict("records"),
        kinds=KINDS,
        means=_mean_rows(scores),
        distributions=[draw_distribution(scores, name) for name in score_columns(scores)],
        images=[(_caption(images, index), data_uri(picture, SIDE)) for index, picture in enumerate(pictures)],
        depth_chart=depth_chart(empty),
        data={**data, "ways": WAYS, "words": GLOSSARY},
        **texts,
    )
    return str(page)


def _read(name: str) -> str:
    return files("elude_nb").joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _mean_rows(scores: pd.DataFrame) -> list[tuple[str, list[Any]]]:
    """Return the name of each score, and its mean of each kind of unit, or None: of all, then of the distinct ones."""
    means = {(row["score"], row["kind"]): row for row in score_means(scores).to_dict("records")}
    return [
        (f"{in_words(name)}{of}", [means.get((name, f"{prefix}{kind}")) for kind in KINDS])
        for name in score_columns(scores)
        for prefix, of in (("", ""), (DISTINCT, ", distinct units"))
    ]


def _caption(images: ImageSet, index: int) -> str:
    label = "" if images.labels is None else images.labels[index]
    name = file_name(images.names[index])
    return ", ".join([str(index), *([name] if label in name else [label, name])])  # "cat, cat 7" would say it twice


def file_name(path: str) -> str:
    """Return a file's own name: the folders it lies in are private."""
    return PurePath(path.replace("\\", "/")).name or path
