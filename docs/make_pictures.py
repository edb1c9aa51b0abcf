"""Make the pictures of the README with the code of this commit: ``python docs/make_pictures.py``."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

import elude_nb as en
from elude_nb.figures import before_after
from elude_nb.scores import mixed_channels

IMAGES = Path(__file__).parent / "images"


def main() -> None:
    """Split as notebook 02 does, and draw the channel that mixes most."""
    model, images = en.load_model("dinov2-small"), en.load_images("photographs", count=240)
    discover, held_out = images.split(0.5, seed=0)
    split = en.disentangle(model, discover, concepts=64)
    mixed = mixed_channels(en.score(split, discover))
    exemplars = en.find_exemplars(split, held_out, int(mixed.index[0]))
    IMAGES.mkdir(exist_ok=True)
    drawn = Image.open(io.BytesIO(before_after(exemplars).png())).convert("RGB")
    drawn.save(IMAGES / "before_after.jpg", quality=88, optimize=True)
    print(mixed.head(), exemplars.names, exemplars.similarity, sep="\n")


if __name__ == "__main__":
    main()
