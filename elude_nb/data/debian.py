"""Sets of pictures that Debian packages: fetched by name, checked by SHA-256, cached; each with its licence.

`apt-get download` needs no root. Fashion-MNIST comes through torchvision where there is no apt.
"""

from __future__ import annotations

import gzip
import hashlib
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, UnidentifiedImageError

from elude_nb._util.files import cache_folder, sha256_of_file
from elude_nb._util.progress import say
from elude_nb.errors import ImageError

SIDE = 320
"""Longest side of the pictures that are kept of stamps and clip art, in pixels."""
SMALLEST = 100
"""Stamps and clip art with a shorter side than this are left out, in pixels."""


class Package(NamedTuple):
    """A Debian package, the SHA-256 of its file in bookworm, its folder of pictures, and their licence."""

    name: str
    sha256: str
    folder: str
    licence: str


PACKAGES = {
    "stamps": Package(
        "tuxpaint-stamps-default",
        "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
        "usr/share/tuxpaint/stamps",
        "GPL-2 and public domain",
    ),
    "clipart": Package(
        "openclipart-png",
        "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02",
        "usr/share/openclipart/png",
        "public domain",
    ),
}
"""Sets of labelled pictures by the names that `elude_nb.load_images` takes."""

FASHION = "dataset-fashion-mnist"
FASHION_FILES = {  # SHA-256 of the unpacked files: Debian packs them anew
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}

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


def fashion() -> Any:
    """Return Fashion-MNIST, 70,000 labelled product photographs of 28 x 28 pixels (MIT licence), as a data set.

    Its files come from Debian's package, or else as torchvision downloads them; they are cached.

    Raises
    ------
    ImageError
        If neither can be had, or a file is not the one expected; nothing is kept then.
    """
    from torch.utils.data import ConcatDataset
    from torchvision.datasets import FashionMNIST

    root = cache_folder()
    raw = root / "FashionMNIST" / "raw"  # where torchvision looks
    if not all((raw / name).is_file() and sha256_of_file(raw / name) == known for name, known in FASHION_FILES.items()):
        _fetch_fashion(raw)
    return ConcatDataset([FashionMNIST(root, train=train) for train in (True, False)])


def _fetch_fashion(raw: Path) -> None:
    """Put the four files of Fashion-MNIST into a folder."""
    from torchvision.datasets import FashionMNIST

    say("fashion: 31 MB are fetched once")
    raw.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=raw) as folder:
        made = Path(folder)
        if shutil.which("apt-get") and shutil.which("dpkg-deb"):
            packed = unpack(FASHION, None, made) / "usr/share/datasets/fashion-mnist"
            for name in FASHION_FILES:
                with gzip.open(packed / f"{name}.gz") as source, (made / name).open("wb") as out:
                    shutil.copyfileobj(source, out)
        else:
            try:
                FashionMNIST(made, download=True)
            except (OSError, RuntimeError) as error:
                raise ImageError(f"Fashion-MNIST cannot be downloaded ({error}); go online once.") from error
            made /= "FashionMNIST/raw"
        for name, known in FASHION_FILES.items():
            found = sha256_of_file(made / name)
            if found != known:
                raise ImageError(f"{name} of Fashion-MNIST has SHA-256 {found}, not {known}, and was not kept.")
        for name in FASHION_FILES:
            (made / name).replace(raw / name)


def folder_of_pictures(name: str) -> Path:
    """Return the folder of one of `PACKAGES`, one subfolder a label; it is made once and cached.

    Transparent parts become white, exact copies are left out, and pictures of letters, flags, playing cards and screen
    icons are not taken.

    Raises
    ------
    ImageError
        If apt does not have the package, or has another version of it.
    """
    package, made = PACKAGES[name], cache_folder() / "pictures" / name
    if made.is_dir():
        return made
    say(f"{name}: the Debian package {package.name} is fetched once")
    made.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=made.parent) as folder:
        unpacked, kept = unpack(package.name, package.sha256, Path(folder)), Path(folder) / "kept"
        seen = set[bytes]()
        for label, title, picture in labelled_pictures(unpacked / package.folder):
            same = hashlib.sha256(picture.tobytes()).digest()
            if same not in seen:
                seen.add(same)
                (kept / label).mkdir(parents=True, exist_ok=True)
                picture.save(kept / label / f"{len(seen):04}-{title}.png")
        try:
            kept.rename(made)
        except OSError:  # another process was faster
            if not made.is_dir():
                raise
    return made


def unpack(package: str, sha256: str | None, folder: Path) -> Path:
    """Download a Debian package and unpack it below ``folder``; return where.

    Raises
    ------
    ImageError
        If apt is not there, does not find the package, or has another version of it.
    """
    try:
        done = subprocess.run(  # noqa: S603 - one of the packages named above
            ["apt-get", "download", package],  # noqa: S607
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise ImageError(f"{package} is a Debian package, and this machine has no apt-get.") from error
    files = sorted(folder.glob(f"{package}_*.deb"))
    if done.returncode or not files:
        raise ImageError(f"apt-get download {package} failed: {done.stderr.strip()[-300:]}; try apt-get update.")
    found = sha256_of_file(files[0])
    if sha256 not in {None, found}:
        raise ImageError(f"{files[0].name} has SHA-256 {found}, not {sha256}: it is not the one of Debian bookworm.")
    subprocess.run(["dpkg-deb", "-x", files[0], folder / package], check=True)  # noqa: S603, S607
    return folder / package


def label_of(place: str) -> str | None:
    """Return the label of a folder, such as ``animals/birds/cartoon``; None where it has none."""
    fitting = [
        (len(folder), label)
        for label, folders in LABELS.items()
        for folder in folders
        if f"{place}/".startswith(f"{folder}/")
    ]
    return max(fitting)[1] if fitting else None


def labelled_pictures(folder: Path) -> Iterator[tuple[str, str, Image.Image]]:
    """Yield label, name and picture, on white and at most ``SIDE`` pixels long, of all pictures that have a label."""
    for path in sorted(folder.rglob("*.png")):
        place = path.relative_to(folder).parent.as_posix()
        label = label_of(place)
        if label is None or "smilies" in place or "stickmen" in place or path.stem.endswith(("_mirror", "_flip")):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            try:
                picture: Image.Image = Image.open(path)
            except (UnidentifiedImageError, OSError, Image.DecompressionBombWarning):
                continue  # broken, or so large that it takes seconds to read
        if min(picture.size) < SMALLEST:
            continue
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
        picture.thumbnail((SIDE, SIDE))
        yield label, path.stem, picture
