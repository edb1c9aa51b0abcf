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

from elude_nb._util.arguments import knows_arguments
from elude_nb._util.arithmetic import own_arithmetic
from elude_nb._util.checks import check_choice, check_count
from elude_nb._util.words import counted
from elude_nb.core.edit import Edit
from elude_nb.core.plan import Plan, plan_edit
from elude_nb.core.result import Disentanglement, check_split
from elude_nb.core.routing import NO_CONCEPT
from elude_nb.core.steer import moved_output
from elude_nb.data.images import Images
from elude_nb.models.forward import Read, Rest, features
from elude_nb.models.hooks import as_tokens, evaluating, for_analysis
from elude_nb.models.layers import quantised_layers
from elude_nb.steering.interventions import capture_sources, change_of

METHODS = ("gradient", "integrated", "ablation")
Output = Callable[[Tensor], Tensor]
"""From outputs (n, e) to one number an image, (n,), each image by itself; gradients flow through it."""
_COARSE = 1e-4  # half precision rounds off more than tells a linear network from one that is not


@dataclass(frozen=True, eq=False)
class Attribution:
    """How much each sub-unit and each concept moved an output, averaged over the images.

    Attributes
    ----------
    units
        One row a sub-unit: ``channel``, ``unit``, ``concept`` and a column a method, the strongest first by
        ``integrated`` (or the first method there is). ``ablation`` is NaN where it was not measured.
    concepts
        The same for concepts: the sum over their sub-units; of the ablation, all of them taken away at once.
    agreement
        Pearson and Spearman correlation of each pair of methods, over concepts and over sub-units. ``count`` says over
        how many: the sub-units ablated are the strongest by gradient, and among these methods agree less easily.
    completeness
        For gradient and integrated gradients: by what all sub-units together moved the output (``difference``), the
        ``sum`` of their attributions, the ``gap`` between the two, and the ``relative_gap``: sum over images of the
        absolute gap over that of the absolute difference, so that images do not cancel.
    exact
        Whether the rest of the network was linear, up to rounding: on every image the gradient is the same wherever it
        was taken and its attributions are complete, and every ablation measured is what it says. Half precision cannot
        tell; there it is never true.
    shared
        Gradient times activation of all contributions that belong to no sub-unit (unit 0 of each channel; bias and
        what enters the site not counted). It has no row, since the baseline leaves unit 0 as they are.
    per_image
        Attributions to concepts by method, image by image: (n, g), the column being the concept's number.
    per_image_units
        The same for sub-units, (n, u), columns in the order of ``units``.
    """

    units: pd.DataFrame
    concepts: pd.DataFrame
    agreement: pd.DataFrame
    completeness: pd.DataFrame
    exact: bool
    shared: float
    per_image: dict[str, Tensor]
    per_image_units: dict[str, Tensor]

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
        return f"Attribution({counted(len(self.concepts), 'concept')}, {counted(len(self.units), 'sub-unit')})"

    def _repr_html_(self) -> str:
        table = self.concepts.head(10).to_html(index=False, float_format="{:.3f}".format)
        return f"{table}<pre>{html.escape(str(self))}</pre>"


