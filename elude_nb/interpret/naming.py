"""Names for concepts from labels or texts, with the evidence for each.

A concept is judged by its top-activating images. What they share must be more than chance would put there, for all
concepts and all words that were tried; a concept without such evidence gets no name.
"""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from elude_nb._util.arguments import knows_arguments
from elude_nb._util.arithmetic import own_arithmetic
from elude_nb._util.checks import check_count, check_fraction, check_kind
from elude_nb._util.progress import progress_bar
from elude_nb.core.names import UniqueNames
from elude_nb.core.result import Disentanglement, check_split
from elude_nb.data.copies import check_enough
from elude_nb.data.images import Images, ImageSet, as_image_set
from elude_nb.interpret.descriptions import as_words, describe, read_concepts
from elude_nb.interpret.encoders import TextImageEncoder
from elude_nb.interpret.find_units import Numbers, holm
from elude_nb.models.load import Model
from elude_nb.scores.inputs import as_codes, is_constant, unit_vectors
from elude_nb.scores.labels import Labels
from elude_nb.scores.similarity import best_images

Whole = np.ndarray[Any, np.dtype[np.int64]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True, eq=False)
class ConceptNames:
    """Names of concepts, and why.

    Attributes
    ----------
    table
        One row a concept: ``concept``, ``name`` ("" where nothing is significant), ``description`` (what is shown in
        place of a name, see `describe_concepts`), what fits best, how well, ``p_corrected``, the ``evidence`` in words,
        and the ``reason`` why there is no name.
    source
        What the names come from: "labels" or "texts".
    top
        How many images each concept was judged by.
    level
        Largest acceptable chance of any wrong name.
    """

    table: pd.DataFrame = field(repr=False)
    source: str
    top: int
    level: float

    @property
    def names(self) -> UniqueNames:
        """The concepts that have a name: ``split.with_names(found.names)``.

        No two have the same; ``names.labels`` has the label or text that each stands for, and ``names.descriptions``
        what is shown for concepts that have no name.
        """
        named = self.table[self.table["name"] != ""]
        concepts = named["concept"].tolist()
        names, labels = (named[column].tolist() for column in ("name", self.source.removesuffix("s")))
        known, stand_for = (dict(zip(concepts, texts, strict=True)) for texts in (names, labels))
        described = zip(self.table["concept"].tolist(), self.table["description"].tolist(), strict=True)
        return UniqueNames(known, stand_for, {concept: text for concept, text in described if text})

    def __repr__(self) -> str:
        kinds = self.table["reason"].str.partition(":")[0].value_counts().drop("", errors="ignore")
        why = "".join(f"; {count}: {kind}" for kind, count in kinds.items())
        return f"ConceptNames({len(self.names)} of {len(self.table)} concepts named by {self.source}{why})"

    def _repr_html_(self) -> str:
        table: str = self.table.to_html(index=False, float_format="{:.3g}".format)
        return f"<p>{html.escape(repr(self))}</p>{table}"


