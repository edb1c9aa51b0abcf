"""Measure what disentangling costs beside the forward passes that it needs anyway.

For crops of the photographs: seconds of the forward passes alone, seconds of the whole disentangling, their ratio, and
the peak memory of the process. Each measurement runs in a process of its own, so that peaks don't add up; forward
passes and analysis are measured in turn and the medians are taken.

    python benchmarks/analysis_cost.py                    # 500 crops: the last block, and all 12 blocks
    python benchmarks/analysis_cost.py --images 5000 --blocks all --repeats 1
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import elude_nb as en

BATCH = 16


def forward_seconds(images: int) -> float:
    """Run the crops through the model, in the same batches as `disentangle` does, and nothing else."""
    model, crops = en.load_model("dinov2-small", progress=False), en.load_images("photographs", count=images)
    en.embed(model, crops[:BATCH])  # warm up
    start = time.perf_counter()
    en.embed(model, crops)
    return time.perf_counter() - start


def disentangle_seconds(images: int, blocks: str) -> float:
    """Disentangle the residual stream, with the settings that are the defaults."""
    model, crops = en.load_model("dinov2-small", progress=False), en.load_images("photographs", count=images)
    en.embed(model, crops[:BATCH])
    start = time.perf_counter()
    en.disentangle(model, crops, blocks="all" if blocks == "all" else int(blocks), batch_size=BATCH, progress=False)
    return time.perf_counter() - start


def in_a_process(what: str, images: int, blocks: str) -> tuple[float, float]:
    """Measure in a fresh process; return seconds and peak memory in GiB."""
    command = [sys.executable, __file__, "--measure", what, "--images", str(images), "--blocks", blocks]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - this very program
    found = json.loads(done.stdout)
    return found["seconds"], found["peak_gib"]


def compare(images: int, blocks: str, repeats: int) -> None:
    """Print one line for one choice of blocks."""
    passes, wholes = [], []
    for _ in range(repeats):  # in turn, so that a drift of the machine's speed meets both
        passes.append(in_a_process("forward", images, blocks))
        wholes.append(in_a_process("disentangle", images, blocks))
    forward, whole = (statistics.median(seconds for seconds, _ in runs) for runs in (passes, wholes))
    ratio = statistics.median(w / f for (w, _), (f, _) in zip(wholes, passes, strict=True))
    peak_forward, peak = (max(peak for _, peak in runs) for runs in (passes, wholes))
    print(
        f"{images:>6} images, {blocks:>3} block(s): forward passes {forward:7.1f} s, disentangle {whole:7.1f} s, "
        f"ratio {ratio:.2f}; peak memory {peak_forward:.2f} GiB for the passes, {peak:.2f} GiB in all",
        flush=True,
    )


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--blocks", default="1,all", help="how many blocks bring the sources; several with commas")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--measure", choices=("forward", "disentangle"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure is None:
        for blocks in given.blocks.split(","):
            compare(given.images, blocks, given.repeats)
        return
    seconds = (
        forward_seconds(given.images) if given.measure == "forward" else disentangle_seconds(given.images, given.blocks)
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform != "darwin" else 1 << 30)
    print(json.dumps({"seconds": seconds, "peak_gib": peak}))


if __name__ == "__main__":
    main()
