"""Bad files for `fuzz`: results, autoencoders, checkpoints, edits, and paths that are traps."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from fuzz_watch import MOST_MEMORY, Case, Family, Ground, Misbehaved  # type: ignore[import-not-found]  # beside this file
from safetensors.torch import save_file
from torch import Tensor

import elude_nb as en
from elude_nb._util.files import FORMAT_VERSION, load_result, sha256_of_tensors
from elude_nb.baselines.sae import BatchTopK, SparseAutoencoder, TopK
from elude_nb.data.decode import open_rgb
from elude_nb.models.weights import read_checkpoint

NAN, INFINITY = float("nan"), float("inf")
HOSTILE: list[Any] = [None, True, False, -1, 0, 1, 3, 0.5, 1e308, -1e308, NAN, INFINITY, -INFINITY, 10**30, -(10**30)]
HOSTILE += ["", "x", "\0", "../../x", "/etc/passwd", "a/../../b\0c", "9" * 5000, "cos\nsystem\n(S'touch pwned'\ntR."]
HOSTILE += [
    "<script>alert(1)</script>",
    "stream:99999",
    "stream:-1",
    "hf-hub:x/y",
    "local-dir:/",
    "__class__",
    "\ud800",
]
HOSTILE += [[], [[]], [None], ["x"] * 3, list(range(40)), {}, {"a": {}}, {"__class__": "x"}, [[[[[]]]]]]
DEEP = "[" * 60_000 + "]" * 60_000
DTYPES = [torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16, torch.int32]
DTYPES += [torch.int64, torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16, torch.float32]
DTYPES += [torch.float64, torch.complex64]
"""All that a safetensors file can hold and torch can make."""
ODD_HEADERS = [
    "",
    "null",
    "[]",
    "1",
    '"x"',
    "{",
    "NaN",
    "Infinity",
    "{}" * 3,
    DEEP,
    '{"kind":' + DEEP + "}",
    "1" * 10_000,
]


def damaged(content: bytes, ground: Ground) -> bytes:
    """Cut, flip, overwrite, repeat, swap or lengthen parts of a file."""
    rng, found = ground.rng, bytearray(content)
    place = int(rng.integers(0, max(1, len(found))))
    match int(rng.integers(0, 7)):
        case 0:
            return bytes(found[:place])
        case 1:
            for spot in rng.integers(0, len(found), int(rng.integers(1, 9))):
                found[spot] ^= 1 << int(rng.integers(0, 8))
        case 2:
            size = int(rng.integers(1, 40))
            found[place : place + size] = rng.integers(0, 256, size, dtype=np.uint8).tobytes()
        case 3:
            found[place:place] = found[place : place + int(rng.integers(1, 64))]
        case 4:
            del found[place : place + int(rng.integers(1, 64))]
        case 5:  # safetensors starts with the header's length, as do many chunks of pictures
            found[:8] = struct.pack("<Q", int(rng.integers(0, 2**63)) >> int(rng.integers(0, 63)))
        case _:
            found += rng.integers(0, 256, int(rng.integers(1, 400)), dtype=np.uint8).tobytes()
    return bytes(found)


def tampered(tree: Any, ground: Ground) -> Any:
    """Return a copy of a manifest in which one to three things were replaced, taken away, added or doubled."""
    tree = copy.deepcopy(tree)
    for _ in range(int(ground.rng.integers(1, 4))):
        places = list(_places(tree))
        if not places:
            break
        owner, key = ground.pick(places)
        match int(ground.rng.integers(0, 6)):
            case 0:
                del owner[key]
            case 1 if isinstance(owner, dict):
                owner[str(ground.pick(HOSTILE))] = owner[key]
            case 2:
                owner[key] = [owner[key]] * 2
            case _:
                owner[key] = copy.deepcopy(ground.pick(HOSTILE))
    return tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    entries = list(tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ())
    for key, value in entries:
        yield tree, key
        yield from _places(value)


def other_tensors(tensors: dict[str, Tensor], ground: Ground) -> dict[str, Tensor]:
    """Return tensors of which one to three have another shape, dtype or values, are missing or too many."""
    found = dict(tensors)
    for _ in range(int(ground.rng.integers(1, 4))):
        name = ground.pick(found) if found else "x"
        if name not in found:
            break
        match int(ground.rng.integers(0, 4)):
            case 0:
                del found[name]
            case 1:
                found[str(ground.pick(["x", "../../x", "", "routes ", "a\0b", name * 2]))] = torch.zeros(2)
            case _:
                found[name] = _other_tensor(tensors.get(name, found[name]), ground)  # not of what was changed already
    return {name: tensor.contiguous().clone() for name, tensor in found.items()}


def _other_tensor(tensor: Tensor, ground: Ground) -> Tensor:
    shape = tensor.shape
    fractions = tensor.dtype if tensor.is_floating_point() else torch.float32
    ways: list[Callable[[], Tensor]] = [
        lambda: torch.zeros(()),
        lambda: torch.zeros(0, dtype=tensor.dtype),
        lambda: torch.zeros(1, 2, 3, 4, dtype=tensor.dtype),
        lambda: torch.zeros((*shape[:-1], 0), dtype=tensor.dtype),
        lambda: torch.cat([tensor.reshape(-1)] * 2).to(tensor.dtype),
        lambda: tensor[..., :1] if tensor.ndim else tensor,
        lambda: tensor.mT if tensor.ndim > 1 else tensor,
        lambda: tensor.to(ground.pick(DTYPES)),
        lambda: torch.zeros(shape, dtype=ground.pick(DTYPES)),
        lambda: torch.zeros_like(tensor),
        lambda: torch.full(shape, ground.pick([NAN, INFINITY, -INFINITY, 1e30, -1.0]), dtype=fractions),
        lambda: torch.full(shape, ground.pick([-1, -2, 127, 100]), dtype=torch.int64).to(tensor.dtype),
        lambda: -tensor if tensor.dtype not in {torch.bool, torch.uint8} else 255 - tensor.to(torch.uint8),
        lambda: torch.full(shape, 2**62, dtype=torch.int64),
    ]
    return ground.pick(ways)()


def sealed(path: Path, tensors: dict[str, Tensor], header: str) -> None:
    """Write a result with whatever header, sealed as `save_result` does: what lies behind the seal is reached."""
    seal = hashlib.sha256(f"{header}|{sha256_of_tensors(tensors)}".encode("utf-8", "replace")).hexdigest()
    save_file(tensors, path, metadata={"elude_nb": header, "elude_nb_sha256": seal})


def _sealed_cases(ground: Ground, file: Path, kind: str, what: str, use: Callable[[], object]) -> Iterator[Case]:
    """Yield cases in which a sealed result has another manifest (``what="manifest"``) or other tensors."""
    tensors, manifest = load_result(file, kind)
    while True:
        whole = {"kind": kind, "format": ground.pick(range(1, FORMAT_VERSION + 1)), **manifest}
        held, header = tensors, json.dumps(whole)
        if what == "tensors":
            held = other_tensors(tensors, ground)
        elif ground.rng.random() < 0.03:
            header = ground.pick(ODD_HEADERS)
        else:
            header = json.dumps(tampered(whole, ground))
        try:
            sealed(file, held, header)
        except (UnicodeError, ValueError):  # such a file cannot be written
            continue
        changes = {name: (str(t.dtype), tuple(t.shape)) for name, t in held.items() if t is not tensors.get(name)}
        yield Case(f"{what}, format {whole['format']}: {changes or header[-900:]}", use)


def steady(content: bytes) -> bytes:
    """Return a safetensors file with its metadata sorted: they are written in another order in every run."""
    stop = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:stop])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(-len(text) % 8 + len(text))
    return struct.pack("<Q", len(text)) + text + content[stop:]


def _damaged_cases(ground: Ground, file: Path, use: Callable[[], object], whole: bytes) -> Iterator[Case]:
    for number in iter(int, 1):
        content = damaged(whole, ground)
        if content != whole:
            file.write_bytes(content)
            yield Case(f"damaged {number} {content[:60]!r}", use)


def load_split(file: Path, ground: Ground, *, same: bool = False) -> None:
    """Load a split and use what was accepted: it must work, and after mere damage be the same as before."""
    back = en.Disentanglement.load(file, ground.model)
    if same and back.identity != ground.split.identity:
        raise Misbehaved("a damaged file was read as another split")
    repr(back), back._repr_html_(), len(back.units), len(back.channels), back.identity
    back.concept_activations(ground.images[:1])
    with back.edit(en.Edit.scale(concept=0, by=0.5)):
        ground.model(torch.zeros(1, 3, 32, 32))


def damaged_splits(ground: Ground) -> Iterator[Case]:
    """Cut and changed bytes of a saved split."""
    file = ground.folder / "split.safetensors"
    ground.split.save(file)
    yield from _damaged_cases(ground, file, partial(load_split, file, ground, same=True), steady(file.read_bytes()))


def split_family(what: str) -> Family:
    """Return the family of splits whose manifest or tensors were changed and sealed anew."""

    def cases(ground: Ground) -> Iterator[Case]:
        file = ground.folder / "split.safetensors"
        ground.split.with_names({0: "cat", 1: "dog"}).save(file)
        yield from _sealed_cases(ground, file, "disentanglement", what, partial(load_split, file, ground))

    return cases


def nameless_models(ground: Ground) -> Iterator[Case]:
    """Yield splits that say which model is to be loaded, and say it wrongly."""
    file = ground.folder / "split.safetensors"
    ground.split.save(file)
    tensors, manifest = load_result(file, "disentanglement")
    names = [value for value in HOSTILE if not isinstance(value, str) or "/y" not in value]
    while True:
        found = {"kind": "disentanglement", "format": ground.pick(range(1, FORMAT_VERSION + 1))}
        found |= copy.deepcopy(manifest)
        found["weights"] = {"source": "x", "sha256": "0" * 64, "licence": "x"}
        # A model name that is right would be fetched: only such as lead nowhere.
        found["model"] = str(ground.pick([*names, "../../gone.pt", "split.safetensors", "no-such-model"]))
        for key in ("architecture", "image_size", "dtype", "weights"):
            if ground.rng.random() < 0.4:
                found[key] = ground.pick(names)
        try:
            sealed(file, tensors, json.dumps(found))
        except (UnicodeError, ValueError):
            continue
        yield Case(json.dumps(found)[-700:], partial(en.Disentanglement.load, file))


def _autoencoder(ground: Ground, file: Path) -> None:
    recording = ground.split.recording(ground.images)
    kind: Any = ground.pick([partial(TopK, 6, 2), partial(BatchTopK, 6, 2)])
    with mock.patch("time.perf_counter", return_value=0.0):  # the time it took is in the file, and is another each time
        kind(steps=5, batch_size=16).fit(recording).save(file)


def _load_autoencoder(file: Path, ground: Ground) -> None:
    back = SparseAutoencoder.load(file)
    recording = ground.split.recording(ground.images[:2])
    back.decode(back.encode(recording))
    repr(back), back.settings(), back.history_


def autoencoder_family(what: str) -> Family:
    """Return the family of autoencoders: damaged, or with a changed manifest or tensors, sealed anew."""

    def cases(ground: Ground) -> Iterator[Case]:
        file = ground.folder / "sae.safetensors"
        _autoencoder(ground, file)
        use = partial(_load_autoencoder, file, ground)
        if what == "bytes":
            yield from _damaged_cases(ground, file, use, steady(file.read_bytes()))
        yield from _sealed_cases(ground, file, "sparse autoencoder", what, use)

    return cases


def foreign_autoencoders(ground: Ground) -> Iterator[Case]:
    """Weights of autoencoders from elsewhere, of wrong names, shapes, dtypes and values, and broken files."""
    file = ground.folder / "foreign.safetensors"
    good = {"W_enc": torch.randn(16, 6), "W_dec": torch.randn(6, 16), "b_enc": torch.zeros(6), "b_dec": torch.zeros(16)}
    good |= {"threshold": torch.rand(6), "k": torch.tensor(2)}
    save_file(good, file)
    whole = file.read_bytes()
    settings: list[dict[str, Any]] = [{}, {"k": 2}, {"channels": 16}, {"names": {"encoder": "W_enc"}}]
    settings += [{"k": value} for value in (0, -1, "x", None, 10**30)]
    settings += [
        {"channels": -1},
        {"channels": "x"},
        {"names": {"x": "y"}},
        {"names": 3},
        {"no such": 1},
        {"width": "x"},
    ]

    def use(kind: Any, source: Any, more: dict[str, Any]) -> None:
        kind.load_pretrained(source, **more).encode(ground.split.recording(ground.images[:1]))

    while True:
        kind, more = ground.pick([TopK, BatchTopK]), ground.pick(settings)
        reader = more in settings[:4]  # a wrong setting is no wrong file
        if ground.rng.random() < 0.3:
            file.write_bytes(damaged(whole, ground))
            yield Case(f"damaged file {more}", partial(use, kind, file, more), reader=reader)
        else:
            tensors = other_tensors(good, ground) if ground.rng.random() < 0.8 else good
            shapes = {name: (tuple(tensor.shape), str(tensor.dtype)) for name, tensor in tensors.items()}
            yield Case(f"{kind.__name__} {shapes} {more}", partial(use, kind, tensors, more), reader=reader)


class Bomb:
    """Unpickled, it makes a folder: proof that code ran."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("pwned",)

    def __repr__(self) -> str:  # without an address: cases have the same names in every run
        return "Bomb()"


