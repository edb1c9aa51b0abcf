"""Controls as functions on channels and as plans, each against a literal second implementation."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from elude_nb import Disentanglement, ImageSet
from elude_nb.baselines.sae import Matryoshka, SparseAutoencoder, TopK
from elude_nb.core.edit import Edit
from elude_nb.core.plan import Plan, plan_edit
from elude_nb.core.recording import Recording
from elude_nb.core.routing import NO_CONCEPT
from elude_nb.errors import EditError
from elude_nb.steering.controls import (
    edited_concepts,
    edited_tokens,
    edited_units,
    latents_of,
    most_selective,
    projected_out,
    random_concepts,
    random_units,
    removal,
    silenced_latent,
    whole_channels,
)


def channels_of(split: Disentanglement, images: ImageSet) -> torch.Tensor:
    seen = split.recording(images, tokens="all")
    found: torch.Tensor = seen.channels.unflatten(0, (len(images), -1))
    return found


def present(split: Disentanglement) -> list[int]:
    """Return the concepts that have sub-units, those with the most first."""
    return [c for c, _ in Counter(split.routing.concepts.flatten().tolist()).most_common() if c != NO_CONCEPT]


def sub_units(split: Disentanglement) -> dict[int, list[int]]:
    """Return the numbers of each channel's sub-units, the shared one left out."""
    found: dict[int, list[int]] = {}
    for channel, row in enumerate(split.routing.routes.tolist()):
        found[channel] = sorted(set(row) - {0})
    return found


def discovery_mean(split: Disentanglement) -> list[float]:
    total = int(split.book.counts.sum())
    return [float(sum(row)) / total for row in split.book.channel_sums.T.tolist()]


# ------------------------------------------------------------------ functions on channels


@pytest.mark.parametrize("share", [1.0, 0.4, -0.5])
def test_whole_channels_go_to_their_mean_over_the_discovery(split, images, share) -> None:
    h, mean = channels_of(split, images[:2]), discovery_mean(split)
    made = whole_channels(split, [5, 2, 5], share, "same channels")
    assert (made.name, made.detail, made.plans) == ("same channels", "2 channels", ())
    assert made.change is not None
    found = h + made.change(h)
    for channel in range(24):
        if channel in {2, 5}:
            expected = (1 - share) * h[..., channel] + share * mean[channel]
            torch.testing.assert_close(found[..., channel], expected, rtol=1e-11, atol=1e-12)
        else:
            assert found[..., channel].equal(h[..., channel])
    assert whole_channels(split, [7], 1.0, "best channel").detail == "channel 7"


@pytest.mark.parametrize("count", [1, 2])
def test_a_direction_is_projected_out(split, images, count) -> None:
    h, concepts = channels_of(split, images[:2]), present(split)[:count]
    mean = torch.tensor(discovery_mean(split), dtype=torch.float64)
    directions = []
    for concept in concepts:
        own = split.book.channel_sums[concept] / split.book.counts[concept] - mean
        directions.append(own / own.norm())
    made = projected_out(split, concepts, 1.0)
    assert made.change is not None
    after = h + made.change(h)
    for direction in directions:
        assert ((after - mean) @ direction).abs().max() <= 1e-12
        assert ((h - mean) @ direction).abs().max() > 1e-2
    again = after + made.change(after)
    torch.testing.assert_close(again, after, rtol=1e-12, atol=1e-12)
    # What is orthogonal to all of them stays.
    basis = torch.stack(directions)
    other = torch.linalg.svd(basis).Vh[count:]
    torch.testing.assert_close(after @ other.T, h @ other.T, rtol=1e-11, atol=1e-11)
    if count == 1:
        (direction,) = directions
        literal = h - 0.3 * ((h - mean) @ direction)[..., None] * direction
        change = projected_out(split, concepts, 0.3).change
        assert change is not None
        torch.testing.assert_close(h + change(h), literal, rtol=1e-11, atol=1e-12)
        assert made.detail == f"mean of concept {concepts[0]}"
    else:
        assert made.detail == "2 directions"


@pytest.fixture(scope="module")
def sae(split, images) -> SparseAutoencoder:
    return TopK(40, 6, steps=60, seed=0).fit(split.recording(images, tokens="all"))


