"""Score our units and baselines with visaebench's metrics, beside our own scores of the same quantity.

    pip install visaebench
    python benchmarks/visaebench_yardstick.py [--images 80] [--units 128] [--sparsity 8] [--seed 0]

Half of the crops are to fit on, half to score on. Nothing is downloaded: the metrics get recorded channels, the labels
of the photographs and our embeddings. ``by hand`` is visaebench's formula implemented again here, which explains the
differences.
"""

from __future__ import annotations

import argparse
import warnings
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.feature_selection import f_classif
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from torch import Tensor
from visaebench.metrics import FVU, DownstreamPreservation, FeatureLocalization, MonosemanticityScore, SparseProbing

import elude_nb as en
from elude_nb.baselines import PCA, Channels, Concepts, Method, SubUnits, TopK
from elude_nb.scores import best_unit_precision, is_dead, l0, monosemanticity, probe_accuracy, unexplained_variance

TOKENS, SPLIT_SEED, FEW = 24, 42, 16  # tokens an image; visaebench's own seed, and its number of best images
KS = (1, 5, 10, 20, 50, 100)
NOTES = """
FVU, as recorded: theirs sums over channels before it squares the mean, E|x|^2 - (sum_d mean_d)^2, in the residual too,
  so it is a variance only where channels have mean 0 (and can fall below 0); ours is sum_d (E x_d^2 - mean_d^2), and a
  constant error counts in full.
FVU, centred: with the scored tokens' mean taken off first (their `mean=`, as their `evaluate` does) the variance is
  ours; the residual still loses (sum_d mean_d)^2.
L0: theirs counts what is not 0, ours what is above 0: about half of that for units of both signs.
dead units: theirs are 0 at every token, ours never change.
monosemanticity: one formula (arXiv 2504.02821); theirs keeps the 16 best images by default, ours all, and theirs leaves
  out units that are nowhere above 0.
probe accuracy: theirs is logistic regression on channels as they are with C=1, ours on standardised ones with C=0.1.
sparse probing: theirs is the area under accuracy over k, of the k units with the largest F (large k weigh most); ours
  the average precision of one unit a label: different measures, so no difference is given. Theirs picks the units on
  all images, the tested ones too; the row below it picks them on the training half alone.
Moran's I: no counterpart of ours. Theirs leaves out (unit, image) where more than 90 % of the patches are not 0, so
  dense units have no score (- here; theirs says 0) unless they are cut off at 0.
Left out: cross_domain (M6: a mixture of FVU, dead units, overlap and probing, on data sets from the hub) and absorption
  (M7: needs ImageNet's labels in WordNet's hierarchy)."""


class FromChannels:
    """A method that needs channels only, as visaebench wants it; ``shift`` (d,) was taken off the channels."""

    def __init__(self, method: Method, shift: Tensor) -> None:
        self.method, self.shift = method, shift

    def encode(self, x: Tensor) -> Tensor:
        """Return the units (t, u) of channels (t, d)."""
        channels, number = x + self.shift, torch.arange(len(x))
        return self.method.encode(en.Recording(channels, x[:, :0], 0 * x, number, 0 * number))

    def decode(self, z: Tensor) -> Tensor:
        """Return the channels (t, d) of units (t, u)."""
        return self.method.decode(z) - self.shift


class LookedUp:
    """Units that need the sources: computed before, and looked up by the exact channels of their token."""

    def __init__(self, channels: Tensor, units: Tensor, restored: Tensor, shift: Tensor) -> None:
        self.units, self.restored = units, restored - shift
        self.where = {row.tobytes(): i for i, row in enumerate((channels - shift).numpy())}

    def encode(self, x: Tensor) -> Tensor:
        """Return the units of recorded channels (t, d), and remember which tokens they were."""
        self.rows = [self.where[row.tobytes()] for row in x.numpy()]
        return self.units[self.rows]

    def decode(self, z: Tensor) -> Tensor:  # noqa: ARG002 - the shared units are not in z
        """Return the channels of what was encoded last."""
        return self.restored[self.rows]


