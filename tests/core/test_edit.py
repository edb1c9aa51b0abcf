from __future__ import annotations

import json
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from elude_nb.core.edit import KINDS, REFERENCES, Change, Edit
from elude_nb.errors import EditError

SCALE = Edit.scale(concept=3, by=0.5)
relaxed = settings(deadline=None)  # other work on the machine is no failure

# ------------------------------------------------------------------ any edit there is

numbers = st.floats(-1e6, 1e6).map(lambda x: x + 0.0)  # -0.0 is 0.0
concept_names = st.one_of(st.integers(0, 300), st.text(min_size=1, max_size=6))
pairs = st.tuples(st.integers(0, 500), st.integers(0, 9))
masks = st.tuples(st.integers(1, 3), st.integers(1, 3)).flatmap(
    lambda shape: st.lists(
        st.lists(st.floats(0, 1), min_size=shape[1], max_size=shape[1]), min_size=shape[0], max_size=shape[0]
    )
)


@st.composite
def single_edits(draw: st.DrawFn) -> Edit:
    kind = draw(st.sampled_from(["scale", "ablate", "clamp", "add"]))
    words: dict[str, Any] = {}
    if draw(st.booleans()):
        words["concept"] = draw(st.one_of(concept_names, st.lists(concept_names, min_size=1, max_size=4, unique=True)))
        values: Any = numbers
    else:
        words["unit"] = draw(st.one_of(pairs, st.lists(pairs, min_size=1, max_size=4, unique=True)))
        size = len(words["unit"]) if isinstance(words["unit"], list) else 1
        values = st.one_of(numbers, st.lists(numbers, min_size=size, max_size=size))
    if draw(st.booleans()):
        words["mask"] = draw(masks)
        words["tokens"] = draw(st.sampled_from(["all", "patch"]))
    else:
        chosen = st.lists(st.integers(0, 300), min_size=1, max_size=4, unique=True)
        words["tokens"] = draw(st.one_of(st.sampled_from(["all", "class", "registers", "patch"]), chosen))
    words["strength"] = draw(st.one_of(numbers, st.lists(numbers, min_size=1, max_size=4)))
    words["exclusive"] = draw(st.one_of(st.none(), st.floats(0, 1, exclude_min=True)))
    if kind != "add":
        words["about"] = draw(st.sampled_from(REFERENCES if kind == "scale" else ["mean", "zero"]))
    if kind == "clamp":
        low, high = sorted(draw(st.tuples(numbers, numbers)))
        sides = draw(st.sampled_from(["low", "high", "both"]))
        words |= {side: bound for side, bound in (("low", low), ("high", high)) if sides in {side, "both"}}
    elif kind == "ablate":
        words["to"] = draw(st.one_of(st.sampled_from(REFERENCES), values))
    else:
        words["by"] = draw(values)
    made: Edit = getattr(Edit, kind)(**words)
    return made


edits = st.lists(single_edits(), max_size=3).map(lambda several: sum(several, Edit()))


@relaxed
@given(edits)
def test_json_gives_an_equal_edit_back(edit: Edit) -> None:
    text = edit.to_json()
    assert Edit.from_json(text) == edit
    assert Edit.from_dict(edit.to_dict()) == edit
    assert Edit.from_json(text).to_json() == text


@relaxed
@given(edits)
def test_json_is_strict(edit: Edit) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads(edit.to_json(), parse_constant=refuse)
    json.dumps(edit.to_dict(), allow_nan=False)


@relaxed
@given(edits)
def test_code_makes_an_equal_edit(edit: Edit) -> None:
    made = eval(edit.code(), {"Edit": Edit})  # noqa: S307 - our own code
    assert made == edit
    assert hash(made) == hash(edit)
    if all(change.mask is None for change in edit.changes):
        assert repr(edit) == edit.code()


@relaxed
@given(edits, edits)
def test_equal_edits_are_those_with_equal_code(one: Edit, other: Edit) -> None:
    assert (one == other) == (one.code() == other.code())


