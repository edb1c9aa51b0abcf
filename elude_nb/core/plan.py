"""From an edit to tensors: which sub-units of a split it reads, and by how much it moves their channels.

With ``x`` the centred activation of a sub-unit, a change asks for ``x + w (f(x) - x)``; the channel moves by what its
sub-units move. Nothing else of the site is touched: the sub-units that an edit does not name are not even computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from elude_nb._util.arithmetic import own_arithmetic
from elude_nb._util.checks import near_matches, shortly
from elude_nb.core.concepts import ConceptBook
from elude_nb.core.edit import Change, Edit
from elude_nb.core.routing import NO_CONCEPT, Routing
from elude_nb.errors import EditError
from elude_nb.models.hooks import source_tokens
from elude_nb.models.load import Model
from elude_nb.models.sites import Site

_MANY_ROWS = 1024  # of a product, for which a matrix is copied to be multiplied sooner
_ROWS_AT_ONCE = 256  # rows of W read together, so that many sub-units need no second copy of all of them


class Splittable(Protocol):
    """What planning wants to know of a `Disentanglement`."""

    @property
    def model(self) -> Model: ...  # noqa: D102
    @property
    def site(self) -> Site: ...  # noqa: D102
    @property
    def routing(self) -> Routing: ...  # noqa: D102
    @property
    def book(self) -> ConceptBook: ...  # noqa: D102
    @property
    def names(self) -> Mapping[int, str]: ...  # noqa: D102
    @property
    def weight(self) -> Tensor: ...  # noqa: D102
    @property
    def means_on_concepts(self) -> Tensor: ...  # noqa: D102
    @property
    def identity(self) -> str: ...  # noqa: D102


@dataclass(frozen=True, eq=False)
class _Part:
    """A unit that is edited, and which of its sources are, (s,), bool: ``None`` for all."""

    channel: int
    number: int
    sources: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Step:
    """One `Change`, its sub-units looked up.

    Attributes
    ----------
    change
        The change.
    rows
        Which of the plan's sub-units it is done to, (r,).
    reference
        Where activations are counted from, on the centred scale, (r,).
    values
        ``v`` of the change on the scale of the channels, (r,), or (2, r) for the bounds of a clamp.
    weights
        Share of the change that each of the plan's tokens gets, (t,), or ``None`` for 1.
    start
        The forward pass at which the change's schedule begins.
    signs
        1, or -1 for a sub-unit that is low on its concept, (r,): `Change.strongest` counts from this side, and
        ``about="others"`` changes what exceeds the reference on it.
    """

    change: Change
    rows: Tensor
    reference: Tensor
    values: Tensor
    weights: Tensor | None
    start: int = 0
    signs: Tensor | None = None

    def increment(self, activations: Tensor) -> Tensor:
        """Return ``f(x) - x`` for activations (..., r): exactly 0 where the change asks for nothing."""
        return increment(self.change.kind, activations, self.reference, self.values, self.side)

    @property
    def side(self) -> Tensor | None:
        """On which side of the reference activations are changed, (r,), 1 or -1; ``None`` for both."""
        return self.signs if self.change.about == "others" else None

    def weighted(self, activations: Tensor) -> Tensor:
        """Return the increment (n, t, r) at full strength, with the weights of the tokens, at the strongest of them."""
        found = self.increment(activations)
        if self.weights is not None:
            found = found * self.weights[:, None]
        if self.change.strongest is None or self.signs is None:
            return found
        return at_strongest(found, activations * self.signs, self.change.strongest, self.weights)


def at_strongest(increments: Tensor, activations: Tensor, count: int, weights: Tensor | None) -> Tensor:
    """Return increments (n, t, r) where each sub-unit is among its ``count`` highest in the image, and 0 elsewhere.

    Tokens with weight 0, (t,), are not among these.
    """
    if weights is not None:
        activations = activations.masked_fill((weights == 0)[:, None], -torch.inf)
    places = activations.topk(min(count, activations.shape[1]), dim=1).indices
    return increments * torch.zeros_like(increments).scatter(1, places, 1.0)


def increment(kind: str, activations: Tensor, reference: Tensor, values: Tensor, side: Tensor | None = None) -> Tensor:
    """Return ``f(x) - x`` for a kind of change, (..., r); see `Change` and `Step`."""
    match kind:
        case "scale":
            beyond = activations - reference
            if side is not None:
                beyond = (beyond * side).clamp_min(0) * side
            return (values - 1) * beyond
        case "set":
            return reference + values - activations
        case "clamp":
            low, high = values[0] + reference, values[1] + reference
            return torch.minimum(torch.maximum(activations, low), high) - activations
        case _:
            return values.expand_as(activations)


@dataclass(frozen=True, eq=False)
class Plan:
    """How an edit moves the channels of a site.

    Attributes
    ----------
    matrix, offset
        From the sources to ``u`` numbers a token, (s * kernel, u) and (u,): centred activations of sub-units, or, if
        there are no ``steps``, already what is added to the channels.
    channels
        The channel of each number, (u,).
    steps
        What is done to the activations, in order.
    positions
        The tokens that are edited, or ``None`` for all.
    tokens
        How many tokens the site has; only these many will do where the edit tells tokens apart.
    """

    matrix: Tensor
    offset: Tensor
    channels: Tensor
    steps: tuple[Step, ...]
    positions: Tensor | None
    tokens: int

    def __len__(self) -> int:
        return len(self.channels)

    def to(self, device: torch.device) -> Plan:
        """Return the same plan on another device."""
        steps = tuple(
            replace(
                step,
                rows=step.rows.to(device),
                reference=step.reference.to(device),
                values=step.values.to(device),
                weights=None if step.weights is None else step.weights.to(device),
                signs=None if step.signs is None else step.signs.to(device),
            )
            for step in self.steps
        )
        return Plan(
            self.matrix.to(device),
            self.offset.to(device),
            self.channels.to(device),
            steps,
            None if self.positions is None else self.positions.to(device),
            self.tokens,
        )

    def change(self, activations: Tensor, number: int = 0) -> Tensor:
        """Return by how much each number's channel moves, (n, t, u), in forward pass ``number``."""
        if not self.steps:
            return activations
        moved = torch.zeros_like(activations)
        for step in self.steps:
            part = (activations + moved)[..., step.rows]  # what the steps before have made of them
            strength = step.change.strength_at(number - step.start)
            moved = moved.index_add(-1, step.rows, strength * step.weighted(part))
        return moved

    def added(self, change: Tensor, tokens: Tensor) -> Tensor:
        """Return tokens (n, t, d) with a change (n, t', u) added to their channels."""
        change = change.to(tokens.dtype)
        if self.positions is None:
            return tokens.index_add(-1, self.channels, change)
        moved = tokens.clone()
        moved[:, self.positions] = tokens[:, self.positions].index_add(-1, self.channels, change)
        return moved


