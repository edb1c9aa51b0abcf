"""Time the commands of a first hour on a folder of mixed pictures, as ratios to the forward passes of its images.

Sixty pictures are drawn in four labels and stored as people store them: JPEG, PNG with transparency, grey, 16 bits,
GIF, WebP, one of 20 x 20 and one of 4,000 x 3,000 pixels; beside them lie a broken picture and a text file. Each
command runs in a process of its own, as typed; what it printed is kept in log.txt.

    python benchmarks/first_hour.py --out DIR
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

import elude_nb as en

PICTURES = 60
COMMANDS = {
    "--version": ["--version"],
    "--help": ["--help"],
    "a mistyped option": ["score", "split.safetensors", "--imagse", "pictures"],
    "a value out of bounds": ["disentangle", "--images", "pictures", "--units", "0", "--out", "x.safetensors"],
    "a broken picture": ["disentangle", "--images", "pictures", "--out", "x.safetensors"],
    "sites": ["sites"],
    "disentangle": ["disentangle", "--images", "pictures", "--skip-broken", "--out", "split.safetensors"],
    "name": ["name", "split.safetensors", "--images", "pictures", "--skip-broken", "--out", "split.safetensors"],
    "verify": ["verify", "split.safetensors", "--images", "pictures", "--skip-broken"],
    "score": ["score", "split.safetensors", "--images", "pictures", "--skip-broken"],
    "compare": ["compare", "--images", "pictures", "--skip-broken", "--out", "compared"],
    "report": ["report", "split.safetensors", "--images", "pictures", "--skip-broken", "--out", "report.html"],
}
_MAIN = "import sys; from elude_nb.app.cli import main; main(sys.argv[1:])"


def draw_pictures(folder: Path) -> None:
    """Write the folder of pictures."""
    scenes = en.load_images("shapes", count=PICTURES)
    labels = sorted(set(scenes.labels or ()))[:4]
    for number, scene in enumerate(scenes):
        where = folder / labels[number % len(labels)]
        where.mkdir(parents=True, exist_ok=True)
        _store(scene.convert("RGB"), number, where)
    (folder / labels[0] / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    (folder / "notes.txt").write_text("not a picture\n", encoding="utf-8")


def _store(scene: Image.Image, number: int, where: Path) -> None:
    kind = number % 6
    if number == 1:
        scene.resize((20, 20)).save(where / f"{number}.png")
    elif number == 2:
        scene.resize((4000, 3000)).save(where / f"{number}.jpg")
    elif kind == 0:
        scene.save(where / f"{number}.jpg", quality=90)
    elif kind == 1:
        scene.putalpha(scene.convert("L"))
        scene.save(where / f"{number}.png")
    elif kind == 2:
        scene.convert("L").save(where / f"{number}.png")
    elif kind == 3:
        deep = np.asarray(scene.convert("L"), dtype=np.uint16) * 257
        Image.fromarray(deep).save(where / f"{number}.png")
    elif kind == 4:
        scene.save(where / f"{number}.gif")
    else:
        scene.resize((640, 480)).save(where / f"{number}.webp")


def forward_seconds(folder: Path) -> float:
    """Return the seconds of the forward passes of all pictures, opened and preprocessed, after a warm-up."""
    model = en.load_model(progress=False)
    pictures = en.load_images(folder).without_broken()
    en.embed(model, pictures[:8])
    start = time.perf_counter()
    en.embed(model, pictures)
    return time.perf_counter() - start


def run_command(words: list[str], folder: Path) -> tuple[float, int, str]:
    """Run one command; return its seconds, its exit code and the last line that it printed."""
    start = time.perf_counter()
    done = subprocess.run(  # noqa: S603 - our own words
        [sys.executable, "-c", _MAIN, *words], cwd=folder, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - start
    (folder / "log.txt").open("a", encoding="utf-8").write(
        f"$ elude-nb {' '.join(words)}\n{done.stdout}{done.stderr}[{seconds:.1f} s, exit code {done.returncode}]\n\n"
    )
    said = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines() or [""]
    return seconds, done.returncode, said[-1]


def main() -> None:
    """Print one line a command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="an empty folder for the pictures and results")
    out = parser.parse_args().out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    draw_pictures(out / "pictures")
    passes = forward_seconds(out / "pictures")
    print(f"{PICTURES} pictures, forward passes {passes:.1f} s\n")
    print(f"{'command':24}{'seconds':>9}{'/ passes':>10}{'exit':>6}  last line")
    for name, words in COMMANDS.items():
        seconds, code, said = run_command(words, out)
        print(f"{name:24}{seconds:9.2f}{seconds / passes:10.1f}{code:6}  {said[:80]}", flush=True)


if __name__ == "__main__":
    main()
