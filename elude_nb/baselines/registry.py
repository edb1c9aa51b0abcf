"""All methods by name, each made from one plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from elude_nb.baselines.base import Method
from elude_nb.baselines.channel_splits import OverlappingGroups, TwoClassSplit, VirtualNeurons
from elude_nb.baselines.linear import ICA, NMF, PCA, Channels, HiddenUnits, KMeansDirections
from elude_nb.baselines.sae import BatchTopK, Matryoshka, ReLU, TopK
from elude_nb.baselines.split import Concepts, RandomRoutes, SubUnits
from elude_nb.models.hooks import for_analysis
from elude_nb.models.load import Model
from elude_nb.models.sites import Site


@dataclass(frozen=True)
class Plan:
    """What methods are made from; `elude_nb.compare` says what each setting means."""

    model: Model
    site: Site
    units: int = 128
    concepts: int = 64
    sub_units: int = 8
    shared: float = 0.8
    sparsity: int = 8
    tokens: str = "patch"
    seed: int = 0

    def splitting(self, **other: Any) -> dict[str, Any]:
        """Return the arguments of a method that splits channels."""
        settings = {
            "concepts": self.concepts, "units": self.sub_units, "shared": self.shared, "tokens": self.tokens,
            "seed": self.seed,
        }  # fmt: skip
        return {"model": self.model, "site": self.site, **settings, **other}

    def weights(self) -> dict[str, Any]:
        """Return the site's weights, as the parents want them."""
        network = self.model.network
        return {
            "weight": for_analysis(self.site.weight(network)),
            "bias": for_analysis(self.site.bias(network)),
            "kernel": self.site.kernel,
        }

    def hidden(self) -> slice:
        """Return which sources are the hidden units of the last layer."""
        width = self.site.terms[-1].sources * self.site.kernel
        return slice(self.site.sources * self.site.kernel - width, None)


METHODS: dict[str, Callable[[Plan], Method]] = {
    "sub-units": lambda plan: SubUnits(**plan.splitting()),
    "concepts": lambda plan: Concepts(**plan.splitting(concepts=plan.units)),
    "random routes": lambda plan: RandomRoutes(**plan.splitting()),
    "channels": lambda _: Channels(),
    "hidden units": lambda plan: HiddenUnits(plan.hidden()),
    "PCA": lambda plan: PCA(plan.units, seed=plan.seed),
    "ICA": lambda plan: ICA(plan.units, seed=plan.seed),
    "NMF": lambda plan: NMF(plan.units, seed=plan.seed),
    "k-means": lambda plan: KMeansDirections(plan.units, seed=plan.seed),
    "virtual neurons": lambda plan: VirtualNeurons(**plan.weights(), seed=plan.seed),
    "two-class split": lambda plan: TwoClassSplit(**plan.weights()),
    "overlapping groups": lambda plan: OverlappingGroups(**plan.weights()),
    "TopK SAE": lambda plan: TopK(plan.units, plan.sparsity, seed=plan.seed),
    "BatchTopK SAE": lambda plan: BatchTopK(plan.units, plan.sparsity, seed=plan.seed),
    "ReLU SAE": lambda plan: ReLU(plan.units, seed=plan.seed),
    "Matryoshka SAE": lambda plan: Matryoshka(plan.units, plan.sparsity, seed=plan.seed),
}
"""Every method by the name it has in tables; each makes a method that is not fitted yet."""
