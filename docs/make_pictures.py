"""Make the pictures of the README with the code of this commit: ``python docs/make_pictures.py``.

The panels are photographed in a real browser; that needs the test extra and a Chromium.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image

import elude_nb as en
from elude_nb.figures import before_after
from elude_nb.scores import mixed_channels

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"
sys.path.insert(0, str(ROOT))  # the servers are those of the browser tests


def main() -> None:
    """Draw both pictures."""
    IMAGES.mkdir(exist_ok=True)
    draw_channel()
    photograph_app()


def draw_channel() -> None:
    """Split as notebook 02 does, and draw the channel that mixes most."""
    model, images = en.load_model("dinov2-small"), en.load_images("photographs", count=240)
    discover, held_out = images.split(0.5, seed=0)
    split = en.disentangle(model, discover, concepts=64)
    mixed = mixed_channels(en.score(split, discover))
    exemplars = en.find_exemplars(split, held_out, int(mixed.index[0]))
    drawn = Image.open(io.BytesIO(before_after(exemplars).png())).convert("RGB")
    drawn.save(IMAGES / "before_after.jpg", quality=88, optimize=True)
    print(mixed.head(), exemplars.names, exemplars.similarity, sep="\n")


def photograph_app() -> None:
    """Serve notebook 07 as a class would see it, and photograph its first panel and the map of concepts."""
    from playwright.sync_api import sync_playwright

    from tests.browser.servers import FLAGS, find_chromium, voila

    with tempfile.TemporaryDirectory() as folder:
        notebook = Path(shutil.copy(ROOT / "notebooks" / "07_explorer.ipynb", folder))
        with voila(notebook) as address, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=find_chromium(), headless=True, args=FLAGS)
            page = browser.new_page(viewport={"width": 900, "height": 1500})
            page.goto(address, timeout=300_000)
            page.wait_for_selector(".elude-channel img", timeout=300_000)
            page.locator(".elude-tabs").scroll_into_view_if_needed()
            page.wait_for_timeout(2000)
            box = page.locator(".elude-tabs").bounding_box()
            clip = {**box, "height": min(box["height"], 1000)}
            shot = Image.open(io.BytesIO(page.screenshot(clip=clip, full_page=True))).convert("RGB")
            shot.save(IMAGES / "explorer.jpg", quality=85, optimize=True)
            browser.close()


if __name__ == "__main__":
    main()
