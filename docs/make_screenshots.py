"""Photograph every panel and page, light and dark, wide and narrow: ``python docs/make_screenshots.py FOLDER``.

With ``--before OTHER``, pictures of an earlier run, the contact sheet has both, side by side. That needs the test extra
and a Chromium; about three minutes on two cores, and no picture is kept in the repository.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from PIL import Image, ImageDraw

import elude_nb as en
from elude_nb.app.compare_page import write_comparison
from elude_nb.app.report.build import write_report

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # the servers are those of the browser tests
WIDTHS, THEMES = (1400, 400), ("light", "dark")
TABS = {
    "Channels": ".elude-channel img",
    "Concepts": ".elude-map-node",
    "Image": ".elude-picker",
    "Steering": ".elude-doses svg",
    "Intruder quiz": ".elude-answer-1",
}
"""Each panel, and what is there when it is complete."""
HIGHEST = 2600  # pixels of a page that are photographed
CELL = """
from elude_nb import Disentanglement, load_images
from elude_nb.interpret.gallery import Gallery
from elude_nb.widgets import Workbench

_, unseen = load_images("photographs", count={count}).split(0.5, seed=0)
Workbench(gallery=Gallery(Disentanglement.load({path!r}), unseen).fill(progress=False))
"""


def main() -> None:
    """Make the pages, photograph them, and paste all pictures on one sheet."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("folder", type=Path)
    asked.add_argument("--before", type=Path, help="a folder of earlier pictures")
    asked.add_argument("--count", type=int, default=48, help="photographs, half of them for the discovery")
    asked.add_argument("--only", choices=("panels", "pages"), help="photograph only these")
    chosen = asked.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        pages = make_pages(Path(name), chosen.count, whole=chosen.only != "panels")
        for title, shot in photograph(Path(name), pages if chosen.only != "panels" else {}, chosen.only != "pages"):
            shot.save(chosen.folder / f"{title}.png", optimize=True)
            print(f"{title}: {shot.width} x {shot.height}")
    sheet(chosen.folder, chosen.before).save(chosen.folder / "sheet.png")


def make_pages(folder: Path, count: int, *, whole: bool) -> dict[str, Path]:
    """Split DINOv2-S, write the notebook of the panels, and, if ``whole``, the pages that need no kernel."""
    model = en.load_model("dinov2-small")
    discover, unseen = en.load_images("photographs", count=count).split(0.5, seed=0)
    split = en.disentangle(model, discover, concepts=32, seed=0)
    split = split.with_names({c: n for c, n in en.name_concepts(split, discover).names.items() if c % 2})  # half
    split.save(path := folder / "split.safetensors")
    cell = nbformat.v4.new_code_cell(CELL.format(count=count, path=str(path)))
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), folder / "panels.ipynb")
    if not whole:
        return {}
    few = {"n_units": 32, "fidelity_images": 8}
    compared = en.compare(model, discover, split.site.name, methods=("sub-units", "channels", "PCA"), **few)
    write_comparison(compared, folder)
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    body = f'<title>example</title><body class="elude-look">{en.example().html(most=4)}</body></html>'
    (folder / "example.html").write_text(head + body, "utf-8")
    report = write_report(split, unseen, folder / "report.html", channels=6)
    return {"report": report, "comparison": folder / "compare.html", "example": folder / "example.html"}


def photograph(folder: Path, pages: dict[str, Path], panels: bool) -> Iterator[tuple[str, Image.Image]]:
    """Yield a title and a picture of everything."""
    from playwright.sync_api import sync_playwright

    from tests.browser.servers import FLAGS, find_chromium, voila

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), headless=True, args=FLAGS)
        for theme in THEMES:
            context: Any = {"color_scheme": theme, "viewport": {"width": WIDTHS[0], "height": 900}}
            page = browser.new_page(**context)
            for name, path in pages.items():
                page.goto(path.as_uri())
                yield from each_width(page, f"{name}_{theme}")
            if panels:
                with voila(folder / "panels.ipynb", theme) as address:
                    page.goto(address, timeout=300_000)
                    page.wait_for_selector(".elude-channel img", timeout=300_000)
                    for tab, part in TABS.items():
                        page.get_by_role("tab", name=tab, exact=True).click()
                        page.locator(part).first.wait_for(timeout=120_000)
                        yield from each_width(page, f"{tab.lower().replace(' ', '_')}_{theme}")
            page.close()
        browser.close()


def each_width(page: Any, title: str) -> Iterator[tuple[str, Image.Image]]:
    """Yield pictures of a page at both widths."""
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(700)
        # A page of voila scrolls inside itself.
        inner = "Math.max(...[...document.querySelectorAll('*')].map(element => element.scrollHeight))"
        height = max(min(page.evaluate(inner), HIGHEST), 400)
        page.set_viewport_size({"width": width, "height": height})
        page.wait_for_timeout(300)
        yield f"{title}_{width}", Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    page.set_viewport_size({"width": WIDTHS[0], "height": 900})


def sheet(folder: Path, before: Path | None) -> Image.Image:
    """Return all pictures of a folder on one, small, each with that of the other folder at its left."""
    names = sorted(path.stem for path in folder.glob("*.png") if path.stem != "sheet")
    cells = []
    for name in names:
        found = [root / f"{name}.png" for root in (before, folder) if root is not None]
        for path in found:
            shot = Image.open(path).convert("RGB") if path.exists() else Image.new("RGB", (400, 300), "#cccccc")
            shot.thumbnail((360, 560), Image.Resampling.LANCZOS)
            cells.append((name + (" before" if before is not None and path is found[0] else ""), shot))
    columns = 8
    whole = Image.new("RGB", (columns * 372, -(-len(cells) // columns) * 590), "white")
    pen = ImageDraw.Draw(whole)
    for number, (name, shot) in enumerate(cells):
        left, top = number % columns * 372 + 6, number // columns * 590
        pen.text((left, top + 4), name, fill="black")
        whole.paste(shot, (left, top + 22))
    return whole


if __name__ == "__main__":
    main()
