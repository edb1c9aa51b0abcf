"""Throw bad input at every reader of files and at the public functions, and watch what they do.

A case passes if it succeeds or is refused by an exception that the documentation names (ValueError, TypeError, OSError
or WeightsError and their subclasses; from a reader of files also by a ``raise`` of this library, not somewhere below
it), within the limits of time and memory, without starting a program, unpickling an object, opening a connection,
leaving or changing a file, or touching one elsewhere.

    python benchmarks/fuzz.py
    python benchmarks/fuzz.py --cases 2000 --seed 7 --only pictures --outcomes outcomes.txt
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
import time
from pathlib import Path

import torch
from fuzz_eyes import MEMORY, take_away  # type: ignore[import-not-found]  # beside this file
from fuzz_watch import (  # type: ignore[import-not-found]
    MEBIBYTE,
    Family,
    Row,
    tiny_ground,
    try_case,
)


def families() -> dict[str, tuple[Family, float]]:
    """Return all families and the share of the cases that each gets."""
    import fuzz_bombs  # type: ignore[import-not-found]  # beside this file
    import fuzz_calls  # type: ignore[import-not-found]
    import fuzz_files  # type: ignore[import-not-found]
    import fuzz_looks  # type: ignore[import-not-found]
    import fuzz_networks  # type: ignore[import-not-found]
    import fuzz_text  # type: ignore[import-not-found]
    import fuzz_words  # type: ignore[import-not-found]

    files = {**fuzz_files.FAMILIES, **fuzz_bombs.FAMILIES, **fuzz_networks.FAMILIES, **fuzz_text.FAMILIES}
    return {**files, **fuzz_calls.FAMILIES, **fuzz_looks.FAMILIES, **fuzz_words.FAMILIES}


def fuzz(cases: int, seed: int, only: str = "", folder: Path | None = None) -> list[Row]:
    """Run about so many cases and return one row a family.

    Parameters
    ----------
    cases
        How many, over all families; each gets its share, and at least one.
    seed
        Of all that is drawn.
    only
        A word in the names of the families to run; without it, all.
    folder
        An empty folder to work in.
    """
    with tempfile.TemporaryDirectory() as made:
        home = folder or Path(made)
        work = home / "deep" / "inside"  # what climbs out by ../../ is still seen
        work.mkdir(parents=True)
        here = Path.cwd()
        os.chdir(work)
        try:
            every = families()
            whole = sum(share for _, share in every.values())
            return [
                _run(name, family, math.ceil(cases * share / whole), seed, home)
                for name, (family, share) in every.items()
                if only in name
            ]
        finally:
            os.chdir(here)


def _run(name: str, family: Family, cases: int, seed: int, home: Path) -> Row:
    row, work = Row(name), home / "deep" / "inside"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # of what is drawn without a generator of its own, here or in a library
        made = family(tiny_ground(work, seed))
        for _ in range(cases):
            try_case(next(made), row, home)
    made.close()  # type: ignore[attr-defined]
    for path in sorted(work.iterdir()):  # the next family starts with an empty folder
        take_away(path)
    return row


def table(rows: list[Row]) -> str:
    """Return the rows as text."""
    lines = [f"{'family':<34}{'cases':>8}{'refused':>9}{'accepted':>10}{'unexpected':>12}{'slowest':>10}{'memory':>10}"]
    for row in rows:
        lines.append(
            f"{row.family:<34}{row.cases:>8,}{row.refused:>9,}{row.accepted:>10,}{len(row.unexpected):>12,}"
            f"{row.slowest:>8.2f} s{row.memory / MEBIBYTE:>6.0f} MiB"
        )
    total = [sum(x) for x in zip(*((r.cases, r.refused, r.accepted, len(r.unexpected)) for r in rows), strict=True)]
    slowest, memory = max(row.slowest for row in rows), max(row.memory for row in rows) / MEBIBYTE
    counts = f"{total[0]:>8,}{total[1]:>9,}{total[2]:>10,}{total[3]:>12,}"
    return "\n".join([*lines, f"{'all':<34}{counts}{slowest:>8.2f} s{memory:>6.0f} MiB"])


def main() -> None:
    """Read the command line, run the cases, print the table; exit with 1 if anything unexpected was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=12_000, help="how many, over all families")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    parser.add_argument("--only", default="", help="a word in the names of the families to run")
    parser.add_argument("--show", type=int, default=2, help="examples of each kind of unexpected outcome")
    parser.add_argument("--outcomes", type=Path, help="a file to write, with one line a case and what came of it")
    chosen = parser.parse_args()
    start = time.perf_counter()
    rows = fuzz(chosen.cases, chosen.seed, chosen.only)
    if chosen.outcomes is not None:
        lines = (
            f"{row.family}: {outcome}".encode("utf-8", "backslashreplace") for row in rows for outcome in row.outcomes
        )
        chosen.outcomes.write_bytes(b"\n".join(line.replace(b"\n", b"\\n") for line in lines) + b"\n")
    print(f"python {sys.version.split()[0]}, torch {torch.__version__}, seed {chosen.seed}")
    print(table(rows))
    print(f"{time.perf_counter() - start:.0f} s in all, {MEMORY.peak / MEBIBYTE:,.0f} MiB at the peak")
    for row in rows:
        for kind, count in row.kinds.most_common():
            print(f"\n{row.family}, {count} times: {kind}")
            for example in [text for text in row.unexpected if kind in text][: chosen.show]:
                print(f"    {example[:600]}")
    sys.exit(any(row.unexpected for row in rows))


if __name__ == "__main__":
    main()
