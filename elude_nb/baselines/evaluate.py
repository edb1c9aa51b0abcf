"""One method on trial: fitted on one half of the tokens, its live units scored on the other, its cost, its fidelity."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from elude_nb.baselines import Method
from elude_nb.baselines.replace import replaced_features
from elude_nb.core.recording import Recording, pool_recorded
from elude_nb.data.images import ImageSet
from elude_nb.models.load import Model
from elude_nb.models.sites import Site
from elude_nb.scores import (
    best_unit_precision,
    density,
    effective_rank,
    intruder_accuracy,
    knn_accuracy,
    labels_covered,
    largest_correlation,
    linear_explained,
    mean_interval,
    monosemanticity,
    neighbour_agreement,
    output_change,
    polysemanticity,
    probe_accuracy,
    top_purity,
    top_similarity,
    unexplained_variance,
)
from elude_nb.scores.labels import FEWEST

_TOKENS_AT_ONCE = 2048


def most_selective(activations: Tensor, groups: Tensor) -> Tensor:
    """Order units so that any prefix has strong ones for many kinds of token; labels are not looked at.

    A unit belongs to the group of tokens on which it is highest, in its standard deviations above its mean (d'). Each
    group's units are sorted by that; then the groups take turns, the best first.

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
class Entrant:
    """A fitted method and what its units did on both halves.

    Attributes
    ----------
    method
        The method.
    on_seen, on_new
        Its units at the tokens of the discovery and of the scored images, (t, u).
    pooled
        The largest over each scored image's tokens, (n, u).
    live
        The numbers of its live units.
    order
        The same, the most selective first.
    fit_seconds, encode_seconds
        What fitting and encoding the scored tokens took.
    """

    method: Method
    on_seen: Tensor
    on_new: Tensor
    pooled: Tensor
    live: Tensor
    order: Tensor
    fit_seconds: float
    encode_seconds: float

    @classmethod
    def of(
        cls,
        method: Method,
        seen: Recording,
        new: Recording,
        labels: list[str] | None,
        groups: Tensor,
        *,
        k: int,
    ) -> Entrant:
        """Fit a method on what was seen, and encode both."""
        start = time.perf_counter()
        method.fit(seen, labels)
        fitted = time.perf_counter()
        on_new = _encode(method, new)
        encoded = time.perf_counter()
        on_seen = _encode(method, seen)
        pooled = pool_recorded(on_new, new.images)
        is_live = (pooled > pooled.amin(0)).sum(0) >= k
        if not bool(is_live.any()):
            raise ValueError(f"{method.name!r} has no live unit on the scored images; use more images or tokens.")
        order = most_selective(on_seen, groups)
        live = is_live.nonzero().flatten()
        return cls(method, on_seen, on_new, pooled, live, order[is_live[order]], fitted - start, encoded - fitted)

    def cost(self, passes: float, images: int) -> dict[str, float]:
        """Return seconds and bytes; forward passes are counted for both."""
        return {
            "dead_units": self.pooled.shape[1] - len(self.live),
            "seconds_to_fit": self.fit_seconds,
            "seconds_per_1000_images": 1000 * (passes + self.encode_seconds / images),
            "bytes": self.method.size_in_bytes(),
        }

    def scores(
        self,
        columns: Tensor,
        seen: Recording,
        new: Recording,
        images: ImageSet,
        reference: Tensor,
        *,
        k: int,
        seed: int,
    ) -> tuple[dict[str, float], pd.DataFrame]:
        """Return the means over some units, with their intervals, and the scores of the single units."""
        pooled, tokens = self.pooled[:, columns], self.on_new[:, columns]
        single = [
            top_similarity(pooled, reference, k),
            monosemanticity(pooled, reference),
            polysemanticity(pooled, reference, k),
            intruder_accuracy(pooled, reference, top=min(k, len(pooled) // 2), seed=seed),
            largest_correlation(pooled).rename("redundancy"),
            density(tokens),
        ]
        if images.labels is not None:
            single.insert(4, top_purity(pooled, images.labels, k))
        table = pd.concat(single, axis=1)
        summary: dict[str, float] = {"units": len(columns)}
        for name in table:
            summary.update(_columns(str(name), table[name]))
        common = _of_common_labels(images.labels)
        if common is not None:
            here, labels = common
            best = best_unit_precision(pooled[here], labels, seed=seed)
            summary.update(_columns("best_unit_precision", best["average_precision"]))
            summary["labels_covered"] = labels_covered(best)
            summary["labels"] = len(best)
        summary["effective_rank"] = effective_rank(pooled)
        summary["linearly_explained"] = linear_explained(self.on_seen[:, columns], seen.channels, tokens, new.channels)
        return summary, table.assign(unit=columns.numpy())


def _of_common_labels(labels: Sequence[str] | None) -> tuple[list[int], list[str]] | None:
    """Return the images whose label has at least four, and their labels: the others cannot be chosen and scored on."""
    if labels is None:
        return None
    counts = Counter(labels)
    here = [i for i, label in enumerate(labels) if counts[label] >= 2 * FEWEST]
    return (here, [labels[i] for i in here]) if len({labels[i] for i in here}) > 1 else None


def _encode(method: Method, recording: Recording) -> Tensor:
    """Encode a recording in parts, so that nothing between is larger than its units."""
    return torch.cat([method.encode(part).float() for part in recording.parts(_TOKENS_AT_ONCE)])


def _columns(name: str, values: Any) -> dict[str, float]:
    interval = mean_interval(values)
    return {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}


class Fidelity:
    """Runs the model as it is once, then with each method beside it or with its reconstructions in it.

    Parameters
    ----------
    model, images, site, tokens
        The model, the images to run, and which tokens of the site are replaced.
    k
        Nearest neighbours.
    seed
        Of the halves that probes are trained and tested on.
    """

    def __init__(self, model: Model, images: ImageSet, site: Site, tokens: str, *, k: int, seed: int) -> None:
        self.model, self.images, self.site, self.tokens = model, images, site, tokens
        self._k, self._seed = k, seed
        self._original = self._features(None)
        self._tapped: Tensor | None = None

    def of(self, method: Method, recording: Recording) -> dict[str, float]:
        """Return the fidelity of a method: of its reconstruction at recorded tokens, and of the model's features."""
        if method.lossless:
            unexplained, changed = 0.0, self._beside(method)  # nothing is put in the channels' place
        else:
            made = torch.cat([method.reconstruct(part) for part in recording.parts(_TOKENS_AT_ONCE)])
            unexplained = unexplained_variance(recording.channels, made)
            changed = self._features(method)
        return {"unexplained_variance": unexplained, **self._changes(changed)}

    def _beside(self, method: Method) -> Tensor:
        """Return the features while the units are read off; of what all methods read in the same way, only once."""
        tapped = type(method).beside is Method.beside
        if tapped and self._tapped is not None:
            return self._tapped
        with method.beside(self.model.network, self.site):
            changed = self._features(None)
        self._tapped = changed if tapped else self._tapped
        return changed

    def _features(self, method: Method | None) -> Tensor:
        return replaced_features(
            self.model,
            self.images,
            self.site,
            None if method is None else method.reconstruct,
            tokens=self.tokens,
            sources=method is not None and method.needs_sources,
        )

    def _changes(self, changed: Tensor) -> dict[str, float]:
        differences = output_change(self._original, changed)
        found = {
            "output_change": float(differences["largest"]),
            "top1_agreement": float(differences["top1_agreement"]),
            "neighbour_agreement": neighbour_agreement(self._original, changed, self._k),
        }
        labels = self.images.labels
        if labels is None or len(set(labels)) < 2 or min(labels.count(label) for label in set(labels)) < 2 * FEWEST:
            return found
        # Trained on what the model makes of one half, tested on what the changed model makes of the other.
        train, test = _stratified_halves(labels, self._seed)
        inputs = self._original[train], [labels[i] for i in train], changed[test], [labels[i] for i in test]
        return {**found, "knn_accuracy": knn_accuracy(*inputs), "probe_accuracy": probe_accuracy(*inputs)}


def _stratified_halves(labels: Sequence[str], seed: int) -> tuple[list[int], list[int]]:
    from sklearn.model_selection import train_test_split

    train, test = train_test_split(range(len(labels)), test_size=0.5, stratify=labels, random_state=seed)
    return sorted(train), sorted(test)
