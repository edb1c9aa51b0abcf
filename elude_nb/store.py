"""Any result to and from one safetensors file with a JSON manifest; written by way of `elude_nb.aside`."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elude_nb.aside import write_aside
from elude_nb.formats import FORMAT_VERSION, library_version, migrate, too_new

_MANIFEST = "elude_nb"
_SEAL = "elude_nb_sha256"


class StoreError(ValueError):
    """A file that cannot be read as the result it should hold."""


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return one SHA-256 over names, dtypes, shapes and bytes of ``tensors``, whatever their order.

    Examples
    --------
    >>> a, b = torch.zeros(2), torch.ones(3)
    >>> sha256_of_tensors({"a": a, "b": b}) == sha256_of_tensors({"b": b, "a": a})
    True
    >>> sha256_of_tensors({"a": a}) == sha256_of_tensors({"a": a + 1})
    False
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """Write one safetensors file, whole or not at all (see `elude_nb.aside.write_aside`); return its path.

    Raises
    ------
    OSError
        If it cannot be written, such as on a full disk; an old file of that name is then as it was.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with write_aside(path) as aside:
        try:
            save_file(
                {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, aside, dict(metadata)
            )
        except SafetensorError as error:  # not an OSError, although the system's own number is in its text
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), str(error), os.fspath(path)) from error
    return Path(path)


def save_result(
    path: str | os.PathLike[str], kind: str, tensors: Mapping[str, Tensor], manifest: Mapping[str, Any]
) -> Path:
    """Write ``tensors`` and a JSON ``manifest`` to one safetensors file, whole or not at all; return its path.

    Raises
    ------
    ValueError
        If the manifest holds NaN or infinity, which JSON has not.
    OSError
        If the file cannot be written; an old file of that name is then as it was.
    """
    envelope = {"kind": kind, "format": FORMAT_VERSION, "elude_nb": library_version()}
    header = json.dumps({**manifest, **envelope}, allow_nan=False)
    return write_tensors(path, tensors, {_MANIFEST: header, _SEAL: _seal(header, tensors)})


def existing_file(path: str | os.PathLike[str], cure: str) -> Path:
    """Return a path if there is an ordinary file; pipes, devices and folders are none.

    Raises
    ------
    TypeError
        If it is no path at all.
    FileNotFoundError
        If there is no such file; the message ends with ``cure``, what to do about it.
    """
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise TypeError(f"A path must be text or a Path, not {path!r:.80} ({type(path).__name__}).")
    file = Path(path)
    try:
        there = file.is_file()
    except (OSError, ValueError):  # a name that is too long, or no name at all
        there = False
    if not there:
        raise FileNotFoundError(f"There is no file {str(file)!r:.500}; {cure}.")
    return file


def _seal(header: str, tensors: Mapping[str, Tensor]) -> str:
    """Return one SHA-256 over the manifest and the tensors: a changed byte anywhere changes it."""
    return hashlib.sha256(f"{header}|{sha256_of_tensors(tensors)}".encode()).hexdigest()


def load_result(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_result` wrote, in this version or an earlier one: the tensors and the manifest.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    StoreError
        If the file is damaged, is not one of ours, holds another kind of result, or comes from a newer version.
    """
    from safetensors import SafetensorError, safe_open

    file = existing_file(path, "save a result there first, or mend the path")
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError) as error:
        raise StoreError(f"{str(file)!r} is not a whole safetensors file ({error}); make it anew.") from error
    header = metadata.get(_MANIFEST)
    if header is None:
        raise StoreError(f"{str(file)!r} was not written by elude_nb: its manifest is missing.")
    version, manifest = _read_manifest(header, kind, file)  # before the seal: a newer version may seal in another way
    if metadata.get(_SEAL) != _seal(header, tensors):
        raise StoreError(f"{str(file)!r} was changed after it was written: its SHA-256 differs; make it anew.")
    return migrate(kind, version, tensors, manifest)


def read_json(text: str) -> Any:
    """Return what a JSON text holds; NaN and infinity, which JSON has not but Python would read, are refused.

    Raises
    ------
    ValueError
        If it is no JSON, or a number in it is not finite.
    RecursionError
        If it is nested too deeply.
    """
    return json.loads(text, parse_constant=_finite, parse_float=_finite)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):  # NaN, Infinity, or as many digits as no float has
        raise ValueError(f"{text[:40]} is not a finite number")
    return number


def _read_manifest(header: str, kind: str, file: Path) -> tuple[int, dict[str, Any]]:
    try:
        manifest = read_json(header)
        found, version = manifest.pop("kind"), manifest.pop("format")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:  # the last: nested too deeply
        raise StoreError(f"The manifest of {str(file)!r} is damaged ({error}); make the file anew.") from error
    if found != kind:
        raise StoreError(f"{str(file)!r} holds a {found!r}, not a {kind!r}.")
    if (isinstance(version, int) and version < 1) or isinstance(version, bool):
        raise StoreError(f"The manifest of {str(file)!r} is damaged (format {version!r}); make the file anew.")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise StoreError(f"{str(file)!r} {too_new(version, manifest)}")
    return version, dict(manifest)
