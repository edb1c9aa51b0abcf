"""ImageInspector: choose, upload or drag in an image, click a patch, and see which sub-units speak there."""

from __future__ import annotations

import html
from typing import Any

import ipywidgets
import numpy as np
import pandas as pd
import torch
import traitlets
from PIL import Image

from elude_nb.core.result import Disentanglement
from elude_nb.data.decode import read_rgb, upright_rgb
from elude_nb.data.images import Images
from elude_nb.figures.html import best_images, data_uri, lit, tile
from elude_nb.interpret.gallery import Gallery, Sight, look
from elude_nb.interpret.profiles import find_contributors
from elude_nb.widgets.controls import MOST_BYTES, PatchPicker
from elude_nb.widgets.panel import Calm, GalleryPanel, open_gallery, picture


class ImageInspector(GalleryPanel):
    """Click a patch of an image and see which sub-units speak there, and which other images say the same.

    Parameters
    ----------
    gallery
        A `Gallery`, or a `Disentanglement` (then ``images`` are needed).
    images
        Images to look at, if ``gallery`` is a split.
    count
        How many sub-units are listed, and how many other images are shown.

    Attributes
    ----------
    image
        Number of the gallery's image that is shown, or -1 for one that was brought in (trait, settable).
    row, column
        The chosen patch (traits, settable).
    unit
        The sub-unit whose images are shown, (channel, number) (trait, settable).
    speakers
        The table of sub-units that speak at the patch (trait, read-only); see `find_contributors`.

    Examples
    --------
    ``ImageInspector(split, held_out)``; ``inspector.show(Image.open("mine.jpg"), "mine")``
    """

    image = traitlets.Int(0, help="number of the gallery's image, or -1 for one that was brought in")
    row = traitlets.Int(0, help="row of the chosen patch")
    column = traitlets.Int(0, help="column of the chosen patch")
    unit: Any = traitlets.Tuple(traitlets.Int(), traitlets.Int(), allow_none=True, default_value=None)
    speakers = traitlets.Instance(pd.DataFrame, allow_none=True, read_only=True)

    def __init__(self, gallery: Gallery | Disentanglement, images: Images | None = None, *, count: int = 10) -> None:
        super().__init__(open_gallery(gallery, images))
        self._count = count
        self._sight: Sight | None = None
        self._name = ""
        self._filling = False
        rows, columns = self.gallery.grid
        self._build()
        self.row, self.column = rows // 2, columns // 2
        self.observe(self._other_image, "image")
        self.observe(self._other_patch, ["row", "column"])
        self.observe(self._other_unit, "unit")
        self.begin()

    def _build(self) -> None:
        label = {"description_width": "60px"}
        gallery = self.gallery
        names = [
            name if gallery.images.labels is None else gallery.images.labels[i]
            for i, name in enumerate(gallery.images.names)
        ]
        self._choice = ipywidgets.Dropdown(
            options=[(f"{i}: {name}", i) for i, name in enumerate(names)], description="image", style=label
        ).add_class("elude-image")
        self._upload = ipywidgets.FileUpload(
            accept="image/*", multiple=False, description="upload", tooltip="or drop an image onto the picture"
        ).add_class("elude-upload")
        self._picker = PatchPicker(grid=list(gallery.grid))
        self._list = ipywidgets.Select(
            description="sub-units", rows=self._count, style=label, layout={"width": "440px"}
        ).add_class("elude-speakers")
        self._others = picture("elude-others")
        choose = Calm(lambda number: self.set_trait("image", number))
        self._choice.observe(lambda change: None if change["new"] is None else choose(change["new"]), "value")
        self._upload.observe(self._uploaded, "value")
        self._picker.on_drop(self.bring, lambda message: self.say(message, error=True))
        move = Calm(self._move)
        self._picker.observe(lambda _: move(), ["row", "column"])
        self._list.observe(lambda change: self._pick(change["new"]), "value")
        self.children = (
            ipywidgets.HBox([self._choice, self._upload], layout={"flex_flow": "row wrap"}),
            self._status,
            self._bar,
            ipywidgets.HBox([self._picker, self._list], layout={"flex_flow": "row wrap"}),
            self._others,
        )

    # ------------------------------------------------------------------ actions

    def show(self, image: Image.Image, name: str = "image") -> None:
        """Show an image that is not in the gallery; one forward pass.

        Raises
        ------
        ImageError
            If it is too small or of a kind that cannot be brought to RGB.
        """
        self._sight, self._name = look(self.gallery.split, [upright_rgb(image, name)]), name
        if self.image == -1:
            self.refresh()
        self.image = -1

    def bring(self, name: str, content: bytes) -> None:
        """Show an uploaded or dropped file; what is wrong with it is said in the status line, and nothing changes."""
        with self.guarded():
            if len(content) > MOST_BYTES:
                raise ValueError(f"{name!r} has {len(content):,} bytes; at most {MOST_BYTES:,} are taken.")
            self.show(read_rgb(content, name), name)

    def _uploaded(self, change: Any) -> None:
        for file in change["new"]:
            self.bring(file["name"], bytes(file["content"]))

    @traitlets.validate("image")
    def _valid_image(self, proposal: Any) -> int:
        number, most = proposal["value"], len(self.gallery.images)
        if number == -1 and self._sight is not None:
            return -1
        if not 0 <= number < most:
            raise traitlets.TraitError(f"image={number}: the gallery has {most}, from 0; bring others in with show().")
        return int(number)

    @traitlets.validate("row", "column")
    def _valid_patch(self, proposal: Any) -> int:
        name = proposal["trait"].name
        most = self.gallery.grid[name == "column"]
        if not 0 <= proposal["value"] < most:
            raise traitlets.TraitError(f"{name}={proposal['value']}: there are {most}, from 0.")
        return int(proposal["value"])

    def _move(self) -> None:
        with self.hold_trait_notifications():
            self.row, self.column = self._picker.row, self._picker.column

    def _pick(self, value: tuple[int, int] | None) -> None:
        if value is not None and not self._filling:
            self.unit = value

    # -------------------------------------------------------------------- paint

    def refresh(self) -> None:
        """Paint the image and what is said at the patch."""
        self._choice.value = None if self.image < 0 else self.image
        self._picker.src = data_uri(self._picture(), self._picker.side)
        self._picker.alt = f"{self._title()}, as the model sees it"
        self._other_patch()

    def _other_image(self, _: object) -> None:
        with self.guarded():
            if self.image >= self.gallery.ready:
                self.say(f"Image {self.image} is still to come; {self.gallery.ready} are there.", error=True)
                return
            self.refresh()

    def _other_patch(self, _: object = None) -> None:
        self._picker.row, self._picker.column = self.row, self.column
        with self.guarded():
            table = find_contributors(self.gallery.split, self._sources(), count=self._count)
            self.set_trait("speakers", table)
            lines = [
                (_line(channel, unit, concept, name, deviations), (channel, unit))
                for channel, unit, concept, name, deviations in zip(
                    *(table[column].tolist() for column in ("channel", "unit", "concept", "name", "deviations")),
                    strict=True,
                )
            ]
            loudest = lines[0][1] if lines else None
            self._filling = True  # a new list chooses its first line by itself; paint once, not for each step
            self._list.options = lines
            self._filling = False
            if self.unit == loudest:
                self._other_unit()
            else:
                self.unit = loudest

    def _other_unit(self, _: object = None) -> None:
        if self.unit is None:
            self._others.value = "<p>No sub-unit speaks here.</p>"
            return
        with self.guarded():
            if self.unit in [value for _, value in self._list.options]:
                self._list.value = self.unit
            self._others.value = self._same(*self.unit)
            self.say(
                f"{self._title()}, row {self.row + 1}, column {self.column + 1}: {len(self._list.options)} sub-units."
            )

    def _same(self, channel: int, unit: int) -> str:
        """Return the images of the gallery on which a sub-unit is highest, lit where it is."""
        others = best_images(self.gallery, self.gallery.images_of_unit(channel, unit), self._count)
        here = self._map(channel, unit)
        own = tile(lit(self._picture(), here, max(float(here.max()), 1e-6)), f"{self._title()}, where it speaks")
        title = html.escape(f"sub-unit {unit} of channel {channel}")
        return (
            f'<h4 style="margin:0.5em 0 0.2em">Where {title} speaks in this image, and which others say the same</h4>'
            f'<div style="display:flex;flex-wrap:wrap;gap:3px;align-items:start">{own}'
            f'<span style="width:12px"></span>{others}</div>'
        )

    # --------------------------------------------------------------------- data

    def _title(self) -> str:
        return self._name if self.image < 0 else f"image {self.image}"

    def _picture(self) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        if self.image < 0 and self._sight is not None:
            found: np.ndarray[tuple[int, ...], np.dtype[np.uint8]] = self._sight.pictures[0]
            return found
        return self.gallery.pictures_of(self.image)

    def _all_sources(self) -> torch.Tensor:
        """Return the sources at every patch of the image, (t, s * kernel)."""
        if self.image < 0 and self._sight is not None:
            return self._sight.sources[0]
        return self.gallery.sources_of(self.image)

    def _sources(self) -> torch.Tensor:
        return self._all_sources()[self.row * self.gallery.grid[1] + self.column]

    def _map(self, channel: int, unit: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        split = self.gallery.split
        row = split.routing.masked(split.weight, torch.tensor([channel]), torch.tensor([unit]))[0]
        row = row * int(split.signs[channel, unit])
        found = (self._all_sources() @ row.to(self._all_sources().dtype)).float()
        return found.view(*self.gallery.grid).numpy()

    def static_html(self) -> str:
        """Return the image, the list and the other images, as they are."""
        lines = "".join(f"<li>{html.escape(text)}</li>" for text, _ in self._list.options)
        return (
            f'<img alt="{html.escape(self._picker.alt)}" src="{self._picker.src}"><ol>{lines}</ol>{self._others.value}'
        )


def _line(channel: int, unit: int, concept: Any, name: str, deviations: float) -> str:
    meaning = "" if pd.isna(concept) else f", concept {concept} {name}".rstrip()
    return f"channel {channel}, sub-unit {unit}{meaning}: {deviations:.1f} standard deviations"
