"""Reference embeddings: what an encoder makes of each image; scores ask whether a unit's images are alike in them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from elude_nb.images import Images
from elude_nb.models import Model, check_model
from elude_nb.recording import for_analysis
from elude_nb.taps import evaluating


def embed(model: Model, images: Images) -> Tensor:
    """Return the model's output for each image less the mean over the images, (n, e).

    Any model from `load_model` can be the reference encoder; one that is not the model under study is the fairer judge.
    """
    return _centred(outputs_of(model, images))


def outputs_of(model: Model, images: Images) -> Tensor:
    """Return the model's output for each image, (n, e), on the CPU and in at least float32."""
    check_model(model)
    with evaluating(model.network):
        return torch.cat([_rows(model(batch)) for batch in model.batches(model.inputs(images))])


class Overheard:
    """The outputs of a model for the batches that ran, in order."""

    def __init__(self) -> None:
        self.parts: list[Tensor] = []

    def embeddings(self) -> Tensor:
        """Return what `embed` would make of the images of all batches, (n, e), without another pass."""
        return _centred(torch.cat(self.parts))


@contextmanager
def overheard(model: Model, *, wanted: bool = True) -> Iterator[Overheard]:
    """Keep the network's output for every batch that passes through it inside the block; nothing, unless ``wanted``."""
    found = Overheard()

    def keep(_network: Any, _inputs: Any, output: Any) -> None:
        found.parts.append(_rows(output))

    handle = model.network.register_forward_hook(keep) if wanted else None
    try:
        yield found
    finally:
        if handle is not None:
            handle.remove()


def _centred(outputs: Tensor) -> Tensor:
    return outputs - outputs.mean(0)


def _rows(output: Tensor) -> Tensor:
    return for_analysis(output).flatten(1)
