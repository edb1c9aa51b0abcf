"""Every public call on a model that is listened to, edited, interrupted or changed: right, or refused.

``docs/calls.md`` says for each call whether it may run inside an edit; the table is read here and held against the
code.
"""

from __future__ import annotations

import inspect
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import elude_nb as en
from elude_nb.baselines.replace import Replaced
from elude_nb.core.one_pass import collect
from elude_nb.core.readout import Lens
from elude_nb.errors import EditError, ModelMismatchError, WeightsError
from elude_nb.interpret.descriptions import describe_concepts
from elude_nb.interpret.gallery import Gallery
from elude_nb.interpret.naming import name_concepts_by_text
from elude_nb.interpret.neighbours import find_neighbours
from elude_nb.interpret.trace import trace_channel
from elude_nb.models.forward import overheard
from elude_nb.models.hooks import Tap, check_pristine, clean_copy, intercept, is_edited
from elude_nb.scores import suggest_settings
from elude_nb.steering.export import save_program
from elude_nb.steering.heads import predict
from elude_nb.steering.live import LiveSteering
from elude_nb.steering.patches import patch_change
from elude_nb.steering.permanent import make_permanent, save_permanent
from tests.tiny import hook_count, random_images, tiny_vit

READS, NEEDS_PRISTINE = "reads the model as it runs", "needs the model as it is"
QUICK: dict[str, Any] = {"concepts": 6, "units": 3, "tokens_per_image": 6, "progress": False}


class Encoder:
    def encode_images(self, images):
        return torch.eye(4)[torch.arange(len(images)) % 4]

    def encode_texts(self, texts):
        return torch.eye(4)[: len(texts)]


@pytest.fixture
def env(tmp_path: Path) -> SimpleNamespace:
    model = tiny_vit()
    images = random_images(24, 32)
    split = en.disentangle(model, images, **QUICK)
    concept = int(split.units["concept"].dropna().iloc[0])
    channel = int(split.routing.is_split().nonzero()[0])
    path = tmp_path / "split.safetensors"
    split.save(path)
    return SimpleNamespace(
        model=model, images=images, split=split, batch=model.prepare([images[0], images[1]]), concept=concept,
        channel=channel, unit=(channel, 1), edit=en.Edit.scale(concept=concept, by=0.0), folder=tmp_path, path=path,
        head=en.fit_head(model, images),
    )  # fmt: skip


def read_by_lens(e: Any) -> Any:
    with e.split.lens([e.unit]) as lens, torch.no_grad():
        e.model(e.batch)
    return lens.values


def read_in_edit(e: Any) -> Any:
    with e.split.edit(e.edit), torch.no_grad():
        return e.model(e.batch)


