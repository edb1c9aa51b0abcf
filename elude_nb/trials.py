"""Run images once, and what comes after a site once for each intervention and strength."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from elude_nb.images import ImageSet
from elude_nb.interventions import Intervention
from elude_nb.plans import Accumulator, Plan, Splittable
from elude_nb.recording import draw_tokens, for_analysis, real_tokens_at
from elude_nb.resuming import Read, Rest
from elude_nb.steering import moved_output
from elude_nb.taps import Tap, as_tokens

TOKENS_SEEN = 24  # of each image, for what is learned from tokens


@dataclass(eq=False)
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


class Trial:
    """A split's model with its site tapped; call it inside ``evaluating(network)``.

    Parameters
    ----------
    split
        The split.
    read
        What is read of the model.
    weights
        With what weight interventions on channels act at each token, (t,); ``None`` is 1.
    batch_size
        Images in one forward pass.
    bar
        Its ``update`` is called with the number of images done.
    """

    def __init__(self, split: Splittable, read: Read, weights: Tensor | None, batch_size: int, bar: Any) -> None:
        self._split, self._weights, self._batch_size, self._bar = split, weights, batch_size, bar
        self._network, self._site = split.model.network, split.site
        self._rest = Rest(split.model, split.site, read)
        nothing = split.weight.new_zeros(0)
        everywhere = torch.arange(self._site.channels, device=split.model.device)
        self._all_channels = Plan(nothing, nothing, everywhere, (), None, self._site.layout.count)

    def through(
        self, images: ImageSet, interventions: Sequence[Intervention], doses: Sequence[float], seed: int | None = None
    ) -> Outcomes:
        """Run images once, and the rest of the network once for each intervention, draw and dose."""
        parts: list[Outcomes] = []
        for start in range(0, len(images), self._batch_size):
            numbers = range(start, min(start + self._batch_size, len(images)))
            batch = self._split.model.prepare([images[i] for i in numbers])
            parts.append(self._batch(batch, interventions, doses, numbers, seed))
            self._bar.update(len(batch))
        return Outcomes(
            torch.cat([part.before for part in parts]),
            {
                key: [torch.cat(draws) for draws in zip(*(part.after[key] for part in parts), strict=True)]
                for key in parts[0].after
            },
            torch.cat([part.pooled for part in parts]),
            torch.cat([part.tokens for part in parts]),
            torch.cat([part.images for part in parts]),
        )

    def _batch(
        self,
        batch: Tensor,
        interventions: Sequence[Intervention],
        doses: Sequence[float],
        numbers: range,
        seed: int | None,
    ) -> Outcomes:
        gathered = [[Accumulator(plan.to(batch.device), self._site) for plan in each.plans] for each in interventions]
        flat = [one for several in gathered for one in several]

        def tell(number: int, sources: Tensor) -> None:
            for one in flat:
                one.see_tokens(number, sources)

        with Tap(self._network, self._site, on_source=tell):
            captured, before = self._rest.capture(batch)
        h = self._site.outputs(self._network, as_tokens(captured, channels_last=self._site.kind != "convolution"))
        after = {}
        for place, (intervention, several) in enumerate(zip(interventions, gathered, strict=True)):
            changes = [(g.plan, g.take()) for g in several]
            if intervention.change is not None:
                changes.append((self._all_channels, self._weighted(intervention.change(h))))
            for dose in doses:
                after[place, dose] = [self._outputs(batch, captured, plan, dose * moved) for plan, moved in changes]
        weights = torch.ones(h.shape[1]) if self._weights is None else self._weights
        weights = weights.to(h).expand(len(h), -1)  # (n, t)
        real = real_tokens_at(self._split.model, batch, self._site, torch.arange(h.shape[1]))
        weights = weights if real is None else weights * real
        pooled = (h * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)
        tokens, rows = self._sampled(h, weights, numbers, seed)
        return Outcomes(for_analysis(before), after, for_analysis(pooled), tokens, rows)

    def _weighted(self, change: Tensor) -> Tensor:
        return change if self._weights is None else change * self._weights.to(change)[:, None]

    def _outputs(self, batch: Tensor, captured: Tensor, plan: Plan, moved: Tensor) -> Tensor:
        return for_analysis(self._rest(batch, moved_output(self._network, self._site, plan, moved, captured)))

    def _sampled(self, h: Tensor, weights: Tensor, numbers: range, seed: int | None) -> tuple[Tensor, Tensor]:
        if seed is None:
            return for_analysis(h[:0, 0]), torch.zeros(0, dtype=torch.int64)
        rows, where = draw_tokens(torch.arange(h.shape[1]), weights != 0, TOKENS_SEEN, numbers, seed)
        return for_analysis(h[rows, where]), numbers.start + rows
