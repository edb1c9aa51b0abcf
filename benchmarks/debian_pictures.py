"""Make a folder of labelled pictures from two Debian packages, for benchmarks where no data set can be downloaded.

``python benchmarks/debian_pictures.py --out DIR`` fetches the packages with ``apt-get download``, checks their SHA-256,
unpacks them with ``dpkg-deb -x`` into a cache folder and writes pictures into label folders, which `load_images` reads.
`tuxpaint-stamps-default` has cut-out photographs and drawings, `openclipart-png` drawings. Transparent parts become
white, exact copies are left out, and pictures of letters, flags, playing cards and screen icons are not taken.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

import elude_nb as en

SIDE = 320
"""Longest side of the pictures written, in pixels."""
SMALLEST = 100
"""Pictures with a shorter side than this are left out, in pixels."""


class Package(NamedTuple):
    """A Debian package (bookworm), the SHA-256 of its file, and the folder in it that holds the pictures."""

    name: str
    sha256: str
    folder: str


PACKAGES = (
    Package(
        "tuxpaint-stamps-default",
        "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
        "usr/share/tuxpaint/stamps",
    ),
    Package(
        "openclipart-png",
        "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02",
        "usr/share/openclipart/png",
    ),
)

LABELS: dict[str, tuple[str, ...]] = {
    "bird": ("animals/birds",),
    "bread": ("food/breads_and_carbs",),
    "building": ("buildings/homes", "town/houses", "town/monuments"),
    "car": ("transportation/vehicles", "vehicles/auto", "vehicles/race", "vehicles/emergency", "vehicles/construction"),
    "cat": ("animals/mammals/housecats", "animals/mammals/big_cats", "animals/mammals/cats"),
    "clothes": ("people/clothing", "clothes"),
    "dessert": ("food/desserts", "food/dessert"),
    "dinosaur": ("animals/dinosaurs", "animals/dinosaur"),
    "drink": ("food/beverages",),
    "fish": ("animals/fish",),
    "flower": ("plants/flowers",),
    "fruit": ("food/fruit",),
    "furniture": ("buildings/furniture", "household"),
    "hat": ("people/clothing/hats", "clothes/hats"),
    "hoofed animal": ("animals/mammals/bovines", "animals/mammals/horses", "animals/mammals/equines",
                      "animals/mammals/deer", "animals/mammals/camel"),
    "insect": ("animals/bugs", "animals/insects"),
    "mammal": ("animals/mammals",),
    "map": ("geography",),
    "meat": ("food/meats_and_eggs",),
    "musical instrument": ("recreation/music", "hobbies/music"),
    "office": ("office",),
    "person": ("people",),
    "planet": ("geography/astronomy", "science/astronomy", "space"),
    "ship": ("transportation/boating", "vehicles/ship"),
    "sport": ("recreation/sports", "sports"),
    "tool": ("tools", "household/tools"),
    "toy": ("recreation/toys",),
    "tree": ("plants/trees",),
    "vegetable": ("food/vegetables",),
    "weapon": ("tools/weapons", "military"),
    "weather": ("signs_and_symbols/weather", "naturalforces"),
}  # fmt: skip
"""For each label the folders of the packages that have it; the longest one that fits a picture's path decides."""


def fetch(package: Package, cache: Path) -> Path:
    """Download and unpack a package into ``cache``, unless it is there; return its folder of pictures.

    Raises
    ------
    RuntimeError
        If apt does not find the package, or has another version of it.
    """
    unpacked = cache / package.name
    if not unpacked.exists():
        cache.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(  # noqa: S603 - a package of the list above
            ["apt-get", "download", package.name], cwd=cache, capture_output=True, text=True, check=False  # noqa: S607
        )  # fmt: skip
        files = sorted(cache.glob(f"{package.name}_*.deb"))
        if done.returncode or not files:
            raise RuntimeError(f"apt-get download {package.name} failed: {done.stderr.strip()}")
        found = hashlib.sha256(files[-1].read_bytes()).hexdigest()
        if found != package.sha256:
            raise RuntimeError(
                f"{files[-1].name} has the SHA-256 {found}, not {package.sha256}; use Debian bookworm's."
            )
        subprocess.run(["dpkg-deb", "-x", files[-1], unpacked], check=True)  # noqa: S603, S607
        files[-1].unlink()
    return unpacked / package.folder


def label_of(place: str) -> str | None:
    """Return the label of a folder, such as ``animals/birds/cartoon``; None where it has none."""
    fitting = [
        (len(folder), label)
        for label, folders in LABELS.items()
        for folder in folders
        if f"{place}/".startswith(f"{folder}/")
    ]
    return max(fitting)[1] if fitting else None


def pictures(folder: Path) -> Iterator[tuple[str, str, Image.Image]]:
    """Yield label, name and picture, on white and at most ``SIDE`` pixels long, of all pictures that have a label."""
    for path in sorted(folder.rglob("*.png")):
        place = path.relative_to(folder).parent.as_posix()
        label = label_of(place)
        if label is None or "smilies" in place or "stickmen" in place or path.stem.endswith(("_mirror", "_flip")):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            try:
                picture = Image.open(path)
            except (UnidentifiedImageError, OSError, Image.DecompressionBombWarning):
                continue  # broken, or so large that it takes seconds to read
        if min(picture.size) < SMALLEST:
            continue
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
        picture.thumbnail((SIDE, SIDE))
        yield label, path.stem, picture


def main() -> None:
    """Write the folder and say what is in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write, not there yet")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "elude-nb" / "debian")
    asked = parser.parse_args()
    if asked.out.exists():
        parser.error(f"{asked.out} is there already.")
    seen: set[bytes] = set()
    origins: Counter[str] = Counter()
    for package in PACKAGES:
        for label, name, picture in pictures(fetch(package, asked.cache)):
            same = hashlib.sha256(picture.tobytes()).digest()
            if same in seen:
                continue
            seen.add(same)
            origins[package.name] += 1
            place = asked.out / label
            place.mkdir(parents=True, exist_ok=True)
            picture.save(place / f"{package.name}-{len(seen):04}-{name}.png")
    found = en.load_images(asked.out)
    kinds = Counter(found.labels)
    print(f"{len(found):,} pictures in {len(kinds)} kinds: {dict(origins)}")
    print(", ".join(f"{label} {count}" for label, count in kinds.most_common()))


if __name__ == "__main__":
    main()
