"""Data sets of other libraries: torch, torchvision, Hugging Face, or any object with a length and items by number.

An item is an image, a pair (image, label), or a dictionary with ``"image"`` (or ``"img"``) and ``"label"``. Items are
opened one at a time. Labels come from the data set's own list where it has one, and are read item by item otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
)

from elude_nb._util.checks import shortly
from elude_nb._util.progress import progress_bar
from elude_nb._util.warn import warn_caller
from elude_nb._util.words import as_text
from elude_nb.errors import ImageError

T = TypeVar("T")
_IMAGE, _LABEL = ("image", "img", "jpg", "jpeg", "png", "webp"), "label"  # WebDataset names columns by endings,
_CLASS, _KEY = "cls", "__key__"  # labels by this one, and items by that
_LISTS = ("targets", "labels")  # where data sets of torchvision have the labels of all items
_WITHOUT = "Give the data set without it: transform=None."


def is_dataset(source: Any) -> bool:
    """Say whether a source is a data set or a loader of one: items by number that are more than a list of images."""
    if isinstance(source, Dataset | DataLoader) or hasattr(source, "features"):
        return True
    if isinstance(source, Sequence):
        return len(source) > 0 and _is_record(source[0])
    return hasattr(source, "__getitem__") and hasattr(source, "__len__") and not isinstance(source, Mapping | Set)


def _is_record(item: Any) -> bool:
    """Say whether an item of a list has an image, rather than being one; a list of tensors is a loader's batch."""
    return isinstance(item, tuple | Mapping) or (isinstance(item, list) and any(isinstance(x, Tensor) for x in item))


def map_style(source: Any) -> Any:
    """Return a data set whose items can be opened by number: the source, or the one of a `DataLoader`.

    Raises
    ------
    TypeError, ValueError
        If it can only be gone through from its beginning, or the loader's sampler leaves out some of it.
    """
    if isinstance(source, DataLoader):
        sampler, whole = source.sampler, source.batch_sampler is None or type(source.batch_sampler) is BatchSampler
        if isinstance(sampler, RandomSampler):
            whole = whole and not sampler.replacement and sampler.num_samples == len(sampler.data_source)
        elif not isinstance(source.dataset, IterableDataset):
            whole = whole and isinstance(sampler, SequentialSampler)
        if not whole:
            kind = type(sampler if type(source.batch_sampler) is BatchSampler else source.batch_sampler).__name__
            raise ValueError(
                f"The DataLoader's {kind} chooses among its images, which cannot be followed; give those that are "
                "meant: torch.utils.data.Subset(loader.dataset, indices)."
            )
        source = source.dataset
    if isinstance(source, IterableDataset) or not (hasattr(source, "__getitem__") and hasattr(source, "__len__")):
        raise TypeError(
            f"{name_of(source)} has no items by number, and images are opened one at a time, in any order. Take as "
            "many as fit into memory: load_images(dataset, count=5000)."
        )
    return source


class Taken(list[Any]):
    """The first items of a stream (`elude_nb.data.streams`), with its name and those of its classes."""

    def __init__(self, name: str, classes: Sequence[Any] | None) -> None:
        super().__init__()
        self.name, self.classes = name, classes


def name_of(dataset: Any) -> str:
    """Return what a data set is called in messages."""
    if isinstance(dataset, Taken):
        return dataset.name
    return "the list" if isinstance(dataset, list) else type(dataset).__name__


