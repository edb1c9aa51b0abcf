"""Files and arguments that are damaged, wrong or hostile are refused with an error that the documentation names.

The cases were found by a fuzzer; those that are drawn are drawn with a seed.
"""

from __future__ import annotations

import io
import json
import os
import re
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
from elude_nb.app.report import write_report
from elude_nb.baselines import TopK
from elude_nb.baselines.sae import SparseAutoencoder
from elude_nb.core.edit import Edit
from elude_nb.data.decode import open_rgb, read_rgb
from elude_nb.errors import EditError, ImageError, ModelMismatchError, SentenceError, StoreError, WeightsError
from elude_nb.models.checkpoints import read_checkpoint
from elude_nb.steering.permanent import make_permanent
from elude_nb.text import load_sentences, load_text_model

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
        with pytest.raises(ImageError, match=r"bomb\.png"):
            read_rgb(bomb + chunk(b"IEND", b""), "bomb.png")


def test_formats_that_start_other_programs_are_not_opened(tmp_path) -> None:
    (tmp_path / "x.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n")
    with pytest.raises(ImageError, match=r"x\.eps"):
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


def write_with_checksum(path: Path, tensors: dict[str, torch.Tensor], header: str) -> None:
    import hashlib

    seal = hashlib.sha256(f"{header}|{sha256_of_tensors(tensors)}".encode()).hexdigest()
    save_file(tensors, path, metadata={"elude_nb": header, "elude_nb_sha256": seal})


def test_damaged_autoencoders_are_refused(split, images, tmp_path) -> None:
    whole = TopK(6, 2, steps=2, batch_size=16).fit(split.recording(images)).save(tmp_path / "sae").read_bytes()
    rng = np.random.default_rng(3)
    for _ in range(CASES):
        content = damaged(whole, rng)
        (tmp_path / "damaged").write_bytes(content)
        try:
            back = SparseAutoencoder.load(tmp_path / "damaged")
        except StoreError:
            continue
        back.save(tmp_path / "again")  # a byte of padding may be anything
        assert (tmp_path / "again").read_bytes() == whole


HOSTILE: list[Any] = [None, True, -1, 0, 1e308, 10**30, "x", "../../x", "", [], [[]], {}, {"a": {}}, "\0", "9" * 5000]


@pytest.mark.parametrize("version", range(1, FORMAT_VERSION + 1))
def test_hostile_manifests_are_refused_even_if_their_checksum_is_right(split, tmp_path, version) -> None:
    split.save(tmp_path / "whole.safetensors")
    tensors, manifest = load_result(tmp_path / "whole.safetensors", "disentanglement")
    whole = {"kind": "disentanglement", "format": version, **manifest}
    path = tmp_path / "hostile.safetensors"

    def tried(found: dict[str, Any]) -> None:
        write_with_checksum(path, tensors, json.dumps(found))
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


def test_hostile_autoencoders_are_refused_even_if_their_checksum_is_right(split, images, tmp_path) -> None:
    recording, path = split.recording(images), tmp_path / "sae"
    TopK(6, 2, steps=2, batch_size=16).fit(recording).save(path)
    tensors, manifest = load_result(path, "sparse autoencoder")
    whole = {"kind": "sparse autoencoder", "format": FORMAT_VERSION, **manifest}
    manifests = [{**whole, key: value} for key in whole for value in HOSTILE]
    others = [
        {**tensors, name: other}
        for name, tensor in tensors.items()
        for other in (torch.zeros(()), torch.zeros(0), tensor[:1].clone(), torch.full_like(tensor, torch.nan))
    ]
    cases = [(tensors, found) for found in manifests] + [(found, whole) for found in others]
    for held, found in cases:
        write_with_checksum(path, held, json.dumps(found))
        try:
            back = SparseAutoencoder.load(path)
        except (StoreError, ValueError, TypeError):  # of our own checks
            continue
        back.decode(back.encode(recording))  # what is accepted must work


@pytest.mark.parametrize(
    "name", ["../../gone.pt", "no-such-model", "x.safetensors", "local-dir:/", "\ud800", "", None, 3]
)
def test_a_split_that_names_no_model_is_refused(split, tmp_path, name) -> None:
    split.save(tmp_path / "x.safetensors")
    tensors, manifest = load_result(tmp_path / "x.safetensors", "disentanglement")
    found = {"kind": "disentanglement", "format": FORMAT_VERSION, **manifest, "model": name}
    write_with_checksum(tmp_path / "x.safetensors", tensors, json.dumps(found))
    with pytest.raises((ValueError, TypeError, OSError)):
        Disentanglement.load(tmp_path / "x.safetensors")


