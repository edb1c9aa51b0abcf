"""One case of `fuzz`: what it is, where it is made, and how its outcome is judged."""

from __future__ import annotations

import dis
import faulthandler
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
from types import FrameType, TracebackType
from typing import Any

import numpy as np
import torch
from fuzz_eyes import MEMORY, WATCH, changes, settle, state_of  # type: ignore[import-not-found]  # beside this file

import elude_nb as en

SECONDS = 20.0  # far more than any case takes: a case that needs it hangs
MEBIBYTE = 1 << 20
MOST_MEMORY = 200 * MEBIBYTE  # above what was held before; the files and arrays of cases have a few MiB at most
LIBRARY = str(Path(en.__file__).parent)
EXPECTED = (ValueError, TypeError, OSError, en.errors.WeightsError, en.errors.NotFittedError)


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
    memory
        How many bytes it may take, above what was held before.
    """

    name: str
    run: Callable[[], object]
    reader: bool = True
    also: tuple[type[Exception], ...] = ()
    memory: int = MOST_MEMORY


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
    memory: int = 0
    unexpected: list[str] = field(default_factory=list)
    outcomes: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)


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


def is_said(error: BaseException) -> bool:
    """Say whether an exception was raised by a ``raise`` of this library: not below it, and not stumbled into."""
    last: TracebackType | None = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None or not last.tb_frame.f_code.co_filename.startswith(LIBRARY):
        return False
    return dis.opname[last.tb_frame.f_code.co_code[last.tb_lasti]] in {"RAISE_VARARGS", "RERAISE"}


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
    if case.reader and not is_said(error):
        return f"not refused by the library itself: {said}"
    return None


def try_case(case: Case, row: Row, folder: Path) -> None:
    """Run one case and enter it in its family's row; what it leaves below the folder is taken away."""
    settle(folder)
    before = state_of(folder)
    # For code that no alarm reaches:
    faulthandler.dump_traceback_later(5 * SECONDS, exit=True, file=sys.__stderr__ or sys.stderr)
    problem, outcome = None, "accepted"
    MEMORY.begin()
    start = time.perf_counter()
    try:
        with WATCH.watching(folder), warnings.catch_warnings(action="ignore"), time_limit(SECONDS):
            case.run()
    except (Exception, Hang) as error:  # noqa: BLE001 - to judge it is the purpose
        problem, outcome = problem_of(error, case), f"refused ({type(error).__name__})"
    finally:
        faulthandler.cancel_dump_traceback_later()
    row.slowest = max(row.slowest, time.perf_counter() - start)
    taken = MEMORY.taken()
    row.memory = max(row.memory, taken)
    greedy = f"takes more memory than {case.memory / MEBIBYTE:.0f} MiB" if taken > case.memory else None
    _enter(case, row, outcome, [text for text in (problem, greedy, *WATCH.seen, *changes(before, folder)) if text])


def _enter(case: Case, row: Row, outcome: str, trouble: list[str]) -> None:
    row.cases += 1
    row.refused += not trouble and outcome != "accepted"
    row.accepted += not trouble and outcome == "accepted"
    if trouble:
        outcome = "; ".join(trouble)
        row.unexpected.append(f"{case.name}: {outcome}")
        row.kinds[trouble[0].partition(": ")[0]] += 1
    row.outcomes.append(f"{case.name}: {outcome}")
