"""Compare methods: fit and score all of them on the same tokens, in one table of means with their intervals."""

from __future__ import annotations

import html
import itertools
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, TypeVar

import pandas as pd
import torch
from torch import Tensor

from elude_nb._util.arguments import knows_arguments
from elude_nb._util.arithmetic import own_arithmetic
from elude_nb._util.checks import check_choice, check_count, check_flag, check_kind, check_number
from elude_nb._util.progress import announced, progress_bar
from elude_nb._util.ranks import Ranks, together
from elude_nb._util.words import counted
from elude_nb.baselines.base import Method
from elude_nb.baselines.evaluate import Fidelity, FittedMethod, Halves, stability_of
from elude_nb.baselines.handing import hand_round
from elude_nb.baselines.registry import METHODS, Plan
from elude_nb.core.clustering import cluster_directions
from elude_nb.core.concepts import on_device, suggest_concepts
from elude_nb.core.one_pass import own_share
from elude_nb.core.recording import Recording, record
from elude_nb.data.images import Images, ImageSet
from elude_nb.models.default_site import choose_site
from elude_nb.models.forward import Overheard, name_of_judge, overheard, reference
from elude_nb.models.hooks import check_pristine
from elude_nb.models.load import Model, check_model
from elude_nb.models.sites import Site
from elude_nb.scores.verdict import HIGHER_IS_BETTER, Verdict, verdict_on

T = TypeVar("T")

SIZES = {
    "equal": "At {equal_units} units each, the most selective",
    "distinct": "At {equal_units} distinct units each",
    "own": "Each at its own number of live units",
}
"""The sizes of a comparison's rows, and what they are, with the comparison's settings."""

DEFAULT_METHODS = (
    "sub-units", "concepts", "channels", "random routes", "hidden units", "PCA", "ICA", "k-means", "TopK SAE",
)  # fmt: skip
OURS = ("sub-units", "concepts", "ELUDe as published", "signed rule")
"""What the names of methods begin with that leave the model's outputs as they are and split its channels."""

IN_WORDS = ("top_similarity", "ms_score", "label_share_over_chance")
"""The scores that tables have a verdict on."""
_FEWEST_BEST = 4
"""The smallest k: trials of the intruder test show as many of a unit's best images."""
_GIB = 1 << 30
_TABLE = """\
<table class="elude-table"><thead><tr>
{%- for name in head %}<th scope="col">{{ name }}</th>{% endfor %}</tr></thead><tbody>
{%- for row in rows %}<tr>
{%- for text, best in row %}<td{% if best %} class="best"{% endif %}>{{ text }}</td>{% endfor %}</tr>
{%- endfor %}</tbody></table>"""


def table_of_methods(table: pd.DataFrame, size: str = "equal") -> str:
    """Return the rows of one size as an HTML table: means with their intervals, the best of each column marked.

    ``table`` is that of `elude_nb.compare`, or several concatenated.
    """
    from jinja2 import Environment

    table = table[table["size"] == size]
    names = [name for name in map(str, table.columns) if not name.endswith(("_low", "_high")) and name != "size"]
    judged = {name: higher for name, higher in HIGHER_IS_BETTER.items() if name in table}
    best = {name: table[name].max() if higher else table[name].min() for name, higher in judged.items()}
    arrows = {name: " \N{UPWARDS ARROW}" if higher else " \N{DOWNWARDS ARROW}" for name, higher in judged.items()}
    head = [name.replace("_", " ") + arrows.get(name, "") for name in names]
    records = table.to_dict(orient="records")
    rows = [[(_text(row, name), name in best and row[name] == best[name]) for name in names] for row in records]
    return Environment(autoescape=True).from_string(_TABLE).render(head=head, rows=rows)


def _text(row: Mapping[Any, Any], name: str) -> str:
    value = row[name]
    if isinstance(value, str):
        return value
    if pd.isna(value):
        return "\N{EN DASH}"
    if f"{name}_low" in row:
        return f"{value:.3f} [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]"
    return f"{int(value):,}" if float(value).is_integer() and abs(value) >= 2 else f"{value:.3g}"


