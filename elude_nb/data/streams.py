"""The first images of a stream: of WebDataset, of Hugging Face ``datasets``, of any generator.

They are held as the stream gives them. Encoded pictures (bytes or paths) stay encoded until they are opened.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import DataLoader, IterableDataset

from elude_nb.data.datasets import Taken, name_of, names_of_classes

_GIB = 1 << 30
MOST_HELD = 8 * _GIB
"""How many bytes of a stream are held in memory."""


def first_items(source: Any, count: int | None) -> Taken | None:
    """Return the first items of what can only be gone through from its beginning; ``None`` for others.

    Without ``count`` all that an iterator has, and ``None`` for a data set, which may have no end.

    Raises
    ------
    ValueError
        If they take more memory than `MOST_HELD`.
    """
    source = source.dataset if isinstance(source, DataLoader) else source
    streams = isinstance(source, IterableDataset | Iterator) or not hasattr(source, "__getitem__")
    endless = count is None and not isinstance(source, Iterator)
    if not streams or endless or not hasattr(source, "__iter__"):
        return None
    encoded = _encoded(source)
    taken = _take(source, encoded, count)
    if encoded is not source and _is_inside_archive(taken):
        taken = _take(source, source, count)
    return taken


def _take(source: Any, items: Iterable[Any], count: int | None) -> Taken:
    taken, held = Taken(name_of(source), names_of_classes(source)), 0
    for item in islice(items, count):
        taken.append(item)
        held += _size(item)
        if held > MOST_HELD:
            raise ValueError(
                f"{len(taken):,} images of {name_of(source)} take {held / _GIB:.3g} GiB, and of a stream no more than "
                f"{MOST_HELD / _GIB:.3g} are held. Give them encoded, as paths or as the bytes of files (WebDataset: "
                "without decode), save them to a folder, or take fewer: count=."
            )
    return taken


def _size(item: Any) -> int:
    """Return about how many bytes an item takes in memory; of a picture, once it is decoded."""
    if isinstance(item, Mapping):
        return sum(map(_size, item.values()))
    if isinstance(item, tuple | list):
        return sum(map(_size, item))
    if isinstance(item, Image.Image):
        return item.width * item.height * (1 if item.mode in {"1", "L", "P"} else 4)  # Pillow pads three bands to four
    return len(item) if isinstance(item, str | bytes) else int(getattr(item, "nbytes", 0))


def _encoded(source: Any) -> Any:
    """Return a stream of Hugging Face with its pictures as bytes or paths; others as they are."""
    features = getattr(source, "features", None)
    for name, feature in features.items() if isinstance(features, Mapping) else ():
        plain = getattr(feature, "decode", False) is True and getattr(feature, "mode", None) is None
        if plain and type(feature).__name__ == "Image" and dataclasses.is_dataclass(type(feature)):
            source = source.cast_column(name, dataclasses.replace(feature, decode=False))
    return source


def _is_inside_archive(taken: Taken) -> bool:
    """Say whether pictures have a path that only Hugging Face can open, such as one inside a zip file."""
    values = [value for item in taken[:1] if isinstance(item, Mapping) for value in item.values()]
    pictures = [value for value in values if isinstance(value, Mapping) and value.keys() == {"bytes", "path"}]
    return any(value["bytes"] is None and not Path(value["path"] or "").is_file() for value in pictures)
