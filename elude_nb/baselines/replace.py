"""Replace a site's channels by a method's reconstruction, and run the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from elude_nb.core.recording import Recording
from elude_nb.data.images import Images
from elude_nb.models.forward import Rest, features
from elude_nb.models.hooks import Reentrant, Tap, as_tokens, evaluating, for_analysis, from_tokens, intercept
from elude_nb.models.load import Model
from elude_nb.models.outputs import first_tensor, with_first
from elude_nb.models.sites import Site

Reconstruct = Callable[[Recording], Tensor]
"""From recorded tokens (t) to the channels (t, d) that replace theirs."""


class Replaced(Reentrant):
    """Inside the ``with`` block ``reconstruct`` replaces the site's channels at chosen tokens.

    Afterwards the network is as it was, also after an exception.

    Parameters
    ----------
    network, site
        The network and its site.
    reconstruct
        From a `Recording` of all chosen tokens of the batch to channels (t, d).
    positions
        Numbers of the tokens that are replaced, (t,).
    sources
        Whether ``reconstruct`` reads the sources; otherwise recordings have none, (t, 0).
    """

    def __init__(
        self, network: nn.Module, site: Site, reconstruct: Reconstruct, positions: Tensor, *, sources: bool = False
    ) -> None:
        super().__init__()
        self._network, self._site, self._reconstruct = network, site, reconstruct
        self._positions, self._wants_sources = positions, sources
        self._seen: dict[int | str, Tensor] = {}

    def attach(self, stack: ExitStack) -> None:
        """Set the hooks."""
        stack.callback(self._seen.clear)
        if self._wants_sources:
            on_entering = partial(self._keep, "entering")
            stack.enter_context(Tap(self._network, self._site, on_source=self._keep, on_entering=on_entering))
        stack.callback(intercept(self._network.get_submodule(self._site.exit), after=self._replace))

    def _keep(self, name: int | str, tokens: Tensor) -> None:
        self._seen[name] = self._chosen(tokens)

    def _chosen(self, tokens: Tensor) -> Tensor:
        return for_analysis(tokens[:, self._positions].flatten(0, 1))

    def _replace(self, output: Any) -> Any:
        return with_first(output, self.replaced(first_tensor(output)))

    def replaced(self, found: Tensor) -> Tensor:
        """Return what the exit module puts out, in its own shape, with the channels replaced."""
        last = self._site.kind != "convolution"
        self._site.layout.check(found.shape, channels_last=last)
        tokens = as_tokens(found, channels_last=last).clone()  # (n, t, d)
        before = self._site.outputs(self._network, tokens)
        recording = self._recording(before)
        changed = self._reconstruct(recording).to(before)
        if changed.shape != recording.channels.shape:  # some shapes would broadcast
            raise ValueError(
                f"The reconstruction of {tuple(recording.channels.shape)} channels is {tuple(changed.shape)}; "
                "return a channel for each of them at every token."
            )
        tokens[:, self._positions] = self._site.captured(self._network, changed.unflatten(0, (len(tokens), -1)))
        return from_tokens(tokens, found, channels_last=last)

    def _recording(self, channels: Tensor) -> Recording:
        here = self._chosen(channels)
        numbers = [self._seen[number] for number in range(len(self._site.terms))] if self._wants_sources else []
        return Recording(
            channels=here,
            sources=torch.cat(numbers, dim=1) if numbers else here.new_zeros(len(here), 0),
            entering=self._seen.get("entering", torch.zeros_like(here)),
            images=torch.arange(len(channels)).repeat_interleave(len(self._positions)),
            positions=self._positions.cpu().repeat(len(channels)),
        )


def replaced_features(
    model: Model,
    images: Images,
    site: Site,
    reconstruct: Reconstruct | None,
    *,
    tokens: str = "patch",
    sources: bool = False,
) -> Tensor:
    """Return the `features` (n, e) of images with the site's channels replaced; with ``None``, of the model as it is.

    Raises
    ------
    ValueError
        If the site has no such tokens, or the reconstruction has another shape than the channels.
    """
    photos, positions = model.inputs(images), site.layout.positions(tokens).to(model.device)
    with ExitStack() as stack:
        stack.enter_context(evaluating(model.network))
        if reconstruct is not None:
            stack.enter_context(Replaced(model.network, site, reconstruct, positions, sources=sources))
        return torch.cat([for_analysis(features(model, batch)) for batch in model.batches(photos)])


def replaced_by_each(
    model: Model,
    images: Images,
    site: Site,
    reconstructs: Mapping[str, tuple[Reconstruct, bool]],
    *,
    tokens: str = "patch",
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the `features` (n, e) of images, and those with the channels replaced in each of several ways.

    As `replaced_features` for each, but what comes before the site runs once for all that do not read sources.

    Parameters
    ----------
    model, images, site, tokens
        As in `replaced_features`.
    reconstructs
        By name, and whether it reads the sources.
    """
    photos, positions = model.inputs(images), site.layout.positions(tokens).to(model.device)
    ways = {
        name: (Replaced(model.network, site, reconstruct, positions, sources=sources), sources)
        for name, (reconstruct, sources) in reconstructs.items()
    }
    original, changed = list[Tensor](), {name: list[Tensor]() for name in ways}
    rest = Rest(model, site)
    with evaluating(model.network):
        for batch in model.batches(photos):
            captured, outputs = rest.capture(batch)
            original.append(for_analysis(outputs))
            for name, (way, sources) in ways.items():
                if sources:
                    with way:
                        found = features(model, batch)
                else:
                    found = rest(batch, way.replaced(captured))
                changed[name].append(for_analysis(found))
    return torch.cat(original), {name: torch.cat(parts) for name, parts in changed.items()}