@dataclass(frozen=True, eq=False)
class Compared:
    """Several methods compared, from `compare`.

    Attributes
    ----------
    table
        One row a method and choice of units: ``method``, ``size`` (one of `SIZES`), ``units`` (how many), then each
        score. A score that is a mean has two columns after it, ``<score>_low`` and ``<score>_high``: its 95 % interval.
    units
        One row a unit, method and size: the scores of single units.
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
        """Return the best method by ``score``, one of `elude_nb.scores.verdict.HIGHER_IS_BETTER`."""
        check_choice("score", score, [name for name in HIGHER_IS_BETTER if name in self.table])
        return _best_row(self._of_size(size), score)

    def leaders(self, size: str = "equal", ours: Sequence[str] = OURS) -> pd.DataFrame:
        """Return for each score the best method, and the best of ours.

        Parameters
        ----------
        size
            One of `SIZES`.
        ours
            Prefixes of the names that count as ours.

        Returns
        -------
        DataFrame
            One row a score: ``leader``, ``its_score``, ``ours``, ``our_score``; ``ours_leads``, also if tied.
        """
        table = self._of_size(size)
        mine = table[[name.startswith(tuple(ours)) for name in map(str, table.index)]]
        if not len(mine):
            raise ValueError(f"No method's name begins with one of {list(ours)}; there are {list(table.index)}.")
        rows = []
        for score in HIGHER_IS_BETTER:
            if score in table and table[score].notna().any():
                leader, best = _best_row(table, score), _best_row(mine, score)
                its, our = (table[score].to_dict()[name] for name in (leader, best))
                rows.append((score, leader, its, best, our, our == its))
        names = ["score", "leader", "its_score", "ours", "our_score", "ours_leads"]
        return pd.DataFrame(rows, columns=names).set_index("score")

    def verdict(self, score: str = "top_similarity", size: str = "equal", *, ours: Sequence[str] = OURS) -> Verdict:
        """Say in words how the best of ours does by one score: rivals that lead first.

        Parameters
        ----------
        score
            A score of single units, such as ``"top_similarity"`` or ``"ms_score"``.
        size, ours
            As in `leaders`.

        Raises
        ------
        ValueError
            If ``score`` is none of single units, or no method counts as ours.
        """
        mine = self.leaders(size, ours)["ours"].to_dict()
        single = [name for name in HIGHER_IS_BETTER if name in self.units]
        check_choice("score", score, single)
        units = self.units[self.units["size"] == size]
        values = {str(method): units.loc[units["method"] == method, score] for method in self.methods}
        numbers = f"{counted(self.settings['equal_units'], 'unit')} each, " if size != "own" else ""
        basis = f"{numbers}{self.settings['k']} best of {self.settings['scored_images']} images that no method has seen"
        return verdict_on(values, mine[score], score, basis=basis, images=self.settings["scored_images"])

    def verdicts(self, size: str = "equal") -> list[Verdict]:
        """Return the verdicts that stand under a table, those where a rival leads first; none if no method is ours."""
        if not any(name.startswith(OURS) for name in self.methods):
            return []
        found = [self.verdict(name, size) for name in IN_WORDS if self.units.get(name, pd.Series()).notna().any()]
        return sorted(found, key=lambda each: (not each.rivals, not each.level))

    def notes(self) -> list[str]:
        """Return what a reader may ask about the numbers of units, in words."""
        asked, given = self.settings.get("units", 0), self.settings["equal_units"]
        if given >= asked:
            return []
        own = self._of_size("own")["units"].to_dict()
        fewest = min(own, key=lambda name: own[name])
        return [
            f"{counted(given, 'unit')} each, though {asked} were asked for: {fewest!r} has no more live ones on these "
            f"images (above their smallest value on {self.settings['k']} images at least)."
        ]

    def _of_size(self, size: str) -> pd.DataFrame:
        check_choice("size", size, sorted(set(self.table["size"])))
        return self.table[self.table["size"] == size].set_index("method")

    def _repr_html_(self) -> str:
        there = [size for size in SIZES if size in set(self.table["size"])]
        words = {size: "".join(each._repr_html_() for each in self.verdicts(size)) for size in there}
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes())
        return "".join(table_of_methods(self.table, size) + words[size] for size in there) + notes

    def __repr__(self) -> str:
        named = f"Compared({', '.join(self.methods)}; {counted(self.settings['equal_units'], 'unit')} each)"
        return "\n".join([named, *map(str, self.verdicts()), *self.notes()])


def _best_row(table: pd.DataFrame, score: str) -> str:
    return str(table[score].idxmax() if HIGHER_IS_BETTER[score] else table[score].idxmin())


@knows_arguments
@own_arithmetic()
def compare(
    model: Model,
    images: Images,
    site: str | None = None,
    *,
    methods: Sequence[str | Method] = DEFAULT_METHODS,
    n_units: int = 128,
    held_out: Images | None = None,
    labels: Sequence[str] | None = None,
    blocks: int | Literal["all"] = "all",
    concepts: int | None = None,
    sub_units: int = 8,
    shared: float | None = None,
    sparsity: int = 8,
    tokens: str | None = None,
    tokens_per_image: int | None = 24,
    k: int = 10,
    embeddings: Tensor | Model | str | None = None,
    fidelity_images: int = 96,
    stability: bool = False,
    seed: int = 0,
    max_memory: float = 8.0,
    batch_size: int | None = None,
    progress: bool | None = None,
    units: int | None = None,
) -> Compared:
    """Fit methods on one half of the images and score all of them on the other half.

    Copies of an image are left out first, with a warning, unless ``labels`` or ``embeddings`` are given as numbers,
    one an image.

    Every method gets the same recorded tokens. An image's activation of a unit is the largest over its recorded tokens.
    A unit counts as live if at least ``k`` of the scored images are above its smallest value. All means are over live
    units. Rows of size "own" have all live units of a method; rows of size "equal" have equally many of all methods,
    the most selective ones: `elude_nb.baselines.evaluate.most_selective` orders them by tokens of the discovery only.
    Rows of size "distinct" have as many, but those that stand for all live units of the method best: a meaning that
    many units share counts once (`elude_nb.core.distinct.choose_covering`, on the images of the discovery).

    Processes of a group that ``torch.distributed`` has initialised share the images that are recorded, and then the
    methods. Each of them holds the recorded tokens of all images, and returns the same.

    Parameters
    ----------
    model, images, site, blocks
        What is split, as in `disentangle`. Half of the images (drawn with ``seed``) are for the discovery.
    methods
        Names from `elude_nb.baselines.METHODS`, or objects of `Method`.
    n_units
        How many units each method is asked for where it can choose, and at most for the rows of equal size.
    held_out
        Images to score on; then all of ``images`` are for the discovery.
    labels
        One label for each scored image, in place of those of the images. The best-unit precision leaves out labels with
        fewer than four scored images: it chooses on two of them at least, and scores on two.
    concepts, sub_units, shared
        G, K and rho of the disentanglement; by default G grows with the number of tokens (`suggest_concepts`). The
        method "concepts" has ``n_units`` of them.
    sparsity
        How many latents of a sparse autoencoder are active at a token.
    tokens, tokens_per_image
        Which tokens are recorded (by default patches, where there are any, or all) and how many of each image.
    k
        How many best images of each unit are compared, at least 4; at least 8 images are needed to score on. The
        MS-Score is of a tenth of the scored images, but of ``k`` at least and 100 at most.
    embeddings
        What judges how alike images are: reference embeddings of the scored images (n, e), a `Model`, or the name of
        one, as in `elude_nb.score`; by default the model's output, less its mean.
    fidelity_images
        On how many of the scored images the model is run with reconstructions in place of its activations.
    stability
        Fit each method three times more, from another seed and on either half of the discovery, and say how well its
        units are found again (`elude_nb.baselines.evaluate.stability_of`). Channels are the same in every fit, so
        theirs is 1 whatever they mean. Methods must be given by name.
    seed
        Of the halves, the sampling, the clustering and the training.
    max_memory
        Upper bound on the recorded tokens held in memory, in GiB.
    batch_size, progress
        In place of the model's own settings.
    units
        The name of ``n_units`` in version 0.2.

    Raises
    ------
    TypeError, ValueError
        If a method is unknown, a setting is out of range, there are too few images, or the tokens would not fit.
    GroupError
        If another process of the group fails or ends.
    """
    if units is not None:
        message = "units= of compare is now n_units=; the old name goes with version 0.4."
        warnings.warn(message, DeprecationWarning, stacklevel=4)
        n_units = units
    check_model(model)
    given, model = model, model.using(batch_size=batch_size, progress=progress)
    _check_methods(methods)
    _check_counts(n_units, tokens_per_image, k, fidelity_images)
    seed = check_count("seed", seed, 0, 2**32 - 1)
    check_pristine(model.network, "compare")
    place = choose_site(model, site, blocks=blocks, tokens=tokens, purpose="compare")
    tokens = tokens or place.layout.usual
    of_rows = labels is not None or not isinstance(
        embeddings, str | Model | None
    )  # which the caller has for every image
    discovery, scored = _split(model, images, held_out, labels, seed, copies=of_rows)
    if len(scored) < max(k + 1, 2 * _FEWEST_BEST):
        raise ValueError(
            f"{counted(len(scored), 'image')} to score on: too few for the k={k} best; use more, or a smaller k."
        )
    each = len(place.layout.positions(tokens))
    each = min(each, tokens_per_image or each)
    g = suggest_concepts(len(discovery) * each) if concepts is None else check_count("concepts", concepts, 2)
    plan = Plan(
        given, place, n_units=n_units, concepts=g, sub_units=sub_units, shared=shared, sparsity=sparsity, tokens=tokens,
        seed=seed,
    )  # fmt: skip
    chosen = _make_methods(methods, plan, discovery)
    made_of, plans = _by_name(methods, chosen, stability), [replace(plan, seed=seed + more) for more in (1, 0, 0)]
    _check_memory(place, each * (len(discovery) + len(scored)), max_memory)
    how: dict[str, Any] = {"tokens": tokens, "tokens_per_image": tokens_per_image, "seed": seed}
    few = scored.sample(fidelity_images, seed=seed)
    with together() as ranks:
        model = model.using(progress=None if ranks.first else False)
        expected = partial(
            _expected_seconds, model.batch_size, len(discovery), len(scored), len(few), len(chosen), ranks.count
        )
        parts = announced(
            _record_share(model, discovery, place, ranks, **how),
            f"compare: {counted(len(chosen), 'method')} on {counted(len(discovery) + len(scored), 'image')}",
            expected,
            show=model.progress,
        )
        seen = Recording.join(ranks.join(list(parts)))
        new, outputs, passes = _record_scored(model, scored, place, ranks, embeddings is None, **how)
        judged = reference(embeddings, own_share(scored, ranks)[1], model.progress, ranks)
        vectors = outputs.embeddings() if judged is None else torch.as_tensor(judged)
        token_labels = None if discovery.labels is None else [discovery.labels[i] for i in seen.images.tolist()]
        groups = cluster_directions(seen.channels - seen.channels.mean(0), torch.ones(len(seen)), g, seed=seed)
        halves = Halves(seen, token_labels, groups, new, scored, vectors, k, seed)
        fitted = list(_fit_share(chosen, halves, ranks, model.progress))
        equal = min(n_units, *ranks.join([len(found.live) for found in fitted]))
        fidelity = Fidelity(
            model.using(progress=False), few, place, tokens, [found.method for found in fitted],
            k=min(k, len(few) - 1), seed=seed,
        )  # fmt: skip
        own = list[list[tuple[dict[str, Any], pd.DataFrame]]]()
        for found in progress_bar(fitted, description="scores", show=model.progress):
            common = {**fidelity.measure(found.method, new), **found.cost(passes)}
            if stability:
                anew = [_make_methods([made_of[found.method.name]], each, discovery)[0] for each in plans]
                common |= stability_of(found, anew, n_units)
            own.append(_rows_of(found, equal, common))
            ranks.check()
        rows, tables = zip(*itertools.chain.from_iterable(_in_turn(ranks.all(own))), strict=True)
        made = _in_turn(hand_round([found.method for found in fitted], given, ranks))
    settings = {
        "model": model.name, "site": place.name, "blocks": place.blocks, "images": scored.source,
        "discovery_images": len(discovery), "scored_images": len(scored), "tokens": tokens,
        "tokens_per_image": tokens_per_image, "units": n_units, "equal_units": equal, "concepts": g,
        "sub_units": sub_units, "shared": shared, "sparsity": sparsity, "k": k, "seed": seed,
        "fidelity_images": len(few), "forward_pass_seconds": passes,
        "judge": name_of_judge(embeddings),
    }  # fmt: skip
    return Compared(
        pd.DataFrame(rows), pd.concat(tables, ignore_index=True), settings, {method.name: method for method in made}
    )


def _record_share(model: Model, images: ImageSet, site: Site, ranks: Ranks, **how: Any) -> Iterator[Recording]:
    """Record this process's share of the images; raise as soon as another process is known to have failed."""
    mine, own = own_share(images, ranks)
    for part in record(model, own, site, numbers=mine, announce=False, **how):
        yield on_device(part, "cpu")  # where methods are fitted, and from where they are sent
        ranks.check()


