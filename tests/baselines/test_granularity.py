"""Scores along the size of clusters: the same tokens, each split as if it were made alone."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from elude_nb import EludeRouting, compare, find_site
from elude_nb.baselines import SubUnits, granularity
from elude_nb.figures import granularity_curve
from tests.tiny import random_images

QUICK: dict[str, Any] = {"n_units": 8, "concepts": 6, "k": 4, "tokens_per_image": None, "progress": False}
SIZES = (4, 6, 12)
SITE = "blocks.1.mlp.fc2"


@pytest.fixture(scope="module")
def table(vit32) -> pd.DataFrame:
    return granularity(vit32, random_images(120, 32), SITE, min_cluster_sizes=SIZES, **QUICK)


def test_each_row_is_that_of_a_comparison_with_this_split(vit32, table) -> None:
    routing = EludeRouting(rule="signed", min_cluster_size=4)
    method = SubUnits(vit32, find_site(vit32, SITE), routing=routing, tokens="all", name="4")
    found = compare(vit32, random_images(120, 32), SITE, methods=[method], tokens="all", **QUICK)
    own = found.table[found.table["size"] == "own"].iloc[0]
    row = table[(table["size"] == "own") & (table["min_cluster_size"] == 4)].iloc[0]
    for name in ("units", "ms_score", "best_unit_precision", "redundancy"):
        assert row[name] == pytest.approx(own[name])
    live = sum(len(set(routes.tolist()) - {0}) for routes in method.split_.routing.routes)
    assert row["expansion_factor"] == pytest.approx(live / 24)


def test_smaller_clusters_make_more_sub_units(table) -> None:
    own = table[table["size"] == "own"]
    assert own["min_cluster_size"].tolist() == list(SIZES)
    assert own["expansion_factor"].is_monotonic_decreasing
    assert "method" not in table
    assert sorted(set(table["size"])) == ["distinct", "equal", "own"]


def test_the_curve_shows_each_score_with_its_ends(table) -> None:
    picture = granularity_curve(table)
    assert [place.get_title(loc="left") or place.get_title() for place in picture.axes] == [
        "ms score (higher is better)", "best unit precision (higher is better)",
    ]  # fmt: skip
    assert [text.get_text() for text in picture.axes[0].texts] == ["12", "6", "4"]
    own = table[table["size"] == "own"].set_index("min_cluster_size")
    assert f"ms score {own.loc[12, 'ms_score']:.2f} to {own.loc[4, 'ms_score']:.2f}" in picture.alt
    assert len(granularity_curve(table, ["redundancy"], size="distinct").axes) == 1
    with pytest.raises(ValueError, match="'entropy'"):
        granularity_curve(table, ["entropy"])
    with pytest.raises(ValueError, match=r"'all'.*'own'"):
        granularity_curve(table, size="all")
    with pytest.raises(ValueError, match="Name a score"):
        granularity_curve(table, [])


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"min_cluster_sizes": ()}, ValueError, r"\[\]"),
        ({"min_cluster_sizes": (4, 4)}, ValueError, r"\[4, 4\]"),
        ({"min_cluster_sizes": (1,)}, ValueError, "min_cluster_size=1"),
        ({"routing": "elude"}, TypeError, "routing"),
    ],
)
def test_bad_settings_are_refused(vit32, settings, error, message) -> None:
    with pytest.raises(error, match=message):
        granularity(vit32, random_images(30, 32), SITE, **settings)
