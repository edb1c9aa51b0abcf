from __future__ import annotations

import pytest
import torch
from torch import nn

from elude_nb import ImageSet, Model, Recording, find_site, record
from elude_nb.models.sites import Term, TokenLayout
from tests.tiny import sites_of, tiny_conv, tiny_mlp, tiny_vit

CONVOLUTIONS = ["stem", "grouped", "reflect", "point"]


def recorded(model: Model, images: ImageSet, name: str, **more) -> Recording:
    """Record all tokens of a few images."""
    return Recording.join(list(record(model, images[:3], find_site(model, name, **more), tokens="all")))


def recomposition_error(model: Model, images: ImageSet, name: str, **more) -> float:
    """Return the largest difference of entering + W a + bias from the channels, over the largest channel."""
    site = find_site(model, name, **more)
    seen = recorded(model, images, name, **more)
    recomposed = seen.entering + seen.sources @ site.weight(model.network).T + site.bias(model.network)
    return float((recomposed - seen.channels).abs().max() / seen.channels.abs().max())


def output_of(model: Model, images: ImageSet, path: str) -> torch.Tensor:
    """Return what a module put out, by a hook of the test's own."""
    seen: list[torch.Tensor] = []
    handle = model.network.get_submodule(path).register_forward_hook(lambda *args: seen.append(args[2]))
    try:
        model(model.prepare(list(images)))
    finally:
        handle.remove()
    return seen[0]


@pytest.mark.parametrize("make", [tiny_vit, tiny_conv, tiny_mlp])
def test_every_site_is_the_sum_of_its_contributions(make, images, small_images, smallest_images) -> None:
    model = make()
    fitting = {32: images, 16: small_images, 8: smallest_images}[model.input_size[-1]]
    names = sites_of(model)
    assert len(names) >= 3
    for name in names:
        assert recomposition_error(model, fitting, name) < 1e-12, name


@pytest.mark.parametrize("layer_scale", [None, 0.5])
@pytest.mark.parametrize("registers", [0, 2])
@pytest.mark.parametrize(("last", "blocks"), [(3, 1), (3, 2), (3, "all"), (2, 1), (2, "all"), (1, "all")])
def test_stream_is_the_sum_of_its_window(images, layer_scale, registers, last, blocks) -> None:
    model = tiny_vit(layer_scale=layer_scale, registers=registers)
    assert recomposition_error(model, images, f"stream:{last}", blocks=blocks) < 1e-12


@pytest.mark.parametrize("blocks", [1, 3])
def test_stream_channels_are_the_output_of_its_last_block(vit, images, blocks) -> None:
    seen = recorded(vit, images, "stream:3", blocks=blocks)
    torch.testing.assert_close(seen.channels, output_of(vit, images[:3], "blocks.2").flatten(0, 1), rtol=0, atol=0)


def test_what_enters_is_the_output_of_the_block_before_the_window(vit, images) -> None:
    seen = recorded(vit, images, "stream:3", blocks=1)
    torch.testing.assert_close(seen.entering, output_of(vit, images[:3], "blocks.1").flatten(0, 1), rtol=0, atol=0)


