"""Find the concepts and sub-units that tell one set of images from another, so that one knows what to edit.

What looks best among thousands of units looks too good. Units are therefore chosen on one part of the images and
checked on the other, and the p-values are corrected for all units that were tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from elude_nb._util.arguments import knows_arguments
from elude_nb._util.arithmetic import own_arithmetic
from elude_nb._util.checks import check_choice, check_count, check_fraction
from elude_nb.core.readout import Lens, Readout
from elude_nb.core.recording import pool_tokens, real_tokens_at
from elude_nb.core.result import Disentanglement, check_split
from elude_nb.core.routing import NO_CONCEPT
from elude_nb.data.images import Images, ImageSet
from elude_nb.models.hooks import evaluating
from elude_nb.scores.inputs import is_constant
from elude_nb.scores.labels import auroc

KINDS = ("both", "concepts", "units")
POOLS = ("max", "mean")
_FEWEST = 2  # images of a set in each part; of one alone, every unit is as high or as low as can be

_EXACT = 2500  # pairs of images up to which p-values are exact; beyond, the normal approximation is close enough

Numbers = np.ndarray[Any, np.dtype[np.float64]]
Readouts = Sequence[tuple[Readout, Tensor]]
"""What is read, and with which sign, (u,) or (): a unit that is low on its concept is turned round."""


@knows_arguments
@own_arithmetic()
def find_units(
    split: Disentanglement,
    positive: Images,
    negative: Images,
    *,
    kind: Literal["both", "concepts", "units"] = "both",
    tokens: str | None = None,
    pool: Literal["max", "mean"] = "max",
    fraction: float = 0.5,
    level: float = 0.05,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Rank concepts and sub-units by how well they tell the positive images from the negative ones, out of sample.

    On the choosing part of both sets each unit gets its rank and its direction (which set is higher); on the checking
    part, which plays no role in either, it is measured in that direction. ``p`` is of the one-sided test of Mann and
    Whitney there: the chance that a unit to which the sets are alike does so well. It is exact where no two images tie
    and the sets are small, else from the normal approximation with its correction for ties.

    Parameters
    ----------
    split
        The disentanglement. Where its routing has no concepts across channels, ``"both"`` means sub-units only.
    positive, negative
        What is to be found, and the same without it. The more alike the two sets are otherwise, the more a unit that
        tells them apart is about that one thing. Near-copies (frames of one film, crops of one photograph) count as
        one image: with one in each part, the check is none. Image i of two equally long sets lands in the same part
        of both, so pairs with and without the thing may be given.
    kind
        What is tried: concepts, sub-units (those that are live), or both. To try less is to correct for less, and a few
        hundred concepts are read much faster than a few thousand sub-units.
    tokens
        By default those of the discovery.
    pool
        How an image's tokens become one number: the largest activation (a sub-unit's times its sign, see
        `Disentanglement.signs`), or the mean.
    fraction
        Share of each set to choose on.
    level
        Largest acceptable chance of any false discovery in the whole table.
    seed
        Of the parts.
    batch_size, progress
        In place of the model's own settings. Concepts and units come from the same passes.

    Returns
    -------
    DataFrame
        One row a concept or sub-unit. The significant ones come first; among these, and among the rest, the order is
        that of the choosing part, so that the check is not used to choose a second time.

        ``kind`` ("concept" or "unit"), ``concept``, ``channel``, ``unit``, ``name`` of the concept (if it has one),
        and ``description`` (if any has one);
        ``copies``, how many sub-units of other channels copy this one (see `Disentanglement.distinct_units`);
        ``rank`` on the choosing part, 1 the best: by AUROC, and of equal ones by how many standard deviations the
        means of the two sets lie apart; ``direction``, "higher" or "lower" on the positive images;
        ``auroc_chosen``, in [0.5, 1], too high by the choice; ``auroc`` on the checking part in the same direction,
        in [0, 1], higher is better, 0.5 is chance; ``p``; ``p_corrected`` over all rows (Holm); ``significant``. A
        unit that is constant on a part has AUROC 0.5 there, and p = 1.

    Raises
    ------
    ValueError
        If a part would have fewer than two images of a set (so give at least four of each), there are no concepts and
        only they are asked for, or no channel was split.

    Notes
    -----
    With few images nothing can be significant: of m positive and m negative ones to check on, the smallest p there is
    is 1 / binomial(2 m, m), and it is multiplied by the number of rows. 3,000 rows at level 0.05 need m = 10, that
    is 20 images in each set at ``fraction=0.5``, and more for a unit that is not perfect. 128 concepts alone need
    m = 7.

    Examples
    --------
    The best row is what to edit: after ``row = find_units(split, cats, others).iloc[0]``, a concept is faded out by
    ``en.Edit.scale(concept=int(row.concept), by=0.0)``, and a sub-unit by
    ``en.Edit.scale(unit=(int(row.channel), int(row.unit)), by=0.0)``.
    """
    check_split(split, "find_units")
    split = split.using(batch_size=batch_size, progress=progress)
    check_count("seed", seed, 0)
    check_choice("kind", kind, KINDS)
    check_choice("pool", pool, POOLS)
    check_fraction("level", level, open_ends=True)
    sets = {"positive": split.model.inputs(positive), "negative": split.model.inputs(negative)}
    parts = [_parts(name, len(images), fraction, seed) for name, images in sets.items()]
    table, readouts = _candidates(split, kind)
    positives, negatives = (pool_readouts(split, images, readouts, tokens, pool) for images in sets.values())
    (first, second), (other_first, other_second) = parts
    chosen, checked = (positives[first], negatives[other_first]), (positives[second], negatives[other_second])
    return rank_candidates(table, chosen, checked, level)


