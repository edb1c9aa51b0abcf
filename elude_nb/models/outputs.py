"""The tensor of an output: what modules and networks put out besides plain tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def first_tensor(output: Any) -> Any:
    """Return what a module put out: of a tuple, its first part, as in blocks that hand on attention weights too."""
    return output[0] if isinstance(output, tuple) and output else output


def with_first(output: Any, tensor: Tensor) -> Any:
    """Return a module's output with a tensor in the place of `first_tensor`."""
    return (tensor, *output[1:]) if isinstance(output, tuple) and output else tensor


_MAIN = ("logits", "pooler_output", "image_embeds", "last_hidden_state")  # as Hugging Face names them, the final first


def main_tensor(output: Any) -> Tensor:
    """Return the one tensor of a network's output that stands for it.

    Of a dictionary, a Hugging Face ``ModelOutput`` or another object with attributes: ``logits``, ``pooler_output``,
    ``image_embeds`` or ``last_hidden_state``, the first that is there, otherwise the first with a tensor. Of a tuple:
    the first part with a tensor. Of a list or a tuple under a name, such as feature maps: the last, the deepest.

    Raises
    ------
    TypeError
        If there is no tensor of fractions in it.

    Examples
    --------
    >>> main_tensor({"loss": None, "last_hidden_state": torch.zeros(2, 5), "pooler_output": torch.ones(2, 3)}).shape
    torch.Size([2, 3])
    """
    found = next(_tensors(output), None)
    if found is None:
        raise TypeError(
            f"The network puts out {type(output).__name__} without any tensor of fractions; say which tensor to take: "
            "wrap_network(network, output=lambda out: ...)."
        )
    return found


def output_tensor(output: Any) -> Tensor:
    """Return a network's whole output as one tensor: all its tensors of fractions side by side, (n, e)."""
    if isinstance(output, Tensor):
        return output
    parts = list(_tensors(output))
    if not parts:
        raise TypeError(f"The network put out {type(output).__name__} without any tensor of numbers to compare.")
    return torch.cat([part.flatten(1) if part.ndim > 1 else part[:, None] for part in parts], dim=1)


def _tensors(output: Any) -> Iterator[Tensor]:
    """Yield the tensors of fractions in a network's output, the one that stands for it first."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
        return
    if isinstance(output, tuple | list):
        parts = list(output) if isinstance(output, tuple) else output[::-1]
    else:
        named = dict(output) if isinstance(output, Mapping) else getattr(output, "__dict__", {})
        names = [*(name for name in _MAIN if name in named), *(name for name in named if name not in _MAIN)]
        # A tuple under a name, such as feature_maps, has a part for each depth.
        parts = [list(named[name]) if isinstance(named[name], tuple) else named[name] for name in names]
    for part in parts:
        yield from _tensors(part)
