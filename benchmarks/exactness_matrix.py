"""The exactness matrix: lens and explicit network against the model, over every family of networks, site by site.

Each network of `architecture_zoo` has random weights and is small where it may be: whether the sums come apart exactly
depends neither on training nor on size. At each site the routes are random too, and spread over the channels. The lens
must change nothing at all. At the site, the explicit network must stay within the bound on two orders of adding up the
same numbers; in float64, its outputs within 1e-12 of the largest.

    python benchmarks/exactness_matrix.py --out docs/exactness.md --families docs/architectures.md
    python benchmarks/exactness_matrix.py --quick
    python benchmarks/exactness_matrix.py --only "dinov2"

The first writes both pages of the documentation. Any figure that is not as it must be ends the program with status 1.
"""

from __future__ import annotations

import argparse
import copy
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
import torch
from architecture_zoo import Entry, build, zoo
from exactness_pages import exactness_page, families_page
from torch import Tensor, nn

from elude_nb import Model, find_site, find_sites
from elude_nb.core.explicit import explicit_network, weights_add_up
from elude_nb.core.readout import Lens, Readout
from elude_nb.core.routing import Routing
from elude_nb.core.verify import Comparison, Difference
from elude_nb.models.hooks import Tap, as_dtype, as_tokens, evaluating
from elude_nb.models.outputs import first_tensor, output_tensor
from elude_nb.models.sites import STREAM, Site

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
FLOAT64_LIMIT = 1e-12
UNITS, MOST_SPLIT, READOUTS = 3, 64, 8


@dataclass(frozen=True)
class Cell:
    """One site of one network in one dtype and under one condition."""

    lens: Difference
    explicit: Difference
    bound_used: float | None = None

    @property
    def problem(self) -> str:
        """What is not as it must be, or nothing."""
        if not self.lens.identical:
            return f"the lens changed the outputs by {self.lens.max_abs_diff:.3g}"
        if self.bound_used is not None and not self.bound_used <= 1:
            return f"the explicit site is {self.bound_used:.3g} times its bound away"
        return ""


@dataclass(frozen=True)
class Row:
    """One site of one network."""

    model: str
    site: str
    kind: str
    channels: int
    sources: int
    units: int
    partition: bool
    cells: dict[str, Cell]
    conditions: dict[str, Cell | str] = field(default_factory=dict)

    def problems(self) -> list[str]:
        """Return what is not as it must be, in words."""
        found = [] if self.partition else ["the units' weights do not add up to the layer's"]
        cells = {**self.cells, **{name: cell for name, cell in self.conditions.items() if isinstance(cell, Cell)}}
        found += [f"{name}: {cell.problem}" for name, cell in cells.items() if cell.problem]
        float64 = self.cells["float64"].explicit.max_rel_diff
        if not float64 <= FLOAT64_LIMIT:
            found.append(f"float64: outputs differ by {float64:.3g} of the largest")
        return [f"{self.model}, {self.site}: {text}" for text in found]


def measure(entry: Entry, seed: int = 0, *, everything: bool = True) -> tuple[pd.DataFrame, list[Row]]:
    """Return the table of a network's sites, and the rows of those that are proven.

    Parameters
    ----------
    entry
        The network.
    seed
        Of weights, routes and images.
    everything
        Also other batch sizes, odd image sizes, channels-last, and torch.compile where the entry asks for it.
    """
    models = {dtype: build(entry, seed, dtype) for dtype in DTYPES}
    table = find_sites(models[torch.float32])
    rows = [_row(entry, models, name, seed) for name in _chosen(entry, table)]
    if everything and rows:
        rows[0] = replace(rows[0], conditions=_conditions(entry, models[torch.float32], rows[0].site, seed))
    return table, rows


