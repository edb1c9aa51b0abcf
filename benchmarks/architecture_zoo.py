"""The networks of the exactness matrix: one or more of every family, with random weights, small where it may be.

Whether the sums come apart exactly does not depend on size or training, so depth is cut, images are small, and
weights are random. Parameters that a network starts with at 0 or 1 (biases, layer scales, statistics) are moved, since
a mistake would hide behind them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from elude_nb import Model, wrap_network
from elude_nb.models.weights import Provenance
from elude_nb.text import SentenceEncoder, TextModel, Vocabulary


@dataclass(frozen=True)
class Entry:
    """One network of the zoo.

    Attributes
    ----------
    name
        What it is called in the table: where it comes from, and its name there.
    family
        Its row in docs/architectures.md.
    make
        Builds the network, with weights drawn from the global random state.
    side
        Of the square image it is run on, in pixels; of a sentence, its tokens.
    sites
        Sites to prove beside the stream; by default the first, a middle and the last of `find_sites`.
    odd
        A height and a width other than ``side`` that it takes as well, or ``None``.
    quick
        Whether it belongs to the subset for CI.
    compiled
        Whether it is run under `torch.compile` too, which takes a minute.
    words
        How many words it knows, if it reads sentences; else 0.
    """

    name: str
    family: str
    make: Callable[[], nn.Module]
    side: int
    sites: tuple[str, ...] = ()
    odd: tuple[int, int] | None = None
    quick: bool = False
    compiled: bool = False
    words: int = 0


REMARKS = {
    "CoAtNet": "convolution blocks and attention on maps; layers only",
    "ConvNeXt": "the stream is a map with its channels first; layers only",
    "ConvNeXt v2": "the stream is a map with its channels first; layers only",
    "DenseNet": "concatenates feature maps and adds none; layers only",
    "EfficientNet": "blocks with and without a skip path alternate, on maps; layers only",
    "EfficientNet (TensorFlow padding)": "as EfficientNet; padding inside the convolution is refused",
    "EfficientViT": "blocks on maps; layers only",
    "EVA, post-norm": "normalises what each branch adds; layers only",
    "Hiera": "one block at a time: find_site(model, 'stream', blocks=1)",
    "MaxViT": "convolutions, windows and grids alternate; layers only",
    "MLP-Mixer": "one of two branches mixes tokens: a source adds to other tokens than its own; layers only",
    "MobileNetV3": "blocks with and without a skip path alternate, on maps; layers only",
    "MViTv2": "one block at a time where the width stays: find_site(model, 'stream', blocks=1)",
    "NFNet (weights standardised in the pass)": "the convolutions that are not standardised, and the linear layers",
    "PoolFormer": "one of two branches is a pooling, without sources; layers only",
    "RegNet": "ReLU after each addition; layers only",
    "ResMLP": "one of two branches mixes tokens: a source adds to other tokens than its own; layers only",
    "ResNet": "ReLU after each addition; layers only, with BatchNorm folded",
    "ResNet v2 (pre-activation)": "the stream is a map with its channels first; layers only",
    "ResNeXt (grouped)": "ReLU after each addition; grouped convolutions are split inside their groups",
    "SAM ViT": "layers of the MLPs, and of attention where it is global",
    "Swin": "layers on all tokens only: those of the MLPs, the patch embedding and merging, the head",
    "Swin v2": "normalises what each branch adds (res-post-norm), too; layers on all tokens only",
    "torchvision ViT": "layers of the MLPs, the patch embedding, the head",
    "transformers Bert (text)": "normalises after each addition; layers only; padding is excluded",
    "transformers ConvNeXt": "the stream is a map with its channels first; layers only",
    "transformers ResNet": "ReLU after each addition; layers only, with BatchNorm folded",
    "transformers Swin v2": "normalises what each branch adds (res-post-norm), too; layers on all tokens only",
    "ViT, post-norm": "normalises what each branch adds; layers only",
    "XCiT": "a third branch, of depthwise convolutions; layers only",
}
"""What is to be said of a family in docs/architectures.md beside what is measured."""


def build(entry: Entry, seed: int = 0, dtype: torch.dtype = torch.float32) -> Model:
    """Return the entry's network with seeded weights as a model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = entry.make()
        disturb(network)
    network = network.to(dtype).eval().requires_grad_(requires_grad=False)
    if entry.words:
        unused = Provenance(f"random weights, seed {seed}", None, "none needed")
        words = Vocabulary(lambda _: [1, 2], lambda _: [(0, 0), (0, 0)], entry.words, first=1, last=2, padding=0)
        return TextModel(network, words.encode, entry.name, entry.family, (entry.side,), unused, words)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* does not say how its weights were trained")  # they were not
        return wrap_network(network, input_size=(3, entry.side, entry.side), name=entry.name)