SMALL_ELUDE = en.EludeRouting(top_k=0.6, min_cluster_size=4, min_samples=1)
CALLS: dict[str, Callable[[Any], Any]] = {
    "model(batch)": lambda e: e.model(e.batch),
    "embed": lambda e: en.embed(e.model, e.images),
    "record": lambda e: list(en.record(e.model, e.images, e.split.site)),
    "predict": lambda e: predict(e.head, e.model, e.images),
    "Disentanglement.activations": lambda e: e.split.activations(e.images, [e.unit]),
    "Disentanglement.top_images": lambda e: e.split.top_images(*e.unit, e.images),
    "Disentanglement.concept_activations": lambda e: e.split.concept_activations(e.images),
    "Disentanglement.distinct_units": lambda e: e.split.distinct_units(3, images=e.images),
    "Disentanglement.contributions": lambda e: e.split.contributions(*e.unit, e.images),
    "Disentanglement.recording": lambda e: e.split.recording(e.images),
    "Disentanglement.lens": read_by_lens,
    "Disentanglement.edit": read_in_edit,
    "find_site": lambda e: en.find_site(e.model, "stream"),
    "find_sites": lambda e: en.find_sites(e.model),
    "disentangle": lambda e: en.disentangle(e.model, e.images, **QUICK),
    "collect": lambda e: collect(e.model, e.images, **QUICK),
    "scores.suggest_settings": lambda e: suggest_settings(e.model, e.images, concepts=8),
    "trace_channel": lambda e: trace_channel(e.model, e.images, 0, "blocks.2.mlp.fc2", routing=SMALL_ELUDE),
    "verify": lambda e: en.verify(e.split, e.images[:2], progress=False),
    "score": lambda e: en.score(e.split, e.images, progress=False),
    "compare": lambda e: en.compare(e.model, e.images, methods=["channels"], k=4, progress=False),
    "find_exemplars": lambda e: en.find_exemplars(e.split, e.images, e.channel, progress=False),
    "find_units": lambda e: en.find_units(e.split, e.images[:12], e.images[12:]),
    "name_concepts": lambda e: en.name_concepts(e.split, e.images),
    "name_concepts_by_text": lambda e: name_concepts_by_text(e.split, e.images, ["a", "b", "c"], Encoder()),
    "describe_concepts": lambda e: describe_concepts(e.split, e.images),
    "attribute": lambda e: en.attribute(e.split, e.images[:2], 0),
    "effect": lambda e: en.effect(e.split, e.edit, e.images, controls=(), progress=False),
    "fit_head": lambda e: en.fit_head(e.model, e.images),
    "find_neighbours": lambda e: find_neighbours(e.split, e.images[0], e.images, {"faded": e.edit}),
    "Gallery.fill": lambda e: Gallery(e.split, e.images).fill(progress=False),
    "patch_change": lambda e: patch_change(e.split, e.edit, e.images[:2]),
    "LiveSteering": lambda e: LiveSteering(e.split, head=e.head).see(e.images[0]),
    "make_permanent": lambda e: make_permanent(e.split, e.edit),
    "save_permanent": lambda e: save_permanent(e.split, e.edit, e.folder / "network.safetensors"),
    "save_program": lambda e: save_program(e.model.network, e.folder / "network.pt2", like=e.model),
    "Disentanglement.explicit": lambda e: e.split.explicit(),
    "Disentanglement.save": lambda e: e.split.save(e.folder / "again.safetensors"),
    "Disentanglement.load": lambda e: en.Disentanglement.load(e.path, e.model),
}
WITHOUT_MODEL = {  # these look at the split alone, or make one
    "with_names", "concepts_named", "concept_title", "unit_readout", "live_readout", "concept_readout", "encode",
    "decode", "check_model", "using", "count_seen", "unseen", "announce_seen",
}  # fmt: skip
OF_A_MODEL = {
    "find_site", "find_sites", "disentangle", "collect", "scores.suggest_settings", "trace_channel", "compare",
    "fit_head", "embed", "record", "predict", "model(batch)", "save_program",
}  # fmt: skip


def table() -> dict[str, str]:
    text = (Path(__file__).parents[1] / "docs" / "calls.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", text, re.MULTILINE)
    return {name: said.strip() for name, said in rows}


def state_of(e: Any) -> tuple[Any, ...]:
    with torch.no_grad():
        output = e.model(e.batch)
    bits = [(name, value.clone()) for name, value in e.model.network.state_dict().items()]
    training = [module.training for module in e.model.network.modules()]
    return output, bits, training


def assert_untouched(e: Any, before: tuple[Any, ...]) -> None:
    output, bits, training = before
    assert hook_count(e.model.network) == 0
    assert not is_edited(e.model.network)
    assert not any("forward" in vars(module) for module in e.model.network.modules())
    found, now, flags = state_of(e)
    assert found.equal(output)
    assert all(name == other and value.equal(new) for (name, value), (other, new) in zip(bits, now, strict=True))
    assert flags == training


def test_the_table_has_every_public_call_that_runs_a_model() -> None:
    assert set(table()) == set(CALLS)
    assert set(table().values()) == {READS, NEEDS_PRISTINE}
    functions = {
        name for name in en.__all__
        if inspect.isfunction(getattr(en, name))
        and {"split", "model"} & set(inspect.signature(getattr(en, name)).parameters)
    }  # fmt: skip
    assert functions <= set(CALLS)
    methods = {
        name for name, value in vars(en.Disentanglement).items()
        if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, staticmethod))
    }  # fmt: skip
    assert {f"Disentanglement.{name}" for name in methods - WITHOUT_MODEL} <= set(CALLS)


@pytest.mark.parametrize("name", CALLS)
def test_inside_a_lens_every_call_does_what_it_does_outside(env, name) -> None:
    before = state_of(env)
    with env.split.lens() as lens:
        env.model(env.batch)
        CALLS[name](env)
        assert lens.values.isfinite().all()
    assert_untouched(env, before)


