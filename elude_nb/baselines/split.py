"""ELUDe's units and their control with the interface of all methods: sub-units, concepts, random routes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Self

from torch import Tensor, nn

from elude_nb._util.checks import check_count, check_kind
from elude_nb.baselines.base import Method
from elude_nb.core.disentangle import split_recording
from elude_nb.core.readout import Lens, Readout
from elude_nb.core.recording import Recording
from elude_nb.core.result import Disentanglement, Settings
from elude_nb.core.routing import shuffled
from elude_nb.core.strategies import RoutingStrategy, check_routing_settings, find_routing
from elude_nb.errors import NotFittedError
from elude_nb.models.load import Model, check_model
from elude_nb.models.sites import Site

_UNITS_BESIDE = 64  # thousands at every token would cost more than the model


class SubUnits(Method):
    """The sub-units of all split channels, without unit 0: what `disentangle` finds.

    Parameters
    ----------
    model, site
        What is split.
    concepts, units, shared, routing, seed
        As in `disentangle`.
    tokens
        What kind of tokens the recordings are of; only kept with the result.
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
        shared: float | None = None,
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
        self._fitted: tuple[Disentanglement, Readout] | None = None

    @classmethod
    def of(cls, split: Disentanglement) -> Self:
        """Return the method fitted already: the units of a disentanglement."""
        made = cls(split.model, split.site, routing=_Known(split), tokens=split.settings.tokens)
        made.set_split(split)
        return made

    @property
    def split_(self) -> Disentanglement:
        """Return the disentanglement that `fit` made."""
        return self._learned()[0]

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
        quiet = self.model.using(progress=False)  # whoever fits several methods shows a bar of its own
        split = split_recording(quiet, self.site, recording, self.strategy, settings)
        self.set_split(split.using(progress=self.model.progress))
        return self

    def set_split(self, split: Disentanglement) -> None:
        """Use a disentanglement that has been made."""
        self._fitted = split, self._read_out(split)

    def encode(self, recording: Recording) -> Tensor:
        """See `Method.encode`; 0 is a unit's mean over the discovery, and each is high on its concept."""
        readout = self._learned()[1]
        return recording.sources @ readout.matrix + readout.offset

    def decode(self, units: Tensor) -> Tensor:
        """Raise: the channels are the sum of sub-units and unit 0, which `reconstruct` has."""
        raise NotImplementedError(f"{self.name!r} lack unit 0; use reconstruct(recording).")

    def reconstruct(self, recording: Recording) -> Tensor:
        """Return the channels (t, d) as the sum of all units, unit 0 among them: the model's own up to rounding."""
        return self.split_.decode(self.split_.encode(recording))

    def beside(self, network: nn.Module, site: Site) -> AbstractContextManager[object]:
        """Return a lens on the first units."""
        readout, few = self._learned()[1], slice(_UNITS_BESIDE)
        return Lens(network, site, Readout(readout.matrix[:, few], readout.offset[few], readout.entering[few]))

    def size_in_bytes(self) -> int:
        """Return the memory of the routes (one byte a contribution); the weights are the model's."""
        return self.split_.routing.nbytes

    def _learned(self) -> tuple[Disentanglement, Readout]:
        if self._fitted is None:
            raise NotFittedError(f"{self.name!r} has not been fitted; call fit(recording) first.")
        return self._fitted

    def _read_out(self, split: Disentanglement) -> Readout:
        return split.live_readout()


class Concepts(SubUnits):
    """Concepts as units: one read-out a concept over its sub-units in all channels (method, step 5)."""

    def __init__(self, model: Model, site: Site, *, name: str = "concepts", **settings: Any) -> None:
        super().__init__(model, site, name=name, **settings)

    def size_in_bytes(self) -> int:
        """Return the memory of the read-out, (s * kernel, g)."""
        return self._learned()[1].matrix.nbytes

    def _read_out(self, split: Disentanglement) -> Readout:
        return split.concept_readout()


class RandomRoutes(SubUnits):
    """The control: sub-units of the same sizes, with random contributions."""

    def __init__(self, model: Model, site: Site, *, name: str = "random routes", **settings: Any) -> None:
        super().__init__(model, site, name=name, **settings)

    def set_split(self, split: Disentanglement) -> None:
        """Use a disentanglement that has been made, with its routes shuffled."""
        super().set_split(replace(split, routing=shuffled(split.routing, split.settings.seed)))


class _Known:
    """The routing of a disentanglement, as a strategy."""

    def __init__(self, split: Disentanglement) -> None:
        self.name, self._routing = split.settings.routing, split.routing

    def route(self, *_: Any, **__: Any) -> Any:
        return self._routing
