"""ELUDe's units and their control behind the interface of all methods: sub-units, concepts, random routes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Self

from torch import Tensor, nn

from elude_nb._util.checks import check_count, check_kind
from elude_nb.baselines.base import Method
from elude_nb.core.disentangle import split_recordings
from elude_nb.core.readout import Lens, Readout
from elude_nb.core.recording import Recording
from elude_nb.core.result import Disentanglement, Settings
from elude_nb.core.routing import shuffled
from elude_nb.core.strategies import RoutingStrategy, check_routing_settings, find_routing
from elude_nb.errors import NotFittedError
from elude_nb.models.load import Model, check_model
from elude_nb.models.sites import Site

_UNITS_BESIDE = 64  # thousands at every token would cost more than the model itself


class SubUnits(Method):
    """The sub-units of all split channels, without the shared ones: what `disentangle` finds.

    Parameters
    ----------
    model, site
        What is split.
    concepts, units, shared, routing, seed
        As in `disentangle`.
    tokens
        What kind of tokens the recordings are of; it is only kept with the result.
    """

    lossless = True
    needs_sources = True

    def __init__(
        self,
        model: Model,
        site: Site,
        *,
        concepts: int = 64,
        units: int = 8,
        shared: float = 0.8,
        routing: str | RoutingStrategy = "concepts",
        tokens: str = "patch",
        seed: int = 0,
        name: str = "sub-units",
    ) -> None:
        check_model(model)
        check_kind("site", site, Site, "a Site of this model, from find_site")
        self.name, self.model, self.site = name, model, site
        self.strategy = find_routing(routing, seed)
        units, shared = check_routing_settings(units, shared)  # before any forward pass
        concepts = check_count("concepts", concepts, 2)
        self._settings = {"concepts": concepts, "units": units, "shared": shared, "tokens": tokens, "seed": seed}
        self._split: Disentanglement | None = None
        self._readout: Readout | None = None

    @classmethod
    def of(cls, split: Disentanglement) -> Self:
        """Return the method as it has been fitted already: the units of a disentanglement."""
        made = cls(split.model, split.site, routing=_Found(split), tokens=split.settings.tokens)
        made.take(split)
        return made

    @property
    def split_(self) -> Disentanglement:
        """Return the disentanglement that `fit` made."""
        if self._split is None:
            raise NotFittedError(f"{self.name!r} has not been fitted; call fit(recording) first.")
        return self._split

    def fit(self, recording: Recording, labels: Sequence[Any] | None = None) -> Self:  # noqa: ARG002 - needs none
        """See `Method.fit`."""
        check_kind("recording", recording, Recording, "a Recording, such as split.recording(images)")
        settings = Settings(
            site=self.site.name,
            blocks=self.site.blocks or "all",
            routing=self.strategy.name,
            strategy=repr(self.strategy),
            tokens_per_image=None,
            images=len(recording.images.unique()),
            images_from="a recording",
            **self._settings,  # type: ignore[arg-type]
        )
        self.take(split_recordings(self.model, self.site, [recording], self.strategy, settings))
        return self

    def take(self, split: Disentanglement) -> None:
        """Take over a finished disentanglement."""
        self._split = split
        self._readout = self._read_out(split)

    def encode(self, recording: Recording) -> Tensor:
        """See `Method.encode`; 0 is a unit's mean over the discovery, and it is high on its concept."""
        readout = self._fitted()
        return recording.sources @ readout.matrix + readout.offset

    def decode(self, units: Tensor) -> Tensor:
        """Sub-units add up to the channels together with the shared units: `reconstruct` does that."""
        raise NotImplementedError(f"{self.name!r} lack the shared units; use reconstruct(recording).")

    def reconstruct(self, recording: Recording) -> Tensor:
        """Return the channels (t, d) as the sum of all units, the shared ones too: the model's own up to rounding."""
        return self.split_.decode(self.split_.encode(recording))

    def beside(self, network: nn.Module, site: Site) -> AbstractContextManager[object]:
        """Return a lens on the first units."""
        readout = self._fitted()
        few = slice(_UNITS_BESIDE)
        return Lens(network, site, Readout(readout.matrix[:, few], readout.offset[few], readout.entering[few]))

    def size_in_bytes(self) -> int:
        """Return the memory of the routes (one byte a contribution): the weights are the model's."""
        return self.split_.routing.nbytes

    def _fitted(self) -> Readout:
        if self._readout is None:
            raise NotFittedError(f"{self.name!r} has not been fitted; call fit(recording) first.")
        return self._readout

    def _read_out(self, split: Disentanglement) -> Readout:
        channels, numbers = split.routing.rows()
        channels, numbers = channels[numbers > 0], numbers[numbers > 0]
        found = split.unit_readout(list(zip(channels.tolist(), numbers.tolist(), strict=True)))
        signs = split.signs[channels, numbers]
        return Readout(found.matrix * signs, found.offset * signs, found.entering)


class Concepts(SubUnits):
    """Concepts as units: one read-out a concept over its sub-units in all channels (method, step 5)."""

    def __init__(self, model: Model, site: Site, *, name: str = "concepts", **settings: Any) -> None:
        super().__init__(model, site, name=name, **settings)

    def size_in_bytes(self) -> int:
        """Return the memory of the read-out, (s * kernel, g)."""
        return self._fitted().matrix.nbytes

    def _read_out(self, split: Disentanglement) -> Readout:
        return split.concept_readout()


class RandomRoutes(SubUnits):
    """The control: sub-units of the same sizes, their contributions dealt out at random."""

    def __init__(self, model: Model, site: Site, *, name: str = "random routes", **settings: Any) -> None:
        super().__init__(model, site, name=name, **settings)

    def take(self, split: Disentanglement) -> None:
        """Take over a finished disentanglement, with its routes shuffled."""
        super().take(replace(split, routing=shuffled(split.routing, split.settings.seed)))


class _Found:
    """The routing of a disentanglement that was found already, as a strategy."""

    def __init__(self, split: Disentanglement) -> None:
        self.name, self._routing = split.settings.routing, split.routing

    def route(self, *_: Any, **__: Any) -> Any:
        return self._routing
