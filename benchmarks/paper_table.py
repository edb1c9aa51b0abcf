"""The table of ELUDe's paper (arXiv 2605.31304), by its protocol, on any folder of images.

    python benchmarks/paper_table.py --out DIR [--images FOLDER --held-out FOLDER] [--model NAME] [--site SITE]
                                     [--head probe|own|none] [--chat-judge URL MODEL]

Two random tokens an image for the discovery, three draws (seeds 42, 123, 999), the output of the last block's MLP, 20
active latents, as many latents as ELUDe as published has live sub-units. Dead units are left out; a channel that is
not split counts as one unit. Columns: MS-Score with a 95 % interval over units, top-1 of the head with the layer's
output replaced by the method's reconstruction, R^2 of that, stability over the draws, effective rank and coherence
of the atoms (decoder rows; a sub-unit's weights), and how often judges prefer its units' nine best images.

Each finished row, and each two rows judged, is written to DIR at once; run again, they are not computed again, so an
interrupt loses one at most. The offline judge is the model's own embedding (mean cosine of the nine), a stand-in.

What could not be had where this was written: ImageNet, the weights of ViT-B/16 and DINOv2-B, and vision-language
judges. For the paper's own setting give --images the folder of ImageNet's training set, --held-out that of its
validation set, --count 1281167,
--scored 50000, --batch-size 4096, --steps 31250 (50 epochs), --pairs 50 and --chat-judge.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

import elude_nb as en
from elude_nb._util.files import atomic_write
from elude_nb.baselines import Channels, Matryoshka, Method, Overcomplete, SubUnits, TopK, Transcoder
from elude_nb.baselines.overcomplete import KINDS
from elude_nb.baselines.replace import replaced_features
from elude_nb.core.recording import pool_recorded, sample_positions
from elude_nb.models.forward import outputs_of
from elude_nb.scores import (
    ChatJudge,
    EmbeddingJudge,
    best_images,
    coherence,
    dictionary_stability,
    effective_rank,
    judge_pairs,
    mean_interval,
    ms_score,
    unexplained_variance,
    win_rates,
)  # fmt: skip

SEEDS = (42, 123, 999)
PUBLISHED = "ELUDe as published"
PAPER = {  # MS-Score of ViT-B/16, DINOv2-B/14, DINOv2-S/14 at expansion factor 8; top-1 and R^2 of the last; stability
    PUBLISHED: ("71.1, 64.9, 73.3", "81.2, 100", "93.3"), "channels": ("36.4, 36.2, 48.3", "81.2, 100", ""),
    "random groups": ("-, 34.5 (EF 4), -", "", ""), "TopK SAE": ("54.5, 47.6, -", "", "81.4"),
    "Matryoshka SAE": ("51.2, 52.1, 70.0", "78.9, 87.7", ""), "transcoder": ("46.3, 50.4, -", "", ""),
    "ReLU SAE": ("54.6, 19.3, -", "", ""), "BatchTopK SAE": ("53.6, 50.6, 68.1", "78.7, 87.2", ""),
    "JumpReLU SAE": ("31.8, 22.6, -", "", ""), "matching pursuit SAE": ("56.9, 56.9, 70.6", "79.3, 90.3", "78.1"),
    "archetypal SAE": ("59.2, 51.6, 58.5", "77.4, 81.4", "86.9"),
}  # fmt: skip
COLUMNS = ("top1", "r2", "rank", "coherence", "live")
HEAD = ("", "units", "MS-Score", "top-1", "R^2", "stability", "effective rank", "coherence", "wins", "paper: MS-Score",
        "top-1, R^2", "stability")  # fmt: skip


@dataclass(frozen=True, eq=False)
class Live:
    """A fitted method's live units: atoms (u, e); of a split their channels; some at all scored tokens, (t, u)."""

    atoms: Tensor
    channels: Tensor | None
    read: Tensor

    @classmethod
    def of(cls, method: Method, draw: en.Recording, bench: Bench, seed: int) -> Live:
        """Return the live units, and the values of ``--units`` of them, drawn at random."""
        generator, most, seen = torch.Generator().manual_seed(seed), bench.asked.units, bench.seen
        if isinstance(method, Channels):  # one unit each, as in the paper: with the sign that they have
            atoms = bench.place.weight(bench.model.network).detach().float().flatten(1)
            return cls(atoms, None, seen.channels[:, torch.randperm(len(atoms), generator=generator)[:most]])
        if not isinstance(method, SubUnits):
            alive = (method.encode(draw).amax(0) > 0).nonzero().flatten()
            few = alive[torch.randperm(len(alive), generator=generator)[:most]]
            values = [method.encode(part)[:, few] for part in seen.parts(2048)]
            return cls(method.learned("decoder_")[alive], None, torch.cat(values))
        routing = method.split_.routing
        of, units = routing.live_rows()
        whole = (~routing.is_split()).nonzero().flatten()  # channels that are not split: unit 0 is all of them
        of, units = torch.cat([of, whole]), torch.cat([units, torch.zeros_like(whole)])
        order = of.argsort(stable=True)
        of, units = of[order], units[order]
        read = method.split_.unit_readout(list(zip(of.tolist(), units.tolist(), strict=True)))
        few = torch.randperm(len(of), generator=generator)[:most]
        return cls(read.matrix.T.contiguous(), of, seen.sources @ read.matrix[:, few] + read.offset[few])


