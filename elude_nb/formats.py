"""File formats: what a file says of itself, and how files of older formats are read. docs/formats.md is the reference.

Three words of the manifest stand in every format and will in all to come, so that any version can at least say what a
file is: ``kind``, ``format``, and from format 2 on ``elude_nb``, the version of the library that wrote it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

FORMAT_VERSION = 2
"""The format that is written."""

Contents = tuple[dict[str, Tensor], dict[str, Any]]
"""The tensors of a file and its manifest."""


def library_version() -> str:
    """Return the version of this elude_nb."""
    from importlib.metadata import version

    return version("elude-nb")


def _from_1_to_2(kind: str, tensors: dict[str, Tensor], manifest: dict[str, Any]) -> Contents:
    """Format 2 says which elude_nb wrote it, and the names of concepts always stand in it.

    Splits of format 1 name the version among others; they have names if they were written after names were invented.
    """
    versions = manifest.get("versions")
    written_by = versions.get("elude-nb") if isinstance(versions, dict) else None
    manifest = {**manifest, "elude_nb": written_by if isinstance(written_by, str) else "0.1.0"}
    if kind == "disentanglement":
        manifest.setdefault("names", {})
    return tensors, manifest


MIGRATIONS: dict[int, Callable[[str, dict[str, Tensor], dict[str, Any]], Contents]] = {1: _from_1_to_2}
"""For each older format, the step to the one after it. A step stays for ever, and is never changed."""


def migrate(kind: str, version: int, tensors: dict[str, Tensor], manifest: dict[str, Any]) -> Contents:
    """Return what a file of an older format would hold in the present one; nothing on disk is changed.

    Parameters
    ----------
    kind
        ``"disentanglement"``, ``"sparse autoencoder"``, ...
    version
        The file's format, 1 to `FORMAT_VERSION`.
    tensors, manifest
        Its contents, the manifest without ``kind`` and ``format``.
    """
    for step in range(version, FORMAT_VERSION):
        tensors, manifest = MIGRATIONS[step](kind, tensors, manifest)
    return tensors, manifest


def too_new(version: Any, manifest: dict[str, Any]) -> str:
    """Say that a file is of a format not known here, and which version of the library reads it."""
    wrote = manifest.get("elude_nb")
    # Only what looks like a version goes into a line that people copy into a shell.
    known = isinstance(wrote, str) and 0 < len(wrote) <= 20 and all(part.isalnum() for part in wrote.split("."))
    by = f" and was written by elude_nb {wrote}" if known else ""
    cure = f"pip install --upgrade 'elude-nb>={wrote}'" if known else "pip install --upgrade elude-nb"
    return f"has format {version!r:.40}{by}; elude_nb {library_version()} reads up to {FORMAT_VERSION}: {cure}"
