from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from elude_nb.core.concepts import ConceptBook
from elude_nb.core.routing import NO_CONCEPT
from elude_nb.interpret.concept_map import lay_out, spread


def with_directions(split, directions: torch.Tensor):
    g = len(directions)
    book = ConceptBook(torch.ones(g, dtype=torch.int64), directions.double(), torch.zeros(g, split.weight.shape[1]))
    concepts = split.routing.concepts
    routing = replace(split.routing, concepts=concepts.masked_fill(concepts >= g, NO_CONCEPT))
    return replace(split, book=book, routing=routing)


def test_like_concepts_lie_near_each_other(split) -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 24, generator=generator).repeat_interleave(10, 0)
    many = with_directions(split, centres + 0.1 * torch.randn(40, 24, generator=generator))
    positions = lay_out(many).positions
    distances = np.linalg.norm(positions[:, None] - positions[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert all(distances[i].argmin() // 10 == i // 10 for i in range(40))


@pytest.mark.parametrize("number", [2, 3, 4, 5, 8])
def test_any_number_of_concepts(split, number) -> None:
    few = with_directions(split, torch.eye(24)[:number])
    positions = lay_out(few, seed=3).positions
    assert positions.shape == (number, 2)
    assert np.isfinite(positions).all()
    assert np.ptp(positions, axis=0).max() == pytest.approx(1.0)
    assert np.array_equal(positions, lay_out(few, seed=3).positions)


def test_a_wrong_seed(split) -> None:
    with pytest.raises(ValueError, match="seed=-1"):
        lay_out(split, seed=-1)


def test_squares_are_pushed_apart_as_little_as_it_takes() -> None:
    far = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert np.array_equal(spread(far, 0.5), far)
    close = np.random.default_rng(0).normal(0, 0.05, (40, 2))
    close[1] = close[0]  # at one place
    found = spread(close, 0.1)
    gaps = np.abs(found[:, None] - found[None]).max(2) + np.eye(40)
    assert gaps.min() > 0.095
    assert np.abs(found).max() < 1.0
