from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
import torch
from torch import nn

from elude_nb import Disentanglement, disentangle, verify
from elude_nb.core.explicit import SplitLayer
from elude_nb.core.readout import Lens
from elude_nb.core.verify import Certificate, Difference, _rounding_bound
from elude_nb.errors import ExactnessError, SiteError
from elude_nb.models.hooks import Tap
from tests.models.test_find_sites import block_model
from tests.tiny import hook_count, tiny_conv, tiny_mlp, tiny_vit, wrapped

QUICK: dict[str, Any] = {"concepts": 6, "units": 3, "progress": False}
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("make", "site", "tokens"),
    [
        (tiny_vit, "stream", "patch"),
        (tiny_vit, "blocks.2.mlp.fc2", "class"),
        (tiny_vit, "blocks.0.attn.qkv", "all"),
        (tiny_conv, "stem", "patch"),
        (tiny_conv, "grouped", "patch"),
        (tiny_conv, "reflect", "patch"),
        (tiny_mlp, "3", "class"),
    ],
)
def test_tiny_models_are_certified(make, site, tokens, dtype, images, small_images, smallest_images) -> None:
    model = make(dtype)
    fitting = {32: images, 16: small_images, 8: smallest_images}[model.input_size[-1]]
    split = disentangle(model, fitting, site, tokens=tokens, **QUICK)
    assert split.routing.is_split().any()
    found = verify(split, fitting[:6], batch_size=3, progress=False)
    assert found.problems() == []
    assert found.lens.identical
    assert found.lens.max_abs_diff == found.lens.max_ulp_diff == 0
    assert 0 <= found.site_bound_used <= 1
    assert found.explicit_float64.max_rel_diff < 1e-12
    assert found.weights_partition_exact
    assert (found.images, found.images_float64) == (6, 4)
    assert found.lens.values == 6 * 5
    assert found.dtype == str(dtype).removeprefix("torch.")


@pytest.fixture(scope="module")
def certificate(split: Disentanglement, images) -> Certificate:
    return verify(split, images[:10], batch_size=4, progress=False)


def test_json_holds_the_figures(certificate) -> None:
    found = json.loads(certificate.to_json())
    assert found["lens"]["max_abs_diff"] == 0.0
    assert found["lens"]["identical"] is True
    assert found["explicit"]["max_abs_diff"] >= 0
    assert found["explicit"]["top1_agreement"] == 1.0
    assert found["explicit"]["values"] == 50
    assert found["explicit_site"]["values"] == 10 * 19 * 24
    assert found["weights_partition_exact"] is True
    assert found["time_ratio"] > 0
    assert found["lens_time_ratio"] > 0
    assert found["layer_time_ratio"] > 0
    assert found["torch"] == torch.__version__
    assert found == certificate.to_dict()


def test_the_explicit_network_is_really_run(certificate) -> None:
    """Another order of additions: were there no difference at all, the model would have been compared with itself."""
    assert 0 < certificate.explicit_site.max_abs_diff < 1e-12
    assert not certificate.explicit_site.identical


def test_words_and_html_hold_the_figures(certificate) -> None:
    assert "largest change of the output (lens): 0.0" in str(certificate)
    assert "split weights add up to the originals: bit for bit" in str(certificate)
    assert certificate._repr_html_().count("<tr>") == len(str(certificate).splitlines())


def sabotaged(split: Disentanglement, path: str, monkeypatch) -> None:
    """Let `explicit` return a network one of whose split weights is zero: the smallest that is not zero already."""
    honest = Disentanglement.explicit

    def explicit(self, channels=None) -> nn.Module:
        made = honest(self, channels)
        weight = made.get_parameter(path)
        flat = weight.detach().abs().flatten()
        place = int(flat.masked_fill(flat == 0, torch.inf).argmin())
        with torch.no_grad():
            weight.view(-1)[place] = 0
        return made

    monkeypatch.setattr(Disentanglement, "explicit", explicit)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_lost_weight_is_caught_in_the_stream(images, monkeypatch, dtype) -> None:
    split = disentangle(tiny_vit(dtype), images, **QUICK)
    sabotaged(split, "blocks.1.block.mlp.fc2.split.weight", monkeypatch)
    with pytest.raises(ExactnessError, match="that is no rounding"):
        verify(split, images[:4], progress=False)
    found = verify(split, images[:4], strict=False, progress=False)
    assert found.problems()
    assert not found.weights_partition_exact
    assert found.explicit_float64.max_rel_diff > 1e-12
    assert found.lens.identical


def test_one_lost_weight_is_caught_in_a_convolution(conv_split, small_images, monkeypatch) -> None:
    sabotaged(conv_split, "stem.split.weight", monkeypatch)
    with pytest.raises(ExactnessError, match="that is no rounding"):
        verify(conv_split, small_images[:4], progress=False)


class Curious(nn.Module):
    """A network that looks into its layer beside calling it."""

    def __init__(self, look) -> None:
        super().__init__()
        self.inner, self.look = block_model("pre-norm").network, look

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.inner(images) + self.look(self.inner.blocks[0].mlp.fc2)  # type: ignore[union-attr, index]
        return logits


