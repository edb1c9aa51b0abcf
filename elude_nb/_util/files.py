"""Files: atomic writes, hashes, and one safetensors file with a JSON manifest.

The command line looks at files before torch is imported, which takes seconds: what handles tensors imports it itself.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import json
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from safetensors import SafetensorError, safe_open

from elude_nb._util.checks import shortly
from elude_nb.errors import EludeError, StoreError

if TYPE_CHECKING:
    from torch import Tensor

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path to write to; on success, the file written there takes the place of ``path`` in one step.

    A reader sees the old file or the new one, never a part of one. After an error the old file is as it was. Missing
    folders are made. If ``path`` is a symbolic link, the file that it points to is replaced. A file that is replaced
    keeps its permissions. The temporary path lies in a hidden folder beside ``path``, which only a process that is
    killed leaves behind.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    IsADirectoryError
        If ``path`` is a folder.
    FileExistsError
        If ``path`` is a device, a pipe or a circle of symbolic links.
    FileNotFoundError
        If nothing was written.
    OSError
        If a folder or the file cannot be made: no permission, a full disk, a name that is too long.
    """
    target = Path(os.path.realpath(path))
    if os.path.lexists(target) and not target.is_file():
        number = errno.EISDIR if target.is_dir() else errno.EEXIST
        raise OSError(number, "This is no ordinary file; name another", str(target))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".elude_nb-", suffix=".part", dir=target.parent) as folder:
            part = Path(folder) / target.name
            part.touch()
            # Those of the old file, or those that the umask gives a new one; safetensors would make the file private.
            permissions = (target if target.exists() else part).stat().st_mode
            part.unlink()
            yield part
            with part.open("rb+") as written:  # Windows flushes only what is open for writing
                os.fsync(written.fileno())
            part.chmod(permissions)
            part.replace(target)
    except OSError as error:
        if error.errno in NO_ROOM:
            why = f"{os.strerror(error.errno)}; make room or choose another folder"
            raise OSError(error.errno, why, str(target)) from error
        raise


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Raise ``OSError`` unless a file can be written in a folder, or where it would have to be made; leave nothing."""
    there = Path(os.path.abspath(folder))  # noqa: PTH100 - Path.resolve raises at circles of links
    while not os.path.lexists(there) and there != there.parent:  # a drive may be absent, up to its root
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:  # names a file that nobody has heard of
        raise OSError(error.errno, error.strerror, str(there)) from error


def cache_folder() -> Path:
    """Return the folder for what is fetched: ``$ELUDE_NB_CACHE``, else ``elude_nb`` in the user's cache folder.

    Raises
    ------
    OSError
        If the user has no home folder in which it would be.
    """
    try:
        chosen = os.environ.get("ELUDE_NB_CACHE")
        return Path(chosen).expanduser() if chosen else _users_cache() / "elude_nb"
    except RuntimeError as error:  # from pathlib
        raise FileNotFoundError("the user has no home folder") from error


def _users_cache() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def check_target(path: str | os.PathLike[str]) -> Path:
    """Return the path of a file to be written; raise now, not after minutes, if it cannot be.

    Raises
    ------
    FileNotFoundError, IsADirectoryError, FileExistsError
        If there is no such folder, or there is something else than an ordinary file.
    OSError
        If no file can be written in the folder.
    """
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"{str(target)!r} is a folder; name a file in it.")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{str(target)!r}: there is no folder {str(target.parent)!r}.")
    if target.exists() and not target.is_file():
        raise FileExistsError(f"{str(target)!r} is no ordinary file; name another.")
    check_writable(target.parent)
    return target


FORMAT_VERSION = 3
"""The format that is written."""

Contents: TypeAlias = "tuple[dict[str, Tensor], dict[str, Any]]"
"""The tensors of a file and its manifest."""

_MANIFEST = "elude_nb"
_CHECKSUM = "elude_nb_sha256"
_SAVE_FIRST = "save a result there first, or correct the path"


def installed_notebooks(part: str = "") -> list[Path]:
    """Return the notebooks of this installation in order, or those in a folder of theirs; none if they are missing."""
    package = Path(__file__).parent.parent
    folders = (home / "notebooks" / part for home in (package, package.parent))
    return next((sorted(folder.glob("[0-9]*.ipynb")) for folder in folders if folder.is_dir()), [])


def library_version() -> str:
    """Return the version of this elude_nb."""
    return importlib.metadata.version("elude-nb")


def _from_1_to_2(kind: str, tensors: dict[str, Tensor], manifest: dict[str, Any]) -> Contents:
    """Format 2 adds which elude_nb wrote the file, and in every split the names of its concepts.

    Splits of format 1 have that version among others; only the later ones have names.
    """
    versions = manifest.get("versions")
    written_by = versions.get("elude-nb") if isinstance(versions, dict) else None
    manifest = {**manifest, "elude_nb": written_by if isinstance(written_by, str) else "0.1.0"}
    if kind == "disentanglement":
        manifest.setdefault("names", {})
    return tensors, manifest


def _from_2_to_3(kind: str, tensors: dict[str, Tensor], manifest: dict[str, Any]) -> Contents:  # noqa: ARG001
    """Format 3 may hold ``owner_sets``; where there are none, every contribution has one owner, as in format 2."""
    return tensors, manifest


MIGRATIONS: dict[int, Callable[[str, dict[str, Tensor], dict[str, Any]], Contents]] = {1: _from_1_to_2, 2: _from_2_to_3}
"""For each older format, the step to the one after it. A step is never changed or removed."""


def migrate(kind: str, version: int, tensors: dict[str, Tensor], manifest: dict[str, Any]) -> Contents:
    """Bring the contents of a file of an older format to the present one; nothing on disk is changed.

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


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_tensors(tensors: Mapping[str, Any]) -> str:
    """Return one SHA-256 over names, dtypes, shapes and bytes of ``tensors``, whatever their order.

    Beside tensors, a state dict may hold what quantised layers keep: packed weights, dtypes and numbers.

    Examples
    --------
    >>> import torch
    >>> a, b = torch.zeros(2), torch.ones(3)
    >>> sha256_of_tensors({"a": a, "b": b}) == sha256_of_tensors({"b": b, "a": a})
    True
    >>> sha256_of_tensors({"a": a}) == sha256_of_tensors({"a": a + 1})
    False
    """
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        for number, part in enumerate(plain_parts(tensors[name])):
            known_as = f"{name}[{number}]" if number else name
            if not isinstance(part, torch.Tensor):
                digest.update(f"{known_as}|{part!r}|".encode())
                continue
            tensor = part.detach().cpu().contiguous()
            digest.update(f"{known_as}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
            if tensor.numel():
                digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def is_composed(value: Any) -> bool:
    """Say whether this is a tensor made of others, as torchao's quantised ones and distributed ones are."""
    import torch

    return isinstance(value, torch.Tensor) and hasattr(value, "__tensor_flatten__")


def plain_parts(value: Any) -> list[Any]:
    """Return what an entry of a state dict is made of: plain tensors, and what stands for itself as text."""
    import torch

    if isinstance(value, list | tuple):  # torch's quantised layers pack weight and bias
        return [part for each in value for part in plain_parts(each)]
    if isinstance(value, torch.Tensor) and value.is_quantized:
        if value.qscheme() == torch.per_tensor_affine:
            return [value.int_repr(), value.q_scale(), value.q_zero_point()]
        return [value.int_repr(), value.q_per_channel_scales(), value.q_per_channel_zero_points()]
    if is_composed(value):
        names, about = value.__tensor_flatten__()
        return [part for name in names for part in plain_parts(getattr(value, name))] + [about]
    return [value]


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
        raise TypeError(f"A path must be text or a Path, not {shortly(path)}.")
    if not os.path.isfile(path):  # noqa: PTH113 - unlike Path.is_file, False for a name that is too long
        raise FileNotFoundError(f"There is no file {str(path)!r:.500}; {cure}.")
    return Path(path)


def read_tensors(path: Path, error: type[EludeError]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors of a safetensors file and its metadata; raise ``error`` if the file is damaged."""
    with _safetensors_errors(path, error), safe_open(path, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
        return tensors, dict(opened.metadata() or {})


@contextmanager
def _safetensors_errors(path: Path, error: type[EludeError]) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError, ValueError) as cause:
        raise error(f"{str(path)!r} is not a whole safetensors file ({cause}); make or fetch it again.") from cause


def write_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """Write one safetensors file with `atomic_write`; return its path.

    Raises
    ------
    OSError
        If it cannot be written, such as on a full disk; an old file of that name is then as it was.
    """
    import safetensors.torch

    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_write(path) as part:
        try:
            safetensors.torch.save_file(held, part, dict(metadata))
        except SafetensorError as error:  # not an OSError, although the system's own number is in its text
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), str(error), os.fspath(path)) from error
    return Path(path)


def save_result(
    path: str | os.PathLike[str], kind: str, tensors: Mapping[str, Tensor], manifest: Mapping[str, Any]
) -> Path:
    """Write ``tensors`` and a JSON ``manifest`` to one safetensors file with `atomic_write`; return its path.

    Raises
    ------
    ValueError
        If the manifest holds NaN or infinity, which JSON has not.
    OSError
        If the file cannot be written; an old file of that name is then as it was.
    """
    envelope = {"kind": kind, "format": FORMAT_VERSION, "elude_nb": library_version()}
    header = json.dumps({**manifest, **envelope}, allow_nan=False)
    return write_tensors(path, tensors, {_MANIFEST: header, _CHECKSUM: _checksum(header, tensors)})


def load_result(path: str | os.PathLike[str], kind: str) -> Contents:
    """Read what `save_result` wrote, in this version or an earlier one: the tensors and the manifest.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    StoreError
        If the file is damaged, is not one of ours, holds another kind of result, or comes from a newer version.
    """
    file = existing_file(path, _SAVE_FIRST)
    tensors, about = read_tensors(file, StoreError)
    version, manifest = _read_manifest(about, kind, file)  # first: a newer version may sum in another way
    if about.get(_CHECKSUM) != _checksum(about[_MANIFEST], tensors):
        raise StoreError(f"{str(file)!r} was changed after it was written: its SHA-256 differs; make it again.")
    return migrate(kind, version, tensors, manifest)


def check_result(path: str | os.PathLike[str], kind: str) -> None:
    """Raise what `load_result` would raise of a file that is missing, cut short or of another kind; read no tensors."""
    file = existing_file(path, _SAVE_FIRST)
    with _safetensors_errors(file, StoreError), safe_open(file, framework="np") as opened:
        about = dict(opened.metadata() or {})
    _read_manifest(about, kind, file)


def _checksum(header: str, tensors: Mapping[str, Tensor]) -> str:
    """Return one SHA-256 over the manifest and the tensors."""
    return hashlib.sha256(f"{header}|{sha256_of_tensors(tensors)}".encode()).hexdigest()


def _read_manifest(about: Mapping[str, str], kind: str, file: Path) -> tuple[int, dict[str, Any]]:
    """Return the format and all else that the manifest in a file's metadata says."""
    if _MANIFEST not in about:
        raise StoreError(f"{str(file)!r} was not written by elude_nb: its manifest is missing.")
    try:
        manifest = dict(read_json(about[_MANIFEST]))
        found, version = manifest.pop("kind"), manifest.pop("format")
    except (ValueError, KeyError, TypeError, RecursionError) as error:  # the last: nested too deeply
        raise StoreError(f"The manifest of {str(file)!r} is damaged ({error}); make the file again.") from error
    if found != kind:
        raise StoreError(f"{str(file)!r} holds a {found!r}, not a {kind!r}.")
    if isinstance(version, bool) or (isinstance(version, int) and version < 1):
        raise StoreError(f"The manifest of {str(file)!r} is damaged (format {version!r}); make the file again.")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        wrote = str(manifest.get("elude_nb"))
        # Only what looks like a version goes into a line that people copy into a shell.
        newer = f"'elude-nb>={wrote}'" if re.fullmatch(r"\d[\w.]{0,19}", wrote, re.ASCII) else "elude-nb"
        raise StoreError(
            f"{str(file)!r} has format {version!r:.40}; elude_nb {library_version()} reads up to {FORMAT_VERSION}: "
            f"pip install --upgrade {newer}"
        )
    return version, manifest


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
