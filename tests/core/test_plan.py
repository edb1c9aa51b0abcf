from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elude_nb import Disentanglement, disentangle, record
from elude_nb.core.edit import Change, Edit
from elude_nb.core.plan import Accumulator, concept_number, exclusive_sources, plan_edit, token_weights, units_of
from elude_nb.core.routing import NO_CONCEPT
from elude_nb.core.strategies import ConceptRouting
from elude_nb.errors import EditError
from tests.tiny import owners_of, tiny_vit

CLOSE: dict[str, Any] = {"rtol": 1e-11, "atol": 1e-11}
SIDES = {"split": 32, "elude_split": 32, "conv_split": 16, "mlp_split": 8}
GRIDS = {"split": (4, 4), "elude_split": (4, 4), "conv_split": (8, 8)}
PREFIX = {"split": 3, "elude_split": 3, "conv_split": 0, "mlp_split": 0}
COUNTS = {"split": 19, "elude_split": 19, "conv_split": 64, "mlp_split": 1}
PHOTOS = {"split": "images", "elude_split": "images", "conv_split": "small_images", "mlp_split": "smallest_images"}


def channels_now(split: Disentanglement, images) -> torch.Tensor:
    """Return the channels as the model makes them now, (n, t, d)."""
    parts = list(record(split.model, images, split.site, tokens="all"))
    found: torch.Tensor = torch.cat([part.channels for part in parts]).unflatten(0, (len(images), -1))
    return found


def some_units(split: Disentanglement, *, rest: bool = True) -> list[tuple[int, int]]:
    """Return two sub-units of one channel, one of another, and the shared units of a split and of a whole channel."""
    rows = list(zip(*(row.tolist() for row in split.routing.rows()), strict=True))
    many = Counter(channel for channel, unit in rows if unit).most_common(2)
    one, other = many[0][0], many[1][0]
    subs = [pair for pair in rows if pair[0] == one and pair[1]][:2]
    subs.append(next(pair for pair in rows if pair[0] == other and pair[1]))
    whole = [channel for channel, is_split in enumerate(split.routing.is_split().tolist()) if not is_split][:1]
    return subs + ([(one, 0), *((channel, 0) for channel in whole)] if rest else [])


def busiest_concepts(split: Disentanglement) -> list[int]:
    """Return the two concepts with the most sub-units."""
    return [c for c, _ in Counter(split.routing.concepts.flatten().tolist()).most_common() if c != NO_CONCEPT][:2]


# ------------------------------------------------------------------ literal second implementation


def is_exclusive(split: Disentanglement, unit: tuple[int, int], source: int, exclusive: float) -> bool:
    """Say whether no other concept of the channel gains more than a share of what the unit's own gains by a source."""
    channel, number = unit
    mean = split.book.source_sums.sum(0) / split.book.counts.sum()
    gains = {}
    for concept in set(split.routing.concepts[channel].tolist()) - {NO_CONCEPT}:
        m = split.book.source_sums[concept] / split.book.counts[concept] - mean
        places = range(source * split.site.kernel, (source + 1) * split.site.kernel)
        gains[concept] = sum(float(split.weight[channel, p] * m[p]) for p in places)
    own = gains.pop(int(split.routing.concepts[channel, number - 1]))
    sign = 1 if split.means_on_concepts[channel, number] >= 0 else -1  # the unit may be low on its concept
    return sign * own > 0 and all(sign * gain <= exclusive * sign * own for gain in gains.values())


def contribution(
    split: Disentanglement, unit: tuple[int, int], sources: torch.Tensor, exclusive: float | None = None
) -> torch.Tensor:
    """Add up what is routed to a unit, source by source; what several units share counts for each of them in part."""
    channel, number = unit
    kernel = split.site.kernel
    total = torch.zeros(sources.shape[:-1], dtype=sources.dtype)
    for source in range(split.site.sources):
        owners = owners_of(split.routing, channel, source)
        if number in owners and (exclusive is None or is_exclusive(split, unit, source, exclusive)):
            for place in range(source * kernel, (source + 1) * kernel):
                total = total + split.weight[channel, place] / len(owners) * sources[..., place]
    return total


