"""All errors of the package, by name: ``except en.errors.SiteError``."""

from elude_nb.edits import EditError
from elude_nb.exactness import ExactnessError
from elude_nb.explicit import PartitionError
from elude_nb.exporting import ExportError
from elude_nb.identity import ModelMismatchError
from elude_nb.opening import ImageError
from elude_nb.rivals.base import NotFittedError
from elude_nb.sentences import SentenceError
from elude_nb.sites import SiteError
from elude_nb.store import StoreError
from elude_nb.weights import WeightsError

__all__ = [
    "EditError",
    "ExactnessError",
    "ExportError",
    "ImageError",
    "ModelMismatchError",
    "NotFittedError",
    "PartitionError",
    "SentenceError",
    "SiteError",
    "StoreError",
    "WeightsError",
]
