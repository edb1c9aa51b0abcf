"""Networks and cells as people have them: compiled, adapted, quantised, in autocast or another default dtype."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import elude_nb as en
from elude_nb._util.files import sha256_of_tensors
from elude_nb.errors import ExactnessError, ModelMismatchError, SiteError, WeightsError
from elude_nb.interpret.gallery import Gallery
from elude_nb.models.hooks import evaluating
from elude_nb.models.marks import weight_marks
from tests.tiny import random_images, tiny_vit, to_tensor, wrapped

QUICK: dict[str, Any] = {"concepts": 6, "units": 3, "tokens_per_image": 6, "progress": False}


@pytest.fixture(scope="module")
def images() -> en.ImageSet:
    return random_images(12, 32)


def wrap(network: nn.Module) -> en.Model:
    return en.wrap_network(network, preprocess=to_tensor, input_size=(3, 32, 32))


# ------------------------------------------------------------------------------------------------------------ compiled


def test_a_compiled_network_is_split_as_it_was_written(images) -> None:
    network = tiny_vit().network
    expected = en.disentangle(wrap(network), images, **QUICK)
    model = wrap(torch.compile(network, backend="eager"))  # type: ignore[arg-type]
    assert model.network is network
    assert en.disentangle(model, images, **QUICK).identity == expected.identity


def test_a_network_compiled_in_place_runs_as_it_was_written_while_it_is_measured() -> None:
    compiled: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    model = tiny_vit()
    expected = en.find_sites(model)
    model.network.compile(backend=backend)
    assert en.find_sites(wrap(model.network)).equals(expected)
    with evaluating(model.network):
        model(model.noise())
    assert not compiled
    with torch.no_grad():
        model(model.noise())
    assert compiled  # the user's own passes are compiled as before


def test_compiled_and_scripted_parts_that_tell_nothing_are_refused() -> None:
    network: Any = tiny_vit().network
    network.blocks[1] = torch.compile(network.blocks[1], backend="eager")
    with pytest.raises(TypeError, match=r"'blocks\.1' is what torch\.compile returned, .*network\.blocks\.1\.compile"):
        wrap(network)

    class Traced(torch.jit.ScriptModule):
        pass

    with pytest.raises(TypeError, match=r"TorchScript networks cannot be listened to; wrap the network before"):
        wrap(Traced())


# ------------------------------------------------------------------------------------------------------------ adapters


class Adapted(nn.Module):
    """A layer with a low-rank adapter beside it, as peft has it."""

    def __init__(self, base: Any, scale: float) -> None:
        super().__init__()
        self.base_layer, self.scale, self.in_features = base, scale, base.in_features
        self.lora_A = nn.Linear(base.in_features, 2, bias=False, dtype=base.weight.dtype)
        self.lora_B = nn.Linear(2, base.out_features, bias=False, dtype=base.weight.dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        base: Tensor = self.base_layer(inputs)
        added: Tensor = self.lora_B(self.lora_A(inputs))
        return base + self.scale * added


def adapted(scale: float, *, names: tuple[str, ...] = ("mlp.fc2",), layer_scale: float | None = 0.5) -> en.Model:
    network: Any = tiny_vit(layer_scale=layer_scale).network
    torch.manual_seed(0)
    for block in network.blocks:
        for name in names:
            owner = block.get_submodule(name.rpartition(".")[0])
            last = name.rpartition(".")[2]
            setattr(owner, last, Adapted(getattr(owner, last), scale))
    return wrap(network.requires_grad_(requires_grad=False))


def test_an_adapter_that_adds_its_output_as_it_is_is_part_of_the_stream(images) -> None:
    site = en.find_site(adapted(1.0), "stream")
    assert site.sources == 3 * (24 + 96 + 2)
    split = en.disentangle(adapted(1.0), images, **QUICK)
    assert en.verify(split, images[:2], progress=False).lens.identical


@pytest.mark.parametrize(
    ("names", "layer_scale", "factor"),
    [(("mlp.fc2",), 0.5, "0.5 times 'ls2.gamma'"), (("mlp.fc2", "attn.proj"), None, "0.5 times")],
)
def test_an_adapter_with_a_scale_of_its_own_is_named(names, layer_scale, factor) -> None:
    model = adapted(0.5, names=names, layer_scale=layer_scale)
    with pytest.raises(SiteError) as caught:
        en.find_site(model, "stream")
    assert f".lora_B' puts out is added {factor}, a factor that no parameter holds" in str(caught.value)
    assert "peft: merge_and_unload()" in str(caught.value)
    assert en.find_site(model, "blocks.0.mlp.fc1").sources == 24
    with pytest.raises(
        SiteError, match=r"is an adapter \(.*Adapted\) around 'blocks\.0\.mlp\.fc2\.base_layer'; merge it"
    ):
        en.find_site(model, "blocks.0.mlp.fc2")


def test_an_adapter_trained_after_a_first_look_is_looked_at_again(images) -> None:
    model = adapted(0.5)
    network: Any = model.network
    for block in network.blocks:
        block.mlp.fc2.lora_B.weight.zero_()
    assert en.find_site(model, "stream").sources == 3 * (24 + 96)  # it adds nothing yet
    split = en.disentangle(model, images, **QUICK)
    for block in network.blocks:
        block.mlp.fc2.lora_B.weight.normal_()
    with pytest.raises(SiteError, match="a factor that no parameter holds"):
        en.find_site(model, "stream")
    with pytest.raises(ModelMismatchError, match=r"lora_B\.weight"):
        split.activations(images)


def test_a_module_put_in_after_a_first_look_is_looked_at_again() -> None:
    model = tiny_vit()
    network: Any = model.network
    assert en.find_site(model, "stream").sources == 3 * (24 + 96)
    network.blocks[1].mlp.fc2 = Adapted(network.blocks[1].mlp.fc2, 1.0).requires_grad_(requires_grad=False)
    assert en.find_site(model, "stream").sources == 3 * (24 + 96) + 2


# -------------------------------------------------------------------------------------------------- around a whole cell


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


AROUND: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "inference mode": torch.inference_mode,
    "another device": lambda: torch.device("meta"),
}


def work(images: en.ImageSet, path: Any) -> dict[str, Any]:
    """Everything that a notebook does, one thing after the other."""
    torch.manual_seed(0)
    model = en.load_model("test_vit", pretrained=False, image_size=32)
    network: Any = model.network
    split = en.disentangle(model, images, **QUICK)
    concept = int(split.units["concept"].dropna().iloc[0])
    edit = en.Edit.scale(concept=concept, by=0.0)
    head = en.fit_head(model, images)
    gallery = Gallery(split, images)
    assert sum(gallery.steps(4)) == len(images)  # as panels fill one
    with split.lens() as lens, torch.no_grad():
        network(model.prepare(list(images)))
    found = {
        "weights": model.fingerprint(),
        "identity": split.identity,
        "activations": split.activations(images),
        "score": en.score(split, images, progress=False),
        "effect": en.effect(split, edit, images, controls=("random sub-units",), draws=2, progress=False).table,
        "attribution": en.attribute(split, images[:2], 0).concepts,
        "verified": en.verify(split, images[:2], progress=False).problems(),
        "probability": en.steering.heads.predict(head, model, images)["probability"],
        "lens": lens.values,
        "concept maps": gallery.concept_maps,
    }
    if path.is_file():
        assert en.Disentanglement.load(path, model).identity == split.identity
    else:
        split.save(path)
    return {"split": split, "edit": edit, **found}


@pytest.fixture(scope="module")
def plainly(images, tmp_path_factory) -> tuple[dict[str, Any], Any]:
    path = tmp_path_factory.mktemp("plainly") / "split.safetensors"
    return work(images, path), path


@pytest.mark.parametrize("around", AROUND)
def test_what_is_set_around_a_cell_changes_nothing(around, plainly, images) -> None:
    expected, path = plainly
    with AROUND[around]():
        found = work(images, path)
        assert torch.get_default_dtype() == {"float64": torch.float64, "bfloat16": torch.bfloat16}.get(
            around, torch.float32
        )
    if around == "autocast":  # the user's own pass under the lens ran in autocast; only the read-out is ours
        assert found["lens"].dtype == torch.float32
        torch.testing.assert_close(found.pop("lens"), expected["lens"], rtol=0.05, atol=0.5)
    for name, value in found.items():
        if isinstance(value, Tensor):
            assert value.equal(expected[name]), name
        elif name not in {"split", "edit"}:
            assert repr(value) == repr(expected[name]), name
    # What was made inside has gradients outside.
    split = found["split"]
    network: Any = split.model.network
    pixels = torch.randn(2, 3, 32, 32).requires_grad_()
    with split.edit(found["edit"]), split.lens() as lens:
        (network(pixels).sum() + lens.values.sum()).backward()
    assert pixels.grad is not None
    assert bool(pixels.grad.any())
    assert not en.attribute(split, images[:2], 0).concepts.isna().any(axis=None)


def test_weights_made_in_inference_mode_have_no_gradient_and_say_so(images) -> None:
    with torch.inference_mode():
        model = tiny_vit()
    split = en.disentangle(model, images, **QUICK)
    assert split.activations(images).isfinite().all()
    with pytest.raises(ValueError, match=r"weights made inside torch\.inference_mode have none; make or load"):
        en.attribute(split, images[:2], 0)


def test_a_network_meets_the_default_dtype_that_its_owner_set() -> None:
    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(192, 4)

        def forward(self, images: Tensor) -> Any:
            positions = torch.linspace(0, 1, 192)  # of the default dtype, as the weights were
            return self.layer(images.flatten(1) + positions)

    with default_dtype(torch.float64):
        model = en.wrap_network(Asks(), preprocess=to_tensor, input_size=(3, 8, 8))
        assert en.embed(model, random_images(4, 8)).dtype == torch.float64


# ------------------------------------------------------------------------------------------------- quantised, and meta


of_torch = pytest.mark.filterwarnings("ignore:.*(quantiz|TypedStorage).*")  # of torch, about itself


class Packed(nn.Module):
    """A last layer whose weights are packed as torch packs them: no parameters, and no tensors in the state dict."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.scale = 0.01
        self._whole = torch.quantize_per_tensor(layer.weight.detach(), self.scale, 0, torch.qint8)

    def get_extra_state(self) -> Any:
        return self._whole, torch.qint8, {"scale": 0.01}

    def set_extra_state(self, state: Any) -> None:
        self._whole = state[0]

    def weight(self) -> Tensor:
        return self._whole

    def forward(self, inputs: Tensor) -> Tensor:
        if inputs.dtype != torch.float32:
            raise RuntimeError("expected scalar type Float but found Double")
        with torch.no_grad():
            return nn.functional.linear(inputs, self._whole.dequantize())