def pool_readouts(
    split: Disentanglement, images: ImageSet, readouts: Readouts, tokens: str | None = None, pool: str = "max"
) -> Tensor:
    """Return one number an image of everything that is read, side by side, (n, u); all from one pass over the images.

    Tokens are pooled batch by batch: (n, t, u) of a few thousand units is held for one batch only.
    """
    model, parts = split.model, []
    positions = split.site.layout.positions(split.settings.tokens if tokens is None else tokens).to(model.device)
    with evaluating(model.network), ExitStack() as stack:
        lenses = [stack.enter_context(Lens(model.network, split.site, readout, positions)) for readout, _ in readouts]
        for batch in model.batches(images):
            model(batch)
            real = real_tokens_at(model, batch, split.site, positions)
            signed = [sign.to(model.device).mul(lens.values) for lens, (_, sign) in zip(lenses, readouts, strict=True)]
            parts.append(torch.cat([pool_tokens(values, real, pool) for values in signed], 1).cpu())
    return torch.cat(parts)


def holm(p: Numbers) -> Numbers:
    """Return p-values corrected for how many they are, in the same shape (Holm, 1979).

    The i-th smallest of m is multiplied by m - i + 1, and none is smaller than the one before it. The chance that any
    of those at or below ``level`` is there by accident is then at most ``level``, however they depend on each other.

    Examples
    --------
    >>> holm(np.array([0.01, 0.04, 0.03])).tolist()
    [0.03, 0.06, 0.06]
    """
    flat = p.ravel()
    order = flat.argsort(kind="stable")
    steps = np.maximum.accumulate(flat[order] * np.arange(len(flat), 0, -1))
    corrected = np.empty_like(flat)
    corrected[order] = np.minimum(steps, 1)
    return corrected.reshape(p.shape)