@knows_arguments
@own_arithmetic()
def attribute(
    split: Disentanglement,
    images: Images,
    output: int | Output,
    *,
    methods: Sequence[str] = METHODS,
    tokens: str = "all",
    steps: int = 32,
    ablate_units: int = 64,
    batch_size: int | None = None,
    progress: bool | None = None,
    read: Read = features,
) -> Attribution:
    """Attribute an output to sub-units and concepts.

    Parameters
    ----------
    split, images
        The split, and the images on which the output is explained.
    output
        A column of what ``read`` returns, or a function from that, (n, e), to one number an image, through which
        gradients flow: `LinearProbe.logit` or `LinearProbe.margin`.
    methods
        ``"gradient"``: gradient times activation (Shrikumar et al. 2016, arXiv 1605.01713), summed over tokens.
        ``"integrated"``: integrated gradients (Sundararajan et al. 2017, arXiv 1703.01365, equation 1), along the
        straight line from the baseline. ``"ablation"``: the output less what it is without.
    tokens
        At which tokens sub-units count: ``"all"``, ``"class"``, ``"registers"`` or ``"patch"``.
    steps
        Nodes of the Gauss-Legendre rule of the integral.
    ablate_units
        How many sub-units are ablated one by one: the strongest by gradient times activation. Concepts all are.
    batch_size, progress
        In place of the model's own settings.
    read
        From the model and a prepared batch to outputs (n, e): by default `elude_nb.models.forward.features`.

    Raises
    ------
    TypeError, ValueError
        If a setting is unknown, or the output or its gradient is not one finite number an image.
    EditError
        If an edit of this split is active.

    Examples
    --------
    ``attribute(split, photos, probe.margin("cat", "dog")).concepts``
    """
    several = [methods] if isinstance(methods, str) else methods
    chosen = list(dict.fromkeys(check_choice("methods", method, METHODS) for method in several))
    check_count("steps", steps)
    check_count("ablate_units", ablate_units, 0)
    check_split(split, "attribute")
    split = split.using(batch_size=batch_size, progress=progress)
    if any(parameter.is_inference() for parameter in split.model.network.parameters()):
        raise ValueError(
            "attribute needs gradients, and weights made inside torch.inference_mode have none; make or load the "
            "network outside of it."
        )
    photos = split.model.inputs(images)
    if not len(photos) or not chosen:
        raise ValueError("attribute needs at least one image and one method.")
    work = _Work(split, output, tokens, read)
    steps = steps if "integrated" in chosen else 0
    with evaluating(split.model.network):
        parts = [work.gradients(batch, steps) for batch in split.model.batches(photos, "gradients")]
        found = _Found(split, parts, linear=work.linear)
        if "ablation" in chosen:
            removals = found.removals(ablate_units)
            batches = split.model.batches(photos, "ablations")
            found.add_ablations(torch.cat([work.ablations(batch, removals) for batch in batches]))
    return found.result(chosen)


_Part = tuple[dict[str, Tensor], Tensor]
"""Attributions of a batch by method, (n, d, k + 1) each, and its outputs less those of the baseline, (n,)."""