@pytest.mark.parametrize("version", [0, -1, True, False])
def test_versions_that_never_were_are_damage(tmp_path, version) -> None:
    write_with_checksum(tmp_path / "x", {"a": torch.zeros(2)}, json.dumps({"kind": "k", "format": version}))
    with pytest.raises(StoreError, match=f"format {version}"):
        load_result(tmp_path / "x", "k")


def test_a_newer_version_says_so(tmp_path) -> None:
    write_with_checksum(tmp_path / "x", {"a": torch.zeros(2)}, json.dumps({"kind": "k", "format": FORMAT_VERSION + 1}))
    with pytest.raises(StoreError, match=rf"{FORMAT_VERSION + 1}.* {FORMAT_VERSION}: pip install --upgrade"):
        load_result(tmp_path / "x", "k")


def test_a_manifest_that_is_nested_too_deeply(tmp_path) -> None:
    header = '{"kind": "k", "format": 1, "x": ' + "[" * 100_000 + "]" * 100_000 + "}"
    write_with_checksum(tmp_path / "x", {"a": torch.zeros(2)}, header)
    with pytest.raises(StoreError):
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
        if name == "seen":
            continue  # files of version 0.2 do not have it
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
    with pytest.raises(ImageError, match=r"pipe\.png"):
        open_rgb(tmp_path / "pipe.png")


def test_a_checkpoint_that_unpacks_to_more_than_it_is_is_refused(tmp_path) -> None:
    whole = tmp_path / "whole.pt"
    torch.save({"a": torch.zeros(100_000)}, whole)
    assert read_checkpoint(whole)[0]["a"].shape == (100_000,)
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    with pytest.raises(WeightsError, match=r"bomb\.pt.* 40\d,\d{3}"):
        read_checkpoint(tmp_path / "bomb.pt")
    content = bytearray((tmp_path / "bomb.pt").read_bytes())
    place = content.find(b"PK\x01\x02")
    while place >= 0:  # Python's reader gives up on versions of the future, torch's does not
        content[place + 6 : place + 8] = (99).to_bytes(2, "little")
        place = content.find(b"PK\x01\x02", place + 4)
    (tmp_path / "bomb.pt").write_bytes(content)
    assert torch.load(tmp_path / "bomb.pt", weights_only=True)["a"].shape == (100_000,)
    with pytest.raises(WeightsError, match=r"bomb\.pt"):
        read_checkpoint(tmp_path / "bomb.pt")


def test_a_checkpoint_whose_names_are_none_is_refused(tmp_path) -> None:
    torch.save({1: torch.zeros(2)}, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match=r"x\.pt"):
        read_checkpoint(tmp_path / "x.pt")


def test_a_probe_of_infinities_is_not_near_enough_to_anything(split, tmp_path) -> None:
    split.save(tmp_path / "x")
    tensors, manifest = load_result(tmp_path / "x", "disentanglement")
    tensors["probe"] = torch.full_like(tensors["probe"], torch.inf)
    save_result(tmp_path / "x", "disentanglement", tensors, manifest)
    with pytest.raises(ModelMismatchError):
        Disentanglement.load(tmp_path / "x", split.model)
    tensors["probe"] = torch.zeros_like(tensors["probe"], dtype=torch.float8_e4m3fn)
    save_result(tmp_path / "x", "disentanglement", tensors, manifest)
    with pytest.raises(ModelMismatchError):
        Disentanglement.load(tmp_path / "x", split.model)


@pytest.mark.parametrize("shape", [(), (7,), (10**7, 0), (0, 192)])
def test_a_checkpoint_whose_last_layer_is_none_is_refused_before_a_network_is_made(tmp_path, shape) -> None:
    state = {"head.weight": torch.zeros(shape), "head.bias": torch.zeros(shape[:1])}
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=rf"head\.weight.*{re.escape(str(shape))}"):
        en.load_model(tmp_path / "x.safetensors", architecture="vit_tiny_patch16_224")


