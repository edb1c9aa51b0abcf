"""Routing: to which sub-units of a channel each contribution goes.

A `Routing` is a plain value, decided first and applied later. Most routings give each contribution one owner: one small
whole number for each pair of channel and source. The published rule may give it to several sub-units at once, which
then share its weight (`elude_nb.core.partition`). Either way the weights of a channel's units add up to the channel's
bit for bit. Number 0 is the unit of what no sub-unit owns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from elude_nb._util.checks import check_count
from elude_nb._util.words import counted
from elude_nb.core.concepts import ConceptBook
from elude_nb.core.partition import equal_share

NO_CONCEPT = -1
CONTRIBUTIONS_AT_ONCE = 1 << 22  # 16 MB of float32, a few times over
MOST_UNITS = 255  # routes are kept as bytes; 0 is what no sub-unit owns


@dataclass(frozen=True, eq=False)
class Routing:
    """Which sub-units each contribution goes to.

    Attributes
    ----------
    routes
        (d, s), uint8: the sub-unit of channel ``j`` that alone takes the contribution of source ``i``. 0 where there is
        none: then unit 0 takes it, unless it is shared.
    concepts
        (d, k), int64: the concept of each sub-unit 1 to k, or -1 where a sub-unit is empty or belongs to no concept
        of the book.
    reasons
        For each channel, why it was split or not.
    owner_sets
        Which sub-units share each contribution, as bits: (d, s, ceil(k / 8)), uint8; bit ``b`` of byte ``a`` stands for
        sub-unit ``8 a + b + 1``. 0 where there is one owner or none. ``None`` if nothing is shared.

    Raises
    ------
    ValueError
        If a tensor has another shape or dtype, a route points to a sub-unit that does not exist, or a contribution has
        both an owner and sharers, or a single sharer.
    """

    routes: Tensor
    concepts: Tensor
    reasons: tuple[str, ...]
    owner_sets: Tensor | None = None

    def __post_init__(self) -> None:
        d = len(self.routes) if self.routes.ndim else 0
        if self.routes.ndim != 2 or self.routes.dtype != torch.uint8:
            raise ValueError(f"routes must be (d, s) of uint8, not {tuple(self.routes.shape)} of {self.routes.dtype}.")
        if self.concepts.ndim != 2 or len(self.concepts) != d or len(self.reasons) != d:
            raise ValueError(f"{d} channels need {d} rows of concepts and {d} reasons.")
        if self.routes.numel() and int(self.routes.max()) > self.units:
            raise ValueError(f"A route points to sub-unit {int(self.routes.max())}; there are {self.units}.")
        if self.concepts.dtype != torch.int64:
            raise ValueError(f"concepts must be of torch.int64, not {self.concepts.dtype}.")
        if self.owner_sets is not None:
            self._check_owner_sets(self.owner_sets)

    def _check_owner_sets(self, sets: Tensor) -> None:
        wanted = (*self.routes.shape, -(-self.units // 8))
        if tuple(sets.shape) != wanted or sets.dtype != torch.uint8:
            raise ValueError(f"owner_sets must be {wanted} of uint8, not {tuple(sets.shape)} of {sets.dtype}.")
        for channel in range(len(self.routes)):  # one at a time: unpacked, bits are eight times as much
            members = unpack_bits(sets[channel], 8 * sets.shape[-1])
            count = members.sum(1)
            if bool(members[:, self.units :].any()) or bool((count == 1).any()):
                raise ValueError(f"Channel {channel}: contributions are shared by sub-units that do not exist, or one.")
            if bool(((count > 0) & (self.routes[channel] > 0)).any()):
                raise ValueError(f"Channel {channel}: a contribution has an owner and is shared.")

    @property
    def units(self) -> int:
        """Return k, the largest number of sub-units of a channel, unit 0 not counted."""
        return self.concepts.shape[1]

    @property
    def nbytes(self) -> int:
        """Memory that routes and owner sets take, in bytes."""
        return int(self.routes.nbytes + (0 if self.owner_sets is None else self.owner_sets.nbytes))

    def members(self, channel: int) -> Tensor:
        """Return which units have a part in each source's contribution to a channel, (k + 1, s), bool."""
        numbers = torch.arange(self.units + 1, device=self.routes.device)[:, None]
        found = self.routes[channel] == numbers
        if self.owner_sets is not None:
            sharing = unpack_bits(self.owner_sets[channel], self.units).T
            found[1:] |= sharing
            found[0] &= ~sharing.any(0)
        return found

    def fractions(self, channel: int) -> Tensor:
        """Return which part of each source's contribution to a channel each unit has, (k + 1, s), float64."""
        members = self.members(channel)
        return members.double() / members.sum(0)

    def sizes(self) -> Tensor:
        """Return how many sources each unit has a part in, (d, k + 1)."""
        return self._sizes.clone()

    def exclusive_sizes(self) -> Tensor:
        """Return how many sources each unit owns alone, (d, k + 1); see `live`."""
        return self._exclusive_sizes.clone()

    @cached_property
    def _exclusive_sizes(self) -> Tensor:  # millions of routes: counted once, since panels ask at every step
        # One channel at a time: as indices of all, routes would take eight times their memory.
        rows = [row.bincount(minlength=self.units + 1) for row in self.routes]
        counts = torch.stack(rows) if rows else self.concepts.new_zeros(0, self.units + 1)
        if self.owner_sets is not None:
            counts[:, 0] -= (self.owner_sets.amax(2) > 0).sum(1)
        return counts

    @cached_property
    def _sizes(self) -> Tensor:
        counts = self.exclusive_sizes()
        if self.owner_sets is not None:
            counts[:, 1:] += torch.stack([unpack_bits(bits, self.units).sum(0) for bits in self.owner_sets])
        return counts

    def live(self) -> Tensor:
        """Return which sub-units own a source alone, (d, k + 1), bool; unit 0 is none of them.

        The others are dead: empty, or (under the published rule) with a part only in what several share. Dead sub-units
        have no concept, and scores, searches, names, quizzes and galleries leave them out.
        """
        alone = self.exclusive_sizes() > 0
        alone[:, 0] = False
        return alone

    def live_rows(self) -> tuple[Tensor, Tensor]:
        """Return the live sub-units in order: their channels and their numbers, (u,) each."""
        channels, units = self.live().nonzero(as_tuple=True)
        return channels, units

    def is_split(self) -> Tensor:
        """Return which channels were split, (d,), bool; the others are wholly in their unit 0."""
        return self.sizes()[:, 1:].amax(1) > 0

    def masked(self, weight: Tensor, channels: Tensor, units: Tensor) -> Tensor:
        """Return the weights of chosen units, (u, s * kernel); those of a channel's units add up to its row exactly.

        A unit has the channel's weight where it owns the contribution, a share of it where several do, and 0 elsewhere.
        """
        kernel = weight.shape[1] // self.routes.shape[1]
        if self.owner_sets is None:
            others = self.routes[channels] != units[:, None]
            return weight[channels].masked_fill_(others if kernel == 1 else others.repeat_interleave(kernel, dim=1), 0)
        made = weight.new_zeros(len(channels), weight.shape[1])
        for channel in channels.unique().tolist():
            rows = (channels == channel).nonzero().flatten()
            members = self.members(channel).to(weight.device)
            # Unit 0 has a part in what nobody owns alone or shares; it is never one of several.
            count = members.sum(0).repeat_interleave(kernel)
            rank = (members.cumsum(0) - members.long())[units[rows]].repeat_interleave(kernel, dim=1)
            part = members[units[rows]].repeat_interleave(kernel, dim=1)
            whole = weight[channel].expand(len(rows), -1)
            share = equal_share(whole, count.expand_as(rank), torch.minimum(rank, count - 1))
            made[rows] = share.masked_fill(~part, 0)
        return made

    def add_by_unit(self, values: Tensor, channels: Sequence[int] | None = None) -> Tensor:
        """Return the sums of values over each unit's sources, (c, k + 1), from values (c, s) of channels, or of all.

        What several units share is split evenly between them.
        """
        routes = self.routes if channels is None else self.routes[list(channels)]
        sums = values.new_zeros(len(values), self.units + 1)
        if self.owner_sets is None:
            return sums.scatter_add_(1, routes.to(values.device).long(), values)
        for row, channel in enumerate(range(len(routes)) if channels is None else channels):
            sums[row] = self.fractions(channel).to(values) @ values[row]
        return sums

    def mean_shares(self) -> Tensor:
        """Return the share of a channel's weights that each unit has on average, (d, k + 1), float64."""
        sources, device = self.routes.shape[1], self.routes.device
        return self.add_by_unit(torch.full(self.routes.shape, 1 / sources, dtype=torch.float64, device=device))

    def rows(self) -> tuple[Tensor, Tensor]:
        """Return the units there are, in order: their channels and their numbers, (u,) each.

        Every channel has a unit 0; a split one has its non-empty sub-units after it.
        """
        present = self.sizes() > 0
        present[:, 0] = True
        channels, units = present.nonzero(as_tuple=True)
        return channels, units

    def only(self, channels: Tensor) -> Routing:
        """Return the same routing with all but these channels not split."""
        kept = torch.zeros(len(self.routes), dtype=torch.bool)
        kept[channels] = True
        reasons = tuple(r if k else "not split: not asked for" for r, k in zip(self.reasons, kept, strict=True))
        concepts = self.concepts.masked_fill(~kept[:, None], NO_CONCEPT)
        sets = None if self.owner_sets is None else self.owner_sets * kept[:, None, None]
        return Routing(self.routes * kept[:, None], concepts, reasons, sets)

    def of_channel(self, channel: int) -> Routing:
        """Return the routing of one channel, d = 1."""
        here = slice(channel, channel + 1)
        sets = None if self.owner_sets is None else self.owner_sets[here]
        return Routing(self.routes[here], self.concepts[here], self.reasons[here], sets)

    def of_sources(self, first: int, last: int) -> Routing:
        """Return the routing of the sources ``first`` to ``last`` alone, ``last`` not included."""
        sets = None if self.owner_sets is None else self.owner_sets[:, first:last]
        return replace(self, routes=self.routes[:, first:last], owner_sets=sets)

    def __repr__(self) -> str:
        d, s = self.routes.shape
        return f"Routing(d={d}, s={s:,}, k={self.units}, {counted(int(self.is_split().sum()), 'channel')} split)"