class Literal:
    """Work out what the channels must be under an edit, unit by unit and change by change."""

    def __init__(self, split: Disentanglement, kind: str, images) -> None:
        self.split, self.kind = split, kind
        seen = split.recording(images, tokens="all")
        self.sources = seen.sources.unflatten(0, (len(images), -1))
        self.channels = seen.channels.unflatten(0, (len(images), -1))
        self.mean = split.book.source_sums.sum(0) / split.book.counts.sum()
        self._cache: dict[Any, tuple[torch.Tensor, float]] = {}
        self._means: dict[Any, float] = {}

    def mean_on(self, concept: int, unit: tuple[int, int], exclusive: float | None) -> float:
        """Return a unit's mean on a concept, on the centred scale."""
        key = concept, unit, exclusive
        if key not in self._means:
            on_concept = self.split.book.source_sums[concept] / self.split.book.counts[concept]
            self._means[key] = float(contribution(self.split, unit, on_concept - self.mean, exclusive))
        return self._means[key]

    def unit(self, unit: tuple[int, int], exclusive: float | None) -> tuple[torch.Tensor, float]:
        """Return a unit's sums of contributions (n, t), and their mean over the discovery."""
        if (unit, exclusive) not in self._cache:
            self._cache[unit, exclusive] = (
                contribution(self.split, unit, self.sources, exclusive),
                float(contribution(self.split, unit, self.mean, exclusive)),
            )
        return self._cache[unit, exclusive]

    def named(self, change: Change) -> list[tuple[tuple[int, int], Any, float]]:
        """Return each unit, its values, and what the values count in."""
        found: list[tuple[tuple[int, int], Any, float]] = []
        for place, unit in enumerate(change.units):
            several = change.kind != "clamp" and len(change.values) > 1
            found.append((unit, change.values[place] if several else change.values, 1.0))
        for concept in map(int, change.concepts):
            for channel, owners in enumerate(self.split.routing.concepts.tolist()):
                for number, owner in enumerate(owners, start=1):
                    if owner == concept:
                        unit = (channel, number)
                        found.append((unit, change.values, self.mean_on(concept, unit, change.exclusive)))
        return [(u, v[0] if isinstance(v, tuple) and change.kind != "clamp" else v, m) for u, v, m in found]

    def weight(self, change: Change, token: int) -> float:
        prefix, count = PREFIX[self.kind], COUNTS[self.kind]
        if change.mask is not None:
            rows, columns = GRIDS[self.kind]
            if token < prefix:
                return 0.0
            row, column = divmod(token - prefix, columns)
            height, width = len(change.mask) // rows, len(change.mask[0]) // columns
            patch = [change.mask[row * height + i][column * width + j] for i, j in np.ndindex(height, width)]
            return float(np.mean(patch))
        if isinstance(change.tokens, tuple):
            return float(token in change.tokens)
        kinds = {"class": [0], "registers": [1, 2], "patch": range(prefix, count), "all": range(count)}
        return float(token in kinds[change.tokens])

    def __call__(self, edit: Edit, number: int = 0) -> Any:
        now: dict[tuple[int, int], torch.Tensor] = {}
        before: dict[tuple[int, int], torch.Tensor] = {}
        for change in edit.changes:
            strength = change.strength
            if isinstance(strength, tuple):
                strength = strength[number] if number < len(strength) else strength[-1]
            weights = [self.weight(change, token) for token in range(COUNTS[self.kind])]
            shares = strength * torch.tensor(weights, dtype=torch.float64)
            for unit, value, mean in self.named(change):
                raw, centre = self.unit(unit, change.exclusive)
                before[unit] = raw
                if change.about == "others":
                    self.above(change, unit, shares * (value - 1), now)
                    continue
                reference = centre if change.about == "mean" else 0.0
                x = now.get(unit, raw) - reference
                now[unit] = x + shares * (self.changed(change.kind, x, value, mean) - x) + reference
        channels = self.channels.clone()
        for (channel, number_), after in now.items():
            channels[..., channel] += after - before[channel, number_]
        return channels

    def above(self, change: Change, unit: tuple[int, int], factor: torch.Tensor, now: dict[Any, torch.Tensor]) -> None:
        """Scale what a unit has above the highest mean that a concept not named gives it."""
        raw, centre = self.unit(unit, change.exclusive)
        x = now.get(unit, raw) - centre
        owners = self.split.routing.concepts
        own = {int(owners[c, k - 1]) for c, k in units_of(self.split, change)}
        concepts = {*range(len(self.split.book)), int(owners[unit[0], unit[1] - 1])}
        means = {concept: self.mean_on(concept, unit, change.exclusive) for concept in concepts}
        # Whether a unit is low on its concept is told from all of its sources.
        sign = -1 if self.split.means_on_concepts[unit[0], unit[1]] < 0 else 1
        highest = max([0.0, *(sign * mean for concept, mean in means.items() if concept not in own)])
        now[unit] = x + centre + factor * sign * (sign * x - highest).clamp(min=0)

    @staticmethod
    def changed(kind: str, x: torch.Tensor, value: Any, mean: float) -> Any:
        if kind == "scale":
            return value * x
        if kind == "add":
            return x + value * mean
        if kind == "set":
            return torch.full_like(x, value * mean)
        low, high = sorted([value[0] * mean, value[1] * mean])
        return torch.tensor([[min(max(float(v), low), high) for v in row] for row in x], dtype=x.dtype)