@pytest.mark.parametrize("kind", ["TopK", "Matryoshka"])
def test_a_silenced_latent_is_what_decoding_without_it_takes_away(split, images, sae, kind) -> None:
    seen = split.recording(images[:3], tokens="all")
    method = sae if kind == "TopK" else Matryoshka(40, 6, steps=60, seed=0).fit(seen)
    latents = method.encode(seen)
    latent = int(latents.sum(0).argmax())
    silent = latents.clone()
    silent[:, latent] = 0
    expected = (method.decode(silent) - method.decode(latents)).unflatten(0, (3, -1))
    h = channels_of(split, images[:3])
    for share in (1.0, 0.25):
        made = silenced_latent(method, latent, share)
        assert made.change is not None
        change = made.change(h)
        assert (change.shape, change.dtype) == (h.shape, h.dtype)
        torch.testing.assert_close(change, share * expected, rtol=1e-4, atol=1e-5)
    assert made.detail == f"latent {latent} of 40"
    assert float(expected.abs().max()) > 1e-2
    flat = latents_of(method, seen.channels)
    assert flat.equal(latents)


def test_functions_follow_the_dtype_of_the_channels(split, images, sae) -> None:
    h = channels_of(split, images[:2])
    made = [whole_channels(split, [1], 1.0, "x"), projected_out(split, present(split)[:1], 1.0)]
    for each in [*made, silenced_latent(sae, 0, 1.0)]:
        assert each.change is not None
        for dtype in (torch.float32, torch.bfloat16):
            low = each.change(h.to(dtype))
            assert low.dtype == dtype
            close = 0.05 * float(h.abs().max()) if dtype == torch.bfloat16 else 1e-4
            if each is not made[0] or dtype == torch.float32:
                assert (low.double() - each.change(h)).abs().mean() <= close


# ------------------------------------------------------------------ draws


def plans_to_units(split: Disentanglement, plan: Plan) -> dict[int, torch.Tensor]:
    """Return for each channel of a collapsed plan which sources it reads, (s,), bool."""
    kernel = split.site.kernel
    reads = (plan.matrix.unflatten(0, (-1, kernel)) != 0).any(1)  # (s, u)
    return {int(channel): reads[:, place] for place, channel in enumerate(plan.channels)}


@pytest.mark.parametrize("which", ["split", "conv_split", "mlp_split"])
def test_random_units_are_others_of_the_same_channels(request, which) -> None:
    split = request.getfixturevalue(which)
    numbers = sub_units(split)
    for concept in present(split)[:3]:
        edit = Edit.scale(concept=concept, by=0.5)
        edited = edited_units(split, edit)
        if all(len(numbers[channel]) == 1 for channel, _ in edited):
            continue
        made = random_units(split, edit, 20, seed=1)
        assert made.change is None
        assert len(made.plans) == 20
        assert made.detail == f"{len(edited)} of the same channels, 20 draws"
        seen: dict[int, set[int]] = {}
        for plan in made.plans:
            reads = plans_to_units(split, plan)
            assert set(reads) == {channel for channel, _ in edited}
            for channel, number in edited:
                routes = split.routing.routes[channel]
                drawn = set(routes[reads[channel]].tolist())
                assert len(drawn) == 1  # one for one
                seen.setdefault(channel, set()).update(drawn)
                if len(numbers[channel]) > 1:
                    assert number not in drawn
                else:
                    assert drawn == {number}
        for channel, number in edited:  # all others come up
            assert seen[channel] == set(numbers[channel]) - {number} or len(numbers[channel]) == 1


def test_random_units_spare_all_that_any_change_edits(split) -> None:
    numbers = sub_units(split)
    channel = next(c for c, several in numbers.items() if len(several) == 3)
    one, two, three = ((channel, k) for k in numbers[channel])
    for edit in (
        Edit.scale(unit=[one, two], by=0.0),
        Edit.scale(unit=one, by=0.0) + Edit.ablate(unit=two),
        Edit.scale(unit=two, by=0.0) + Edit.scale(unit=one, by=0.0) + Edit.scale(unit=two, by=0.5),
    ):
        firsts = set()
        for plan in random_units(split, edit, 30, seed=0).plans:
            reads = plans_to_units(split, plan)[channel]
            drawn = set(split.routing.routes[channel][reads].tolist())
            assert len(drawn) == 2
            assert three[1] in drawn
            firsts |= drawn
        assert firsts == {one[1], two[1], three[1]}  # who gets the only other is drawn, too
    with pytest.raises(EditError):
        random_units(split, Edit.ablate(unit=[one, two, three]), 3, seed=0)


