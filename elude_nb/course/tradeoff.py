"""Exercise 6: what an autoencoder loses, copies among units, and a choice that is tested elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from elude_nb.course.answers import Right, check_choice_of, check_function, check_numbers


def _keep(z: Tensor, k: int, *, absolute: bool = False, dim: int = 1, relu: bool = True) -> Tensor:
    size = z.abs() if absolute else z
    mask = torch.zeros_like(z).scatter(dim, size.topk(k, dim).indices, 1.0)
    return (z.relu() if relu and not absolute else z) * mask


def check_top_k(function: object) -> Right:
    """Check a function that keeps the k largest latents of each token where they are positive: (t, u) to (t, u)."""
    generator = torch.Generator().manual_seed(0)
    cases = [(torch.randn(6, 9, generator=generator), k) for k in (3, 6)]
    return check_function(
        function,
        cases,
        _keep,
        "Few units are active at each token, which is what makes them readable.",
        shape="the same as that of the latents",
        mistakes={
            "Negative latents are kept; of the largest, only positive ones are active.": (
                lambda z, k: _keep(z, k, relu=False)
            ),
            "The largest by absolute value are kept; a latent is active where it is high.": (
                lambda z, k: _keep(z, k, absolute=True)
            ),
            "The largest of each latent over the tokens are kept; choose at each token.": lambda z, k: _keep(
                z, k, dim=0
            ),
            "Those are the largest values; put them in their places, with 0 elsewhere.": lambda z, k: (
                z.topk(k, 1).values
            ),
            "Those are the numbers of the latents; put their values in their places.": lambda z, k: (
                z.topk(k, 1).indices
            ),
        },
    )


def check_unexplained(function: object) -> Right:
    """Check a function of channels (t, d) and their reconstruction (t, d): the share of variance that is lost."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 4, generator=generator) * torch.tensor([1.0, 2.0, 3.0, 0.5]) + 5
    y = x + 0.7 * torch.randn(20, 4, generator=generator)

    def lost(x: Tensor, y: Tensor) -> Tensor:
        return (x - y).square().sum() / (x - x.mean(0)).square().sum()

    return check_function(
        function,
        [(x, y)],
        lost,
        "0 loses nothing; 1 is as good as putting the mean in place of every token.",
        shape="one number",
        mistakes={
            "You forgot to centre: the variance is counted from the mean.": lambda x, y: (
                (x - y).square().sum() / x.square().sum()
            ),
            "That is the share that is explained; the share that is lost is asked for.": lambda x, y: 1 - lost(x, y),
            "That is the mean squared error; divide by the variance.": lambda x, y: (x - y).square().mean(),
            "One mean over all channels is taken away; each channel has its own.": (
                lambda x, y: (x - y).square().sum() / (x - x.mean()).square().sum()
            ),
            "Each channel counts equally, however small its variance; add up first and divide once.": (
                lambda x, y: ((x - y).square().sum(0) / (x - x.mean(0)).square().sum(0)).mean()
            ),
            "The roots are compared; a variance is of squares.": lambda x, y: lost(x, y).sqrt(),
        },
    )


def check_why_nothing_lost(answer: object) -> Right:
    """Check why sub-units lose nothing."""
    return check_choice_of(
        answer,
        "a",
        "That holds for random groups too, so it says nothing about how readable the units are.",
        {
            "b": "Nothing is trained here; an autoencoder is, and it still loses something.",
            "c": "There are more sub-units than channels, but a wide autoencoder loses something as well.",
            "d": "The clusters say which sub-units there are; that they add up holds for any groups.",
        },
    )


def _redundancy(z: Tensor, *, absolute: bool = False, selves: bool = False, mean: bool = False) -> Tensor:
    table = torch.corrcoef(z.double().T)
    if absolute:
        table = table.abs()
    if not selves:
        table = table - 2 * torch.eye(len(table))
    if mean:
        return (table + 2 * torch.eye(len(table))).mean()
    return table.amax(1).mean()


def check_redundancy(redundancy: object, z: Tensor) -> Right:
    """Check the mean over the units of the largest correlation with another unit, of activations (n, u)."""
    centred = z - z.mean(0)
    unit = torch.nn.functional.normalize(z, dim=0)
    cosines = unit.T @ unit - 2 * torch.eye(z.shape[1])
    covariance = centred.T @ centred / (len(z) - 1)
    return check_numbers(
        redundancy,
        _redundancy(z),
        "Near 1, nearly every unit has a copy. A score that rises with it rises for the wrong reason.",
        shape="one number",
        mistakes={
            "Every unit correlates with itself, which is 1; leave the diagonal out.": _redundancy(z, selves=True),
            "You forgot to centre: that is a cosine, and a correlation is a cosine of centred values.": cosines.amax(
                1
            ).mean(),
            "Those are covariances; divide by both standard deviations.": (
                (covariance - torch.eye(len(covariance)) * 1e9).amax(1).mean()
            ),
            "That is the mean correlation; for each unit take the largest, its nearest copy.": _redundancy(
                z, mean=True
            ),
            "Absolute values are taken; a unit that falls where another rises is no copy here.": _redundancy(
                z, absolute=True
            ),
        },
        places=1e-4,
    )


def _precision(values: Tensor, wanted: Tensor, *, rising: bool = False) -> float:
    hit = wanted[values.argsort(descending=not rising)].double()
    at = hit.cumsum(0) / torch.arange(1, len(hit) + 1)
    return float((at * hit).sum() / hit.sum())


def check_average_precision(function: object) -> Right:
    """Check a function of a unit's activations (n,) and which images have a label (n,): the average precision."""
    generator = torch.Generator().manual_seed(0)
    cases = []
    for _ in range(3):
        wanted = torch.rand(15, generator=generator) > 0.6
        cases.append((torch.randn(15, generator=generator) + 0.4 * wanted, wanted))

    def at_all(values: Tensor, wanted: Tensor) -> float:
        hit = wanted[values.argsort(descending=True)].double()
        return float((hit.cumsum(0) / torch.arange(1, len(hit) + 1)).mean())

    def at_count(values: Tensor, wanted: Tensor) -> float:
        return float(wanted[values.argsort(descending=True)][: int(wanted.sum())].double().mean())

    return check_function(
        function,
        cases,
        _precision,
        "1 if all images with the label come first; about their share by chance.",
        shape="one number",
        mistakes={
            "The lowest images come first; sort the other way round.": lambda v, w: _precision(v, w, rising=True),
            "The precision is taken at every place; take it where an image with the label stands.": at_all,
            "That is the precision at one place; take it wherever one with the label stands, and average.": at_count,
        },
    )


def check_two_halves(answer: object, first: Tensor, second: Tensor) -> Right:
    """Check the best units' mean precision on the half where they were chosen and on the other, of both (labels, u)."""
    best = first.argmax(1)
    row = torch.arange(len(first))
    chosen, tested = first[row, best].mean(), second[row, best].mean()
    return check_numbers(
        answer,
        [chosen, tested],
        "The best of many looks better than it is; what it is, other images say.",
        shape="two numbers: where the units were chosen, and elsewhere",
        mistakes={
            "You have chosen anew on the second half; the units chosen on the first are tested there.": (
                [chosen, second.amax(1).mean()]
            ),
            "The two are the wrong way round.": [tested, chosen],
            "Those are means over all units; for each label take its best one.": [first.mean(), second.mean()],
            "That is one unit for all labels; each label has its own.": (
                [first[:, first.mean(0).argmax()].mean(), second[:, first.mean(0).argmax()].mean()]
            ),
        },
    )
