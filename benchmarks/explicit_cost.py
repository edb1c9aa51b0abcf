"""What does one layer made explicit cost beside the plain model? Time of a forward pass, and peak memory.

``python benchmarks/explicit_cost.py`` splits `blocks.11.mlp.fc2` of DINOv2 ViT-S/14 with ``routing="elude"``, makes the
layer explicit, and runs plain and explicit network in turn in one process; the ratio is taken pair by pair. Peak memory
is that of a process of its own for each. The paper has 1.15 for both on an H100 (100 passes to warm up, 500 timed).
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import elude_nb as en


def networks(split: en.Disentanglement) -> dict[str, nn.Module]:
    """Return both networks."""
    return {"plain": split.model.network, "explicit": split.explicit()}


def seconds(network: nn.Module, batch: Tensor) -> float:
    """Time one forward pass."""
    with torch.inference_mode():
        start = time.perf_counter()
        network(batch)
        return time.perf_counter() - start


def peak(path: Path, which: str, batch: int, rule: str) -> float:
    """Return the peak memory of a fresh process that runs one of the networks three times, in MiB."""
    command = [sys.executable, __file__, "--measure", which, "--batch", str(batch), "--split", str(path)]
    done = subprocess.run([*command, "--rules", rule], capture_output=True, text=True, check=True)  # noqa: S603
    return float(json.loads(done.stdout)["mib"])


def measure(asked: argparse.Namespace) -> None:
    """Run one network and print the process's peak; both kinds load the same things first."""
    model = en.load_model("dinov2-small", progress=False).using(progress=False)
    split = en.Disentanglement.load(asked.split, model)
    network = model.network
    if asked.measure == "explicit":
        network = split.explicit()
    batch = torch.zeros(asked.batch, *model.input_size)
    for _ in range(3):
        seconds(network, batch)
    print(json.dumps({"mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def report(split: en.Disentanglement, asked: argparse.Namespace, rule: str, folder: Path) -> None:
    """Print the figures of one rule."""
    both = networks(split)
    batch = split.model.prepare(list(en.load_images("photographs", count=asked.batch)))
    path = folder / f"{rule}.safetensors"
    split.save(path)
    for _ in range(asked.warm_up):
        for network in both.values():
            seconds(network, batch)
    ratios, plain = [], []
    for number in range(asked.passes):
        order = list(both) if number % 2 else list(both)[::-1]
        took: dict[str, Any] = {name: seconds(both[name], batch) for name in order}
        ratios.append(took["explicit"] / took["plain"])
        plain.append(took["plain"])
    low, middle, high = statistics.quantiles(ratios, n=4)
    memory = [peak(path, which, asked.batch, rule) for which in ("plain", "explicit")]
    rows = len(split.routing.rows()[0])
    print(
        f"{rule}, {rows:,} units in {int(split.routing.is_split().sum())} channels, batches of {asked.batch}: plain "
        f"{1000 * statistics.median(plain):.0f} ms, explicit over plain {middle:.2f} (quartiles {low:.2f} to "
        f"{high:.2f}); peak memory {memory[0]:.0f} and {memory[1]:.0f} MiB, {memory[1] / memory[0]:.2f}",
        flush=True,
    )


def main() -> None:
    """Print a line a rule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--site", default="blocks.11.mlp.fc2")
    parser.add_argument("--images", type=int, default=150, help="crops to split by")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--warm-up", type=int, default=5)
    parser.add_argument("--passes", type=int, default=40)
    parser.add_argument("--rules", nargs="+", default=["published", "signed"])
    parser.add_argument("--min-cluster-size", type=float, default=0.0025)
    parser.add_argument("--measure", choices=("plain", "explicit"), help=argparse.SUPPRESS)
    parser.add_argument("--split", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        measure(asked)
        return
    model = en.load_model("dinov2-small", progress=False).using(progress=False)
    images = en.load_images("photographs", count=asked.images)
    print(f"{asked.site} of dinov2-small, {torch.get_num_threads()} threads, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        for rule in asked.rules:
            routing = en.EludeRouting(rule=rule, instances="micro-clusters", min_cluster_size=asked.min_cluster_size)
            split = en.disentangle(model, images, asked.site, routing=routing, tokens_per_image=48)
            report(split, asked, rule, Path(folder))


if __name__ == "__main__":
    main()
