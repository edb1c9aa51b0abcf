"""Checkpoints as they are published, and as trainers write them."""

from __future__ import annotations

import argparse
import collections
import hashlib
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import generate_default_cfgs, register_model
from timm.models.vision_transformer import _create_vision_transformer
from torch import Tensor, nn

from elude_nb.errors import WeightsError
from elude_nb.models import checkpoints
from elude_nb.models.checkpoints import read_checkpoint, resample_positions
from elude_nb.models.load import Model, load_model, wrap_network
from elude_nb.models.weights import Provenance
from tests.tiny import redraw

TINY_VIT, TINY_RESNET = "test_vit", "test_resnet"  # timm's own for tests: 0.4 and 0.5 million parameters


def tiny(**how: Any) -> Model:
    return load_model(TINY_VIT, pretrained=False, **how)


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


# ---------------------------------------------------------------------------- checkpoints


def state_of(model: Model) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.network.state_dict().items()}


@pytest.fixture
def source() -> Model:
    return tiny(seed=21)


@pytest.mark.parametrize("as_text", [True, False])
def test_a_checkpoint_comes_back_with_its_provenance(tmp_path: Path, source: Model, as_text: bool) -> None:
    file = tmp_path / "mine.safetensors"
    save_file(state_of(source), file)
    model = load_model(str(file) if as_text else file, architecture=TINY_VIT)
    assert model.fingerprint() == source.fingerprint()
    assert (model.name, model.architecture) == (str(file), TINY_VIT)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert model.provenance == Provenance("file mine.safetensors", digest, "not stated in the file")
    batch = torch.linspace(-1, 1, 3 * 160 * 160).reshape(1, 3, 160, 160)
    assert torch.equal(model(batch), source(batch))
    assert not model.network.training
    assert not next(model.network.parameters()).requires_grad


def test_a_checkpoint_may_state_its_architecture_and_licence(tmp_path: Path, source: Model) -> None:
    file = tmp_path / "mine.safetensors"
    save_file(state_of(source), file, metadata={"architecture": TINY_VIT, "licence": "CC0"})
    model = load_model(file)
    assert (model.architecture, model.provenance.licence) == (TINY_VIT, "CC0")
    assert model.fingerprint() == source.fingerprint()


