"""Embeddings that were overheard are those of a pass of their own, and nobody listens afterwards."""

from __future__ import annotations

import pytest
import torch

import elude_nb as en
from elude_nb.models.forward import embed, overheard
from tests.tiny import hook_count


def test_what_was_overheard_is_what_a_pass_of_its_own_gives(vit, images, split) -> None:
    with overheard(vit) as outputs:
        split.activations(images)
    assert torch.equal(outputs.embeddings(), embed(vit, images))
    with overheard(vit, wanted=False) as nothing:
        split.activations(images[:2])
    assert nothing.parts == []


def test_nobody_listens_afterwards_whatever_happened(vit, images) -> None:
    before = hook_count(vit.network)
    with pytest.raises(AssertionError), overheard(vit):  # timm's own, about the image's size
        vit(torch.zeros(1, 3, 1, 1))
    assert hook_count(vit.network) == before


def test_scores_run_each_image_once(vit, images, split, monkeypatch) -> None:
    seen = []
    handle = vit.network.register_forward_hook(lambda network, inputs, output: seen.append(len(output)))
    try:
        own = en.score(split, images, k=4)
        assert sum(seen) == len(images)
        given = en.score(split, images, k=4, embeddings=embed(vit, images))
    finally:
        handle.remove()
    assert own.equals(given)
