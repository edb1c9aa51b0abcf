"""A tap on a site: hooks that hand out sources and channels during forward passes, and are gone afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from elude_nb.sites import STREAM, Site


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put every module in eval mode without gradients; afterwards each has its own training flag again."""
    flags = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, flag in flags:
            module.training = flag


def as_dtype(batch: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a batch in another precision; whole numbers, which are names of tokens, stay as they are."""
    return batch.to(dtype) if batch.is_floating_point() else batch


class Tap:
    """Listen to a site during forward passes; hooks are removed on exit, whatever happens.

    Each captured tensor is handed at once to a function that keeps what is wanted of it, so that the inputs of
    24 layers are never held together.

    Parameters
    ----------
    network, site
        The network and its site.
    on_source
        Called with (number of the term, its sources as (n, t, s_term * kernel)).
    on_channels
        Called with the channels (n, t, d).
    on_entering
        For a stream: called with what enters the window, (n, t, d).
    """

    def __init__(
        self,
        network: nn.Module,
        site: Site,
        *,
        on_source: Callable[[int, Tensor], None] | None = None,
        on_channels: Callable[[Tensor], None] | None = None,
        on_entering: Callable[[Tensor], None] | None = None,
    ) -> None:
        self._network, self._site = network, site
        self._on = on_source, on_channels, on_entering
        self._stack = ExitStack()

    def __enter__(self) -> Tap:
        on_source, on_channels, on_entering = self._on
        network, site = self._network, self._site
        with ExitStack() as stack:  # if a hook cannot be set, those already set are removed
            if on_source is not None:
                for number, term in enumerate(site.terms):
                    layer = network.get_submodule(term.layer)

                    def tell(layer: nn.Module, inputs: tuple[Any, ...], number: int = number) -> None:
                        on_source(number, source_tokens(layer, inputs[0]))

                    stack.callback(layer.register_forward_pre_hook(tell).remove)
            if on_entering is not None and site.kind == STREAM:
                entry = network.get_submodule(site.entry)

                def tell_entering(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
                    on_entering(as_tokens(inputs[0] if inputs else next(iter(named.values()))))

                stack.callback(entry.register_forward_pre_hook(tell_entering, with_kwargs=True).remove)
            if on_channels is not None:
                last = network.get_submodule(site.exit)
                channels_last = site.kind != "convolution"

                def tell_channels(_: nn.Module, __: Any, output: Any) -> None:
                    found = first_tensor(output)
                    on_channels(site.outputs(network, as_tokens(found, channels_last=channels_last)))

                stack.callback(last.register_forward_hook(tell_channels).remove)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def first_tensor(output: Any) -> Any:
    """Return what a module put out: of a tuple, its first part, as in blocks that hand on attention weights too."""
    return output[0] if isinstance(output, tuple) and output else output


def output_tensor(output: Any) -> Tensor:
    """Return a network's whole output as one tensor: the parts of a tuple or dictionary side by side, (n, e)."""
    if isinstance(output, Tensor):
        return output
    parts = [part for part in tree_leaves(output) if isinstance(part, Tensor) and part.is_floating_point()]
    if not parts:
        raise TypeError(f"The network put out {type(output).__name__} without any tensor of numbers to compare.")
    return torch.cat([part.flatten(1) if part.ndim > 1 else part[:, None] for part in parts], dim=1)


def as_tokens(tensor: Tensor, *, channels_last: bool = True) -> Tensor:
    """Bring (n, d), (n, t, d), (n, h, w, d), or (n, d, h, w) with ``channels_last=False``, to (n, t, d)."""
    if not channels_last:
        return tensor.flatten(2).transpose(1, 2)
    return tensor[:, None] if tensor.ndim == 2 else tensor.flatten(1, -2)


def from_tokens(tokens: Tensor, like: Tensor, *, channels_last: bool = True) -> Tensor:
    """Undo `as_tokens`: bring (n, t, d) to the shape of ``like``."""
    return tokens.reshape(like.shape) if channels_last else tokens.transpose(1, 2).reshape(like.shape)


def source_tokens(layer: nn.Module, inputs: Tensor) -> Tensor:
    """Return a layer's input as sources (n, t, s * kernel): for a convolution, the patch under its kernel."""
    if not isinstance(layer, nn.Conv2d):
        return as_tokens(inputs)
    if _pointwise(layer):
        strided = inputs[:, :, :: layer.stride[0], :: layer.stride[1]]
        return as_tokens(strided, channels_last=False)
    padded, padding = inputs, layer.padding
    if isinstance(padding, str) or layer.padding_mode != "zeros":
        # The layer knows how much to pad on each side; only "zeros" with numbers is what unfold does by itself.
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        sides = layer._reversed_padding_repeated_twice
        padded, padding = nn.functional.pad(inputs, list(sides), mode=mode), (0, 0)
    columns = nn.functional.unfold(padded, layer.kernel_size, layer.dilation, padding, layer.stride)
    return columns.transpose(1, 2)


def _pointwise(layer: nn.Conv2d) -> bool:
    return layer.kernel_size == (1, 1) and layer.padding in {(0, 0), "valid"}
