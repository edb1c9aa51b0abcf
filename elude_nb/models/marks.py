"""What tells cheaply that the weights of a network are still those that were looked at."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor, nn

from elude_nb._util.files import is_composed, plain_parts

_VALUES = 16  # of each parameter that are looked at to notice that it changed


class Mark(NamedTuple):
    """What changes with a parameter or buffer; what is written through ``.data`` shows in a few of its values only."""

    identity: int
    version: int
    where: int
    dtype: torch.dtype
    shape: torch.Size
    few: str  # as text: NaN is equal to itself


def weight_marks(network: nn.Module) -> dict[str, Mark]:
    """Return a mark for each parameter and buffer."""
    marks: dict[str, Mark] = {}
    for name, tensor in itertools.chain(network.named_parameters(), network.named_buffers()):
        # A tensor made of others, as torchao's quantised ones are, has no memory of its own to look at.
        parts = [part for part in plain_parts(tensor) if isinstance(part, Tensor)] if is_composed(tensor) else [tensor]
        marks |= {f"{name}[{number}]" if number else name: _mark(part) for number, part in enumerate(parts)}
    return marks


def _mark(tensor: Tensor) -> Mark:
    version = -1 if tensor.is_inference() else tensor._version
    flat = tensor.detach().flatten()
    few = flat[:: max(1, len(flat) // _VALUES)][:_VALUES].tolist() if not tensor.is_meta else []
    where = tensor.data_ptr() if not tensor.is_meta else 0
    return Mark(id(tensor), version, where, tensor.dtype, tensor.shape, repr(few))
