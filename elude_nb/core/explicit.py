"""The explicit network: the split as ordinary modules, a layer with one output per unit and a merge that adds them.

Every weight of the original stands in one unit's row, or is shared by several; the others have 0 there. The rows of a
channel add up to its original row bit for bit, which is checked when a layer is made. The outputs equal the original's
up to the order of floating-point additions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from elude_nb._util.arithmetic import run_network
from elude_nb._util.words import counted
from elude_nb.core.concepts import on_device
from elude_nb.core.partition import proportional_shares
from elude_nb.core.routing import Routing
from elude_nb.errors import PartitionError, SiteError
from elude_nb.models.hooks import clean_copy, evaluating
from elude_nb.models.load import Model
from elude_nb.models.outputs import output_tensor, with_first
from elude_nb.models.sites import Site, Term, dense_weight
from elude_nb.models.stream import blocks_of


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
        return f"{counted(len(self.channels), 'unit')} -> {counted(self.width, 'channel')}"


class SplitLayer(nn.Module):
    """A linear layer or convolution with one output per unit (``split``), and the ``merge`` that adds them up.

    Attributes
    ----------
    path
        Of the layer in the original network.
    """

    def __init__(self, split: nn.Linear | nn.Conv2d, merge: Merge, path: str = "") -> None:
        super().__init__()
        self.split, self.merge, self.path = split, merge, path

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the layer's channels, the sum of their units."""
        merged: Tensor = self.merge(self.split(inputs))
        return merged

    @property
    def weight(self) -> Tensor:
        """Return the layer's own weight: some networks look at its dtype before they call the layer."""
        rows = self.split.weight
        return rows.new_zeros(self.merge.width, *rows.shape[1:]).index_add(0, self.merge.channels, rows)


class Ledger:
    """Where the layers of a window leave their units' parts during one forward pass; empty before and after.

    It is no list, since `torch.export` copies the lists that modules hold, and each would write to one of its own. It
    serves one forward pass at a time: threads that share a network want a copy each.
    """

    def __init__(self) -> None:
        self.units: Tensor | None = None

    def add(self, part: Tensor) -> None:
        """Add a part (n, t, u) to the units."""
        self.units = part if self.units is None else self.units + part


class SplitTerm(nn.Module):
    """A layer that writes to the stream, and beside it the same layer split into units.

    It puts out what the layer puts out, so that the block around it runs as it always did, and adds the units' part
    (n, t, u) to the ledger of its window.

    Attributes
    ----------
    path
        Of the layer in the original network.
    """

    scale: Tensor

    def __init__(self, layer: nn.Linear, split: nn.Linear, scale: Tensor, ledger: Ledger, path: str) -> None:
        super().__init__()
        self.layer, self.split, self.path = layer, split, path
        self.register_buffer("scale", scale)
        self.ledger = ledger

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the layer's output."""
        units = self.split(inputs)
        self.ledger.add(units * self.scale if len(self.scale) else units)
        output: Tensor = self.layer(inputs)
        return output

    @property
    def weight(self) -> Tensor:
        """Return the layer's own weight: some networks look at its dtype before they call the layer."""
        return self.layer.weight


class SplitBlock(nn.Module):
    """A transformer block of a split window.

    The original block runs inside it as it always did, so that each block sees the stream it always saw, and whoever
    looks at the stream between two blocks sees it too. Beside it, the units of the stream (n, t, u) gather what each
    layer adds. The last block of the window hands on the merged units in place of the stream.
    """

    shared: Tensor

    def __init__(
        self, block: nn.Module, ledger: Ledger, merge: Merge, shared: Tensor, *, first: bool, last: bool
    ) -> None:
        super().__init__()
        self.block, self.merge, self.ledger = block, merge, ledger
        self.first, self.last = first, last
        self.register_buffer("shared", shared)

    def forward(self, stream: Tensor, *args: Any, **more: Any) -> Any:
        """Return what the block returns; from the window's last block with the merged units as its stream."""
        if self.first:  # what enters the window belongs to unit 0
            entering = stream.new_zeros(*stream.shape[:-1], len(self.merge.channels))
            self.ledger.units = entering.index_copy(-1, self.shared, stream)
        output = self.block(stream, *args, **more)
        if not self.last:
            return output
        merged, self.ledger.units = self.merge(self.ledger.units), None
        return with_first(output, merged)


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
    made = clean_copy(network)
    routing = on_device(routing, next(network.parameters()).device)
    channels, units = routing.rows()
    if site.kind == "stream":
        _split_stream(made, site, routing, channels, units)
    else:
        layer: Any = made.get_submodule(site.terms[0].layer)
        split = split_layer(layer, routing, channels, units)
        merge = Merge(channels, site.channels, dim=1 if site.kind == "convolution" else -1)
        replace_module(made, site.terms[0].layer, SplitLayer(split, merge, site.terms[0].layer))
    return made.eval().requires_grad_(requires_grad=False)


