"""Processes that share one piece of work: those of the group that ``torch.distributed`` has initialised, if it has.

What they send each other is small and on the CPU, so it goes through gloo groups of their own, whatever the backend.
Their connections close when a process ends, and the others notice at once: nobody waits for a time-out.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from elude_nb.errors import GroupError

T = TypeVar("T")
MEETING = timedelta(minutes=10)
"""How long a process waits for the others to make the same call."""
_LONG = timedelta(days=30)  # the slowest share may take hours longer than the others
_SOON = 5.0  # seconds
_ENDED = "Another process of the group has ended or failed; what it printed says why. This one cannot go on without it."


class Ranks:
    """One process alone, or one of several that do the same calls in the same order.

    Attributes
    ----------
    rank, count
        The number of this process, from 0 on, and how many there are.
    """

    def __init__(self) -> None:
        self.rank, self.count, self.lost = 0, 1, False

    @property
    def first(self) -> bool:
        """Whether this is the process that saves and prints."""
        return self.rank == 0

    def check(self) -> None:
        """Raise `GroupError` if another process is known to have ended."""
        if self.lost:
            raise GroupError(_ENDED)

    def all(self, value: T) -> list[T]:
        """Return the values of all processes, in their order."""
        return [value]

    def join(self, values: list[T]) -> list[T]:
        """Return the lists of all processes as one, in their order."""
        return [value for several in self.all(values) for value in several]

    def from_first(self, value: T) -> T:
        """Return the value that the first process has."""
        return value

    def add_up(self, value: T) -> T:
        """Return the sum of all values in the first process; what the others get is a part of it."""
        return value


class _Several(Ranks):
    def __init__(self) -> None:
        super().__init__()
        self.rank, self.count = dist.get_rank(), dist.get_world_size()
        try:
            self._groups: list[Any] = [dist.new_group(backend="gloo", timeout=MEETING)]
        except RuntimeError as error:
            raise GroupError(
                f"Not all {self.count} processes of the group have made this call within {MEETING}, or one has ended. "
                "All have to make it, with the same arguments; where only one is to, end the group before: "
                "torch.distributed.destroy_process_group()."
            ) from error
        self._groups += [dist.new_group(backend="gloo", timeout=_LONG) for _ in range(2)]
        _, self._group, self._watch = self._groups
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        """Wait for the next process to say that it is done; the group is lost if it failed, or ended without a word.

        Who loses the group leaves it, and so the news goes round.
        """
        failed = torch.ones(1)
        with suppress(RuntimeError):
            dist.recv(failed, (self.rank + 1) % self.count, self._watch)
        self.lost = bool(failed)

    def leave(self, *, failed: bool) -> None:
        """Tell the process before this one how it went, and wait for what the next one tells."""
        with suppress(RuntimeError):
            dist.send(torch.full((1,), float(failed)), (self.rank - 1) % self.count, self._watch)
        self._thread.join(_SOON if failed else None)
        for group in self._groups:
            dist.destroy_process_group(group)

    def all(self, value: T) -> list[T]:
        found: list[Any] = [None] * self.count
        self._do(dist.all_gather_object, found, value)
        return found

    def from_first(self, value: T) -> T:
        found = [value]
        self._do(dist.broadcast_object_list, found, 0)
        return found[0]

    def add_up(self, value: T) -> T:
        step = 1
        while step < self.count:  # a tree: everybody sends once, and the first receives log2(count) times
            if self.rank % (2 * step):
                self._do(dist.send_object_list, [value], self.rank - step)
                return value
            if self.rank + step < self.count:
                found: list[Any] = [None]
                self._do(dist.recv_object_list, found, self.rank + step)
                value = value + found[0]
            step *= 2
        return value

    def _do(self, work: Callable[..., object], *arguments: Any) -> None:
        """Do what waits for other processes, in a thread, so that this one can stop waiting if one of them fails."""
        problems: list[RuntimeError] = []

        def run() -> None:
            try:
                work(*arguments, group=self._group)
            except RuntimeError as error:
                problems.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(0.1)
            self.check()
        if problems:
            raise GroupError(_ENDED) from problems[0]


@contextmanager
def together() -> Iterator[Ranks]:
    """Share work with the other processes of the group; alone where there is none.

    All processes of the group have to enter it, and to make the same calls. If one of them fails inside, or ends, the
    others raise `GroupError`.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        yield Ranks()
        return
    ranks = _Several()
    try:
        yield ranks
    except BaseException:
        ranks.leave(failed=True)
        raise
    ranks.leave(failed=False)
    ranks.check()