def pack_bits(members: Tensor) -> Tensor:
    """Return bool (..., k) as bits in bytes, (..., ceil(k / 8))."""
    padded = torch.nn.functional.pad(members.to(torch.uint8), (0, -members.shape[-1] % 8))
    places = 1 << torch.arange(8, dtype=torch.uint8, device=members.device)
    packed: Tensor = (padded.unflatten(-1, (-1, 8)) * places).sum(-1, dtype=torch.uint8)
    return packed


def unpack_bits(packed: Tensor, k: int) -> Tensor:
    """Undo `pack_bits`: return bool (..., k)."""
    places = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed[..., None] >> places) & 1).flatten(-2)[..., :k].bool()


def shuffled(routing: Routing, seed: int = 0) -> Routing:
    """Return a random routing in which every unit has as many sources, owned and shared, as before."""
    generator = torch.Generator().manual_seed(check_count("seed", seed, 0, 2**63 - 1))
    order = torch.rand(routing.routes.shape, generator=generator).argsort(dim=1).to(routing.routes.device)
    sets = routing.owner_sets
    if sets is not None:
        sets = sets.gather(1, order[..., None].expand_as(sets))
    return replace(routing, routes=routing.routes.gather(1, order), owner_sets=sets)


def values_on_groups(weight: Tensor, routing: Routing, book: ConceptBook) -> Tensor:
    """Return the mean of each live sub-unit over each group of tokens, above its overall mean, (g, u).

    Sub-units are in the order of `Routing.live_rows`; no forward pass is needed.
    """
    means, kernel, live = book.mean_sources(), weight.shape[1] // routing.routes.shape[1], routing.live()
    found = []
    for channel in live.any(1).nonzero().flatten().tolist():
        mine = routing.fractions(channel)[live[channel]].to(means).repeat_interleave(kernel, dim=1)  # (u, s * kernel)
        found.append(means @ (weight[channel] * mine).T)
    return torch.cat(found, dim=1) if found else means.new_zeros(len(book), 0)


def means_on_concepts(weight: Tensor, routing: Routing, book: ConceptBook) -> Tensor:
    """Return the mean of each unit on its own concept, (d, k + 1), from W (d, s * kernel); 0 where it has none."""
    means, kernel = book.mean_sources(), weight.shape[1] // routing.routes.shape[1]
    found = torch.zeros(len(weight), routing.units + 1, dtype=means.dtype)
    for channel in routing.is_split().nonzero().flatten().tolist():
        concepts = routing.concepts[channel]
        products = (weight[channel] * means[concepts.clamp(min=0)]).unflatten(1, (-1, kernel)).sum(2)
        found[channel, 1:] = (
            (products * routing.fractions(channel)[1:].to(products)).sum(1).masked_fill(concepts == NO_CONCEPT, 0)
        )
    return found
