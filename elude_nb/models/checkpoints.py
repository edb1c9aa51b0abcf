"""Checkpoints, as they are published or as trainers write them: read, and made a timm network.

Nothing here unpickles freely: safetensors is plain data, and torch's files are read with ``weights_only=True``. What a
trainer noted beside the weights (its arguments, scores) is replaced by stand-ins that do nothing.
"""

from __future__ import annotations

import math
import pickletools
import re
import struct
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from elude_nb._util.files import existing_file, read_tensors, sha256_of_file
from elude_nb._util.words import as_text
from elude_nb.errors import WeightsError
from elude_nb.models.timm_networks import check_timm_name, create
from elude_nb.models.weights import Provenance

ENDINGS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar")
"""Of the files that hold checkpoints; ``.pth.tar``, which many trainers write, is no archive of tar."""

_CURE = "Whole pickled models run code when they are loaded and are refused; save model.state_dict() instead."
_DEEPEST = 8  # dictionaries in dictionaries; more would be no checkpoint, and each level costs memory

# What torch.compile, FSDP and activation checkpointing put into names, wherever they wrapped a module.
_WRAPPED = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_AVERAGED = re.compile(r"(?<![a-z])(ema|teacher|averaged?)(?![a-z])", re.IGNORECASE)
_CLASSIFIERS = ("head.weight", "heads.head.weight", "fc.weight", "classifier.weight")  # of other publishers
_RESAMPLED = re.compile(r"pos|attn_mask|rope")  # tensors whose shapes follow the size of the picture


# ---------------------------------------------------------------- reading


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, str], Provenance]:
    """Read all that a checkpoint holds, and the text metadata of a ``.safetensors`` file.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    WeightsError
        If the file is damaged, is no dictionary, or has another ending.
    """
    metadata: dict[str, str] = {}
    path = existing_file(path, "correct the path of the checkpoint")
    held: Any
    if path.suffix == ".safetensors":
        held, metadata = read_tensors(path, WeightsError)
    elif path.suffix in ENDINGS:
        held = _read_torch_file(path)
    else:
        raise WeightsError(f"{str(path)!r}: the ending {path.suffix!r} is not one of {', '.join(ENDINGS)}.")
    if next(_dictionaries(held), None) is None:
        raise WeightsError(f"{str(path)!r} does not hold a dictionary of tensors by name. {_CURE}")
    licence = metadata.get("licence", metadata.get("license", "not stated in the file"))
    return held, metadata, Provenance(f"file {as_text(path.name)}", sha256_of_file(path), licence)


