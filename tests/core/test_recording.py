from __future__ import annotations

import pytest
import torch
from torch import nn

from elude_nb import Recording, find_site, record
from elude_nb.core.recording import evaluating, sample_positions
from tests.tiny import hook_count, tiny_vit

FIELDS = ("channels", "sources", "entering", "images", "positions")


def whole(model, images, name="stream", **more) -> Recording:
    return Recording.join(list(record(model, images, find_site(model, name), **more)))


@pytest.mark.parametrize("batch_size", [1, 3, 20, 50])
def test_batch_size_changes_neither_tokens_nor_values(vit, images, batch_size) -> None:
    settings = {"tokens": "patch", "tokens_per_image": 5, "seed": 3}
    first, other = whole(vit, images, **settings), whole(vit, images, **settings, batch_size=batch_size)
    assert first.images.equal(other.images)
    assert first.positions.equal(other.positions)
    for field in FIELDS[:3]:
        torch.testing.assert_close(getattr(first, field), getattr(other, field), rtol=1e-11, atol=1e-11)


def test_rows_are_the_tokens_they_say_they_are(vit, images) -> None:
    """Literal second implementation: one image at a time, all tokens, then the rows named."""
    seen = whole(vit, images[:6], tokens="patch", tokens_per_image=4, seed=1, batch_size=4)
    assert len(seen) == 24
    for row in range(len(seen)):
        image, position = int(seen.images[row]), int(seen.positions[row])
        alone = whole(vit, images[image : image + 1], tokens="all")
        for field in FIELDS[:3]:
            expected = getattr(alone, field)[position]
            torch.testing.assert_close(getattr(seen, field)[row], expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("tokens", "expected"), [("class", [0]), ("registers", [1, 2]), ("patch", [*range(3, 19)]), ("all", [*range(19)])]
)
def test_tokens_asked_for_are_recorded(vit, images, tokens, expected) -> None:
    seen = whole(vit, images[:3], tokens=tokens)
    assert seen.positions.tolist() == expected * 3
    assert seen.images.tolist() == [i for i in range(3) for _ in expected]


def test_nothing_enters_a_layer(conv, small_images) -> None:
    seen = whole(conv, small_images[:2], "reflect", tokens="patch")
    assert not seen.entering.any()
    assert seen.sources.shape == (2 * 16, 12 * 9)
    assert seen.channels.shape == seen.entering.shape == (2 * 16, 6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_recorded_as_float32(images, dtype) -> None:
    """In bfloat16 a running sum of equal terms stands still at 256 of them."""
    model = tiny_vit(dtype)
    seen = whole(model, images[:3], tokens="all")
    assert {getattr(seen, field).dtype for field in FIELDS[:3]} == {torch.float32}
    assert seen.channels.to(dtype).float().equal(seen.channels)  # widened, not computed anew


def test_one_recording_a_batch(vit, images) -> None:
    parts = list(record(vit, images[:7], find_site(vit), tokens="class", batch_size=3))
    assert [len(part) for part in parts] == [3, 3, 1]
    assert [part.images.tolist() for part in parts] == [[0, 1, 2], [3, 4, 5], [6]]


def test_sampled_positions_do_not_depend_on_other_images() -> None:
    candidates = torch.arange(10, 40)
    together = sample_positions(candidates, 7, range(9), seed=5)
    assert together.shape == (9, 7)
    for image in range(9):
        assert sample_positions(candidates, 7, [image], seed=5)[0].equal(together[image])
    assert not sample_positions(candidates, 7, range(9), seed=6).equal(together)
    assert len({tuple(row) for row in together.tolist()}) == 9


def test_sampled_positions_are_sorted_candidates_without_repeats() -> None:
    for row in sample_positions(torch.arange(3, 19), 8, range(20), seed=0).tolist():
        assert row == sorted(set(row))
        assert set(row) <= set(range(3, 19))


@pytest.mark.parametrize("per_image", [None, 16, 99])
def test_all_candidates_are_taken_if_no_more_are_wanted(per_image) -> None:
    candidates = torch.arange(3, 19)
    assert sample_positions(candidates, per_image, range(2), seed=0).equal(candidates.expand(2, -1))


def test_every_candidate_is_drawn_equally_often() -> None:
    drawn = sample_positions(torch.arange(16), 4, range(4000), seed=0)
    counts = torch.bincount(drawn.flatten(), minlength=16)  # each binomial(4000, 1/4): 1000 with deviation 27
    assert counts.min() > 1000 - 5 * 27
    assert counts.max() < 1000 + 5 * 27


@pytest.mark.parametrize(("name", "value"), [("batch_size", 0), ("tokens_per_image", 0), ("tokens_per_image", -3)])
def test_settings_out_of_range_are_refused(vit, images, name, value) -> None:
    with pytest.raises(ValueError, match=f"{name}={value} is out of range"):
        whole(vit, images, **{name: value})


def test_recording_leaves_hooks_flags_and_random_state_alone(images) -> None:
    model = tiny_vit()
    model.network.train()
    model.network.get_submodule("blocks.1").eval()
    flags = [module.training for module in model.network.modules()]
    random = torch.get_rng_state()
    whole(model, images[:2])
    assert [module.training for module in model.network.modules()] == flags
    assert torch.get_rng_state().equal(random)
    assert hook_count(model.network) == 0


def test_recording_that_fails_leaves_hooks_and_flags_alone(images) -> None:
    model = tiny_vit()
    site = find_site(model)
    model.network.train()
    model.network.head = nn.Linear(7, 5).double()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        next(record(model, images[:2], site))
    assert all(module.training for module in model.network.modules())
    assert hook_count(model.network) == 0


def test_recording_that_is_left_half_way_leaves_nothing(images) -> None:
    model = tiny_vit()
    parts = record(model, images, find_site(model), batch_size=2)
    next(parts)
    assert hook_count(model.network) == 0
    parts.close()  # type: ignore[attr-defined]
    assert hook_count(model.network) == 0


def test_evaluating_restores_each_modules_own_flag_after_an_exception() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2)))
    network.train()
    network[1].eval()
    flags = [module.training for module in network.modules()]
    inside: list[bool] = []

    def look_and_fail() -> None:
        inside.extend([any(module.training for module in network.modules()), torch.is_grad_enabled()])
        raise KeyError

    with pytest.raises(KeyError), evaluating(network):
        look_and_fail()
    assert inside == [False, False]
    assert [module.training for module in network.modules()] == flags
    assert torch.is_grad_enabled()


def test_recording_says_how_much_it_holds(vit, images) -> None:
    assert repr(whole(vit, images[:2], tokens="class")) == "Recording(2 tokens of 2 images, d=24, s=360)"


def test_what_is_recorded_can_be_trained_on(vit, images) -> None:
    """Inference tensors could not be changed in place, nor saved for a backward pass."""
    recording = whole(vit, images[:2], tokens="class")
    recording.channels.sub_(recording.channels.mean(0))
    layer = torch.nn.Linear(24, 1).to(recording.channels.dtype)
    layer(recording.channels).sum().backward()
    assert layer.weight.grad is not None
