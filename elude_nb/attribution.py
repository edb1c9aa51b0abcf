"""Attribution: how much each sub-unit and each concept moved an output, by three methods that check each other.

Everything is counted from the baseline in which a sub-unit is at its mean over the discovery. All methods work at the
channels of the site: sub-units of a channel share its gradient, and add up to it.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from elude_nb.checks import check_choice, check_count
from elude_nb.disentanglement import Disentanglement
from elude_nb.edits import Edit
from elude_nb.images import Images, as_image_set
from elude_nb.plans import Accumulator, Plan, plan_edit
from elude_nb.progress import progress_bar
from elude_nb.recording import for_analysis
from elude_nb.resuming import Rest
from elude_nb.routing import NO_CONCEPT
from elude_nb.steering import moved_output
from elude_nb.taps import Tap, as_tokens, evaluating

METHODS = ("gradient", "integrated", "ablation")
Output = Callable[[Tensor], Tensor]
"""From outputs (n, e), as `elude_nb.replacing.features` reads them, to one number an image, (n,)."""


@dataclass(frozen=True, eq=False)
class Attribution:
    """How much each sub-unit and each concept moved an output, averaged over the images.

    Attributes
    ----------
    units
        One row a sub-unit (shared units have no say): ``channel``, ``unit``, ``concept`` and a column a method, the
        strongest first. ``ablation`` is measured for the strongest only, and NaN elsewhere.
    concepts
        The same for concepts: the sum over their sub-units; of the ablation, all of them taken away at once.
    agreement
        Pearson and Spearman correlation of each pair of methods, over concepts and over sub-units.
    completeness
        For gradient and integrated gradients: what all sub-units together moved the output (``difference``), the
        ``sum`` of their attributions, and the ``gap`` between the two.
    exact
        Whether the rest of the network is linear in the site, up to rounding: then gradient times activation is no
        estimate, and all methods are equal.
    per_image
        For each method that gives one for all, the attributions to concepts, image by image: (n, g).
    """

    units: pd.DataFrame
    concepts: pd.DataFrame
    agreement: pd.DataFrame
    completeness: pd.DataFrame
    exact: bool
    per_image: dict[str, Tensor]

    def __str__(self) -> str:
        lines = [
            f"{row.of}, {row.first} and {row.second}: r = {row.pearson:.3f}, rank r = {row.spearman:.3f} ({row.count})"
            for row in self.agreement.itertuples()
        ]
        lines += [
            f"{row.Index}: sum {row.sum:.4g}, moved by {row.difference:.4g}, gap {row.gap:.2g}"
            for row in self.completeness.itertuples()
        ]
        return "\n".join([*lines, f"the rest of the network is {'' if self.exact else 'not '}linear here"])

    def __repr__(self) -> str:
        return f"Attribution({len(self.concepts)} concepts, {len(self.units):,} sub-units)"

    def _repr_html_(self) -> str:
        table = self.concepts.head(10).to_html(index=False, float_format="{:.3f}".format)
        return f"{table}<pre>{html.escape(str(self))}</pre>"


def attribute(
    split: Disentanglement,
    images: Images,
    output: int | Output,
    *,
    methods: Sequence[str] = METHODS,
    tokens: str = "all",
    steps: int = 32,
    ablate_units: int = 32,
    batch_size: int = 8,
    progress: bool = False,
) -> Attribution:
    """Attribute an output to sub-units and concepts.

    Parameters
    ----------
    split, images
        The split, and the images on which the output is explained.
    output
        A column of the model's outputs (as `elude_nb.replacing.features` reads them), or a function from these, (n, e),
        to one number an image, through which gradients flow: `LinearProbe.logit` or `LinearProbe.margin`.
    methods
        ``"gradient"``: gradient times activation (Shrikumar et al. 2016, arXiv 1605.01713). ``"integrated"``:
        integrated gradients (Sundararajan et al. 2017, arXiv 1703.01365, equation 1), along the straight line from the
        baseline.
        ``"ablation"``: the output less what it is without.
    tokens
        At which tokens sub-units count: ``"all"``, ``"class"``, ``"registers"`` or ``"patch"``.
    steps
        Nodes of the Gauss-Legendre rule of the integral.
    ablate_units
        How many sub-units are ablated one by one, those strongest by the other methods.
    batch_size, progress
        Images in one forward pass, and whether to show a bar.

    Raises
    ------
    ValueError
        If a method or the column is unknown, or the output is not one finite number an image.
    """
    chosen = [check_choice("methods", m, METHODS) for m in ([methods] if isinstance(methods, str) else methods)]
    check_count("steps", steps)
    check_count("ablate_units", ablate_units, 0)
    photos = as_image_set(images)
    if not len(photos) or not chosen:
        raise ValueError("attribute needs at least one image and one method.")
    work = _Work(split, output, tokens)
    found: dict[str, list[Tensor]] = {name: [] for name in ("gradient", "integrated")}
    gaps, linear = [], True
    with (
        evaluating(split.model.network),
        progress_bar(description="attribution", total=len(photos), show=progress, unit="image") as bar,
    ):
        for batch in split.model.batches(photos, batch_size):
            part = work.gradients(batch, steps if "integrated" in chosen else 0)
            for name, values in part.attributions.items():
                found[name].append(values)
            gaps.append(part.difference)
            linear = linear and part.linear
            bar.update(len(batch))
        gathered = {name: torch.cat(parts) for name, parts in found.items() if parts}  # (n, d, k + 1)
        units, concepts = _tables(split, {name: gathered[name] for name in chosen if name in gathered})
        if "ablation" in chosen:
            best = _strongest(units, gathered["gradient"], ablate_units)
            _add_ablations(work, photos, batch_size, units, concepts, best)
    first = next(name for name in ("integrated", "gradient", "ablation") if name in chosen)
    difference = float(torch.cat(gaps).mean())
    return Attribution(
        units.sort_values(first, key=np.abs, ascending=False, ignore_index=True),
        concepts.sort_values(first, key=np.abs, ascending=False, ignore_index=True),
        _agreement({"concepts": concepts, "sub-units": units}, chosen),
        _completeness({name: gathered[name] for name in chosen if name in gathered}, difference),
        linear,
        {name: _by_concept(split, gathered[name]) for name in chosen if name in gathered},
    )


@dataclass(frozen=True, eq=False)
class _Part:
    attributions: dict[str, Tensor]  # (n, d, k + 1)
    difference: Tensor  # (n,), the output less that of the baseline
    linear: bool


class _Work:
    """One split and one output; called inside ``evaluating(network)``."""

    def __init__(self, split: Disentanglement, output: int | Output, tokens: str) -> None:
        self.split, self._output, self._tokens = split, output, tokens
        self.network, self.site = split.model.network, split.site
        self.rest = Rest(split.model, split.site)
        self._positions = split.site.layout.positions(tokens)
        channels, numbers = split.routing.rows()
        pairs = torch.stack([channels, numbers], dim=1)[numbers > 0].tolist()
        if not pairs:
            raise ValueError("No channel was split; there are no sub-units to attribute to.")
        self._all = self.plan(Edit.ablate(unit=pairs, tokens=tokens))
        self._routes = split.routing.routes.long()

    def plan(self, edit: Edit) -> Plan:
        return plan_edit(self.split, edit).to(self.split.model.device)

    def ablation(self, **what: object) -> Plan:
        return self.plan(Edit.ablate(tokens=self._tokens, **what))  # type: ignore[arg-type]

    def captured(self, batch: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """Return the exit's output, the sources of each term and the output explained, (n,)."""
        sources: dict[int, Tensor] = {}
        with Tap(self.network, self.site, on_source=sources.__setitem__):
            captured, outputs = self.rest.capture(batch)
        return captured, [sources[number] for number in range(len(self.site.terms))], self.value(outputs)

    def value(self, outputs: Tensor) -> Tensor:
        """Return the output explained, (n,)."""
        if isinstance(self._output, int):
            check_count("output", self._output, 0, outputs.shape[1] - 1)
            return outputs[:, self._output]
        found = self._output(outputs)
        if not isinstance(found, Tensor) or found.shape != outputs.shape[:1]:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"output must give one number an image, ({len(outputs)},), not {shape}.")
        if not bool(found.isfinite().all()):
            raise ValueError("output gave a value that is not finite.")
        return found

    def moved(self, captured: Tensor, sources: list[Tensor], plan: Plan) -> Tensor:
        """Return the exit's output with a plan's change."""
        gathered = Accumulator(plan, self.site)
        for number, tokens in enumerate(sources):
            gathered.see_tokens(number, tokens)
        return moved_output(self.network, self.site, plan, gathered.take(), captured)

    def gradients(self, batch: Tensor, steps: int) -> _Part:
        captured, sources, value = self.captured(batch)
        baseline = self.moved(captured, sources, self._all)
        here, there = self._gradient(batch, captured), self._gradient(batch, baseline)
        scale = torch.finfo(here.dtype).eps * float(here.abs().max())
        linear = bool((here - there).abs().max() <= 1e3 * scale)
        attributions = {"gradient": self._gathered(here, sources)}
        if steps:
            nodes, weights = np.polynomial.legendre.leggauss(steps)  # on [-1, 1]
            mean = torch.zeros_like(here)
            for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
                mean += weight * self._gradient(batch, baseline + float(node) * (captured - baseline))
            attributions["integrated"] = self._gathered(mean, sources)
        without = self.value(self.rest(batch, baseline))
        return _Part(attributions, for_analysis(value - without), linear)

    def _gradient(self, batch: Tensor, captured: Tensor) -> Tensor:
        """Return the output's gradient by the channels, (n, t, d)."""
        leaf = captured.detach().requires_grad_()
        with torch.enable_grad():
            value = self.value(self.rest(batch, leaf))
            (found,) = torch.autograd.grad(value.sum(), leaf, allow_unused=True)
        if found is None:
            raise ValueError("No gradient flows from output to the site; use torch operations only, without detach().")
        tokens = as_tokens(found, channels_last=self.site.kind != "convolution")
        everywhere = torch.arange(self.site.channels, device=tokens.device)
        return self.site.captured_change(self.network, tokens, everywhere)

    def _gathered(self, gradient: Tensor, sources: list[Tensor]) -> Tensor:
        """Return gradient times activation, summed over tokens and over each unit's contributions, (n, d, k + 1)."""
        weight, mean = self.split.weight, self.split.book.source_mean().to(self.split.weight.dtype)
        rows = []
        for image in range(len(gradient)):
            g = for_analysis(gradient[image, self._positions]).to(weight.dtype)  # (t, d)
            a = torch.cat([for_analysis(term[image, self._positions]) for term in sources], dim=1).to(weight.dtype)
            products = weight * (g.T @ a - g.sum(0)[:, None] * mean)  # (d, s * kernel)
            products = products.unflatten(1, (-1, self.site.kernel)).sum(2)  # (d, s)
            empty = products.new_zeros(len(products), self.split.routing.units + 1)
            rows.append(empty.scatter_add_(1, self._routes, products))
        return torch.stack(rows)


