"""Baselines: other ways to represent a site's tokens by units, all with the interface of `Method`."""

from elude_nb.baselines.base import Method
from elude_nb.baselines.channel_splits import OverlappingGroups, TwoClassSplit, VirtualNeurons, merge_error
from elude_nb.baselines.granularity import granularity
from elude_nb.baselines.linear import ICA, NMF, PCA, Channels, HiddenUnits, KMeansDirections
from elude_nb.baselines.registry import METHODS, Plan
from elude_nb.baselines.sae import BatchTopK, Matryoshka, ReLU, SparseAutoencoder, TopK
from elude_nb.baselines.split import Concepts, RandomRoutes, SubUnits
from elude_nb.errors import NotFittedError

__all__ = [
    "ICA", "METHODS", "NMF", "PCA", "BatchTopK", "Channels", "Concepts", "HiddenUnits", "KMeansDirections",
    "Matryoshka", "Method", "NotFittedError", "OverlappingGroups", "Plan", "RandomRoutes", "ReLU",
    "SparseAutoencoder", "SubUnits", "TopK", "TwoClassSplit", "VirtualNeurons", "granularity",
    "merge_error",
]  # fmt: skip
