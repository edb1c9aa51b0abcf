"""Files that are replaced keep what belongs to them, and what is no file is never replaced."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from elude_nb._util.files import _ABANDONED, _machine, write_aside

posix = pytest.mark.skipif(os.name != "posix", reason="permissions and pipes of Unix")


def write(target: Path, content: bytes = b"new") -> None:
    with write_aside(target) as path:
        path.write_bytes(content)


@posix
def test_pipes_and_devices_are_not_replaced(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for target in (pipe, link, Path(os.devnull)):
        with pytest.raises(FileExistsError, match="name an ordinary file"):
            write(target)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert sorted(tmp_path.iterdir()) == [link, pipe]


@posix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_a_file_keeps_its_permissions_and_a_new_one_has_those_of_others(tmp_path: Path, mode: int) -> None:
    old, new, usual = tmp_path / "old", tmp_path / "new", tmp_path / "usual"
    old.write_bytes(b"old")
    old.chmod(mode)
    usual.touch()
    write(old)
    write(new)
    assert old.read_bytes() == b"new"
    assert stat.S_IMODE(old.stat().st_mode) == mode
    assert new.stat().st_mode == usual.stat().st_mode


def leftover(target: Path, machine: str, pid: int) -> Path:
    """Make what a writer leaves, as old as can be."""
    folder = target.with_name(f".{target.name}.{machine}-{pid}-0123abcd.part")
    folder.mkdir()
    (folder / target.name).write_bytes(b"half")
    long_ago = (folder.stat().st_mtime - 2 * _ABANDONED,) * 2
    os.utime(folder / target.name, long_ago)
    os.utime(folder, long_ago)
    return folder


@posix
def test_only_what_nobody_writes_any_more_is_taken_away(tmp_path: Path) -> None:
    target = tmp_path / "file"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    asleep = leftover(target, _machine(), os.getpid())  # a process that was suspended is still there
    gone = leftover(target, _machine(), ended.pid)
    elsewhere = leftover(target, "0" * 8, os.getpid())  # nobody can ask: its age decides
    young = leftover(target, "1" * 8, os.getpid())
    os.utime(young / target.name)
    write(target)
    assert (asleep.exists(), gone.exists(), elsewhere.exists(), young.exists()) == (True, False, False, True)
