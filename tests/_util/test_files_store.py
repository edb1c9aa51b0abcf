from __future__ import annotations

import hashlib
import json
import os
import re
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from elude_nb._util.files import (
    FORMAT_VERSION,
    library_version,
    load_result,
    read_json,
    save_result,
    sha256_of_file,
    sha256_of_tensors,
)
from elude_nb.errors import StoreError


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    return {
        "routes": torch.tensor([[0, 2, 1], [1, 1, 0]], dtype=torch.uint8),
        "sums": torch.tensor([0.5, -1.25, 3.0], dtype=torch.float64),
        "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "nothing": torch.empty(0, 4),
        "one": torch.tensor(7),
    }


MANIFEST = {"model": "tiny", "units": 3, "reasons": ["few", "copy"], "settings": {"seed": 0, "shared": None}}


@pytest.fixture
def saved(tmp_path: Path, tensors: dict[str, Tensor]) -> Path:
    return save_result(tmp_path / "result.safetensors", "split", tensors, MANIFEST)


# ----------------------------------------------------------------------- hashes


def test_sha256_of_file_is_the_known_one(tmp_path: Path) -> None:
    file = tmp_path / "abc"
    file.write_bytes(b"abc")
    assert sha256_of_file(file) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_sha256_of_tensors_is_over_name_dtype_shape_and_bytes() -> None:
    raw = b"a|torch.int16|(2,)|" + struct.pack("<hh", 1, -2) + b"b|torch.float32|()|" + struct.pack("<f", 0.5)
    found = sha256_of_tensors({"b": torch.tensor(0.5), "a": torch.tensor([1, -2], dtype=torch.int16)})
    assert found == hashlib.sha256(raw).hexdigest()


@given(st.permutations(list("abcde")))
def test_sha256_of_tensors_is_blind_to_order(names: list[str]) -> None:
    held = {name: torch.full((2,), float(ord(name))) for name in "abcde"}
    assert sha256_of_tensors({name: held[name] for name in names}) == sha256_of_tensors(held)


def test_sha256_of_tensors_sees_every_change(tensors: dict[str, Tensor]) -> None:
    base = torch.arange(6.0)
    others = [
        {"x": base},
        {"y": base},
        {"x": base.double()},
        {"x": base.int()},
        {"x": base.reshape(2, 3)},
        {"x": base.reshape(3, 2)},
        {"x": base.flip(0)},
        {"x": base, "y": torch.empty(0)},
        {"x": base, "y": torch.empty(0, 1)},
        {"x": torch.zeros(2)},
        {"x": -torch.zeros(2)},  # equal as numbers, not as bits
        {"x": torch.zeros(2).view(torch.int32)},
        {},
        tensors,
    ]
    assert len({sha256_of_tensors(other) for other in others}) == len(others)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.bool, torch.int64, torch.complex64])
def test_sha256_of_tensors_takes_every_dtype_and_any_layout(dtype: torch.dtype) -> None:
    x = torch.tensor([[1, 0, 1], [0, 0, 1]]).to(dtype)
    assert sha256_of_tensors({"x": x}) == sha256_of_tensors({"x": x.T.contiguous().T})
    assert sha256_of_tensors({"x": x}) != sha256_of_tensors({"x": torch.zeros_like(x)})


def test_sha256_of_tensors_takes_parameters() -> None:
    weight = torch.ones(3)
    assert sha256_of_tensors({"w": torch.nn.Parameter(weight)}) == sha256_of_tensors({"w": weight})


# ------------------------------------------------------------------ save and load


def test_a_result_comes_back_as_it_was(saved: Path, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    found, manifest = load_result(saved, "split")
    assert manifest == {**MANIFEST, "elude_nb": library_version()}
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)  # checks dtype and shape too
    assert [file.name for file in tmp_path.iterdir()] == ["result.safetensors"]


