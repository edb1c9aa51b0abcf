"""Which layers write to the residual stream: known by name, or found by watching what each block adds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from elude_nb._util.arithmetic import run_network
from elude_nb.models.hooks import clean_copy, evaluating, listen
from elude_nb.models.layers import is_linear, is_plain
from elude_nb.models.outputs import first_tensor
from elude_nb.models.sites import Term

# For each place in a block: the part, the names its last linear layer goes by (the first that is there is taken; a
# star stands for the number of a parallel branch), and the names its layer scale goes by.
_FIRST = ("ls1.gamma", "gamma_1", "gamma1", "layer_scale1.lambda1", "lambda_1")
_SECOND = ("ls2.gamma", "gamma_2", "gamma2", "layer_scale2.lambda1", "lambda_2")
_PLACES: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    (
        "attention",
        (
            "attn.proj",
            "attention.o_proj",
            "self_attn.out_proj",
            "self_attn.o_proj",
            "attention.output.dense",
            "self_attention.out_proj",
        ),
        _FIRST,
    ),
    (
        "mlp",
        ("mlp.fc2", "mlp.w3", "mlp.down_proj", "mlp.weights_out", "mlp.3", "mlp_channels.fc2", "output.dense"),
        _SECOND,
    ),
    ("attention", ("attns.*.attn.proj",), ("attns.*.ls.gamma",)),  # branches beside each other: n of each
    ("mlp", ("ffns.*.mlp.fc2",), ("ffns.*.ls.gamma",)),
    ("attention", ("attn_out_proj",), ("ls.gamma",)),  # both branches beside each other, with one norm
    ("mlp", ("mlp_out_proj",), ("ls.gamma",)),
    ("attention and mlp", ("out_proj",), ("ls.gamma",)),
)


def stream_blocks(network: nn.Module) -> list[str]:
    """Return the paths of the longest run of blocks that seem to write to one residual stream.

    None, if something else stands in the place of a linear layer and has one inside, as an adapter does: names do not
    tell what it adds.
    """
    runs = [
        [f"{path}.{name}" if path else name for name in module._modules]
        for path, module in network.named_modules()
        if isinstance(module, nn.Sequential | nn.ModuleList)
        and len(module)
        and all(next(_terms(block, "", 0), None) for block in module._modules.values())
    ]
    longest = max(runs, key=len, default=[])
    return [] if any(_has_adapter(network.get_submodule(path)) for path in longest) else longest


def _has_adapter(block: nn.Module) -> bool:
    places = (attribute(block, layer) for _, layers, _ in _PLACES for layer in layers)
    return any(
        isinstance(module, nn.Module) and not is_linear(module) and bool(_linear_layers(module)) for module in places
    )


def block_terms(network: nn.Module, path: str, number: int) -> list[Term]:
    """Return the layers by which the block at ``path`` writes to the stream."""
    return list(_terms(network.get_submodule(path), f"{path}.", number))


def blocks_of(network: nn.Module, entry: str, last: str) -> list[str]:
    """Return the paths of the blocks of a window, from its first to its last."""
    parent, _, first = entry.rpartition(".")
    names = list(network.get_submodule(parent)._modules)
    within = names[names.index(first) : names.index(last.rpartition(".")[2]) + 1]
    return [f"{parent}.{name}" if parent else name for name in within]


def uncalled_attention(block: nn.Module) -> str | None:
    """Return the path of a `torch.nn.MultiheadAttention` in a block: it uses its last layer without calling it."""
    return next((name for name, module in block.named_modules() if isinstance(module, nn.MultiheadAttention)), None)


def _terms(block: nn.Module | None, prefix: str, number: int) -> Iterator[Term]:
    for part, layers, scales in _PLACES:
        for branch in _branches(block, layers[0]):
            for layer in layers:
                linear = attribute(block, layer.replace("*", branch))
                if not is_linear(linear):
                    continue
                names = [name.replace("*", branch) for name in scales]
                scale = next((name for name in names if isinstance(attribute(block, name), Tensor)), None)
                path = prefix + layer.replace("*", branch)
                yield Term(path, prefix + scale if scale else None, number, part, linear.in_features)
                break


def _branches(block: nn.Module | None, layer: str) -> list[str]:
    """Return the numbers of a block's parallel branches; where there is but one, nothing to put in a name."""
    if "*" not in layer:
        return [""]
    return list(getattr(attribute(block, layer.partition(".")[0]), "_modules", {}))


