from . import baselines as baselines
from . import errors as errors
from . import figures as figures
from . import interpret as interpret
from . import scores as scores
from . import steering as steering
from . import text as text
from . import widgets as widgets
from .baselines.compare import compare
from .core.disentangle import disentangle
from .core.edit import Edit
from .core.elude import EludeRouting
from .core.recording import Recording, record
from .core.result import Disentanglement
from .core.verify import verify
from .data.images import ImageSet, load_images
from .examples.finished import example
from .interpret.attribution import attribute
from .interpret.exemplars import find_exemplars
from .interpret.find_units import find_units
from .interpret.naming import name_concepts
from .models.find_sites import find_site, find_sites
from .models.forward import embed
from .models.load import Model, load_model, wrap_network
from .models.sites import Site
from .scores.overview import score
from .steering.effects import effect
from .steering.heads import fit_head

__version__: str
__all__ = [
    "Disentanglement",
    "Edit",
    "EludeRouting",
    "ImageSet",
    "Model",
    "Recording",
    "Site",
    "attribute",
    "compare",
    "disentangle",
    "effect",
    "embed",
    "example",
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
