"""The re-routing as bars and as a Sankey, over every kind of site, and the tables behind them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from elude_nb import Disentanglement
from elude_nb.core.routing import NO_CONCEPT
from elude_nb.figures import routing_bars, routing_sankey, theme
from elude_nb.figures.theme import THEMES
from elude_nb.interpret.profiles import route_table
from tests.tiny import owners_of

KINDS = ("split", "elude_split", "conv_split", "mlp_split")


def split_channel(split: Disentanglement) -> int:
    return int(split.routing.is_split().nonzero()[0])


def slow_amounts(split: Disentanglement, channel: int) -> dict[tuple[int, str, int], list[float]]:
    """Count sources and add their contributions up one by one, for each unit, part and block."""
    found: dict[tuple[int, str, int], list[float]] = defaultdict(lambda: [0, 0.0, 0.0])
    kernel, means = split.site.kernel, split.book.mean_sources()
    concepts = split.routing.concepts[channel]
    owned = [int(concept) for concept in concepts if concept != NO_CONCEPT]
    for source, row in split.site.source_table(split.model.network).iterrows():
        number = int(str(source))
        owners = owners_of(split.routing, channel, number)
        columns = slice(number * kernel, (number + 1) * kernel)
        weight = split.weight[channel, columns]
        block = 0 if row["block"] is None or str(row["block"]) == "<NA>" else int(row["block"])
        on = [float(weight @ means[concept, columns]) for concept in owned]
        for unit in owners:
            key = (unit, str(row["part"]), block)
            found[key][0] += 1
            if unit and int(concepts[unit - 1]) != NO_CONCEPT:
                amount = on[owned.index(int(concepts[unit - 1]))] / len(owners)
                found[key][1] += amount
                found[key][2] += abs(amount)
            else:
                found[key][1] = float("nan")
                found[key][2] += float(np.mean(np.abs(on))) / len(owners)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_is_the_sum_over_single_sources(kind, request) -> None:
    split = request.getfixturevalue(kind)
    channel = split_channel(split)
    expected = slow_amounts(split, channel)
    table = route_table(split, channel)
    assert len(table) == len(expected)
    for row in table.to_dict("records"):
        sources, contribution, magnitude = expected[row["unit"], row["part"], row["block"]]
        assert row["sources"] == sources
        assert row["contribution"] == pytest.approx(contribution, abs=1e-5, nan_ok=True)
        assert row["magnitude"] == pytest.approx(magnitude, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("detail", ["part", "head", "source"])
def test_details_are_finer_tables_of_the_same(kind, detail, request) -> None:
    split = request.getfixturevalue(kind)
    channel = split_channel(split)
    table, parts = route_table(split, channel, detail=detail), route_table(split, channel)
    assert table["sources"].sum() == sum(len(owners_of(split.routing, channel, s)) for s in range(split.site.sources))
    sums = table.groupby("unit")[["sources", "magnitude"]].sum()
    assert np.allclose(sums, parts.groupby("unit")[["sources", "magnitude"]].sum())
    sizes = split.routing.sizes()[channel]
    assert sums["sources"].tolist() == [int(sizes[unit]) for unit in sums.index]
    if detail == "source":
        assert (table["sources"] == 1).all()
        assert table["place"].is_unique or kind == "elude_split"  # shared ones have a row a unit


def test_heads_are_told_apart(split) -> None:
    places = set(route_table(split, split_channel(split), detail="head")["place"])
    assert {"head 0 of 1", "head 1 of 3", "MLP 2"} <= places
    assert len(places) == 3 * (2 + 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by", ["contribution", "sources"])
@pytest.mark.parametrize("rest", [False, True])
def test_what_flows_in_flows_out(kind, by, rest, request) -> None:
    split = request.getfixturevalue(kind)
    channel = split_channel(split)
    figure = routing_sankey(split, channel, by=by, max_places=4, rest=rest)
    node, link = figure.data[0].node, figure.data[0].link
    into, out = np.zeros(len(node.label)), np.zeros(len(node.label))
    np.add.at(out, np.array(link.source), np.array(link.value))
    np.add.at(into, np.array(link.target), np.array(link.value))
    end = list(node.label).index(f"channel {channel}")
    begin = into == 0
    between = ~begin & (np.arange(len(into)) != end)
    assert into[between] == pytest.approx(out[between])
    table = route_table(split, channel)
    table = table if rest else table[table["unit"] > 0]
    whole = float(table["magnitude" if by == "contribution" else "sources"].sum())
    assert into[end] == pytest.approx(whole, rel=1e-5)
    assert out[begin].sum() == pytest.approx(whole, rel=1e-5)
    assert out[end] == 0
    placed = [(x, y) for x, y in zip(node.x, node.y, strict=True) if x is not None]
    assert all(0 < x < 1 and 0 < y < 1 for x, y in placed)
    assert ("rest (unit 0)" in node.label) == (rest and bool((table["unit"] == 0).any()))
    assert sum(str(label).endswith(" others") for label in node.label) <= 1


@pytest.mark.parametrize("detail", ["part", "head", "source"])
def test_labels_of_a_column_have_room(split, detail) -> None:
    figure = routing_sankey(split, split_channel(split), detail=detail, max_places=30)
    node, inside = figure.data[0].node, figure.layout.height - 56
    for column in {x for x in node.x if x is not None}:
        places = sorted(y * inside for x, y in zip(node.x, node.y, strict=True) if x == column)
        assert np.diff(places).min(initial=99) >= 15


def test_a_sankey_says_what_it_shows(split) -> None:
    channel = split_channel(split)
    named = split.with_names({int(split.routing.concepts[channel, 0]): "<b>cats</b>"})
    figure = routing_sankey(named, channel)
    labels = list(figure.data[0].node.label)
    assert "sub-unit 1: &lt;b&gt;cats&lt;/b&gt;" in labels
    assert labels.index("block 1") < labels.index("block 2") < labels.index("block 3")
    assert "absolute mean contributions" in figure.layout.title.text
    assert f"units of channel {channel}" in figure.layout.meta["alt"]
    net = {(names, text) for names, text in figure.data[0].link.customdata}
    assert all(text.startswith("<br>net sum ") for _, text in net)
    with theme("dark"):
        dark = routing_sankey(split, channel, rest=True)
    assert dark.layout.template.layout.font.color == THEMES["dark"]["ink"]
    assert THEMES["dark"]["grey"] in dark.data[0].node.color


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("detail", [None, "part", "head", "source"])
def test_bars_are_as_long_as_the_table_says(kind, detail, request) -> None:
    split = request.getfixturevalue(kind)
    channel = split_channel(split)
    picture = routing_bars(split, channel, detail=detail, max_places=1000, rest=True)
    containers: Any = picture.axes[0].containers
    bars = [bar for bars in containers for bar in bars]
    upright = detail == "part" or (detail is None and kind == "split")
    total = sum(bar.get_height() if upright else bar.get_width() for bar in bars)
    assert total == pytest.approx(float(route_table(split, channel)["magnitude"].sum()), rel=1e-5)
    legend: Any = picture.axes[0].get_legend()
    has_rest = int(split.routing.sizes()[channel, 0]) > 0
    assert (legend.get_texts()[-1].get_text() == "rest (unit 0)") == has_rest


def test_few_places_say_how_much_the_others_have(split) -> None:
    picture = routing_bars(split, split_channel(split), detail="head", max_places=3)
    assert len(picture.axes[0].get_yticks()) == 3
    (text,) = (text.get_text() for text in picture.axes[0].texts)
    assert text.startswith("and 6 others, with ")


def test_sub_units_without_concepts(split) -> None:
    bare = replace(split, routing=replace(split.routing, concepts=torch.full_like(split.routing.concepts, NO_CONCEPT)))
    channel = split_channel(bare)
    table = route_table(bare, channel)
    assert table["contribution"].isna().all()
    assert (table["magnitude"] > 0).all()
    figure = routing_sankey(bare, channel)
    assert {text for _, text in figure.data[0].link.customdata} == {""}
    assert "sub-unit 1" in figure.data[0].node.label


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, c: route_table(s, c, detail="heads"), "'heads'.*'head'"),
        (lambda s, c: routing_bars(s, c, by="weight"), "by='weight'"),
        (lambda s, c: routing_bars(s, c, detail="head", max_places=0), "max_places=0"),
        (lambda s, c: routing_sankey(s, c, max_blocks=0), "max_blocks=0"),
        (lambda s, c: routing_sankey(s, -1), "channel=-1"),
    ],
)
def test_bad_input_is_named(split, call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call(split, split_channel(split))


def test_a_channel_that_was_not_split(split) -> None:
    whole = replace(split, routing=split.routing.only(torch.tensor([split_channel(split)])))
    other = next(channel for channel in range(24) if channel != split_channel(split))
    with pytest.raises(ValueError, match=rf"\b{other}\b"):
        routing_bars(whole, other)
