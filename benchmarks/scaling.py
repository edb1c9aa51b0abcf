"""Measure how disentangling grows with processes and images, and work out what 1.28 million images would take.

Each measurement runs in processes of its own, of one thread each, so that peaks do not add up:

- images per second of one process and of several, beside as many plain forward passes that know nothing of each other:
  what the machine allows;
- the share of the time that is spent outside the forward passes and the reading of images, for a layer, the stream of
  the last block, and the stream of all blocks;
- the peak memory for more and more images;
- the bytes that a process sends, and the seconds that adding up and splitting take.

The last table scales these parts. ``--rate`` is the speed of the network in one process where it is known otherwise, as
for a GPU; what is done beside the passes is counted as it was measured, though a GPU does that, too.

    python benchmarks/scaling.py                                  # DINOv2 S: minutes for 500 images, hours for 50,000
    python benchmarks/scaling.py --model test_vit --image-size 64 --images 64 --sizes 100,400 --processes 2
"""

from __future__ import annotations

import argparse
import json
import pickle
import resource
import socket
import subprocess
import sys
import time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import Dataset

import elude_nb as en
from elude_nb._util import ranks
from elude_nb.core.disentangle import build_split
from elude_nb.core.one_pass import collect

IMAGENET = 1_281_167
PLACES: dict[str, dict[str, Any]] = {
    "a layer": {"site": "{last}.mlp.fc2", "routing": "elude"},
    "last block": {"site": "stream", "blocks": 1},
    "all blocks": {"site": "stream"},
}


