"""One HTML page from the pieces of a report: it holds its own pictures, style and script, and asks nobody for anything.

What can be said without a script stands in the page as it is; the script adds the map and opens concepts and channels.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from string import Template
from typing import Any

import pandas as pd

from elude_nb.app.report.charts import KINDS, distribution, score_columns
from elude_nb.app.report.looks import Pictures
from elude_nb.app.report.packing import json_for_html, short_name
from elude_nb.data.images import ImageSet
from elude_nb.figures.html import data_uri
from elude_nb.figures.theme import in_words
from elude_nb.scores.overview import score_means

SIDE = 192  # pixels of a picture: sharp on screens of two dots a pixel at the size of a tile


SCRIPTS = ("base", "panels", "map", "list")  # in the order in which they stand in the page


@dataclass(frozen=True, eq=False)
class Contents:
    """All that a page shows.

    Attributes
    ----------
    title, summary
        Its heading, and what stands below it.
    facts
        What, from what, with which settings: pairs of name and value.
    certificate
        The lines of the certificate, pairs of name and value; none if there is none.
    problems
        What the certificate found wrong, or why there is none; empty when all is well.
    images, pictures
        The images and how the model sees them.
    scores, k
        From `elude_nb.score`, and how many best images of each unit were compared.
    channels
        From `elude_nb.app.report.channels.channel_table`.
    data
        What the script draws from: ``grid``, ``blocks``, ``parts``, ``concepts``, ``channels``.
    """

    title: str
    summary: str
    facts: Sequence[tuple[str, str]]
    certificate: Sequence[tuple[str, str]]
    problems: Sequence[str]
    images: ImageSet
    pictures: Pictures
    scores: pd.DataFrame
    k: int
    channels: pd.DataFrame
    data: Mapping[str, Any]


def page_of(contents: Contents) -> str:
    """Return the page: every text that a user may have written is escaped, and its policy forbids it the network."""
    room = files("elude_nb.app.report")
    style = room.joinpath("page.css").read_text(encoding="utf-8")
    script = "\n".join(room.joinpath(f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)
    policy = (
        "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"script-src '{_digest(script)}'; style-src '{_digest(style)}'"
    )
    return Template(room.joinpath("page.html").read_text(encoding="utf-8")).substitute(
        policy=policy,
        title=html.escape(contents.title),
        summary=html.escape(contents.summary),
        style=style,
        script=script,
        facts=_pairs(contents.facts),
        status=_status(contents),
        certificate=_pairs(contents.certificate),
        concepts=_concept_table(contents),
        channels=_channel_table(contents),
        k=contents.k,
        distributions="".join(distribution(contents.scores, name) for name in score_columns(contents.scores)),
        means=_means_table(contents.scores),
        images=_images(contents.images, contents.pictures),
        count=len(contents.images),
        data=json_for_html(contents.data),
    )


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _pairs(pairs: Sequence[tuple[str, str]]) -> str:
    return "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in pairs)


def _status(contents: Contents) -> str:
    if not contents.problems:
        change = html.escape(": ".join(contents.certificate[0]))
        return (
            f'<p class="status good">The certificate holds: with the lens attached the outputs are equal bit for bit '
            f"({change}), and the explicit network differs by no more than rounding.</p>"
        )
    items = "".join(f"<li>{html.escape(problem)}</li>" for problem in contents.problems)
    return f'<div class="status bad"><p>The certificate does not hold:</p><ul>{items}</ul></div>'


def _concept_table(contents: Contents) -> str:
    concepts = contents.data["concepts"]
    if not concepts:
        return (
            "<p>This routing has no concepts that go through all channels: its sub-units belong to one channel each."
            "</p>"
        )
    rows = "".join(
        f'<tr><th scope="row"><a href="#concept-{entry["concept"]}">{html.escape(_concept_name(entry))}</a></th>'
        f"<td>{entry['tokens']:,}</td><td>{len(entry['units']):,}</td>"
        f"<td>{', '.join(_image_link(image[0]) for image in entry['images'])}</td></tr>"
        for entry in concepts
    )
    return (
        '<div id="atlas" hidden></div><div id="concept-view" class="panel" tabindex="-1" hidden></div>'
        f"<details><summary>All {len(concepts)} concepts as a list</summary>"
        '<div class="scroll"><table><thead><tr><th scope="col">concept</th><th scope="col">tokens</th>'
        f'<th scope="col">sub-units</th><th scope="col">best images</th></tr></thead><tbody>{rows}</tbody></table>'
        "</div></details>"
    )


def _concept_name(entry: Mapping[str, Any]) -> str:
    return f"concept {entry['concept']}" + (f", {entry['name']}" if entry["name"] else "")


def _image_link(index: int) -> str:
    return f'<a href="#image-{index}">{index}</a>'


_COLUMNS = (
    ("channel", "channel", "Number of the channel"),
    ("units", "sub-units", "How many sub-units it came apart into"),
    ("variance", "variance", "Variance over the tokens of the discovery"),
    ("before", "before", "Top similarity of the whole channel: how alike its best images are"),
    ("after", "after", "Mean top similarity of its sub-units"),
    ("random routes", "control", "Mean top similarity of random routes of the same sizes"),
    ("separation", "separation", "After, less the larger of before and the likeness of sub-units to each other"),
)


def _channel_table(contents: Contents) -> str:
    head = "".join(f'<th scope="col" data-key="{key}" title="{said}">{name}</th>' for key, name, said in _COLUMNS)
    rows = []
    for row in contents.channels.to_dict("records"):
        channel = int(row["channel"])
        opened = str(channel) in contents.data["channels"]
        name = f'<a href="#channel-{channel}">{channel}</a>' if opened else str(channel)
        cells = "".join(_cell(row[key]) for key, _, _ in _COLUMNS[1:])
        reason = html.escape(str(row["reason"]))
        rows.append(
            f'<tr data-channel="{channel}"><th scope="row" data-value="{channel}">{name}</th>{cells}'
            f"<td>{reason}</td></tr>"
        )
    return (
        f'<table id="channel-table"><thead><tr>{head}<th scope="col">what was done</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _cell(value: Any) -> str:
    if pd.isna(value):
        return "<td>&ndash;</td>"
    text = f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
    return f'<td data-value="{float(value):.6g}">{text}</td>'


def _means_table(scores: pd.DataFrame) -> str:
    means = {(row["score"], row["kind"]): row for row in score_means(scores).to_dict("records")}
    head = "".join(f'<th scope="col">{name}</th>' for name in KINDS.values())
    rows = []
    for column in score_columns(scores):
        cells = []
        for kind in KINDS:
            if (column, kind) not in means:
                cells.append("<td>&ndash;</td>")
                continue
            found = means[column, kind]
            cells.append(
                f"<td>{found['mean']:.3f} <small>[{found['low']:.3f}, {found['high']:.3f}]</small>"
                f"<br><small>{int(found['units']):,} units</small></td>"
            )
        rows.append(f'<tr><th scope="row">{html.escape(in_words(column))}</th>{"".join(cells)}</tr>')
    return f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _images(images: ImageSet, pictures: Pictures) -> str:
    figures = []
    for index, picture in enumerate(pictures):
        label = "" if images.labels is None else images.labels[index]
        name = short_name(images.names[index])
        texts = [name] if label in name else [label, name]  # "cat, cat 7" says it twice
        said = html.escape(", ".join([f"image {index}", *texts]))
        figures.append(
            f'<figure id="image-{index}"><img alt="{said}" width="96" height="96" src="{data_uri(picture, SIDE)}">'
            f"<figcaption>{said.removeprefix('image ')}</figcaption></figure>"
        )
    return "".join(figures)