Packed.__module__ = "torch.ao.nn.quantized.dynamic"  # what torch's own quantised layers are known by


def partly_quantised() -> en.Model:
    network: Any = tiny_vit(torch.float32).network
    network.head = Packed(network.head)
    return wrap(network)


@of_torch
def test_a_partly_quantised_network_is_split_saved_and_told_apart(images, tmp_path) -> None:
    model = partly_quantised()
    split = en.disentangle(model, images, **QUICK)
    split.save(tmp_path / "split.safetensors")
    assert en.Disentanglement.load(tmp_path / "split.safetensors", model).identity == split.identity
    assert len(en.score(split, images, progress=False))
    network: Any = model.network
    network.head._whole = torch.quantize_per_tensor(network.head._whole.dequantize() * 2, 0.01, 0, torch.qint8)
    with pytest.raises(ModelMismatchError, match="are not those that were split"):
        split.save(tmp_path / "split.safetensors")


@of_torch
def test_what_quantised_layers_cannot_do_is_said_at_once(images) -> None:
    split = en.disentangle(partly_quantised(), images, **QUICK)
    with pytest.raises(ExactnessError, match=r"runs the network in float64 too, which its quantised layers, such as"):
        en.verify(split, images[:2], progress=False)
    with pytest.raises(ValueError, match="No gradient flows through quantised layers, such as 'head'"):
        en.attribute(split, images[:2], 0)


