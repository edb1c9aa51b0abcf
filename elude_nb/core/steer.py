"""Steering: run a model with an edit on its sub-units, and have it back unchanged.

What an edit asks for is added to the site's channels as a difference; all else in the network runs as it is. Without
an edit nothing is added, and the outputs are the model's own bit for bit.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from elude_nb._util.arithmetic import own_arithmetic
from elude_nb.core.edit import Edit
from elude_nb.core.plan import Accumulator, Plan, Splittable, check_splittable, concept_number, look_up, plan_edit
from elude_nb.errors import EditError, ModelMismatchError
from elude_nb.models.hooks import as_tokens, from_tokens, in_backward, intercept
from elude_nb.models.outputs import first_tensor, with_first
from elude_nb.models.sites import Site


class Steering:
    """Inside the ``with`` block the model runs with an edit; made by `Disentanglement.edit`.

    Blocks of one split can be nested, and then do the outer edit first; blocks of other splits, at the same site or at
    others, can be active beside it. The model is as it was after the last block, whatever happened inside, and also if
    a context that was entered by hand is dropped.

    Attributes
    ----------
    split
        The split.

    Raises
    ------
    EditError, ModelMismatchError
        If the split cannot carry out the edit; nothing has run by then.
    """

    def __init__(self, split: Splittable, edit: Edit) -> None:
        self.split = split
        self._edit = edit
        check_edit(split, edit)
        self._entered: list[tuple[int, _Live, int]] = []  # thread, what is active there, the edit's number in it

    @property
    def edit(self) -> Edit:
        """The edit; `change` puts another in its place."""
        return self._edit

    @own_arithmetic()
    def change(self, edit: Edit) -> None:
        """Put another edit in place of this one, at once if the block is entered: what a slider calls.

        Raises
        ------
        EditError, ModelMismatchError
            If the split cannot carry it out; then the old one stays.
        """
        check_edit(self.split, edit)
        for _, live, key in self._entered:
            live.replace(key, numbered(self.split, edit))
        self._edit = edit

    def __enter__(self) -> Self:
        live = _live(self.split)
        self._entered.append((threading.get_ident(), live, live.push(numbered(self.split, self._edit))))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        here = threading.get_ident()
        for place in reversed(range(len(self._entered))):
            if self._entered[place][0] == here:
                _, live, key = self._entered.pop(place)
                live.drop(key)
                return

    def __repr__(self) -> str:
        active = "active" if self._entered else "not active"
        return f"Steering({self._edit!r} at {self.split.site.name}, {active})"


def check_edit(split: Splittable, edit: Edit) -> None:
    """Raise if a split cannot carry out an edit.

    Raises
    ------
    TypeError
        If ``edit`` is no `Edit`.
    ModelMismatchError
        If it is meant for another split.
    EditError
        If the split lacks what it names.
    """
    check_splittable(split)
    if not isinstance(edit, Edit):
        raise TypeError(f"An Edit is needed, such as Edit.scale(concept=12, by=0.0), not {edit!r}.")
    if edit.made_for is not None and edit.made_for != split.identity:
        raise ModelMismatchError(
            f"The edit is meant for the split {edit.made_for}, this one ({split.site.name}) is {split.identity}: its "
            "concepts and sub-units are others. Load that split, or make the edit anew."
        )
    look_up(split, edit)


def numbered(split: Splittable, edit: Edit) -> Edit:
    """Return an edit with numbers for the names of concepts, which another object of the same split may not know."""
    changes = (
        replace(change, concepts=tuple(dict.fromkeys(concept_number(split, concept) for concept in change.concepts)))
        for change in edit.changes
    )
    return replace(edit, changes=tuple(changes))


class _Live:
    """All edits that one thread has active on one split of one network, as one plan."""

    def __init__(self, split: Splittable) -> None:
        self._split = split
        self._edits: dict[int, tuple[Edit, int]] = {}
        self._passes = 0
        self._keys = 0
        self._plan: Plan | None = None
        # What a forward pass gathers, and what layers gather that run again during backward (activation checkpointing).
        self._gathered: Accumulator | None = None
        self._again: Accumulator | None = None
        self._removers: list[Callable[[], None]] = []
        # Should nobody leave the block, the network is freed as soon as the context is.
        weakref.finalize(self, _call_all, self._removers)

    @property
    def active(self) -> bool:
        return bool(self._edits)

    def push(self, edit: Edit) -> int:
        self._keys += 1
        self._edits[self._keys] = edit, self._passes
        try:
            self._plan_anew()
        except BaseException:
            self.drop(self._keys)
            raise
        return self._keys

    def replace(self, key: int, edit: Edit) -> None:
        self._edits[key] = edit, self._passes
        self._plan_anew()

    def drop(self, key: int) -> None:
        self._edits.pop(key, None)
        self._plan_anew()

    @own_arithmetic()
    def _plan_anew(self) -> None:
        edits = list(self._edits.values())
        if not edits:
            self._plan = None
            _call_all(self._removers)
            return
        starts = [start for edit, start in edits for _ in edit.changes]
        changes = tuple(change for edit, _ in edits for change in edit.changes)
        network = self._split.model.network
        device = next(network.parameters()).device
        self._plan = plan_edit(self._split, Edit(changes), starts).to(device)
        if not self._removers:
            self._install(network, self._split.site)

    def _install(self, network: nn.Module, site: Site) -> None:
        here = weakref.ref(self)

        def see(number: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
            def before(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
                live = here()
                if live is not None:
                    live._see(number, layer, inputs[0])

            return before

        def after(output: Any) -> Any:
            live = here()
            return output if live is None else live._finish(output)

        with ExitStack() as stack:  # if one cannot be set, those already set are removed
            for number, term in enumerate(site.terms):
                stack.callback(intercept(network.get_submodule(term.layer), before=see(number), edits=network))
            stack.callback(intercept(network.get_submodule(site.exit), after=after, edits=network))
            self._removers.append(stack.pop_all().close)

    def _see(self, number: int, layer: nn.Module, inputs: Tensor) -> None:
        plan = self._plan
        begun = None if plan is None or not len(plan) else Accumulator(plan, self._split.site)
        if in_backward():
            if number == 0 or self._again is None:
                self._again = begun
            gathered = self._again
        else:
            if number == 0:  # a pass that failed may have left what it gathered
                self._gathered = begun
            gathered = self._gathered
        if gathered is not None:
            gathered.see(number, layer, inputs)

    def _finish(self, output: Any) -> Any:
        if in_backward():
            gathered, self._again, number = self._again, None, self._passes - 1
            if gathered is not None and not gathered.whole:
                raise EditError(
                    f"Activation checkpointing runs only some of the layers again that the edit at "
                    f"{self._split.site.name!r} reads, so its gradient would be wrong. Switch checkpointing off, or "
                    "edit a site whose layers lie in one checkpointed block."
                )
        else:
            gathered, self._gathered, number = self._gathered, None, self._passes
            self._passes += 1
        if gathered is None:
            return output
        network, site = self._split.model.network, self._split.site
        return with_first(
            output, moved_output(network, site, gathered.plan, gathered.take(number), first_tensor(output))
        )


def moved_output(network: nn.Module, site: Site, plan: Plan, change: Tensor, output: Tensor) -> Tensor:
    """Return what the exit module puts out when a plan's change (n, t, u) is added; in the output's own shape."""
    last = site.kind != "convolution"
    if plan.positions is not None:  # a mask over 4 x 4 patches is none over 2 x 8
        site.layout.check(output.shape, channels_last=last)
    change = site.captured_change(network, change, plan.channels)
    made = from_tokens(plan.added(change, as_tokens(output, channels_last=last)), output, channels_last=last)
    # The strides too are as they were: by them later layers choose their kernels, and so how they round.
    return made if made.stride() == output.stride() else torch.empty_like(output).copy_(made)


_Active = weakref.WeakValueDictionary[tuple[str, int], _Live]
_LIVE: weakref.WeakKeyDictionary[nn.Module, _Active] = weakref.WeakKeyDictionary()


def _live(split: Splittable) -> _Live:
    """Return what this thread has active on a split's network, or a new one."""
    of_network = _LIVE.setdefault(split.model.network, weakref.WeakValueDictionary())
    key = split.identity, threading.get_ident()
    found = of_network.get(key)
    if found is None:
        found = _Live(split)
        of_network[key] = found
    return found


def _call_all(removers: list[Callable[[], None]]) -> None:
    while removers:
        removers.pop()()
