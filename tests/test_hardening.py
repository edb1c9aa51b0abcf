"""Files that were cut, changed or made to do harm are refused with an error of ours, whatever was done to them."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import elude_nb as en
from elude_nb import Disentanglement, scores
from elude_nb._util.files import FORMAT_VERSION, load_result, save_result, sha256_of_tensors
from elude_nb.baselines import TopK
from elude_nb.core.edit import Edit
from elude_nb.data.decode import open_rgb, read_rgb
from elude_nb.errors import EditError, ImageError, ModelMismatchError, StoreError, WeightsError
from elude_nb.models.weights import read_checkpoint
from elude_nb.steering.permanent import make_permanent

CASES = 150


def picture(kind: str) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (24, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Cut, overwrite, swap or repeat a part of a file."""
    found = bytearray(content)
    place = int(rng.integers(0, len(found)))
    match int(rng.integers(0, 4)):
        case 0:
            return bytes(found[:place])
        case 1:
            for spot in rng.integers(0, len(found), int(rng.integers(1, 9))):
                found[spot] = int(rng.integers(0, 256))
        case 2:
            size = int(rng.integers(1, 40))
            found[place : place + size] = rng.integers(0, 256, size, dtype=np.uint8).tobytes()
        case _:
            found[place:place] = found[place : place + int(rng.integers(1, 64))]
    return bytes(found)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM", "TGA", "ICO", "PCX"])
def test_damaged_pictures_are_read_or_refused(kind) -> None:
    rng = np.random.default_rng(sum(kind.encode()))
    whole = picture(kind)
    assert read_rgb(whole, "whole").mode == "RGB"
    for number in range(CASES):
        try:
            found = read_rgb(damaged(whole, rng), f"{kind} {number}")
        except ImageError as error:
            assert f"{kind} {number}" in str(error)  # noqa: PT017 - either is allowed
        else:
            assert found.mode == "RGB"


def test_a_picture_that_says_it_is_huge_is_refused_before_it_is_unpacked() -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    for side in (10_000, 20_000, 60_000):
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        with pytest.raises(ImageError, match=r"too (many|large)"):
            read_rgb(bomb + chunk(b"IEND", b""), "bomb.png")


def test_formats_that_start_other_programs_are_not_opened(tmp_path) -> None:
    (tmp_path / "x.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n")
    with pytest.raises(ImageError, match="not an image"):
        open_rgb(tmp_path / "x.eps")


def read(path: Path, split: Disentanglement) -> str:
    """Return ``"read"``, or the kind of refusal; anything else that is raised fails the test."""
    try:
        back = Disentanglement.load(path, split.model)
    except StoreError:
        return "refused"
    assert back.routing.routes.equal(split.routing.routes)  # damage that is not seen would be the worst
    return "read"


def test_damaged_results_are_refused(split, tmp_path) -> None:
    path = split.save(tmp_path / "whole.safetensors") or tmp_path / "whole.safetensors"
    whole = Path(path).read_bytes()
    rng = np.random.default_rng(1)
    said = []
    for _ in range(CASES):
        content = damaged(whole, rng)
        (tmp_path / "damaged.safetensors").write_bytes(content)
        if content != whole:
            said.append(read(tmp_path / "damaged.safetensors", split))
    assert said.count("refused") >= 0.9 * CASES  # a byte of padding may be anything
    assert read(Path(path), split) == "read"


def sealed_anew(path: Path, tensors: dict[str, torch.Tensor], header: str) -> None:
    import hashlib

    seal = hashlib.sha256(f"{header}|{sha256_of_tensors(tensors)}".encode()).hexdigest()
    save_file(tensors, path, metadata={"elude_nb": header, "elude_nb_sha256": seal})


HOSTILE: list[Any] = [None, True, -1, 0, 1e308, 10**30, "x", "../../x", "", [], [[]], {}, {"a": {}}, "\0", "9" * 5000]