class Accumulator:
    """Gather the numbers of a plan from one forward pass, source by source."""

    def __init__(self, plan: Plan, site: Site) -> None:
        self.plan, self._terms = plan, len(site.terms)
        self._pieces = plan.matrix.split([term.sources * site.kernel for term in site.terms])
        self._sum: Tensor | None = None
        self._seen = 0

    def see(self, number: int, layer: nn.Module, inputs: Tensor) -> None:
        """Take the inputs of term ``number``."""
        self.see_tokens(number, source_tokens(layer, inputs))

    def see_tokens(self, number: int, tokens: Tensor) -> None:
        """Take the sources (n, t, s_term * kernel) of term ``number``."""
        if number == 0:  # a pass that failed may have left its sum
            self._sum, self._seen = None, 0
        plan, piece = self.plan, self._pieces[number]
        if plan.positions is not None:
            if tokens.shape[1] != plan.tokens:
                raise EditError(
                    f"The edit chooses among {plan.tokens} tokens, but these images have {tokens.shape[1]}: give "
                    "images of the model's input size, or edit all tokens."
                )
            tokens = tokens[:, plan.positions]
        with torch.autocast(tokens.device.type, enabled=False):  # differences of large sums need their digits
            part = _product(tokens.to(piece.dtype), piece)
        self._sum = part + plan.offset if self._sum is None else self._sum + part
        self._seen += 1

    @property
    def whole(self) -> bool:
        """Whether all source layers of the site have been seen."""
        return self._seen == self._terms

    def take(self, number: int = 0) -> Tensor:
        """Return by how much the plan's numbers move their channels, (n, t, u), in forward pass ``number``."""
        if self._sum is None or not self.whole:
            raise RuntimeError(
                f"{self._seen} of {self._terms} source layers ran in this forward pass; the network does not run as it "
                "did when its site was found."
            )
        found, self._sum, self._seen = self._sum, None, 0
        return self.plan.change(found, number)


