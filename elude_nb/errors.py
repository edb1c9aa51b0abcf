"""All errors of the package, by name: ``except en.errors.SiteError``, or ``EludeError`` for any of them."""

from __future__ import annotations

__all__ = [
    "AnswerError",
    "CourseError",
    "EditError",
    "EludeError",
    "ExactnessError",
    "ExportError",
    "GroupError",
    "ImageError",
    "JudgeError",
    "ModelMismatchError",
    "NotFittedError",
    "PartitionError",
    "SentenceError",
    "SiteError",
    "StatisticsError",
    "StoreError",
    "TourError",
    "WeightsError",
]


class EludeError(Exception):
    """What all errors of this package have in common."""


class AnswerError(EludeError, ValueError):
    """An answer to an exercise that is not right; the message is one sentence that says what is wrong with it."""

    def _render_traceback_(self) -> list[str]:
        """Have notebooks show the sentence alone: the lines of the check would say nothing."""
        return [f"\x1b[31mNot yet.\x1b[0m {self}"]


class CourseError(EludeError, ValueError):
    """Files of a course that cannot be used: an exercise without its marks, or answers that are none."""


class EditError(EludeError, ValueError):
    """An edit that makes no sense, or that the split at hand cannot carry out."""


class ExactnessError(EludeError, RuntimeError):
    """A network that is not what it should be: the lens differs, or the explicit network leaves its bound."""


class PartitionError(EludeError, RuntimeError):
    """Split weights that do not add up to the original weights."""


class ExportError(EludeError, RuntimeError):
    """A network that cannot be written, or that would compute something else where it is read."""


class GroupError(EludeError, RuntimeError):
    """Several processes that worked together, of which one has ended or failed."""


class JudgeError(EludeError, RuntimeError):
    """A judge that could not be asked: its server is out of reach, refuses, or answers something else."""


class ModelMismatchError(EludeError, ValueError):
    """A result that belongs to another model."""


class ImageError(EludeError, ValueError):
    """An image that cannot be used; the message names it and says why."""


class NotFittedError(EludeError, RuntimeError):
    """A method that was asked for units before it had seen any token."""


class SentenceError(EludeError, ValueError):
    """Sentences that cannot be used."""


class SiteError(EludeError, ValueError):
    """A place that cannot be split, with the reason."""


class StatisticsError(EludeError, ValueError):
    """Statistics of several passes that do not add up, or that lack images."""


class StoreError(EludeError, ValueError):
    """A file that cannot be read as the result it should hold."""


class WeightsError(EludeError, RuntimeError):
    """Weights that cannot be had: out of reach, damaged, or not what they should be."""


class TourError(EludeError, RuntimeError):
    """A notebook that failed, with the cell and its error."""
