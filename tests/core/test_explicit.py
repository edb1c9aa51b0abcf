from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import elude_nb.core.explicit
from elude_nb import Model, find_site
from elude_nb.core.explicit import Merge, SplitBlock, SplitLayer, explicit_network, split_layer
from elude_nb.core.routing import Routing
from elude_nb.errors import PartitionError
from tests.tiny import hook_count, tiny_conv, tiny_mlp, tiny_vit

DTYPES = [torch.float64, torch.float32, torch.bfloat16]
ROUNDING = {torch.float64: 1e-14, torch.float32: 1e-5, torch.bfloat16: 0.1}


def random_routing(d: int, s: int, k: int = 3, *, seed: int = 0) -> Routing:
    """Return routes at random; the last channel is left alone."""
    routes = torch.randint(0, k + 1, (d, s), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    routes[-1] = 0
    return Routing(routes, torch.full((d, k), -1), ("random",) * d)


def routed(model: Model, name: str, *, seed: int = 0, **more) -> tuple[nn.Module, Routing]:
    site = find_site(model, name, **more)
    routing = random_routing(site.channels, site.sources, seed=seed)
    return explicit_network(model.network, site, routing), routing


@st.composite
def layers(draw) -> nn.Linear | nn.Conv2d:
    dtype, bias = draw(st.sampled_from(DTYPES)), draw(st.booleans())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw(st.integers(0, 1000)))
        if draw(st.booleans()):
            linear = nn.Linear(draw(st.integers(1, 12)), draw(st.integers(1, 8)), bias=bias)
            return linear.to(dtype).requires_grad_(requires_grad=False)
        groups = draw(st.sampled_from([1, 2, 3]))
        convolution = nn.Conv2d(
            groups * draw(st.integers(1, 3)),
            groups * draw(st.integers(1, 3)),
            draw(st.sampled_from([1, 3, (1, 3)])),
            stride=draw(st.sampled_from([1, 2])),
            padding=draw(st.sampled_from([0, 1])),
            dilation=draw(st.sampled_from([1, 2])),
            groups=groups,
            bias=bias,
            padding_mode=draw(st.sampled_from(["zeros", "reflect", "circular"])),
        )
        return convolution.to(dtype).requires_grad_(requires_grad=False)


