"""Controls of an edit: the same done to random sub-units, random concepts, whole channels, directions, a latent.

What a control removes is put at its mean over the tokens of the discovery, as an edit about the mean does; learned
directions (`elude_nb.steering.directions`) have centres of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from elude_nb._util.words import counted
from elude_nb.baselines.sae import SparseAutoencoder, TopK
from elude_nb.core.edit import Change, Edit
from elude_nb.core.plan import plan_edit, token_weights, units_of
from elude_nb.core.recording import Recording
from elude_nb.core.result import Disentanglement
from elude_nb.core.routing import NO_CONCEPT
from elude_nb.core.steer import check_edit
from elude_nb.errors import EditError
from elude_nb.models.hooks import for_analysis
from elude_nb.scores.labels import d_prime
from elude_nb.steering.directions import Erasure, difference_of_means, leace, linear_svm
from elude_nb.steering.interventions import Intervention, Outcomes

_LATENTS_PER_CHANNEL = 4
_ACTIVE = 32
_STEPS = 500  # on 2,880 tokens of DINOv2 they leave as little unexplained as the usual 1,500, which stop at 900

# ---------------------------------------------------------------- what an edit is about


def check_fixed_edit(split: Disentanglement, edit: Edit, purpose: str) -> None:
    """Raise ``EditError`` unless the split can carry out an edit that changes something, at fixed strengths."""
    check_edit(split, edit)
    if not edit.changes or any(change.scheduled for change in edit.changes):
        raise EditError(f"{purpose} needs an edit at fixed strengths that changes something, without a schedule.")


def removal(edit: Edit) -> float | None:
    """Return the share of its sub-units' activations that an edit takes away; ``None`` if it does something else.

    Of an edit about the others it is the share of what they have above these.

    Examples
    --------
    >>> removal(Edit.scale(concept=3, by=0.25)), removal(Edit.ablate(unit=(1, 2)).at(0.5))
    (0.75, 0.5)
    >>> removal(Edit.add(concept=3, by=1)) is None
    True
    """
    shares = {_share(change) for change in edit.changes}
    edited = [each for change in edit.changes for each in (*change.concepts, *change.units)]
    once = len(edited) == len(set(edited))  # of what is halved twice, three quarters are gone
    return shares.pop() if len(shares) == 1 and once else None


def _share(change: Change) -> float | None:
    if isinstance(change.strength, tuple) or change.about == "zero" or len(set(change.values)) != 1:
        return None
    if change.kind == "scale":
        return change.strength * (1 - change.values[0])
    return change.strength if change.kind == "set" and change.values[0] == 0 else None


def edited_units(split: Disentanglement, edit: Edit) -> list[tuple[int, int]]:
    """Return the sub-units that an edit names, each once, in order."""
    return sorted({unit for change in edit.changes for unit in units_of(split, change)})


def edited_concepts(split: Disentanglement, edit: Edit) -> list[int]:
    """Return the concepts of the sub-units that an edit names."""
    owners = {int(split.routing.concepts[c, k - 1]) for c, k in edited_units(split, edit) if k > 0}
    return sorted(owners - {NO_CONCEPT})


def edited_tokens(split: Disentanglement, edit: Edit) -> Tensor | None:
    """Return the largest weight with which any change acts at each token, (t,); ``None`` for 1 at all of them."""
    weights = [token_weights(split, change) for change in edit.changes]
    some = [weight for weight in weights if weight is not None]
    return torch.stack(some).amax(0) if some and len(some) == len(weights) else None


def describe_edit(split: Disentanglement, edit: Edit) -> Intervention:
    """Return an edit as an intervention, with the number of its sub-units and concepts in words."""
    concepts = edited_concepts(split, edit)
    of = f" of concept {concepts[0]}" if len(concepts) == 1 else f" of {len(concepts)} concepts" if concepts else ""
    return Intervention("edit", f"{counted(len(edited_units(split, edit)), 'sub-unit')}{of}", (plan_edit(split, edit),))


# ---------------------------------------------------------------- single controls


def whole_channels(split: Disentanglement, channels: Sequence[int], share: float, name: str) -> Intervention:
    """Move whole channels towards their mean over the discovery."""
    chosen = torch.tensor(sorted(set(channels)))
    mean = split.book.channel_mean()

    def change(h: Tensor) -> Tensor:
        moved = torch.zeros_like(h)
        moved[..., chosen] = share * (mean[chosen].to(h) - h[..., chosen])
        return moved

    several = f"{len(chosen)} channels" if len(chosen) > 1 else f"channel {int(chosen[0])}"
    return Intervention(name, several, change=change)


def projected_out(split: Disentanglement, concepts: Sequence[int], share: float) -> Intervention:
    """Project the concepts' mean directions, (d,) each, out of the channels."""
    directions, _ = torch.linalg.qr(split.book.mean_channels()[list(concepts)].double().T)  # (d, r), orthonormal
    mean = split.book.channel_mean()

    def change(h: Tensor) -> Tensor:
        basis = directions.to(h)
        along: Tensor = (h - mean.to(h)) @ basis  # (..., r)
        return (-share * along).matmul(basis.T)

    several = f"{len(concepts)} directions" if len(concepts) > 1 else f"mean of concept {concepts[0]}"
    return Intervention("mean direction", several, change=change)


