"""Controls of an edit: made from what was seen, or refused with the reason."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from elude_nb import Disentanglement
from elude_nb.baselines.sae import SparseAutoencoder, TopK
from elude_nb.core.edit import Edit
from elude_nb.core.routing import NO_CONCEPT
from elude_nb.errors import EditError
from elude_nb.steering.controls import (
    CONTROLS,
    Controls,
    edited_units,
    projected_out,
    silenced_latent,
    whole_channels,
)
from elude_nb.steering.interventions import Outcomes

N, TARGET = 12, torch.arange(12) % 3 == 0


@pytest.fixture(scope="module")
def concept(split) -> int:
    counted = Counter(int(c) for c in split.routing.concepts.flatten())
    return next(c for c, _ in counted.most_common() if c != NO_CONCEPT)


@pytest.fixture(scope="module")
def seen(split, images) -> Outcomes:
    """What came of 12 images: 6 tokens of each; channel 4 is lower on the target's."""
    recording = split.recording(images[:N], tokens="patch", tokens_per_image=6)
    tokens = recording.channels.clone()
    tokens[:, 4] -= 8 * TARGET[recording.images]
    pooled = tokens.unflatten(0, (N, 6)).mean(1)
    return Outcomes(torch.zeros(N, 5), {}, pooled, tokens, recording.images)


def controls(split: Disentanglement, edit: Edit, seen: Outcomes, **more: Any) -> Controls:
    return Controls(split, edit, draws=3, seed=0, seen=seen, is_target=TARGET, **more)


def moved(intervention: Any, h: torch.Tensor) -> torch.Tensor:
    change: torch.Tensor = intervention.change(h)
    return change


def test_every_control_has_its_name(split, concept, seen) -> None:
    made = controls(split, Edit.ablate(concept=concept), seen)
    for name in CONTROLS:
        intervention = made.make(name)
        assert intervention.name == name
        assert intervention.detail
        assert (intervention.change is None) == bool(intervention.plans)
        assert len(intervention.plans) in {0, 3}


def test_whole_channels_and_directions_are_those_of_the_edit(split, concept, seen) -> None:
    edit = Edit.scale(concept=concept, by=0.25)
    made, h = controls(split, edit, seen), seen.tokens[None]
    channels = sorted({channel for channel, _ in edited_units(split, edit)})
    expected = whole_channels(split, channels, 0.75, "")
    assert moved(made.make("same channels"), h).equal(moved(expected, h))
    expected = projected_out(split, [concept], 0.75)
    assert moved(made.make("mean direction"), h).equal(moved(expected, h))


def test_the_best_channel_tells_the_target_in_either_direction(split, concept, seen) -> None:
    values, is_target = seen.pooled.numpy(), TARGET.numpy()
    scores = []
    for column in values.T:
        here, there = column[is_target], column[~is_target]
        scores.append(abs(here.mean() - there.mean()) / np.sqrt((here.var() + there.var()) / 2))
    assert int(np.argmax(scores)) == 4
    made = controls(split, Edit.ablate(concept=concept), seen).make("best channel")
    assert made.detail == "channel 4"
    h = seen.tokens[None]
    assert moved(made, h).equal(moved(whole_channels(split, [4], 1.0, ""), h))


def test_the_best_latent_is_chosen_by_its_sum_over_each_image(split, concept, seen) -> None:
    sae = fitted(seen)
    made = controls(split, Edit.ablate(concept=concept, strength=0.5), seen, sae=sae).make("SAE latent")
    latents = sae.encode(as_recording(seen))
    sums = np.zeros((N, latents.shape[1]))
    for row, image in zip(latents.numpy(), seen.images.tolist(), strict=True):
        sums[image] += row
    scores = []
    for column in sums.T:
        here, there = column[TARGET.numpy()], column[~TARGET.numpy()]
        spread = np.sqrt((here.var() + there.var()) / 2)
        scores.append((here.mean() - there.mean()) / spread if spread > 0 else 0.0)
    best = int(np.argmax(scores))
    assert made.detail == f"latent {best} of 30"
    h = seen.tokens[None]
    assert moved(made, h).equal(moved(silenced_latent(sae, best, 0.5), h))


def as_recording(seen: Outcomes) -> Any:
    from elude_nb.core.recording import Recording

    nothing = seen.tokens.new_zeros(len(seen.tokens), 0)
    return Recording(seen.tokens, nothing, seen.tokens, seen.images, torch.zeros_like(seen.images))


def fitted(seen: Outcomes) -> SparseAutoencoder:
    return TopK(30, 5, steps=50, seed=1).fit(as_recording(seen))


def test_an_autoencoder_is_trained_if_none_is_given(split, concept, seen) -> None:
    made = [controls(split, Edit.ablate(concept=concept), seen).make("SAE latent") for _ in range(2)]
    assert made[0].detail == made[1].detail  # it has the seed
    width = min(4 * 24, len(seen.tokens) // 2)
    assert made[0].detail.endswith(f"of {width}")
    h = seen.tokens[None]
    assert moved(made[0], h).equal(moved(made[1], h))


def test_too_few_tokens_for_an_autoencoder_is_a_reason_not_an_error(split, concept, seen) -> None:
    few = Outcomes(seen.before, {}, seen.pooled, seen.tokens[:1], seen.images[:1])
    same = Outcomes(seen.before, {}, seen.pooled, seen.tokens[:1].expand(24, -1), seen.images[:24])
    for bad in (few, same):
        with pytest.raises(EditError, match="autoencoder"):
            controls(split, Edit.ablate(concept=concept), bad).make("SAE latent")


@pytest.mark.parametrize("name", ["same channels", "best channel", "mean direction", "SAE latent"])
def test_an_edit_that_takes_nothing_away_has_no_such_control(split, concept, seen, name) -> None:
    for edit in (
        Edit.add(concept=concept, by=1.0),
        Edit.clamp(concept=concept, high=0.1),
        Edit.ablate(concept=concept, to="zero"),
        Edit.scale(concept=concept, by=0.5) + Edit.scale(concept=concept, by=0.2),
    ):
        with pytest.raises(EditError, match="share"):
            controls(split, edit, seen).make(name)


def test_sub_units_without_a_concept_have_no_direction(split, concept, seen) -> None:
    with pytest.raises(EditError):
        controls(split, Edit.ablate(unit=(0, 0)), seen).make("mean direction")
