"""Directions that tell a class's tokens from others', and how each is taken out of a token: baselines of an edit.

All act the same way: what a token has along a reading direction, counted from a centre, is taken off along a writing
direction. With difference of means and a linear SVM both are one direction; LEACE reads and writes along two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from elude_nb.errors import EditError


@dataclass(frozen=True, eq=False)
class Erasure:
    """``h - share * ((h - centre) @ read) * write``, with ``read @ write = 1``: at share 1 ``read`` finds nothing.

    Attributes
    ----------
    read, write, centre
        (d,) each.
    """

    read: Tensor
    write: Tensor
    centre: Tensor

    def change(self, share: float) -> Callable[[Tensor], Tensor]:
        """Return what is added to channels (..., d)."""

        def change(h: Tensor) -> Tensor:
            along: Tensor = (h - self.centre.to(h)) @ self.read.to(h)  # (...)
            return -share * along[..., None] * self.write.to(h)

        return change


def _apart(tokens: Tensor, is_target: Tensor) -> tuple[Tensor, Tensor]:
    """Return tokens (t, d) of the target and of the others, float64; `EditError` unless there are two of each."""
    here, there = tokens[is_target].double(), tokens[~is_target].double()
    if min(len(here), len(there)) < 2:
        raise EditError(f"no direction tells {len(here)} tokens of the target from {len(there)} others.")
    return here, there


def difference_of_means(tokens: Tensor, is_target: Tensor) -> Erasure:
    """Return the direction from the others' mean to the target's (Marks and Tegmark, arXiv 2310.06824).

    Parameters
    ----------
    tokens, is_target
        Channels (t, d), and which of these tokens are of an image of the target, (t,).

    Raises
    ------
    EditError
        If either kind has fewer than two tokens, or both have one mean.
    """
    here, there = _apart(tokens, is_target)
    return _along(here.mean(0) - there.mean(0), there)


def linear_svm(tokens: Tensor, is_target: Tensor) -> Erasure:
    """Return the normal of a linear support vector machine, as a concept activation vector (Kim et al., 2018).

    It is fitted on standardised channels, classes weighted alike; arguments and errors as in `difference_of_means`.
    """
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    _, there = _apart(tokens, is_target)
    fitted = make_pipeline(StandardScaler(), LinearSVC(C=0.01, class_weight="balanced", dual=False))
    fitted.fit(tokens.double().numpy(), is_target.numpy())
    normal = torch.from_numpy(fitted[1].coef_[0] / fitted[0].scale_)
    return _along(normal, there)


def leace(tokens: Tensor, is_target: Tensor) -> Erasure:
    """Return least-squares concept erasure of one class (Belrose et al., arXiv 2306.03819, theorem 4.3).

    ``h - cov(h, z) (cov(h, z)' C⁺ (h - mean)) / (cov(h, z)' C⁺ cov(h, z))``, with the class z in {0, 1} and the
    covariance C of tokens shrunk as Ledoit and Wolf (2004) do, as there may be fewer tokens than channels; arguments
    and errors as in `difference_of_means`.
    """
    from sklearn.covariance import ledoit_wolf

    _apart(tokens, is_target)
    every, kind = tokens.double(), is_target.double()
    centre = every.mean(0)
    shared = (every - centre).T @ (kind - kind.mean()) / len(kind)  # cov(h, z)
    covariance = torch.from_numpy(ledoit_wolf(every.numpy())[0])
    read = torch.linalg.solve(covariance, shared)
    return _scaled(read, shared, centre)


def _along(direction: Tensor, others: Tensor) -> Erasure:
    """Return what takes a direction out, down to what the others have of it."""
    return _scaled(direction, direction, others.mean(0))


def _scaled(read: Tensor, write: Tensor, centre: Tensor) -> Erasure:
    product = float(read @ write)
    if not product > 0:
        raise EditError("the target's tokens do not differ from the others'.")
    return Erasure(read / product, write, centre)
