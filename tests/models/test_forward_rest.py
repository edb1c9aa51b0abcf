from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from elude_nb import Model, disentangle, find_site
from elude_nb.core.edit import Edit
from elude_nb.models.forward import Rest, features
from elude_nb.models.hooks import is_intercepted
from tests.tiny import hook_count, tiny_vit

SITES = [
    ("vit", "stream:1", True),
    ("vit", "stream:2", True),
    ("vit", "stream", True),
    ("vit", "blocks.1.mlp.fc2", True),
    ("conv", "stem", False),  # nothing comes before it
    ("conv", "reflect", True),
    ("mlp", "3", True),
]


def literal(model: Model, path: str, batch: Tensor, captured: Tensor) -> Tensor:
    """Make a whole pass of a copy of the network with a hook that puts the output in."""
    network = copy.deepcopy(model.network)
    network.get_submodule(path).register_forward_hook(lambda *_: captured)
    return features(dataclasses.replace(model, network=network), batch)


def noise(model: Model, count: int = 3, seed: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *model.input_size, generator=generator).to(model.dtype)


def left_behind(network: nn.Module) -> bool:
    return is_intercepted(network) or any("forward" in vars(module) for module in network.modules())


@pytest.mark.parametrize(("which", "name", "skips"), SITES)
def test_the_rest_is_what_the_whole_pass_makes_of_it(which, name, skips, request) -> None:
    model: Model = request.getfixturevalue(which)
    site = find_site(model, name)
    rest = Rest(model, site)
    assert rest.skips is skips
    batch = noise(model)
    captured, outputs = rest.capture(batch)
    assert outputs.equal(features(model, batch))
    assert rest(batch, captured).equal(outputs)
    for changed in (captured * 1.5 + 0.1, captured.flip(0), torch.zeros_like(captured)):
        found = rest(batch, changed)
        assert not found.equal(outputs)
        assert found.equal(literal(model, site.exit, batch, changed))
    assert not left_behind(model.network)
    assert hook_count(model.network) == 0


@pytest.mark.parametrize(("which", "name", "skips"), SITES)
def test_gradients_flow_to_what_was_put_in(which, name, skips, request) -> None:
    model: Model = request.getfixturevalue(which)
    site = find_site(model, name)
    rest = Rest(model, site)
    batch = noise(model)
    captured = rest.capture(batch)[0].detach().requires_grad_()
    (gradient,) = torch.autograd.grad(rest(batch, captured).square().sum(), captured)
    step = torch.randn(captured.shape, generator=torch.Generator().manual_seed(1), dtype=captured.dtype)
    with torch.no_grad():
        ends = [rest(batch, captured + side * 1e-6 * step).square().sum() for side in (1, -1)]
    torch.testing.assert_close((gradient * step).sum(), (ends[0] - ends[1]) / 2e-6, rtol=1e-6, atol=1e-7)
    with torch.no_grad():
        assert not rest(batch, captured).requires_grad
    assert all(parameter.grad is None for parameter in model.network.parameters())


def test_blocks_before_the_site_do_not_run(vit) -> None:
    rest = Rest(vit, find_site(vit, "stream:2"))
    batch = noise(vit)
    captured, outputs = rest.capture(batch)
    runs: list[int] = []
    handles = [
        vit.network.get_submodule(f"blocks.{number}").register_forward_hook(lambda *_, n=number: runs.append(n))
        for number in range(3)
    ]
    try:
        assert rest(batch, captured).equal(outputs)
    finally:
        for handle in handles:
            handle.remove()
    assert runs == [2]


def test_the_embedding_of_a_batch_is_computed_once(vit) -> None:
    rest = Rest(vit, find_site(vit, "stream:2"))
    batches = [noise(vit), noise(vit, seed=8)]
    expected = [literal(vit, "blocks.1", batch, rest.capture(batch)[0] * 2) for batch in batches]
    runs: list[int] = []
    handle = vit.network.get_submodule("patch_embed.proj").register_forward_hook(lambda *_: runs.append(1))
    try:
        for _ in range(3):
            for batch, found in zip(batches, expected, strict=True):
                assert rest(batch, rest.capture(batch)[0] * 2).equal(found)
    finally:
        handle.remove()
    assert len(runs) == 2 * 3 + 2  # each capture, and once for each batch


