from __future__ import annotations

import pytest
import torch

from elude_nb.errors import EditError
from elude_nb.steering.transplant import transplant


def units_of_concept(split, concept):
    rows = split.units.query("concept == @concept")
    return list(zip(rows["channel"].tolist(), rows["unit"].tolist(), strict=True))


def test_sub_units_are_set_to_what_they_are_where_the_concept_is_strongest(split, images) -> None:
    edit = transplant(split, images[2], 3, share=0.25)
    patches, class_token = edit.changes
    pairs = units_of_concept(split, 3)
    assert list(patches.units) == list(class_token.units) == pairs
    values = split.activations([images[2]], pairs, tokens="patch")[0]
    strength = split.concept_activations([images[2]], tokens="patch")[0, :, 3]
    best = sorted(range(16), key=lambda token: -float(strength[token]))[:4]
    expected = torch.stack([values[token] for token in best]).mean(0)
    torch.testing.assert_close(torch.tensor(patches.values, dtype=expected.dtype), expected)
    there = split.activations([images[2]], pairs, tokens="class")[0]
    torch.testing.assert_close(torch.tensor(class_token.values, dtype=there.dtype), there)


def test_the_whole_of_a_concept_arrives(split, images) -> None:
    """Inside the block the other image's channels hold the sub-units' new values."""
    edit = transplant(split, images[2], 3, share=1.0)
    pairs = units_of_concept(split, 3)
    before = split.recording(images[5:6], tokens="patch")
    old = split.activations(images[5:6], pairs, tokens="patch")[0]
    with split.edit(edit):
        after = split.recording(images[5:6], tokens="patch")
    expected = before.channels.clone()
    for number, (channel, _) in enumerate(pairs):
        expected[:, channel] += edit.changes[0].values[number] - old[:, number]
    torch.testing.assert_close(after.channels, expected, rtol=1e-11, atol=1e-11)


def test_a_mask_leaves_the_class_token_alone(split, images) -> None:
    edit = transplant(split, images[2], 3, mask=[[1.0] * 4] * 4, strength=0.5)
    assert len(edit.changes) == 1
    assert edit.changes[0].strength == 0.5


def test_a_site_with_one_vector_an_image(mlp_split, smallest_images) -> None:
    concept = int(mlp_split.units["concept"].dropna().iloc[0])
    edit = transplant(mlp_split, smallest_images[0], concept)
    with mlp_split.edit(edit):
        mlp_split.model(mlp_split.model.prepare([smallest_images[1]]))
    assert {change.tokens for change in edit.changes} == {"class"}


def test_wrong_arguments_are_named(split, images) -> None:
    with pytest.raises(EditError, match="99"):
        transplant(split, images[0], 99)
    with pytest.raises(EditError, match="'cat'"):
        transplant(split, images[0], "cat")
    with pytest.raises(ValueError, match="share"):
        transplant(split, images[0], 1, share=2)


def test_several_concepts_are_the_sum_of_each(split, images) -> None:
    one, other = (transplant(split, images[2], concept) for concept in (3, 5))
    both = transplant(split, images[2], [3, 5])
    assert [change.units for change in both.changes] == [change.units for change in (one + other).changes]
    for change, expected in zip(both.changes, (one + other).changes, strict=True):
        assert change.values == pytest.approx(expected.values, rel=1e-12)
        assert change.tokens == expected.tokens
