"""What tests run in processes of their own: forked from one that has imported torch already, so they start at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import torch

from elude_nb import Model
from elude_nb.core.one_pass import collect
from tests.tiny import random_images, tiny_vit, to_tensor


def context() -> ForkServerContext:
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["tests.workers"])
    return found


def start(work: Callable[..., object], *arguments: Any) -> ForkServerProcess:
    process = context().Process(target=work, args=arguments, daemon=True)
    process.start()
    return process


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def model_that_dies(after: int) -> Model:
    """Return the tiny transformer; its process is killed when it prepares one more image than so many."""
    left = [after]

    def prepare(image: Any) -> torch.Tensor:
        left[0] -= 1
        if left[0] < 0:
            _die()
        return to_tensor(image)

    return replace(tiny_vit(), preprocess=prepare)


def collect_until(after: int, saves: int, count: int, path: Path, shard: tuple[int, int], how: dict[str, Any]) -> None:
    """Collect a shard of so many images; be killed after so many images, or in the midst of writing so many files."""
    torch.set_num_threads(1)
    written = [0]

    def fsync(_: int) -> None:
        written[0] += 1
        if written[0] > saves:
            _die()

    os.fsync = fsync  # type: ignore[assignment]
    collect(model_that_dies(after), random_images(count, 32), shard=shard, out=path, **how)
