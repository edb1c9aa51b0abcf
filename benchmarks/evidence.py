"""The claims under other judges, networks and pictures, and against harder steering baselines.

    python benchmarks/evidence.py --out DIR [--small] [--page docs/evidence.md]

Each part is written to DIR as one JSON file when it is done; run again, it is not computed again, so an interrupt loses
one at most. From all of them the page is written. ``--small`` tries it: one seed, 60 images.

Scores: a network is split on one half of the pictures and scored on the other. The halves share no picture; for the
ten photographs they are crops of the same ones ("crops"), or of other ones ("left-out photographs": two are held out).
Either network is the judge once. Transfer: do sub-units that were found on photographs mean the same on drawings?
Steering: concepts named after a class are edited on images that discovery did not see until the class has lost half of
its probability, and so does each baseline: what do the other classes lose?
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import ImageOps

import elude_nb as en
from elude_nb._util.files import atomic_write
from elude_nb.core.recording import pool_recorded
from elude_nb.core.routing import shuffled
from elude_nb.data.cues import side_by_side
from elude_nb.data.photographs import PHOTOGRAPHS
from elude_nb.data.synthetic import draw_scene, sample_scenes, swap_factor
from elude_nb.models.forward import reference
from elude_nb.scores import (
    difference_interval,
    match_units,
    mean_interval,
    swap_response,
    top_centres,
    transfer_similarity,
)

NETWORKS = {"dinov2-small": None, "efficientnet-lite0": "blocks.6.0.conv_pwl"}
PICTURES = ("crops", "left-out photographs", "stamps", "clipart")
CUT_OUTS = ["building", "bird", "flower", "fruit"]
SWAPS = ("drawn", "cut-outs")
DRAWINGS = ("stamps", "clipart")
SCORES = ("top_similarity", "monosemanticity", "ms_score")
EQUAL_DROP = 0.5
BASELINES = ("linear SVM", "LEACE", "difference of means", "mean direction", "best channel", "same channels")
STEERED = (
    ("dinov2-small", "crops", "cat"),
    ("dinov2-small", "crops", "rocket"),
    ("dinov2-small", "crops", "astronaut"),
    ("dinov2-small", "fashion", "Bag"),
    ("dinov2-small", "fashion", "Trouser"),
    ("efficientnet-lite0", "crops", "cat"),
    ("efficientnet-lite0", "crops", "rocket"),
    ("efficientnet-lite0", "crops", "coffee"),
)
STEERING_IMAGES = 240  # a quarter of them is measured
BEST = 6
PARTS = ("score", "transfer", "swap", "steer")
KINDS = ("sub-unit", "random route", "channel")


@lru_cache
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


@lru_cache(maxsize=1)
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


def steered(name: str, pictures: str, label: str, seed: int, count: int) -> dict[str, Any]:
    """Return what the other classes lose at an equal drop of the class meant, for two edits and each baseline."""
    split = split_of(name, pictures, seed, count)
    train, images = halves(pictures, seed, count)
    split = split.with_names(en.name_concepts(split, train).names)
    try:
        concepts = split.concepts_named(label)
    except ValueError as error:  # no concept is
        return {"rows": [], "why": str(error)}
    # The probe is fitted, and strengths are tuned, on half of the images that discovery did not see.
    fit, measured = images.split(0.5, seed=seed)
    found = en.effect(
        split, en.Edit.ablate(concept=concepts), measured, fit=fit, target=label, controls=BASELINES,
        beside={"ablated to others": en.Edit.ablate(concept=concepts, to="others")},
        equal_drop=EQUAL_DROP, strengths=(), seed=seed,
    )  # fmt: skip
    columns = ["method", "strength", "reached", "drop", "others", "worst", "accuracy_others", "others_cosine"]
    return {"rows": found.at_equal_drop[columns].to_dict("records"), "left out": found.left_out,
            "concepts": len(concepts), "measured": len(measured)}  # fmt: skip


def kinds_of(split: Any, seed: int) -> Iterator[tuple[str, Any]]:
    """Yield the sub-units, random routes and channels of a split, each with what reads an image set's activations."""
    routes = dataclasses.replace(split, routing=shuffled(split.routing, seed))
    yield "sub-unit", partial(peaks, split)
    yield "random route", partial(peaks, routes)
    yield "channel", partial(peaks, split, channels=True)


