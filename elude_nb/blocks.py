"""The blocks of a residual stream: which of their layers write to it.

Read off timm, torchvision and Hugging Face transformers. A block that bears these names and adds in another way is
refused by `elude_nb.finding.find_site`, which compares the sum with what the block puts out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from elude_nb.layers import is_linear
from elude_nb.sites import Term

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
    """Return the paths of the longest run of blocks that seem to write to one residual stream."""
    runs = [
        [f"{path}.{name}" if path else name for name in module._modules]
        for path, module in network.named_modules()
        if isinstance(module, nn.Sequential | nn.ModuleList)
        and len(module)
        and all(next(_terms(block, "", 0), None) for block in module._modules.values())
    ]
    return max(runs, key=len, default=[])


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