@of_torch
def test_the_hash_of_packed_weights_sees_every_change() -> None:
    weight = torch.arange(6.0).view(2, 3)
    states: list[dict[str, Any]] = [
        {"w": (torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8), None)},
        {"w": (torch.quantize_per_tensor(weight, 0.2, 0, torch.qint8), None)},
        {"w": (torch.quantize_per_tensor(weight, 0.1, 1, torch.qint8), None)},
        {"w": (torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8), torch.zeros(2))},
        {"w": torch.quantize_per_channel(weight, torch.tensor([0.1, 0.2]), torch.tensor([0, 0]), 0, torch.qint8)},
        {"w": torch.quantize_per_channel(weight, torch.tensor([0.1, 0.3]), torch.tensor([0, 0]), 0, torch.qint8)},
        {"w": torch.qint8},
    ]
    assert len({sha256_of_tensors(state) for state in states}) == len(states)
    assert sha256_of_tensors(copy.deepcopy(states[0])) == sha256_of_tensors(states[0])


def test_weights_made_of_several_tensors_are_told_apart_and_not_split(images, tmp_path) -> None:
    """As torchao's are; torch has one to test with."""
    from torch.testing._internal.two_tensor import TwoTensor

    network: Any = tiny_vit().network
    weight = network.head.weight.detach()
    network.head.weight = nn.Parameter(TwoTensor(weight, weight.clone()), requires_grad=False)
    model = wrap(network)
    with pytest.raises(SiteError, match="'head' is quantised"):
        en.find_site(model, "head")
    before, marks = model.fingerprint(), weight_marks(network)
    assert weight_marks(network) == marks
    network.head.weight.b[0, 0] += 1
    assert model.fingerprint() != before
    assert weight_marks(network) != marks


