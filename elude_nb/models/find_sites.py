"""How the tokens of one image are laid out at a site, read off the shapes of a forward pass."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor, nn

from elude_nb._util.arguments import knows_arguments
from elude_nb._util.arithmetic import own_arithmetic, run_network
from elude_nb._util.checks import check_count, check_kind, check_whole, near_matches
from elude_nb._util.warn import warn_caller
from elude_nb.errors import SiteError
from elude_nb.models.hooks import Tap, as_dtype, check_pristine, clean_copy, evaluating, listen
from elude_nb.models.layers import layer_names, reason_against
from elude_nb.models.load import Model, check_model
from elude_nb.models.marks import weight_marks
from elude_nb.models.outputs import first_tensor
from elude_nb.models.sites import STREAM, Site, Term, TokenLayout
from elude_nb.models.stream import block_terms, stream_blocks, uncalled_attention, watch_blocks

_MOST_OTHERS = 16
"""More tokens than this beside the patches are not taken for class tokens and registers."""


def read_layout(
    model: Model, path: str, shape: Sequence[int], grids: Iterable[tuple[int, int]], *, channels_last: bool
) -> TokenLayout:
    """Return the layout of the output of a module, with the batch first.

    How many tokens are no patches is what `wrap_network` was told; otherwise what a module around it says, or else any
    in the network: timm by ``num_prefix_tokens``, transformers by its config, others by a parameter.

    Parameters
    ----------
    model, path
        The model, and the path of the module.
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
    told = _told(model, path)
    if told.prefix is None:
        return _by_maps(told.registers, count, grids)
    registers, patches = min(told.prefix, told.registers or 0), count - told.prefix
    if patches < 0:  # a layer on pooled tokens: they are not the prefix of the others
        return TokenLayout(0, 0, (1, count))
    if told.in_line:
        grid = (1, patches)  # words, not patches
    else:  # first the maps on the way, since a network that takes any size says only which it was built for
        several = (*grids, told.grid or (0, 0), _square(patches))
        grid = next(grid for grid in several if grid[0] * grid[1] == patches)
    return TokenLayout(told.prefix - registers, registers, (int(grid[0]), int(grid[1])))


def _by_maps(registers: int | None, count: int, grids: Iterable[tuple[int, int]]) -> TokenLayout:
    """Take the first map that has the tokens' number of positions, up to a few class tokens and registers."""
    for grid in grids:
        others = count - grid[0] * grid[1]
        if 0 <= others <= min(_MOST_OTHERS, grid[0] * grid[1]):
            if others > 1 and registers is None:
                warn_caller(
                    f"{others} tokens stand before the {grid[0]} x {grid[1]} patches, and the network does not say "
                    "which are registers: all count as class tokens. wrap_network(network, registers=...) tells."
                )
            known = min(others, registers or 0)
            return TokenLayout(others - known, known, grid)
    return TokenLayout(0, 0, _square(count))


@dataclass(frozen=True)
class _Told:
    """What is known of a network's tokens; ``prefix`` counts class tokens and registers, ``None`` is not known."""

    prefix: int | None
    registers: int | None
    grid: tuple[int, int] | None = None
    in_line: bool = False


def _told(model: Model, path: str) -> _Told:
    """Return what was told of the tokens at a module: by the user, by the modules around it, or by any other."""
    network, parts = model.network, path.split(".")
    around = (network.get_submodule(".".join(parts[:length])) for length in range(len(parts) + 1))
    every = [*around, *network.modules()]  # those around it first, the outermost before all
    owner: Any = next((module for module in every if hasattr(module, "num_prefix_tokens")), None)
    prefix = None if owner is None else int(owner.num_prefix_tokens or 0)
    registers = model.registers
    if registers is None:
        asked = every if owner is None else [owner]
        registers = next((number for module in asked if (number := _registers(module)) is not None), None)
    if model.class_tokens is not None:
        prefix = model.class_tokens + (registers or 0)
    grid = getattr(getattr(owner, "patch_embed", None), "grid_size", None)
    return _Told(prefix, registers, grid, bool(getattr(owner, "tokens_in_line", False)))


def _registers(module: nn.Module) -> int | None:
    """Return how many registers a module says it has: by a number, in its config, or by a parameter (1, r, d)."""
    config = module.__dict__.get("config")
    for holder, name in ((module, "num_reg_tokens"), (module, "num_register_tokens"), (config, "num_register_tokens")):
        number = getattr(holder, name, None)
        if isinstance(number, int):
            return number
    for name in ("reg_token", "register_tokens", "reg_tokens", "registers"):
        tokens = module._parameters.get(name)
        if tokens is not None and tokens.ndim == 3:
            return tokens.shape[1]
    return None


