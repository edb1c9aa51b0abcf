"""The explicit network: the split as ordinary modules, a layer with one output per unit and a merge that adds them.

Every weight of the original stands in exactly one unit's row; the others have 0 there. So the rows of a channel add
up to its original row bit for bit, which is asserted when a layer is made. The outputs equal the original's up to the
order of floating-point additions.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from elude_nb.routing import Routing
from elude_nb.sites import Site, Term, dense_weight


class PartitionError(RuntimeError):
    """Split weights that do not add up to the original weights."""


class Merge(nn.Module):
    """Add the units of each channel: (..., u) to (..., d), or along dimension 1 for maps."""

    channels: Tensor

    def __init__(self, channels: Tensor, width: int, dim: int = -1) -> None:
        super().__init__()
        self.width, self.dim = width, dim
        self.register_buffer("channels", channels)

    def forward(self, units: Tensor) -> Tensor:
        """Return the channels."""
        shape = list(units.shape)
        shape[self.dim] = self.width
        return units.new_zeros(shape).index_add(self.dim, self.channels, units)

    def extra_repr(self) -> str:
        """Say how many units become how many channels."""
        return f"{len(self.channels)} units -> {self.width} channels"


class SplitLayer(nn.Module):
    """A linear layer or convolution with one output per unit (``split``), and the ``merge`` that adds them up."""

    def __init__(self, split: nn.Linear | nn.Conv2d, merge: Merge) -> None:
        super().__init__()
        self.split, self.merge = split, merge

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the layer's channels, the sum of their units."""
        merged: Tensor = self.merge(self.split(inputs))
        return merged


class SplitBranch(nn.Module):
    """Attention or MLP of a pre-norm block, its last layer beside the same layer split into units."""

    def __init__(self, norm: nn.Module, branch: nn.Module, layer: nn.Linear, split: nn.Linear, scale: Any) -> None:
        super().__init__()
        self.norm, self.branch, self.layer, self.split = norm, branch, layer, split
        self.scale = scale

    def forward(
        self, stream: Tensor, units: Tensor, channels: Tensor, *args: Any, **more: Any
    ) -> tuple[Tensor, Tensor]:
        """Return the stream (n, t, d) and its units (n, t, u), each with what this branch adds."""
        sources = self.branch(self.norm(stream), *args, **more)  # (n, t, s), since the last layer is taken off
        added, added_units = self.layer(sources), self.split(sources)
        if self.scale is not None:
            added, added_units = added * self.scale, added_units * self.scale[channels]
        return stream + added, units + added_units


class SplitBlock(nn.Module):
    """A pre-norm transformer block that carries the units of the stream beside the stream.

    Between the blocks of a window the stream (n, t, d) and its units (n, t, u) travel side by side as (n, t, d + u).
    The stream is computed as in the original, so that each block sees what it always saw; the units gather what each
    branch adds. The last block of the window hands on the merged units in place of the stream.
    """

    shared: Tensor

    def __init__(
        self, attention: SplitBranch, mlp: SplitBranch, merge: Merge, shared: Tensor, *, first: bool, last: bool
    ) -> None:
        super().__init__()
        self.attention, self.mlp, self.merge = attention, mlp, merge
        self.first, self.last = first, last
        self.register_buffer("shared", shared)

    def forward(self, carried: Tensor, *args: Any, **more: Any) -> Tensor:
        """Return stream and units, or in the window's last block the merged stream."""
        stream = carried[..., : self.merge.width]
        if self.first:  # what enters the window belongs to the shared units
            units = stream.new_zeros(*stream.shape[:-1], len(self.merge.channels))
            units = units.index_copy(-1, self.shared, stream)
        else:
            units = carried[..., self.merge.width :]
        stream, units = self.attention(stream, units, self.merge.channels, *args, **more)
        stream, units = self.mlp(stream, units, self.merge.channels)
        if self.last:
            merged: Tensor = self.merge(units)
            return merged
        return torch.cat([stream, units], dim=-1)


def explicit_network(network: nn.Module, site: Site, routing: Routing) -> nn.Module:
    """Return a copy of the network in which the site is split by ordinary modules; the original is not touched.

    Parameters
    ----------
    network
        The network.
    site
        A site of it.
    routing
        Where the contributions go; `Routing.only` leaves channels whole that are not of interest.

    Raises
    ------
    PartitionError
        If the split weights do not add up to the original weights bit for bit.
    """
    made = copy.deepcopy(network)
    channels, units = (rows.to(next(network.parameters()).device) for rows in routing.rows())
    if site.kind == "stream":
        _split_stream(made, site, routing, channels, units)
    else:
        layer: Any = made.get_submodule(site.terms[0].layer)
        split = split_layer(layer, routing.routes, channels, units)
        merge = Merge(channels, site.channels, dim=1 if site.kind == "convolution" else -1)
        replace_module(made, site.terms[0].layer, SplitLayer(split, merge))
    return made.eval().requires_grad_(requires_grad=False)