@pytest.fixture(params=list(PHOTOS), scope="module")
def literal(request) -> Literal:
    images = request.getfixturevalue(PHOTOS[request.param])[:2]
    return Literal(request.getfixturevalue(request.param), request.param, images)


def edits_of(split: Disentanglement, *, about: str, target: str, **more: Any) -> list[Edit]:
    """Return every kind of change, on units or on concepts."""
    if target == "units":
        units = some_units(split)
        aim: dict[str, Any] = {"unit": units}
        factors: Any = [0.3 * place - 0.4 for place in range(len(units))]
    else:
        aim, factors = {"concept": busiest_concepts(split)}, 0.25
    made = [
        Edit.scale(by=factors, about=about, **aim, **more),
        Edit.scale(by=0.0, about=about, **aim, **more),
        Edit.ablate(to=about, **aim, **more),
        Edit.ablate(to=factors, about=about, **aim, **more),
        Edit.clamp(low=-0.05, high=0.1, about=about, **aim, **more),
        Edit.clamp(high=0.02, about=about, **aim, **more),
        Edit.clamp(low=0.02, about=about, **aim, **more),
    ]
    return made if about == "zero" else [*made, Edit.add(by=factors, **aim, **more)]


def edits_about_others(split: Disentanglement, **more: Any) -> list[Edit]:
    """Return edits of what units have above what other concepts bring, on units and on concepts."""
    concepts = busiest_concepts(split)
    units = list(
        zip(*(row.tolist()[:3] for row in split.routing.live_rows()), strict=True)
    )  # dead ones have no concept
    return [
        Edit.ablate(concept=concepts, to="others", **more),
        Edit.scale(concept=concepts[0], by=2.5, about="others", **more),
        Edit.scale(unit=units, by=[0.4 * place - 0.3 for place in range(len(units))], about="others", **more),
        Edit.ablate(concept=concepts[0], to="others", **more) + Edit.ablate(concept=concepts, to="others", **more),
    ]


def places_of(kind: str) -> list[dict[str, Any]]:
    if kind == "mlp_split":
        return [{}, {"tokens": "class"}, {"tokens": [0]}]
    grid, side = GRIDS[kind], SIDES[kind]
    generator = torch.Generator().manual_seed(1)
    places: list[dict[str, Any]] = [
        {},
        {"tokens": "patch"},
        {"tokens": [5, 0, 17]},
        {"mask": (np.arange(grid[0] * grid[1]) % 3 == 0).reshape(grid)},
        {"mask": torch.rand(grid, generator=generator)},
        {"mask": torch.rand(grid, generator=generator).tolist(), "tokens": "patch"},
        {"mask": torch.rand(side, side, generator=generator)},
        {"mask": np.arange(side * side).reshape(side, side) % 5 == 0},
        {"mask": np.ones((side, side), dtype=bool)},
        {"mask": np.zeros(grid)},
    ]
    return places + ([{"tokens": "class"}, {"tokens": "registers"}] if kind in {"split", "elude_split"} else [])


@pytest.mark.parametrize("target", ["units", "concepts"])
@pytest.mark.parametrize("about", ["mean", "zero"])
@pytest.mark.parametrize("strength", [1.0, 0.3])
def test_every_kind_of_change_is_what_it_says(literal: Literal, strength, about, target, request) -> None:
    split = literal.split
    images = request.getfixturevalue(PHOTOS[literal.kind])[:2]
    for place in places_of(literal.kind):
        for edit in edits_of(split, about=about, target=target, strength=strength, **place):
            with split.edit(edit):
                found = channels_now(split, images)
            torch.testing.assert_close(found, literal(edit), **CLOSE)


