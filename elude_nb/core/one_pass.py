"""One pass over images: planned, run on all of them or on a share, and its statistics kept in files as it goes."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from elude_nb._util.arithmetic import own_arithmetic
from elude_nb._util.checks import check_count, check_flag, shortly
from elude_nb._util.files import check_target
from elude_nb._util.progress import say
from elude_nb._util.ranks import Ranks
from elude_nb._util.words import counted
from elude_nb.core.concepts import Cells
from elude_nb.core.elude import EludeRouting
from elude_nb.core.estimate import UNIT, Estimate, check_counts, choose_limits, elude_size, expected_seconds, make_plan
from elude_nb.core.recording import Recording, record
from elude_nb.core.saving import Settings, identity_of
from elude_nb.core.statistics import Collector, Limits, Statistics, check_alike
from elude_nb.core.strategies import RandomRouting, RoutingStrategy, check_routing_settings, find_routing
from elude_nb.data.folders import name_left_out
from elude_nb.data.images import Images, ImageSet
from elude_nb.errors import StatisticsError
from elude_nb.models.default_site import choose_site
from elude_nb.models.hooks import check_pristine, for_analysis
from elude_nb.models.load import Model, as_model
from elude_nb.models.sites import Site

Shard = tuple[int, int]
"""Which share of the images, and of how many: (3, 64) is the third of 64."""
EVERY = 10_000
"""After how many images what has been collected is written."""


@dataclass(frozen=True)
class Pass:
    """A pass over images that is planned and checked, and not run yet."""

    model: Model
    images: ImageSet
    place: Site
    strategy: RoutingStrategy
    settings: Settings
    limits: Limits
    plan: Estimate


def plan_pass(
    model: Model,
    images: Images,
    site: str | None = None,
    *,
    purpose: str,
    blocks: int | Literal["all"] = "all",
    concepts: int | None = None,
    units: int = 8,
    shared: float | None = None,
    routing: str | RoutingStrategy = "concepts",
    tokens: str | None = None,
    tokens_per_image: int | None = 24,
    seed: int = 0,
    batch_size: int | None = None,
    max_memory: float | None = None,
    progress: bool | None = None,
) -> Pass:
    """Check the settings of `elude_nb.disentangle` before any forward pass, and say what the pass will need.

    Raises
    ------
    SiteError, ValueError, TypeError
        As `elude_nb.disentangle` does.
    """
    model = model.using(batch_size=batch_size, progress=progress)
    strategy = find_routing(routing, seed)
    elude = elude_of(strategy)
    tokens = tokens or (None if elude is None else "all")
    seed = check_count("seed", seed, 0, 2**32 - 1)  # what scikit-learn takes
    blocks = blocks if blocks == "all" else check_count("blocks", blocks)
    given: dict[str, object] = {"concepts": concepts, "units": units, "shared": shared}
    for name, value in given.items():
        if value == "auto":
            raise TypeError(
                f"{name}='auto' is not a number; leave concepts out, or take all numbers from "
                "elude_nb.scores.suggest_settings(model, images).settings."
            )
    sub_units, rho = check_routing_settings(units, shared)
    concepts, tokens_per_image = check_counts(concepts, tokens, tokens_per_image, max_memory)
    chosen = model.inputs(images)
    check_pristine(model.network, purpose)
    place = choose_site(model, site, blocks=blocks, tokens=tokens, purpose=purpose)
    tokens = tokens or place.layout.usual
    plan = make_plan(model, chosen, place, concepts, sub_units, tokens, tokens_per_image, max_memory, elude)
    settings = Settings(
        site=place.name,
        blocks=blocks,
        concepts=plan.concepts,
        units=sub_units,
        shared=rho,
        routing=strategy.name,
        strategy=repr(strategy),
        tokens=tokens,
        tokens_per_image=tokens_per_image,
        seed=seed,
        images=len(chosen),
        images_from=chosen.source,
    )
    return Pass(model, chosen, place, strategy, settings, choose_limits(plan, len(chosen), elude, seed), plan)


def measure(planned: Pass, processes: int = 1) -> Estimate:
    """Return what the split will need, with the time, by running a few images, if so many processes share the work."""
    elude, plan, settings = elude_of(planned.strategy), planned.plan, planned.settings
    seconds = 0.0 if elude is None else elude.expected_seconds(*elude_size(elude, plan.tokens, planned.place))
    take = settings.tokens, settings.tokens_per_image
    seconds += expected_seconds(planned.model, planned.images, planned.place, plan, *take)
    return replace(plan, seconds=seconds / processes)


def elude_of(strategy: object) -> EludeRouting | None:
    """Return the ELUDe routing that a strategy is, or shuffles."""
    found = strategy.like if isinstance(strategy, RandomRouting) else strategy
    return found if isinstance(found, EludeRouting) else None


@own_arithmetic()
def run_pass(
    planned: Pass,
    shard: Shard = (1, 1),
    *,
    known: Statistics | None = None,
    keep: Callable[[Statistics], object] | None = None,
    every: int = EVERY,
    ranks: Ranks | None = None,
    announce: bool = False,
    skip_broken: bool = False,
) -> Statistics:
    """Run the images of a share that are not known yet, and return the statistics of the whole share.

    Parameters
    ----------
    planned
        The pass.
    shard
        Which share.
    known
        Statistics of a part of the share, from before.
    keep
        Called with what has been collected after every so many images; the value is not to be used any more when it has
        returned.
    every
        How many.
    ranks
        The processes that run the other shares meanwhile: they hand each other the channels of their parts of the
        sample that the cells are made from. Without them, this process runs the whole sample.
    announce
        Whether to say how long the forward passes will take.
    skip_broken
        Whether to open every image beforehand, and leave out those that cannot be opened.
    """
    start = _empty(planned) if known is None else known
    sample, rest = _in_order(planned)
    own, later = share_of(sample, shard), share_of(rest, shard)
    cells, first = start.cells, list[Recording]()
    if skip_broken:
        known_already = {*start.images.tolist(), *start.left_out.tolist()}
        broken = _find_broken(planned, sorted({*sample, *later}.difference(known_already)))
        new = broken.intersection([*own, *later])
        start = replace(start, left_out=torch.tensor(sorted({*start.left_out.tolist(), *new}), dtype=torch.int64))
        broken.update(start.left_out.tolist())
        sample, own, later = ([n for n in several if n not in broken] for several in (sample, own, later))
    if sample and cells is None:
        others = [] if ranks else sorted(set(sample) - set(own))
        seen = [_without_sources(part) for part in _record(planned, others)]
        for part in _record(planned, own):
            seen.append(_without_sources(part))
            if planned.plan.held:  # else these images are run again below, as all others are
                first.append(part)
        if ranks is None:
            cells = _make_cells(planned, seen)
        else:
            seen = ranks.join(seen)
            cells = ranks.from_first(_make_cells(planned, seen) if ranks.first else None)
    collector = Collector(start, cells)
    done = {*start.images.tolist(), *(own if first else ())}
    while first:
        collector.add(first.pop(0))
    left = [number for number in (*own, *later) if number not in done]
    kept = len(done)
    for batch, part in zip(_batches(left, planned.model.batch_size), _record(planned, left, announce), strict=True):
        collector.add(part)
        done.update(batch)
        if ranks is not None:
            ranks.check()
        if keep is not None and len(done) - kept >= every:
            keep(_finish(collector, planned, start, done))
            kept = len(done)
    return _finish(collector, planned, start, done)


@own_arithmetic()
def collect(
    model: Model | nn.Module,
    images: Images,
    site: str | None = None,
    *,
    shard: Shard = (1, 1),
    out: str | os.PathLike[str] | None = None,
    every: int = EVERY,
    skip_broken: bool = False,
    **settings: Any,
) -> Statistics:
    """Run a share of the images and return what `elude_nb.core.disentangle.build_split` splits by.

    Every share is given the whole list of images and the same settings. The sum of all shares is the same whatever
    their number (docs/scaling.md).

    Parameters
    ----------
    model, images, site
        As in `elude_nb.disentangle`.
    shard
        Which share, and of how many: ``(3, 64)`` is the third of 64.
    out
        A file for the result. If it is there already and complete, nothing is run. It is written as the work goes on,
        and a call that was ended is continued from there.
    every
        After how many images it is written.
    skip_broken
        Leave out images that cannot be opened, and say which; without it, one ends the call.
    **settings
        ``routing``, ``concepts``, ``tokens``, ``seed``, ...: all others of `elude_nb.disentangle`.

    Raises
    ------
    StatisticsError
        If ``out`` was collected with another model, other images or other settings; the message says which.
    SiteError, ValueError, TypeError
        As `elude_nb.disentangle` does.
    """
    shard, every = _check_shard(shard), check_count("every", every)
    check_flag("skip_broken", skip_broken)
    target = None if out is None else check_target(out)
    planned = plan_pass(
        as_model(model, "collect", progress=settings.get("progress")), images, site, purpose="collect", **settings
    )
    how: dict[str, Any] = {"announce": True, "skip_broken": skip_broken}
    if target is None:
        return run_pass(planned, shard, **how)
    known = _read_known(planned, shard, target) if target.exists() else None
    found = run_pass(planned, shard, known=known, keep=lambda part: part.save(target), every=every, **how)
    if known is None or len(found) + len(found.left_out) > len(known) + len(known.left_out):
        found.save(target)
    return found


def _check_shard(shard: object) -> Shard:
    if not isinstance(shard, Sequence) or isinstance(shard, str) or len(shard) != 2:
        raise TypeError(f"shard must be a pair such as (3, 64), the third share of 64, not {shortly(shard)}.")
    count = check_count("the number of shards", shard[1])
    return check_count("the shard", shard[0], 1, count), count


def _read_known(planned: Pass, shard: Shard, path: Path) -> Statistics:
    """Return what a file has of a share already."""
    known, shares = Statistics.load(path), _in_order(planned)
    try:
        check_alike(known, _empty(planned))
    except StatisticsError as error:
        raise StatisticsError(f"{str(path)!r} is of another pass. {error} Name another file, or delete it.") from error
    strange = set(known.images.tolist()).difference(*(share_of(part, shard) for part in shares))
    if strange:
        raise StatisticsError(
            f"{str(path)!r} has image {min(strange)}, which is not in shard {shard[0]} of {shard[1]}. Name another "
            "file, or delete it."
        )
    size = sum(len(share_of(part, shard)) for part in shares)
    if planned.model.progress:
        say(f"collect: {str(path)!r} has {len(known):,} of {counted(size, 'image')} already")
    return known


def load_shards(paths: Iterable[str | os.PathLike[str]]) -> Statistics:
    """Return the sum of the statistics in several files, read one after the other.

    Raises
    ------
    StatisticsError
        If they do not add up; the message names the file.
    ValueError
        If there is no file among them.
    FileNotFoundError, StoreError
        As `Statistics.load` does.
    """
    found: Statistics | None = None
    for path in paths:
        part = Statistics.load(path)
        try:
            found = part if found is None else found + part
        except StatisticsError as error:
            raise StatisticsError(f"{os.fspath(path)!r} and those before it: {error}") from error
    if found is None:
        raise ValueError("There is no file to add up; name those that were collected.")
    return found


def _empty(planned: Pass) -> Statistics:
    names = hashlib.sha256(json.dumps(planned.images.names).encode()).hexdigest()
    origin = json.loads(json.dumps({**identity_of(planned.model), "image_list": names}))  # as a file gives it back
    return Statistics.empty(
        planned.settings,
        planned.limits,
        origin,
        planned.place.channels,
        planned.place.sources * planned.place.kernel,
        for_analysis(torch.empty(0, dtype=planned.model.dtype)).dtype,
    )


def _in_order(planned: Pass) -> tuple[list[int], list[int]]:
    """Return the numbers of the images that the cells are made from, drawn at random, and those of all others."""
    count, size = len(planned.images), planned.limits.sample
    sample = np.sort(np.random.default_rng(planned.settings.seed).choice(count, size, replace=False))
    return sample.tolist(), np.setdiff1d(np.arange(count), sample).tolist()


def _find_broken(planned: Pass, numbers: Sequence[int]) -> set[int]:
    """Open these images; return the numbers of those that cannot be used, and say which they are."""
    images = planned.images.subset(numbers)
    found = images.find_broken(progress=planned.model.progress)
    if found and planned.model.progress:
        say(f"collect: {name_left_out([images.names[index] for index in found])}")
    return {numbers[index] for index in found}


def share_of(numbers: Sequence[int], shard: Shard) -> list[int]:
    """Return a share of some numbers, a run of them; it begins at a multiple of `UNIT`.

    Examples
    --------
    >>> [len(share_of(range(50), (index, 3))) for index in (1, 2, 3)]
    [16, 16, 18]
    """
    index, count = shard
    units = math.ceil(len(numbers) / UNIT)
    start, stop = (units * edge // count * UNIT for edge in (index - 1, index))
    return list(numbers[start:stop])


def own_share(images: ImageSet, ranks: Ranks) -> tuple[list[int], ImageSet]:
    """Return the numbers of the images that are the share of this process, and these images."""
    mine = share_of(range(len(images)), (ranks.rank + 1, ranks.count))
    return mine, images if ranks.count == 1 else images.subset(mine)


def _batches(numbers: Sequence[int], size: int) -> Iterable[list[int]]:
    return (list(numbers[start : start + size]) for start in range(0, len(numbers), size))


def _record(planned: Pass, numbers: Sequence[int], announce: bool = False) -> Iterable[Recording]:
    """Record these images; each draws its tokens by its number in the whole list."""
    if not numbers:
        return ()
    settings = planned.settings
    return record(
        planned.model,
        planned.images.subset(numbers),
        planned.place,
        tokens=settings.tokens,
        tokens_per_image=settings.tokens_per_image,
        seed=settings.seed,
        numbers=numbers,
        announce=announce,
    )


def _without_sources(part: Recording) -> Recording:
    none = torch.empty(len(part), 0)  # not a view, which would be sent with all that it is a view of
    return replace(part, channels=part.channels.cpu(), sources=none, entering=none)


def _make_cells(planned: Pass, parts: list[Recording]) -> Cells:
    found = Recording.join(parts)
    order = np.lexsort((found.positions.numpy(), found.images.numpy()))  # whoever ran them, in whatever order
    return Cells.of(found.channels[torch.from_numpy(order)], planned.limits.micro_clusters, planned.settings.seed)


def _finish(collector: Collector, planned: Pass, start: Statistics, done: set[int]) -> Statistics:
    new = sorted(done.difference(start.images.tolist()))
    hashes = torch.from_numpy(planned.images.subset(new).hashes()) if new else start.hashes[:0]
    return collector.finish(
        torch.cat([start.images, torch.tensor(new, dtype=torch.int64)]), torch.cat([start.hashes, hashes])
    )