def test_a_checkpoint_without_positions_is_refused(tmp_path) -> None:
    save_file({"pos_embed": torch.zeros(1, 0, 192)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"pos_embed.*\(1, 0, 192\).*\(1, 197, 192\)"):
        en.load_model(tmp_path / "x.safetensors", architecture="vit_tiny_patch16_224")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("channel_sums", torch.nan, "channel_sums"),
        ("unit_shares", torch.inf, "unit_shares"),
        ("counts", 0, "counts"),
        ("concepts", -2, "-2"),
        ("concepts", 99, "99.* 8"),
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
        ("blocks", "some", "blocks.*'some'"),
        ("units", 0, "units=0"),
        ("tokens", "none", "tokens='none'"),
        ("routing", 3, "routing.* 3"),
        ("seed", True, "seed.*True"),
        ("more", 1, "more"),
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
    ("model", en.find_site),
    ("model", lambda wrong: en.embed(wrong, "shapes")),
    ("model", lambda wrong: en.disentangle(wrong, "shapes", progress=False)),
    ("split", lambda wrong: en.score(wrong, "shapes")),
    ("split", lambda wrong: en.verify(wrong, "shapes")),
    ("split", lambda wrong: en.find_units(wrong, "shapes", "shapes")),
    ("split", lambda wrong: en.find_exemplars(wrong, "shapes", 0)),
    ("split", lambda wrong: make_permanent(wrong, Edit.scale(concept=0, by=0.0))),
    ("activations", scores.effective_rank),
    ("information", scores.encoded_factor),
    ("recording", lambda wrong: TopK(4, 2).fit(wrong)),
]


@pytest.mark.parametrize(("argument", "call"), WRONG)
def test_an_argument_of_another_kind_is_named(argument, call) -> None:
    with pytest.raises(TypeError, match=rf"^{argument}.* 'not one' \(str\)"):
        call("not one")


@pytest.mark.parametrize("wrong", [3, None, 1.5, object(), len])
def test_what_is_no_source_of_images_is_refused(wrong) -> None:
    with pytest.raises(TypeError, match=r"^source"):
        en.load_images(wrong)


def test_a_title_must_be_text(split, images, tmp_path) -> None:
    with pytest.raises(TypeError, match=r"^title.* 3 \(int\)"):
        write_report(split, images, tmp_path / "x.html", title=3)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_whether_units_fire_can_be_ranked() -> None:
    fires = torch.eye(4, dtype=torch.bool)
    assert scores.best_images(fires, 1).tolist() == [[0, 1, 2, 3]]


def test_numbers_in_tables_and_sparse_tensors(tmp_path) -> None:
    values = np.random.default_rng(0).random((6, 3))
    assert scores.effective_rank(pd.DataFrame(values)) == scores.effective_rank(values)
    for wrong in (torch.eye(3).to_sparse(), torch.zeros(3, 3, device="meta"), torch.eye(3, dtype=torch.complex64)):
        with pytest.raises(TypeError, match="activations"):
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
        with pytest.raises(ImageError, match=name):
            open_rgb(tmp_path / name)


def test_pixels_are_counted_again_once_they_are_there(monkeypatch) -> None:
    found = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(found, "ICO", sizes=[(64, 64)])
    lying = bytearray(found.getvalue())
    lying[6:8] = 16, 16  # what the list of pictures says of the one that is there
    assert read_rgb(bytes(lying), "x.ico").size == (64, 64)
    monkeypatch.setattr("elude_nb.data.decode.MOST_PIXELS", 40 * 40)
    with pytest.raises(ImageError, match="64 x 64"):
        read_rgb(bytes(lying), "x.ico")


@pytest.mark.parametrize(("height", "accepted"), [(100, True), (101, False), (600, False)])
def test_the_limit_of_pixels_holds_for_pictures_that_are_all_there(monkeypatch, height, accepted) -> None:
    monkeypatch.setattr("elude_nb.data.decode.MOST_PIXELS", 100 * 100)
    packed = io.BytesIO()
    Image.new("1", (100, height)).save(packed, "PNG")
    if accepted:
        assert read_rgb(packed.getvalue(), "x.png").size == (100, height)
    else:
        with pytest.raises(ImageError, match=rf"x\.png.*100 x {height}"):
            read_rgb(packed.getvalue(), "x.png")