def test_random_units_get_the_values_of_those_they_stand_for(split) -> None:
    numbers = sub_units(split)
    a, b = [c for c, several in numbers.items() if len(several) > 1][:2]
    moved = Edit.add(unit=[(b, numbers[b][0]), (a, numbers[a][1])], by=[0.75, -2.0])
    for plan in random_units(split, moved, 4, seed=0).plans:
        assert (plan.channels.tolist(), plan.offset.tolist()) == ([a, b], [-2.0, 0.75])
    scaled = Edit.scale(unit=[(b, numbers[b][0]), (a, numbers[a][1])], by=[0.75, -2.0])
    for plan in random_units(split, scaled, 4, seed=0).plans:
        for channel, factor in {a: -2.0, b: 0.75}.items():
            column = plan.matrix[:, plan.channels.tolist().index(channel)]
            read = column != 0
            torch.testing.assert_close(column[read], (factor - 1) * split.weight[channel][read])


def test_values_on_concepts_count_in_the_means_of_those_drawn(split) -> None:
    """What is added is counted in means on the concept: other sub-units have other means."""
    numbers, concept = sub_units(split), present(split)[0]
    edit = Edit.add(concept=concept, by=0.5)
    for plan in random_units(split, edit, 5, seed=2).plans:
        for place, channel in enumerate(plan.channels.tolist()):
            allowed = [0.5 * float(split.means_on_concepts[channel, k]) for k in numbers[channel]]
            assert min(abs(float(plan.offset[place]) - value) for value in allowed) <= 1e-12


def test_draws_have_a_seed(split) -> None:
    edit = Edit.scale(concept=present(split)[0], by=0.0)
    for draw in (random_units, random_concepts):
        one, same, other = (draw(split, edit, 3, seed=seed) for seed in (0, 0, 1))
        assert all(a.matrix.equal(b.matrix) for a, b in zip(one.plans, same.plans, strict=True))
        differ = [
            a.matrix.shape != b.matrix.shape or not a.matrix.equal(b.matrix)
            for a, b in zip(one.plans, other.plans, strict=True)
        ]
        assert any(differ)


def test_clamps_on_units_are_drawn_and_those_on_concepts_are_not(split) -> None:
    channel = next(c for c, several in sub_units(split).items() if len(several) > 1)
    made = random_units(split, Edit.clamp(unit=(channel, sub_units(split)[channel][0]), high=0.1), 2, seed=0)
    assert len(made.plans) == 2
    with pytest.raises(EditError, match="clamp"):
        random_units(split, Edit.clamp(concept=present(split)[0], high=0.1), 2, seed=0)


def test_random_concepts_are_others(split) -> None:
    concepts = present(split)
    edit = Edit.scale(concept=concepts[:2], by=0.5) + Edit.add(concept=concepts[0], by=1.0)
    made = random_concepts(split, edit, 12, seed=0)
    assert len(made.plans) == 12
    others = set(concepts) - set(concepts[:2])
    possible = {}
    for one in others:
        for two in others - {one}:
            again = Edit.scale(concept=[one, two], by=0.5) + Edit.add(concept=one, by=1.0)
            possible[one, two] = plan_edit(split, again)
    drawn = set()
    for plan in made.plans:
        fits = {
            pair
            for pair, expected in possible.items()
            if plan.matrix.shape == expected.matrix.shape
            and torch.allclose(plan.matrix, expected.matrix)
            and torch.allclose(plan.offset, expected.offset)
        }
        assert len(fits) == 1
        drawn |= {concept for pair in fits for concept in pair}
    assert made.detail == "2 others, 12 draws"
    assert drawn <= others
    assert len(drawn) > 3


def test_random_concepts_need_an_edit_of_a_few_concepts(split) -> None:
    concepts = present(split)
    unit = edited_units(split, Edit.ablate(concept=concepts[0]))[0]
    for edit in (
        Edit.ablate(unit=unit),
        Edit.ablate(concept=concepts[0]) + Edit.ablate(unit=unit),
        Edit.ablate(concept=concepts[:-1]),
    ):
        with pytest.raises(EditError):
            random_concepts(split, edit, 2, seed=0)


