"""Hand fitted methods to the other processes of a group, without the model, which each of them has."""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from typing import Any

from elude_nb._util.ranks import Ranks
from elude_nb.baselines.base import Method
from elude_nb.models.load import Model


def hand_round(methods: Sequence[Method], model: Model, ranks: Ranks) -> list[list[Method]]:
    """Return the methods that each process has fitted; those of others are copies, with the model of this process.

    Raises
    ------
    TypeError
        If a method cannot be pickled.
    """
    if ranks.count == 1:
        return [list(methods)]
    several = ranks.all([_packed(method, model) for method in methods])
    return [
        list(methods) if rank == ranks.rank else [_Unpickler(io.BytesIO(each), model).load() for each in packed]
        for rank, packed in enumerate(several)
    ]


def _packed(method: Method, model: Model) -> bytes:
    file = io.BytesIO()
    try:
        _Pickler(file, model).dump(method)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TypeError(
            f"{method.name!r} cannot be handed to the other processes ({error}). Define its class at the top level of "
            "a module, and keep no functions in it; or call compare in one process."
        ) from error
    return file.getvalue()


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, model: Model) -> None:
        super().__init__(file)
        self._network = model.network

    def persistent_id(self, obj: Any) -> str | None:
        if isinstance(obj, Model) and obj.network is self._network:
            return "model"
        return "network" if obj is self._network else None


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, model: Model) -> None:
        super().__init__(file)
        self._found = {"model": model, "network": model.network}

    def persistent_load(self, pid: str) -> Any:
        return self._found[pid]
