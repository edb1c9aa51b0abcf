"""Step into a module's forward pass and out again, in a way that compiled models notice too.

A forward hook that is set after `torch.compile` has traced a module is not noticed: Dynamo does not guard on hooks. It
does guard on an instance's own ``forward``, so that is what is put in, and taken out again.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import nn

Before = Callable[[nn.Module, tuple[Any, ...]], None]
After = Callable[[Any], Any]


class _Point:
    """All who listen at one module; its forward is replaced while there are any."""

    def __init__(self, module: nn.Module) -> None:
        self.module = weakref.ref(module)
        self.previous = vars(module).get("forward")  # someone else may have put one in
        self.calls: dict[int, tuple[Before | None, After | None]] = {}

    def install(self, module: nn.Module) -> None:
        point, previous = self, self.previous

        def forward(self: nn.Module, *inputs: Any, **named: Any) -> Any:
            for before, _ in tuple(point.calls.values()):
                if before is not None:
                    before(self, inputs)
            # A copy of the module made meanwhile runs its own weights, not those of the module copied.
            if previous is None:
                output = type(self).forward(self, *inputs, **named)
            elif isinstance(previous, MethodType) and previous.__self__ is point.module():
                output = previous.__func__(self, *inputs, **named)
            else:
                output = previous(*inputs, **named)
            for _, after in tuple(point.calls.values()):
                if after is not None:
                    output = after(output)
            return output

        # Left out of compiled graphs: who listens is looked up anew in every pass.
        disable: Any = torch.compiler.disable
        module.forward = MethodType(disable(forward), module)

    def remove(self, key: int) -> None:
        self.calls.pop(key, None)
        module = self.module()
        if self.calls or module is None or _POINTS.get(module) is not self:
            return
        del _POINTS[module]
        vars(module).pop("forward", None)
        if self.previous is not None:
            module.forward = self.previous


_POINTS: weakref.WeakKeyDictionary[nn.Module, _Point] = weakref.WeakKeyDictionary()
_KEYS = itertools.count()


def intercept(module: nn.Module, *, before: Before | None = None, after: After | None = None) -> Callable[[], None]:
    """Call ``before(module, inputs)`` at each forward pass and hand its output through ``after``, until removed.

    Several may intercept one module: their ``after`` run in the order in which they came.

    Returns
    -------
    Callable
        Takes the interception away; calling it twice does no harm.
    """
    point = _POINTS.get(module)
    if point is None:
        point = _Point(module)
        point.install(module)
        _POINTS[module] = point
    key = next(_KEYS)
    point.calls[key] = before, after
    kept = point
    return lambda: kept.remove(key)


def is_intercepted(network: nn.Module) -> bool:
    """Say whether any module of a network is intercepted."""
    return any(module in _POINTS for module in network.modules())
