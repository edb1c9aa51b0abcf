"""SteeringPanel: scale concepts up and down and see at once what the model then makes of an image."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import ipywidgets
import numpy as np
import pandas as pd
import traitlets
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from elude_nb._util.checks import check_count
from elude_nb.core.edit import Edit
from elude_nb.core.result import Disentanglement
from elude_nb.data.images import Images, open_image
from elude_nb.figures.html import PALETTE, tile
from elude_nb.figures.theme import words
from elude_nb.interpret.gallery import Gallery, picture_of
from elude_nb.interpret.neighbours import rank_neighbours
from elude_nb.steering.heads import Head
from elude_nb.steering.live import UNCHANGED, LiveSteering, Seen, Steered, order_by_presence
from elude_nb.widgets import parts
from elude_nb.widgets.controls import CopyButton
from elude_nb.widgets.panel import GalleryPanel

STRONGEST = 2.0
MOST_CLASSES = 8  # have a bar
_KEPT = 6  # images whose sources are cached: 24 MB each for all blocks of a ViT-S
_SIDE = 84


class SteeringPanel(GalleryPanel):
    """Put sliders on concepts and see what they do to one image: its neighbours, its classes, its output.

    Each slider multiplies the activations of a concept's sub-units, in all channels: 0 fades them out, 1 leaves them as
    they are, 2 doubles them. The model itself is not changed: what is shown is computed beside it, and is what
    ``with split.edit(panel.edit):`` gives, up to rounding.

    Parameters
    ----------
    gallery
        A `Gallery`, or a `Disentanglement` (then ``images`` are needed); neighbours are sought in it.
    images
        Images, if ``gallery`` is a split.
    head
        A classifier, as from `elude_nb.fit_head`; without one no probabilities are shown.
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
    picture = traitlets.Union(
        [traitlets.Instance(Image.Image), traitlets.Instance(Tensor)], allow_none=True, help="an image of your own"
    )
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
        super().__init__(gallery, images)
        self._live = LiveSteering(self.gallery.split, head=head, tokens=tokens)
        self._count = check_count("neighbours", neighbours)
        self._seen: dict[int | None, tuple[Seen, Markup]] = {}  # with its tile; None is the user's own picture
        self._tiles: dict[int, Markup] = {}
        self._rows: dict[int, tuple[ipywidgets.FloatSlider, ipywidgets.HBox]] = {}
        self._listed: tuple[object, ...] | None = None
        self._following = False  # while the panel itself sets its controls
        self._sliding = False  # while a slider was moved and the panel waits for it to rest
        self.set_trait("edit", Edit())
        self._build()
        next(self.gallery.steps(4), None)  # some images to compare with
        self._live.steer(self._look(), {})  # a head that does not fit raises here
        chosen = self._by_presence()[:3] if concepts is None else [self._live.number(concept) for concept in concepts]
        self.strengths = dict.fromkeys(chosen, UNCHANGED)
        self.observe(self._show_strengths, "strengths")
        self.observe(lambda _: self.refresh(), "image")
        self.observe(self._show_picture, "picture")
        self.begin()

    # ------------------------------------------------------------------- parts

    def _build(self) -> None:
        last = len(self.gallery.images) - 1
        self._take_sliders_soon, take_image = self.later(self._take_sliders), self.later(self._take_image)
        self._image = parts.make(
            ipywidgets.IntSlider, "image", "image", take_image, min=0, max=last, disabled=last == 0
        )
        self._concept = parts.make(ipywidgets.Dropdown, "concept", "concept", layout={"width": "440px"})
        hint = "put a slider on this concept"
        self._add = parts.make_button("add", "add", lambda: self.add(self._concept.value), tooltip=hint)
        self._reset = parts.make_button("reset", "reset", self.reset, tooltip="all sliders to 1: unchanged")
        self._sliders = ipywidgets.VBox().add_class("elude-strengths")
        self._copy = CopyButton(label="copy the code").add_class("elude-copy")
        names = ("own", "moved", "probabilities", "neighbours", "code")
        self._own, self._moved, self._bars, self._near, self._code = map(parts.make_place, names)
        self.children = (
            parts.make_row(self._image, self._concept, self._add, self._reset),
            self._sliders,
            self._status,
            self._bar,
            parts.make_row(self._own, ipywidgets.VBox([self._moved, self._bars])),
            self._near,
            parts.make_row(self._code, self._copy),
        )

    def _row(self, concept: int) -> tuple[ipywidgets.FloatSlider, ipywidgets.HBox]:
        """Return the slider of a concept, and it beside the button that removes it."""
        if concept not in self._rows:
            look: dict[str, Any] = {"layout": {"width": "560px"}, "style": {"description_width": "300px"}}
            ends: dict[str, Any] = {"value": UNCHANGED, "max": STRONGEST, "step": 0.05}
            slider = parts.make(ipywidgets.FloatSlider, "", f"strength-{concept}", self._slide, **ends, **look)
            remove = partial(self.remove, concept)
            button = parts.make_button("remove", f"remove-{concept}", remove, layout={"width": "auto"})
            self._rows[concept] = slider, ipywidgets.HBox([slider.add_class("elude-strength"), button])
        (slider, row), name = self._rows[concept], self._name(concept)
        # ipywidgets reads mathematics between dollar signs of a description.
        slider.description, row.children[1].tooltip = name.replace("$", "\uff04"), f"remove {name}"
        return slider, row

    def _slide(self, _: object) -> None:
        if not self._following:
            self._sliding = True
            self._take_sliders_soon()

    def _name(self, concept: int) -> str:
        return words(self.gallery.split.concept_title(concept, number=True), 75)

    # ------------------------------------------------------------------ actions

    def add(self, concept: int | str) -> None:
        """Put a slider on a concept, at 1."""
        with self.guarded():
            number = self._live.number(concept)
            if number in self.strengths:
                self.say(f"{self._name(number)} has a slider already.", error=True)
            else:
                self.strengths = {**self.strengths, number: UNCHANGED}

    def remove(self, concept: int) -> None:
        """Remove a concept's slider, and what it did."""
        with self.guarded():
            self.strengths = {one: value for one, value in self.strengths.items() if one != concept}

    def reset(self) -> None:
        """Set all sliders to 1."""
        with self.guarded():
            self.strengths = dict.fromkeys(self.strengths, UNCHANGED)

    def _take_sliders(self) -> None:
        self._sliding = False
        sliders = {concept: self._row(concept)[0].value for concept in self.strengths}
        # A value set from Python may lie between two steps of its slider; it stays until the slider is moved.
        moved = {c: round(v, 2) if v != self.strengths[c] else v for c, v in sliders.items()}
        with self._reverting():
            self.strengths = moved

    def _take_image(self, number: int) -> None:
        with self._reverting():
            self.picture = None
            self.image = number

    @contextmanager
    def _reverting(self) -> Iterator[None]:
        """Do what a control asks for; where that is refused, the control goes back."""
        with self.guarded():
            try:
                yield
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
    def _valid_image(self, proposal: Any) -> Any:
        self._live.check_free()
        return parts.check_range(proposal, 0, len(self.gallery.images) - 1)

    @traitlets.validate("picture")
    def _valid_picture(self, proposal: Any) -> Image.Image | None:
        self._live.check_free()
        found: Image.Image | None = proposal["value"]
        return None if found is None else open_image((found, "picture"))

    # -------------------------------------------------------------------- paint

    def _show_strengths(self, _: object) -> None:
        self._sliding = False  # what was set last counts
        self.refresh()

    def _show_picture(self, _: object) -> None:
        self._seen.pop(None, None)
        self.refresh()

    @property
    def _key(self) -> int | None:
        return None if self.picture is not None else self.image

    def refresh(self) -> None:
        """Compute and paint what the sliders do to the image."""
        began = time.perf_counter()
        self._live.split = self.gallery.split  # which may have other names
        with self.guarded():
            steered = self._live.steer(self._look(), self.strengths)
            before, after = self._nearest(steered.before), self._nearest(steered.after)
            self.set_trait("steered", steered)
            self.set_trait("edit", self._live.edit(self.strengths))
            both = [before.assign(when="before"), after.assign(when="after")]
            self.set_trait("neighbours", pd.concat(both, ignore_index=True)[["when", *before.columns]])
            self.set_trait("probabilities", steered.probabilities)
            self._paint(steered, before, after)
            self._follow()
            same = len(set(before["image"]) & set(after["image"]))
            self.say(
                f"{same} of {len(before)} neighbours are the same; {self.describe_images()}. "
                f"Computed in {time.perf_counter() - began:.2f} s."
            )

    def _look(self) -> Seen:
        """Return the image as the model saw it; the last few are cached, with their tiles."""
        kept = self._seen.pop(self._key, None)
        if kept is None:
            image = self.gallery.images[self.image] if self.picture is None else self.picture
            alt = f"the image that is steered: {self._label(self._key)}"
            kept = self._live.see(image), tile(picture_of(self.gallery.split.model, image), alt, side=160)
            for old in list(self._seen)[: max(len(self._seen) - _KEPT + 1, 0)]:
                del self._seen[old]
        self._seen[self._key] = kept  # at the end: used last
        return kept[0]

    def _nearest(self, vector: Tensor) -> pd.DataFrame:
        labels = self.gallery.images.labels or self.gallery.images.names
        itself = self._key if self._key is not None and self._key < self.gallery.ready else None
        return rank_neighbours(vector, self.gallery.features, labels, self._count, leave_out=itself)

    def _by_presence(self) -> list[int]:
        maps = self.gallery.concept_maps
        return order_by_presence(self._look().concepts.to(maps), maps.amax(1), self._live.steerable)

    def _follow(self) -> None:
        """Have the controls show what is shown, whoever changed it."""
        self._following = True
        try:
            self._image.value = self.image
            for concept, value in self.strengths.items():
                if not self._sliding:  # else a repaint would move the slider under the user's hand
                    self._row(concept)[0].value = value
            rows = tuple(self._row(concept)[1] for concept in self.strengths)
            if rows != self._sliders.children:
                self._sliders.children = rows
            listed = self._key, frozenset(self.strengths), self.gallery.split
            if listed != self._listed:  # else a choice that was made already would be lost
                free = [concept for concept in self._by_presence() if concept not in self.strengths]
                self._concept.options = [(self._name(concept), concept) for concept in free]
                self._concept.index = 0 if free else None  # ipywidgets chooses none of a list that was empty
                self._listed = listed
            self._add.disabled = not self._concept.options
        finally:
            self._following = False

    def _paint(self, steered: Steered, before: pd.DataFrame, after: pd.DataFrame) -> None:
        self._own.value = parts.fill("own.html", tile=self._seen[self._key][1], label=self._label(self._key))
        self._moved.value = parts.fill("moved.html", steered=steered)
        self._bars.value = "" if steered.probabilities.empty else _probability_bars(steered.probabilities)
        rows = (("before", before.to_dict("records")), ("after", after.to_dict("records")))
        known = set(before["image"])
        self._near.value = parts.fill("neighbours.html", rows=rows, known=known, tile=self._tile, colour=PALETTE[3])
        self._copy.text = f"from elude_nb import Edit\n\nedit = {self.edit.code()}"
        self._code.value = parts.fill("code.html", code=self._copy.text)

    def _tile(self, number: int) -> Markup:
        if number not in self._tiles:
            alt = f"image {number}, {self._label(number)}"
            self._tiles[number] = tile(self.gallery.pictures_of(number), alt, side=_SIDE)
        return self._tiles[number]

    def _label(self, number: int | None) -> str:
        if number is None:
            return "an image of your own"
        return str((self.gallery.images.labels or self.gallery.images.names)[number])

    def static_html(self) -> Markup:
        """Return what the sliders do to the image."""
        strengths = [(self._name(concept), value) for concept, value in self.strengths.items()]
        places = {"own": self._own, "moved": self._moved, "bars": self._bars, "near": self._near, "code": self._code}
        made = {name: Markup(place.value) for name, place in places.items()}  # noqa: S704 - by templates
        return parts.fill("steering.html", strengths=strengths, **made)


def _probability_bars(table: pd.DataFrame) -> Markup:
    """Return the likeliest classes, before or after, with a bar for either; ``table`` has one row a class."""
    likeliest = table[["before", "after"]].max(axis=1).sort_values(ascending=False, kind="stable").index[:MOST_CLASSES]
    rows = [(name, float(table.loc[name, "before"]), float(table.loc[name, "after"])) for name in likeliest]
    return parts.fill("probabilities.html", rows=rows, colour=PALETTE[0], others=len(table) - len(rows))
