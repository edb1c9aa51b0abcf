"""How fine a split should be: scores of sub-units along the size of the smallest cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import pandas as pd

from elude_nb._util.checks import check_kind
from elude_nb.baselines.compare import compare
from elude_nb.baselines.split import SubUnits
from elude_nb.core.elude import EludeRouting
from elude_nb.data.images import Images
from elude_nb.models.find_sites import find_site
from elude_nb.models.load import Model


def granularity(
    model: Model,
    images: Images,
    site: str,
    *,
    min_cluster_sizes: Sequence[float] = (3, 5, 8, 16, 30),
    routing: EludeRouting | None = None,
    tokens: str = "all",
    seed: int = 0,
    **settings: Any,
) -> pd.DataFrame:
    """Split a site by smaller and by larger clusters, and score each split on images that its discovery has not seen.

    Few coarse sub-units have high MS-Scores, and many fine ones find more labels. So choose by both:
    `elude_nb.figures.granularity_curve` shows them along the expansion factor.

    Parameters
    ----------
    model, images, site, tokens, seed
        As in `elude_nb.compare`: half of the images are for the discovery. The tokens are recorded once.
    min_cluster_sizes
        Each makes a split; whole numbers of instances, or fractions of ``top_k`` as `EludeRouting` has them.
    routing
        Its other settings are followed; by default the signed rule.
    settings
        Others of `elude_nb.compare`, such as ``tokens_per_image``, ``n_units`` and ``k``.

    Returns
    -------
    DataFrame
        One row a size of clusters and choice of units: ``min_cluster_size``, ``expansion_factor`` (live sub-units a
        channel), then the columns of `elude_nb.baselines.compare.Compared.table`: ``size``, ``units`` and the scores.

    Raises
    ------
    TypeError, ValueError
        If there is no size or one comes twice, one is out of range, or as `elude_nb.compare` does.
    """
    routing = EludeRouting(rule="signed", seed=seed) if routing is None else routing
    check_kind("routing", routing, EludeRouting, "an EludeRouting")
    if not len(min_cluster_sizes) or len(set(min_cluster_sizes)) < len(min_cluster_sizes):
        raise ValueError(f"min_cluster_sizes={list(min_cluster_sizes)} must be at least one size, and none twice.")
    place, methods = find_site(model, site), dict[str, SubUnits]()
    for least in min_cluster_sizes:
        name = f"min_cluster_size={least}"
        how = replace(routing, min_cluster_size=least)
        methods[name] = SubUnits(model, place, routing=how, tokens=tokens, seed=seed, name=name)
    found = compare(model, images, site, methods=list(methods.values()), tokens=tokens, seed=seed, **settings)
    names, fitted = found.table["method"].tolist(), cast("Mapping[str, SubUnits]", found.methods)
    factors = {name: len(method.split_.live_units) / place.channels for name, method in fitted.items()}
    table = found.table.drop(columns="method")
    table.insert(0, "min_cluster_size", [dict(zip(methods, min_cluster_sizes, strict=True))[name] for name in names])
    table.insert(1, "expansion_factor", [factors[name] for name in names])
    return table
