"""The table of a comparison as people read it: means with their intervals, and which way is better."""

from __future__ import annotations

import html
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor

from elude_nb._util.checks import check_choice, check_count, check_kind, check_number
from elude_nb._util.progress import progress_bar
from elude_nb.baselines import METHODS, Method, Plan
from elude_nb.baselines.evaluate import Entrant, Fidelity
from elude_nb.core.clustering import cluster_directions
from elude_nb.core.recording import Recording, record
from elude_nb.data.images import Images, ImageSet
from elude_nb.models.find_sites import find_site
from elude_nb.models.forward import overheard
from elude_nb.models.hooks import check_pristine
from elude_nb.models.load import Model, check_model
from elude_nb.models.sites import STREAM, Site
from elude_nb.scores.suggest import suggest_concepts

HIGHER_IS_BETTER: dict[str, bool] = {
    "top_similarity": True,
    "monosemanticity": True,
    "polysemanticity": False,
    "intruder_accuracy": True,
    "best_unit_precision": True,
    "labels_covered": True,
    "top_purity": True,
    "redundancy": False,
    "effective_rank": True,
    "linearly_explained": True,
    "unexplained_variance": False,
    "output_change": False,
    "top1_agreement": True,
    "neighbour_agreement": True,
    "knn_accuracy": True,
    "probe_accuracy": True,
}
"""The columns that are judged, and whether more is better."""