def _tables(split: Disentanglement, found: dict[str, Tensor]) -> tuple[pd.DataFrame, pd.DataFrame]:
    units = split.units
    units = units[units["unit"] > 0].drop(columns=["sources", "share of variance", "mean on concept"])
    units = units.reset_index(drop=True)
    present = sorted(set(split.routing.concepts.unique().tolist()) - {NO_CONCEPT})
    concepts = pd.DataFrame({"concept": present})
    if split.names:
        concepts["name"] = [split.names.get(concept, "") for concept in present]
    for name, values in found.items():
        units[name] = values.mean(0)[_places(units)].numpy()
        concepts[name] = _by_concept(split, values).mean(0)[present].numpy()
    return units, concepts


def _places(units: pd.DataFrame) -> tuple[Tensor, Tensor]:
    return torch.tensor(units["channel"].tolist()), torch.tensor(units["unit"].tolist())


def _by_concept(split: Disentanglement, values: Tensor) -> Tensor:
    """Return attributions (n, d, k + 1) summed over each concept's sub-units, (n, g)."""
    owners = split.routing.concepts.flatten()
    sums = values.new_zeros(len(values), len(split.book) + 1)  # the last column takes what no concept owns
    owners = torch.where(owners == NO_CONCEPT, len(split.book), owners)
    return sums.index_add_(1, owners, values[:, :, 1:].flatten(1))[:, :-1]


