"""Images, opened one at a time: a folder, files, arrays, or one of two sets that need no network.

An `ImageSet` knows where its images are and opens one when it is asked for: a folder of 100,000 files costs its paths
and nothing more. It can be pickled, so that the workers of a `torch.utils.data.DataLoader` can read it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self, overload

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from elude_nb._util.arguments import knows_arguments
from elude_nb._util.arithmetic import own_arithmetic
from elude_nb._util.checks import check_choice, check_count, check_fraction, check_kind, shortly
from elude_nb._util.progress import progress_bar
from elude_nb._util.warn import warn_caller
from elude_nb._util.words import as_text, counted
from elude_nb.data.arrays import as_array, check_dtype, one_picture, show_picture, split_pictures
from elude_nb.data.copies import NEAR, distinct_numbers, find_originals, hash_image, pixels_of, sketch
from elude_nb.data.datasets import (
    Taken,
    check_single,
    check_steady,
    check_transform,
    is_dataset,
    labels_of,
    map_style,
    name_of,
    names_of,
    open_item,
)
from elude_nb.data.debian import PACKAGES, fashion, folder_of_pictures
from elude_nb.data.decode import LEAVE_OUT, Range, check_value_range, open_rgb, read_rgb, upright_rgb
from elude_nb.data.folders import IMAGE_SETS, list_pictures, name_left_out
from elude_nb.data.photographs import PHOTOGRAPHS, factors_of_crops, open_crop, photograph, sample_crops
from elude_nb.data.streams import first_items
from elude_nb.data.synthetic import draw_scene, sample_scenes
from elude_nb.errors import ImageError

__all__ = ["ImageSet", "Images", "as_image_set", "load_images", "photograph"]

_HELD: Any = str | bytes | os.PathLike | Image.Image


@dataclass(frozen=True, eq=False)
class ImageSet(Sequence[Image.Image]):
    """A sequence of images, opened when asked for: RGB, or a tensor (c, h, w) in [0, 1] of other channels.

    Attributes
    ----------
    names
        One name an image: the path (with bytes that are no UTF-8 written as ``%E9``), or what it shows.
    labels
        One label an image, or ``None`` where there are none.
    source
        Where the images came from, in words.
    factors
        One row an image with what is known of how it was made: for ``"shapes"`` the factors it was drawn from, for
        ``"photographs"`` where in its photograph the crop lies; else ``None``.
    left_out
        Files of the folder that are no images, and broken ones that `without_broken` found.
    """

    names: tuple[str, ...]
    labels: tuple[str, ...] | None
    source: str
    factors: pd.DataFrame | None = field(repr=False)
    # One item an image, and what opens it: plain values and a function of a module, which can be pickled.
    _items: Sequence[Any] = field(repr=False)
    _open: Callable[[Any], Image.Image] = field(repr=False)
    left_out: tuple[str, ...] = ()
    # Hashes of the images that were opened, by their places in the set that this one was first taken from: a subset
    # that opens an image notes its hash for all.
    _hashes: dict[int, int] = field(default_factory=dict, repr=False)
    _places: Sequence[int] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if self.labels is not None and len(self.labels) != len(self):
            raise ValueError(
                f"{counted(len(self.labels), 'label')} for {counted(len(self), 'image')}; give one an image."
            )
        if not self._places:
            vars(self)["_places"] = range(len(self))

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> Image.Image | Self:
        """Open one image, or take a slice as a smaller set.

        Raises
        ------
        ImageError
            If the image is broken, empty or too small; the message names it.
        """
        if isinstance(index, slice):
            return self.subset(range(len(self))[index])
        image = self._open(self._items[index])
        self._hashes[self._places[index]] = hash_image(image)
        return image

    def hashes(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return a hash of the pixels of each image, (n,); images that were not opened yet are opened."""
        for index, place in enumerate(self._places):
            if place not in self._hashes:
                self[index]
        return np.array([self._hashes[place] for place in self._places], dtype=np.int64)

    def note_hashes(self, start: int, hashes: Sequence[int]) -> None:
        """Note the hashes of images from number ``start`` on, which another process has opened."""
        self._hashes.update(zip(self._places[start : start + len(hashes)], hashes, strict=True))

    def __iter__(self) -> Iterator[Image.Image]:
        return (self[i] for i in range(len(self)))

    def subset(self, indices: Sequence[int] | np.ndarray[Any, Any]) -> Self:
        """Return the images at ``indices``, in that order, as a set; nothing is opened.

        Raises
        ------
        TypeError, IndexError
            If one is no whole number, or there is no such image.
        """
        chosen = np.asarray(indices)
        if len(chosen) and (chosen.ndim != 1 or chosen.dtype.kind not in "iu"):
            raise TypeError(f"Indices must be whole numbers, not {shortly(indices)}.")
        for index in chosen:
            if not -len(self) <= index < len(self):
                raise IndexError(f"There is no image {index}; this set has {len(self)}, counted from 0.")
        places = chosen.astype(int).tolist()
        return replace(
            self,
            names=tuple(self.names[i] for i in places),
            labels=None if self.labels is None else tuple(self.labels[i] for i in places),
            factors=None if self.factors is None else self.factors.iloc[places].reset_index(drop=True),
            _items=[self._items[i] for i in places],
            _places=[self._places[i] for i in places],
        )

    @knows_arguments
    def split(self, fraction: float = 0.5, *, seed: int = 0) -> tuple[Self, Self]:
        """Split at random into two sets, the first with about ``fraction`` of each label's images.

        Copies may come to lie in both; `without_copies` leaves them out beforehand.

        Raises
        ------
        ValueError
            If a part would be empty.

        Examples
        --------
        >>> discover, held_out = load_images("shapes", count=10).split(0.5, seed=0)
        >>> len(discover), len(held_out)
        (5, 5)
        """
        check_fraction("fraction", fraction, open_ends=True)
        order = np.random.default_rng(seed).permutation(len(self))
        if self.labels is not None:  # the images of each label together
            order = order[np.argsort(np.asarray(self.labels)[order], kind="stable")]
        # Image number i of the order is taken when the running count floor(i * fraction) steps up.
        taken = np.diff(np.floor(np.arange(len(self) + 1) * fraction + 0.5)) > 0
        first, second = np.sort(order[taken]), np.sort(order[~taken])
        if not len(first) or not len(second):
            raise ValueError(
                f"{counted(len(self), 'image')} cannot be split at fraction={fraction}: one part would be empty."
            )
        return self.subset(first), self.subset(second)

    @knows_arguments
    def sample(self, count: int, *, seed: int = 0) -> Self:
        """Draw ``count`` images at random, as many of each label as of any other; the order of the set is kept.

        A label with too few images gives all that it has, and the others share what is missing. With more labels than
        ``count``, the labels are drawn, too. A set of ``count`` images or fewer is returned as it is.

        Parameters
        ----------
        count
            How many images.
        seed
            Of the drawing: the same seed draws the same images.

        Examples
        --------
        >>> load_images("photographs", count=100).sample(3).labels
        ('astronaut', 'retina', 'coffee')
        """
        if check_count("count", count) >= len(self):
            return self
        order = np.random.default_rng(seed).permutation(len(self))
        if self.labels is not None:
            labels = pd.Series(self.labels).iloc[order]
            rank = labels.groupby(labels).cumcount()  # the first of each label, then the second of each, ...
            order = order[np.argsort(rank, kind="stable")]
        return self.subset(np.sort(order[:count]))

    def with_labels(self, labels: Sequence[Any]) -> Self:
        """Return the same images with other labels, one an image.

        Raises
        ------
        ValueError
            If there are not as many labels as images.
        """
        return replace(self, labels=_as_labels(labels))

    def only(self, labels: str | Sequence[str]) -> Self:
        """Return the images of these labels; raises ``ValueError`` if no image has one of them."""
        return self.subset(np.flatnonzero(self.has_label(labels)))

    def without(self, labels: str | Sequence[str]) -> Self:
        """Return the images of all other labels; raises as `only` does."""
        return self.subset(np.flatnonzero(~self.has_label(labels)))

    def has_label(self, labels: str | Sequence[str]) -> np.ndarray[Any, Any]:
        """Return which images have one of these labels, (n,); raises as `only` does."""
        if self.labels is None:
            raise ValueError(f"These images have no labels; {labels!r} cannot be looked up.")
        wanted = set(map(as_text, [labels] if isinstance(labels, str) else labels))
        for label in wanted:
            check_choice("label", label, sorted(set(self.labels)))
        return np.array([label in wanted for label in self.labels], dtype=bool)

    def without_broken(self, *, progress: bool = False) -> Self:
        """Open every image once and return those that can be used; a warning names the others."""
        broken = self.find_broken(progress=progress)
        if broken:
            shown = "\n  ".join([*broken.values()][:10]).replace(LEAVE_OUT, "")
            warn_caller(f"{len(broken)} of {counted(len(self), 'image')} left out:\n  {shown}")
        whole = [index for index in range(len(self)) if index not in broken]
        return replace(self.subset(whole), left_out=self.left_out + tuple(self.names[index] for index in broken))

    def find_broken(self, *, progress: bool = False) -> dict[int, str]:
        """Open every image once and return what is wrong with those that cannot be used, by their numbers."""
        broken = dict[int, str]()
        for index in progress_bar(range(len(self)), description="opening images", unit="image", show=progress):
            try:
                self[index]
            except ImageError as error:
                broken[index] = str(error)
        return broken

    @knows_arguments
    @own_arithmetic()
    def without_copies(self, of: ImageSet | None = None, *, near: bool = False) -> Self:
        """Open every image once and return the first of those with the same pixels; a warning counts the others.

        Copies would make a unit's best images alike, and would lie in both halves of a `split`. ``of`` is another set
        whose copies are left out, too. ``near`` leaves out what is nearly the same as well, as after another
        compression or in another size: the difference is less than a tenth of the contrast.
        """
        before = 0 if of is None else len(of)
        sketches = [sketch(pixels_of(image, near)[None]) for images in (of or (), self) for image in images]
        names = (*(() if of is None else of.names), *self.names)
        found = find_originals(torch.cat([torch.zeros(0, 258), *sketches]), NEAR if near else 0)
        numbers = distinct_numbers(found, names)
        kept = numbers[numbers >= before] - before
        return self if len(kept) == len(self) else self.subset(kept.numpy())

    def __repr__(self) -> str:
        labels = f", {counted(len(set(self.labels)), 'label')}" if self.labels is not None else ""
        left_out = f"; {name_left_out(self.left_out)}" if self.left_out else ""
        return f"ImageSet({counted(len(self), 'image')} from {self.source}{labels}{left_out})"


