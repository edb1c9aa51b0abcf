"""Kill a process at random times while it saves a split over an old one, and look whether the old or the new is whole.

A child saves without a pause, each time under another name for concept 0, and says which save it begins. It is killed
(SIGKILL, no last words) after a random time; then the file is loaded, its seal checked, and the name read. It must be
that of the save that was going on (new) or of the one before (old).

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
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer

import elude_nb as en

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


def save_for_ever(path: Path, said: Connection) -> None:
    """Save one split after the other over ``path``, and say the number of each before it begins."""
    split = make_split()
    number = 0
    while True:
        number += 1
        said.send(number)
        split.with_names({0: f"save {number}"}).save(path)


def kill_once(path: Path, seconds: float) -> str:
    """Kill a saving process so long after its second save began; say what was found: old, new, or what is wrong."""
    split = make_split()
    # Forked, it need not import torch again; elsewhere than on Linux that is not safe.
    context = mp.get_context("fork" if sys.platform == "linux" else "spawn")
    listens, said = context.Pipe(duplex=False)
    child = context.Process(target=save_for_ever, args=(path, said), daemon=True)
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
        back = en.Disentanglement.load(path, split.model)
    except (ValueError, OSError) as error:
        return f"broken: {error}"
    if back.identity != split.identity:
        return "broken: another split"
    return {f"save {begun}": "new", f"save {begun - 1}": "old"}.get(back.names[0], f"neither: {back.names} at {begun}")


def kill(kills: int, seed: int, folder: Path) -> tuple[Counter[str], int, int]:
    """Kill so many times; return what was found, how many kills left something behind, and what is left in the end.

    Parameters
    ----------
    kills
        How often.
    seed
        Of the times.
    folder
        An empty folder.
    """
    split, rng, path = make_split(), np.random.default_rng(seed), folder / "split.safetensors"
    start = time.perf_counter()
    split.save(path)
    took = time.perf_counter() - start
    found: Counter[str] = Counter()
    leaving = 0
    for _ in range(kills):
        found[kill_once(path, float(rng.uniform(0, LONGEST * took)))] += 1
        leaving += any(each != path for each in folder.iterdir())
    split.save(path)  # takes away what the last one left
    return found, leaving, sum(each != path for each in folder.iterdir())


def main() -> None:
    """Read the command line, kill, print the figures; exit with 1 if a file was not whole or anything is left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="how often a process is killed")
    parser.add_argument("--seed", type=int, default=0, help="of the times")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found, leaving, left = kill(chosen.kills, chosen.seed, Path(folder))
        size = (Path(folder) / "split.safetensors").stat().st_size
    print(f"{sys.platform}, python {sys.version.split()[0]}, a file of {size:,} bytes, seed {chosen.seed}")
    print(f"kills {found.total()}: old {found['old']}, new {found['new']}, ", end="")
    print(f"anything else {found.total() - found['old'] - found['new']}")
    print(f"kills in the middle of a save (something was left behind): {leaving}; left after one more save: {left}")
    for what in found.keys() - {"old", "new"}:
        print(what)
    sys.exit(bool(left or found.keys() - {"old", "new"}))


if __name__ == "__main__":
    main()
