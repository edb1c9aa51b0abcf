"""Edits: what is to be done to which sub-units, as plain values that can be added, compared, printed and written down.

An edit knows no model. `Disentanglement.edit` looks it up in a split and applies it; here it is only decided.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from numbers import Integral, Real
from typing import Any

import numpy as np

from elude_nb._util.arguments import knows_arguments
from elude_nb._util.checks import check_choice, check_whole, shortly
from elude_nb._util.words import counted
from elude_nb.errors import EditError
from elude_nb.models.sites import TOKENS

KINDS = ("scale", "set", "clamp", "add")
REFERENCES = ("mean", "zero", "others")
_FORMAT = 1

Mask = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Change:
    """One thing done to some sub-units at some tokens; made by `Edit.scale` and its siblings.

    With ``x`` a sub-unit's activation, counted from the reference ``about``, it becomes ``x + w (f(x) - x)``: ``f`` is
    the change, ``w`` its strength times the token's weight.

    Attributes
    ----------
    kind
        ``"scale"`` (``f(x) = v x``), ``"set"`` (``v``), ``"clamp"`` (``x`` cut to ``[v[0], v[1]]``) or ``"add"``
        (``x + v``).
    concepts, units
        The sub-units of these concepts in all channels, by number or name; or these units, (channel, number). One of
        the two is empty. On concepts, ``v`` counts in means: 1 is the sub-unit's mean on its concept.
    values
        ``v``: one number, or one for each of ``units``; for ``"clamp"`` the two bounds.
    about
        ``"mean"`` counts activations from their mean over the discovery, ``"zero"`` from no contribution at all.
        ``"others"`` counts from the highest mean that any concept which this change does not name gives the sub-unit,
        at least from its mean, and changes only what exceeds that. For a sub-unit that is low on its concept it is the
        lowest mean, and what lies below it.
    tokens
        ``"all"``, ``"class"``, ``"registers"``, ``"patch"``, or the numbers of tokens.
    mask
        Weight of each patch in [0, 1], row by row, over the patches or over the pixels; other tokens stay as they are.
    strength
        A number, or a schedule: one for each forward pass in turn, the last one from then on.
    exclusive
        ``None`` edits all of a sub-unit. A number in (0, 1] edits only what its exclusive sources contribute: those
        whose mean contribution on its concept is positive, and on no other concept of the channel exceeds this share of
        it. ``x`` is then the sum over these sources alone.
    strongest
        ``None`` edits at every one of the tokens. A number edits each sub-unit only at so many of them in each image:
        where it is most active (lowest for a sub-unit that is low on its concept).
    """

    kind: str
    concepts: tuple[int | str, ...]
    units: tuple[tuple[int, int], ...]
    values: tuple[float, ...]
    about: str = "mean"
    tokens: str | tuple[int, ...] = "all"
    mask: Mask | None = None
    strength: float | tuple[float, ...] = 1.0
    exclusive: float | None = None
    strongest: int | None = None

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, KINDS)
        check_choice("about", self.about, REFERENCES)
        if bool(self.concepts) == bool(self.units):
            raise EditError("Say what to edit: concept=..., or unit=(channel, number); one of them, not both.")
        if self.kind == "clamp":
            if len(self.values) != 2:
                raise EditError(f"clamp needs two bounds, low and high, not {len(self.values)}.")
            low, high = self.values
            if not low <= high or (math.isinf(low) and math.isinf(high)):
                raise EditError(f"clamp needs low <= high, one of them finite, not low={low}, high={high}.")
        elif len(self.values) not in {1, len(self.units)}:
            raise EditError(
                f"{counted(len(self.values), 'value')} for {counted(len(self.units), 'unit')}; give one, or one each."
            )
        if self.about == "others" and self.kind != "scale":
            raise EditError('about="others" goes with Edit.scale and Edit.ablate(to="others"), not with other changes.')
        if self.kind == "add" and self.about != "mean":
            raise EditError("What is added is counted from nothing; leave about out.")
        if self.exclusive is not None and not 0 < self.exclusive <= 1:
            raise EditError(f"exclusive={self.exclusive} must be above 0 and at most 1, or None to edit all sources.")
        if self.strongest is not None and self.strongest < 1:
            raise EditError(f"strongest={self.strongest} must be a number of tokens, or None for all of them.")
        if self.mask is not None and self.tokens not in {"all", "patch"}:
            raise EditError(f"A mask lies over the patches; it cannot go with tokens={self.tokens!r}.")

    @property
    def scheduled(self) -> bool:
        """Whether the strength changes from one forward pass to the next."""
        return isinstance(self.strength, tuple)

    def strength_at(self, number: int) -> float:
        """Return the strength in forward pass ``number``, counted from 0."""
        if isinstance(self.strength, tuple):
            return self.strength[min(number, len(self.strength) - 1)]
        return self.strength

    def code(self, *, short: bool = False) -> str:
        """Return the call that makes this change; ``short`` gives only the size of a mask."""
        words = {"concept": _one(self.concepts)} if self.concepts else {"unit": _one(self.units)}
        name, about = self.kind, self.about
        if self.kind == "set":
            name, word = "ablate", "to"
            value: Any = about if self.values == (0.0,) else _one(self.values)
            about = "mean" if self.values == (0.0,) else about
            words[word] = value
        elif self.kind == "clamp":
            bounds = dict(zip(("low", "high"), self.values, strict=True))
            words |= {word: bound for word, bound in bounds.items() if math.isfinite(bound)}
        else:
            words["by"] = _one(self.values)
        if about != "mean" and self.kind != "add":
            words["about"] = about
        if self.tokens != "all":
            words["tokens"] = self.tokens
        if self.strength != 1.0:
            words["strength"] = self.strength
        if self.exclusive is not None:
            words["exclusive"] = self.exclusive
        if self.strongest is not None:
            words["strongest"] = self.strongest
        written = [f"{word}={value!r}" for word, value in words.items()]
        if self.mask is not None:
            size = f"<{len(self.mask)} x {len(self.mask[0])}>"
            written.append(f"mask={size if short else [list(row) for row in self.mask]}")
        return f"Edit.{name}({', '.join(written)})"


@dataclass(frozen=True)
class Edit:
    """What is to be done to sub-units: nothing, one change, or several one after the other.

    Edits are values: ``a + b`` does ``a`` and then ``b``, equal edits compare equal, ``repr`` is the code that makes
    one, and `to_json` writes it down. ``with split.edit(edit):`` applies one.

    Attributes
    ----------
    changes
        The changes in order. On different sub-units, or if all are scalings about one reference, order is nothing.
    made_for
        ``Disentanglement.identity`` of the split it is meant for, or ``None``: then any split that has the sub-units
        will do.

    Examples
    --------
    >>> fade = Edit.scale(concept=12, by=0.0)
    >>> fade + Edit.add(unit=(17, 3), by=1.5, tokens="class")
    Edit.scale(concept=12, by=0.0) + Edit.add(unit=(17, 3), by=1.5, tokens='class')
    >>> Edit.from_json(fade.to_json()) == fade
    True
    """

    changes: tuple[Change, ...] = ()
    made_for: str | None = field(default=None)

    @staticmethod
    @knows_arguments
    def scale(
        *,
        by: float | Sequence[float],
        concept: int | str | Sequence[int | str] = (),
        unit: tuple[int, int] | Sequence[tuple[int, int]] = (),
        about: str = "mean",
        tokens: str | Sequence[int] = "all",
        mask: Any = None,
        strength: float | Sequence[float] = 1.0,
        exclusive: float | None = None,
        strongest: int | None = None,
    ) -> Edit:
        """Multiply activations: ``by=0`` fades them out, 1 leaves them, 2 doubles them.

        Parameters
        ----------
        by
            The factor; with ``unit``, also one for each unit.
        concept
            Number or name of a concept, or several: its sub-units in all channels.
        unit
            One (channel, number), or several. Number 0 is the channel's rest: of it, the contributions are
            edited, not the bias nor what enters from outside.
        about
            What stays where it is: ``"mean"``, the unit's mean over the discovery; ``"zero"``, no contribution; or
            ``"others"``, all that a concept not edited brings on average: the edit changes only what exceeds it, and
            leaves images without the concept nearly as they are. It needs sub-units that have concepts.
        tokens
            ``"all"``, ``"class"``, ``"registers"``, ``"patch"`` or token numbers.
        mask
            (rows, columns) over the patches, or (h, w) over the pixels that the model sees, in [0, 1] or bool: how
            much of the change each patch gets. An array, a tensor or nested lists.
        strength
            The share of the change that is made; several are a schedule over the forward passes.
        exclusive
            Edit only what a sub-unit's exclusive sources contribute, as 0.8: those whose mean contribution on its
            concept is positive, and on no other concept of the channel more than 0.8 times that. A smaller number
            touches fewer sources: the edit is weaker, and other classes change less. ``None`` edits all of the unit.
        strongest
            Edit each sub-unit only at so many of the tokens in each image, where it is most active, as ELUDe's paper
            steers (nu patches); ``tokens="patch"`` leaves the class token out. ``None`` edits at all of them.

        Raises
        ------
        TypeError, EditError
            If a number is not finite, or an argument makes no sense.
        """
        return _edit("scale", _numbers("by", by), concept, unit, about, tokens, mask, strength, exclusive, strongest)

    @staticmethod
    @knows_arguments
    def ablate(
        *,
        to: str | float | Sequence[float] = "mean",
        concept: int | str | Sequence[int | str] = (),
        unit: tuple[int, int] | Sequence[tuple[int, int]] = (),
        tokens: str | Sequence[int] = "all",
        mask: Any = None,
        strength: float | Sequence[float] = 1.0,
        about: str = "mean",
        exclusive: float | None = None,
        strongest: int | None = None,
    ) -> Edit:
        """Set activations to a fixed value.

        Parameters
        ----------
        to
            ``"mean"``, the unit's mean over the discovery; ``"zero"``, no contribution at all; ``"others"``, down to
            what other concepts bring, as ``scale(by=0, about="others")``; or a number, counted from ``about`` on the
            scale of `Disentanglement.activations` (with ``concept``, in means on the concept).
            With ``unit``, also one number for each unit.
        concept, unit, tokens, mask, strength, exclusive, strongest
            As in `scale`.
        """
        if isinstance(to, str):
            about, to = check_choice("to", to, REFERENCES), 0.0
            if about == "others":
                return _edit("scale", (0.0,), concept, unit, about, tokens, mask, strength, exclusive, strongest)
        return _edit("set", _numbers("to", to), concept, unit, about, tokens, mask, strength, exclusive, strongest)

    @staticmethod
    @knows_arguments
    def clamp(
        *,
        low: float | None = None,
        high: float | None = None,
        concept: int | str | Sequence[int | str] = (),
        unit: tuple[int, int] | Sequence[tuple[int, int]] = (),
        about: str = "mean",
        tokens: str | Sequence[int] = "all",
        mask: Any = None,
        strength: float | Sequence[float] = 1.0,
        exclusive: float | None = None,
        strongest: int | None = None,
    ) -> Edit:
        """Cut activations to [``low``, ``high``]; a bound left out is none.

        The rest is as in `scale`. With ``concept``, bounds count in means on the concept: ``high=0.5`` lets no
        sub-unit speak more than half as loudly for its concept as it does there on average.
        """
        if low is None and high is None:
            raise EditError("clamp needs low=..., high=... or both.")
        bounds = (
            -math.inf if low is None else _number("low", low),
            math.inf if high is None else _number("high", high),
        )
        return _edit("clamp", bounds, concept, unit, about, tokens, mask, strength, exclusive, strongest)

    @staticmethod
    @knows_arguments
    def add(
        *,
        by: float | Sequence[float],
        concept: int | str | Sequence[int | str] = (),
        unit: tuple[int, int] | Sequence[tuple[int, int]] = (),
        tokens: str | Sequence[int] = "all",
        mask: Any = None,
        strength: float | Sequence[float] = 1.0,
        exclusive: float | None = None,
        strongest: int | None = None,
    ) -> Edit:
        """Add to activations: with ``unit`` in the channel's units, with ``concept`` in means on the concept.

        The rest is as in `scale`.
        """
        return _edit("add", _numbers("by", by), concept, unit, "mean", tokens, mask, strength, exclusive, strongest)

    def __add__(self, other: Edit) -> Edit:
        """Return the edit that does this one and then ``other``."""
        if not isinstance(other, Edit):
            return NotImplemented
        if self.made_for is not None and other.made_for is not None and self.made_for != other.made_for:
            raise EditError(f"These edits are meant for different splits, {self.made_for} and {other.made_for}.")
        return Edit(self.changes + other.changes, self.made_for or other.made_for)

    def at(self, strength: float) -> Edit:
        """Return the same edit with all its strengths multiplied: at 0 it does nothing, at 1 it is as it was."""
        factor = _number("strength", strength)
        changed = (
            replace(
                change,
                strength=tuple(_number("strength", factor * s) for s in change.strength)
                if isinstance(change.strength, tuple)
                else _number("strength", factor * change.strength),
            )
            for change in self.changes
        )
        return replace(self, changes=tuple(changed))

    def to_dict(self) -> dict[str, Any]:
        """Return the edit as plain lists, texts and numbers."""
        plain = [{key: value for key, value in asdict(change).items() if value is not None} for change in self.changes]
        for change in plain:  # JSON has no infinity: a bound that is none is written as null
            change["values"] = [value if math.isfinite(value) else None for value in change["values"]]
        return {"format": _FORMAT, "made_for": self.made_for, "changes": json.loads(json.dumps(plain))}

    def to_json(self) -> str:
        """Return the edit as JSON, for `from_json`."""
        return json.dumps(self.to_dict(), allow_nan=False)

    @staticmethod
    def from_dict(found: Mapping[str, Any]) -> Edit:
        """Make the edit that `to_dict` wrote; everything in it is checked again.

        Raises
        ------
        EditError
            If it is not one of ours, is damaged, or comes from a newer version.
        """
        if not isinstance(found, Mapping):
            raise EditError(f"An edit is a mapping, as Edit.to_dict makes it, not {shortly(found)}.")
        try:
            if found["format"] != _FORMAT:
                raise EditError(f"An edit of format {found['format']!r}; this elude_nb reads {_FORMAT}: update it.")
            made_for = found["made_for"]
            changes = tuple(_change_from(dict(change)) for change in found["changes"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, EditError):
                raise
            raise EditError(f"This is no edit that elude_nb wrote ({type(error).__name__}: {error}).") from error
        if made_for is not None and not isinstance(made_for, str):
            raise EditError(f"made_for must be text, not {made_for!r}.")
        return Edit(changes, made_for)

    @staticmethod
    def from_json(text: str) -> Edit:
        """Make the edit that `to_json` wrote; raises as `from_dict` does."""
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise EditError(f"This is no JSON that elude_nb reads ({error}).") from error
        if not isinstance(found, dict):
            raise EditError(f"An edit is a JSON object, not {type(found).__name__}.")
        return Edit.from_dict(found)

    def code(self) -> str:
        """Return the expression that makes this edit, masks written out."""
        return " + ".join(change.code() for change in self.changes) or "Edit()"

    def __repr__(self) -> str:
        return " + ".join(change.code(short=True) for change in self.changes) or "Edit()"


def _edit(
    kind: str,
    values: tuple[float, ...],
    concept: Any,
    unit: Any,
    about: str,
    tokens: Any,
    mask: Any,
    strength: Any,
    exclusive: Any,
    strongest: Any,
) -> Edit:
    change = Change(
        kind=kind,
        concepts=_concepts(concept),
        units=_units(unit),
        values=values,
        about=about,
        tokens=_tokens(tokens),
        mask=_mask(mask),
        strength=strength_value(strength),
        exclusive=None if exclusive is None else _number("exclusive", exclusive),
        strongest=None if strongest is None else check_whole("strongest", strongest),
    )
    return Edit((change,))


def _change_from(found: dict[str, Any]) -> Change:
    unknown = found.keys() - {each.name for each in fields(Change)}
    if unknown:
        raise EditError(f"A change has no {sorted(unknown)}.")
    return Change(
        kind=found["kind"],
        concepts=_concepts(found["concepts"]),
        units=_units(found["units"]),
        values=_bounds(found["values"]) if found["kind"] == "clamp" else _numbers("values", found["values"]),
        about=found["about"],
        tokens=_tokens(found["tokens"]),
        mask=_mask(found.get("mask")),
        strength=strength_value(found["strength"]),
        exclusive=None if found.get("exclusive") is None else _number("exclusive", found["exclusive"]),
        strongest=None if found.get("strongest") is None else check_whole("strongest", found["strongest"]),
    )


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, not {value!r} ({type(value).__name__}).")
    try:
        number = float(value)
    except OverflowError:  # a whole number of hundreds of digits
        number = math.inf
    if not math.isfinite(number):
        raise EditError(f"{name}={number} is not finite; give a finite number.")
    return number


def _bounds(values: Any) -> tuple[float, ...]:
    """Return the two bounds of a clamp, infinite where there is none."""
    low, high = _items("bounds", values)
    return -math.inf if low is None else _number("low", low), math.inf if high is None else _number("high", high)


def _numbers(name: str, value: Any) -> tuple[float, ...]:
    value = _item(value)
    if isinstance(value, Real):
        return (_number(name, value),)
    found = tuple(_number(name, _item(each)) for each in _items(name, value))
    if not found:
        raise EditError(f"{name} is empty; give a number.")
    return found


def strength_value(value: Any) -> float | tuple[float, ...]:
    """Return a strength, or a schedule of strengths, with finite numbers only.

    Raises
    ------
    TypeError, EditError
        If it is no number, not finite, or an empty schedule.
    """
    value = _item(value)
    return _number("strength", value) if isinstance(value, Real) else _numbers("strength", value)


def _items(name: str, value: Any) -> Iterable[Any]:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise TypeError(f"{name}={reprlib.repr(value)} must be a number or several.")
    return value


def _item(value: Any) -> Any:
    """Return a zero-dimensional array or tensor as Python's own number."""
    if not hasattr(value, "item") or getattr(value, "ndim", None) != 0:
        return value
    try:
        return value.item()
    except RuntimeError as error:
        raise TypeError(f"{shortly(value)} has no value ({error}).") from error