def _strongest(units: pd.DataFrame, gradient: Tensor, count: int) -> list[int]:
    """Return the rows of the sub-units that are strongest by gradient times activation."""
    strength = gradient.mean(0).abs()[_places(units)]
    return strength.topk(min(count, len(units))).indices.tolist()


def _add_ablations(
    work: _Work, photos: Sequence[object], batch_size: int, units: pd.DataFrame, concepts: pd.DataFrame, best: list[int]
) -> None:
    """Measure what the output loses without each concept, and without each of some sub-units."""
    plans = [work.ablation(concept=int(concept)) for concept in concepts["concept"]]
    pairs = units.loc[best, ["channel", "unit"]].to_numpy().tolist()
    plans += [work.ablation(unit=tuple(pair)) for pair in pairs]
    total, count = torch.zeros(len(plans), dtype=torch.float64), 0
    for batch in work.split.model.batches(photos, batch_size):  # type: ignore[arg-type]
        captured, sources, value = work.captured(batch)
        for number, plan in enumerate(plans):
            without = work.value(work.rest(batch, work.moved(captured, sources, plan)))
            total[number] += for_analysis(value - without).double().sum()
        count += len(batch)
    means = (total / count).numpy()
    concepts["ablation"] = means[: len(concepts)]
    units["ablation"] = np.nan
    units.loc[best, "ablation"] = means[len(concepts) :]


def _agreement(tables: dict[str, pd.DataFrame], methods: Sequence[str]) -> pd.DataFrame:
    rows = []
    for of, table in tables.items():
        for first, second in combinations(methods, 2):
            pair = table[[first, second]].dropna()
            correlations = {how: _correlation(pair, how) for how in ("pearson", "spearman")}
            rows.append({"of": of, "first": first, "second": second, **correlations, "count": len(pair)})
    return pd.DataFrame(rows, columns=["of", "first", "second", "pearson", "spearman", "count"])


def _correlation(pair: pd.DataFrame, how: str) -> float:
    values = pair.rank() if how == "spearman" else pair
    if len(values) < 2 or bool((values.nunique() < 2).any()):
        return float("nan")  # there is nothing to correlate
    return float(np.corrcoef(values.to_numpy().T)[0, 1])


def _completeness(found: dict[str, Tensor], difference: float) -> pd.DataFrame:
    sums = {name: float(values[:, :, 1:].sum((1, 2)).mean()) for name, values in found.items()}
    rows = {name: {"difference": difference, "sum": total, "gap": total - difference} for name, total in sums.items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["difference", "sum", "gap"])
