"""Run images once, and what comes after a site once for each intervention and strength."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from elude_nb.baselines.sae import SparseAutoencoder, TopK
from elude_nb.core.edit import Edit
from elude_nb.core.plan import Accumulator, Plan, Splittable
from elude_nb.core.recording import Recording, draw_tokens, real_tokens_at
from elude_nb.core.steer import moved_output
from elude_nb.data.images import ImageSet
from elude_nb.errors import EditError
from elude_nb.models.forward import Read, Rest
from elude_nb.models.hooks import Tap, as_tokens, for_analysis
from elude_nb.steering.interventions import (
    Intervention,
    edited_concepts,
    edited_units,
    latents_of,
    most_selective,
    projected_out,
    random_concepts,
    random_units,
    removal,
    silenced_latent,
    whole_channels,
)

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


_LATENTS_PER_CHANNEL = 4
_ACTIVE = 32
_STEPS = 500  # on 2,880 tokens of DINOv2 they leave as little unexplained as the usual 1,500, which stop at 900


@dataclass(frozen=True, eq=False)
class Controls:
    """Makes the controls of an edit.

    Attributes
    ----------
    split, edit
        The split and the edit.
    seen
        What came of the images to choose on.
    is_target
        Which of these images show the target, (n,).
    draws, seed
        Draws of each random control.
    sae
        A fitted autoencoder, or ``None`` to train one on the tokens seen.
    """

    split: Splittable
    edit: Edit
    seen: Outcomes
    is_target: Tensor
    draws: int
    seed: int
    sae: SparseAutoencoder | None = None

    def make(self, name: str) -> Intervention:
        """Return the control of this name.

        Raises
        ------
        EditError
            If the edit has no such control, with the reason.
        """
        return CONTROLS[name](self)

    def random_units(self) -> Intervention:
        """Return other sub-units of the same channels, as many."""
        return random_units(self.split, self.edit, self.draws, self.seed)

    def random_concept(self) -> Intervention:
        """Return other concepts, as many."""
        return random_concepts(self.split, self.edit, self.draws, self.seed)

    def same_channels(self) -> Intervention:
        """Return the edited channels as a whole."""
        channels = [channel for channel, _ in edited_units(self.split, self.edit)]
        return whole_channels(self.split, channels, self._share(), "same channels")

    def best_channel(self) -> Intervention:
        """Return the one channel that tells the target best."""
        seen = self.seen.pooled.isfinite().all(1)  # a sentence may have none of the edited tokens
        if not self.is_target[seen].any() or self.is_target[seen].all():
            raise EditError("too few inputs to choose on have one of the edited tokens.")
        best = most_selective(self.seen.pooled[seen], self.is_target[seen], both_signs=True)
        return whole_channels(self.split, [best], self._share(), "best channel")

    def mean_direction(self) -> Intervention:
        """Return the mean direction of the edited concepts."""
        concepts = edited_concepts(self.split, self.edit)
        if not concepts:
            raise EditError("the edited sub-units have no concept.")
        return projected_out(self.split, concepts, self._share())

    def latent(self) -> Intervention:
        """Return the latent of a sparse autoencoder that tells the target best."""
        share, sae = self._share(), self.sae or self._trained()
        latents = latents_of(sae, self.seen.tokens)
        sums = latents.new_zeros(len(self.is_target), latents.shape[1]).index_add_(0, self.seen.images, latents)
        return silenced_latent(sae, most_selective(sums, self.is_target), share)

    def _share(self) -> float:
        share = removal(self.edit)
        if share is None:
            raise EditError("the edit does not take away one share of activations about their mean.")
        return share

    def _trained(self) -> SparseAutoencoder:
        tokens, images = self.seen.tokens, self.seen.images
        width = min(_LATENTS_PER_CHANNEL * tokens.shape[1], len(tokens) // 2)
        recording = Recording(tokens, tokens.new_zeros(len(tokens), 0), tokens, images, torch.zeros_like(images))
        if width < 2:
            raise EditError(f"no autoencoder could be trained on {len(tokens)} tokens.")
        try:
            return TopK(width, min(_ACTIVE, max(1, width // 4)), steps=_STEPS, seed=self.seed).fit(recording)
        except ValueError as error:
            raise EditError(f"no autoencoder could be trained ({error})") from error


CONTROLS: dict[str, Callable[[Controls], Intervention]] = {
    "random sub-units": Controls.random_units,
    "random concept": Controls.random_concept,
    "same channels": Controls.same_channels,
    "best channel": Controls.best_channel,
    "mean direction": Controls.mean_direction,
    "SAE latent": Controls.latent,
}
"""What an edit can be compared with, by name."""
