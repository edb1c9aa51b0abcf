"""Run images through a model and hand out channels and sources at sampled tokens, a bounded batch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from elude_nb._util.arguments import knows_arguments
from elude_nb._util.arithmetic import own_arithmetic
from elude_nb._util.checks import check_count, check_kind
from elude_nb._util.words import counted
from elude_nb.data.images import Images
from elude_nb.models.forward import check_finite
from elude_nb.models.hooks import Tap, evaluating, widened
from elude_nb.models.load import Model, check_model
from elude_nb.models.sites import Site


@dataclass(frozen=True, eq=False)
class Recording:
    """What was seen at ``t`` sampled tokens of a site; values lie on the device of the model that was recorded.

    Attributes
    ----------
    channels
        The site's channels ``h``, (t, d); half precision is widened to float32, here and below, since sums follow.
    sources
        The sources ``a``, (t, s * kernel), not centred.
    entering
        What entered the window of a stream, (t, d); zeros at other sites.
    images, positions
        Which image and which of its tokens each row is, (t,), on the CPU.
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
        of = counted(len(self.images.unique()), "image")
        return f"Recording({counted(len(self), 'token')} of {of}, d={d:,}, s={s:,})"

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
        """Return several recordings of one site as one, on the CPU."""
        names = ("channels", "sources", "entering", "images", "positions")
        return Recording(*(torch.cat([getattr(part, name).cpu() for part in parts]) for name in names))


def sample_positions(candidates: Tensor, per_image: int | None, images: Sequence[int], seed: int) -> Tensor:
    """Choose ``per_image`` of the token numbers ``candidates`` for each image number, (n, per_image), sorted.

    Each image draws from a generator of its own, so the choice does not depend on batches or on other images.
    ``None`` takes all candidates.
    """
    if per_image is None or per_image >= len(candidates):
        return candidates.expand(len(images), -1)
    rows = [np.random.default_rng([seed, i]).choice(len(candidates), per_image, replace=False) for i in images]
    return candidates[torch.from_numpy(np.sort(np.stack(rows), axis=1))]


def real_tokens_at(model: Model, batch: Tensor, site: Site, positions: Tensor) -> Tensor | None:
    """Return which tokens of a site are more than padding, (n, positions); ``None`` if all of every input are.

    Only a model of sentences has padding, and only where the site still has a token for each of the input's.
    """
    real = model.real_tokens(batch)
    if real is None or real.shape[1] != site.layout.count:
        return None
    found: Tensor = real[:, positions.to(real.device)]
    return found


@own_arithmetic()
def draw_tokens(
    candidates: Tensor, real: Tensor | None, per_image: int | None, images: Sequence[int], seed: int
) -> tuple[Tensor, Tensor]:
    """Choose tokens as `sample_positions` does, among the real ones of each input; return their rows and positions.

    Both are (t,), row by row. ``images`` are the numbers of the rows' images; ``real`` is (n, candidates) or ``None``
    for all. An input with fewer than ``per_image`` real tokens gives all that it has.
    """
    if real is None:
        positions = sample_positions(candidates, per_image, images, seed)
    else:
        several = (candidates[mask] for mask in real.cpu())
        ragged = [
            sample_positions(own, per_image, [image], seed)[0] for own, image in zip(several, images, strict=True)
        ]
        lengths = torch.tensor([len(own) for own in ragged])
        return torch.arange(len(ragged)).repeat_interleave(lengths), torch.cat(ragged)
    rows = torch.arange(len(images))[:, None].expand_as(positions)
    return rows.flatten(), positions.flatten()


def pool_tokens(values: Tensor, real: Tensor | None, how: str = "max") -> Tensor:
    """Return the largest (``"max"``) or the mean value over each input's real tokens: (n, t, u) to (n, u).

    ``real`` is (n, t), or ``None`` for all; an input without any has 0.
    """
    if real is None:
        return values.amax(1) if how == "max" else values.mean(1)
    mask = real.to(values.device)[..., None]
    if how == "mean":
        return torch.where(mask, values, 0).sum(1) / mask.sum(1).clamp(min=1)
    return torch.where(mask.any(1), values.masked_fill(~mask, -torch.inf).amax(1), 0)


