"""What one forward pass shows of a network: shapes, how often layers run, what follows what, where the stream is."""

from __future__ import annotations

import weakref
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from elude_nb.blocks import block_terms, stream_blocks
from elude_nb.models import Model
from elude_nb.sites import Term
from elude_nb.taps import evaluating, first_tensor
from elude_nb.watching import watch_blocks


@dataclass(frozen=True)
class Run:
    """What one forward pass showed.

    Attributes
    ----------
    shapes, calls
        Output shape of each module and how often it ran, in the order in which they came to an end.
    norms
        Which BatchNorm follows which layer.
    grids
        (h, w) of the outputs of the convolutions, in the order in which they ran.
    blocks
        The blocks of the residual stream, if there is one, and the layers by which each writes to it.
    """

    shapes: dict[str, tuple[int, ...]]
    calls: dict[str, int]
    norms: dict[str, str]
    grids: list[tuple[int, int]]
    blocks: dict[str, tuple[Term, ...]]


RUNS: weakref.WeakKeyDictionary[Model, Run] = weakref.WeakKeyDictionary()


def run_once(model: Model) -> Run:
    """Run the network on noise and note shapes; remembered per model, which keeps `find_sites` to one pass."""
    if model in RUNS:
        return RUNS[model]
    shapes: dict[str, tuple[int, ...]] = {}
    calls: dict[str, int] = {}
    norms: dict[str, str] = {}
    grids: list[tuple[int, int]] = []
    made_by: dict[int, tuple[str, Tensor]] = {}  # the tensor is kept, so that its id is not given to another

    def note(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(module, nn.BatchNorm2d):
            # Without running statistics it normalises by the batch at hand, which is no fixed affine map.
            if module.running_var is not None and id(inputs[0]) in made_by:
                norms[made_by[id(inputs[0])][0]] = name
        elif isinstance(found := first_tensor(output), Tensor):
            calls[name] = calls.get(name, 0) + 1
            shapes[name] = tuple(found.shape)
            if isinstance(module, nn.Conv2d):
                made_by[id(found)] = (name, found)
                grids.append((found.shape[-2], found.shape[-1]))

    with ExitStack() as stack, evaluating(model.network):
        for name, module in model.network.named_modules():
            hook = module.register_forward_hook(
                lambda module, inputs, output, name=name: note(name, module, inputs, output)
            )
            stack.callback(hook.remove)
        model(model.noise())
    paths = stream_blocks(model.network)
    blocks = {path: tuple(block_terms(model.network, path, number)) for number, path in enumerate(paths, 1)}
    blocks = blocks or watch_blocks(model.network, model.noise(8))  # more images than layers of a block
    order = {name: number for number, name in enumerate(calls)}
    for path, terms in blocks.items():  # as they ran: who listens knows by the last one that a pass is over
        blocks[path] = tuple(sorted(terms, key=lambda term: order.get(term.layer, len(order))))
    RUNS[model] = Run(shapes, calls, norms, grids, blocks)
    return RUNS[model]
