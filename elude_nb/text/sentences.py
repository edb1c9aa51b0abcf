"""Sentences with labels, for text models: a list, a file, or a set that is part of this package."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from elude_nb._util.checks import check_count
from elude_nb._util.files import existing_file
from elude_nb._util.words import counted
from elude_nb.data.images import ImageSet
from elude_nb.errors import SentenceError

TOPICS = "topics"
"""Name of the set of this package: 200 sentences written for it, 20 on each of ten topics."""

_MOST_BYTES = 64 << 20


@dataclass(frozen=True, eq=False, repr=False)
class SentenceSet(ImageSet):
    """Sentences where an `ImageSet` has images: whatever takes a set of images takes a set of sentences.

    Indexing gives the sentence as text. ``names`` are the sentences too. `split`, `sample`, `subset`, `only`,
    `without` and `with_labels` are those of `ImageSet`.
    """

    def __repr__(self) -> str:
        labels = f", {counted(len(set(self.labels)), 'label')}" if self.labels is not None else ""
        return f"SentenceSet({counted(len(self), 'sentence')} from {self.source}{labels})"


def load_sentences(
    source: str | os.PathLike[str] | Sequence[str] = TOPICS,
    *,
    labels: Sequence[str] | None = None,
    count: int | None = None,
    seed: int = 0,
) -> SentenceSet:
    r"""Collect sentences.

    Parameters
    ----------
    source
        ``"topics"`` (200 short English sentences on ten topics, some of whose words mean two things), a list of
        sentences, or a UTF-8 file (``.txt``, ``.tsv``) with one sentence a line, or a label, a tab and a sentence.
    labels
        One label a sentence; a file brings its own.
    count
        So many, drawn at random and evenly over the labels.
    seed
        Of the drawing.

    Raises
    ------
    SentenceError, FileNotFoundError, TypeError
        If there is nothing usable at ``source``; the message names the line or the item.

    Examples
    --------
    >>> load_sentences("topics")
    SentenceSet(200 sentences from topics, 10 labels)
    >>> load_sentences(["A cat sleeps.", "A dog barks."])[1]
    'A dog barks.'
    """
    if count is not None:
        check_count("count", count)
    if isinstance(source, str | os.PathLike):
        if labels is not None:
            raise ValueError("A file's labels stand before its tabs; to give labels of your own, pass a list.")
        found, named = _lines(source)
        known_as = source if source == TOPICS else f"file {Path(source).name}"
    else:
        found, named = list(source), None if labels is None else [str(label) for label in labels]
        known_as = f"a list of {len(found)}"
    for number, item in enumerate(found):
        if not isinstance(item, str):
            raise TypeError(f"Item {number} is a {type(item).__name__}; give sentences as text.")
        if not item.strip():
            raise SentenceError(f"Sentence {number} is empty; leave it out.")
    if not found:
        raise SentenceError("There are no sentences.")
    if named is not None and len(named) != len(found):
        raise ValueError(f"{counted(len(named), 'label')} for {counted(len(found), 'sentence')}; give one a sentence.")
    sentences = SentenceSet(
        names=tuple(found),
        labels=None if named is None else tuple(named),
        source=str(known_as),
        factors=None,
        _items=found,
        _open=str,  # type: ignore[arg-type] # text, where an ImageSet opens images
    )
    return sentences if count is None else sentences.sample(count, seed=seed)


def as_sentence_set(sentences: Any) -> SentenceSet:
    """Return a `SentenceSet` as it is, and of anything else what `load_sentences` makes of it."""
    if isinstance(sentences, ImageSet) and not isinstance(sentences, SentenceSet):
        raise TypeError(f"Sentences are needed, not {sentences!r}; see elude_nb.text.load_sentences.")
    return sentences if isinstance(sentences, SentenceSet) else load_sentences(sentences)


def _lines(source: str | os.PathLike[str]) -> tuple[list[str], list[str] | None]:
    """Read a file's sentences and, if every line has one, their labels."""
    cure = f"name a .txt or .tsv file, or {TOPICS!r}, the set that needs none; a single sentence goes into a list"
    file = files("elude_nb.text").joinpath("topics.tsv") if source == TOPICS else existing_file(source, cure)
    if isinstance(file, Path) and file.stat().st_size > _MOST_BYTES:
        raise SentenceError(f"{str(file)!r} has over {_MOST_BYTES >> 20} MiB; give the sentences wanted as a list.")
    try:
        text = file.read_text(encoding="utf-8-sig")  # spreadsheets put a byte order mark before the text
    except UnicodeDecodeError as error:
        raise SentenceError(f"{os.fspath(source)!r} is not UTF-8 text ({error.reason}); save it as UTF-8.") from error
    # Not splitlines(), which would cut a sentence at a form feed or a Unicode separator.
    lines = {number: line for number, line in enumerate(text.split("\n"), 1) if line.strip()}
    parts = {number: line.split("\t", 1) for number, line in lines.items()}
    tabs = sum(len(part) == 2 for part in parts.values())
    if tabs == 0:
        return list(lines.values()), None
    for number, part in parts.items():
        if len(part) == 1:
            raise SentenceError(
                f"{os.fspath(source)!r}, line {number}: {part[0]!r} has no label, others have; give all or none one."
            )
        if not part[1].strip():
            raise SentenceError(f"{os.fspath(source)!r}, line {number}: there is no sentence behind the label.")
    return [part[1].strip() for part in parts.values()], [part[0].strip() for part in parts.values()]