def transferred(name: str, judge: str, drawings: str, seed: int, count: int) -> dict[str, Any]:
    """Return how far units that were found on photographs have like images among photographs and among drawings."""
    split = split_of(name, "crops", seed, count)
    sets = [halves(pictures, seed, count)[1] for pictures in ("crops", drawings)]
    embeddings = [reference(network(name) if judge == name else judge, images, progress=False) for images in sets]
    found = {}
    for kind, read in kinds_of(split, seed):
        centres = [top_centres(read(images), own, BEST) for images, own in zip(sets, embeddings, strict=True)]
        gain = mean_interval(transfer_similarity(*centres))
        found[kind] = [gain.mean, gain.low, gain.high]
    return found


def drawn_pairs(seed: int, count: int) -> tuple[Any, list[tuple[Any, list[Any]]]]:
    """Return scenes to discover on; scenes to match units on; and the others before and after their shape is exchanged.

    Scenes come with what is exchanged in them, one a scene.
    """
    scenes, half = sample_scenes(count, seed=1000 + seed), count // 2
    tables = [scenes[:half], scenes[half:], swap_factor(scenes, "shape", seed=seed)[half:]]
    found = [(en.load_images([draw_scene(row) for row in table.to_dict("records")]), table["shape"].tolist())
             for table in tables]  # fmt: skip
    return en.load_images("shapes", count=count, seed=seed), found


def cut_out_pairs(seed: int, count: int) -> tuple[Any, list[tuple[Any, list[Any]]]]:
    """Return the same of cut-outs: stamps, two beside each other, of which the left one is exchanged.

    The second one is of none of the kinds that are exchanged. Scenes to match on and scenes to exchange in share no
    stamp.
    """
    halves = en.load_images("stamps").split(0.5, seed=seed)
    found, rng = [], np.random.default_rng(seed)
    for half, more in zip(halves, (1, 2), strict=True):
        of = {kind: half.only([kind]) for kind in CUT_OUTS}
        others, n = half.without(CUT_OUTS), count // 2
        kinds = [rng.permutation(CUT_OUTS)[:2] for _ in range(n)]
        right = [others[int(rng.integers(len(others)))] for _ in range(n)]
        for when in range(more):
            left = [of[kind[when]][int(rng.integers(len(of[kind[when]])))] for kind in kinds]
            pictures = [side_by_side(_upright(one), _upright(two)) for one, two in zip(left, right, strict=True)]
            found.append((en.load_images(pictures), [str(kind[when]) for kind in kinds]))
    return halves[0], found


def _upright(image: Any) -> Any:
    return ImageOps.pad(image, (224, 448), color="white")


def swapped(name: str, pictures: str, seed: int, count: int) -> dict[str, Any]:
    """Return how units follow when one thing in a scene is exchanged, sub-units beside channels and routes."""
    discover, found = (drawn_pairs if pictures == "drawn" else cut_out_pairs)(seed, count)
    split, made = en.disentangle(network(name), discover, NETWORKS[name], seed=seed), {}
    labels = [each[1] for each in found]
    for kind, read in kinds_of(split, seed):
        values = [read(images) for images, _ in found]
        matched = match_units(values[0], labels[0])
        table = swap_response(values[1], values[2], labels[1], labels[2], matched)
        made[kind] = {column: float(table[column].mean()) for column in ("follows", "moves", "selectivity")}
        made[kind]["d_prime"] = float(matched["d_prime"].mean())
    return made


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
    """Yield the name of each part and what computes it; parts of one split come one after the other."""
    for seed in seeds:
        for name in NETWORKS:
            for pictures in sets:
                for judge in NETWORKS:
                    yield (
                        f"score {name}, {pictures}, {judge}, {seed}",
                        partial(scored, name, pictures, judge, seed, count),
                    )
                    if pictures == "crops":
                        for drawings in filter(sets.__contains__, DRAWINGS):
                            yield (
                                f"transfer {name}, {drawings}, {judge}, {seed}",
                                partial(transferred, name, judge, drawings, seed, count),
                            )
            for pictures in SWAPS:
                yield f"swap {name}, {pictures}, {seed}", partial(swapped, name, pictures, seed, count)
        many = max(count, STEERING_IMAGES)
        for name, pictures, label in STEERED:
            if pictures in sets or pictures == "fashion":
                yield f"steer {name}, {pictures}, {label}, {seed}", partial(steered, name, pictures, label, seed, many)


def run(out: Path, seeds: list[int], count: int, sets: list[str], kinds: list[str]) -> dict[str, dict[str, Any]]:
    """Compute what is not there yet; return all parts by name."""
    out.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, compute in parts(seeds, count, sets):
        if name.partition(" ")[0] not in kinds:
            continue
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
        if score.startswith("ms_score") and judge != split:
            continue  # it looks at the model's own tokens, whoever judges
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


