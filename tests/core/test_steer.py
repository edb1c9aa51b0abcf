from __future__ import annotations

import copy
import dataclasses
import gc
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from elude_nb import Disentanglement, disentangle, find_site
from elude_nb.core.edit import Edit
from elude_nb.core.plan import plan_edit
from elude_nb.core.steer import Steering, check_edit, moved_output
from elude_nb.errors import EditError, ModelMismatchError
from elude_nb.models.hooks import is_intercepted
from tests.core.test_plan import busiest_concepts, channels_now, some_units
from tests.tiny import hook_count, random_images, tiny_mlp, tiny_vit

CLOSE: dict[str, Any] = {"rtol": 1e-11, "atol": 1e-11}
SETTINGS: dict[str, Any] = {"concepts": 6, "units": 3, "tokens_per_image": 6, "progress": False}


@pytest.fixture(params=["split", "elude_split", "conv_split", "mlp_split"])
def case(request) -> Iterator[tuple[Disentanglement, Tensor]]:
    """A split at a stream, at a convolution with BatchNorm, at one vector an image; with a batch of four."""
    photos = {"split": "images", "elude_split": "images", "conv_split": "small_images", "mlp_split": "smallest_images"}[
        request.param
    ]
    found: Disentanglement = request.getfixturevalue(request.param)
    yield found, found.model.prepare(list(request.getfixturevalue(photos)[:4]))
    assert clean(found.model.network)


@pytest.fixture(scope="module")
def own() -> Disentanglement:
    """A split of a model that no other test has."""
    return disentangle(tiny_vit(), random_images(20, 32), **SETTINGS)


def clean(network: nn.Module) -> bool:
    """Say whether nothing of a steering is left on a network."""
    return not (
        is_intercepted(network) or hook_count(network) or any("forward" in vars(module) for module in network.modules())
    )


def fade(split: Disentanglement, by: float = -1.0, **more: Any) -> Edit:
    return Edit.scale(concept=busiest_concepts(split)[0], by=by, **more)


def some_edits(split: Disentanglement) -> list[Edit]:
    units = some_units(split)
    return [
        fade(split),
        Edit.ablate(unit=units, to="zero", strength=0.5),
        Edit.clamp(unit=units, low=-0.05, high=0.05),
        Edit.add(concept=busiest_concepts(split)[1], by=2.0),
        Edit.scale(unit=units[:1], by=3.0, tokens=[0]),
    ]


def edited(split: Disentanglement, edit: Edit, batch: Tensor) -> Tensor:
    with split.edit(edit):
        found: Tensor = split.model(batch)
    return found


# ------------------------------------------------------------------ nothing is nothing


