"""Images, opened one at a time: a folder, files, arrays, or one of two sets that need no network.

An `ImageSet` knows where its images are and opens one when it is asked for: a folder of 100,000 files costs its paths
and nothing more. It can be pickled, so that the workers of a `torch.utils.data.DataLoader` can read it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple, Self, overload

import numpy as np
import pandas as pd
from PIL import Image, ImageOps

from elude_nb._util.checks import check_choice, check_count, check_fraction, check_kind, shortly
from elude_nb.data.decode import open_rgb, to_rgb, upright_rgb
from elude_nb.data.synthetic import draw_scene, sample_scenes
from elude_nb.errors import ImageError

IMAGE_ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
IMAGE_SETS = ("photographs", "shapes")

PHOTOGRAPHS: dict[str, tuple[str, str]] = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "cat": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "galaxies": ("skimage", "data/hubble_deep_field.jpg"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "retina": ("skimage", "data/retina.jpg"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "temple": ("sklearn", "datasets/images/china.jpg"),
    "tissue": ("skimage", "data/ihc.png"),
}
"""Label, package and file of each colour photograph that travels in the wheels of scikit-image and scikit-learn."""


@dataclass(frozen=True, eq=False)
class ImageSet(Sequence[Image.Image]):
    """A sequence of RGB images, opened when asked for.

    Attributes
    ----------
    names
        One name an image: the path, or what it shows.
    labels
        One label an image, or ``None`` where there are none.
    source
        Where the images came from, in words.
    factors
        One row an image with what is known of how it was made: for ``"shapes"`` the factors it was drawn from, for
        ``"photographs"`` where in its photograph the crop lies; else ``None``.
    """

    names: tuple[str, ...]
    labels: tuple[str, ...] | None
    source: str
    factors: pd.DataFrame | None = field(repr=False)
    # One item an image, and the function that opens an item: plain values and a function of a module can be pickled.
    _items: Sequence[Any] = field(repr=False)
    _open: Callable[[Any], Image.Image] = field(repr=False)

    def __post_init__(self) -> None:
        if self.labels is not None and len(self.labels) != len(self):
            raise ValueError(f"{len(self.labels)} labels were given for {len(self)} images; give one an image.")

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> Image.Image | Self:
        """Open one image as RGB, or take a slice as a smaller set.

        Raises
        ------
        ImageError
            If the image is broken, empty or too small; the message names it.
        """
        if isinstance(index, slice):
            return self.subset(range(len(self))[index])
        return self._open(self._items[index])

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
        )

    def split(self, fraction: float = 0.5, *, seed: int = 0) -> tuple[Self, Self]:
        """Split at random into two sets, the first with about ``fraction`` of each label's images.

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
        order = self._shuffled(seed)
        # Image number i of the order is taken when the running count floor(i * fraction) steps up.
        taken = np.diff(np.floor(np.arange(len(self) + 1) * fraction + 0.5)) > 0
        first, second = np.sort(order[taken]), np.sort(order[~taken])
        if not len(first) or not len(second):
            raise ValueError(f"{len(self)} images cannot be split at fraction={fraction}: one part would be empty.")
        return self.subset(first), self.subset(second)

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
        return replace(self, labels=tuple(str(label) for label in labels))

    def only(self, labels: str | Sequence[str]) -> Self:
        """Return the images of these labels; raises ``ValueError`` if one of them is nobody's."""
        wanted = self._known(labels)
        return self.subset([i for i, label in enumerate(self.labels or ()) if label in wanted])

    def without(self, labels: str | Sequence[str]) -> Self:
        """Return the images of all other labels; raises as `only` does."""
        unwanted = self._known(labels)
        return self.subset([i for i, label in enumerate(self.labels or ()) if label not in unwanted])

    def _known(self, labels: str | Sequence[str]) -> set[str]:
        wanted = [labels] if isinstance(labels, str) else list(labels)
        for label in wanted:
            check_choice("label", label, sorted(set(self.labels or ())))
        return set(wanted)

    def _shuffled(self, seed: int) -> np.ndarray[Any, Any]:
        """Return a random order of all images in which each label's stand together."""
        order = np.random.default_rng(seed).permutation(len(self))
        if self.labels is None:
            return order
        return order[np.argsort(np.asarray(self.labels)[order], kind="stable")]

    def without_broken(self) -> Self:
        """Open every image once and return those that can be used; a warning names the others."""
        whole, broken = [], []
        for index in range(len(self)):
            try:
                self[index]
                whole.append(index)
            except ImageError as error:
                broken.append(str(error))
        if broken:
            shown = "\n  ".join(broken[:10])
            warnings.warn(f"{len(broken)} of {len(self)} images were left out:\n  {shown}", stacklevel=2)
        return self.subset(whole)

    def __repr__(self) -> str:
        labels = f", {len(set(self.labels))} labels" if self.labels is not None else ""
        return f"ImageSet({len(self)} images from {self.source}{labels})"