def _chosen(entry: Entry, table: pd.DataFrame) -> list[str]:
    """Return the last stream, if there is one, and the entry's own layers or the first, a middle and the last."""
    can = table.loc[table["can_be_split"], ["site", "kind"]]
    streams = can.loc[can["kind"] == STREAM, "site"].tolist()
    layers = can.loc[can["kind"] != STREAM, "site"].tolist()
    own = list(entry.sites) or [layers[number] for number in sorted({0, len(layers) // 2, len(layers) - 1})]
    return [*streams[-1:], *own]


def _row(entry: Entry, models: dict[torch.dtype, Model], name: str, seed: int) -> Row:
    site = find_site(models[torch.float32], name)
    routing = random_routing(site, seed)
    cells, partition = {}, True
    for dtype, model in models.items():
        explicit = explicit_network(model.network, site, routing)
        partition &= weights_add_up(model.network, explicit, site)
        batch = as_dtype(images(entry, 4, seed), dtype)
        bounded = dtype != torch.bfloat16  # u is 2^-8 there: gamma_n says nothing once n exceeds 256
        cells[str(dtype).removeprefix("torch.")] = compare(
            model.network, explicit, site, batch, seed=seed, units=routing.units if bounded else None
        )
    units = len(routing.rows()[0])
    return Row(entry.name, site.name, site.kind, site.channels, site.sources, units, partition, cells)


def random_routing(site: Site, seed: int = 0) -> Routing:
    """Route every contribution of up to 64 channels, spread over all, to one of 4 units at random."""
    generator = torch.Generator().manual_seed(seed)
    routes = torch.randint(0, UNITS + 1, (site.channels, site.sources), generator=generator).to(torch.uint8)
    routing = Routing(routes, torch.full((site.channels, UNITS), -1), ("split: at random",) * site.channels)
    return routing.only(torch.arange(0, site.channels, -(-site.channels // MOST_SPLIT)))


def images(entry: Entry, count: int, seed: int, size: tuple[int, int] | None = None) -> Tensor:
    """Return noise, (n, 3, h, w); for an entry that reads words their numbers, (n, t), with more and more padding."""
    generator = torch.Generator().manual_seed(seed + 1)
    if entry.words:
        ids = torch.randint(3, entry.words, (count, entry.side), generator=generator)
        for number, row in enumerate(ids):
            row[entry.side - number % (entry.side // 2) :] = 0  # padding
        return ids
    return torch.randn(count, 3, *(size or (entry.side, entry.side)), generator=generator)


def compare(
    network: nn.Module, explicit: nn.Module, site: Site, batch: Tensor, *, seed: int = 0, units: int | None = None
) -> Cell:
    """Run the model, the model with a lens, and the explicit network; with ``units`` compare with the bound too."""
    lens_found, explicit_found = Comparison(), Comparison()
    with evaluating(network):
        with _listening(network, site) as seen:
            plain = output_tensor(network(batch))
        with Lens(network, site, _readout(site, plain.dtype, seed)) as lens:
            lens_found.add(plain, output_tensor(network(batch)))
        if not bool(lens.values.isfinite().all()):
            raise RuntimeError(f"The lens at {site.name} read out values that are not finite.")
        with _listening(explicit, site) as apart:
            explicit_found.add(plain, output_tensor(explicit(batch)))
        used = None if units is None else _bound_used(network, site, batch, seen[0], apart[0], units)
    return Cell(lens_found.result(), explicit_found.result(), used)


def _readout(site: Site, dtype: torch.dtype, seed: int) -> Readout:
    generator = torch.Generator().manual_seed(seed + 2)
    matrix = torch.randn(site.sources * site.kernel, READOUTS, generator=generator)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return Readout(matrix.to(wide), torch.zeros(READOUTS, dtype=wide), torch.arange(READOUTS) % site.channels)


@contextmanager
def _listening(network: nn.Module, site: Site) -> Iterator[list[Tensor]]:
    """Keep what the site's last module puts out, (n, t, d)."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, __: object, output: object) -> None:
        seen.append(as_tokens(first_tensor(output), channels_last=site.kind != "convolution").clone())

    handle = network.get_submodule(site.exit).register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def _bound_used(network: nn.Module, site: Site, batch: Tensor, plain: Tensor, apart: Tensor, units: int) -> float:
    """Return the largest ratio of a difference at the site to the bound ``2 gamma_n sum |x|``."""
    unscaled = replace(site, norm=None)  # the layer's own output, before a BatchNorm
    double = copy.deepcopy(network).double()  # so that neither |W| nor the sum of |x| is rounded as the sums are
    weights = [weight.abs() for weight in unscaled.weights(double)]
    biases = [replace(unscaled, terms=(term,)).bias(double).abs() for term in site.terms]
    sizes = [torch.stack(biases).sum(0)]

    def add(part: Tensor) -> None:
        sizes[0] = sizes[0] + part

    with Tap(
        network,
        unscaled,
        on_source=lambda number, sources: add(sources.abs().double() @ weights[number].T),
        on_entering=lambda entering: add(entering.abs().double()),
        any_size=True,
    ):
        network(batch)
    n = site.sources * site.kernel + len(site.terms) + units + 4
    roundoff = torch.finfo(plain.dtype).eps / 2
    gamma = n * roundoff / (1 - n * roundoff)
    return float(((plain.double() - apart.double()).abs() / (2 * gamma * sizes[0]).clamp(min=1e-300)).max())


def _conditions(entry: Entry, model: Model, name: str, seed: int) -> dict[str, Cell | str]:
    """Run the first site under other conditions, in float32; a string says why one could not be."""
    site = find_site(model, name)
    routing = random_routing(site, seed)
    explicit = explicit_network(model.network, site, routing)
    batch = images(entry, 4, seed)

    def run(data: Tensor, network: nn.Module = model.network, apart: nn.Module = explicit) -> Cell:
        return compare(network, apart, site, data, seed=seed, units=routing.units)

    found: dict[str, Callable[[], Cell | str]] = {
        "1 image": lambda: run(batch[:1]),
        "7 images": lambda: run(images(entry, 7, seed)),
    }
    if not entry.words:
        found["channels last"] = lambda: run(
            batch.contiguous(memory_format=torch.channels_last),
            copy.deepcopy(model.network).to(memory_format=torch.channels_last),
            copy.deepcopy(explicit).to(memory_format=torch.channels_last),
        )
    if entry.odd:
        height, width = entry.odd
        found[f"{height} x {width} pixels"] = lambda: run(images(entry, 2, seed, entry.odd))
    if entry.compiled:
        found["torch.compile"] = lambda: _compiled(model.network, explicit, site, batch, seed)
    return {condition: measured() for condition, measured in found.items()}


def _compiled(network: nn.Module, explicit: nn.Module, site: Site, batch: Tensor, seed: int) -> Cell | str:
    """Compare the compiled explicit network, and the network compiled with a lens on it, with the compiled model."""
    if not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        return "not run: torch.compile needs a C++ compiler, and there is none"
    lens_found, explicit_found = Comparison(), Comparison()
    with torch.no_grad():
        torch.compiler.reset()
        plain = output_tensor(torch.compile(network)(batch))
        explicit_found.add(plain, output_tensor(torch.compile(explicit)(batch)))
        torch.compiler.reset()  # Dynamo does not look again for hooks that were set after it compiled
        with Lens(network, site, _readout(site, batch.dtype, seed)) as lens:
            lens_found.add(plain, output_tensor(torch.compile(network)(batch)))
            lens.values  # noqa: B018 - raises if nothing was seen
    return Cell(lens_found.result(), explicit_found.result())


def main() -> int:
    """Measure, print, write the pages; return 1 if any figure is not as it must be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", help="networks whose name has this in it")
    parser.add_argument("--quick", action="store_true", help="the subset that CI runs, without other conditions")
    parser.add_argument("--out", type=Path, help="write the table here, as Markdown")
    parser.add_argument("--families", type=Path, help="write the table of families here, as Markdown")
    parser.add_argument("--seed", type=int, default=0, help="of weights, routes and images")
    given = parser.parse_args()
    torch.set_num_threads(1)  # how many threads share a sum decides its order
    warnings.simplefilter("ignore")
    tables: dict[str, pd.DataFrame] = {}
    rows: list[Row] = []
    problems: list[str] = []
    absent: list[str] = []
    entries = [e for e in zoo() if given.only in e.name and (e.quick or not given.quick)]
    for entry in entries:
        start = time.perf_counter()
        try:
            tables[entry.name], found = measure(entry, given.seed, everything=not given.quick)
        except ModuleNotFoundError as error:
            absent.append(f"{entry.name}: {error}")
            continue
        rows += found
        problems += [problem for row in found for problem in row.problems()]
        worst = max((row.cells["float32"].explicit.max_rel_diff for row in found), default=0.0)
        print(
            f"{entry.name}: {len(found)} sites, explicit {worst:.1e}, {time.perf_counter() - start:.1f} s", flush=True
        )
    command = f"python benchmarks/exactness_matrix.py --out {given.out} --families {given.families}"
    if given.out:
        given.out.write_text(exactness_page(rows, absent, command, given.seed), encoding="utf-8")
    if given.families:
        given.families.write_text(families_page(entries, tables, rows), encoding="utf-8")
    print(f"{len(rows)} sites of {len(tables)} networks; {len(problems)} problems", *problems, *absent, sep="\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
