"""Images that are copies of others: the same pixels, or on request nearly the same, as after another compression."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from elude_nb._util.warn import warn_caller

NEAR = 0.1
"""Near copies differ by less than this share of their contrast (both as standard deviations)."""
_ROUNDING = 1e-6
_BUCKETS = 256
_SMALL = 128


def hash_image(image: Any) -> int:
    """Return 64 bits of a hash of an image's size and pixels, or of a sentence's text.

    Parameters
    ----------
    image
        A PIL image, a tensor or text.
    """
    if isinstance(image, str):
        content: Any = image.encode("utf-8", "surrogatepass")
    else:
        content = np.ascontiguousarray(image)
    size = str(np.shape(content)).encode()[: hashlib.blake2b.SALT_SIZE]  # else 2 x 8 pixels could be 4 x 4
    digest = hashlib.blake2b(content, digest_size=8, salt=size).digest()
    return int.from_bytes(digest, "little", signed=True)


def pixels_of(image: Any, near: bool) -> Tensor:
    """Return the pixels of an image, in a fixed size for near copies; of a sentence the letters."""
    if isinstance(image, str):
        return torch.tensor([ord(letter) for letter in image])
    if isinstance(image, Tensor):
        return torch.nn.functional.interpolate(image[None], (_SMALL, _SMALL), mode="area")[0] if near else image
    size = (_SMALL, _SMALL) if near else image.size
    return torch.from_numpy(np.array(image.resize(size, Image.Resampling.BILINEAR)))


def sketch(images: Tensor) -> Tensor:
    """Return a short sketch of each of ``n`` inputs (n, ...) of one shape, (n, 258), on the CPU.

    Its distances are those of the inputs but for some 5 % (a count sketch: all numbers with random signs, summed in
    buckets). The last columns are what a distance is compared with: by how much rounding may change it, and contrast.
    """
    values = images.detach().flatten(1).cpu().float()
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, values.shape[1:], generator=generator) * 2.0 - 1
    padding = -values.shape[1] % _BUCKETS
    sums = torch.nn.functional.pad(values * signs, (0, padding)).unflatten(1, (-1, _BUCKETS)).sum(1)
    rounding = values.norm(dim=1) * (_ROUNDING if images.is_floating_point() else 0)  # whole numbers are exact
    contrast = (values - values.mean(1, keepdim=True)).norm(dim=1)
    return torch.cat([sums, rounding[:, None], contrast[:, None]], dim=1)


def find_originals(sketches: Tensor, near: float = 0.0) -> Tensor:
    """Return for each input the number of the first one that it is a copy of; its own, if of none, (n,).

    ``near`` is the share of their contrast by which copies may differ, such as ``NEAR``.
    """
    sums, limit = sketches[:, :-2], sketches[:, -2] + near * sketches[:, -1]
    found = torch.arange(len(sums))
    for row in range(1, len(sums)):
        alike = ((sums[:row, 0] - sums[row, 0]).abs() <= limit[row]).nonzero().flatten()  # few, and found fast
        apart = torch.linalg.vector_norm(sums[alike] - sums[row], dim=1)
        copies = alike[apart <= torch.minimum(limit[alike], limit[row])]
        if len(copies):
            found[row] = found[copies[0]]
    return found


def distinct_numbers(originals: Tensor, names: Sequence[str], *, warn: bool = True) -> Tensor:
    """Return the numbers of the inputs that are no copies; a warning counts the others and names some."""
    numbers = torch.arange(len(originals))
    copies = (originals != numbers).nonzero().flatten().tolist()
    if copies and warn:
        said = ", ".join(f"{names[i]!r} (of {names[int(originals[i])]!r})" for i in copies[:3])
        warn_caller(
            f"{len(copies)} of {len(originals)} images are copies of others and count once with these: {said}"
            f"{', ...' if len(copies) > 3 else ''}"
        )
    return (originals == numbers).nonzero().flatten()


def check_enough(name: str, number: int, distinct: int, total: int, *, more: bool = False) -> None:
    """Raise ``ValueError`` unless there are ``number`` distinct images (or ``more``) when copies are left out."""
    if number + more > distinct:
        needed = "more" if more else "as many"
        raise ValueError(
            f"{name}={number} needs {needed} different images, and {total - distinct} of {total} are copies of others."
        )