Images = ImageSet | str | os.PathLike[str] | Sequence[Any] | np.ndarray[Any, Any]
"""What public functions take for images: a set, or any source that `load_images` takes."""


def load_images(
    source: str | os.PathLike[str] | Sequence[Any] | np.ndarray[Any, Any],
    *,
    labels: Sequence[str] | None = None,
    count: int | None = None,
    seed: int = 0,
) -> ImageSet:
    """Collect images without opening them.

    Parameters
    ----------
    source
        * a folder: all images below it; the first subfolder is the label;
        * a list, array or table column of paths, or a list of PIL images;
        * an array or tensor (n, h, w), (n, h, w, 3) or (n, 3, h, w), uint8, or floats in [0, 1];
        * ``"photographs"``: crops of ten colour photographs, the label says of which;
        * ``"shapes"``: drawn scenes whose factors are known.
    labels
        For lists and arrays: one label an image.
    count
        For the two sets by name: how many images (400 by default). For others: draw so many with `ImageSet.sample`.
    seed
        Of the crops, of the factors, or of the drawing.

    Returns
    -------
    ImageSet
        Images come out as RGB: grey is repeated, transparent parts are laid over white, 16 bits are scaled to 8,
        and a photograph's EXIF rotation is applied.

    Raises
    ------
    ImageError, FileNotFoundError
        If there is nothing usable at ``source``. A single broken file raises when it is opened, with its path;
        `ImageSet.without_broken` leaves such files out beforehand.

    Examples
    --------
    >>> load_images("photographs", count=20)
    ImageSet(20 images from photographs, 10 labels)
    """
    if count is not None:
        check_count("count", count)
    if isinstance(source, str) and source in IMAGE_SETS:
        if labels is not None:
            raise ValueError(f"{source!r} brings its own labels; leave out labels=.")
        return _photographs(count or 400, seed) if source == "photographs" else _shapes(count or 400, seed)
    if isinstance(source, str | os.PathLike):
        if labels is not None:
            raise ValueError("A folder's labels are its subfolders; to give labels of your own, pass a list of paths.")
        images = _folder(Path(source))
    elif isinstance(source, Image.Image):
        raise TypeError("One PIL image is no set; give a list, for example load_images([image]).")
    elif hasattr(source, "__array__"):
        array = _as_array(source)
        images = _array(array, labels) if array.dtype.kind not in "OUT" else _list(array.ravel().tolist(), labels)
    else:
        check_kind("source", source, Iterable, "a folder, images, paths of images, or an array")
        images = _list(list(source), labels)
    return images if count is None else images.sample(count, seed=seed)


def as_image_set(images: Images) -> ImageSet:
    """Return an `ImageSet` as it is, and of anything else what `load_images` makes of it."""
    return images if isinstance(images, ImageSet) else load_images(images)