def test_views_and_parameters_are_saved(tmp_path: Path) -> None:
    x = torch.arange(6.0).reshape(2, 3)
    path = save_result(tmp_path / "r", "split", {"turned": x.T, "part": torch.nn.Parameter(x[:, 1])}, {})
    found, _ = load_result(str(path), "split")
    assert found["turned"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert found["part"].tolist() == [1, 4]


def test_saving_again_replaces_the_file(saved: Path) -> None:
    save_result(saved, "split", {"a": torch.ones(1)}, {"second": True})
    assert load_result(saved, "split") == ({"a": torch.ones(1)}, {"second": True, "elude_nb": library_version()})


@pytest.mark.parametrize("manifest", [{"loss": float("nan")}, {"model": object()}])
def test_a_manifest_that_is_no_json_is_refused_and_the_old_file_stays(saved: Path, manifest: dict[str, Any]) -> None:
    before = saved.read_bytes()
    with pytest.raises((ValueError, TypeError), match="JSON"):
        save_result(saved, "split", {"a": torch.ones(1)}, manifest)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.safetensors"):
        load_result(tmp_path / "gone.safetensors", "split")
    with pytest.raises(FileNotFoundError):
        load_result(tmp_path, "split")  # a folder


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 60, 300, -1])
def test_a_truncated_file_is_refused(saved: Path, kept: int) -> None:
    whole = saved.read_bytes()
    saved.write_bytes(whole[:kept])
    with pytest.raises(StoreError, match=r"result\.safetensors"):
        load_result(saved, "split")


@pytest.mark.parametrize("junk", [b"hello, this is text", b"\x00" * 100, b"\xff" * 100, b"PK\x03\x04" + b"\x00" * 50])
def test_a_foreign_file_is_refused(saved: Path, junk: bytes) -> None:
    saved.write_bytes(junk)
    with pytest.raises(StoreError, match=r"result\.safetensors"):
        load_result(saved, "split")


def test_one_changed_byte_anywhere_is_noticed(saved: Path) -> None:
    whole = saved.read_bytes()
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 0x01
        saved.write_bytes(bytes(changed))
        with pytest.raises(StoreError):
            load_result(saved, "split")


def test_a_changed_tensor_is_named_as_such(saved: Path) -> None:
    whole = bytearray(saved.read_bytes())
    whole[-1] ^= 0x01  # the last tensor's last byte
    saved.write_bytes(bytes(whole))
    with pytest.raises(StoreError, match=r"result\.safetensors.*SHA-256"):
        load_result(saved, "split")


def test_weights_of_another_program_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file({"w": torch.ones(2)}, file)
    with pytest.raises(StoreError, match=r"weights\.safetensors"):
        load_result(file, "split")
    save_file({"w": torch.ones(2)}, file, metadata={"format": "pt"})
    with pytest.raises(StoreError, match=r"weights\.safetensors"):
        load_result(file, "split")


def test_another_kind_is_named(saved: Path) -> None:
    with pytest.raises(StoreError, match=r"'split'.*'recording'"):
        load_result(saved, "recording")


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, "2", None])
def test_a_newer_version_asks_for_an_update(tmp_path: Path, version: object) -> None:
    file = tmp_path / "new.safetensors"
    header = json.dumps({"kind": "split", "format": version})
    save_file({"w": torch.ones(2)}, file, metadata={"elude_nb": header})
    with pytest.raises(StoreError, match=f"{version!r}.* {FORMAT_VERSION}: pip install --upgrade"):
        load_result(file, "split")


@pytest.mark.parametrize("header", ["{", "[1]", "3", '"text"', "null", "{}", '{"kind": "split"}', '{"format": 1}'])
def test_a_damaged_manifest_is_refused(tmp_path: Path, header: str) -> None:
    file = tmp_path / "odd.safetensors"
    save_file({"w": torch.ones(2)}, file, metadata={"elude_nb": header})
    with pytest.raises(StoreError, match=r"odd\.safetensors"):
        load_result(file, "split")


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_a_result_can_be_read_by_whom_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        save_result(tmp_path / "x.safetensors", "thing", {"a": torch.zeros(2)}, {})
    finally:
        os.umask(before)
    assert (tmp_path / "x.safetensors").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_numbers_that_are_none_are_refused_in_a_manifest(tmp_path: Path, number: str) -> None:
    with pytest.raises(ValueError, match=re.escape(number)):
        read_json(f'{{"a": [{number}]}}')
    header = f'{{"kind": "table", "format": 1, "a": {number}}}'
    save_file({"a": torch.zeros(2)}, tmp_path / "x", metadata={"elude_nb": header, "elude_nb_sha256": "0"})
    with pytest.raises(StoreError, match=re.escape(number)):
        load_result(tmp_path / "x", "table")
    assert read_json('{"a": [1e308, 12345678901234567890, 0.5]}') == {"a": [1e308, 12345678901234567890, 0.5]}