def _product(tokens: Tensor, matrix: Tensor) -> Tensor:
    """Return tokens (n, t, s) times a matrix (s, u)."""
    units = matrix.shape[1]
    if not units % 8 or tokens.shape[:2].numel() < _MANY_ROWS:
        return tokens @ matrix
    # On a CPU, MKL takes up to 1.6 times as long for 347 columns as for 352.
    return (tokens @ nn.functional.pad(matrix, (0, -units % 8)))[..., :units]


@own_arithmetic()
def plan_edit(split: Splittable, edit: Edit, starts: Sequence[int] | None = None) -> Plan:
    """Look an edit up in a split.

    Parameters
    ----------
    split
        The split.
    edit
        The edit.
    starts
        For each change, the forward pass at which its schedule begins; 0 if not given.

    Raises
    ------
    EditError
        If the split lacks a concept, unit or token, a mask has another shape, or no source is exclusive enough. Nothing
        has run by then.
    """
    known, parts = look_up(split, edit)
    begun = zip(known, starts or [0] * len(known), strict=True)
    wanted = [(change, start, several, weight) for (change, several, weight), start in begun if change.strength]
    place = {(part.channel, part.number): row for row, part in enumerate(parts)}
    channels = torch.tensor([part.channel for part in parts], dtype=torch.int64)
    count, nothing = split.site.layout.count, split.weight.new_zeros(split.weight.shape[1], 0)
    positions, weights = _shared_positions([weight for *_, weight in wanted], split.weight.dtype)
    # An edit that is affine reads a number a channel; its sub-units' weights are never there all at once.
    affine = all(_is_affine(change, weight) for (change, *_), weight in zip(wanted, weights, strict=True))
    matrix = nothing if affine else torch.cat([nothing, *(rows.T for rows in _weight_rows(split, parts))], dim=1)
    mean = split.book.source_mean().to(split.weight.dtype)
    means = _raw_means(split, parts, mean) if affine else mean @ matrix
    steps = []
    for (change, start, several, _), weight in zip(wanted, weights, strict=True):
        rows = torch.tensor([place[unit] for unit in several], dtype=torch.int64)
        match change.about:
            case "mean":
                reference = torch.zeros_like(means[rows])
            case "zero":
                reference = -means[rows]
            case _:
                reference = _highest_of_others(split, matrix[:, rows], several)
        values = _values(split, change, [parts[place[unit]] for unit in several])
        step = Step(change, rows, reference, values, weight, start, _signs(split, several).to(values.dtype))
        if not _is_identity(step):
            steps.append(step)
    if not steps:
        return Plan(nothing, means.new_zeros(0), channels[:0], (), None, count)
    if affine:
        return _collapsed(split, parts, _affine(steps, len(parts), means), positions)
    return Plan(matrix.contiguous(), -means, channels, tuple(steps), positions, count)


_Known = tuple[Change, list[tuple[int, int]], Tensor | None]
"""A change, its sub-units, and the share of it that each token gets."""


def look_up(split: Splittable, edit: Edit) -> tuple[list[_Known], list[_Part]]:
    """Return what the changes of an edit are done to, and the units of those that do something.

    Raises what `plan_edit` raises, and computes next to nothing.
    """
    # All are looked up, also those that do nothing: a mistake is told at once, not when a slider leaves 0.
    known = [(change, units_of(split, change), token_weights(split, change)) for change in edit.changes]
    wanted = [(unit, change.exclusive) for change, several, _ in known if change.strength for unit in several]
    return known, _parts_of(split, wanted)