@pytest.mark.parametrize("more", [{}, {"strength": 0.3}, {"exclusive": 0.8}])
def test_only_what_exceeds_other_concepts_is_changed(literal: Literal, more, request) -> None:
    split = literal.split
    images = request.getfixturevalue(PHOTOS[literal.kind])[:2]
    for place in places_of(literal.kind)[::3] if not more else [{}]:
        for edit in edits_about_others(split, **more, **place):
            with split.edit(edit):
                found = channels_now(split, images)
            torch.testing.assert_close(found, literal(edit), **CLOSE)
    # Where no unit exceeds what other concepts bring, not one bit changes.
    whole = edits_about_others(split)[0]
    units = units_of(split, whole.changes[0])
    with split.edit(whole):
        after = channels_now(split, images)
    still = (after == literal.channels).all(2)
    quiet = torch.ones_like(still)
    for unit in units:
        alone = literal(Edit.ablate(unit=[unit], to="others"))
        quiet &= (alone == literal.channels).all(2)
    assert (still | ~quiet).all()
    assert not still.all()


@pytest.mark.parametrize("exclusive", [0.3, 0.8, 1.0])
@pytest.mark.parametrize("about", ["mean", "zero"])
def test_an_exclusive_edit_acts_on_exclusive_sources_alone(literal: Literal, about, exclusive, request) -> None:
    split = literal.split
    images = request.getfixturevalue(PHOTOS[literal.kind])[:2]
    channels, numbers = split.routing.live_rows()  # a dead sub-unit has no concept
    units = list(zip(channels.tolist(), numbers.tolist(), strict=True))[:3]
    edits = edits_of(split, about=about, target="concepts", strength=0.7, exclusive=exclusive)
    edits += [Edit.scale(unit=units, by=0.2, about=about, exclusive=exclusive)]
    for edit in edits:
        with split.edit(edit):
            found = channels_now(split, images)
        torch.testing.assert_close(found, literal(edit), **CLOSE)


def test_what_is_exclusive_is_what_a_split_with_rho_owns(split) -> None:
    """An edit of everything that a split at rho = 0.8 owns is an exclusive edit of the whole split."""
    weight = split.weight.unflatten(1, (-1, split.site.kernel))
    owned = ConceptRouting().route(weight, split.book, split.book, units=split.settings.units, shared=0.8)
    channels, numbers = split.routing.rows()
    for channel, number in zip(channels.tolist(), numbers.tolist(), strict=True):
        if number:
            assert exclusive_sources(split, channel, number, 0.8).equal(owned.routes[channel] == number)


def test_a_smaller_number_touches_fewer_sources(split) -> None:
    channel, number = some_units(split, rest=False)[0]
    found = [exclusive_sources(split, channel, number, rho) for rho in (1.0, 0.8, 0.3)]
    assert all(bool((few <= many).all()) for many, few in itertools.pairwise(found))
    assert int(found[0].sum()) > int(found[2].sum())
    assert bool((found[0] <= split.routing.members(channel)[number]).all())


def test_exclusive_edits_that_make_no_sense(split, vit, images) -> None:
    unit = some_units(split, rest=False)[0]
    twice = Edit.scale(unit=unit, by=0) + Edit.add(unit=unit, by=1, exclusive=0.8)
    with pytest.raises(EditError, match=r"0\.8"):
        plan_edit(split, twice)
    with pytest.raises(EditError, match=str(unit[0])):
        plan_edit(split, Edit.scale(unit=(unit[0], 0), by=0, exclusive=0.8))
    clusters = disentangle(
        vit, images, concepts=8, units=3, tokens_per_image=6, routing="channel-clusters", progress=False
    )
    place = int(clusters.routing.is_split().nonzero()[0])
    with pytest.raises(EditError, match=str(place)):
        plan_edit(clusters, Edit.scale(unit=(place, 1), by=0, exclusive=0.8))


def test_an_edit_of_no_source_is_refused(split, monkeypatch) -> None:
    unit = some_units(split, rest=False)[0]
    none = torch.zeros(split.site.sources, dtype=torch.bool)
    monkeypatch.setattr("elude_nb.core.plan.exclusive_sources", lambda *_: none)
    with pytest.raises(EditError, match=r"0\.3"):
        plan_edit(split, Edit.scale(unit=unit, by=0, exclusive=0.3))


