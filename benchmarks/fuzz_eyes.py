"""What `fuzz` sees of a case beside its outcome: what it asks the system for, what it changes, what memory it takes.

Python's audit hooks hear what Python itself does. safetensors writes in Rust, of which they hear nothing, so its one
function that writes is listened to. What changes below the folder of the cases is seen whoever does it.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import safetensors.torch

FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "subprocess.Popen")
FORBIDDEN += ("os.fork", "os.forkpty", "pickle.find_class", "socket.connect", "socket.getaddrinfo")
FORBIDDEN += ("socket.gethostbyname", "socket.sendto", "socket.sendmsg")
INSIDE_ONLY: dict[str, tuple[tuple[int, int | None], ...]] = {
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.mkdir": ((0, 2),),
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((1, 3),),
    "os.symlink": ((1, 2),),
    "os.truncate": ((0, None),),
    "os.chmod": ((0, 2),),
    "shutil.rmtree": ((0, None),),
}
"""Events that change what is on the disk; where each path and its folder's handle stand among the arguments."""

LONG_AGO = 10**18  # nanoseconds, in 2001: a clock of files ticks so slowly that a change at once would show no new time


class Watch:
    """Notes what programs, pickles, connections and changes outside the folder a case asks for."""

    def __init__(self) -> None:
        self.on, self.seen, self.folder = False, list[str](), ""
        sys.addaudithook(self._hear)

    @contextmanager
    def watching(self, folder: Path) -> Iterator[None]:
        """Note in ``seen`` what is asked for inside the block; in the folder, files may come and go."""
        write = safetensors.torch.serialize_file

        def written(tensors: Any, filename: Any, *more: Any, **named: Any) -> Any:
            if not self._is_inside(os.path.realpath(filename)):
                self.seen.append(f"wrote {filename!r} (safetensors)")
            return write(tensors, filename, *more, **named)

        self.seen, self.folder = [], os.path.realpath(folder)
        with mock.patch.object(safetensors.torch, "serialize_file", written):
            self.on = True
            try:
                yield
            finally:
                self.on = False

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in FORBIDDEN:
            self.seen.append(f"{event} {arguments[:1]!r}")
        elif event == "open" and self._is_written(*arguments):
            self.seen.append(f"wrote {arguments[0]!r}")
        elif event in INSIDE_ONLY:
            for path, handle in INSIDE_ONLY[event]:
                if not self._is_inside(_place(arguments[path], None if handle is None else arguments[handle])):
                    self.seen.append(f"{event} {arguments[path]!r}")

    def _is_written(self, path: Any, mode: Any, flags: Any) -> bool:
        writes = any(letter in (mode or "") for letter in "wax+")
        writes |= bool((flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if not writes or not isinstance(path, str | bytes):
            return False
        text = os.path.realpath(os.fsdecode(path)) if b"\0" not in os.fsencode(path) else ""
        return not self._is_inside(text)

    def _is_inside(self, path: str) -> bool:
        inside = path == self.folder or path.startswith((self.folder + os.sep, "/dev/"))
        return inside or not path or "__pycache__" in path


def _place(path: Any, handle: Any) -> str:
    """Return where a path leads, its last part not followed; nothing if the system does not tell."""
    if isinstance(path, int):  # an open file, whose opening was heard
        return ""
    text = os.fsdecode(path)
    if isinstance(handle, int) and handle >= 0 and not os.path.isabs(text):  # noqa: PTH117 - in a hook: no objects
        try:
            text = os.path.join(os.readlink(f"/proc/self/fd/{handle}"), text)  # noqa: PTH115, PTH118
        except OSError:  # no Linux; `shutil.rmtree`, which alone has handles, was heard before
            return ""
    folder, name = os.path.split(os.path.abspath(text))  # noqa: PTH100
    return os.path.join(os.path.realpath(folder), name)  # noqa: PTH118


def state_of(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return mode, size and time of change of every file below a folder, and the mode of every folder."""
    found: dict[str, tuple[int, ...]] = {}
    for top, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(top, name)  # noqa: PTH118 - thousands of times
            seen = os.lstat(path)
            plain = stat.S_ISREG(seen.st_mode)
            found[path] = (seen.st_mode, seen.st_size, seen.st_mtime_ns) if plain else (seen.st_mode,)
    return found


def settle(folder: Path) -> None:
    """Date every file below a folder back, so that whoever writes to one changes its time."""
    for path, (_, *rest) in state_of(folder).items():
        if rest and rest[1] != LONG_AGO:
            os.utime(path, ns=(LONG_AGO, LONG_AGO))


def changes(before: dict[str, tuple[int, ...]], folder: Path) -> list[str]:
    """Say what is other below a folder than it was, and take away what is new."""
    after = state_of(folder)
    new = [path for path in after if path not in before]
    for path in new:
        take_away(Path(path))
    said = [f"left {Path(path).name!r}" for path in new]
    said += [f"took {Path(path).name!r}" for path in before if path not in after]
    return said + [f"changed {Path(path).name!r}" for path in before if after.get(path, before[path]) != before[path]]


def take_away(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, if it is (still) there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class Memory:
    """How far a case drives the memory of this process above what it held before; only Linux tells."""

    def __init__(self) -> None:
        self.before, self.peak = 0, 0

    def begin(self) -> None:
        """Start anew with the highest point."""
        self.peak = max(self.peak, _held("VmHWM"))
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        except OSError:  # not allowed here: then only what goes beyond all cases before is seen
            self.before = _held("VmHWM")
        else:
            self.before = _held("VmRSS")

    def taken(self) -> int:
        """Return bytes at the highest point since `begin`, less those held then."""
        highest = _held("VmHWM")
        self.peak = max(self.peak, highest)
        return max(0, highest - self.before)


def _held(word: str) -> int:
    """Return a line of Linux's account of this process in bytes; 0 elsewhere."""
    try:
        account = Path("/proc/self/status").read_bytes()
    except OSError:
        return 0
    _, _, rest = account.partition(word.encode() + b":")
    return int(rest.split(None, 1)[0]) * 1024 if rest else 0


WATCH, MEMORY = Watch(), Memory()
