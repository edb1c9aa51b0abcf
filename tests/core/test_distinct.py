"""Distinct units: literal second implementations, planted copies, and what a split says of its copies."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elude_nb import Disentanglement, EludeRouting, disentangle
from elude_nb.core.distinct import (
    choose_covering,
    choose_unlike,
    count_copies,
    coverage_gains,
    find_copies,
    spread,
    standardise,
)
from elude_nb.core.routing import values_on_groups
from elude_nb.core.strategies import RandomRouting
from tests.tiny import hook_count, random_images


def drawn(rows: int, units: int, meanings: int = 4, seed: int = 0) -> torch.Tensor:
    """Units that are noisy copies of a few meanings, some of them turned round, and one that is constant."""
    generator = torch.Generator().manual_seed(seed)
    meaning = torch.randn(rows, meanings, generator=generator, dtype=torch.float64)
    which = torch.randint(meanings, (units,), generator=generator)
    values = meaning[:, which] + 0.4 * torch.randn(rows, units, generator=generator, dtype=torch.float64)
    values[:, ::5] *= -3
    values[:, 2] = 1.7
    return values


def slow_correlation(values: torch.Tensor, weights: list[float], i: int, j: int) -> float:
    """Weighted Pearson correlation, by its definition; 0 for a constant unit."""
    total = sum(weights)
    rows = range(len(weights))
    mean = [sum(weights[x] * float(values[x, u]) for x in rows) / total for u in (i, j)]
    moment = {
        (a, b): sum(weights[x] * (float(values[x, (i, j)[a]]) - mean[a]) * (float(values[x, (i, j)[b]]) - mean[b])
                    for x in rows) / total
        for a, b in ((0, 0), (0, 1), (1, 1))
    }  # fmt: skip
    if moment[0, 0] < 1e-24 or moment[1, 1] < 1e-24:
        return 0.0
    return moment[0, 1] / math.sqrt(moment[0, 0] * moment[1, 1])


@pytest.mark.parametrize("seed", range(3))
def test_products_of_standardised_units_are_weighted_correlations(seed) -> None:
    values = drawn(15, 9, seed=seed)
    weights = torch.randint(1, 9, (15,), generator=torch.Generator().manual_seed(seed))
    standard = standardise(values, weights)
    for i in range(9):
        for j in range(9):
            expected = slow_correlation(values, weights.tolist(), i, j)
            assert float(standard[:, i] @ standard[:, j]) == pytest.approx(expected, abs=1e-12), (i, j)
    repeated = values.repeat_interleave(weights, dim=0)  # a weight is how often a row comes
    torch.testing.assert_close(spread(values, weights), repeated.std(0, correction=0), rtol=1e-10, atol=1e-12)


def test_a_unit_that_is_constant_up_to_rounding_correlates_with_none() -> None:
    values = torch.tensor([[0.1, 1.0], [0.1 + 1e-9, 2.0], [0.1, 4.0]])
    assert standardise(values)[:, 0].tolist() == [0.0] * 3
    assert choose_unlike(standardise(values), torch.tensor([9.0, 1.0])).tolist() == [1]


def slow_unlike(standard: torch.Tensor, quality: torch.Tensor, threshold: float) -> list[int]:
    kept: list[int] = []
    for unit in sorted(range(len(quality)), key=lambda u: -float(quality[u])):
        constant = float(standard[:, unit].abs().max()) == 0
        if not constant and all(float(standard[:, unit] @ standard[:, k]) <= threshold for k in kept):
            kept.append(unit)
    return kept


def slow_covering(
    standard: torch.Tensor, n: int, threshold: float, fewest: int, worth: list[float] | None = None
) -> list[int]:
    """Try every candidate at every step, the whole sum anew."""
    x, u = standard.shape
    alike = [sum(float(standard[:, i] @ standard[:, j]) > threshold for j in range(u) if j != i) for i in range(u)]
    while fewest > 0 and sum(count >= fewest for count in alike) < n:
        fewest -= 1
    chosen: list[int] = []
    for _ in range(n):
        best, most = -1, -1.0
        for unit in range(u):
            if alike[unit] >= fewest and unit not in chosen:
                of_set = [*chosen, unit]
                heights = [
                    [(worth or [1] * u)[each] * float(standard[row, each]) for each in of_set] for row in range(x)
                ]
                total = sum(max(0.0, *row) for row in heights)
                if total > most + 1e-12:
                    best, most = unit, total
        chosen.append(best)
    return chosen


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("threshold", "fewest"), [(0.8, 5), (0.7, 2), (0.99, 5)])
def test_choices_are_those_of_a_literal_search(seed, threshold, fewest) -> None:
    values = drawn(30, 25, seed=seed)
    standard, quality = standardise(values), torch.rand(25, generator=torch.Generator().manual_seed(seed))
    assert choose_unlike(standard, quality, threshold).tolist() == slow_unlike(standard, quality, threshold)
    found = choose_covering(standard, 6, threshold=threshold, fewest=fewest)
    assert found.tolist() == slow_covering(standard, 6, threshold, fewest)
    found = choose_covering(standard, 6, threshold=threshold, fewest=fewest, worth=quality)
    assert found.tolist() == slow_covering(standard, 6, threshold, fewest, quality.tolist())


@pytest.mark.parametrize("n", [1, 5])
def test_planted_meanings_come_once_each(n) -> None:
    """Five meanings in six copies each, and noise that nothing resembles: one copy of each is chosen first."""
    generator = torch.Generator().manual_seed(0)
    meanings = torch.nn.functional.one_hot(torch.arange(60) % 6, 6)[:, :5].double()
    copies = meanings.repeat_interleave(6, dim=1) + 0.1 * torch.randn(60, 30, generator=generator).double()
    values = torch.cat([torch.randn(60, 8, generator=generator).double(), copies], dim=1)
    standard = standardise(values)
    chosen = choose_covering(standard, n)
    assert len({(unit - 8) // 6 for unit in chosen.tolist()}) == n
    assert bool((chosen >= 8).all())  # the noise is alone
    assert len(choose_unlike(standard, torch.cat([torch.zeros(8), torch.ones(30)]))) == 8 + 5
    assert count_copies(standard).tolist() == [0] * 8 + [5] * 30


def test_too_few_units_that_others_resemble_lower_the_bar_one_by_one() -> None:
    meanings = torch.eye(6).double()
    values = meanings[:, [0, 0, 0, 1, 1, 2]]  # three copies, two copies, one
    assert choose_covering(standardise(values), 1).tolist() == [0]
    assert choose_covering(standardise(values), 3).tolist()[0] == 0  # at least two others resemble: the first three
    assert sorted(choose_covering(standardise(values), 3).tolist()) == [0, 1, 2]
    assert choose_covering(standardise(values), 4).tolist()[:2] == [0, 3]
    assert choose_covering(standardise(values), 6).tolist()[:3] == [0, 3, 5]


def test_many_equal_units_are_chosen_in_order_and_it_ends() -> None:
    standard = standardise(torch.eye(4)[:, [1] * 200])
    assert choose_covering(standard, 150).tolist() == list(range(150))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 12), st.integers(1, 10))
def test_gains_fall_and_add_up_to_the_coverage(seed, rows, n) -> None:
    standard = standardise(torch.randn(rows, 10, generator=torch.Generator().manual_seed(seed)).double())
    chosen = choose_covering(standard, n, fewest=0)
    gains = coverage_gains(standard, chosen)
    assert len(set(chosen.tolist())) == n
    assert bool((gains.diff() <= 1e-12).all())
    everything = sum(max(0.0, float(standard[row].max())) for row in range(rows))
    covered = sum(max(0.0, float(standard[row, chosen].max())) for row in range(rows))
    assert float(gains.sum()) == pytest.approx(covered / everything, abs=1e-9)


def test_copies_are_counted_in_other_groups_by_blocks(monkeypatch) -> None:
    values = drawn(40, 23)
    standard, groups = standardise(values), torch.arange(23) % 4
    expected = [
        sum(float(standard[:, i] @ standard[:, j]) > 0.6 and i % 4 != j % 4 for j in range(23)) for i in range(23)
    ]
    assert count_copies(standard, groups, 0.6).tolist() == expected
    monkeypatch.setattr("elude_nb.core.distinct._BLOCK", 5)
    assert count_copies(standard, groups, 0.6).tolist() == expected
    assert count_copies(standard[:, :0]).shape == (0,)


# ---------------------------------------------------------------- of a split

RULES = ("published", "signed")
SMALL: dict[str, Any] = {"top_k": 120, "min_cluster_size": 6}
QUICK: dict[str, Any] = {"concepts": 6, "tokens_per_image": 10, "progress": False}


@pytest.fixture(scope="module", params=["concepts", *RULES, "shuffled"])
def any_split(request, vit, images) -> Disentanglement:
    if request.param == "concepts":
        return disentangle(vit, images, concepts=8, units=3, tokens_per_image=6, progress=False)
    rule = "published" if request.param == "shuffled" else request.param
    routing: Any = EludeRouting(rule=rule, **SMALL)
    routing = RandomRouting(like=routing) if request.param == "shuffled" else routing
    return disentangle(vit, random_images(40, 32), "blocks.1.mlp.fc2", routing=routing, **QUICK)


def owners(split: Disentanglement) -> dict[tuple[int, int], int]:
    """How many sources each sub-unit owns alone, counted source by source."""
    found: dict[tuple[int, int], int] = {}
    for channel in range(split.site.channels):
        members = split.routing.members(channel)
        for source in range(members.shape[1]):
            having = members[:, source].nonzero().flatten().tolist()
            if len(having) == 1 and having[0] > 0:
                found[channel, having[0]] = found.get((channel, having[0]), 0) + 1
    return found


def test_live_sub_units_own_a_source_alone_and_dead_ones_have_no_concept(any_split) -> None:
    alone = owners(any_split)
    channels, units = any_split.routing.live_rows()
    assert list(zip(channels.tolist(), units.tolist(), strict=True)) == sorted(alone)
    live = any_split.live_units
    assert list(zip(live["channel"], live["unit"], strict=True)) == sorted(alone)
    dead = any_split.units.drop(live.index)
    assert dead["concept"].isna().all()
    assert live["concept"].notna().all()
    if "exclusive_sources" in dead:
        assert (dead.loc[dead["unit"] > 0, "exclusive_sources"] == 0).all()


def test_values_on_groups_are_the_means_of_sub_units_there(any_split) -> None:
    split = any_split
    found = values_on_groups(split.weight, split.routing, split.book)
    centred = split.book.mean_sources()
    for place, (channel, unit) in enumerate(zip(*(rows.tolist() for rows in split.routing.live_rows()), strict=True)):
        weight = split.routing.masked(split.weight, torch.tensor([channel]), torch.tensor([unit]))[0]
        torch.testing.assert_close(found[:, place], centred @ weight, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("given_images", [False, True])
@pytest.mark.parametrize("n", [None, 5])
def test_distinct_units_are_those_of_a_literal_search(any_split, given_images, n) -> None:
    split = any_split
    images = random_images(12, 32, seed=5) if given_images else None
    table = split.distinct_units(n, threshold=0.7, images=images)
    live = list(zip(*(rows.tolist() for rows in split.routing.live_rows()), strict=True))
    signs = [int(split.signs[pair]) for pair in live]
    if images is None:
        means = split.book.mean_sources()
        values = torch.stack(
            [sign * (means @ split.routing.masked(split.weight, *(torch.tensor([x]) for x in pair))[0])
             for sign, pair in zip(signs, live, strict=True)], dim=1,
        )  # fmt: skip
        standard = standardise(values, split.book.counts)
    else:
        values = split.activations(images, live) * torch.tensor(signs)  # (n, t, u)
        standard = standardise(values.amax(1))
    if n is None:
        groups = values_on_groups(split.weight, split.routing, split.book)
        quality = [
            abs(float(split.means_on_concepts[pair]))
            / float(groups[:, i].repeat_interleave(split.book.counts).std(correction=0))
            for i, pair in enumerate(live)
        ]
        expected = slow_unlike(standard, torch.tensor(quality), 0.7)
    else:
        expected = slow_covering(standard, n, 0.7, 5)
    assert list(zip(table["channel"], table["unit"], strict=True)) == [live[i] for i in expected]
    for row in table.to_dict("records"):
        here = live.index((row["channel"], row["unit"]))
        copies = [
            pair for i, pair in enumerate(live)
            if pair[0] != row["channel"] and float(standard[:, here] @ standard[:, i]) > 0.7
        ]  # fmt: skip
        assert row["copied_by"] == copies
        assert row["copies"] == len(copies)
    assert hook_count(split.model.network) == 0


def test_copies_are_kept_with_names_and_zero_for_what_is_not_live(any_split) -> None:
    split = any_split
    standard = standardise(split._on_groups, split.book.counts)
    channels, units = split.routing.live_rows()
    alike = find_copies(standard, torch.arange(len(channels)))
    expected = (alike & (channels[:, None] != channels)).sum(1)
    assert split.copies[channels, units].tolist() == expected.tolist()
    assert int(split.copies.sum()) == int(expected.sum())
    named = split.with_names({0: "first"})
    assert named.copies is split.copies
    assert "name" in named.distinct_units(2)


def test_bad_settings_are_refused_with_the_value(split) -> None:
    live = len(split.live_units)
    with pytest.raises(ValueError, match=f"n={live + 1} .*{live}"):
        split.distinct_units(live + 1)
    with pytest.raises(ValueError, match="n=0"):
        split.distinct_units(0)
    with pytest.raises(ValueError, match=r"threshold=1\.2"):
        split.distinct_units(threshold=1.2)
    with pytest.raises(TypeError, match=r"n must be .*2\.5"):
        split.distinct_units(2.5)
    with pytest.raises(ValueError, match="tokens"):
        split.distinct_units(3, images=random_images(4, 32), tokens="words")
