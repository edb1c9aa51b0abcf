"""An edit and its controls: the same done to whole channels, a direction, a latent, random sub-units.

Each intervention moves the channels of a site by so much; the strength multiplies that. What it removes is put at its
mean over the tokens of the discovery, as an edit about the mean does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from elude_nb.baselines.sae import SparseAutoencoder
from elude_nb.core.edit import Change, Edit
from elude_nb.core.plan import Plan, Splittable, plan_edit, token_weights, units_of
from elude_nb.core.recording import Recording
from elude_nb.errors import EditError
from elude_nb.models.hooks import for_analysis

ChannelChange = Callable[[Tensor], Tensor]
"""From channels (..., d) to what is added to them at full strength, (..., d)."""


@dataclass(frozen=True, eq=False)
class Intervention:
    """One way to act on a site.

    Attributes
    ----------
    name
        As it stands in tables.
    detail
        What it acts on, in words.
    plans
        Edits of sub-units; several are draws of one random control, over which outcomes are averaged.
    change
        Instead of plans: from channels (n, t, d) to what is added to them.
    """

    name: str
    detail: str
    plans: tuple[Plan, ...] = ()
    change: ChannelChange | None = None


def removal(edit: Edit) -> float | None:
    """Return the share of its sub-units' activations that an edit takes away; ``None`` if it does something else.

    Examples
    --------
    >>> removal(Edit.scale(concept=3, by=0.25)), removal(Edit.ablate(unit=(1, 2)).at(0.5))
    (0.75, 0.5)
    >>> removal(Edit.add(concept=3, by=1)) is None
    True
    """
    shares = {_share(change) for change in edit.changes}
    named = [each for change in edit.changes for each in (*change.concepts, *change.units)]
    once = len(named) == len(set(named))  # of what is halved twice, three quarters are gone
    return shares.pop() if len(shares) == 1 and once else None


def _share(change: Change) -> float | None:
    fixed = not isinstance(change.strength, tuple) and change.about == "mean" and len(set(change.values)) == 1
    if not fixed or isinstance(change.strength, tuple):
        return None
    if change.kind == "scale":
        return change.strength * (1 - change.values[0])
    return change.strength if change.kind == "set" and change.values[0] == 0 else None


def edited_units(split: Splittable, edit: Edit) -> list[tuple[int, int]]:
    """Return the sub-units that an edit names, each once, in order."""
    return sorted({unit for change in edit.changes for unit in units_of(split, change)})


def edited_concepts(split: Splittable, edit: Edit) -> list[int]:
    """Return the concepts of the sub-units that an edit names."""
    owners = {int(split.routing.concepts[c, k - 1]) for c, k in edited_units(split, edit) if k > 0}
    return sorted(owners - {-1})


def edited_tokens(split: Splittable, edit: Edit) -> Tensor | None:
    """Return the largest weight with which any change acts at each token, (t,); ``None`` for 1 at all of them."""
    weights = [token_weights(split, change) for change in edit.changes]
    if not weights or any(weight is None for weight in weights):
        return None
    return torch.stack([weight for weight in weights if weight is not None]).amax(0)


def whole_channels(split: Splittable, channels: Sequence[int], share: float, name: str) -> Intervention:
    """Move whole channels towards their mean over the discovery."""
    chosen = torch.tensor(sorted(set(channels)))
    mean = split.book.channel_mean()

    def change(h: Tensor) -> Tensor:
        moved = torch.zeros_like(h)
        moved[..., chosen] = share * (mean[chosen].to(h) - h[..., chosen])
        return moved

    several = f"{len(chosen)} channels" if len(chosen) > 1 else f"channel {int(chosen[0])}"
    return Intervention(name, several, change=change)


def projected_out(split: Splittable, concepts: Sequence[int], share: float) -> Intervention:
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
    """Take away what one latent of a sparse autoencoder adds; its error stays in, which is kind to it."""
    decoder = method.learned("decoder_")

    def change(h: Tensor) -> Tensor:
        active = latents_of(method, h.flatten(0, -2))[:, latent].unflatten(0, h.shape[:-1])
        taken: Tensor = active[..., None] * decoder[latent].to(active)  # (..., d)
        return (-share * taken).to(h)

    return Intervention("SAE latent", f"latent {latent} of {len(decoder)}", change=change)


def latents_of(method: SparseAutoencoder, channels: Tensor) -> Tensor:
    """Return the latents (t, u) of channels (t, d)."""
    tokens = for_analysis(channels)
    nothing, zeros = tokens.new_zeros(len(tokens), 0), torch.zeros(len(tokens), dtype=torch.int64)
    return method.encode(Recording(tokens, nothing, tokens, zeros, zeros))


def random_units(split: Splittable, edit: Edit, draws: int, seed: int) -> Intervention:
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
    return Intervention("random sub-units", f"{len(units)} of the same channels, {draws} draws", tuple(plans))


def random_concepts(split: Splittable, edit: Edit, draws: int, seed: int) -> Intervention:
    """Do the same to other concepts, drawn at random ``draws`` times.

    Raises
    ------
    EditError
        If the edit names single sub-units, or nearly all concepts.
    """
    named = edited_concepts(split, edit)
    present = split.routing.concepts.unique().tolist()
    free = [concept for concept in present if concept not in {-1, *named}]
    if any(not change.concepts for change in edit.changes) or len(free) < len(named):
        raise EditError("Only an edit of a few concepts can be done to others instead.")
    rng = np.random.default_rng(seed)
    plans = []
    for _ in range(draws):
        others = dict(zip(named, rng.choice(free, len(named), replace=False).tolist(), strict=True))
        changes = [
            replace(change, concepts=tuple(others[c] for c in edited_concepts(split, Edit((change,)))))
            for change in edit.changes
        ]
        plans.append(plan_edit(split, Edit(tuple(changes))))
    several = "1 other" if len(named) == 1 else f"{len(named)} others"
    return Intervention("random concept", f"{several}, {draws} draws", tuple(plans))


def _others(
    units: Sequence[tuple[int, int]], numbers: dict[int, list[int]], rng: np.random.Generator
) -> dict[tuple[int, int], tuple[int, int]]:
    """Draw for each unit another sub-unit of its channel that is not edited, none twice; itself if none is left."""
    edited, free = set(units), {}
    for channel, several in numbers.items():
        free[channel] = rng.permutation([k for k in several if (channel, k) not in edited]).tolist()
    order = [units[int(place)] for place in rng.permutation(len(units))]  # who is left with itself is drawn, too
    return {(channel, k): (channel, int(free[channel].pop()) if free[channel] else k) for channel, k in order}


def _values_for(split: Splittable, change: Change, units: Sequence[tuple[int, int]]) -> tuple[float, ...]:
    """Return a change's values for other units: those that count in means on a concept are counted out."""
    if not change.concepts or change.kind == "scale":
        return change.values
    if change.kind == "clamp":
        raise EditError("A clamp on a concept cannot be done to random sub-units: each would need bounds of its own.")
    pairs = torch.tensor(units)
    means = split.means_on_concepts[pairs[:, 0], pairs[:, 1]]
    return tuple((change.values[0] * means).tolist())


def most_selective(values: Tensor, is_target: Tensor, *, both_signs: bool = False) -> int:
    """Return the column of values (n, u) that tells the target's images best: the largest d'.

    ``d' = (mean on the target - mean on the others) / root of their mean variance``; with ``both_signs`` its absolute
    value counts.
    """
    here, there = values[is_target], values[~is_target]
    spread = ((here.var(0, correction=0) + there.var(0, correction=0)) / 2).sqrt()
    distance = (here.mean(0) - there.mean(0)) / spread.clamp(min=1e-12)
    distance = distance.masked_fill(spread == 0, 0)
    return int((distance.abs() if both_signs else distance).argmax())