def silenced_latent(method: SparseAutoencoder, latent: int, share: float) -> Intervention:
    """Take away what one latent of a sparse autoencoder adds; its error stays in, which favours the autoencoder."""
    decoder = method.learned("decoder_")

    def change(h: Tensor) -> Tensor:
        active = latents_of(method, h.flatten(0, -2))[:, latent].unflatten(0, h.shape[:-1])
        taken: Tensor = active[..., None] * decoder[latent].to(active)  # (..., d)
        return (-share * taken).to(h)

    return Intervention("SAE latent", f"latent {latent} of {len(decoder)}", change=change)


def latents_of(method: SparseAutoencoder, channels: Tensor) -> Tensor:
    """Return the latents (t, u) of channels (t, d)."""
    return method.encode(_as_recording(channels, torch.zeros(len(channels), dtype=torch.int64)))


def _as_recording(channels: Tensor, images: Tensor) -> Recording:
    """Return channels (t, d) of images (t,) as a recording without sources, which no autoencoder reads."""
    tokens = for_analysis(channels)
    return Recording(tokens, tokens.new_zeros(len(tokens), 0), tokens, images, torch.zeros_like(images))


def random_units(split: Disentanglement, edit: Edit, draws: int, seed: int) -> Intervention:
    """Do the same to other sub-units of the same channels, drawn at random ``draws`` times.

    Raises
    ------
    EditError
        If the edit cannot be carried over (a clamp on a concept has other bounds for each sub-unit), or it names all
        sub-units of its channels.
    """
    rng = np.random.default_rng(seed)
    units, sizes = edited_units(split, edit), split.routing.sizes()
    numbers = {channel: (sizes[channel, 1:] > 0).nonzero().flatten().add(1).tolist() for channel, _ in units}
    plans = []
    for _ in range(draws):
        others, changes = _others(units, numbers, rng), []
        if all(unit == other for unit, other in others.items()):
            raise EditError("the edited channels have no other sub-units.")
        for change in edit.changes:
            drawn = tuple(others[unit] for unit in units_of(split, change))
            changes.append(replace(change, concepts=(), units=drawn, values=_values_for(split, change, drawn)))
        plans.append(plan_edit(split, Edit(tuple(changes))))
    return Intervention(
        "random sub-units", f"{len(units)} of the same channels, {draws} draws", tuple(plans), is_random=True
    )


def _others(
    units: Sequence[tuple[int, int]], numbers: dict[int, list[int]], rng: np.random.Generator
) -> dict[tuple[int, int], tuple[int, int]]:
    """Draw for each unit another sub-unit of its channel that is not edited, none twice; itself if none is left."""
    edited, free = set(units), {}
    for channel, several in numbers.items():
        free[channel] = rng.permutation([k for k in several if (channel, k) not in edited]).tolist()
    order = [units[int(place)] for place in rng.permutation(len(units))]  # who is left with itself is drawn, too
    return {(channel, k): (channel, int(free[channel].pop()) if free[channel] else k) for channel, k in order}


def _values_for(split: Disentanglement, change: Change, units: Sequence[tuple[int, int]]) -> tuple[float, ...]:
    """Return a change's values for other units: those of a concept, which count in its means, become plain numbers."""
    if not change.concepts or change.kind == "scale":
        return change.values
    if change.kind == "clamp":
        raise EditError("A clamp on a concept cannot be done to random sub-units: each would need bounds of its own.")
    channels, numbers = torch.tensor(units).T
    return tuple((change.values[0] * split.means_on_concepts[channels, numbers]).tolist())


def random_concepts(split: Disentanglement, edit: Edit, draws: int, seed: int) -> Intervention:
    """Do the same to other concepts, drawn at random ``draws`` times.

    Raises
    ------
    EditError
        If the edit names single sub-units, or nearly all concepts.
    """
    edited = edited_concepts(split, edit)
    free = [concept for concept in split.routing.concepts.unique().tolist() if concept not in {NO_CONCEPT, *edited}]
    if any(not change.concepts for change in edit.changes) or len(free) < len(edited):
        raise EditError("Only an edit of a few concepts can be done to others instead.")
    rng = np.random.default_rng(seed)
    plans = []
    for _ in range(draws):
        others = dict(zip(edited, rng.choice(free, len(edited), replace=False).tolist(), strict=True))
        changes = [
            replace(change, concepts=tuple(others[c] for c in edited_concepts(split, Edit((change,)))))
            for change in edit.changes
        ]
        plans.append(plan_edit(split, Edit(tuple(changes))))
    several = "1 other" if len(edited) == 1 else f"{len(edited)} others"
    return Intervention("random concept", f"{several}, {draws} draws", tuple(plans), is_random=True)