def _parts(name: str, n: int, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return which of n images to choose on and which to check on; an odd one is checked on."""
    first = int(n * check_fraction("fraction", fraction, open_ends=True))
    if min(first, n - first) < _FEWEST:
        cure = f"give at least {2 * _FEWEST}" if n < 2 * _FEWEST else "bring fraction nearer to 0.5"
        raise ValueError(
            f"{n} {name} images at fraction={fraction} are {first} to choose on and {n - first} to check on; both "
            f"parts need at least {_FEWEST}: {cure}. For anything to be significant it takes some 20 of each set."
        )
    order = torch.from_numpy(np.random.default_rng(seed).permutation(n))
    return order[:first].msort(), order[first:].msort()


def _candidates(split: Disentanglement, kind: str) -> tuple[pd.DataFrame, Readouts]:
    """Return what is tried, one row each, and how it is read, in the same order."""
    tables, readouts = list[pd.DataFrame](), list[tuple[Readout, Tensor]]()
    if kind != "units":
        try:
            readouts.append((split.concept_readout(), torch.tensor(1)))
            tables.append(pd.DataFrame({"kind": "concept", "concept": range(len(split.book))}))
        except ValueError:
            if kind == "concepts":
                raise
    units = split.live_units
    if kind != "concepts" and len(units):
        channels, numbers = (torch.tensor(units[column].to_numpy(dtype=np.int64)) for column in ("channel", "unit"))
        pairs = list(zip(channels.tolist(), numbers.tolist(), strict=True))
        readouts.append((split.unit_readout(pairs), split.signs[channels, numbers]))
        tables.append(units[["concept", "channel", "unit"]].assign(kind="unit"))
    if not tables:
        raise ValueError(f"kind={kind!r}: no channel was split, so there are no sub-units; see .channels for why.")
    columns = ["kind", "concept", "channel", "unit"]
    table = pd.concat(tables, ignore_index=True).reindex(columns=columns).astype(dict.fromkeys(columns[1:], "Int64"))
    table["name"] = ""
    table = table.assign(**split.names.columns(table["concept"].fillna(NO_CONCEPT).tolist()))
    is_unit = (table["kind"] == "unit").to_numpy()
    table["copies"] = pd.array([pd.NA] * len(table), dtype="Int64")
    table.loc[is_unit, "copies"] = split.copies[split.routing.live_rows()].numpy()[: is_unit.sum()]
    return table, readouts


def rank_candidates(
    table: pd.DataFrame, chosen: tuple[Tensor, Tensor], checked: tuple[Tensor, Tensor], level: float
) -> pd.DataFrame:
    """Return the candidates with what both parts say; ``chosen`` and ``checked`` are positive and negative, (n, u)."""
    area, area_checked = _auroc(*chosen), _auroc(*checked)
    higher = area >= 0.5
    found = table.assign(direction=np.where(higher, "higher", "lower"))
    found["auroc_chosen"] = np.where(higher, area, 1 - area).round(12)  # 1 - 0.28 is not quite 0.72
    found["auroc"] = np.where(higher, area_checked, 1 - area_checked)
    found["p"] = _p_values(*checked, np.where(higher, 1, -1))
    found["p_corrected"] = holm(found["p"].to_numpy())
    found["significant"] = found["p_corrected"] <= level
    found = found.iloc[np.lexsort((-_gap(*chosen), -found["auroc_chosen"]))]
    found.insert(list(found.columns).index("direction"), "rank", range(1, len(found) + 1))
    return found.sort_values("significant", ascending=False, kind="stable", ignore_index=True)


def _auroc(positive: Tensor, negative: Tensor) -> Numbers:
    """Return the chance that a positive image is the higher one, (u,); 0.5 for a unit that is constant."""
    area = auroc(torch.cat([positive, negative]), [1] * len(positive) + [0] * len(negative)).loc[1]
    return area.fillna(0.5).to_numpy(dtype=np.float64)


def _gap(positive: Tensor, negative: Tensor) -> Numbers:
    """Return how far apart the means are, in standard deviations of all images together, (u,); a constant unit's is 0.

    With few images many units tell the sets apart perfectly; this says which do so most clearly.
    """
    both = torch.cat([positive, negative]).double()
    gap = (positive.double().mean(0) - negative.double().mean(0)).abs() / both.std(0).clamp(min=1e-300)
    return gap.masked_fill(is_constant(both), 0).numpy()


def _p_values(positive: Tensor, negative: Tensor, direction: np.ndarray[Any, Any]) -> Numbers:
    """Return the one-sided p of Mann and Whitney for each unit, (u,): 1 means positive above negative, -1 below."""
    from scipy.stats import mannwhitneyu

    both = torch.cat([positive, negative])
    tied = (both.msort().diff(dim=0) == 0).any(0).numpy()  # (u,)
    exact = ~tied & (len(positive) * len(negative) <= _EXACT)
    first, second = positive.numpy() * direction, negative.numpy() * direction
    p = np.ones(both.shape[1])
    for method, group in (("exact", exact), ("asymptotic", ~exact & ~is_constant(both).numpy())):
        if group.any():
            tested = mannwhitneyu(first[:, group], second[:, group], alternative="greater", axis=0, method=method)
            p[group] = tested.pvalue
    return p