@relaxed
@given(edits, edits, edits)
def test_addition_is_associative_with_the_empty_edit_as_zero(a: Edit, b: Edit, c: Edit) -> None:
    assert (a + b) + c == a + (b + c)
    assert a + Edit() == a == Edit() + a
    assert (a + b).changes == a.changes + b.changes


@relaxed
@given(edits, st.floats(-100, 100))
def test_at_multiplies_every_strength(edit: Edit, factor: float) -> None:
    for before, after in zip(edit.changes, edit.at(factor).changes, strict=True):
        for number in range(6):
            assert after.strength_at(number) == factor * before.strength_at(number)
    assert edit.at(1) == edit


# ------------------------------------------------------------------ damage

_odd = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=5),
        st.sampled_from([10**400, -(10**400), math.inf, math.nan, "clamp", "scale", "mean", "all", "nothing", 1e308]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)


def _places(found: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths to everything inside a JSON value."""
    inner = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ()
    return [here, *(place for key, each in inner for place in _places(each, (*here, key)))]


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(edits, st.data())
def test_tampered_json_is_refused_or_still_an_edit(edit: Edit, data: st.DataObject) -> None:
    found = edit.to_dict()
    place = data.draw(st.sampled_from(_places(found)))
    act = data.draw(st.sampled_from(["replace", "delete", "add"]))
    if not place:
        found = data.draw(_odd)
    else:
        owner: Any = found
        for key in place[:-1]:
            owner = owner[key]
        if act == "replace":
            owner[place[-1]] = data.draw(_odd)
        elif act == "delete":
            del owner[place[-1]]
        elif isinstance(owner, dict):
            owner[data.draw(st.text(max_size=5))] = data.draw(_odd)
        else:
            owner.append(data.draw(_odd))
    try:
        read = Edit.from_json(json.dumps(found))
    except EditError:
        return
    assert Edit.from_json(read.to_json()) == read  # what was let in is whole
    assert eval(read.code(), {"Edit": Edit}).changes == read.changes  # noqa: S307


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(), edits.map(Edit.to_json).flatmap(lambda t: st.integers(0, len(t)).map(lambda n: t[:n]))))
def test_text_that_is_no_edit_is_refused(text: str) -> None:
    try:
        read = Edit.from_json(text)
    except EditError:
        return
    assert read.to_json() == text


@pytest.mark.parametrize(
    "text",
    ["", "[]", "3", "null", "{}", '{"format": 1}', "[" * 100_000, '{"format": 2, "made_for": null, "changes": []}'],
)
def test_texts_that_are_no_edits(text: str) -> None:
    with pytest.raises(EditError):
        Edit.from_json(text)


def test_a_newer_format_asks_for_an_update() -> None:
    with pytest.raises(EditError, match="update"):
        Edit.from_dict({**SCALE.to_dict(), "format": 2})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("values", [math.nan]),
        ("values", [10**400]),
        ("values", []),
        ("strength", math.inf),
        ("strength", []),
        ("mask", [[2.0]]),
        ("mask", [[10**400]]),
        ("mask", [[1.0], [1.0, 0.0]]),
        ("kind", "clamp"),
        ("kind", ["scale"]),
        ("about", "median"),
        ("tokens", "pacth"),
        ("tokens", [-1]),
        ("concepts", []),
        ("concepts", [True]),
        ("units", [[1, 2]]),
        ("more", 1),
    ],
)
def test_damage_is_told(key: str, value: Any) -> None:
    found = SCALE.to_dict()
    found["changes"][0][key] = value
    with pytest.raises(EditError):
        Edit.from_json(json.dumps(found))
    with pytest.raises(EditError):
        Edit.from_dict(found)


def test_what_is_added_has_no_reference() -> None:
    found = Edit.add(concept=3, by=1).to_dict()
    found["changes"][0]["about"] = "zero"
    with pytest.raises(EditError, match="leave about out"):
        Edit.from_dict(found)


# ------------------------------------------------------------------ clamp and infinite bounds


@pytest.mark.parametrize("bounds", [{"low": -2.0}, {"high": 0.5}, {"low": -1.0, "high": 1.0}])
def test_a_clamp_survives_strict_json(bounds: dict[str, Any]) -> None:
    edit = Edit.clamp(unit=(1, 2), **bounds)
    assert "Infinity" not in edit.to_json()
    assert Edit.from_json(edit.to_json()) == edit
    assert edit.changes[0].values == (bounds.get("low", -math.inf), bounds.get("high", math.inf))


def test_a_bound_left_out_is_null_in_json() -> None:
    assert Edit.clamp(unit=(1, 2), high=0.5).to_dict()["changes"][0]["values"] == [None, 0.5]


@pytest.mark.parametrize(
    "values", [[None, None], [math.inf, math.inf], [-math.inf, -math.inf], [1, 0], [1], [0, 1, 2], [None, math.inf]]
)
def test_bounds_that_make_no_sense(values: list[Any]) -> None:
    found = Edit.clamp(unit=(1, 2), high=0.5).to_dict()
    found["changes"][0]["values"] = values
    with pytest.raises(EditError):
        Edit.from_dict(found)


def test_only_scalings_are_about_the_others() -> None:
    assert Edit.ablate(concept=3, to="others") == Edit.scale(concept=3, by=0, about="others")
    with pytest.raises(EditError, match=r'about="others" goes with Edit.scale'):
        Edit.clamp(concept=3, about="others", high=0.5)
    with pytest.raises(EditError, match=r'about="others" goes with Edit.scale'):
        Edit.ablate(concept=3, about="others", to=0.5)


def test_a_clamp_needs_a_bound_and_the_right_way_round() -> None:
    with pytest.raises(EditError, match="low="):
        Edit.clamp(concept=1)
    with pytest.raises(EditError, match="low <= high"):
        Edit.clamp(concept=1, low=2, high=1)
    for values in [(-math.inf, math.inf), (math.nan, 1.0), (0.0,)]:
        with pytest.raises(EditError):
            Change("clamp", (1,), (), values)


# ------------------------------------------------------------------ making edits


def test_the_four_kinds() -> None:
    made = [
        SCALE,
        Edit.ablate(concept="cat"),
        Edit.clamp(unit=(1, 2), low=0),
        Edit.add(unit=[(1, 2), (3, 1)], by=[1, 2]),
    ]
    assert tuple(edit.changes[0].kind for edit in made) == KINDS
    assert repr(sum(made, Edit())) == (
        "Edit.scale(concept=3, by=0.5) + Edit.ablate(concept='cat', to='mean') + "
        "Edit.clamp(unit=(1, 2), low=0.0) + Edit.add(unit=[(1, 2), (3, 1)], by=[1.0, 2.0])"
    )
    assert repr(Edit()) == Edit().code() == "Edit()"


def test_a_mask_is_short_in_repr_and_whole_in_code() -> None:
    edit = Edit.scale(concept=3, by=0.0, mask=np.eye(16))
    assert repr(edit) == "Edit.scale(concept=3, by=0.0, mask=<16 x 16>)"
    assert edit.code().count("1.0") == 16


def test_numbers_may_come_from_numpy_and_torch() -> None:
    plain = Edit.scale(unit=[(1, 2), (3, 1)], by=[0.5, 2.0], strength=0.25, tokens=[0, 3])
    for library in (np.array, torch.tensor):
        make: Any = library
        words = {"unit": [[1, 2], [3, 1]], "by": [0.5, 2.0], "strength": 0.25, "tokens": [0, 3]}
        assert plain == Edit.scale(**{word: make(value) for word, value in words.items()})
        assert Edit.scale(concept=make(3), by=make(0.5)) == Edit.scale(concept=make([3]), by=make([0.5])) == SCALE
    numbers: list[Any] = [np.int64(3), np.float32(0.5), Fraction(1, 2)]
    assert Edit.scale(concept=numbers[0], by=numbers[1]) == Edit.scale(concept=3, by=numbers[2]) == SCALE


@pytest.mark.parametrize(
    "mask",
    [
        [[True, False], [False, True]],
        np.eye(2, dtype=bool),
        np.eye(2, dtype=np.float32),
        torch.eye(2),
        torch.eye(2, dtype=torch.bfloat16),
        torch.eye(2, requires_grad=True),
        torch.eye(2).bool(),
        torch.eye(2).long(),
    ],
)
def test_masks_of_all_kinds_are_the_same(mask: Any) -> None:
    assert Edit.scale(concept=3, by=0.0, mask=mask).changes[0].mask == ((1.0, 0.0), (0.0, 1.0))


def test_edits_are_values() -> None:
    again = Edit.scale(concept=[3], by=0.5, strength=1)
    assert again == SCALE
    assert hash(again) == hash(SCALE)
    assert len({SCALE, again, Edit.scale(concept=3, by=0.25), Edit.scale(concept="3", by=0.5)}) == 3
    assert SCALE != "Edit.scale(concept=3, by=0.5)"  # type: ignore[comparison-overlap]
    with pytest.raises(AttributeError):
        SCALE.changes = ()  # type: ignore[misc]


def test_many_units_are_quick() -> None:
    edit = Edit.scale(unit=[(channel, 1) for channel in range(20_000)], by=0.0)
    assert len(edit.changes[0].units) == 20_000


def test_adding_anything_else_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        SCALE + 3  # type: ignore[operator]


def test_made_for_is_kept_and_two_do_not_mix() -> None:
    one, other = Edit(SCALE.changes, "a" * 16), Edit(SCALE.changes, "b" * 16)
    assert (one + SCALE).made_for == (SCALE + one).made_for == "a" * 16
    assert (one + one).made_for == one.at(0.5).made_for == Edit.from_json(one.to_json()).made_for == "a" * 16
    assert one != SCALE
    with pytest.raises(EditError, match="different splits"):
        one + other
    with pytest.raises(EditError, match="made_for"):
        Edit.from_dict({**SCALE.to_dict(), "made_for": 3})


def test_schedules_stay_at_their_last_strength() -> None:
    change = Edit.scale(concept=3, by=0.0, strength=[0.0, 0.5, 1.0]).changes[0]
    assert change.scheduled
    assert [change.strength_at(number) for number in range(5)] == [0.0, 0.5, 1.0, 1.0, 1.0]
    assert not SCALE.changes[0].scheduled
    assert SCALE.changes[0].strength_at(7) == 1.0


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 10**400])
def test_numbers_that_are_not_finite_are_refused(number: float) -> None:
    makers: list[Any] = [
        lambda x: Edit.scale(concept=3, by=x),
        lambda x: Edit.scale(unit=[(1, 1), (2, 2)], by=[1, x]),
        lambda x: Edit.ablate(concept=3, to=x),
        lambda x: Edit.clamp(concept=3, low=x),
        lambda x: Edit.clamp(concept=3, high=x),
        lambda x: Edit.add(concept=3, by=x),
        lambda x: Edit.scale(concept=3, by=0, strength=x),
        lambda x: Edit.scale(concept=3, by=0, strength=[0, x]),
        lambda x: Edit.scale(concept=3, by=0, mask=[[x]]),
        SCALE.at,
    ]
    for make in makers:
        with pytest.raises(EditError):
            make(number)


def test_a_strength_that_grows_beyond_all_bounds_is_refused() -> None:
    with pytest.raises(EditError, match="finite"):
        Edit.scale(concept=3, by=0, strength=1e300).at(1e300)


@pytest.mark.parametrize(
    ("error", "make"),
    [
        (TypeError, lambda: Edit.scale(concept=3, by="0.5")),  # type: ignore[arg-type]
        (TypeError, lambda: Edit.scale(concept=3, by=True)),
        (TypeError, lambda: Edit.scale(concept=3, by=None)),  # type: ignore[arg-type]
        (TypeError, lambda: Edit.scale(concept=True, by=1)),
        (TypeError, lambda: Edit.scale(concept=1.5, by=1)),  # type: ignore[arg-type]
        (TypeError, lambda: Edit.scale(concept=None, by=1)),  # type: ignore[arg-type]
        (TypeError, lambda: Edit.scale(unit=3, by=1)),  # type: ignore[arg-type]
        (TypeError, lambda: Edit.scale(unit=(1, 2, 3), by=1)),  # type: ignore[arg-type]
        (TypeError, lambda: Edit.scale(unit=["ab"], by=1)),  # type: ignore[list-item]
        (TypeError, lambda: Edit.scale(unit="ab", by=1)),  # type: ignore[arg-type]
        (TypeError, lambda: Edit.scale(unit=(1, 2.5), by=1)),  # type: ignore[arg-type]
        (TypeError, lambda: Edit.scale(concept=3, by=1, tokens=[0.5])),  # type: ignore[list-item]
        (TypeError, lambda: Edit.scale(concept=3, by=1, tokens=None)),  # type: ignore[arg-type]
        (TypeError, lambda: Edit.scale(concept=3, by=1, strength="all")),  # type: ignore[arg-type]
        (TypeError, lambda: SCALE.at("1")),  # type: ignore[arg-type]
        (EditError, lambda: Edit.scale(by=1)),
        (EditError, lambda: Edit.scale(concept=3, unit=(1, 2), by=1)),
        (EditError, lambda: Edit.scale(concept=[3, 3], by=1)),
        (EditError, lambda: Edit.scale(unit=[(1, 2), (1, 2)], by=1)),
        (EditError, lambda: Edit.scale(unit=[(1, 2), (1, 3)], by=[1, 2, 3])),
        (EditError, lambda: Edit.scale(concept=[3, 4], by=[1, 2])),
        (EditError, lambda: Edit.scale(concept=3, by=[])),
        (EditError, lambda: Edit.scale(concept=3, by=1, strength=[])),
        (EditError, lambda: Edit.scale(concept=3, by=1, tokens=[])),
        (EditError, lambda: Edit.scale(concept=3, by=1, tokens=[1, 1])),
        (EditError, lambda: Edit.scale(concept=3, by=1, tokens=-1)),  # type: ignore[arg-type]
        (EditError, lambda: Edit.scale(concept=3, by=1, mask=[1.0, 0.0])),
        (EditError, lambda: Edit.scale(concept=3, by=1, mask=[[]])),
        (EditError, lambda: Edit.scale(concept=3, by=1, mask=[[1.0], [1.0, 0.0]])),
        (EditError, lambda: Edit.scale(concept=3, by=1, mask=[[1.5]])),
        (EditError, lambda: Edit.scale(concept=3, by=1, mask=[[-0.5]])),
        (EditError, lambda: Edit.scale(concept=3, by=1, mask="cat")),
        (EditError, lambda: Edit.scale(concept=3, by=1, mask=[[1.0]], tokens="class")),
        (EditError, lambda: Edit.scale(concept=3, by=1, mask=[[1.0]], tokens=[0])),
        (ValueError, lambda: Edit.scale(concept=3, by=1, tokens="pacth")),
        (ValueError, lambda: Edit.scale(concept=3, by=1, about="median")),
        (ValueError, lambda: Edit.ablate(concept=3, to="median")),
        (ValueError, lambda: Change("turn", (1,), (), (1.0,))),
    ],
)
def test_arguments_that_make_no_sense(error: type[Exception], make: Any) -> None:
    with pytest.raises(error):
        make()
