"""Which files below a folder are pictures, and which are left out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from elude_nb._util.words import counted
from elude_nb.data.decode import is_picture
from elude_nb.errors import ImageError

IMAGE_SETS = ("photographs", "shapes", "fashion", "stamps", "clipart")
"""Names that stand for a set of images, and for no folder."""


def list_pictures(folder: Path) -> tuple[list[str], list[str]]:
    """Return what `find_pictures` does.

    Raises
    ------
    FileNotFoundError, ImageError
        If there is no such folder, or no picture below it.
    """
    if not os.path.isdir(folder):  # noqa: PTH112 - unlike Path.is_dir, False for a name that is too long
        sets = ", ".join(map(repr, IMAGE_SETS))
        raise FileNotFoundError(f"There is no folder {str(folder)!r:.500}; name a folder, or a set: {sets}.")
    paths, left_out = find_pictures(folder)
    if not paths:
        said = name_left_out(left_out) if left_out else "it is empty"
        raise ImageError(f"No image lies below {str(folder)!r}; {said}.")
    return paths, left_out


def find_pictures(folder: Path) -> tuple[list[str], list[str]]:
    """Return the paths of all pictures below a folder, sorted, and what was left out, relative to it.

    Links to folders are followed, after all that really lies there: a folder that several names lead to counts once,
    and loops end. Hidden files and folders (such as ``.ipynb_checkpoints``) do not count at all.
    """
    starts, seen = [str(folder)], set[tuple[int, int]]()
    pictures, others = list[str](), list[str]()
    for start in starts:  # which grows
        for top, folders, files in os.walk(start, onerror=lambda error: others.append(error.filename)):
            status = os.stat(top)  # noqa: PTH116 - half the time of Path for 100,000 files, here and below
            if (status.st_dev, status.st_ino) in seen:
                others.append(top)
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            folders[:] = sorted(inner for inner in folders if not inner.startswith("."))
            starts += [path for inner in folders if os.path.islink(path := os.path.join(top, inner))]  # noqa: PTH114, PTH118
            for file in files:
                if not file.startswith("."):
                    path = os.path.join(top, file)  # noqa: PTH118
                    (pictures if is_picture(path) else others).append(path)
    return sorted(pictures), sorted(os.path.relpath(other, folder) for other in others)


def name_left_out(left_out: Sequence[str]) -> str:
    """Say how many files were left out, and name the first three.

    Examples
    --------
    >>> name_left_out(["notes.txt", "scan.dcm"])
    '2 files left out: notes.txt, scan.dcm'
    """
    names = ", ".join(left_out[:3]) + (", ..." if len(left_out) > 3 else "")
    return f"{counted(len(left_out), 'file')} left out: {names}"