@pytest.mark.parametrize(("name", "after"), [("stem", "norm"), ("point", "point_norm")])
def test_batch_norm_is_folded(conv, small_images, name, after) -> None:
    assert find_site(conv, name).norm == after
    expected = output_of(conv, small_images[:3], after).permute(0, 2, 3, 1).flatten(0, 2)
    torch.testing.assert_close(recorded(conv, small_images, name).channels, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_contribution_is_the_convolution_of_one_input_channel(conv, small_images, name) -> None:
    """Literal second implementation: all input channels but one are set to zero."""
    site, layer = find_site(conv, name), conv.network.get_submodule(name)
    assert isinstance(layer, nn.Conv2d)
    inputs: list[torch.Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    conv(conv.prepare(list(small_images[:3])))
    handle.remove()
    weight = site.weight(conv.network).unflatten(1, (-1, site.kernel))  # (d, s, p)
    sources = recorded(conv, small_images, name).sources.unflatten(1, (-1, site.kernel))  # (t, s, p)
    nothing = layer(torch.zeros_like(inputs[0]))
    for source in range(site.sources):
        alone = torch.zeros_like(inputs[0])
        alone[:, source] = inputs[0][:, source]
        expected = (layer(alone) - nothing).permute(0, 2, 3, 1).flatten(0, 2)
        if site.norm is not None:
            norm = conv.network.get_submodule(site.norm)
            assert isinstance(norm, nn.BatchNorm2d)
            assert norm.running_var is not None
            scale = 1 / (norm.running_var + norm.eps).sqrt()
            expected = expected * (scale if norm.weight is None else scale * norm.weight)
        found = sources[:, source] @ weight[:, source].T
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


def test_weight_of_a_grouped_convolution_is_zero_outside_its_group(conv) -> None:
    weight = find_site(conv, "grouped").weight(conv.network).unflatten(1, (8, 15))  # (12, 8, 15)
    own_group = torch.arange(12)[:, None] // 3 == torch.arange(8) // 2
    assert (weight != 0).any(-1).equal(own_group)


def test_layer_scale_is_folded_into_weight_and_bias(vit) -> None:
    network, site = vit.network, find_site(vit, "stream", blocks=1)
    block = network.blocks[2]
    weights = [block.ls1.gamma[:, None] * block.attn.proj.weight, block.ls2.gamma[:, None] * block.mlp.fc2.weight]
    assert site.weight(network).equal(torch.cat(weights, dim=1))
    bias = block.ls1.gamma * block.attn.proj.bias + block.ls2.gamma * block.mlp.fc2.bias
    torch.testing.assert_close(site.bias(network), bias)


def test_a_layer_without_bias_has_a_bias_of_zero(images) -> None:
    model = tiny_vit()
    model.network.blocks[0].attn.proj.bias = None  # type: ignore[union-attr, index]
    assert not find_site(model, "blocks.0.attn.proj").bias(model.network).any()


def test_source_table_names_layers_blocks_and_heads(vit) -> None:
    site = find_site(vit, "stream", blocks=2)
    table = site.source_table(vit.network)
    assert len(table) == site.sources == 2 * (24 + 96)
    assert table["block"].tolist() == [2] * 120 + [3] * 120
    assert table["index"].tolist() == [*range(24), *range(96)] * 2
    assert table["head"].tolist() == ([0] * 12 + [1] * 12 + [-1] * 96) * 2
    assert table["part"].unique().tolist() == ["attention", "mlp"]
    assert table.loc[130, "layer"] == "blocks.2.attn.proj"


def test_site_says_what_it_is(vit, conv) -> None:
    stream, stem = find_site(vit, "stream", blocks=2), find_site(conv, "stem")
    assert (stream.name, stream.kind, stream.blocks, stream.channels) == ("stream:3", "stream", 2, 24)
    assert (stream.entry, stream.exit) == ("blocks.1", "blocks.2")
    assert (stem.kind, stem.blocks, stem.kernel, stem.sources) == ("convolution", None, 9, 3)
    assert stem.terms == (Term("stem", None, None, "convolution", 3),)
    assert stem.layout == TokenLayout(0, 0, (8, 8))


def test_positions_of_each_kind_of_token() -> None:
    layout = TokenLayout(classes=1, registers=2, grid=(2, 3))
    assert layout.count == 9
    assert layout.positions("class").tolist() == [0]
    assert layout.positions("registers").tolist() == [1, 2]
    assert layout.positions("patch").tolist() == [3, 4, 5, 6, 7, 8]
    assert layout.positions("all").tolist() == list(range(9))


@pytest.mark.parametrize(
    ("layout", "missing", "has"),
    [
        (TokenLayout(1, 0, (2, 2)), "registers", "['class', 'patch', 'all']"),
        (TokenLayout(0, 0, (2, 2)), "class", "['patch', 'all']"),
        (TokenLayout(1, 0, None), "patch", "['class', 'all']"),
    ],
)
def test_tokens_that_a_site_lacks_are_refused_with_those_it_has(layout, missing, has) -> None:
    with pytest.raises(ValueError, match="this site has none") as caught:
        layout.positions(missing)
    assert has in str(caught.value)


def test_unknown_tokens_are_refused_with_a_near_match() -> None:
    with pytest.raises(ValueError, match="Did you mean 'patch'"):
        TokenLayout(1, 0, (2, 2)).positions("patches")
