"""The claims under other judges, networks and pictures, and against harder steering baselines.

    python benchmarks/evidence.py --out DIR [--small] [--page docs/evidence.md]

Each part is written to DIR as one JSON file when it is done; run again, it is not computed again, so an interrupt loses
one at most. From all of them the page is written. ``--small`` tries it: one seed, 60 images.

Scores: a network is split on one half of the pictures and scored on the other. The halves share no picture; for the
ten photographs they are crops of the same ones ("crops"), or of other ones ("left-out photographs": two are held out).
Either network is the judge once. Steering: concepts named after a class are faded on images that discovery did not see
until the class has lost half of its probability, and so is each baseline: what do the other classes lose?
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import elude_nb as en
from elude_nb._util.files import atomic_write
from elude_nb.core.recording import pool_recorded
from elude_nb.core.routing import shuffled
from elude_nb.data.photographs import PHOTOGRAPHS
from elude_nb.data.synthetic import draw_scene, sample_scenes, swap_factor
from elude_nb.scores import difference_interval, match_units, mean_interval, swap_response

NETWORKS = {"dinov2-small": None, "efficientnet-lite0": "blocks.6.0.conv_pwl"}
PICTURES = ("crops", "left-out photographs", "stamps", "clipart")
SCORES = ("top_similarity", "monosemanticity", "ms_score")
EQUAL_DROP = 0.5
CLASSES = {"dinov2-small": ("cat", "rocket", "astronaut"), "efficientnet-lite0": ("cat", "rocket", "coffee")}


@cache
def network(name: str) -> Any:
    """Return a network, loaded once."""
    return en.load_model(name, progress=False).using(progress=False)


def halves(pictures: str, seed: int, count: int) -> tuple[Any, Any]:
    """Return the images of the discovery and those to score on; they share no picture."""
    if pictures == "left-out photographs":
        images = en.load_images("photographs", count=2 * count, seed=seed)
        held = list(np.random.default_rng(seed).permutation(list(PHOTOGRAPHS))[:2])
        out = [number for number, label in enumerate(images.labels) if label in held]
        kept = [number for number, label in enumerate(images.labels) if label not in held]
        return images.subset(kept).sample(count // 2, seed=seed), images.subset(out).sample(count // 2, seed=seed)
    source = "photographs" if pictures == "crops" else pictures
    return en.load_images(source, count=count, seed=seed).without_copies().split(0.5, seed=seed)


@cache
def split_of(name: str, pictures: str, seed: int, count: int) -> Any:
    """Return a network split on the first half; the last one is kept."""
    return en.disentangle(network(name), halves(pictures, seed, count)[0], NETWORKS[name], seed=seed)


def scored(name: str, pictures: str, judge: str, seed: int, count: int) -> dict[str, Any]:
    """Return by how much sub-units are ahead of channels and random routes, by each score."""
    split = split_of(name, pictures, seed, count)
    images = halves(pictures, seed, count)[1]
    table = en.score(split, images, seed=seed, embeddings=None if judge == name else judge)
    found: dict[str, Any] = {"site": split.site.name, "discovery": split.settings.images, "scored": len(images)}
    for distinct in (False, True):
        rows = table[table["distinct"]] if distinct else table
        kinds = dict(iter(rows.groupby("kind")))
        if "sub-unit" not in kinds:
            continue
        for score in SCORES:
            key = f"{score}{', distinct' if distinct else ''}"
            found[key] = {kind: float(part[score].mean()) for kind, part in kinds.items()}
            for rival in ("channel", "random route"):
                clusters = (kinds["sub-unit"]["channel"], kinds[rival]["channel"])
                gain = difference_interval(kinds["sub-unit"][score], kinds[rival][score], clusters=clusters)
                found[key][f"over {rival}"] = [gain.mean, gain.low, gain.high]
    return found


def steered(name: str, label: str, seed: int, count: int) -> dict[str, Any]:
    """Return what the other classes lose at an equal drop of the class meant, for the edit and each baseline."""
    split = split_of(name, "crops", seed, count)
    train, images = halves("crops", seed, count)
    split = split.with_names(en.name_concepts(split, train).names)
    concepts = split.concepts_named(label)
    if not concepts:
        return {"rows": [], "why": f"no concept is named {label!r}"}
    # The probe is fitted, and strengths are tuned, on half of the images that discovery did not see.
    fit, measured = images.split(0.5, seed=seed)
    found = en.effect(
        split, en.Edit.ablate(concept=concepts), measured, fit=fit, target=label, equal_drop=EQUAL_DROP, strengths=(),
        seed=seed,
    )  # fmt: skip
    columns = ["method", "strength", "reached", "drop", "others", "worst", "accuracy_others", "others_cosine"]
    return {"rows": found.at_equal_drop[columns].to_dict("records"), "left out": found.left_out,
            "concepts": len(concepts), "measured": len(measured)}  # fmt: skip


def swapped(name: str, seed: int, count: int) -> dict[str, Any]:
    """Return how units follow when the shape in a drawn scene is exchanged, sub-units beside channels and routes."""
    model = network(name)
    split = en.disentangle(model, en.load_images("shapes", count=count, seed=seed), NETWORKS[name], seed=seed)
    scenes, half = sample_scenes(count, seed=1000 + seed), count // 2
    others = swap_factor(scenes, "shape", seed=seed)
    drawn = [en.load_images([draw_scene(row) for row in table.to_dict("records")]) for table in (scenes, others)]
    routes = dataclasses.replace(split, routing=shuffled(split.routing, seed))
    found = {}
    for kind, source in (("sub-unit", split), ("random route", routes), ("channel", split)):
        values = [peaks(source, images, channels=kind == "channel") for images in drawn]
        labels = [table["shape"].tolist() for table in (scenes, others)]
        matched = match_units(values[0][:half], labels[0][:half])
        table = swap_response(values[0][half:], values[1][half:], labels[0][half:], labels[1][half:], matched)
        found[kind] = {column: float(table[column].mean()) for column in ("follows", "moves", "selectivity")}
        found[kind]["d_prime"] = float(matched["d_prime"].mean())
    return found


def peaks(split: Any, images: Any, *, channels: bool = False) -> Any:
    """Return the largest activation over 24 tokens of each image: of live sub-units, or of channels and minus them.

    The same tokens are drawn before and after a swap.
    """
    readout, found = None if channels else split.live_readout(), []
    for part in en.record(split.model, images, split.site, tokens=split.settings.tokens, tokens_per_image=24):
        if readout is None:
            values = torch.cat([part.channels, -part.channels], dim=1)
        else:
            values = part.sources @ readout.matrix + readout.offset
        found.append(pool_recorded(values, part.images))
    return torch.cat(found)


def parts(seeds: list[int], count: int, sets: list[str]) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield the name of each part and what computes it."""
    for seed in seeds:
        for name in NETWORKS:
            for pictures in sets:
                for judge in NETWORKS:
                    yield (
                        f"score {name}, {pictures}, {judge}, {seed}",
                        lambda name=name, pictures=pictures, judge=judge, seed=seed: scored(
                            name, pictures, judge, seed, count
                        ),
                    )
            yield f"swap {name}, {seed}", lambda name=name, seed=seed: swapped(name, seed, count)
            for label in CLASSES[name]:
                yield (
                    f"steer {name}, {label}, {seed}",
                    lambda name=name, label=label, seed=seed: steered(name, label, seed, count),
                )
        split_of.cache_clear()