@knows_arguments
@own_arithmetic()
def name_concepts(
    split: Disentanglement,
    images: Images,
    *,
    labels: Labels | None = None,
    tokens: str | None = None,
    top: int | None = None,
    level: float = 0.05,
    batch_size: int | None = None,
    progress: bool | None = None,
) -> ConceptNames:
    """Name each concept after the label that its top-activating images share.

    The ``lift`` of a label is its share of the concept's top images over its share of all images. Its p-value is the
    chance that as many of it or more are among ``top`` images drawn at random (the tail of the hypergeometric
    distribution), corrected for all concepts and labels (Holm). Of the significant labels, the one with the largest
    share gives the name; of equal shares, the one with the larger lift.

    If several concepts would have the same name, the one with the smallest p keeps it and the others are numbered in
    that order: "cat", "cat (2)", "cat (3)". ``names.labels`` has "cat" for all of them.

    Parameters
    ----------
    split
        The disentanglement.
    images
        Where to look; images that the discovery has not seen give the better evidence.
    labels
        One an image, (n,); by default those of the images. An empty one counts as an image but gives no name.
    tokens
        By default those of the discovery. An image counts as its highest token.
    top
        How many of a concept's top-activating images to judge it by. By default at most 20 and a quarter of the images,
        and as many as tell labels best from chance: so that the smallest share of them must have a label.
    level
        Largest acceptable chance of any wrong name.
    batch_size, progress
        In place of the model's own settings.

    Returns
    -------
    ConceptNames
        The table has ``label``, ``images`` (how many of the top images have it), ``share``, ``lift`` (both: higher is
        better) and ``p``; where there is no name, they are those of the label with the smallest p, and ``reason`` says
        how many images of it would have sufficed.

    Raises
    ------
    ValueError
        If there are no labels or only one, one is missing, there are no more than ``top`` images, or the routing has
        no concepts that go through all channels.

    Examples
    --------
    ``found = name_concepts(split, images)``; look at ``found.table``; then ``split = split.with_names(found.names)``.
    """
    check_split(split, "name_concepts")
    split = split.using(batch_size=batch_size, progress=progress)
    check_fraction("level", level, open_ends=True)
    photos = split.model.inputs(images)
    codes, words = _as_labels(photos.labels if labels is None else labels, len(photos))
    naming = np.array([bool(word) for word in words])

    def count(once: Whole) -> Whole:
        """Return how many of these images have each label, (l,)."""
        found: Whole = np.bincount(codes[once], minlength=len(naming))[naming]
        return found

    def usual(once: Whole) -> int:
        return _usual_top(count(once), len(once), level / (len(split.book) * int(naming.sum())))

    seen = _see(split, photos, tokens, top, [words[code] for code in codes], usual)
    totals, codes, best, top = count(seen.once), codes[seen.once], seen.best, seen.best.shape[1]
    words = [word for word in words if word]
    counts = (codes[best][:, :, None] == np.flatnonzero(naming)).sum(1)  # (g, l)
    p = _enrichment(counts, totals, len(codes), top)
    p[seen.constant] = 1
    corrected, lift = holm(p), counts / top / (totals / len(codes))
    row = np.arange(len(p))
    place = [_choose(p[g], corrected[g] <= level, counts[g], lift[g]) for g in row]
    table = pd.DataFrame(
        {
            "concept": row,
            "label": [words[i] for i in place],
            "images": counts[row, place],
            "share": counts[row, place] / top,
            "lift": lift[row, place],
            "p": p[row, place],
            "p_corrected": corrected[row, place],
        }
    )
    found = [f"{row.images} of {top} top images, {row.lift:.1f} times the base rate" for row in table.itertuples()]
    needed = _fewest(totals, len(codes), top, level / max(1, p.size - int((corrected <= level).sum())))
    doubts = []
    for i, word, many, bare in zip(place, table["label"], table["images"], (~naming)[codes[best]].sum(1), strict=True):
        if (needed > np.minimum(totals, top)).all():
            doubts.append(f"no label can be told from chance with {len(codes)} images")
        elif bare > top / 2:
            doubts.append(f"most top images have no label: {bare} of {top}")
        else:
            short = f"{needed[i]} needed" if needed[i] <= min(totals[i], top) else "too rare a label to tell"
            doubts.append(f"no label commoner than by chance: best {word!r}, {many} of {top} top images, {short}")
    return _conclude(table, seen, found, doubts, table["p"], level)