@pytest.mark.parametrize("version", range(1, FORMAT_VERSION + 1))
def test_hostile_manifests_are_refused_even_if_sealed_anew(split, tmp_path, version) -> None:
    split.save(tmp_path / "whole.safetensors")
    tensors, manifest = load_result(tmp_path / "whole.safetensors", "disentanglement")
    whole = {"kind": "disentanglement", "format": version, **manifest}
    path = tmp_path / "hostile.safetensors"

    def tried(found: dict[str, Any]) -> None:
        sealed_anew(path, tensors, json.dumps(found))
        try:
            Disentanglement.load(path, split.model)
        except (StoreError, ValueError, TypeError):  # of our own checks
            return

    for key, kept in whole.items():
        for value in HOSTILE:
            tried({**whole, key: value})
            for inner in kept if isinstance(kept, dict) else ():
                tried({**whole, key: {**kept, inner: value}})
        tried({name: value for name, value in whole.items() if name != key})


@pytest.mark.parametrize("version", [0, -1, True, False])
def test_versions_that_never_were_are_damage(tmp_path, version) -> None:
    sealed_anew(tmp_path / "x", {"a": torch.zeros(2)}, json.dumps({"kind": "k", "format": version}))
    with pytest.raises(StoreError, match="damaged"):
        load_result(tmp_path / "x", "k")


def test_a_newer_version_says_so(tmp_path) -> None:
    sealed_anew(tmp_path / "x", {"a": torch.zeros(2)}, json.dumps({"kind": "k", "format": FORMAT_VERSION + 1}))
    with pytest.raises(
        StoreError, match=rf"has format {FORMAT_VERSION + 1}.*reads up to {FORMAT_VERSION}: pip install --upgrade"
    ):
        load_result(tmp_path / "x", "k")


def test_a_manifest_that_is_nested_too_deeply(tmp_path) -> None:
    header = '{"kind": "k", "format": 1, "x": ' + "[" * 100_000 + "]" * 100_000 + "}"
    sealed_anew(tmp_path / "x", {"a": torch.zeros(2)}, header)
    with pytest.raises(StoreError, match="damaged"):
        load_result(tmp_path / "x", "k")


def test_tensors_of_other_shapes_and_kinds_are_refused(split, tmp_path) -> None:
    split.save(tmp_path / "whole.safetensors")
    tensors, manifest = load_result(tmp_path / "whole.safetensors", "disentanglement")
    path = tmp_path / "other.safetensors"
    for name, tensor in tensors.items():
        others = [
            torch.zeros(3),
            torch.zeros(0),
            tensor[..., :1].clone(),
            torch.zeros(1, 2, 3, 4),
            tensor.to(torch.bool),
            torch.full(tensor.shape, 255, dtype=torch.uint8),
        ]
        for other in others:
            if other.shape == tensor.shape and other.dtype == tensor.dtype and other.equal(tensor):
                continue
            save_result(path, "disentanglement", {**tensors, name: other}, manifest)
            try:
                Disentanglement.load(path, split.model)
            except (StoreError, ValueError, TypeError):
                continue
        without = {key: value for key, value in tensors.items() if key != name}
        save_result(path, "disentanglement", without, manifest)
        with pytest.raises((StoreError, ModelMismatchError)):  # the latter without the probe
            Disentanglement.load(path, split.model)


def test_edits_from_text_are_made_or_refused() -> None:
    rng = np.random.default_rng(2)
    whole = (Edit.scale(concept=3, by=0.5) + Edit.clamp(unit=(1, 2), high=1.0, tokens="patch")).to_json().encode()
    for _ in range(4 * CASES):
        text = damaged(whole, rng).decode("utf-8", errors="replace")
        try:
            Edit.from_json(text)
        except (EditError, ValueError, TypeError):
            continue
    with pytest.raises((EditError, ValueError)):
        Edit.from_json("[" * 100_000)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match=r"pipe\.png' is no ordinary file"):
        open_rgb(tmp_path / "pipe.png")