class Embedded:
    """An evaluator whose images are the numbers of given embeddings (n, e)."""

    def __init__(self, embeddings: Tensor) -> None:
        self.embeddings = embeddings

    def extract_activations(self, images: list[int], *, layer: int = -1) -> Tensor:  # noqa: ARG002 - there is one
        """Return embeddings as the one patch of each image, (n, 1, e)."""
        return self.embeddings[images][:, None]


def variance_of_theirs(x: Tensor) -> Tensor:
    """Return E|x|^2 - (sum of all channels' means)^2 of (t, d)."""
    return x.double().square().sum(1).mean() - x.double().mean(0).sum().square()


def sparse_probe(values: Any, codes: Any, train: Any, test: Any, choose: Any) -> float:
    """Return the normalised area under accuracy over k, the units chosen on the images ``choose``."""
    order = np.argsort(np.nan_to_num(f_classif(values[choose], codes[choose])[0], nan=-np.inf))[::-1]
    ks = [k for k in KS if k <= values.shape[1]]
    probe, found = LogisticRegression(max_iter=500), []
    for few in (order[:k] for k in ks):
        fitted = probe.fit(values[train][:, few], codes[train])
        found.append(fitted.score(values[test][:, few], codes[test]))
    return float(np.trapezoid(found, ks) / (ks[-1] - ks[0]))


def rows_of(method: Method, seen: en.Recording, labels: list[str], embeddings: Tensor) -> list[dict[str, Any]]:
    """Return one row a metric, of one fitted method on recorded tokens."""
    units, restored, x, n = method.encode(seen), method.reconstruct(seen), seen.channels, len(labels)

    def shown(shift: Tensor) -> Any:
        return LookedUp(x, units, restored, shift) if method.needs_sources else FromChannels(method, shift)

    rows: list[dict[str, Any]] = []

    def row(metric: str, theirs: float, ours: float, by_hand: float, comparable: bool = True) -> None:
        difference = theirs - ours if comparable else np.nan
        rows.append({"metric": metric, "method": method.name, "theirs": theirs, "ours": ours,
                     "difference": difference, "by hand": by_hand})  # fmt: skip

    mean, plain, lost = x.mean(0), shown(torch.zeros(x.shape[1])), x - restored
    fvu = FVU().compute(plain, x, device="cpu", dict_size=units.shape[1])
    ours = unexplained_variance(x, restored)
    row("FVU, as recorded", fvu.value, ours, float(variance_of_theirs(lost) / variance_of_theirs(x)))
    centred = FVU().compute(shown(mean), x, device="cpu", mean=mean, std=1.0)
    row("FVU, centred", centred.value, ours, float(variance_of_theirs(lost) / variance_of_theirs(x - mean)))
    row("L0", fvu.metadata["l0"], l0(units), float((units != 0).sum(1).double().mean()))
    dead = (units == 0).all(0)
    row("dead_units", fvu.metadata["dead_features"], int(is_dead(units).sum()), int(dead.sum()))

    grid, pooled = x.unflatten(0, (n, -1)), units.unflatten(0, (n, -1)).amax(1)
    ours_ms, alive = monosemanticity(pooled, embeddings), (pooled.amax(0) > 0).numpy()
    scaled = pooled - pooled.amin(0)
    best = scaled * (scaled >= scaled.topk(FEW, dim=0)[0][-1])
    for k, weights in ((n, scaled), (FEW, best)):
        metric = MonosemanticityScore(top_k_images=k, max_features=units.shape[1])
        found = metric.compute(plain, grid, device="cpu", images=range(n), evaluator_backbone=Embedded(embeddings))
        by_hand = monosemanticity(weights, embeddings)[alive].mean()
        row(f"monosemanticity, {k} best images", found.value, ours_ms.mean(), by_hand)

    codes = np.unique(labels, return_inverse=True)[1]
    split = {"test_size": 0.5, "random_state": SPLIT_SEED}
    train, test = train_test_split(np.arange(n), stratify=codes, **split)
    known = {"device": "cpu", "labels": codes, "seed": SPLIT_SEED}
    kept = DownstreamPreservation(test_size=0.5).compute(plain, grid, **known).metadata
    before, after = grid.mean(1).numpy(), restored.unflatten(0, (n, -1)).mean(1).numpy()
    probe = LogisticRegression(max_iter=1000).fit(before[train], codes[train])
    for name, values in (("original", before), ("reconstructed", after)):
        accuracy = probe_accuracy(before[train], codes[train], values[test], codes[test])
        by_hand = float(probe.score(values[test], codes[test]))
        row(f"probe accuracy, {name}", kept[f"accuracy_{name}"], accuracy, by_hand)
    probed = SparseProbing(list(KS), test_size=0.5).compute(plain, grid, **known).value
    precision = best_unit_precision(pooled, labels, choose=np.isin(np.arange(n), train))["average_precision"].mean()
    for name, theirs, choose in (("", probed, np.arange(n)), (", chosen on training half", np.nan, train)):
        by_hand = sparse_probe(pooled.numpy(), codes, train, test, choose)
        row(f"sparse probing{name}", theirs, precision, by_hand, comparable=False)
    return rows


