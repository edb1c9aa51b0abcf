"""Evaluate one method: fitted on one half of the tokens, its live units scored on the other, its cost, its fidelity."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from elude_nb import scores
from elude_nb.baselines.base import Method
from elude_nb.baselines.replace import replaced_by_each, replaced_features
from elude_nb.core.distinct import choose_covering, standardise
from elude_nb.core.recording import Recording, find_largest, pool_recorded
from elude_nb.data.images import ImageSet
from elude_nb.models.load import Model
from elude_nb.models.sites import Site
from elude_nb.scores.labels import FEWEST
from elude_nb.scores.overview import images_of_ms
from elude_nb.scores.similarity import ms_score_at

_TOKENS_AT_ONCE = 2048


def most_selective(activations: Tensor, groups: Tensor) -> Tensor:
    """Order units so that every prefix has strong ones for many groups of tokens; labels are not used.

    A unit belongs to the group of tokens on which it is highest, in standard deviations above its mean (d'). The units
    of each group are sorted by that; then the groups take turns, the best first.

    Parameters
    ----------
    activations
        (t, u), on tokens of the discovery.
    groups
        The group of each token, (t,), from clustering the channels: the same groups for every method.

    Returns
    -------
    Tensor
        The numbers of the units, (u,), constant ones last.

    Examples
    --------
    >>> activations = torch.tensor([[5.0, 4.0, 0.0], [5.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    >>> most_selective(activations, torch.tensor([0, 0, 1, 1])).tolist()
    [0, 2, 1]
    """
    number = int(groups.max()) + 1
    spread = activations.std(0).clamp(min=torch.finfo(activations.dtype).tiny)
    standard = (activations - activations.mean(0)) / spread
    sums = standard.new_zeros(number, standard.shape[1]).index_add_(0, groups, standard)
    means = sums / torch.bincount(groups, minlength=number).clamp(min=1)[:, None]
    value, home = means.max(0)
    order = value.argsort(descending=True, stable=True)
    turns = torch.zeros_like(order)
    for group in home.unique():
        mine = order[home[order] == group]
        turns[mine] = torch.arange(len(mine))
    turns[activations.amax(0) == activations.amin(0)] = len(order)
    return order[turns[order].argsort(stable=True)]


@dataclass(frozen=True, eq=False)
class Halves:
    """What all methods are fitted and scored on.

    Attributes
    ----------
    seen
        The recorded tokens of the discovery, to fit on.
    labels
        The label of each of them, if there are labels.
    groups
        The group of each of them, (t,), from clustering their channels.
    new
        The recorded tokens of the images to score on.
    images
        These images.
    reference
        Their reference embeddings, (n, e).
    k, seed
        How many best images of each unit are compared; the seed of what is random in scores.
    """

    seen: Recording
    labels: list[str] | None
    groups: Tensor
    new: Recording
    images: ImageSet
    reference: Tensor
    k: int
    seed: int = 0


@dataclass(frozen=True, eq=False)
class FittedMethod:
    """A fitted method and its units on both halves of the images.

    Attributes
    ----------
    method, halves
        The method, and what it was fitted on.
    seen_units, new_units
        Its units at the tokens of the discovery and of the scored images, (t, u).
    pooled, rows
        The largest over each scored image's tokens, and which token of `new_units` it is, (n, u) each.
    live
        The numbers of its live units.
    order
        The same, the most selective first.
    fit_seconds, encode_seconds
        The time of fitting, and of encoding the scored tokens.
    """

    method: Method
    halves: Halves
    seen_units: Tensor
    new_units: Tensor
    pooled: Tensor
    rows: Tensor
    live: Tensor
    order: Tensor
    fit_seconds: float
    encode_seconds: float

    @classmethod
    def fit(cls, method: Method, halves: Halves) -> FittedMethod:
        """Fit a method on the tokens of the discovery, and encode both halves."""
        start = time.perf_counter()
        method.fit(halves.seen, halves.labels)
        fitted = time.perf_counter()
        new_units = _encode(method, halves.new)
        encoded = time.perf_counter()
        seen_units = _encode(method, halves.seen)
        pooled, rows = find_largest(new_units, halves.new.images)
        is_live = (pooled > pooled.amin(0)).sum(0) >= halves.k
        if not bool(is_live.any()):
            raise ValueError(f"{method.name!r} has no live unit on the scored images; use more images or tokens.")
        order = most_selective(seen_units, halves.groups)
        live, order = is_live.nonzero().flatten(), order[is_live[order]]
        return cls(method, halves, seen_units, new_units, pooled, rows, live, order, fitted - start, encoded - fitted)

    def cost(self, passes: float) -> dict[str, float]:
        """Return seconds and bytes; the seconds of a forward pass, ``passes``, are included."""
        return {
            "dead_units": self.pooled.shape[1] - len(self.live),
            "seconds_to_fit": self.fit_seconds,
            "seconds_per_1000_images": 1000 * (passes + self.encode_seconds / len(self.pooled)),
            "bytes": self.method.size_in_bytes(),
        }

    def distinct(self, n: int) -> Tensor:
        """Return ``n`` live units that stand for all live ones best on the images of the discovery, (n,)."""
        seen = pool_recorded(self.seen_units[:, self.live], self.halves.seen.images)
        return self.live[choose_covering(standardise(seen), n)]

    def scores(self, numbers: Tensor) -> tuple[dict[str, float], pd.DataFrame]:
        """Return the means over some units with their intervals, and the scores of each unit."""
        halves, pooled, tokens = self.halves, self.pooled[:, numbers], self.new_units[:, numbers]
        reference, labels, k = halves.reference, halves.images.labels, halves.k
        each = [
            scores.top_similarity(pooled, reference, k),
            scores.monosemanticity(pooled, reference),
            ms_score_at(pooled, halves.new.channels, self.rows[:, numbers], count=images_of_ms(len(pooled), k)),
            scores.polysemanticity(pooled, reference, k),
            scores.intruder_accuracy(pooled, reference, top=min(k, len(pooled) // 2), seed=halves.seed),
            scores.largest_correlation(pooled).rename("redundancy"),
            scores.density(tokens),
        ]
        if labels is not None:
            each += [scores.top_purity(pooled, labels, k), scores.label_share_over_chance(pooled, labels, k)]
        table = pd.concat(each, axis=1)
        summary: dict[str, float] = {"units": len(numbers)}
        for name in table:
            summary |= _with_interval(str(name), table[name])
        summary |= _label_scores(pooled, labels, halves.seed)
        summary["effective_rank"] = scores.effective_rank(pooled)
        seen_units, channels = self.seen_units[:, numbers], (halves.seen.channels, halves.new.channels)
        summary["linearly_explained"] = scores.linear_explained(seen_units, channels[0], tokens, channels[1])
        return summary, table.assign(unit=numbers.numpy())


def stability_of(found: FittedMethod, anew: Sequence[Method], n_units: int) -> dict[str, float]:
    """Return how alike a method finds its units again, on the scored images, with their intervals.

    The units of one fit, ``n_units`` of them, the most selective, are matched with the live units of another fit by
    their correlation (`elude_nb.scores.stability`). ``stability_seeds``: the fit at hand and one from another seed, on
    the same images; ``stability_halves``: two fits, each on half of the images of the discovery.

    Parameters
    ----------
    found
        The fitted method.
    anew
        The same method three times, not fitted: from another seed, and for either half.
    n_units
        How many units.
    """
    halves = found.halves
    images, generator = halves.seen.images.unique(), torch.Generator().manual_seed(halves.seed)
    drawn = images[torch.randperm(len(images), generator=generator)]
    in_first = torch.isin(halves.seen.images, drawn[::2])
    everything = torch.ones_like(in_first)
    fits = [
        FittedMethod.fit(method, replace(halves, **_only(halves, rows)))
        for method, rows in zip(anew, (everything, in_first, ~in_first), strict=True)
    ]
    pairs = {"stability_seeds": (found, fits[0]), "stability_halves": (fits[1], fits[2])}
    summary: dict[str, float] = {}
    for name, (one, other) in pairs.items():
        matched = scores.stability(one.pooled[:, one.order[:n_units]], other.pooled[:, other.live])
        summary |= _with_interval(name, matched)
    return summary


def _only(halves: Halves, rows: Tensor) -> dict[str, Any]:
    """Return what is seen of some tokens of the discovery, (t,), bool."""
    labels = halves.labels and [label for label, kept in zip(halves.labels, rows.tolist(), strict=True) if kept]
    return {"seen": halves.seen.rows(rows.nonzero().flatten()), "labels": labels, "groups": halves.groups[rows]}


def _label_scores(pooled: Tensor, labels: Sequence[str] | None, seed: int) -> dict[str, float]:
    """Return the best-unit precision over labels with enough images to choose and to score on; nothing without."""
    counts = Counter(labels)
    common = [i for i, label in enumerate(labels or ()) if counts[label] >= 2 * FEWEST]
    names = [labels[i] for i in common] if labels else []
    if len(set(names)) < 2:
        return {}
    best = scores.best_unit_precision(pooled[common], names, seed=seed)
    precision = _with_interval("best_unit_precision", best["average_precision"])
    return {**precision, "labels_covered": scores.labels_covered(best), "labels": len(best)}


def _encode(method: Method, recording: Recording) -> Tensor:
    """Encode a recording in parts, so that nothing in between is larger than its units."""
    return torch.cat([method.encode(part).float() for part in recording.parts(_TOKENS_AT_ONCE)])


def _with_interval(name: str, values: pd.Series[float]) -> dict[str, float]:
    found = scores.mean_interval(values)
    return {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}


class Fidelity:
    """Compares the model as it is with the model beside methods, or with their reconstructions in it.

    Parameters
    ----------
    model, images, site, tokens
        The model, the images to run, and which tokens of the site are replaced.
    methods
        The fitted methods, each with a name of its own.
    k
        How many nearest neighbours are compared.
    seed
        Of the halves that probes are trained and tested on.
    """

    def __init__(
        self,
        model: Model,
        images: ImageSet,
        site: Site,
        tokens: str,
        methods: Sequence[Method],
        *,
        k: int,
        seed: int,
    ) -> None:
        self._model, self._images, self._site = model, images, site
        self._k, self._seed = k, seed
        beside = [method for method in methods if method.lossless]
        others = {method.name: (method.reconstruct, method.needs_sources) for method in methods if not method.lossless}
        self._original, self._changed = replaced_by_each(model, images, site, others, tokens=tokens)
        together = self._beside(beside)  # if all of them together change nothing, none does
        for method in beside:
            alone = together.equal(self._original) or len(beside) == 1
            self._changed[method.name] = together if alone else self._beside([method])

    def measure(self, method: Method, recording: Recording) -> dict[str, float]:
        """Return the fidelity of one of the methods: of its reconstruction of recorded tokens, and of the features."""
        if method.lossless:
            unexplained = 0.0  # nothing is replaced
        else:
            made = torch.cat([method.reconstruct(part) for part in recording.parts(_TOKENS_AT_ONCE)])
            unexplained = scores.unexplained_variance(recording.channels, made)
        return {"unexplained_variance": unexplained, **self._changes(self._changed[method.name])}

    def _beside(self, methods: Sequence[Method]) -> Tensor:
        """Return the features while the units of these methods are read; without methods, those of the model alone."""
        if not methods:
            return self._original
        with ExitStack() as stack:
            for method in methods:
                stack.enter_context(method.beside(self._model.network, self._site))
            return replaced_features(self._model, self._images, self._site, None)

    def _changes(self, changed: Tensor) -> dict[str, float]:
        from sklearn.model_selection import train_test_split

        differences = scores.output_change(self._original, changed)
        found = {
            "output_change": float(differences["largest"]),
            "top1_agreement": float(differences["top1_agreement"]),
            "neighbour_agreement": scores.neighbour_agreement(self._original, changed, self._k),
        }
        labels, counts = self._images.labels, Counter(self._images.labels)
        if labels is None or len(counts) < 2 or min(counts.values()) < 2 * FEWEST:
            return found
        # Trained on the model's features of one half, tested on the changed model's features of the other.
        halves = train_test_split(range(len(labels)), test_size=0.5, stratify=labels, random_state=self._seed)
        train, test = map(sorted, halves)
        inputs = self._original[train], [labels[i] for i in train], changed[test], [labels[i] for i in test]
        return {**found, "knn_accuracy": scores.knn_accuracy(*inputs), "probe_accuracy": scores.probe_accuracy(*inputs)}
