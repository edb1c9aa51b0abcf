"""Coherence and stability of dictionaries, against overcomplete, slow implementations and planted cases."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elude_nb.scores import coherence, dictionary_stability, effective_rank


def drawn(u: int, e: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(u, e, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(sum(x * y for x, y in zip(a, b, strict=True)) / (sum(a * a) * sum(b * b)) ** 0.5)


def slow_matched(a: torch.Tensor, b: torch.Tensor) -> tuple[float, int]:
    """The largest sum of cosines over all ways to match, and how many are matched: by trying every one."""
    if len(a) > len(b):
        a, b = b, a
    sums = [
        sum(cosine(a[i], b[j]) for i, j in enumerate(order)) for order in itertools.permutations(range(len(b)), len(a))
    ]
    return max(sums), len(a)


@settings(deadline=None, max_examples=30)
@given(u=st.integers(2, 9), e=st.integers(2, 6), seed=st.integers(0, 1000))
def test_coherence_is_the_largest_absolute_cosine_of_two_atoms(u, e, seed) -> None:
    atoms = drawn(u, e, seed)
    expected = max(abs(cosine(atoms[i], atoms[j])) for i in range(u) for j in range(u) if i != j)
    assert coherence(atoms) == pytest.approx(expected, abs=1e-9)
    assert coherence(-3 * atoms) == pytest.approx(expected, abs=1e-9)


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="overcomplete asks for Python below 3.13")
def test_coherence_is_overcompletes_collinearity(monkeypatch) -> None:
    from elude_nb.baselines.overcomplete import _import_sae

    _import_sae("test")
    from overcomplete.metrics import cosine_hungarian_loss, dictionary_collinearity

    for seed in range(5):
        atoms, others = drawn(40, 12, seed), drawn(40, 12, seed + 100)
        assert coherence(atoms) == pytest.approx(dictionary_collinearity(atoms)[0], abs=1e-5)
        theirs = 1 - cosine_hungarian_loss(atoms, others) / 40
        assert dictionary_stability(atoms, others) == pytest.approx(theirs, abs=1e-9)
    monkeypatch.setattr(sys.modules["elude_nb.scores.dictionaries"], "_ATOMS_AT_ONCE", 7)
    assert coherence(atoms) == pytest.approx(dictionary_collinearity(atoms)[0], abs=1e-5)


def test_copies_and_right_angles_have_the_ends_of_the_scale() -> None:
    assert coherence(torch.eye(4)) == 0
    assert coherence(torch.cat([torch.eye(4), -2 * torch.eye(4)[:1]])) == 1
    assert coherence(torch.tensor([[0.0, 0.0], [1.0, 1.0]])) == 0
    with pytest.raises(ValueError, match="only one atom"):
        coherence(torch.ones(1, 3))
    with pytest.raises(ValueError, match="NaN"):
        coherence(torch.full((2, 2), torch.nan))


@settings(deadline=None, max_examples=30)
@given(u=st.integers(1, 5), v=st.integers(1, 5), seed=st.integers(0, 1000))
def test_stability_tries_every_way_to_match_and_charges_for_different_numbers(u, v, seed) -> None:
    a, b = drawn(u, 4, seed), drawn(v, 4, seed + 1)
    total, matched = slow_matched(a, b)
    expected = total / matched * (1 - abs(u - v) / max(u, v))
    assert dictionary_stability(a, b) == pytest.approx(expected)
    assert dictionary_stability(b, a) == pytest.approx(expected)
    assert dictionary_stability(2 * a, b[torch.randperm(v)]) == pytest.approx(expected)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000))
def test_sub_units_are_matched_within_their_channel(seed) -> None:
    rng = np.random.default_rng(seed)
    of_a, of_b = torch.from_numpy(rng.integers(0, 4, 7)), torch.from_numpy(rng.integers(0, 4, 6))
    a, b = drawn(7, 3, seed), drawn(6, 3, seed + 1)
    scores = []
    for channel in sorted({*of_a.tolist(), *of_b.tolist()}):
        mine, theirs = a[of_a == channel], b[of_b == channel]
        if not len(mine) or not len(theirs):
            scores.append(0.0)  # 1 - |k - 0| / k
            continue
        total, matched = slow_matched(mine, theirs)
        numbers = len(mine), len(theirs)
        scores.append(total / matched * (1 - abs(numbers[0] - numbers[1]) / max(numbers)))
    assert dictionary_stability(a, b, channels=(of_a, of_b)) == pytest.approx(np.mean(scores))


def test_the_same_run_is_stable_and_exchanged_channels_are_not() -> None:
    atoms, channels = torch.eye(4), torch.tensor([0, 0, 1, 1])
    order = torch.tensor([1, 0, 3, 2])
    assert dictionary_stability(atoms, atoms[order], channels=(channels, channels)) == 1
    assert dictionary_stability(atoms, atoms.flip(0), channels=(channels, channels)) == 0
    assert dictionary_stability(atoms, atoms.flip(0)) == 1
    assert dictionary_stability(atoms, -atoms) <= 0


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 4\)"):
        dictionary_stability(torch.ones(2, 3), torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"channels \(3,\), \(2,\) must be \(2,\) and \(2,\)"):
        dictionary_stability(torch.ones(2, 3), torch.ones(2, 3), channels=(torch.zeros(3), torch.zeros(2)))
    with pytest.raises(ValueError, match="NaN"):
        dictionary_stability(torch.full((2, 2), torch.nan), torch.ones(2, 2))


@settings(deadline=None, max_examples=20)
@given(u=st.integers(1, 6), e=st.integers(1, 6), seed=st.integers(0, 1000))
def test_the_papers_effective_rank_is_of_the_matrix_as_it_is(u, e, seed) -> None:
    atoms = drawn(u, e, seed)
    values = np.sqrt(np.clip(np.linalg.eigvalsh(atoms.numpy() @ atoms.numpy().T), 0, None))
    share = [value / values.sum() for value in values if value > 1e-7]
    entropy = -sum(p * np.log(p) for p in share)
    assert effective_rank(atoms, standardise=False) == pytest.approx(np.exp(entropy), rel=1e-5)


def test_ranks_of_planted_dictionaries() -> None:
    assert effective_rank(torch.eye(5), standardise=False) == pytest.approx(5)
    assert effective_rank(torch.ones(5, 3), standardise=False) == pytest.approx(1)
    assert effective_rank(torch.zeros(5, 3), standardise=False) == 0