class _Work:
    """One split and one output; called inside ``evaluating(network)``."""

    linear = True  # until a batch shows that the rest of the network is not

    def __init__(self, split: Disentanglement, output: int | Output, tokens: str, read: Read) -> None:
        usable = callable(output) or hasattr(output, "__index__")  # whole numbers of numpy as well
        if isinstance(output, bool) or not usable:
            raise TypeError(f"output must be a column's number or a function of outputs (n, e), not {output!r}.")
        self.split, self._output, self._tokens = split, output, tokens
        self.network, self.site = split.model.network, split.site
        self._positions = split.site.layout.positions(tokens)
        channels, numbers = split.routing.rows()
        pairs = torch.stack([channels, numbers], dim=1)[numbers > 0].tolist()
        if not pairs:
            raise ValueError("No channel was split; there are no sub-units to attribute to.")
        self._all = self._plan({"unit": pairs})
        self.rest = Rest(split.model, split.site, read)

    def gradients(self, batch: Tensor, steps: int) -> _Part:
        """Return gradient times activation, and with ``steps`` integrated gradients, of a batch."""
        captured, outputs, sources = capture_sources(self.rest, batch)
        value, baseline = self._value(outputs), self._moved(captured, sources, self._all)
        here, there = self._gradient(batch, captured), self._gradient(batch, baseline)
        eps, largest = torch.finfo(here.dtype).eps, float(here.abs().max())
        spread = float((here - there).abs().max())
        units = {"gradient": self._summed(here, sources)}
        if steps:
            nodes, weights = np.polynomial.legendre.leggauss(steps)  # on [-1, 1]
            mean = torch.zeros_like(here)
            for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
                between = self._gradient(batch, baseline + float(node) * (captured - baseline))
                mean += weight * between
                spread = max(spread, float((here - between).abs().max()))
            units["integrated"] = self._summed(mean, sources)
        difference = for_analysis(value - self._value(self.rest(batch, baseline)))
        parts = units["gradient"][:, :, 1:]
        gap = parts.sum((1, 2)) - difference
        size = parts.abs().sum((1, 2)) + for_analysis(value).abs() + difference.abs()
        complete = bool((gap.abs() <= 100 * eps * size).all())
        self.linear &= eps < _COARSE and complete and spread <= 100 * eps * largest
        return units, difference

    def ablations(self, batch: Tensor, removals: Sequence[dict[str, object]]) -> Tensor:
        """Return what the output loses by each removal, (n, r)."""
        captured, outputs, sources = capture_sources(self.rest, batch)
        value = self._value(outputs)
        lost = [for_analysis(value).new_zeros(len(value), 0)]
        for what in removals:
            # Plans are made anew for each batch: those of all concepts together are as large as all sub-units.
            without = self.rest(batch, self._moved(captured, sources, self._plan(what)))
            lost.append(for_analysis(value - self._value(without))[:, None])
        return torch.cat(lost, dim=1)

    def _plan(self, what: dict[str, object]) -> Plan:
        edit = Edit.ablate(tokens=self._tokens, **what)  # type: ignore[arg-type]
        return plan_edit(self.split, edit).to(self.split.model.device)

    def _moved(self, captured: Tensor, sources: list[Tensor], plan: Plan) -> Tensor:
        """Return the exit's output with a plan's change."""
        return moved_output(self.network, self.site, plan, change_of(plan, self.site, sources), captured)

    def _value(self, outputs: Tensor) -> Tensor:
        """Return the output explained, (n,)."""
        if callable(self._output):
            found = self._output(outputs)
        else:
            found = outputs[:, check_count("output", int(self._output), 0, outputs.shape[1] - 1)]
        if not isinstance(found, Tensor) or found.shape != outputs.shape[:1]:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"output must give one number an image, ({len(outputs)},), not {shape}.")
        if not bool(found.isfinite().all()):
            raise ValueError("output gave a value that is not finite.")
        return found

    def _gradient(self, batch: Tensor, captured: Tensor) -> Tensor:
        """Return the output's gradient by the channels, (n, t, d)."""
        leaf = captured.detach().requires_grad_()
        with torch.enable_grad():
            value = self._value(self.rest(batch, leaf))
            found = torch.autograd.grad(value.sum(), leaf, allow_unused=True)[0] if value.requires_grad else None
        if found is None:
            raise ValueError("No gradient flows from output to the site; use torch operations only, without detach().")
        whole = [] if bool(found.any()) else quantised_layers(self.network)
        if whole:
            raise ValueError(
                f"No gradient flows through quantised layers, such as {whole[0]!r}; take the network before it was "
                "quantised."
            )
        if not bool(found.isfinite().all()):
            raise ValueError("The gradient of output is not finite here; use a function that is smooth at its values.")
        tokens = as_tokens(found, channels_last=self.site.kind != "convolution")
        everywhere = torch.arange(self.site.channels, device=tokens.device)
        # A channel is the exit's output times the BatchNorm's scale, so its gradient is that of the output over it.
        return self.site.captured_change(self.network, tokens, everywhere)

    def _summed(self, gradient: Tensor, sources: list[Tensor]) -> Tensor:
        """Return gradient times activation, summed over tokens and over each unit's contributions, (n, d, k + 1)."""
        weight, mean = self.split.weight, self.split.book.source_mean().to(self.split.weight.dtype)
        rows = []
        for image in range(len(gradient)):
            g = for_analysis(gradient[image, self._positions]).to(weight.dtype)  # (t, d)
            a = torch.cat([for_analysis(term[image, self._positions]) for term in sources], dim=1).to(weight.dtype)
            products = weight * (g.T @ a - g.sum(0)[:, None] * mean)  # (d, s * kernel)
            products = products.unflatten(1, (-1, self.site.kernel)).sum(2)  # (d, s)
            rows.append(self.split.routing.add_by_unit(products))
        return torch.stack(rows)