def _concepts(concept: Any) -> tuple[int | str, ...]:
    concept = _item(concept)
    several = [concept] if isinstance(concept, str | Integral) else list(_items("concept", concept))
    found: list[int | str] = []
    for each in map(_item, several):
        if isinstance(each, bool) or not isinstance(each, str | Integral):
            raise TypeError(f"A concept is a number or a name, not {each!r} ({type(each).__name__}).")
        found.append(each if isinstance(each, str) else int(each))
    return _once("concept", found)


def _units(unit: Any) -> tuple[tuple[int, int], ...]:
    several = list(_items("unit", unit))
    if several and all(isinstance(_item(each), Integral) for each in several):
        several = [several]  # one pair
    found = []
    for each in several:
        pair = [_item(part) for part in each] if isinstance(each, Iterable) and not isinstance(each, str) else [each]
        if len(pair) != 2 or any(isinstance(part, bool) or not isinstance(part, Integral) for part in pair):
            raise TypeError(f"A unit is a pair (channel, number), such as (17, 3), not {each!r}.")
        found.append((int(pair[0]), int(pair[1])))
    return _once("unit", found)


def _once(name: str, found: list[Any]) -> tuple[Any, ...]:
    seen: set[Any] = set()
    for each in found:
        if each in seen:
            raise EditError(f"{name} {each!r} is named twice; name it once.")
        seen.add(each)
    return tuple(found)