def test_a_checkpoint_that_unpacks_to_more_than_it_is_is_refused(tmp_path) -> None:
    whole = tmp_path / "whole.pt"
    torch.save({"a": torch.zeros(100_000)}, whole)
    assert read_checkpoint(whole)[0]["a"].shape == (100_000,)
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    with pytest.raises(WeightsError, match=r"bomb\.pt' of [\d,]+ bytes would unpack to 40\d,\d{3}"):
        read_checkpoint(tmp_path / "bomb.pt")
    content = bytearray((tmp_path / "bomb.pt").read_bytes())
    place = content.find(b"PK\x01\x02")
    while place >= 0:  # Python's reader gives up on versions of the future, torch's does not
        content[place + 6 : place + 8] = (99).to_bytes(2, "little")
        place = content.find(b"PK\x01\x02", place + 4)
    (tmp_path / "bomb.pt").write_bytes(content)
    assert torch.load(tmp_path / "bomb.pt", weights_only=True)["a"].shape == (100_000,)
    with pytest.raises(WeightsError, match="its archive is damaged"):
        read_checkpoint(tmp_path / "bomb.pt")


def test_a_checkpoint_whose_names_are_none_is_refused(tmp_path) -> None:
    torch.save({1: torch.zeros(2)}, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match="dictionary of tensors by name"):
        read_checkpoint(tmp_path / "x.pt")


def test_a_probe_of_infinities_is_not_near_enough_to_anything(split, tmp_path) -> None:
    split.save(tmp_path / "x")
    tensors, manifest = load_result(tmp_path / "x", "disentanglement")
    tensors["probe"] = torch.full_like(tensors["probe"], torch.inf)
    save_result(tmp_path / "x", "disentanglement", tensors, manifest)
    with pytest.raises(ModelMismatchError, match="not finite"):
        Disentanglement.load(tmp_path / "x", split.model)
    tensors["probe"] = torch.zeros_like(tensors["probe"], dtype=torch.float8_e4m3fn)
    save_result(tmp_path / "x", "disentanglement", tensors, manifest)
    with pytest.raises(ModelMismatchError, match="shape or dtype"):
        Disentanglement.load(tmp_path / "x", split.model)


@pytest.mark.parametrize("shape", [(), (7,), (10**7, 0), (0, 192)])
def test_a_checkpoint_whose_last_layer_is_none_is_refused_before_a_network_is_made(tmp_path, shape) -> None:
    state = {"head.weight": torch.zeros(shape), "head.bias": torch.zeros(shape[:1])}
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"head\.weight is \(.*\); a last layer has"):
        en.load_model(tmp_path / "x.safetensors", architecture="vit_tiny_patch16_224")


def test_a_checkpoint_without_positions_is_refused(tmp_path) -> None:
    save_file({"pos_embed": torch.zeros(1, 0, 192)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"pos_embed \(1, 0, 192\) for \(1, 197, 192\)"):
        en.load_model(tmp_path / "x.safetensors", architecture="vit_tiny_patch16_224")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("channel_sums", torch.nan, "holds NaN or infinite"),
        ("unit_shares", torch.inf, "holds NaN or infinite"),
        ("counts", 0, "1 at least"),
        ("concepts", -2, "go from -2 to -2"),
        ("concepts", 99, "go from 99 to 99; there are 8"),
    ],
)
def test_values_that_cannot_be_are_refused(split, tmp_path, name, value, said) -> None:
    split.save(tmp_path / "x")
    tensors, manifest = load_result(tmp_path / "x", "disentanglement")
    save_result(tmp_path / "x", "disentanglement", {**tensors, name: torch.full_like(tensors[name], value)}, manifest)
    with pytest.raises(StoreError, match=said):
        Disentanglement.load(tmp_path / "x", split.model)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("blocks", "some", "blocks must be a whole number"),
        ("units", 0, "units=0 is out of range"),
        ("tokens", "none", "tokens='none' is not known"),
        ("routing", 3, "routing must be text"),
        ("seed", True, "seed must be a whole number"),
        ("more", 1, "lack or are too many: more"),
    ],
)
def test_settings_that_cannot_be_are_refused(split, tmp_path, name, value, said) -> None:
    split.save(tmp_path / "x")
    tensors, manifest = load_result(tmp_path / "x", "disentanglement")
    manifest["settings"] = {**manifest["settings"], name: value}
    save_result(tmp_path / "x", "disentanglement", tensors, manifest)
    with pytest.raises(StoreError, match=said):
        Disentanglement.load(tmp_path / "x", split.model)