def table_of_steering(found: dict[str, dict[str, Any]], name: str, pictures: str) -> list[str]:
    """Return one row a method: what the others lost at an equal drop, over classes and seeds."""
    rows = [
        {"run": part, **row}
        for part, made in found.items()
        if part.startswith(f"steer {name}, {pictures}, ")
        for row in made["rows"]
    ]
    if not rows:
        return []
    table = pd.DataFrame(rows)
    lines = []
    for method, every in table.groupby("method", sort=False):
        reached = every[every["reached"]]
        cells = [f"{len(reached)} of {len(every)}"]
        for column, unit in (("drop", 100), ("others", 100), ("worst", 100), ("others_cosine", 1)):
            each = mean_interval(unit * reached[column]) if len(reached) else None
            digits = 1 if unit == 100 else 3
            cells.append(
                "" if each is None else f"{each.mean:.{digits}f} [{each.low:.{digits}f}, {each.high:.{digits}f}]"
            )
        lines.append(
            (-float(reached["others_cosine"].mean()) if len(reached) else 9.0, f"| {method} | {' | '.join(cells)} |")
        )
    return [line for _, line in sorted(lines)]


def table_of_swaps(found: dict[str, dict[str, Any]], pictures: str) -> list[str]:
    """Return one row a network and kind of unit: means over seeds, with the smallest and the largest."""
    rows = []
    for name in NETWORKS:
        each = [made for part, made in found.items() if part.startswith(f"swap {name}, {pictures}, ")]
        for kind in KINDS if each else ():
            cells = []
            for column in ("d_prime", "follows", "moves", "selectivity"):
                values = np.array([made[kind][column] for made in each])
                cells.append(f"{values.mean():.2f} [{values.min():.2f}, {values.max():.2f}]")
            rows.append(f"| {name} | {kind} | {' | '.join(cells)} |")
    return rows