@pytest.mark.parametrize("name", CALLS)
def test_inside_an_edit_a_call_reads_the_edited_model_or_refuses(env, name) -> None:
    before = state_of(env)
    with env.split.edit(env.edit):
        if table()[name] == READS:
            CALLS[name](env)
        else:
            with pytest.raises(EditError, match="needs the model as it is, and an edit is active"):
                CALLS[name](env)
    assert_untouched(env, before)
    CALLS[name](env)  # and afterwards it runs
    assert_untouched(env, before)


@pytest.mark.parametrize("name", CALLS)
def test_hooks_of_others_stay_and_are_heard(env, name) -> None:
    before = state_of(env)
    heard: list[int] = []
    handle = env.model.network.blocks[0].register_forward_hook(lambda *_: heard.append(1))
    CALLS[name](env)
    handle.remove()
    assert_untouched(env, before)


RUN_ON_IMAGES = [
    name for name in CALLS
    if name not in {"model(batch)", "Disentanglement.lens", "Disentanglement.edit", "find_site", "find_sites",
                    "make_permanent", "save_permanent", "save_program", "Disentanglement.explicit", "LiveSteering",
                    "Disentanglement.save", "Disentanglement.load", "name_concepts_by_text"}
]  # fmt: skip


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("name", RUN_ON_IMAGES)
def test_an_error_or_interrupt_in_a_forward_pass_leaves_the_model_as_it_was(env, name, error, monkeypatch) -> None:
    before = state_of(env)
    count = 0

    def passing(network: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal count
        count += 1
        if count >= 2 or name in {"verify", "find_neighbours", "attribute"}:
            raise error("in the middle")

    handle = env.model.network.blocks[2].register_forward_hook(passing)
    try:
        with pytest.raises(error, match="in the middle"):
            CALLS[name](env)
    finally:
        handle.remove()
    assert_untouched(env, before)


# ---------------------------------------------------------------------------------------------- entered twice


def contexts(e: Any) -> dict[str, Any]:
    positions = e.split.site.layout.positions("patch")
    return {
        "lens": e.split.lens(),
        "tap": Tap(e.model.network, e.split.site, on_source=lambda *_: None),
        "replaced": Replaced(e.model.network, e.split.site, lambda recording: recording.channels * 0, positions),
        "edit": e.split.edit(e.edit),
    }


@pytest.mark.parametrize("kind", ["lens", "tap", "replaced", "edit"])
def test_a_context_entered_twice_acts_until_its_last_exit_and_leaves_nothing(env, kind) -> None:
    before = state_of(env)
    context = contexts(env)[kind]
    with context:
        once = env.model(env.batch)
        hooks = hook_count(env.model.network)
        with context:
            env.model(env.batch)
            assert hook_count(env.model.network) == hooks
        assert env.model(env.batch).equal(once)  # still active
        assert not is_edited(env.model.network) or kind == "edit"
    assert_untouched(env, before)
    with pytest.raises(ZeroDivisionError), context, context:
        raise ZeroDivisionError
    assert_untouched(env, before)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupt_while_hooks_are_set_leaves_none(env, error, monkeypatch) -> None:
    before = state_of(env)
    real = nn.Module.register_forward_pre_hook
    count = 0

    def interrupted(self: nn.Module, *args: Any, **more: Any) -> Any:
        nonlocal count
        count += 1
        if count == 3:
            raise error
        return real(self, *args, **more)

    monkeypatch.setattr(nn.Module, "register_forward_pre_hook", interrupted)
    with pytest.raises(error), env.split.lens():
        pytest.fail("entered")
    monkeypatch.undo()
    assert_untouched(env, before)


# ------------------------------------------------------------------------------------- copies without hooks


def test_networks_made_inside_a_lens_have_no_hooks_and_can_be_stored(env, tmp_path) -> None:
    """In 0.2 six hooks of the lens went into the explicit network for ever, and torch.save of it failed."""
    for make in (env.split.explicit, lambda: make_permanent(env.split, env.edit)):
        with env.split.lens():
            made = make()
        assert hook_count(made) == 0
        torch.save(made, tmp_path / "network.pt")
        found = torch.load(tmp_path / "network.pt", weights_only=False)
        with torch.no_grad():
            assert found(env.batch).equal(made(env.batch))


def test_a_clean_copy_keeps_hooks_and_forwards_of_others(env) -> None:
    network = env.model.network
    with torch.no_grad():
        plain = network(env.batch)
    network.blocks[1].register_forward_hook(lambda _, __, output: output * 2)
    inner = type(network.norm).forward
    network.norm.forward = lambda tokens: inner(network.norm, tokens) + 1
    with torch.no_grad():
        changed = network(env.batch)
    with env.split.lens():
        remove = intercept(network.norm, after=lambda output: output * 0)
        made = clean_copy(network)
        remove()
    with torch.no_grad():
        assert made(env.batch).equal(changed)
    assert not changed.equal(plain)
    assert hook_count(made) == 1


def test_a_file_saved_beside_an_edit_belongs_to_the_model(env, tmp_path) -> None:
    """In 0.2 the probe of the edited model was stored, and the file could never be loaded again."""
    path = tmp_path / "inside.safetensors"
    with env.split.edit(env.edit), pytest.raises(EditError):
        env.split.save(path)
    assert not path.exists()
    with env.split.lens():
        env.split.save(path)
    assert en.Disentanglement.load(path, env.model).routing.routes.equal(env.split.routing.routes)


# ----------------------------------------------------------------------------------------------- threads


def test_read_outs_of_many_threads_are_those_of_one(env) -> None:
    """In 0.2 hooks of one thread heard the passes of all: 38 of 40 read-outs were wrong."""
    sets = [random_images(4, 32, seed=seed) for seed in range(8)]
    alone = [env.split.concept_activations(images) for images in sets]
    before = state_of(env)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            found = list(pool.map(env.split.concept_activations, sets))
            for one, other in zip(found, alone, strict=True):
                torch.testing.assert_close(one, other)
    assert_untouched(env, before)


def test_edits_of_two_threads_do_not_mix(env) -> None:
    other = int(env.split.units["concept"].dropna().unique()[1])
    edits = [en.Edit.scale(concept=env.concept, by=0.0), en.Edit.scale(concept=other, by=3.0)]

    def run(edit: en.Edit) -> torch.Tensor:
        with env.split.edit(edit), torch.no_grad():
            return env.model(env.batch)  # type: ignore[no-any-return]

    alone = [run(edit) for edit in edits]
    before = state_of(env)
    barrier = threading.Barrier(2)

    def often(number: int) -> list[torch.Tensor]:
        with env.split.edit(edits[number]), torch.no_grad():
            barrier.wait()
            found = [env.model(env.batch) for _ in range(20)]
            barrier.wait()
        return found

    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(often, range(2)))
    for found, expected in zip(both, alone, strict=True):
        assert all(one.equal(expected) for one in found)
    assert_untouched(env, before)