def disturb(network: nn.Module) -> None:
    """Move parameters from where they start: 0, 1, or a layer scale of 1e-5 would hide a mistake."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(std=max(parameter[0].numel(), 1) ** -0.5)
            elif parameter.ndim <= 1 or parameter.numel() == max(parameter.shape):
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        for module in network.modules():
            mean, variance = getattr(module, "running_mean", None), getattr(module, "running_var", None)
            if isinstance(mean, Tensor) and isinstance(variance, Tensor):
                mean.normal_(std=0.1)
                variance.uniform_(0.5, 1.5)


_NAMED = {"embed_dim", "depth", "use_post_norm", "qk_norm"}
"""Settings that stand behind a network's name, where they are not its own."""


def _timm(name: str, family: str, side: int, *, quick: bool = False, **more: Any) -> Entry:
    known = {key: more.pop(key) for key in ("sites", "odd", "compiled") if key in more}

    def make() -> nn.Module:
        import timm

        network: nn.Module = timm.create_model(name, pretrained=False, **more)
        return network

    cut = "".join(f", {key}={value}" for key, value in more.items() if key in _NAMED)
    return Entry(f"timm {name}{cut}", family, make, side, quick=quick, **known)


def _torchvision(name: str, family: str, side: int, *, quick: bool = False, **more: Any) -> Entry:
    known = {key: more.pop(key) for key in ("sites", "odd", "compiled") if key in more}

    def make() -> nn.Module:
        import torchvision

        network: nn.Module = torchvision.models.get_model(name, weights=None, **more)
        return network

    return Entry(f"torchvision {name}", family, make, side, quick=quick, **known)


_SMALL: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "image_size": 32,
    "patch_size": 8,
}


def _hugging_face(model: str, config: str, family: str, side: int = 32, **more: Any) -> Entry:
    known = {key: more.pop(key) for key in ("sites", "odd", "quick", "compiled") if key in more}

    def make() -> nn.Module:
        import transformers

        network: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**more))
        return network

    return Entry(f"transformers {model}", family, make, side, **known)


def _sentences(kind: str, length: int, **more: Any) -> Entry:
    """Return an entry that reads numbers of words and pools their tokens."""

    def make() -> nn.Module:
        import transformers

        network = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**more))
        network.pooler = None  # it would have no say
        return SentenceEncoder(network, padding=0)

    return Entry(f"transformers {kind}Model, mean of words", f"transformers {kind} (text)", make, length, words=99)


class PlainBlock(nn.Module):
    """A pre-norm block as a user might write one, under names of their own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the tokens (n, t, d) with what both parts add."""
        q, k, v = self.mix(self.norm1(tokens)).chunk(3, -1)
        tokens = tokens + self.out(nn.functional.scaled_dot_product_attention(q, k, v))
        added: Tensor = self.down(self.up(self.norm2(tokens)).relu())
        return tokens + added