def places(method: Method, parts: list[tuple[Tensor, Tensor]], layout: tuple[int, int]) -> list[dict[str, Any]]:
    """Return Moran's I from all patches of the scored images, of units as they are and cut off at 0."""
    x, units = torch.cat([channels for channels, _ in parts]), torch.cat([values for _, values in parts])
    rows = []
    for name, values in (("as they are", units), ("cut off at 0", units.clamp(min=0))):
        metric = FeatureLocalization(layout, min_images_per_feature=5, max_features=10**6, image_batch_size=8)
        looked = LookedUp(x, values, x, torch.zeros(x.shape[1]))
        found = metric.compute(looked, x.unflatten(0, (-1, layout[0] * layout[1])), device="cpu")
        scored = found.metadata["num_features_scored"]
        rows.append({"metric": f"Moran's I, {name}", "method": f"{method.name} ({scored}/{units.shape[1]} scored)",
                     "theirs": found.value if scored else np.nan})  # fmt: skip
    return rows


def main() -> None:
    """Fit the methods, and print one table and what explains it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=80, help="at least 80: each of 10 photographs 4 times a half")
    parser.add_argument("--units", type=int, default=128, help="of the baselines and concepts")
    parser.add_argument("--sparsity", type=int, default=8, help="latents active at a token in the autoencoder")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    model = en.load_model("dinov2-small", progress=False)
    halves = en.load_images("photographs", count=given.images).split(0.5, seed=given.seed)
    site = en.find_site(model, "stream")
    fitted_on, seen = (
        en.Recording.join(list(en.record(model, half, site, tokens="patch", tokens_per_image=TOKENS)))
        for half in halves
    )
    seed, labels, embeddings = given.seed, list(halves[1].labels or ()), en.embed(model, halves[1])
    methods: list[Method] = [
        SubUnits(model, site, seed=seed), Concepts(model, site, concepts=given.units, seed=seed), Channels(),
        PCA(given.units, seed=seed), TopK(given.units, given.sparsity, seed=seed),
    ]  # fmt: skip
    rows: list[dict[str, Any]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constant units and few images a label
        for method in methods:
            rows += rows_of(method.fit(fitted_on), seen, labels, embeddings)
        parts: list[list[tuple[Tensor, Tensor]]] = [[] for _ in methods]
        for part in en.record(model, halves[1], site, tokens="patch", batch_size=4):  # all patches: sources by the GB
            for method, kept in zip(methods, parts, strict=True):
                kept.append((part.channels, method.encode(part)))
        for method, kept in zip(methods, parts, strict=True):
            rows += places(method, kept, site.layout.grid or (1, 1))
    table = pd.DataFrame(rows).sort_values("metric", kind="stable")
    print(table.to_string(index=False, float_format=lambda value: f"{value:.5f}", na_rep="-"))
    print(NOTES)


if __name__ == "__main__":
    main()