class Bench:
    """The model, the images, and what is common to all rows."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked, self.model = asked, en.load_model(asked.model).using(progress=False)
        self.place = en.find_site(self.model, asked.site)
        total = asked.count + asked.scored
        images = en.load_images(asked.images, count=total if asked.images in {"photographs", "shapes"} else None)
        if asked.held_out:
            self.scored, self.discovery = en.load_images(asked.held_out).sample(asked.scored), images
        else:
            self.scored, self.discovery = images.split(min(0.5, asked.scored / len(images)), seed=0)
        self.discovery = self.discovery.sample(min(asked.count, len(self.discovery)))
        self.few = self.scored.sample(min(asked.head_images, len(self.scored)))

    @cached_property
    def draws(self) -> list[en.Recording]:
        """Return for each seed two tokens of each image, of one pass."""
        candidates = self.place.layout.positions("all")
        found: dict[int, list[en.Recording]] = {seed: [] for seed in SEEDS}
        for part in en.record(self.model, self.discovery, self.place, tokens="all"):
            numbers, local = part.images.unique(return_inverse=True)
            for seed in SEEDS:
                chosen = sample_positions(candidates, 2, numbers.tolist(), seed)  # (n, 2)
                found[seed].append(part.rows((part.positions[:, None] == chosen[local]).any(1)))
        return [en.Recording.join(found[seed]) for seed in SEEDS]

    @cached_property
    def seen(self) -> en.Recording:
        """Return all tokens of the scored images."""
        return en.Recording.join(list(en.record(self.model, self.scored, self.place, tokens="all")))

    @cached_property
    def top1(self) -> Callable[[Tensor], float]:
        """Return what gives top-1 in percent, of the features (n, e) of the images for it."""
        if self.asked.head == "probe" and self.few.labels is not None:
            probe = en.fit_head(self.model, self.discovery)
            right = torch.tensor([probe.classes.index(label) for label in self.few.labels])
            return lambda features: 100 * float((probe.probabilities(features).argmax(1) == right).double().mean())
        outputs = outputs_of(self.model, self.few)
        right, width = outputs.argmax(1), outputs.shape[1]
        if self.asked.head == "own":  # classes in the order of their folders' names, as torchvision numbers them
            names = sorted(set(self.discovery.labels or ()))
            if len(names) != width:
                sys.exit(f"--head own: the images have {len(names)} labels and the model {width} outputs.")
            right = torch.tensor([names.index(label) for label in self.few.labels or ()])
        return lambda features: 100 * float((features[:, :width].argmax(1) == right).double().mean())

    def methods(self, latents: int) -> dict[str, Callable[[int], Method]]:
        """Return what makes the method of each row from a seed."""
        how = {name: getattr(self.asked, name) for name in ("steps", "batch_size", "learning_rate")}
        rules = {PUBLISHED: {}, "signed rule": {"rule": "signed"}, "random groups": {"groups": "random"}}

        def split(routing: dict[str, Any], seed: int) -> Method:
            return SubUnits(self.model, self.place, routing=en.EludeRouting(seed=seed, **routing), tokens="all")

        ours = {"TopK SAE": TopK, "Matryoshka SAE": Matryoshka, "transcoder": Transcoder}
        return {
            **{name: partial(split, routing) for name, routing in rules.items()},
            "channels": lambda _: Channels(),
            **{name: (lambda seed, kind=kind: kind(latents, 20, seed=seed, **how)) for name, kind in ours.items()},
            **{
                f"{kind} SAE": (lambda seed, kind=kind: Overcomplete(kind, latents, 20, seed=seed, **how))
                for kind in KINDS if kind != "TopK"
            },
        }  # fmt: skip

    def row(self, name: str, make: Callable[[int], Method]) -> dict[str, Any]:
        """Compute a row: means over the draws, and the nine best images of some units."""
        start, shape, count = time.perf_counter(), (len(self.scored), -1), min(100, max(2, len(self.scored) // 10))
        runs, scores, best, each = list[Live](), list[float](), list[Tensor](), list[tuple[float, ...]]()
        for seed, draw in zip(SEEDS, self.draws, strict=True):
            method = make(seed).fit(draw)
            live = Live.of(method, draw, self, seed)
            ms = ms_score(live.read.unflatten(0, shape), self.seen.channels.unflatten(0, shape), count=count).dropna()
            nine = best_images(pool_recorded(live.read, self.seen.images), 9)
            best.append(nine[:, ms.index[: self.asked.pairs].tolist()])
            some = self.seen.rows(torch.arange(0, len(self.seen), 5))  # a fifth: sub-units are many
            made = torch.cat([method.reconstruct(part) for part in some.parts(2048)])
            sources = method.needs_sources
            features = replaced_features(
                self.model, self.few, self.place, method.reconstruct, tokens="all", sources=sources
            )
            r2 = 100 * (1 - unexplained_variance(some.channels, made))
            rank, cosine = effective_rank(live.atoms, standardise=False), coherence(live.atoms)
            each.append((self.top1(features), r2, rank, cosine, len(live.atoms)))
            runs, scores = [*runs, live], [*scores, *ms]
            if name == "channels":  # nothing is drawn
                break
        pairs = itertools.combinations(runs, 2)
        stable = [100 * dictionary_stability(a.atoms, b.atoms, channels=_channels(a, b)) for a, b in pairs] or [100.0]
        found = mean_interval(scores)
        return {
            "row": name, "ms": 100 * found.mean, "low": 100 * found.low, "high": 100 * found.high,
            **{key: sum(column) / len(column) for key, column in zip(COLUMNS, zip(*each, strict=True), strict=True)},
            "stability": sum(stable) / len(stable), "seconds": time.perf_counter() - start,
            "best": torch.cat(best, 1).tolist(),
        }  # fmt: skip

    def judge(self) -> Any:
        """Return a chat model if one is named, else the model's own embedding, as a stand-in."""
        if self.asked.chat_judge:
            return ChatJudge(*self.asked.chat_judge)
        outputs = outputs_of(self.model, self.scored)
        known = {image.tobytes(): row for image, row in zip(self.scored, outputs - outputs.mean(0), strict=True)}
        return EmbeddingJudge(lambda images: torch.stack([known[image.tobytes()] for image in images]))


