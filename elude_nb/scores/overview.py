"""Scores of sub-units, of the channels they come from and of random routes, on one set of images."""

from __future__ import annotations

from contextlib import ExitStack
from time import perf_counter
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from elude_nb._util.arguments import knows_arguments
from elude_nb._util.arithmetic import own_arithmetic
from elude_nb._util.checks import check_count
from elude_nb._util.progress import announced
from elude_nb._util.ranks import Ranks, together
from elude_nb._util.words import counted
from elude_nb.core.concepts import ConceptBook
from elude_nb.core.distinct import choose_covering, standardise
from elude_nb.core.one_pass import own_share
from elude_nb.core.recording import Recording, find_largest, record
from elude_nb.core.result import Disentanglement, check_split
from elude_nb.core.routing import Routing, means_on_concepts, shuffled, values_on_groups
from elude_nb.data.copies import check_enough
from elude_nb.data.images import Images, ImageSet
from elude_nb.models.forward import name_of_judge, overheard, reference
from elude_nb.models.load import Model
from elude_nb.scores.health import largest_correlation
from elude_nb.scores.inputs import as_embeddings, check_table
from elude_nb.scores.intervals import mean_interval
from elude_nb.scores.similarity import (
    monosemanticity,
    ms_score_at,
    sibling_similarity,
    top_centres,
    top_similarity,
)
from elude_nb.scores.top_labels import label_share_over_chance, top_purity
from elude_nb.scores.verdict import Scores

DISTINCT = "distinct "
"""What the kinds of distinct units begin with in the table of `score_means`."""
_MS_IMAGES = 100  # of the paper's MS-Score; of fewer than a thousand images a tenth, but as many as other scores take
TOKENS_PER_IMAGE, N_DISTINCT = 64, 128
"""What `score` takes unless told otherwise."""
NO_SCORES = {"kind", "channel", "unit", "distinct", "redundancy_distinct"}
"""Columns of `score` that are no scores of their own."""