class _StandIn:
    """Stands for an object that a checkpoint has beside its weights; it takes everything and does nothing."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


class _NewDict:
    def __new__(cls, *_: object) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()  # torch's reader gives this one attributes too


class _NewList:
    def __new__(cls, *_: object) -> list[Any]:  # type: ignore[misc]
        return []


_FILLED = {"SETITEM": _NewDict, "SETITEMS": _NewDict, "APPEND": _NewList, "APPENDS": _NewList}


def _read_torch_file(path: Path) -> Any:
    _check_unpacked(path)
    try:
        # Where the file asks for a class or function that torch does not allow, it gets a stand-in.
        stand_ins: list[Any] = [(stand_in, name) for name, stand_in in _globals_of(path).items()]
        with torch.serialization.safe_globals(stand_ins):
            held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise WeightsError(
            f"{str(path)!r} cannot be read as plain tensors ({type(error).__name__}). {_CURE}"
        ) from error
    return held


def _globals_of(path: Path) -> dict[str, type]:
    """Return stand-ins for the classes and functions that a file of ``torch.save`` names; nothing of it is run."""
    with ExitStack() as stack:
        file: IO[bytes] = stack.enter_context(path.open("rb"))
        pickles = 1
        if zipfile.is_zipfile(file):
            archive = stack.enter_context(zipfile.ZipFile(file))
            name = next(name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl")
            file = stack.enter_context(archive.open(name))
        else:  # the old format begins with five pickles: two numbers, the machine, the content, the names of storages
            file.seek(0)
            pickles = 5
        found: dict[str, type] = {}
        for _ in range(pickles):
            _note_globals(file, found)
        return found


def _note_globals(file: IO[bytes], found: dict[str, type]) -> None:
    """Note what one pickle names, and of what it puts items into, whether that must be a dictionary or a list."""
    stack: list[str | None] = []  # the class of each object, where it is one of those named
    marks: list[int] = []
    memo: dict[Any, str | None] = {}
    for code, argument, _ in pickletools.genops(file):
        before = code.stack_before
        marked = pickletools.markobject in before
        start = marks.pop() - before.index(pickletools.markobject) if marked else len(stack) - len(before)
        made: list[str | None] = [None] * len(code.stack_after)
        if code.name == "GLOBAL":
            a, b = str(argument).split(" ", 1)
            made = [".".join(NAME_MAPPING.get((a, b), (IMPORT_MAPPING.get(a, a), b)))]  # files have Python 2's names
            found.setdefault(str(made[0]), _StandIn)
        elif code.name == "MARK":
            marks.append(len(stack))
            made = []
        elif code.name in {"BINPUT", "LONG_BINPUT"}:
            memo[argument] = stack[-1]
        elif code.name in {"BINGET", "LONG_BINGET"}:
            made = [memo[argument]]
        elif code.name in {"NEWOBJ", "REDUCE", "BUILD", *_FILLED}:
            made = stack[start : start + 1]
            if code.name in _FILLED and made[0] is not None:
                found[made[0]] = _FILLED[code.name]
        stack[start:] = made


def _check_unpacked(path: Path) -> None:
    """Refuse a file that would unpack to more than it is: torch compresses nothing, so somebody else did."""
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            return  # the old format, which is not compressed, or a damaged file, of which torch says more
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        # torch would read on where Python's reader gives up
        raise WeightsError(f"{str(path)!r}: its archive is damaged ({error}); fetch it again.") from error
    if size > path.stat().st_size:
        raise WeightsError(
            f"{str(path)!r} of {path.stat().st_size:,} bytes would unpack to {size:,}; torch.save compresses nothing. "
            "Fetch it from its publisher, or unpack it and save it again with safetensors.torch.save_file."
        )


def _check_stored(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that are larger than what the file stores of them: one number, expanded, would fill the memory."""
    for name, tensor in tensors.items():
        plain = tensor.layout == torch.strided and not tensor.is_nested and not tensor.is_meta
        if not plain or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise WeightsError(
                f"{str(path)!r}: {name!r} is not stored number by number: it is expanded, sparse, nested or on the "
                "device meta. Save plain tensors: tensor.to_dense().contiguous()."
            )


# ---------------------------------------------------------------- which weights


@dataclass(frozen=True)
class Chosen:
    """The weights taken from a checkpoint.

    Attributes
    ----------
    tensors
        By name, without what wrappers put before and into names.
    taken
        Where in the file they were, in words; empty if they are all that it holds.
    left
        What else the file holds.
    """

    tensors: dict[str, Tensor]
    taken: str
    left: tuple[str, ...]


def choose_weights(held: Mapping[str, Any], names: Collection[str]) -> Chosen:
    """Return the weights in a checkpoint that fit a network with these names of parameters and buffers best.

    Every dictionary of tensors in the file is looked at, however deep, under every prefix that leaves names of the
    network. If several fit as well, averaged weights (of a teacher, or "ema") come before others, and then the first.
    """
    wanted = set(names)
    options = []
    for path, found in _dictionaries(held):
        tensors = {_WRAPPED.sub("", name): tensor for name, tensor in found.items()}
        fits = _prefixes(tensors, wanted)
        # Another publisher's names fit nothing: then it is the largest dictionary, and timm may know the names.
        good = {prefix: count for prefix, count in fits.items() if 2 * count > len(wanted)} or {"": 0}
        options += [(count, path, prefix, tensors) for prefix, count in good.items()]

    def rank(option: tuple[int, tuple[str, ...], str, dict[str, Tensor]]) -> tuple[int, bool, int]:
        count, path, prefix, tensors = option
        return count, _is_averaged(path, prefix), len(tensors)

    _, path, prefix, tensors = max(options, key=rank)
    inside = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    outside = Counter(name.partition(".")[0] for name in tensors if not name.startswith(prefix))
    groups = (f"{name}.* ({count} tensors)" if count > 1 else name for name, count in outside.items())
    where = [f"averaged weights ({'.'.join(path) or prefix})" if _is_averaged(path, prefix) else ".".join(path)]
    where += [f"names after {prefix!r}"] if prefix else []
    left = [*_beside(held, path), *groups]
    return Chosen(inside, ", ".join(part for part in where if part), tuple(left))


