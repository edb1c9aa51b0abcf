from __future__ import annotations

import pytest
import torch

from elude_nb.core.strategies import (
    ChannelClusterRouting,
    ConceptRouting,
    RandomRouting,
    RoutingStrategy,
    read_strategy,
    route_channel,
    why_not_route_channel,
)
from tests.core.test_routing import random_book, random_weight

BY_CHANNEL: list[RoutingStrategy] = [
    ConceptRouting(),
    ConceptRouting(one_meaning=0.9, both_signs=True),
    ConceptRouting(unlike=True, name="other"),
    RandomRouting(seed=3),
    RandomRouting(ConceptRouting(one_meaning=1.0, both_signs=True), seed=1),
    RandomRouting(RandomRouting(seed=2), seed=5),
]


@pytest.mark.parametrize(
    "strategy",
    [*BY_CHANNEL, ChannelClusterRouting(strongest=7, seed=4), RandomRouting(ChannelClusterRouting())],
    ids=repr,
)
def test_a_strategy_is_read_back_from_its_repr(strategy) -> None:
    assert read_strategy(repr(strategy)) == strategy


def test_settings_that_an_older_version_did_not_have_are_the_default() -> None:
    assert read_strategy("ConceptRouting(one_meaning=0.5)") == ConceptRouting(one_meaning=0.5)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ConceptRouting",
        "ConceptRouting(",
        "ConceptRouting(0.8)",
        "ConceptRouting(**{'one_meaning': 0.5})",
        "ConceptRouting(nothing=1)",
        "ConceptRouting(one_meaning=print(1))",
        "RandomRouting(like=Mine(), seed=0)",
        "Mine(seed=0)",
        "<Mine object at 0x7f>",
        "{'name': 'concepts'}",
        "__import__('os').getcwd()",
        "(lambda: ConceptRouting())()",
        "RandomRouting(like=" * 2000,
    ],
)
def test_what_is_no_strategy_of_ours_is_refused(text) -> None:
    with pytest.raises(ValueError, match="strategy"):
        read_strategy(text)


@pytest.mark.parametrize("strategy", BY_CHANNEL, ids=repr)
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_channel_by_itself_is_routed_as_among_all(strategy, kernel) -> None:
    weight = random_weight(9, 40, kernel)
    book = random_book(12, weight, counts=torch.arange(1, 13))
    whole = strategy.route(weight, book, book, units=4, shared=0.7)
    assert whole.is_split().any()
    for channel in range(9):
        alone = route_channel(strategy, weight, book, channel, units=4, shared=0.7)
        assert alone.routes[0].equal(whole.routes[channel])
        assert alone.concepts[0].equal(whole.concepts[channel])
        assert alone.reasons == whole.reasons[channel : channel + 1]


def test_clusters_of_a_channel_need_the_finer_book() -> None:
    weight = random_weight(9, 40, 1)
    book = random_book(12, weight)
    for strategy in (ChannelClusterRouting(), RandomRouting(ChannelClusterRouting())):
        assert "channel-clusters" in why_not_route_channel(strategy)
        with pytest.raises(ValueError, match="channel-clusters"):
            route_channel(strategy, weight, book, 2, units=4, shared=0.7)
    assert not any(why_not_route_channel(strategy) for strategy in BY_CHANNEL)