@pytest.mark.parametrize(
    ("look", "reason"),
    [
        (lambda layer: layer.in_features, "no attribute 'in_features'"),
        (lambda layer: float(isinstance(layer, nn.Linear)), "outputs on noise differ by 1"),
    ],
)
def test_networks_that_the_explicit_network_cannot_rebuild_are_caught(small_images, look, reason) -> None:
    split = disentangle(wrapped(Curious(look), 16, torch.float64), small_images, "inner.blocks.0.mlp.fc2", **QUICK)
    with pytest.raises(SiteError, match="cannot be made explicit") as caught:
        split.explicit()
    assert reason in str(caught.value)
    with pytest.raises(SiteError, match="cannot be made explicit"):
        verify(split, small_images[:4], progress=False)


def test_parallel_branches_are_rebuilt(small_images) -> None:
    split = disentangle(block_model("parallel"), small_images, **QUICK)
    assert verify(split, small_images[:4], progress=False).lens.identical


def test_a_wrong_channel_is_caught_at_the_site_by_the_bound(images, monkeypatch) -> None:
    split = disentangle(tiny_vit(torch.float32), images, "blocks.2.mlp.fc2", **QUICK)
    honest = Disentanglement.explicit

    def explicit(self, channels=None) -> nn.Module:
        made = honest(self, channels)
        layer = made.get_submodule("blocks.2.mlp.fc2")
        assert isinstance(layer, SplitLayer)
        assert layer.split.bias is not None
        with torch.no_grad():
            layer.split.bias += 0.01
        return made

    monkeypatch.setattr(Disentanglement, "explicit", explicit)
    with pytest.raises(ExactnessError, match="left its rounding bound by a factor of"):
        verify(split, images[:4], progress=False)


def test_a_lens_that_changes_outputs_is_caught(split, images, monkeypatch) -> None:
    honest = Lens.__enter__

    def enter(self) -> Any:
        head = split.model.network.get_submodule("head")
        self._harm = head.register_forward_hook(lambda module, inputs, output: output * (1 + 1e-15))
        return honest(self)

    def leave(self, *_) -> None:
        self._harm.remove()
        Tap.__exit__(self)

    monkeypatch.setattr(Lens, "__enter__", enter)
    monkeypatch.setattr(Lens, "__exit__", leave)
    with pytest.raises(ExactnessError, match="the lens changed the outputs by up to"):
        verify(split, images[:4], progress=False)
    assert hook_count(split.model.network) == 0


def test_hooks_are_gone_and_flags_restored_after_an_error(images, monkeypatch) -> None:
    model = tiny_vit()
    split = disentangle(model, images, **QUICK)
    model.network.train()
    monkeypatch.setattr("elude_nb.core.verify._rounding_bound", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        verify(split, images[:4], progress=False)
    assert hook_count(model.network) == 0
    assert all(module.training for module in model.network.modules())


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"images_float64": 0}])
def test_settings_out_of_range_are_refused(split, images, wrong) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        verify(split, images, **wrong)
    with pytest.raises(ValueError, match="list of images is empty"):
        verify(split, [])
    with pytest.raises(ValueError, match="no images to verify on"):
        verify(split, images[:0])


def test_bound_is_the_one_stated(mlp, smallest_images) -> None:
    """Literal second implementation for a linear layer: 2 lambda sqrt(s) u (sum |w a| + |b|)."""
    split = disentangle(mlp, smallest_images, "3", tokens="class", **QUICK)
    batch = mlp.prepare(list(smallest_images[:2]))
    sources = mlp.network[:3](batch)
    layer = mlp.network[3]
    found = _rounding_bound(split, batch)
    length = 16 + 2 + split.routing.units + 2
    for image in range(2):
        for channel in range(12):
            size = sum(abs(float(layer.weight[channel, i] * sources[image, i])) for i in range(16))
            size += abs(float(layer.bias[channel]))
            expected = 2 * 8 * math.sqrt(length) * 2**-53 * size
            assert float(found[image, 0, channel]) == pytest.approx(expected, rel=1e-12)


def good() -> Difference:
    return Difference(identical=True, max_abs_diff=0.0, max_rel_diff=0.0, max_ulp_diff=0, top1_agreement=1.0, values=1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, []),
        ({"lens": dataclasses.replace(good(), identical=False, max_abs_diff=1e-9)}, ["the lens changed the outputs"]),
        ({"weights_partition_exact": False}, ["do not add up"]),
        ({"site_bound_used": 1.5}, ["left its rounding bound"]),
        ({"site_bound_used": math.nan}, ["left its rounding bound"]),
        ({"explicit_float64": dataclasses.replace(good(), max_rel_diff=2e-12)}, ["that is no rounding"]),
        ({"explicit_float64": dataclasses.replace(good(), max_rel_diff=math.nan)}, ["that is no rounding"]),
    ],
)
def test_problems_are_named(certificate, change, words) -> None:
    whole = dataclasses.replace(
        certificate, lens=good(), lens_float64=good(), explicit_float64=good(), site_bound_used=0.1
    )
    found = dataclasses.replace(whole, **change).problems()
    assert len(found) == len(words)
    assert all(word in problem for word, problem in zip(words, found, strict=True))
