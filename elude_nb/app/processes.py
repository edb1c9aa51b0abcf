"""Commands in several processes that ``torchrun`` has started: who does what, and who prints."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

SHARED = ("compare", "disentangle", "score", "verify")
"""The commands whose work several processes share."""


def process_number() -> tuple[int, int]:
    """Return the number of this process, from 0 on, and how many ``torchrun`` has started; (0, 1) without it."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # other programs set RANK for their own ends
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def check_shared(command: str | None) -> None:
    """Raise ``ValueError`` where several processes would all do the same."""
    _, count = process_number()
    if count > 1 and command not in SHARED:
        raise ValueError(f"{command} works in one process, and torchrun started {count}. Start it without torchrun.")


def own_device(device: str | None) -> str | None:
    """Return the device of this process: of ``cuda`` the one with its number on this machine."""
    _, count = process_number()
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and count > 1 else device


@contextmanager
def process_group() -> Iterator[bool]:
    """Work with the other processes, if there are any; yield whether this is the one that saves and prints."""
    rank, count = process_number()
    if count == 1:
        yield True
        return
    import torch.distributed as dist

    dist.init_process_group("gloo")
    try:
        yield rank == 0
    finally:
        dist.destroy_process_group()