@pytest.mark.parametrize(
    ("which", "name", "after"), [("vit", "blocks.1.mlp.fc2", ["blocks.1", "blocks.2"]), ("mlp", "3", ["4"])]
)
def test_of_a_layer_only_its_block_runs_again_on_what_entered_it(which, name, after, request) -> None:
    model: Model = request.getfixturevalue(which)
    rest = Rest(model, find_site(model, name))
    batches = [noise(model), noise(model, seed=8)]
    captured = [rest.capture(batch)[0] for batch in batches]
    expected = [literal(model, name, batch, found * 2) for batch, found in zip(batches, captured, strict=True)]
    runs: list[str] = []
    handles = [
        module.register_forward_hook(lambda *_, path=path: runs.append(path))
        for path, module in model.network.named_modules()
        if path in {"blocks.0", "blocks.1", "blocks.2", "2", "3", "4"}
    ]
    try:
        for batch, found, wanted in zip(batches, captured, expected, strict=True):
            assert rest(batch, found * 2).equal(wanted)
        again = list(runs)
        assert rest(noise(model), captured[0] * 2).equal(expected[0])  # not captured: a whole pass
    finally:
        for handle in handles:
            handle.remove()
    assert again == after * 2
    assert len(runs) > len(again) + len(after)


def test_the_network_is_untouched() -> None:
    model = tiny_vit()
    before = {name: (id(module), dict(vars(module))) for name, module in model.network.named_modules()}
    children = {name: dict(module._modules) for name, module in model.network.named_modules()}
    rest = Rest(model, find_site(model, "stream:2"))
    batch = noise(model)
    rest(batch, rest.capture(batch)[0])
    assert {name: (id(module), dict(vars(module))) for name, module in model.network.named_modules()} == before
    assert {name: dict(module._modules) for name, module in model.network.named_modules()} == children


def test_it_follows_the_models_weights(images) -> None:
    model = tiny_vit()
    site = find_site(model, "stream:2")
    rest = Rest(model, site)
    batch = noise(model)
    captured, before = rest.capture(batch)
    with torch.no_grad():
        model.network.get_parameter("blocks.2.mlp.fc2.weight").mul_(2)
    assert not rest(batch, captured).equal(before)
    assert rest(batch, captured).equal(features(model, batch))


def test_what_is_read_can_be_chosen(vit) -> None:
    def logits(model: Model, batch: Tensor) -> Tensor:
        found: Tensor = model(batch)
        return found[:, :2]

    rest = Rest(vit, find_site(vit), logits)
    batch = noise(vit)
    captured, outputs = rest.capture(batch)
    assert outputs.shape == (3, 2)
    assert rest.skips
    assert rest(batch, captured).equal(vit(batch)[:, :2])


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize(("which", "name"), [("vit", "stream:2"), ("conv", "stem")])
def test_an_exception_leaves_nothing_behind(which, name, error, request) -> None:
    model: Model = request.getfixturevalue(which)
    fails: list[bool] = []

    def read(model: Model, batch: Tensor) -> Tensor:
        outputs = features(model, batch)
        if fails:
            raise error
        return outputs

    rest = Rest(model, find_site(model, name), read)
    batch = noise(model)
    captured, outputs = rest.capture(batch)
    fails.append(True)
    with pytest.raises(error):
        rest(batch, captured)
    with pytest.raises(error):
        rest.capture(batch)
    assert not left_behind(model.network)
    assert rest._feed.value is None
    fails.clear()
    assert rest(batch, captured).equal(outputs)


def test_a_forward_put_on_the_network_makes_whole_passes() -> None:
    """Such a forward runs the network it was made for; what is fed in would be lost without a word."""
    model = tiny_vit()
    network: Any = model.network
    original = network.forward
    network.forward = original  # bound to this network
    site = find_site(model, "stream:2")
    rest = Rest(model, site, lambda model, batch: model(batch))
    batch = noise(model)
    captured, outputs = rest.capture(batch)
    assert not rest.skips
    assert not rest(batch, captured * 2).equal(outputs)


def test_a_model_whose_blocks_cannot_be_left_out_makes_whole_passes() -> None:
    model = tiny_vit()
    block = model.network.get_submodule("blocks.0")
    site = find_site(model, "stream:2")
    rest = Rest(model, site, lambda m, b: m(b) + float(m.network.get_submodule("blocks.0") is block))
    assert not rest.skips
    batch = noise(model)
    captured, outputs = rest.capture(batch)
    assert rest(batch, captured).equal(outputs)


def test_edits_are_active_before_and_after_the_site(vit, images) -> None:
    batch = noise(vit)
    plain = features(vit, batch)
    settings: dict[str, Any] = {"concepts": 6, "units": 3, "tokens_per_image": 6, "progress": False}
    early = disentangle(vit, images, "stream:1", **settings)
    late = disentangle(vit, images, "stream:3", **settings)
    site = find_site(vit, "stream:2")
    rest = Rest(vit, site)
    for split in (early, late):
        channel, unit = (int(rows[split.routing.rows()[1] > 0][0]) for rows in split.routing.rows())
        with split.edit(Edit.scale(unit=(channel, unit), by=-3.0)):
            captured, outputs = rest.capture(batch)
            assert not outputs.equal(plain)
            assert rest(batch, captured).equal(outputs)
            inside = Rest(vit, site)
            assert inside(batch, captured).equal(outputs)
        assert not left_behind(vit.network)
        assert rest.skips
        assert rest(batch, rest.capture(batch)[0]).equal(plain)