@settings(deadline=None, max_examples=100)
@given(layers(), st.integers(1, 4), st.integers(0, 1000))
def test_split_weights_add_up_bit_for_bit_and_merge_to_the_layer(layer, k, seed) -> None:
    convolution = isinstance(layer, nn.Conv2d)
    d, s = layer.weight.shape[0], layer.in_channels if convolution else layer.in_features
    routing = random_routing(d, s, k, seed=seed)
    channels, units = routing.rows()
    split = split_layer(layer, routing, channels, units)
    assert split.weight.dtype == layer.weight.dtype
    groups = layer.groups if convolution else 1
    dense = torch.zeros(d, s, *layer.weight.shape[2:], dtype=layer.weight.dtype)
    for channel in range(d):
        first = channel // (d // groups) * (s // groups)
        dense[channel, first : first + s // groups] = layer.weight[channel]
    for channel in range(d):  # in every order, since all but one are zero
        rows = split.weight[channels == channel]
        assert sum(rows).equal(dense[channel])
        assert sum(rows.flip(0)).equal(dense[channel])
        assert ((rows != 0).sum(0) <= 1).all()
    if layer.bias is None:
        assert split.bias is None
    else:
        assert split.bias[units == 0].equal(layer.bias)
        assert not split.bias[units != 0].any()
    merged = SplitLayer(split, Merge(channels, d, dim=1 if convolution else -1))
    inputs = torch.randn((2, s, 7, 7) if convolution else (2, 5, s)).to(layer.weight.dtype)
    expected = layer(inputs)
    allowed = ROUNDING[layer.weight.dtype] * max(1.0, float(expected.abs().max()))
    assert (merged(inputs) - expected).abs().max() <= allowed


@pytest.mark.parametrize("name", ["stem", "grouped", "reflect", "point", "head"])
def test_network_with_a_split_layer_equals_the_model(conv, small_images, name) -> None:
    made, _ = routed(conv, name)
    batch = conv.prepare(list(small_images))
    expected = conv(batch)
    assert (made(batch) - expected).abs().max() <= 1e-12 * expected.abs().max()
    assert isinstance(made.get_submodule(name), SplitLayer)


@pytest.mark.parametrize("name", ["blocks.0.attn.qkv", "blocks.1.attn.proj", "blocks.2.mlp.fc2", "head"])
def test_transformer_with_a_split_layer_equals_the_model(vit, images, name) -> None:
    made, _ = routed(vit, name)
    batch = vit.prepare(list(images))
    expected = vit(batch)
    assert (made(batch) - expected).abs().max() <= 1e-12 * expected.abs().max()


def test_mlp_with_a_split_layer_equals_the_model(mlp, smallest_images) -> None:
    made, _ = routed(mlp, "3")
    batch = mlp.prepare(list(smallest_images))
    torch.testing.assert_close(made(batch), mlp(batch), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layer_scale", [None, 0.5])
@pytest.mark.parametrize(("last", "blocks"), [(3, 1), (3, "all"), (2, 2), (2, 1), (1, "all")])
def test_transformer_with_a_split_stream_equals_the_model(images, layer_scale, last, blocks) -> None:
    model = tiny_vit(layer_scale=layer_scale)
    made, _ = routed(model, f"stream:{last}", blocks=blocks)
    batch = model.prepare(list(images))
    expected = model(batch)
    assert (made(batch) - expected).abs().max() <= 1e-12 * expected.abs().max()
    first = last - (last if blocks == "all" else blocks)
    for number in range(3):
        assert isinstance(made.get_submodule(f"blocks.{number}"), SplitBlock) == (first <= number < last)


@pytest.mark.parametrize("blocks", [1, 2, "all"])
def test_units_of_the_stream_are_the_routed_contributions(vit, images, blocks) -> None:
    """What travels between the layers is not only the right sum: each unit is the sum of its own contributions."""
    from elude_nb import Recording, record

    site = find_site(vit, "stream", blocks=blocks)
    made, routing = routed(vit, "stream", blocks=blocks)
    merge = made.get_submodule("blocks.2.merge")
    seen: list[torch.Tensor] = []
    merge.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    made(vit.prepare(list(images[:2])))
    recording = Recording.join(list(record(vit, images[:2], site, tokens="all")))
    channels, units = routing.rows()
    expected = recording.sources @ routing.masked(site.weight(vit.network), channels, units).T
    rest = (recording.entering + site.bias(vit.network))[:, channels]
    expected += torch.where(units == 0, rest, 0)
    torch.testing.assert_close(seen[0].flatten(0, 1), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stream_in_lower_precision(images, dtype) -> None:
    model = tiny_vit(dtype)
    made, _ = routed(model, "stream")
    assert {parameter.dtype for parameter in made.parameters()} == {dtype}
    batch = model.prepare(list(images))
    expected = model(batch)
    assert (made(batch) - expected).abs().max() <= ROUNDING[dtype] * expected.abs().max()


def test_only_chosen_channels_are_split(vit, images) -> None:
    site = find_site(vit, "blocks.2.mlp.fc2")
    routing = random_routing(site.channels, site.sources).only(torch.tensor([3, 7]))
    made = explicit_network(vit.network, site, routing)
    split = made.get_submodule("blocks.2.mlp.fc2.split")
    assert isinstance(split, nn.Linear)
    assert split.out_features == 24 + 2 * 3
    batch = vit.prepare(list(images))
    torch.testing.assert_close(made(batch), vit(batch), rtol=1e-12, atol=1e-12)


def test_merge_adds_units_of_one_channel() -> None:
    merge = Merge(torch.tensor([0, 0, 2, 2, 2]), 3)
    assert merge(torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]])).tolist() == [[3.0, 0.0, 12.0]]
    maps = Merge(torch.tensor([0, 0, 1]), 2, dim=1)
    assert maps(torch.ones(1, 3, 2, 2)).tolist() == [[[[2.0, 2.0]] * 2, [[1.0, 1.0]] * 2]]
    assert repr(merge) == "Merge(5 units -> 3 channels)"


