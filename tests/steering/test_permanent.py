"""An edit made permanent: the same outputs as the live edit, in weights or in ordinary modules, for good."""

from __future__ import annotations

import copy
import functools
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from elude_nb import Disentanglement, Model, disentangle
from elude_nb.core.edit import Edit
from elude_nb.core.routing import NO_CONCEPT
from elude_nb.errors import EditError, ModelMismatchError, SiteError
from elude_nb.models.hooks import is_intercepted
from elude_nb.steering.permanent import make_permanent, save_permanent
from tests.tiny import hook_count, random_images, redraw, tiny_conv, tiny_mlp, tiny_vit, wrapped

MAKERS = {"vit": tiny_vit, "conv": tiny_conv, "mlp": tiny_mlp}
SITES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "whole stream": ("vit", "stream", {}),
    "stream:2": ("vit", "stream:2", {}),
    "one block": ("vit", "stream", {"blocks": 1}),
    "two blocks in the middle": ("vit", "stream:2", {"blocks": 2}),
    "fc2": ("vit", "blocks.1.mlp.fc2", {}),
    "qkv": ("vit", "blocks.2.attn.qkv", {}),
    "stem": ("conv", "stem", {}),
    "grouped": ("conv", "grouped", {}),
    "reflect": ("conv", "reflect", {}),
    "point": ("conv", "point", {}),
    "mlp": ("mlp", "3", {}),
}
STREAMS = {"whole stream", "stream:2", "one block", "two blocks in the middle"}


@functools.cache
def made_split(where: str, dtype: torch.dtype = torch.float64) -> Disentanglement:
    kind, site, more = SITES[where]
    model = MAKERS[kind](dtype)
    tokens = "class" if kind == "mlp" else "patch"
    images = random_images(20, model.input_size[-1])
    return disentangle(
        model, images, site, concepts=5, units=3, tokens_per_image=4, tokens=tokens, progress=False, **more
    )


