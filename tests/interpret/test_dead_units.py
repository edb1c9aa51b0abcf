"""Dead sub-units of the published rule: one definition, and nobody offers them."""

from __future__ import annotations

import pytest
import torch

from elude_nb import Disentanglement, find_units, name_concepts
from elude_nb.baselines import RandomRoutes, SubUnits
from elude_nb.core.routing import Routing, pack_bits
from elude_nb.interpret.exemplars import choose_units
from elude_nb.interpret.gallery import Gallery
from elude_nb.interpret.quiz import make_questions
from tests.tiny import random_images

Pair = tuple[int, int]


@pytest.fixture(scope="module")
def gallery(elude_split) -> Gallery:
    return Gallery(elude_split, random_images(24, 32, seed=3)).fill(progress=False)


def pairs_of(split: Disentanglement, *, live: bool) -> list[Pair]:
    table = split.units[split.units["unit"] > 0]
    alone = table["exclusive_sources"] > 0
    table = table[alone if live else ~alone]
    return list(zip(table["channel"].tolist(), table["unit"].tolist(), strict=True))


def test_of_a_planted_routing_the_sub_units_that_only_share_are_dead() -> None:
    routes = torch.tensor([[1, 1, 0, 0, 0], [2, 2, 2, 2, 2]], dtype=torch.uint8)
    sharing = torch.zeros(2, 5, 3, dtype=torch.bool)
    sharing[0, 2] = torch.tensor([True, True, False])
    sharing[0, 3] = torch.tensor([False, True, True])
    routing = Routing(routes, torch.tensor([[0, 1, 2], [0, 1, 2]]), ("split", "split"), pack_bits(sharing))
    assert routing.live().tolist() == [[False, True, False, False], [False, False, True, False]]
    assert [rows.tolist() for rows in routing.live_rows()] == [[0, 1], [1, 2]]
    alone = Routing(routes, routing.concepts, routing.reasons)
    assert alone.live().tolist() == routing.live().tolist()  # source 4 of channel 0 is nobody's: unit 0 takes it


def test_this_split_has_dead_sub_units(elude_split) -> None:
    assert pairs_of(elude_split, live=False)
    assert pairs_of(elude_split, live=True)


def test_a_dead_sub_unit_has_no_concept_and_no_part_in_one(elude_split) -> None:
    split = elude_split
    matrix = torch.zeros(split.weight.shape[1], len(split.book), dtype=split.weight.dtype)
    for channel, unit in pairs_of(split, live=True):
        weight = split.routing.masked(split.weight, torch.tensor([channel]), torch.tensor([unit]))[0]
        factor = split.means_on_concepts[channel, unit] / split.channel_variance[channel].clamp(min=1e-12)
        matrix[:, split.routing.concepts[channel, unit - 1]] += weight * factor
    torch.testing.assert_close(split.concept_readout().matrix, matrix)
    for channel, unit in pairs_of(split, live=False):
        assert int(split.routing.concepts[channel, unit - 1]) == -1
        assert int(split.copies[channel, unit]) == 0


def test_searches_names_and_methods_leave_them_out(elude_split) -> None:
    split, live = elude_split, pairs_of(elude_split, live=True)
    pictures = random_images(16, 32, seed=4)
    table = find_units(split, pictures[:8], pictures[8:], kind="units")
    assert sorted(zip(table["channel"], table["unit"], strict=True)) == live
    pairs = zip(table["channel"], table["unit"], strict=True)
    assert table["copies"].tolist() == [int(split.copies[pair]) for pair in pairs]
    assert find_units(split, pictures[:8], pictures[8:], kind="concepts")["copies"].isna().all()
    found = name_concepts(split, random_images(30, 32, seed=5), top=5)
    assert len(found.table) == len(split.book)
    seen = split.recording(pictures)
    for kind in (SubUnits, RandomRoutes):
        assert kind.of(split).encode(seen).shape[1] == len(live)
    torch.testing.assert_close(SubUnits.of(split).reconstruct(seen), seen.channels)  # they still count in the sum


def test_galleries_and_exemplars_show_live_ones(elude_split, gallery) -> None:
    dead, live = pairs_of(elude_split, live=False), pairs_of(elude_split, live=True)
    for channel in sorted({channel for channel, _ in dead}):
        mine = [unit for c, unit in live if c == channel]
        view = gallery.channel(channel)
        assert {(channel, unit) for unit in view.units["unit"]} >= {pair for pair in dead if pair[0] == channel}
        shown = set(gallery.exemplars(view, count=3, units=20).units) - {-1, 0}
        assert shown == set(mine) == set(choose_units(elude_split, channel, 20))


def test_the_quiz_asks_about_distinct_ones_first(elude_split, gallery) -> None:
    table = elude_split.distinct_units()
    distinct = set(zip(table["channel"], table["unit"], strict=True))
    live = set(pairs_of(elude_split, live=True))
    channels = {channel for channel, _ in distinct}
    for seed in range(3):
        asked = {
            (question.channel, question.unit)
            for question in make_questions(gallery, per_kind=3, size=3, seed=seed)
            if question.unit is not None
        }
        assert len(asked) == 3
        assert asked <= live
        assert sum(pair in distinct for pair in asked) >= min(3, len(channels)) - 1  # one can be too dull to ask about
