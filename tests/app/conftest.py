"""What tests of the command line share: a split on disk, and a tiny network in place of what is named."""

import pytest
import torch

import elude_nb as en
from tests.tiny import random_images, tiny_vit


@pytest.fixture(scope="module")
def split_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a file that holds a split of a tiny network."""
    split = en.disentangle(tiny_vit(torch.float32), random_images(20, 32), concepts=5, units=3, progress=False)
    path = tmp_path_factory.mktemp("split") / "split.safetensors"
    split.save(path)
    return str(path)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Whatever model and images are named, a tiny network and noise are loaded; what was asked for is kept."""
    asked: dict[str, object] = {}

    def model(name: str) -> en.Model:
        asked["model"] = name
        return tiny_vit(torch.float32)

    def pictures(name: str, *, count: int | None = None) -> en.ImageSet:
        asked["images"], asked["count"] = name, count
        return random_images(count or 40, 32)

    monkeypatch.setattr(en, "load_model", model)
    monkeypatch.setattr(en, "load_images", pictures)
    return asked
