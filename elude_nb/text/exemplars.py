"""Top sentences: the top-activating sentences of a channel and of each of its sub-units, with their words marked."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from elude_nb._util.checks import check_count
from elude_nb._util.words import counted
from elude_nb.core.result import Disentanglement
from elude_nb.interpret.exemplars import count_labels, read_channel
from elude_nb.scores.similarity import best_images
from elude_nb.text.models import TextModel
from elude_nb.text.sentences import SentenceSet, as_sentence_set


@dataclass(frozen=True)
class Reading:
    """One of a unit's top-activating sentences.

    Attributes
    ----------
    sentence, label
        The sentence, and its label (``""`` without labels).
    spans
        Characters (start, stop) of each token, special tokens left out.
    heat
        The unit's activation at each of these tokens, turned round for a unit that is low on its concept.
    index
        Number of the sentence in its set.
    """

    sentence: str
    label: str
    spans: tuple[tuple[int, int], ...]
    heat: tuple[float, ...]
    index: int

    @property
    def best(self) -> int:
        """Which token has the highest activation."""
        return max(range(len(self.heat)), key=self.heat.__getitem__)

    @property
    def word(self) -> str:
        """The token with the highest activation, as it stands in the sentence."""
        start, stop = self.spans[self.best]
        return self.sentence[start:stop]

    @property
    def value(self) -> float:
        """The unit's activation there."""
        return self.heat[self.best]

    def to_html(self) -> str:
        """Return the sentence as HTML: the brighter a word, the higher its activation; the highest is underlined."""
        highest, parts, end = max(self.value, 1e-12), [], 0
        for number, ((start, stop), value) in enumerate(zip(self.spans, self.heat, strict=True)):
            share = min(max(value / highest, 0.0), 1.0)
            line = "text-decoration:underline;font-weight:600;" if number == self.best else ""
            style = f"{line}background:rgba(222,143,5,{0.75 * share:.2f});border-radius:2px"
            parts.append(html.escape(self.sentence[end:start]))
            parts.append(f'<span style="{style}">{html.escape(self.sentence[start:stop])}</span>')
            end = stop
        return "".join(parts) + html.escape(self.sentence[end:])


@dataclass(frozen=True, eq=False)
class TopSentences:
    """The top-activating sentences of each row's unit; in a notebook, a table with the words marked.

    Attributes
    ----------
    title
        What the rows are of.
    names
        A name for each row.
    rows
        For each row its readings, the highest activation first.
    """

    title: str
    names: tuple[str, ...]
    rows: tuple[tuple[Reading, ...], ...]

    @property
    def table(self) -> pd.DataFrame:
        """One row a reading: ``unit``, ``rank``, ``word``, ``value``, ``label``, ``sentence``."""
        found = [
            (name, rank, reading.word, reading.value, reading.label, reading.sentence)
            for name, row in zip(self.names, self.rows, strict=True)
            for rank, reading in enumerate(row, 1)
        ]
        return pd.DataFrame(found, columns=["unit", "rank", "word", "value", "label", "sentence"])

    def __repr__(self) -> str:
        return (
            f"TopSentences({self.title}: {counted(len(self.rows), 'row')} of {counted(len(self.rows[0]), 'sentence')})"
        )

    def _repr_html_(self) -> str:
        left = 'style="text-align:left;vertical-align:top;padding:6px 10px"'
        lines = []
        for name, row in zip(self.names, self.rows, strict=True):
            labels = count_labels(reading.label for reading in row if reading.label)
            heading = f"{html.escape(name)}<br><small>{html.escape(labels)}</small>"
            lines.append(f"<tr><th {left}>{heading}</th><td {left}>{'<br>'.join(r.to_html() for r in row)}</td></tr>")
        caption = f'<caption style="text-align:left">{html.escape(self.title)}</caption>'
        return f"<table>{caption}{''.join(lines)}</table>"


def top_sentences(
    split: Disentanglement,
    sentences: SentenceSet | Sequence[str] | str,
    channel: int | None = None,
    *,
    concepts: Sequence[int] | None = None,
    units: Sequence[int] | int = 5,
    count: int = 5,
    batch_size: int | None = None,
    progress: bool | None = None,
) -> TopSentences:
    """Find the top-activating sentences of a channel and its sub-units, or of concepts across all channels.

    Parameters
    ----------
    split
        The disentanglement of a text model.
    sentences
        Where to look; those of the discovery, or better, others.
    channel
        The channel: the first row is the whole channel, the others are its sub-units.
    concepts
        In place of a channel: these concepts, one row each.
    units
        Which sub-units, or how many: strong ones that are unlike each other.
    count
        Sentences for each row.
    batch_size, progress
        In place of the model's own settings.

    Raises
    ------
    TypeError, ValueError
        If the model reads no text, neither or both of ``channel`` and ``concepts`` are given, one of them does not
        exist, or there are fewer than ``count`` sentences.

    Examples
    --------
    ``top_sentences(split, held_out, channel=17)`` in the last line of a cell shows the table.
    """
    split = split.using(batch_size=batch_size, progress=progress)
    model = split.model
    if not isinstance(model, TextModel):
        raise TypeError(f"{model.name!r} does not read text; for images there is find_exemplars.")
    if (channel is None) == (concepts is None):
        raise ValueError("Give a channel, or concepts=[...], and not both.")
    found = as_sentence_set(sentences)
    check_count("count", count, 1, len(found))
    if channel is not None:
        check_count("channel", channel, 0, split.site.channels - 1)
        _, names, maps = read_channel(split, found, channel, units)
        title = f"channel {channel} of {split.site.name}"
    else:
        chosen = [check_count("concept", concept, 0, len(split.book) - 1) for concept in concepts or ()]
        if not chosen:
            raise ValueError("concepts=[] is empty; name at least one.")
        values = split.concept_activations(found, tokens="patch")  # (n, t, g)
        names = [split.concept_title(concept) for concept in chosen]
        maps = [values[..., concept] for concept in chosen]
        title = f"concepts of {split.site.name}"
    rows = tuple(_top_readings(model, found, heat, count) for heat in maps)
    return TopSentences(title, tuple(names), rows)


def _top_readings(model: TextModel, sentences: SentenceSet, heat: Tensor, count: int) -> tuple[Reading, ...]:
    """Return the ``count`` sentences in which a unit (n, t) is highest at any token."""
    highest = heat.nan_to_num(nan=-torch.inf).amax(1)  # NaN is padding
    rows = []
    for index in best_images(highest, count).tolist():
        sentence = sentences.names[index]
        spans = model.spans(sentence)[1:-1]
        values = tuple(heat[index, : len(spans)].tolist())
        label = "" if sentences.labels is None else sentences.labels[index]
        rows.append(Reading(sentence, label, tuple(spans), values, index))
    return tuple(rows)