READERS: dict[str, Callable[[Any], object]] = {
    "load_result": lambda path: load_result(path, "x"),
    "Disentanglement.load": Disentanglement.load,
    "SparseAutoencoder.load": SparseAutoencoder.load,
    "read_checkpoint": read_checkpoint,
    "load_sentences": load_sentences,
    "open_rgb": open_rgb,
    "load_images": lambda path: list(en.load_images(path)),
    "load_images, a list": lambda path: list(en.load_images([path])),
}


@pytest.mark.parametrize("reader", READERS)
def test_paths_that_lead_to_no_ordinary_file_are_refused(tmp_path, monkeypatch, reader) -> None:
    loop, dangling, empty, pipe = (tmp_path / f"{name}.png" for name in ("loop", "dangling", "empty", "pipe"))
    loop.symlink_to(loop)
    dangling.symlink_to(tmp_path / "gone")
    empty.touch()
    devices = [Path("/dev/null"), Path("/dev/zero")] if os.name == "posix" else []
    if hasattr(os, "mkfifo"):
        os.mkfifo(pipe)  # a reader that opens it would wait for ever
        devices.append(pipe)
    paths: list[Any] = [loop, dangling, empty, empty / "below", *devices, tmp_path]
    paths += ["", "\0", "x\0y", "x" * 300, b"x", 3]
    monkeypatch.chdir(tmp_path)
    for path in paths:
        with pytest.raises((ValueError, TypeError, OSError, WeightsError)):
            READERS[reader](path)


ODD_TEXTS = [
    b"",
    b"\n\n \t\n",
    b"\t",
    b"a\t",
    b"\tx",
    b"a\tx\ny",
    b"\xff\xfea\0",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"\0" * 5000,
    "\u202e\u2028\x0b\x1c\n".encode(),
    b"\r\r\n",
    "animals\tThe cat sleeps.".encode("utf-16"),
]


@pytest.mark.parametrize("content", ODD_TEXTS)
def test_odd_files_of_sentences_are_read_or_refused(tmp_path, content) -> None:
    (tmp_path / "odd.tsv").write_bytes(content)
    try:
        found = load_sentences(tmp_path / "odd.tsv")
    except SentenceError:
        return
    assert all(sentence.strip() for sentence in found.names)


def test_checkpoints_with_a_wrong_tensor_are_refused(tmp_path) -> None:
    path = tmp_path / "x.safetensors"
    whole = en.load_model("test_vit", pretrained=False, image_size=32).network.state_dict()
    save_file(whole, path)
    en.load_model(path, architecture="test_vit", image_size=32)
    for name in ("cls_token", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "norm.bias", "head.weight"):
        for wrong in (torch.zeros(()), torch.zeros(0), torch.zeros(1, 2, 3, 4), torch.zeros(10**6)):
            save_file({**whole, name: wrong}, path)
            with pytest.raises(ValueError, match=re.escape(name)):
                en.load_model(path, architecture="test_vit", image_size=32)


@pytest.fixture
def encoder(tmp_path) -> Path:
    """The folder of a sentence encoder: a BERT of one block that knows six words."""
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "cat", "dog"]
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BertConfig(**sizes, max_position_embeddings=16, vocab_size=len(words), pad_token_id=0)
    transformers.utils.logging.disable_progress_bar()
    transformers.BertModel(config).save_pretrained(tmp_path)
    known = {word: number for number, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(known, unk_token="[UNK]"))  # noqa: S106 - no password
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("config.json", {"num_hidden_layers": 10**7}),
        ("config.json", {"vocab_size": 10**7}),
        ("config.json", {"hidden_size": "x"}),
        ("config.json", {"hidden_size": -1}),
        ("config.json", {"model_type": "no-such"}),
        ("config.json", []),
        ("config.json", float("nan")),
        ("tokenizer.json", {"model": None}),
        ("modules.json", 3),
        ("modules.json", [{"type": "x"}]),
    ],
)
def test_sentence_encoders_with_a_wrong_configuration_are_refused(encoder, file, changes) -> None:
    assert load_text_model(encoder, length=8)
    path = encoder / file
    whole = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**whole, **changes} if isinstance(changes, dict) else changes), encoding="utf-8")
    with pytest.raises(WeightsError):
        load_text_model(encoder, length=8)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "modules.json"])
def test_a_file_of_a_sentence_encoder_that_is_nested_too_deeply_is_refused(encoder, file) -> None:
    (encoder / file).write_text("[" * 60_000 + "]" * 60_000, encoding="utf-8")
    with pytest.raises(WeightsError):
        load_text_model(encoder, length=8)
