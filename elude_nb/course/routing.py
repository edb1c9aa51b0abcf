"""Exercise 2: the published routing (arXiv 2605.31304, section 3), by hand and in code, and an exact split."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from elude_nb.course.answers import Right, as_numbers, call, check_function, check_numbers, need
from elude_nb.errors import AnswerError


def check_instances(chosen: object, values: Tensor, count: int) -> Right:
    """Check which ``count`` tokens are a channel's instances, of its values (t,); their order does not matter."""

    def top(of: Tensor) -> Tensor:
        return of.argsort(descending=True)[:count].sort().values

    found = as_numbers(chosen)
    if found.shape == values.shape and set(found.unique().tolist()) <= {0.0, 1.0}:
        raise AnswerError("That is a mask; the answer is the numbers of the tokens.")
    return check_numbers(
        found.sort().values if found.ndim == 1 else found,
        top(values),
        "These tokens say what the channel stands for when it is high.",
        shape=f"{count} numbers of tokens",
        places=1e-9,
        mistakes={
            "Those are the tokens on which the channel is lowest.": top(-values),
            "Those are the largest by absolute value; the method looks where the channel is high.": top(values.abs()),
            "Those are the values of the channel; the answer is the numbers of the tokens.": (
                values.sort(descending=True).values[:count].sort().values
            ),
        },
    )


def check_unit_contributions(c: object, row: Tensor, q: Tensor) -> Right:
    """Check contributions (n, s) scaled to length 1, of a channel's weights (s,) and its instances' sources (n, s)."""
    raw = row * q
    return check_numbers(
        c,
        raw / raw.norm(dim=1, keepdim=True),
        "Now two tokens are alike if the same sources drive the channel there, however strongly.",
        shape="a row for each instance, a column for each source",
        mistakes={
            "They are not scaled yet: each row has to have length 1.": raw,
            "The columns have length 1; it is the rows that are scaled, one for each instance.": raw / raw.norm(dim=0),
            "All are divided by one length; each row has a length of its own.": raw / raw.norm(),
            "The rows are divided by their sums of absolute values; a length is the root of the sum of squares.": (
                raw / raw.abs().sum(1, keepdim=True)
            ),
            "Those are the sources scaled to length 1; the weights are missing.": q / q.norm(dim=1, keepdim=True),
            "The sources were scaled before they were weighted; scale the products.": (
                row * q / q.norm(dim=1, keepdim=True)
            ),
        },
    )


def check_representatives(r: object, c: Tensor, groups: Tensor) -> Right:
    """Check the clusters' representatives (k, s), of contributions c (n, s) and clusters (n,), -1 for noise."""
    labels = sorted(set(groups.tolist()) - {-1})
    means = torch.stack([c[groups == label].mean(0) for label in labels])
    noise = torch.stack([c[groups == label].mean(0) for label in sorted(set(groups.tolist()))])
    unit = torch.nn.functional.normalize
    return check_numbers(
        r,
        unit(means, dim=1),
        "Each cluster now has one typical pattern of contributions.",
        shape="a row for each cluster, a column for each source",
        mistakes={
            "The means are not scaled to length 1 again.": means,
            "Noise, -1, is counted as a cluster; it belongs to none.": unit(noise, dim=1),
            "Noise, -1, is counted as a cluster, and the means are not scaled.": noise,
        },
    )


def winning_sets(strength: Tensor, rho: float) -> list[set[int]]:
    """Return the sets of clusters that win a source, by the definition: every set that leaves others out is tried.

    ``strength`` is ``|r[c, j]|`` of each cluster, (k,).
    """
    k = len(strength)
    subsets = [set(some) for size in range(1, k) for some in combinations(range(k), size)]
    return [
        some
        for some in subsets
        if rho * min(float(strength[c]) for c in some) > max(float(strength[c]) for c in set(range(k)) - some)
    ]


def _owners(r: Tensor, rho: float, *, absolute: bool = True, several: str = "all") -> Tensor:
    """Return who gets each source, (k, s) of True and False; ``several``: what is done where several sets win."""
    k, s = r.shape
    found = torch.ones(k, s, dtype=torch.bool)
    strength = r.abs() if absolute else r
    for source in range(s):
        won = winning_sets(strength[:, source], rho)
        if len(won) == 1 or (won and several != "all"):
            best = won[0] if several != "largest" else won[-1]
            found[:, source] = torch.tensor([c in best for c in range(k)])
    return found