@pytest.mark.parametrize("nothing", ["empty", "scale by 1", "strength 0", "at 0", "add 0", "schedule of 0"])
def test_edits_that_do_nothing_leave_outputs_the_same_bit_for_bit(case, nothing) -> None:
    split, batch = case
    units = some_units(split)
    edit = {
        "empty": Edit(),
        "scale by 1": Edit.scale(concept=busiest_concepts(split), by=1.0) + Edit.scale(unit=units, by=1.0),
        "strength 0": Edit.ablate(unit=units, strength=0.0),
        "at 0": sum(some_edits(split), Edit()).at(0),
        "add 0": Edit.add(unit=units, by=0.0),
        "schedule of 0": Edit.ablate(unit=units, strength=[0.0, 0.0]),
    }[nothing]
    plain = split.model(batch)
    assert torch.equal(edited(split, edit, batch), plain)
    with split.edit(fade(split)) as steering:
        assert not torch.equal(split.model(batch), plain)
        steering.change(edit)
        assert torch.equal(split.model(batch), plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision(images, dtype) -> None:
    split = disentangle(tiny_vit(dtype), images, **SETTINGS)
    batch = split.model.prepare(list(images[:3]))
    plain = split.model(batch)
    for edit in some_edits(split):
        found = edited(split, edit, batch)
        assert found.dtype == dtype
        assert found.isfinite().all()
        assert not found.equal(plain)
    assert edited(split, Edit.scale(unit=some_units(split), by=1.0), batch).equal(plain)
    assert split.model(batch).equal(plain)


# ------------------------------------------------------------------ composing


def test_a_sum_is_the_same_as_nested_blocks_bit_for_bit(case) -> None:
    split, batch = case
    several = some_edits(split)
    for one in several:
        for other in several:
            with split.edit(one), split.edit(other):
                nested = split.model(batch)
            assert torch.equal(edited(split, one + other, batch), nested)


def test_leaving_the_inner_block_leaves_the_outer_edit(case) -> None:
    split, batch = case
    one, other = some_edits(split)[:2]
    plain, expected = split.model(batch), edited(split, one, batch)
    for _ in range(2):
        with split.edit(one):
            with split.edit(other):
                split.model(batch)
            assert split.model(batch).equal(expected)
        assert split.model(batch).equal(plain)


def test_blocks_left_in_another_order(own) -> None:
    batch = own.model.prepare(list(random_images(2, 32)))
    one, other = some_edits(own)[:2]
    first, second = own.edit(one), own.edit(other)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    found = own.model(batch)
    second.__exit__(None, None, None)
    second.__exit__(None, None, None)  # once too often does no harm
    assert found.equal(edited(own, other, batch))
    assert clean(own.model.network)


def test_one_context_can_be_entered_again_and_twice_at_once(case) -> None:
    split, batch = case
    edit = Edit.scale(unit=some_units(split), by=0.5)
    steering = split.edit(edit)
    twice = edited(split, edit + edit, batch)
    with steering:
        once = split.model(batch)
    with steering:
        assert split.model(batch).equal(once)
        with steering:
            assert split.model(batch).equal(twice)
        assert split.model(batch).equal(once)


def test_several_edits_in_a_row_and_by_change_are_the_same(case) -> None:
    split, batch = case
    alone = [edited(split, edit, batch) for edit in some_edits(split)]
    with split.edit(Edit()) as steering:
        for edit, expected in zip(some_edits(split), alone, strict=True):
            steering.change(edit)
            assert steering.edit == edit
            assert split.model(batch).equal(expected)
    steering.change(some_edits(split)[0])
    with steering:
        assert split.model(batch).equal(alone[0])


def test_a_change_keeps_its_place_among_nested_blocks(split, images) -> None:
    batch = split.model.prepare(list(images[:2]))
    a, b, c = some_edits(split)[:3]
    with split.edit(a) as outer, split.edit(b):
        outer.change(c)
        found = split.model(batch)
    assert found.equal(edited(split, c + b, batch))


def test_schedules_begin_when_their_block_does(split, images) -> None:
    batch = split.model.prepare(list(images[:2]))
    units = some_units(split)
    slow = Edit.scale(unit=units[:1], by=0.0, strength=[0.0, 0.5, 1.0])
    other = Edit.scale(unit=units[2:3], by=0.0, strength=[1.0, 0.0])

    def at(strength: float, second: float = 0.0) -> Tensor:
        first = Edit.scale(unit=units[:1], by=0.0, strength=strength)
        return edited(split, first + Edit.scale(unit=units[2:3], by=0.0, strength=second), batch)

    found, expected = [], [at(0.0), at(0.5, 1.0), at(1.0, 0.0), at(0.0), at(0.5), at(0.0)]
    with split.edit(slow) as steering:
        found.append(split.model(batch))
        with split.edit(other):
            found += [split.model(batch), split.model(batch)]
        steering.change(slow)  # begins again
        found += [split.model(batch), split.model(batch)]
    with split.edit(slow):
        found.append(split.model(batch))
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), **CLOSE)


def test_several_splits_at_once(vit, split, images) -> None:
    """Two sites, and two routings of one site: at one site their changes add up."""
    batch = vit.prepare(list(images[:2]))
    other = disentangle(vit, images, routing="random", concepts=8, units=3, tokens_per_image=6, progress=False)
    early = disentangle(vit, images, "stream:1", **SETTINGS)
    linear = disentangle(vit, images, "blocks.1.mlp.fc2", **SETTINGS)
    assert len({each.identity for each in (split, other, early, linear)}) == 4
    plain = vit(batch)
    a, b = fade(split), fade(other)
    before = channels_now(split, images[:2])
    with split.edit(a):
        first = channels_now(split, images[:2]) - before
    with other.edit(b):
        second = channels_now(split, images[:2]) - before
    for one, two in [((split, a), (other, b)), ((other, b), (split, a))]:
        with one[0].edit(one[1]), two[0].edit(two[1]):
            torch.testing.assert_close(channels_now(split, images[:2]) - before, first + second, **CLOSE)
    with early.edit(fade(early)), linear.edit(fade(linear)):
        upstream = channels_now(split, images[:2])
        with split.edit(a):
            assert not channels_now(split, images[:2]).equal(upstream)
        assert channels_now(split, images[:2]).equal(upstream)
        with early.edit(fade(early, by=0.3)), other.edit(b):
            vit(batch)
        assert channels_now(split, images[:2]).equal(upstream)
    assert vit(batch).equal(plain)
    assert clean(vit.network)


