"""From pictures to a network's input, and back to colours: for any number of input channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from elude_nb._util.checks import check_count, check_kind
from elude_nb.data.decode import to_rgb
from elude_nb.data.images import open_image
from elude_nb.errors import ImageError
from elude_nb.models.hooks import evaluating

Preprocess = Callable[[Any], Tensor]


def input_channels(network: nn.Module, shape: tuple[int, ...]) -> int:
    """Return how many channels a network takes: those of its first convolution, or of ``shape`` (c, h, w).

    Some networks rearrange pixels before the first convolution: where the two differ, one pass tells.
    """
    named = (getattr(network, "pretrained_cfg", None) or {}).get("first_conv")  # of timm's networks
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    if isinstance(named, str):
        with suppress(AttributeError):  # the network was taken apart
            layers.insert(0, network.get_submodule(named))  # type: ignore[arg-type]
    found = next((int(layer.in_channels) for layer in layers if hasattr(layer, "in_channels")), shape[0])
    return shape[0] if found == shape[0] or _runs(network, shape) else found


def _runs(network: nn.Module, shape: tuple[int, ...]) -> bool:
    """Say whether a network takes inputs of this shape."""
    like = next(network.parameters(), torch.zeros(()))
    try:
        with evaluating(network):
            network(torch.zeros(1, *shape, dtype=like.dtype, device=like.device))
    except Exception:  # noqa: BLE001 - a network of one's own may fail in any way
        return False
    return True


def default_preprocess(config: dict[str, Any]) -> Preprocess:
    """Return the preprocess of a data config of timm, for as many channels as its input size has.

    timm gives channel i the weights of colour i modulo 3, and one channel their sum: the colours' mean and standard
    deviation are spread, or averaged, in the same way.
    """
    from timm.data import create_transform
    from torchvision.transforms import Compose

    channels = config["input_size"][0]
    for key in ("mean", "std"):
        values = tuple(config[key])
        if len(values) != channels:
            cycled = tuple(values[i % len(values)] for i in range(channels))
            config = config | {key: (sum(values) / len(values),) if channels == 1 else cycled}
    made: Preprocess = Compose([ToChannels(channels), *create_transform(**config, is_training=False).transforms])
    return made


class ToChannels:
    """The first step of a default preprocess: a picture with as many channels as the network takes.

    Colours become grey for one channel; an image that has not the channels is refused.
    """

    def __init__(self, channels: int) -> None:
        self.channels = channels

    def __call__(self, image: Image.Image | Tensor) -> Image.Image | Tensor:
        """Return the picture with the right channels."""
        if isinstance(image, Image.Image) and self.channels in {1, 3}:
            return to_rgb(image).convert("L" if self.channels == 1 else "RGB")
        found = len(image.getbands()) if isinstance(image, Image.Image) else len(image)
        if found != self.channels:
            raise ImageError(
                f"The picture has {found} channels, and the network takes {self.channels}; give arrays (n, "
                f"{self.channels}, h, w), or the model a preprocess of your own."
            )
        return image

    def __repr__(self) -> str:
        return f"ToChannels({self.channels})"


def check_colours(colours: object, channels: int) -> None:
    """Raise ``TypeError`` or ``ValueError`` unless these are one to three input channels, or ``None``."""
    check_kind("colours", colours, tuple | list | None, "numbers of input channels, such as (2, 1, 0)")
    if isinstance(colours, tuple | list):
        if not 1 <= len(colours) <= 3:
            raise ValueError(f"colours={colours} must be one channel, or up to three for red, green and blue.")
        for channel in colours:
            check_count("colours", channel, 0, channels - 1)


def prepare_rows(
    images: Sequence[Any],
    preprocess: Preprocess,
    names: Sequence[str] | None = None,
    *,
    size: tuple[int, ...] | None = None,
) -> Tensor:
    """Preprocess images (PIL, arrays or tensors) into a batch (n, c, h, w); those of a set have their ``names``.

    Raises
    ------
    ImageError
        If an image is no picture, or what the preprocess makes of it is not finite, or not of the ``size`` (c, h, w)
        that the model was made for; the message names it.
    """
    rows = []
    for number, image in enumerate(images):
        name = f"image {number} of the batch" if names is None else names[number]
        opened = image if names is not None or isinstance(image, Image.Image) else open_image((image, name))
        row = preprocess(opened)
        if size is not None and tuple(row.shape) != size:
            raise ImageError(
                f"preprocess made {tuple(row.shape)} of {name!r}, and the model's input_size is {size}. Let preprocess "
                "bring all images to one size, and give wrap_network that input_size, or none."
            )
        if not bool(torch.isfinite(row).all()):
            raise ImageError(
                f"{name!r} has NaN or infinite values after the preprocess; leave it out, or mend the preprocess (a "
                "blank picture has no standard deviation to divide by)."
            )
        rows.append(row)
    return torch.stack(rows)


def as_colours(row: Tensor, preprocess: Preprocess, colours: tuple[int, ...] | None) -> Tensor:
    """Return one row (c, h, w) of a prepared batch as colours (h, w, 3) in [0, 1].

    The normalisation of a preprocess made of steps is undone; without one, the row's own range becomes [0, 1].
    ``colours`` are the channels shown as red, green and blue: by default the first three. One alone is grey, and of two
    there is no blue.
    """
    shown = row.float()
    for step in getattr(preprocess, "transforms", ()):
        if hasattr(step, "mean") and hasattr(step, "std"):
            mean, std = (torch.as_tensor(x, dtype=torch.float32).view(-1, 1, 1) for x in (step.mean, step.std))
            shown = (shown * std + mean).clamp(0, 1)
            break
    else:
        low, high = shown.min(), shown.max()
        shown = (shown - low) / (high - low).clamp(min=1e-6)
    shown = shown[list(colours if colours is not None else range(min(3, len(shown))))]
    blank = shown[:1] if len(shown) == 1 else torch.zeros_like(shown[:1])
    return torch.cat([shown, *[blank] * (3 - len(shown))]).permute(1, 2, 0)
