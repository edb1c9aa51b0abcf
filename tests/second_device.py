"""A device that is not there: tensors that say they lie on it, and are worked out on the CPU.

As on a GPU, an operation takes tensors of one device only (but for single numbers, and for the places that a tensor on
the device is indexed by), and NumPy takes none of them. So code that passes here keeps devices apart, and what it works
out can be compared with the CPU's bit for bit. What is copied to the CPU is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

DEVICE = torch.device("cuda", 0)
_aten = torch.ops.aten
_INDEXED = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default}
_COPIES = {_aten._to_copy.default, _aten.copy_.default}


class Away(Tensor):
    """A tensor on `DEVICE`; ``held`` has its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Away:
        return Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )

    def __init__(self, inner: Tensor) -> None:
        self.held = inner

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Away({self.held!r})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.tolist:  # torch has none for tensors like this
            return args[0].cpu().tolist()
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _run(func, args, kwargs or {}, lambda _: None)


class _Watch(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.bytes_back = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, self._note)

    def _note(self, copied: Tensor) -> None:
        self.bytes_back += copied.numel() * copied.itemsize


def _run(func: Any, args: Any, kwargs: dict[str, Any], note: Callable[[Tensor], None]) -> Any:
    given = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor)]
    away = [each for each in given if isinstance(each, Away)]
    wanted = kwargs.get("device")
    if wanted is not None and torch.device(wanted).type == DEVICE.type:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    allowed = func in _COPIES or (func in _INDEXED and isinstance(args[0], Away))
    if away and not allowed and any(each.ndim and not isinstance(each, Away) for each in given):
        raise RuntimeError(f"Expected all tensors to be on the same device: {func} got tensors of {DEVICE} and of cpu.")
    inner_args, inner_kwargs = tree_map_only(Away, lambda each: each.held, (args, kwargs))
    found = func(*inner_args, **inner_kwargs)
    if away and torch.Tag.inplace_view in func.tags:  # squeeze_ and the like: the outer tensor changes its shape, too
        with no_dispatch():
            torch._C._set_meta_in_tls_dispatch_include(True)
            try:
                func(*args, **kwargs)
            finally:
                torch._C._set_meta_in_tls_dispatch_include(False)
    to_cpu = wanted is not None and torch.device(wanted).type == "cpu"
    if (func is _aten.copy_.default and not isinstance(args[0], Away)) or to_cpu:
        for each in away:
            note(each)
        return found
    if not away and (wanted is None or torch.device(wanted).type != DEVICE.type):
        return found
    known = {id(each.held): each for each in away}  # what is changed in place is the same tensor afterwards
    return tree_map_only(Tensor, lambda each: known[id(each)] if id(each) in known else Away(each), found)


@contextmanager
def second_device(network: nn.Module) -> Iterator[_Watch]:
    """Put a network on `DEVICE` inside the block."""
    torch._C._ensureCUDADeviceGuardSet()
    kept = []
    several: Any
    for module in network.modules():
        for several in (module._parameters, module._buffers):
            for name, value in several.items():
                if value is not None:
                    kept.append((several, name, value))
                    made: Any = Away(value.detach())
                    several[name] = nn.Parameter(made, requires_grad=False) if several is module._parameters else made
    ready = patch.multiple(torch.cuda, _lazy_init=lambda: None, synchronize=lambda _=None: None)
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # network.cpu() makes new parameters
    with ready, torch.backends.cudnn.flags(enabled=False), _Watch() as watch:
        try:
            yield watch
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(before)
            for several, name, value in kept:
                several[name] = value
