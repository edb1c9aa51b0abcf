"""Pictures to compare figures with. After a wanted change: ``python -m tests.looks`` draws all of them anew."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from elude_nb import Disentanglement, disentangle, find_exemplars
from elude_nb.figures import (
    Picture,
    accuracy_bars,
    activation_map,
    before_after,
    concept_profile,
    contact_sheet,
    contributions_by_block,
    factor_heatmap,
    routing_bars,
    score_distributions,
    theme,
    tradeoff,
    unit_maps,
)
from elude_nb.interpret.gallery import Gallery
from tests.tiny import random_images, tiny_vit

FOLDER = Path(__file__).parent / "pictures"
_WIDTH = 180  # pixels of a stored picture
_COARSE = 60  # pixels across at which pictures are compared: fonts and edges are below that


def made() -> tuple[Disentanglement, Gallery]:
    """Return the split and the gallery of which all pictures are drawn."""
    images = random_images(16, 32)
    split = disentangle(tiny_vit(), images, concepts=8, units=3, tokens_per_image=6, progress=False)
    return split, Gallery(split, images).fill(progress=False)


def scores() -> pd.DataFrame:
    """Return made-up scores of channels and of both their controls, as `elude_nb.score` has them."""
    rng = np.random.default_rng(0)
    means = {"channel": (0.30, 60), "random route": (0.27, 200), "sub-unit": (0.55, 200)}
    kinds = np.repeat(list(means), [count for _, count in means.values()])
    values = np.concatenate([rng.normal(mean, 0.08, count) for mean, count in means.values()])
    return pd.DataFrame({"kind": kinds, "top_similarity": values})


def methods() -> pd.DataFrame:
    """Return made-up scores of methods, as `elude_nb.compare` has them."""
    return pd.DataFrame(
        {
            "method": ["sub-units", "channels", "PCA", "TopK SAE"],
            "size": "equal",
            "units": 8,
            "top_similarity": [0.5, 0.49, 0.3, 0.6],
            "unexplained_variance": [0.0, 0.0, 0.25, 0.5],
        }
    )


def shares() -> pd.DataFrame:
    """Return made-up shares of factors told by units, or of right answers."""
    rng = np.random.default_rng(1)
    return pd.DataFrame(rng.random((18, 3)), index=pd.Index(range(18), name="unit"), columns=["a", "b", "c"])


def _dark(draw: Callable[[], Any]) -> Any:
    with theme("dark"):
        return draw()


def drawings(split: Disentanglement, gallery: Gallery) -> dict[str, Callable[[], Any]]:
    """Return how each picture is drawn, by its name."""
    channel = int(split.routing.is_split().nonzero()[0])
    units = gallery.channel(channel).units["unit"].tolist()[1:]
    exemplars = find_exemplars(split, gallery.images, channel, count=4, units=3, progress=False)
    heat = gallery.channel(channel).maps[0, :, 1].view(*gallery.grid).numpy()
    return {
        "accuracy_bars": lambda: accuracy_bars(shares()[:3]),
        "activation_map": lambda: activation_map(gallery.pictures_of(0), heat, title="sub-unit 1"),
        "before_after": lambda: before_after(exemplars),
        "before_after_beside": lambda: before_after(exemplars, crops=0.4, beside=True),
        "before_after_crops": lambda: before_after(exemplars, crops=0.4),
        "before_after_dark": lambda: _dark(lambda: before_after(exemplars)),
        "concept_profile": lambda: concept_profile(gallery, 2),
        "concept_profile_dark": lambda: _dark(lambda: concept_profile(gallery, 2)),
        "contact_sheet": lambda: contact_sheet(gallery.images, 8, 4),
        "contributions_by_block": lambda: contributions_by_block(split, channel, units),
        "factor_heatmap_dark": lambda: _dark(lambda: factor_heatmap(shares())),
        "routing_bars": lambda: routing_bars(split, channel),
        "routing_bars_heads_dark": lambda: _dark(lambda: routing_bars(split, channel, detail="head", rest=True)),
        "routing_bars_sources": lambda: routing_bars(split, channel, by="sources"),
        "score_distributions": lambda: score_distributions(scores()),
        "tradeoff": lambda: tradeoff(methods()),
        "unit_maps": lambda: unit_maps(gallery, 0, channel),
        "unit_maps_dark": lambda: _dark(lambda: unit_maps(gallery, 0, channel)),
    }


def rendered(picture: Picture) -> Image.Image:
    return Image.open(io.BytesIO(picture.png())).convert("RGB")


def stored(picture: Image.Image) -> Image.Image:
    """Return a picture as small as it is stored."""
    return picture.resize((_WIDTH, round(picture.height * _WIDTH / picture.width)), Image.Resampling.LANCZOS)


def unlikeness(one: Image.Image, other: Image.Image) -> float:
    """Return how unlike two pictures are, 0 to 1: the largest difference of colours after both are made coarse.

    Shapes that differ by more than 8 % count as wholly unlike.
    """
    if abs(one.width / one.height - other.width / other.height) > 0.08 * one.width / one.height:
        return 1.0
    size = (_COARSE, max(1, round(_COARSE * one.height / one.width)))
    first, second = (np.asarray(p.convert("RGB").resize(size, Image.Resampling.BOX), dtype=float) for p in (one, other))
    # The mean over small fields forgives a line that lies half a pixel beside, and nothing larger.
    difference = np.abs(first - second).mean(2) / 255
    rows, columns = (length // 4 * 4 for length in difference.shape)
    fields = difference[:rows, :columns].reshape(rows // 4, 4, columns // 4, 4).mean((1, 3))
    return float(fields.max())


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    # In fewer colours, noise like that of the tiny photographs would differ from its own stored picture by 0.1.
    for name, draw in drawings(*made()).items():
        stored(rendered(draw())).quantize(256, kmeans=3).save(FOLDER / f"{name}.png", optimize=True)