@functools.cache
def busiest(where: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Return two concepts; and sub-units, two of one channel, and its shared unit."""
    split = made_split(where)
    concepts = [c for c, _ in Counter(split.routing.concepts.flatten().tolist()).most_common() if c != NO_CONCEPT]
    rows = list(zip(*(row.tolist() for row in split.routing.rows()), strict=True))
    channel = Counter(c for c, unit in rows if unit).most_common(1)[0][0]
    other = next(pair for pair in rows if pair[1] and pair[0] != channel)
    subs = [pair for pair in rows if pair[0] == channel and pair[1]][:2]
    return concepts[:2], [*subs, other, (channel, 0)]


def affine_edits(where: str) -> list[Edit]:
    concepts, units = busiest(where)
    return [
        Edit.scale(concept=concepts[0], by=0.3),
        Edit.scale(unit=units, by=[0.5, -1.0, 2.0, 0.0], about="zero"),
        Edit.ablate(concept=concepts),
        Edit.ablate(concept=concepts[0], to="zero", strength=0.4),
        Edit.ablate(unit=units[:2], to=0.7),
        Edit.add(concept=concepts[0], by=1.5),
        Edit.add(unit=units, by=[0.5, -1.0, 2.0, 0.1], strength=-0.5),
        Edit.scale(concept=concepts[0], by=0.3) + Edit.add(unit=units, by=1.0) + Edit.ablate(unit=units[0]),
    ]


def clamps(where: str) -> list[Edit]:
    concepts, units = busiest(where)
    clamp = Edit.clamp(unit=units, low=-0.05, high=0.02)
    return [
        clamp,
        Edit.clamp(concept=concepts[0], high=0.2, strength=0.6),
        Edit.scale(concept=concepts, by=-1.0, about="others"),
        Edit.clamp(unit=units[:2], low=0.1, about="zero"),
        Edit.add(unit=units, by=0.1) + clamp + Edit.scale(unit=units[1:3], by=1.5),
    ]


def local_edits(where: str) -> list[Edit]:
    concepts, units = busiest(where)
    clamp = Edit.clamp(unit=units, low=-0.05, high=0.02)
    grid, prefix = made_split(where).site.layout.grid, made_split(where).site.layout.classes
    if grid is None:
        return [Edit.ablate(concept=concepts[0], tokens="class"), Edit.add(unit=units, by=1.0, tokens=[0]) + clamp]
    mask = np.linspace(0, 1, grid[0] * grid[1]).reshape(grid)
    made = [
        Edit.ablate(concept=concepts[0], to="zero", tokens="patch"),
        Edit.scale(unit=units, by=2.0, tokens=[3, 0, 2]),
        Edit.add(concept=concepts[0], by=1.0, mask=mask, strength=0.7),
        Edit.ablate(concept=concepts[0], mask=mask > 0.5),
        Edit.clamp(concept=concepts[0], low=0.1, high=0.2, mask=mask),
        clamp + Edit.scale(unit=units[:2], by=0.0, mask=mask),
        Edit.scale(unit=units[:2], by=0.0, tokens=[1]) + Edit.clamp(unit=units, high=0.0, tokens=[2, 1]),
    ]
    return [*made, Edit.ablate(concept=concepts[1], tokens="class")] if prefix else made


def batch_of(split: Disentanglement, count: int = 7) -> torch.Tensor:
    return split.model.prepare(list(random_images(count, split.model.input_size[-1], seed=9)))


def outputs(model: Model, batch: torch.Tensor) -> torch.Tensor:
    """Return the outputs, and beside them all that the head may not look at, such as patch tokens."""
    network: Any = model.network
    tokens = [network.forward_features(batch).flatten(1)] if hasattr(network, "forward_features") else []
    return torch.cat([model(batch), *tokens], 1)


def made_outputs(split: Disentanglement, made: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return outputs(replace(split.model, network=made), batch)


def live(split: Disentanglement, edit: Edit, batch: torch.Tensor) -> torch.Tensor:
    with torch.no_grad(), split.edit(edit):
        return outputs(split.model, batch)


def assert_equal_outputs(split: Disentanglement, edit: Edit, made: nn.Module, within: float) -> None:
    batch = batch_of(split)
    expected, before = live(split, edit, batch), outputs(split.model, batch)
    difference = float((made_outputs(split, made, batch) - expected).abs().max() / expected.abs().max())
    assert difference <= within, edit
    moved = float((before - expected).abs().max() / expected.abs().max())
    assert moved > 10 * within or within > 1e-5, edit  # otherwise nothing was tested


@pytest.mark.parametrize("where", SITES)
def test_permanent_equals_live(where) -> None:
    split = made_split(where)
    for edit in [*affine_edits(where), *clamps(where), *local_edits(where)]:
        made = make_permanent(split, edit)
        assert_equal_outputs(split, edit, made, 1e-12)
        assert not any(module.training for module in made.modules())
        assert not any(parameter.requires_grad for parameter in made.parameters())
        assert hook_count(made) == 0
    assert not is_intercepted(split.model.network)


@pytest.mark.parametrize("where", ["whole stream", "one block", "fc2", "stem", "grouped", "mlp"])
@pytest.mark.parametrize(("dtype", "eps"), [(torch.float32, 64), (torch.bfloat16, 8)])
def test_in_lower_precision(where, dtype, eps) -> None:
    split = made_split(where, dtype)
    for edit in [*affine_edits(where)[::3], *clamps(where)[::3], *local_edits(where)[::2]]:
        if dtype == torch.float32:
            edit = edit.at(0.5)  # noqa: PLW2901
        made = make_permanent(split, edit)
        assert {parameter.dtype for name, parameter in made.named_parameters() if "reader" not in name} == {dtype}
        assert_equal_outputs(split, edit, made, eps * torch.finfo(dtype).eps)


@pytest.mark.parametrize("where", [where for where in SITES if where not in STREAMS])
def test_an_affine_edit_of_a_layer_is_other_numbers_and_nothing_else(where) -> None:
    split = made_split(where)
    network, layer = split.model.network, split.site.name
    before = network.state_dict()
    for edit in affine_edits(where):
        made = make_permanent(split, edit)
        assert [(name, type(each)) for name, each in made.named_modules()] == [
            (name, type(each)) for name, each in network.named_modules()
        ]
        roots = {type(module).__module__.split(".")[0] for module in made.modules()}
        assert roots <= {"torch", "timm", "tests"}
        after = made.state_dict()
        others = {f"{layer}.weight", f"{layer}.bias"}
        assert set(after) == set(before) | others
        for name, tensor in before.items():
            assert name in others or tensor.equal(after[name])
            assert tensor.dtype == after[name].dtype


def test_folded_weights_are_those_of_the_literal_formula() -> None:
    """Scaling a sub-unit about zero scales the weights that are routed to it: a row of numbers, no more."""
    split = made_split("fc2")
    _, units = busiest("fc2")
    (channel, unit), layer = units[0], split.model.network.get_submodule("blocks.1.mlp.fc2")
    found = make_permanent(split, Edit.scale(unit=(channel, unit), by=0.25, about="zero")).get_submodule(
        "blocks.1.mlp.fc2"
    )
    for row in range(split.site.channels):
        for source in range(split.site.sources):
            mine = row == channel and int(split.routing.routes[row, source]) == unit
            expected = float(layer.weight[row, source]) * (0.25 if mine else 1)  # type: ignore[index]
            assert float(found.weight[row, source]) == pytest.approx(expected, rel=1e-14)  # type: ignore[index]
    torch.testing.assert_close(found.bias, layer.bias, rtol=0, atol=1e-14)  # the offset comes and goes


@pytest.mark.parametrize("where", ["whole stream", "fc2", "stem", "mlp"])
def test_the_original_is_untouched_and_shares_no_memory(where) -> None:
    split = made_split.__wrapped__(where)  # one of its own
    network = split.model.network
    modules, before = list(network.modules()), copy.deepcopy(network.state_dict())
    weight, sums, batch = split.weight.clone(), split.book.source_sums.clone(), batch_of(split)
    expected = outputs(split.model, batch)
    for edit in (Edit(), affine_edits(where)[0], clamps(where)[0], local_edits(where)[0]):
        made = make_permanent(split, edit)
        with torch.no_grad():
            for tensor in [*made.parameters(), *made.buffers()]:
                tensor.zero_()
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(before[name].equal(after[name]) for name in before)
    assert all(one is other for one, other in zip(modules, network.modules(), strict=True))
    assert split.weight.equal(weight)
    assert split.book.source_sums.equal(sums)
    assert outputs(split.model, batch).equal(expected)
    assert hook_count(network) == 0
    assert not is_intercepted(network)


@pytest.mark.parametrize("where", ["whole stream", "fc2", "stem"])
def test_an_edit_that_asks_for_nothing_changes_no_bit(where) -> None:
    split = made_split(where)
    (concept, _), _ = busiest(where)
    batch = batch_of(split)
    for edit in (Edit(), Edit.scale(concept=concept, by=1.0), Edit.ablate(concept=concept, strength=0.0)):
        made = make_permanent(split, edit)
        assert made is not split.model.network
        assert made_outputs(split, made, batch).equal(outputs(split.model, batch))


def test_what_cannot_be_made_permanent_is_refused(tmp_path) -> None:
    split = made_split("whole stream")
    (concept, _), _ = busiest("whole stream")
    for make in (make_permanent, lambda s, e: save_permanent(s, e, tmp_path / "edited.pt2")):
        with pytest.raises(EditError, match="schedule"):
            make(split, Edit.ablate(concept=concept, strength=[0.0, 1.0]))
        with pytest.raises(EditError, match="99"):
            make(split, Edit.ablate(concept=99))
        with pytest.raises(ModelMismatchError):
            make(split, Edit(Edit.ablate(concept=concept).changes, made_for="another"))
        with pytest.raises(TypeError, match="'ablate'"):
            make(split, "ablate")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_an_active_edit_must_be_left_first() -> None:
    """A copy would go on doing it, as long as the block lasts."""
    split = made_split("fc2")
    edit = affine_edits("fc2")[0]
    with split.edit(edit), pytest.raises(EditError, match="make_permanent"):
        make_permanent(split, edit)
    assert_equal_outputs(split, edit, make_permanent(split, edit), 1e-12)


class SideBySide(Block):
    """Attention and MLP both read what comes in: the stream is their sum, but not one after the other."""

    def forward(self, x: torch.Tensor, attn_mask: Any = None, is_causal: bool = False) -> torch.Tensor:
        return x + self.ls1(self.attn(self.norm1(x))) + self.ls2(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]


class OneNorm(Block):
    """One norm for both."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        del self.norm2

    def forward(self, x: torch.Tensor, attn_mask: Any = None, is_causal: bool = False) -> torch.Tensor:
        normed = self.norm1(x)
        return x + self.ls1(self.attn(normed)) + self.ls2(self.mlp(normed))  # type: ignore[no-any-return]


def odd_model(block: type[nn.Module]) -> Model:
    with torch.random.fork_rng(devices=[]):
        network = VisionTransformer(
            img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=5, block_fn=block
        )
    return wrapped(redraw(network), 32, torch.float64)


@pytest.mark.parametrize("block", [SideBySide, OneNorm])
def test_blocks_of_another_build_are_refused(block, tmp_path) -> None:
    images = random_images(12, 32)
    split = disentangle(odd_model(block), images, concepts=5, units=3, tokens_per_image=4, progress=False)
    concept = int(split.routing.concepts.max())
    batch = batch_of(split)
    assert not live(split, Edit.ablate(concept=concept), batch).equal(
        outputs(split.model, batch)
    )  # the live edit works
    for make in (make_permanent, lambda s, e: save_permanent(s, e, tmp_path / "edited.pt2")):
        with pytest.raises(SiteError, match="stream"):
            make(split, Edit.ablate(concept=concept))
    assert list(tmp_path.iterdir()) == []
    layer = disentangle(split.model, images, "blocks.1.mlp.fc2", concepts=5, units=3, progress=False)
    edit = Edit.ablate(concept=int(layer.routing.concepts.max()))
    assert_equal_outputs(layer, edit, make_permanent(layer, edit), 1e-12)


def test_a_batchnorm_that_multiplies_by_zero_does_no_harm() -> None:
    model = tiny_conv()
    with torch.no_grad():
        model.network.get_parameter("norm.weight")[2] = 0.0
    split = disentangle(model, random_images(12, 16), "stem", concepts=5, units=3, shared=0.8, progress=False)
    numbers = [(channel, 0) for channel in range(8)]
    for edit in (Edit.ablate(unit=numbers, to="zero"), Edit.add(unit=numbers, by=1.0, tokens=[3, 8])):
        made = make_permanent(split, edit)
        assert torch.isfinite(made(batch_of(split))).all()
        assert_equal_outputs(split, edit, made, 1e-12)


def test_state_dict_round_trip_and_other_batch_sizes() -> None:
    split = made_split("whole stream")
    one, other = (make_permanent(split, edit) for edit in affine_edits("whole stream")[:6:5])
    batch = batch_of(split)
    expected = one(batch)
    for size in (1, 2, 7):
        torch.testing.assert_close(one(batch[:size]), expected[:size], rtol=1e-12, atol=1e-12)
    fresh = make_permanent(split, affine_edits("whole stream")[0])
    assert fresh.state_dict().keys() == one.state_dict().keys()
    fresh.load_state_dict(one.state_dict(), strict=True)
    assert fresh(batch).equal(expected)
    assert not other(batch).equal(expected)


PROGRAM = """
import sys
sys.modules["elude_nb"] = sys.modules["timm"] = None
import torch
torch.set_num_threads(1)
for folder in sys.argv[1:]:
    network = torch.export.load(f"{folder}/edited.pt2").module()
    batch = torch.load(f"{folder}/batch.pt")
    torch.save([network(batch[:count]) for count in (1, 2, 7)], f"{folder}/found.pt")
"""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_saved_program_runs_without_this_library(tmp_path) -> None:
    wanted = {"whole stream": clamps("whole stream")[3], "stem": local_edits("stem")[5], "fc2": affine_edits("fc2")[0]}
    for where, edit in wanted.items():
        folder = tmp_path / where
        path = save_permanent(made_split(where), edit, folder / "edited.pt2")
        assert path == folder / "edited.pt2"
        assert [each.name for each in folder.iterdir()] == ["edited.pt2"]
        torch.save(batch_of(made_split(where)), folder / "batch.pt")
    folders = [str(tmp_path / where) for where in wanted]
    subprocess.run([sys.executable, "-c", PROGRAM, *folders], check=True, cwd=tmp_path)
    for where, edit in wanted.items():
        split = made_split(where)
        with split.edit(edit):
            expected = split.model(batch_of(split))
        for found in torch.load(tmp_path / where / "found.pt"):
            torch.testing.assert_close(found, expected[: len(found)], rtol=1e-11, atol=1e-11)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_failing_in_the_middle_leaves_no_file(tmp_path, monkeypatch, error) -> None:
    split, path = made_split("mlp"), Path(tmp_path) / "edited.pt2"

    def fail(_: object, file: Any) -> None:
        file.write(b"half of it")
        raise error("disk full")

    monkeypatch.setattr(torch.export, "save", fail)
    with pytest.raises(error, match="disk full"):
        save_permanent(split, affine_edits("mlp")[0], path)
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"old")
    with pytest.raises(error, match="disk full"):
        save_permanent(split, affine_edits("mlp")[0], path)
    assert [each.read_bytes() for each in tmp_path.iterdir()] == [b"old"]
    assert not is_intercepted(split.model.network)
