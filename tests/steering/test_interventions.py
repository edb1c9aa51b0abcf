"""One pass of the images, and for each intervention the same outputs as running the model with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

from elude_nb import Disentanglement, ImageSet, disentangle
from elude_nb.baselines.replace import replaced_features
from elude_nb.core.edit import Edit
from elude_nb.core.plan import plan_edit
from elude_nb.core.recording import Recording
from elude_nb.core.routing import NO_CONCEPT
from elude_nb.models.forward import Rest, features
from elude_nb.models.hooks import evaluating, is_intercepted
from elude_nb.steering.controls import edited_tokens, projected_out, whole_channels
from elude_nb.steering.heads import OwnClassifier
from elude_nb.steering.interventions import (
    TOKENS_PER_IMAGE,
    ChannelChange,
    Intervention,
    Outcomes,
    run_interventions,
)
from tests.tiny import hook_count, tiny_vit

PHOTOS = {"split": "images", "elude_split": "images", "conv_split": "small_images", "mlp_split": "smallest_images"}


@pytest.fixture(params=list(PHOTOS))
def case(request) -> tuple[Disentanglement, ImageSet]:
    return request.getfixturevalue(request.param), request.getfixturevalue(PHOTOS[request.param])[:7]


def concepts_of(split: Disentanglement) -> list[int]:
    return [c for c, _ in Counter(split.routing.concepts.flatten().tolist()).most_common() if c != NO_CONCEPT]


def run(
    split: Disentanglement,
    images: ImageSet,
    interventions: list[Intervention],
    strengths: list[float],
    *,
    weights: torch.Tensor | None = None,
    seed: int | None = None,
    batch_size: int = 16,
    read: Any = features,
) -> Outcomes:
    split = split.using(batch_size=batch_size, progress=False)
    with evaluating(split.model.network):
        rest = Rest(split.model, split.site, read)
        return run_interventions(split, rest, images, interventions, strengths, weights=weights, seed=seed)


def live(split: Disentanglement, edit: Edit, images: ImageSet) -> torch.Tensor:
    with split.edit(edit):
        return replaced_features(split.model, images, split.site, None, tokens="all")


def edits_of(split: Disentanglement) -> list[Edit]:
    one, two = concepts_of(split)[:2]
    rows = list(zip(*(row.tolist() for row in split.routing.rows()), strict=True))
    units = [pair for pair in rows if pair[1]][:3]
    made = [
        Edit.ablate(concept=one),
        Edit.scale(concept=[one, two], by=2.0, about="zero"),
        Edit.clamp(unit=units, low=-0.01, high=0.01),
        Edit.add(unit=units, by=[0.3, -1.0, 2.0], strength=0.5),
        Edit.scale(concept=one, by=1.0),
    ]
    if split.site.layout.grid is None:
        return made
    mask = torch.linspace(0, 1, split.site.layout.grid[0] * split.site.layout.grid[1]).view(split.site.layout.grid)
    return [
        *made,
        Edit.ablate(concept=two, tokens="patch"),
        Edit.scale(concept=one, by=0.5, mask=mask),
        Edit.clamp(unit=units, high=0.0, tokens=[1, 5]),
    ]


def test_plans_do_what_the_live_edit_does(case) -> None:
    split, images = case
    edits, strengths = edits_of(split), [0.25, 1.0, -0.5]
    plans = [Intervention(repr(edit), "", (plan_edit(split, edit),)) for edit in edits]
    found = run(split, images, plans, strengths, batch_size=3)
    assert set(found.after) == {(place, strength) for place in range(len(edits)) for strength in strengths}
    torch.testing.assert_close(found.before, live(split, Edit(), images), rtol=1e-11, atol=1e-11)
    for place, edit in enumerate(edits):
        for strength in strengths:
            (after,) = found.after[place, strength]
            torch.testing.assert_close(after, live(split, edit.at(strength), images), rtol=1e-10, atol=1e-10)
    assert float((found.after[0, 1.0][0] - found.before).abs().max()) > 1e-3
    for strength in strengths:  # an edit that asks for nothing changes no bit
        assert found.after[4, strength][0].equal(found.before)


def test_draws_stay_apart(case) -> None:
    split, images = case
    edits = [Edit.ablate(concept=concept) for concept in concepts_of(split)[:3]]
    several = Intervention("draws", "", tuple(plan_edit(split, edit) for edit in edits))
    found = run(split, images, [several], [0.5], batch_size=4)
    for edit, after in zip(edits, found.after[0, 0.5], strict=True):
        torch.testing.assert_close(after, live(split, edit.at(0.5), images), rtol=1e-10, atol=1e-10)


def moved_by(change: ChannelChange, strength: float) -> Callable[[Recording], torch.Tensor]:
    return lambda seen: seen.channels + strength * change(seen.channels)


@pytest.mark.parametrize("batch_size", [2, 16])
def test_changes_of_channels_do_what_a_reconstruction_does(case, batch_size) -> None:
    split, images = case
    made = [whole_channels(split, [0, 3], 1.0, "x"), projected_out(split, concepts_of(split)[:1], 0.7)]
    found = run(split, images, made, [1.0, 0.3], batch_size=batch_size)
    for place, each in enumerate(made):
        change = each.change
        assert change is not None
        for strength in (1.0, 0.3):
            expected = replaced_features(split.model, images, split.site, moved_by(change, strength), tokens="all")
            (after,) = found.after[place, strength]
            torch.testing.assert_close(after, expected, rtol=1e-9, atol=1e-9)
            assert float((after - found.before).abs().max()) > 1e-4


@pytest.mark.parametrize("batch_size", [3, 16])
def test_changes_of_channels_act_with_the_tokens_weights(split, images, batch_size) -> None:
    images = images[:5]
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(19, generator=generator, dtype=torch.float64) * (torch.arange(19) % 3 > 0)
    made = whole_channels(split, [2, 9], 0.8, "x")
    change = made.change
    assert change is not None
    found = run(split, images, [made], [0.5], weights=weights, seed=4, batch_size=batch_size)

    def reconstruct(seen: Recording) -> torch.Tensor:
        return seen.channels + 0.5 * weights[seen.positions][:, None] * change(seen.channels)

    expected = replaced_features(split.model, images, split.site, reconstruct, tokens="all")
    torch.testing.assert_close(found.after[0, 0.5][0], expected, rtol=1e-10, atol=1e-10)
    channels = split.recording(images, tokens="all").channels.unflatten(0, (5, 19))
    pooled = sum(float(w) * channels[:, token] for token, w in enumerate(weights)) / float(weights.sum())
    torch.testing.assert_close(found.pooled, pooled, rtol=1e-10, atol=1e-10)
    edited = [token for token in range(19) if weights[token] != 0]
    assert len(found.tokens) == 5 * len(edited)  # fewer than are wanted: all of them
    assert found.images.tolist() == [image for image in range(5) for _ in edited]
    torch.testing.assert_close(found.tokens, channels[:, edited].flatten(0, 1), rtol=1e-10, atol=1e-10)


def test_weights_of_an_edit_go_to_its_controls(split, images) -> None:
    """With the weights of an edit of patches, class token and registers stay as they are."""
    edit = Edit.ablate(concept=concepts_of(split)[0], tokens="patch")
    made = whole_channels(split, [0, 1], 1.0, "x")
    found = run(
        split, images[:4], [made], [1.0], weights=edited_tokens(split, edit), read=OwnClassifier(tuple("abcde")).read
    )
    assert found.before.shape == (4, 5)
    assert found.after[0, 1.0][0].equal(found.before)  # the last stream: the head reads the class token


def test_tokens_are_drawn_image_by_image(conv_split, small_images) -> None:
    """Whatever the batch size; and only as many as are wanted."""
    images = small_images[:5]
    one, two = (run(conv_split, images, [], [1.0], seed=3, batch_size=size) for size in (2, 16))
    assert len(one.tokens) == 5 * TOKENS_PER_IMAGE
    torch.testing.assert_close(one.tokens, two.tokens, rtol=1e-12, atol=1e-12)
    assert one.images.equal(two.images)
    other = run(conv_split, images, [], [1.0], seed=4)
    assert not other.tokens.equal(two.tokens)
    channels = conv_split.recording(images, tokens="all").channels.unflatten(0, (5, -1))
    for row, image in zip(two.tokens, two.images.tolist(), strict=True):
        assert float((channels[image] - row).abs().amax(1).min()) <= 1e-10
    nothing = run(conv_split, images, [], [1.0])
    assert nothing.tokens.shape == (0, 8)
    assert len(nothing.images) == 0


def test_a_stream_in_the_middle_skips_the_blocks_before_it(vit, images) -> None:
    split = disentangle(vit, images, "stream:2", concepts=6, units=3, tokens_per_image=6, progress=False)
    edits = edits_of(split)
    calls: list[int] = []
    first = vit.network.get_submodule("blocks.0").register_forward_hook(lambda *_: calls.append(1))
    plans = [Intervention("", "", (plan_edit(split, edit),)) for edit in edits]
    with evaluating(vit.network):
        rest = Rest(vit, split.site)
        calls.clear()
        found = run_interventions(split, rest, images[:4], plans, [1.0, 0.5])
    first.remove()
    assert len(calls) == 1
    for place, edit in enumerate(edits):
        torch.testing.assert_close(
            found.after[place, 0.5][0], live(split, edit.at(0.5), images[:4]), rtol=1e-10, atol=1e-10
        )


def test_in_half_precision(images) -> None:
    split = disentangle(tiny_vit(torch.bfloat16), images, concepts=6, units=3, tokens_per_image=6, progress=False)
    edit = Edit.ablate(concept=concepts_of(split)[0])
    made = [Intervention("edit", "", (plan_edit(split, edit),)), whole_channels(split, [0], 1.0, "x")]
    found = run(split, images[:4], made, [1.0], seed=0)
    assert {found.before.dtype, found.pooled.dtype, found.tokens.dtype} == {torch.float32}
    torch.testing.assert_close(found.after[0, 1.0][0], live(split, edit, images[:4]), rtol=0, atol=0)


def test_the_network_is_as_it_was(case) -> None:
    split, images = case
    plan = Intervention("edit", "", (plan_edit(split, edits_of(split)[0]),))

    def fail(h: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt

    before = replaced_features(split.model, images, split.site, None, tokens="all")
    for interventions in ([plan], [plan, Intervention("fails", "", change=fail)]):
        try:
            run(split, images, interventions, [1.0])
        except KeyboardInterrupt:
            assert len(interventions) == 2
        assert hook_count(split.model.network) == 0
        assert not is_intercepted(split.model.network)
        assert replaced_features(split.model, images, split.site, None, tokens="all").equal(before)
