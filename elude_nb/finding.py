"""Find the sites of a model, and check on a forward pass that their channels are the sums they should be."""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor, nn

from elude_nb.checks import check_count, near_matches
from elude_nb.interception import is_intercepted
from elude_nb.models import Model
from elude_nb.sites import STREAM, Site, SiteError, Term, TokenLayout
from elude_nb.taps import Tap, evaluating

# The parts of a pre-norm block that write to the residual stream: the branch, the names its last linear layer goes
# by, and the names its layer scale goes by. Read off timm; a block that has them but adds differently fails the check.
_BRANCHES: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("attn", ("proj",), ("ls1.gamma", "gamma_1")),
    ("mlp", ("fc2", "w3"), ("ls2.gamma", "gamma_2")),
)


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
        One row a site: ``site`` (its name), ``kind``, ``channels``, ``sources``, ``sources per channel``, ``tokens``,
        ``can be split``, and the ``reason`` where it cannot.

    Examples
    --------
    >>> from elude_nb import load_model
    >>> sites = find_sites(load_model("vit_tiny_patch16_224", pretrained=False))
    >>> last = sites[sites.kind == "stream"].iloc[-1]
    >>> print(last["site"], last["channels"], last["sources"])
    stream:12 192 11520
    """
    names = [f"{STREAM}:{k}" for k in range(1, len(_stream_blocks(model.network)) + 1)]
    rows = [_site_row(model, name, blocks) for name in names]
    splittable = [row for row in rows if row["can be split"]]
    if splittable:  # the last stream holds the others' sums, so its check is theirs
        reason = _reason_against(model, splittable[-1]["site"], blocks)
        for row in splittable if reason else ():
            row |= {"can be split": False, "reason": reason}
    rows += [_site_row(model, name, "all") for name in _layer_names(model.network)]
    columns = ["site", "kind", "channels", "sources", "sources per channel", "tokens", "can be split", "reason"]
    return pd.DataFrame(rows, columns=columns)


def _reason_against(model: Model, name: str, blocks: int | Literal["all"]) -> str:
    try:
        find_site(model, name, blocks=blocks)
    except SiteError as error:
        return str(error)
    return ""


def _site_row(model: Model, name: str, blocks: int | Literal["all"]) -> dict[str, Any]:
    if blocks != "all":
        blocks = min(blocks, int(name.rpartition(":")[2]))
    try:
        site = _describe(model, name, blocks, _run_once(model))
    except SiteError as error:
        return {"site": name, "can be split": False, "reason": str(error)}
    groups = getattr(model.network.get_submodule(site.exit), "groups", 1)
    return {
        "site": site.name,
        "kind": site.kind,
        "channels": site.channels,
        "sources": site.sources,
        "sources per channel": site.sources // groups,
        "tokens": site.layout.count,
        "can be split": True,
        "reason": "",
    }


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
        If there is no such place (near matches are named), or it is no sum that can be split (the reason is named).
    """
    run = _run_once(model)
    site = _describe(model, name, blocks, run)
    _check_recomposition(model, site)
    return site


@dataclass(frozen=True)
class _Run:
    """What one forward pass showed: output shapes, how often each layer ran, which BatchNorm follows which layer."""

    shapes: dict[str, tuple[int, ...]]
    calls: dict[str, int]
    norms: dict[str, str]


_RUNS: weakref.WeakKeyDictionary[Model, _Run] = weakref.WeakKeyDictionary()


