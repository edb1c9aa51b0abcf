"""Without a site the residual stream is split, and where there is none the deepest layer that is worth it."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

from elude_nb import compare, disentangle, find_sites, score, verify, wrap_network
from elude_nb.app.shell import in_shell_words
from elude_nb.core.estimate import estimate
from elude_nb.errors import SiteError
from elude_nb.models.default_site import best_layers, choose_site
from elude_nb.scores import suggest_settings
from tests.tiny import to_tensor, wrapped

QUICK: dict[str, Any] = {"concepts": 4, "units": 3, "tokens_per_image": 4}


@pytest.mark.parametrize(
    ("make", "name", "best"),
    [
        (timm.create_model, "resnet18", ["layer4.1.conv2", "layer4.1.conv1", "layer4.0.downsample.0"]),
        (timm.create_model, "mobilenetv3_small_050", ["blocks.5.0.conv", "blocks.4.2.conv_pwl"]),  # a map of 1 x 1 last
        (timm.create_model, "convnext_atto", ["stages.3.blocks.1.mlp.fc2", "stages.3.blocks.1.mlp.fc1"]),
        (torchvision.models.get_model, "alexnet", ["features.10", "features.8"]),
        (torchvision.models.get_model, "squeezenet1_1", ["features.12.expand3x3"]),  # its classifier is a convolution
        (partial(timm.create_model, num_classes=0), "resnet18", ["layer4.1.conv2"]),
        (partial(timm.create_model, num_classes=0), "convnext_atto", ["stages.3.blocks.1.mlp.fc2"]),
        (torchvision.models.get_model, "vit_b_32", ["encoder.layers.encoder_layer_11.mlp.3"]),
    ],
)
def test_the_best_layers_of_known_networks_are_the_deepest_before_the_classifier(make, name, best) -> None:
    with torch.random.fork_rng(devices=[]):
        model = wrap_network(make(name), preprocess=to_tensor, input_size=(3, 224, 224))
    assert best_layers(model)[: len(best)] == best


def test_layers_with_the_tokens_and_enough_sources_come_first(conv, mlp, vit) -> None:
    assert best_layers(conv) == ["point", "reflect", "grouped", "stem"]  # none has 16 sources a channel; no classifier
    assert best_layers(mlp) == ["3", "1"]
    assert best_layers(vit, "class")[0] == "blocks.2.mlp.fc2"


def test_a_network_without_a_stream_is_split_at_its_best_layer_which_is_said_and_saved(
    conv, small_images, tmp_path, capsys
) -> None:
    model = conv.using(progress=True)
    split = disentangle(model, small_images, **QUICK)
    assert split.settings.site == split.site.name == "point"
    said = "ConvNet has no residual stream that can be split; site='point' is taken. Others: 'reflect', 'grouped'."
    assert f"disentangle: {said}" in capsys.readouterr().err
    split.save(tmp_path / "split.safetensors")
    assert split.load(tmp_path / "split.safetensors", conv).site == split.site
    disentangle(model, small_images, progress=False, **QUICK)
    assert not capsys.readouterr().err
    assert compare(conv, small_images, methods=["channels"], k=4, progress=False).settings["site"] == "point"
    assert estimate(conv, small_images, concepts=4).sources == 6
    assert suggest_settings(conv, small_images, units=3).units == 3


def test_a_network_of_vectors_is_split_at_all_its_tokens(mlp, smallest_images) -> None:
    split = disentangle(mlp, smallest_images, concepts=4, units=3, progress=False)
    assert (split.site.name, split.settings.tokens) == ("3", "all")
    assert len(score(split, smallest_images, k=4, progress=False))


def test_a_stream_that_is_named_is_never_another_site(conv, vit, small_images) -> None:
    for name in ("stream", "stream:2"):
        with pytest.raises(SiteError, match="no residual stream") as caught:
            disentangle(conv, small_images, name, progress=False)
        message = str(caught.value)
        assert message.endswith(" The best layers here: site='point', 'reflect' or 'grouped'.")
        assert "--site point" in in_shell_words(message, {"site": "--site"})
    with pytest.raises(SiteError, match=r"\(model\)\.$"):  # who says over how many blocks means the stream
        disentangle(conv, small_images, blocks=1, progress=False)
    with pytest.raises(SiteError, match=r"'stream:1' to 'stream:3'\.$"):
        choose_site(vit, "stream:7", purpose="test")
    assert choose_site(vit, None, purpose="test").name == "stream:3"


def test_a_bare_network_is_wrapped_by_disentangle_and_told_of_by_all_others(conv, small_images, capsys) -> None:
    with pytest.warns(UserWarning, match="ImageNet is assumed"):
        split = disentangle(Small(), small_images, **QUICK)
    said = "Small was wrapped by wrap_network: eval mode, preprocessing ImageNet's, assumed."
    assert f"disentangle: {said}" in capsys.readouterr().err
    assert verify(split, small_images[:2], progress=False).lens.max_abs_diff == 0
    for call in (find_sites, lambda model: compare(model, small_images), lambda model: estimate(model, small_images)):
        with pytest.raises(TypeError, match=r"a bare ConvNet; .*: model = wrap_network\(model\)"):
            call(conv.network)


class Small(nn.Module):
    """Takes pictures of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 16, stride=16)
        self.second = nn.Conv2d(8, 8, 2, stride=2)
        self.head = nn.Linear(8, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.second(self.first(images).relu()).mean((2, 3)))
        return found


def test_a_network_with_nothing_but_its_classifier_keeps_the_reason(smallest_images) -> None:
    model = wrapped(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), 8, torch.float32)
    with pytest.raises(SiteError, match="no residual stream"):
        disentangle(model, smallest_images, progress=False)
