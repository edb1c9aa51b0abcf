"""Sites: places whose channels are sums of contributions, and so can be split.

At a site, channel ``j`` of a token is ``h[j] = entering[j] + bias[j] + sum over i of W[j, i] * a[i]``. A linear layer
and a convolution are such sums by themselves. The residual stream of a pre-norm transformer is one too: what entered
the window of blocks, plus every attention output projection and every second MLP layer since, each with its layer
scale folded into ``W``. `elude_nb.models.find_sites.find_site` checks this on a forward pass before it returns a site.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor, nn

from elude_nb._util.arithmetic import own_arithmetic
from elude_nb._util.checks import check_choice
from elude_nb.errors import ImageError

TOKENS = ("class", "registers", "patch", "all")
STREAM = "stream"


@dataclass(frozen=True)
class Term:
    """One linear map of a site: its inputs are sources.

    Attributes
    ----------
    layer
        Path of the linear layer or convolution in the network.
    scale
        Path of the layer scale that follows it, a parameter (d,), or ``None``.
    block
        Number of its transformer block, counted from 1, or ``None``.
    part
        ``"attention"``, ``"mlp"``, ``"attention and mlp"`` (one layer for both), ``"linear"`` or ``"convolution"``.
    sources
        How many sources it brings.
    """

    layer: str
    scale: str | None
    block: int | None
    part: str
    sources: int


@dataclass(frozen=True)
class TokenLayout:
    """How the tokens of one image are laid out at a site: class tokens, then registers, then an (h, w) grid.

    A site without a grid (a vector per image) has one token, which counts as its class token.
    """

    classes: int
    registers: int
    grid: tuple[int, int] | None

    @property
    def count(self) -> int:
        """Number of tokens of one image."""
        return self.classes + self.registers + (self.grid[0] * self.grid[1] if self.grid else 0)

    @property
    def usual(self) -> str:
        """Which tokens count if none are named: the patches, or all there are where there is no grid of them."""
        return "patch" if self.grid else "all"

    def check(self, shape: Sequence[int], *, channels_last: bool = True) -> None:
        """Raise ``ImageError`` unless this is the layout of an output with the batch first.

        Parameters
        ----------
        shape
            Of the output.
        channels_last
            Whether the channels are the last dimension, or that after the batch.
        """
        found = tuple(shape[1:-1] if channels_last else shape[2:])
        if len(found) > 2:  # windows and their like, which `read_layout` counts as one axis
            found = (math.prod(found),)
        expected = self.grid if len(found) == 2 else (self.count,)
        if (found or (1,)) != expected:
            raise ImageError(
                f"These images have {_in_words(found)} tokens here, and images of the model's input size have "
                f"{_in_words(expected)}. Give images of that size, or make the model with theirs: "
                "wrap_network(network, input_size=...), load_model(name, image_size=...)."
            )

    @own_arithmetic()
    def positions(self, tokens: str) -> Tensor:
        """Return the token numbers that ``tokens`` stands for, (t,).

        Raises
        ------
        ValueError
            If ``tokens`` is unknown, or this site has none of that kind.
        """
        check_choice("tokens", tokens, TOKENS)
        bounds = {
            "class": (0, self.classes),
            "registers": (self.classes, self.classes + self.registers),
            "patch": (self.classes + self.registers, self.count),
            "all": (0, self.count),
        }
        start, stop = bounds[tokens]
        if start == stop:
            has = [kind for kind, (a, b) in bounds.items() if a < b]
            raise ValueError(f"tokens={tokens!r}: this site has none; it has {has}.")
        return torch.arange(start, stop)


def _in_words(lengths: tuple[int, ...] | None) -> str:
    return " x ".join(str(length) for length in lengths or (1,))


@dataclass(frozen=True)
class Site:
    """A place in one network's architecture whose ``d`` channels are sums over ``s`` sources. Holds no tensors.

    Attributes
    ----------
    name
        ``"stream:12"`` or a module path.
    kind
        ``"linear"``, ``"convolution"`` or ``"stream"``.
    channels, sources
        ``d`` and ``s``.
    terms
        The linear maps whose inputs, side by side, are the sources.
    kernel
        Positions of one source that go into one contribution: 9 for a 3 x 3 convolution, else 1.
    layout
        The tokens of one image.
    entry, exit
        For a stream: the first and the last block of the window. Else the layer itself, twice.
    norm
        Path of the BatchNorm that follows a convolution and is folded into its weights, or ``None``.
    """

    name: str
    kind: Literal["linear", "convolution", "stream"]
    channels: int
    sources: int
    terms: tuple[Term, ...] = field(repr=False)
    kernel: int
    layout: TokenLayout
    entry: str
    exit: str
    norm: str | None = None

    @property
    def blocks(self) -> int | None:
        """For a stream: over how many blocks it is taken apart."""
        return len({term.block for term in self.terms}) if self.kind == STREAM else None

    def weights(self, network: nn.Module) -> list[Tensor]:
        """Return the weight of each term, (d, s_term * kernel), with layer scale and BatchNorm folded in."""
        return [
            self._scale(network, term)[:, None] * dense_weight(network.get_submodule(term.layer)).flatten(1)
            for term in self.terms
        ]

    def weight(self, network: nn.Module) -> Tensor:
        """Return W, (d, s * kernel): the terms' weights side by side. Column ``i * kernel + p`` belongs to source i."""
        return torch.cat(self.weights(network), dim=1)

    def bias(self, network: nn.Module) -> Tensor:
        """Return the sum of all biases, (d,), scaled as the weights are, and the shift of a folded BatchNorm."""
        total = torch.zeros_like(self._scale(network, self.terms[0]))
        for term in self.terms:
            layer: Any = network.get_submodule(term.layer)
            bias = layer.bias
            if bias is not None:
                total = total + self._scale(network, term) * bias.detach()
        return total if self.norm is None else total + _norm_affine(network, self.norm)[1]

    def outputs(self, network: nn.Module, captured: Tensor) -> Tensor:
        """Return the channels (..., d) from what the exit module put out (the BatchNorm applied)."""
        if self.norm is None:
            return captured
        scale, shift = _norm_affine(network, self.norm)
        return captured * scale + shift

    def captured(self, network: nn.Module, channels: Tensor) -> Tensor:
        """Return what the exit module would have put out for these channels (..., d): the way back from `outputs`."""
        if self.norm is None:
            return channels
        scale, shift = _norm_affine(network, self.norm)
        # A BatchNorm that multiplies by 0 puts out its shift whatever comes in.
        return torch.where(scale == 0, 0, (channels - shift) / scale)

    def captured_change(self, network: nn.Module, change: Tensor, channels: Tensor) -> Tensor:
        """Return by how much the exit module's output must change for some channels to change so, (..., u) both."""
        if self.norm is None:
            return change
        scale = _norm_affine(network, self.norm)[0][channels]
        return torch.where(scale == 0, 0, change / scale)

    def _scale(self, network: nn.Module, term: Term) -> Tensor:
        layer: Any = network.get_submodule(term.layer)
        if term.scale is not None:
            return network.get_parameter(term.scale).detach()
        if self.norm is not None:
            return _norm_affine(network, self.norm)[0]
        return torch.ones(self.channels, dtype=layer.weight.dtype, device=layer.weight.device)

    def source_table(self, network: nn.Module) -> pd.DataFrame:
        """Return one row a source: ``layer``, ``block``, ``part``, ``index`` inside the layer, attention ``head``."""
        rows = []
        for term in self.terms:
            owner: Any = network.get_submodule(term.layer.rpartition(".")[0]) if "." in term.layer else network
            heads = getattr(owner, "num_heads", None) if term.part == "attention" else None
            frame = pd.DataFrame({"layer": term.layer, "block": term.block, "part": term.part}, range(term.sources))
            frame["index"] = range(term.sources)
            frame["head"] = frame["index"] // (term.sources // heads) if heads else -1
            rows.append(frame)
        table = pd.concat(rows, ignore_index=True)
        return table.astype({"block": "Int64"})


def dense_weight(layer: Any) -> Tensor:
    """Return a layer's weight with all inputs, (d, s, ...): a grouped convolution has 0 outside its own group."""
    weight: Tensor = layer.weight.detach()
    groups = getattr(layer, "groups", 1)
    if groups == 1:
        return weight
    dense = weight.new_zeros(weight.shape[0], layer.in_channels, *weight.shape[2:])
    width = weight.shape[1]
    for number, rows in enumerate(torch.arange(weight.shape[0]).chunk(groups)):
        dense[rows, number * width : (number + 1) * width] = weight[rows]
    return dense


def _norm_affine(network: nn.Module, path: str) -> tuple[Tensor, Tensor]:
    """Return the scale and shift (d,) that a BatchNorm in eval mode applies."""
    norm: Any = network.get_submodule(path)
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.detach()
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias.detach()