def _repacked(content: bytes, zeros: int) -> bytes:
    """Return a torch file whose entries are packed, with one more of many zeros."""
    made, block = io.BytesIO(), bytes(1 << 20)
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            with new.open(entry.filename, "w") as held:
                held.write(old.read(entry))
                for _ in range(zeros // len(block) if entry.filename.endswith("data/0") else 0):
                    held.write(block)
    return made.getvalue()


def checkpoints(ground: Ground) -> Iterator[Case]:
    """Checkpoint files: damaged, pickles that run code, wrong contents and endings."""
    good = {"a.weight": torch.randn(3, 4), "a.bias": torch.zeros(3)}
    buffer = io.BytesIO()
    torch.save(good, buffer)
    torch_file = buffer.getvalue()
    legacy = io.BytesIO()
    torch.save(good, legacy, _use_new_zipfile_serialization=False)
    packed = _repacked(torch_file, 2 * MOST_MEMORY)
    save_file(good, ground.folder / "whole", metadata={"architecture": "resnet18"})
    plain = (ground.folder / "whole").read_bytes()
    (ground.folder / "whole").unlink()
    wrong: list[Any] = [Bomb(), {"state_dict": Bomb()}, [1], None, {"a": 3}, {1: torch.zeros(1)}, torch.zeros(2), "x"]
    wrong += [{"state_dict": {"a": Bomb()}}, {"model": [torch.zeros(2)]}, Path("x"), {"model": {"model": good}}]
    while True:
        ending = ground.pick([".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".zip", "", ".PT"])
        file = ground.folder / f"weights{ending}"
        match int(ground.rng.integers(0, 6)):
            case 5:
                content, said = packed, "packed"
            case 0:
                content, said = damaged(plain, ground), "safetensors"
            case 1:
                content, said = damaged(ground.pick([torch_file, legacy.getvalue()]), ground), "torch file"
            case 2:
                held = ground.pick(wrong)
                content, said = pickle.dumps(held), f"pickle of {held!r}"
            case 3:
                made = io.BytesIO()
                held = ground.pick(wrong)
                torch.save(held, made)
                content, said = made.getvalue(), f"torch file of {held!r}"
            case _:
                content, said = (
                    ground.pick([plain, torch_file, legacy.getvalue(), b"", b"\x80\x04.", b"PK\x05\x06" + b"\0" * 18]),
                    "whole",
                )
        file.write_bytes(content)
        read: Any = partial(read_checkpoint, file)
        if ground.rng.random() < 0.1:
            read = partial(
                en.load_model, file, architecture=ground.pick([None, "no such", "vit_tiny_patch16_224", "../x"])
            )
        yield Case(f"{said} in {file.name}", read)
        file.unlink()


def edits(ground: Ground) -> Iterator[Case]:
    """Edits as text: damaged, and with values replaced."""
    units = [(int(row.channel), int(row.unit)) for row in ground.split.units.query("unit > 0").itertuples()]
    scale = en.Edit.scale(concept=[1, 2], by=0.5, mask=[[0.5] * 4] * 4, strength=[0.1, 1.0])
    whole = scale + en.Edit.clamp(unit=units[0], high=1.0, tokens="patch") + en.Edit.ablate(unit=units[1:3], to=[1, 2])
    batch = torch.zeros(1, 3, 32, 32)

    def use(text: str) -> None:
        found = en.Edit.from_json(text)
        repr(found), found.code(), en.Edit.from_json(found.to_json())
        with ground.split.edit(found):
            ground.model(batch)

    while True:
        if ground.rng.random() < 0.4:
            text = damaged(whole.to_json().encode(), ground).decode("utf-8", "replace")
        else:
            text = (
                json.dumps(tampered(whole.to_dict(), ground))
                if ground.rng.random() < 0.97
                else ground.pick(ODD_HEADERS)
            )
        yield Case(f"edit {text[:500]}", partial(use, text))


def traps(ground: Ground) -> Iterator[Case]:
    """Paths that are no ordinary files: folders, loops, pipes, devices, NUL, endless names; for every reader."""
    folder = ground.folder
    loop, pipe, empty, dangling = (folder / name for name in ("loop.png", "pipe.png", "empty.png", "dangling.png"))
    made = [loop, empty, dangling]
    empty.write_bytes(b"")
    loop.symlink_to(loop)
    dangling.symlink_to(folder / "gone")
    if hasattr(os, "mkfifo"):
        os.mkfifo(pipe)
        made.append(pipe)
    locked = folder / "locked.png"
    locked.write_bytes(b"x")
    locked.chmod(0)
    paths: list[Any] = [
        *made,
        locked,
        folder,
        folder.parent,
        "..",
        ".",
        "",
        "\0",
        "x\0y.png",
        "gone",
        "x" * 300,
        "x/" * 3000,
    ]
    paths += [
        "/dev/null",
        "/dev/zero",
        "/dev/random",
        "/proc/self/mem",
        "../../../../../../etc/passwd",
        "~/x",
        "file:///x",
    ]
    paths += [empty / "below", b"bytes.png", 3, None, 1.5, [], object(), "\ud800.png", "CON", "x.safetensors\0.png"]
    readers: dict[str, Callable[[Any], object]] = {
        "load_result": lambda path: load_result(path, "x"),
        "Disentanglement.load": lambda path: en.Disentanglement.load(path, ground.model),
        "SparseAutoencoder.load": SparseAutoencoder.load,
        "TopK.load_pretrained": lambda path: TopK.load_pretrained(path, k=2),
        "open_rgb": open_rgb,
        "load_images": lambda path: list(en.load_images(path)),
        "load_images, a list": lambda path: list(en.load_images([path])),
        "load_model": lambda path: en.load_model(Path(path) if isinstance(path, str) else path, pretrained=False),
        "split.save": lambda path: ground.split.save(path) if _is_no_place(path) else None,
    }
    while True:
        path, reader = ground.pick(paths), ground.pick(readers)
        # To write is the system's to refuse; what is read, the library looks at first.
        said = re.sub(r" at 0x\w+", "", str(path)).replace(str(folder), "here").replace(str(folder.parent), "above")
        yield Case(f"{reader}({said[:60]!r})", partial(readers[reader], path), reader=reader != "split.save")


def _is_no_place(path: Any) -> bool:
    """Say whether nothing can be saved there, so that a file that appears is debris."""
    text = str(path)
    return not isinstance(path, str | Path | bytes) or "\0" in text or Path(text).is_dir() or len(text) in {300, 6000}


FAMILIES: dict[str, tuple[Family, float]] = {
    "splits: damaged bytes": (damaged_splits, 0.10),
    "splits: manifest, sealed anew": (split_family("manifest"), 0.12),
    "splits: tensors, sealed anew": (split_family("tensors"), 0.10),
    "splits: which model": (nameless_models, 0.04),
    "autoencoders: damaged bytes": (autoencoder_family("bytes"), 0.04),
    "autoencoders: manifest, sealed": (autoencoder_family("manifest"), 0.06),
    "autoencoders: tensors, sealed": (autoencoder_family("tensors"), 0.05),
    "autoencoders: from elsewhere": (foreign_autoencoders, 0.04),
    "checkpoints and pickles": (checkpoints, 0.06),
    "edits as text": (edits, 0.05),
    "paths that are traps": (traps, 0.03),
}
