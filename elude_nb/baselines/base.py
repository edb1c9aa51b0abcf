"""The interface of all methods: fit on recorded tokens, encode into units, decode into channels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Self

import torch
from torch import Tensor, nn

from elude_nb.core.recording import Recording
from elude_nb.errors import NotFittedError
from elude_nb.models.hooks import Tap
from elude_nb.models.sites import Site


class Method(ABC):
    """A way to represent a site's tokens by units.

    A unit is one number a token, and its best tokens are those where it is highest; a direction that matters with both
    signs (a channel, a principal component) gives two units, one for each sign. Learned attributes end in ``_``.
    Letters: ``t`` tokens, ``d`` channels, ``s`` sources, ``u`` units.

    Attributes
    ----------
    name
        As it is shown in tables.
    lossless
        Whether units are read beside the running model, which is not changed. For all other methods `decode` replaces
        the channels, and what that loses is measured.
    needs_sources
        Whether `encode` reads the sources; if not, recordings without them (t, 0) are enough.
    needs_labels
        Whether `fit` needs labels.
    """

    name: str
    lossless: bool = False
    needs_sources: bool = False
    needs_labels: bool = False

    @abstractmethod
    def fit(self, recording: Recording, labels: Sequence[Any] | None = None) -> Self:
        """Learn from recorded tokens; ``labels``, one a token, are used only by methods that need them.

        Raises
        ------
        ValueError
            If there are too few tokens, or labels are needed and missing.
        """

    @abstractmethod
    def encode(self, recording: Recording) -> Tensor:
        """Return the units at the recorded tokens, (t, u)."""

    @abstractmethod
    def decode(self, units: Tensor) -> Tensor:
        """Return the channels (t, d) that units (t, u) represent."""

    def reconstruct(self, recording: Recording) -> Tensor:
        """Return the method's approximation of the recorded channels, (t, d)."""
        return self.decode(self.encode(recording))

    def beside(self, network: nn.Module, site: Site) -> AbstractContextManager[object]:
        """Return a context in which the model runs as it is while the inputs of the units are captured."""
        return Tap(network, site, on_source=_ignore, on_channels=_ignore)

    def size_in_bytes(self) -> int:
        """Return the memory of all tensors of the method."""
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, Tensor))

    def learned(self, name: str) -> Tensor:
        """Return a learned tensor; raise `NotFittedError` if `fit` has not run."""
        found = getattr(self, name, None)
        if not isinstance(found, Tensor):
            raise NotFittedError(f"{self.name!r} has not been fitted; call fit(recording) first.")
        return found

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


def both_signs(values: Tensor) -> Tensor:
    """Return values (t, c) as units (t, 2 c): first as they are, then negated. Nothing is clipped at 0.

    Examples
    --------
    >>> both_signs(torch.tensor([[1.0, -2.0]])).tolist()
    [[1.0, -2.0, -1.0, 2.0]]
    """
    return torch.cat([values, -values], dim=-1)


def one_sign(units: Tensor) -> Tensor:
    """Undo `both_signs`: units (t, 2 c) to values (t, c)."""
    return units[..., : units.shape[-1] // 2]


def _ignore(*_: object) -> None:
    """Keep nothing of what was captured."""
