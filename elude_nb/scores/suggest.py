"""Choose G and K from the data, without labels: fit on half of a few images, score on the other half.

G is the power of two next to the square root of the number of tokens, so that with more data there are both more
concepts and more tokens of each. K is the one with the best separation, PURE's criterion (Dreyer et al., arXiv
2404.06453): the best images of one sub-unit are similar, and different from those of its siblings. The optimum lies
between too few sub-units, which still mix concepts, and too many, which are copies of each other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor

from elude_nb._util.arguments import knows_arguments
from elude_nb._util.arithmetic import own_arithmetic
from elude_nb._util.checks import check_count
from elude_nb._util.words import counted
from elude_nb.core.concepts import ConceptBook, make_books, suggest_concepts
from elude_nb.core.recording import Recording, pool_recorded, record
from elude_nb.core.strategies import RoutingStrategy, check_routing_settings, find_routing
from elude_nb.data.images import Images
from elude_nb.models.default_site import choose_site
from elude_nb.models.hooks import check_pristine, for_analysis
from elude_nb.models.load import Model, check_model
from elude_nb.scores.overview import read_sub_units, signs_of
from elude_nb.scores.similarity import sibling_similarity, top_centres, top_similarity

UNITS = (2, 4, 8, 16)
_IMAGES = 160  # half of them to fit on, half to score on
_CHANNELS = 64  # a sample is enough
_BEST = 5  # few: half of 160 images has only so many of one kind


@dataclass(frozen=True, eq=False)
class Suggestion:
    """Settings suggested by the data.

    Attributes
    ----------
    concepts, units, shared
        G, K and what was given for rho.
    table
        One row for each K that was tried: ``units``, ``similarity`` inside sub-units, ``siblings`` (between the
        sub-units of a channel) and ``separation``, their difference: higher is better. Empty if nothing was to be
        chosen.
    """

    concepts: int
    units: int
    shared: float | None
    table: pd.DataFrame

    @property
    def settings(self) -> dict[str, Any]:
        """All three as keywords: ``en.disentangle(model, images, **suggestion.settings)``."""
        return {"concepts": self.concepts, "units": self.units, "shared": self.shared}

    def __repr__(self) -> str:
        return f"Suggestion(concepts={self.concepts}, units={self.units}, shared={self.shared})"


@knows_arguments
@own_arithmetic()
def suggest_settings(
    model: Model,
    images: Images,
    site: str | None = None,
    *,
    blocks: int | Literal["all"] = "all",
    routing: str | RoutingStrategy = "concepts",
    concepts: int | None = None,
    units: int | None = None,
    shared: float | None = None,
    tokens: str | None = None,
    tokens_per_image: int | None = 24,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool | None = None,
) -> Suggestion:
    """Return G and K for `elude_nb.disentangle`: what is given is kept, the rest is chosen from the images.

    Parameters
    ----------
    model, images, site, blocks, routing, shared, tokens, tokens_per_image, seed
        As in `elude_nb.disentangle`; at most 160 of the images are run.
    concepts, units
        A number to keep, or ``None``.
    batch_size, progress
        In place of the model's own settings.

    Raises
    ------
    SiteError, TypeError, ValueError
        If the site cannot be split, a setting is out of range, or there are too few images to score on.

    Examples
    --------
    ``en.disentangle(model, images, **en.scores.suggest_settings(model, images).settings)``
    """
    check_model(model)
    model = model.using(batch_size=batch_size, progress=progress)
    check_pristine(model.network, "suggest_settings")
    strategy, chosen = find_routing(routing, seed), model.inputs(images)
    place = choose_site(model, site, blocks=blocks, tokens=tokens, purpose="suggest_settings")
    tokens = tokens or place.layout.usual
    each = len(place.layout.positions(tokens))
    found = suggest_concepts(len(chosen) * min(each, tokens_per_image or each))
    g = found if concepts is None else check_count("concepts", concepts, 2)
    k, rho = check_routing_settings(UNITS[0] if units is None else units, shared)
    if units is not None:
        return Suggestion(g, k, rho, pd.DataFrame())
    few = chosen.sample(_IMAGES, seed=seed)
    if len(few) < 2 * _BEST:
        raise ValueError(
            f"{counted(len(few), 'image')}: too few to choose settings from; give at least {2 * _BEST}, or a number "
            "for units."
        )
    parts = record(model, few, place, tokens=tokens, tokens_per_image=tokens_per_image, seed=seed)
    trial = _Trial(Recording.join(list(parts)), for_analysis(place.weight(model.network)), place.kernel, strategy, seed)
    book = trial.book(g)
    rows = [(k, *trial.score(book, k, rho)) for k in UNITS if k <= len(book)]
    table = pd.DataFrame(rows, columns=["units", "similarity", "siblings"])
    table["separation"] = table["similarity"] - table["siblings"]
    table = table.dropna(ignore_index=True)
    if not len(table):
        raise ValueError("No channel was split under any setting tried; give a number for units.")
    best = int(table["separation"].to_numpy().argmax())
    return Suggestion(g, int(table["units"].iloc[best]), rho, table)


class _Trial:
    """Fits settings on the even images of a recording, and scores them on the odd ones."""

    def __init__(self, seen: Recording, weight: Tensor, kernel: int, strategy: RoutingStrategy, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._channels, _ = torch.randperm(len(weight), generator=generator)[:_CHANNELS].sort()
        self._weight, self._kernel = weight[self._channels], kernel
        self._strategy, self._seed = strategy, seed
        even = seen.images % 2 == 0
        self._first, self._second = seen.rows(even), seen.rows(~even)
        kept = self._second.images  # sentences have different numbers of tokens
        means = torch.stack([self._second.channels[kept == image].mean(0) for image in kept.unique_consecutive()])
        self._reference = means - means.mean(0)  # an image's mean channels: there is no other encoder
        self._k = min(_BEST, len(means))

    def book(self, concepts: int) -> ConceptBook:
        """Return the concept book of the first half, with the sampled channels only."""
        tokens = ConceptBook.of_tokens(self._first.channels, self._first.sources)
        book, _ = make_books(tokens, min(concepts, len(tokens)), len(tokens), self._seed)
        return replace(book, channel_sums=book.channel_sums[:, self._channels])

    def score(self, book: ConceptBook, units: int, shared: float | None) -> tuple[float, float]:
        """Return the mean similarity inside sub-units and between siblings, on the second half."""
        kernels = self._weight.unflatten(1, (-1, self._kernel))
        routing = self._strategy.route(kernels, book, book, units=units, shared=shared)
        channels, _, matrix = read_sub_units(self._weight, routing, signs_of(self._weight, routing, book))
        if not len(channels):
            return float("nan"), float("nan")
        values = pool_recorded((self._second.sources - book.source_mean()) @ matrix, self._second.images)  # (n, u)
        inside = top_similarity(values, self._reference, self._k)
        between = sibling_similarity(top_centres(values, self._reference, self._k), channels)
        return float(inside.mean()), float(between.mean())
