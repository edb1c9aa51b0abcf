"""Copy the labelled pictures of two Debian packages into one folder, for benchmarks that take a folder.

``python benchmarks/debian_pictures.py --out DIR``; `elude_nb.load_images` takes either by its name, "stamps" (cut-out
photographs and drawings) and "clipart" (drawings).
"""

from __future__ import annotations

import argparse
import shutil
from collections import Counter
from pathlib import Path

import elude_nb as en
from elude_nb.data.debian import PACKAGES, folder_of_pictures


def main() -> None:
    """Write the folder and say what is in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write, not there yet")
    asked = parser.parse_args()
    if asked.out.exists():
        parser.error(f"{asked.out} is there already.")
    for name in PACKAGES:
        for path in sorted(folder_of_pictures(name).rglob("*.png")):
            place = asked.out / path.parent.name
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place / f"{name}-{path.name}")
    found = en.load_images(asked.out)
    kinds = Counter(found.labels)
    print(f"{len(found):,} pictures in {len(kinds)} kinds")
    print(", ".join(f"{label} {count}" for label, count in kinds.most_common()))


if __name__ == "__main__":
    main()
