"""Tiny seeded networks and image sets: every test of the method runs on these."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from elude_nb import ImageSet, Model, load_images, wrap_network
from elude_nb.core.routing import Routing


def to_tensor(image: Image.Image) -> Tensor:
    """Return an image as a tensor (3, h, w) in [-1, 1]."""
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 127.5 - 1


def redraw(network: nn.Module, seed: int = 0) -> nn.Module:
    """Redraw every parameter and every BatchNorm statistic, so that no bias is zero and no scale is one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            if name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "gamma")):
                parameter.copy_(1 + 0.3 * drawn)
            else:
                fan = parameter[0].numel() if parameter.ndim > 1 else 4
                parameter.copy_(drawn / max(fan, 1) ** 0.5)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
                assert module.running_var is not None
                module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator))
                module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=generator))
    return network


def wrapped(network: nn.Module, side: int, dtype: torch.dtype) -> Model:
    return wrap_network(
        network.to(dtype).requires_grad_(requires_grad=False), preprocess=to_tensor, input_size=(3, side, side)
    )


def tiny_vit(
    dtype: torch.dtype = torch.float64, *, registers: int = 2, layer_scale: float | None = 0.5, seed: int = 0
) -> Model:
    """Return a vision transformer with 3 blocks, 24 channels, 2 heads, 1 class token, registers and 16 patches."""
    with torch.random.fork_rng(devices=[]):
        network = VisionTransformer(
            img_size=32,
            patch_size=8,
            embed_dim=24,
            depth=3,
            num_heads=2,
            num_classes=5,
            init_values=layer_scale,
            reg_tokens=registers,
        )
    return wrapped(redraw(network, seed), 32, dtype)


class ConvNet(nn.Module):
    """Convolutions of many kinds: strided with BatchNorm, grouped with padding "same", reflecting, pointwise."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 12, (3, 5), padding="same", groups=4, dilation=(2, 1))
        self.reflect = nn.Conv2d(12, 6, 3, stride=2, padding=1, padding_mode="reflect")
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.point = nn.Conv2d(6, 10, 1, stride=2)
        self.point_norm = nn.BatchNorm2d(10, affine=False)
        self.head = nn.Linear(10, 5)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.norm(self.stem(images)).relu()  # (n, 8, 8, 8)
        maps = self.reflect(self.grouped(maps).tanh())  # (n, 6, 4, 4)
        maps = self.point_norm(self.point(self.depthwise(maps).tanh()))  # (n, 10, 2, 2)
        logits: Tensor = self.head(maps.tanh().mean((2, 3)))
        return logits


def tiny_conv(dtype: torch.dtype = torch.float64, *, seed: int = 0) -> Model:
    with torch.random.fork_rng(devices=[]):
        network = ConvNet()
    return wrapped(redraw(network, seed), 16, dtype)


def tiny_mlp(dtype: torch.dtype = torch.float64, *, seed: int = 0) -> Model:
    """Return a network whose layers have one vector (n, d) an image."""
    with torch.random.fork_rng(devices=[]):
        network = nn.Sequential(
            nn.Flatten(), nn.Linear(192, 16), nn.GELU(), nn.Linear(16, 12), nn.GELU(), nn.Linear(12, 5)
        )
    return wrapped(redraw(network, seed), 8, dtype)


def random_images(count: int, side: int, *, seed: int = 0) -> ImageSet:
    """Return noise over a random colour gradient, so that images differ as a whole and from patch to patch."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(-1, 1, side)
    rows, columns = rng.normal(size=(2, count, 3))
    smooth = rows[:, None, None] * ramp[None, :, None, None] + columns[:, None, None] * ramp[None, None, :, None]
    pixels = np.clip(0.5 + 0.2 * smooth + 0.15 * rng.normal(size=(count, side, side, 3)), 0, 1)
    return load_images(pixels, labels=[f"label {i % 3}" for i in range(count)])


def owners_of(routing: Routing, channel: int, source: int) -> list[int]:
    """Return the units that have a part in a contribution, read out of the tensors bit by bit."""
    if routing.owner_sets is not None:
        bits = routing.owner_sets[channel, source].tolist()
        found = [8 * a + b + 1 for a, byte in enumerate(bits) for b in range(8) if byte >> b & 1]
        if found:
            return found
    return [int(routing.routes[channel, source])]


def hook_count(network: nn.Module) -> int:
    """Return how many hooks of any kind a network bears."""
    return sum(
        len(getattr(module, kind)) for module in network.modules() for kind in vars(module) if kind.endswith("_hooks")
    )


def sites_of(model: Model) -> list[str]:
    """Return the names of all sites that can be split."""
    from elude_nb import find_sites

    table = find_sites(model)
    return [str(name) for name in table.loc[table["can_be_split"], "site"]]


def tiny_clip(folder: Path) -> Path:
    """Write a CLIP of transformers as one is downloaded, but tiny and random, whose words are letters."""
    import transformers

    small = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    text = {**small, "vocab_size": 60, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 1}
    vision = {**small, "image_size": 16, "patch_size": 8}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=6)
        transformers.CLIPModel(config).save_pretrained(folder)
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    tokenizer = transformers.CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[])
    pixels = transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    transformers.CLIPProcessor(pixels, tokenizer).save_pretrained(folder)
    return folder
