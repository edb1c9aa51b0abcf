"""How the tokens of one image are laid out at a site, read off the shapes of a forward pass."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from torch import nn

from elude_nb.sites import TokenLayout

_MOST_OTHERS = 16
"""More tokens than this beside the patches are not taken for class tokens and registers."""


def read_layout(
    network: nn.Module, shape: Sequence[int], grids: Iterable[tuple[int, int]], *, channels_last: bool
) -> TokenLayout:
    """Return the layout of an output with the batch first.

    Parameters
    ----------
    network
        What says how many of its tokens are no patches: timm by ``num_prefix_tokens``, transformers by its config.
    shape
        Of the output.
    grids
        (h, w) of the maps that were seen on the way, first those next to the image: a patch embedding is one.
    channels_last
        Whether the channels are the last dimension, or that after the batch.
    """
    middle = tuple(shape[2:] if not channels_last else shape[1:-1])
    if len(middle) == 2:
        return TokenLayout(0, 0, (middle[0], middle[1]))
    if not middle:
        return TokenLayout(1, 0, None)
    count = math.prod(middle)
    if not hasattr(network, "num_prefix_tokens"):
        return _by_maps(network, count, grids)
    prefix = int(network.num_prefix_tokens or 0)  # type: ignore[arg-type]
    registers = min(prefix, _registers(network))
    grid = getattr(getattr(network, "patch_embed", None), "grid_size", None)
    patches = count - prefix
    if patches < 0:  # a layer on pooled tokens: they are not the prefix of the others
        return TokenLayout(0, 0, (1, count))
    if getattr(network, "tokens_in_line", False):
        grid = (1, patches)  # words, not patches
    elif grid is None or grid[0] * grid[1] != patches:
        grid = _square(patches)
    return TokenLayout(prefix - registers, registers, (int(grid[0]), int(grid[1])))


def _by_maps(network: nn.Module, count: int, grids: Iterable[tuple[int, int]]) -> TokenLayout:
    """Take the first map that has the tokens' number of positions, up to a few class tokens and registers."""
    for grid in grids:
        others = count - grid[0] * grid[1]
        if 0 <= others <= min(_MOST_OTHERS, grid[0] * grid[1]):
            registers = min(others, _registers(network))
            return TokenLayout(others - registers, registers, grid)
    return TokenLayout(0, 0, _square(count))


def _registers(network: nn.Module) -> int:
    """Return how many registers a network says it has: by a number, in its config, or by a parameter (1, r, d)."""
    number = getattr(network, "num_reg_tokens", getattr(network.__dict__.get("config"), "num_register_tokens", None))
    if number is not None:
        return int(number)
    tokens = network._parameters.get("reg_token")
    return 0 if tokens is None or tokens.ndim != 3 else tokens.shape[1]


def _square(patches: int) -> tuple[int, int]:
    side = math.isqrt(patches)
    return (side, side) if side * side == patches else (1, patches)
