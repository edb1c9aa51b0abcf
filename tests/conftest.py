"""Shared fixtures; a test that changes a model makes one of its own with `tests.tiny`."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator

import pytest
import torch

from elude_nb import Disentanglement, EludeRouting, ImageSet, Model, disentangle
from elude_nb.data import decode
from tests.tiny import random_images, tiny_conv, tiny_mlp, tiny_vit

if "PYTEST_XDIST_WORKER" in os.environ:  # kernels of notebooks beside each other would fight for the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# Whichever test starts the server from which others fork: without this, each of their processes would import torch.
multiprocessing.get_context("forkserver").set_forkserver_preload(["tests.workers"])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put half of what takes minutes first and half in the middle: two workers begin there, and end together.

    Files stay whole, for their fixtures are made once a worker.
    """
    slow = {"test_readme.py", "test_site_pages.py"}
    heavy = [
        item
        for item in items
        if item.path.suffix == ".ipynb" or item.get_closest_marker("browser") or item.path.name in slow
    ]
    light = [item for item in items if item not in heavy]
    first = set(list(dict.fromkeys(item.path for item in heavy))[::2])
    halves = [item for item in heavy if item.path in first], [item for item in heavy if item.path not in first]
    middle = len(light) // 2
    items[:] = [*halves[0], *light[:middle], *halves[1], *light[middle:]]


@pytest.fixture(autouse=True)
def _warned_of_nothing() -> None:
    """What is said once in a process is said once in a test."""
    decode._dark.clear()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """On networks this small, threads wait for each other longer than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def vit() -> Model:
    """In float64, with layer scale and two registers."""
    return tiny_vit()


@pytest.fixture(scope="session")
def vit32() -> Model:
    """In float32, without layer scale or registers."""
    return tiny_vit(torch.float32, registers=0, layer_scale=None)


@pytest.fixture(scope="session")
def conv() -> Model:
    return tiny_conv()


@pytest.fixture(scope="session")
def mlp() -> Model:
    return tiny_mlp()


@pytest.fixture(scope="session")
def images() -> ImageSet:
    """Twenty images for the transformers."""
    return random_images(20, 32)


@pytest.fixture(scope="session")
def small_images() -> ImageSet:
    """Thirty images for the convolutions."""
    return random_images(30, 16)


@pytest.fixture(scope="session")
def smallest_images() -> ImageSet:
    """Forty images for the MLP."""
    return random_images(40, 8)


@pytest.fixture(scope="session")
def split(vit: Model, images: ImageSet) -> Disentanglement:
    """The whole residual stream of `vit`."""
    return disentangle(vit, images, concepts=8, units=3, tokens_per_image=6, progress=False)


@pytest.fixture(scope="session")
def elude_split(vit: Model, images: ImageSet) -> Disentanglement:
    """A layer of `vit`, split as published: contributions that several sub-units share, and dead sub-units."""
    routing = EludeRouting(top_k=0.6, min_cluster_size=4, min_samples=1)
    return disentangle(vit, images, "blocks.2.mlp.fc2", routing=routing, concepts=8, tokens_per_image=6, progress=False)


@pytest.fixture(scope="session")
def conv_split(conv: Model, small_images: ImageSet) -> Disentanglement:
    """A convolution with a 3 x 3 kernel and a BatchNorm after it."""
    return disentangle(conv, small_images, "stem", concepts=6, units=3, tokens_per_image=8, progress=False)


@pytest.fixture(scope="session")
def mlp_split(mlp: Model, smallest_images: ImageSet) -> Disentanglement:
    """A layer with one vector an image."""
    return disentangle(mlp, smallest_images, "3", concepts=5, units=3, tokens="class", progress=False)