def attribute(module: Any, path: str) -> Any:
    """Return what stands at a dotted path, or ``None``."""
    for name in path.split("."):
        module = getattr(module, name, None)
    return module


_CLOSE = 1e-3
"""How well multiples and their sum must fit, relatively. A site is checked to rounding before it is handed out."""


def watch_blocks(network: nn.Module, noise: Tensor) -> tuple[dict[str, tuple[Term, ...]], str]:
    """Return the longest run of blocks in one container that write to one stream, and the layers by which they do.

    Beside it, where there is none, why a block that nearly did is none.

    Parameters
    ----------
    network
        The network; one forward pass is run, if any of its containers has linear layers in two children or more.
    noise
        Its input, (n, ...), n >= 1.
    """
    containers = [
        [f"{path}.{name}" if path else name for name, child in module._modules.items() if _linear_layers(child)]
        for path, module in network.named_modules()
        if isinstance(module, nn.Sequential | nn.ModuleList)
    ]
    containers = [paths for paths in containers if len(paths) > 1 and "" not in paths]
    if not containers:
        return {}, ""
    if noise.dtype.itemsize < 4:  # half precision rounds too coarsely to tell one multiple from another
        network, noise = clean_copy(network).float(), noise.float()
    watched = [path for paths in containers for path in paths]
    terms: dict[str, tuple[Term, ...]] = {}
    reasons: dict[str, str] = {}
    with ExitStack() as stack, evaluating(network):
        for path in watched:
            stack.enter_context(_Watch(network.get_submodule(path), path, terms, reasons))
        run_network(network, noise)
    runs = [run for paths in containers for run in _runs(network, [path for path in paths if terms.get(path)])]
    longest = max(runs, key=len, default=[])
    beside = longest[0].rpartition(".")[0] if longest else None
    for path, reason in reasons.items():  # a run between such blocks would not be the whole stream
        if beside is None or path.rpartition(".")[0] == beside:
            return {}, reason
    found = {
        path: tuple(Term(t.layer, t.scale, number, t.part, t.sources) for t in terms[path])
        for number, path in enumerate(longest, 1)
    }
    return found, ""