def open_item(dataset: Any, index: int, name: str) -> tuple[Any, Any]:
    """Return the image and the label (or ``None``) of one item, as the data set has them.

    Raises
    ------
    ImageError
        If the data set cannot open it; the message names it.
    TypeError
        If it is no image, and none with a label.
    """
    try:
        item = dataset[index]
    except Exception as error:  # a data set of one's own may fail in any way
        reason = f"{type(error).__name__}: {error}"[:200]
        raise ImageError(
            f"{name!r} cannot be opened by {name_of(dataset)} ({reason}); mend it, or leave it out: "
            "torch.utils.data.Subset(dataset, indices)."
        ) from error
    label = None
    if isinstance(item, Mapping):
        key = next((key for key in _IMAGE if key in item), None)
        if key is None:
            raise TypeError(
                f"Item {index} of {name_of(dataset)} has no 'image' among {', '.join(map(repr, item))}; rename the "
                "column that has the images."
            )
        item, label = item[key], item.get(_LABEL, item.get(_CLASS))
    elif isinstance(item, tuple | list) and 1 <= len(item) <= 2:
        item, label = (*item, None)[:2]
    if isinstance(item, Mapping) and item.keys() == {"bytes", "path"}:  # Hugging Face's, with decode=False
        item = item["path"] if item["bytes"] is None else item["bytes"]
    check_single(f"Item {index} of {name_of(dataset)}", item)
    if not (isinstance(item, str | bytes | os.PathLike | Image.Image) or hasattr(item, "__array__")):
        raise TypeError(
            f"Item {index} of {name_of(dataset)} has {shortly(item)} for an image. Items must be an image (a path, the "
            "bytes of a file, a PIL image, an array or a tensor), a pair (image, label), or a dictionary with 'image' "
            "and 'label'."
        )
    return item, label


def check_single(name: str, image: Any) -> None:
    """Raise ``TypeError`` if an array or tensor is a batch rather than one image."""
    if getattr(image, "ndim", 0) > 3:
        raise TypeError(
            f"{name} is a batch of shape {tuple(image.shape)}, not one image; give that array by itself, or the "
            "DataLoader or data set that it is from, without batches (of WebDataset: without batched and WebLoader)."
        )


def names_of(dataset: Any) -> list[str]:
    """Return one name an item: the path of its file, below the root, where the data set says it, or its number."""
    found = _through_parts(dataset, _paths)
    return [f"image {number}" for number in range(len(dataset))] if found is None else found


def _paths(dataset: Any) -> list[str] | None:
    if isinstance(dataset, Taken):
        keys = [item.get(_KEY) if isinstance(item, Mapping) else None for item in dataset]
        return None if None in keys else [as_text(key) for key in keys]
    samples = getattr(dataset, "samples", None)  # torchvision's folders: pairs of a path and a class
    if not isinstance(samples, list) or len(samples) != len(dataset):
        return None
    paths = [pair[0] for pair in samples if isinstance(pair, tuple) and isinstance(pair[0], str)]
    if len(paths) != len(samples):
        return None
    root = getattr(dataset, "root", None)
    return [as_text(os.path.relpath(path, root) if isinstance(root, str) else path) for path in paths]


def labels_of(dataset: Any, names: Sequence[str]) -> list[str] | None:
    """Return one label an item in words, or ``None`` where items have none.

    The list that a data set has of them is taken if no ``target_transform`` changes them and the first agrees with the
    first item's; otherwise every item is opened once. Labels that are not one word or number an image are left out,
    with a warning. Raises as `open_item` does.
    """
    first = open_item(dataset, 0, names[0])[1]
    if first is None:
        return None
    listed, classes = _through_parts(dataset, _listed), names_of_classes(dataset)
    if listed is not None and listed[0][0] == _plain(first):
        return [word for _, word in listed]
    found = list[str]()
    for number in progress_bar(range(len(dataset)), description="labels"):
        label = open_item(dataset, number, names[number])[1] if number else first
        plain = _plain(label)
        if plain is None:
            warn_caller(
                f"The labels of {name_of(dataset)} are left out: they are not one word or number an image, but for "
                f"{names[number]!r} {shortly(label)}. Give your own: load_images(dataset, labels=[...])."
            )
            return None
        found.append(_in_words(plain, classes))
    return found


