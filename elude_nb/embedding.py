"""Reference embeddings: what an encoder makes of each image; scores ask whether a unit's images are alike in them."""

from __future__ import annotations

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
    found = outputs_of(model, images)
    return found - found.mean(0)


def outputs_of(model: Model, images: Images) -> Tensor:
    """Return the model's output for each image, (n, e), on the CPU and in at least float32."""
    check_model(model)
    with evaluating(model.network):
        return torch.cat([for_analysis(model(batch)).flatten(1) for batch in model.batches(model.inputs(images))])