def _record_scored(
    model: Model, images: ImageSet, site: Site, ranks: Ranks, outputs_wanted: bool, **how: Any
) -> tuple[Recording, Overheard, float]:
    """Return the recording of all images, the model's outputs for them, and the seconds of the pass for an image."""
    start = time.perf_counter()
    with overheard(model, wanted=outputs_wanted) as outputs:
        parts = list(_record_share(model, images, site, ranks, **how))
    seconds = sum(ranks.all(time.perf_counter() - start)) / len(images)
    outputs.join(ranks)
    return Recording.join(ranks.join(parts)), outputs, seconds


def _fit_share(methods: Sequence[Method], halves: Halves, ranks: Ranks, progress: bool) -> Iterator[FittedMethod]:
    """Fit this process's share of the methods; raise as soon as another process is known to have failed."""
    for method in progress_bar(methods[ranks.rank :: ranks.count], description="methods", show=progress):
        yield FittedMethod.fit(method, halves)
        ranks.check()


def _in_turn(shares: Sequence[Sequence[T]]) -> list[T]:
    """Return what was dealt to several processes, one after the other, in its order."""
    return [each for dealt in itertools.zip_longest(*shares) for each in dealt if each is not None]


def _rows_of(found: FittedMethod, equal: int, common: dict[str, float]) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    """Return a method's row of each size, with the table of its units."""
    name, made = found.method.name, list[tuple[dict[str, Any], pd.DataFrame]]()
    for size, numbers in {"own": found.live, "equal": found.order[:equal], "distinct": found.distinct(equal)}.items():
        summary, single = found.scores(numbers)
        made.append(({"method": name, "size": size, **summary, **common}, single.assign(method=name, size=size)))
    return made


