"""elude_nb: take the channels of a pretrained vision model apart, without changing its outputs."""

import importlib
from typing import Any

from elude_nb import errors
from elude_nb._util import moved
from elude_nb.baselines.compare import compare
from elude_nb.core.disentangle import disentangle
from elude_nb.core.edit import Edit
from elude_nb.core.elude import EludeRouting
from elude_nb.core.recording import Recording, record
from elude_nb.core.result import Disentanglement
from elude_nb.core.verify import verify
from elude_nb.data.images import ImageSet, load_images
from elude_nb.interpret.attribution import attribute
from elude_nb.interpret.exemplars import find_exemplars
from elude_nb.interpret.find_units import find_units
from elude_nb.interpret.naming import name_concepts
from elude_nb.models.find_sites import find_site, find_sites
from elude_nb.models.forward import embed
from elude_nb.models.load import Model, load_model, wrap_network
from elude_nb.models.sites import Site
from elude_nb.scores.overview import score
from elude_nb.steering.effects import effect
from elude_nb.steering.heads import fit_head

__version__ = "0.3.0.dev0"

moved.install()  # import paths of 0.2 work for one version, with a DeprecationWarning

_ROOMS = ("baselines", "figures", "interpret", "scores", "steering", "text", "widgets")


def __getattr__(name: str) -> Any:
    """Import a room when it is first asked for: figures and widgets bring heavy libraries."""
    if name in _ROOMS:
        return importlib.import_module(f"elude_nb.{name}")
    return moved.attribute(name)


def __dir__() -> list[str]:
    return [*__all__, *_ROOMS, "__version__"]


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
    "errors",
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
