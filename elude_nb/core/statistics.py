"""What one pass over images leaves, as a value: parts add up to the same, whatever images each of them saw."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elude_nb._util.arithmetic import own_arithmetic
from elude_nb._util.checks import check_count, check_flag
from elude_nb._util.files import load_result, save_result
from elude_nb._util.words import counted
from elude_nb.core.concepts import Cells, ConceptBook, Moments, on_device, tensors_of
from elude_nb.core.recording import Recording
from elude_nb.core.saving import Settings, read_settings
from elude_nb.errors import StatisticsError, StoreError
from elude_nb.models.hooks import for_analysis

KIND = "statistics"
TOKENS_AT_ONCE = 1024
"""Tokens taken in at once: their sources are widened to float64."""
_SAME_CELLS = 1e-2  # of the centres' mean square; rounding on another machine moves them by 1e-6 or so
_OF_MODEL = ("fingerprint", "dtype", "input_size", "image_list")
_UNCOUNTED = np.uint64(0xFFFFFFFFFFFFFFFF)


@dataclass(frozen=True)
class Limits:
    """How much of the tokens a pass keeps.

    Attributes
    ----------
    micro_clusters
        How many groups of tokens there are at most, between the tokens and the concepts.
    sample
        How many images the cells are made from, in which tokens are counted; 0 if all tokens are kept.
    tokens
        How many tokens are kept whole, at most: those with the smallest `token_keys`.
    tokens_seed
        Of the keys.
    squares
        Whether the sums of the sources' squares are kept, too.
    """

    micro_clusters: int
    sample: int
    tokens: int
    tokens_seed: int
    squares: bool = False


def token_keys(images: Tensor, positions: Tensor, seed: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Return a number for each token, drawn evenly from 64 bits by its image and position, (t,).

    The tokens with the smallest keys are a uniform sample of all, and which they are does not depend on the order.
    """
    with np.errstate(over="ignore"):
        key = np.full(len(images), seed, dtype=np.uint64)
        for part in (images, positions):  # the finaliser of SplitMix64 (Steele, Lea and Flood, 2014), once for each
            key = key + np.uint64(0x9E3779B97F4A7C15) + part.numpy().astype(np.uint64)
            key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            key ^= key >> np.uint64(31)
    return key


