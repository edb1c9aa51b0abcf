"""What benchmarks of sub-units share: halves of the images, every token of the held-out half, scores there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import elude_nb as en
from elude_nb.core.readout import Readout
from elude_nb.core.recording import find_largest
from elude_nb.models.sites import Site
from elude_nb.scores import best_unit_precision, largest_correlation, mean_interval
from elude_nb.scores.similarity import ms_score_at

_UNITS_AT_ONCE = 512


@dataclass(frozen=True, eq=False)
class Activations:
    """Units on the held-out images: the largest over each image's tokens, and the row of that token, (n, u) each."""

    highest: Tensor
    rows: Tensor

    def of(self, units: Tensor) -> Activations:
        """Return those of some units."""
        return Activations(self.highest[:, units], self.rows[:, units])


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Every token of the images that discovery has not seen."""

    images: en.ImageSet
    recording: en.Recording

    @classmethod
    def record(cls, model: en.Model, images: en.ImageSet, site: Site, **how: int) -> HeldOut:
        """Run the images."""
        return cls(images, en.Recording.join(list(en.record(model, images, site, tokens="all", **how))))

    def read(self, readout: Readout) -> Activations:
        """Return units by their read-out, a few hundred at once."""
        found = [
            find_largest(self.recording.sources @ readout.matrix[:, some] + readout.offset[some], self.recording.images)
            for some in torch.arange(readout.matrix.shape[1]).split(_UNITS_AT_ONCE)
        ]
        return Activations(*(torch.cat(parts, dim=1) for parts in zip(*found, strict=True)))

    def channels(self) -> Activations:
        """Return the channels as they are."""
        return Activations(*find_largest(self.recording.channels, self.recording.images))

    def ms_score(self, found: Activations) -> str:
        """Return the MS-Score on the top tenth of the images, and the same centred, in percent, with intervals."""
        parts = []
        for centred in (False, True):
            count = max(2, len(self.images) // 10)
            each = ms_score_at(found.highest, self.recording.channels, found.rows, count=count, centred=centred)
            parts.append(interval_text(100 * each.dropna(), digits=1))
        return f"MS-Score {parts[0]}, centred {parts[1]}"

    def precision(self, found: Activations, draws: int = 5) -> str:
        """Return the best unit's average precision, the mean over the labels and over draws of the choosing half."""
        tables = [best_unit_precision(found.highest, self.images.labels or (), seed=seed) for seed in range(draws)]
        return f"AP {interval_text(sum(table['average_precision'] for table in tables) / draws)}"

    def redundancy(self, found: Activations) -> str:
        """Return the mean of each unit's largest correlation with another."""
        return f"redundancy {interval_text(largest_correlation(found.highest))}"


def interval_text(values: object, digits: int = 3) -> str:
    """Return the mean of scores and its 95 % interval, in words."""
    found = mean_interval(values, seed=0)
    return f"{found.mean:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"
