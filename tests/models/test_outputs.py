"""Networks that put out more than one tensor, and whose tokens are counted by what is known of them."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import elude_nb as en
from elude_nb.interpret.gallery import Gallery
from elude_nb.models.outputs import main_tensor
from elude_nb.steering.live import LiveSteering
from tests.tiny import random_images, redraw, tiny_vit, to_tensor

QUICK: dict[str, Any] = {"concepts": 6, "units": 3, "tokens_per_image": 6, "progress": False}


class Parts(NamedTuple):
    logits: Tensor
    auxiliary: Tensor | None


class Attributes:
    """As Hugging Face has it, with parts that are None."""

    def __init__(self, tokens: Tensor, pooled: Tensor) -> None:
        self.loss, self.last_hidden_state, self.pooler_output = None, tokens, pooled


class Puts(nn.Module):
    """A network that hands out its output in another form."""

    def __init__(self, network: nn.Module, form: str) -> None:
        super().__init__()
        self.network, self.form = network, form

    def forward(self, images: Tensor) -> Any:
        network: Any = self.network
        tokens = network.forward_features(images)
        output = network.forward_head(tokens)
        forms: dict[str, Any] = {
            "tensor": output,
            "attributes": Attributes(tokens, output),
            "dictionary": OrderedDict(loss=None, last_hidden_state=tokens, logits=output),
            "tuple": (output, tokens),
            "named tuple": Parts(output, None),
            "list of maps": [tokens, output],
            "maps by name": OrderedDict(feature_maps=(tokens, output)),
            "nested": {"ids": torch.arange(len(images)), "all": [tokens, (None, output)]},
            "whole numbers": {"ids": torch.arange(len(images))},
            "turned": output.T,
        }
        return forms[self.form]


def putting(form: str, **more: Any) -> en.Model:
    return en.wrap_network(Puts(tiny_vit().network, form), preprocess=to_tensor, input_size=(3, 32, 32), **more)


@pytest.mark.parametrize(
    "form", ["attributes", "dictionary", "tuple", "named tuple", "list of maps", "maps by name", "nested"]
)
def test_every_form_of_output_is_the_tensor_in_it(form) -> None:
    images = random_images(4, 32)
    assert en.embed(putting(form), images).equal(en.embed(putting("tensor"), images))


def everything(model: en.Model, folder: Path) -> list[Any]:
    images = random_images(12, 32)
    split = en.disentangle(model, images, **QUICK)
    split.save(folder / "split.safetensors")
    channel = int(split.routing.is_split().nonzero()[0])
    edit = en.Edit.scale(concept=int(split.units["concept"].dropna().iloc[0]), by=0.0)
    head = en.fit_head(model, images)
    Gallery(split, images).fill(progress=False)
    return [
        en.Disentanglement.load(folder / "split.safetensors", model).identity,
        en.score(split, images, progress=False).to_dict(),
        en.find_exemplars(split, images, channel, progress=False).similarity,
        en.attribute(split, images[:2], 0).concepts.to_dict(),
        str(en.effect(split, edit, images, controls=(), progress=False)),
        LiveSteering(split, head=head).see(images[0]).outputs.tolist(),
        en.verify(split, images[:2], progress=False).lens.identical,
    ]


def test_all_that_is_done_with_an_output_is_done_with_its_tensor(tmp_path) -> None:
    expected = everything(putting("tensor"), tmp_path)
    assert repr(everything(putting("attributes"), tmp_path)) == repr(expected)  # NaN is not equal to itself


def test_an_output_that_stands_for_nothing_is_refused_before_the_discovery() -> None:
    images = random_images(16, 32)
    with pytest.raises(TypeError, match=r"puts out dict without any tensor of fractions; say which .* output=lambda"):
        en.disentangle(putting("whole numbers"), images, **QUICK)
    with pytest.raises(ValueError, match=r"for 1 image is \(5, 1\); it must be a tensor with a row for each"):
        en.disentangle(putting("turned"), images, **QUICK)
    chosen = putting("turned", output=lambda out: out.T)
    assert en.embed(chosen, images).equal(en.embed(putting("tensor"), images))
    with pytest.raises(TypeError, match="output must be a function of what the network puts out, not 'logits'"):
        putting("dictionary", output="logits")


def test_the_users_choice_of_an_output_goes_before_any_other() -> None:
    network = tiny_vit().network
    model = en.wrap_network(network, preprocess=to_tensor, input_size=(3, 32, 32), output=lambda out: out[:, :2])
    images = random_images(4, 32)
    assert en.embed(model, images).shape == (4, 2)
    assert model(model.prepare(images)).equal(network(model.prepare(images))[:, :2])


# --------------------------------------------------------------------------------------- class tokens and registers


class Embedding(nn.Module):
    def __init__(self, others: int, name: str, *, linear: bool) -> None:
        super().__init__()
        self.linear = linear
        self.patches = nn.Linear(192, 12) if linear else nn.Conv2d(3, 12, 8, stride=8)
        self.cls = nn.Parameter(torch.zeros(1, 1, 12))
        self.name = name
        self.register_parameter(name, nn.Parameter(torch.zeros(1, others, 12)))

    def forward(self, images: Tensor) -> Tensor:
        if self.linear:
            patches = images.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
            tokens = self.patches(patches)
        else:
            tokens = self.patches(images).flatten(2).transpose(1, 2)
        before = [self.cls, getattr(self, self.name)]
        return torch.cat([*(part.expand(len(images), -1, -1) for part in before), tokens], 1)


def with_registers(name: str = "extra", *, linear: bool = False, **more: Any) -> en.Model:
    """A network of one's own: one class token, four registers under some name, 4 x 4 patches."""
    network = nn.Sequential(Embedding(4, name, linear=linear), nn.Linear(12, 12), nn.GELU(), nn.Linear(12, 12))
    redrawn = redraw(network).double().requires_grad_(requires_grad=False)
    return en.wrap_network(redrawn, preprocess=to_tensor, input_size=(3, 32, 32), **more)


