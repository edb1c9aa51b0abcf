"""Whether a unit means the same in two sets of images."""

import pytest
import torch

from elude_nb.scores import top_centres, transfer_similarity


def test_a_unit_that_means_the_same_is_above_chance_and_an_exchanged_one_below() -> None:
    centres = torch.eye(4)[:3]
    assert transfer_similarity(centres, centres).tolist() == [1.0, 1.0, 1.0]
    exchanged = transfer_similarity(centres, centres[[1, 0, 2]])
    assert exchanged.tolist() == [-0.5, -0.5, 1.0]


def test_unrelated_units_are_at_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    sets = [torch.randn(40, 6, generator=generator) for _ in range(2)]
    centres = [top_centres(torch.rand(40, 300, generator=generator), embeddings, 5) for embeddings in sets]
    assert transfer_similarity(*centres).mean() == pytest.approx(0, abs=0.02)


def test_a_unit_without_a_direction_has_no_score() -> None:
    centres = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    assert transfer_similarity(centres, centres).isna().tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("here", "there", "what"),
    [
        (torch.ones(3, 2), torch.ones(2, 2), r"\(3, 2\) and there \(2, 2\)"),
        (torch.ones(1, 2), torch.ones(1, 2), "two units or more"),
        (torch.ones(3, 2), torch.full((3, 2), torch.nan), "there is not finite"),
    ],
)
def test_wrong_centres(here: torch.Tensor, there: torch.Tensor, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        transfer_similarity(here, there)
