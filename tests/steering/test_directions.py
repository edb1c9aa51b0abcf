"""Directions that tell a class apart, each against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from elude_nb.errors import EditError
from elude_nb.steering.directions import difference_of_means, leace, linear_svm

LEARNED = (difference_of_means, linear_svm, leace)


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    found = torch.randn(300, 6, generator=generator, dtype=torch.float64) @ mixed
    found[:80] += torch.tensor([2.0, 0, -1, 0, 0, 3], dtype=torch.float64)
    return found


@pytest.fixture(scope="module")
def is_target() -> torch.Tensor:
    return torch.arange(300) < 80


@pytest.mark.parametrize("learn", LEARNED)
def test_at_full_share_nothing_is_left_along_the_reading_direction(tokens, is_target, learn) -> None:
    found = learn(tokens, is_target)
    whole, half = (tokens + found.change(share)(tokens) for share in (1.0, 0.5))
    assert float(found.read @ found.write) == pytest.approx(1)
    torch.testing.assert_close((whole - found.centre) @ found.read, torch.zeros(300, dtype=torch.float64))
    torch.testing.assert_close(half, (tokens + whole) / 2)
    moved = whole - tokens
    torch.testing.assert_close(
        moved @ found.write / found.write.norm(), moved.norm(dim=1) * torch.sign(moved @ found.write)
    )  # only along the writing direction


def test_difference_of_means_is_that(tokens, is_target) -> None:
    found = difference_of_means(tokens, is_target)
    here, there = tokens[is_target].mean(0), tokens[~is_target].mean(0)
    torch.testing.assert_close(found.write, here - there)
    torch.testing.assert_close(found.centre, there)
    # the target's mean then has as much of the direction as the others' mean
    assert float((here + found.change(1.0)(here) - there) @ (here - there)) == pytest.approx(0, abs=1e-9)


def test_the_svm_tells_the_target_apart(tokens, is_target) -> None:
    found = linear_svm(tokens, is_target)
    along = ((tokens - found.centre) @ found.read).numpy()
    fitted = make_pipeline(StandardScaler(), LinearSVC(C=0.01, class_weight="balanced", dual=False))
    decisions = fitted.fit(tokens.numpy(), is_target.numpy()).decision_function(tokens.numpy())
    assert np.corrcoef(along, decisions)[0, 1] == pytest.approx(1)
    assert float(((decisions > 0) == is_target.numpy()).mean()) > 0.8


def test_leace_is_the_theorem(tokens, is_target) -> None:
    """Theorem 4.3 as it stands: whiten, project the whitened cross-covariance out, and unwhiten."""
    x, z = tokens.numpy(), is_target.double().numpy()
    mean, covariance = x.mean(0), ledoit_wolf(x)[0]
    values, vectors = np.linalg.eigh(covariance)
    whiten, unwhiten = (vectors * values**power @ vectors.T for power in (-0.5, 0.5))
    shared = whiten @ ((x - mean) * (z - z.mean())[:, None]).mean(0)
    projector = np.outer(shared, shared) / (shared @ shared)
    expected = x - (x - mean) @ (unwhiten @ projector @ whiten).T
    erased = tokens + leace(tokens, is_target).change(1.0)(tokens)
    np.testing.assert_allclose(erased.numpy(), expected, atol=1e-9)
    # no linear classifier finds the class: the classes have one mean
    torch.testing.assert_close(erased[is_target].mean(0), erased[~is_target].mean(0))


@pytest.mark.parametrize("learn", LEARNED)
def test_what_cannot_be_learned_is_said(tokens, learn) -> None:
    with pytest.raises(EditError, match=r"300 tokens of the target from 0 others"):
        learn(tokens, torch.ones(300, dtype=torch.bool))
    with pytest.raises(EditError, match="do not differ"):
        difference_of_means(torch.ones(4, 3), torch.tensor([True, True, False, False]))


def test_more_channels_than_tokens(tokens, is_target) -> None:
    wide = torch.randn(20, 64, generator=torch.Generator().manual_seed(1))
    kind = torch.arange(20) < 8
    wide[:8, 0] += 5
    for learn in LEARNED:
        found = learn(wide, kind)
        assert (wide + found.change(1.0)(wide)).isfinite().all()