@dataclass(frozen=True, eq=False)
class Statistics:
    """What one pass over images leaves of them: enough to split the channels, and no more with more images.

    Values of the same model, site, settings and list of images add up: ``one + other`` is what a pass over the images
    of both leaves. Counts, which tokens are kept, and which images were seen are exact; sums are equal up to rounding,
    in float64. So adding is commutative, associative up to rounding, and a value of no images is neutral.

    Attributes
    ----------
    settings, limits
        How the split is to be made, and how much is kept of the tokens.
    origin
        The identity of the model, and of the list of images, as JSON has it.
    images
        The numbers of the images that were seen, in order, (n,).
    hashes
        Of their pixels, (n,).
    left_out
        The numbers of images that cannot be opened, in order, (m,).
    kept
        The tokens that are kept whole, in the order of images and positions.
    moments
        Means and second moments of all tokens.
    cells, micro
        Where tokens are counted, and the sums over each cell, in float64; ``None`` if all tokens are kept, and before
        the cells are known.
    """

    settings: Settings
    limits: Limits
    origin: Mapping[str, Any] = field(repr=False)
    images: Tensor = field(repr=False)
    hashes: Tensor = field(repr=False)
    left_out: Tensor = field(repr=False)
    kept: Recording = field(repr=False)
    moments: Moments = field(repr=False)
    cells: Cells | None = field(default=None, repr=False)
    micro: ConceptBook | None = field(default=None, repr=False)

    @staticmethod
    def empty(
        settings: Settings, limits: Limits, origin: Mapping[str, Any], channels: int, width: int, dtype: torch.dtype
    ) -> Statistics:
        """Return the value of no images at a site with so many channels and sources."""
        no_images, none = torch.zeros(0, dtype=torch.int64), torch.zeros(0, width, dtype=dtype)
        kept = Recording(none.new_zeros(0, channels), none, none.new_zeros(0, 0), no_images, no_images)
        of_none = no_images, no_images, no_images
        return Statistics(settings, limits, origin, *of_none, kept, Moments.empty(channels, width))

    @property
    def tokens(self) -> int:
        """How many tokens were seen."""
        return self.moments.tokens

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        of = f"{len(self):,} of {counted(self.settings.images, 'image')}"
        return f"Statistics({of}, {counted(self.tokens, 'token')} at {self.settings.site!r})"

    @own_arithmetic()
    def __add__(self, other: Statistics) -> Statistics:
        """Return what a pass over the images of both leaves.

        Raises
        ------
        StatisticsError
            If they are of other models, settings or images, or both have seen one image; the message says which.
        """
        if not isinstance(other, Statistics):
            return NotImplemented
        check_alike(self, other)
        here, there = (torch.cat([each.images, each.left_out]).numpy() for each in (self, other))
        twice = np.intersect1d(here, there)
        if len(twice):
            raise StatisticsError(f"Both have seen image {twice[0]} ({len(twice):,} in all); add each part once.")
        first, second = sorted((self, other), key=lambda each: int(each.images[0]) if len(each) else -1)
        images, order = torch.cat([first.images, second.images]).sort()
        books = [each.micro for each in (first, second) if each.micro is not None]
        return replace(
            self,
            images=images,
            hashes=torch.cat([first.hashes, second.hashes])[order],
            left_out=torch.cat([first.left_out, second.left_out]).sort().values,
            kept=_smallest(Recording.join([first.kept, second.kept]), self.limits),
            moments=first.moments + second.moments,
            cells=second.cells if first.cells is None else first.cells,
            micro=books[0] + books[1] if len(books) == 2 else books[0] if books else None,
        )

    def check_complete(self) -> None:
        """Raise `StatisticsError` unless all images have been seen."""
        missing = self.settings.images - len(self) - len(self.left_out)
        if missing:
            raise StatisticsError(
                f"{missing:,} of {counted(self.settings.images, 'image')} have not been seen; add the statistics of "
                "all shards."
            )

    def groups(self) -> ConceptBook:
        """Return the micro-clusters with any token, or all tokens where they were kept, each a group of its own."""
        if self.micro is None:
            return ConceptBook.of_tokens(self.kept.channels, self.kept.sources, squares=self.limits.squares)
        some, dtype = self.micro.counts > 0, self.kept.sources.dtype
        squares = self.micro.source_squares
        return ConceptBook(
            self.micro.counts[some],
            self.micro.channel_sums[some],
            self.micro.source_sums.to(dtype)[some],
            None if squares is None else squares.to(dtype)[some],
        )

    def sample(self, most: int) -> Recording:
        """Return the tokens that are kept, or a uniform sample of ``most`` of them."""
        return _smallest(self.kept, replace(self.limits, tokens=most))

    # ---------------------------------------------------------------- files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write this value to one safetensors file; raises ``OSError`` if it cannot be written."""
        manifest = {**self.origin, "settings": asdict(self.settings), "limits": asdict(self.limits)}
        save_result(path, KIND, self.tensors(), {**manifest, "tokens": self.tokens})

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Statistics:
        """Read what `save` wrote.

        Raises
        ------
        FileNotFoundError, StoreError
            If there is no such file, or it is damaged or another kind of file.
        """
        tensors, manifest = load_result(path, KIND)
        manifest.pop("elude_nb")  # which wrote it, and not of the model
        try:
            settings = read_settings(manifest.pop("settings"))
            limits, tokens = read_limits(manifest.pop("limits")), check_count("tokens", manifest.pop("tokens"), 0)
            return from_tensors(tensors, tokens, settings, limits, manifest)
        except (TypeError, ValueError, KeyError, RuntimeError) as error:
            raise StoreError(f"{os.fspath(path)!r} holds no whole statistics ({error}); make it again.") from error

    def tensors(self) -> dict[str, Tensor]:
        """Return all numbers by name: what a file holds, and what one process sends to another."""
        found = {"images": self.images, "hashes": self.hashes, "left_out": self.left_out}
        parts = [("kept", self.kept), ("moments", self.moments), ("cells", self.cells), ("micro", self.micro)]
        for prefix, part in parts:
            found |= {f"{prefix}.{name}": value for name, value in tensors_of(part).items()}
        return found


