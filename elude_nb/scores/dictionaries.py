"""Properties of a dictionary of directions: how alike its atoms are, and how alike two runs find them.

Letters: ``u`` atoms, ``e`` numbers of each. The atoms of a sparse autoencoder are the rows of its decoder (u, d), those
of a split its sub-units' weights (u, s), those of a layer's channels the rows of its weight (d, s).
"""

from __future__ import annotations

import torch
from torch import Tensor

from elude_nb.scores.inputs import Array, as_matrix, as_numbers, unit_vectors

_ATOMS_AT_ONCE = 1024


def coherence(atoms: Array) -> float:
    """Return the largest absolute cosine between two different atoms, in [0, 1]; lower is better.

    The ``dictionary_collinearity`` of the package overcomplete, by which ELUDe's paper (arXiv 2605.31304) measures
    coherence; an atom of zeros is like no other.

    Parameters
    ----------
    atoms
        (u, e), at least two.

    Examples
    --------
    >>> round(coherence(torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, -3.0]])), 3)
    0.707
    """
    units = unit_vectors(as_matrix("atoms", atoms, "(u, e)"))
    if len(units) < 2:
        raise ValueError("There is only one atom; its likeness to others needs two.")
    largest = 0.0
    for start in range(0, len(units), _ATOMS_AT_ONCE):
        found = (units[start : start + _ATOMS_AT_ONCE] @ units.T).abs()  # (rows, u)
        found[torch.arange(len(found)), torch.arange(start, start + len(found))] = 0
        largest = max(largest, float(found.max()))
    return min(largest, 1.0)


def dictionary_stability(first: Array, second: Array, *, channels: tuple[Array, Array] | None = None) -> float:
    """Return how alike two runs find their atoms, at most 1; higher is better (arXiv 2605.31304).

    Atoms are matched one to one so that the sum of their cosines is largest (the Hungarian method); the score is the
    mean cosine of the matched, times ``1 - |u - u'| / max(u, u')`` where the runs found different numbers. That is our
    reading of the paper's penalty; it counts an atom without a partner as 0.

    `stability` matches units by their activations instead.

    Parameters
    ----------
    first, second
        Atoms of two runs, (u, e) and (u', e).
    channels
        For a split, the channel of each atom in each run, (u,) and (u',): sub-units are matched within their channel,
        the penalty is taken channel by channel, and the score is the mean over the channels of either run.

    Raises
    ------
    ValueError
        If there are no atoms, their lengths or the numbers of channels differ, or a value is not finite.

    Examples
    --------
    >>> atoms = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> dictionary_stability(atoms, atoms.flip(0)), dictionary_stability(atoms, atoms[:1])
    (1.0, 0.5)
    """
    a, b = (unit_vectors(as_matrix(name, x, "(u, e)").double()) for name, x in (("first", first), ("second", second)))
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"{tuple(a.shape)} and {tuple(b.shape)}: atoms of both runs must be equally long.")
    if channels is None:
        return _matched(a, b)
    of_a, of_b = (as_numbers("channels", each) for each in channels)
    if of_a.shape != (len(a),) or of_b.shape != (len(b),):
        raise ValueError(f"channels {tuple(of_a.shape)}, {tuple(of_b.shape)} must be ({len(a)},) and ({len(b)},).")
    every = torch.cat([of_a, of_b]).unique()
    return float(sum(_matched(a[of_a == channel], b[of_b == channel]) for channel in every) / len(every))


def _matched(a: Tensor, b: Tensor) -> float:
    """Return the sum of the cosines of matched unit vectors, over the larger number of them."""
    from scipy.optimize import linear_sum_assignment

    cosines = (a @ b.T).numpy()
    rows, columns = linear_sum_assignment(cosines, maximize=True)
    return float(cosines[rows, columns].sum() / max(cosines.shape))
