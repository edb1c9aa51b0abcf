"""Pictures of another size than a model was made for: the layout follows them, or they are refused; never misread."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import elude_nb as en
from elude_nb import Edit, disentangle, find_site, find_sites, load_model, record, wrap_network
from elude_nb.baselines.replace import Replaced
from elude_nb.core.readout import Lens
from elude_nb.errors import EditError, ImageError, SiteError
from elude_nb.interpret.gallery import Gallery
from elude_nb.models.forward import Rest
from elude_nb.models.hooks import Tap
from elude_nb.steering import make_permanent
from elude_nb.steering.interventions import capture_sources
from tests.tiny import random_images, redraw, to_tensor

IMAGES = random_images(12, 48)


def resized(width: int, height: int) -> Callable[[Image.Image], Tensor]:
    """Return a preprocessing to (width, height), as a processor of Hugging Face may have it."""
    return lambda image: to_tensor(image.resize((width, height)))


def any_size_vit() -> nn.Module:
    """Built for 32 x 32 pixels in patches of 8, with positions that are resampled for others."""
    with torch.random.fork_rng(devices=[]):
        how: dict[str, Any] = {"embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 5, "reg_tokens": 2}
        network = VisionTransformer(img_size=32, patch_size=8, dynamic_img_size=True, **how)
    return redraw(network).double()


def split_at(preprocess: Callable[[Image.Image], Tensor], **how: Any) -> en.Disentanglement:
    model = wrap_network(any_size_vit(), preprocess=preprocess, **how).using(progress=False)
    return disentangle(model, IMAGES, concepts=4, units=2, tokens_per_image=6)


@pytest.mark.parametrize("size", [(64, 64), (16, 16), (64, 32), (24, 48)])
def test_the_layout_follows_the_preprocessing(size: tuple[int, int]) -> None:
    grid = (size[1] // 8, size[0] // 8)
    split = split_at(resized(*size))
    assert split.model.input_size == (3, size[1], size[0])
    like = wrap_network(any_size_vit(), preprocess=to_tensor, input_size=split.model.input_size)
    assert split.site.layout == find_site(like).layout
    assert split.site.layout.grid == grid
    rows = next(iter(record(split.model, IMAGES, split.site)))
    assert len(rows) == len(IMAGES) * grid[0] * grid[1]
    assert Gallery(split, IMAGES).grid == grid
    assert en.verify(split, random_images(2, 48), progress=False).lens.max_abs_diff == 0


@pytest.mark.parametrize("size", [(64, 64), (16, 16), (16, 64)])  # the last has as many patches as 32 x 32
def test_images_of_another_size_than_the_models_are_refused_at_once(size: tuple[int, int]) -> None:
    said = rf"preprocess made \(3, {size[1]}, {size[0]}\).*is \(3, 32, 32\)"
    with pytest.raises(ImageError, match=said):
        split_at(resized(*size), input_size=(3, 32, 32))


def test_images_that_keep_their_own_sizes_are_refused() -> None:
    model = wrap_network(any_size_vit(), preprocess=to_tensor)
    assert model.input_size == (3, 32, 32)
    several = [Image.new("RGB", size) for size in ((32, 32), (64, 32))]
    with pytest.raises(ImageError, match=r"preprocess made \(3, 32, 64\).*bring all images to one size"):
        model.prepare(several)


def test_a_size_that_a_network_cannot_take_is_named() -> None:
    fixed = VisionTransformer(img_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=5)
    model = wrap_network(fixed, preprocess=resized(64, 64))
    for find in (find_site, find_sites):
        with pytest.raises(SiteError, match=r"does not run on a batch of \(1, 3, 64, 64\) .*Input height"):
            find(model)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_oblong_pictures_of_timms_networks(name: str) -> None:
    model = load_model(name, pretrained=False, image_size=(32, 64))
    assert model.prepare([Image.new("RGB", (50, 70))]).shape == (1, 3, 32, 64)
    site = "stream" if name == "test_vit" else "conv1.0"
    grid = find_site(model, site).layout.grid
    assert grid is not None
    assert 2 * grid[0] == grid[1]


def reads(split: en.Disentanglement, batch: Tensor) -> dict[str, Callable[[], object]]:
    """Return everything that reads or edits tokens by their place, to be called on a batch of one's own."""
    network, site = split.model.network, split.site
    patches = site.layout.positions("patch")

    def inside(context: Any) -> object:
        with context, torch.no_grad():
            return network(batch)

    mask = torch.ones(site.layout.grid or (1, 1))
    concept = int(split.routing.concepts.max())
    return {
        "channels": lambda: inside(Tap(network, site, on_channels=lambda _: None)),
        "sources": lambda: inside(Tap(network, site, on_source=lambda *_: None)),
        "read-outs at some tokens": lambda: inside(Lens(network, site, split.concept_readout(), patches)),
        "a method's channels": lambda: inside(Replaced(network, site, lambda r: r.channels, patches)),
        "attribution and panels": lambda: capture_sources(Rest(split.model, site), batch),
        "an edit of patches": lambda: inside(split.edit(Edit.ablate(concept=concept, tokens="patch"))),
        "an edit under a mask": lambda: inside(split.edit(Edit.ablate(concept=concept, mask=mask * 0.5))),
        "an edit for good": lambda: make_permanent(split, Edit.ablate(concept=concept, mask=mask * 0.5))(batch),
    }


@functools.cache
def square() -> en.Disentanglement:
    return split_at(resized(32, 32))


WAYS = [
    "channels", "sources", "read-outs at some tokens", "a method's channels", "attribution and panels",
    "an edit of patches", "an edit under a mask", "an edit for good",
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [(64, 64), (16, 16)])
def test_a_batch_of_another_size_is_refused_by_all_that_tells_tokens_apart(way: str, size: tuple[int, int]) -> None:
    call = reads(square(), torch.zeros(1, 3, *size, dtype=torch.float64))[way]
    with pytest.raises((ImageError, EditError), match=rf"{2 + 1 + size[0] // 8 * size[1] // 8}"):
        call()
    reads(square(), torch.zeros(1, 3, 32, 32, dtype=torch.float64))[way]()


def test_as_many_tokens_in_another_arrangement_are_refused(conv_split: en.Disentanglement) -> None:
    batch = torch.zeros(1, 3, 8, 32, dtype=torch.float64)  # a grid of 4 x 16, where 16 x 16 pixels have 8 x 8
    ways = reads(conv_split, batch)
    for way in ("channels", "an edit under a mask", "a method's channels"):
        with pytest.raises(ImageError, match=r"4 x 16 tokens here.* 8 x 8"):
            ways[way]()


def test_what_is_done_alike_at_every_token_follows_the_picture() -> None:
    """A lens over all tokens and an edit of all tokens do at 64 x 64 pixels what a split of that size does."""
    large = split_at(resized(64, 64))
    both = [square(), replace(square(), model=large.model, site=large.site, stamp=None)]
    batch = torch.randn(2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = []
    for split in both:
        with split.lens() as lens, split.edit(Edit.ablate(concept=0)), torch.no_grad():
            found.append((split.model(batch), lens.values))
    assert found[0][1].shape == (2, 3 + 64, 4)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
