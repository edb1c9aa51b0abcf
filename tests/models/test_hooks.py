from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from elude_nb import find_site
from elude_nb.models.hooks import Tap, as_tokens, source_tokens
from tests.tiny import hook_count, tiny_vit


def ignore(*_: object) -> None:
    """Take anything, do nothing."""


@st.composite
def convolutions(draw) -> tuple[nn.Conv2d, torch.Tensor]:
    """Draw a convolution of any kind and an input for it."""
    pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
    groups = draw(st.sampled_from([1, 2]))
    kernel, dilation = draw(pairs), draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    padding = draw(st.sampled_from(["same", "valid", (0, 0), (1, 0), (1, 2)]))
    mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    stride = (1, 1) if padding == "same" else draw(pairs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw(st.integers(0, 100)))
        layer = nn.Conv2d(
            2 * groups,
            2 * groups,
            kernel,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            padding_mode=mode,
            bias=False,
        ).double()
        inputs = torch.randn(2, 2 * groups, draw(st.integers(6, 9)), draw(st.integers(6, 9)), dtype=torch.float64)
    return layer.requires_grad_(requires_grad=False), inputs


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@settings(max_examples=80, deadline=None)
@given(convolutions())
def test_sources_of_a_convolution_times_its_weights_are_its_outputs(drawn) -> None:
    layer, inputs = drawn
    sources = source_tokens(layer, inputs)  # (n, t, s * kernel)
    expected = layer(inputs).flatten(2).transpose(1, 2)
    per_group = sources.unflatten(2, (layer.groups, -1))
    rows = layer.weight.unflatten(0, (layer.groups, -1)).flatten(2)  # (groups, d / groups, s / groups * kernel)
    found = torch.einsum("ntgi,gdi->ntgd", per_group, rows).flatten(2)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_sources_of_a_convolution_are_the_patches_under_its_kernel() -> None:
    """Literal loop over positions, channels and kernel positions."""
    layer = nn.Conv2d(2, 1, (2, 3), stride=(2, 1), padding=(1, 0))
    inputs = torch.arange(2.0 * 4 * 5).view(1, 2, 4, 5)
    padded = torch.zeros(2, 6, 5)
    padded[:, 1:5] = inputs[0]
    expected = [
        [padded[c, 2 * y + i, x + j].item() for c in range(2) for i in range(2) for j in range(3)]
        for y in range(3)
        for x in range(3)
    ]
    assert source_tokens(layer, inputs)[0].tolist() == expected


@pytest.mark.parametrize(("shape", "tokens"), [((2, 7), (2, 1, 7)), ((2, 5, 7), (2, 5, 7)), ((2, 3, 4, 7), (2, 12, 7))])
def test_inputs_of_a_linear_layer_become_tokens(shape, tokens) -> None:
    inputs = torch.randn(shape)
    assert as_tokens(inputs).equal(inputs.reshape(tokens))
    assert source_tokens(nn.Linear(7, 2), inputs).equal(inputs.reshape(tokens))


def test_maps_become_tokens_row_by_row() -> None:
    maps = torch.randn(2, 7, 3, 4)
    tokens = as_tokens(maps, channels_last=False)
    assert tokens.shape == (2, 12, 7)
    assert tokens[1, 1 * 4 + 2].equal(maps[1, :, 1, 2])


def test_tap_hands_out_every_term_once_a_pass_in_order(vit, images) -> None:
    site = find_site(vit, "stream", blocks=2)
    told: list[str] = []
    with Tap(
        vit.network,
        site,
        on_source=lambda number, a: told.append(f"{number}: {tuple(a.shape)}"),
        on_channels=lambda h: told.append(f"channels {tuple(h.shape)}"),
        on_entering=lambda x: told.append(f"entering {tuple(x.shape)}"),
    ):
        vit(vit.prepare(list(images[:2])))
    assert told == [
        "entering (2, 19, 24)",
        "0: (2, 19, 24)",
        "1: (2, 19, 96)",
        "2: (2, 19, 24)",
        "3: (2, 19, 96)",
        "channels (2, 19, 24)",
    ]


def test_nothing_enters_a_layer_from_outside(conv, small_images) -> None:
    told: list[object] = []
    with Tap(conv.network, find_site(conv, "stem"), on_entering=told.append):
        conv(conv.prepare(list(small_images[:1])))
    assert told == []


def test_hooks_are_gone_after_success(vit) -> None:
    site = find_site(vit, "stream")
    before = hook_count(vit.network)
    with Tap(vit.network, site, on_source=ignore, on_channels=ignore, on_entering=ignore):
        assert hook_count(vit.network) > before
        vit(torch.zeros(1, 3, 32, 32, dtype=torch.float64))
    assert hook_count(vit.network) == before == 0


@pytest.mark.parametrize("where", ["on_source", "on_channels", "on_entering"])
def test_hooks_are_gone_after_an_exception_in_a_listener(vit, where) -> None:
    def fail(*_: object) -> None:
        raise KeyError(where)

    site, listener = find_site(vit, "stream"), dict[str, Any]({where: fail})
    with pytest.raises(KeyError, match=where), Tap(vit.network, site, **listener):
        vit(torch.zeros(1, 3, 32, 32, dtype=torch.float64))
    assert hook_count(vit.network) == 0


def test_hooks_are_gone_when_the_last_one_cannot_be_set(vit) -> None:
    site = dataclasses.replace(find_site(vit, "stream"), exit="blocks.99")
    with pytest.raises(AttributeError), Tap(vit.network, site, on_source=ignore, on_channels=ignore):
        raise AssertionError  # pragma: no cover - not reached
    assert hook_count(vit.network) == 0


def test_tap_can_be_entered_again() -> None:
    model = tiny_vit()
    told: list[int] = []
    tap = Tap(model.network, find_site(model, "stream"), on_source=lambda number, _: told.append(number))
    for _ in range(2):
        with tap:
            model(torch.zeros(1, 3, 32, 32, dtype=torch.float64))
        assert hook_count(model.network) == 0
    assert told == [*range(6), *range(6)]