class Noise(Dataset[Any]):
    """Pictures that are made when they are asked for, each always the same."""

    def __init__(self, count: int, side: int) -> None:
        self._count, self._side = count, side

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Any:
        rng = np.random.default_rng(index)
        coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        times = -(-self._side // 4)
        return coarse.repeat(times, 0).repeat(times, 1)[: self._side, : self._side]


def load(asked: argparse.Namespace) -> tuple[en.Model, en.ImageSet]:
    """Return the model and so many generated images; random weights compute as fast as trained ones."""
    how = {"image_size": asked.image_size, "pretrained": asked.model == "dinov2-small"}
    model = en.load_model(asked.model, **how, progress=False).using(progress=False, batch_size=asked.batch_size)
    images = en.load_images(Noise(asked.images, model.input_size[-1]))
    en.embed(model, images[: asked.batch_size])  # warm up
    return model, images


def settings_of(place: str, model: en.Model) -> dict[str, Any]:
    """Return what is asked of disentangle."""
    how = dict(PLACES[place])
    how["site"] = how["site"].format(last=f"blocks.{len(model.network.blocks) - 1}")
    return how


def child(asked: argparse.Namespace) -> dict[str, float]:
    """Do one measurement in this process."""
    torch.set_num_threads(1)
    model, images = load(asked)
    sent = 0

    def counting(function: Any) -> Any:
        def call(self: Any, value: Any) -> Any:
            nonlocal sent
            sent += len(pickle.dumps(value))
            return function(self, value)

        return call

    if asked.of > 1:
        dist.init_process_group(
            "gloo", init_method=f"tcp://127.0.0.1:{asked.port}", rank=asked.rank, world_size=asked.of
        )
        if asked.what == "disentangle":
            for name in ("all", "add_up"):
                setattr(ranks._Several, name, counting(getattr(ranks._Several, name)))
        dist.barrier()
    start = time.perf_counter()
    found: dict[str, float] = {}
    if asked.what == "forward":
        en.embed(model, images)
    elif asked.what == "read":
        for _ in model.batches(images, ""):
            pass
    elif asked.what == "parts":
        passes: list[float] = []  # when one begins, and when it ends: a busy machine slows all parts alike
        for register in (model.network.register_forward_pre_hook, model.network.register_forward_hook):
            register(lambda *_: passes.append(time.perf_counter()))
        statistics = collect(model, images, **settings_of(asked.place, model))
        found["collect"] = time.perf_counter() - start
        found["forward"] = sum(passes[1::2]) - sum(passes[::2])
        begun = time.perf_counter()
        build_split(statistics, model)
        found["split"] = time.perf_counter() - begun
        found["bytes"] = len(pickle.dumps(statistics))
        begun = time.perf_counter()
        _ = statistics.moments + statistics.moments
        found["add"] = time.perf_counter() - begun
    else:
        en.disentangle(model, images, **settings_of(asked.place, model))
    found |= {"seconds": time.perf_counter() - start, "sent": sent}
    found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return found


def run(asked: argparse.Namespace, what: str, *, of: int = 1, **more: Any) -> dict[str, float]:
    """Run one measurement in so many processes; return the slowest one's seconds, and what the first found."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {**vars(asked), **more, "what": what, "port": port, "of": of}
    started = [
        subprocess.Popen(  # noqa: S603 - itself
            [sys.executable, __file__, "--child", json.dumps({**given, "rank": rank})], stdout=subprocess.PIPE
        )
        for rank in range(of)
    ]
    found = [json.loads(each.communicate()[0].splitlines()[-1]) for each in started]
    return {**found[0], "seconds": max(each["seconds"] for each in found), "sent": max(each["sent"] for each in found)}


def print_processes(asked: argparse.Namespace) -> None:
    """Print images per second of one process and of several, beside plain forward passes."""
    print(f"\nimages per second, {asked.images} images, processes of one thread")
    print(f"{'processes':>9}  {'forward passes':>14}  {'disentangle':>11}  {'bytes a process sends':>21}")
    rates: dict[int, tuple[float, float]] = {}
    for count in range(1, asked.processes + 1):
        plain = asked.images * count / run(asked, "forward", of=count)["seconds"]  # each runs all of them
        ours = run(asked, "disentangle", of=count, place="last block")
        rates[count] = plain, asked.images / ours["seconds"]
        print(f"{count:9}  {plain:14.2f}  {rates[count][1]:11.2f}  {ours['sent']:21,.0f}", flush=True)
    first, last = rates[1], rates[asked.processes]
    print(
        f"{asked.processes} processes: {last[1] / first[1]:.2f} times one; the machine allows {last[0] / first[0]:.2f}"
    )


def print_shares(asked: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Print the share of the time outside the forward passes; return the parts."""
    read = run(asked, "read")["seconds"]
    print(
        f"\n{asked.images} images, {read:.1f} s to read them; outside the passes, while collecting and with the split"
    )
    print(
        f"{'place':>12}  {'passes':>9}  {'collect':>9}  {'split':>8}  {'outside':>8}  {'in all':>8}  "
        f"{'statistics':>11}  {'peak':>9}"
    )
    parts = {}
    for place in PLACES:
        found = parts[place] = run(asked, "parts", place=place)
        total = found["collect"] + found["split"]
        print(
            f"{place:>12}  {found['forward']:7.1f} s  {found['collect']:7.1f} s  {found['split']:6.1f} s  "
            f"{1 - found['forward'] / found['collect']:8.0%}  {1 - found['forward'] / total:8.0%}  "
            f"{found['bytes'] / 2**20:7.1f} MiB  {found['peak']:5.0f} MiB",
            flush=True,
        )
    return parts


def print_memory(asked: argparse.Namespace) -> None:
    """Print the peak memory for several numbers of images."""
    print("\npeak memory, last block")
    peaks = []
    for size in asked.sizes:
        peaks.append(run(asked, "parts", place="last block", images=size)["peak"])
        print(f"{size:9,} images  {peaks[-1]:7.0f} MiB  {peaks[-1] / peaks[0] - 1:+.1%}", flush=True)


def print_imagenet(asked: argparse.Namespace, parts: dict[str, dict[str, float]]) -> None:
    """Print what 1.28 million images would take, by the parts that were measured."""
    print(
        f"\n{IMAGENET:,} images, from these parts"
        + (f" and passes of {asked.rate:,.0f} images per second" if asked.rate else "")
    )
    print(f"{'place':>12}  {'processes':>9}  {'passes':>9}  {'adding up':>9}  {'split':>8}  {'sent by each':>12}")
    for place, found in parts.items():
        outside = (found["collect"] - found["forward"]) / asked.images  # as measured here, whatever the rate
        each = outside + (1 / asked.rate if asked.rate else found["forward"] / asked.images)
        for count in (1, 8, 64):
            rounds = (count - 1).bit_length()
            # A round sends a value once, over a network of 1 GB/s, and adds it.
            adding = rounds * (found["bytes"] / 1e9 + 2 * found["add"])
            print(
                f"{place:>12}  {count:9}  {IMAGENET * each / count / 3600:7.1f} h  {adding:7.1f} s  "
                f"{found['split']:6.1f} s  {found['bytes'] / 2**20 if count > 1 else 0:8.1f} MiB"
            )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="dinov2-small", help="or a timm name, with random weights")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument(
        "--sizes", type=lambda text: [int(part) for part in text.split(",")], default=[500, 5000, 50000]
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rate", type=float, help="images per second of one process, if not as measured here")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        print(json.dumps(child(argparse.Namespace(**{"place": "last block", **json.loads(asked.child)}))))
        return
    print_processes(asked)
    parts = print_shares(asked)
    print_memory(asked)
    print_imagenet(asked, parts)


if __name__ == "__main__":
    main()
