from __future__ import annotations

import pytest
import torch
from torch import nn

from elude_nb import Disentanglement, Recording, find_site, record
from elude_nb.core.readout import Lens, Readout, read_out
from tests.tiny import hook_count, tiny_vit


def random_readout(site, numbers: int = 4, *, entering: bool = True, dtype=torch.float64) -> Readout:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(site.sources * site.kernel, numbers, generator=generator, dtype=dtype)
    channels = torch.arange(numbers) % (site.channels + 1) - 1 if entering else torch.full((numbers,), -1)
    return Readout(matrix, torch.arange(float(numbers), dtype=dtype), channels)


def expected_values(seen: Recording, readout: Readout) -> torch.Tensor:
    """Literal second implementation, token by token and number by number."""
    rows = []
    for token in range(len(seen)):
        row = []
        for number, channel in enumerate(readout.entering.tolist()):
            value = readout.offset[number] + seen.sources[token] @ readout.matrix[:, number]
            row.append(float(value + seen.entering[token, channel] if channel >= 0 else value))
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("entering", [True, False])
@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("tokens", ["class", "registers", "patch", "all"])
def test_values_are_linear_in_sources_and_in_what_enters(vit, images, tokens, blocks, entering) -> None:
    site = find_site(vit, "stream", blocks=blocks)
    readout = random_readout(site, entering=entering)
    values = read_out(vit.using(batch_size=2), images[:5], site, readout, tokens=tokens)
    seen = Recording.join(list(record(vit, images[:5], site, tokens=tokens)))
    torch.testing.assert_close(values.flatten(0, 1), expected_values(seen, readout), rtol=1e-11, atol=1e-11)


def test_values_at_a_convolution(conv, small_images) -> None:
    site = find_site(conv, "reflect")
    readout = random_readout(site, entering=False)
    values = read_out(conv, small_images[:3], site, readout, tokens="patch")
    seen = Recording.join(list(record(conv, small_images[:3], site, tokens="patch")))
    torch.testing.assert_close(values.flatten(0, 1), expected_values(seen, readout), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_outputs_are_the_same_bit_for_bit(images, dtype) -> None:
    model = tiny_vit(dtype)
    site = find_site(model)
    batch = model.prepare(list(images))
    plain = model(batch)
    with Lens(model.network, site, random_readout(site, 50, dtype=torch.float32 if dtype != torch.float64 else dtype)):
        assert model(batch).equal(plain)


def test_values_follow_the_last_pass(vit, images) -> None:
    site = find_site(vit)
    readout = random_readout(site)
    batches = [vit.prepare([images[i]]) for i in range(3)]
    alone = []
    for batch in batches:
        with Lens(vit.network, site, readout) as lens:
            vit(batch)
            alone.append(lens.values)
    with Lens(vit.network, site, readout) as lens:
        for batch, expected in zip(batches, alone, strict=True):
            vit(batch)
            assert lens.values.equal(expected)


@pytest.mark.parametrize("entering", [True, False])
def test_a_pass_that_fails_half_way_leaves_nothing_in_the_next(images, entering) -> None:
    model = tiny_vit()
    site = find_site(model)
    readout = random_readout(site, entering=entering)
    batch = model.prepare(list(images[:2]))
    with Lens(model.network, site, readout) as lens:
        model(batch)
        expected = lens.values
        whole = model.network.get_submodule("blocks.1.mlp")
        model.network.blocks[1].mlp = nn.Linear(7, 7).double()  # type: ignore[index, union-attr]
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            model(batch)
        model.network.blocks[1].mlp = whole  # type: ignore[index, union-attr]
        model(batch)
        assert lens.values.equal(expected)


def test_values_before_a_pass_are_refused(vit) -> None:
    site = find_site(vit)
    with Lens(vit.network, site, random_readout(site)) as lens, pytest.raises(RuntimeError, match="No forward pass"):
        lens.values  # noqa: B018


def test_hooks_are_gone_after_success_and_after_an_exception(vit, images) -> None:
    site = find_site(vit)
    readout = random_readout(site)
    with Lens(vit.network, site, readout):
        assert hook_count(vit.network)
        vit(vit.prepare([images[0]]))
    assert hook_count(vit.network) == 0
    with pytest.raises(KeyError), Lens(vit.network, site, readout):
        raise KeyError
    assert hook_count(vit.network) == 0
    with pytest.raises(RuntimeError), Lens(vit.network, site, readout):
        vit(torch.zeros(1, 5, 32, 32, dtype=torch.float64))
    assert hook_count(vit.network) == 0


def test_reading_out_leaves_training_flags_alone(images) -> None:
    model = tiny_vit()
    model.network.train()
    site = find_site(model)
    read_out(model, images[:2], site, random_readout(site), tokens="class")
    assert all(module.training for module in model.network.modules())


def test_readouts_do_not_need_gradients(split: Disentanglement, images) -> None:
    with Lens(split.model.network, split.site, split.concept_readout()) as lens:
        split.model(split.model.prepare([images[0]]))
        assert lens.values.shape == (1, 19, len(split.book))
        assert not lens.values.requires_grad
