"""Interventions on a site: run images once, and what comes after the site once for each intervention and strength."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    """

    before: Tensor
    after: dict[tuple[int, float], list[Tensor]]
    pooled: Tensor
    tokens: Tensor
    images: Tensor


def run_interventions(
    split: Disentanglement,
    rest: Rest,
    images: ImageSet,
    interventions: Sequence[Intervention],
    strengths: Sequence[float] | Sequence[Sequence[float]] = (1.0,),
    *,
    weights: Tensor | None = None,
    seed: int | None = None,
) -> Outcomes:
    """Run images once, and the rest of the network once for each intervention, draw and strength.

    To be called inside ``evaluating(network)``.

    Parameters
    ----------
    split, rest
        The split, and the network after its site.
    images, interventions, strengths
        What to run, at which strengths, or at which for each intervention; ``after`` of the outcomes has the number of
        the intervention.
    weights
        With what weight interventions on channels act at each token, (t,); ``None`` is 1.
    seed
        Of the tokens that are kept; ``None`` keeps none.
    """
    weights = torch.ones(split.site.layout.count) if weights is None else weights
    common = [strength for strength in strengths if not isinstance(strength, Sequence)]
    of_each = [common or strengths[place] for place in range(len(interventions))]
    parts, start = list[Outcomes](), 0
    for batch in split.model.batches(images, "interventions"):
        numbers = range(start, start + len(batch))
        parts.append(_run_batch(split, rest, batch, interventions, of_each, weights, numbers, seed))
        start = numbers.stop
    before, pooled, tokens, owners = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("before", "pooled", "tokens", "images")
    )
    after = {
        key: [torch.cat(draws) for draws in zip(*(part.after[key] for part in parts), strict=True)]
        for key in parts[0].after
    }
    return Outcomes(before, after, pooled, tokens, owners)


def _run_batch(
    split: Disentanglement,
    rest: Rest,
    batch: Tensor,
    interventions: Sequence[Intervention],
    strengths: Sequence[Any],
    weights: Tensor,
    numbers: range,
    seed: int | None,
) -> Outcomes:
    network, site = split.model.network, split.site
    gathered = [[Accumulator(plan.to(batch.device), site) for plan in each.plans] for each in interventions]

    def see(number: int, sources: Tensor) -> None:
        for one in chain(*gathered):
            one.see_tokens(number, sources)

    with Tap(network, site, on_source=see):  # sources are not kept: those of 24 layers would fill the memory
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
        rows, positions = draw_tokens(torch.arange(h.shape[1]), here != 0, TOKENS_PER_IMAGE, numbers, seed)
    tokens = for_analysis(h[rows, positions])
    return Outcomes(for_analysis(before), after, for_analysis(pooled), tokens, numbers.start + rows)


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