def _is_averaged(path: tuple[str, ...], prefix: str) -> bool:
    return bool(_AVERAGED.search(".".join((*path, prefix)).replace("_", " ")))


def _dictionaries(held: object) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Yield every dictionary with tensors by name in a file, once, with the keys that lead to it."""
    waiting: list[tuple[tuple[str, ...], object]] = [((), held)]
    seen = set[int]()  # a file may hold a dictionary inside itself
    for path, here in waiting:
        if not isinstance(here, dict) or id(here) in seen or len(path) > _DEEPEST:
            continue
        seen.add(id(here))
        named = {name: value for name, value in here.items() if isinstance(name, str)}
        tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
        if tensors:
            yield path, tensors
        waiting += [((*path, name), value) for name, value in named.items()]


def _prefixes(tensors: Collection[str], wanted: Collection[str]) -> Counter[str]:
    """Count under which prefixes how many names of a network are found."""
    found = Counter[str]()
    for name in tensors:
        starts = [0, *(place + 1 for place, letter in enumerate(name) if letter == ".")]
        found.update(name[:start] for start in starts if name[start:] in wanted)
    return found


def _beside(held: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    """Yield the keys of a file that do not lead to the weights taken."""
    for depth, key in enumerate((*path, None)):
        here = ".".join(path[:depth])
        for name, value in held.items():
            if name != key and (key is not None or not isinstance(value, Tensor)):
                yield f"{here}.{name}" if here else str(name)
        if key is not None:
            held = held[key]


# ---------------------------------------------------------------- a network of them


def load_checkpoint(
    path: Path, architecture: str | None, size: tuple[int, int] | None, seed: int
) -> tuple[nn.Module, Provenance, str]:
    """Return the network of a checkpoint, with provenance and timm's name of its architecture.

    Raises
    ------
    FileNotFoundError, WeightsError
        If the file cannot be read.
    ValueError
        If it does not say which architecture it belongs to, or does not fit it.
    """
    existing_file(path, "mend the path of the checkpoint; a timm name has no slash and no file ending")
    held, metadata, provenance = read_checkpoint(path)
    architecture = architecture or metadata.get("architecture") or _stated_architecture(held)
    if architecture is None:
        raise ValueError(
            f"{str(path)!r} does not say which network it belongs to; add architecture='...' with timm's name, "
            "for example architecture='vit_small_patch14_dinov2.lvd142m'."
        )
    check_timm_name(architecture)
    chosen = choose_weights(held, _sketch(architecture, size).state_dict())
    _check_stored(chosen.tensors, path)
    network, notes = _fitted(architecture, size, seed, chosen.tensors, str(path))
    taken = ", ".join(part for part in (chosen.taken, *notes) if part)
    return network, replace(provenance, taken=taken, left=chosen.left), architecture


def _stated_architecture(held: Mapping[str, Any]) -> str | None:
    """Return the architecture that timm's trainer writes into its checkpoints."""
    import timm

    name = held.get("arch")
    return name if isinstance(name, str) and timm.is_model(name) else None


def _sketch(architecture: str, size: tuple[int, int] | None, **more: Any) -> Any:
    """Return a network without values, for its names and shapes."""
    with torch.device("meta"):
        return create(architecture, size, 0, **more)


