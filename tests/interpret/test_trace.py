"""The steps of ELUDe on one channel: each is what the split made, and the sum is the channel."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from elude_nb import EludeRouting, disentangle
from elude_nb.figures import channel_steps
from elude_nb.interpret import ChannelTrace, trace_channel
from tests.tiny import hook_count

SITE = "blocks.2.mlp.fc2"
ROUTING = EludeRouting(top_k=0.6, min_cluster_size=4, min_samples=1)


@pytest.fixture(scope="module")
def trace(vit, images, elude_split) -> ChannelTrace:
    channel = int(elude_split.routing.is_split().nonzero()[0])
    return trace_channel(vit, images, channel, SITE, routing=ROUTING, tokens_per_image=6)


def test_the_steps_are_those_of_the_split(trace, elude_split) -> None:
    assert trace.shares.equal(elude_split.routing.fractions(trace.channel)[1 : 1 + len(trace.shares)])
    assert trace.reason == "split"
    assert len(trace.contributions) == round(0.6 * len(trace.values))


def test_the_instances_are_the_highest_and_their_contributions_add_up_to_them(trace) -> None:
    n = len(trace.contributions)
    assert trace.values.diff().max() <= 0
    torch.testing.assert_close(trace.contributions.sum(1), trace.values[:n])
    assert (trace.shares.sum(0) - 1).abs().max() < 1e-12
    for unit in range(trace.units.shape[1]):
        torch.testing.assert_close(trace.units[:, unit], (trace.contributions * trace.shares[unit]).sum(1))
    assert trace.largest_gap < 1e-12


def test_the_table_counts_clusters(trace) -> None:
    table = trace.table
    assert table["instances"].sum() == int((trace.groups >= 0).sum())
    first = trace.groups == 0
    assert table["own"][0] == pytest.approx(float(trace.units[first, 0].mean()))
    assert table["own"].mean() > table["others"].mean()


def test_a_channel_that_is_not_split_says_why(vit, images) -> None:
    one_cluster = EludeRouting(top_k=0.6, min_cluster_size=30)
    found = trace_channel(vit, images, 0, SITE, routing=one_cluster, tokens_per_image=6)
    assert "not split" in repr(found)
    assert found.units.shape[1] == 0
    assert not len(found.table)
    with pytest.raises(ValueError, match="Channel 0"):
        channel_steps(found)
    assert hook_count(vit.network) == 0


@pytest.mark.parametrize(
    ("error", "words"), [(ValueError, {"channel": 24}), (TypeError, {"routing": "elude"}), (ValueError, {"site": "no"})]
)
def test_what_does_not_exist_is_refused(vit, images, error, words) -> None:
    given: Any = {"channel": 0, "site": SITE, "routing": ROUTING, **words}
    with pytest.raises(error):
        trace_channel(vit, images, **given)


def test_the_picture_shows_every_step(trace) -> None:
    picture: Any = channel_steps(trace, max_sources=10, max_units=3)
    titles = [place.get_title(loc="left") for place in picture.axes[:4]]
    assert [title[0] for title in titles] == ["1", "2", "4", "5"]
    bars = picture.axes[2].patches
    heights = torch.tensor([bar.get_height() for bar in bars]).reshape(-1, 10)
    torch.testing.assert_close(heights.sum(0), torch.ones(10, dtype=heights.dtype), rtol=1e-5, atol=1e-6)
    cells = picture.axes[3].images[0].get_array()
    assert cells[1, 0] == pytest.approx(float(trace.units[trace.groups == 0, 1].mean()))
    assert f"Channel {trace.channel}" in picture.alt


def test_the_signed_rule_gives_every_source_one_owner(vit, images, trace) -> None:
    signed = EludeRouting(top_k=0.6, min_cluster_size=4, min_samples=1, rule="signed")
    found = trace_channel(vit, images, trace.channel, SITE, routing=signed, tokens_per_image=6)
    assert found.groups.equal(trace.groups)
    assert set(found.shares.unique().tolist()) == {0.0, 1.0}
    split = disentangle(vit, images, SITE, routing=signed, concepts=8, tokens_per_image=6, progress=False)
    assert found.routing.routes[0].equal(split.routing.routes[trace.channel])
    again = trace.under(signed)  # runs no image
    assert again.shares.equal(found.shares)
    assert again.units.equal(found.units)
    with pytest.raises(TypeError, match="EludeRouting"):
        trace.under("elude-signed")


def test_no_more_tokens_are_held_than_the_routing_takes(vit, images) -> None:
    routing = replace(ROUTING, max_tokens=50)
    how: dict[str, Any] = {"routing": routing, "tokens_per_image": 6, "progress": False}
    found = trace_channel(vit, images, 3, SITE, **how)
    split = disentangle(vit, images, SITE, **how)
    assert len(found.recording) == 50
    assert torch.equal(found.routing.routes[0], split.routing.routes[3])
