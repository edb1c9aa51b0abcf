"""Run images through a model and hand out channels and sources at sampled tokens, a bounded batch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from elude_nb.checks import check_count, check_kind
from elude_nb.models import Model, check_model
from elude_nb.progress import progress_bar
from elude_nb.sites import Site
from elude_nb.taps import Tap, evaluating

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, eq=False)
class Recording:
    """What was seen at ``t`` sampled tokens of a site.

    Attributes
    ----------
    channels
        The site's channels ``h``, (t, d); half precision is widened to float32, here and below, since sums follow.
    sources
        The sources ``a``, (t, s * kernel), not centred.
    entering
        What entered the window of a stream, (t, d); zeros at other sites.
    images, positions
        Which image and which of its tokens each row is, (t,).
    """

    channels: Tensor
    sources: Tensor
    entering: Tensor
    images: Tensor
    positions: Tensor

    def __len__(self) -> int:
        return len(self.channels)

    def __repr__(self) -> str:
        d, s = self.channels.shape[1], self.sources.shape[1]
        return f"Recording({len(self):,} tokens of {len(self.images.unique()):,} images, d={d:,}, s={s:,})"

    def rows(self, chosen: Tensor) -> Recording:
        """Return some tokens, by a mask (t,) or by their numbers."""
        names = ("channels", "sources", "entering", "images", "positions")
        return Recording(*(getattr(self, name)[chosen] for name in names))

    def parts(self, size: int) -> Iterator[Recording]:
        """Yield the same tokens in order, ``size`` at a time; nothing is copied."""
        names = ("channels", "sources", "entering", "images", "positions")
        for start in range(0, len(self), size):
            yield Recording(*(getattr(self, name)[start : start + size] for name in names))

    @staticmethod
    def join(parts: Sequence[Recording]) -> Recording:
        """Return several recordings of one site as one."""
        names = ("channels", "sources", "entering", "images", "positions")
        return Recording(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def for_analysis(tensor: Tensor) -> Tensor:
    """Return a tensor on the CPU and in at least float32.

    The model stays on its device and in its dtype; the analysis of the few sampled tokens is done on the CPU, and sums
    over many tokens would not survive half precision.
    """
    tensor = tensor.cpu()
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor


def sample_positions(candidates: Tensor, per_image: int | None, images: Sequence[int], seed: int) -> Tensor:
    """Choose ``per_image`` of the token numbers ``candidates`` for each image number, (n, per_image), sorted.

    Each image draws from a generator of its own, so the choice does not depend on batches or on other images.
    ``None`` takes all candidates.
    """
    if per_image is None or per_image >= len(candidates):
        return candidates.expand(len(images), -1)
    rows = [np.random.default_rng([seed, i]).choice(len(candidates), per_image, replace=False) for i in images]
    return candidates[torch.from_numpy(np.sort(np.stack(rows), axis=1))]


def record(
    model: Model,
    images: Sequence[Image.Image],
    site: Site,
    *,
    tokens: str = "patch",
    tokens_per_image: int | None = None,
    seed: int = 0,
    batch_size: int = 16,
    progress: bool = False,
) -> Iterator[Recording]:
    """Yield a `Recording` for each batch of images; only the sampled tokens are ever kept.

    Parameters
    ----------
    model, images, site
        The model, the images, and a site of that model.
    tokens
        ``"class"``, ``"registers"``, ``"patch"`` or ``"all"``.
    tokens_per_image
        How many of those tokens are drawn for each image; ``None`` takes all.
    seed
        Of the drawing.
    batch_size
        Images in one forward pass.
    progress
        Show a progress bar over the images.

    Yields
    ------
    Recording
        With (images in the batch) x (tokens per image) rows, images in order.
    """
    check_model(model)
    check_kind("site", site, Site, "a Site of this model, from find_site")
    check_count("batch_size", batch_size)
    check_count("seed", seed, 0)
    if tokens_per_image is not None:
        check_count("tokens_per_image", tokens_per_image)
    candidates = site.layout.positions(tokens)
    with progress_bar(description="forward passes", total=len(images), show=progress, unit="image") as bar:
        for start in range(0, len(images), batch_size):
            numbers = range(start, min(start + batch_size, len(images)))
            positions = sample_positions(candidates, tokens_per_image, numbers, seed)
            yield _record_batch(model, [images[i] for i in numbers], site, positions, start)
            bar.update(len(numbers))


def _record_batch(
    model: Model, images: Sequence[Image.Image], site: Site, positions: Tensor, first_image: int
) -> Recording:
    rows = torch.arange(len(images))[:, None].expand_as(positions)
    where = rows.flatten().to(model.device), positions.flatten().to(model.device)
    sources: dict[int, Tensor] = {}
    seen: dict[str, Tensor] = {}
    with (
        evaluating(model.network),
        Tap(
            model.network,
            site,
            on_source=lambda number, a: sources.__setitem__(number, for_analysis(a[where])),
            on_channels=lambda h: seen.__setitem__("channels", for_analysis(h[where])),
            on_entering=lambda x: seen.__setitem__("entering", for_analysis(x[where])),
        ),
    ):
        model(model.prepare(images))
        joined = torch.cat([sources[number] for number in range(len(site.terms))], dim=1)
    channels = seen["channels"]
    return Recording(
        channels=channels,
        sources=joined,
        entering=seen.get("entering", torch.zeros_like(channels)),
        images=first_image + rows.flatten(),
        positions=positions.flatten(),
    )
