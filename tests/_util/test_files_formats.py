"""Files of older versions are read; those of newer ones are refused with the version that reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import elude_nb as en
from elude_nb._util.files import (
    _CHECKSUM,
    _MANIFEST,
    FORMAT_VERSION,
    MIGRATIONS,
    _checksum,
    library_version,
    load_result,
    migrate,
)
from elude_nb.baselines.sae import SparseAutoencoder, TopK
from elude_nb.errors import StoreError
from tests import formats

VERSIONS = range(1, FORMAT_VERSION + 1)


def folder(version: int) -> Path:
    return formats.FOLDER / f"format_{version}"


def readings(version: int, kind: str) -> Any:
    return json.loads((folder(version) / "readings.json").read_text(encoding="utf-8"))[kind]


def rewritten(source: Path, target: Path, **changes: Any) -> Path:
    """Copy a result with changes of its manifest, with the right checksum; ``...`` takes a key away."""
    with safe_open(source, framework="pt") as opened:
        manifest = json.loads(opened.metadata()[_MANIFEST])
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    manifest = {key: value for key, value in {**manifest, **changes}.items() if value is not ...}
    header = json.dumps(manifest)
    save_file(tensors, target, metadata={_MANIFEST: header, _CHECKSUM: _checksum(header, tensors)})
    return target


def assert_alike(found: Any, wanted: Any) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        numbers = isinstance(value, list) and value and isinstance(value[0], float)
        assert found[name] == (pytest.approx(value, abs=1e-5) if numbers else value), name


def test_every_format_has_its_files_and_every_older_one_its_step() -> None:
    stored = {path.name for path in formats.FOLDER.iterdir() if path.is_dir()}
    assert stored == {f"format_{version}" for version in VERSIONS}, (
        "run python -m tests.formats and commit what it wrote"
    )
    assert set(MIGRATIONS) == set(range(1, FORMAT_VERSION))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_split_of_any_format_reads_as_it_did(version) -> None:
    split = en.Disentanglement.load(folder(version) / "disentanglement.safetensors", formats.model())
    assert_alike(formats.readings_of_split(split), readings(version, "disentanglement"))


@pytest.mark.parametrize("version", VERSIONS)
def test_an_autoencoder_of_any_format_reads_as_it_did(version) -> None:
    found = SparseAutoencoder.load(folder(version) / "autoencoder.safetensors")
    assert isinstance(found, TopK)
    assert_alike(formats.readings_of_autoencoder(found), readings(version, "autoencoder"))


@pytest.mark.parametrize("version", VERSIONS)
def test_the_files_are_of_the_format_of_their_folder(version) -> None:
    for file in folder(version).glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            assert json.loads(opened.metadata()[_MANIFEST])["format"] == version


def test_the_stored_network_is_the_same_on_every_machine() -> None:
    with safe_open(folder(1) / "disentanglement.safetensors", framework="pt") as opened:
        assert json.loads(opened.metadata()[_MANIFEST])["fingerprint"] == formats.model().fingerprint()


def test_an_old_file_is_read_saved_anew_and_reads_the_same(tmp_path: Path) -> None:
    old = en.Disentanglement.load(folder(1) / "disentanglement.safetensors", formats.model())
    old.save(tmp_path / "new.safetensors")
    _, manifest = load_result(tmp_path / "new.safetensors", "disentanglement")
    assert manifest["elude_nb"] == library_version() == en.__version__
    new = en.Disentanglement.load(tmp_path / "new.safetensors", formats.model())
    assert_alike(formats.readings_of_split(new), readings(1, "disentanglement"))


def test_a_split_from_before_there_were_names_has_none(tmp_path: Path) -> None:
    file = rewritten(folder(1) / "disentanglement.safetensors", tmp_path / "nameless.safetensors", names=...)
    assert en.Disentanglement.load(file, formats.model()).names == {}
    file = rewritten(folder(2) / "disentanglement.safetensors", tmp_path / "lacking.safetensors", names=...)
    with pytest.raises(StoreError, match="names"):
        en.Disentanglement.load(file, formats.model())


def test_a_migration_changes_neither_what_it_is_given_nor_the_file(tmp_path: Path) -> None:
    file = folder(1) / "disentanglement.safetensors"
    before = file.read_bytes()
    tensors: dict[str, torch.Tensor] = {"a": torch.ones(2)}
    manifest: dict[str, Any] = {"versions": {"elude-nb": "0.1.3"}}
    found = migrate("disentanglement", 1, tensors, manifest)
    assert found[1] == {"versions": {"elude-nb": "0.1.3"}, "elude_nb": "0.1.3", "names": {}}
    assert manifest == {"versions": {"elude-nb": "0.1.3"}}
    assert migrate("another", 1, {}, {"versions": 3})[1] == {"versions": 3, "elude_nb": "0.1.0"}
    assert migrate("another", FORMAT_VERSION, {}, {"x": 1}) == ({}, {"x": 1})
    en.Disentanglement.load(file, formats.model())
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("written_by", "ending"),
    [
        ("9.1.0", r"99.* 'elude-nb>=9\.1\.0'$"),
        (..., r"99.* elude-nb$"),
        ("1'; rm -rf ~ #", r"99.* elude-nb$"),  # people copy such lines into a shell
        (["9"], r"99.* elude-nb$"),
    ],
)
def test_a_file_of_the_future_says_which_version_reads_it(tmp_path: Path, written_by, ending) -> None:
    source, target = folder(2) / "disentanglement.safetensors", tmp_path / "future.safetensors"
    rewritten(source, target, format=99, elude_nb=written_by)
    with pytest.raises(StoreError, match=ending):
        en.Disentanglement.load(target, formats.model())


def test_words_that_a_later_version_of_the_same_format_may_add_are_ignored(tmp_path: Path) -> None:
    file = rewritten(folder(2) / "disentanglement.safetensors", tmp_path / "more.safetensors", mood="sunny")
    assert_alike(
        formats.readings_of_split(en.Disentanglement.load(file, formats.model())), readings(2, "disentanglement")
    )


def test_what_was_written_before_is_never_written_over() -> None:
    with pytest.raises(FileExistsError):
        formats.write(folder(1))
