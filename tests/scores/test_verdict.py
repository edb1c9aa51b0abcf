"""What a table of scores says in words: the right one leads, and no difference is called none."""

from __future__ import annotations

import html
import pickle

import numpy as np
import pandas as pd
import pytest

from elude_nb.scores import difference_interval, mean_interval, verdict
from elude_nb.scores.verdict import Scores, verdict_on

KINDS = ("channel", "random route", "sub-unit")


def table(
    means: dict[str, float], score: str = "top_similarity", *, channels: int = 60, spread: float = 0.1
) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = [
        {"kind": kind, "channel": channel, score: mean + spread * rng.standard_normal(), "distinct": channel < 30}
        for kind, mean in means.items()
        for channel in range(channels)
        for _ in range(3)
    ]
    return pd.DataFrame(rows)


def test_a_clear_lead_a_tie_and_a_rival_are_told_apart() -> None:
    said = verdict(table({"channel": 0.1, "random route": 0.3, "sub-unit": 0.3}))
    assert (said.rivals, said.level, said.ahead) == ([], ["random routes"], False)
    assert verdict(table({"channel": 0.1, "random route": 0.1, "sub-unit": 0.3})).ahead
    said = verdict(table({"channel": 0.5, "random route": 0.1, "sub-unit": 0.3}))
    assert said.rivals == ["channels"]
    assert str(said).index("behind channels") < str(said).index("ahead of random routes")


def test_of_a_score_where_lower_is_better_the_lower_one_leads() -> None:
    said = verdict(table({"channel": 0.9, "random route": 0.9, "sub-unit": 0.3}, "redundancy"), "redundancy")
    assert said.ahead
    assert "lower is better" in str(said)
    assert "difference -0.6" in str(said)  # as one subtracts the printed means


def test_its_means_are_those_of_the_table_and_of_the_distinct_units_alone() -> None:
    scores = table(dict.fromkeys(KINDS, 0.3))
    for distinct, part in ((False, scores), (True, scores[scores["distinct"]])):
        said = verdict(scores, distinct=distinct)
        means = part.groupby("kind")["top_similarity"].mean()
        assert said.mean.mean == pytest.approx(means["sub-unit"])
        assert said.others["channels"][0].mean == pytest.approx(means["channel"])
        assert said.others["channels"][1].mean == pytest.approx(means["sub-unit"] - means["channel"])


def test_missing_scores_are_left_out_and_a_kind_without_any_is_not_judged() -> None:
    scores = table(dict.fromkeys(KINDS, 0.3))
    scores.loc[scores["kind"] == "channel", "top_similarity"] = np.nan
    assert list(verdict(scores).others) == ["random routes"]


def test_clusters_are_resampled_whole_and_for_both_sides_alike() -> None:
    rng = np.random.default_rng(1)
    shared = rng.standard_normal(80).repeat(5)  # what units of one channel have in common
    clusters = np.arange(80).repeat(5)
    first, second = shared + 0.01 * rng.standard_normal(400), shared + 0.01 * rng.standard_normal(400)
    paired = difference_interval(first, second, clusters=(clusters, clusters))
    apart = difference_interval(first, second, clusters=(clusters, clusters + 80))
    naive = difference_interval(first, second)
    widths = [found.high - found.low for found in (paired, naive, apart)]
    assert widths == sorted(widths)
    # the same by a slow second implementation
    rng, slow = np.random.default_rng(2), []
    for _ in range(1000):
        drawn = rng.integers(80, size=80)
        rows = np.concatenate([np.flatnonzero(clusters == c) for c in drawn])
        slow.append(first[rows].mean() - second[rows].mean())
    assert paired.high - paired.low == pytest.approx(np.ptp(np.quantile(slow, [0.025, 0.975])), rel=0.15)


def test_without_clusters_it_is_as_wide_as_the_standard_error_says() -> None:
    rng = np.random.default_rng(3)
    first, second = rng.normal(1, 2, 500), rng.normal(0, 3, 300)
    found = difference_interval(first, second)
    error = np.hypot(first.std() / np.sqrt(500), second.std() / np.sqrt(300))
    assert (found.high - found.low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.1)
    assert found.mean == pytest.approx(mean_interval(first).mean - mean_interval(second).mean)


@pytest.mark.parametrize("sides", [([1.0], [np.nan]), ([np.nan], [1.0])])
def test_a_side_without_numbers_is_refused(sides) -> None:
    with pytest.raises(ValueError, match="one side has none"):
        difference_interval(*sides)


def test_bad_input_is_refused_with_what_there_is() -> None:
    scores = table(dict.fromkeys(KINDS, 0.3))
    with pytest.raises(ValueError, match="sub-units"):
        verdict(scores[scores["kind"] != "sub-unit"])
    with pytest.raises(ValueError, match="top_purity"):
        verdict(scores, "top_purity")
    with pytest.raises(ValueError, match="'beauty' is not known"):
        verdict_on({"a": [1.0]}, "a", "beauty")


def test_of_few_images_it_says_that_they_decide_nothing() -> None:
    scores = table(dict.fromkeys(KINDS, 0.3))
    for images, few in ((19, True), (20, False)):
        scores.attrs["distinct_images"] = images
        assert ("19 different images decide nothing: score on 20 or more." in str(verdict(scores))) is few


def test_a_table_of_scores_is_shown_with_its_verdicts_and_all_its_columns() -> None:
    plain = table(dict.fromkeys(KINDS, 0.3))
    for number in range(12):
        plain[f"another_score_{number}"] = 0.5
    scores = Scores(plain)
    said = [str(verdict(plain)), str(verdict(plain, distinct=True))]
    assert repr(scores).splitlines()[:2] == said
    assert scores._repr_html_().startswith(f"<p>{html.escape(said[0])}</p>")
    part = scores.head()
    assert not repr(part).startswith("top similarity")  # of a part other verdicts would be true
    for shown in (repr(scores), repr(part)):
        assert all(column in shown for column in scores.columns)
    assert type(pickle.loads(pickle.dumps(scores))) is Scores  # noqa: S301 - made on the line itself
