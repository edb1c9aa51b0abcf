"""Planted networks, whose channels are sums of known concepts: the right routes are known.

Each image shows one of ``g`` patterns, each hidden unit responds to one of them, and each channel is a sum of the
hidden units of a few patterns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from elude_nb._util.checks import check_count, check_number
from elude_nb.core.routing import NO_CONCEPT
from elude_nb.data.images import ImageSet, load_images
from elude_nb.models.load import Model, wrap_network
from elude_nb.models.weights import Provenance

if TYPE_CHECKING:
    from PIL import Image

SIDE = 8  # pixels
MOST_CONCEPTS = 64  # orthogonal patterns fit into 192 numbers with room to spare

_PIXELS = 3 * SIDE * SIDE
_CONTRAST = 0.08  # mean distance of a pixel from grey: even with noise 1 hardly any is clipped
_THRESHOLD = 0.3  # of the response to a pattern at full strength, below which a hidden unit is 0


class PlantedNetwork(nn.Module):
    """Two layers: ``hidden`` detects patterns, ``site`` sums the detections into channels.

    Parameters
    ----------
    hidden
        Weights of the detectors, (s, 3 * side * side).
    site
        Weights of the channels, (d, s).
    """

    def __init__(self, hidden: Tensor, site: Tensor) -> None:
        super().__init__()
        self.hidden = nn.Linear(hidden.shape[1], len(hidden))
        self.site = nn.Linear(len(hidden), len(site))
        with torch.no_grad():
            self.hidden.weight.copy_(hidden)
            self.hidden.bias.fill_(-_THRESHOLD)
            self.site.weight.copy_(site)
            self.site.bias.zero_()
        self.requires_grad_(requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the channels (n, d) of images (n, 3, side, side)."""
        detected = self.hidden(images.flatten(1)).relu()  # (n, s)
        channels: Tensor = self.site(detected)
        return channels


@dataclass(frozen=True, eq=False)
class Planted:
    """A network whose right routes are known.

    Attributes
    ----------
    model
        A `PlantedNetwork`.
    images
        Each shows one pattern; the label says which.
    truth
        (d, s): the concept of the contribution of source ``i`` to channel ``j``, or -1 where the sources of that
        concept are not in channel ``j``.
    site
        The name of the site whose routes are known.
    """

    model: Model
    images: ImageSet
    truth: Tensor = field(repr=False)
    site: str = "site"


def planted_network(
    *,
    concepts: int = 12,
    channels: int = 24,
    concepts_per_channel: int = 3,
    sources_per_concept: int = 8,
    images: int = 240,
    noise: float = 0.0,
    seed: int = 0,
) -> Planted:
    """Build a network whose channels are sums of known concepts, and images of these concepts.

    The patterns are orthogonal colours of 8 x 8 pixels on grey; an image shows one of them at 0.7 to 1 of its strength.
    A hidden unit responds to one pattern, above a threshold. A channel is the sum, with weights between 0.5 and 1.5, of
    all hidden units of its concepts; concepts are distributed evenly over the channels.

    Parameters
    ----------
    concepts
        g, the number of patterns, 2 to 64.
    channels
        d.
    concepts_per_channel
        How many concepts a channel has; with 1, there is nothing to split.
    sources_per_concept
        Hidden units for each pattern: s = concepts x sources per concept.
    images
        n, distributed evenly over the patterns.
    noise
        Standard deviation of what is added to each pixel of an image (relative to the pattern), to each hidden unit's
        response to each other pattern (relative to its own), and to each weight of the site (relative to 1). From 0.5
        on the planted sources are hard to find.
    seed
        Of everything random.

    Returns
    -------
    Planted

    Raises
    ------
    ValueError
        If a number is out of range, or the channels are too few for every concept to be in one.

    Examples
    --------
    >>> planted = planted_network(concepts=4, channels=6, concepts_per_channel=2, sources_per_concept=3)
    >>> planted.truth.shape, sorted(set(planted.truth[0].tolist()))
    (torch.Size([6, 12]), [-1, 0, 2])
    """
    check_count("concepts", concepts, 2, MOST_CONCEPTS)
    check_count("concepts_per_channel", concepts_per_channel, 1, concepts)
    check_count("sources_per_concept", sources_per_concept)
    check_count("images", images, concepts)
    if check_count("channels", channels) * concepts_per_channel < concepts:
        raise ValueError(
            f"{channels} channels of {concepts_per_channel} concepts each cannot hold {concepts} concepts; "
            "use more channels or fewer concepts."
        )
    if not 0 <= check_number("noise", noise) < np.inf:
        raise ValueError(f"noise={noise} must be 0 or a positive number.")
    rng = np.random.default_rng(seed)
    patterns = _patterns(concepts, rng)  # (g, pixels)
    own = np.repeat(np.arange(concepts), sources_per_concept)  # (s,), the concept of each source
    is_planted = _distribute(concepts, channels, concepts_per_channel, rng)[:, own]  # (d, s)
    weight = is_planted * rng.uniform(0.5, 1.5, is_planted.shape) + noise * rng.normal(size=is_planted.shape)
    response = noise * rng.normal(size=(len(own), concepts))  # (s, g)
    response[np.arange(len(own)), own] = 1
    detectors = response @ patterns / (2 * _CONTRAST * _PIXELS)  # an image of strength 1 gives the response
    network = PlantedNetwork(torch.from_numpy(detectors).float(), torch.from_numpy(weight).float())
    model = wrap_network(
        network,
        preprocess=_to_tensor,
        input_size=(3, SIDE, SIDE),
        provenance=Provenance(f"planted, seed {seed}", None, "none needed"),
    )
    truth = torch.from_numpy(np.where(is_planted, own, NO_CONCEPT))
    return Planted(model, _images_of(patterns, images, noise, rng), truth)


def _patterns(count: int, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Return orthogonal patterns with a mean square of 1, (count, pixels)."""
    orthonormal, _ = np.linalg.qr(rng.normal(size=(_PIXELS, count)))
    return np.asarray(orthonormal.T * np.sqrt(_PIXELS))


def _distribute(concepts: int, channels: int, each: int, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Give ``each`` concepts to every channel, all about equally often, (d, g), bool."""
    has = np.zeros((channels, concepts), dtype=bool)
    for row in has:
        row[np.lexsort((rng.random(concepts), has.sum(0)))[:each]] = True
    return has


def _images_of(patterns: np.ndarray[Any, Any], count: int, noise: float, rng: np.random.Generator) -> ImageSet:
    """Return images that show one pattern each, in turn, at 0.7 to 1 of its strength."""
    shown = np.arange(count) % len(patterns)
    strength = rng.uniform(0.7, 1, (count, 1))
    signal = strength * patterns[shown] + noise * rng.normal(size=(count, _PIXELS))
    colours = np.clip(0.5 + _CONTRAST * signal, 0, 1).reshape(count, 3, SIDE, SIDE)
    return load_images(colours, labels=[f"pattern {number}" for number in shown])


def _to_tensor(image: Image.Image) -> Tensor:
    """Return an image as a tensor (3, h, w) in [-1, 1]; grey is 0."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1