def _fitted(
    architecture: str, size: tuple[int, int] | None, seed: int, tensors: dict[str, Tensor], source: str
) -> tuple[nn.Module, list[str]]:
    """Return a network with a checkpoint's weights, and notes on what was done to them."""
    classes = _classes_of(tensors, architecture)
    sketch = _sketch(architecture, size, **classes)
    channels = _channels_of(tensors, architecture, sketch)
    if channels:
        sketch = _sketch(architecture, size, **classes, **channels)
    shapes = {name: tensor.shape for name, tensor in sketch.state_dict().items()}
    given, tensors = tensors, _with_positions(tensors, sketch)
    notes = [f"{name} missing" for name in _missing_classifier(architecture, classes)]
    if tensors is not given and not tensors["pos_embed"].equal(given["pos_embed"]):
        side, grid = math.isqrt(given["pos_embed"].shape[1]), sketch.patch_embed.grid_size
        notes.append(f"positions resampled from {side} x {side} to {grid[0]} x {grid[1]}")
    if {name: tensor.shape for name, tensor in tensors.items()} == shapes:
        network = create(architecture, size, seed, **classes, **channels)
        network.load_state_dict(tensors, strict=True)
        return network, notes
    misfit = f"{source!r} does not fit {type(sketch).__name__}: {_difference(tensors, shapes)}"
    other = [name for name in tensors if name in shapes and tensors[name].shape != shapes[name]]
    if all(_RESAMPLED.search(name) for name in other):
        tries = [classes, *({"num_classes": count} for count in _other_classes(tensors, classes))]
        found = (_converted(architecture, size, seed, tensors, each, channels) for each in tries)
        converted = next((network for network in found if network is not None), None)
        if converted is not None:
            if converted.num_classes:
                notes = [note for note in notes if not note.endswith(" missing")]
            changed = sorted({*tensors.keys() - shapes.keys(), *other})
            return converted, notes + ([f"converted by timm: {_some(changed)}"] if changed else [])
    if tensors.keys() & shapes.keys():
        cure = "Check the architecture's name (size, patch, registers) and image_size."
    else:
        cure = (
            "No name is one of this network's: check the architecture's name, or load the file with the library that "
            "wrote it, and take wrap_network(network)."
        )
    raise ValueError(f"{misfit}. {cure}")


def _converted(
    architecture: str,
    size: tuple[int, int] | None,
    seed: int,
    tensors: dict[str, Tensor],
    classes: dict[str, int],
    channels: dict[str, int],
) -> Any:
    """Return a network with weights of other names or for other sizes, as timm converts them; ``None`` if it cannot."""
    overlay = {"state_dict": tensors, "custom_load": False, "label_offset": 0, **classes}
    try:
        network: Any = create(
            architecture, size, seed, pretrained=True, pretrained_cfg_overlay=overlay, **classes, **channels
        )
    except Exception:  # noqa: BLE001 - converters fail in many ways at what is not theirs
        return None
    network.pretrained_cfg.pop("state_dict", None)  # timm would keep a second copy of all weights
    # A few architectures of timm take checkpoints that lack some: then random weights would be left.
    unnamed = network.state_dict().keys() - tensors.keys()
    drawn = create(architecture, size, seed, **classes, **channels).state_dict() if unnamed else {}
    values = {name: network.state_dict()[name] for name in unnamed}
    left = [name for name, value in values.items() if torch.equal(value, drawn[name]) and len(value.unique()) > 1]
    return None if left else network


def _channels_of(tensors: Mapping[str, Tensor], architecture: str, sketch: nn.Module) -> dict[str, int]:
    """Read off a checkpoint's first convolution how many channels its pictures have, if not as many as usual."""
    from timm.models import get_pretrained_cfg_value

    layer = f"{get_pretrained_cfg_value(architecture, 'first_conv')}.weight"
    found, usual = tensors.get(layer), dict(sketch.state_dict()).get(layer)
    if found is None or usual is None or found.ndim != 4 or found.shape[1] in {0, usual.shape[1]}:
        return {}
    return {"in_chans": found.shape[1]}


def _classes_of(tensors: Mapping[str, Tensor], architecture: str) -> dict[str, int]:
    """Read off a checkpoint's last layer for how many classes it was tuned; 0 if it has none."""
    from timm.models import get_pretrained_cfg_value

    layer = get_pretrained_cfg_value(architecture, "classifier")
    if not isinstance(layer, str):  # two heads or none declared: timm's own number
        return {}
    weight = tensors.get(f"{layer}.weight")
    if weight is not None and (weight.ndim < 2 or not weight.numel()):  # else a network of that size would be made
        raise ValueError(f"{layer}.weight is {tuple(weight.shape)}; a last layer has (classes, inputs, ...).")
    return {"num_classes": 0 if weight is None else weight.shape[0]}


