"""Sites and both networks on families of networks; what cannot work is refused with the reason."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from elude_nb import Edit, ImageSet, Model, disentangle, find_site, find_sites, verify
from elude_nb.core.explicit import SplitTerm, explicit_network
from elude_nb.core.recording import Recording, record
from elude_nb.errors import SiteError
from elude_nb.steering.permanent import make_permanent
from tests.core.test_explicit import random_routing
from tests.models.test_find_sites import Attention, Blocks, Mlp, block_model
from tests.tiny import random_images, redraw, wrapped

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
QUICK: dict[str, Any] = {"concepts": 6, "units": 3, "tokens_per_image": 6, "progress": False}
NARROW: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 48,
    "depth": 3,
    "num_heads": 4,
    "num_classes": 5,
}
STREAMS = {
    "vit_giant_patch14_dinov2": {},  # SwiGLU
    "vit_small_patch14_reg4_dinov2": {},
    "vit_base_patch16_224": {},
    "vit_small_patch16_224": {"qk_norm": True},
    "deit3_small_patch16_224": {},
    "vit_base_patch16_clip_224": {},
    "vit_base_patch16_siglip_224": {},
    "vit_small_patch16_18x2_224": {},  # two attentions and two MLPs beside each other
    "vit_pwee_patch16_reg1_gap_256": {},  # attention and MLP beside each other, one layer scale
    "vit_dpwee_patch16_reg1_gap_256": {},  # the same with one output layer for both
    "vit_dwee_patch16_reg1_gap_256": {},  # differential attention
    "beit_base_patch16_224": {},
    "beit3_base_patch16_224": {},  # norms inside the branches
    "eva02_tiny_patch14_224": {},  # SwiGLU and rotary positions
    "eva02_base_patch14_224": {},
    "vit_small_patch16_dinov3": {},
    "vit_small_plus_patch16_dinov3": {},
    "vit_small_patch16_rope_mixed_224": {},
}


def timm_model(name: str, dtype: torch.dtype = torch.float64, **more: Any) -> Model:
    with torch.random.fork_rng(devices=[]):
        network = timm.create_model(name, **{**NARROW, **more})
    return wrapped(redraw(network), 32, dtype)


def vision(network: nn.Module, side: int = 32) -> Model:
    return wrapped(redraw(network), side, torch.float64)


@pytest.fixture(scope="module")
def photos() -> ImageSet:
    return random_images(12, 32)


@pytest.mark.parametrize(("name", "more"), STREAMS.items())
def test_stream_of_a_family_is_the_sum_of_its_sources(photos, name, more) -> None:
    model = timm_model(name, **more)
    assert find_sites(model).iloc[:3]["can_be_split"].all()
    layout = find_site(model, "stream").layout
    assert layout.grid == (4, 4)
    assert layout.classes == (0 if "siglip" in name or "gap" in name else 1)
    registers = 4 if "reg4" in name or "dinov3" in name else 1 if "reg1" in name else 0
    assert layout.registers == registers
    for site in (find_site(model, "stream"), find_site(model, "stream:2", blocks=1)):
        seen = Recording.join(list(record(model, photos[:3], site, tokens="all")))
        recomposed = seen.entering + seen.sources @ site.weight(model.network).T + site.bias(model.network)
        assert (recomposed - seen.channels).abs().max() <= 1e-12 * seen.channels.abs().max()


@pytest.mark.parametrize(("name", "more"), STREAMS.items())
def test_certificate_of_a_family(photos, name, more) -> None:
    model = timm_model(name, torch.float32, **more)
    certificate = verify(disentangle(model, photos, **QUICK), photos[:4], progress=False)
    assert certificate.lens.max_abs_diff == 0.0
    assert certificate.weights_partition_exact
    assert certificate.explicit_float64.max_rel_diff <= 1e-12


@pytest.mark.parametrize(
    ("name", "site", "folded"),
    [
        ("resnet18", "layer4.1.conv2", "layer4.1.bn2"),
        ("resnet50", "layer4.2.conv3", "layer4.2.bn3"),
        ("regnetx_002", "s1.b1.conv2.conv", "s1.b1.conv2.bn"),  # grouped
        ("mobilenetv3_small_050", "blocks.5.0.conv", "blocks.5.0.bn1"),
        ("efficientnet_b0", "blocks.1.0.conv_pwl", "blocks.1.0.bn3"),
        ("densenet121", "features.denseblock1.denselayer2.conv1", "features.denseblock1.denselayer2.norm2"),
        ("convnext_atto", "stages.0.blocks.0.mlp.fc2", None),
        ("convnextv2_atto", "stages.0.blocks.0.mlp.fc2", None),
        ("swinv2_tiny_window8_256", "layers.0.blocks.0.mlp.fc2", None),
        ("mixer_s32_224", "blocks.1.mlp_channels.fc2", None),
        ("mixer_s32_224", "blocks.1.mlp_tokens.fc2", None),
        ("poolformer_s12", "stages.1.blocks.0.mlp.fc2", None),
        ("maxvit_rmlp_pico_rw_256", "stages.0.blocks.0.conv.conv1_1x1", "stages.0.blocks.0.conv.norm1"),
    ],
)
def test_layers_of_other_families(name, site, folded) -> None:
    sized = name.startswith(("swin", "mixer", "maxvit"))
    more: dict[str, Any] = {"img_size": 64} if sized else {}
    if "swin" in name:
        more["window_size"] = 4
    with torch.random.fork_rng(devices=[]):
        model = wrapped(redraw(timm.create_model(name, **more)), 64, torch.float32)
    place = find_site(model, site)
    assert place.norm == folded
    made = explicit_network(model.network, place, random_routing(place.channels, place.sources))
    batch = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = model(batch), made(batch)
    assert (expected - found).abs().max() <= 1e-5 * expected.abs().max()


# ---------------------------------------------------------------------------- what is refused, with the reason


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("vit_relpos_medium_patch16_rpn_224", {}),
        ("eva02_tiny_patch14_224", {"use_post_norm": True}),
        ("xcit_nano_12_p16_224", {"patch_size": 16, "img_size": 64}),  # a third branch, of convolutions
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_stream_that_is_no_sum_is_refused(name, more, dtype) -> None:
    with torch.random.fork_rng(devices=[]):
        network = timm.create_model(name, **{**NARROW, **more})
    model = wrapped(redraw(network), more.get("img_size", 32), dtype)
    with pytest.raises(SiteError, match="is not the sum it should be") as caught:
        find_site(model, "stream")
    assert "normalises after the addition (or what it adds)" in str(caught.value)
    assert "blocks.2.mlp.fc2" in str(caught.value)
    assert find_site(model, "blocks.2.mlp.fc2").channels == 48


@pytest.mark.parametrize(
    ("make", "side", "reason"),
    [
        (lambda: timm.create_model("swinv2_tiny_window8_256", img_size=64, window_size=4), 64, "such as windows"),
        (lambda: timm.create_model("swin_tiny_patch4_window7_224", img_size=64, window_size=2), 64, "works on windows"),
        (lambda: timm.create_model("convnext_tiny"), 64, "a map with its channels first"),
        (lambda: timm.create_model("hiera_tiny_224", img_size=64), 64, "lies in another stage"),
        (lambda: timm.create_model("mixer_s32_224", img_size=64), 64, "is not the sum it should be"),
        (lambda: torchvision.models.vit_b_32(image_size=64), 64, "torch.nn.MultiheadAttention"),
        (torchvision.models.swin_t, 64, "its weight is used without calling it"),
    ],
)
def test_stream_of_a_family_without_one_is_refused(make, side, reason) -> None:
    model = wrapped(make(), side, torch.float32)
    with pytest.raises(SiteError) as caught:
        find_site(model, "stream")
    assert reason in str(caught.value)
    table = find_sites(model)
    assert table["can_be_split"].any()
    assert (table.loc[~table["can_be_split"].astype(bool), "reason"] != "").all()


def tied() -> nn.Module:
    network = Blocks("pre-norm")
    blocks: Any = network.blocks
    blocks[1].mlp.fc2.weight = blocks[0].mlp.fc2.weight
    return network


def parametrised() -> nn.Module:
    network = Blocks("pre-norm")
    torch.nn.utils.parametrizations.weight_norm(network.get_submodule("blocks.0.mlp.fc2"))
    return network


def with_old_norm() -> nn.Module:
    network = Blocks("pre-norm")
    torch.nn.utils.spectral_norm(network.get_submodule("blocks.0.mlp.fc2"))
    return network


class QuantisedLinear(nn.Linear):
    """A layer that keeps whole numbers and one scale, as the libraries for 8 bits do."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features)
        scale = layer.weight.detach().abs().max() / 127
        whole = (layer.weight.detach() / scale).round().to(torch.int8)
        self.weight = nn.Parameter(whole, requires_grad=False)
        self.register_buffer("scale", scale)

    scale: Tensor

    def forward(self, inputs: Tensor) -> Tensor:
        return nn.functional.linear(inputs, self.weight.to(inputs.dtype) * self.scale, self.bias)


