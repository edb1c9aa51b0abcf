"""An edit made permanent: an ordinary network that does what the live edit does, without hooks.

Where the edit is affine and the same at all tokens, and the site is a layer, it is folded into the layer's weights. For
all other edits, small linear layers compute the few activations that the edit needs; in a residual stream these are
carried to the end of the window next to the stream, since each block must read the unedited stream. `save_permanent`
writes either kind to a file that torch loads without this library.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from elude_nb._util.arithmetic import own_arithmetic, run_network
from elude_nb._util.words import counted
from elude_nb.core.edit import Edit
from elude_nb.core.explicit import replace_module, take_branch
from elude_nb.core.plan import Plan, Step, at_strongest, increment, plan_edit
from elude_nb.core.result import Disentanglement, check_split
from elude_nb.core.steer import Steering, check_edit
from elude_nb.errors import EditError, SiteError
from elude_nb.models.hooks import as_tokens, clean_copy, evaluating, from_tokens
from elude_nb.models.outputs import output_tensor
from elude_nb.models.sites import STREAM, Site, Term
from elude_nb.steering.export import save_program

_GEOMETRY = ("kernel_size", "stride", "padding", "dilation", "padding_mode")


class EditStep(nn.Module):
    """One change: activations (n, t, u) to what is added to them."""

    rows: Tensor
    reference: Tensor
    values: Tensor
    weights: Tensor
    signs: Tensor

    def __init__(self, step: Step, weights: Tensor) -> None:
        super().__init__()
        self.kind, self.strongest, self.one_sided = step.change.kind, step.change.strongest, step.side is not None
        signs = torch.ones_like(step.reference) if step.signs is None else step.signs
        buffers = {"rows": step.rows, "reference": step.reference, "values": step.values, "weights": weights}
        for name, tensor in {**buffers, "signs": signs}.items():
            self.register_buffer(name, _own(tensor))

    def forward(self, activations: Tensor) -> Tensor:
        """Return the increments (n, t, u)."""
        part = activations.index_select(-1, self.rows)
        side = self.signs if self.one_sided else None
        change = increment(self.kind, part, self.reference, self.values, side) * self.weights[:, None]
        if self.strongest is not None:
            change = at_strongest(change, part * self.signs, self.strongest, self.weights)
        return torch.zeros_like(activations).index_add(-1, self.rows, change)

    def extra_repr(self) -> str:
        """Say what is done to how many activations."""
        return f"{self.kind} of {counted(len(self.rows), 'sub-unit')}"


class EditRule(nn.Module):
    """What an edit adds to the tokens of a site, from the activations that were computed for it."""

    channels: Tensor
    weights: Tensor
    factor: Tensor

    def __init__(self, plan: Plan, site: Site, network: nn.Module) -> None:
        super().__init__()
        ones = torch.ones(plan.tokens if plan.positions is not None else 1, dtype=plan.offset.dtype)
        here = ones if plan.positions is None else torch.zeros_like(ones).index_fill(0, plan.positions.cpu(), 1)
        self.register_buffer("channels", _own(plan.channels))
        self.register_buffer("weights", here)
        self.register_buffer("factor", site.captured_change(network, torch.ones_like(plan.offset), plan.channels))
        self.steps = nn.ModuleList(_step_module(step, plan, here) for step in plan.steps)

    def forward(self, tokens: Tensor, activations: Tensor) -> Tensor:
        """Return tokens (n, t, d) with what the edit makes of activations (n, t, u) added."""
        if len(self.weights) not in {1, tokens.shape[1]}:
            raise EditError(
                f"The edit chooses among {len(self.weights)} tokens, but these images have {tokens.shape[1]}: give "
                "images of the model's input size, or edit all tokens."
            )
        if len(self.steps):
            change = torch.zeros_like(activations)
            for step in self.steps:
                change = change + step(activations + change)
        else:  # one number a channel, that is added as it is
            change = activations * self.weights[:, None]
        return tokens.index_add(-1, self.channels, (change * self.factor).to(tokens.dtype))


class EditedLayer(nn.Module):
    """A linear layer or convolution, with a second one (the reader) that computes the activations the edit needs."""

    def __init__(self, layer: nn.Module, reader: nn.Linear | nn.Conv2d, rule: EditRule) -> None:
        super().__init__()
        self.layer, self.reader, self.rule = layer, reader, rule
        self.last = not isinstance(layer, nn.Conv2d)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the layer's output with the edit done."""
        output: Tensor = self.layer(inputs)
        read = self.reader(inputs.to(self.reader.weight.dtype))
        tokens = as_tokens(output, channels_last=self.last)
        moved: Tensor = self.rule(tokens, as_tokens(read, channels_last=self.last))
        return from_tokens(moved, output, channels_last=self.last)