def weights_add_up(network: nn.Module, explicit: nn.Module, site: Site) -> bool:
    """Say whether the units' weights and biases in an explicit network add up to the network's own, bit for bit."""
    made = [module for module in explicit.modules() if isinstance(module, SplitBranch | SplitLayer)]
    channels = next(module.channels for module in explicit.modules() if isinstance(module, Merge))
    if len(made) != len(site.terms):
        return False
    for module, term in zip(made, site.terms, strict=True):
        original: Any = network.get_submodule(term.layer)
        pairs = [(module.split.weight, dense_weight(original)), (module.split.bias, original.bias)]
        for rows, whole in pairs:
            if rows is None or whole is None:
                if rows is not whole:
                    return False
            elif not torch.equal(torch.zeros_like(whole).index_add(0, channels, rows), whole):
                return False
    return True


def split_layer(layer: nn.Linear | nn.Conv2d, routes: Tensor, channels: Tensor, units: Tensor) -> Any:
    """Return a layer with one output per unit: the channel's weights where routed to the unit, 0 elsewhere.

    Parameters
    ----------
    layer
        A linear layer or convolution with ``d`` outputs and ``s`` inputs.
    routes
        (d, s).
    channels, units
        The units wanted, as `Routing.rows` gives them, (u,) each.

    Raises
    ------
    PartitionError
        If the rows of a channel do not add up to its weights bit for bit.
    """
    weight = dense_weight(layer)
    mask = (routes.to(weight.device)[channels] == units[:, None]).view(len(units), -1, *[1] * (weight.ndim - 2))
    rows = weight[channels].masked_fill(~mask, 0)
    _check_partition(rows, channels, weight)
    bias = None
    if layer.bias is not None:  # counted once, in the shared unit
        bias = layer.bias.detach()[channels].masked_fill(units != 0, 0)
        _check_partition(bias, channels, layer.bias.detach())
    split = _empty_like(layer, len(units))
    split.weight = nn.Parameter(rows, requires_grad=False)
    split.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    return split


def _check_partition(rows: Tensor, channels: Tensor, weight: Tensor) -> None:
    total = torch.zeros_like(weight).index_add(0, channels, rows)
    entries = torch.zeros_like(weight, dtype=torch.int32).index_add(0, channels, (rows != 0).to(torch.int32))
    if not torch.equal(total, weight) or int(entries.max()) > 1:
        wrong = int((total != weight).sum())
        raise PartitionError(f"The split weights are no partition: {wrong} of {weight.numel()} sums differ.")


def _empty_like(layer: Any, outputs: int) -> Any:
    """Return a layer of the same kind with another number of outputs, its weights not yet made."""
    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, outputs, bias=bias, device="meta")
    return nn.Conv2d(
        layer.in_channels,
        outputs,
        kernel_size=layer.kernel_size,
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        padding_mode=layer.padding_mode,
        bias=bias,
        device="meta",
    )


def _split_stream(network: nn.Module, site: Site, routing: Routing, channels: Tensor, units: Tensor) -> None:
    merge = Merge(channels, site.channels)
    shared = (units == 0).nonzero().flatten()  # one for each channel, in the order of the channels
    pieces = routing.routes.split([term.sources for term in site.terms], dim=1)
    blocks = list(dict.fromkeys(term.block for term in site.terms))
    for block in blocks:
        branches = {}
        for term, routes in zip(site.terms, pieces, strict=True):
            if term.block == block:
                branches[term.part] = _split_branch(network, term, routes, channels, units)
        split = SplitBlock(
            branches["attention"],
            branches["mlp"],
            merge,
            shared,
            first=block == blocks[0],
            last=block == blocks[-1],
        )
        path = site.terms[blocks.index(block) * 2].layer.rpartition(".")[0].rpartition(".")[0]
        replace_module(network, path, split)


def _split_branch(network: nn.Module, term: Term, routes: Tensor, channels: Tensor, units: Tensor) -> SplitBranch:
    norm, branch, layer, scale = take_branch(network, term)
    return SplitBranch(norm, branch, layer, split_layer(layer, routes, channels, units), scale)


def take_branch(network: nn.Module, term: Term) -> tuple[nn.Module, nn.Module, Any, Any]:
    """Take a branch's last layer off, so that it hands out its sources; return norm, branch, layer and scale."""
    branch_path, _, layer_name = term.layer.rpartition(".")
    block = network.get_submodule(branch_path.rpartition(".")[0])
    branch = network.get_submodule(branch_path)
    layer: Any = branch.get_submodule(layer_name)
    setattr(branch, layer_name, nn.Identity())
    norm = block.get_submodule("norm1" if term.part == "attention" else "norm2")
    scale = None if term.scale is None else network.get_parameter(term.scale)
    return norm, branch, layer, scale


def replace_module(network: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module in the place of the one at ``path``."""
    parent, _, name = path.rpartition(".")
    owner = network.get_submodule(parent) if parent else network
    owner._modules[name] = module