def _square(patches: int) -> tuple[int, int]:
    side = math.isqrt(patches)
    return (side, side) if side * side == patches else (1, patches)


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
    why
        Why a block that seemed to write to a stream is none, if one did.
    """

    shapes: dict[str, tuple[int, ...]]
    calls: dict[str, int]
    norms: dict[str, str]
    grids: list[tuple[int, int]]
    blocks: dict[str, tuple[Term, ...]]
    why: str = ""


RUNS: weakref.WeakKeyDictionary[nn.Module, dict[tuple[int, ...], tuple[Any, Run]]] = weakref.WeakKeyDictionary()
"""What was seen of each network at each input size, and the marks of its modules and weights then."""


def run_once(model: Model) -> Run:
    """Run the network on noise and note shapes; remembered until a module or a weight is another."""
    known = RUNS.setdefault(model.network, {})
    marks = (
        [(name, id(module)) for name, module in model.network.named_modules()],
        weight_marks(model.network),
        model.output,
    )
    if model.input_size in known and known[model.input_size][0] == marks:
        return known[model.input_size][1]
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
            stack.callback(listen(module, after=partial(note, name)))
        _run_on_noise(model)
    paths = stream_blocks(model.network)
    blocks = {path: tuple(block_terms(model.network, path, number)) for number, path in enumerate(paths, 1)}
    why = ""
    if not blocks:
        blocks, why = watch_blocks(model.network, model.noise(8))  # more images than layers of a block
    order = {name: number for number, name in enumerate(calls)}
    for path, terms in blocks.items():  # as they ran: who listens knows by the last one that a pass is over
        blocks[path] = tuple(sorted(terms, key=lambda term: order.get(term.layer, len(order))))
    found = Run(shapes, calls, norms, grids, blocks, why)
    known[model.input_size] = marks, found
    return found


def _run_on_noise(model: Model) -> None:
    noise = model.noise()
    try:
        output = run_network(model.network, noise)
    except (RuntimeError, AssertionError, ValueError, TypeError, IndexError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise SiteError(
            f"{model.name!r} does not run on a batch of {tuple(noise.shape)} ({type(error).__name__}: {reason}). Make "
            "the model with the size of its images: wrap_network(network, input_size=...)."
        ) from error
    model.tensor_of(output, len(noise))  # one that stands for nothing is told of now


@knows_arguments
@own_arithmetic()
def find_sites(model: Model, *, blocks: int | Literal["all"] = "all") -> pd.DataFrame:
    """List the places of a model where channels can be split.

    Parameters
    ----------
    model
        The model; one forward pass is run.
    blocks
        For the residual stream: over how many of the blocks before it, or ``"all"``.

    Returns
    -------
    DataFrame
        One row a site: ``site`` (its name), ``kind``, ``channels``, ``sources``, ``sources_per_channel``, ``tokens``,
        ``can_be_split``, and the ``reason`` where it cannot.

    Examples
    --------
    >>> from elude_nb import load_model
    >>> sites = find_sites(load_model("vit_tiny_patch16_224", pretrained=False))
    >>> last = sites[sites.kind == "stream"].iloc[-1]
    >>> print(last["site"], last["channels"], last["sources"])
    stream:12 192 11520
    """
    check_model(model)
    check_pristine(model.network, "find_sites")
    _check_blocks(blocks)
    run = run_once(model)
    names = [f"{STREAM}:{k}" for k in range(1, len(run.blocks) + 1)]
    rows = [_site_row(model, name, blocks, run) for name in names]
    splittable = [row for row in rows if row["can_be_split"]]
    if splittable:  # the last stream holds the others' sums, so its check is theirs
        reason = _reason_against(model, splittable[-1]["site"], blocks)
        for row in splittable if reason else ():
            row |= {"can_be_split": False, "reason": reason}
    rows += [_site_row(model, name, "all", run) for name in layer_names(model.network)]
    columns = ["site", "kind", "channels", "sources", "sources_per_channel", "tokens", "can_be_split", "reason"]
    return pd.DataFrame(rows, columns=columns)


def _reason_against(model: Model, name: str, blocks: int | Literal["all"]) -> str:
    try:
        find_site(model, name, blocks=blocks)
    except SiteError as error:
        return str(error)
    return ""


def _site_row(model: Model, name: str, blocks: int | Literal["all"], run: Run) -> dict[str, Any]:
    if blocks != "all":
        blocks = min(blocks, int(name.rpartition(":")[2]))
    try:
        site = _describe(model, name, blocks, run)
    except SiteError as error:
        return {"site": name, "can_be_split": False, "reason": str(error)}
    groups = getattr(model.network.get_submodule(site.exit), "groups", 1)
    return {
        "site": site.name,
        "kind": site.kind,
        "channels": site.channels,
        "sources": site.sources,
        "sources_per_channel": site.sources // groups,
        "tokens": site.layout.count,
        "can_be_split": True,
        "reason": "",
    }


@knows_arguments
@own_arithmetic()
def find_site(model: Model, name: str = STREAM, *, blocks: int | Literal["all"] = "all") -> Site:
    """Return one site by name, after a forward pass has shown that its channels are the sum they should be.

    Parameters
    ----------
    model
        The model.
    name
        ``"stream"`` (after the last block), ``"stream:8"`` (after block 8, counted from 1), or the path of a linear
        layer or convolution.
    blocks
        For a stream: the last so many blocks before the site are its window; ``"all"`` takes every one.

    Raises
    ------
    SiteError
        If there is no such place (near matches are named), it is no sum that can be split (the reason is named), or the
        network does not run on inputs of the model's ``input_size``.
    """
    check_model(model)
    check_pristine(model.network, "find_site")
    check_kind("site", name, str, "text, such as 'stream' or the path of a layer")
    _check_blocks(blocks)
    run = run_once(model)
    site = _describe(model, name, blocks, run)
    _check_recomposition(model, site)
    return site


def _check_blocks(blocks: object) -> None:
    if not (isinstance(blocks, str) and blocks == "all"):
        check_whole("blocks", blocks)


def _describe(model: Model, name: str, blocks: int | Literal["all"], run: Run) -> Site:
    if name == STREAM or name.startswith(f"{STREAM}:"):
        return _describe_stream(model, name, blocks, run)
    return describe_layer(model, name, run)


def describe_layer(model: Model, name: str, run: Run) -> Site:
    """Return the site at a linear layer or convolution; raises as `find_site` does, without another forward pass."""
    if name not in dict(model.network.named_modules(remove_duplicate=False)):
        streams = (f"{STREAM}:{k}" for k in range(1, len(run.blocks) + 1))
        known = [*layer_names(model.network), *streams]
        raise SiteError(f"No site is called {name!r}.{near_matches(name, known)} find_sites(model) lists them all.")
    reason = reason_against(model.network, name)
    if reason:
        raise SiteError(reason)
    layer: Any = model.network.get_submodule(name)
    if run.calls.get(name, 0) != 1:
        found = run.calls.get(name, 0)
        why = "it is shared" if found else "it is idle, or its weight is used without calling it"
        raise SiteError(f"{name!r} ran {found} times in one forward pass ({why}); a site runs exactly once.")
    if run.shapes[name][0] != 1:  # one image was run
        raise SiteError(
            f"{name!r} put out {run.shapes[name][0]} rows for one image (it works on windows or folds tokens into the "
            "batch), so its rows cannot be told apart by image; choose another layer."
        )
    convolution = isinstance(layer, nn.Conv2d)
    sources = layer.in_channels if convolution else layer.in_features
    if sources // getattr(layer, "groups", 1) == 1:
        raise SiteError(f"{name!r} has one source a channel; there is nothing to split.")
    part: Literal["convolution", "linear"] = "convolution" if convolution else "linear"
    return Site(
        name=name,
        kind=part,
        channels=layer.weight.shape[0],
        sources=sources,
        terms=(Term(name, None, None, part, sources),),
        kernel=math.prod(layer.kernel_size) if convolution else 1,
        layout=read_layout(model, name, run.shapes[name], run.grids, channels_last=not convolution),
        entry=name,
        exit=name,
        norm=run.norms.get(name),
    )


def _describe_stream(model: Model, name: str, blocks: int | Literal["all"], run: Run) -> Site:
    paths = list(run.blocks)
    if not paths:
        raise SiteError(
            f"{type(model.network).__name__} has no run of pre-norm transformer blocks, so no residual stream to "
            f"split{': ' + run.why if run.why else '; choose a linear layer or convolution from find_sites(model)'}."
        )
    number = name.removeprefix(STREAM).removeprefix(":") or str(len(paths))
    if not number.isdecimal() or not 1 <= int(number) <= len(paths):
        raise SiteError(f"site={name!r}: write 'stream' or 'stream:1' to 'stream:{len(paths)}'.")
    last = int(number)
    if blocks != "all":
        check_count("blocks", blocks, 1, last)
    first = 1 if blocks == "all" else last - blocks + 1
    terms = tuple(term for path in paths[first - 1 : last] for term in run.blocks[path])
    _check_writers(model.network, name, paths[first - 1 : last], terms, run)
    shape = run.shapes[paths[last - 1]]
    return Site(
        name=f"{STREAM}:{last}",
        kind="stream",
        channels=shape[-1],
        sources=sum(term.sources for term in terms),
        terms=terms,
        kernel=1,
        layout=read_layout(model, paths[last - 1], shape, run.grids, channels_last=True),
        entry=paths[first - 1],
        exit=paths[last - 1],
    )


def _check_writers(network: nn.Module, name: str, paths: list[str], terms: Sequence[Term], run: Run) -> None:
    """Refuse blocks whose layers do not write once to every token of one stream, and say what stands against it."""
    instead = "take fewer blocks (blocks=1), or split one of its linear layers; find_sites(model) lists them."
    shape = run.shapes.get(paths[-1], ())
    for path in paths:
        attention = uncalled_attention(network.get_submodule(path))
        if attention is not None:
            raise SiteError(
                f"site={name!r}: {path}.{attention} is a torch.nn.MultiheadAttention, which adds to the stream without "
                "calling its last layer, so its sources cannot be listened to; split a layer of the MLPs."
            )
    for term in terms:
        reason = reason_against(network, term.layer)
        if reason:
            raise SiteError(f"site={name!r}: {reason}")
        calls, own = run.calls.get(term.layer, 0), run.shapes.get(term.layer, ())
        if calls != 1:
            why = f"it ran {calls} times: it is shared, or its weight is used without calling it"
        elif shape[:1] != (1,) or own[:1] != (1,):  # one image was run
            why = "it works on windows of tokens"
        elif own != shape and sorted(own) == sorted(shape):
            why = "the stream is a map with its channels first"
        elif own != shape and math.prod(own) == math.prod(shape):
            why = "it works on another arrangement of the tokens, such as windows"
        elif own != shape:
            why = f"it puts out {own}, where the last block's stream is {shape}: it lies in another stage"
        else:
            continue
        raise SiteError(
            f"site={name!r}: {term.layer!r} does not write once to every token of the stream ({why}); {instead}"
        )


def _check_recomposition(model: Model, site: Site) -> None:
    """Add the contributions up for one noise image and compare with the model's own channels."""
    network, noise = model.network, model.noise()
    if model.dtype.itemsize < 4:  # half precision rounds so coarsely that a wrong sum would pass
        network, noise = clean_copy(network).float(), as_dtype(noise, torch.float32)
    weights = site.weights(network)
    total: dict[str, Tensor] = {}

    def add(number: int, sources: Tensor) -> None:
        part = (sources @ weights[number].T).cpu().double()
        total["sum"] = total["sum"] + part if "sum" in total else part

    with (
        evaluating(network),
        Tap(
            network,
            site,
            on_source=add,
            # copies: what follows may change them in place
            on_channels=lambda h: total.__setitem__("channels", h.cpu().double().clone()),
            on_entering=lambda x: total.__setitem__("entering", x.cpu().double().clone()),
        ),
    ):
        run_network(network, noise)
    inside = total["sum"] + site.bias(network).cpu().double()
    entering = total.get("entering", torch.zeros(()))
    if entering.ndim and entering.shape != inside.shape:
        raise SiteError(
            f"{site.name!r}: {tuple(entering.shape)} enters the window and {tuple(inside.shape)} leaves it, so another "
            "stage begins in it; take fewer blocks (blocks=1)."
        )
    difference = total["channels"] - inside - entering
    eps = torch.finfo(weights[0].dtype).eps
    # Rounding of a sum of s terms grows like sqrt(s); the stream is rounded once more at each of the additions.
    allowed = (
        16 * eps * (math.sqrt(site.sources) * inside.abs().max() + len(site.terms) * total["channels"].abs().max())
    )
    if not difference.abs().max() <= allowed:
        raise SiteError(
            f"{site.name!r} is not the sum it should be: recomposed channels differ from the model's by up to "
            f"{difference.abs().max():.2g}, where rounding allows {allowed:.2g}. The block normalises after the "
            "addition (or what it adds), gates its output, or adds something else than "
            f"{', '.join(term.layer for term in site.terms[-2:])}; split one of its linear layers instead."
        )
