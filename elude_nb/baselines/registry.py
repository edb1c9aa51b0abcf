"""All methods by name, each made from the same settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from elude_nb.baselines.base import Method
from elude_nb.baselines.channel_splits import OverlappingGroups, TwoClassSplit, VirtualNeurons
from elude_nb.baselines.linear import ICA, NMF, PCA, Channels, HiddenUnits, KMeansDirections
from elude_nb.baselines.overcomplete import KINDS, Overcomplete
from elude_nb.baselines.sae import Matryoshka, TopK, Transcoder
from elude_nb.baselines.split import Concepts, RandomRoutes, SubUnits
from elude_nb.core.elude import EludeRouting
from elude_nb.models.hooks import for_analysis
from elude_nb.models.load import Model
from elude_nb.models.sites import Site


@dataclass(frozen=True)
class Plan:
    """The settings of methods; `elude_nb.compare` says what each means."""

    model: Model
    site: Site
    n_units: int = 128
    concepts: int = 64
    sub_units: int = 8
    shared: float | None = None
    sparsity: int = 8
    tokens: str = "patch"
    seed: int = 0

    def split_settings(self, **other: Any) -> dict[str, Any]:
        """Return the arguments of ELUDe's units."""
        settings = {"concepts": self.concepts, "units": self.sub_units, "shared": self.shared}
        shared = {"model": self.model, "site": self.site, "tokens": self.tokens, "seed": self.seed}
        return {**shared, **settings, **other}

    def weights(self) -> dict[str, Any]:
        """Return the site's weights, the arguments of methods that work on contributions."""
        network = self.model.network
        weight, bias = (for_analysis(each) for each in (self.site.weight(network), self.site.bias(network)))
        return {"weight": weight, "bias": bias, "kernel": self.site.kernel}

    def hidden(self) -> slice:
        """Return which sources are the hidden units of the last layer before the site."""
        width = self.site.terms[-1].sources * self.site.kernel
        return slice(self.site.sources * self.site.kernel - width, None)


def _of_overcomplete(kind: str, plan: Plan) -> Overcomplete:
    return Overcomplete(kind, plan.n_units, plan.sparsity, seed=plan.seed)


METHODS: dict[str, Callable[[Plan], Method]] = {
    "sub-units": lambda plan: SubUnits(**plan.split_settings()),
    "concepts": lambda plan: Concepts(**plan.split_settings(concepts=plan.n_units)),
    "random routes": lambda plan: RandomRoutes(**plan.split_settings()),
    "ELUDe as published": lambda plan: SubUnits(**plan.split_settings(routing="elude", name="ELUDe as published")),
    "signed rule": lambda plan: SubUnits(**plan.split_settings(routing="elude-signed", name="signed rule")),
    "random groups": lambda plan: SubUnits(
        **plan.split_settings(
            routing=EludeRouting(rule="signed", groups="random", seed=plan.seed), name="random groups"
        )
    ),
    "channels": lambda _: Channels(),
    "hidden units": lambda plan: HiddenUnits(plan.hidden()),
    "PCA": lambda plan: PCA(plan.n_units, seed=plan.seed),
    "ICA": lambda plan: ICA(plan.n_units, seed=plan.seed),
    "NMF": lambda plan: NMF(plan.n_units, seed=plan.seed),
    "k-means": lambda plan: KMeansDirections(plan.n_units, seed=plan.seed),
    "virtual neurons": lambda plan: VirtualNeurons(**plan.weights(), seed=plan.seed),
    "two-class split": lambda plan: TwoClassSplit(**plan.weights()),
    "overlapping groups": lambda plan: OverlappingGroups(**plan.weights()),
    "TopK SAE": lambda plan: TopK(plan.n_units, plan.sparsity, seed=plan.seed),
    "Matryoshka SAE": lambda plan: Matryoshka(plan.n_units, plan.sparsity, seed=plan.seed),
    "transcoder": lambda plan: Transcoder(plan.n_units, plan.sparsity, seed=plan.seed),
    **{f"{kind} SAE": partial(_of_overcomplete, kind) for kind in KINDS if kind != "TopK"},
}
"""Every method by the name it has in tables; each makes a method that is not fitted yet."""
