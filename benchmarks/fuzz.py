"""Throw bad input at every reader of files and at the public functions, and watch what they do.

A case passes if it succeeds or is refused by an exception that the documentation names (ValueError, TypeError, OSError
or WeightsError and their subclasses; from a reader of files also raised in this library, not somewhere below it),
within the time limit, without starting a program, unpickling an object, opening a connection or leaving a file behind.

    python benchmarks/fuzz.py
    python benchmarks/fuzz.py --cases 2000 --seed 7 --only pictures
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import torch
from fuzz_watch import Family, Ground, Row, tiny_ground, try_case  # type: ignore[import-not-found]  # beside this file


def families() -> dict[str, tuple[Family, float]]:
    """Return all families and the share of the cases that each gets."""
    import fuzz_calls  # type: ignore[import-not-found]  # beside this file
    import fuzz_files  # type: ignore[import-not-found]
    import fuzz_looks  # type: ignore[import-not-found]

    return {**fuzz_files.FAMILIES, **fuzz_calls.FAMILIES, **fuzz_looks.FAMILIES}


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
            return [
                _run(name, family, max(1, round(cases * share)), tiny_ground(work, seed), home)
                for name, (family, share) in families().items()
                if only in name
            ]
        finally:
            os.chdir(here)


def _run(name: str, family: Family, cases: int, ground: Ground, home: Path) -> Row:
    row = Row(name)
    made = family(ground)
    for _ in range(cases):
        try_case(next(made), row, home)
    made.close()  # type: ignore[attr-defined]
    for path in sorted(ground.folder.iterdir()):  # the next family starts with an empty folder
        path.unlink()
    return row


def table(rows: list[Row]) -> str:
    """Return the rows as text."""
    lines = [f"{'family':<34}{'cases':>8}{'refused':>9}{'accepted':>10}{'unexpected':>12}{'slowest':>10}"]
    for row in rows:
        lines.append(
            f"{row.family:<34}{row.cases:>8,}{row.refused:>9,}{row.accepted:>10,}{len(row.unexpected):>12,}"
            f"{row.slowest:>8.2f} s"
        )
    total = [sum(x) for x in zip(*((r.cases, r.refused, r.accepted, len(r.unexpected)) for r in rows), strict=True)]
    slowest = max(row.slowest for row in rows)
    return "\n".join(
        [*lines, f"{'all':<34}{total[0]:>8,}{total[1]:>9,}{total[2]:>10,}{total[3]:>12,}{slowest:>8.2f} s"]
    )


def peak_memory() -> str:
    """Return how much memory this process has held at most, in words, where the system says so."""
    if sys.platform != "linux":
        return ""
    import resource

    return f", {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB at the peak"


def main() -> None:
    """Read the command line, run the cases, print the table; exit with 1 if anything unexpected was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=12_000, help="how many, over all families")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    parser.add_argument("--only", default="", help="a word in the names of the families to run")
    parser.add_argument("--show", type=int, default=2, help="examples of each kind of unexpected outcome")
    chosen = parser.parse_args()
    start = time.perf_counter()
    rows = fuzz(chosen.cases, chosen.seed, chosen.only)
    print(f"python {sys.version.split()[0]}, torch {torch.__version__}, seed {chosen.seed}")
    print(table(rows))
    print(f"{time.perf_counter() - start:.0f} s in all{peak_memory()}")
    for row in rows:
        for kind, count in row.kinds.most_common():
            print(f"\n{row.family}, {count} times: {kind}")
            for example in [text for text in row.unexpected if kind in text][: chosen.show]:
                print(f"    {example[:600]}")
    sys.exit(any(row.unexpected for row in rows))


if __name__ == "__main__":
    main()