def _expected_seconds(
    batch: int, discovery: int, scored: int, few: int, methods: int, processes: int, first: float
) -> float:
    """Return about how long a comparison takes, from the seconds of the first batch that is recorded.

    Of all blocks of DINOv2 on a CPU: fits take as long as two or three passes over the discovery, the fidelity of all
    methods as long as two over its images, and the scores of a method as long as ten images.
    """
    images = 3.5 * discovery + scored + 2 * few + 10 * methods
    return first / min(batch, discovery) * images / processes


def _check_counts(n_units: int, tokens_per_image: int | None, k: int, fidelity_images: int) -> None:
    if tokens_per_image is not None:
        check_count("tokens_per_image", tokens_per_image)
    check_count("n_units", n_units, 2)
    check_count("k", k, _FEWEST_BEST)
    check_count("fidelity_images", fidelity_images, 2)  # neighbours are among the other images


def _check_methods(methods: Sequence[str | Method]) -> None:
    for method in methods:
        if isinstance(method, str):
            check_choice("method", method, METHODS)
        else:
            check_kind("A method", method, Method, "a name or a Method")


def _split(
    model: Model, images: Images, held_out: Images | None, labels: Sequence[str] | None, seed: int, *, copies: bool
) -> tuple[ImageSet, ImageSet]:
    """Return the images for the discovery and those to score on, each once unless ``copies`` are to stay."""
    if held_out is None:
        photos = model.inputs(images)
        discovery, scored = (photos if copies else photos.without_copies()).split(0.5, seed=seed)
    else:
        discovery, scored = model.inputs(images).without_copies(), model.inputs(held_out)
        scored = scored if copies else scored.without_copies()
    return discovery, scored if labels is None else scored.with_labels(labels)