def quantised() -> nn.Module:
    network = Blocks("pre-norm").double()
    mlp: Any = network.get_submodule("blocks.0.mlp")
    mlp.fc2 = QuantisedLinear(mlp.fc2)
    return network


class Scaled(nn.Linear):
    """A subclass whose forward pass does more."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) * 2


def subclassed() -> nn.Module:
    network = Blocks("pre-norm")
    mlp: Any = network.get_submodule("blocks.0.mlp")
    mlp.fc2 = Scaled(24, 12)
    return network


@pytest.mark.parametrize(
    ("make", "reason", "cure"),
    [
        (tied, "'blocks.0.mlp.fc2' shares its weight with 'blocks.1.mlp.fc2'", "layer.weight.clone()"),
        (parametrised, "works its weight out anew in every pass", "remove_parametrizations"),
        (with_old_norm, "works its weight out anew in every pass", "make it fixed first"),
        (quantised, "is quantised (QuantisedLinear)", "before it was quantised"),
        (subclassed, "is a Scaled, whose forward pass may do more", "only plain nn.Linear"),
    ],
)
def test_layer_that_is_no_plain_layer_of_its_own_is_refused(make, reason, cure) -> None:
    network = make()
    for parameter in network.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.double()
    for buffer in network.buffers():
        buffer.data = buffer.data.double()
    model = wrapped_as_is(network)
    with pytest.raises(SiteError) as caught:
        find_site(model, "blocks.0.mlp.fc2")
    assert reason in str(caught.value)
    assert cure in str(caught.value)
    with pytest.raises(SiteError) as of_stream:
        find_site(model, "stream")
    assert reason in str(of_stream.value)
    table = find_sites(model).set_index("site")
    assert reason in str(table.loc["blocks.0.mlp.fc2", "reason"])
    assert not table.loc[["stream:1", "stream:2"], "can_be_split"].any()
    assert table.loc["blocks.0.mlp.fc1", "can_be_split"]


def wrapped_as_is(network: nn.Module, side: int = 16) -> Model:
    from elude_nb import wrap_network
    from tests.tiny import to_tensor

    for parameter in network.parameters():
        parameter.requires_grad = False
    return wrap_network(network, preprocess=to_tensor, input_size=(3, side, side))


def test_layers_that_torch_quantised_are_refused() -> None:
    quantise = getattr(getattr(torch, "ao", None), "quantization", None)
    if not hasattr(quantise, "quantize_dynamic"):
        pytest.skip("this torch has no quantize_dynamic")
    network = Blocks("pre-norm")
    try:
        made = quantise.quantize_dynamic(network, {nn.Linear})  # type: ignore[union-attr]
    except RuntimeError as error:
        pytest.skip(f"torch cannot quantise here: {error}")
    model = wrapped_as_is(made)
    with pytest.raises(SiteError, match=r"'blocks\.0\.mlp\.fc2' is quantised"):
        find_site(model, "blocks.0.mlp.fc2")
    with pytest.raises(SiteError, match=r"'blocks\.0\.attn\.proj' is quantised"):
        find_site(model, "stream")
    assert find_site(model, "embed").channels == 12


@pytest.mark.parametrize(
    ("name", "site", "reason"),
    [
        ("beit_base_patch16_224", "blocks.0.attn.qkv", "ran 0 times in one forward pass (it is idle, or its weight"),
        ("beit_base_patch16_224", "blocks.0.norm1", "is a LayerNorm; what can be split are"),
    ],
)
def test_modules_that_are_no_sites_are_refused(name, site, reason) -> None:
    with pytest.raises(SiteError) as caught:
        find_site(timm_model(name), site)
    assert reason in str(caught.value)


def test_layer_of_multihead_attention_is_refused() -> None:
    model = vision(torchvision.models.vision_transformer.VisionTransformer(32, 8, 2, 4, 48, 96, num_classes=5))
    path = "encoder.layers.encoder_layer_0.self_attention.out_proj"
    with pytest.raises(SiteError, match=r"belongs to a torch\.nn\.MultiheadAttention"):
        find_site(model, path)
    site = find_site(model, "encoder.layers.encoder_layer_0.mlp.3")
    assert (site.layout.classes, site.layout.registers, site.layout.grid) == (1, 0, (4, 4))


def test_standardised_and_padding_convolutions_are_refused() -> None:
    with torch.random.fork_rng(devices=[]):
        networks = [timm.create_model("test_nfnet"), timm.create_model("tf_efficientnet_b0")]
    for network, path in zip(networks, ["stem.conv1", "conv_stem"], strict=True):
        with pytest.raises(SiteError, match="whose forward pass may do more than its weight says"):
            find_site(wrapped(network, 64, torch.float32), path)


# ------------------------------------------------------------------------------- the explicit network of a stream


def explicit_stream(model: Model) -> nn.Module:
    site = find_site(model, "stream")
    return explicit_network(model.network, site, random_routing(site.channels, site.sources))


def test_whoever_looks_between_two_blocks_sees_the_models_stream(photos) -> None:
    """Networks that hand out the tokens of several blocks do; the split window must not be in their way."""
    model = timm_model("vit_small_patch14_reg4_dinov2")
    made, batch = explicit_stream(model), model.prepare(list(photos[:2]))
    networks: list[Any] = [model.network, made]
    expected, found = (network.forward_intermediates(batch, intermediates_only=True) for network in networks)
    assert all(a.equal(b) for a, b in zip(expected[:2], found[:2], strict=True))
    torch.testing.assert_close(found[2], expected[2], rtol=1e-12, atol=1e-12)


def test_a_pass_that_failed_leaves_nothing_behind(photos) -> None:
    model = timm_model("vit_pwee_patch16_reg1_gap_256")
    made, batch = explicit_stream(model), model.prepare(list(photos[:2]))
    expected = made(batch)
    terms = [module for module in made.modules() if isinstance(module, SplitTerm)]
    handle = terms[3].register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("half-way")))
    with pytest.raises(RuntimeError, match="half-way"):
        made(batch)
    handle.remove()
    assert made(batch).equal(expected)
    assert terms[0].ledger.units is None
    assert copy.deepcopy(made)(batch).equal(expected)


@pytest.mark.parametrize("name", ["vit_small_patch16_18x2_224", "eva02_tiny_patch14_224", "vit_small_patch16_dinov3"])
def test_explicit_stream_of_a_family_can_be_exported(photos, name) -> None:
    model = timm_model(name)
    made, batch = explicit_stream(model), model.prepare(list(photos[:2]))
    expected = made(batch)
    for _ in range(2):  # exporting leaves the network as it was
        exported = torch.export.export(made, (batch,))
        torch.testing.assert_close(exported.module()(batch), expected, rtol=1e-12, atol=1e-12)
        assert made(batch).equal(expected)


def test_network_that_adds_in_place(photos) -> None:
    """What is listened to is copied before the network changes it."""

    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(12), nn.LayerNorm(12)
            self.attn, self.mlp = Attention(12), Mlp(12)

        def forward(self, tokens: Tensor) -> Tensor:
            tokens += self.attn(self.norm1(tokens))
            tokens += self.mlp(self.norm2(tokens))
            return tokens

    network = Blocks("pre-norm")
    network.blocks = nn.ModuleList([InPlace(), InPlace()])
    model = vision(network, 16)
    small = random_images(12, 16)
    split = disentangle(model, small, **QUICK)
    assert verify(split, small[:4], progress=False).lens.identical


def test_edits_on_parallel_blocks_are_live_and_their_permanent_form_is_refused(photos) -> None:
    model = timm_model("vit_pwee_patch16_reg1_gap_256")
    split = disentangle(model, photos, **QUICK)
    concept = int(split.units["concept"].dropna().iloc[0])
    batch = model.prepare(list(photos[:2]))
    before = model(batch)
    with split.edit(Edit.scale(concept=concept, by=0.0)):
        assert not model(batch).equal(before)
    assert model(batch).equal(before)
    with pytest.raises(SiteError, match="cannot be made permanent"):
        make_permanent(split, Edit.scale(concept=concept, by=0.0))


def test_sources_of_parallel_branches_have_their_layer_and_head() -> None:
    model = timm_model("vit_small_patch16_18x2_224")
    site = find_site(model, "stream:1", blocks=1)
    table = site.source_table(model.network)
    layers = [
        f"blocks.0.{part}" for part in ("attns.0.attn.proj", "attns.1.attn.proj", "ffns.0.mlp.fc2", "ffns.1.mlp.fc2")
    ]
    assert table["layer"].unique().tolist() == layers
    assert table.groupby("layer", sort=False)["head"].max().tolist() == [3, 3, -1, -1]


class Own(nn.Module):
    """A block under names of its own, one branch with a scale, the other with a gate inside."""

    def __init__(self, width: int, how: str = "") -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixing, self.back = nn.Linear(width, width), nn.Linear(width, width)
        self.up, self.gate, self.down = nn.Linear(width, 20), nn.Linear(width, 20), nn.Linear(20, width, bias=False)
        self.strength, self.other = nn.Parameter(torch.ones(width)), nn.Parameter(torch.ones(width))
        self.how = how

    def forward(self, tokens: Tensor) -> Tensor:
        mixed = self.mixing(self.first(tokens))
        tokens = tokens + self.back((mixed - mixed.mean(1, keepdim=True)).tanh()) * self.strength
        normed = self.second(tokens)
        added: Tensor = self.down(self.up(normed) * self.gate(normed).sigmoid())
        if self.how == "gated":
            return tokens + added * tokens.sigmoid()
        return self.first(tokens + added) if self.how == "post-norm" else tokens + added


class OwnNetwork(nn.Module):
    def __init__(self, how: str = "") -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 12, 4, stride=4)
        self.trunk = nn.Sequential(nn.Identity(), Own(12), Own(12), Own(12, how), nn.LayerNorm(12), nn.Linear(12, 5))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.trunk(self.embed(images).flatten(2).transpose(1, 2)).mean(1)
        return logits


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_blocks_under_names_of_ones_own_are_found_by_watching(dtype) -> None:
    model = wrapped(redraw(OwnNetwork()), 16, dtype)
    site = find_site(model, "stream")
    assert (site.entry, site.exit, site.blocks) == ("trunk.1", "trunk.3", 3)
    assert [(term.layer, term.scale) for term in site.terms[:2]] == [
        ("trunk.1.back", "trunk.1.strength"),
        ("trunk.1.down", None),
    ]
    small = random_images(12, 16)
    assert verify(disentangle(model, small, **QUICK), small[:4], progress=False).lens.max_abs_diff == 0.0


@pytest.mark.parametrize("how", ["gated", "post-norm"])
def test_a_watched_block_that_adds_otherwise_is_no_part_of_the_stream(how) -> None:
    model = wrapped(redraw(OwnNetwork(how)), 16, torch.float64)
    site = find_site(model, "stream")
    assert (site.entry, site.exit) == ("trunk.1", "trunk.2")
    assert find_site(model, "trunk.3.down").sources == 20


def test_stream_of_vectors(photos) -> None:
    """A residual network without tokens: one vector an image."""

    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.out = nn.Linear(12, 12), nn.Linear(12, 12)

        def forward(self, vectors: Tensor) -> Tensor:
            added: Tensor = self.out(self.into(vectors).tanh())
            return vectors + added

    steps = nn.Sequential(Step(), Step(), Step())
    model = vision(nn.Sequential(nn.Flatten(), nn.Linear(192, 12), steps, nn.Linear(12, 5)), 8)
    site = find_site(model, "stream")
    assert (site.entry, site.sources, site.layout.count) == ("2.0", 36, 1)
    small = random_images(20, 8)
    split = disentangle(model, small, concepts=5, units=3, tokens="class", progress=False)
    assert verify(split, small[:4], progress=False).lens.max_abs_diff == 0.0
    concept = int(split.units["concept"].dropna().iloc[0])
    with pytest.raises(SiteError, match="cannot be made permanent"):
        make_permanent(split, Edit.scale(concept=concept, by=0.0))


def test_parallel_blocks_under_names_of_ones_own() -> None:
    assert find_site(block_model("parallel"), "stream").sources == 2 * (12 + 24)


# ------------------------------------------------------------------------------------ Hugging Face transformers

SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "image_size": 32,
    "patch_size": 8,
}


@pytest.mark.parametrize(
    ("kind", "classes", "registers"),
    [
        ("ViT", 1, 0),
        ("Dinov2", 1, 0),
        ("Dinov2WithRegisters", 1, 4),
        ("DINOv3ViT", 1, 4),
        ("CLIPVision", 1, 0),
        ("SiglipVision", 0, 0),
        ("Beit", 1, 0),
    ],
)
def test_networks_of_transformers(photos, kind, classes, registers) -> None:
    transformers: Any = pytest.importorskip("transformers", reason="transformers is optional and absent")
    sizes = {**SIZES, "num_register_tokens": registers} if registers else SIZES
    config = getattr(transformers, f"{kind}Config")(**sizes, mlp_ratio=2)
    model = vision(getattr(transformers, f"{kind}Model")(config))
    site = find_site(model, "stream")
    assert (site.layout.classes, site.layout.registers, site.layout.grid) == (classes, registers, (4, 4))
    certificate = verify(disentangle(model, photos, **QUICK), photos[:4], progress=False)
    assert certificate.lens.max_abs_diff == 0.0
    assert certificate.explicit.max_rel_diff <= 1e-12
    embedding = next(name for name in find_sites(model)["site"] if "patch_embedding" in str(name))
    made = explicit_network(model.network, find_site(model, str(embedding)), random_routing(48, 3))
    batch = model.prepare(list(photos[:2]))
    found, expected = made(batch).last_hidden_state, model.network(batch).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
