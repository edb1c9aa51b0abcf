"""Which layers are plain linear maps whose weights can be read and split, and why others are not."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from elude_nb._util.files import is_composed

LAYERS = (nn.Linear, nn.Conv2d)


def layer_names(network: nn.Module) -> list[str]:
    """Return the paths of all linear layers and convolutions, plain or not, in the network's order."""
    return [name for name, module in network.named_modules() if isinstance(module, LAYERS) or _is_quantised(module)]


def is_plain(module: Any) -> bool:
    """Say whether a module is exactly a linear layer or convolution, with a floating-point parameter as weight.

    A subclass may do more in its forward pass than the weight says: standardise it, dequantise it, pad the image.
    """
    weight = module._parameters.get("weight") if type(module) in LAYERS else None
    return weight is not None and bool(weight.is_floating_point()) and not is_composed(weight)


def quantised_layers(network: nn.Module) -> list[str]:
    """Return the paths of all layers whose weights are whole numbers with scales."""
    return [name for name, module in network.named_modules() if _is_quantised(module)]


def is_linear(module: Any) -> bool:
    """Say whether a module is a linear layer of any kind, also one that cannot be split."""
    return isinstance(module, nn.Linear) or (
        isinstance(module, nn.Module) and hasattr(module, "in_features") and _is_quantised(module)
    )


def reason_against(network: nn.Module, name: str) -> str:
    """Say why the module at ``name`` cannot be split; nothing if it is a plain layer with a weight of its own."""
    module: Any = network.get_submodule(name)
    if not is_plain(module):
        return _why_not_plain(network, name, module)
    others = _sharing(network, module)
    if not others:
        return ""
    return (
        f"{name!r} shares its weight with {others[0]!r}; split apart, the two would no longer be one. Give it a weight "
        "of its own (layer.weight = nn.Parameter(layer.weight.clone())), or choose another layer."
    )


def _why_not_plain(network: nn.Module, name: str, module: Any) -> str:
    kind = type(module).__name__
    parent = network.get_submodule(name.rpartition(".")[0])
    if isinstance(parent, nn.MultiheadAttention):
        return (
            f"{name!r} belongs to a torch.nn.MultiheadAttention, which uses its weight without calling it, so its "
            "sources cannot be listened to; choose a layer of the MLP."
        )
    if _is_quantised(module):
        return (
            f"{name!r} is quantised ({kind}): its weights are whole numbers with scales, which do not come apart "
            "bit for bit; take the model before it was quantised."
        )
    if parametrize.is_parametrized(module) or (type(module) in LAYERS and "weight" not in module._parameters):
        return (
            f"{name!r} works its weight out anew in every pass (weight or spectral norm, or another parametrisation); "
            "make it fixed first: torch.nn.utils.parametrize.remove_parametrizations or remove_weight_norm."
        )
    inside = [inner for inner, each in module.named_modules() if isinstance(each, LAYERS)]
    if inside and not isinstance(module, LAYERS) and hasattr(module, "in_features"):
        return (
            f"{name!r} is an adapter ({type(module).__module__}.{kind}) around {f'{name}.{inside[0]}'!r}; merge it "
            "(peft: merge_and_unload()), or choose the layer inside."
        )
    if isinstance(module, LAYERS):
        return (
            f"{name!r} is a {kind}, whose forward pass may do more than its weight says (standardise it, pad the "
            "image); only plain nn.Linear and nn.Conv2d can be split."
        )
    return f"{name!r} is a {kind}; what can be split are nn.Linear, nn.Conv2d and the residual stream."


def _sharing(network: nn.Module, module: nn.Module) -> list[str]:
    weight = module._parameters["weight"]
    return [
        name
        for name, other in network.named_modules()
        if other is not module and any(parameter is weight for parameter in other._parameters.values())
    ]


def _is_quantised(module: nn.Module) -> bool:
    weight: Any = module._parameters.get("weight", getattr(module, "qweight", None))
    if isinstance(weight, Tensor):
        return not weight.is_floating_point() or is_composed(weight)
    # torch's own quantised layers have a method of that name; their activations and the like have none
    return "quantized" in type(module).__module__ and callable(getattr(module, "weight", None))