def run(out: Path, seeds: list[int], count: int, sets: list[str]) -> dict[str, dict[str, Any]]:
    """Compute what is not there yet; return all parts by name."""
    out.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, compute in parts(seeds, count, sets):
        file = out / f"{name.replace(', ', '_').replace(' ', '-')}_{count}.json"
        if not file.exists():
            began = time.perf_counter()
            made = compute() | {"seconds": 0.0}
            made["seconds"] = round(time.perf_counter() - began, 1)
            with atomic_write(file) as part:
                part.write_text(json.dumps(made, indent=1), encoding="utf-8")
            print(f"{name}: {made['seconds']} s", flush=True)
        found[name] = json.loads(file.read_text(encoding="utf-8"))
    return found


def table_of_scores(found: dict[str, dict[str, Any]], score: str) -> list[str]:
    """Return the rows of one score: means over seeds, and in how many of them sub-units were ahead."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for name, made in found.items():
        if name.startswith("score ") and score in made:
            groups.setdefault(tuple(name.removeprefix("score ").split(", ")[:3]), []).append(made[score])
    rows = []
    for (split, pictures, judge), each in groups.items():
        means = [np.mean([one[kind] for one in each]) for kind in ("sub-unit", "channel", "random route")]
        gains = []
        for rival in ("channel", "random route"):
            every = np.array([one[f"over {rival}"] for one in each])
            ahead, behind = int((every[:, 1] > 0).sum()), int((every[:, 2] < 0).sum())
            gains.append(f"{every[:, 0].mean():+.3f} [{every[:, 0].min():+.3f}, {every[:, 0].max():+.3f}]; "
                         f"ahead in {ahead}, behind in {behind} of {len(each)}")  # fmt: skip
        who = "itself" if judge == split else judge
        rows.append(f"| {split} | {pictures} | {who} | {' | '.join(f'{m:.3f}' for m in means)} | {' | '.join(gains)} |")
    return rows


def table_of_steering(found: dict[str, dict[str, Any]], name: str) -> list[str]:
    """Return one row a method: what the others lost at an equal drop, over classes and seeds."""
    rows = [
        {"run": part, **row}
        for part, made in found.items()
        if part.startswith(f"steer {name}, ")
        for row in made["rows"]
    ]
    if not rows:
        return []
    table = pd.DataFrame(rows)
    lines = []
    for method, every in table.groupby("method", sort=False):
        reached = every[every["reached"]]
        cells = [f"{len(reached)} of {len(every)}"]
        for column in ("drop", "others", "worst"):
            values = 100 * reached[column]
            found_ = mean_interval(values) if len(values) else None
            cells.append("" if found_ is None else f"{found_.mean:.1f} [{found_.low:.1f}, {found_.high:.1f}]")
        lines.append((float(reached["others"].mean()) if len(reached) else 9.0, f"| {method} | {' | '.join(cells)} |"))
    return [line for _, line in sorted(lines)]


def table_of_swaps(found: dict[str, dict[str, Any]]) -> list[str]:
    """Return one row a network and kind of unit: means over seeds, with the smallest and the largest."""
    rows = []
    for name in NETWORKS:
        each = [made for part, made in found.items() if part.startswith(f"swap {name}, ")]
        for kind in ("sub-unit", "channel", "random route"):
            cells = []
            for column in ("d_prime", "follows", "moves", "selectivity"):
                values = np.array([made[kind][column] for made in each])
                cells.append(f"{values.mean():.2f} [{values.min():.2f}, {values.max():.2f}]")
            rows.append(f"| {name} | {kind} | {' | '.join(cells)} |")
    return rows


def page(found: dict[str, dict[str, Any]], command: str, seeds: list[int], count: int) -> str:
    """Return the page."""
    seconds = sum(made["seconds"] for made in found.values())
    lines = [
        "# Evidence",
        "",
        f"Written by `{command}`: seeds {', '.join(map(str, seeds))}, {count} images each (half of them to score on), "
        f"{seconds / 60:.0f} minutes on two cores.",
        "",
        "A difference is the mean over seeds, with the smallest and the largest; \"ahead\" counts the seeds whose own "
        "95 % interval (bootstrap over channels) lies above 0, \"behind\" those below.",
    ]  # fmt: skip
    for score in (*SCORES, *(f"{score}, distinct" for score in SCORES)):
        lines += [
            "",
            f"## {score.replace('_', ' ')}{' units' if 'distinct' in score else ''}",
            "",
            "| network | pictures | judge | sub-units | channels | random routes | over channels | over routes |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
            *table_of_scores(found, score),
        ]
    for name in NETWORKS:
        lines += [
            "",
            f"## Steering of {name} at an equal drop",
            "",
            f"Classes {', '.join(CLASSES[name])}: each method is tuned, on images that are not measured, until the "
            f"class meant has lost {100 * EQUAL_DROP:.0f} points; points that it and the others lost on other images "
            "(mean over classes and seeds with 95 % bootstrap interval over these runs), least damage first.",
            "",
            "| method | reached | class meant | others | worst other |",
            "| --- | --- | --- | --- | --- |",
            *table_of_steering(found, name),
        ]
    lines += [
        "",
        "## A shape is exchanged",
        "",
        "Drawn scenes whose shape is exchanged and nothing else. For each shape the unit that tells it best is "
        "matched on other scenes (d'); then: in what share of the pairs it falls where its shape leaves and rises "
        "where it comes (0.5 is chance), by how many standard deviations, and how much more than the units of shapes "
        "in neither scene.",
        "",
        "| network | units | d' | follows | moves | selectivity |",
        "| --- | --- | --- | --- | --- | --- |",
        *table_of_swaps(found),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Compute, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the parts")
    parser.add_argument("--page", type=Path, help="file for the page; by default DIR/evidence.md")
    parser.add_argument("--small", action="store_true", help="one seed, 60 images")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--pictures", nargs="+", default=list(PICTURES), choices=PICTURES)
    asked = parser.parse_args()
    seeds, count = ([0], 60) if asked.small else (asked.seeds, asked.count)
    found = run(asked.out, seeds, count, asked.pictures)
    sets = "" if len(asked.pictures) == len(PICTURES) else f" --pictures {' '.join(map(repr, asked.pictures))}"
    more = " --small" if asked.small else f" --count {count}{sets}"
    text = page(found, f"python benchmarks/evidence.py --out DIR{more}", seeds, count)
    target = asked.page or asked.out / "evidence.md"
    with atomic_write(target) as part:
        part.write_text(text, encoding="utf-8")
    print(f"Written: {target}")


if __name__ == "__main__":
    main()
