"""Names for concepts from labels, with the evidence for each.

A concept is judged by the images that it likes best. What they share must be more than chance would put there, for
all concepts and all words that were tried; a concept without such evidence gets no name.
"""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from elude_nb.checks import check_count, check_fraction
from elude_nb.disentanglement import Disentanglement
from elude_nb.handles import Numbers, holm, pooled
from elude_nb.images import Images, ImageSet
from elude_nb.plans import check_split
from elude_nb.scores.inputs import as_codes, is_constant
from elude_nb.scores.labels import Labels

Whole = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, eq=False)
class ConceptNames:
    """Names of concepts, and why.

    Attributes
    ----------
    table
        One row a concept: ``concept``, ``name`` ("" where nothing stands out), what fits best, how well, ``p
        corrected``, and the ``evidence`` in words.
    source
        What the names come from: "labels" or "texts".
    top
        How many images each concept was judged by.
    level
        Chance of any wrong name that is put up with.
    """

    table: pd.DataFrame = field(repr=False)
    source: str
    top: int
    level: float

    @cached_property
    def names(self) -> dict[int, str]:
        """The concepts that have a name: ``split.with_names(found.names)``. No two have the same."""
        named = self.table[self.table["name"] != ""]
        return dict(zip(named["concept"].tolist(), named["name"].tolist(), strict=True))

    def __repr__(self) -> str:
        return f"ConceptNames({len(self.names)} of {len(self.table)} concepts named by {self.source})"

    def _repr_html_(self) -> str:
        table: str = self.table.to_html(index=False, float_format="{:.3g}".format)
        return f"<p>{html.escape(repr(self))}</p>{table}"


def name_concepts(
    split: Disentanglement,
    images: Images,
    *,
    labels: Labels | None = None,
    tokens: str | None = None,
    top: int = 20,
    level: float = 0.05,
    batch_size: int = 16,
    progress: bool = False,
) -> ConceptNames:
    """Name each concept after the label that its best images share.

    The ``lift`` of a label is its share of the concept's best images over its share of all images. Its p-value is the
    chance that as many of it or more are among ``top`` images drawn at random (the tail of the hypergeometric
    distribution), corrected for all concepts and labels (Holm). Of the labels that stand out so, the one with the
    largest share gives the name; of equal shares, the one with the larger lift.

    If several concepts would have the same name, the one with the smallest p keeps it and the others are numbered in
    that order: "cat", "cat (2)", "cat (3)".

    Parameters
    ----------
    split
        The disentanglement.
    images
        Where to look; images that the discovery has not seen are the better witnesses.
    labels
        One an image, (n,); by default those of the images. An empty one counts as an image but gives no name.
    tokens
        By default those of the discovery. An image counts as its highest token.
    top
        How many of the best images to judge by.
    level
        Chance of any wrong name that is put up with.
    batch_size, progress
        Images in one forward pass, and whether to show a bar.

    Returns
    -------
    ConceptNames
        The table has ``label``, ``images`` (how many of the top images bear it), ``share``, ``lift`` (both: higher is
        better) and ``p``; where there is no name, they are those of the label with the smallest p.

    Raises
    ------
    ValueError
        If there are no labels or only one, one is missing, there are no more than ``top`` images, or the routing has
        no concepts that go through all channels.

    Examples
    --------
    ``found = name_concepts(split, images)``; look at ``found.table``; then ``split = split.with_names(found.names)``.
    """
    check_split(split)
    check_count("batch_size", batch_size)
    check_fraction("level", level, open_ends=True)
    photos = split.model.inputs(images)
    codes, words = _as_labels(photos.labels if labels is None else labels, len(photos))
    check_count("top", top, 1, len(photos) - 1)
    best, idle = best_images(split, photos, tokens, top, batch_size, progress=progress)
    naming = np.array([bool(word) for word in words])
    words = [word for word in words if word]
    totals = np.bincount(codes)[naming]  # (l,)
    counts = (codes[best][:, :, None] == np.flatnonzero(naming)).sum(1)  # (g, l)
    p = _enrichment(counts, totals, len(codes), top)
    p[idle] = 1
    corrected, lift = holm(p), counts / top / (totals / len(codes))
    row = np.arange(len(p))
    place = [_choose(p[g], corrected[g] <= level, counts[g], lift[g]) for g in row]
    table = pd.DataFrame(
        {
            "concept": row,
            "label": [words[i] for i in place],
            "images": counts[row, place],
            "share": counts[row, place] / top,
            "lift": lift[row, place],
            "p": p[row, place],
            "p corrected": corrected[row, place],
        }
    )
    found = [f"{row.images} of {top} top images, {row.lift:.1f} times the base rate" for row in table.itertuples()]
    return named(table, "label", found, idle, table["p"].to_numpy(), "labels", top, level)


