"""`atomic_write`: the old file or the new one, whole, whatever happens meanwhile."""

from __future__ import annotations

import errno
import itertools
import multiprocessing as mp
import os
import stat
import sys
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from elude_nb._util.files import atomic_write, check_writable

posix = pytest.mark.skipif(os.name != "posix", reason="permissions, links and pipes of Unix")
forks = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a forked torch is not safe")


def write(target: Path, content: bytes = b"new") -> None:
    with atomic_write(target) as part:
        part.write_bytes(content)


def test_a_file_appears_in_a_folder_that_is_made_for_it(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "er" / "file.bin"
    with atomic_write(target) as part:
        assert part.parent.parent == target.parent  # a rename is atomic only within one file system
        assert part.name == target.name  # some writers go by its ending
        part.write_bytes(b"new")
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("old", [None, b"old"])
def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, error: type[BaseException], old: bytes | None
) -> None:
    target = tmp_path / "file.bin"
    if old is not None:
        target.write_bytes(old)
    with pytest.raises(error), atomic_write(target) as part:  # noqa: PT012 - the body is the writer that fails
        part.write_bytes(b"half of it")
        part.with_name("beside it").write_bytes(b"what some writers leave")
        raise error
    assert [file.name for file in tmp_path.iterdir()] == ([] if old is None else ["file.bin"])
    assert old is None or target.read_bytes() == old


def test_a_writer_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    target = tmp_path / "file.bin"
    target.write_bytes(b"old")
    with pytest.raises(FileNotFoundError, match=r"file\.bin"), atomic_write(target):
        pass
    assert list(tmp_path.iterdir()) == [target]
    assert target.read_bytes() == b"old"


@posix
def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    for name, content in (("there", b"old"), ("missing", None)):
        real, link, chain = tmp_path / "real" / name, tmp_path / f"link to {name}", tmp_path / f"link to link to {name}"
        if content:
            real.write_bytes(content)
        link.symlink_to(real)
        chain.symlink_to(link)
        for number, path in enumerate((link, chain)):
            write(path, bytes([number]))
            assert link.is_symlink()
            assert chain.is_symlink()
            assert real.read_bytes() == bytes([number])


@posix
def test_what_is_no_ordinary_file_is_not_replaced(tmp_path: Path) -> None:
    pipe, link, circle = tmp_path / "pipe", tmp_path / "link", tmp_path / "circle"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    circle.symlink_to(circle)
    for target in (pipe, link, circle, Path(os.devnull)):
        with pytest.raises(FileExistsError, match=str(target.resolve()) if target != circle else "circle"):
            write(target)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert circle.is_symlink()
    assert sorted(tmp_path.iterdir()) == [circle, link, pipe]


def test_a_folder_is_not_replaced_and_a_file_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        write(tmp_path)
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(OSError, match="file"):
        write(tmp_path / "file" / "below")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


@posix
@pytest.mark.parametrize("mode", [0o400, 0o600, 0o640, 0o664])
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


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "file.tar.gz"])
def test_a_name_may_be_as_long_as_the_system_allows(tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    try:
        target.write_bytes(b"old")
    except OSError:
        pytest.skip("this file system has shorter names")
    write(target)
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]


def test_a_name_that_is_too_long_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="xxx") as caught:
        write(tmp_path / ("x" * 300))
    assert caught.value.errno == errno.ENAMETOOLONG
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------- several writers


def test_of_two_writers_of_one_file_the_later_one_stays(tmp_path: Path) -> None:
    target = tmp_path / "file.bin"
    with atomic_write(target) as first, atomic_write(target) as second:
        first.write_bytes(b"first")
        second.write_bytes(b"second")
    assert target.read_bytes() == b"first"  # the outer one ends last
    assert list(tmp_path.iterdir()) == [target]


def test_many_writers_of_one_file_leave_one_whole_file(tmp_path: Path) -> None:
    target, errors, seen = tmp_path / "new" / "file", list[BaseException](), set[bytes]()

    def write_often(letter: int) -> None:
        try:
            for _ in range(10):
                with atomic_write(target) as part, part.open("wb", buffering=0) as file:
                    for _ in range(10):  # in parts: whoever reads meanwhile must see none of them
                        file.write(bytes([letter]) * 1000)
                        time.sleep(0.0002)
        except BaseException as error:  # noqa: BLE001 - reported by the test
            errors.append(error)

    threads = [threading.Thread(target=write_often, args=(letter,)) for letter in b"abcd"]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        with suppress(FileNotFoundError):  # no writer has finished yet
            seen.add(target.read_bytes())
    assert errors == []
    assert seen
    assert seen <= {bytes([letter]) * 10_000 for letter in b"abcd"}
    assert list(target.parent.iterdir()) == [target]


# ---------------------------------------------------------------------- kills


PARTS = 100
"""Of each file that the killed process writes."""


def part_of(number: int) -> bytes:
    return number.to_bytes(8, "big") * 2500


def write_for_ever(target: Path, begun: Connection) -> None:
    for number in itertools.count(1):
        begun.send(number)
        with atomic_write(target) as part, part.open("wb", buffering=0) as file:
            for _ in range(PARTS):
                file.write(part_of(number))


def write_half(target: Path, begun: Connection) -> None:
    with atomic_write(target) as part:
        part.write_bytes(part_of(1))
        begun.send(1)
        time.sleep(600)


@forks
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("seconds", [None, 0, 0.003, 0.01, 0.03])
def test_a_killed_process_leaves_the_old_file_or_the_new_one(tmp_path: Path, seconds: float | None) -> None:
    target = tmp_path / "file"
    target.write_bytes(part_of(0) * PARTS)
    context = mp.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    writer = write_half if seconds is None else write_for_ever
    child = context.Process(target=writer, args=(target, sender), daemon=True)
    child.start()
    sender.close()
    assert receiver.recv() == 1
    time.sleep(seconds or 0)
    child.kill()
    child.join()
    last = 1
    with suppress(EOFError):
        while True:
            last = receiver.recv()
    allowed = [0] if seconds is None else [last - 1, last]
    assert target.read_bytes() in [part_of(number) * PARTS for number in allowed]
    left = [path for path in tmp_path.iterdir() if path != target]
    assert all(path.suffix == ".part" for path in left)
    assert len(left) == 1 if seconds is None else len(left) <= 1
    write(target, b"next")
    assert target.read_bytes() == b"next"


def test_whether_a_folder_can_be_written_is_found_out_and_nothing_is_left(tmp_path: Path) -> None:
    check_writable(tmp_path)
    check_writable(tmp_path / "deep" / "er")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    for wrong in (tmp_path / "file", tmp_path / "file" / "deep" / "er"):
        with pytest.raises(OSError, match="file"):
            check_writable(wrong)


def test_the_search_for_a_folder_ends_at_a_root_that_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter([False] * 3)  # /a/b, /a and /; a fourth would fail
    monkeypatch.setattr(os.path, "lexists", lambda _: next(found))
    with suppress(OSError):
        check_writable("/a/b")