def test_a_unit_without_a_concept_is_told_at_strength_0_too(split) -> None:
    channel, _ = some_units(split, rest=False)[0]
    with pytest.raises(EditError, match=str(channel)):
        plan_edit(split, Edit.scale(unit=(channel, 0), by=0, exclusive=0.8, strength=0.0))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"unit": (0, 0)}, r"about='others': unit \(0, 0\) has no concept"),
        ({"unit": (0, 0), "exclusive": 0.5, "about": "mean"}, r"exclusive=0.5: unit \(0, 0\) has no concept"),
    ],
)
def test_a_unit_without_a_concept_has_nothing_to_exceed(split, words, message) -> None:
    with pytest.raises(EditError, match=message):
        plan_edit(split, Edit.scale(**{"by": 0.0, "about": "others", **words}))


@pytest.mark.parametrize("about", ["mean", "zero"])
def test_a_schedule_goes_from_pass_to_pass(literal: Literal, about, request) -> None:
    split = literal.split
    images = request.getfixturevalue(PHOTOS[literal.kind])[:2]
    for edit in edits_of(split, about=about, target="units", strength=[0.0, 0.5, -1.0]):
        with split.edit(edit):
            for number in range(5):
                torch.testing.assert_close(channels_now(split, images), literal(edit, number), **CLOSE)


@pytest.mark.parametrize("second", range(8))
def test_changes_of_the_same_units_one_after_the_other(literal: Literal, second, request) -> None:
    split = literal.split
    images = request.getfixturevalue(PHOTOS[literal.kind])[:2]
    singles = edits_of(split, about="mean", target="units", strength=0.7)
    on_concepts = edits_of(split, about="zero", target="concepts", **places_of(literal.kind)[-1])
    for one in (*singles, *on_concepts):
        edit = one + singles[second] + on_concepts[0]
        with split.edit(edit):
            torch.testing.assert_close(channels_now(split, images), literal(edit), **CLOSE)


def test_a_stream_in_the_middle_and_a_window_of_one_block(vit, images) -> None:
    middle = disentangle(vit, images, "stream:2", concepts=6, units=3, tokens_per_image=6, progress=False)
    window = disentangle(vit, images, "stream:2", blocks=1, concepts=6, units=3, tokens_per_image=6, progress=False)
    for split in (middle, window):
        expected = Literal(split, "split", images[:2])
        for target, place in itertools.product(["units", "concepts"], [{}, {"tokens": "class"}]):
            for edit in edits_of(split, about="zero", target=target, **place):
                with split.edit(edit):
                    torch.testing.assert_close(channels_now(split, images[:2]), expected(edit), **CLOSE)


@pytest.mark.parametrize(
    "bounds", [{"high": 0.5}, {"low": -0.5}, {"low": 0.0}, {"high": 0.0}, {"low": -0.2, "high": 1.0}]
)
def test_bounds_on_concepts_turn_round_where_a_unit_is_low_on_its_concept(vit, images, bounds) -> None:
    """Of a unit low on its concept, ``high`` cuts what lies further below; one that is neither has no bounds."""
    split = disentangle(vit, images, routing="random", concepts=6, units=3, tokens_per_image=6, progress=False)
    edit = Edit.clamp(concept=list(range(6)), **bounds)
    units = units_of(split, edit.changes[0])
    channels, numbers = torch.tensor(units).T
    means = split.means_on_concepts[channels, numbers]
    assert (means < -0.01).any()
    assert (means > 0.01).any()
    step = plan_edit(split, edit).steps[0]
    low, high = step.values
    for number, mean in enumerate(means.tolist()):
        ends = sorted(bound * mean if bound else 0.0 for bound in edit.changes[0].values)
        assert (float(low[number]), float(high[number])) == pytest.approx(tuple(ends))
    with split.edit(edit):
        found = channels_now(split, images[:2])
    torch.testing.assert_close(found, Literal(split, "split", images[:2])(edit), **CLOSE)
    flat = split.means_on_concepts.clone()
    flat[units[0]] = 0.0
    vars(split)["means_on_concepts"] = flat
    step = plan_edit(split, edit).steps[0]
    assert step.values[:, 0].tolist() == [-torch.inf, torch.inf]


# ------------------------------------------------------------------ laws