def pool_recorded(values: Tensor, images: Tensor) -> Tensor:
    """Return the largest of each image's recorded values: (t, u) with the tokens' images (t,), in order, to (n, u)."""
    return find_largest(values, images)[0]


def find_largest(values: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest of each image's recorded values and the row that it is in, (n, u) each.

    ``values`` is (t, u), and ``images`` has the image of each row, (t,), in order.
    """
    _, lengths = images.unique_consecutive(return_counts=True)
    starts = (lengths.cumsum(0) - lengths)[:, None].to(values.device)
    if bool((lengths == lengths[0]).all()):  # all images give as many tokens, as they do without padding
        largest, rows = values.unflatten(0, (len(lengths), -1)).max(1)
        return largest, rows + starts
    parts = [part.max(0) for part in values.split(lengths.tolist())]
    return torch.stack([part.values for part in parts]), torch.stack([part.indices for part in parts]) + starts


@knows_arguments
def record(
    model: Model,
    images: Images,
    site: Site,
    *,
    tokens: str = "patch",
    tokens_per_image: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool | None = None,
    announce: bool = True,
    numbers: Sequence[int] | None = None,
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
    batch_size, progress
        In place of the model's own settings.
    announce
        Whether to say how long it will take, as in `Model.batches`.
    numbers
        One number an image, which decides what is drawn of it and which the recordings name: for a part of a longer
        list the places there. By default they are counted from 0.

    Yields
    ------
    Recording
        With (images in the batch) x (tokens per image) rows, images in order.

    Raises
    ------
    ImageError
        If the pixels or the activations of an image are NaN or infinite; the message names it.
    """
    check_model(model)
    check_kind("site", site, Site, "a Site of this model, from find_site")
    check_count("seed", seed, 0)
    if tokens_per_image is not None:
        check_count("tokens_per_image", tokens_per_image)
    candidates = site.layout.positions(tokens)
    start = 0
    model, images = model.using(batch_size=batch_size, progress=progress), model.inputs(images)
    every = range(len(images)) if numbers is None else numbers
    if len(every) != len(images):
        raise ValueError(f"{counted(len(every), 'number')} for {counted(len(images), 'image')}; give one an image.")
    for batch in model.batches(images, announce=announce):
        these = every[start : start + len(batch)]
        real = real_tokens_at(model, batch, site, candidates)
        rows, positions = draw_tokens(candidates, real, tokens_per_image, these, seed)
        part = _record_batch(model, batch, site, rows, positions)
        for values in (part.channels, part.sources):
            check_finite(values, images, start + rows, f"Activations at {site.name}")
        yield replace(part, images=torch.as_tensor(these)[rows])
        start += len(batch)


@own_arithmetic()
def _record_batch(model: Model, batch: Tensor, site: Site, rows: Tensor, positions: Tensor) -> Recording:
    where = rows.to(model.device), positions.to(model.device)
    sources: dict[int, Tensor] = {}
    seen: dict[str, Tensor] = {}
    with (
        evaluating(model.network),
        Tap(
            model.network,
            site,
            on_source=lambda number, a: sources.__setitem__(number, widened(a[where])),
            on_channels=lambda h: seen.__setitem__("channels", widened(h[where])),
            on_entering=lambda x: seen.__setitem__("entering", widened(x[where])),
        ),
    ):
        model(batch)
        joined = torch.cat([sources[number] for number in range(len(site.terms))], dim=1)
    channels = seen["channels"]
    return Recording(
        channels=channels,
        sources=joined,
        entering=seen.get("entering", torch.zeros_like(channels)),
        images=rows,
        positions=positions,
    )