def _other_classes(tensors: Mapping[str, Tensor], classes: Mapping[str, int]) -> list[int]:
    """Return the numbers of classes that last layers of other names than timm's have, where timm's is missing."""
    if classes.get("num_classes") != 0:
        return []
    weights = [tensors[name] for name in _CLASSIFIERS if name in tensors]
    return sorted({weight.shape[0] for weight in weights if weight.ndim == 2 and weight.numel()})


def _missing_classifier(architecture: str, classes: Mapping[str, int]) -> list[str]:
    """Return the name of the classifier that the architecture has by default and the checkpoint lacks."""
    from timm.models import get_pretrained_cfg_value

    usual = get_pretrained_cfg_value(architecture, "num_classes")
    layer = get_pretrained_cfg_value(architecture, "classifier")
    return [f"{layer}.weight"] if usual and classes.get("num_classes") == 0 else []


def load_strictly(network: nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    """Load a state dict whose names must all fit; the position embedding is resampled to the network's grid.

    Raises
    ------
    ValueError
        If names or shapes differ; the first few are named.
    """
    tensors = _with_positions(tensors, network)
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    if {name: tensor.shape for name, tensor in tensors.items()} != shapes:
        raise ValueError(f"{source!r} does not fit {type(network).__name__}: {_difference(tensors, shapes)}.")
    network.load_state_dict(tensors, strict=True)


def _difference(tensors: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> str:
    missing, unexpected = sorted(shapes.keys() - tensors.keys()), sorted(tensors.keys() - shapes.keys())
    other = [
        f"{name} {tuple(tensors[name].shape)} for {tuple(shapes[name])}"
        for name in sorted(shapes.keys() & tensors.keys())
        if tensors[name].shape != shapes[name]
    ]
    parts = {"missing": missing, "unexpected": unexpected, "of another shape": other}
    return "; ".join(f"{len(names)} {what}" + (f" ({_some(names)})" if names else "") for what, names in parts.items())


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


# ---------------------------------------------------------------- positions


def _with_positions(tensors: dict[str, Tensor], network: Any) -> dict[str, Tensor]:
    """Return the same tensors with the position embedding resampled to a network's grid, if it has one."""
    embedding, wanted = tensors.get("pos_embed"), network.state_dict().get("pos_embed")
    grid = getattr(getattr(network, "patch_embed", None), "grid_size", None)
    if embedding is None or wanted is None or embedding.ndim != 3 or not isinstance(grid, tuple):
        return tensors
    own = wanted.shape[1] - grid[0] * grid[1]
    # A publisher's embedding has positions for the class token alone where timm's has registers, or none. One of the
    # right length has the network's own.
    several = (own,) if embedding.shape[1] == wanted.shape[1] else (own, 1, 0)
    prefix = next((count for count in several if _is_square(embedding.shape[1] - count)), None)
    if prefix is None:
        return tensors
    return {**tensors, "pos_embed": resample_positions(embedding, grid, prefix)}


def _is_square(positions: int) -> bool:
    return positions > 0 and math.isqrt(positions) ** 2 == positions


def resample_positions(embedding: Tensor, grid: tuple[int, int], prefix: int = 1) -> Tensor:
    """Resample a position embedding (1, prefix + side * side, d) of a square grid to another grid (h, w).

    Bicubic without antialiasing, as in DINOv2's published code. The ``prefix`` (class) positions stay as they are.
    """
    side = math.isqrt(max(0, embedding.shape[1] - prefix))
    if grid == (side, side) or not _is_square(embedding.shape[1] - prefix):
        return embedding  # not ours to guess: a misfit is then reported with its shapes
    square = embedding[:, prefix:].reshape(1, side, side, -1).permute(0, 3, 1, 2)  # (1, d, h, w)
    square = nn.functional.interpolate(square.float(), size=grid, mode="bicubic", align_corners=False)
    patches = square.permute(0, 2, 3, 1).flatten(1, 2).to(embedding.dtype)  # (1, h * w, d)
    return torch.cat([embedding[:, :prefix], patches], dim=1)