def best_images(
    split: Disentanglement, images: ImageSet, tokens: str | None, top: int, batch_size: int, *, progress: bool
) -> tuple[Whole, np.ndarray[Any, np.dtype[np.bool_]]]:
    """Return the best images of each concept, (g, top), and which concepts are the same on all images, (g,)."""
    readouts = [(split.concept_readout(), 1)]
    values = pooled(split, images, readouts, tokens=tokens, batch_size=batch_size, progress=progress)  # (n, g)
    return values.argsort(stable=True, dim=0, descending=True)[:top].T.numpy(), is_constant(values).numpy()


def named(
    table: pd.DataFrame,
    column: str,
    evidence: list[str],
    idle: np.ndarray[Any, Any],
    order: Numbers,
    source: str,
    top: int,
    level: float,
) -> ConceptNames:
    """Give names where the evidence suffices, and say everywhere what it is."""
    sure = (table["p corrected"] <= level).to_numpy()
    words = [word if known else "" for word, known in zip(table[column], sure, strict=True)]
    table.insert(1, "name", _without_doubles(words, np.argsort(order, kind="stable")))
    said = []
    for word, text, known, silent in zip(table[column], evidence, sure, idle, strict=True):
        doubt = f"no {column} stands out; best {word!r}: {text}"
        said.append("no name: the same on all images" if silent else text if known else doubt)
    table["evidence"] = said
    return ConceptNames(table, source, top, level)


def _without_doubles(words: list[str], order: Whole) -> list[str]:
    """Return words with those that come again numbered, in this order: "cat", then "cat (2)"."""
    names, taken = list(words), set(words)
    seen = set[str]()
    for place in order.tolist():
        word, number = words[place], 2
        if word and word in seen:
            while f"{word} ({number})" in taken:
                number += 1
            names[place] = f"{word} ({number})"
            taken.add(names[place])
        seen.add(word)
    return names


def _as_labels(labels: Labels | None, n: int) -> tuple[Whole, list[str]]:
    """Return the labels' codes (n,) and their names in sorted order, without blanks at the ends."""
    if labels is None:
        raise ValueError("The images have no labels; give labels=, one an image, or use name_concepts_by_text.")
    given = pd.Series(list(labels.cpu().numpy() if isinstance(labels, Tensor) else labels), dtype=object)
    codes, words = as_codes(given.where(given.isna(), given.astype(str).str.strip()), n, classes=2)
    return codes.numpy(), words


def _enrichment(counts: Whole, totals: Whole, n: int, top: int) -> Numbers:
    """Return the chance of so many images of a label or more among ``top`` of ``n`` drawn at random, (g, l)."""
    from scipy.stats import hypergeom

    p: Numbers = hypergeom.sf(counts - 1, n, totals, top)
    return p


def _choose(p: Numbers, stands_out: np.ndarray[Any, Any], counts: Whole, lift: Numbers) -> int:
    """Return the label that names a concept; if none stands out, the one with the smallest p."""
    if not stands_out.any():
        return int(p.argmin())
    return max(np.flatnonzero(stands_out).tolist(), key=lambda place: (counts[place], lift[place]))