def test_ablating_all_units_of_a_channel_leaves_what_has_no_source(literal: Literal, request) -> None:
    """To zero: the channel is what enters and the biases. To the mean: the channel as the mean sources make it."""
    split = literal.split
    images = request.getfixturevalue(PHOTOS[literal.kind])[:2]
    seen = split.recording(images, tokens="all")
    channel = some_units(split)[0][0]
    numbers = [unit for c, unit in zip(*(rows.tolist() for rows in split.routing.rows()), strict=True) if c == channel]
    every = [(channel, unit) for unit in numbers]
    bias = split.site.bias(split.model.network)[channel]
    nothing = (seen.entering[:, channel] + bias).unflatten(0, (len(images), -1))
    mean = split.book.source_sums.sum(0) / split.book.counts.sum()
    others = [c for c in range(split.site.channels) if c != channel]
    for edit, expected in [
        (Edit.ablate(unit=every, to="zero"), nothing),
        (Edit.scale(unit=every, by=0.0, about="zero"), nothing),
        (sum((Edit.ablate(unit=unit, to="zero") for unit in every), Edit()), nothing),
        (Edit.ablate(unit=every), nothing + split.weight[channel] @ mean),
    ]:
        with split.edit(edit):
            found = channels_now(split, images)
        torch.testing.assert_close(found[..., channel], expected, **CLOSE)
        assert found[..., others].equal(literal.channels[..., others])


def test_channels_and_tokens_that_are_not_named_are_the_same_bit_for_bit(literal: Literal, request) -> None:
    split = literal.split
    images = request.getfixturevalue(PHOTOS[literal.kind])[:2]
    for place, target in itertools.product(places_of(literal.kind), ["units", "concepts"]):
        for edit in edits_of(split, about="mean", target=target, **place):
            named = {channel for channel, _ in units_of(split, edit.changes[0])}
            others = [channel for channel in range(split.site.channels) if channel not in named]
            untouched = [t for t in range(COUNTS[literal.kind]) if literal.weight(edit.changes[0], t) == 0]
            with split.edit(edit):
                found = channels_now(split, images)
            assert found[..., others].equal(literal.channels[..., others])
            assert found[:, untouched].equal(literal.channels[:, untouched])


def moved(split: Disentanglement, edit: Edit, images) -> torch.Tensor:
    with split.edit(edit):
        found = channels_now(split, images)
    return found - channels_now(split, images)


numbers = st.floats(-2, 2)


@settings(max_examples=25, deadline=None)
@given(a=numbers, b=numbers, about=st.sampled_from(["mean", "zero"]))
def test_scales_about_one_reference_commute_and_multiply(split, images, a, b, about) -> None:
    units = some_units(split)
    one, other = (Edit.scale(unit=units, by=by, about=about) for by in (a, b))
    expected = moved(split, Edit.scale(unit=units, by=a * b, about=about), images[:2])
    torch.testing.assert_close(moved(split, one + other, images[:2]), expected, **CLOSE)
    torch.testing.assert_close(moved(split, other + one, images[:2]), expected, **CLOSE)


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_edits_of_disjoint_units_commute_and_add_up(split, images, data) -> None:
    units = some_units(split)
    a = data.draw(st.sampled_from(edits_of(split, about="mean", target="units")))
    b = data.draw(st.sampled_from(edits_of(split, about="zero", target="units")))
    cut = data.draw(st.integers(1, len(units) - 1))
    one, other = (_on(edit, part) for edit, part in ((a, slice(0, cut)), (b, slice(cut, None))))
    both = moved(split, one + other, images[:2])
    torch.testing.assert_close(both, moved(split, other + one, images[:2]), **CLOSE)
    torch.testing.assert_close(both, moved(split, one, images[:2]) + moved(split, other, images[:2]), **CLOSE)


def _on(edit: Edit, part: slice) -> Edit:
    """Return the same edit on some of its units only."""
    (change,) = edit.changes
    several = change.kind != "clamp" and len(change.values) > 1
    values = change.values[part] if several else change.values
    return Edit((dataclasses.replace(change, units=change.units[part], values=values),))


@pytest.mark.parametrize("bounds", [{"low": -0.05, "high": 0.1}, {"low": 0.0}, {"high": 0.0}])
@pytest.mark.parametrize("target", ["unit", "concept"])
def test_a_clamp_done_twice_is_a_clamp(split, images, bounds, target) -> None:
    aim: Any = {"unit": some_units(split)} if target == "unit" else {"concept": busiest_concepts(split)}
    once = Edit.clamp(**bounds, **aim)
    torch.testing.assert_close(moved(split, once + once, images[:2]), moved(split, once, images[:2]), **CLOSE)