@pytest.mark.parametrize("harm", ["lost", "twice"])
def test_tampered_weights_are_refused(harm) -> None:
    layer = nn.Linear(6, 4).requires_grad_(requires_grad=False)
    routing = random_routing(4, 6)
    channels, units = routing.rows()
    if harm == "lost":
        channels, units = channels[:-1], units[:-1]  # the last channel's only unit
    else:
        channels, units = torch.cat([channels, channels[:1]]), torch.cat([units, units[:1]])
    with pytest.raises(PartitionError, match="are no partition"):
        split_layer(layer, routing, channels, units)


def test_weights_that_cancel_are_no_partition() -> None:
    """The sum alone would not show it: w = 2 w - w."""
    check = elude_nb.core.explicit._check_partition
    weight = torch.tensor([[1.0, 2.0]])
    check(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 0]), weight)
    with pytest.raises(PartitionError):
        check(torch.tensor([[2.0, 2.0], [-1.0, 0.0]]), torch.tensor([0, 0]), weight)


def test_a_weight_that_is_not_finite_is_refused() -> None:
    layer = nn.Linear(2, 2).requires_grad_(requires_grad=False)
    layer.weight[0, 0] = torch.nan
    routing = random_routing(2, 2)
    with pytest.raises(PartitionError):
        split_layer(layer, routing, *routing.rows())


@pytest.mark.parametrize(
    ("make", "name"),
    [(tiny_vit, "stream"), (tiny_vit, "blocks.1.attn.proj"), (tiny_conv, "grouped"), (tiny_mlp, "3")],
)
def test_the_original_is_untouched_and_shares_nothing(make, name) -> None:
    model = make()
    kinds = [type(module) for module in model.network.modules()]
    before = copy.deepcopy(model.network.state_dict())
    made, _ = routed(model, name)
    assert [type(module) for module in model.network.modules()] == kinds
    with torch.no_grad():
        for tensor in [*made.parameters(), *made.buffers()]:
            tensor.zero_()
    after = model.network.state_dict()
    assert list(after) == list(before)
    assert all(before[key].equal(after[key]) for key in before)
    assert hook_count(model.network) == hook_count(made) == 0


def test_explicit_network_is_in_eval_mode_without_gradients(vit) -> None:
    made, _ = routed(vit, "stream")
    assert not any(module.training for module in made.modules())
    assert not any(parameter.requires_grad for parameter in made.parameters())


@pytest.mark.parametrize(
    ("make", "name"),
    [(tiny_vit, "stream"), (tiny_vit, "blocks.1.mlp.fc2"), (tiny_conv, "stem"), (tiny_conv, "grouped")],
)
def test_state_dict_round_trip(make, name) -> None:
    one, other = routed(make(seed=1), name)[0], routed(make(seed=2), name)[0]
    side = make().input_size[-1]
    batch = torch.randn(2, 3, side, side, dtype=torch.float64)
    assert not one(batch).equal(other(batch))
    other.load_state_dict(one.state_dict(), strict=True)
    assert one(batch).equal(other(batch))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(("make", "name"), [(tiny_vit, "stream"), (tiny_conv, "grouped")])
def test_explicit_network_can_be_exported(make, name) -> None:
    model = make()
    made, _ = routed(model, name)
    side = model.input_size[-1]
    batch = torch.randn(2, 3, side, side, dtype=torch.float64)
    exported = torch.export.export(made, (batch,))
    torch.testing.assert_close(exported.module()(batch), made(batch), rtol=1e-12, atol=1e-12)


def test_blocks_that_take_more_arguments_get_them(images) -> None:
    """timm's blocks take an attention mask; the split block hands it to its attention."""
    model = tiny_vit()
    made, _ = routed(model, "stream")
    batch, mask = model.prepare(list(images[:2])), torch.zeros(1, 1, 19, 19, dtype=torch.float64)
    mask[..., 3:9] = -torch.inf
    found = [network.forward_features(batch, attn_mask=mask) for network in (model.network, made)]  # type: ignore[operator]
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-12)
    assert not found[0].equal(model.network.forward_features(batch))  # type: ignore[operator]
