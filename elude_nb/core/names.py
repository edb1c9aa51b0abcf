"""Names of concepts, the labels that they stand for, and descriptions of concepts that have no name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

import pandas as pd

from elude_nb._util.checks import check_count, check_kind, near_matches
from elude_nb._util.warn import warn_caller
from elude_nb._util.words import as_text, one_line


class UniqueNames(dict[int, str]):
    """Names of concepts, no two alike.

    Attributes
    ----------
    labels
        Which label each name stands for: both ``"cat"`` and ``"cat (2)"`` stand for ``"cat"``. Files of version 0.2 do
        not say it; a name of theirs has no label here.
    descriptions
        What is shown in place of a name where there is none, such as ``"rocket-like, 4 of 6 images"``. They are no
        names: several concepts may have the same, and nothing finds a concept by them.
    """

    def __init__(
        self,
        names: Mapping[int, str] | None = None,
        labels: Mapping[int, str] | None = None,
        descriptions: Mapping[int, str] | None = None,
    ) -> None:
        super().__init__(names or {})
        self.labels = dict(labels or {})
        self.descriptions = dict(descriptions or {})

    @property
    def all_labels(self) -> dict[int, str]:
        """Which label the name of each concept stands for; where no label is known, the name itself."""
        return {**self, **self.labels}

    def title(self, concept: int, *, number: bool = False) -> str:
        """Return how a concept is called wherever it is shown; see `Disentanglement.concept_title`."""
        text, plain = one_line(self.get(concept) or self.descriptions.get(concept, "")), f"concept {concept}"
        return (f"{plain}: {text}" if number else text) if text else plain

    def columns(self, concepts: Iterable[int]) -> dict[str, list[str]]:
        """Return the columns ``name`` and ``description`` of a table with a row for each of these; those in use."""
        used = {"name": self, "description": self.descriptions}
        return {column: [texts.get(c, "") for c in concepts] for column, texts in used.items() if texts}

    def updated(self, names: Mapping[int, str], labels: Mapping[int, str] | None, n_concepts: int) -> UniqueNames:
        """Return these names with others added, changed, or taken away (``""``); see `Disentanglement.with_names`."""
        check_kind("names", names, Mapping | pd.Series, "a mapping of concepts to names, such as {12: 'cat'}")
        given = getattr(names, "labels", {}) if labels is None else labels
        check_kind("labels", given, Mapping | pd.Series, "a mapping of concepts to labels, such as {12: 'cat'}")
        unnamed = set(given.keys()) - set(names.keys())
        if unnamed:
            raise ValueError(f"labels are given for the concepts {sorted(unnamed)}, and no names; give both.")
        known = UniqueNames(self, self.labels, self.descriptions)
        for concept, name in names.items():
            number = check_count("concept", concept, 0, n_concepts - 1)
            known[number] = _stripped("name", concept, name)
            known.labels[number] = _stripped("label", concept, given.get(concept, name))
            if known[number] and not known.labels[number]:
                raise ValueError(f"The label of concept {concept} is empty; leave it out, or take the name away too.")
        for concept, text in getattr(names, "descriptions", {}).items():
            number = check_count("concept", concept, 0, n_concepts - 1)
            known.descriptions[number] = _stripped("description", concept, text)
        merged = {concept: name for concept, name in sorted(known.items()) if name}
        twice = [name for name, count in Counter(merged.values()).items() if count > 1]
        if twice:
            concepts = [concept for concept, name in merged.items() if name == twice[0]]
            raise ValueError(f"Concepts {concepts} would all be called {twice[0]!r}; give each a name of its own.")
        kept = {concept: label for concept, label in sorted(known.labels.items()) if concept in merged}
        described = {concept: text for concept, text in sorted(known.descriptions.items()) if text}
        return UniqueNames(merged, kept, described)

    def concepts_of(self, name: str) -> list[int]:
        """Return the concepts whose name stands for a label; see `Disentanglement.concepts_named`."""
        labels = self.all_labels
        found = [concept for concept, label in labels.items() if label == name]
        found = found or [concept for concept, text in self.items() if text == name]
        if not found:
            options = sorted({*labels.values(), *self.values()})
            raise ValueError(f"No concept is called {name!r}; names are {options}.{near_matches(name, options)}")
        alike = re.compile(re.escape(name) + r" \(\d+\)")
        unsure = [text for concept, text in self.items() if concept not in self.labels and alike.fullmatch(text)]
        if unsure:
            warn_caller(
                f"{unsure} may stand for {name!r} too, or be labels of their own: this split was saved by version 0.2, "
                "which did not note it. Name its concepts anew, or pass with_names(split.names, labels=...)."
            )
        return found


def _stripped(what: str, concept: int, text: object) -> str:
    if not isinstance(text, str):
        raise TypeError(f"The {what} of concept {concept} must be text, not {text!r} ({type(text).__name__}).")
    return as_text(text).strip()
