"""One case of `fuzz`: what it is, where it is made, and what is watched while it runs."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

import elude_nb as en

SECONDS = 20.0  # far more than any case takes: a case that needs it hangs
LIBRARY = str(Path(en.__file__).parent)
EXPECTED = (ValueError, TypeError, OSError, en.errors.WeightsError, en.errors.NotFittedError)
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "subprocess.Popen")
FORBIDDEN += ("pickle.find_class", "socket.connect", "socket.getaddrinfo")


class Hang(BaseException):
    """A case that did not end in time; no library swallows what is not an Exception."""


class Misbehaved(Exception):  # noqa: N818 - no error of the library, but the finding of a case
    """What a case found to be wrong although nothing was raised."""


@dataclass(frozen=True)
class Case:
    """One bad input.

    Attributes
    ----------
    name
        What was done, to find it again.
    run
        Hands the input over.
    reader
        Whether it goes to a reader of files, which must say itself what is wrong.
    also
        Exceptions that are documented beside those of `EXPECTED`.
    """

    name: str
    run: Callable[[], object]
    reader: bool = True
    also: tuple[type[Exception], ...] = ()


@dataclass
class Ground:
    """Where cases are made: an own folder, one random generator, and a tiny model with its split."""

    folder: Path
    rng: np.random.Generator
    model: en.Model
    images: en.ImageSet
    split: en.Disentanglement

    def pick(self, options: Any) -> Any:
        """Return one of some options at random."""
        options = list(options)
        return options[int(self.rng.integers(0, len(options)))]


Family = Callable[[Ground], Iterator[Case]]


@dataclass
class Row:
    """What one family's cases came to."""

    family: str
    cases: int = 0
    refused: int = 0
    accepted: int = 0
    slowest: float = 0.0
    unexpected: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)


class Watch:
    """Notes what programs, pickles, connections and files outside the folder a case asks for."""

    def __init__(self) -> None:
        self.on, self.seen, self.folder = False, list[str](), ""
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in FORBIDDEN:
            self.seen.append(f"{event} {arguments[:1]!r}")
        elif event == "open" and self._is_written(*arguments):
            self.seen.append(f"wrote {arguments[0]!r}")

    def _is_written(self, path: Any, mode: Any, flags: Any) -> bool:
        writes = any(letter in (mode or "") for letter in "wax+") or bool((flags or 0) & (os.O_WRONLY | os.O_CREAT))
        if not writes or not isinstance(path, str | bytes):
            return False
        text = os.path.realpath(os.fsdecode(path)) if b"\0" not in os.fsencode(path) else ""
        return not text.startswith((self.folder, "/dev/")) and "__pycache__" not in text


WATCH = Watch()


def tiny_ground(folder: Path, seed: int) -> Ground:
    """Return a ground with a vision transformer of two blocks that was split on a few images."""
    from timm.models.vision_transformer import VisionTransformer

    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = VisionTransformer(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=5)
    model = en.wrap_network(network.requires_grad_(requires_grad=False), input_size=(3, 32, 32))
    images = en.load_images(rng.random((12, 32, 32, 3)), labels=[f"label {i % 3}" for i in range(12)])
    split = en.disentangle(model, images, concepts=5, units=3, tokens_per_image=6, progress=False)
    return Ground(folder, rng, model, images, split)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `Hang` inside the block after so many seconds, where the system has such an alarm."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(_signal: int, _frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def files_below(folder: Path) -> set[str]:
    """Return the paths of all that lies below a folder."""
    return {os.path.join(top, name) for top, folders, files in os.walk(folder) for name in (*folders, *files)}  # noqa: PTH118 - thousands of times


def innermost(error: BaseException) -> str:
    """Return the file in which an exception was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return frames[-1].filename if frames else ""


def where_in_library(error: BaseException) -> str:
    """Return the last line of this library on the way to an exception."""
    ours = [each for each in traceback.extract_tb(error.__traceback__) if each.filename.startswith(LIBRARY)]
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "outside"


def problem_of(error: BaseException, case: Case) -> str | None:
    """Say what is wrong about an exception, or nothing."""
    if isinstance(error, Hang):
        return "hangs"
    if isinstance(error, Misbehaved):
        return str(error)
    said = f"{type(error).__name__} at {where_in_library(error)}: {str(error)[:160]}"
    # OutOfMemoryError and its like are RuntimeErrors; a UnicodeError or JSONDecodeError is a ValueError of Python's.
    if not isinstance(error, (*EXPECTED, *case.also)):
        return said
    if case.reader and not innermost(error).startswith(LIBRARY):
        return f"not refused by the library itself: {said}"
    return None


def try_case(case: Case, row: Row, folder: Path) -> None:
    """Run one case and enter it in its family's row."""
    before = files_below(folder)
    WATCH.seen, WATCH.folder, WATCH.on = [], os.path.realpath(folder), True
    # For code that no alarm reaches:
    faulthandler.dump_traceback_later(5 * SECONDS, exit=True, file=sys.__stderr__ or sys.stderr)
    start = time.perf_counter()
    problem: str | None = None
    try:
        with warnings.catch_warnings(action="ignore"), time_limit(SECONDS):
            case.run()
        row.accepted += 1
    except (Exception, Hang) as error:  # noqa: BLE001 - to judge it is the purpose
        problem = problem_of(error, case)
        row.refused += problem is None
    finally:
        WATCH.on = False
        faulthandler.cancel_dump_traceback_later()
    row.slowest = max(row.slowest, time.perf_counter() - start)
    row.cases += 1
    left = files_below(folder) ^ before
    trouble = [text for text in (problem, *WATCH.seen, *(f"left or took {Path(path).name!r}" for path in left)) if text]
    if trouble:
        row.unexpected.append(f"{case.name}: {'; '.join(trouble)}")
        row.kinds[trouble[0].partition(": ")[0]] += 1