def test_at_is_nothing_at_0_and_linear(split, images) -> None:
    plain = channels_now(split, images[:2])
    for edit in edits_of(split, about="mean", target="concepts", tokens="patch"):
        with split.edit(edit.at(0)):
            assert channels_now(split, images[:2]).equal(plain)
        whole = moved(split, edit, images[:2])
        for strength in (0.25, 1.0, -2.0, 3.5):
            torch.testing.assert_close(moved(split, edit.at(strength), images[:2]), strength * whole, **CLOSE)


@settings(max_examples=15, deadline=None)
@given(a=numbers, strength=st.floats(-1, 1))
def test_what_asks_for_nothing_plans_nothing(split, a, strength) -> None:
    units = some_units(split)
    for edit in (
        Edit(),
        Edit.scale(unit=units, by=1.0, strength=strength),
        Edit.scale(concept=busiest_concepts(split), by=1.0, tokens="class", about="zero"),
        Edit.add(unit=units, by=0.0, strength=strength),
        Edit.ablate(unit=units, to=a, strength=0.0),
        Edit.clamp(unit=units, low=a).at(0),
    ):
        assert len(plan_edit(split, edit)) == 0


# ------------------------------------------------------------------ cost


def test_an_affine_edit_reads_one_number_a_channel(literal: Literal) -> None:
    split = literal.split
    for target in ("units", "concepts"):
        for edit in edits_of(split, about="zero", target=target) + edits_of(split, about="mean", target=target):
            if edit.changes[0].kind == "clamp":
                continue
            plan = plan_edit(split, edit + edit.at(0.5))
            channels = {channel for channel, _ in units_of(split, edit.changes[0])}
            assert sorted(channels) == plan.channels.tolist()
            assert plan.matrix.shape == (split.site.sources * split.site.kernel, len(plan))
            assert not plan.steps


def test_other_edits_read_one_number_a_unit(split) -> None:
    units = some_units(split)
    for edit in (
        Edit.clamp(unit=units, low=0.0),
        Edit.scale(unit=units, by=0.0, strength=[0.0, 1.0]),
        Edit.scale(unit=units, by=0.0, mask=[[0.5] * 4] * 4),
    ):
        assert len(plan_edit(split, edit + edit)) == len(units)


def test_only_edited_tokens_are_read(split) -> None:
    units = some_units(split)
    plan = plan_edit(
        split, Edit.scale(unit=units, by=0.0, tokens=[4, 2]) + Edit.clamp(unit=units, low=0, tokens="class")
    )
    assert plan.positions is not None
    assert plan.positions.tolist() == [0, 2, 4]
    assert plan_edit(split, Edit.scale(unit=units, by=0.0)).positions is None
    both = Edit.scale(unit=units, by=0.0, tokens="class") + Edit.scale(unit=units, by=0.0)
    assert plan_edit(split, both).positions is None


def test_a_plan_goes_to_a_device(split) -> None:
    plan = plan_edit(split, Edit.clamp(unit=some_units(split), low=0.0, tokens="class"))
    there = plan.to(torch.device("meta"))
    tensors = [there.matrix, there.offset, there.channels, there.positions]
    tensors += [getattr(step, name) for step in there.steps for name in ("rows", "reference", "values")]
    assert all(tensor is not None and tensor.device.type == "meta" for tensor in tensors)
    assert there.tokens == plan.tokens


# ------------------------------------------------------------------ looking up


def test_names_and_numbers_are_one_concept(split) -> None:
    one, other = busiest_concepts(split)
    named = split.with_names({one: "cat", other: "dog"})
    assert concept_number(named, "cat") == concept_number(named, one) == one
    several = Edit.scale(concept=["cat", one, "dog"], by=0.0).changes[0]
    plain = Edit.scale(concept=[one, other], by=0.0).changes[0]
    assert units_of(named, several) == units_of(split, plain)


