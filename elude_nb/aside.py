"""Files appear whole or not at all: they are written aside and then put in the place of the old one.

A killed process leaves what it was writing; the next one that writes the same file takes it away.
"""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import re
import shutil
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

_LONGEST_STEM = 100  # bytes: file systems allow 255 for a name, some that encrypt 143
_NO_ROOM = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT if hasattr(errno, "EDQUOT") else errno.ENOSPC}
_ABANDONED = 24 * 3600  # seconds without a change: whatever machine its writer runs on, it writes no more


@contextmanager
def write_aside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path to write to; on success what was written takes the place of ``path``, on failure all is as it was.

    A reader sees the old file or the new one, never a half-written one. Missing folders are made, and taken away again
    on failure. A symbolic link stays one: what it points to is replaced. The path to write to lies in a hidden folder
    of its own beside ``path``, so that whatever else a writer leaves there goes with it; a process that was killed
    leaves that folder, and the next one that writes to ``path`` takes it away.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    IsADirectoryError
        If ``path`` is a folder.
    FileExistsError
        If ``path`` is a device or a pipe, which a file would replace.
    FileNotFoundError
        If nothing was written.
    OSError
        If a folder or the file cannot be made: no permission, a full disk, a name that is too long.
    """
    target = _end_of_links(Path(path))
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "This is a folder; name a file in it", str(target))
    if target.exists() and not target.is_file():
        raise FileExistsError(errno.EEXIST, "This is a device or a pipe; name an ordinary file", str(target))
    made: list[Path] = []
    whole = False
    folder = target.with_name(f".{_stem(target.name)}.{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.part")
    try:
        made += _make_folders(target.parent)
        _take_away_abandoned(target)
        folder.mkdir(parents=True)  # a process that made the parents too, and failed, may just have taken them away
        aside = folder / target.name
        aside.touch()
        # That of the old file, or as the user's umask has it; safetensors would make the file private.
        mode = (target if target.exists() else aside).stat().st_mode
        aside.unlink()
        yield aside
        aside.chmod(mode)
        with aside.open("r+b") as written:  # Windows flushes only what is open for writing
            os.fsync(written.fileno())
        aside.replace(target)
        whole = True
        _flush_folder(target.parent)
    except OSError as error:
        if error.errno in _NO_ROOM:
            why = f"{os.strerror(error.errno)}; make room or choose another folder"
            raise OSError(error.errno, why, str(target)) from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in reversed(made if not whole else []):
            with suppress(OSError):  # somebody else put something there meanwhile
                parent.rmdir()


def _end_of_links(path: Path) -> Path:
    """Return what a symbolic link points to in the end, be it there or not, and any other path as it is."""
    if not path.is_symlink():
        return path
    end = Path(os.path.realpath(path))
    if end.is_symlink():
        raise OSError(errno.ELOOP, "This symbolic link leads in a circle; name another file", str(path))
    return end


def _make_folders(folder: Path) -> list[Path]:
    """Make a folder and what is missing above it; return those that were made, from the top."""
    missing = []
    while not folder.is_dir() and folder != folder.parent:
        missing.append(folder)
        folder = folder.parent
    made: list[Path] = []
    try:
        for each in reversed(missing):
            try:
                each.mkdir()
            except FileExistsError:  # another process was quicker, or it is a file
                if not each.is_dir():
                    raise
            else:
                made.append(each)
    except BaseException:
        for each in reversed(made):
            with suppress(OSError):
                each.rmdir()
        raise
    return made


def _stem(name: str) -> str:
    """Return a file's name, or if it is long its beginning and a hash, so that more can be appended."""
    encoded = os.fsencode(name)
    if len(encoded) <= _LONGEST_STEM:
        return name
    kept = encoded[: _LONGEST_STEM - 17].decode(errors="ignore")
    return f"{kept}~{hashlib.sha256(encoded).hexdigest()[:16]}"


@cache
def _machine() -> str:
    """Return 8 hexadecimal digits for the machine, its boot and its set of processes: pids mean nothing elsewhere."""
    parts = [platform.node()]
    with suppress(OSError):  # Linux only
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
        parts.append(os.readlink("/proc/self/ns/pid"))  # noqa: PTH115 - of no path, but a name of the kernel's
    return hashlib.sha256("|".join(parts).encode(errors="replace")).hexdigest()[:8]


def _take_away_abandoned(target: Path) -> None:
    """Remove what killed processes left beside ``target``."""
    pattern = re.compile(re.escape(f".{_stem(target.name)}.") + r"([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.part")
    with suppress(OSError):  # tidying up is no reason to fail
        for each in list(os.scandir(target.parent)):
            found = pattern.fullmatch(each.name)
            if found and _is_abandoned(found[1], int(found[2]), Path(each.path)):
                shutil.rmtree(each.path, ignore_errors=True)


def _is_abandoned(machine: str, pid: int, folder: Path) -> bool:
    """Say whether a process has ended; of other machines, and on Windows: whether nothing has changed for a day."""
    if machine != _machine() or sys.platform == "win32":  # os.kill would end the process there
        return _is_old(folder)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _is_old(folder: Path) -> bool:
    try:
        changed = max(each.stat().st_mtime for each in (folder, *folder.iterdir()))
    except OSError:  # its writer is just done
        return False
    return time.time() - changed > _ABANDONED


def _flush_folder(folder: Path) -> None:
    """Make sure that the new name outlives a power cut, where folders can be flushed."""
    if os.name != "posix":
        return
    with suppress(OSError):  # some network file systems refuse
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
