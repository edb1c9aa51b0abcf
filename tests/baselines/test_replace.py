"""A reconstruction in the activations' place: exact ones change nothing, and nothing stays behind."""

from __future__ import annotations

import pytest
import torch

from elude_nb import find_site
from elude_nb.baselines.replace import Replaced, replaced_features
from elude_nb.models.forward import features
from tests.tiny import hook_count, tiny_conv

SITES = [("vit", "images", "stream"), ("vit", "images", "stream:2"), ("vit", "images", "blocks.1.mlp.fc2"),
         ("conv", "small_images", "stem"), ("conv", "small_images", "point")]  # fmt: skip


@pytest.mark.parametrize(("name", "pictures", "place"), SITES)
@pytest.mark.parametrize("sources", [False, True])
def test_the_channels_themselves_change_nothing_and_zeros_do(request, name, pictures, place, sources) -> None:
    model, images = request.getfixturevalue(name), request.getfixturevalue(pictures)[:6]
    site, shapes = find_site(model, place), []

    def same(recording):
        shapes.append((tuple(recording.channels.shape), recording.sources.shape[1]))
        return recording.channels

    original = replaced_features(model, images, site, None)
    kept = replaced_features(model.using(batch_size=4), images, site, same, sources=sources)
    torch.testing.assert_close(kept, original, rtol=0, atol=1e-10)
    patches = len(site.layout.positions("patch"))
    width = site.sources * site.kernel if sources else 0
    assert shapes == [((4 * patches, site.channels), width), ((2 * patches, site.channels), width)]
    gone = replaced_features(model, images, site, lambda recording: torch.zeros_like(recording.channels))
    assert float((gone - original).abs().max()) > 1e-3
    assert hook_count(model.network) == 0


def test_sources_weights_and_entering_make_the_channels(vit, images) -> None:
    """The literal sum put in the channels' place: the recording handed over is that of the batch, in its order."""
    site = find_site(vit, "stream", blocks=2)
    weight, bias = site.weight(vit.network), site.bias(vit.network)
    made = replaced_features(
        vit, images, site, lambda r: r.sources @ weight.T + bias + r.entering, tokens="all", sources=True
    )
    torch.testing.assert_close(made, replaced_features(vit, images, site, None), rtol=0, atol=1e-9)


def test_only_the_chosen_tokens_are_replaced(vit, images) -> None:
    site = find_site(vit, "stream")
    batch = vit.prepare(list(images[:3]))

    def zeros(recording):
        return torch.zeros_like(recording.channels)

    seen: dict[str, torch.Tensor] = {}
    last = vit.network.get_submodule(site.exit)
    with torch.no_grad():
        vit(batch)
        with Replaced(vit.network, site, zeros, site.layout.positions("class")):
            handle = last.register_forward_hook(lambda *found: seen.__setitem__("tokens", found[2]))
            vit(batch)
            handle.remove()
    assert seen["tokens"][:, 0].abs().max() == 0
    assert (seen["tokens"][:, 1:].abs().amax((1, 2)) > 0).all()


def test_features_have_the_output_and_the_mean_patch(vit, conv, images, small_images) -> None:
    with torch.no_grad():
        batch = vit.prepare(list(images[:2]))
        found = features(vit, batch)
        tokens = vit.network.forward_features(batch)
        torch.testing.assert_close(found, torch.cat([vit(batch), tokens[:, 3:].mean(1)], 1))
        small = conv.prepare(list(small_images[:2]))
        torch.testing.assert_close(features(conv, small), conv(small))


def test_a_failing_reconstruction_leaves_no_hook(vit, images) -> None:
    site = find_site(vit, "stream")

    def fail(recording):
        raise RuntimeError("no reconstruction")

    with pytest.raises(RuntimeError, match="no reconstruction"):
        replaced_features(vit, images, site, fail, sources=True)
    assert hook_count(vit.network) == 0
    assert not vit.network.training


@pytest.mark.parametrize("sources", [False, True])
def test_a_batchnorm_that_multiplies_by_zero_does_no_harm(small_images, sources) -> None:
    model = tiny_conv()
    with torch.no_grad():
        model.network.get_parameter("norm.weight")[2] = 0.0
    site = find_site(model, "stem")
    assert site.norm == "norm"
    original = replaced_features(model, small_images[:6], site, None)
    kept = replaced_features(model, small_images[:6], site, lambda r: r.channels, sources=sources)
    torch.testing.assert_close(kept, original, rtol=0, atol=1e-10)


def test_a_reconstruction_of_another_shape_is_refused_and_leaves_no_hook(vit, images) -> None:
    site, one = find_site(vit, "stream"), torch.zeros(())
    for wrong in (lambda r: r.channels[:, :1], lambda r: r.channels[1:], lambda r: r.channels[:3], lambda _: one):
        with pytest.raises(ValueError, match=r"The reconstruction of \(48, 24\) channels is \("):
            replaced_features(vit, images[:3], site, wrong)
        assert hook_count(vit.network) == 0


@pytest.mark.parametrize("tokens", ["class", "registers", "patch"])
def test_what_is_recorded_is_of_the_tokens_asked_for(vit, images, tokens) -> None:
    from elude_nb import record

    site, seen = find_site(vit, "stream"), []

    def same(recording):
        seen.append(recording)
        return recording.channels

    replaced_features(vit, images[:5], site, same, tokens=tokens, sources=True)
    (expected,) = record(vit, images[:5], site, tokens=tokens, tokens_per_image=None)
    for name in ("channels", "sources", "entering", "images", "positions"):
        torch.testing.assert_close(getattr(seen[0], name), getattr(expected, name), msg=name)
