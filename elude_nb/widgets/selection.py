"""What is chosen, shared by all panels on one gallery: a channel, a sub-unit, concepts, an image, a patch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol
from weakref import WeakKeyDictionary, WeakSet, ref

import traitlets

from elude_nb.interpret.gallery import Gallery
from elude_nb.scores.similarity import best_images
from elude_nb.widgets.parts import holding

MOST_STEPS = 200  # that `back` can undo


@dataclass(frozen=True)
class State:
    """What is chosen; ``None`` stands for what nobody has chosen yet.

    Attributes
    ----------
    channel
        Its number.
    unit
        A sub-unit, (channel, number).
    concepts
        Numbers of concepts.
    image
        Its number in the gallery.
    patch
        Row and column.
    """

    channel: int | None = None
    unit: tuple[int, int] | None = None
    concepts: tuple[int, ...] | None = None
    image: int | None = None
    patch: tuple[int, int] | None = None

    def chosen(self) -> dict[str, Any]:
        """Return what is chosen, by its name, as `Selection.choose` takes it."""
        return {
            name: list(value) if name == "concepts" else value
            for name, value in vars(self).items()
            if value is not None
        }


class Follower(Protocol):
    """A panel that shows what is chosen."""

    def follow(self, *, soon: bool = False) -> None:
        """Show what is chosen now, or soon."""

    def best_channel(self, concepts: Sequence[int]) -> int | None:
        """Return the channel that it would show first of those with sub-units of these concepts."""


class Selection(traitlets.HasTraits):
    """What is chosen in the panels on one gallery. A click in one panel sets it, and the others follow.

    Each trait can be set from Python. What is set implies what is not: a concept alone implies the image on which it is
    strongest, the patch there and the best channel with a sub-unit of it; a sub-unit implies its channel.

    Parameters
    ----------
    gallery
        The gallery of the panels.

    Attributes
    ----------
    channel, unit, concepts, image, patch
        What is chosen, as in `State` (traits, settable).
    state
        All of it at once, a `State` (trait, read-only): observe this to be told of each choice once.

    Examples
    --------
    ``explorer.selection.concepts = [12]``; ``explorer.selection.back()``
    """

    channel = traitlets.Int(None, allow_none=True)
    unit: Any = traitlets.Tuple(traitlets.Int(), traitlets.Int(), allow_none=True, default_value=None)
    concepts: Any = traitlets.List(traitlets.Int())
    image = traitlets.Int(None, allow_none=True)
    patch: Any = traitlets.Tuple(traitlets.Int(), traitlets.Int(), allow_none=True, default_value=None)
    state: Any = traitlets.Instance(State, (), read_only=True)

    def __init__(self, gallery: Gallery) -> None:
        super().__init__()
        self._gallery = ref(gallery)  # which is the key of the dictionary that keeps this
        self.panels: WeakSet[Follower] = WeakSet()
        self._past: list[State] = []
        self._future: list[State] = []
        self._showing = False
        self.observe(self._take_trait, list(State.__dataclass_fields__))

    def choose(self, *, soon: bool = False, **what: Any) -> Selection:
        """Choose a channel, a unit, concepts, an image, a patch, or several of these; return the selection.

        Parameters
        ----------
        soon
            Whether the panels follow a moment later, so that the one in which something was chosen is painted first.
        **what
            ``channel``, ``unit``, ``concepts``, ``image``, ``patch``; ``None`` for what is not chosen any more.

        Raises
        ------
        TypeError
            If something else is to be chosen.
        TraitError
            If there is no such channel, unit, concept, image or patch.
        """
        check_names(what)
        state = self._complete(self._check(what))
        if state != self.state:
            self._past = [*self._past, self.state][-MOST_STEPS:]
            self._future = []
            self._show(state, soon=soon)
        return self

    def settle(self) -> None:
        """Choose the channel that the concepts imply, if a panel that knows it was opened after they were chosen."""
        if self.state.channel is None and self.state.concepts:
            self._show(self._with_channel(self.state))

    def back(self) -> None:
        """Go back to what was chosen before, if anything was."""
        self._go(self._past, self._future)

    def forward(self) -> None:
        """Go forward again after `back`."""
        self._go(self._future, self._past)

    @property
    def can_go_back(self) -> bool:
        """Whether something was chosen before."""
        return bool(self._past)

    @property
    def can_go_forward(self) -> bool:
        """Whether `back` was called last."""
        return bool(self._future)

    def code(self) -> str:
        """Return a line that chooses the same again, for a variable ``selection``."""
        return f"selection.choose({', '.join(f'{name}={value!r}' for name, value in self.state.chosen().items())})"

    # ----------------------------------------------------------------- innards

    def _go(self, source: list[State], target: list[State]) -> None:
        if source:
            state = source.pop()
            target.append(self.state)
            self._show(state)

    def _take_trait(self, change: Any) -> None:
        if not self._showing:
            try:
                self.choose(**{change["name"]: change["new"]})
            except traitlets.TraitError:
                self._set_traits(self.state)
                raise

    def _set_traits(self, state: State) -> None:
        with holding(self, "_showing"):
            for name, value in {**vars(state), "concepts": list(state.concepts or ())}.items():
                setattr(self, name, value)

    def _show(self, state: State, *, soon: bool = False) -> None:
        self._set_traits(state)
        self.set_trait("state", state)
        for panel in list(self.panels):
            panel.follow(soon=soon)

    def _check(self, what: dict[str, Any]) -> dict[str, Any]:
        """Return what is to be chosen as a `State` has it."""
        gallery, found = self._shown(), dict[str, Any]()
        split = gallery.split
        for name, value in what.items():
            if value is None:
                found[name] = None
            elif name == "concepts":
                found[name] = tuple(_within("concept", number, len(split.book)) for number in value)
            elif name in {"channel", "image"}:
                found[name] = _within(name, value, split.site.channels if name == "channel" else len(gallery.images))
            else:
                first, second = value
                limits = (split.site.channels, split.routing.units + 1) if name == "unit" else gallery.grid
                words = ("channel", "sub-unit") if name == "unit" else ("row", "column")
                found[name] = _within(words[0], first, limits[0]), _within(words[1], second, limits[1])
        return found

    def _complete(self, what: dict[str, Any]) -> State:
        """Return the state in which this is chosen, and what it implies."""
        given = set(what)
        state: State = replace(self.state, **what)
        if state.concepts and "concepts" in given:
            if len(state.concepts) == 1 and "image" not in given:
                image, patch = self._peak(state.concepts[0])
                state = replace(state, image=image, patch=state.patch if "patch" in given else patch)
            if not given & {"channel", "unit"}:
                state = self._with_channel(state)
        elif given & {"image", "patch"} and "unit" not in given:
            state = replace(state, unit=None)  # the inspector shows the one that is most active there
        if "unit" in given and state.unit is not None and "channel" not in given:
            state = replace(state, channel=state.unit[0])
        if state.unit is not None and state.unit[0] != state.channel:
            state = replace(state, unit=None)
        return state

    def _with_channel(self, state: State) -> State:
        """Return the state with the best channel of its concepts, if a panel that knows it is there."""
        concepts = state.concepts or ()
        found = (panel.best_channel(concepts) for panel in list(self.panels))
        channel = next((number for number in found if number is not None), None)
        return replace(state, channel=channel, unit=self._unit_of(channel, concepts))

    def _peak(self, concept: int) -> tuple[int | None, tuple[int, int] | None]:
        """Return the image on which a concept is strongest, and the patch."""
        gallery = self._shown()
        if not gallery.ready or not gallery.has_concepts:
            return self.state.image, self.state.patch
        highest, patches = gallery.concept_maps[..., concept].max(1)
        image = int(gallery.distinct[best_images(highest[gallery.distinct], 1)[0]])
        row, column = divmod(int(patches[image]), gallery.grid[1])
        return image, (row, column)

    def _unit_of(self, channel: int | None, concepts: Sequence[int]) -> tuple[int, int] | None:
        if channel is None:
            return None
        units = self._shown().split.units
        units = units[(units["channel"] == channel) & units["concept"].isin(concepts)]
        return (channel, int(units["unit"].iloc[0])) if len(units) else None

    def _shown(self) -> Gallery:
        gallery = self._gallery()
        if gallery is None:
            raise ReferenceError("The gallery of this selection does not exist any more.")
        return gallery


_SELECTIONS: WeakKeyDictionary[Gallery, Selection] = WeakKeyDictionary()


def selection_of(gallery: Gallery) -> Selection:
    """Return the selection that all panels on a gallery share."""
    found = _SELECTIONS.get(gallery)
    if found is None:
        found = _SELECTIONS[gallery] = Selection(gallery)
    return found


def check_names(what: Iterable[str]) -> None:
    """Raise TypeError if these are not all names of something that can be chosen."""
    names = [field.name for field in fields(State)]
    unknown = [name for name in what if name not in names]
    if unknown:
        raise TypeError(f"{unknown[0]!r} cannot be chosen; choose among {', '.join(names)}.")


def _within(what: str, number: int, count: int) -> int:
    if not 0 <= number < count:
        raise traitlets.TraitError(f"There is no {what} {number}; there are {count}, from 0.")
    return int(number)
