"""elude_nb: take the channels of a pretrained vision model apart, without changing its outputs."""

from elude_nb.comparison import compare
from elude_nb.discovery import disentangle, estimate
from elude_nb.disentanglement import Disentanglement
from elude_nb.embedding import embed
from elude_nb.exactness import ExactnessError, verify
from elude_nb.exemplars import find_exemplars
from elude_nb.finding import find_site, find_sites
from elude_nb.identity import ModelMismatchError
from elude_nb.images import ImageError, ImageSet, load_images
from elude_nb.models import Model, load_model, wrap_network
from elude_nb.recording import Recording, record
from elude_nb.scores import score
from elude_nb.sites import Site, SiteError
from elude_nb.store import StoreError
from elude_nb.weights import WeightsError

__version__ = "0.1.0"

__all__ = [
    "Disentanglement",
    "ExactnessError",
    "ImageError",
    "ImageSet",
    "Model",
    "ModelMismatchError",
    "Recording",
    "Site",
    "SiteError",
    "StoreError",
    "WeightsError",
    "compare",
    "disentangle",
    "embed",
    "estimate",
    "find_exemplars",
    "find_site",
    "find_sites",
    "load_images",
    "load_model",
    "record",
    "score",
    "verify",
    "wrap_network",
]
