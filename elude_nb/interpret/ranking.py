"""Which channels come apart best on the images of a gallery, from what it has cached: no forward pass is made."""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor

from elude_nb._util.arithmetic import own_arithmetic
from elude_nb._util.checks import check_count
from elude_nb.interpret.gallery import Gallery
from elude_nb.scores.overview import sort_by_separation
from elude_nb.scores.similarity import sibling_similarity, top_centres, top_similarity


@own_arithmetic()
def rank_channels(gallery: Gallery, *, k: int = 6, candidates: int = 12) -> pd.DataFrame:
    """Return the channels that come apart best on a gallery's images, the best first.

    All channels are compared by the read-outs of their sub-units' concepts, which cost next to nothing; the best of
    them by their sub-units themselves. Where sub-units have no concepts, the channels with the largest variance are.

    Parameters
    ----------
    gallery
        The images that are ready count, copies once.
    k
        How many best images of each unit are compared.
    candidates
        How many channels are compared by their sub-units.

    Returns
    -------
    DataFrame
        One row a candidate, by ``channel``: ``before``, the similarity of the channel's best images, ``after``, the
        mean of its sub-units', ``siblings``, how similar those of different sub-units are, and ``separation``, as in
        `elude_nb.scores.mixed_channels`. Empty if there are fewer than ``2 * k`` images or fewer than two sub-units in
        every channel.
    """
    check_count("k", k, 2)
    check_count("candidates", candidates)
    images, live = gallery.distinct, gallery.split.live_units
    live = live[live.groupby("channel")["unit"].transform("size") > 1]
    if len(images) < 2 * k or live.empty:
        return _separations(pd.Series(dtype=float), pd.Series(dtype=float), pd.Series(dtype=float))
    reference = gallery.outputs[images] - gallery.outputs[images].mean(0)

    def compare(whole: list[int], units: pd.DataFrame, values: Tensor) -> pd.DataFrame:
        """Compare channels, given what their sub-units are on each image, (n, u)."""
        channels = torch.tensor(units["channel"].tolist())
        best = gallery.maps_of([(channel, 0) for channel in whole]).amax(1)[images]
        before = pd.Series(top_similarity(best, reference, k).to_numpy(), index=whole)
        after = top_similarity(values, reference, k).groupby(channels.numpy()).mean()
        siblings = sibling_similarity(top_centres(values, reference, k), channels).groupby(channels.numpy()).mean()
        return _separations(before, after, siblings)

    if gallery.has_concepts:
        concepts = gallery.concept_maps.amax(1)[images][:, live["concept"].astype(int).tolist()]
        chosen = compare(live["channel"].unique().tolist(), live, concepts).index[:candidates]
    else:
        variance = gallery.split.channels.set_index("channel")["variance"]
        chosen = variance[live["channel"].unique()].nlargest(candidates).index
    units = live[live["channel"].isin(chosen)]
    pairs = list(zip(units["channel"].tolist(), units["unit"].tolist(), strict=True))
    signs = gallery.split.signs[units["channel"].tolist(), units["unit"].tolist()]
    return compare(chosen.tolist(), units, (gallery.maps_of(pairs) * signs).amax(1)[images])


def _separations(before: pd.Series[float], after: pd.Series[float], siblings: pd.Series[float]) -> pd.DataFrame:
    table = pd.DataFrame({"before": before, "after": after, "siblings": siblings}).dropna()
    return sort_by_separation(table.rename_axis("channel"))
