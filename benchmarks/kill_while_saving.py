"""Kill a process at random times while it saves a file over an old one, and look whether the old or the new is whole.

A child saves without a pause, each time with another number in the file, and says which save it begins. It is killed
(SIGKILL, no last words) after a random time; then the file is read and the number in it looked up. It must be that of
the save that was going on (new) or of the one before (old).

Two files are saved. A split is loaded again and its seal checked; but safetensors, which writes it, writes aside and
renames by itself, so that it would be whole without us. The other is of bytes written one part after the other, and
has nothing but `elude_nb._util.files.write_aside`.

    python benchmarks/kill_while_saving.py
    python benchmarks/kill_while_saving.py --kills 20 --seed 3
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer

import elude_nb as en
from elude_nb._util.files import write_aside

PARTS, PART = 200, 20_000  # of the file of bytes: how many, and how long each is
LONGEST = 4.0  # saves: a kill falls into the first so many


@cache
def make_split() -> en.Disentanglement:
    """Return the split that is saved, the same one in every process."""
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = VisionTransformer(img_size=32, patch_size=8, embed_dim=96, depth=4, num_heads=2, num_classes=5)
    model = en.wrap_network(network.requires_grad_(requires_grad=False), input_size=(3, 32, 32))
    images = en.load_images(np.random.default_rng(0).random((12, 32, 32, 3)))
    return en.disentangle(model, images, concepts=32, units=4, tokens_per_image=12, progress=False)


class BrokenError(ValueError):
    """A file that is not whole."""


@dataclass(frozen=True)
class Writer:
    """What is saved: how a number gets into the file, and how it is read from there, if the file is whole."""

    name: str
    save: Callable[[int, Path], object]
    read: Callable[[Path], int]


def save_split(number: int, path: Path) -> None:
    """Write the split with a number as the name of its first concept."""
    make_split().with_names({0: str(number)}).save(path)


def read_split(path: Path) -> int:
    """Return the number; loading looks at the seal."""
    split = make_split()
    try:
        back = en.Disentanglement.load(path, split.model)
    except (ValueError, OSError) as error:
        raise BrokenError(str(error)) from error
    if back.identity != split.identity:
        raise BrokenError("another split")
    return int(back.names[0])


def save_bytes(number: int, path: Path) -> None:
    """Write a number again and again, in many parts, each of which goes to the disk at once."""
    with write_aside(path) as aside, aside.open("wb", buffering=0) as file:
        for _ in range(PARTS):
            file.write(number.to_bytes(8, "big") * (PART // 8))


def read_bytes(path: Path) -> int:
    """Return the number, if it stands everywhere and as often as it should."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BrokenError(str(error)) from error
    if len(content) != PARTS * PART or content != content[:8] * (len(content) // 8):
        raise BrokenError(f"{len(content):,} bytes of {PARTS * PART:,}, not all of one save")
    return int.from_bytes(content[:8], "big")


WRITERS = [Writer("split", save_split, read_split), Writer("bytes in many parts", save_bytes, read_bytes)]


def save_for_ever(writer: Writer, path: Path, said: Connection) -> None:
    """Save one file after the other over ``path``, and say the number of each before it begins."""
    number = 0
    while True:
        number += 1
        said.send(number)
        writer.save(number, path)


def kill_once(writer: Writer, path: Path, seconds: float) -> str:
    """Kill a saving process so long after its second save began; say what was found: old, new, or what is wrong."""
    # Forked, it need not import torch again; elsewhere than on Linux that is not safe.
    context = mp.get_context("fork" if sys.platform == "linux" else "spawn")
    listens, said = context.Pipe(duplex=False)
    child = context.Process(target=save_for_ever, args=(writer, path, said), daemon=True)
    child.start()
    said.close()
    begun = 0
    while begun < 2:  # from here on there is an old file
        begun = listens.recv()
    time.sleep(seconds)
    child.kill()
    child.join()
    try:
        while True:
            begun = listens.recv()
    except (EOFError, OSError):  # all that it said has been read
        pass
    try:
        found = writer.read(path)
    except BrokenError as error:
        return f"broken: {error}"
    return {begun: "new", begun - 1: "old"}.get(found, f"neither: {found} at {begun}")


def kill(writer: Writer, kills: int, seed: int, folder: Path) -> tuple[Counter[str], int, int]:
    """Kill so many times; return what was found, how many kills left something behind, and what is left in the end.

    Parameters
    ----------
    writer
        Of `WRITERS`.
    kills
        How often.
    seed
        Of the times.
    folder
        An empty folder.
    """
    rng, path = np.random.default_rng(seed), folder / "file"
    writer.save(0, path)  # once, so that what is made or imported only once is not measured
    start = time.perf_counter()
    writer.save(0, path)
    took = time.perf_counter() - start
    found: Counter[str] = Counter()
    leaving = 0
    for _ in range(kills):
        found[kill_once(writer, path, float(rng.uniform(0, LONGEST * took)))] += 1
        leaving += any(each != path for each in folder.iterdir())
    writer.save(0, path)  # takes away what the last one left
    return found, leaving, sum(each != path for each in folder.iterdir())


def report(writer: Writer, kills: int, seed: int) -> bool:
    """Kill, print the figures, and say whether a file was not whole or anything is left."""
    with tempfile.TemporaryDirectory() as folder:
        found, leaving, left = kill(writer, kills, seed, Path(folder))
        size = (Path(folder) / "file").stat().st_size
    print(f"{writer.name}, a file of {size:,} bytes")
    print(f"    kills {found.total()}: old {found['old']}, new {found['new']}, ", end="")
    print(f"anything else {found.total() - found['old'] - found['new']}")
    print(f"    kills in the middle of a save (something was left behind): {leaving}; left after one more save: {left}")
    wrong = found.keys() - {"old", "new"}
    for what in sorted(wrong):
        print(f"    {found[what]} times {what}")
    return bool(left or wrong)


def main() -> None:
    """Read the command line, kill, print the figures; exit with 1 if a file was not whole or anything is left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="how often a process is killed")
    parser.add_argument("--seed", type=int, default=0, help="of the times")
    chosen = parser.parse_args()
    print(f"{sys.platform}, python {sys.version.split()[0]}, seed {chosen.seed}")
    wrong = [report(writer, chosen.kills, chosen.seed) for writer in WRITERS]
    sys.exit(any(wrong))


if __name__ == "__main__":
    main()
