"""ELUDe on one channel, step by step: its instances, contributions, clusters, shares, and their sum."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pandas as pd
import torch
from torch import Tensor

from elude_nb._util.arithmetic import own_arithmetic
from elude_nb._util.checks import check_count, check_kind
from elude_nb.core.elude import EludeRouting, Instances
from elude_nb.core.one_pass import plan_pass, run_pass
from elude_nb.core.recording import Recording
from elude_nb.core.routing import Routing
from elude_nb.data.images import Images
from elude_nb.models.hooks import for_analysis
from elude_nb.models.load import Model, check_model


@dataclass(frozen=True, eq=False)
class ChannelTrace:
    """What each step of ELUDe makes of one channel, from `trace_channel`.

    Attributes
    ----------
    channel
        The channel ``u``.
    values
        Step 1: the channel at every token, without its bias, the highest first, (t,); the first ``n`` are its
        instances.
    contributions
        Step 2: ``W[u, j] * q[j]`` of each instance, (n, s). Scaled to length 1, they are clustered.
    groups
        Step 3: the cluster of each instance, or -1 for noise, (n,).
    shares
        Step 4: which part of each source's contribution each sub-unit has, (k, s); a column adds up to 1.
    units
        Step 5: each sub-unit at each instance, (n, k): ``contributions @ shares.T``. A row adds up to the channel.
    routing
        The routing of this channel alone, d = 1.
    reason
        ``"split"``, or why not.
    recording, weight
        What was seen at the tokens, and W (d, s, kernel).
    """

    channel: int
    values: Tensor
    contributions: Tensor
    groups: Tensor
    shares: Tensor
    units: Tensor
    routing: Routing
    reason: str
    recording: Recording = field(repr=False)
    weight: Tensor = field(repr=False)

    def under(self, routing: EludeRouting) -> ChannelTrace:
        """Return the same channel, at the same tokens, under other settings; no image is run.

        Raises
        ------
        TypeError
            If ``routing`` is no `EludeRouting`.
        """
        check_kind("routing", routing, EludeRouting, "an EludeRouting")
        return _trace(self.recording, self.weight, self.channel, routing)

    @property
    def largest_gap(self) -> float:
        """Largest difference between the sum of the sub-units and the channel at an instance: rounding only."""
        return float((self.units.sum(1) - self.values[: len(self.units)]).abs().max())

    @property
    def table(self) -> pd.DataFrame:
        """One row a sub-unit: ``unit``, ``instances`` in its cluster, ``exclusive_sources``, ``own`` and ``others``.

        ``own`` is the sub-unit's mean on the instances of its cluster, ``others`` that on the instances of the others.
        """
        rows, sizes = [], self.routing.exclusive_sizes()[0]
        for unit in range(self.units.shape[1]):
            mine, others = self.groups == unit, (self.groups >= 0) & (self.groups != unit)
            rows.append(
                {
                    "unit": unit + 1,
                    "instances": int(mine.sum()),
                    "exclusive_sources": int(sizes[unit + 1]),
                    "own": float(self.units[mine, unit].mean()),
                    "others": float(self.units[others, unit].mean()),
                }
            )
        return pd.DataFrame(rows, columns=["unit", "instances", "exclusive_sources", "own", "others"])

    def __repr__(self) -> str:
        n, s = self.contributions.shape
        return f"ChannelTrace(channel {self.channel}: {n} instances of {s} sources, {self.reason})"


@own_arithmetic()
def trace_channel(
    model: Model,
    images: Images,
    channel: int,
    site: str,
    *,
    routing: EludeRouting | None = None,
    tokens: str = "all",
    tokens_per_image: int | None = 24,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool | None = None,
) -> ChannelTrace:
    """Follow ELUDe (arXiv 2605.31304, section 3) on one channel and keep what each step makes.

    Parameters
    ----------
    model, images, site, tokens, tokens_per_image, seed
        As in `elude_nb.disentangle`; the site is a layer.
    channel
        The channel.
    routing
        The settings; by default those of the published method. Its ``max_tokens`` of the tokens are followed.
    batch_size, progress
        In place of the model's own settings.

    Raises
    ------
    SiteError, ValueError
        If the site cannot be split, there is no such channel, or there are too few tokens.
    """
    check_model(model)
    strategy = EludeRouting(seed=seed) if routing is None else routing
    check_kind("routing", strategy, EludeRouting, "an EludeRouting")
    planned = plan_pass(
        model,
        images,
        site,
        purpose="trace_channel",
        routing=replace(strategy, instances="tokens"),
        tokens=tokens,
        tokens_per_image=tokens_per_image,
        seed=seed,
        batch_size=batch_size,
        progress=progress,
    )
    place = planned.place
    check_count("channel", channel, 0, place.channels - 1)
    seen = run_pass(planned).sample(strategy.max_tokens)
    weight = for_analysis(place.weight(model.network)).unflatten(1, (-1, place.kernel))
    return _trace(seen, weight, channel, strategy)


@own_arithmetic()
def _trace(seen: Recording, weight: Tensor, channel: int, routing: EludeRouting) -> ChannelTrace:
    found = Instances(seen.sources, seen.channels, torch.ones(len(seen)))
    clusters, one = routing.trace(weight, found, channel)
    shares = one.fractions(0)[1 : 1 + len(clusters)].to(clusters.contributions)
    values = seen.sources @ weight[channel].flatten()
    order = torch.cat([clusters.chosen, _others(clusters.chosen, seen.channels[:, channel])])
    return ChannelTrace(
        channel, values[order], clusters.contributions, clusters.groups, shares, clusters.contributions @ shares.T, one,
        one.reasons[0], seen, weight,
    )  # fmt: skip


def _others(chosen: Tensor, values: Tensor) -> Tensor:
    """Return the instances that were not chosen, the highest first."""
    order = values.argsort(descending=True)
    return order[~torch.isin(order, chosen)]