def _one_owner(r: Tensor, _: float) -> Tensor:
    return torch.nn.functional.one_hot(r.abs().argmax(0), len(r)).T.bool()


def _no_owner(r: Tensor, rho: float) -> Tensor:
    """Return the mistake of giving a source that nobody wins to nobody."""
    alone = [len(winning_sets(column, rho)) == 1 for column in r.abs().T]
    return _owners(r, rho) & torch.tensor(alone)


_MISTAKES: dict[str, Any] = {
    "Look at the signs: a strongly negative contribution is strong, so absolute values are compared.": (
        lambda r, rho: _owners(r, rho, absolute=False)
    ),
    "Each source goes to its strongest cluster alone; the rule asks for a clear lead, and else all share.": _one_owner,
    "Where several sets win you take the smallest of them; the rule says that then all clusters share.": (
        lambda r, rho: _owners(r, rho, several="smallest")
    ),
    "Where several sets win you take the largest of them; the rule says that then all clusters share.": (
        lambda r, rho: _owners(r, rho, several="largest")
    ),
    "Where not exactly one set wins, you give the source to nobody; then all clusters share it.": _no_owner,
    "You have left rho out, or divided by it: a set wins only with a clear lead.": lambda r, _: _owners(r, 1.0),
}


def check_by_hand(winners: Sequence[Any], r: Tensor, rho: float) -> Right:
    """Check who gets each source, a set of clusters (numbered from 1) for each, of representatives r (k, s)."""
    need(winners)
    if not isinstance(winners, list | tuple):
        raise AnswerError("The answer is a list with one set of clusters for each source, such as [{1, 2}, {3}].")
    k, s = r.shape
    if len(winners) != s:
        raise AnswerError(f"There are {s} sources, and your list has {len(winners)} sets.")
    given = torch.zeros(k, s, dtype=torch.bool)
    for source, some in enumerate(winners):
        need(some)
        members = {some} if isinstance(some, int) else some
        if not isinstance(members, set | frozenset | tuple | list) or not set(members) <= set(range(1, k + 1)):
            raise AnswerError(f"Source {source + 1}: a set of the clusters 1 to {k} is asked for.")
        for cluster in members:
            given[cluster - 1, source] = True
    right = _owners(r, rho)
    if torch.equal(given, right):
        return Right("That is the published rule. Now a computer can do it for all sources.")
    wrong = (given != right).any(0).nonzero()[:, 0].tolist()
    where = f"Source {wrong[0] + 1} is wrong."
    for said, rule in _MISTAKES.items():
        if torch.equal(rule(r, rho)[:, wrong[0]], given[:, wrong[0]]):
            raise AnswerError(f"{where} {said}")
    raise AnswerError(f"{where} Go through the sets that leave a cluster out, one after the other.")


def check_route(route: object) -> Right:
    """Check a function that takes representatives r (k, s) and rho and returns who gets each source, (k, s)."""
    generator = torch.Generator().manual_seed(0)
    cases = [(torch.randn(k, 24, generator=generator), rho) for k, rho in ((3, 0.5), (3, 0.9), (2, 0.7), (4, 0.8))]
    return check_function(
        route,
        cases,
        _owners,
        "It agrees with the definition, which tries every set, on 96 sources.",
        shape="a row for each cluster, a column for each source",
        mistakes=_MISTAKES,
    )


def check_parts(parts: object, row: Tensor, members: Tensor) -> Right:
    """Check the weights of the sub-units (k, s), of a channel's weights (s,) and who gets each source (k, s)."""
    share = members.to(row)
    return check_numbers(
        parts,
        row * share / share.sum(0),
        "Each column adds up to the channel's weight.",
        shape="a row for each sub-unit, a column for each source",
        mistakes={
            "Every member has the whole weight, so together they have more than the channel; share it.": row * share,
            "Every weight is divided by the number of all clusters; divide by how many share this source.": (
                row * share / len(share)
            ),
            "The weights are missing; those are the shares alone.": share / share.sum(0),
        },
    )