class Items(Protocol):
    """A data set of any library: a length, and items by number."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: Any, /) -> Any: ...


Source = str | os.PathLike[str] | Iterable[Any] | np.ndarray[Any, Any] | Tensor | Dataset[Any] | DataLoader[Any] | Items
"""What `load_images` takes."""
Images = ImageSet | Source
"""What public functions take for images: a set, or any source that `load_images` takes."""


@knows_arguments
def load_images(
    source: Images,
    *,
    labels: Sequence[str] | None = None,
    count: int | None = None,
    seed: int = 0,
    value_range: Range | None = None,
) -> ImageSet:
    """Collect images without opening them.

    Parameters
    ----------
    source
        * a folder: all images below it, links followed; the first subfolder is the label. A warning names what else
          lies there;
        * a list, array or table column of paths, or a list of PIL images, arrays, tensors or the bytes of files, one
          an image;
        * an array or tensor (n, h, w, c) or (n, c, h, w), the channels on the shorter of the two axes, or n grey images
          (n, h, w), but (3, h, w) and (h, w, 3) are one image: uint8, or floats in [0, 1];
        * a data set with items by number, of torch, torchvision, Hugging Face or your own, or a ``DataLoader`` of all
          of one: items are an image, a pair (image, label), or a dictionary with ``"image"`` and ``"label"``, and the
          names of classes are taken where the data set has them. Its transform must not normalise or draw at random;
        * a stream, which can only be gone through: an ``IterableDataset`` of torch, Hugging Face or WebDataset, or an
          iterator. Its first ``count`` items are taken into memory, pictures as bytes or paths where the stream has
          them; of an iterator all without ``count``;
        * ``"photographs"``: crops of ten colour photographs, the label says of which;
        * ``"shapes"``: drawn scenes whose factors are known;
        * ``"fashion"``: 70,000 small grey photographs of clothes in 10 kinds (Fashion-MNIST); ``"stamps"``: cut-out
          photographs and drawings of 30 kinds; ``"clipart"``: drawings of as many. They are fetched once, checked by
          hash and cached (the last two with Debian's apt-get), and their licence stands in ``source``.
    labels
        For lists, arrays and data sets: one label an image.
    count
        For sets by name: how many images (400 by default). For others: draw so many with `ImageSet.sample`.
    seed
        Of the crops, of the factors, or of the drawing.
    value_range
        The values that are black and white, such as ``(0, 4095)`` for scans of 12 bits in files of 16; what is beyond
        is cut off. For arrays, and for files of more than 8 bits: by default these have the range of their depth.

    Returns
    -------
    ImageSet
        Images come out as RGB: grey is repeated, transparent parts are laid over white, 16 bits are scaled to 8,
        and a photograph's EXIF rotation is applied. Arrays with another number of channels than 1 and 3 come out as
        tensors (c, h, w), float32 in [0, 1].

    Raises
    ------
    ImageError, FileNotFoundError
        If there is nothing usable at ``source``. A single broken file raises when it is opened, with its path;
        `ImageSet.without_broken` leaves such files out beforehand.
    TypeError, ValueError
        If ``source`` is no kind of images, such as an ``IterableDataset`` without ``count``, there are not as many
        labels as images, or a stream's images take more than 8 GiB.

    Examples
    --------
    >>> load_images("photographs", count=20)
    ImageSet(20 images from photographs, 10 labels)
    """
    if count is not None:
        check_count("count", count)
    value_range = check_value_range(value_range)
    if isinstance(source, str) and source in IMAGE_SETS:
        if labels is not None or value_range is not None:
            raise ValueError(f"{source!r} brings its own labels and values; leave out labels= and value_range=.")
        return _by_name(source, count or 400, seed)
    if isinstance(source, str | os.PathLike):
        if labels is not None:
            raise ValueError("A folder's labels are its subfolders; to give labels of your own, pass a list of paths.")
        images = _from_folder(Path(source), value_range)
    elif isinstance(source, Image.Image):
        raise TypeError("One PIL image is no set; give a list, for example load_images([image]).")
    elif isinstance(source, ImageSet):
        if value_range is not None:
            raise ValueError("These images are loaded already; give value_range= where they are loaded first.")
        images = source if labels is None else source.with_labels(labels)
    elif isinstance(source, Mapping):
        keys = ", ".join(map(repr, list(source)[:4]))
        raise TypeError(f"source is a {type(source).__name__}, not a set of images; choose one of its parts: {keys}.")
    elif hasattr(source, "__array__"):
        array = as_array(source)
        of_items = array.dtype.kind in "OUT"
        items = array.ravel().tolist() if of_items else []
        images = _from_list(items, labels, value_range) if of_items else _from_array(array, labels, value_range)
    elif is_dataset(source):
        first = first_items(source, count)
        images = _from_dataset(map_style(source) if first is None else first, labels, value_range)
    else:
        check_kind("source", source, Iterable, "a folder, a list of images or paths, an array, or a data set")
        taken = first_items(source, count) if isinstance(source, Iterator) else None
        items = taken or [*source]  # type: ignore[misc] # an iterable, as was just checked
        images = (_from_dataset if is_dataset(items) else _from_list)(items, labels, value_range)
    return images if count is None else images.sample(count, seed=seed)


def as_image_set(images: Images) -> ImageSet:
    """Return an `ImageSet` as it is, and of anything else what `load_images` makes of it."""
    return images if isinstance(images, ImageSet) else load_images(images)


def _as_labels(labels: Iterable[Any] | None) -> tuple[str, ...] | None:
    return None if labels is None else tuple(as_text(label) for label in labels)


def _from_folder(folder: Path, value_range: Range | None) -> ImageSet:
    paths, left_out = list_pictures(folder)
    if left_out:
        there = f"{len(paths):,} images lie" if len(paths) > 1 else "1 image lies"
        warn_caller(f"{there} below {str(folder)!r}; {name_left_out(left_out)}")
    names = [as_text(os.path.relpath(path, folder)) for path in paths]
    labels = [Path(name).parts[0] if len(Path(name).parts) > 1 else "" for name in names]
    known = tuple(labels) if any(labels) else None
    opener = partial(open_rgb, value_range=value_range)
    return ImageSet(tuple(names), known, f"folder {as_text(folder.name)}", None, paths, opener, tuple(left_out))


def _from_list(items: list[Any], labels: Sequence[str] | None, value_range: Range | None) -> ImageSet:
    if not items:
        raise ImageError("The list of images is empty.")
    names, held = [], []
    for number, item in enumerate(items):
        of_path = isinstance(item, str | os.PathLike)
        if not hasattr(item, "__array__"):  # which a PIL image may have, too
            check_kind(f"Item {number}", item, _HELD, "a path, the bytes of a file, a PIL image or an array")
        check_single(f"Item {number}", item)
        names.append(as_text(os.fspath(item)) if of_path else f"image {number}")
        held.append(item if of_path else (item, names[-1]))
    opener = partial(open_image, value_range=value_range)
    return ImageSet(tuple(names), _as_labels(labels), _source_of(items), None, held, opener)


def _source_of(dataset: Any) -> str:
    kind = f"stream {name_of(dataset)}" if isinstance(dataset, Taken) else f"data set {name_of(dataset)}"
    return f"a list of {len(dataset)}" if type(dataset) is list else kind


def open_image(item: Any, value_range: Range | None = None) -> Image.Image:
    """Return a path as the image that it names, and a pair of an image and its name as an image.

    The image of a pair is a PIL image, the bytes of a file, or an array or tensor: (h, w), (h, w, c) or (c, h, w).
    Raises `ImageError` if there is no usable image.
    """
    if not isinstance(item, tuple):
        return open_rgb(item, value_range)
    image, name = item
    if isinstance(image, Image.Image):
        return upright_rgb(image, name, value_range)
    if isinstance(image, bytes):
        return read_rgb(image, name, value_range)
    shown: Image.Image = show_picture(one_picture(as_array(image)), name, value_range)  # or a tensor
    return shown


def _from_dataset(dataset: Any, labels: Sequence[str] | None, value_range: Range | None) -> ImageSet:
    if not len(dataset):
        raise ImageError(f"{name_of(dataset)} is empty.")
    check_transform(dataset, normalised=value_range is not None)
    names = names_of(dataset)
    found = _as_labels(labels_of(dataset, names) if labels is None else labels)
    opener = partial(_open_item, dataset=dataset, value_range=value_range)
    images = ImageSet(tuple(names), found, _source_of(dataset), None, list(enumerate(names)), opener)
    check_steady(images, dataset)
    return images


def _open_item(item: tuple[int, str], dataset: Any, value_range: Range | None) -> Image.Image:
    image, _ = open_item(dataset, *item)
    return open_image(image if isinstance(image, str | os.PathLike) else (image, item[1]), value_range)


def _from_array(pixels: np.ndarray[Any, Any], labels: Sequence[str] | None, value_range: Range | None) -> ImageSet:
    pictures, source = split_pictures(pixels), f"an array {pixels.shape}"
    check_dtype(pixels.dtype, value_range)  # now, not when the first is opened
    names = tuple(f"image {i}" for i in range(len(pictures)))
    items = list(zip(pictures, names, strict=True))
    return ImageSet(names, _as_labels(labels), source, None, items, partial(_open_row, value_range=value_range))


def _open_row(item: tuple[np.ndarray[Any, Any], str], value_range: Range | None) -> Image.Image:
    shown: Image.Image = show_picture(*item, value_range)  # or a tensor
    return shown


def _photographs(count: int, seed: int) -> ImageSet:
    crops = sample_crops(count, seed)
    labels = tuple(crop.label for crop in crops)
    names = tuple(f"{label} {i // len(PHOTOGRAPHS)}" for i, label in enumerate(labels))
    return ImageSet(names, labels, "photographs", factors_of_crops(crops), crops, open_crop)


def _by_name(name: str, count: int, seed: int) -> ImageSet:
    """Return images of one of `IMAGE_SETS`."""
    if name in {"photographs", "shapes"}:
        return (_photographs if name == "photographs" else _shapes)(count, seed)
    if name == "fashion":
        images, licence = _from_dataset(fashion(), None, None), "MIT"
    else:
        images, licence = _from_folder(folder_of_pictures(name), None), PACKAGES[name].licence
    return replace(images, source=f"{name} ({licence})").sample(count, seed=seed)


def _shapes(count: int, seed: int) -> ImageSet:
    factors = sample_scenes(count, seed)
    rows = factors.to_dict("records")
    names = tuple(f"{row['texture']} {row['colour']} {row['shape']} {i}" for i, row in enumerate(rows))
    return ImageSet(names, _as_labels(factors["shape"]), "shapes", factors, rows, draw_scene)
