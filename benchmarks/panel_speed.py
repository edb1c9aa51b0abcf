"""Measure the panels in a real browser: voila serves them, Chromium shows them; the clock stops when the page changes.

First paint: from the moment the kernel begins to make the ChannelExplorer of a fresh split until it has its pictures.
Slider to picture: from the key press until the page shows another channel (another position of a concept's strength,
another patch). Concept on the map: from the click until each panel shows it; all of them are on one page, which is the
most that a click costs. The ratio is over one forward pass of one image, measured in the same run.

    python benchmarks/panel_speed.py
    python benchmarks/panel_speed.py --presses 40 --images 48
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # the servers are those of the browser tests

from tests.browser.servers import FLAGS, find_chromium, voila

CELLS = [
    """
import time
import ipywidgets
import torch
import elude_nb as en
from elude_nb.widgets import ChannelExplorer, ConceptAtlas, Gallery, ImageInspector, SteeringPanel
model = en.load_model("dinov2-small")
discover, held_out = en.load_images("photographs", count=2 * IMAGES).split(0.5, seed=0)
split = en.disentangle(model, discover, concepts=64, progress=False)
batch = model.prepare([held_out[0]])
times = []
for _ in range(12):
    start = time.perf_counter()
    with torch.inference_mode():
        model(batch)
    times.append(time.perf_counter() - start)
start = time.perf_counter()
explorer = ChannelExplorer(split, held_out)
painted = time.perf_counter() - start
ipywidgets.HTML(f"{painted} {sorted(times)[6]}").add_class("elude-measured")
""",
    "explorer",
    "ImageInspector(explorer.gallery.fill(progress=False))",
    "SteeringPanel(explorer.gallery)",
    "ConceptAtlas(explorer.gallery)",
]

FOLLOWERS = {
    "in the map": ".elude-concepts h4",
    "its channels": ".elude-some",
    "its image": ".elude-others h4",
    "its slider": ".elude-strengths",
}


def notebook(folder: Path, images: int) -> Path:
    """Write the notebook that is served."""
    sources = [cell.replace("IMAGES", str(images)).strip() for cell in CELLS]
    empty: dict[str, Any] = {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None}
    cells = [{**empty, "id": f"cell-{number}", "source": source} for number, source in enumerate(sources)]
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    path = folder / "panels.ipynb"
    path.write_text(json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))
    return path


def timed(act: Callable[[], object], read: Callable[[], Any]) -> float:
    """Return how long after an act the page shows something else."""
    before, start = read(), time.perf_counter()
    act()
    while read() == before:
        if time.perf_counter() - start > 30:
            raise TimeoutError("The page does not change.")
    return time.perf_counter() - start


def line(name: str, seconds: list[float], one_pass: float) -> None:
    """Print one row."""
    middle, worst = statistics.median(seconds), max(seconds)
    print(f"{name:<42}{middle:>9.3f}{worst:>9.3f}{middle / one_pass:>18.1f}", flush=True)


def main() -> None:
    """Serve, use, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=48, help="images in the gallery")
    parser.add_argument("--presses", type=int, default=20, help="key presses for each figure")
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with (
        tempfile.TemporaryDirectory() as folder,
        voila(notebook(Path(folder), options.images)) as address,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=find_chromium(), headless=True, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 2400})
        page.goto(address, timeout=300_000)
        page.wait_for_selector(".elude-map-node", timeout=300_000)
        page.wait_for_timeout(3000)
        painted, one_pass = (float(value) for value in page.locator(".elude-measured").inner_text().split())
        print(f"dinov2-small, {options.images} images, {options.presses} key presses; one pass {one_pass:.3f} s")
        print(f"{'':<42}{'median s':>9}{'worst s':>9}{'over one pass':>18}")
        line("first paint of ChannelExplorer, in the kernel", [painted], one_pass)
        shown = page.locator(".elude-channel h4")
        press = page.keyboard.press
        page.locator(".elude-place [role=slider]").first.focus()
        line(
            "channel", [timed(lambda: press("ArrowRight"), shown.inner_text) for _ in range(options.presses)], one_pass
        )
        table = page.locator(".elude-units")
        page.get_by_text("Split this channel otherwise").first.click()
        rho, values = page.locator(".elude-rho select").first, iter(range(1, 6))
        seconds = [timed(lambda: rho.select_option(index=next(values)), table.inner_text) for _ in range(5)]
        line("rho", seconds, one_pass)
        page.locator(".elude-picker").first.focus()
        spoken = page.locator(".elude-contributors select")
        line("patch", [timed(lambda: press("ArrowRight"), spoken.inner_text) for _ in range(6)], one_pass)
        page.locator(".elude-strength input[type=range]").first.focus()
        moved = page.locator(".elude-moved")
        line(
            "strength of a concept", [timed(lambda: press("ArrowRight"), moved.inner_text) for _ in range(18)], one_pass
        )
        nodes = page.locator(".elude-map-node")
        for name, place in FOLLOWERS.items():
            seconds, shown = [], page.locator(place).first
            for _ in range(6):
                page.wait_for_timeout(2500)  # until all panels show the one before
                other = nodes.nth((len(seconds) * 5 + 3) % nodes.count())
                seconds.append(timed(other.click, shown.inner_text))
            line(f"concept on the map, {name}", seconds, one_pass)
        browser.close()


if __name__ == "__main__":
    main()