def _run_once(model: Model) -> _Run:
    """Run the network on noise and note shapes; remembered per model, which keeps `find_sites` to one pass."""
    if model in _RUNS:
        return _RUNS[model]
    shapes: dict[str, tuple[int, ...]] = {}
    calls: dict[str, int] = {}
    norms: dict[str, str] = {}
    made_by: dict[int, tuple[str, Tensor]] = {}  # the tensor is kept, so that its id is not given to another

    def note(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(module, nn.BatchNorm2d):
            # Without running statistics it normalises by the batch at hand, which is no fixed affine map.
            if module.running_var is not None and id(inputs[0]) in made_by:
                norms[made_by[id(inputs[0])][0]] = name
        elif isinstance(output, Tensor):
            calls[name] = calls.get(name, 0) + 1
            shapes[name] = tuple(output.shape)
            if isinstance(module, nn.Conv2d):
                made_by[id(output)] = (name, output)

    with ExitStack() as stack, evaluating(model.network):
        for name, module in model.network.named_modules():
            hook = module.register_forward_hook(
                lambda module, inputs, output, name=name: note(name, module, inputs, output)
            )
            stack.callback(hook.remove)
        model(noise_batch(model))
    _RUNS[model] = _Run(shapes, calls, norms)
    return _RUNS[model]


def noise_batch(model: Model, images: int = 1) -> Tensor:
    """Return seeded normal noise as input for the model, (n, 3, h, w)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(images, *model.input_size, generator=generator).to(model.device, model.dtype)


def _describe(model: Model, name: str, blocks: int | Literal["all"], run: _Run) -> Site:
    if name == STREAM or name.startswith(f"{STREAM}:"):
        return _describe_stream(model, name, blocks, run)
    return _describe_layer(model, name, run)


def _describe_layer(model: Model, name: str, run: _Run) -> Site:
    layers = _layer_names(model.network)
    if name not in layers:
        known = [*layers, *(f"{STREAM}:{k}" for k in range(1, len(_stream_blocks(model.network)) + 1))]
        raise SiteError(f"No site is called {name!r}.{near_matches(name, known)} find_sites(model) lists them all.")
    layer: Any = model.network.get_submodule(name)
    if run.calls.get(name, 0) != 1:
        raise SiteError(f"{name!r} ran {run.calls.get(name, 0)} times in one forward pass; a site runs exactly once.")
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
        layout=_layout(model.network, run.shapes[name], channels_last=not convolution),
        entry=name,
        exit=name,
        norm=run.norms.get(name),
    )


def _layer_names(network: nn.Module) -> list[str]:
    """Return the paths of linear layers and convolutions whose weights are plain floating-point parameters."""
    return [
        name
        for name, module in network.named_modules()
        if type(module) in {nn.Linear, nn.Conv2d} and module.weight.is_floating_point()
    ]


def _describe_stream(model: Model, name: str, blocks: int | Literal["all"], run: _Run) -> Site:
    paths = _stream_blocks(model.network)
    if not paths:
        raise SiteError(
            f"{type(model.network).__name__} has no run of pre-norm transformer blocks, so no residual stream to "
            "split; choose a linear layer or convolution from find_sites(model)."
        )
    number = name.removeprefix(STREAM).removeprefix(":") or str(len(paths))
    if not number.isdecimal() or not 1 <= int(number) <= len(paths):
        raise SiteError(f"site={name!r}: write 'stream' or 'stream:1' to 'stream:{len(paths)}'.")
    last = int(number)
    if blocks != "all":
        check_count("blocks", blocks, 1, last)
    first = 1 if blocks == "all" else last - blocks + 1
    terms = tuple(
        term for block in range(first, last + 1) for term in _block_terms(model.network, paths[block - 1], block)
    )
    shape = run.shapes[paths[last - 1]]
    odd = [term.layer for term in terms if run.calls.get(term.layer) != 1 or run.shapes[term.layer] != shape]
    if shape[0] != 1:  # one image was run
        odd = [paths[last - 1]]
    if odd:
        raise SiteError(
            f"site={name!r}: {odd[0]!r} does not write once to every token of the stream (it works on windows of "
            "tokens, is shared, or lies in another stage); take fewer blocks, or split a linear layer."
        )
    return Site(
        name=f"{STREAM}:{last}",
        kind="stream",
        channels=shape[-1],
        sources=sum(term.sources for term in terms),
        terms=terms,
        kernel=1,
        layout=_layout(model.network, shape, channels_last=True),
        entry=paths[first - 1],
        exit=paths[last - 1],
    )


def _stream_blocks(network: nn.Module) -> list[str]:
    """Return the paths of the longest run of blocks that write to one residual stream."""
    runs = [
        [f"{path}.{name}" if path else name for name, _ in module.named_children()]
        for path, module in network.named_modules()
        if isinstance(module, nn.Sequential | nn.ModuleList)
        and len(module)
        and all(len(_block_terms(network, f"{path}.{name}" if path else name, 0)) == 2 for name in module._modules)
    ]
    return max(runs, key=len, default=[])


def _block_terms(network: nn.Module, path: str, block: int) -> list[Term]:
    module = network.get_submodule(path)
    terms = []
    for branch, layers, scales in _BRANCHES:
        for layer in layers:
            linear = _attribute(module, f"{branch}.{layer}")
            if type(linear) is nn.Linear:
                scale = next((s for s in scales if isinstance(_attribute(module, s), Tensor)), None)
                part = "attention" if branch == "attn" else "mlp"
                scale_path = f"{path}.{scale}" if scale else None
                terms.append(Term(f"{path}.{branch}.{layer}", scale_path, block, part, linear.in_features))
                break
    return terms


def _attribute(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name, None)
    return module


def _layout(network: nn.Module, shape: Sequence[int], *, channels_last: bool) -> TokenLayout:
    """Read the token layout off an output shape with the batch first."""
    middle = tuple(shape[2:] if not channels_last else shape[1:-1])
    if len(middle) == 2:
        return TokenLayout(0, 0, (middle[0], middle[1]))
    if not middle:
        return TokenLayout(1, 0, None)
    prefix = int(getattr(network, "num_prefix_tokens", 0))
    registers = min(prefix, int(getattr(network, "num_reg_tokens", 0) or 0))
    grid = getattr(getattr(network, "patch_embed", None), "grid_size", None)
    patches = middle[0] - prefix
    if patches < 0:  # a layer on pooled tokens: they are not the prefix of the others
        return TokenLayout(0, 0, (1, middle[0]))
    if grid is None or grid[0] * grid[1] != patches:
        side = math.isqrt(max(patches, 0))
        grid = (side, side) if side * side == patches else (1, patches)
    return TokenLayout(prefix - registers, registers, (int(grid[0]), int(grid[1])))


def _check_recomposition(model: Model, site: Site) -> None:
    """Add the contributions up for one noise image and compare with the model's own channels."""
    network, noise = model.network, noise_batch(model)
    if model.dtype.itemsize < 4:  # half precision rounds so coarsely that a wrong sum would pass
        network, noise = copy.deepcopy(network).float(), noise.float()
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
            on_channels=lambda h: total.__setitem__("channels", h.cpu().double()),
            on_entering=lambda x: total.__setitem__("entering", x.cpu().double()),
        ),
    ):
        network(noise)
    inside = total["sum"] + site.bias(network).cpu().double()
    difference = total["channels"] - inside - total.get("entering", torch.zeros(()))
    eps = torch.finfo(noise.dtype).eps
    # Rounding of a sum of s terms grows like sqrt(s); the stream is rounded once more at each of the additions.
    allowed = (
        16 * eps * (math.sqrt(site.sources) * inside.abs().max() + len(site.terms) * total["channels"].abs().max())
    )
    if not difference.abs().max() <= allowed:
        if is_intercepted(network):
            raise SiteError(
                f"{site.name!r} cannot be checked while an edit is active on the model; leave its block first."
            )
        raise SiteError(
            f"{site.name!r} is not the sum it should be: recomposed channels differ from the model's by up to "
            f"{difference.abs().max():.2g}, where rounding allows {allowed:.2g}. The block normalises after the "
            "addition, gates its output, or adds something else; split one of its linear layers instead."
        )
