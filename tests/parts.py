"""Tokens without a model, and what a pass over them leaves."""

from __future__ import annotations

import torch
from torch import Tensor

from elude_nb import Recording
from elude_nb.core.concepts import Cells
from elude_nb.core.saving import Settings
from elude_nb.core.statistics import Collector, Limits, Statistics


def recording_of(channels: Tensor, sources: Tensor, per_image: int = 1) -> Recording:
    """Return tokens of images with so many each."""
    numbers = torch.arange(len(channels))
    return Recording(channels, sources, torch.zeros_like(channels), numbers // per_image, numbers % per_image)


def settings_of(images: int, *, seed: int = 0, site: str = "layer") -> Settings:
    return Settings(
        site=site, blocks="all", concepts=4, units=3, shared=None, routing="concepts", strategy="ConceptRouting()",
        tokens="all", tokens_per_image=None, seed=seed, images=images, images_from="tokens",
    )  # fmt: skip


def empty_of(tokens: Recording, limits: Limits, **how: object) -> Statistics:
    origin = {"fingerprint": "a" * 64, "dtype": "torch.float64", "input_size": [3, 8, 8], "image_list": "b" * 64}
    settings = settings_of(int(tokens.images.max()) + 1, **how)  # type: ignore[arg-type]
    d, s = tokens.channels.shape[1], tokens.sources.shape[1]
    return Statistics.empty(settings, limits, origin, d, s, tokens.sources.dtype)


def collected(
    tokens: Recording,
    *,
    capacity: int,
    micro: int,
    kept: int = 0,
    seed: int = 0,
    batch: int = 13,
    squares: bool = False,
) -> Statistics:
    """Return what a pass over tokens leaves; beyond ``capacity`` the first of them make the cells."""
    few = len(tokens) <= capacity
    limits = Limits(micro, 0 if few else 1, len(tokens) if few else kept, seed, squares)
    cells = None if few else Cells.of(tokens.channels[:capacity], micro, seed)
    collector = Collector(empty_of(tokens, limits, seed=seed), cells)
    for part in tokens.parts(batch):
        collector.add(part)
    images = tokens.images.unique()
    return collector.finish(images, images * 7)


def same_statistics(one: Statistics, other: Statistics, *, exactly: bool = False) -> None:
    """Check that counts, images and tokens are equal, and sums but for the last bits."""
    assert (one.settings, one.limits, one.origin) == (other.settings, other.limits, other.origin)
    assert one.tokens == other.tokens
    found, wanted = one.tensors(), other.tensors()
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        if exactly or name.startswith(("images", "hashes", "kept", "cells")) or not tensor.is_floating_point():
            assert tensor.equal(wanted[name]), name
        else:
            torch.testing.assert_close(tensor, wanted[name], rtol=1e-12, atol=1e-12)
