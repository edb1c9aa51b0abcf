"""Interventions on a site: run images once, and what comes after the site once for each intervention and strength."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from elude_nb.core.plan import Accumulator, Plan
from elude_nb.core.recording import draw_tokens, real_tokens_at
from elude_nb.core.result import Disentanglement
from elude_nb.core.steer import moved_output
from elude_nb.data.images import ImageSet
from elude_nb.models.forward import Rest
from elude_nb.models.hooks import Tap, as_tokens, for_analysis
from elude_nb.models.sites import Site

TOKENS_PER_IMAGE = 24  # for what is learned from tokens
_KEPT = 1 << 30  # bytes of passes that are kept to go on from

ChannelChange = Callable[[Tensor], Tensor]
"""From channels (..., d) to what is added to them at full strength, (..., d)."""


@dataclass(frozen=True, eq=False)
class Intervention:
    """One way to move the channels of a site; the strength multiplies by how much.

    Attributes
    ----------
    name
        As tables show it.
    detail
        What it acts on, in words.
    plans
        Edits of sub-units; several are draws of one random control, over which outcomes are averaged.
    change
        Instead of plans: from channels (n, t, d) to what is added to them.
    is_random
        Whether its plans are drawn at random.
    """

    name: str
    detail: str
    plans: tuple[Plan, ...] = ()
    change: ChannelChange | None = None
    is_random: bool = False


@dataclass(frozen=True, eq=False)
class Captured:
    """A batch that has run as far as the site: what its exit put out, in its own shape, and the model's outputs."""

    batch: Tensor
    exit: Tensor
    outputs: Tensor

    @property
    def nbytes(self) -> int:
        """Return its memory."""
        return self.batch.nbytes + self.exit.nbytes


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What came of ``n`` images.

    Attributes
    ----------
    before
        Outputs of the model as it is, (n, e).
    after
        For each (intervention, strength), its outputs (n, e), one a draw.
    pooled
        Channels, averaged over the edited tokens, (n, d); NaN for a sentence that has none of them.
    tokens, images
        Channels at a sample of the edited tokens, (t, d), and the number of the image of each, (t,).
    captured
        If asked for, the batches as they ran, for changes of channels to go on from; none if they were too large.
    """

    before: Tensor
    after: dict[tuple[int, float], list[Tensor]]
    pooled: Tensor
    tokens: Tensor
    images: Tensor
    captured: tuple[Captured, ...] = ()


def run_interventions(
    split: Disentanglement,
    rest: Rest,
    images: ImageSet | Sequence[Captured],
    interventions: Sequence[Intervention],
    strengths: Sequence[float] | Sequence[Sequence[float]] = (1.0,),
    *,
    weights: Tensor | None = None,
    seed: int | None = None,
    keep: bool = False,
) -> Outcomes:
    """Run images once, and the rest of the network once for each intervention, draw and strength.

    To be called inside ``evaluating(network)``.

    Parameters
    ----------
    split, rest
        The split, and the network after its site.
    images, interventions, strengths
        What to run, at which strengths, or at which for each intervention; ``after`` of the outcomes has the number of
        the intervention. In place of images, batches that were captured before will do for changes of channels.
    weights
        With what weight interventions on channels act at each token, (t,); ``None`` is 1.
    seed
        Of the tokens that are kept; ``None`` keeps none.
    keep
        Whether to keep the batches as they ran.
    """
    weights = torch.ones(split.site.layout.count) if weights is None else weights
    common = [strength for strength in strengths if not isinstance(strength, Sequence)]
    of_each = [common or strengths[place] for place in range(len(interventions))]
    parts, start, room = list[Outcomes](), 0, _KEPT if keep else 0
    batches = split.model.batches(images, "interventions") if isinstance(images, ImageSet) else images
    for batch in batches:
        part = _run_batch(split, rest, batch, interventions, of_each, weights, start, seed)
        start += len(part.before)
        room -= sum(each.nbytes for each in part.captured)
        parts.append(part if room > 0 else replace(part, captured=()))
    before, pooled, tokens, owners = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("before", "pooled", "tokens", "images")
    )
    after = {
        key: [torch.cat(draws) for draws in zip(*(part.after[key] for part in parts), strict=True)]
        for key in parts[0].after
    }
    kept = tuple(each for part in parts for each in part.captured) if room > 0 else ()
    return Outcomes(before, after, pooled, tokens, owners, kept)


def _run_batch(
    split: Disentanglement,
    rest: Rest,
    given: Tensor | Captured,
    interventions: Sequence[Intervention],
    strengths: Sequence[Any],
    weights: Tensor,
    start: int,
    seed: int | None,
) -> Outcomes:
    network, site = split.model.network, split.site
    batch = given.batch if isinstance(given, Captured) else given
    gathered = [[Accumulator(plan.to(batch.device), site) for plan in each.plans] for each in interventions]

    def see(number: int, sources: Tensor) -> None:
        for one in chain(*gathered):
            one.see_tokens(number, sources)

    if isinstance(given, Captured):
        captured, before = given.exit, given.outputs
    else:
        # Sources are not kept: those of 24 layers would fill the memory.
        with Tap(network, site, on_source=see) if any(gathered) else nullcontext():
            captured, before = rest.capture(batch)
    h = site.outputs(network, as_tokens(captured, channels_last=site.kind != "convolution"))  # (n, t, d)
    weights = weights.to(h)
    after = {}
    for place, (intervention, several) in enumerate(zip(interventions, gathered, strict=True)):
        changes = [(each.plan, each.take()) for each in several]
        if intervention.change is not None:
            changes.append((all_channels(split), intervention.change(h) * weights[:, None]))
        for strength in strengths[place]:
            after[place, strength] = [
                for_analysis(rest(batch, moved_output(network, site, plan, strength * moved, captured)))
                for plan, moved in changes
            ]
    here = weights.expand(len(h), -1)  # (n, t)
    real = real_tokens_at(split.model, batch, site, torch.arange(h.shape[1]))
    here = here if real is None else here * real
    pooled = (h * here[..., None]).sum(1) / here.sum(1, keepdim=True)
    rows, positions = torch.zeros(2, 0, dtype=torch.int64)
    if seed is not None:
        numbers = range(start, start + len(batch))
        rows, positions = draw_tokens(torch.arange(h.shape[1]), here != 0, TOKENS_PER_IMAGE, numbers, seed)
    tokens, kept = for_analysis(h[rows, positions]), Captured(batch, captured, before)
    return Outcomes(for_analysis(before), after, for_analysis(pooled), tokens, start + rows, (kept,))


def all_channels(split: Disentanglement) -> Plan:
    """Return a plan that adds one number to each channel of a site, at every token."""
    nothing, channels = split.weight.new_zeros(0), torch.arange(split.site.channels, device=split.model.device)
    return Plan(nothing, nothing, channels, (), None, split.site.layout.count)


def capture_sources(rest: Rest, batch: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Run the model as it is; return what the site's exit put out, the outputs (n, e), and the sources of each term."""
    sources: dict[int, Tensor] = {}
    with Tap(rest.model.network, rest.site, on_source=sources.__setitem__):
        captured, outputs = rest.capture(batch)
    return captured, outputs, [sources[number] for number in range(len(rest.site.terms))]


def change_of(plan: Plan, site: Site, sources: Sequence[Tensor]) -> Tensor:
    """Return by how much a plan moves its channels, (n, t, u), from the sources of each term."""
    gathered = Accumulator(plan, site)
    for number, tokens in enumerate(sources):
        gathered.see_tokens(number, tokens)
    return gathered.take()
