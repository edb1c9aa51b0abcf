"""Networks of timm: their names, the sizes of their pictures, and random weights by a seed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from elude_nb._util.checks import check_count, near_matches, shortly
from elude_nb.models.weights import WHEELS

DINOV2_SMALL = "dinov2-small"
ImageSize = int | tuple[int, int]
"""Side of a square picture in pixels, or its height and width."""


def check_image_size(image_size: object) -> tuple[int, int] | None:
    """Return the height and width that ``image_size`` stands for; raise unless it is a side, a pair, or ``None``."""
    if image_size is None:
        return None
    if isinstance(image_size, tuple | list):
        if len(image_size) != 2:
            raise ValueError(f"image_size must be one side or (height, width), not {shortly(image_size)}.")
        return check_count("image_size", image_size[0]), check_count("image_size", image_size[1])
    side = check_count("image_size", image_size)
    return side, side


def check_timm_name(name: str) -> None:
    """Raise ``ValueError`` unless timm has this architecture, and these weights if the name says which."""
    import timm

    if timm.is_model(name):
        tag = name.partition(".")[2]
        tagged = timm.list_pretrained(f"{name.partition('.')[0]}.*")
        if not tag or name in tagged:
            return
        raise ValueError(f"timm knows the architecture but not the weights {name!r}; choose one of {tagged}.")
    if "minilm" in name.lower():
        raise ValueError(f"{name!r} reads sentences: elude_nb.text.load_text_model('minilm') loads it.")
    known = [*WHEELS, *timm.list_models(), *timm.list_pretrained()]
    raise ValueError(
        f"No model is called {name!r}.{near_matches(name, known)} "
        "See timm.list_models() for all names; a checkpoint file needs a path that ends in .safetensors or .pt."
    )


def create(architecture: str, size: tuple[int, int] | None, seed: int, **more: Any) -> nn.Module:
    """Build a timm network with seeded random weights, leaving the global random state alone."""
    import timm

    if size is not None and _takes_image_size(architecture):
        more["img_size"] = size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: nn.Module = timm.create_model(architecture, **more)
    return network


def check_patches(network: nn.Module, size: tuple[int, int] | None) -> None:
    """Refuse an image that patches cannot tile: some networks would drop its rim, others fail later."""
    patch = getattr(getattr(network, "patch_embed", None), "patch_size", None)
    if size is None or not isinstance(patch, tuple):
        return
    for length, side in zip(size, patch, strict=True):
        if length % side:
            near = max(1, round(length / side)) * side
            raise ValueError(f"image_size={length} is no multiple of the patch side {side}; take {near}.")


def _takes_image_size(architecture: str) -> bool:
    """Say whether the input size is built into the network (transformers), rather than free (convolutions)."""
    from timm.models import get_pretrained_cfg_value

    return bool(get_pretrained_cfg_value(architecture, "fixed_input_size"))
