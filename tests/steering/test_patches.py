"""Patch tokens before and after an edit, and their colours, against literal second implementations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from sklearn.decomposition import PCA

from elude_nb import Edit, ImageSet, wrap_network
from elude_nb.errors import EditError, SiteError
from elude_nb.models.forward import FeaturesAndPatches, features
from elude_nb.models.sites import TokenLayout
from elude_nb.steering import LiveSteering, PatchColours, patch_change, patch_colours
from tests.tiny import hook_count

EDIT = Edit.scale(concept=0, by=0.0) + Edit.scale(concept=2, by=1.6)


def last_patches(split, images, edit) -> torch.Tensor:
    """Return what timm's network makes of the patches, by its own functions inside the edit."""
    network, batch = split.model.network, split.model.prepare(images)
    with split.edit(edit), torch.no_grad():
        tokens = network.forward_features(batch)
    found: torch.Tensor = tokens[:, network.num_prefix_tokens :].reshape(len(images), 4, 4, -1)
    return found


def test_tokens_and_distances_are_those_of_the_edited_network(split, images) -> None:
    found = patch_change(split, EDIT, images[:3])
    before, after = last_patches(split, images[:3], Edit()), last_patches(split, images[:3], EDIT)
    torch.testing.assert_close(found.before, before, rtol=0, atol=0)
    torch.testing.assert_close(found.after, after, rtol=1e-11, atol=1e-11)
    for image, row, column in ((0, 0, 0), (1, 2, 3), (2, 3, 1)):
        a, b = before[image, row, column].numpy(), after[image, row, column].numpy()
        expected = 1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        assert float(found.distance[image, row, column]) == pytest.approx(expected, abs=1e-10)
    assert found.pictures.shape == (3, 32, 32, 3)
    assert "3 images" in repr(found)
    assert hook_count(split.model.network) == 0


def test_live_steering_sees_the_same_patches(split, images) -> None:
    live = LiveSteering(split)
    seen = live.see(images[1])
    found, still = live.steer(seen, {0: 0.0, 2: 1.6}), live.steer(seen, {})
    assert found.patches is not None
    expected = patch_change(split, EDIT, images[1:2])
    torch.testing.assert_close(found.patches[1], expected.after[0], rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(found.distance, expected.distance[0], rtol=1e-9, atol=1e-11)
    assert still.distance is not None
    assert not still.distance.any()


def test_an_edit_of_one_patch_moves_that_patch_alone_at_the_end_of_the_stream(split, images) -> None:
    mask = torch.zeros(4, 4)
    mask[1, 2] = 1
    moved = patch_change(split, Edit.scale(concept=0, by=0.0, mask=mask), images[:2]).distance > 0
    assert moved[:, 1, 2].all()
    assert int(moved.sum()) == 2


def test_colours_are_the_first_three_principal_components() -> None:
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(2, 5, 4, 7, generator=generator, dtype=torch.float64) * torch.arange(1, 8)
    after = before + 0.5 * torch.randn(2, 5, 4, 7, generator=generator, dtype=torch.float64)
    pca = PCA(3, svd_solver="full").fit(before.reshape(-1, 7).numpy())
    signs = np.sign(pca.components_[range(3), np.abs(pca.components_).argmax(1)])
    scores = [signs * pca.transform(tokens.reshape(-1, 7).numpy()) for tokens in (before, after)]
    low, high = np.quantile(scores[0], [0.02, 0.98], axis=0)
    for tokens, score in zip((before, after), scores, strict=True):
        expected = np.clip((score - low) / (high - low), 0, 1).reshape(2, 5, 4, 3)
        np.testing.assert_allclose(patch_colours(tokens, fit=before).numpy(), expected, atol=1e-6)
    assert patch_colours(after, PatchColours.fit(before)).equal(patch_colours(after, fit=before))
    assert patch_colours(before).equal(patch_colours(before, before))
    assert not patch_colours(after).equal(patch_colours(after, before))


def test_colours_before_and_after_have_one_scale(split, images) -> None:
    found = patch_change(split, EDIT, images[:2])
    before, after = found.colours
    assert before.equal(patch_colours(found.before))
    assert after.equal(patch_colours(found.after, found.before))


@pytest.mark.parametrize(
    ("tokens", "fit", "message"),
    [
        (torch.randn(1, 2, 5), None, "three tokens"),
        (torch.randn(9, 2), None, "three tokens"),
        (torch.full((9, 5), float("nan")), None, "NaN"),
        (torch.randn(9, 5), torch.randn(9, 4), "4 channels"),
    ],
)
def test_what_has_no_colours_is_refused(tokens, fit, message) -> None:
    with pytest.raises(ValueError, match=message):
        patch_colours(tokens, fit)


def test_what_cannot_be_compared_is_refused(split, conv_split, images, small_images) -> None:
    with pytest.raises(EditError, match="changes something"):
        patch_change(split, Edit(), images[:2])
    with pytest.raises(SiteError, match="no patch tokens"):  # a module of one's own, of which only the output is known
        patch_change(conv_split, Edit.ablate(concept=0), small_images[:2])
    with pytest.raises(ValueError, match="no images"):
        patch_change(split, EDIT, images[:0])
    live = LiveSteering(conv_split)
    assert live.steer(live.see(small_images[0]), {}).distance is None


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "convnext_atto"])
def test_maps_of_either_order_of_axes_are_patches(name) -> None:
    network: Any = timm.create_model(name, depths=(1, 1, 1, 1))
    model = wrap_network(network.eval())
    read = FeaturesAndPatches(TokenLayout(0, 0, (7, 7)))
    with torch.no_grad():
        batch = model.noise()
        _, patches = read.parts(read(model, batch))
        tokens = network.forward_features(batch)
    assert patches is not None
    expected = tokens if name.startswith("swin") else tokens.permute(0, 2, 3, 1)
    torch.testing.assert_close(patches, expected, rtol=1e-5, atol=1e-5)


def test_the_last_hidden_state_of_other_networks_has_patches_where_the_site_has_them(vit, split) -> None:
    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = vit.network

        def forward(self, pixels):
            tokens = self.inner.forward_features(pixels)
            return {"last_hidden_state": tokens, "pooler_output": tokens[:, 0]}

    model = wrap_network(Wrapped(), input_size=(3, 32, 32), preprocess=vit.preprocess)
    batch = model.noise()
    for layout, grid in ((split.site.layout, (4, 4)), (TokenLayout(1, 0, (4, 4)), None)):
        read = FeaturesAndPatches(layout)
        with torch.no_grad():
            features_, patches = read.parts(read(model, batch))
            tokens = vit.network.forward_features(batch)
        assert features_.equal(tokens[:, 0])
        assert (patches is None) is (grid is None)
        if patches is not None:
            assert patches.flatten(1, 2).equal(tokens[:, 3:])


def test_features_are_those_without_patches(split, images: ImageSet) -> None:
    read, batch = FeaturesAndPatches(split.site.layout), split.model.prepare(images[:2])
    with torch.no_grad():
        found, patches = read.parts(read(split.model, batch))
        assert found.equal(features(split.model, batch))
    assert patches is not None
    assert patches.shape == (2, 4, 4, 24)