class _Watch(ExitStack):
    """Keep what enters one block and what its linear layers put out, until the block has put out its own."""

    def __init__(
        self, block: nn.Module, path: str, terms: dict[str, tuple[Term, ...]], reasons: dict[str, str]
    ) -> None:
        super().__init__()
        self._block, self._path, self._terms, self._reasons = block, path, terms, reasons
        self._layers = _linear_layers(block)
        self._entered: list[Tensor] = []
        self._put_out: dict[str, Tensor] = {}
        self.callback(listen(block, before=self._enter, after=self._leave))
        for name, layer in self._layers.items():
            keep = partial(self._keep, name)
            self.callback(listen(layer, after=keep))

    def _keep(self, name: str, _: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
        self._put_out[name] = output.clone()

    def _enter(self, _: nn.Module, inputs: tuple[Any, ...], __: dict[str, Any]) -> None:
        self._put_out.clear()
        self._entered = [inputs[0].clone()] if inputs and isinstance(inputs[0], Tensor) else []

    def _leave(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        left = first_tensor(output)
        if self._entered and isinstance(left, Tensor) and left.shape == self._entered[0].shape and left.ndim > 1:
            added = (_wide(left) - _wide(self._entered[0])).flatten(0, -2)
            candidates = {
                name: _wide(out).flatten(0, -2) for name, out in self._put_out.items() if out.shape == left.shape
            }
            self._terms[self._path] = self._writers(added, candidates)
        self._put_out.clear()

    def _writers(self, added: Tensor, candidates: dict[str, Tensor]) -> tuple[Term, ...]:
        """Return the layers of whose outputs ``added`` (rows, d) is a sum, each times a fixed number a channel."""
        if not candidates or len(added) <= len(candidates):
            return ()
        outputs = torch.stack(list(candidates.values()), dim=-1)  # (rows, d, m)
        multiples = torch.linalg.lstsq(outputs.transpose(0, 1), added.T[..., None]).solution[..., 0]  # (d, m)
        rest = added - (outputs * multiples).sum(-1)
        if not rest.abs().max() <= _CLOSE * added.abs().max():
            return ()
        found = []
        for (name, out), multiple in zip(candidates.items(), multiples.T, strict=True):
            if (multiple.abs() * out.abs().amax(0)).max() <= _CLOSE * added.abs().max():
                continue  # it only feeds another
            scale = self._scale(multiple)
            path = f"{self._path}.{name}"
            if scale is None:
                self._reasons[self._path] = (
                    f"what {path!r} puts out is added {self._times(multiple)}, a factor that no parameter holds. Is it "
                    "an adapter? Merge it into its layer first (peft: merge_and_unload())"
                )
                return ()
            found.append(Term(path, scale or None, 0, "linear", self._layers[name].in_features))
        return tuple(found)

    def _scale(self, multiple: Tensor) -> str | None:
        """Return the path of the parameter that holds these multiples, nothing if they are 1, or None if none does."""
        if torch.allclose(multiple, torch.ones_like(multiple), rtol=_CLOSE, atol=_CLOSE):
            return ""
        misses = {
            name: float((_wide(parameter) - multiple).abs().max())
            for name, parameter in self._block.named_parameters()
            if parameter.shape == multiple.shape
        }
        best = min(misses, key=lambda name: misses[name], default="")
        return f"{self._path}.{best}" if best and misses[best] <= _CLOSE * float(multiple.abs().max()) else None

    def _times(self, multiple: Tensor) -> str:
        """Say in words what a layer's output is multiplied by: a number, also times a layer scale, or several."""
        for name, scale in [("", torch.ones_like(multiple)), *self._block.named_parameters()]:
            ratio = multiple / _wide(scale) if scale.shape == multiple.shape else multiple.new_tensor(torch.nan)
            if bool((ratio - ratio.mean()).abs().max() <= _CLOSE * ratio.mean().abs()):
                return f"{ratio.mean():.3g} times{f' {name!r}' if name else ''}"
        return f"{multiple.min():.3g} to {multiple.max():.3g} times"


def _wide(tensor: Tensor) -> Tensor:
    """Return a tensor in float64 on the CPU: not every device has it, nor takes rows that depend on each other."""
    return tensor.detach().cpu().double()


def _linear_layers(block: nn.Module | None) -> dict[str, nn.Linear]:
    """Return the plain linear layers inside a block; a layer by itself is no block."""
    named = [] if block is None else block.named_modules()
    return {name: module for name, module in named if name and isinstance(module, nn.Linear) and is_plain(module)}


def _runs(network: nn.Module, paths: list[str]) -> list[list[str]]:
    """Return the runs of neighbours among the children of one container."""
    if not paths:
        return []
    names = list(network.get_submodule(paths[0].rpartition(".")[0])._modules)
    places = [names.index(path.rpartition(".")[2]) for path in paths]
    cuts = [0, *(i + 1 for i, (a, b) in enumerate(pairwise(places)) if b != a + 1), len(paths)]
    return [paths[start:stop] for start, stop in pairwise(cuts)]