def test_a_relative_path_without_a_folder_is_a_path(
    tmp_path: Path, source: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(state_of(source), "mine.pt")
    assert load_model("mine.pt", architecture=TINY_VIT).fingerprint() == source.fingerprint()


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_what_wrappers_put_before_names_is_taken_off(tmp_path: Path, source: Model, prefix: str) -> None:
    torch.save({"model": {prefix + name: tensor for name, tensor in state_of(source).items()}}, tmp_path / "mine.pth")
    assert load_model(tmp_path / "mine.pth", architecture=TINY_VIT).fingerprint() == source.fingerprint()


@pytest.mark.parametrize("name", [TINY_VIT, TINY_RESNET])
@pytest.mark.parametrize("classes", [0, 7])
def test_a_checkpoint_tuned_to_other_classes_or_without_a_head_fits(tmp_path: Path, name: str, classes: int) -> None:
    tuned = wrap_network(timm.create_model(name, num_classes=classes))
    save_file(state_of(tuned), tmp_path / "tuned.safetensors")
    model = load_model(tmp_path / "tuned.safetensors", architecture=name)
    assert model.fingerprint() == tuned.fingerprint()
    assert model(torch.zeros(1, 3, 160, 160)).shape[1] == (classes or tuned.network.num_features)


def test_positions_are_resampled_to_the_image_size(tmp_path: Path, source: Model) -> None:
    save_file(state_of(source), tmp_path / "mine.safetensors")
    model = load_model(tmp_path / "mine.safetensors", architecture=TINY_VIT, image_size=96)
    expected = resample_positions(source.network.get_parameter("pos_embed"), (6, 6))
    assert torch.equal(model.network.get_parameter("pos_embed"), expected)
    assert model(torch.zeros(1, 3, 96, 96)).shape == (1, 1000)


def test_a_misfit_names_what_is_missing_unexpected_and_of_another_shape(tmp_path: Path, source: Model) -> None:
    state = state_of(source)
    del state["norm.bias"]
    state["extra.weight"] = torch.ones(1)
    state["cls_token"] = torch.ones(1, 1, 5)
    save_file(state, tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match=r"odd\.safetensors' does not fit VisionTransformer") as caught:
        load_model(tmp_path / "odd.safetensors", architecture=TINY_VIT)
    said = str(caught.value)
    assert (
        "1 missing (norm.bias); 1 unexpected (extra.weight); 1 of another shape (cls_token (1, 1, 5) for (1, 1, 64))"
        in said
    )
    assert "Check the architecture's name" in said


def test_a_checkpoint_of_another_architecture_is_refused_in_a_few_words(tmp_path: Path, source: Model) -> None:
    save_file(state_of(source), tmp_path / "vit.safetensors")
    with pytest.raises(ValueError, match=r"does not fit ResNet: \d+ missing \(.*, \.\.\.\); \d+ unexpected") as caught:
        load_model(tmp_path / "vit.safetensors", architecture=TINY_RESNET)
    assert "No name is one of this network's" in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_checkpoint_that_does_not_say_what_it_is_asks(tmp_path: Path, source: Model) -> None:
    save_file(state_of(source), tmp_path / "mine.safetensors")
    with pytest.raises(
        ValueError, match=r"add architecture='\.\.\.' with timm's name, for example .*vit_small_patch14_dinov2"
    ):
        load_model(tmp_path / "mine.safetensors")
    with pytest.raises(ValueError, match=r"No model is called 'test_vitt'\. Did you mean 'test_vit"):
        load_model(tmp_path / "mine.safetensors", architecture="test_vitt")


@pytest.mark.parametrize("name", ["gone.safetensors", "gone.pt", "folder/resnet50"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"no file '.*{re.escape(name)}'; mend the path of the checkpoint"):
        load_model(tmp_path / name, architecture=TINY_VIT)


# ------------------------------------------------------------------- as trainers write them


OTHER = {"optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}, "epoch": 3}


def drawn(seed: int, name: str = TINY_VIT) -> dict[str, Tensor]:
    return state_of(wrap_network(redraw(timm.create_model(name), seed)))


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def headless(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("head.")}


MADE, OLD = drawn(1), drawn(2)
DINO_HEAD = {"head.mlp.0.weight": torch.ones(2, 2), "head.mlp.0.bias": torch.ones(2)}
WRITTEN: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "timm": (
        {
            **OTHER, "arch": TINY_VIT, "state_dict": OLD, "version": 2, "args": argparse.Namespace(model=TINY_VIT),
            "amp_scaler": {"scale": 65536.0}, "state_dict_ema": MADE, "metric": np.float64(71.2),
        },
        "averaged weights (state_dict_ema)",
        ("optimizer", "epoch", "arch", "state_dict", "version", "args", "amp_scaler", "metric"),
    ),
    "deit and mae": (
        {"model": OLD, **OTHER, "model_ema": MADE, "args": argparse.Namespace(lr=1e-3)},
        "averaged weights (model_ema)",
        ("model", "optimizer", "epoch", "args"),
    ),
    "an average that lacks some": (
        {"state_dict": MADE, "ema": {"blocks.0.norm1.weight": torch.ones(64)}}, "state_dict", ("ema",)
    ),
    "imagenet example, DistributedDataParallel": (
        {"arch": TINY_VIT, "state_dict": under("module.", MADE), "best_acc1": torch.tensor(0.5), **OTHER},
        "state_dict, names after 'module.'",
        ("arch", "best_acc1", "optimizer", "epoch"),
    ),
    "dino": (
        {
            "student": under("module.", under("backbone.", headless(OLD)) | DINO_HEAD), **OTHER,
            "teacher": under("backbone.", headless(MADE)) | DINO_HEAD,
            "args": argparse.Namespace(arch="vit_small"), "dino_loss": {"center": torch.ones(1, 2)},
        },
        "averaged weights (teacher), names after 'backbone.', head.weight missing",
        ("student", "optimizer", "epoch", "args", "dino_loss", "head.* (2 tensors)"),
    ),
    "student and teacher side by side": (
        under("student.backbone.", headless(OLD)) | under("teacher.backbone.", headless(MADE)),
        "averaged weights (teacher.backbone.), names after 'teacher.backbone.', head.weight missing",
        (f"student.* ({len(headless(OLD))} tensors)",),
    ),
    "lightning": (
        {
            "state_dict": under("model.", MADE) | {"loss.weight": torch.ones(3)}, "global_step": 7,
            "hyper_parameters": collections.defaultdict(int, lr=1), "callbacks": {"best": Path("x")},
        },
        "state_dict, names after 'model.'",
        ("global_step", "hyper_parameters", "callbacks", "loss"),
    ),
    "AveragedModel": (
        {"n_averaged": torch.tensor(3), **under("module.", MADE)},
        "names after 'module.'",
        ("n_averaged",),
    ),
    "torch.compile of each block": (
        {("_orig_mod." + name).replace("blocks.0.", "blocks.0._orig_mod."): tensor for name, tensor in MADE.items()},
        "",
        (),
    ),
    "FSDP": (under("encoder._fsdp_wrapped_module.", MADE), "names after 'encoder.'", ()),
}  # fmt: skip


@pytest.mark.parametrize("writer", WRITTEN)
@pytest.mark.parametrize("zipped", [True, False])
def test_what_trainers_write_is_read_and_told(tmp_path: Path, writer: str, zipped: bool) -> None:
    held, taken, left = WRITTEN[writer]
    torch.save(held, tmp_path / "checkpoint-3.pth.tar", _use_new_zipfile_serialization=zipped)
    model = load_model(tmp_path / "checkpoint-3.pth.tar", architecture=TINY_VIT)
    expected = MADE if "head.weight missing" not in taken else headless(MADE)
    assert same(model.network.state_dict(), expected)
    assert model.provenance.taken == taken
    assert model.provenance.left == left
    if taken or left:
        assert model.provenance.contents in repr(model)
        assert "taken from that file" in model._repr_html_()


def test_timms_trainer_says_which_architecture_it_trained(tmp_path: Path) -> None:
    torch.save(WRITTEN["timm"][0], tmp_path / "last.pth.tar")
    assert load_model(tmp_path / "last.pth.tar").architecture == TINY_VIT


def test_prefixes_are_taken_off_in_safetensors_too(tmp_path: Path) -> None:
    save_file(under("timm_model.", MADE), tmp_path / "x.safetensors")
    model = load_model(tmp_path / "x.safetensors", architecture=TINY_VIT)
    assert same(model.network.state_dict(), MADE)
    assert model.provenance.contents == "names after 'timm_model.'"


# ------------------------------------------------------------------- as they are published


default_cfgs = generate_default_cfgs(
    {"tiny_reg4_dinov2": {"input_size": (3, 48, 48), "num_classes": 0, "classifier": "head", "fixed_input_size": True,
                          "first_conv": "patch_embed.proj"}}
)  # fmt: skip


@register_model
def tiny_reg4_dinov2(pretrained: bool = False, **more: Any) -> Any:
    """As timm has DINOv2 with registers, but tiny."""
    how = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "init_values": 1e-5, "reg_tokens": 4}
    return _create_vision_transformer("tiny_reg4_dinov2", pretrained, **{**how, "no_embed_class": True, **more})


@pytest.mark.parametrize("size", [48, 32, (32, 64)])
def test_dinov2_with_registers_under_metas_names(tmp_path: Path, size: int | tuple[int, int]) -> None:
    """Meta's embedding has a position for the class token, timm's adds it to the class token for good."""
    network = redraw(timm.create_model("tiny_reg4_dinov2"))
    published = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    positions = torch.randn(1, 1 + 36, 16, generator=generator)
    registers = published.pop("reg_token")
    published |= {"pos_embed": positions, "register_tokens": registers, "mask_token": torch.zeros(1, 16)}
    torch.save(published, tmp_path / "dinov2_reg4.pth")
    model = load_model(tmp_path / "dinov2_reg4.pth", architecture="tiny_reg4_dinov2", image_size=size)
    found = model.network.state_dict()
    torch.testing.assert_close(found["cls_token"], published["cls_token"] + positions[:, :1])
    assert torch.equal(found["reg_token"], registers)
    grid = (size // 8, size // 8) if isinstance(size, int) else (size[0] // 8, size[1] // 8)
    assert torch.equal(found["pos_embed"], resample_positions(positions, grid)[:, 1:])
    assert torch.equal(found["blocks.1.ls2.gamma"], published["blocks.1.ls2.gamma"])
    resampled = "" if grid == (6, 6) else f"positions resampled from 6 x 6 to {grid[0]} x {grid[1]}, "
    assert model.provenance.contents == f"{resampled}converted by timm: mask_token, pos_embed, register_tokens"
    assert "state_dict" not in model.network.pretrained_cfg  # type: ignore[operator]
    assert model(model.noise()).shape == (1, 16)


def test_dinov2_without_registers_under_metas_names_and_in_a_trainers_file(tmp_path: Path) -> None:
    published = headless(MADE) | {"mask_token": torch.zeros(1, 64)}
    torch.save({"teacher": under("backbone.", published), "iteration": 9}, tmp_path / "teacher_checkpoint.pth")
    model = load_model(tmp_path / "teacher_checkpoint.pth", architecture=TINY_VIT)
    assert same(model.network.state_dict(), headless(MADE))
    assert model.provenance.contents == (
        "averaged weights (teacher), names after 'backbone.', head.weight missing, converted by timm: mask_token; "
        "left: iteration"
    )


def test_a_grid_whose_positions_are_a_square_only_with_the_class_token_fits(tmp_path: Path) -> None:
    model = load_model("vit_tiny_patch16_224", pretrained=False, image_size=(112, 144), seed=3)  # 7 x 9, and one: 64
    save_file(state_of(model), tmp_path / "oblong.safetensors")
    how: dict[str, Any] = {"architecture": "vit_tiny_patch16_224", "image_size": (112, 144)}
    assert load_model(tmp_path / "oblong.safetensors", **how).fingerprint() == model.fingerprint()


def test_resampled_positions_are_told(tmp_path: Path) -> None:
    small = load_model("vit_tiny_patch16_224", pretrained=False, image_size=96)
    save_file(state_of(small), tmp_path / "96.safetensors")
    model = load_model(tmp_path / "96.safetensors", architecture="vit_tiny_patch16_224")
    assert model.provenance.taken == "positions resampled from 6 x 6 to 14 x 14"


@pytest.mark.parametrize("classes", [1000, 7])
def test_a_classifier_of_another_name_than_timms_is_taken(tmp_path: Path, classes: int) -> None:
    network = redraw(timm.create_model("convnext_atto.d2_in1k", num_classes=classes))
    renames = [
        ("stem", "downsample_layers.0"), ("head.norm", "norm"), ("head.fc", "head"), ("conv_dw", "dwconv"),
        ("mlp.fc", "pwconv"), (r"stages.(\d).downsample", r"downsample_layers.\1"), (".blocks.", "."),
    ]  # fmt: skip
    published = {}
    for name, tensor in network.state_dict().items():
        for theirs, metas in renames:
            name = re.sub(theirs, metas, name)  # noqa: PLW2901
        published[name] = tensor
    torch.save({"model": published}, tmp_path / "convnext.pth")
    model = load_model(tmp_path / "convnext.pth", architecture="convnext_atto.d2_in1k")
    assert same(model.network.state_dict(), dict(network.state_dict()))
    assert "missing" not in model.provenance.taken


@pytest.mark.parametrize("name", [TINY_VIT, TINY_RESNET])
def test_a_checkpoint_of_pictures_with_four_channels_fits(tmp_path: Path, name: str) -> None:
    network = redraw(timm.create_model(name, in_chans=4))
    torch.save(network.state_dict(), tmp_path / "four.pth")
    model = load_model(tmp_path / "four.pth", architecture=name)
    assert same(model.network.state_dict(), dict(network.state_dict()))
    assert model.input_size[0] == 4
    assert load_model(tmp_path / "four.pth", architecture=name, image_size=96).input_size == (4, 96, 96)


@pytest.mark.parametrize("weight", [torch.zeros(1, 64).expand(10**5, 64), torch.empty(10**5, 64, device="meta")])
def test_a_tensor_larger_than_what_the_file_stores_is_refused(tmp_path: Path, source: Model, weight: Tensor) -> None:
    torch.save(state_of(source) | {"head.weight": weight, "head.bias": torch.zeros(10**5)}, tmp_path / "small.pth")
    assert (tmp_path / "small.pth").stat().st_size < 10**7
    with pytest.raises(WeightsError, match=r"'head.weight' is not stored number by number"):
        load_model(tmp_path / "small.pth", architecture=TINY_VIT)
    torch.save({"model": state_of(source), "beside": {"x": weight}}, tmp_path / "small.pth")
    assert load_model(tmp_path / "small.pth", architecture=TINY_VIT).provenance.left == ("beside",)


def test_a_patch_of_another_size_is_not_resampled(tmp_path: Path) -> None:
    torch.save(MADE | {"patch_embed.proj.weight": torch.ones(64, 3, 8, 8)}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"patch_embed\.proj\.weight \(64, 3, 8, 8\) for \(64, 3, 16, 16\)"):
        load_model(tmp_path / "x.pt", architecture=TINY_VIT)


@pytest.mark.filterwarnings("ignore")  # timm's interpolation warns of its own indexing
def test_tables_of_relative_positions_follow_the_image_size(tmp_path: Path) -> None:
    torch.save(drawn(1, "test_coatnet"), tmp_path / "x.pt")
    model = load_model(tmp_path / "x.pt", architecture="test_coatnet", image_size=96)
    assert model(model.noise()).shape == (1, 1000)


# --------------------------------------------------------------------------- positions


def cubic(x: float) -> float:
    """The kernel of torch's bicubic interpolation, Keys with a = -0.75."""
    x, a = abs(x), -0.75
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def resampling_matrix(old: int, new: int) -> np.ndarray[Any, Any]:
    """One dimension, written out: four neighbours, centres aligned, the rim repeated, nothing averaged."""
    matrix = np.zeros((new, old))
    for row in range(new):
        at = (row + 0.5) * old / new - 0.5
        for k in range(int(np.floor(at)) - 1, int(np.floor(at)) + 3):
            matrix[row, min(max(k, 0), old - 1)] += cubic(at - k)
    return matrix


@pytest.mark.parametrize(("old", "new"), [(37, 16), (6, 4), (4, 7)])
@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_positions_are_resampled_bicubic_without_antialiasing(old: int, new: int, prefix: int) -> None:
    embedding = torch.randn(1, prefix + old * old, 3, generator=torch.Generator().manual_seed(0))
    result = resample_positions(embedding, (new, new), prefix)
    assert result.shape == (1, prefix + new * new, 3)
    assert torch.equal(result[:, :prefix], embedding[:, :prefix])
    matrix = resampling_matrix(old, new)
    grid = embedding[0, prefix:].double().numpy().reshape(old, old, 3)
    expected = np.einsum("yh,xw,hwd->yxd", matrix, matrix, grid).reshape(new * new, 3)
    np.testing.assert_allclose(result[0, prefix:].numpy(), expected, rtol=0, atol=1e-5)


def test_positions_of_the_same_grid_are_not_touched() -> None:
    embedding = torch.randn(1, 1 + 16, 3)
    assert resample_positions(embedding, (4, 4)) is embedding


def test_positions_that_are_no_square_are_left_to_the_check_of_shapes() -> None:
    embedding = torch.randn(1, 1 + 15, 3)
    assert resample_positions(embedding, (3, 3)) is embedding


def test_positions_are_resampled_to_oblong_grids() -> None:
    embedding = torch.randn(1, 1 + 16, 3, generator=torch.Generator().manual_seed(0))
    result = resample_positions(embedding, (2, 5))
    rows, columns = resampling_matrix(4, 2), resampling_matrix(4, 5)
    expected = np.einsum("yh,xw,hwd->yxd", rows, columns, embedding[0, 1:].double().numpy().reshape(4, 4, 3))
    np.testing.assert_allclose(result[0, 1:].numpy(), expected.reshape(10, 3), rtol=0, atol=1e-5)


def test_positions_keep_their_dtype() -> None:
    assert resample_positions(torch.randn(1, 17, 3).bfloat16(), (2, 2)).dtype == torch.bfloat16


# ----------------------------------------------------------------------- checkpoint files


STATE = {"a.weight": torch.tensor([[1.0, 2.0]]), "a.bias": torch.tensor([3.0])}


@pytest.mark.parametrize("spelled", ["licence", "license"])
def test_a_safetensors_file_gives_tensors_metadata_and_provenance(tmp_path: Path, spelled: str) -> None:
    file = tmp_path / "net.safetensors"
    save_file(STATE, file, metadata={"architecture": "test_vit", spelled: "MIT"})
    tensors, metadata, provenance = read_checkpoint(file)
    assert same(tensors, STATE)
    assert metadata == {"architecture": "test_vit", spelled: "MIT"}
    assert provenance == Provenance("file net.safetensors", hashlib.sha256(file.read_bytes()).hexdigest(), "MIT")


def test_a_file_that_says_nothing_of_its_licence(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "net.safetensors")
    _, metadata, provenance = read_checkpoint(tmp_path / "net.safetensors")
    assert (metadata, provenance.licence) == ({}, "not stated in the file")


@pytest.mark.parametrize("ending", [".pt", ".pth", ".bin", ".ckpt", ".pth.tar"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_torch_file_is_read_whole(tmp_path: Path, ending: str, zipped: bool) -> None:
    file = tmp_path / f"net{ending}"
    torch.save({"state_dict": STATE, "epoch": 3}, file, _use_new_zipfile_serialization=zipped)
    held, metadata, provenance = read_checkpoint(file)
    assert same(held["state_dict"], STATE)
    assert held["epoch"] == 3
    assert (metadata, provenance.source) == ({}, f"file net{ending}")
    assert provenance.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


class Settings:
    """What a trainer keeps beside the weights, of a class that this machine may not have."""

    def __init__(self) -> None:
        self.rate, self.where = 0.1, Path("/somewhere")

    def __setstate__(self, state: Any) -> None:
        pytest.fail("code of a file was run")


class Options(dict[str, Any]):
    """Has its items as attributes too."""

    def __init__(self, **options: Any) -> None:
        super().__init__(options)
        vars(self).update(options)


class Rates(list[float]):
    pass


@pytest.mark.parametrize("zipped", [True, False])
def test_what_trainers_keep_beside_the_weights_is_no_reason_to_refuse(tmp_path: Path, zipped: bool) -> None:
    beside = {
        "args": argparse.Namespace(model="vit", output=Path("runs"), rates=[0.1, 0.2]),
        "best": np.float64(0.7),
        "history": np.arange(3),
        "hyper_parameters": collections.defaultdict(list, a=[1]),
        "settings": Settings(),
        "options": Options(rates=Rates([0.1, 0.2]), last=collections.deque([1, 2], maxlen=2), inner=Options(b=1)),
    }
    torch.save({"model": Options(**STATE), **beside}, tmp_path / "net.pt", _use_new_zipfile_serialization=zipped)
    held, _, _ = read_checkpoint(tmp_path / "net.pt")
    assert same(held["model"], STATE)
    assert held["hyper_parameters"] == {"a": [1]}
    assert held["options"] == {"rates": [0.1, 0.2], "last": [1, 2], "inner": {"b": 1}}
    assert not {type(value) for value in held.values()} & {Settings, argparse.Namespace}
    with pytest.raises(Exception, match=r"weights_only|GLOBAL"):  # it was allowed for this one file alone
        torch.load(tmp_path / "net.pt", weights_only=True)


def test_dictionaries_in_dictionaries_are_looked_at_to_a_depth() -> None:
    held: dict[str, Any] = {"weight": torch.ones(1)}
    for _ in range(1000):
        held = {"next": held, "weight": torch.ones(1)}
    assert len(list(checkpoints._dictionaries(held))) < 20


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def test_pickled_code_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": STATE, "extra": Payload(tmp_path / "mark")}, tmp_path / "net.pt")
    with pytest.raises(WeightsError, match=r"net\.pt"):
        read_checkpoint(tmp_path / "net.pt")
    assert not (tmp_path / "mark").exists()


def test_a_whole_pickled_network_is_refused_with_the_cure(tmp_path: Path) -> None:
    for held in (nn.Linear(2, 1), {"model": nn.Linear(2, 1), "epoch": 3}):
        torch.save(held, tmp_path / "net.pt")
        with pytest.raises(WeightsError, match=r"net\.pt.*dictionary of tensors.*save model\.state_dict\(\)"):
            read_checkpoint(tmp_path / "net.pt")


@pytest.mark.parametrize("held", [[torch.ones(1)], {"a": 3}, {"state_dict": {"a": {1: torch.ones(1)}}}])
def test_a_torch_file_of_something_else_is_refused(tmp_path: Path, held: object) -> None:
    torch.save(held, tmp_path / "net.pt")
    with pytest.raises(WeightsError, match=r"net\.pt"):
        read_checkpoint(tmp_path / "net.pt")


def test_a_file_without_tensors_or_inside_itself_is_refused_or_read(tmp_path: Path) -> None:
    save_file({}, tmp_path / "net.safetensors")
    with pytest.raises(WeightsError, match=r"net\.safetensors.*dictionary of tensors"):
        read_checkpoint(tmp_path / "net.safetensors")
    looped: dict[str, Any] = dict(MADE)
    looped |= {f"again {number}": looped for number in range(50)}
    torch.save(looped, tmp_path / "net.pt")
    assert same(load_model(tmp_path / "net.pt", architecture=TINY_VIT).network.state_dict(), MADE)


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
@pytest.mark.parametrize("kept", [0, 20, -1])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, ending: str, kept: int) -> None:
    file = tmp_path / f"net.{ending}"
    if ending == "pt":
        torch.save(STATE, file)
    else:
        save_file(STATE, file)
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(WeightsError, match=rf"net\.{ending}"):
        read_checkpoint(file)


@pytest.mark.parametrize("name", ["net.onnx", "net.h5", "net"])
def test_another_ending_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(WeightsError, match=name):
        read_checkpoint(tmp_path / name)
