"""What a saved split holds beside its model, checked piece by piece before any of it is believed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor

from elude_nb.checks import check_choice, check_count, check_fraction
from elude_nb.routing import NO_CONCEPT
from elude_nb.sites import TOKENS, Site


@dataclass(frozen=True)
class Settings:
    """How a disentanglement was made; enough to make it again."""

    site: str
    blocks: int | Literal["all"]
    concepts: int
    units: int
    shared: float
    routing: str
    strategy: str
    tokens: str
    tokens_per_image: int | None
    seed: int
    images: int
    images_from: str


_TEXTS = ("site", "routing", "strategy", "images_from")
_COUNTS = ("concepts", "units", "images")
_WHOLE = {"routes": torch.uint8, "concepts": torch.int64, "counts": torch.int64}
_FRACTIONS = ("channel_sums", "source_sums", "channel_variance", "unit_shares")


def read_settings(found: Any) -> Settings:
    """Return the settings that a file holds.

    Raises
    ------
    TypeError, ValueError
        If one is missing, not known, or not what it should be.
    """
    if not isinstance(found, dict):
        raise TypeError(f"settings must be an object, not {found!r:.80}")
    names = {field.name for field in fields(Settings)}
    wrong = sorted(names ^ found.keys())
    if wrong:
        raise ValueError(f"settings lack or are too many: {', '.join(wrong)[:200]}")
    for name in _TEXTS:
        if not isinstance(found[name], str):
            raise TypeError(f"{name} must be text, not {found[name]!r:.80}")
    for name in _COUNTS:
        check_count(name, found[name])
    if found["blocks"] != "all":
        check_count("blocks", found["blocks"])
    if found["tokens_per_image"] is not None:
        check_count("tokens_per_image", found["tokens_per_image"])
    check_count("seed", found["seed"], 0)
    check_fraction("shared", found["shared"])
    check_choice("tokens", found["tokens"], TOKENS)
    return Settings(**found)


def read_reasons(found: Any) -> tuple[str, ...]:
    """Return why each channel was split or left alone; raise ``TypeError`` if a file says it in another way."""
    if not isinstance(found, list) or not all(isinstance(reason, str) for reason in found):
        raise TypeError(f"reasons must be a list of texts, not {found!r:.80}")
    return tuple(found)


def check_tensors(tensors: Mapping[str, Tensor], site: Site, dtype: torch.dtype) -> None:
    """Raise ``ValueError`` unless all tensors of a split of this site are there, with the right dtypes and shapes.

    And with values that can be: finite, and concepts that there are. The routing itself checks the routes. ``dtype`` is
    that of the analysis, see `elude_nb.recording.for_analysis`.
    """
    missing = [name for name in (*_WHOLE, *_FRACTIONS) if name not in tensors]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    for name, whole in _WHOLE.items():
        if tensors[name].dtype != whole:
            raise ValueError(f"{name} is of {tensors[name].dtype}, not of {whole}")
    for name in _FRACTIONS:
        wanted = torch.float64 if name == "channel_sums" else dtype
        if tensors[name].dtype != wanted:
            raise ValueError(f"{name} is of {tensors[name].dtype}, not of {wanted}")
        if not bool(tensors[name].isfinite().all()):
            raise ValueError(f"{name} holds NaN or infinite values")
    counts, concepts = tensors["counts"], tensors["concepts"]
    if counts.ndim != 1 or not len(counts) or int(counts.min()) < 1:
        raise ValueError(f"counts must be (g,) and 1 at least, not {tuple(counts.shape)}")
    d, s, g = site.channels, site.sources * site.kernel, len(counts)
    k = concepts.shape[1] if concepts.ndim == 2 else 0
    shapes = {
        "routes": (d, site.sources),
        "concepts": (d, k),
        "channel_sums": (g, d),
        "source_sums": (g, s),
        "channel_variance": (d,),
        "unit_shares": (d, k + 1),
    }
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensors[name].shape)}, not {shape}")
    if concepts.numel() and not (int(concepts.min()) >= NO_CONCEPT and int(concepts.max()) < g):
        low, high = int(concepts.min()), int(concepts.max())
        raise ValueError(f"concepts of sub-units go from {low} to {high}; there are {g}, and {NO_CONCEPT} is none")