WRONG: list[tuple[str, Callable[[Any], object]]] = [
    ("model must be a Model", en.find_site),
    ("model must be a Model", lambda wrong: en.embed(wrong, "shapes")),
    ("model must be a Model", lambda wrong: en.disentangle(wrong, "shapes", progress=False)),
    ("split must be a Disentanglement", lambda wrong: en.score(wrong, "shapes")),
    ("split must be a Disentanglement", lambda wrong: en.verify(wrong, "shapes")),
    ("split must be a Disentanglement", lambda wrong: en.find_units(wrong, "shapes", "shapes")),
    ("split must be a Disentanglement", lambda wrong: en.find_exemplars(wrong, "shapes", 0)),
    ("split must be a Disentanglement", lambda wrong: make_permanent(wrong, Edit.scale(concept=0, by=0.0))),
    ("activations must be real numbers", scores.effective_rank),
    ("information must be a pandas DataFrame", scores.encoded_factor),
    ("recording must be a Recording", lambda wrong: TopK(4, 2).fit(wrong)),
]


@pytest.mark.parametrize(("said", "call"), WRONG)
def test_an_argument_of_another_kind_is_named(said, call) -> None:
    with pytest.raises(TypeError, match=rf"{said}.* 'not one' \(str\)"):
        call("not one")


def test_numbers_in_tables_and_sparse_tensors(tmp_path) -> None:
    values = np.random.default_rng(0).random((6, 3))
    assert scores.effective_rank(pd.DataFrame(values)) == scores.effective_rank(values)
    for wrong in (torch.eye(3).to_sparse(), torch.zeros(3, 3, device="meta"), torch.eye(3, dtype=torch.complex64)):
        with pytest.raises(TypeError, match="must be real and dense"):
            scores.effective_rank(wrong)


def iptc_around(content: bytes, width: int = 32, height: int = 32) -> bytes:
    """Wrap a file as the picture of an IPTC file, which Pillow would open as whatever it is."""

    def field(number: int, data: bytes) -> bytes:
        record, place = divmod(number, 1000)
        return bytes([0x1C, record, place]) + len(data).to_bytes(2, "big") + data

    size = field(3020, width.to_bytes(2, "big")) + field(3030, height.to_bytes(2, "big"))
    head = field(3060, b"\x03\x01") + size + field(3065, b"\x00") + field(3120, b"\x01")
    body = b"".join(field(8010, content[i : i + 30_000]) for i in range(0, len(content), 30_000))
    return head + body


def test_containers_that_hold_any_other_format_are_not_opened(tmp_path) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(picture, "PNG")
    wrapped = iptc_around(picture.getvalue())
    with Image.open(io.BytesIO(wrapped)) as opened:  # Pillow does open it
        assert opened.format == "IPTC"
    for name in ("photo.jpg", "photo.iptc"):
        (tmp_path / name).write_bytes(wrapped)
        with pytest.raises(ImageError, match="not an image"):
            open_rgb(tmp_path / name)


def test_pixels_are_counted_again_once_they_are_there(monkeypatch) -> None:
    found = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(found, "ICO", sizes=[(64, 64)])
    lying = bytearray(found.getvalue())
    lying[6:8] = 16, 16  # what the list of pictures says of the one that is there
    assert read_rgb(bytes(lying), "x.ico").size == (64, 64)
    monkeypatch.setattr("elude_nb.data.decode.MOST_PIXELS", 40 * 40)
    with pytest.raises(ImageError, match="64 x 64 pixels, too many"):
        read_rgb(bytes(lying), "x.ico")