def test_the_same_split_under_other_names(split, images) -> None:
    """Two objects of one split share what is active; what one calls by name, the other need not know."""
    batch = split.model.prepare(list(images[:2]))
    one, other = busiest_concepts(split)
    named = split.with_names({one: "cat", other: "dog"})
    swapped = split.with_names({one: "dog", other: "cat"})
    a, b = Edit.scale(concept=one, by=0.0), Edit.scale(concept=other, by=2.0)
    expected = edited(split, a + b, batch)
    with split.edit(a), named.edit(Edit.scale(concept="dog", by=2.0)):
        assert split.model(batch).equal(expected)
    with swapped.edit(Edit.scale(concept="dog", by=0.0)), named.edit(Edit()) as steering:
        steering.change(Edit.scale(concept="dog", by=2.0))
        assert split.model(batch).equal(expected)
    assert clean(split.model.network)


# ------------------------------------------------------------------ batches, modes, compiled models, threads


def test_a_batch_is_as_many_batches_of_one(case) -> None:
    split, batch = case
    for edit in some_edits(split):
        alone = torch.cat([edited(split, edit, batch[i : i + 1]) for i in range(len(batch))])
        torch.testing.assert_close(edited(split, edit, batch), alone, **CLOSE)
    with split.edit(some_edits(split)[0]):
        for size in (1, 3, 2):
            assert split.model(batch[:size]).shape[0] == size


def test_inference_mode_and_gradients(case) -> None:
    split, batch = case
    for edit in some_edits(split):
        expected = edited(split, edit, batch)
        with torch.inference_mode(), split.edit(edit):
            assert split.model(batch).equal(expected)
        with split.edit(edit), torch.inference_mode():
            assert split.model(batch).equal(expected)
        inputs = batch.clone().requires_grad_()
        found = edited(split, edit, inputs)
        assert found.detach().equal(expected)
        (gradient,) = torch.autograd.grad(found.square().sum(), inputs)
        assert gradient.isfinite().all()
        assert edited(split, edit, batch).equal(expected)


def test_gradients_are_those_of_the_edited_model(split, images) -> None:
    batch = split.model.prepare(list(images[:1])).requires_grad_()
    step = torch.randn(batch.shape, generator=torch.Generator().manual_seed(0), dtype=batch.dtype)
    with split.edit(fade(split)):
        (gradient,) = torch.autograd.grad(split.model(batch).square().sum(), batch)
        with torch.no_grad():
            ends = [split.model(batch + side * 1e-6 * step).square().sum() for side in (1, -1)]
    torch.testing.assert_close((gradient * step).sum(), (ends[0] - ends[1]) / 2e-6, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["vit", "mlp"])
def test_autocast(kind) -> None:
    if kind == "vit":
        photos = random_images(20, 32)
        split = disentangle(tiny_vit(torch.float32), photos, **SETTINGS)
    else:
        photos = random_images(40, 8)
        split = disentangle(tiny_mlp(torch.float32), photos, "3", concepts=5, units=3, tokens="class", progress=False)
    batch = split.model.prepare(list(photos[:3]))
    for edit in some_edits(split):
        expected, plain = edited(split, edit, batch), split.model(batch)
        with torch.autocast("cpu", torch.bfloat16):
            half = split.model(batch)
            found = edited(split, edit, batch)
            assert edited(split, Edit(), batch).equal(half)
        assert found.dtype == half.dtype
        assert (found - expected).abs().max() <= 0.05 * expected.abs().max()
        # The edit moves outputs as it does in full precision, up to the rounding of both.
        assert (found.float() - half.float() - (expected - plain)).abs().max() <= 0.05 * expected.abs().max()
    assert clean(split.model.network)