def from_tensors(
    tensors: Mapping[str, Tensor], tokens: int, settings: Settings, limits: Limits, origin: Mapping[str, Any]
) -> Statistics:
    """Return the value whose `Statistics.tensors` these are; raise ``ValueError`` or ``KeyError`` if there is none."""

    def part(prefix: str) -> dict[str, Tensor]:
        return {name.partition(".")[2]: value for name, value in tensors.items() if name.startswith(f"{prefix}.")}

    kept, moments = Recording(**part("kept")), Moments(tokens, **part("moments"))
    cells = Cells(**part("cells")) if part("cells") else None
    micro = ConceptBook(**part("micro")) if part("micro") else None
    of_images = tensors["images"], tensors["hashes"], tensors["left_out"]
    found = Statistics(settings, limits, origin, *of_images, kept, moments, cells, micro)
    _check_shapes(found)
    return found


def _check_shapes(found: Statistics) -> None:
    (s, d), n, t = found.moments.products.shape, len(found.images), len(found.kept)
    wanted = {
        "hashes": (found.hashes, (n,)),
        "kept.channels": (found.kept.channels, (t, d)),
        "kept.sources": (found.kept.sources, (t, s)),
        "moments.squares": (found.moments.squares, (d,)),
        "moments.source_mean": (found.moments.source_mean, (s,)),
    }
    if found.cells is not None and found.micro is not None:
        m = len(found.cells)
        wanted["cells.centres"] = found.cells.centres, (m, d)
        wanted["micro.source_sums"] = found.micro.source_sums, (m, s)
        wanted["micro.channel_sums"] = found.micro.channel_sums, (m, d)
    for name, (tensor, shape) in wanted.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, not {shape}")
    counts = found.tokens if found.micro is None else int(found.micro.counts.sum())
    if counts != found.tokens or (n and not bool((found.images[1:] > found.images[:-1]).all())):
        raise ValueError("its counts do not agree")


def read_limits(found: Any) -> Limits:
    """Return the limits that a file holds; raise ``TypeError`` or ``ValueError`` if they cannot be."""
    if not isinstance(found, dict) or found.keys() != {each.name for each in fields(Limits)}:
        raise TypeError(f"limits are {found!r:.80}")
    for name in ("micro_clusters", "sample", "tokens", "tokens_seed"):
        check_count(name, found[name], 0)
    check_flag("squares", found["squares"])
    return Limits(**found)


def check_alike(one: Statistics, other: Statistics) -> None:
    """Raise `StatisticsError` unless both are of one model, one list of images and the same settings."""
    pairs = {name: (one.origin.get(name), other.origin.get(name)) for name in _OF_MODEL}
    for kind in ("settings", "limits"):
        both = [asdict(getattr(each, kind)) for each in (one, other)]
        pairs |= {name: (value, both[1][name]) for name, value in both[0].items()}
    for name, (here, there) in pairs.items():
        if here != there:
            said = [repr(value[:12] if isinstance(value, str) else value) for value in (here, there)]
            what = name.replace("_", " ")
            raise StatisticsError(
                f"These statistics do not add up: {what} is {said[0]} in one and {said[1]} in the other."
            )
    if one.cells is not None and other.cells is not None:
        a, b = one.cells.centres, other.cells.centres
        if a.shape != b.shape or float((a - b).square().mean()) > _SAME_CELLS * float(a.square().mean()):
            raise StatisticsError(
                "These statistics do not add up: their cells differ, though their settings do not. Collect all parts "
                "with the same versions of torch and scikit-learn."
            )


def _smallest(found: Recording, limits: Limits) -> Recording:
    """Return the tokens with the smallest keys, in the order of images and positions."""
    rows = np.arange(len(found))
    if len(found) > limits.tokens:
        keys = token_keys(found.images, found.positions, limits.tokens_seed)
        rows = np.sort(np.argsort(keys, kind="stable")[: limits.tokens])
    order = rows[np.lexsort((found.positions.numpy()[rows], found.images.numpy()[rows]))]
    whole = len(order) == len(found) and bool((order == np.arange(len(order))).all())
    return found if whole else found.rows(torch.from_numpy(order))