def _channels(a: Live, b: Live) -> tuple[Tensor, Tensor] | None:
    return None if a.channels is None or b.channels is None else (a.channels, b.channels)


class Lines:
    """A file of JSON lines that is replaced at once as it grows; the first line holds the settings."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self.lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else [settings]
        if self.lines[0] != settings:
            sys.exit(f"{path} was made with other settings, {self.lines[0]}; choose another --out.")

    def add(self, line: dict[str, Any]) -> None:
        """Write the file with one more line."""
        self.lines.append(line)
        with atomic_write(self.path) as part:
            part.write_text("".join(f"{json.dumps(each)}\n" for each in self.lines))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.lines[1:])


def judged(bench: Bench, rows: dict[str, dict[str, Any]], lines: Lines) -> pd.DataFrame:
    """Return the win rates of all rows; what was judged before is not asked again."""
    done, judge, shown = {(line["first"][0], line["second"][0]) for line in lines}, None, list(bench.scored)
    for pair in itertools.combinations(rows, 2):
        if pair not in done:
            judge = judge or bench.judge()
            best = {name: torch.tensor(rows[name]["best"]) for name in pair}
            found = judge_pairs(best, shown, judge, pairs=bench.asked.pairs)
            lines.add(found.astype(object).where(found.notna(), None).to_dict("list"))
    return win_rates(pd.concat([pd.DataFrame(line) for line in lines]))


def show(rows: dict[str, dict[str, Any]], wins: pd.DataFrame | None = None) -> str:
    """Return the rows as a table in Markdown, the paper's figures in the last three columns."""
    lines = [HEAD, ("---",) * len(HEAD)]
    for name, row in rows.items():
        won = "" if wins is None else "{win_rate:.0%} [{low:.0%}, {high:.0%}]".format(**wins.loc[name])
        lines.append((
            name, f"{row['live']:,.0f}", "{ms:.1f} [{low:.1f}, {high:.1f}]".format(**row), f"{row['top1']:.1f}",
            f"{row['r2']:.1f}", f"{row['stability']:.1f}", f"{row['rank']:.0f}", f"{row['coherence']:.2f}", won,
            *PAPER.get(name, ("", "", "")),
        ))  # fmt: skip
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def read_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Return what the command line, or these words, ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, required=True)
    add("--images", default="photographs", help="a folder with a folder for each label, or a set's name")
    add("--held-out", help="images to score on; by default some of --images")
    add("--count", type=int, default=400, help="images for the discovery")
    add("--scored", type=int, default=120, help="images to score on")
    add("--model", default="dinov2-small")
    add("--site", default="blocks.11.mlp.fc2")
    add("--head", choices=("probe", "own", "none"), default="probe", help="none: top-1 agreement of the outputs")
    add("--head-images", type=int, default=40)
    add("--units", type=int, default=100, help="live units to score of each draw")
    add("--latents", type=int, help="in place of the number of live sub-units of ELUDe as published")
    add("--steps", type=int, default=150, help="of training: 50 epochs of 800 tokens")
    add("--batch-size", type=int, default=256)
    add("--learning-rate", type=float, default=4e-3)
    add("--pairs", type=int, default=20, help="of units, for the judge, of each two rows and draw")
    add("--chat-judge", nargs=2, metavar=("URL", "MODEL"), help="an OpenAI-compatible server")
    add("--only", nargs="+", metavar="ROW")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> None:
    """Compute the rows that are missing, let them be judged, and print the table."""
    asked = read_arguments(words)
    asked.out.mkdir(parents=True, exist_ok=True)
    settings = {name: value for name, value in vars(asked).items() if name not in {"out", "only", "chat_judge"}}
    bench, lines = Bench(asked), Lines(asked.out / "rows.jsonl", settings)
    rows = {line["row"]: line for line in lines}
    needed = [] if asked.latents else [PUBLISHED]  # it says how many latents the others get
    for name in dict.fromkeys([*needed, *(asked.only or bench.methods(20))]):
        if name not in rows:
            latents = asked.latents or (round(rows[PUBLISHED]["live"]) if rows else 20)
            try:
                make = bench.methods(min(latents, 2 * len(bench.discovery)))[name]
                rows[name] = bench.row(name, make)
            except ImportError as error:
                print(f"{name} left out: {error}", flush=True)
                continue
            lines.add(rows[name])
            print(show({name: rows[name]}).splitlines()[-1], f"{rows[name]['seconds']:.0f} s", flush=True)
    who = {"judge": asked.chat_judge or "offline", **settings}
    stamp = hashlib.sha256(json.dumps(who).encode()).hexdigest()[:8]
    print(show(rows, judged(bench, rows, Lines(asked.out / f"judged-{stamp}.jsonl", who)) if len(rows) > 1 else None))


if __name__ == "__main__":
    main()
