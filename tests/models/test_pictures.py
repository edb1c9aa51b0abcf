"""Networks with other input channels than three, and pictures that a preprocess cannot take."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor

from elude_nb import ImageSet, disentangle, find_exemplars, load_images, score, verify, wrap_network
from elude_nb.app.report.build import write_report
from elude_nb.errors import ImageError
from elude_nb.figures import contact_sheet
from elude_nb.interpret import name_concepts
from elude_nb.interpret.gallery import Gallery
from elude_nb.models.load import Model
from elude_nb.widgets import ChannelExplorer, ImageInspector, SteeringPanel
from tests.tiny import random_images, tiny_vit, to_tensor


def network(channels: int, **how: Any) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = timm.create_model("test_vit", in_chans=channels, img_size=64)
    return wrap_network(made.requires_grad_(requires_grad=False), **how)


def bands(count: int, channels: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).random((count, channels, 70, 80)).astype(np.float32)


def test_a_network_that_rearranges_pixels_first_takes_pictures() -> None:
    layers = torch.nn.Sequential(torch.nn.PixelUnshuffle(4), torch.nn.Conv2d(48, 8, 1))
    with pytest.warns(UserWarning, match="ImageNet is assumed"):
        assert wrap_network(layers).input_size == (3, 224, 224)
    assert wrap_network(timm.create_model("tresnet_m").eval()).input_size[0] == 3


@pytest.mark.parametrize("channels", [1, 5])
def test_everything_goes_with_any_number_of_channels(channels: int, tmp_path: Any) -> None:
    model = network(channels)
    assert model.input_size == (channels, 64, 64)
    images = load_images(bands(12, channels), labels=["a", "b", "c"] * 4)
    split = disentangle(model, images, "stream:2", blocks=1, concepts=4, units=2, progress=False)
    assert len(score(split, images, k=3)) > 0
    assert verify(split, images[:2]).lens.identical
    channel = int(split.routing.is_split().nonzero()[0])
    exemplars = find_exemplars(split, images, channel, count=2)
    assert exemplars.rows[0][0].image.shape == (64, 64, 3)
    gallery = Gallery(split, images).fill(progress=False)
    assert gallery.pictures.shape == (12, 64, 64, 3)
    assert write_report(split, images[:4], tmp_path / "report.html", channels=1).exists()
    for panel in (ChannelExplorer, ImageInspector, SteeringPanel):
        panel(gallery)
    ImageInspector(gallery).show(bands(1, channels)[0])
    SteeringPanel(gallery).picture = images[3]
    contact_sheet(images)


@pytest.mark.parametrize("channels", [2, 4, 13])
def test_arrays_and_tensors_are_prepared_alike(channels: int) -> None:
    model, given = network(channels), bands(3, channels)
    expected = model.prepare(load_images(given))
    assert expected.shape == (3, channels, 64, 64)
    for other in (given, list(given), torch.from_numpy(given), np.moveaxis(given, 1, -1)):
        torch.testing.assert_close(model.prepare(other), expected)  # type: ignore[arg-type]


def test_one_channel_sees_colours_as_grey() -> None:
    model = network(1)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    torch.testing.assert_close(model.prepare([image]), model.prepare([image.convert("L")]))
    picture = model.picture(image)
    assert picture.shape == (64, 64, 3)
    torch.testing.assert_close(picture[..., 0], picture[..., 2])


@pytest.mark.parametrize(
    ("channels", "colours", "shown"),
    [(1, None, [0, 0, 0]), (2, None, [0, 1, -1]), (5, None, [0, 1, 2]), (5, (3, 2, 1), [3, 2, 1]), (5, (4,), [4] * 3)],
)
def test_the_picture_shows_the_channels_that_were_chosen(channels: int, colours: Any, shown: list[int]) -> None:
    model = network(channels, colours=colours)
    levels = np.linspace(0.2, 0.8, channels, dtype=np.float32)
    [image] = load_images(np.broadcast_to(levels, (1, 64, 64, channels)))
    wanted = torch.tensor([0 if number < 0 else levels[number] for number in shown])
    torch.testing.assert_close(model.picture(image)[5, 7], wanted, atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("colours", "error"), [((0, 5), ValueError), ((), ValueError), ((0, 1, 2, 3), ValueError), (1, TypeError)]
)
def test_colours_are_checked(colours: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="colours"):
        network(5, colours=colours)


def test_a_picture_with_the_wrong_channels_is_refused_in_one_sentence() -> None:
    with pytest.raises(ImageError, match="has 3 channels, and the network takes 4"):
        network(4).prepare([Image.new("RGB", (64, 64))])
    with pytest.raises(ImageError, match="has 4 channels, and the network takes 3"):
        network(3).prepare(load_images(bands(8, 4)))


# ------------------------------------------------------------------------ NaN


def standardised(image: Image.Image) -> Tensor:
    """Return an image less its mean, over its deviation: NaN for a blank one."""
    pixels = to_tensor(image)
    return (pixels - pixels.mean()) / pixels.std()


@pytest.fixture
def with_a_blank(images: ImageSet) -> ImageSet:
    listed = list(images)
    listed[7] = Image.new("RGB", (32, 32))
    return load_images(listed, labels=images.labels)


@pytest.mark.parametrize(
    "call",
    [disentangle, verify, partial(name_concepts, top=5), score, lambda split, images: Gallery(split, images).fill()],
)
def test_a_picture_that_becomes_nan_is_named(call: Any, split: Any, with_a_blank: ImageSet) -> None:
    base = tiny_vit()
    model = wrap_network(base.network, preprocess=standardised, input_size=(3, 32, 32))
    made = model if call is disentangle else disentangle(model, random_images(20, 32), concepts=4, progress=False)
    with pytest.raises(ImageError, match=r"'image 7' has NaN .* preprocess"):
        call(made, with_a_blank)


def test_an_activation_that_overflows_names_its_picture(with_a_blank: ImageSet) -> None:
    model = tiny_vit(torch.float64)

    def overflow(_: Any, inputs: Any, output: Tensor) -> Tensor:
        blank = inputs[0].std((1, 2, 3)) == 0
        return torch.where(blank[:, None, None], torch.inf, output)

    model.network.patch_embed.register_forward_hook(overflow)  # type: ignore[union-attr]
    with pytest.raises(ImageError, match="'image 7', though its pixels are not"):
        disentangle(model, with_a_blank, concepts=4, progress=False)


def test_a_batch_opens_each_image_of_a_set_once(images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    real = ImageSet.__iter__

    def counted(self: ImageSet) -> Any:
        opened.append(len(self))
        return real(self)

    monkeypatch.setattr(ImageSet, "__iter__", counted)
    assert len(list(tiny_vit().using(batch_size=8, progress=False).batches(images))) == 3
    assert opened == [8, 8, 4]