@pytest.mark.parametrize("where", ["stream", "conv", "mlp"])
@pytest.mark.parametrize("when", ["before", "inside"])
def test_compiled_models(where, when, request) -> None:
    fixture, photos = {
        "stream": ("split", "images"),
        "conv": ("conv_split", "small_images"),
        "mlp": ("mlp_split", "smallest_images"),
    }[where]
    split: Disentanglement = request.getfixturevalue(fixture)
    batch = split.model.prepare(list(request.getfixturevalue(photos)[:2]))
    network = split.model.network
    torch.compiler.reset()
    several = some_edits(split)
    plain = network(batch)
    expected = [edited(split, edit, batch) for edit in several]
    compiled = torch.compile(network, backend="eager")
    if when == "before":
        assert compiled(batch).equal(plain)
    for _ in range(2):  # several different edits in a row, more than Dynamo would compile anew
        for edit, wanted in zip(several, expected, strict=True):
            with split.edit(edit):
                assert compiled(batch).equal(wanted)
            assert compiled(batch).equal(plain)
    with split.edit(several[0]) as steering:
        for edit, wanted in zip(several, expected, strict=True):
            steering.change(edit)
            assert compiled(batch).equal(wanted)
        with split.edit(several[1]):
            assert compiled(batch).equal(edited_twice(split, several[-1], several[1], batch))
    assert compiled(batch).equal(plain)
    after = torch.compile(network, backend="eager")
    assert after(batch).equal(plain)
    torch.compiler.reset()


def edited_twice(split: Disentanglement, one: Edit, other: Edit, batch: Tensor) -> Tensor:
    """Return the outputs of a copy of the model under both edits."""
    model = dataclasses.replace(split.model, network=fresh_copy(split.model.network))
    with dataclasses.replace(split, model=model).edit(one + other):
        found: Tensor = model(batch)
    return found


def fresh_copy(network: nn.Module) -> nn.Module:
    made = copy.deepcopy(network)
    for module in made.modules():
        vars(module).pop("forward", None)
    return made


def test_threads_do_not_mix(split, images) -> None:
    batches = [split.model.prepare(list(images[i : i + 1 + i % 3])) for i in range(8)]
    expected = [edited(split, fade(split), batch) for batch in batches]
    wrong: list[Any] = []
    barrier = threading.Barrier(4)

    def run(number: int) -> None:
        try:
            barrier.wait()
            with split.edit(fade(split)):
                for turn in range(6):
                    at = (number + turn) % len(batches)
                    if not split.model(batches[at]).equal(expected[at]):
                        wrong.append(at)
        except BaseException as error:  # noqa: BLE001 - told by the main thread
            wrong.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert clean(split.model.network)


def test_a_copy_made_inside_is_its_own_network(own) -> None:
    batch = own.model.prepare(list(random_images(2, 32)))
    plain = own.model(batch)
    with own.edit(fade(own)):
        made = copy.deepcopy(own.model.network)
    assert made(batch).equal(plain)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(1.5)
    assert own.model(batch).equal(plain)
    assert not made(batch).equal(plain)
    other = tiny_vit()
    with torch.no_grad():
        for parameter in other.network.parameters():
            parameter.mul_(1.5)
    assert made(batch).equal(other(batch))
    with own.edit(fade(own)):
        assert made(batch).equal(other(batch))


def test_other_copies_of_the_network_are_not_edited(own) -> None:
    batch = own.model.prepare(list(random_images(2, 32)))
    other = copy.deepcopy(own.model.network)
    plain = own.model(batch)
    with own.edit(fade(own)):
        assert other(batch).equal(plain)


# ------------------------------------------------------------------ the model is as it was


class Stop(nn.Module):
    """Raises an error in place of a layer."""

    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.error = error

    def forward(self, *_: Any) -> Tensor:
        raise self.error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_errors_and_interrupts_inside_the_block(case, error) -> None:
    split, batch = case
    plain = split.model(batch)
    with pytest.raises(error), split.edit(fade(split)), split.edit(some_edits(split)[1]):  # noqa: PT012
        split.model(batch)
        raise error
    assert clean(split.model.network)
    assert split.model(batch).equal(plain)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("layer", ["blocks.0.norm1", "blocks.1.attn.proj", "blocks.1.mlp.act", "blocks.2.ls2", "norm"])