def _through_parts(dataset: Any, read: Callable[[Any], list[T] | None]) -> list[T] | None:
    """Return what ``read`` finds of each item, also through subsets and joined data sets; ``None`` if of one none."""
    if isinstance(dataset, Subset):
        whole = _through_parts(dataset.dataset, read)
        return None if whole is None else [whole[int(index)] for index in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        parts = [_through_parts(part, read) for part in dataset.datasets]
        return None if any(part is None for part in parts) else [each for part in parts for each in part or ()]
    return read(dataset)


def _listed(dataset: Any) -> list[tuple[str | float, str]] | None:
    """Return the labels that a data set lists, as they are and in words."""
    values: Any = None
    if _LABEL in (getattr(dataset, "features", None) or ()):  # a table of Hugging Face: one column is read alone
        values = dataset[_LABEL]
    elif getattr(dataset, "target_transform", None) is None:
        values = next((getattr(dataset, name) for name in _LISTS if hasattr(dataset, name)), None)
    if not hasattr(values, "__len__") or len(values) != len(dataset):
        return None
    plain, classes = [_plain(value) for value in values], names_of_classes(dataset)
    return [(value, _in_words(value, classes)) for value in plain if value is not None] if None not in plain else None


def names_of_classes(dataset: Any) -> Sequence[Any] | None:
    """Return the names of a data set's classes by number, or those of the one inside it."""
    features = getattr(dataset, "features", None)
    if isinstance(features, Mapping):
        return getattr(features.get(_LABEL), "names", None)
    found = getattr(dataset, "classes", None)
    if found is None and hasattr(dataset, "dataset"):
        return names_of_classes(dataset.dataset)
    if found is None and isinstance(dataset, ConcatDataset):
        first, *others = map(names_of_classes, dataset.datasets)
        return first if all(each == first for each in others) else None
    return found if isinstance(found, Sequence) and not isinstance(found, str) else None


def _plain(label: Any) -> str | float | None:
    """Return a label as a word or number, or ``None`` if it is neither."""
    if isinstance(label, Tensor | np.ndarray | np.generic) and label.ndim == 0:
        label = label.item()
    label = label.decode(errors="replace") if isinstance(label, bytes) else label  # of WebDataset
    return label if isinstance(label, str | int | float) else None


def _in_words(label: str | float, classes: Sequence[Any] | None) -> str:
    if classes is not None and isinstance(label, int) and 0 <= label < len(classes):
        name = classes[label]
        return as_text(", ".join(map(str, name)) if isinstance(name, tuple) else name)
    return as_text(label)


def check_transform(dataset: Any, *, normalised: bool = False) -> None:
    """Raise `ImageError` if a step of a data set's transform normalises (unless that is allowed) or draws at random."""
    for step in _steps(dataset):
        name = type(step).__name__
        if name == "Normalize" and not normalised:
            raise ImageError(
                f"The transform of {name_of(dataset)} normalises its images, and a model prepares them itself. "
                f"{_WITHOUT}"
            )
        if name.startswith("Random"):
            raise ImageError(_at_random(dataset, f"its transform has a {name}"))


def _steps(dataset: Any) -> Iterator[Any]:
    """Yield the steps of all transforms of a data set, and of those that it is made of."""
    waiting, seen = [dataset], set[int]()
    for each in waiting:  # which grows
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        inner = [getattr(each, name, None) for name in ("dataset", "datasets", "transform", "transforms")]
        inner.append(list(each.children()) if isinstance(each, nn.Module) else None)
        for value in inner:
            waiting += value if isinstance(value, list | tuple) else [] if value is None else [value]


def check_steady(images: Sequence[Any], dataset: Any, count: int = 3) -> None:
    """Raise `ImageError` if the first images are others when they are opened again: what is seen would not be shown."""
    for number in range(min(count, len(images))):
        one, other = images[number], images[number]
        if not np.array_equal(np.asarray(one), np.asarray(other)):
            raise ImageError(_at_random(dataset, f"image {number} is another each time that it is opened"))


def _at_random(dataset: Any, why: str) -> str:
    return (
        f"{name_of(dataset)} draws its images at random ({why}), so what is measured is not what is shown. {_WITHOUT}"
    )