def without_units_of(split: Disentanglement) -> int | None:
    has = set(split.routing.concepts.flatten().tolist())
    return next((concept for concept in range(len(split.book)) if concept not in has), None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"concept": 8}, "0 to 7"),
        ({"concept": -1}, "0 to 7"),
        ({"concept": 10**30}, "0 to 7"),
        ({"concept": "cat"}, "with_names"),
        ({"unit": (24, 0)}, "0 to 23"),
        ({"unit": (-1, 0)}, "0 to 23"),
        ({"unit": (0, 9)}, "has units"),
        ({"unit": (0, -1)}, "has units"),
        ({"unit": (10**30, 1)}, "0 to 23"),
        ({"unit": (0, 0), "tokens": [19]}, "0 to 18"),
        ({"unit": (0, 0), "tokens": [10**30]}, "0 to 18"),
        ({"unit": (0, 0), "mask": [[1.0] * 4] * 5}, r"\(4, 4\) \(patches\) or \(32, 32\) \(pixels\)"),
        ({"unit": (0, 0), "mask": [[1.0] * 16] * 16}, r"\(4, 4\)"),
    ],
)
@pytest.mark.parametrize("strength", [1.0, 0.0, [0.0, 1.0]])
def test_what_the_split_does_not_have_is_refused(split, words, message, strength) -> None:
    """Also at strength 0: a slider that starts there must not fail when it is moved."""
    for edit in (
        Edit.scale(by=0.0, strength=strength, **words),
        Edit.scale(by=1.0, strength=strength, **words),
        Edit.add(by=0.0, strength=strength, **words),
    ):
        with pytest.raises(EditError, match=message):
            plan_edit(split, edit)


def test_sites_without_such_tokens(mlp_split, conv_split) -> None:
    cases: list[tuple[Disentanglement, dict[str, Any]]] = [
        (mlp_split, {"tokens": "patch"}),
        (mlp_split, {"tokens": [1]}),
        (mlp_split, {"mask": [[1.0]]}),
        (conv_split, {"tokens": "class"}),
        (conv_split, {"tokens": "registers"}),
    ]
    for split, words in cases:
        with pytest.raises(EditError):
            plan_edit(split, Edit.scale(unit=(0, 0), by=0.0, **words))


def test_a_concept_without_units_is_told(split) -> None:
    gone = split.routing.concepts.masked_fill(split.routing.concepts == 0, NO_CONCEPT)
    without = dataclasses.replace(split, routing=dataclasses.replace(split.routing, concepts=gone))
    with pytest.raises(EditError, match="No channel has a sub-unit of concept 0"):
        plan_edit(without, Edit.scale(concept=0, by=0.0))


def test_near_misses_of_names_are_shown(split) -> None:
    named = split.with_names({0: "tabby cat"})
    with pytest.raises(EditError, match="Did you mean 'tabby cat'"):
        plan_edit(named, Edit.scale(concept="taby cat", by=0.0))


def test_token_weights_of_a_float_mask_are_exact(split) -> None:
    weights = token_weights(split, Edit.scale(unit=(0, 0), by=0.0, mask=[[0.1] * 4] * 4).changes[0])
    assert weights is not None
    assert weights.tolist() == [0.0] * 3 + [0.1] * 16


# ------------------------------------------------------------------ gathering


def test_sources_that_did_not_all_come_are_told(split) -> None:
    plan = plan_edit(split, Edit.scale(unit=some_units(split), by=0.0))
    gathered = Accumulator(plan, split.site)
    with pytest.raises(RuntimeError, match="0 of 6 source layers"):
        gathered.take()
    gathered.see_tokens(0, torch.zeros(1, 19, 24, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="1 of 6 source layers"):
        gathered.take()


def test_another_number_of_tokens_is_told(split) -> None:
    plan = plan_edit(split, Edit.scale(unit=some_units(split), by=0.0, tokens="class"))
    with pytest.raises(EditError, match="19 tokens, but these images have 7"):
        Accumulator(plan, split.site).see_tokens(0, torch.zeros(1, 7, 24, dtype=torch.float64))


def test_schedules_count_from_where_they_begin(split) -> None:
    edit = Edit.scale(unit=some_units(split), by=0.0, strength=[0.0, 1.0])
    plan = plan_edit(split, edit, [3])
    ones = torch.ones(1, 1, len(plan), dtype=torch.float64)
    assert not plan.change(ones, 3).any()
    assert plan.change(ones, 4).equal(-ones)
    assert plan.change(ones, 9).equal(-ones)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision(images, dtype) -> None:
    split = disentangle(tiny_vit(dtype), images, concepts=6, units=3, tokens_per_image=6, progress=False)
    expected = Literal(split, "split", images[:2])
    for target in ("units", "concepts"):
        for edit in edits_of(split, about="zero", target=target, tokens="patch", strength=0.5):
            with split.edit(edit):
                found = channels_now(split, images[:2])
            wanted = expected(edit)
            largest = wanted.abs().max()
            assert (found - wanted).abs().max() <= 4 * torch.finfo(dtype).eps * largest