def units_of(split: Splittable, change: Change) -> list[tuple[int, int]]:
    """Return the sub-units, (channel, number), that a change is done to."""
    if change.units:
        return _known_units(split, change)
    found: list[tuple[int, int]] = []
    for concept in change.concepts:
        number = concept_number(split, concept)
        channels, places = (split.routing.concepts == number).nonzero(as_tuple=True)
        if not len(channels):
            raise EditError(f"No channel has a sub-unit of concept {concept!r}; see split.units for those that have.")
        found += zip(channels.tolist(), (places + 1).tolist(), strict=True)
    return list(dict.fromkeys(found))


def check_splittable(split: object) -> None:
    """Raise ``TypeError`` unless this is a disentanglement, or can stand in for one."""
    if not all(hasattr(split, part) for part in ("model", "site", "routing", "book")):
        cure = "a Disentanglement, from disentangle(...) or Disentanglement.load(...)"
        raise TypeError(f"split must be {cure}, not {shortly(split)}.")


def concept_number(split: Splittable, concept: int | str) -> int:
    """Return a concept's number from its number or name.

    Raises
    ------
    EditError
        If the split has no such concept.
    """
    if isinstance(concept, str):
        named = {name: number for number, name in split.names.items()}
        if concept not in named:
            known = f"names are {sorted(named)}" if named else "no concept has a name yet (see with_names)"
            raise EditError(f"No concept is called {concept!r}; {known}.{near_matches(concept, named)}")
        return named[concept]
    if not 0 <= concept < len(split.book.counts):
        raise EditError(f"There is no concept {concept}; this split has 0 to {len(split.book.counts) - 1}.")
    return concept


def token_weights(split: Splittable, change: Change) -> Tensor | None:
    """Return the share of a change that each token gets, (t,); ``None`` if all get it whole."""
    layout = split.site.layout
    if change.mask is not None:
        weights = torch.zeros(layout.count, dtype=torch.float64)
        weights[layout.classes + layout.registers :] = _patch_weights(
            split, torch.tensor(change.mask, dtype=torch.float64)
        )
        return weights
    if change.tokens == "all":
        return None
    if isinstance(change.tokens, str):
        try:
            chosen = layout.positions(change.tokens)
        except ValueError as error:
            raise EditError(str(error)) from error
    else:
        if max(change.tokens) >= layout.count:
            raise EditError(f"There is no token {max(change.tokens)}; {split.site.name!r} has 0 to {layout.count - 1}.")
        chosen = torch.tensor(change.tokens)
    return torch.zeros(layout.count, dtype=torch.float64).index_fill(0, chosen, 1)


def _patch_weights(split: Splittable, mask: Tensor) -> Tensor:
    """Return a mask over patches, or over pixels, as one weight a patch, (h * w,)."""
    grid, pixels = split.site.layout.grid, tuple(split.model.input_size[-2:])
    if grid is None:
        raise EditError(f"{split.site.name!r} has no patches for a mask to lie over.")
    if tuple(mask.shape) == pixels and pixels != grid:
        mask = nn.functional.adaptive_avg_pool2d(mask[None], grid)[0]
    if tuple(mask.shape) != tuple(grid):
        raise EditError(f"The mask is {tuple(mask.shape)}; it must be {tuple(grid)} (patches) or {pixels} (pixels).")
    return mask.flatten()


def _known_units(split: Splittable, change: Change) -> list[tuple[int, int]]:
    sizes, concepts = split.routing.sizes(), split.routing.concepts
    for channel, number in change.units:
        if not 0 <= channel < len(sizes):
            raise EditError(f"There is no channel {channel}; {split.site.name!r} has 0 to {len(sizes) - 1}.")
        has = [0, *((sizes[channel, 1:] > 0).nonzero().flatten() + 1).tolist()]
        if number not in has:
            raise EditError(f"There is no unit {(channel, number)}; channel {channel} has units {has}.")
        if not number or int(concepts[channel, number - 1]) == NO_CONCEPT:
            for asked in ("exclusive", "about"):
                if getattr(change, asked) not in {None, "mean", "zero"}:
                    raise EditError(
                        f"{asked}={getattr(change, asked)!r}: unit {(channel, number)} has no concept to compare."
                    )
    return list(change.units)