def check_explicit(model: Model, made: nn.Module, site: Site) -> None:
    """Compare an explicit network with the model on noise.

    Raises
    ------
    SiteError
        If its outputs differ by more than rounding: a network that looks into its layers beside calling them cannot be
        split by replacing them.
    """
    noise = model.noise()
    with evaluating(model.network):
        expected = output_tensor(run_network(model.network, noise))
        try:
            found = output_tensor(run_network(made, noise))
        except (AttributeError, RuntimeError, TypeError, IndexError, KeyError) as error:
            raise SiteError(
                f"{site.name!r} cannot be made explicit: its network does not run with split layers in the "
                f"place of its own ({type(error).__name__}: {error}). The lens works all the same."
            ) from error
    difference, largest = float((expected - found).abs().max()), float(expected.abs().max())
    if not difference <= largest * torch.finfo(model.dtype).eps ** 0.5:
        raise SiteError(
            f"{site.name!r} cannot be made explicit: outputs on noise differ by {difference:.2g} (the largest "
            f"is {largest:.2g}). The network does more with its layers than call them; the lens works all the same."
        )


def weights_add_up(network: nn.Module, explicit: nn.Module, site: Site) -> bool:
    """Say whether the units' weights and biases in an explicit network add up to the network's own, bit for bit."""
    made = {module.path: module for module in explicit.modules() if isinstance(module, SplitTerm | SplitLayer)}
    channels = next(module.channels for module in explicit.modules() if isinstance(module, Merge))
    if made.keys() != {term.layer for term in site.terms}:
        return False
    for term in site.terms:
        split: Any = made[term.layer].split
        original: Any = network.get_submodule(term.layer)
        pairs = [(split.weight, dense_weight(original)), (split.bias, original.bias)]
        for rows, whole in pairs:
            if rows is None or whole is None:
                if rows is not whole:
                    return False
            elif not torch.equal(torch.zeros_like(whole).index_add(0, channels, rows), whole):
                return False
    return True


def split_layer(layer: nn.Linear | nn.Conv2d, routing: Routing, channels: Tensor, units: Tensor) -> Any:
    """Return a layer with one output per unit: the channel's weights, or shares of them, where routed to the unit.

    The bias is in unit 0. Where contributions are shared, which leaves unit 0 empty, it is spread over the sub-units in
    proportion to their mean share of the weights (arXiv 2605.31304, section 3).

    Parameters
    ----------
    layer
        A linear layer or convolution with ``d`` outputs and ``s`` inputs.
    routing
        Of the layer's inputs.
    channels, units
        The units wanted, as `Routing.rows` gives them, (u,) each.

    Raises
    ------
    PartitionError
        If the rows of a channel do not add up to its weights bit for bit.
    """
    weight = dense_weight(layer)
    rows = routing.masked(weight.flatten(1), channels, units).view(len(units), *weight.shape[1:])
    _check_partition(rows, channels, weight, alone=routing.owner_sets is None)
    bias = None
    if layer.bias is not None:
        whole = layer.bias.detach()
        bias = whole[channels].masked_fill(units != 0, 0)
        if routing.owner_sets is not None:
            shares = proportional_shares(whole, routing.mean_shares().to(whole.device))
            bias = shares[channels, units]
        _check_partition(bias, channels, whole, alone=routing.owner_sets is None)
    split = _empty_like(layer, len(units))
    split.weight = nn.Parameter(rows, requires_grad=False)
    split.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    return split


def _check_partition(rows: Tensor, channels: Tensor, weight: Tensor, *, alone: bool = True) -> None:
    """Check that rows add up to the weights, and unless some are shared, that each stands in one row."""
    total = torch.zeros_like(weight).index_add(0, channels, rows)
    entries = torch.zeros_like(weight, dtype=torch.int32).index_add(0, channels, (rows != 0).to(torch.int32))
    if not torch.equal(total, weight) or (alone and int(entries.max()) > 1):
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
    ledger, first_source = Ledger(), 0
    for term in site.terms:
        piece = routing.of_sources(first_source, first_source + term.sources)
        first_source += term.sources
        layer: Any = network.get_submodule(term.layer)
        split = split_layer(layer, piece, channels, units)
        scale = split.weight.new_empty(0)
        if term.scale is not None:
            scale = network.get_parameter(term.scale).detach()[channels]
        replace_module(network, term.layer, SplitTerm(layer, split, scale, ledger, term.layer))
    paths = blocks_of(network, site.entry, site.exit)
    for path in paths:
        block = network.get_submodule(path)
        first, last = path == paths[0], path == paths[-1]
        replace_module(network, path, SplitBlock(block, ledger, merge, shared, first=first, last=last))


def take_branch(network: nn.Module, term: Term) -> tuple[nn.Module, nn.Module, Any, Any]:
    """Take a plain pre-norm block's branch apart: return norm, branch without its last layer, that layer, and scale.

    Raises
    ------
    AttributeError
        If the block is not made of ``norm1``, attention, ``norm2`` and MLP.
    """
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
