"""Make the finished example that travels in the package: ``python docs/make_example.py``.

DINOv2-S is split on half of the photographs. The best channels are those that come apart best on the other half, which
the discovery did not see; channels whose sub-units repeat those of better channels come last. About three minutes on
two cores.
"""

from __future__ import annotations

import hashlib
import io
import json
from typing import Any

import numpy as np
import torch
from PIL import Image

import elude_nb as en
from elude_nb.core.distinct import count_copies, find_copies, standardise
from elude_nb.core.routing import values_on_groups
from elude_nb.data.images import ImageSet
from elude_nb.examples.finished import FOLDER
from elude_nb.interpret.exemplars import Exemplars, crop_at
from elude_nb.interpret.gallery import Gallery
from elude_nb.scores import mixed_channels

RECIPE: dict[str, Any] = {
    "model": "dinov2-small",
    "source": "photographs",
    "images": 240,
    "concepts": 64,
    "units": 8,
    "seed": 0,
    "channels": 20,
    "shown_units": 3,
    "pictures": 6,
    "side": 112,
    "gap": 4,
    "crop": 0.65,
    "quality": 78,
}
"""What the example is made of; a test compares it with what is stored."""


def main() -> None:
    """Split, score, choose, and write the pictures and the table."""
    model = en.load_model(RECIPE["model"])
    photos = en.load_images(RECIPE["source"], count=RECIPE["images"])
    discover, unseen = photos.split(0.5, seed=RECIPE["seed"])
    split = en.disentangle(model, discover, concepts=RECIPE["concepts"], units=RECIPE["units"], seed=RECIPE["seed"])
    unseen = split.unseen(unseen)
    split = split.with_names(en.name_concepts(split, discover).names)
    scores = en.score(split, unseen)
    write(split, unseen, scores)


def write(split: en.Disentanglement, unseen: ImageSet, scores: Any) -> None:
    """Write the example of a split, given its scores on images that the discovery did not see."""
    table = mixed_channels(scores)
    gallery = Gallery(split, unseen, max_memory=4).fill()
    channels, numbers = split.routing.live_rows()
    values = values_on_groups(split.weight, split.routing, split.book) * split.signs[channels, numbers]
    standard = standardise(values, split.book.counts)
    copies = count_copies(standard, channels)
    rows = {pair: row for row, pair in enumerate(zip(channels.tolist(), numbers.tolist(), strict=True))}
    for old in FOLDER.glob("*.jpg"):
        old.unlink()
    FOLDER.mkdir(exist_ok=True)
    taken: list[int] = []
    first, repeated = [], []
    for channel in table.index[: RECIPE["channels"]].tolist():
        found = gallery.exemplars(gallery.channel(channel), count=RECIPE["pictures"], units=RECIPE["shown_units"])
        mine = [rows[channel, unit] for unit in found.units if unit > 0]
        repeats = int(find_copies(standard, torch.tensor(mine))[:, taken].any(1).sum())
        if 2 * repeats < len(mine):
            first.append((channel, found, mine))
            taken += mine
        else:
            repeated.append((channel, found, mine))
    entries = [
        {
            "channel": channel,
            **{name: round(float(table.loc[channel, column]), 4) for name, column in _COLUMNS.items()},
            "sub_units": int((channels == channel).sum()),
            "rows": [
                _row(split, found, place, unseen, 0 if place == 0 else int(copies[mine[place - 1]]))
                for place, unit in enumerate(found.units)
                if unit  # unit 0, the rest, is only counted
            ],
            "rest": round(float(split.unit_shares[channel, 0]), 4),
        }
        for channel, found, mine in first + repeated
    ]
    made = {
        "recipe": RECIPE,
        "version": en.__version__,
        "site": split.site.name,
        "discovery": split.settings.images,
        "unseen": len(unseen),
        "images_of_score": 10,
        "distinct": len(first),
        "credits": _CC_BY,
        "channels": entries,
    }
    (FOLDER / "example.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    print(f"{len(entries)} channels, {sum(file.stat().st_size for file in FOLDER.iterdir()) / 1e6:.2f} MB")


_CC_BY = {
    "temple": "danielbuechele, flickr.com/photos/danielbuechele/6061409035, CC BY 2.0",
    "flower": "vultilion, flickr.com/photos/vultilion/6056698931, CC BY 2.0",
}
"""As the file README.txt beside scikit-learn's photographs says; those of scikit-image are CC0 or public domain."""
_COLUMNS = {"before": "before", "after": "after", "random": "random routes", "separation": "separation"}


def _row(split: en.Disentanglement, found: Exemplars, place: int, unseen: ImageSet, copies: int) -> dict[str, Any]:
    """Write a strip of pictures, each around the patch where the activation is highest, and return its entry."""
    side, gap, unit = RECIPE["side"], RECIPE["gap"], found.units[place]
    width = len(found.rows[place]) * (side + gap) - gap
    strip = Image.new("RGB", (width, side), (128, 128, 128))
    for number, shown in enumerate(found.rows[place]):
        patch = int(shown.heat.argmax())
        picture = crop_at((shown.image * 255).round().astype(np.uint8), patch, shown.heat.shape, RECIPE["crop"])
        tile = Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS)
        strip.paste(tile, (number * (side + gap), 0))
    name = f"{found.channel}_{'whole' if unit < 0 else unit}.jpg"
    buffer = io.BytesIO()
    strip.save(buffer, format="JPEG", quality=RECIPE["quality"], optimize=True, progressive=True)
    (FOLDER / name).write_bytes(buffer.getvalue())
    concept = -1 if unit < 0 else int(split.routing.concepts[found.channel, unit - 1])
    return {
        "unit": unit,
        "concept": "" if concept < 0 else split.concept_title(concept),
        "labels": [str((unseen.labels or unseen.names)[shown.index]) for shown in found.rows[place]],
        "similarity": round(found.similarity[place], 4),
        "copies": copies,
        "picture": name,
        "sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
    }


if __name__ == "__main__":
    main()