def kinds(model: en.Model, site: str = "3") -> tuple[int, int, tuple[int, int] | None]:
    layout = en.find_site(model, site).layout
    return layout.classes, layout.registers, layout.grid


def test_registers_are_never_taken_for_class_tokens_without_a_word() -> None:
    with pytest.warns(UserWarning, match=r"5 tokens stand before the 4 x 4 patches, and .* registers=\.\.\."):
        assert kinds(with_registers()) == (5, 0, (4, 4))
    assert kinds(with_registers(registers=4)) == (1, 4, (4, 4))
    assert kinds(with_registers("register_tokens")) == (1, 4, (4, 4))  # a name that says so, deep in the network
    assert kinds(with_registers(linear=True, class_tokens=1, registers=4)) == (1, 4, (4, 4))  # no map tells the grid
    with pytest.raises(ValueError, match="registers=-1 is out of range"):
        with_registers(registers=-1)


def test_what_a_network_says_of_its_tokens_is_heard_through_a_wrapper() -> None:
    network = tiny_vit(registers=2).network
    for outer, site in ((nn.DataParallel(network), "module"), (nn.Sequential(network), "0")):
        model = en.wrap_network(outer, preprocess=to_tensor, input_size=(3, 32, 32))
        assert kinds(model, "stream") == kinds(model, f"{site}.blocks.0.mlp.fc2") == (1, 2, (4, 4))


def test_dinov2_of_transformers_in_a_module_of_ones_own(tmp_path) -> None:
    transformers: Any = pytest.importorskip("transformers", reason="transformers is optional and absent")
    sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    config = transformers.Dinov2WithRegistersConfig(num_register_tokens=4, mlp_ratio=2, **sizes)
    inner = transformers.Dinov2WithRegistersModel(config).eval().requires_grad_(requires_grad=False)

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, images: Tensor) -> Any:
            return self.inner(images).pooler_output

    images = random_images(16, 32)
    bare, own = (
        en.wrap_network(network, preprocess=to_tensor, input_size=(3, 32, 32)) for network in (inner, Pooled())
    )
    assert kinds(bare, "stream") == kinds(own, "stream") == (1, 4, (4, 4))
    torch.testing.assert_close(en.embed(bare, images), en.embed(own, images))
    split = en.disentangle(bare, images, **QUICK)
    split.save(tmp_path / "split.safetensors")
    assert en.Disentanglement.load(tmp_path / "split.safetensors", bare).identity == split.identity


def test_the_main_tensor_of_what_has_none() -> None:
    several: list[Any] = [None, {}, (), [], "text", {"ids": torch.arange(3)}]
    for nothing in several:
        with pytest.raises(TypeError, match="without any tensor of fractions"):
            main_tensor(nothing)
