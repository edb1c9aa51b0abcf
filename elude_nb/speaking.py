"""Which sub-units speak at a patch: those whose activation there is far above their mean."""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor

from elude_nb.checks import check_count
from elude_nb.disentanglement import Disentanglement
from elude_nb.routing import NO_CONCEPT


def find_speakers(split: Disentanglement, sources: Tensor, *, count: int = 12) -> pd.DataFrame:
    """Return the sub-units that are most active at one token.

    Parameters
    ----------
    split
        The disentanglement.
    sources
        The token's sources less their mean over the discovery, (s * kernel,), as `elude_nb.gallery.look` returns them.
    count
        How many.

    Returns
    -------
    DataFrame
        ``channel``, ``unit``, ``concept``, ``name``, ``activation`` (turned round for a sub-unit that is low on its
        concept) and ``deviations``: the activation over the standard deviation of its channel; rows are sorted by it.

    Raises
    ------
    ValueError
        If the number of sources is not the site's.
    """
    width = split.weight.shape[1]
    check_count("count", count)
    if sources.shape != (width,):
        raise ValueError(f"sources must be ({width},), those of one token, not {tuple(sources.shape)}.")
    products = (split.weight * sources.to(split.weight)).unflatten(1, (-1, split.site.kernel)).sum(2)  # (d, s)
    empty = products.new_zeros(len(products), split.routing.units + 1)
    values = empty.scatter_add_(1, split.routing.routes.long(), products) * split.signs
    deviations = values / split.channel_variance.to(values).sqrt().clamp(min=1e-12)[:, None]
    deviations[:, 0] = -torch.inf  # the shared unit says nothing by itself
    deviations.masked_fill_(split.routing.sizes() == 0, -torch.inf)
    best = deviations.flatten().topk(min(count, deviations.numel())).indices
    best = best[deviations.flatten()[best].isfinite()]
    channels, units = (best // deviations.shape[1]).tolist(), (best % deviations.shape[1]).tolist()
    concepts = [int(split.routing.concepts[c, u - 1]) for c, u in zip(channels, units, strict=True)]
    return pd.DataFrame(
        {
            "channel": channels,
            "unit": units,
            "concept": pd.array([None if c == NO_CONCEPT else c for c in concepts], dtype="Int64"),
            "name": [split.names.get(concept, "") for concept in concepts],
            "activation": values.flatten()[best].tolist(),
            "deviations": deviations.flatten()[best].tolist(),
        }
    )