def test_edits_of_two_threads_at_different_sites_do_not_mix(env) -> None:
    early = en.disentangle(env.model, env.images, "blocks.0.mlp.fc2", **QUICK)
    fade = en.Edit.scale(concept=int(early.units["concept"].dropna().iloc[0]), by=0.0)

    def run(split: en.Disentanglement, edit: en.Edit, barrier: Any = None) -> list[torch.Tensor]:
        with split.edit(edit), torch.no_grad():
            if barrier is not None:
                barrier.wait()
            found = [env.model(env.batch) for _ in range(10)]
            if barrier is not None:
                barrier.wait()
        return found

    alone = [run(early, fade)[0], run(env.split, env.edit)[0]]
    barrier = threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.submit(run, early, fade, barrier), pool.submit(run, env.split, env.edit, barrier)
        for found, expected in zip((first.result(), second.result()), alone, strict=True):
            assert all(one.equal(expected) for one in found)
    assert hook_count(env.model.network) == 0


def test_a_thread_without_an_edit_is_refused_rather_than_edited(env) -> None:
    with ThreadPoolExecutor(1) as pool:
        with env.split.edit(env.edit), pytest.raises(EditError, match="in another thread"):
            pool.submit(env.model, env.batch).result()
        assert pool.submit(env.model, env.batch).result().isfinite().all()


def test_a_lens_of_two_threads_is_refused(env) -> None:
    lens = env.split.lens()
    with lens, ThreadPoolExecutor(1) as pool, pytest.raises(RuntimeError, match="another thread"):
        pool.submit(lens.__enter__).result()
    assert hook_count(env.model.network) == 0