def table_of_methods(table: pd.DataFrame, size: str = "equal") -> str:
    """Return the rows of one size as an HTML table: means with their intervals, the best of each column marked.

    ``table`` is that of `elude_nb.compare`, or several put together.
    """
    table = table[table["size"] == size]
    names = [name for name in map(str, table.columns) if not name.endswith((" low", " high")) and name != "size"]
    head = "".join(f"<th>{html.escape(name)}{_arrow(name)}</th>" for name in names)
    best = {name: _best(table, name) for name in names}
    rows = "".join(
        "<tr>" + "".join(_cell(row, name, best[name]) for name in names) + "</tr>"
        for row in table.to_dict(orient="records")
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _arrow(name: str) -> str:
    return {True: " &uarr;", False: " &darr;"}.get(HIGHER_IS_BETTER.get(name), "")  # type: ignore[arg-type]


def _best(table: pd.DataFrame, name: str) -> float | None:
    if name not in HIGHER_IS_BETTER:
        return None
    return float(table[name].max() if HIGHER_IS_BETTER[name] else table[name].min())


def _cell(row: dict[Any, Any], name: str, best: float | None) -> str:
    value = row[name]
    if isinstance(value, str):
        return f"<td>{html.escape(value)}</td>"
    if pd.isna(value):
        return "<td>&ndash;</td>"
    text = f"{int(value):,}" if float(value).is_integer() and abs(value) >= 2 else f"{value:.3g}"
    if f"{name}_low" in row:
        text = f"{value:.3f} [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]"
    return f'<td class="best">{text}</td>' if value == best else f"<td>{text}</td>"


DEFAULT_METHODS = (
    "sub-units",
    "concepts",
    "channels",
    "random routes",
    "hidden units",
    "PCA",
    "ICA",
    "k-means",
    "TopK SAE",
)
_FEWEST_BEST = 4
"""The smallest k: an intruder is to be found among so many of a unit's best images, drawn from one half of all."""
_GIB = 1 << 30


@dataclass(frozen=True, eq=False)
class Compared:
    """Methods beside each other, from `compare`.

    Attributes
    ----------
    table
        One row a method and number of units: ``method``, ``size`` ("own" or "equal"), ``units``, then each score. A
        score that is a mean has two columns after it, ``<score> low`` and ``<score> high``: its 95 % interval.
    units
        One row a unit and method (at its own number): the scores of single units.
    settings
        How this was made.
    methods
        The fitted methods by name.
    """

    table: pd.DataFrame
    units: pd.DataFrame
    settings: Mapping[str, Any]
    methods: Mapping[str, Method] = field(repr=False)

    def best(self, score: str, size: str = "equal") -> str:
        """Return the method that leads in ``score``; see `elude_nb.baselines.compare.HIGHER_IS_BETTER` for which way that is."""
        check_choice("score", score, [name for name in HIGHER_IS_BETTER if name in self.table])
        check_choice("size", size, sorted(set(self.table["size"])))
        rows = self.table[self.table["size"] == size].set_index("method")[score]
        return str(rows.idxmax() if HIGHER_IS_BETTER[score] else rows.idxmin())

    def leaders(self, size: str = "equal", ours: Sequence[str] = ("sub-units", "concepts")) -> pd.DataFrame:
        """Return for each score the method that leads, and the best of ours beside it, where they are not the same.

        Parameters
        ----------
        size
            ``"equal"`` or ``"own"`` numbers of units.
        ours
            Beginnings of the names that count as ours.

        Returns
        -------
        DataFrame
            One row a score: ``leader``, ``its_score``, ``ours``, ``our_score``; ``ours_leads``, also if tied.
        """
        check_choice("size", size, sorted(set(self.table["size"])))
        table = self.table[self.table["size"] == size].set_index("method")
        mine = table[[name.startswith(tuple(ours)) for name in map(str, table.index)]]
        if not len(mine):
            raise ValueError(f"No method's name begins with one of {list(ours)}; there are {list(table.index)}.")
        rows = []
        for score, higher in HIGHER_IS_BETTER.items():
            if score not in table or table[score].isna().all():
                continue
            leader, best = (str(t[score].idxmax() if higher else t[score].idxmin()) for t in (table, mine))
            values = table[score].to_dict()
            rows.append((score, leader, values[leader], best, values[best], values[best] == values[leader]))
        names = ["score", "leader", "its_score", "ours", "our_score", "ours_leads"]
        return pd.DataFrame(rows, columns=names).set_index("score")

    def _repr_html_(self) -> str:
        return table_of_methods(self.table, "equal") + table_of_methods(self.table, "own")

    def __repr__(self) -> str:
        return f"Compared({', '.join(self.methods)}; {self.settings['equal_units']} units each)"


def compare(
    model: Model,
    images: Images,
    site: str = STREAM,
    *,
    methods: Sequence[str | Method] = DEFAULT_METHODS,
    units: int = 128,
    held_out: Images | None = None,
    labels: Sequence[str] | None = None,
    blocks: int | Literal["all"] = "all",
    concepts: int | None = None,
    sub_units: int = 8,
    shared: float = 0.8,
    sparsity: int = 8,
    tokens: str = "patch",
    tokens_per_image: int | None = 24,
    k: int = 10,
    embeddings: Tensor | None = None,
    fidelity_images: int = 96,
    seed: int = 0,
    max_memory: float = 8.0,
    batch_size: int | None = None,
    progress: bool | None = None,
) -> Compared:
    """Fit methods on one half of the images and score all of them on the other half.

    Every method sees the same recorded tokens. An image's activation of a unit is the largest over its recorded
    tokens. A unit counts as live if at least ``k`` of the scored images raise it above its smallest value. All means
    are over live units. Rows of size "own" have all of a method's live units; rows of size "equal" have the same number
    for all methods, the most selective of each: see `elude_nb.baselines.evaluate.most_selective`, which looks at tokens of the
    discovery alone.

    Parameters
    ----------
    model, images, site, blocks
        What is split, as in `disentangle`. Half of the images (drawn with ``seed``) are for the discovery.
    methods
        Names from `elude_nb.baselines.METHODS`, or objects of `Method`.
    units
        How many units each method is asked for where it can choose, and at most for the rows of equal size.
    held_out
        Images to score on; then all of ``images`` are for the discovery.
    labels
        One label for each scored image, instead of those of the images. Labels with fewer than four scored images have
        no part in the best-unit precision: it chooses on two of them at least, and scores on two.
    concepts, sub_units, shared
        G, K and rho of the disentanglement; without G, it grows with the number of tokens (`suggest_concepts`).
        "concepts" as units are as many as ``units``.
    sparsity
        Latents of a sparse autoencoder that may be active at one token.
    tokens, tokens_per_image
        Which tokens are recorded, and how many of each image.
    k
        Best images of each unit, 4 at least; at least 8 images are needed to score on.
    embeddings
        Reference embeddings of the scored images (n, e); by default the model's output, less its mean.
    fidelity_images
        On how many of the scored images the model is run with reconstructions in place of its activations.
    seed
        Of the halves, the sampling, the clustering and the training.
    max_memory
        Upper bound on the recorded tokens held in memory, in GiB.
    batch_size, progress
        In place of the model's own settings.

    Raises
    ------
    TypeError, ValueError
        If a method is unknown, a setting is out of range, there are too few images, or the tokens would not fit.
    """
    check_model(model)
    model = model.using(batch_size=batch_size, progress=progress)
    for method in methods:
        if isinstance(method, str):
            check_choice("method", method, METHODS)  # before any forward pass
        else:
            check_kind("A method", method, Method, "a name or a Method")
    if tokens_per_image is not None:
        check_count("tokens_per_image", tokens_per_image)
    check_count("units", units, 2)
    check_count("k", k, _FEWEST_BEST)
    check_count("fidelity_images", fidelity_images, 2)  # neighbours are among the other images
    seed = check_count("seed", seed, 0, 2**32 - 1)
    check_pristine(model.network, "compare")
    place = find_site(model, site, blocks=blocks)
    discovery, scored = _halves(model, images, held_out, seed)
    scored = scored if labels is None else scored.with_labels(labels)
    if len(scored) < max(k + 1, 2 * _FEWEST_BEST):
        raise ValueError(f"{len(scored)} images to score on are too few for the k={k} best; use more, or a smaller k.")
    each = len(place.layout.positions(tokens))
    tokens_found = len(discovery) * min(each, tokens_per_image or each)
    number = suggest_concepts(tokens_found) if concepts is None else check_count("concepts", concepts, 2)
    plan = Plan(
        model, place, units=units, concepts=number, sub_units=sub_units, shared=shared, sparsity=sparsity,
        tokens=tokens, seed=seed,
    )  # fmt: skip
    chosen = _methods(methods, plan, discovery)
    _check_memory(place, [discovery, scored], tokens, tokens_per_image, max_memory)
    take: dict[str, Any] = {"tokens": tokens, "tokens_per_image": tokens_per_image, "seed": seed}
    seen = Recording.join(list(record(model, discovery, place, **take)))
    start = time.perf_counter()
    with overheard(model, wanted=embeddings is None) as outputs:
        new = Recording.join(list(record(model, scored, place, **take)))
    passes = (time.perf_counter() - start) / len(scored)
    reference = outputs.embeddings() if embeddings is None else torch.as_tensor(embeddings)
    every = None if discovery.labels is None else [discovery.labels[i] for i in seen.images.tolist()]
    groups = cluster_directions(seen.channels - seen.channels.mean(0), torch.ones(len(seen)), number, seed=seed)
    entrants = []
    with progress_bar(description="methods", total=len(chosen), show=model.progress) as bar:
        for method in chosen:
            bar.set_postfix_str(method.name)
            entrants.append(Entrant.of(method, seen, new, every, groups, k=k))
            bar.update()
    equal = min(units, *(len(found.live) for found in entrants))
    few = scored.sample(fidelity_images, seed=seed)
    fidelity = Fidelity(model.using(progress=False), few, place, tokens, k=min(k, len(few) - 1), seed=seed)
    rows, tables = [], []
    with progress_bar(description="scores", total=len(entrants), show=model.progress) as bar:
        for found in entrants:
            bar.set_postfix_str(found.method.name)
            common = {**fidelity.of(found.method, new), **found.cost(passes, len(scored))}
            for size, columns in (("own", found.live), ("equal", found.order[:equal])):
                summary, single = found.scores(columns, seen, new, scored, reference, k=k, seed=seed)
                rows.append({"method": found.method.name, "size": size, **summary, **common})
                tables.append(single.assign(method=found.method.name, size=size))
            bar.update()
    settings = {
        "model": model.name, "site": place.name, "blocks": place.blocks, "images": scored.source,
        "discovery_images": len(discovery), "scored_images": len(scored), "tokens": tokens,
        "tokens_per_image": tokens_per_image, "units": units, "equal_units": equal, "concepts": number,
        "sub-units": sub_units, "shared": shared, "sparsity": sparsity, "k": k, "seed": seed,
        "fidelity_images": len(few), "forward_pass_seconds": passes,
    }  # fmt: skip
    every_method = {found.method.name: found.method for found in entrants}
    return Compared(pd.DataFrame(rows), pd.concat(tables, ignore_index=True), settings, every_method)


# ------------------------------------------------------------------- the parts of compare


def _halves(model: Model, images: Images, held_out: Images | None, seed: int) -> tuple[ImageSet, ImageSet]:
    if held_out is not None:
        return model.inputs(images), model.inputs(held_out)
    return model.inputs(images).split(0.5, seed=seed)


def _methods(methods: Sequence[str | Method], plan: Plan, discovery: ImageSet) -> list[Method]:
    made = [METHODS[method](plan) if isinstance(method, str) else method for method in methods]
    names = [method.name for method in made]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not made:
        raise ValueError(f"Each method needs a name of its own; {twice} stand twice." if twice else "Name a method.")
    needy = [method.name for method in made if method.needs_labels]
    if needy and discovery.labels is None:
        raise ValueError(f"{needy[0]!r} needs labels, and these images have none; leave it out.")
    return made


def _check_memory(
    site: Site, sets: Sequence[ImageSet], tokens: str, tokens_per_image: int | None, max_memory: float
) -> None:
    per_image = len(site.layout.positions(tokens))
    per_image = min(per_image, tokens_per_image or per_image)
    count = per_image * sum(len(images) for images in sets)
    needed = count * (site.sources * site.kernel + 2 * site.channels) * 4 / _GIB
    if needed > check_number("max_memory", max_memory):
        raise ValueError(
            f"{count:,} tokens with {site.sources * site.kernel:,} sources each take {needed:.1f} GiB, more than "
            f"max_memory={max_memory}; take fewer images, fewer tokens_per_image or fewer blocks, or allow more."
        )
