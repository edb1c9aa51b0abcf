"""What the estimate says is what is used, and what takes less memory loses nothing, or says what would do."""

from __future__ import annotations

import re
import weakref
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from elude_nb import EludeRouting, disentangle
from elude_nb.core.estimate import estimate
from elude_nb.core.one_pass import plan_pass
from elude_nb.models.load import Model
from tests.tiny import random_images, redraw, wrapped

IMAGES = random_images(66, 64)
HOW: dict[str, Any] = {"concepts": 8, "units": 2, "tokens_per_image": None, "batch_size": 16, "progress": False}


@pytest.fixture(scope="module")
def wide() -> Model:
    """Return a network with few channels and many sources, 8,048: what is held of them is nearly all there is."""
    network = VisionTransformer(
        img_size=64, patch_size=8, embed_dim=24, depth=2, num_heads=2, mlp_ratio=4000 / 24, num_classes=5
    )
    return wrapped(redraw(network), 64, torch.float32)


class Live(TorchDispatchMode):
    """Counts the bytes of all tensors made inside the ``with`` block while they live: ``peak`` is the most at once."""

    now = peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and not hasattr(tensor.untyped_storage(), "counted"):
                storage = tensor.untyped_storage()
                storage.counted = True  # type: ignore[attr-defined]
                self.now += storage.nbytes()
                weakref.finalize(storage, self._forget, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return made

    def _forget(self, size: int) -> None:
        self.now -= size


def test_the_estimate_is_what_is_used_and_the_sample_run_twice_loses_nothing(wide) -> None:
    plan = plan_pass(wide, IMAGES, purpose="test", **HOW).plan
    assert plan.held
    assert plan.tokens > plan.capacity
    with Live() as live:
        whole = disentangle(wide, IMAGES, **HOW)
    assert 0.65 < live.peak / plan.memory < 1  # the rest is what the process keeps of a batch

    limit = 0.999 * plan.memory / 2**30
    less = plan_pass(wide, IMAGES, purpose="test", max_memory=limit, **HOW).plan
    assert (less.held, less.capacity, less.micro_clusters) == (False, plan.capacity, plan.micro_clusters)
    with Live() as less_live:
        twice = disentangle(wide, IMAGES, max_memory=limit, **HOW)
    assert 0.65 < less_live.peak / less.memory < 1
    assert less_live.peak < 0.75 * live.peak
    assert twice.routing.routes.equal(whole.routing.routes)
    torch.testing.assert_close(twice.book.source_sums, whole.book.source_sums)
    torch.testing.assert_close(twice.unit_shares, whole.unit_shares)


def test_of_many_images_the_sample_is_run_twice(wide, monkeypatch) -> None:
    assert estimate(wide, IMAGES, concepts=8, tokens_per_image=None).held
    monkeypatch.setattr("elude_nb.core.estimate._FEW_RUN_TWICE", 1)
    assert not estimate(wide, IMAGES, concepts=8, tokens_per_image=None).held


def test_too_little_memory_names_what_would_do(vit, images) -> None:
    how: dict[str, Any] = {"concepts": 6, "units": 3, "tokens_per_image": 6}
    with pytest.raises(ValueError, match=r"needs at least \S+ GiB\. Take") as caught:
        estimate(vit, images, max_memory=1e-6, **how)
    limit = 0.9 * float(re.findall(r"at least (\S+) GiB", str(caught.value))[0])
    with pytest.raises(ValueError, match=r"needs at least \S+ GiB\. blocks=2 would do\. Take"):
        estimate(vit, images, max_memory=limit, **how)
    assert estimate(vit, images, max_memory=limit, blocks=2, **how).memory <= limit * 2**30


def test_max_memory_holds_for_what_the_published_method_takes(vit, images) -> None:
    routing = EludeRouting(top_k=0.6, min_cluster_size=8, min_samples=1)
    with pytest.raises(ValueError, match="EludeRouting with a smaller max_tokens"):
        disentangle(vit, images, "blocks.1.mlp.fc2", routing=routing, max_memory=1e-5, progress=False)