def test_a_network_in_training_mode_is_so_again_after_all_threads(env) -> None:
    env.model.network.train()
    env.model.network.blocks[0].eval()
    flags = [module.training for module in env.model.network.modules()]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(env.split.concept_activations, [env.images[:4]] * 12))
    assert [module.training for module in env.model.network.modules()] == flags


# ------------------------------------------------------------------------------ activation checkpointing


@pytest.fixture(params=[False, True], ids=["new", "reentrant"])
def checkpointed(env, request) -> Any:
    """The blocks of the network run again during backward."""
    blocks = env.model.network.blocks
    plain = list(blocks)

    class Again(nn.Module):
        def __init__(self, block: nn.Module) -> None:
            super().__init__()
            self.block = block

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return checkpoint(self.block, tokens, use_reentrant=request.param)  # type: ignore[no-any-return]

    def run(*, again: bool) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = env.batch.clone().requires_grad_()
        for number, block in enumerate(plain):
            blocks[number] = Again(block) if again else block
        try:
            output = env.model.network(tokens)
            (gradient,) = torch.autograd.grad(output.square().sum(), tokens) if not request.param else (None,)
            if gradient is None:
                output.square().sum().backward()
                gradient = tokens.grad
        finally:
            for number, block in enumerate(plain):
                blocks[number] = block
        assert gradient is not None
        return output.detach(), gradient

    env.run = run
    return env


def test_layers_that_run_again_are_heard_once(checkpointed) -> None:
    with checkpointed.split.lens([checkpointed.unit]) as lens:
        checkpointed.run(again=False)
        plain = lens.values.detach()
        checkpointed.run(again=True)
        torch.testing.assert_close(lens.values.detach(), plain)


def test_an_edit_has_the_gradient_that_it_has_without_checkpointing(checkpointed) -> None:
    split = en.disentangle(checkpointed.model, checkpointed.images, "blocks.1.mlp.fc2", **QUICK)
    edit = en.Edit.scale(concept=int(split.units["concept"].dropna().iloc[0]), by=0.0)
    with split.edit(edit):
        output, gradient = checkpointed.run(again=False)
        again, recomputed = checkpointed.run(again=True)
    assert again.equal(output)
    torch.testing.assert_close(recomputed, gradient)
    assert not checkpointed.run(again=False)[0].equal(output)


def test_an_edit_whose_layers_run_again_only_in_part_is_refused(checkpointed) -> None:
    with checkpointed.split.edit(checkpointed.edit), pytest.raises(EditError, match="checkpointing"):
        checkpointed.run(again=True)
    assert hook_count(checkpointed.model.network) == 0


# ----------------------------------------------------------------------------------------- stale weights


def in_place(network: Any) -> None:
    with torch.no_grad():
        network.blocks[1].mlp.fc2.weight[0, 0] += 1


def through_data(network: Any) -> None:
    network.blocks[1].mlp.fc2.weight.data.mul_(1.5)


def one_step(network: Any) -> None:
    network.requires_grad_(requires_grad=True)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    network(torch.ones(1, 3, 32, 32, dtype=torch.float64)).sum().backward()
    optimizer.step()
    network.requires_grad_(requires_grad=False)
    optimizer.zero_grad()


def replaced_layer(network: Any) -> None:
    network.blocks[2].mlp.fc1 = nn.Linear(24, 96, dtype=torch.float64)


def adapter(network: Any) -> None:
    layer = network.blocks[1].mlp.fc2
    torch.nn.utils.parametrize.register_parametrization(layer, "weight", Half())


