"""Measure what one layer made explicit costs beside the plain model: time of a forward pass, and peak memory.

``python benchmarks/explicit_cost.py`` splits all channels of `blocks.11.mlp.fc2` of DINOv2 ViT-S/14 into so many
sub-units each (which source goes to which is drawn at random: the cost depends only on how many there are), makes the
layer explicit, and runs plain and explicit network in turn in one process; the ratio is taken pair by pair. Peak memory
is that of a process of its own for each. The paper has 1.15 for both on an H100 (100 passes to warm up, 500 timed), at
8 sub-units a channel.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch
from torch import Tensor, nn

import elude_nb as en
from elude_nb.core.explicit import explicit_network
from elude_nb.core.routing import NO_CONCEPT, Routing


def explicit(model: en.Model, site: str, units: int) -> nn.Module:
    """Return the network with one layer explicit, each channel in so many sub-units, one owner for each source."""
    place = en.find_site(model, site)
    generator = torch.Generator().manual_seed(0)
    routes = torch.randint(1, units + 1, (place.channels, place.sources), generator=generator, dtype=torch.uint8)
    concepts = torch.full((place.channels, units), NO_CONCEPT)
    return explicit_network(model.network, place, Routing(routes, concepts, ("split",) * place.channels))


def seconds(network: nn.Module, batch: Tensor) -> float:
    """Time one forward pass."""
    with torch.inference_mode():
        start = time.perf_counter()
        network(batch)
        return time.perf_counter() - start


def peak(units: int, asked: argparse.Namespace) -> float:
    """Return the peak memory of a fresh process that runs the plain (0 units) or the explicit network, in MiB."""
    command = [sys.executable, __file__, "--measure", str(units), "--batch", str(asked.batch), "--site", asked.site]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - this very program
    return float(json.loads(done.stdout)["mib"])


def main() -> None:
    """Print a line for each number of sub-units."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--site", default="blocks.11.mlp.fc2")
    parser.add_argument("--units", type=int, nargs="+", default=[4, 8, 32], help="sub-units a channel")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--warm-up", type=int, default=5)
    parser.add_argument("--passes", type=int, default=40)
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    model = en.load_model("dinov2-small", progress=False).using(progress=False)
    batch = torch.randn(asked.batch, *model.input_size, generator=torch.Generator().manual_seed(0))
    if asked.measure is not None:
        network = explicit(model, asked.site, asked.measure) if asked.measure else model.network
        seconds(network, batch)
        print(json.dumps({"mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
        return
    print(
        f"{asked.site} of dinov2-small, batches of {asked.batch}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}", flush=True,
    )  # fmt: skip
    plain_peak = peak(0, asked)
    for units in asked.units:
        both = {"plain": model.network, "explicit": explicit(model, asked.site, units)}
        for _ in range(asked.warm_up):
            for network in both.values():
                seconds(network, batch)
        ratios, plain = [], []
        for number in range(asked.passes):
            took = {name: seconds(both[name], batch) for name in (list(both) if number % 2 else list(both)[::-1])}
            ratios.append(took["explicit"] / took["plain"])
            plain.append(took["plain"])
        low, middle, high = statistics.quantiles(ratios, n=4)
        own_peak = peak(units, asked)
        print(
            f"{units} sub-units a channel: plain {1000 * statistics.median(plain):.0f} ms, explicit over plain "
            f"{middle:.2f} (quartiles {low:.2f} to {high:.2f}); peak memory of the process {plain_peak:.0f} and "
            f"{own_peak:.0f} MiB, {own_peak / plain_peak:.2f}", flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
