from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from math import comb

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.stats import mannwhitneyu
from sklearn.metrics import roc_auc_score

from elude_nb import disentangle, load_images
from elude_nb.core.edit import Edit
from elude_nb.core.routing import Routing
from elude_nb.core.strategies import ConceptRouting
from elude_nb.interpret.find_units import _auroc, _p_values, find_units, holm, pool_readouts, rank_candidates
from tests.tiny import hook_count, random_images

COLUMNS = [
    *("kind", "concept", "channel", "unit", "name", "copies", "rank", "direction"),
    *("auroc_chosen", "auroc", "p", "p_corrected", "significant"),
]


def with_square(images) -> list[Image.Image]:
    """Return the images with a bright red square in the middle of each."""
    found = []
    for image in images:
        pixels = np.asarray(image).copy()
        side = len(pixels) // 4
        pixels[side : 3 * side, side : 3 * side] = (255, 0, 0)
        found.append(Image.fromarray(pixels))
    return found


def halves(count: int, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    order = np.random.default_rng(seed).permutation(count).tolist()
    cut = int(count * fraction)
    return order[:cut], order[cut:]


def pairs_counted(positive, negative) -> float:
    """Literal AUROC: the share of pairs in which the positive image is higher; a tie counts half."""
    wins = [float(a > b) + 0.5 * float(a == b) for a in positive for b in negative]
    return sum(wins) / len(wins)


def holm_literal(p: list[float]) -> list[float]:
    """Go up the sorted list, as in the paper; a hypothesis is never surer than one before it."""
    found, largest = [0.0] * len(p), 0.0
    for step, place in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        largest = max(largest, p[place] * (len(p) - step))
        found[place] = min(1.0, largest)
    return found


def keyed(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table in an order that does not depend on any measurement."""
    keys = [" ".join(map(str, row)) for row in table[["kind", "concept", "channel", "unit"]].fillna(-1).to_numpy()]
    return table.set_index(pd.Index(keys)).sort_index()


@pytest.fixture(scope="module")
def signed_split(vit, images):
    """Some of its sub-units are low on their concepts."""
    found = disentangle(
        vit,
        images,
        concepts=8,
        units=3,
        tokens_per_image=6,
        routing=ConceptRouting(both_signs=True),
        progress=False,
    )
    assert (found.signs < 0).any()
    return found


# ----------------------------------------------------- against a slow one


@pytest.mark.parametrize("pool", ["max", "mean"])
@pytest.mark.parametrize("name", ["split", "conv_split", "mlp_split", "signed_split"])
def test_every_number_is_that_of_a_literal_search(request, name, pool) -> None:
    split = request.getfixturevalue(name)
    side = split.model.input_size[1]
    positive, negative = with_square(random_images(13, side, seed=1)), random_images(14, side, seed=2)
    table = keyed(find_units(split, positive, negative, pool=pool, fraction=0.4, seed=3, batch_size=4))
    parts = halves(13, 0.4, 3), halves(14, 0.4, 3)
    assert [len(part) for both in parts for part in both] == [5, 8, 5, 9]

    rows, expected = [], []
    units = split.units[split.units["unit"] > 0]
    names = [("concept", concept, -1, -1) for concept in range(len(split.book))]
    names += [("unit", *row) for row in units[["concept", "channel", "unit"]].itertuples(index=False)]
    read = []
    for some in (positive, negative):
        columns = [split.concept_activations(some)]
        for channel, unit in units[["channel", "unit"]].itertuples(index=False):
            low = split.means_on_concepts[channel, unit] < 0
            columns.append(split.activations(some, [(channel, unit)]) * (-1 if low else 1))
        values = torch.cat(columns, -1)
        if values.ndim == 3:
            values = values.amax(1) if pool == "max" else values.mean(1)
        read.append(values.numpy())
    for column, key in enumerate(names):
        (first, second), (other_first, other_second) = (
            [[values[i, column] for i in part] for part in both] for values, both in zip(read, parts, strict=True)
        )
        chosen = pairs_counted(first, other_first)
        better = "greater" if chosen >= 0.5 else "less"
        checked = pairs_counted(second, other_second)
        method = "exact" if len({*second, *other_second}) == 17 else "asymptotic"
        truth = [1] * len(second) + [0] * len(other_second)
        assert checked == pytest.approx(roc_auc_score(truth, second + other_second))
        rows.append(" ".join(map(str, key)))
        expected.append(
            {
                "direction": "higher" if chosen >= 0.5 else "lower",
                "auroc_chosen": max(chosen, 1 - chosen),
                "auroc": checked if chosen >= 0.5 else 1 - checked,
                "p": mannwhitneyu(second, other_second, alternative=better, method=method).pvalue,
            }
        )
    literal = pd.DataFrame(expected, index=pd.Index(rows)).sort_index()
    assert literal.index.tolist() == table.index.tolist()
    literal["p_corrected"] = holm_literal(literal["p"].tolist())
    pd.testing.assert_frame_equal(table[literal.columns], literal, check_dtype=False, rtol=1e-9)
    assert (literal["auroc_chosen"] > 0.5).all()
    assert table["significant"].tolist() == (literal["p_corrected"] <= 0.05).tolist()
    assert table.sort_values("rank")["auroc_chosen"].is_monotonic_decreasing


def test_p_is_that_of_all_ways_to_deal_the_images() -> None:
    """Count, among all ways to call 3 of 7 images positive, those in which they do at least as well."""
    values = torch.from_numpy(np.random.default_rng(0).normal(size=(7, 5)))
    direction = np.array([1, -1, 1, -1, 1])
    found = _p_values(values[:3], values[3:], direction)
    for unit, sign in enumerate(direction):
        signed = (sign * values[:, unit]).tolist()
        scores = [
            pairs_counted([signed[i] for i in some], [signed[i] for i in range(7) if i not in some])
            for some in itertools.combinations(range(7), 3)
        ]
        assert scores[0] == pairs_counted(signed[:3], signed[3:])
        assert found[unit] == pytest.approx(np.mean([score >= scores[0] for score in scores]))


def test_each_unit_is_tested_as_if_it_were_alone() -> None:
    """A unit with ties, a constant one and many images do not change how the others are tested."""
    rng = np.random.default_rng(1)
    values = torch.from_numpy(rng.normal(size=(30, 6)) + np.arange(30)[:, None] * 0.05)
    values[:, 1] = values[:, 1].round()  # ties
    values[:, 4] = 2.0
    found = _p_values(values[12:], values[:12], np.ones(6))
    for unit in range(6):
        method = "asymptotic" if unit == 1 else "exact"
        if unit != 4:
            alone = mannwhitneyu(values[12:, unit], values[:12, unit], alternative="greater", method=method)
            assert found[unit] == pytest.approx(alone.pvalue, rel=1e-12)
    assert found[4] == 1
    many = torch.from_numpy(rng.normal(size=(120, 2)))
    for unit, p in enumerate(_p_values(many[:60], many[60:], -np.ones(2))):
        alone = mannwhitneyu(many[:60, unit], many[60:, unit], alternative="less", method="asymptotic")
        assert p == pytest.approx(alone.pvalue, rel=1e-12)


def test_a_constant_unit_tells_nothing() -> None:
    constant = torch.full((4, 2), 3.0)
    assert _auroc(constant, constant).tolist() == [0.5, 0.5]
    assert _p_values(constant, constant, np.ones(2)).tolist() == [1, 1]
    table = rank_candidates(pd.DataFrame({"kind": ["unit"] * 2}), (constant, constant), (constant, constant), 0.05)
    assert table["auroc"].tolist() == table["auroc_chosen"].tolist() == [0.5, 0.5]
    assert table["p_corrected"].tolist() == [1, 1]
    assert not table["significant"].any()


@pytest.mark.parametrize("seed", range(5))
def test_holm_is_the_literal_loop(seed) -> None:
    rng = np.random.default_rng(seed)
    p = rng.random(40) ** 4
    p[rng.integers(40, size=15)] = rng.choice([0.001, 0.02, 1.0], size=15)  # ties
    assert holm(p).tolist() == pytest.approx(holm_literal(p.tolist()), rel=1e-12)
    np.testing.assert_array_equal(holm(p.reshape(8, 5)), holm(p).reshape(8, 5))
    # The definition by steps: reject while the i-th smallest is at most level / (m - i + 1).
    below = np.cumprod(np.sort(p) * np.arange(40, 0, -1) <= 0.05).sum()
    assert (holm(p) <= 0.05).sum() == below


# ------------------------------------------------------- what it is good for


def test_a_planted_difference_is_found(split) -> None:
    positive, negative = with_square(random_images(40, 32, seed=5)), random_images(40, 32, seed=6)
    table = find_units(split, positive, negative)
    assert table["significant"].any()
    assert table["auroc"].iloc[0] > 0.9


def test_a_row_leads_to_an_edit(vit, split) -> None:
    """As the docstring says it, for a concept and for a sub-unit."""
    sets = with_square(random_images(6, 32, seed=5)), random_images(6, 32, seed=6)
    batch = vit.prepare(sets[0][:2])
    before = vit(batch)
    row = find_units(split, *sets, kind="concepts").iloc[0]
    edits = [Edit.scale(concept=int(row.concept), by=0.0)]
    row = find_units(split, *sets, kind="units").iloc[0]
    edits.append(Edit.scale(unit=(int(row.channel), int(row.unit)), by=0.0))
    for edit in edits:
        with split.edit(edit):
            assert (vit(batch) - before).abs().max() > 1e-6


def test_images_that_do_not_differ_give_hardly_anything(split) -> None:
    """Of 30 draws in which both sets are the same noise, at most 5 % should have any finding at level 0.05."""
    false, small, best = [], [], []
    for seed in range(30):
        images = random_images(40, 32, seed=100 + seed)
        table = find_units(split, images[:20], images[20:], seed=seed)
        assert len(table) / comb(20, 10) < 0.05  # enough images for a finding
        false.append(table["significant"].any())
        small.append((table["p"] <= 0.2).mean())
        best.append(table["auroc_chosen"].max())
    assert sum(false) <= 3
    assert np.mean(best) > 0.8  # what a choice without a check would have shown
    assert 0.1 < np.mean(small) < 0.26  # p-values are neither too small nor useless


def test_the_check_has_no_say_in_the_ranking(split) -> None:
    """Swap all checking images of the two sets: ranks stay, and what was found is measured the other way round."""
    positive, negative = with_square(random_images(16, 32, seed=1)), list(random_images(16, 32, seed=2))
    _, second = halves(16, 0.5, 4)
    swapped = [list(positive), list(negative)]
    for i in second:
        swapped[0][i], swapped[1][i] = negative[i], positive[i]
    before, after = find_units(split, positive, negative, seed=4), find_units(split, *swapped, seed=4)
    before, after = before.sort_values("rank"), after.sort_values("rank")
    same = ["kind", "concept", "channel", "unit", "rank", "direction", "auroc_chosen"]
    pd.testing.assert_frame_equal(
        before[same].reset_index(drop=True), after[same].reset_index(drop=True), rtol=1e-9, check_exact=False
    )
    np.testing.assert_allclose(before["auroc"].to_numpy(), 1 - after["auroc"].to_numpy(), atol=1e-12)
    assert (before["auroc"] != 0.5).any()


def test_to_swap_the_sets_is_to_swap_the_directions(split) -> None:
    sets = with_square(random_images(11, 32, seed=1)), random_images(11, 32, seed=2)  # 25 pairs: none has 0.5
    one, other = keyed(find_units(split, *sets)), keyed(find_units(split, *sets[::-1]))
    for column in ("auroc_chosen", "auroc", "p", "p_corrected"):
        np.testing.assert_allclose(one[column].to_numpy(dtype=float), other[column].to_numpy(dtype=float), atol=1e-12)
    assert {"higher", "lower"} == set(one["direction"])
    assert (one["direction"] != other["direction"]).all()


def test_rows_are_in_the_documented_order() -> None:
    """Unit 2 is chosen last but holds; unit 0 is chosen first and does not."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 2, 20, 4))
    first[0] += [3.0, 2.0, 0.8, 0.0]
    second[0] += [0.0, 4.0, 4.0, 0.0]
    chosen, checked = (tuple(torch.from_numpy(side) for side in half) for half in (first, second))
    table = rank_candidates(pd.DataFrame({"unit": range(4)}), chosen, checked, 0.05)  # type: ignore[arg-type]
    assert table["unit"].tolist() == [1, 2, 0, 3]
    assert table["significant"].tolist() == [True, True, False, False]
    assert table["rank"].tolist() == [2, 3, 1, 4]


def test_of_units_that_choose_equally_well_the_clearest_comes_first() -> None:
    """Three units tell the sets apart perfectly, one of them by being low; the gap in standard deviations decides."""
    low, high = np.array([0.0, 1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0, 7.0])
    positive = np.stack([high, 100 * (high + 90), -high, np.array([0.0, 5.0, 6.0, 7.0]), np.ones(4)], 1)
    negative = np.stack([low, 100 * low, 0 * low - 3.9, low, np.ones(4)], 1)
    halves_of = (torch.from_numpy(positive), torch.from_numpy(negative))
    table = rank_candidates(pd.DataFrame({"unit": range(5)}), halves_of, halves_of, 0.05)
    assert table["auroc_chosen"].tolist()[:3] == [1, 1, 1]
    gaps = [
        abs(a.mean() - b.mean()) / np.concatenate([a, b]).std(ddof=1)
        for a, b in zip(positive.T[:3], negative.T[:3], strict=True)
    ]
    assert table["unit"].tolist()[:3] == sorted(range(3), key=lambda unit: -gaps[unit]) == [1, 0, 2]
    assert table["unit"].tolist()[3:] == [3, 4]


def test_the_smallest_p_is_as_documented() -> None:
    """So that the advice on how many images are needed is right."""
    apart = torch.arange(10.0)[:, None]
    for m in (3, 7, 10):
        assert _p_values(apart[:m] + 100, apart[:m], np.ones(1))[0] == pytest.approx(1 / comb(2 * m, m))
    assert 3000 / comb(20, 10) < 0.05 < 3000 / comb(18, 9)
    assert 128 / comb(14, 7) < 0.05 < 128 / comb(12, 6)


# ------------------------------------------------------------------- kinds


def test_kinds_and_their_rows(split) -> None:
    sets = random_images(8, 32, seed=1), random_images(8, 32, seed=2)
    tables = {kind: find_units(split, *sets, kind=kind) for kind in ("both", "concepts", "units")}
    sub_units = int((split.units["unit"] > 0).sum())
    assert [len(table) for table in tables.values()] == [8 + sub_units, 8, sub_units]
    for kind, table in tables.items():
        assert table.columns.tolist() == COLUMNS, kind
        assert sorted(table["rank"]) == list(range(1, len(table) + 1))
        concepts = table[table["kind"] == "concept"]
        assert concepts[["channel", "unit"]].isna().all(axis=None)
        assert table.loc[table["kind"] == "unit", ["concept", "channel", "unit"]].notna().all(axis=None)
        assert (table["unit"].dropna() > 0).all()
    both, alone = keyed(tables["both"]), keyed(tables["units"])
    np.testing.assert_allclose(both.loc[alone.index, "p"], alone["p"], rtol=1e-9)
    assert (both.loc[alone.index, "p_corrected"] >= alone["p_corrected"] - 1e-12).all()  # more were tried
    values = split.units[split.units["unit"] > 0].set_index(["channel", "unit"])["concept"]
    for row in tables["units"].itertuples():
        assert row.concept == values[row.channel, row.unit]


def test_names_of_concepts_are_shown(split) -> None:
    table = find_units(split.with_names({2: "cat"}), random_images(4, 32), random_images(4, 32, seed=1))
    assert (table["name"] == np.where(table["concept"] == 2, "cat", "")).all()
    assert (table.loc[table["kind"] == "unit", "name"] == "cat").any()


def test_without_concepts_across_channels_there_are_only_units(vit, images) -> None:
    split = disentangle(
        vit, images, concepts=8, units=3, tokens_per_image=6, routing="channel-clusters", progress=False
    )
    table = find_units(split, images[:6], images[6:12])
    assert set(table["kind"]) == {"unit"}
    assert table["concept"].isna().all()
    assert (table["name"] == "").all()
    with pytest.raises(ValueError, match="routing='concepts'"):
        find_units(split, images[:6], images[6:12], kind="concepts")


def test_without_a_split_channel_there_is_nothing_to_try(split, images) -> None:
    whole = Routing(
        torch.zeros_like(split.routing.routes),
        torch.full_like(split.routing.concepts, -1),
        ("left alone",) * split.site.channels,
    )
    alone = dataclasses.replace(split, routing=whole)
    with pytest.raises(ValueError, match="kind='both'"):
        find_units(alone, images[:6], images[6:12])


# ----------------------------------------------------------------- one pass


def test_each_image_goes_through_the_model_once(vit, split) -> None:
    seen: Counter[str] = Counter()
    handle = vit.network.register_forward_pre_hook(lambda _, args: seen.update(images=len(args[0])))
    try:
        find_units(split, random_images(9, 32), random_images(7, 32, seed=1), batch_size=4)
    finally:
        handle.remove()
    assert seen["images"] == 16


def test_batches_make_no_difference(split) -> None:
    sets = random_images(9, 32), random_images(9, 32, seed=1)
    one, other = (keyed(find_units(split, *sets, batch_size=size)) for size in (2, 9))
    pd.testing.assert_frame_equal(one, other, rtol=1e-9, check_exact=False)


def test_tokens_are_those_of_the_discovery_unless_said(split, mlp_split, smallest_images) -> None:
    images = random_images(6, 32)
    readouts = [(split.concept_readout(), torch.tensor(1))]
    usual, patch, single = (pool_readouts(split, images, readouts, tokens) for tokens in (None, "patch", "class"))
    assert split.settings.tokens == "patch"
    torch.testing.assert_close(usual, patch, rtol=0, atol=0)
    torch.testing.assert_close(single, split.concept_activations(images, tokens="class"))
    mean = pool_readouts(mlp_split, smallest_images, [(mlp_split.concept_readout(), torch.tensor(1))], pool="mean")
    torch.testing.assert_close(mean, mlp_split.concept_activations(smallest_images))


def test_the_model_is_left_as_it_was(vit, split) -> None:
    before = hook_count(vit.network)
    find_units(split, random_images(4, 32), random_images(4, 32, seed=1))
    assert hook_count(vit.network) == before
    broken = load_images([*random_images(3, 32), Image.new("RGB", (4, 4))])
    with pytest.raises(ValueError, match="image 3"):
        find_units(split, broken, random_images(4, 32), batch_size=2)
    assert hook_count(vit.network) == before


def test_the_same_seed_gives_the_same_table(split) -> None:
    sets = random_images(10, 32), random_images(10, 32, seed=1)
    one, same, other = (find_units(split, *sets, seed=seed) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(one, same)
    assert keyed(one)["auroc"].tolist() != keyed(other)["auroc"].tolist()


# --------------------------------------------------------------- bad inputs


@pytest.mark.parametrize(
    ("counts", "settings", "message"),
    [
        ((3, 8), {}, "3 positive .*fraction=0.5 .* 1 .* 2 .* 4"),
        ((8, 1), {}, "1 negative .* 4"),
        ((8, 8), {"fraction": 0.9}, "fraction=0.9 .* 7 .* 1 .*0.5"),
        ((8, 8), {"fraction": 1.0}, "fraction=1.0"),
        ((8, 8), {"level": 0.0}, "level=0.0"),
        ((8, 8), {"kind": "unit"}, "kind='unit'.*'units'"),
        ((8, 8), {"pool": "sum"}, "pool='sum'.*'max', 'mean'"),
        ((8, 8), {"tokens": "pixels"}, "tokens='pixels'"),
        ((8, 8), {"batch_size": 0}, "batch_size=0"),
    ],
)
def test_what_is_wrong_is_said(split, counts, settings, message) -> None:
    sets = (random_images(count, 32, seed=count) for count in counts)
    with pytest.raises(ValueError, match=message):
        find_units(split, *sets, **settings)


def test_four_images_of_each_set_are_enough_to_run(split) -> None:
    table = find_units(split, random_images(4, 32), random_images(4, 32, seed=1))
    assert table["p"].min() >= 1 / comb(4, 2) - 1e-12
    assert not table["significant"].any()
