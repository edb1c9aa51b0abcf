"""One stored file of each kind and file format, and what it must read as.

``python -m tests.formats`` writes those of the format that the code writes now; a folder that is there is never
touched, since its files are what older versions wrote. All weights are whole multiples of 1/128, and pixels whole
numbers, so that they are the same bit for bit on every machine.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import elude_nb as en
from elude_nb.baselines.sae import TopK
from elude_nb.core.recording import Recording
from elude_nb.models.find_sites import find_site
from elude_nb.models.load import wrap_network

FOLDER = Path(__file__).parent / "fixtures"
SIDE = 16


def exact(*shape: int, step: int) -> Tensor:
    """Return numbers in [-1, 1] that float32 has exactly."""
    count = int(np.prod(shape))
    return ((torch.arange(count) * step % 257) - 128).reshape(shape).float() / 128


def model() -> en.Model:
    """Return a small network with weights that are the same everywhere."""
    network = nn.Sequential(nn.Conv2d(3, 12, 4, stride=4), nn.ReLU(), nn.Conv2d(12, 6, 1))
    with torch.no_grad():
        for number, parameter in enumerate(network.parameters()):
            parameter.copy_(exact(*parameter.shape, step=(37, 5, 11, 3)[number]))
    network.requires_grad_(requires_grad=False)
    return wrap_network(network, preprocess=to_tensor, input_size=(3, SIDE, SIDE), name="formats")


def to_tensor(image: Any) -> Tensor:
    """Return pixels as they are, (3, h, w) in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def images(count: int = 24) -> en.ImageSet:
    """Return images of which every pixel is the same everywhere."""
    pixels = (np.arange(count * SIDE * SIDE * 3) * 97 % 251).astype(np.uint8)
    return en.load_images(pixels.reshape(count, SIDE, SIDE, 3))


def make_split() -> en.Disentanglement:
    """Return a split of the model's last layer."""
    chosen = {"concepts": 5, "units": 2, "shared": 1.0, "tokens_per_image": None, "progress": False}
    found = en.disentangle(model(), images(), "2", **chosen)  # type: ignore[arg-type]
    return found.with_names({1: "dots", 3: "stripes"})


def make_autoencoder() -> TopK:
    """Return a small fitted autoencoder."""
    return TopK(8, 3, steps=20, seed=0, name="a small one").fit(recording())


def recording() -> Recording:
    """Return what the last layer shows of the images."""
    found = model()
    return Recording.join(list(en.record(found, images(), find_site(found, "2"))))


def readings_of_split(split: en.Disentanglement) -> dict[str, Any]:
    """Return what a split must be: plain numbers and words."""
    return {
        "activations": split.activations(images(4)).flatten().tolist(),
        "concepts": split.concept_activations(images(2)).flatten().tolist(),
        "routes": split.routing.routes.flatten().tolist(),
        "names": {str(concept): name for concept, name in split.names.items()},
        "reasons": list(split.routing.reasons),
        "settings": vars(split.settings),
    }


def readings_of_autoencoder(found: TopK) -> dict[str, Any]:
    """Return what an autoencoder must be: plain numbers and words."""
    units = found.encode(recording().rows(torch.arange(5)))
    return {
        "name": found.name,
        "settings": found.settings(),
        "units": units.flatten().tolist(),
        "decoded": found.decode(units).flatten().tolist(),
    }


def write(folder: Path) -> None:
    """Write the files of the present format, and beside them what they must read as."""
    folder.mkdir(parents=True)
    split, autoencoder = make_split(), make_autoencoder()
    split.save(folder / "disentanglement.safetensors")
    autoencoder.save(folder / "autoencoder.safetensors")
    readings = {
        "disentanglement": readings_of_split(split),
        "autoencoder": readings_of_autoencoder(autoencoder),
    }
    (folder / "readings.json").write_text(json.dumps(readings, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    from elude_nb._util.files import FORMAT_VERSION

    target = FOLDER / f"format_{FORMAT_VERSION}"
    if target.exists():
        raise SystemExit(f"{target.name} is there; it is what an older version wrote, and stays.")
    write(target)
