"""Images opened and preprocessed by worker processes of a `torch.utils.data.DataLoader`, while the network runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from elude_nb._util.arithmetic import own_arithmetic
from elude_nb.data.images import ImageSet
from elude_nb.models.pictures import prepare_rows


@dataclass(frozen=True)
class _Rows(Dataset[Any]):
    """The rows of the network's input and the hashes of the images, by number; what fails is handed over as it is."""

    images: ImageSet
    preprocess: Callable[[Any], Tensor]
    size: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.images)

    @own_arithmetic()
    def __getitem__(self, index: int) -> tuple[Tensor, int] | Exception:
        try:
            names = [self.images.names[index]]
            row = prepare_rows([self.images[index]], self.preprocess, names, size=self.size)[0]
        except Exception as error:  # noqa: BLE001 - raised where the batch is used, as it would be without workers
            return error
        return row, int(self.images[index : index + 1].hashes()[0])


def _joined(items: list[tuple[Tensor, int] | Exception]) -> tuple[Tensor, list[int]] | Exception:
    """Return a batch (n, c, h, w) and the hashes of its images, or what failed first."""
    rows, hashes = [], []
    for item in items:
        if isinstance(item, Exception):
            return item
        rows.append(item[0])
        hashes.append(item[1])
    return torch.stack(rows), hashes


def read_batches(
    images: ImageSet,
    preprocess: Callable[[Any], Tensor],
    size: tuple[int, ...],
    *,
    batch_size: int,
    workers: int,
    pinned: bool,
) -> Iterator[Tensor]:
    """Yield preprocessed batches (n, c, h, w) on the CPU, in order; the images' hashes are noted.

    Parameters
    ----------
    images, preprocess, size
        The images, and what makes a row (c, h, w) of this size of one.
    batch_size, workers
        Images in a batch, and worker processes.
    pinned
        Whether the batches lie in memory that a GPU can copy from by itself.

    Raises
    ------
    ImageError
        As `elude_nb.models.pictures.prepare_rows` does.
    """
    loader = DataLoader(
        _Rows(images, preprocess, size),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=_joined,
        pin_memory=pinned,
        generator=torch.Generator(),  # else it would draw from the user's
    )
    start = 0
    for found in loader:
        if isinstance(found, Exception):
            raise found
        batch, hashes = found
        images.note_hashes(start, hashes)
        start += len(hashes)
        yield batch
