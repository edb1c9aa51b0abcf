"""Do a few distinct sub-units say what thousands say? All of them, distinct ones, random ones, on held-out images.

    python benchmarks/distinct_units.py [--images photographs] [--count 300] [--n 141] [--splits FOLDER]

One layer of DINOv2 ViT-S/14 is split on half of the images, by the signed and by the published rule, with clusters
that give the paper's expansion factor of about 8. Distinct ones are chosen on the discovery's half; channels, signed
and published sub-units are pruned in the same way, and the concepts of the concept book stand beside them. With
``--splits`` each split is kept in a folder and read from there the next time: HDBSCAN over 384 channels takes minutes.

Rows named "x coherence" multiply a unit's height on an image by its centred MS-Score on the discovery: units are then
chosen that are coherent there and cover many images.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from held_out import Activations, HeldOut
from torch import Tensor

import elude_nb as en
from elude_nb.core.distinct import choose_covering, choose_unlike, standardise
from elude_nb.core.recording import find_largest
from elude_nb.scores.similarity import ms_score_at


class Discovery:
    """Recorded tokens of the discovery, on which distinct units are chosen."""

    def __init__(self, recording: en.Recording) -> None:
        self._recording = recording

    def coherence(self, values: Tensor) -> Tensor:
        """Return the centred MS-Score of units from their tokens (t, u) here, at least 0, (u,)."""
        highest, rows = find_largest(values, self._recording.images)
        count = max(2, len(highest) // 10)
        found = ms_score_at(highest, self._recording.channels, rows, count=count, centred=True)
        return torch.tensor(found.fillna(0).to_numpy()).float().clamp(min=0)

    def choices(self, values: Tensor, separation: Tensor, n: int) -> dict[str, Tensor]:
        """Return which units (of tokens (t, u)) each way of choosing takes."""
        pooled = standardise(find_largest(values, self._recording.images)[0])
        random = torch.randperm(values.shape[1], generator=torch.Generator().manual_seed(0))[:n]
        return {
            "all": torch.arange(values.shape[1]),
            "threshold 0.8": choose_unlike(pooled, separation),
            f"coverage, {n}": choose_covering(pooled, n),
            f"coverage x coherence, {n}": choose_covering(pooled, n, worth=self.coherence(values)),
            f"random, {n}": random,
        }


def read_split(
    args: argparse.Namespace, model: en.Model, discover: en.ImageSet, rule: str, seed: int
) -> en.Disentanglement:
    """Split the layer, or read the split that was made before."""
    kept = args.splits and args.splits / f"{rule}{seed}.safetensors"
    if kept and kept.exists():
        return en.Disentanglement.load(kept, model)
    routing = en.EludeRouting(rule=rule, min_cluster_size=args.min_cluster_size, seed=seed)
    how = {"tokens_per_image": args.tokens_per_image, "concepts": 128, "seed": seed}
    split = en.disentangle(model, discover, args.site, routing=routing, **how)
    if kept:
        split.save(kept)
    return split


def main() -> None:
    """Print a line a set of units and seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", default="photographs")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--site", default="blocks.11.mlp.fc2")
    parser.add_argument("--n", type=int, default=141)
    parser.add_argument("--min-cluster-size", type=int, default=24)
    parser.add_argument("--tokens-per-image", type=int, default=48)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rules", nargs="+", default=["signed", "published"])
    parser.add_argument("--splits", type=Path)
    args = parser.parse_args()
    model = en.load_model("dinov2-small").using(progress=False)
    place = en.find_site(model, args.site)
    for seed in args.seeds:
        discover, held_out = en.load_images(args.images).sample(args.count, seed=seed).split(0.5, seed=seed)
        seen = HeldOut.record(model, held_out, place)
        how = {"tokens": "all", "tokens_per_image": args.tokens_per_image, "seed": seed}
        recording = en.Recording.join(list(en.record(model, discover, place, **how)))
        found = Discovery(recording)

        def show(name: str, values: Activations, seed: int = seed, seen: HeldOut = seen) -> None:
            scores = seen.ms_score(values), seen.precision(values), seen.redundancy(values)
            print(f"seed {seed}, {name} ({values.highest.shape[1]:,}): {', '.join(scores)}", flush=True)

        channels = seen.channels()
        spread = recording.channels.std(0)
        separation = (recording.channels.amax(0) - recording.channels.mean(0)) / spread
        for name, chosen in found.choices(recording.channels, separation, args.n).items():
            show(f"channels, {name}", channels.of(chosen))
        book = en.disentangle(
            model, discover, args.site, tokens="all", tokens_per_image=args.tokens_per_image, concepts=args.n, seed=seed
        )
        show("concept book, concepts", seen.read(book.concept_readout()))
        for rule in args.rules:
            split = read_split(args, model, discover, rule, seed)
            rows = split.routing.live_rows()
            readout = split.live_readout()
            values = recording.sources @ readout.matrix + readout.offset
            units = seen.read(readout)
            separation = split.means_on_concepts[rows].abs() / values.std(0)
            for name, chosen in found.choices(values, separation, args.n).items():
                show(f"{rule}, {name}", units.of(chosen))
            place_of = {pair: i for i, pair in enumerate(zip(*(each.tolist() for each in rows), strict=True))}
            for name, n in (("threshold 0.8", None), (f"coverage, {args.n}", args.n)):
                table = split.distinct_units(n)
                chosen = torch.tensor([place_of[pair] for pair in zip(table["channel"], table["unit"], strict=True)])
                show(f"{rule}, {name}, by the concept book alone", units.of(chosen))


if __name__ == "__main__":
    main()