class Half(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight / 2


STALE = {"in place": in_place, "through .data": through_data, "a training step": one_step,
         "a replaced layer": replaced_layer, "an adapter": adapter}  # fmt: skip
OF_A_SPLIT = sorted(set(CALLS) - OF_A_MODEL - {"Disentanglement.load"})


@pytest.mark.parametrize("how", STALE)
def test_a_split_of_weights_that_changed_is_refused(env, how) -> None:
    STALE[how](env.model.network)
    for name in ("Disentanglement.activations", "verify", "Disentanglement.save", "Disentanglement.edit"):
        with pytest.raises(ModelMismatchError, match="are not those that were split"):
            CALLS[name](env)
    with pytest.raises(ModelMismatchError, match="are not those that were split"):
        env.split.with_names({0: "cat"}).activations(env.images)


MOVED: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "all of it": (
        lambda network: network.float(), ModelMismatchError,
        r"split in torch\.float64, and '.+' is now in torch\.float32\. Move it back, .*model\.to\(dtype=torch\.float32",
    ),
    "a layer": (
        lambda network: network.blocks[1].mlp.half(), ModelMismatchError,
        r"split in torch\.float64, and 'blocks\.1\.mlp\.fc1\.weight' is now in torch\.float16\. Move it back",
    ),
    "to meta": (lambda network: network.to("meta"), WeightsError, "on the device meta, which holds no numbers"),
}  # fmt: skip


@pytest.mark.parametrize("how", MOVED)
def test_every_call_of_a_split_says_what_its_model_was_moved_to(env, how) -> None:
    move, error, reason = MOVED[how]
    kept = {name: value.clone() for name, value in env.model.network.state_dict().items()}
    read = env.split.activations(env.images, [env.unit])
    loaded = en.Disentanglement.load(env.path, env.model)
    move(env.model.network)
    with pytest.raises(error, match=reason):  # its tables are worked out of the weights
        loaded.units  # noqa: B018
    for name in OF_A_SPLIT:
        with pytest.raises(error, match=reason):
            CALLS[name](env)
    with pytest.raises(error, match=r"torch\.float32, not torch\.float64|SHA-256|on the device meta"):
        CALLS["Disentanglement.load"](env)
    if how != "to meta":
        env.model.network.double().load_state_dict(kept)
        assert env.split.activations(env.images, [env.unit]).equal(read)


@pytest.mark.parametrize("name", OF_A_SPLIT)
def test_every_call_of_a_split_notices_weights_that_changed(env, name) -> None:
    in_place(env.model.network)
    with pytest.raises(ModelMismatchError, match="are not those that were split"):
        CALLS[name](env)


def test_a_single_value_written_through_data_is_seen_before_anything_is_written_or_certified(env) -> None:
    env.model.network.blocks[1].mlp.fc2.weight.data[3, 5] += 1e-9
    for name in ("verify", "Disentanglement.save", "Disentanglement.explicit", "make_permanent"):
        with pytest.raises(ModelMismatchError):
            CALLS[name](env)


def test_a_split_made_anew_belongs_to_the_weights_as_they_are(env) -> None:
    """Also if no look at the weights could tell that they changed: the hash of a new split is never an old one."""
    env.model.network.blocks[1].mlp.fc2.weight.data[3, 5] += 1e-9
    anew = en.disentangle(env.model, env.images, **QUICK)
    anew.save(env.folder / "anew.safetensors")
    assert en.Disentanglement.load(env.folder / "anew.safetensors", env.model).identity == anew.identity
    with pytest.raises(ModelMismatchError):
        env.split.using(batch_size=3).save(env.folder / "old.safetensors")


def test_outputs_collected_in_one_thread_are_not_those_of_another(env) -> None:
    with overheard(env.model) as collected, ThreadPoolExecutor(1) as pool:
        own = env.model(env.batch)
        pool.submit(env.model, env.batch * 2).result()
    assert len(collected.parts) == 1
    assert collected.parts[0].equal(own)


def test_the_same_weights_loaded_again_or_put_back_are_the_same(env) -> None:
    kept = {name: value.clone() for name, value in env.model.network.state_dict().items()}
    read = env.split.activations(env.images, [env.unit])
    env.model.network.load_state_dict(kept)
    assert env.split.activations(env.images, [env.unit]).equal(read)
    in_place(env.model.network)
    with pytest.raises(ModelMismatchError):
        env.split.activations(env.images)
    env.model.network.load_state_dict(kept)
    assert env.split.activations(env.images, [env.unit]).equal(read)


def test_the_one_check_names_its_purpose(env) -> None:
    check_pristine(env.model.network, "anything")
    with env.split.edit(env.edit), pytest.raises(EditError, match="anything needs the model as it is"):
        check_pristine(env.model.network, "anything")


def test_a_lens_is_a_tap(env) -> None:
    assert isinstance(env.split.lens(), Lens)
    assert isinstance(env.split.lens(), Tap)