@own_arithmetic()
def name_concepts_by_text(
    split: Disentanglement,
    images: Images,
    texts: Sequence[str],
    encoder: TextImageEncoder,
    *,
    template: str = "{}",
    tokens: str | None = None,
    top: int | None = None,
    level: float = 0.05,
    draws: int = 10_000,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool | None = None,
) -> ConceptNames:
    """Name each concept after the text that lies nearer to its top-activating images than to the others.

    The score of a text is its mean cosine with the concept's top images less that with all images: a text that fits
    everything names nothing. ``z`` is the score over what it would vary by if the images were drawn at random, so that
    texts can be compared; the text with the largest ``z`` is the candidate. Its p-value is the chance that the best
    text of ``top`` images drawn at random does so well, which corrects for the number of texts; Holm's correction does
    for that of concepts. Concepts that would have the same name are numbered, as in `name_concepts`.

    Parameters
    ----------
    split, images, tokens, top, level, batch_size, progress
        As for `name_concepts`; images need no labels. ``top`` is by default 20, or a quarter of the images if fewer.
    texts
        Words or phrases to choose from; those that fit become the names.
    encoder
        CLIP or its like: `open_clip_encoder`, `transformers_encoder`, a `ClipJudge`, or an object of yours with the two
        methods of `TextImageEncoder`.
    template
        What the encoder reads of a text, such as ``"a photo of a {}"``.
    draws, seed
        How many sets of images are drawn at random; at least the number of concepts over ``level``.

    Returns
    -------
    ConceptNames
        The table has ``text``, ``cosine`` with the top images, ``above_all`` (the score), ``z`` (higher is better,
        0 is chance) and ``p`` of the text with the largest z, named or not.

    Raises
    ------
    TypeError
        If the encoder lacks a method, or a text is none.
    ValueError
        If texts are missing, empty or given twice, the template has no place for them, ``draws`` are too few, an
        embedding has the wrong shape, there are no more than ``top`` images, or the routing has no concepts.
    """
    check_split(split, "name_concepts_by_text")
    split = split.using(batch_size=batch_size, progress=progress)
    check_fraction("level", level, open_ends=True)
    words, photos = _as_texts(texts), as_image_set(images)
    _check_encoder(encoder, template)
    fewest = int(np.ceil(len(split.book) / level))
    if check_count("draws", draws) + 1 < fewest:
        raise ValueError(
            f"draws={draws} are too few to tell level={level} with {len(split.book)} concepts; give at least {fewest}."
        )
    labels = None if photos.labels is None else list(photos.labels)
    seen = _see(split, photos, tokens, top, labels, lambda once: _most_top(len(once)))
    photos, best, top = photos.subset(seen.once), seen.best, seen.best.shape[1]
    cosines = _cosines(split.model, encoder, photos, [template.replace("{}", word) for word in words])  # (n, m)
    standard = _standard(cosines, top)
    z = standard[best].mean(1)  # (g, m)
    place, row = z.argmax(1), np.arange(len(z))
    null = _largest_by_chance(standard, top, draws, seed)
    p = (1 + (null >= z.max(1)[:, None] - _ROUNDING).sum(1)) / (draws + 1)
    p[seen.constant] = 1
    cosine = cosines[best].mean(1)[row, place]
    table = pd.DataFrame(
        {
            "concept": row,
            "text": [words[i] for i in place],
            "cosine": cosine,
            "above_all": cosine - cosines.mean(0)[place],
            "z": z[row, place],
            "p": p,
            "p_corrected": holm(p),
        }
    )
    pairs = zip(table["above_all"], table["z"], strict=True)
    found = [f"cosine {score:+.3f} against all images, z = {size:.1f}" for score, size in pairs]
    doubts = [
        f"no text nearer than by chance: best {w!r}, {said}" for w, said in zip(table["text"], found, strict=True)
    ]
    return _conclude(table, seen, found, doubts, -table["z"], level)


# ---------------------------------------------------------------- of both

_FEW_TOKENS = 20  # a concept that was found on fewer may be an accident


@dataclass(frozen=True)
class _Seen:
    """What concepts are judged by: their top images (g, top), numbered among the images that are no copies.

    ``once`` (m,) are the numbers of these, ``constant`` (g,) says which concepts are the same on all images, ``tokens``
    (g,) is how many they were found on, and ``names`` describes them.
    """

    best: Whole
    once: Whole
    constant: Flags
    tokens: list[int]
    names: UniqueNames