def test_the_dtype_of_a_model_is_that_of_its_fractions() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    network.register_parameter("packed", nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False))
    network._parameters = {"packed": network._parameters["packed"]}
    assert wrap(network).dtype == torch.float32
    nothing = wrap(nn.Flatten())
    assert (nothing.dtype, nothing.device) == (torch.float32, torch.device("cpu"))


def test_a_network_without_numbers_is_refused_by_name(images) -> None:
    with torch.device("meta"):
        network = nn.Sequential(nn.Flatten(), nn.Linear(3072, 4))
    with pytest.raises(WeightsError, match=r"'1\.weight' of 'Sequential' is on the device meta, which holds"):
        en.disentangle(wrap(network), images, "1", **QUICK)


# ----------------------------------------------------------------------------------------------------- parametrised


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_a_parametrised_layer_outside_the_site_is_no_hindrance(images) -> None:
    for norm in (nn.utils.parametrizations.weight_norm, nn.utils.weight_norm):
        network: Any = tiny_vit().network
        norm(network.requires_grad_(requires_grad=True).blocks[0].mlp.fc1)
        model = wrapped(network, 32, torch.float64)
        split = en.disentangle(model, images, **QUICK)
        assert en.verify(split, images[:2], progress=False).lens.identical
        with pytest.raises(SiteError, match="works its weight out anew in every pass"):
            en.find_site(model, "blocks.0.mlp.fc1")
