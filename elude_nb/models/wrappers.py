"""What lies inside a network that its owner wrapped: the module to listen to, and how its pictures are prepared."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import nn

from elude_nb.models.hooks import evaluating, listen

ASSUMED = "ImageNet's, assumed"
INSIDE = "colours from 0 to 1, which the network normalises itself"
"""Where a preprocessing came from that may be another than the weights were trained with."""


def listenable(network: nn.Module) -> nn.Module:
    """Return the network that ``torch.compile`` was given, or the network itself; refuse what cannot be listened to."""
    network = getattr(network, "_orig_mod", network)  # the same parameters, run module by module
    if isinstance(network, torch.jit.ScriptModule):
        raise TypeError("TorchScript networks cannot be listened to; wrap the network before torch.jit is applied.")
    compiled = [name.removesuffix("._orig_mod") for name, _ in network.named_modules() if name.endswith("._orig_mod")]
    if compiled:
        raise TypeError(
            f"{compiled[0]!r} is what torch.compile returned, which cannot be listened to; put the original back "
            f"(module._orig_mod), or compile in place: network.{compiled[0]}.compile()."
        )
    return network


def data_config(network: nn.Module) -> tuple[dict[str, Any], str]:
    """Return timm's data config of a network and where it is from: the timm networks in it, if they agree."""
    from timm.data import resolve_model_data_config

    known: list[dict[str, Any]] = []
    inside: set[nn.Module] = set()
    normalising: list[nn.Module] = []
    for module in network.modules():
        if module in inside:  # a backbone that a timm network has inside is not asked
            continue
        if isinstance(getattr(module, "pretrained_cfg", None), dict):
            known.append(_sized(resolve_model_data_config(module), module))
            inside.update(module.modules())
        if all(_is_for_colours(getattr(module, name, None)) for name in ("mean", "std")):
            normalising.append(module)
    config, source = _sized(resolve_model_data_config(network), network), ASSUMED
    if known and all(each == known[0] for each in known):
        config, source = known[0], "as timm has it for these weights"
    if any(_normalises_pictures(network, module, config["input_size"]) for module in normalising):
        config, source = config | {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}, INSIDE
    return config, source


def _normalises_pictures(network: nn.Module, module: nn.Module, shape: tuple[int, ...]) -> bool:
    """Say whether a module gets what the network gets, and none of its layers with weights does.

    Other modules normalise targets or outputs.
    """
    like = next(network.parameters(), torch.zeros(()))
    batch = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0)).to(like)
    came: set[nn.Module] = set()

    def before(layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        first = inputs[0] if inputs else next(iter(named.values()), None)
        if isinstance(first, torch.Tensor) and first.shape == batch.shape and bool((first == batch).all()):
            came.add(layer)

    layers = [layer for layer in module.modules() if layer is not module and layer._parameters]
    with ExitStack() as stack:
        for layer in (module, *layers):
            stack.callback(listen(layer, before=before))
        stack.enter_context(suppress(Exception))  # a network of one's own may fail later on; what came before tells
        stack.enter_context(evaluating(network))
        network(batch.clone())  # some normalise in place
    return came == {module}


def _is_for_colours(value: object) -> bool:
    """Say whether this is a mean or deviation for each colour, as torchvision's and kornia's Normalize have it."""
    return (
        len(value) == 3 if isinstance(value, list | tuple) else isinstance(value, torch.Tensor) and value.numel() == 3
    )


def _sized(config: dict[str, Any], network: nn.Module) -> dict[str, Any]:
    side = getattr(getattr(network, "patch_embed", None), "img_size", None)
    return config if side is None else config | {"input_size": (3, *side)}