def _tokens(tokens: Any) -> str | tuple[int, ...]:
    if isinstance(tokens, str):
        return check_choice("tokens", tokens, TOKENS)
    several = [_item(each) for each in ([tokens] if isinstance(tokens, Integral) else _items("tokens", tokens))]
    for each in several:
        if isinstance(each, bool) or not isinstance(each, Integral):
            raise TypeError(f"tokens must be one of {TOKENS} or whole numbers, not {each!r}.")
        if each < 0:
            raise EditError(f"Tokens are counted from 0; {each} is none.")
    if not several:
        raise EditError("tokens is empty; leave it out for all tokens.")
    return _once("token", [int(each) for each in several])


def _mask(mask: Any) -> Mask | None:
    if mask is None:
        return None
    try:
        if hasattr(mask, "detach"):  # a tensor, on whatever device, in whatever dtype
            mask = mask.detach().tolist()
        weights = np.asarray(mask, dtype=np.float64)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # the last: a tensor without values
        raise EditError(f"A mask must be rows of equally many numbers ({error}).") from error
    if weights.ndim != 2 or not weights.size:
        raise EditError(f"A mask must be (rows, columns), not of shape {weights.shape}.")
    if not (np.isfinite(weights).all() and weights.min() >= 0 and weights.max() <= 1):
        raise EditError(f"A mask lies in [0, 1]; this one goes from {weights.min()} to {weights.max()}.")
    return tuple(tuple(row) for row in weights.tolist())


def _one(values: tuple[Any, ...]) -> Any:
    return values[0] if len(values) == 1 else list(values)
