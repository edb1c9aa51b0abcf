"""Edits at the strongest tokens of each image: against masks that were worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from elude_nb import Edit
from elude_nb.errors import EditError
from elude_nb.interpret.gallery import Gallery
from elude_nb.steering.permanent import make_permanent

STRONGEST = 3


def outputs(split: Any, images: Any, edit: Edit) -> torch.Tensor:
    with split.edit(edit):
        return tokens_of(split.model.network, split, images)


def tokens_of(network: Any, split: Any, images: Any) -> torch.Tensor:
    """Return all tokens after the last block: the class token alone would not notice an edit of patches there."""
    with torch.no_grad():
        found: torch.Tensor = network.forward_features(split.model.prepare(list(images)))
    return found


def masks_by_hand(split: Any, images: Any, unit: tuple[int, int], sign: int) -> list[Any]:
    """Return for each image which patches are the strongest of a unit, (rows, columns)."""
    gallery = Gallery(split, images).fill(progress=False)
    found = []
    for maps in gallery.maps_of([unit])[..., 0]:
        mask = torch.zeros(len(maps))
        mask[(sign * maps).topk(STRONGEST).indices] = 1
        found.append(mask.view(*gallery.grid))
    return found


@pytest.mark.parametrize("low", [False, True])
def test_only_the_strongest_patches_are_edited(split, images, low) -> None:
    """Of a unit that is low on its concept, the lowest ones."""
    unit, few, sign = (3, 1), images.subset(range(4)), 1
    if low:
        split, sign = replace(split), -1
        vars(split)["means_on_concepts"] = -split.means_on_concepts
    together = outputs(split, few, Edit.ablate(unit=unit, tokens="patch", strongest=STRONGEST))
    one_by_one = [
        outputs(split, few.subset([number]), Edit.ablate(unit=unit, mask=mask))
        for number, mask in enumerate(masks_by_hand(split, few, unit, sign))
    ]
    torch.testing.assert_close(together, torch.cat(one_by_one), rtol=1e-5, atol=1e-6)
    assert not torch.equal(together, outputs(split, few, Edit.ablate(unit=unit, tokens="patch")))


def test_as_many_as_there_are_is_all(split, images) -> None:
    concept = int(split.units["concept"].dropna().iloc[0])
    every = outputs(split, images, Edit.scale(concept=concept, by=2, tokens="patch"))
    many = outputs(split, images, Edit.scale(concept=concept, by=2, tokens="patch", strongest=10_000))
    torch.testing.assert_close(many, every, rtol=1e-5, atol=1e-6)


def test_a_permanent_edit_is_the_same(split, images) -> None:
    concept = int(split.units["concept"].dropna().iloc[0])
    for edit in (
        Edit.ablate(concept=concept, strongest=2),
        Edit.clamp(concept=concept, high=0.2, tokens="patch", strongest=4, strength=0.5),
    ):
        expected = outputs(split, images, edit)
        network = make_permanent(split, edit)
        found = tokens_of(network, split, images)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_it_is_written_down(split) -> None:
    edit = Edit.ablate(unit=(3, 1), strongest=5)
    assert edit.code() == "Edit.ablate(unit=(3, 1), to='mean', strongest=5)"
    assert eval(edit.code(), {"Edit": Edit}) == edit  # noqa: S307 - our own code
    assert Edit.from_json(edit.to_json()) == edit
    assert "strongest" not in Edit.ablate(unit=(3, 1)).to_json()
    with pytest.raises(EditError, match="strongest=0"):
        Edit.ablate(unit=(3, 1), strongest=0)
    with pytest.raises(TypeError, match="strongest"):
        Edit.ablate(unit=(3, 1), strongest=1.5)  # type: ignore[arg-type]