def _make_methods(methods: Sequence[str | Method], plan: Plan, discovery: ImageSet) -> list[Method]:
    made = [METHODS[method](plan) if isinstance(method, str) else method for method in methods]
    names = [method.name for method in made]
    if not made or len(set(names)) < len(names):
        raise ValueError(f"methods must be at least one, each with a name of its own; given are {names}.")
    needy = [method.name for method in made if method.needs_labels]
    if needy and discovery.labels is None:
        raise ValueError(f"{needy[0]!r} needs labels, and these images have none; leave it out.")
    return made


def _by_name(methods: Sequence[str | Method], made: Sequence[Method], stability: bool) -> dict[str, str]:
    """Return what each method is made of, if they are to be made again."""
    check_flag("stability", stability)
    if not stability:
        return {}
    given = next((method for method in methods if not isinstance(method, str)), None)
    if given is not None:
        raise ValueError(
            f"stability=True fits each method anew; give {given.name!r} by a name of METHODS, or leave it."
        )
    return {method.name: str(name) for method, name in zip(made, methods, strict=True)}


def _check_memory(site: Site, tokens: int, max_memory: float) -> None:
    needed = tokens * (site.sources * site.kernel + 2 * site.channels) * 4 / _GIB
    if needed > check_number("max_memory", max_memory):
        raise ValueError(
            f"{tokens:,} tokens with {site.sources * site.kernel:,} sources each take {needed:.1f} GiB, more than "
            f"max_memory={max_memory}; take fewer images, fewer tokens_per_image or fewer blocks, or allow more."
        )