class Collector:
    """Takes in recordings one after the other, in bounded memory, and makes their statistics.

    Sums are taken on the device of the recordings. Of their sources nothing leaves it but the tokens that are kept.

    Parameters
    ----------
    start
        What has been collected before, such as the value of no images; it is not changed.
    cells
        Where tokens are counted, if ``start`` does not say it and not all tokens are kept.
    """

    def __init__(self, start: Statistics, cells: Cells | None = None) -> None:
        self._start, self._limits = start, start.limits
        self._cells = start.cells or cells
        self._moments = start.moments + Moments.empty(*reversed(start.moments.products.shape))  # a copy
        self._micro = self._begin_micro(start)
        self._kept: Recording | None = None  # rows beyond those that are counted are not filled yet
        self._keys = np.full(start.limits.tokens, _UNCOUNTED)
        self._count = 0
        if len(start.kept):
            self._keep(start.kept)

    def _begin_micro(self, start: Statistics) -> ConceptBook | None:
        if self._cells is None:
            return None
        if start.micro is not None:
            return start.micro.regroup(torch.arange(len(self._cells)), len(self._cells))
        m, (s, d) = len(self._cells), start.moments.products.shape
        several = [
            torch.zeros(m, size, dtype=torch.float64) for size in ((d, s, s) if self._limits.squares else (d, s))
        ]
        return ConceptBook(torch.zeros(m, dtype=torch.int64), *several)

    def add(self, recording: Recording) -> None:
        """Take in the tokens of one recording."""
        device = recording.sources.device
        self._moments, self._cells = on_device(self._moments, device), on_device(self._cells, device)
        self._micro = on_device(self._micro, device)
        for part in recording.parts(TOKENS_AT_ONCE):
            self._moments = self._moments.absorb(Moments.of(part.channels, part.sources))
            if self._micro is not None and self._cells is not None:
                _count(self._micro, part, self._cells.nearest(part.channels))
        if self._limits.tokens:
            self._keep(recording)

    def _keep(self, recording: Recording) -> None:
        """Write the tokens with the smallest keys over those with larger ones."""
        recording = replace(recording, entering=recording.entering[:, :0])
        several = {each.name: getattr(recording, each.name) for each in fields(Recording)}
        if self._kept is None:
            room = self._limits.tokens
            self._kept = Recording(
                **{name: torch.empty(room, *x.shape[1:], dtype=x.dtype) for name, x in several.items()}
            )
        keys = token_keys(recording.images, recording.positions, self._limits.tokens_seed)
        every = np.concatenate([self._keys[: self._count], keys])
        stay = np.argsort(every, kind="stable")[: self._limits.tokens]
        rows = np.sort(stay[stay >= self._count]) - self._count
        gone = np.setdiff1d(np.arange(self._count), stay)
        places = np.concatenate([gone, np.arange(self._count, len(stay))])
        self._keys[places] = keys[rows]
        self._count = len(stay)
        for name, values in several.items():
            getattr(self._kept, name)[torch.from_numpy(places)] = values[torch.from_numpy(rows)].cpu()

    def finish(self, images: Tensor, hashes: Tensor) -> Statistics:
        """Return what was collected, with the numbers of all images that it is of, and the hashes of their pixels.

        What is added later must not be: on the CPU the value shares its memory.
        """
        kept = self._start.kept if self._kept is None else self._kept
        if self._kept is not None and self._count < self._limits.tokens:
            kept = kept.rows(torch.arange(self._count))  # not a view, which would be sent with the whole buffer
        images, order = images.sort()
        return replace(
            self._start,
            images=images,
            hashes=hashes[order],
            kept=_smallest(kept, self._limits),
            moments=on_device(self._moments, "cpu"),
            cells=on_device(self._cells, "cpu"),
            micro=on_device(self._micro, "cpu"),
        )


def _count(micro: ConceptBook, part: Recording, groups: Tensor) -> None:
    """Add tokens to the sums of their groups, in place."""
    micro.counts.index_add_(0, groups, torch.ones_like(groups))
    micro.channel_sums.index_add_(0, groups, part.channels.double())
    sources = part.sources.double()
    micro.source_sums.index_add_(0, groups, sources)
    if micro.source_squares is not None:
        micro.source_squares.index_add_(0, groups, sources.square())


def collect_recording(
    recording: Recording, settings: Settings, limits: Limits, origin: Mapping[str, Any] | None = None
) -> Statistics:
    """Return the statistics of tokens that were recorded before; cells are made from all of them.

    Nothing is known of their images but the numbers.
    """
    d, s = recording.channels.shape[1], recording.sources.shape[1]
    cells = Cells.of(recording.channels, limits.micro_clusters, settings.seed) if limits.sample else None
    collector = Collector(
        Statistics.empty(settings, limits, origin or {}, d, s, for_analysis(recording.sources[:0]).dtype), cells
    )
    collector.add(recording)
    images = recording.images.unique()
    return collector.finish(images, torch.zeros_like(images))
