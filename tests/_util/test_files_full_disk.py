"""On a full disk, whatever writes a file raises an ``OSError`` and leaves the old file as it was."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from elude_nb import Disentanglement, Edit, ImageSet
from elude_nb._util.files import save_result, write_tensors
from elude_nb.app.report.build import write_report
from elude_nb.app.tour import _write as write_page
from elude_nb.figures import contact_sheet
from elude_nb.steering.permanent import save_permanent

posix = pytest.mark.skipif(os.name != "posix", reason="of POSIX systems")
forks = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a forked torch is not safe")
LIMIT = 4096  # bytes: less than any of the files takes


Write = Callable[[Path], object]


@pytest.fixture(params=["split", "network", "report", "page", "weights", "table", "picture"])
def write(request: pytest.FixtureRequest, split: Disentanglement, images: ImageSet) -> Write:
    """What writes a file of more than `LIMIT` bytes."""
    tensors = {"a": torch.zeros(5000)}
    ways: dict[str, Write] = {
        "split": split.save,
        "network": lambda path: save_permanent(split, Edit.scale(concept=0, by=0.5), path),
        "report": lambda path: write_report(split, images, path, channels=1, progress=False),
        "page": lambda path: write_page(path, "x" * 2 * LIMIT),
        "weights": lambda path: write_tensors(path, tensors, {"source": "here"}),
        "table": lambda path: save_result(path, "table", tensors, {}),
        "picture": contact_sheet(images).save,
    }
    return ways[str(request.param)]


@contextmanager
def small_files_only() -> Iterator[None]:
    """Let no file grow beyond `LIMIT`: writing more is an error, as on a full disk (Python ignores SIGXFSZ)."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def check_refused(write: Write, folder: Path, number: int) -> None:
    old, new = folder / "old.png", folder / "new.png"  # an ending that says nothing to any writer but the pictures'
    old.write_bytes(b"old")
    for path in (old, new):
        with pytest.raises(OSError, match=path.name) as caught:
            write(path)
        assert caught.value.errno == number
    assert old.read_bytes() == b"old"
    assert list(folder.iterdir()) == [old]


@posix
def test_a_file_that_finds_no_room_is_an_error_and_leaves_nothing(write: Write, tmp_path: Path) -> None:
    with small_files_only():
        check_refused(write, tmp_path, errno.EFBIG)
    write(tmp_path / "old.png")  # with room again
    assert [each.name for each in tmp_path.iterdir()] == ["old.png"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 kB; only an administrator of Linux can have one."""
    mount, umount = shutil.which("mount"), shutil.which("umount")
    folder = tmp_path / "disk"
    folder.mkdir()
    if sys.platform != "linux" or os.geteuid() != 0 or mount is None or umount is None:
        pytest.skip("no disk can be mounted")
    made = subprocess.run([mount, "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)], check=False)
    if made.returncode:
        pytest.skip("no disk may be mounted")
    try:
        yield folder
    finally:
        subprocess.run([umount, str(folder)], check=True)


def test_a_full_disk_is_an_error_and_leaves_nothing(write: Write, small_disk: Path) -> None:
    (small_disk / "much").write_bytes(b"x" * 2 * LIMIT)
    if shutil.disk_usage(small_disk).free > 2 * LIMIT:
        pytest.skip("pages of this machine are larger than the disk")
    try:
        (small_disk / "folder").mkdir()
        check_refused(write, small_disk / "folder", errno.ENOSPC)
    finally:
        (small_disk / "much").unlink()


@pytest.mark.parametrize("text", ["I/O error: No space left on device (os error 28)", "header too large"])
def test_what_safetensors_says_becomes_an_error_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise SafetensorError(text)

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    expected: type[Exception] = OSError if "28" in text else SafetensorError
    with pytest.raises(expected) as caught:
        save_result(tmp_path / "a" / "x", "table", {"a": torch.zeros(2)}, {})
    assert getattr(caught.value, "errno", None) == (errno.ENOSPC if "28" in text else None)
    assert list((tmp_path / "a").iterdir()) == []