@knows_arguments
@own_arithmetic()
def score(
    split: Disentanglement,
    images: Images,
    *,
    tokens: str | None = None,
    tokens_per_image: int | None = TOKENS_PER_IMAGE,
    k: int = 10,
    n_distinct: int = N_DISTINCT,
    seed: int = 0,
    embeddings: Tensor | Model | str | None = None,
    batch_size: int | None = None,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Score sub-units, the channels they come from, and random routes of the same sizes.

    Use other images than those of the discovery: ``split.unseen(images)``. Copies of an image count once; a warning
    says how many there are.

    Parameters
    ----------
    split
        The disentanglement.
    images
        The images to score on.
    tokens, tokens_per_image
        Which tokens count (by default the discovery's kind) and how many are drawn for each image; an image's
        activation is the largest over its tokens.
    k
        How many best images of each unit are compared.
    n_distinct
        How many units of each kind count as distinct: those that stand for all of the kind best, chosen over the groups
        of the concept book (`elude_nb.core.distinct.choose_covering`), not on these images. As many of each kind, so
        fewer if a kind has fewer; 0 for none.
    seed
        Of the random routes and of the draw of tokens.
    embeddings
        What judges how alike images are: reference embeddings (n, e), a `Model`, or the name of one, such as
        ``"efficientnet-lite0"`` (what its classifier looks at); by default the model's own output, less its mean. A
        network that is not the model under study is the fairer judge.
    batch_size, progress
        In place of the model's own settings.

    Returns
    -------
    DataFrame
        One row a unit: ``kind`` ("channel", "random route", "sub-unit"), ``channel``, ``unit``, ``top_similarity``,
        ``monosemanticity``, ``ms_score`` (the paper's, of a tenth of the images: `elude_nb.scores.ms_score`),
        ``redundancy`` (largest correlation with another unit of its kind), ``distinct``, ``redundancy_distinct`` (the
        same among distinct units alone), ``sibling_similarity`` (not for channels), and where the images have labels
        ``top_purity`` and ``label_share_over_chance``. Channels have a row for each sign: unit 1 is the channel itself
        and unit -1 its negative. Shared units and dead sub-units are not scored; each sub-unit has the sign with which
        it is high on its concept. ``table.attrs["images"]`` says how many images there were, and how many of them the
        discovery saw; ``table.attrs["judge"]`` the name of another judge. Shown whole, it begins with its verdicts
        (`elude_nb.scores.verdict`).

    Examples
    --------
    >>> import elude_nb as en
    >>> model = en.load_model("vit_tiny_patch16_224", pretrained=False)
    >>> images = en.load_images("shapes", count=24)
    >>> split = en.disentangle(model, images, "blocks.11.mlp.fc2", concepts=8, units=2, progress=False)
    >>> sorted(en.score(split, images, k=4).kind.unique())
    ['channel', 'random route', 'sub-unit']
    """
    check_split(split, "score")
    split = split.using(batch_size=batch_size, progress=progress)
    photos = split.model.inputs(images)
    check_count("k", k, 2, len(photos))
    check_count("n_distinct", n_distinct, 0)
    start = perf_counter()
    scoring = Scoring(split, seed=seed)
    of_weights = 3 * (perf_counter() - start)  # what follows takes about twice as long as what came before
    with ExitStack() as stack:
        ranks = stack.enter_context(together())
        model, (mine, own) = split.model.using(progress=None if ranks.first else False), own_share(photos, ranks)
        judged = reference(embeddings, own, model.progress, ranks)
        outputs = stack.enter_context(overheard(split.model, wanted=embeddings is None))
        which = split.settings.tokens if tokens is None else tokens
        how: dict[str, Any] = {"tokens": which, "tokens_per_image": tokens_per_image, "seed": seed, "announce": False}
        parts = announced(
            record(model, own, split.site, numbers=mine, **how),
            f"score: {counted(len(photos), 'image')}",
            lambda first: first * -(-len(own) // model.batch_size) + of_weights,
            show=model.progress,
        )
        for part in parts:
            scoring.add(part)
            ranks.check()
        if ranks.count > 1:
            scoring.join(ranks)
            outputs.join(ranks)
            for start, hashes in ranks.all((mine[0] if mine else 0, own.hashes().tolist())):
                photos.note_hashes(start, hashes)
    once = outputs.distinct(photos, warn=ranks.first)
    check_enough("k", k, len(once), len(photos))
    vectors = outputs.embeddings(once) if judged is None else as_embeddings(judged, len(photos))
    table = scoring.table(photos, once, vectors, k=k, n_distinct=n_distinct)
    if embeddings is not None:
        table.attrs["judge"] = name_of_judge(embeddings)
    return table


class Scoring:
    """What `score` does with the recordings of a pass over the images, for whoever runs the images anyway.

    Parameters
    ----------
    split
        The disentanglement.
    seed
        Of the random routes.
    """

    @own_arithmetic()
    def __init__(self, split: Disentanglement, *, seed: int = 0) -> None:
        self._split = split
        self._routings = {"sub-unit": split.routing, "random route": shuffled(split.routing, seed)}
        self._signs = {
            "sub-unit": split.signs[split.routing.live_rows()],
            "random route": signs_of(split.weight, self._routings["random route"], split.book),
        }
        self._routed = {
            kind: read_sub_units(split.weight, routing, self._signs[kind]) for kind, routing in self._routings.items()
        }
        self._mean = split.book.source_mean()
        self._found: dict[str, list[tuple[Tensor, Tensor]]] = {kind: [] for kind in ("channel", *self._routed)}
        self._vectors, self._tokens = list[Tensor](), 0

    @own_arithmetic()
    def add(self, part: Recording) -> None:
        """Take in the recorded tokens of the next images."""
        device = part.sources.device
        if self._mean.device != device:
            self._mean = self._mean.to(device)
            self._routed = {kind: (c, u, matrix.to(device)) for kind, (c, u, matrix) in self._routed.items()}
        centred, channels = part.sources - self._mean, torch.cat([part.channels, -part.channels], dim=1)
        for kind in self._found:
            activations = channels if kind == "channel" else centred @ self._routed[kind][2]
            highest, rows = find_largest(activations, part.images)
            self._found[kind].append((highest.cpu(), rows.cpu() + self._tokens))
        self._vectors.append(part.channels.cpu())
        self._tokens += len(part)

    def join(self, ranks: Ranks) -> None:
        """Take in what the other processes have taken in, in their order; each ran a share of the images."""
        before = sum(ranks.all(self._tokens)[: ranks.rank])
        for kind, parts in self._found.items():
            self._found[kind] = ranks.join([(highest, rows + before) for highest, rows in parts])
        self._vectors = ranks.join(self._vectors)

    @own_arithmetic()
    def table(self, photos: ImageSet, once: Tensor, embeddings: Tensor, *, k: int, n_distinct: int) -> pd.DataFrame:
        """Return the table of `score` on the images taken in.

        Parameters
        ----------
        photos
            The images, in the order in which they were taken in.
        once
            Numbers of those that are no copies of others, (m,).
        embeddings
            Reference embeddings of all, (n, e).
        k, n_distinct
            As in `score`.
        """
        split, reference = self._split, embeddings[once]
        labels = None if photos.labels is None else photos.subset(once.numpy()).labels
        every = torch.arange(split.site.channels)
        of_kind = {"channel": (every.repeat(2), torch.tensor([1, -1]).repeat_interleave(len(every)))}
        of_kind |= {kind: (channels, numbers) for kind, (channels, numbers, _) in self._routed.items()}
        distinct = _choose_distinct(split, self._routings, self._signs, n_distinct)
        vectors, tables = torch.cat(self._vectors), []
        for kind, (channels, numbers) in of_kind.items():
            activations, rows = (torch.cat(parts)[once] for parts in zip(*self._found[kind], strict=True))
            table = pd.DataFrame({"kind": kind, "channel": channels.numpy(), "unit": numbers.numpy()})
            table["top_similarity"] = top_similarity(activations, reference, k)
            table["monosemanticity"] = monosemanticity(activations, reference)
            table["ms_score"] = ms_score_at(activations, vectors, rows, count=images_of_ms(len(once), k))
            table["redundancy"] = largest_correlation(activations)
            chosen = distinct[kind].numpy()
            table["distinct"] = table.index.isin(chosen)
            table.loc[chosen, "redundancy_distinct"] = largest_correlation(activations[:, chosen]).to_numpy()
            if kind != "channel":
                table["sibling_similarity"] = sibling_similarity(top_centres(activations, reference, k), channels)
            if labels is not None:
                table["top_purity"] = top_purity(activations, labels, k)
                table["label_share_over_chance"] = label_share_over_chance(activations, labels, k)
            tables.append(table)
        scores = Scores(pd.concat(tables, ignore_index=True))
        scores.attrs["distinct_images"] = len(once)
        scores.attrs["images"] = f"{k} best of {split.announce_seen(photos, 'score')}"
        return scores


def images_of_ms(n: int, k: int) -> int:
    """Return on how many best of ``n`` images the MS-Score is taken: a tenth, but at least ``k`` and at most 100."""
    return min(_MS_IMAGES, max(k, n // 10))


def _choose_distinct(
    split: Disentanglement, routings: dict[str, Routing], signs: dict[str, Tensor], n: int
) -> dict[str, Tensor]:
    """Return equally many distinct units of each kind, by what they are over the groups of the book."""
    channels = split.book.mean_channels()
    values = {"channel": torch.cat([channels, -channels], dim=1)}
    for kind, routing in routings.items():
        values[kind] = values_on_groups(split.weight, routing, split.book) * signs[kind]
    n = min(n, *(each.shape[1] for each in values.values()))
    if not n:
        return dict.fromkeys(values, torch.zeros(0, dtype=torch.int64))
    return {kind: choose_covering(standardise(each, split.book.counts), n).msort() for kind, each in values.items()}


def read_sub_units(weight: Tensor, routing: Routing, signs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the linear read-out of all live sub-units, of centred sources; unit 0 is left out.

    Parameters
    ----------
    weight, routing
        W (d, s * kernel), and which unit has which contribution.
    signs
        From `signs_of`.

    Returns
    -------
    channels, numbers
        Of each sub-unit, (u,) each.
    matrix
        (s * kernel, u), with the sign with which each sub-unit is high on its concept.
    """
    channels, numbers = routing.live_rows()
    return channels, numbers, routing.masked(weight, channels, numbers).mul_(signs[:, None]).T


def signs_of(weight: Tensor, routing: Routing, book: ConceptBook) -> Tensor:
    """Return for each live sub-unit -1 where it is low on its concept, else 1, (u,)."""
    return torch.where(means_on_concepts(weight, routing, book)[routing.live_rows()] < 0, -1, 1)


def score_means(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the means of `score` with their 95 % bootstrap intervals: one row a kind and score.

    Parameters
    ----------
    scores
        From `score`.

    Returns
    -------
    DataFrame
        ``kind``, ``score``, ``mean``, ``low``, ``high``, ``units`` (how many were averaged) and ``without`` (how many
        have no such score). Each kind comes twice: all of it, and ("distinct sub-unit") its distinct units alone, with
        the redundancy among these.
    """
    check_table("scores", scores, "kind")
    columns = [name for name in scores.columns if name not in NO_SCORES]
    groups = dict(iter(scores.groupby("kind")))
    if "distinct" in scores:
        some = scores[scores["distinct"]]
        some = some.assign(redundancy=some["redundancy_distinct"]) if "redundancy" in some else some
        groups |= {f"{DISTINCT}{kind}": table for kind, table in some.groupby("kind")}
    rows = []
    for kind, table in groups.items():
        for column in columns:
            found = mean_interval(table[column])
            if found.count:
                rows.append((kind, column, found.mean, found.low, found.high, found.count, found.missing))
    return pd.DataFrame(rows, columns=["kind", "score", "mean", "low", "high", "units", "without"])


def mixed_channels(scores: pd.DataFrame) -> pd.DataFrame:
    """Return one row a split channel, the clearest cases of polysemanticity first.

    Parameters
    ----------
    scores
        From `score`.

    Returns
    -------
    DataFrame
        ``before``: top similarity of the channel. ``after``: its sub-units' mean. ``random routes``: the control's.
        ``siblings``: how similar the images of different sub-units are. ``separation``: ``after`` less the larger of
        ``before`` and ``siblings``, by which the rows are sorted; it is high where the best images of each sub-unit
        are similar, but not those of the channel, nor those of different sub-units.
    """
    check_table("scores", scores, "kind", "channel", "unit", "top_similarity", "sibling_similarity")
    own = scores[(scores["kind"] == "channel") & (scores["unit"] == 1)].set_index("channel")["top_similarity"]
    means = scores.groupby(["kind", "channel"])[["top_similarity", "sibling_similarity"]].mean()
    table = pd.DataFrame(
        {
            "before": own,
            "after": means["top_similarity"].get("sub-unit"),
            "random routes": means["top_similarity"].get("random route"),
            "siblings": means["sibling_similarity"].get("sub-unit"),
        }
    ).dropna()
    return sort_by_separation(table)


def sort_by_separation(table: pd.DataFrame) -> pd.DataFrame:
    """Return rows with ``before``, ``after`` and ``siblings`` by their ``separation``, see `mixed_channels`."""
    separation = table["after"] - table[["before", "siblings"]].max(axis=1)
    return table.assign(separation=separation).sort_values("separation", ascending=False, kind="stable")
