"""The lens: the model as it is, with linear read-outs of a site's sources computed beside it.

A lens only listens. The model's own computation is not touched, so its outputs are the same bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from elude_nb._util.arithmetic import own_arithmetic
from elude_nb.core.recording import pool_recorded, real_tokens_at, record
from elude_nb.models.forward import check_finite
from elude_nb.models.hooks import Tap, evaluating
from elude_nb.models.load import Model
from elude_nb.models.sites import Site

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, eq=False)
class Readout:
    """A linear read-out of a site: ``u`` numbers a token.

    Attributes
    ----------
    matrix
        What is read from the sources, (s * kernel, u).
    offset
        Added to each number, (u,).
    entering
        For each number, the channel whose part from outside the sources is added to it, or -1, (u,).
    """

    matrix: Tensor = field(repr=False)
    offset: Tensor = field(repr=False)
    entering: Tensor = field(repr=False)

    def to(self, device: torch.device) -> Readout:
        """Return the same read-out on another device."""
        return Readout(self.matrix.to(device), self.offset.to(device), self.entering.to(device))


class Lens(Tap):
    """Compute a read-out beside every forward pass inside the ``with`` block; ``values`` has that of the last one.

    Attributes
    ----------
    values
        (n, t, u) for the ``t`` tokens at ``positions`` (all, if not given).
    """

    def __init__(self, network: nn.Module, site: Site, readout: Readout, positions: Tensor | None = None) -> None:
        readout = readout.to(next(network.parameters()).device)
        self._matrices = readout.matrix.split([term.sources * site.kernel for term in site.terms])
        self._readout, self._positions = readout, positions
        self._outside = (readout.entering >= 0).nonzero().flatten()
        entering = self._add_entering if len(self._outside) else None
        super().__init__(network, site, on_source=self._add_source, on_entering=entering, any_size=positions is None)
        self._sum: Tensor | None = None  # of the pass under way
        self._values: Tensor | None = None  # of the last whole pass

    @property
    def values(self) -> Tensor:
        """Return the read-out of the last forward pass, (n, t, u).

        It has a number at every token, also at those that pad a sentence; ``model.real_tokens(batch)`` tells which.
        """
        if self._values is None:
            raise RuntimeError(
                "No forward pass has gone through the site yet; call the model inside the with block. A network that "
                "was compiled before does not notice: set the lens first, and call torch.compile inside the block."
            )
        return self._values

    def _add_entering(self, entering: Tensor) -> None:
        tokens = self._here(entering)
        self._sum = self._offsets(tokens)
        self._sum[..., self._outside] += tokens[..., self._readout.entering[self._outside]]

    def _add_source(self, number: int, sources: Tensor) -> None:
        tokens = self._here(sources)
        if self._sum is None or (number == 0 and not len(self._outside)):  # a pass that failed may have left its sum
            self._sum = self._offsets(tokens)
        matrix = self._matrices[number]
        self._sum += tokens.to(matrix.dtype) @ matrix  # a network in half precision is read out in float32
        if number == len(self._matrices) - 1:
            self._values, self._sum = self._sum, None

    def _here(self, tokens: Tensor) -> Tensor:
        return tokens if self._positions is None else tokens[:, self._positions]

    def _offsets(self, tokens: Tensor) -> Tensor:
        return self._readout.offset.expand(*tokens.shape[:2], -1).clone()


FLAT = 0.01
"""A unit that varies less than this share of its channel has no top-activating images: they would be any images."""


def is_flat(values: Tensor, channel: Tensor) -> bool:
    """Say whether a unit's activations are the same everywhere, beside those of its channel; NaN is no token."""
    ranges = [float(each.max() - each.min()) for each in (v[~v.isnan()] for v in (values, channel))]
    return ranges[0] <= FLAT * ranges[1]


@own_arithmetic()
def read_out(
    model: Model,
    images: Sequence[Image.Image],
    site: Site,
    readout: Readout,
    *,
    tokens: str,
) -> Tensor:
    """Run images and return the read-out at the chosen tokens, (n, t, u); NaN where a sentence has no token."""
    positions = site.layout.positions(tokens)
    parts = list[Tensor]()
    with (
        evaluating(model.network),
        Lens(model.network, site, readout, positions.to(model.device)) as lens,
    ):
        for batch in model.batches(images):
            model(batch)
            values, real = lens.values.cpu(), real_tokens_at(model, batch, site, positions)
            done = sum(len(part) for part in parts)
            check_finite(values, images, range(done, done + len(values)), f"Activations at {site.name}")
            parts.append(values if real is None else values.masked_fill(~real.cpu()[..., None], torch.nan))
    return torch.cat(parts)


@own_arithmetic()
def read_largest(
    model: Model,
    images: Sequence[Image.Image],
    site: Site,
    readout: Readout,
    seed: int = 0,
    *,
    tokens: str,
    tokens_per_image: int | None = None,
) -> Tensor:
    """Run images and return the largest of each number over an image's tokens, or over some drawn of them, (n, u).

    What enters the site from outside the sources is left out; batch by batch, so that no more than one is held.
    """
    found = list[Tensor]()
    for part in record(model, images, site, tokens=tokens, tokens_per_image=tokens_per_image, seed=seed):
        readout = readout.to(part.sources.device)
        found.append(pool_recorded(part.sources @ readout.matrix + readout.offset, part.images).cpu())
    return torch.cat(found)
