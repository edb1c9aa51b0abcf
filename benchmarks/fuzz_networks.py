"""Bad checkpoints for `fuzz` whose names are all right: their shapes, dtypes and values are not."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fuzz_files import other_tensors  # type: ignore[import-not-found]  # beside this file
from fuzz_watch import Case, Family, Ground  # type: ignore[import-not-found]
from safetensors.torch import save_file

import elude_nb as en

ARCHITECTURE, SIDE = "test_vit", 32
"""A vision transformer of timm's own tests, with 365,096 parameters at this side."""


def save_network(path: Path) -> dict[str, torch.Tensor]:
    """Write a checkpoint that says what it belongs to; return its tensors."""
    network = en.load_model(ARCHITECTURE, pretrained=False, image_size=SIDE).network
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(tensors, path, metadata={"architecture": ARCHITECTURE})
    return tensors


def _load(path: Path, **more: Any) -> None:
    model = en.load_model(path, **more)
    model(model.noise())  # what was accepted must run


def state_dicts(ground: Ground) -> Iterator[Case]:
    """State dictionaries of a network of timm's, with one to three tensors that are other than they should be."""
    file = ground.folder / "network.safetensors"
    good = save_network(file)
    _load(file, image_size=SIDE)
    sizes: list[int | None] = [SIDE, SIDE, SIDE, None, 2 * SIDE, 48]
    while True:
        tensors, size = other_tensors(good, ground), ground.pick(sizes)
        changed = {name: (tuple(t.shape), str(t.dtype)) for name, t in tensors.items() if not _same(t, good.get(name))}
        gone = sorted(good.keys() - tensors.keys())
        if ground.rng.random() < 0.7:
            path, told = file, None
            save_file(
                tensors, path, metadata={"architecture": ground.pick([ARCHITECTURE, ARCHITECTURE, "test_resnet"])}
            )
        else:
            path, told = file.with_suffix(".pt"), ARCHITECTURE
            torch.save({"state_dict": tensors}, path)
        yield Case(
            f"{changed} without {gone} at {size} in {path.name}",
            partial(_load, path, architecture=told, image_size=size),
        )


def _same(tensor: torch.Tensor, other: torch.Tensor | None) -> bool:
    if other is None or tensor.dtype != other.dtype or tensor.shape != other.shape:
        return False
    return tensor.equal(other)


FAMILIES: dict[str, tuple[Family, float]] = {"checkpoints: right names": (state_dicts, 0.05)}