class EditedBranch(nn.Module):
    """Attention or MLP of a pre-norm block, with a reader of the activations that the edit needs."""

    def __init__(self, norm: nn.Module, branch: nn.Module, layer: nn.Linear, reader: nn.Linear, scale: Any) -> None:
        super().__init__()
        self.norm, self.branch, self.layer, self.reader = norm, branch, layer, reader
        self.scale = scale

    def forward(self, stream: Tensor, numbers: Tensor, *args: Any, **more: Any) -> tuple[Tensor, Tensor]:
        """Return the stream (n, t, d) and the numbers (n, t, u), each with what this branch adds."""
        sources = self.branch(self.norm(stream), *args, **more)  # (n, t, s), since the last layer is taken off
        added = self.layer(sources)
        if self.scale is not None:
            added = added * self.scale
        return stream + added, numbers + self.reader(sources.to(self.reader.weight.dtype))


class EditedBlock(nn.Module):
    """A pre-norm block that carries the activations of an edit next to the stream; the window's last one edits."""

    def __init__(
        self, attention: EditedBranch, mlp: EditedBranch, rule: EditRule, offset: Tensor, width: int, *, last: bool
    ) -> None:
        super().__init__()
        self.attention, self.mlp, self.width, self.last = attention, mlp, width, last
        self.rule = rule if last else None
        self.dtype = attention.layer.weight.dtype
        self.register_buffer("offset", _own(offset))

    offset: Tensor

    def forward(self, carried: Tensor, *args: Any, **more: Any) -> Tensor:
        """Return stream and numbers, (n, t, d + u), or in the window's last block the edited stream."""
        stream = carried[..., : self.width].to(self.dtype)
        numbers = carried[..., self.width :]
        if not numbers.shape[-1]:  # the first block of the window
            numbers = self.offset.expand(*stream.shape[:-1], -1)
        stream, numbers = self.attention(stream, numbers, *args, **more)
        stream, numbers = self.mlp(stream, numbers)
        if self.rule is not None:
            edited: Tensor = self.rule(stream, numbers)
            return edited
        return torch.cat([stream.to(numbers.dtype), numbers], dim=-1)  # the wider of the two dtypes


@own_arithmetic()
def make_permanent(split: Disentanglement, edit: Edit) -> nn.Module:
    """Return a new network that does what ``with split.edit(edit):`` does; the split's model is not touched.

    Parameters
    ----------
    split, edit
        The split and the edit. The edit's strengths must be numbers, not schedules.

    Returns
    -------
    Module
        A copy of the network. At a layer, an affine edit of all tokens (scale, ablate, add) is in its weights, equal to
        the live edit up to rounding; all others do what the live edit does, in ordinary modules.

    Raises
    ------
    EditError, ModelMismatchError
        If the split cannot carry out the edit, it has a schedule, or another edit is active on the model.
    SiteError
        If the site is the stream of blocks that do not run one branch after the other.
    """
    check_split(split, "make_permanent", thorough=True)
    check_edit(split, edit)
    plan = plan_edit(split, edit)
    if any(change.scheduled for change in edit.changes):
        raise EditError("A schedule of strengths cannot be made permanent; choose one with a number as strength.")
    network, site = split.model.network, split.site
    made = clean_copy(network).cpu()  # where the plan is
    if len(plan):
        if site.kind == STREAM:
            _edit_stream(made, site, plan)
        elif not plan.steps and plan.positions is None:
            _fold(made, site, plan)
        else:
            _edit_layer(made, site, plan)
    made = made.to(split.model.device).eval().requires_grad_(requires_grad=False)
    _check(split, edit, made)
    return made


def save_permanent(split: Disentanglement, edit: Edit, path: str | os.PathLike[str]) -> Path:
    """Write the permanently edited network as a program that torch loads and runs without this library.

    ``torch.export.load(path).module()`` is then the network, for any batch of images of the model's input size.

    Parameters
    ----------
    split, edit
        As in `make_permanent`, with the same errors.
    path
        The file, by custom with the ending ``.pt2``, written atomically. It is packed in memory first, which takes as
        much as the network.

    Raises
    ------
    OSError
        If the file cannot be written, such as on a full disk; an old one is then as it was.

    See Also
    --------
    elude_nb.steering.export.save_onnx : For ONNX: ``save_onnx(make_permanent(split, edit), path, like=split.model)``.
    """
    return save_program(make_permanent(split, edit), path, like=split.model)


def _own(tensor: Tensor) -> Tensor:
    """Return a tensor with memory of its own, so that a file does not hold the larger tensor it is a part of."""
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _step_module(step: Step, plan: Plan, here: Tensor) -> EditStep:
    """Return a step as a module; its weights are laid out over all tokens, its strength is in them."""
    strength = step.change.strength_at(0)  # a number: schedules were refused
    weights = strength * here
    if step.weights is not None:
        full = torch.zeros(plan.tokens, dtype=here.dtype)
        where = torch.arange(plan.tokens) if plan.positions is None else plan.positions.cpu()
        weights = strength * full.index_copy(0, where, step.weights.cpu().to(here.dtype))
    return EditStep(step, weights)