# ------------------------------------------------------------------ what an edit is about


@pytest.mark.parametrize(
    ("edit", "share"),
    [
        (Edit.scale(concept=1, by=0.0), 1.0),
        (Edit.scale(concept=1, by=0.25), 0.75),
        (Edit.scale(concept=1, by=3.0, strength=0.5), -1.0),
        (Edit.ablate(unit=[(1, 2), (3, 1)]), 1.0),
        (Edit.ablate(concept="dog", strength=0.3), 0.3),
        (Edit.scale(unit=[(1, 2), (3, 1)], by=[0.5, 0.5]), 0.5),
        (Edit.scale(concept=1, by=0.5) + Edit.ablate(concept=2, strength=0.5), 0.5),
        (Edit.scale(concept=1, by=1.0), 0.0),
        (Edit.scale(unit=[(1, 2), (3, 1)], by=[0.5, 0.6]), None),
        (Edit.scale(concept=1, by=0.5) + Edit.scale(concept=1, by=0.5), None),
        (Edit.scale(concept=1, by=0.5) + Edit.scale(concept=2, by=0.4), None),
        (Edit.scale(concept=1, by=0.5, about="zero"), None),
        (Edit.ablate(concept=1, to="zero"), None),
        (Edit.ablate(concept=1, to=0.5), None),
        (Edit.add(concept=1, by=0.0), None),
        (Edit.clamp(concept=1, high=0.0), None),
        (Edit.ablate(concept=1, strength=[1.0, 1.0]), None),
        (Edit(), None),
    ],
)
def test_removal_is_the_share_taken_away(edit, share) -> None:
    assert removal(edit) == (None if share is None else pytest.approx(share))


def test_units_concepts_and_tokens_of_an_edit(split) -> None:
    concepts = present(split)
    one = concepts[0]
    literal = [
        (channel, place + 1)
        for channel, owners in enumerate(split.routing.concepts.tolist())
        for place, owner in enumerate(owners)
        if owner == one
    ]
    named = split.with_names({one: "first"})
    edit = Edit.ablate(concept="first") + Edit.scale(unit=[literal[-1], (0, 0)], by=0.0)
    assert edited_units(named, edit) == sorted({*literal, (0, 0)})
    assert edited_concepts(named, edit) == [one]
    assert edited_concepts(split, Edit.ablate(unit=(0, 0))) == []
    assert edited_concepts(split, Edit.ablate(concept=concepts[:3])) == sorted(concepts[:3])
    assert edited_tokens(split, Edit()) is None
    assert edited_tokens(split, edit) is None
    mask = np.zeros((4, 4))
    mask[1, 2] = 0.5
    here = Edit.ablate(concept=one, mask=mask) + Edit.ablate(concept=one, tokens=[0, 18])
    expected = [0.0] * 19
    expected[0] = expected[18] = 1.0
    expected[3 + 4 + 2] = 0.5
    found = edited_tokens(split, here)
    assert found is not None
    assert found.tolist() == expected
    assert edited_tokens(split, here + Edit.ablate(concept=one)) is None


@pytest.mark.parametrize("both_signs", [False, True])
def test_the_most_selective_column_has_the_largest_d_prime(both_signs) -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        values: Any = rng.normal(size=(30, 8)) * rng.uniform(0.1, 5, 8)
        is_target = np.arange(30) % 3 == 0
        values[is_target] += rng.normal(size=8)
        values[:, 3] = 2.0  # constant: tells nothing
        scores = []
        for column in values.T:
            here, there = column[is_target], column[~is_target]
            spread = np.sqrt((here.var() + there.var()) / 2)
            score = (here.mean() - there.mean()) / spread if spread > 0 else 0.0
            scores.append(abs(score) if both_signs else score)
        found = most_selective(torch.from_numpy(values), torch.from_numpy(is_target), both_signs=both_signs)
        assert found == int(np.argmax(scores))


def test_latents_are_read_without_sources(sae) -> None:
    channels = torch.randn(5, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    nothing, zeros = channels.new_zeros(5, 0), torch.zeros(5, dtype=torch.int64)
    assert latents_of(sae, channels).equal(sae.encode(Recording(channels, nothing, channels, zeros, zeros)))
