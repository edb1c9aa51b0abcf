"""SteeringPanel: turn concepts up and down and see at once what the model then makes of an image."""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import ipywidgets
import numpy as np
import pandas as pd
import traitlets
from PIL import Image
from torch import Tensor

from elude_nb._util.checks import check_count
from elude_nb.core.edit import Edit
from elude_nb.core.result import Disentanglement
from elude_nb.data.images import Images
from elude_nb.figures.html import code_box, moved_line, neighbour_rows, probability_bars, tile
from elude_nb.interpret.gallery import Gallery
from elude_nb.interpret.neighbours import rank_neighbours
from elude_nb.steering.heads import Head
from elude_nb.steering.live import UNCHANGED, LiveSteering, Seen, Steered, order_by_presence
from elude_nb.widgets.controls import CopyButton
from elude_nb.widgets.panel import Calm, GalleryPanel, open_gallery, picture

STRONGEST = 2.0
_KEPT = 6  # images whose sources are kept: 24 MB each for all blocks of a ViT-S
_SIDE = 84


class SteeringPanel(GalleryPanel):
    """Put sliders on concepts and see what they do to one image: its neighbours, its classes, its output.

    Each slider multiplies what the sub-units of a concept say, in all channels: 0 fades them out, 1 leaves them, 2
    doubles them. The model itself is not changed: what is shown is worked out beside it, and is what
    ``with split.edit(panel.edit):`` gives, up to rounding.

    Parameters
    ----------
    gallery
        A `Gallery`, or a `Disentanglement` (then ``images`` are needed); neighbours are sought in it.
    images
        Images, if ``gallery`` is a split.
    head
        What tells classes apart, as from `elude_nb.fit_head`; without one no probabilities are shown.
    concepts
        Numbers or names of the concepts that have a slider at first; by default the three that stand out most in the
        first image.
    neighbours
        How many neighbours are shown.
    tokens
        Which tokens are edited, as in `Edit.scale`.

    Attributes
    ----------
    strengths
        From each concept with a slider to its strength in [0, 2] (trait, settable: sliders come and go with it; names
        of concepts may be given as well).
    image
        Number of the gallery's image that is steered (trait, settable).
    picture
        An image of your own, instead (trait, settable); ``None`` goes back to the gallery's.
    edit
        The sliders as an `Edit` (trait, read-only).
    neighbours
        Table of the nearest images: ``when`` (``"before"`` or ``"after"``), ``rank``, ``image``, ``label``, ``cosine``
        (trait, read-only). The image itself is left out.
    probabilities
        Table of all classes: ``before``, ``after``, ``change`` (trait, read-only); empty without a head.
    steered
        Outputs before and after, the cosine between them, the largest change (trait, read-only).

    Raises
    ------
    EditError
        If the split has no concepts, lacks one that is named, or an edit is active on its model.

    Examples
    --------
    ``SteeringPanel(split, held_out, head=en.fit_head(model, discover))``
    """

    strengths: traitlets.Dict[int, float] = traitlets.Dict(help="strength of each concept that has a slider")
    image = traitlets.Int(help="number of the image in the gallery")
    picture = traitlets.Instance(Image.Image, allow_none=True, help="an image of your own")
    edit = traitlets.Instance(Edit, read_only=True, help="the sliders as an edit")
    neighbours = traitlets.Instance(pd.DataFrame, read_only=True)
    probabilities = traitlets.Instance(pd.DataFrame, read_only=True)
    steered = traitlets.Instance(Steered, allow_none=True, read_only=True)

    def __init__(
        self,
        gallery: Gallery | Disentanglement,
        images: Images | None = None,
        *,
        head: Head | None = None,
        concepts: Sequence[int | str] | None = None,
        neighbours: int = 6,
        tokens: str = "all",
    ) -> None:
        super().__init__(open_gallery(gallery, images))
        self._live = LiveSteering(self.gallery.split, head=head, tokens=tokens)
        self._count = check_count("neighbours", neighbours)
        self._seen: dict[int | None, tuple[Seen, str]] = {}  # and its tile; None is the picture of one's own
        self._tiles: dict[int, str] = {}
        self._rows: dict[int, tuple[ipywidgets.FloatSlider, ipywidgets.HBox]] = {}
        self._listed: tuple[int | None, frozenset[int]] | None = None
        self._following = False  # while controls are set by the panel itself
        self._sliding = False  # while a slider was moved and the panel still waits for it to rest
        self.set_trait("edit", Edit())
        self._build()
        next(self.gallery.steps(4), None)  # some images to compare with
        self._live.steer(self._sight(), {})  # a head that does not fit is told here
        chosen = self._by_presence()[:3] if concepts is None else [self._live.number(concept) for concept in concepts]
        self.strengths = dict.fromkeys(chosen, UNCHANGED)
        self.observe(self._weighed, "strengths")
        self.observe(lambda _: self.refresh(), "image")
        self.observe(self._renew, "picture")
        self.begin()

    # ------------------------------------------------------------------- parts

    def _build(self) -> None:
        wide, label = ipywidgets.Layout(width="340px"), {"description_width": "90px"}
        last = len(self.gallery.images) - 1
        self._image = ipywidgets.IntSlider(
            description="image", min=0, max=last, disabled=last == 0, layout=wide, style=label
        ).add_class("elude-image")
        self._concept = ipywidgets.Dropdown(description="concept", layout=wide, style=label).add_class("elude-concept")
        self._add = ipywidgets.Button(description="add", tooltip="put a slider on this concept").add_class("elude-add")
        self._reset = ipywidgets.Button(description="reset", tooltip="all sliders to 1: unchanged").add_class(
            "elude-reset"
        )
        self._sliders = ipywidgets.VBox().add_class("elude-strengths")
        self._code = picture("elude-code")  # a Textarea could be locked only by greying it out, out of Tab's way
        self._copy = CopyButton(label="copy the code").add_class("elude-copy")
        self._own, self._moved = picture("elude-own"), picture("elude-moved")
        self._near, self._bars = picture("elude-neighbours"), picture("elude-probabilities")
        self._calm = Calm(self._take_sliders)
        calm_image = Calm(self._take_image)
        self._image.observe(lambda change: calm_image(change["new"]), "value")
        self._add.on_click(lambda _: self.add(self._concept.value))
        self._reset.on_click(lambda _: self.reset())
        wrap = {"flex_flow": "row wrap"}
        self.children = (
            ipywidgets.HBox([self._image, self._concept, self._add, self._reset], layout=wrap),
            self._sliders,
            self._status,
            self._bar,
            ipywidgets.HBox([self._own, ipywidgets.VBox([self._moved, self._bars])], layout=wrap),
            self._near,
            ipywidgets.HBox([self._code, self._copy], layout=wrap),
        )

    def _row(self, concept: int) -> tuple[ipywidgets.FloatSlider, ipywidgets.HBox]:
        """Return the slider of a concept, and it beside the button that takes it away."""
        if concept not in self._rows:
            name = self._name(concept)
            layout, style = {"width": "440px"}, {"description_width": "180px"}
            slider = ipywidgets.FloatSlider(
                UNCHANGED, min=0, max=STRONGEST, step=0.05, description=name, layout=layout, style=style
            )
            slider.add_class("elude-strength").add_class(f"elude-strength-{concept}")
            slider.observe(self._slid, "value")
            button = ipywidgets.Button(description="remove", tooltip=f"take {name} away", layout={"width": "auto"})
            button.add_class("elude-remove").add_class(f"elude-remove-{concept}")
            button.on_click(lambda _: self.remove(concept))
            self._rows[concept] = slider, ipywidgets.HBox([slider, button])
        return self._rows[concept]

    def _slid(self, _: object) -> None:
        if not self._following:
            self._sliding = True
            self._calm()

    def _name(self, concept: int) -> str:
        name = self.gallery.split.names.get(concept, "")
        return f"concept {concept}" + (f": {name}" if name else "")

    # ------------------------------------------------------------------ actions

    def add(self, concept: int | str) -> None:
        """Put a slider on a concept, at 1; what is wrong is said in the status line."""
        with self.guarded():
            number = self._live.number(concept)
            if number in self.strengths:
                self.say(f"{self._name(number)} has a slider already.", error=True)
            else:
                self.strengths = {**self.strengths, number: UNCHANGED}

    def remove(self, concept: int) -> None:
        """Take a concept's slider away, and what it did."""
        with self.guarded():
            self.strengths = {one: value for one, value in self.strengths.items() if one != concept}

    def reset(self) -> None:
        """Put all sliders to 1."""
        with self.guarded():
            self.strengths = dict.fromkeys(self.strengths, UNCHANGED)

    def _take_sliders(self) -> None:
        self._sliding = False
        sliders = {concept: self._row(concept)[0].value for concept in self.strengths}
        # What was set from Python may lie between two steps of its slider, and is left alone.
        moved = {c: round(v, 2) if v != self.strengths[c] else v for c, v in sliders.items()}
        self._take(partial(self.set_trait, "strengths", moved))

    def _take_image(self, number: int) -> None:
        def act() -> None:
            self.picture = None
            self.image = number

        self._take(act)

    def _take(self, act: Callable[[], None]) -> None:
        """Do what a control asks for; where that cannot be, the controls go back."""
        with self.guarded():
            try:
                act()
            finally:
                self._follow()

    @traitlets.validate("strengths")
    def _valid_strengths(self, proposal: Any) -> dict[int, float]:
        self._live.check_free()
        found: dict[int, float] = {}
        for concept, value in proposal["value"].items():
            if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 <= value <= STRONGEST:
                raise traitlets.TraitError(
                    f"Strength {value!r} of concept {concept!r} must be a number between 0 and {STRONGEST:g}; for "
                    "others use Edit.scale."
                )
            found[self._live.number(concept)] = float(value)
        return found

    @traitlets.validate("image")
    def _valid_image(self, proposal: Any) -> int:
        self._live.check_free()
        if not 0 <= proposal["value"] < len(self.gallery.images):
            raise traitlets.TraitError(
                f"image={proposal['value']}: there are {len(self.gallery.images)}, counted from 0."
            )
        return int(proposal["value"])

    @traitlets.validate("picture")
    def _valid_picture(self, proposal: Any) -> Image.Image | None:
        self._live.check_free()
        found: Image.Image | None = proposal["value"]
        return None if found is None else found.convert("RGB")

    # -------------------------------------------------------------------- paint

    def _weighed(self, _: object) -> None:
        self._sliding = False  # what was set last counts
        self.refresh()

    def _renew(self, _: object) -> None:
        self._seen.pop(None, None)
        self.refresh()

    @property
    def _key(self) -> int | None:
        return None if self.picture is not None else self.image

    def refresh(self) -> None:
        """Work out and paint what the sliders do to the image; what is wrong is said in the status line."""
        began = time.perf_counter()
        with self.guarded():
            seen = self._sight()
            steered = self._live.steer(seen, self.strengths)
            before, after = self._nearest(steered.before), self._nearest(steered.after)
            self.set_trait("steered", steered)
            self.set_trait("edit", self._live.edit(self.strengths))
            both = [before.assign(when="before"), after.assign(when="after")]
            self.set_trait("neighbours", pd.concat(both, ignore_index=True)[["when", *before.columns]])
            self.set_trait("probabilities", steered.probabilities)
            self._paint(steered, before, after)
            self._follow()
            same = len(set(before["image"]) & set(after["image"]))
            left = len(self.gallery.images) - self.gallery.ready
            self.say(
                f"{same} of {len(before)} neighbours are the same. Worked out in {time.perf_counter() - began:.2f} s."
                + (f" {left} images are still coming." if left else "")
            )

    def _sight(self) -> Seen:
        """Return the image as the model saw it; the last few are kept, with their tiles."""
        kept = self._seen.pop(self._key, None)
        if kept is None:
            image = self.gallery.images[self.image] if self.picture is None else self.picture
            pixels = (self.gallery.split.model.picture(image).numpy() * 255).round().astype(np.uint8)
            shown = tile(pixels, f"the image that is steered: {self._label(self._key)}", side=160)
            kept = self._live.see(image), shown
            for old in list(self._seen)[: max(len(self._seen) - _KEPT + 1, 0)]:
                del self._seen[old]
        self._seen[self._key] = kept  # at the end: used last
        return kept[0]

    def _nearest(self, vector: Tensor) -> pd.DataFrame:
        images = self.gallery.images
        labels = images.names if images.labels is None else images.labels
        itself = self._key if self._key is not None and self._key < self.gallery.ready else None
        return rank_neighbours(vector, self.gallery.features, labels, self._count, leave_out=itself)

    def _by_presence(self) -> list[int]:
        maps = self.gallery.concept_maps
        return order_by_presence(self._sight().concepts.to(maps), maps.amax(1), self._live.steerable)

    def _follow(self) -> None:
        """Have the controls say what is shown, whoever changed it."""
        self._following = True
        try:
            self._image.value = self.image
            for concept, value in self.strengths.items():
                slider = self._row(concept)[0]
                if not self._sliding:  # else a repaint would take the slider out of the hand that moves it
                    slider.value = value
            rows = tuple(self._row(concept)[1] for concept in self.strengths)
            if rows != self._sliders.children:
                self._sliders.children = rows
            listed = self._key, frozenset(self.strengths)
            if listed != self._listed:  # else a choice that was made already would be lost
                free = [concept for concept in self._by_presence() if concept not in self.strengths]
                self._concept.options = [(self._name(concept), concept) for concept in free]
                self._concept.index = 0 if free else None  # of a list that was empty, ipywidgets chooses none
                self._listed = listed
            self._add.disabled = not self._concept.options
        finally:
            self._following = False

    def _paint(self, steered: Steered, before: pd.DataFrame, after: pd.DataFrame) -> None:
        self._own.value = (
            f'<figure style="margin:4px 12px 4px 0">{self._seen[self._key][1]}'
            f"<figcaption>{html.escape(self._label(self._key))}</figcaption></figure>"
        )
        self._moved.value = moved_line(steered.cosine, steered.largest)
        self._bars.value = "" if steered.probabilities.empty else probability_bars(steered.probabilities)
        self._near.value = neighbour_rows(before, after, self._tiles_of({*before["image"], *after["image"]}))
        self._copy.text = f"from elude_nb import Edit\n\nedit = {self.edit.code()}"
        self._code.value = code_box(self._copy.text, "the sliders as code")

    def _tiles_of(self, numbers: set[int]) -> dict[int, str]:
        missing = numbers - set(self._tiles)
        if missing:
            pictures = self.gallery.pictures
            for one in missing:
                self._tiles[one] = tile(pictures[one], f"image {one}, {self._label(one)}", side=_SIDE)
        return self._tiles

    def _label(self, number: int | None) -> str:
        if number is None:
            return "an image of your own"
        images = self.gallery.images
        return str((images.names if images.labels is None else images.labels)[number])

    def static_html(self) -> str:
        """Return what the sliders do to the image, as it is."""
        rows = "".join(f"<li>{html.escape(self._name(c))}: {value:g}</li>" for c, value in self.strengths.items())
        return (
            f"{self._own.value}<ul>{rows}</ul>{self._moved.value}{self._bars.value}{self._near.value}{self._code.value}"
        )