def _parts_of(split: Splittable, wanted: Sequence[tuple[tuple[int, int], float | None]]) -> list[_Part]:
    """Return the units that are edited, each once and in order, with those of their sources that are.

    Raises
    ------
    EditError
        If a unit has two different ``exclusive``, or no unit has a source that is exclusive enough.
    """
    on_concepts = split.book.mean_sources() if any(exclusive is not None for _, exclusive in wanted) else None
    found: dict[tuple[int, int], float | None] = {}
    for unit, exclusive in wanted:
        if found.setdefault(unit, exclusive) != exclusive:
            raise EditError(
                f"Unit {unit} is edited with exclusive={found[unit]} and with {exclusive}; apply two edits, one inside "
                "the other."
            )
    parts = [
        _Part(*unit, None if exclusive is None else exclusive_sources(split, *unit, exclusive, on_concepts))
        for unit, exclusive in sorted(found.items())
    ]
    if parts and not any(part.sources is None or bool(part.sources.any()) for part in parts):
        largest = max(exclusive for exclusive in found.values() if exclusive is not None)
        raise EditError(f"No source of these sub-units is exclusive at {largest}: give a larger number, up to 1.")
    return parts


def exclusive_sources(
    split: Splittable, channel: int, number: int, exclusive: float, on_concepts: Tensor | None = None
) -> Tensor:
    """Return which sources of a sub-unit are exclusive to its concept, (s,), bool; see `Change.exclusive`.

    ``on_concepts`` are the book's mean sources (g, s * kernel), where they are known already.
    """
    on_concepts = split.book.mean_sources() if on_concepts is None else on_concepts
    concepts = split.routing.concepts[channel]
    mine = int(concepts[number - 1])
    others = concepts[(concepts != NO_CONCEPT) & (concepts != mine)]
    products = split.weight[channel] * on_concepts[[mine, *others.tolist()]].to(split.weight.dtype)
    gains = products.unflatten(1, (-1, split.site.kernel)).sum(2)  # (1 + others, s)
    gains = gains * torch.where(split.means_on_concepts[channel, number] < 0, -1, 1)  # where it is low on its concept
    own = gains[0]
    second = gains[1:].amax(0) if len(others) else torch.full_like(own, -torch.inf)
    found: Tensor = split.routing.members(channel)[number] & (own > 0) & (second <= exclusive * own)
    return found


def _weight_rows(split: Splittable, parts: Sequence[_Part]) -> Iterator[Tensor]:
    """Yield the weights of units, (rows, s * kernel) for some rows at a time."""
    for start in range(0, len(parts), _ROWS_AT_ONCE):
        some = parts[start : start + _ROWS_AT_ONCE]
        channels, numbers = torch.tensor([(part.channel, part.number) for part in some]).T
        rows = split.routing.masked(split.weight, channels, numbers)
        for row, part in zip(rows, some, strict=True):
            if part.sources is not None:
                row.masked_fill_(~part.sources.repeat_interleave(split.site.kernel), 0)
        yield rows


def _raw_means(split: Splittable, parts: Sequence[_Part], mean: Tensor) -> Tensor:
    """Return each unit's sum of contributions for the mean sources over the discovery (s * kernel,), (u,)."""
    return torch.cat([mean.new_zeros(0), *(rows @ mean for rows in _weight_rows(split, parts))])


def _highest_of_others(split: Splittable, matrix: Tensor, units: Sequence[tuple[int, int]]) -> Tensor:
    """Return the highest mean of each unit on any concept that the units do not have, at least its mean, (u,).

    On the centred scale. For a unit that is low on its concept it is the lowest, at most its mean. ``matrix`` has the
    weights of the units, (s * kernel, u).
    """
    channels, numbers = torch.tensor(units).T
    edited = split.routing.concepts[channels, numbers - 1].unique()
    others = torch.ones(len(split.book.counts), dtype=torch.bool).index_fill(0, edited, False)
    on_concepts = split.book.mean_sources()[others].to(split.weight.dtype)  # (g, s * kernel)
    signs = _signs(split, units).to(split.weight.dtype)
    means = (on_concepts @ matrix).T
    return (means * signs[:, None]).max(1).values.clamp_min(0) * signs if len(on_concepts) else torch.zeros_like(signs)