def _see(
    split: Disentanglement,
    images: ImageSet,
    tokens: str | None,
    top: int | None,
    labels: list[str] | None,
    usual: Callable[[Whole], int],
) -> _Seen:
    if top is not None:
        check_count("top", top, 1, len(images) - 1)
    values, once = read_concepts(split, images, tokens)
    top = usual(once.numpy()) if top is None else top
    check_enough("top", top, len(once), len(images), more=True)
    best, constant = best_images(values[once], top).T.numpy(), is_constant(values).numpy()
    names = describe(values, once, labels, images.names)
    return _Seen(best, once.numpy(), constant, split.book.counts.tolist(), names)


def _conclude(
    table: pd.DataFrame, seen: _Seen, evidence: list[str], doubts: list[str], order: pd.Series[float], level: float
) -> ConceptNames:
    """Return names where the evidence suffices, the smallest of ``order`` first; and why there is none elsewhere."""
    kind = str(table.columns[1])
    sure = table["p_corrected"] <= level
    names = _without_doubles(table[kind].where(sure, "").tolist(), np.argsort(order.to_numpy(), kind="stable"))
    table.insert(1, "name", names)
    table.insert(2, "description", [seen.names.descriptions.get(concept, "") for concept in table["concept"]])
    why = [
        f"few tokens, {doubt}; found on {n} tokens" if n < _FEW_TOKENS and "can be told" not in doubt else doubt
        for n, doubt in zip(seen.tokens, doubts, strict=True)
    ]
    reasons = np.where(seen.constant, "the same on all images", why)
    table = table.assign(evidence=evidence, reason=np.where(sure, "", reasons))
    return ConceptNames(table, f"{kind}s", seen.best.shape[1], level)


def _without_doubles(words: list[str], order: Whole) -> list[str]:
    """Return words with those that come again numbered, in this order: "cat", then "cat (2)"."""
    names, taken = list(words), set(words)
    seen = set[str]()
    for place in order.tolist():
        word, number = words[place], 2
        if word and word in seen:
            while f"{word} ({number})" in taken:
                number += 1
            names[place] = f"{word} ({number})"
            taken.add(names[place])
        seen.add(word)
    return names


# ---------------------------------------------------------------- of labels


def _as_labels(labels: Labels | None, n: int) -> tuple[Whole, list[str]]:
    """Return the labels' codes (n,) and their names in sorted order, without blanks at the ends."""
    if labels is None:
        raise ValueError(
            "The images have no labels; give labels=, one an image, or use name_concepts_by_text or describe_concepts."
        )
    codes, words = as_codes(as_words(labels), n, classes=2)
    return codes.numpy(), words


def _enrichment(counts: Whole, totals: Whole, n: int, top: int) -> Numbers:
    """Return the chance of so many images of a label or more among ``top`` of ``n`` drawn at random, (g, l)."""
    from scipy.stats import hypergeom

    p: Numbers = hypergeom.sf(counts - 1, n, totals, top)
    return p


def _fewest(totals: Whole, n: int, top: int, level: float) -> Whole:
    """Return how many of ``top`` images must have a label for its p-value to be at most ``level``, (l,).

    More than there are of the label (or than ``top``) where no number suffices.
    """
    counts = np.arange(1, top + 1)
    found: Whole = 1 + (_enrichment(counts, totals[:, None], n, top) > level).sum(1)
    return found


