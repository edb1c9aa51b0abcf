"""Exercise 8: sentences, and names that are more than chance."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from elude_nb.course.answers import Right, check_choice_of, check_function, check_numbers
from elude_nb.interpret.find_units import holm


def check_pooled(pooled: object, hidden: Tensor, real: Tensor) -> Right:
    """Check the mean token of each sentence (n, d), of all tokens (n, t, d) and which of them are real (n, t)."""
    mask = real.to(hidden)[..., None]
    total, count = (hidden * mask).sum(1), mask.sum(1)
    return check_numbers(
        pooled,
        total / count,
        "Now a sentence means the same, however much padding it has.",
        shape="a row for each sentence",
        places=1e-4,
        mistakes={
            "Padding is among the tokens: leave it out of the sum, and count real tokens alone.": hidden.mean(1),
            "Padding is left out of the sum, but still counted when you divide.": total / hidden.shape[1],
            "Those are sums over the tokens; divide by how many real ones there are.": total,
            "The sum has padding in it; multiply by the mask first.": hidden.sum(1) / count,
            "That is the first token of each sentence.": hidden[:, 0],
        },
    )


def check_cosines(cosines: object, e: Tensor) -> Right:
    """Check the cosine of every two sentences (n, n), of their embeddings (n, e)."""
    unit = torch.nn.functional.normalize(e, dim=1)
    centred = torch.nn.functional.normalize(e - e.mean(0), dim=1)
    return check_numbers(
        cosines,
        unit @ unit.T,
        "1 on the diagonal: a sentence is like itself.",
        shape="a row and a column for each sentence",
        places=1e-4,
        mistakes={
            "Those are inner products; divide by both lengths.": e @ e.T,
            "Those are cosines of centred embeddings; a sentence encoder's cosine is of the embeddings as they are.": (
                centred @ centred.T
            ),
            "Those are distances; similar sentences have a large cosine.": 1 - unit @ unit.T,
        },
    )


def check_label_counts(counts: object, activation: Tensor, codes: Tensor, top: int) -> Right:
    """Check how many of a concept's ``top`` sentences have each label, (l,), of activations (n,) and labels (n,)."""
    size = int(codes.max()) + 1
    best = activation.argsort(descending=True)[:top]
    found = torch.bincount(codes[best], minlength=size)
    return check_numbers(
        counts,
        found,
        "The commonest label is a guess at a name. Is it more than chance?",
        shape="one number for each label",
        mistakes={
            "Those are all sentences; only the top ones are asked for.": torch.bincount(codes, minlength=size),
            "Those are shares; the test needs counts.": found / top,
            "Those are the lowest sentences.": torch.bincount(codes[activation.argsort()[:top]], minlength=size),
        },
    )


def check_chance_of(function: object) -> Right:
    """Check a function (count, top, with_label, n): the chance of ``count`` or more of a label among ``top`` of n."""
    from scipy.stats import binom, hypergeom

    def tail(count: int, top: int, with_label: int, n: int) -> float:
        return float(hypergeom.sf(count - 1, n, with_label, top))

    return check_function(
        function,
        [(4, 10, 12, 60), (2, 5, 10, 100), (6, 10, 30, 100)],
        tail,
        "The tail of the hypergeometric distribution: drawn without putting back, so many or more.",
        shape="one number",
        mistakes={
            "That is the chance of more; so many count as well.": (
                lambda count, top, k, n: float(hypergeom.sf(count, n, k, top))
            ),
            "That is the chance of exactly so many; so many or more is asked for.": (
                lambda count, top, k, n: float(hypergeom.pmf(count, n, k, top))
            ),
            "That is as if each sentence were put back; the top ones are different sentences.": (
                lambda count, top, k, n: float(binom.sf(count - 1, top, k / n))
            ),
            "That is the chance of fewer; take the other side.": (
                lambda count, top, k, n: float(hypergeom.cdf(count - 1, n, k, top))
            ),
            "That is the chance of so many or fewer; take the other side.": (
                lambda count, top, k, n: float(hypergeom.cdf(count, n, k, top))
            ),
        },
    )


def check_holm(function: object) -> Right:
    """Check a function that corrects p-values (m,) for how many they are, after Holm."""

    def one_by_one(p: Any) -> Any:
        order = np.argsort(p)
        found = np.empty(len(p))
        found[order] = np.minimum(np.asarray(p)[order] * np.arange(len(p), 0, -1), 1)
        return found

    def uncapped(p: Any) -> Any:
        order = np.argsort(p)
        found = np.empty(len(p))
        found[order] = np.maximum.accumulate(np.asarray(p)[order] * np.arange(len(p), 0, -1))
        return found

    return check_function(
        function,
        [(np.array([0.01, 0.04, 0.03, 0.2]),), (np.array([0.6, 0.001, 0.7]),)],
        lambda p: holm(np.asarray(p)),
        "Of all that is called significant now, the chance of any mistake is at most 5 %.",
        shape="one number for each p-value, in the order given",
        mistakes={
            "Nothing is corrected yet.": lambda p: p,
            "That is Bonferroni's correction, which is right but stricter: Holm multiplies by less and less.": (
                lambda p: np.minimum(np.asarray(p) * len(p), 1)
            ),
            "A larger p-value has become smaller than the one before it; none may.": one_by_one,
            "A probability is at most 1.": uncapped,
            "They are sorted; give them back in the order in which they came.": lambda p: np.sort(holm(np.asarray(p))),
        },
    )


def check_named(named: object, corrected: Any, p: Any, level: float = 0.05) -> Right:
    """Check which concepts have a name, (g,): True where a label's corrected p-value, (g, l), is small enough."""
    corrected, p = np.asarray(corrected), np.asarray(p)
    return check_numbers(
        named,
        (corrected <= level).any(1),
        "Some concepts have no name now, and that is an honest answer.",
        shape="True or False for each concept",
        places=1e-9,
        mistakes={
            "You have taken the p-values before they were corrected.": (p <= level).any(1),
            "Those are the concepts without a name.": ~(corrected <= level).any(1),
            "All labels are to be significant; one is enough for a name.": (corrected <= level).all(1),
        },
    )


def check_why_unseen(answer: object) -> Right:
    """Check why names are tested on sentences that the discovery has not seen."""
    return check_choice_of(
        answer,
        "a",
        "What was fitted to some sentences looks good on them, whatever it is.",
        {
            "b": "The number of tests is the same on either half.",
            "c": "The labels play no part in the discovery, on either half.",
        },
    )