def _fold(network: nn.Module, site: Site, plan: Plan) -> None:
    """Add what the edit adds to the layer's own weights and bias."""
    layer: Any = network.get_submodule(site.terms[0].layer)
    factor = site.captured_change(network, torch.ones_like(plan.offset), plan.channels).double()
    rows = (plan.matrix.T.double() * factor[:, None]).unflatten(1, (-1, site.kernel))  # (u, s, kernel)
    rows = rows.reshape(len(plan), -1, *layer.weight.shape[2:])
    groups = getattr(layer, "groups", 1)
    weight = layer.weight.detach().double()
    for row, channel in zip(rows, plan.channels.tolist(), strict=True):
        width = weight.shape[1]
        first = (channel // (len(weight) // groups)) * width if groups > 1 else 0  # inputs of the channel's group
        weight[channel] += row[first : first + width]
    bias = torch.zeros(len(weight), dtype=torch.float64) if layer.bias is None else layer.bias.detach().double()
    bias = bias.index_add(0, plan.channels, plan.offset.double() * factor)
    layer.bias = nn.Parameter(bias.to(layer.weight.dtype))
    layer.weight = nn.Parameter(weight.to(layer.weight.dtype))


def _edit_layer(network: nn.Module, site: Site, plan: Plan) -> None:
    layer: Any = network.get_submodule(site.terms[0].layer)
    rule = EditRule(plan, site, network)
    replace_module(network, site.terms[0].layer, EditedLayer(layer, _reader(layer, plan.matrix, plan.offset), rule))


def _reader(layer: Any, matrix: Tensor, offset: Tensor | None) -> Any:
    """Return a layer of the same kind that reads matrix (s * kernel, u) and offset (u,)."""
    if isinstance(layer, nn.Conv2d):
        geometry: Any = {name: getattr(layer, name) for name in _GEOMETRY}
        made: Any = nn.Conv2d(layer.in_channels, matrix.shape[1], **geometry, device="meta")
        rows = matrix.T.reshape(matrix.shape[1], layer.in_channels, *layer.kernel_size)
    else:
        made, rows = nn.Linear(len(matrix), matrix.shape[1], device="meta"), matrix.T
    made.weight = nn.Parameter(_own(rows))
    made.bias = None if offset is None else nn.Parameter(_own(offset))
    return made


def _edit_stream(network: nn.Module, site: Site, plan: Plan) -> None:
    rule = EditRule(plan, site, network)
    pieces = plan.matrix.split([term.sources for term in site.terms])
    blocks = list(dict.fromkeys(term.block for term in site.terms))
    for block in blocks:
        terms = [(term, piece) for term, piece in zip(site.terms, pieces, strict=True) if term.block == block]
        path = terms[0][0].layer.rpartition(".")[0].rpartition(".")[0]
        try:
            branches = {term.part: _edited_branch(network, term, piece) for term, piece in terms}
            attention, mlp = branches["attention"], branches["mlp"]
        except (AttributeError, KeyError) as error:  # no norm1 or norm2; or not one attention and one MLP
            raise SiteError(_not_plain(site.name, f"{path!r} lacks a part: {error}")) from error
        last = block == blocks[-1]
        made = EditedBlock(attention, mlp, rule, plan.offset, site.channels, last=last)
        replace_module(network, path, made)


def _edited_branch(network: nn.Module, term: Term, matrix: Tensor) -> EditedBranch:
    norm, branch, layer, scale = take_branch(network, term)
    return EditedBranch(norm, branch, layer, _reader(layer, matrix, None), scale)


def _check(split: Disentanglement, edit: Edit, made: nn.Module) -> None:
    """Compare with the live edit on noise: a block whose branches do not run one after the other would be wrong."""
    noise = split.model.noise()
    with evaluating(split.model.network), Steering(split, edit):
        expected = output_tensor(run_network(split.model.network, noise))
    try:
        with torch.no_grad():
            found = output_tensor(run_network(made, noise))
    except (AttributeError, RuntimeError, TypeError) as error:
        raise SiteError(_not_plain(split.site.name, str(error))) from error
    difference, largest = float((expected - found).abs().max()), float(expected.abs().max())
    if not difference <= largest * torch.finfo(split.model.dtype).eps ** 0.5:
        reason = f"outputs on noise differ by {difference:.2g} (largest: {largest:.2g})"
        raise SiteError(_not_plain(split.site.name, reason))


def _not_plain(name: str, reason: str) -> str:
    return (
        f"The edit at {name!r} cannot be made permanent: {reason}. Its blocks are no plain pre-norm blocks; the live "
        "edit works all the same."
    )
