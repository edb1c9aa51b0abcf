"""Controls: what an edit is compared with, chosen on images that are not the ones measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from elude_nb.edits import Edit, EditError
from elude_nb.interventions import (
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
from elude_nb.plans import Splittable
from elude_nb.recording import Recording
from elude_nb.rivals.sparse import SparseAutoencoder, TopK
from elude_nb.trials import Outcomes

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