def test_errors_and_interrupts_from_within_a_pass(own, error, layer) -> None:
    """In the same block the next pass is right; and after the block the model is as it was."""
    network = own.model.network
    batch = own.model.prepare(list(random_images(2, 32)))
    plain, edit = own.model(batch), fade(own)
    expected = edited(own, edit, batch)
    owner: Any = network.get_submodule(layer.rpartition(".")[0])
    name = layer.rpartition(".")[2]
    whole = getattr(owner, name)

    def fail() -> None:
        setattr(owner, name, Stop(error))
        try:
            with pytest.raises(error):
                own.model(batch[:1])
        finally:
            setattr(owner, name, whole)

    with own.edit(edit) as steering:
        if name == "proj":  # a source layer: what replaces it is not listened to, but it is put back
            fail()
            assert own.model(batch).equal(expected)
        else:
            fail()
            assert own.model(batch).equal(expected)
            fail()
            steering.change(Edit())  # what the failed pass gathered must not come back
            assert own.model(batch).equal(plain)
            steering.change(edit)
            assert own.model(batch).equal(expected)
    assert clean(network)
    assert own.model(batch).equal(plain)
    with own.edit(edit):
        fail()
    setattr(owner, name, whole)
    assert clean(network)
    assert own.model(batch).equal(plain)


def test_a_context_entered_by_hand_and_dropped(own) -> None:
    batch = own.model.prepare(list(random_images(2, 32)))
    plain = own.model(batch)
    steering = own.edit(fade(own))
    steering.__enter__()
    inner = own.edit(some_edits(own)[1])
    inner.__enter__()
    assert not own.model(batch).equal(plain)
    del steering, inner
    gc.collect()
    assert clean(own.model.network)
    assert own.model(batch).equal(plain)


def test_the_split_deleted_with_an_open_block() -> None:
    model = tiny_vit()
    batch = model.prepare(list(random_images(2, 32)))
    plain = model(batch)
    split = disentangle(model, random_images(20, 32), **SETTINGS)
    steering = split.edit(fade(split))
    steering.__enter__()
    found = model(batch)
    del split
    gc.collect()
    assert model(batch).equal(found)  # the context still holds it
    assert not found.equal(plain)
    del steering
    gc.collect()
    assert clean(model.network)
    assert model(batch).equal(plain)


def test_nothing_keeps_the_network_alive() -> None:
    model = tiny_vit()
    split = disentangle(model, random_images(20, 32), **SETTINGS)
    with split.edit(fade(split)):
        model(model.prepare(list(random_images(2, 32))))
    steering = split.edit(fade(split))
    steering.__enter__()
    gone = weakref.ref(model.network)
    del model, split, steering
    gc.collect()
    assert gone() is None


def test_flags_and_parameters_are_left_alone(own) -> None:
    network = own.model.network
    network.get_submodule("blocks.1").train()
    before = {name: (id(module), module.training, dict(vars(module))) for name, module in network.named_modules()}
    values = {name: (id(p), p.clone(), p.requires_grad) for name, p in network.named_parameters()}
    keys = list(network.state_dict())
    with own.edit(fade(own)):
        own.model(own.model.prepare(list(random_images(2, 32))))
        assert list(network.state_dict()) == keys
    assert {n: (id(m), m.training, dict(vars(m))) for n, m in network.named_modules()} == before
    network.eval()
    for name, parameter in network.named_parameters():
        was, value, wanted = values[name]
        assert (id(parameter), parameter.requires_grad) == (was, wanted)
        assert parameter.equal(value)
        assert parameter.grad is None


# ------------------------------------------------------------------ bad input


def bad_edits(split: Disentanglement) -> list[tuple[type[Exception], Any]]:
    unit = some_units(split)[0]
    there = len(split.book)
    return [
        (ModelMismatchError, lambda: dataclasses.replace(fade(split), made_for="0" * 16)),
        (EditError, lambda: Edit.scale(concept=there, by=0.0)),
        (EditError, lambda: Edit.scale(concept="nobody", by=0.0)),
        (EditError, lambda: Edit.scale(unit=(unit[0], 99), by=0.0)),
        (EditError, lambda: Edit.scale(unit=(9_999, 0), by=0.0)),
        (EditError, lambda: Edit.scale(unit=unit, by=0.0, strength=float("nan"))),
        (EditError, lambda: Edit.scale(unit=unit, by=0.0, strength=[1.0, float("nan")])),
        (EditError, lambda: Edit.scale(unit=unit, by=0.0, mask=[[1.0] * 5] * 3)),
        (EditError, lambda: Edit.scale(unit=unit, by=0.0, tokens=[999])),
        (EditError, lambda: Edit.scale(unit=unit, by=0.0, tokens=[2, 999])),
        (EditError, lambda: fade(split) + Edit.scale(concept=there, by=0.0)),
        (EditError, lambda: Edit.scale(concept=there, by=0.0, strength=0.0)),
        (TypeError, lambda: None),
        (TypeError, lambda: fade(split).changes[0]),
        (TypeError, lambda: "Edit()"),
    ]


