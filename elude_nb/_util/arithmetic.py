"""How numbers are computed: what a user sets for a whole notebook must not reach what is worked out here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch

T = TypeVar("T")
_DEVICES = ("cpu", "cuda", "mps", "xpu")
_Defaults = tuple[torch.dtype, torch.device]
_OURS: _Defaults = torch.float32, torch.device("cpu")
_THEIRS: ContextVar[_Defaults | None] = ContextVar("the user's defaults, while others are set", default=None)


@contextmanager
def own_arithmetic() -> Iterator[None]:
    """Work with torch's own defaults (float32, CPU), without autocast and outside ``torch.inference_mode``.

    As a context or as a decorator. Autocast would round sums to half precision, another default dtype would change
    random draws and quotients of whole numbers, and what is made in inference mode has no gradients ever after.
    """
    theirs = torch.get_default_dtype(), torch.get_default_device()
    with ExitStack() as stack:
        _leave_modes(stack)
        if theirs != _OURS:
            stack.callback(_THEIRS.reset, _THEIRS.set(theirs))
            _set_defaults(stack, _OURS)
        yield


def has_own_defaults() -> bool:
    """Say whether torch's default dtype and device are its own: they belong to the process, not to a thread."""
    return (torch.get_default_dtype(), torch.get_default_device()) == _OURS


def run_network(network: Callable[..., T], *inputs: Any) -> T:
    """Call a network with the defaults that the user set: what it makes on the way is to fit its weights."""
    theirs = _THEIRS.get()
    with ExitStack() as stack:
        if theirs is not None:
            _set_defaults(stack, theirs)
        return network(*inputs)


def _leave_modes(stack: ExitStack) -> None:
    if torch.is_inference_mode_enabled():
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.no_grad())  # leaving inference mode would switch gradients on
    for device in _DEVICES:
        if torch.is_autocast_enabled(device):
            stack.enter_context(torch.autocast(device, enabled=False))


def _set_defaults(stack: ExitStack, defaults: _Defaults) -> None:
    dtype, device = defaults
    stack.callback(torch.set_default_dtype, torch.get_default_dtype())
    torch.set_default_dtype(dtype)
    if device != torch.get_default_device():
        stack.enter_context(device)