class _Found:
    """Attributions image by image: to sub-units (n, u), in the order of ``rows``, and to concepts (n, g)."""

    def __init__(self, split: Disentanglement, parts: Sequence[_Part], *, linear: bool) -> None:
        table = split.units[split.units["unit"] > 0]
        self._rows = table.drop(columns=["sources", "share_of_variance", "mean_on_concept"]).reset_index(drop=True)
        where = torch.tensor(self._rows["channel"].tolist()), torch.tensor(self._rows["unit"].tolist())
        self._owners = split.routing.concepts[where[0], where[1] - 1]
        self._groups = len(split.book)
        present = sorted(set(self._owners.tolist()) - {NO_CONCEPT})
        self._present = pd.DataFrame({"concept": pd.Series(present, dtype="int64")})
        self._present = self._present.assign(**split.names.columns(present))
        summed = {name: torch.cat([units[name] for units, _ in parts]) for name in parts[0][0]}  # (n, d, k + 1)
        self._units = {name: values[:, where[0], where[1]] for name, values in summed.items()}
        self._concepts = {name: self._by_concept(values) for name, values in self._units.items()}
        self._shared = float(summed["gradient"][:, :, 0].sum(1).mean())
        self._difference, self._linear = torch.cat([difference for _, difference in parts]), linear

    def _by_concept(self, values: Tensor) -> Tensor:
        """Return the sums over each concept's sub-units: (n, u) to (n, g)."""
        owners = torch.where(self._owners == NO_CONCEPT, self._groups, self._owners)  # a last column for no concept
        return values.new_zeros(len(values), self._groups + 1).index_add_(1, owners, values)[:, :-1]

    def removals(self, count: int) -> list[dict[str, object]]:
        """Return what is to be ablated: every concept, then the ``count`` strongest sub-units, each alone."""
        strength = self._units["gradient"].mean(0).abs()
        self._best = strength.topk(min(count, len(strength))).indices
        pairs = self._rows.loc[self._best.tolist(), ["channel", "unit"]].to_numpy().tolist()
        concepts = self._present["concept"].tolist()
        return [{"concept": concept} for concept in concepts] + [{"unit": tuple(pair)} for pair in pairs]

    def add_ablations(self, lost: Tensor) -> None:
        """Take what the output lost by each removal, (n, r)."""
        present = self._present["concept"].tolist()
        for found, columns, values in (
            (self._concepts, present, lost[:, : len(present)]),
            (self._units, self._best.tolist(), lost[:, len(present) :]),
        ):
            expected = found["gradient"]
            found["ablation"] = torch.full_like(expected, torch.nan)
            found["ablation"][:, columns] = values.to(expected)
            size = expected.abs().sum(1, keepdim=True) + self._difference.abs()[:, None].to(expected)
            bound = 1000 * torch.finfo(self._difference.dtype).eps * size
            self._linear &= bool(((values - expected[:, columns]).abs() <= bound).all())

    def result(self, methods: Sequence[str]) -> Attribution:
        """Return tables of means over images, strongest first."""
        units, concepts = self._rows.copy(), self._present.copy()
        for name in methods:
            units[name] = self._units[name].mean(0).numpy()
            concepts[name] = self._concepts[name].mean(0)[self._present["concept"].tolist()].numpy()
        first = next(name for name in ("integrated", "gradient", "ablation") if name in methods)
        order = np.argsort(-units[first].abs().to_numpy(), kind="stable")  # what was not measured (NaN) comes last
        return Attribution(
            units=units.iloc[order].reset_index(drop=True),
            concepts=concepts.sort_values(first, key=np.abs, ascending=False, ignore_index=True),
            agreement=_agreement({"concepts": concepts, "sub-units": units}, methods),
            completeness=self._completeness([name for name in methods if name != "ablation"]),
            exact=self._linear,
            shared=self._shared,
            per_image={name: self._concepts[name] for name in methods},
            per_image_units={name: self._units[name][:, torch.from_numpy(order)] for name in methods},
        )

    def _completeness(self, methods: Sequence[str]) -> pd.DataFrame:
        rows, moved = {}, self._difference.double()
        for name in methods:
            sums = self._units[name].sum(1).double()
            relative = float((sums - moved).abs().sum() / moved.abs().sum()) if bool(moved.any()) else float("nan")
            mean, total = float(moved.mean()), float(sums.mean())
            rows[name] = {"difference": mean, "sum": total, "gap": total - mean, "relative_gap": relative}
        return pd.DataFrame.from_dict(rows, orient="index", columns=["difference", "sum", "gap", "relative_gap"])


def _agreement(tables: dict[str, pd.DataFrame], methods: Sequence[str]) -> pd.DataFrame:
    rows = []
    for of, table in tables.items():
        for first, second in combinations(methods, 2):
            pair = table[[first, second]].dropna()
            pearson, spearman = (pair.corr(method).iloc[0, 1] for method in ("pearson", "spearman"))
            rows.append((of, first, second, pearson, spearman, len(pair)))
    return pd.DataFrame(rows, columns=["of", "first", "second", "pearson", "spearman", "count"])