def _as_array(source: Any) -> np.ndarray[Any, Any]:
    try:
        if hasattr(source, "detach"):  # a tensor; NumPy has no bfloat16
            source = source.detach().cpu()
            source = source.float() if source.dtype.is_floating_point and source.dtype.itemsize < 4 else source
        return np.asarray(source)
    except (RuntimeError, TypeError, NotImplementedError) as error:  # of a tensor that is sparse or has no values
        raise TypeError(f"{shortly(source)} cannot be made an array ({error}); give a dense one.") from error


def _make(
    names: Sequence[str],
    labels: Sequence[str] | None,
    source: str,
    items: Sequence[Any],
    opener: Callable[[Any], Image.Image],
    factors: pd.DataFrame | None = None,
) -> ImageSet:
    known = None if labels is None else tuple(str(label) for label in labels)
    return ImageSet(tuple(names), known, source, factors, items, opener)


def _folder(folder: Path) -> ImageSet:
    try:
        there = folder.is_dir()
    except OSError:  # a name that is too long
        there = False
    if not there:
        raise FileNotFoundError(
            f"There is no folder {str(folder)!r:.500}. Name a folder, or one of the sets that need none: "
            + ", ".join(repr(name) for name in IMAGE_SETS)
        )
    paths = []
    for top, folders, files in os.walk(folder):
        folders[:] = [inner for inner in folders if not inner.startswith(".")]  # no .ipynb_checkpoints
        paths += [
            os.path.join(top, file)  # noqa: PTH118 - half the time of Path for 100,000 files
            for file in files
            if os.path.splitext(file)[1].lower() in IMAGE_ENDINGS and not file.startswith(".")  # noqa: PTH122
        ]
    paths.sort()
    if not paths:
        raise ImageError(f"No image lies below {str(folder)!r}; endings known are {sorted(IMAGE_ENDINGS)}.")
    names = [os.path.relpath(path, folder) for path in paths]
    labels = [Path(name).parts[0] if len(Path(name).parts) > 1 else "" for name in names]
    return _make(names, labels if any(labels) else None, f"folder {folder.name}", paths, open_rgb)


def _list(items: list[Any], labels: Sequence[str] | None) -> ImageSet:
    if not items:
        raise ImageError("The list of images is empty.")
    for number, item in enumerate(items):
        if not isinstance(item, str | os.PathLike | Image.Image):
            raise TypeError(f"Item {number} is a {type(item).__name__}; give paths or PIL images, or one array.")
    names = [f"image {i}" if isinstance(item, Image.Image) else os.fspath(item) for i, item in enumerate(items)]

    named = [(item, name) if isinstance(item, Image.Image) else item for item, name in zip(items, names, strict=True)]
    return _make(names, labels, f"a list of {len(items)}", named, _open_path_or_image)


def _open_path_or_image(item: str | os.PathLike[str] | tuple[Image.Image, str]) -> Image.Image:
    return upright_rgb(*item) if isinstance(item, tuple) else open_rgb(item)


def _array(pixels: np.ndarray[Any, Any], labels: Sequence[str] | None) -> ImageSet:
    shape = pixels.shape
    if pixels.ndim == 4 and shape[-1] != 3 and shape[1] == 3:
        pixels = pixels.transpose(0, 2, 3, 1)
    if pixels.ndim not in {3, 4} or (pixels.ndim == 4 and pixels.shape[-1] != 3):
        raise ImageError(
            f"An array of shape {shape} is no set of images; give (n, h, w), (n, h, w, 3) or (n, 3, h, w)."
        )
    if pixels.ndim == 3 and shape[-1] in {3, 4}:
        raise ImageError(f"An array of shape {shape} looks like one image; give array[None], or a list of PIL images.")
    if not len(pixels):
        raise ImageError(f"The array of shape {shape} holds no image.")
    if not np.issubdtype(pixels.dtype, np.floating) and pixels.dtype != np.uint8:
        raise ImageError(f"An array of {pixels.dtype} is ambiguous; give uint8, or floats in [0, 1].")
    names = [f"image {i}" for i in range(len(pixels))]
    return _make(names, labels, f"an array {shape}", list(enumerate(pixels)), _open_row)


