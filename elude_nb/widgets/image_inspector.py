"""ImageInspector: choose, upload or drop in an image, click a patch, and see which sub-units are active there."""

from __future__ import annotations

from typing import Any

import ipywidgets
import numpy as np
import pandas as pd
import torch
import traitlets
from markupsafe import Markup
from PIL import Image

from elude_nb._util.words import counted
from elude_nb.core.result import Disentanglement
from elude_nb.core.routing import NO_CONCEPT
from elude_nb.data.decode import endings, read_rgb
from elude_nb.data.images import Images, open_image
from elude_nb.errors import ImageError
from elude_nb.figures.html import data_uri, tile, top_images
from elude_nb.figures.theme import words
from elude_nb.interpret.gallery import Gallery, Sight, look
from elude_nb.interpret.profiles import find_contributors
from elude_nb.widgets import parts
from elude_nb.widgets.appearance import appearance
from elude_nb.widgets.controls import MOST_BYTES, Files, Links, PatchPicker, UploadButton
from elude_nb.widgets.panel import EXPECTED, GalleryPanel
from elude_nb.widgets.selection import State


class ImageInspector(GalleryPanel):
    """Click a patch of an image; see which sub-units are active there, and the images on which each is most active.

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
        Number of the gallery's image that is shown, or -1 for one of your own (trait, settable).
    row, column
        The chosen patch (traits, settable).
    unit
        The sub-unit whose images are shown, (channel, number) (trait, settable).
    contributors
        The table of sub-units that are most active at the patch (trait, read-only); see `find_contributors`.

    Examples
    --------
    ``ImageInspector(split, held_out)``; ``inspector.show(Image.open("mine.jpg"), "mine")``
    """

    image = traitlets.Int(0, help="number of the gallery's image, or -1 for one of your own")
    row = traitlets.Int(0, help="row of the chosen patch")
    column = traitlets.Int(0, help="column of the chosen patch")
    unit: Any = traitlets.Tuple(traitlets.Int(), traitlets.Int(), allow_none=True, default_value=None)
    contributors = traitlets.Instance(pd.DataFrame, allow_none=True, read_only=True)

    def __init__(self, gallery: Gallery | Disentanglement, images: Images | None = None, *, count: int = 10) -> None:
        super().__init__(gallery, images)
        self._count = count
        self._own: Sight | None = None  # an image that is not in the gallery
        self._own_name = ""
        self._silent = False  # while the panel itself sets its controls
        self._awaited = False  # whether an image was chosen that was not ready
        self._build()
        rows, columns = self.gallery.grid
        self.row, self.column = self._middle = rows // 2, columns // 2
        self.begin()

    def listen(self) -> None:
        """Observe what is chosen by the controls or from Python."""
        self.observe(self._choose_image, "image")
        self.observe(self._choose_patch, ["row", "column"])
        self.observe(self._choose_unit, "unit")

    def take(self, state: State, changed: set[str]) -> None:
        """Show the image, the patch and the sub-unit that are chosen."""
        image = (state.image or 0) if "image" in changed else self.image
        self._awaited = image >= self.gallery.ready
        if self._awaited:
            self.say(f"Image {image} is not ready yet: {self.describe_images()}.")
        elif changed & {"image", "patch", "unit"}:
            with parts.holding(self, "_silent"):
                self.image = image
                self.row, self.column = state.patch or self._middle
            self._paint_image()
            self._show_patch(state.unit)

    def complete(self) -> None:
        """Paint anew, and the image that was chosen before it was ready."""
        if self._awaited:
            self.take(self.selection.state, {"image", "patch", "unit"})
        else:
            self.refresh()

    def _build(self) -> None:
        images, narrow = self.gallery.images, {"style": {"description_width": "60px"}}
        choose, move = self.later(self._choose), self.later(self._move)
        options = [(f"{i}: {words(name)}", i) for i, name in enumerate(images.labels or images.names)]
        self._choice = parts.make(ipywidgets.Dropdown, "image", "image", choose, options=options, layout={}, **narrow)
        hint = "or drop an image onto the picture"
        self._upload = UploadButton(hint=hint, accept=",".join(sorted(endings()))).add_class("elude-upload")
        self._picker = PatchPicker(grid=list(self.gallery.grid))
        beside = {"flex": "1 1 300px", "min_width": "0"}
        size = {"rows": self._count, "layout": {"width": "620px", "max_width": "100%"}, **narrow}
        self._list = parts.make(ipywidgets.Select, "sub-units", "contributors", self._pick, **size)
        self._others, self._concept = parts.make_place("others"), Links().add_class("elude-its-concept")
        self._concept.on_press(self._press_concept)
        for control in (self._upload, self._picker):
            control.on_files(self._take_choice)
        self._picker.observe(lambda _: move(), ["row", "column"])
        self.children = (
            parts.make_row(self._choice, self._upload, appearance.make_choice(self)),
            self._status,
            self._bar,
            parts.make_row(self._picker, ipywidgets.VBox((self._list, self._concept), layout=beside)),
            self._others,
        )

    # ------------------------------------------------------------------ actions

    def show(self, image: Image.Image, name: str = "image") -> None:
        """Show an image that is not in the gallery; one forward pass.

        Raises
        ------
        ImageError
            If it is too small or of a kind that cannot be brought to RGB. An array or tensor may have other channels.
        """
        self._own, self._own_name = look(self.gallery.split, [open_image((image, name))]), name
        if self.image == -1:
            self._choose_image()
        self.image = -1

    def bring(self, name: str, content: bytes) -> None:
        """Show an uploaded or dropped file; what is wrong with it is reported in the status line."""
        self._take_files([(name, content)], [])

    def _take_choice(self, files: Files, refused: list[str]) -> None:
        with self.guarded():
            self._take_files(files, refused)

    def _take_files(self, files: Files, refused: list[str]) -> None:
        """Show the first of several files that can be read; say what is wrong with others, and which are not shown."""
        said, left = list(refused), list(files)
        while left:
            name, content = left.pop(0)
            try:
                if len(content) > MOST_BYTES:
                    raise ImageError(f"{name!r} has {len(content):,} bytes; at most {MOST_BYTES:,} are taken.")
                self.show(read_rgb(content, name), name)
            except EXPECTED as error:
                said.append(str(error))
            else:
                break
        if left:
            named = ", ".join(repr(name) for name, _ in left[:3]) + (", ..." if len(left) > 3 else "")
            said.append(f"One image is shown at a time; not taken: {len(left)} ({named}).")
        if said:
            self.say(" ".join(said), error=True)

    def _choose(self, number: int | None) -> None:
        if number is not None:
            self.image = number

    @traitlets.validate("image")
    def _valid_image(self, proposal: Any) -> Any:
        return parts.check_range(proposal, -1 if self._own is not None else 0, len(self.gallery.images) - 1)

    @traitlets.validate("row", "column")
    def _valid_patch(self, proposal: Any) -> Any:
        return parts.check_range(proposal, 0, self.gallery.grid[proposal["trait"].name == "column"] - 1)

    def _move(self) -> None:
        patch = self._picker.row, self._picker.column
        if patch != (self.row, self.column):  # else the panel itself has moved it
            with parts.holding(self, "_silent"):
                self.row, self.column = patch
            self._choose_patch()

    def _pick(self, value: tuple[int, int] | None) -> None:
        if value is not None and not self._silent:
            self.unit = value

    def _press_concept(self, _: int) -> None:
        """Choose the concept of the sub-unit that is shown; the image stays."""
        with self.guarded():
            concept = self._concept_of(self.unit)
            if concept is not None:
                stays = {"image": self.selection.image, "patch": self.selection.patch, **self._here()}
                self.selection.choose(concepts=[concept], unit=self.unit, **stays)

    # -------------------------------------------------------------------- paint

    def refresh(self) -> None:
        """Paint the image, what is active at the patch, and the sub-unit that was shown."""
        self._paint_image()
        self._show_patch(self.unit)

    def _paint_image(self) -> None:
        self._choice.value = None if self.image < 0 else self.image
        self._picker.src = data_uri(self._picture(), self._picker.side)
        self._picker.alt = f"{self._title()}, as the model sees it"

    def _choose_image(self, _: object = None) -> None:
        if self._silent:
            return
        with self.guarded():
            if self.image >= self.gallery.ready:
                self.say(f"Image {self.image} is not ready yet: {self.describe_images()}.", error=True)
                return
            self._paint_image()
            self._show_patch()
            if self.image >= 0:
                self.share(**self._here(), unit=None)

    def _choose_patch(self, _: object = None) -> None:
        if not self._silent:
            self._show_patch()
            self.share(**self._here(), unit=self.unit)

    def _choose_unit(self, _: object) -> None:
        if not self._silent:
            self._show_unit()
            self.share(**self._here(), unit=self.unit)

    def _here(self) -> dict[str, Any]:
        """Return the image and the patch as all panels may show them: an image of one's own is in this one alone."""
        return {} if self.image < 0 else {"image": self.image, "patch": (self.row, self.column)}

    def _show_patch(self, unit: tuple[int, int] | None = None) -> None:
        """Paint what is active at the patch, and where ``unit`` is, or else what is most active."""
        self._picker.row, self._picker.column = self.row, self.column
        with self.guarded():
            patch = self._sources()[self.row * self.gallery.grid[1] + self.column]
            table = find_contributors(self.gallery.split, patch, count=self._count)
            self.set_trait("contributors", table)
            lines = [(_describe(row), (row["channel"], row["unit"])) for row in table.to_dict("records")]
            most_active = lines[0][1] if lines else None
            with parts.holding(self, "_silent"):  # a new list chooses its first line by itself; paint once
                self._list.options = lines
                self.unit = most_active if unit is None else unit
            self._show_unit()

    def _show_unit(self) -> None:
        concept = self._concept_of(self.unit)
        title = "" if concept is None else words(self.gallery.split.concept_title(concept, number=True), 60)
        self._concept.label = "Choose its concept, for all panels:" if title else ""
        self._concept.options = [title] if title else []
        if self.unit is None:
            self._others.value = "<p>No sub-unit is active here.</p>"
            return
        with self.guarded(), parts.holding(self, "_silent"):
            if self.unit in [value for _, value in self._list.options]:
                self._list.value = self.unit
            self._others.value = self._top_images(*self.unit)
            where = f"row {self.row + 1}, column {self.column + 1}"
            self.say(
                f"{self._title()}, {where}: {counted(len(self._list.options), 'sub-unit')}; {self.describe_images()}."
            )

    def _top_images(self, channel: int, unit: int) -> Markup:
        """Return where a sub-unit is active in this image, and the images of the gallery on which it is highest."""
        maps, way = self.gallery.images_of_unit(channel, unit), appearance.activation
        others = top_images(self.gallery, maps, self._count, activation=way)
        heat = self._map(channel, unit)
        alt = f"{self._title()}, where it is active"
        own = tile(self._picture(), alt, heat=heat, brightest=max(float(heat.max()), 1e-6), activation=way)
        return parts.fill("others.html", channel=channel, unit=unit, own=own, others=others)

    # --------------------------------------------------------------------- data

    def _title(self) -> str:
        return words(self._own_name) if self.image < 0 else f"image {self.image}"

    def _picture(self) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        if self.image < 0 and self._own is not None:
            own: np.ndarray[tuple[int, ...], np.dtype[np.uint8]] = self._own.pictures[0]
            return own
        return self.gallery.pictures_of(self.image)

    def _sources(self) -> torch.Tensor:
        """Return the sources at every patch of the image, (t, s * kernel)."""
        if self.image < 0 and self._own is not None:
            return self._own.sources[0]
        return self.gallery.sources_of(self.image)

    def _concept_of(self, unit: tuple[int, int] | None) -> int | None:
        if unit is None or unit[1] == 0:
            return None
        concept = int(self.gallery.split.routing.concepts[unit[0], unit[1] - 1])
        return None if concept == NO_CONCEPT else concept

    def _map(self, channel: int, unit: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        """Return the activation of a sub-unit at every patch of the image, (rows, columns)."""
        split, sources = self.gallery.split, self._sources()
        row = split.routing.masked(split.weight, torch.tensor([channel]), torch.tensor([unit]))[0]
        row = row * int(split.signs[channel, unit])
        found = (sources @ row.to(sources.dtype)).float()
        return found.view(*self.gallery.grid).numpy()

    def static_html(self) -> Markup:
        """Return the image, the list of sub-units and the other images."""
        lines = [text for text, _ in self._list.options]
        others = Markup(self._others.value)  # noqa: S704 - made by a template
        return parts.fill("inspector.html", alt=self._picker.alt, src=self._picker.src, lines=lines, others=others)


def _describe(row: dict[Any, Any]) -> str:
    meaning = f", {words(row['title'])}" if row["title"] else ""
    return f"channel {row['channel']}, sub-unit {row['unit']}{meaning}: {row['deviations']:.1f} standard deviations"