def _values(split: Splittable, change: Change, parts: Sequence[_Part]) -> Tensor:
    """Return a change's values for each unit, (r,) or (2, r): those of concepts count in means on the concept."""
    dtype = split.weight.dtype
    if change.kind == "clamp":
        values = torch.tensor(change.values, dtype=dtype)[:, None].expand(2, len(parts))
    else:
        values = torch.tensor(change.values, dtype=dtype).expand(len(parts))
    if not change.concepts or change.kind == "scale":
        return values
    channels, numbers = torch.tensor([(part.channel, part.number) for part in parts]).T
    means = split.means_on_concepts[channels, numbers].to(dtype)
    if change.exclusive is not None:
        on_concepts = split.book.mean_sources().to(dtype)[split.routing.concepts[channels, numbers - 1]]
        means = (torch.cat(list(_weight_rows(split, parts))) * on_concepts).sum(1)
    if change.kind != "clamp":
        return values * means
    low, high = torch.where(values == 0, 0, values * means)  # a bound of 0 is 0, however small the mean
    # A sub-unit that is low on its concept has its bounds the other way round; one that is neither has none.
    bounds = torch.stack([torch.minimum(low, high), torch.maximum(low, high)])
    return torch.where(means == 0, torch.tensor([[-torch.inf], [torch.inf]], dtype=dtype), bounds)


def _signs(split: Splittable, units: Sequence[tuple[int, int]]) -> Tensor:
    """Return -1 for units that are low on their concept and 1 for others, (r,)."""
    channels, numbers = torch.tensor(units).T
    return torch.where((numbers > 0) & (split.means_on_concepts[channels, numbers] < 0), -1.0, 1.0)


def _is_identity(step: Step) -> bool:
    """Say whether a step can be left out: it asks for what is there already."""
    return (step.change.kind == "scale" and bool((step.values == 1).all())) or (
        step.change.kind == "add" and bool((step.values == 0).all())
    )


def _shared_positions(weights: list[Tensor | None], dtype: torch.dtype) -> tuple[Tensor | None, list[Tensor | None]]:
    """Return the tokens that any step edits, and each step's weights at these; ``None`` for all tokens, and for 1."""
    chosen = [weight.to(dtype) for weight in weights if weight is not None]
    if not chosen or len(chosen) < len(weights):
        return None, [None if weight is None else weight.to(dtype) for weight in weights]
    positions = (torch.stack(chosen) != 0).any(0).nonzero().flatten()
    here = [weight[positions] for weight in chosen]
    return positions, [None if bool((weight == 1).all()) else weight for weight in here]


def _is_affine(change: Change, weights: Tensor | None) -> bool:
    """Say whether a change adds to activations what is affine in them, at every token and in every pass alike."""
    everywhere = weights is None and change.strongest is None
    linear = change.kind != "clamp" and change.about != "others"
    return linear and everywhere and not isinstance(change.strength, tuple)


def _affine(steps: Sequence[Step], units: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return gain and shift (u,) by which all steps together move activations, where each is affine."""
    gain, shift = torch.zeros(units, dtype=like.dtype), torch.zeros(units, dtype=like.dtype)
    for step in steps:
        change, rows = step.change, step.rows
        # The activation is now (1 + gain) x + shift; increments are affine in it.
        at_zero = step.increment(shift[rows])
        slope = {"scale": step.values - 1, "set": -torch.ones_like(step.values)}.get(change.kind, 0 * step.values)
        strength = change.strength_at(0)  # there is no schedule
        gain[rows] += strength * slope * (1 + gain[rows])
        shift[rows] += strength * at_zero
    return gain, shift


def _collapsed(
    split: Splittable, parts: Sequence[_Part], affine: tuple[Tensor, Tensor], positions: Tensor | None
) -> Plan:
    """Return a plan that reads one number a channel, however many of its sub-units are edited."""
    edited, place = torch.tensor([part.channel for part in parts]).unique(return_inverse=True)
    gain, shift = affine
    rows = split.weight.new_zeros(len(edited), split.weight.shape[1])
    start = 0
    for part in _weight_rows(split, parts):
        stop = start + len(part)
        rows.index_add_(0, place[start:stop], gain[start:stop, None] * part)
        start = stop
    offset = shift.new_zeros(len(edited)).index_add_(0, place, shift) - rows @ split.book.source_mean().to(rows.dtype)
    return Plan(rows.T.contiguous(), offset, edited, (), positions, split.site.layout.count)
