"""Baselines: other ways to represent a site's tokens by units, all with the interface of `Method`."""

from elude_nb.baselines.base import Method
from elude_nb.baselines.channel_splits import OverlappingGroups, TwoClassSplit, VirtualNeurons, merge_error
from elude_nb.baselines.granularity import granularity
from elude_nb.baselines.linear import ICA, NMF, PCA, Channels, HiddenUnits, KMeansDirections
from elude_nb.baselines.overcomplete import Overcomplete
from elude_nb.baselines.registry import METHODS, Plan
from elude_nb.baselines.sae import Matryoshka, SparseAutoencoder, TopK, Transcoder
from elude_nb.baselines.split import Concepts, RandomRoutes, SubUnits
from elude_nb.errors import NotFittedError

__all__ = [
    "ICA", "METHODS", "NMF", "PCA", "Channels", "Concepts", "HiddenUnits", "KMeansDirections", "Matryoshka", "Method",
    "NotFittedError", "Overcomplete", "OverlappingGroups", "Plan", "RandomRoutes", "SparseAutoencoder", "SubUnits",
    "TopK", "Transcoder", "TwoClassSplit", "VirtualNeurons", "granularity", "merge_error",
]  # fmt: skip
