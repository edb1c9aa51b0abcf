"""Any result to and from one safetensors file with a JSON manifest; files appear whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FORMAT_VERSION = 1
_MANIFEST = "elude_nb"
_SEAL = "elude_nb_sha256"


class StoreError(ValueError):
    """A file that cannot be read as the result it should hold."""


@contextmanager
def write_aside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is renamed to ``path``, on failure removed.

    A reader sees the old file or the new one, never a half-written one.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
    try:
        aside.touch()
        mode = aside.stat().st_mode  # as the user's umask has it; safetensors would make the file private
        aside.unlink()
        yield aside
        aside.chmod(mode)
        with aside.open("r+b") as written:  # Windows flushes only what is open for writing
            os.fsync(written.fileno())
        aside.replace(target)
    finally:
        with suppress(FileNotFoundError):
            aside.unlink()


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


def save_result(
    path: str | os.PathLike[str], kind: str, tensors: Mapping[str, Tensor], manifest: Mapping[str, Any]
) -> Path:
    """Write ``tensors`` and a JSON ``manifest`` to one safetensors file, atomically; return its path."""
    from safetensors.torch import save_file

    header = json.dumps({"kind": kind, "format": FORMAT_VERSION, **manifest}, allow_nan=False)
    with write_aside(path) as aside:
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            aside,
            metadata={_MANIFEST: header, _SEAL: _seal(header, tensors)},
        )
    return Path(path)


def _seal(header: str, tensors: Mapping[str, Tensor]) -> str:
    """Return one SHA-256 over the manifest and the tensors: a changed byte anywhere changes it."""
    return hashlib.sha256(f"{header}|{sha256_of_tensors(tensors)}".encode()).hexdigest()


def load_result(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_result` wrote: the tensors and the manifest.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    StoreError
        If the file is damaged, is not one of ours, holds another kind of result, or comes from a newer version.
    """
    from safetensors import SafetensorError, safe_open

    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"There is no file {str(file)!r}; save a result there first, or mend the path.")
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError) as error:
        raise StoreError(f"{str(file)!r} is not a whole safetensors file ({error}); make it anew.") from error
    header = metadata.get(_MANIFEST)
    if header is None:
        raise StoreError(f"{str(file)!r} was not written by elude_nb: its manifest is missing.")
    manifest = _read_manifest(header, kind, file)  # before the seal: a newer version may seal in another way
    if metadata.get(_SEAL) != _seal(header, tensors):
        raise StoreError(f"{str(file)!r} was changed after it was written: its SHA-256 differs; make it anew.")
    return tensors, manifest


def _read_manifest(header: str, kind: str, file: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(header)
        found, version = manifest.pop("kind"), manifest.pop("format")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:  # the last: nested too deeply
        raise StoreError(f"The manifest of {str(file)!r} is damaged ({error}); make the file anew.") from error
    if found != kind:
        raise StoreError(f"{str(file)!r} holds a {found!r}, not a {kind!r}.")
    if (isinstance(version, int) and version < 1) or isinstance(version, bool):
        raise StoreError(f"The manifest of {str(file)!r} is damaged (format {version!r}); make the file anew.")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise StoreError(
            f"{str(file)!r} has format version {version!r}; this elude_nb reads up to {FORMAT_VERSION}: update it."
        )
    return dict(manifest)
