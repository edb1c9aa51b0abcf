"""How numbers are computed: what a user sets for a whole notebook must not reach what is worked out here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar

import torch

_DEVICES = ("cpu", "cuda", "mps", "xpu")
_THEIRS: ContextVar[torch.dtype | None] = ContextVar("the user's default dtype, while another is set", default=None)


@contextmanager
def own_arithmetic() -> Iterator[None]:
    """Work with float32 as torch's default dtype, without autocast and outside ``torch.inference_mode``.

    As a context or as a decorator. Autocast would round sums to half precision, another default dtype would change
    random draws and quotients of whole numbers, and what is made in inference mode has no gradients ever after.
    """
    theirs = torch.get_default_dtype()
    with ExitStack() as stack:
        _leave_modes(stack)
        if theirs != torch.float32:
            stack.callback(_THEIRS.reset, _THEIRS.set(theirs))
            _set_default(stack, torch.float32)
        yield


@contextmanager
def network_arithmetic() -> Iterator[None]:
    """Run a network in the dtype of its weights: as `own_arithmetic`, but with the default dtype that the user set."""
    theirs = _THEIRS.get()
    with ExitStack() as stack:
        _leave_modes(stack)
        if theirs is not None:
            _set_default(stack, theirs)
        yield


def _leave_modes(stack: ExitStack) -> None:
    if torch.is_inference_mode_enabled():
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.no_grad())  # leaving inference mode would switch gradients on
    for device in _DEVICES:
        if torch.is_autocast_enabled(device):
            stack.enter_context(torch.autocast(device, enabled=False))


def _set_default(stack: ExitStack, dtype: torch.dtype) -> None:
    stack.callback(torch.set_default_dtype, torch.get_default_dtype())
    torch.set_default_dtype(dtype)