def table_of_transfer(found: dict[str, dict[str, Any]]) -> list[str]:
    """Return one row a network, drawings and judge: means over seeds, with the smallest and the largest."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for part, made in found.items():
        if part.startswith("transfer "):
            groups.setdefault(tuple(part.removeprefix("transfer ").split(", ")[:3]), []).append(made)
    rows = []
    for (name, drawings, judge), each in groups.items():
        cells = []
        for kind in KINDS:
            values = np.array([made[kind] for made in each])
            above = int((values[:, 1] > 0).sum())
            cells.append(f"{values[:, 0].mean():+.3f}; above 0 in {above} of {len(each)}")
        rows.append(f"| {name} | {drawings} | {'itself' if judge == name else judge} | {' | '.join(cells)} |")
    return rows


def table(title: str, about: str, head: str, rows: list[str]) -> list[str]:
    """Return a section with a table; nothing where there are no rows."""
    columns = head.count("|") - 1
    return (
        ["", f"## {title}", "", *([about, ""] if about else []), head, "| --- " * columns + "|", *rows] if rows else []
    )


def in_short(found: dict[str, dict[str, Any]]) -> list[str]:
    """Return for each score where sub-units are ahead in every seed, and where they are not, as a list."""
    lines = []
    for score in (*SCORES, *(f"{score}, distinct" for score in SCORES)):
        rows = [row.strip("| ").split(" | ") for row in table_of_scores(found, score)]
        for rival, cell in (("channels", 6), ("random routes", 7)):
            kept = [row for row in rows if all_ahead(row[cell])]
            rest = [f"{row[0]}, {row[1]}, judged by {row[2]} ({row[cell].partition(' ')[0]})" for row in rows
                    if not all_ahead(row[cell])]  # fmt: skip
            lines.append(
                f"- {score.replace('_', ' ')}, over {rival}: ahead in every seed in {len(kept)} of {len(rows)} rows"
                + (f"; not in: {'; '.join(rest)}." if rest else ".")
            )
    return lines


def all_ahead(cell: str) -> bool:
    """Say whether a cell of the table of scores has sub-units ahead in every seed."""
    ahead, total = cell.partition("ahead in ")[2].partition(",")[0], cell.rpartition(" of ")[2]
    return ahead == total


def page(found: dict[str, dict[str, Any]], command: str, seeds: list[int], count: int) -> str:
    """Return the page."""
    seconds = sum(made["seconds"] for made in found.values())
    lines = [
        "# Evidence",
        "",
        f"Written by `{command}`: seeds {', '.join(map(str, seeds))}, {count} images each (half of them to score on), "
        f"{seconds / 60:.0f} minutes in all.",
        "",
        "Sub-units against what they could be mistaken for: the channels as they are, and *random routes*, which give "
        "as many sources to as many sub-units by chance. Two networks; each is judged by itself and by the other. "
        '"Crops" are of the ten offline photographs, in both halves; "left-out photographs" are scored on the '
        "crops of two that the discovery has not seen; stamps and clip art are drawings and cut-outs.",
    ]
    for name, pictures in dict.fromkeys(each[:2] for each in STEERED):
        labels = ", ".join(each[2] for each in STEERED if each[:2] == (name, pictures))
        about = (
            f"Classes {labels}; {max(count, STEERING_IMAGES)} images, a quarter of them measured. Each method is "
            f"tuned, on images that are not measured, until the class meant has lost {100 * EQUAL_DROP:.0f} points; "
            "points that it and the others lost on other images, and the cosine of the others' outputs before and "
            "after (mean over classes and seeds with 95 % bootstrap interval over these runs), the best cosine first. "
            "*Edit* ablates the concepts named after the class to their mean; *ablated to others* only cuts what "
            'exceeds the highest mean that any other concept brings (`to="others"`). Both found their concepts without '
            "labels, and use the labels of the discovery's images to name them; the linear SVM, LEACE, the difference "
            "of means and the best channel learn from the labels of the images to tune on."
        )
        head = "| method | reached | class meant | others | worst other | cosine of others |"
        rows = table_of_steering(found, name, pictures)
        lines += table(f"Steering of {name} at an equal drop, {pictures}", about, head, rows)
    about = (
        f"Split on photographs; then a unit's {BEST} best images among held-out crops of the photographs, and among "
        "drawings that have nothing to do with them. How much more alike are they than those of two different units? "
        "0 is chance (difference of cosines between centres, mean over units and seeds; in how many seeds the 95 % "
        "interval over units is above 0)."
    )
    head = "| network | drawings | judge | sub-units | random routes | channels |"
    lines += table("The same on drawings?", about, head, table_of_transfer(found))
    about = (
        "Drawn scenes whose shape is exchanged and nothing else. For each shape the unit that tells it best is "
        "matched on other scenes (d'); then: in what share of the pairs it falls where its shape leaves and rises "
        "where it comes (0.5 is chance), by how many standard deviations, and how much more than the units of shapes "
        "in neither scene. Means over seeds with the smallest and the largest."
    )
    head = "| network | units | d' | follows | moves | selectivity |"
    lines += table("A shape is exchanged", about, head, table_of_swaps(found, "drawn"))
    about = (
        f"The same of cut-outs: two stamps beside each other, of which the left one, a {', '.join(CUT_OUTS[:-1])} or "
        f"{CUT_OUTS[-1]}, is exchanged for one of another kind. Units are matched on other stamps."
    )
    lines += table("One of two cut-outs is exchanged", about, head, table_of_swaps(found, "cut-outs"))
    if short := in_short(found):
        about = "Where sub-units score higher than what they are compared with, 95 % interval above 0 in every seed:"
        lines += ["", "## Scores, in short", "", about, "", *short]
    for score in (*SCORES, *(f"{score}, distinct" for score in SCORES)):
        title = f"{score.replace('_', ' ')}{' units' if 'distinct' in score else ''}"
        head = "| network | pictures | judge | sub-units | channels | random routes | over channels | over routes |"
        about = (
            'A difference is the mean over seeds, with the smallest and the largest; "ahead" counts the seeds whose '
            'own 95 % interval (bootstrap over channels) lies above 0, "behind" those below.'
        )
        lines += table(title, about if score == SCORES[0] else "", head, table_of_scores(found, score))
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    """Compute, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the parts")
    parser.add_argument("--page", type=Path, help="file for the page; by default DIR/evidence.md")
    parser.add_argument("--small", action="store_true", help="one seed, 60 images")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="what to compute and to print")
    parser.add_argument("--pictures", nargs="+", default=list(PICTURES), choices=PICTURES)
    asked = parser.parse_args(argv)
    seeds, count = ([0], 60) if asked.small else (asked.seeds, asked.count)
    found = run(asked.out, seeds, count, asked.pictures, asked.parts)
    sets = "" if len(asked.pictures) == len(PICTURES) else f" --pictures {' '.join(map(repr, asked.pictures))}"
    more = " --small" if asked.small else f" --count {count}{sets}"
    text = page(found, f"python benchmarks/evidence.py --out DIR{more}", seeds, count)
    target = asked.page or asked.out / "evidence.md"
    with atomic_write(target) as part:
        part.write_text(text, encoding="utf-8")
    print(f"Written: {target}")


if __name__ == "__main__":
    main()