class PlainTransformer(nn.Module):
    """A transformer of a user's own."""

    def __init__(self, width: int = 32, depth: int = 3) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, 8, stride=8)
        self.layers = nn.ModuleList([PlainBlock(width) for _ in range(depth)])
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, c)."""
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        for layer in self.layers:
            tokens = layer(tokens)
        logits: Tensor = self.head(tokens.mean(1))
        return logits


def _plain_convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, groups=4, padding="same", padding_mode="circular"),
        nn.GELU(),
        nn.Conv2d(32, 24, 1, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 10),
    )


def zoo() -> list[Entry]:
    """Return all entries, sorted by name."""
    narrow: dict[str, Any] = {"embed_dim": 64, "num_heads": 4, "depth": 3}
    small: dict[str, Any] = {"img_size": 64, "depth": 3}
    odd16 = {"dynamic_img_size": True, "odd": (48, 80)}
    dino = {"img_size": 56, "dynamic_img_size": True, "odd": (42, 70)}
    entries = [
        # DINOv2: S whole, the others at their true width with fewer blocks
        _timm("vit_small_patch14_dinov2", "DINOv2", 56, quick=True, **dino),
        _timm("vit_base_patch14_dinov2", "DINOv2", 56, depth=2, **dino),
        _timm("vit_large_patch14_dinov2", "DINOv2", 56, depth=2, **dino),
        _timm("vit_giant_patch14_dinov2", "DINOv2 g (SwiGLU)", 56, depth=2, **dino),
        _timm("vit_small_patch14_reg4_dinov2", "DINOv2 with registers", 56, depth=3, quick=True, compiled=True, **dino),
        _timm("vit_base_patch14_reg4_dinov2", "DINOv2 with registers", 56, depth=2, **dino),
        _timm("vit_large_patch14_reg4_dinov2", "DINOv2 with registers", 56, depth=2, **dino),
        _timm("vit_giant_patch14_reg4_dinov2", "DINOv2 g (SwiGLU)", 56, depth=2, **dino),
        # plain vision transformers
        _timm("vit_base_patch16_224", "ViT (augreg)", 64, **small, **odd16),
        _timm("vit_tiny_patch16_224", "ViT (augreg)", 64, img_size=64, **odd16),
        _timm("vit_small_patch16_224", "ViT with QK-norm", 64, qk_norm=True, **small, **odd16),
        _timm("deit3_small_patch16_224", "DeiT III", 64, **small, **odd16),
        _timm("deit_tiny_distilled_patch16_224", "DeiT (distilled)", 64, **small),
        _timm("vit_base_patch16_clip_224", "CLIP image tower", 64, **small, **odd16),
        _timm("vit_base_patch16_siglip_224", "SigLIP image tower", 64, **small, **odd16),
        _timm("vit_small_patch16_18x2_224", "ViT, parallel branches (n x 2)", 64, **small, quick=True),
        _timm("vit_pwee_patch16_reg1_gap_256", "ViT, parallel blocks", 64, **small, quick=True, compiled=True),
        _timm("vit_dpwee_patch16_reg1_gap_256", "ViT, parallel blocks", 64, **small),
        _timm("vit_dwee_patch16_reg1_gap_256", "ViT, differential attention", 64, **small),
        _timm("vit_little_patch16_reg4_gap_256", "ViT with registers", 64, **small),
        _timm("vit_relpos_small_patch16_224", "ViT, relative positions", 64, **small),
        _timm("vit_relpos_medium_patch16_rpn_224", "ViT, post-norm", 64, **small),
        _timm("naflexvit_base_patch16_gap", "NaFlexViT", 64, depth=3),
        _timm("samvit_base_patch16", "SAM ViT", 64, img_size=64, **narrow, global_attn_indexes=(2,), window_size=2),
        # rotary positions, SwiGLU, norms inside
        _timm("beit_base_patch16_224", "BEiT", 64, **small),
        _timm("beitv2_base_patch16_224", "BEiT", 64, **small),
        _timm("beit3_base_patch16_224", "BEiT-3", 64, **small),
        _timm("eva_giant_patch14_224", "EVA", 56, img_size=56, **narrow),
        _timm("eva02_tiny_patch14_224", "EVA-02", 56, img_size=56, depth=3, quick=True, compiled=True),
        _timm("eva02_base_patch14_224", "EVA-02", 56, img_size=56, depth=3, dynamic_img_size=True, odd=(42, 70)),
        _timm("eva02_tiny_patch14_336", "EVA, post-norm", 56, img_size=56, depth=3, use_post_norm=True),
        _timm("vit_small_patch16_dinov3", "DINOv3 ViT", 64, depth=3, **odd16, quick=True),
        _timm("vit_small_plus_patch16_dinov3", "DINOv3 ViT", 64, depth=3, **odd16),
        _timm("vit_tiny_patch16_dinov3_qkvb", "DINOv3 ViT", 64, depth=3, **odd16),
        _timm("vit_small_patch16_rope_224", "ViT, rotary positions", 64, **small),
        _timm("vit_small_patch16_rope_mixed_224", "ViT, rotary positions", 64, **small),
        # other token mixers
        _timm("cait_xxs24_224", "CaiT", 64, **small),
        _timm("xcit_nano_12_p16_224", "XCiT", 64, **small),
        _timm("volo_d1_224", "VOLO", 64, img_size=64),
        _timm("hiera_tiny_224", "Hiera", 64, img_size=64),
        _timm("mvitv2_tiny", "MViTv2", 64, img_size=64),
        _timm("mixer_s32_224", "MLP-Mixer", 64, img_size=64, quick=True),
        _timm("resmlp_12_224", "ResMLP", 64, img_size=64),
        _timm("gmlp_ti16_224", "gMLP", 64, img_size=64),
        _timm("poolformer_s12", "PoolFormer", 64, odd=(64, 96)),
        _timm("poolformerv2_s12", "PoolFormer", 64, odd=(64, 96)),
        _timm("swin_tiny_patch4_window7_224", "Swin", 64, img_size=64, window_size=4),
        _timm("swinv2_tiny_window8_256", "Swin v2", 64, img_size=64, window_size=4, quick=True),
        _timm("swinv2_cr_tiny_224", "Swin v2", 64, img_size=64, window_size=2),
        _timm("maxvit_rmlp_pico_rw_256", "MaxViT", 64, img_size=64, quick=True),
        _timm("coatnet_pico_rw_224", "CoAtNet", 64, img_size=64),
        # convolutions
        _timm("resnet50", "ResNet", 64, sites=("layer1.0.conv1", "layer3.5.conv2", "layer4.2.conv3"), odd=(49, 65)),
        _timm(
            "resnet18",
            "ResNet",
            64,
            sites=("conv1", "layer4.0.downsample.0", "layer4.1.conv2"),
            odd=(49, 65),
            quick=True,
            compiled=True,
        ),
        _timm("resnext50_32x4d", "ResNeXt (grouped)", 64, odd=(49, 65)),
        _timm("resnetv2_50", "ResNet v2 (pre-activation)", 64, odd=(49, 65)),
        _timm("nfnet_f0", "NFNet (weights standardised in the pass)", 64),
        _timm("convnext_atto", "ConvNeXt", 64, odd=(64, 96), quick=True),
        _timm("convnext_tiny", "ConvNeXt", 64, odd=(64, 96)),
        _timm("convnextv2_atto", "ConvNeXt v2", 64, odd=(64, 96)),
        _timm("efficientnet_b0", "EfficientNet", 64, odd=(49, 65)),
        _timm("tf_efficientnet_b0", "EfficientNet (TensorFlow padding)", 64, odd=(49, 65)),
        _timm("regnetx_002", "RegNet", 64, odd=(49, 65)),
        _timm("regnety_002", "RegNet", 64, odd=(49, 65)),
        _timm("densenet121", "DenseNet", 64, odd=(49, 65)),
        _timm("mobilenetv3_small_050", "MobileNetV3", 64, odd=(49, 65), quick=True),
        _timm("mobilenetv3_large_100", "MobileNetV3", 64, odd=(49, 65)),
        _timm("efficientvit_b0", "EfficientViT", 64),
        # torchvision
        _torchvision("vit_b_32", "torchvision ViT", 64, image_size=64),
        _torchvision("resnet18", "ResNet", 64, sites=("layer1.0.conv1", "layer4.1.conv2", "fc"), odd=(49, 65)),
        _torchvision("resnet50", "ResNet", 64, sites=("layer1.0.conv1", "layer4.2.conv3", "fc"), odd=(49, 65)),
        _torchvision("convnext_tiny", "ConvNeXt", 64, odd=(64, 96)),
        _torchvision("efficientnet_b0", "EfficientNet", 64, odd=(49, 65)),
        _torchvision("regnet_y_400mf", "RegNet", 64, odd=(49, 65)),
        _torchvision("densenet121", "DenseNet", 64, odd=(49, 65)),
        _torchvision("mobilenet_v3_small", "MobileNetV3", 64, odd=(49, 65), quick=True),
        _torchvision("swin_t", "Swin", 64),
        _torchvision("swin_v2_t", "Swin v2", 64),
        # Hugging Face transformers, where the package is present
        _hugging_face("ViTModel", "ViTConfig", "transformers ViT", **_SMALL),
        _hugging_face("Dinov2Model", "Dinov2Config", "transformers DINOv2", mlp_ratio=2, **_SMALL),
        _hugging_face(
            "Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", "transformers DINOv2", mlp_ratio=2, **_SMALL
        ),
        _hugging_face("DINOv3ViTModel", "DINOv3ViTConfig", "transformers DINOv3", num_register_tokens=2, **_SMALL),
        _hugging_face("CLIPVisionModel", "CLIPVisionConfig", "transformers CLIP", **_SMALL),
        _hugging_face("SiglipVisionModel", "SiglipVisionConfig", "transformers SigLIP", **_SMALL),
        _hugging_face("BeitModel", "BeitConfig", "transformers BEiT", **_SMALL),
        _hugging_face(
            "ConvNextModel",
            "ConvNextConfig",
            "transformers ConvNeXt",
            side=64,
            hidden_sizes=[16, 32, 48, 64],
            depths=[1, 1, 2, 1],
        ),
        _hugging_face(
            "ResNetModel",
            "ResNetConfig",
            "transformers ResNet",
            side=64,
            embedding_size=16,
            hidden_sizes=[32, 64, 96, 128],
            depths=[1, 1, 1, 1],
        ),
        _hugging_face(
            "Swinv2Model",
            "Swinv2Config",
            "transformers Swin v2",
            side=64,
            image_size=64,
            patch_size=4,
            embed_dim=16,
            depths=[2, 2],
            num_heads=[2, 2],
            window_size=4,
        ),
        _sentences(
            "Bert", 12, vocab_size=99, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96
        ),
        # a user's own
        Entry("plain transformer", "a user's own modules", PlainTransformer, 32, quick=True),
        Entry("plain convolutions", "a user's own modules", _plain_convolutions, 32, odd=(24, 40), quick=True),
    ]
    return sorted(entries, key=lambda entry: entry.name)
