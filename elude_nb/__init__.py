"""elude_nb: take the channels of a pretrained vision model apart, without changing its outputs."""

from elude_nb import errors
from elude_nb.attribution import attribute
from elude_nb.comparison import compare
from elude_nb.discovery import disentangle, estimate
from elude_nb.disentanglement import Disentanglement
from elude_nb.edits import Edit
from elude_nb.effects import effect
from elude_nb.embedding import embed
from elude_nb.exactness import verify
from elude_nb.exemplars import find_exemplars
from elude_nb.finding import find_site, find_sites
from elude_nb.handles import find_units
from elude_nb.heads import fit_head
from elude_nb.images import ImageSet, load_images
from elude_nb.models import Model, load_model, wrap_network
from elude_nb.naming import name_concepts
from elude_nb.recording import Recording, record
from elude_nb.scores import score
from elude_nb.sites import Site

__version__ = "0.2.0"

__all__ = [
    "Disentanglement",
    "Edit",
    "ImageSet",
    "Model",
    "Recording",
    "Site",
    "attribute",
    "compare",
    "disentangle",
    "effect",
    "embed",
    "errors",
    "estimate",
    "find_exemplars",
    "find_site",
    "find_sites",
    "find_units",
    "fit_head",
    "load_images",
    "load_model",
    "name_concepts",
    "record",
    "score",
    "verify",
    "wrap_network",
]
