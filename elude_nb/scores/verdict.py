"""What a table of scores says, in words: who leads, by how much, and where there is no difference."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from elude_nb._util.checks import check_choice
from elude_nb._util.tables import Table
from elude_nb._util.words import counted
from elude_nb.scores.inputs import check_table
from elude_nb.scores.intervals import Interval, difference_interval, mean_interval

HIGHER_IS_BETTER: dict[str, bool] = {
    "top_similarity": True, "monosemanticity": True, "ms_score": True, "polysemanticity": False,
    "intruder_accuracy": True, "best_unit_precision": True, "labels_covered": True, "top_purity": True,
    "label_share_over_chance": True, "redundancy": False,
    "effective_rank": True, "linearly_explained": True, "unexplained_variance": False, "output_change": False,
    "top1_agreement": True, "stability_seeds": True, "stability_halves": True,
    "neighbour_agreement": True, "knn_accuracy": True, "probe_accuracy": True,
}  # fmt: skip
"""The columns that are scores, and whether higher is better."""
FEW_IMAGES = 20
"""Of fewer different images the ten best are half of all: whatever differs may be chance."""


@dataclass(frozen=True)
class Verdict:
    """One score in words; printing it gives the sentence.

    Attributes
    ----------
    score
        The score's name, one of `HIGHER_IS_BETTER`.
    subject
        Whose score is judged, such as "sub-units".
    mean
        Its mean and interval.
    others
        The mean of each other kind or method, and how much better the subject is: two intervals each. A difference is
        positive where the subject is better, whichever way the score points.
    basis
        What this rests on, such as "10 best of 48 images".
    images
        How many different images that are, if it is known. Fewer than `FEW_IMAGES` decide nothing, which is said.
    """

    score: str
    subject: str
    mean: Interval
    others: Mapping[str, tuple[Interval, Interval]]
    basis: str = ""
    images: int | None = None

    @property
    def rivals(self) -> list[str]:
        """The names of those that are better than the subject, with an interval that excludes 0."""
        return [name for name, (_, gain) in self.others.items() if gain.high < 0]

    @property
    def level(self) -> list[str]:
        """The names of those that are neither better nor worse: the interval of the difference includes 0."""
        return [name for name, (_, gain) in self.others.items() if gain.low <= 0 <= gain.high]

    @property
    def ahead(self) -> bool:
        """Whether the subject is better than all others."""
        return bool(self.others) and not (self.rivals or self.level)

    def __str__(self) -> str:
        beaten = [name for name in self.others if name not in {*self.rivals, *self.level}]
        groups = (("behind", self.rivals), ("no difference to", self.level), ("ahead of", beaten))
        parts = [f"{word} {', '.join(map(self._beside, names))}" for word, names in groups if names]
        score = self.score.replace("_", " ")
        score += "" if HIGHER_IS_BETTER[self.score] else " (lower is better)"
        basis = f" ({self.basis})" if self.basis else ""
        parts = parts or ["nothing to compare it with"]
        few = ""
        if self.images is not None and self.images < FEW_IMAGES:
            few = f" {counted(self.images, 'different image')} decide nothing: score on {FEW_IMAGES} or more."
        return f"{score}{basis}: {self.subject} {self.mean}; {'; '.join(parts)}.{few}"

    def _beside(self, name: str) -> str:
        mean, gain = self.others[name]
        sign = 1 if HIGHER_IS_BETTER[self.score] else -1
        low, high = sorted((sign * gain.low, sign * gain.high))
        return f"{name} {mean.mean:.3f} (difference {sign * gain.mean:+.3f} [{low:+.3f}, {high:+.3f}])"

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(str(self))}</p>"


def verdict_on(
    values: Mapping[str, Any],
    subject: str,
    score: str,
    *,
    clusters: Mapping[str, Any] | None = None,
    basis: str = "",
    images: int | None = None,
) -> Verdict:
    """Return the verdict on one of several samples of a score.

    Parameters
    ----------
    values
        The scores of single units of each kind or method; NaN is left out.
    subject
        One of the keys.
    score
        One of `HIGHER_IS_BETTER`.
    clusters
        For each sample which cluster (such as the channel) each value is from, as in `difference_interval`.
    basis, images
        What the sentence says about what it rests on, and of how many different images that is, if it is known.
    """
    check_choice("score", score, HIGHER_IS_BETTER)
    check_choice("subject", subject, list(values))
    sign = 1.0 if HIGHER_IS_BETTER[score] else -1.0
    means = {name: mean_interval(each) for name, each in values.items()}
    others = {}
    for name, each in values.items():
        if name != subject and means[name].count and means[subject].count:
            pair = None if clusters is None else (clusters[subject], clusters[name])
            mine, theirs = (sign * np.asarray(v, dtype=np.float64) for v in (values[subject], each))
            others[name] = (means[name], difference_interval(mine, theirs, clusters=pair))
    return Verdict(score, subject, means[subject], others, basis, images)


def verdict(scores: pd.DataFrame, score: str = "top_similarity", *, distinct: bool = False) -> Verdict:
    """Say in words whether sub-units score better than their channels and than random routes.

    The intervals of the differences resample channels, as the sub-units of one channel depend on each other.

    Parameters
    ----------
    scores
        From `elude_nb.score`.
    score
        One of its columns.
    distinct
        Judge distinct units only: a meaning that many channels share counts once.

    Raises
    ------
    ValueError
        If the table has no such column, or no sub-units.

    Examples
    --------
    >>> import pandas as pd
    >>> kinds = ["channel", "random route", "sub-unit"]
    >>> rows = [(kind, c, 0.1 + 0.4 * (kind == "sub-unit") + 0.01 * (c % 3)) for kind in kinds for c in range(30)]
    >>> verdict(pd.DataFrame(rows, columns=["kind", "channel", "top_similarity"])).ahead
    True
    """
    check_table("scores", scores, "kind", "channel", score)
    table = scores[scores["distinct"]] if distinct else scores
    groups = {f"{kind}s": part for kind, part in table.groupby("kind")}
    check_choice("kind", "sub-units", list(groups))
    order = sorted(groups, key=lambda name: name != "sub-units")
    values = {name: groups[name][score] for name in order}
    clusters = {name: groups[name]["channel"] for name in order}
    basis = f"{len(groups['sub-units']):,} {'distinct ' if distinct else ''}sub-units"
    basis += f"; {scores.attrs['images']}" if "images" in scores.attrs else ""
    basis += f"; judged by {scores.attrs['judge']}" if "judge" in scores.attrs else ""
    images = scores.attrs.get("distinct_images")
    return verdict_on(values, "sub-units", score, clusters=clusters, basis=basis, images=images)


class Scores(Table):
    """What `elude_nb.score` returns: a data frame that is shown with its verdicts above it."""

    @property
    def _constructor(self) -> Any:
        return Table  # a part of it has other verdicts

    def _verdicts(self) -> list[Verdict]:
        some = self[self["kind"] == "sub-unit"]["distinct"]
        return [verdict(self, distinct=distinct) for distinct in (False, True) if (some >= distinct).any()]

    def __repr__(self) -> str:
        return "\n".join([*map(str, self._verdicts()), super().__repr__()])

    def _repr_html_(self) -> str:
        return "".join([each._repr_html_() for each in self._verdicts()]) + str(super()._repr_html_())  # type: ignore[misc]  # pandas-stubs leave it out