def check_missing(count: object, parts: Tensor, row: Tensor) -> Right:
    """Check how many sources' shares do not add up to their weight bit for bit, of parts (k, s) and weights (s,)."""
    wrong = parts.sum(0) != row
    return check_numbers(
        count,
        int(wrong.sum()),
        "A third of a number, three times, is not always the number: floating point rounds each third.",
        shape="one number",
        mistakes={
            "That is how many do add up.": int((~wrong).sum()),
            "That counts differences that are large; here every bit counts, so compare with ==.": (
                int((~torch.isclose(parts.sum(0), row)).sum())
            ),
            "That is a share of all sources; the answer is how many.": float(wrong.float().mean()),
        },
    )


def check_deal(deal: object) -> Right:
    """Check a function that deals a whole number of units out to n members, as evenly as possible, as a list."""
    for whole, n in ((7, 3), (8, 3), (6, 3), (1, 4), (0, 2), (16777213, 7)):
        parts = list(call(deal, whole, n))
        if len(parts) != n:
            raise AnswerError(f"deal({whole}, {n}) returns {len(parts)} numbers; there are {n} members.")
        if any(int(part) != part for part in parts):
            raise AnswerError("The parts are no whole numbers: the unit in the last place cannot be cut.")
        if sum(parts) < whole:
            raise AnswerError(f"The parts of deal({whole}, {n}) add up to less than the whole: the remainder is lost.")
        if sum(parts) > whole:
            raise AnswerError(f"The parts of deal({whole}, {n}) add up to more than the whole.")
        if max(parts) - min(parts) > 1:
            raise AnswerError("One member gets the whole remainder; deal it out one by one.")
    return Right("Whole numbers add up exactly, in any order. So do the weights that are made of them.")


def check_exact(exact: object, row: Tensor, members: Tensor) -> Right:
    """Check weights of sub-units (k, s) that add up to the channel's (s,) bit for bit, shared as ``members`` says."""
    need(exact)
    check_parts(exact, row, members)
    found: Any = exact
    if found.dtype != row.dtype:
        raise AnswerError(f"The weights of the model are {row.dtype}, and yours are {found.dtype}.")
    wrong = int((found.sum(0) != row).sum())
    if wrong:
        raise AnswerError(f"{wrong} sources do not add up to their weight bit for bit.")
    if bool((found[~members] != 0).any()):
        raise AnswerError("A cluster has a part of a source that it does not get.")
    return Right("Bit for bit: not one of the weights has changed.")


def check_certificate(gap: Any, parts: Tensor, q: Tensor, bias: float, channel: Tensor) -> Right:
    """Check the largest gap between the sum of the sub-units with the bias and the channel (t,), at tokens q (t, s)."""
    units = q @ parts.T
    total = units.sum(1)
    found = as_numbers(gap)
    if found.ndim == 0 and 0 <= float(found) < 1e-4 * float(channel.abs().max()):
        return Right("The sub-units add up to the channel, up to the order of additions.")
    return check_numbers(
        gap,
        (total + bias - channel).abs().max(),
        "The sub-units add up to the channel.",
        shape="one number",
        mistakes={
            "Off by the bias: the channel has one, and it belongs to the sum once.": (total - channel).abs().max(),
            "The bias is in every sub-unit, so the sum has it more than once.": (
                (total + len(parts) * bias - channel).abs().max()
            ),
            "That is the largest gap of a single sub-unit; add the sub-units up first.": (
                lambda: (units - channel[:, None]).abs().max()
            ),
            "That is the mean gap; a certificate states the largest.": (total + bias - channel).abs().mean(),
        },
    )


def check_lens(change: Any) -> Right:
    """Check the largest change of the model's outputs while sub-units are read: 0, to the bit."""
    found = as_numbers(change)
    if found.numel() != 1:
        raise AnswerError("One number is asked for: the largest of all absolute differences.")
    if float(found) != 0:
        raise AnswerError("Under the lens the outputs are equal bit for bit: is the same batch in both passes?")
    return Right("Not close: equal. The lens listens, and the model runs as it did.")