def most_selective(values: Tensor, is_target: Tensor, *, both_signs: bool = False) -> int:
    """Return the column of values (n, u) that tells the target's images best: the one with the largest `d_prime`.

    With ``both_signs`` its absolute value counts.
    """
    distance = d_prime(values, is_target)
    return int((distance.abs() if both_signs else distance).argmax())


# ---------------------------------------------------------------- all of them, by name


@dataclass(frozen=True, eq=False)
class Controls:
    """What the controls of an edit are made from.

    Attributes
    ----------
    split, edit
        The split and the edit.
    draws, seed
        Draws of each random control.
    seen
        What came of the images to choose on; needed by the best channel and the latent.
    is_target
        Which of these images show the target, (n,).
    sae
        A fitted autoencoder, or ``None`` to train one on the tokens seen.
    """

    split: Disentanglement
    edit: Edit
    draws: int
    seed: int
    seen: Outcomes | None = None
    is_target: Tensor | None = None
    sae: SparseAutoencoder | None = None

    def make(self, name: str) -> Intervention:
        """Return the control of this name; raise `EditError` with the reason if the edit has no such control."""
        return CONTROLS[name](self)

    def make_all(self, names: Sequence[str]) -> tuple[list[Intervention], tuple[str, ...]]:
        """Return the controls of these names, and in words those that the edit does not have."""
        made, left_out = list[Intervention](), list[str]()
        for name in names:
            try:
                made.append(self.make(name))
            except EditError as error:
                left_out.append(f"{name} left out: {error}")
        return made, tuple(left_out)

    @property
    def share(self) -> float:
        """Which share of activations the edit takes away; `EditError` if it does something else."""
        share = removal(self.edit)
        if share is None:
            raise EditError("the edit does not take away one share of activations about their mean.")
        return share


def _same_channels(given: Controls) -> Intervention:
    channels = [channel for channel, _ in edited_units(given.split, given.edit)]
    return whole_channels(given.split, channels, given.share, "same channels")


def _best_channel(given: Controls) -> Intervention:
    seen, is_target = _seen(given)
    finite = seen.pooled.isfinite().all(1)  # a sentence may have none of the edited tokens
    if not is_target[finite].any() or is_target[finite].all():
        raise EditError("too few inputs to choose on have one of the edited tokens.")
    best = most_selective(seen.pooled[finite], is_target[finite], both_signs=True)
    return whole_channels(given.split, [best], given.share, "best channel")


def _mean_direction(given: Controls) -> Intervention:
    concepts = edited_concepts(given.split, given.edit)
    if not concepts:
        raise EditError("the edited sub-units have no concept.")
    return projected_out(given.split, concepts, given.share)


def _best_latent(given: Controls) -> Intervention:
    seen, is_target = _seen(given)
    share, sae = given.share, given.sae or _trained(seen, given.seed)
    latents = latents_of(sae, seen.tokens)
    sums = latents.new_zeros(len(is_target), latents.shape[1]).index_add_(0, seen.images, latents)
    return silenced_latent(sae, most_selective(sums, is_target), share)


def _erased(name: str, learn: Callable[[Tensor, Tensor], Erasure], given: Controls) -> Intervention:
    seen, is_target = _seen(given)
    change = learn(seen.tokens, is_target[seen.images]).change(given.share)
    return Intervention(name, f"from {counted(len(seen.tokens), 'token')}", change=change)


def _seen(given: Controls) -> tuple[Outcomes, Tensor]:
    if given.seen is None or given.is_target is None:
        raise EditError("there are no images to choose on.")
    return given.seen, given.is_target


def _trained(seen: Outcomes, seed: int) -> SparseAutoencoder:
    count, channels = seen.tokens.shape
    width = min(_LATENTS_PER_CHANNEL * channels, count // 2)
    if width < 2:
        raise EditError(f"no autoencoder could be trained on {count} tokens.")
    try:
        sae = TopK(width, min(_ACTIVE, max(1, width // 4)), steps=_STEPS, seed=seed)
        return sae.fit(_as_recording(seen.tokens, seen.images))
    except ValueError as error:
        raise EditError(f"no autoencoder could be trained on {count} tokens ({error})") from error


CONTROLS: dict[str, Callable[[Controls], Intervention]] = {
    "random sub-units": lambda given: random_units(given.split, given.edit, given.draws, given.seed),
    "random concept": lambda given: random_concepts(given.split, given.edit, given.draws, given.seed),
    "same channels": _same_channels,
    "best channel": _best_channel,
    "mean direction": _mean_direction,
    "SAE latent": _best_latent,
    "difference of means": partial(_erased, "difference of means", difference_of_means),
    "linear SVM": partial(_erased, "linear SVM", linear_svm),
    "LEACE": partial(_erased, "LEACE", leace),
}
"""What an edit can be compared with, by name."""