@pytest.mark.parametrize("number", range(15))
def test_bad_edits_are_refused_before_anything_runs(case, number) -> None:
    split, batch = case
    runs: list[int] = []
    handles = [module.register_forward_pre_hook(lambda *_: runs.append(1)) for module in split.model.network.modules()]
    error, make = bad_edits(split)[number]
    good = fade(split)
    try:
        with pytest.raises(error):
            split.edit(make())
        assert not is_intercepted(split.model.network)
        with split.edit(good) as steering:
            with pytest.raises(error):
                steering.change(make())
            assert steering.edit == good  # the old one stays
            with pytest.raises(error):
                split.edit(make())
            assert not runs
            found = split.model(batch)
    finally:
        for handle in handles:
            handle.remove()
    assert found.equal(edited(split, good, batch))


def test_edits_made_for_a_split_go_there_only(split, conv_split, images) -> None:
    edit = dataclasses.replace(fade(split), made_for=split.identity)
    batch = split.model.prepare(list(images[:2]))
    assert edited(split, edit, batch).equal(edited(split, fade(split), batch))
    check_edit(split, edit)
    for other in (conv_split, disentangle(split.model, images, **SETTINGS)):
        with pytest.raises(ModelMismatchError, match=split.identity):
            other.edit(edit)
    assert clean(split.model.network)


def test_images_of_another_size_are_told_if_tokens_are_chosen(conv_split) -> None:
    units = some_units(conv_split)
    larger = torch.rand(2, 3, 24, 24, dtype=torch.float64)
    with conv_split.edit(Edit.scale(unit=units, by=0.0, tokens=[0])), pytest.raises(EditError, match="144"):
        conv_split.model(larger)
    assert not edited(conv_split, Edit.scale(unit=units, by=0.0), larger).equal(conv_split.model(larger))
    assert clean(conv_split.model.network)


# ------------------------------------------------------------------ the rest


def test_reprs_say_whether_it_is_active(split) -> None:
    steering = split.edit(Edit.scale(concept=3, by=0.0))
    assert repr(steering) == "Steering(Edit.scale(concept=3, by=0.0) at stream:3, not active)"
    with steering as entered:
        assert entered is steering
        assert isinstance(steering, Steering)
        assert repr(steering).endswith("stream:3, active)")


def test_a_change_at_the_site_is_a_change_of_what_the_exit_puts_out(conv_split, small_images) -> None:
    """At a convolution the change is divided by the BatchNorm's scale, so that the channels move by it."""
    plan = plan_edit(conv_split, Edit.scale(unit=some_units(conv_split), by=0.0))
    output = torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    change = torch.randn(2, 64, len(plan), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    network, site = conv_split.model.network, conv_split.site
    norm: Any = network.get_submodule("norm")
    found = norm(moved_output(network, site, plan, change, output))
    expected = norm(output)
    for number, channel in enumerate(plan.channels.tolist()):
        expected[:, channel] += change[..., number].unflatten(1, (8, 8))
    torch.testing.assert_close(found, expected, **CLOSE)


def test_encodings_are_not_changed_by_an_edit_at_their_site(split, images) -> None:
    """The change is added beside the sources: sub-units read as they were, only the channels move."""
    units = [pair for pair in some_units(split) if pair[1]]
    before = split.activations(images[:2], units, tokens="all")
    with split.edit(Edit.scale(unit=units, by=0.0)):
        assert split.activations(images[:2], units, tokens="all").equal(before)


def test_a_site_cannot_be_checked_while_an_edit_in_its_window_is_active(vit, images) -> None:
    early = disentangle(vit, images, "stream:2", concepts=6, units=3, tokens_per_image=6, progress=False)
    with (
        early.edit(Edit.scale(concept=1, by=5.0)),
        pytest.raises(EditError, match="find_site needs the model as it is"),
    ):
        find_site(vit, "stream:3")
    find_site(vit, "stream:3")