def _open_row(item: tuple[int, np.ndarray[Any, Any]]) -> Image.Image:
    index, row = item
    if row.dtype != np.uint8:
        if not (np.isfinite(row).all() and row.min() >= 0 and row.max() <= 1):
            raise ImageError(f"Image {index} of the array leaves [0, 1] ({row.min()} to {row.max()}).")
        row = np.round(row * 255).astype(np.uint8)
    return to_rgb(Image.fromarray(row), f"image {index}")


def photograph(label: str) -> Image.Image:
    """Return a copy of one of the ten whole photographs by its label, such as ``"astronaut"``; see ``PHOTOGRAPHS``.

    Raises
    ------
    ValueError
        If there is none of that label.
    ImageError
        If the package it travels in is not installed.
    """
    return _read_photograph(check_choice("label", label, PHOTOGRAPHS)).copy()


@cache
def _read_photograph(label: str) -> Image.Image:
    """Return a photograph from the cache: crop or copy it, and never hand it out."""
    from importlib.util import find_spec

    package, file = PHOTOGRAPHS[label]
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ImageError(f"The photograph {label!r} travels in the package {package!r}, which is not installed.")
    return open_rgb(Path(spec.origin).parent / file)


class _Crop(NamedTuple):
    """A part of a photograph, in pixels."""

    label: str
    left: int
    top: int
    width: int
    height: int
    mirrored: bool


def _photographs(count: int, seed: int) -> ImageSet:
    """Random-resized crops: 8 to 60 % of the area, sides within 3:4 and 4:3, half of them mirrored."""
    labels = list(islice(cycle(PHOTOGRAPHS), count))
    crops = [_draw_crop(label, seed, index) for index, label in enumerate(labels)]
    table = pd.DataFrame(crops)
    whole = pd.DataFrame([_read_photograph(label).size for label in labels], columns=["width", "height"])
    factors = pd.DataFrame(
        {
            "photograph": labels,
            "x": (table["left"] + table["width"] / 2) / whole["width"],  # the centre
            "y": (table["top"] + table["height"] / 2) / whole["height"],
            "area": table["width"] * table["height"] / (whole["width"] * whole["height"]),
            "mirrored": table["mirrored"],
        }
    )
    names = [f"{label} {index // len(PHOTOGRAPHS)}" for index, label in enumerate(labels)]
    return _make(names, labels, "photographs", crops, _open_crop, factors)


def _draw_crop(label: str, seed: int, index: int) -> _Crop:
    # Every crop has a generator of its own, so that crop 7 is the same whatever the count.
    rng = np.random.default_rng([seed, index])
    photo_width, photo_height = _read_photograph(label).size
    area = rng.uniform(0.08, 0.6) * photo_width * photo_height
    ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    width = min(photo_width, round(float(np.sqrt(area * ratio))))
    height = min(photo_height, round(float(np.sqrt(area / ratio))))
    left, top = int(rng.integers(photo_width - width + 1)), int(rng.integers(photo_height - height + 1))
    return _Crop(label, left, top, width, height, bool(rng.random() < 0.5))


def _open_crop(crop: _Crop) -> Image.Image:
    box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
    patch = _read_photograph(crop.label).crop(box)
    return ImageOps.mirror(patch) if crop.mirrored else patch


def _shapes(count: int, seed: int) -> ImageSet:
    factors = sample_scenes(count, seed)
    rows = factors.to_dict("records")
    names = [f"{row['texture']} {row['colour']} {row['shape']} {i}" for i, row in enumerate(rows)]
    return _make(names, list(factors["shape"]), "shapes", rows, draw_scene, factors)