def _most_top(n: int) -> int:
    return max(1, min(20, n // 4))


def _usual_top(totals: Whole, n: int, level: float) -> int:
    """Return of how many images, at most `_most_top`, the smallest share must have a label to be told from chance.

    The share is the mean over the labels, of the most images that can have the label. What no number of images tells
    counts a little more than all of them.
    """

    def share(top: int) -> float:
        needed, most = _fewest(totals, n, top, level), np.minimum(totals, top)
        return float(np.where(needed <= most, needed / np.maximum(most, 1), 1.05).mean().round(9))

    return min(range(_most_top(n), 0, -1), key=share)


def _choose(p: Numbers, significant: Flags, counts: Whole, lift: Numbers) -> int:
    """Return the label that names a concept; if none is significant, the one with the smallest p."""
    if not significant.any():
        return int(p.argmin())
    return max(np.flatnonzero(significant).tolist(), key=lambda place: (counts[place], lift[place]))


# ---------------------------------------------------------------- of texts

_AT_ONCE = 1 << 22  # numbers drawn at once: 32 MB
_ROUNDING = 1e-9  # a draw of the very same images may differ by so much


def _as_texts(texts: Sequence[str]) -> list[str]:
    """Return texts without blanks at the ends; a single word is one text, not its letters."""
    given = [texts] if isinstance(texts, str) else list(texts)
    for text in given:
        check_kind("texts", text, str, "words or phrases")
    words = [text.strip() for text in given]
    if not words or not all(words):
        raise ValueError("texts must be words or phrases to choose from, such as ['a dog', 'a wheel']; none is empty.")
    word, count = Counter(words).most_common(1)[0]
    if count > 1:
        raise ValueError(f"texts hold {word!r} more than once; give each text once.")
    return words


def _check_encoder(encoder: TextImageEncoder, template: str) -> None:
    if not all(callable(getattr(encoder, method, None)) for method in ("encode_images", "encode_texts")):
        kind = type(encoder).__name__
        raise TypeError(f"encoder must have encode_images and encode_texts, as open_clip_encoder(...) has, not {kind}.")
    if "{}" not in template:
        raise ValueError(f"template={template!r} has no place for a text; write {{}} there, as in 'a photo of a {{}}'.")


def _cosines(model: Model, encoder: TextImageEncoder, images: ImageSet, prompts: list[str]) -> Numbers:
    """Return the cosine of each image with each text, (n, m)."""
    starts, parts = range(0, len(images), model.batch_size), []
    with torch.no_grad():
        for start in progress_bar(starts, description="embeddings", show=model.progress, unit="batch"):
            batch = list(images[start : start + model.batch_size])
            parts.append(_directions("images", encoder.encode_images(batch), len(batch)))
        texts = _directions("texts", encoder.encode_texts(prompts), len(prompts))
    if parts[0].shape[1] != texts.shape[1]:
        raise ValueError(
            f"Images became {parts[0].shape[1]} numbers and texts {texts.shape[1]}; both must be of one space, (n, e)."
        )
    return (torch.cat(parts) @ texts.T).numpy()


def _directions(kind: str, found: Any, count: int) -> Tensor:
    """Return embeddings (count, e) at length 1, in float64 on the CPU."""
    vectors = torch.as_tensor(found).detach().cpu().double()
    if vectors.ndim != 2 or len(vectors) != count or not bool(vectors.isfinite().all()):
        raise ValueError(
            f"encode_{kind} gave {tuple(vectors.shape)} for {count} {kind}; it must give ({count}, e) finite numbers."
        )
    return unit_vectors(vectors)


def _standard(cosines: Numbers, top: int) -> Numbers:
    """Return cosines (n, m) so centred and scaled that the mean of ``top`` images at random has mean 0, variance 1."""
    n = len(cosines)
    error = cosines.std(0, ddof=1) * np.sqrt((1 - top / n) / top)  # of a mean, drawn without replacement
    says_something = error > _ROUNDING
    return np.where(says_something, cosines - cosines.mean(0), 0) / np.where(says_something, error, 1)


def _largest_by_chance(standard: Numbers, top: int, draws: int, seed: int) -> Numbers:
    """Return the largest z of any text for sets of ``top`` images drawn at random, (draws,)."""
    n, rng, found = len(standard), np.random.default_rng(seed), []
    size = max(1, _AT_ONCE // max(standard.shape))
    for start in range(0, draws, size):
        keys = rng.random((min(size, draws - start), n))
        drawn = np.zeros_like(keys)
        np.put_along_axis(drawn, keys.argpartition(top - 1, axis=1)[:, :top], 1 / top, axis=1)
        found.append((drawn @ standard).max(1))
    return np.concatenate(found)
