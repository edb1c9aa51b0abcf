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
from elude_nb.core.routing import NO_CONCEPT
from elude_nb.data.images import Images, open_image
from elude_nb.figures.html import PALETTE
from elude_nb.figures.theme import words
from elude_nb.interpret.gallery import Gallery
from elude_nb.interpret.neighbours import rank_neighbours
from elude_nb.steering.heads import Head
from elude_nb.steering.live import UNCHANGED, LiveSteering, Steered, order_by_presence
from elude_nb.widgets import parts
from elude_nb.widgets.controls import CopyButton, Slider, Thumbnails
from elude_nb.widgets.dose_meter import DoseMeter
from elude_nb.widgets.panel import GalleryPanel
from elude_nb.widgets.selection import State
from elude_nb.widgets.steering_html import dose_chart, probability_bars, shown_images
from elude_nb.widgets.steering_images import SteeredImages

STRONGEST = 2.0
MOST_BESIDE = 3  # images beside the main one


class SteeringPanel(GalleryPanel):
    """Put sliders on concepts and see what they do to an image: where in it, its classes, its neighbours.

    Each slider multiplies the activations of a concept's sub-units, in all channels: 0 fades them out, 1 leaves them as
    they are, 2 doubles them. The model itself is not changed: what is shown is computed beside it, and is what
    ``with split.edit(panel.edit):`` gives, up to rounding. Up to three other images stand beside the first, each with
    a map of how far its patches moved and with its patches in colours before and after (`patch_change`,
    `patch_colours` of `elude_nb.steering`).

    In a running kernel, with a head and labels, the panel measures between moves of the sliders what fading the concept
    moved last does to each class of the gallery, at five doses; elsewhere `measure` does.

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
    beside
        Numbers of up to three images that are shown beside the first; by default some of other labels.

    Attributes
    ----------
    strengths
        From each concept with a slider to its strength in [0, 2] (trait, settable: sliders come and go with it; names
        of concepts may be given as well).
    image
        Number of the gallery's image that is steered (trait, settable).
    beside
        Numbers of the images beside it (trait, settable).
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
        Outputs before and after, the cosine between them, the largest change, the patches (trait, read-only).
    doses
        What each dose of the concept moved last does to the classes: ``dose``, ``target``, ``drop``, ``others``,
        ``worst``, ``worst_class``, ``specificity`` (trait, read-only); ``None`` until it is measured.

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
    beside = traitlets.List(traitlets.Int(), help="numbers of the images beside it")
    picture = traitlets.Union(
        [traitlets.Instance(Image.Image), traitlets.Instance(Tensor)], allow_none=True, help="an image of your own"
    )
    edit = traitlets.Instance(Edit, read_only=True, help="the sliders as an edit")
    neighbours = traitlets.Instance(pd.DataFrame, read_only=True)
    probabilities = traitlets.Instance(pd.DataFrame, read_only=True)
    steered = traitlets.Instance(Steered, allow_none=True, read_only=True)
    doses = traitlets.Instance(pd.DataFrame, allow_none=True, read_only=True)

    def __init__(
        self,
        gallery: Gallery | Disentanglement,
        images: Images | None = None,
        *,
        head: Head | None = None,
        concepts: Sequence[int | str] | None = None,
        neighbours: int = 6,
        tokens: str = "all",
        beside: Sequence[int] | None = None,
    ) -> None:
        super().__init__(gallery, images)
        self._live = LiveSteering(self.gallery.split, head=head, tokens=tokens)
        self._count = check_count("neighbours", neighbours)
        self._images = SteeredImages(self.gallery, self._live)
        self._rows: dict[int, Slider] = {}
        self._moved_last = NO_CONCEPT  # the concept whose slider was
        self._meter = DoseMeter(self._live, self.gallery, lambda: self._in_hand, self._paint_dose)
        self._listed: tuple[object, ...] | None = None
        self._following = False  # while the panel itself sets its controls
        self._sliding = False  # while a slider was moved and the panel waits for it to rest
        self._silent = False  # while several traits are set, to be painted once
        self._lent = NO_CONCEPT  # has a slider because it was chosen in another panel
        self.set_trait("edit", Edit())
        self._build()
        self.image = self.selection.image or 0  # its concepts are offered first
        next(self.gallery.steps(4), None)  # some images to compare with
        self._live.steer(self._images.look(self._key), {})  # a head that does not fit raises here
        self.beside = list(self._images.others(self.image, MOST_BESIDE) if beside is None else beside)
        chosen = self._by_presence()[:3] if concepts is None else [self._live.number(concept) for concept in concepts]
        self.strengths = dict.fromkeys(chosen, UNCHANGED)
        self.begin()

    def listen(self) -> None:
        """Observe what is chosen by the controls or from Python."""
        self.observe(self._show_strengths, "strengths")
        self.observe(self._show_image, "image")
        self.observe(lambda _: self.refresh(), "beside")
        self.observe(self._show_picture, "picture")

    def take(self, state: State, changed: set[str]) -> None:
        """Show the image that is chosen, and have a slider on the concept that is, if it is one."""
        with parts.holding(self, "_silent"):
            if "image" in changed:
                self.picture, self.image = None, state.image or 0
            if "concepts" in changed:
                self._lend(next(iter(state.concepts or ()), None) if len(state.concepts or ()) == 1 else None)
        if changed & {"image", "concepts"}:
            self.refresh()

    def _lend(self, concept: int | None) -> None:
        """Put a slider on a concept that was chosen elsewhere; that of the one before goes if it was not moved."""
        lent, self._lent = self._lent, NO_CONCEPT
        gone = () if lent == concept else (lent, UNCHANGED)
        kept = {one: value for one, value in self.strengths.items() if (one, value) != gone}
        if concept is not None and concept in self._live.steerable:
            self._moved_last = concept
            if concept not in kept or concept == lent:
                self._lent = concept
            kept.setdefault(concept, UNCHANGED)
        self.strengths = kept

    # ------------------------------------------------------------------- parts

    def _build(self) -> None:
        last = len(self.gallery.images) - 1
        self._take_sliders_soon, take_image = self.later(self._take_sliders), self.later(self._take_image)
        self._image = Slider(description="image", max=last, disabled=last == 0).add_class("elude-image")
        self._image.observe(lambda event: None if self._following else take_image(int(event["new"])), "value")
        label = "pictures: the one you choose is steered, the last ones stay beside it"
        self._strip = Thumbnails(label=label).add_class("elude-strip")
        self._strip.on_choose(self._choose)
        wide: dict[str, Any] = {"layout": {"width": "100%"}, "style": {"description_width": "auto"}}
        self._concept = parts.make(ipywidgets.Dropdown, "concept", "concept", **wide)
        hint = "put a slider on this concept"
        self._add = parts.make_button("add a slider", "add", lambda: self.add(self._concept.value), tooltip=hint)
        self._reset = parts.make_button("reset", "reset", self.reset, tooltip="all sliders to 1: unchanged")
        self._sliders = ipywidgets.VBox().add_class("elude-strengths")
        self._copy = CopyButton(label="copy the code").add_class("elude-copy")
        names = ("own", "beside", "moved", "probabilities", "neighbours", "doses", "code")
        places = map(parts.make_place, names)
        self._own, self._beside, self._moved, self._bars, self._near, self._dose, self._code = places
        controls = (self._sliders, self._concept, parts.make_row(self._add, self._reset), self._image, self._strip)
        own, others = parts.make_row(self._own, self._bars), parts.make_row(self._near, self._dose)
        effect = (self._status, self._bar, own, self._beside, others, self._moved)
        left = {"flex": "1 1 300px", "max_width": "420px", "padding": "0 12px 0 0"}
        right = {"flex": "3 1 340px", "min_width": "0"}
        self.children = (
            parts.make_row(ipywidgets.VBox(controls, layout=left), ipywidgets.VBox(effect, layout=right)),
            parts.make_row(self._code, self._copy),
        )

    def _row(self, concept: int) -> Slider:
        """Return the slider of a concept."""
        if concept not in self._rows:
            marks = ["0 faded out", "1 as it is", "2 doubled"]
            slider = Slider(value=UNCHANGED, max=STRONGEST, step=0.05, digits=2, marks=marks, removable=True)
            slider.add_class("elude-strength").add_class(f"elude-strength-{concept}")
            slider.observe(lambda _: self._slide(concept), "value")
            slider.on_remove(partial(self.remove, concept))
            self._rows[concept] = slider
        self._rows[concept].description = _plain(self._name(concept))
        return self._rows[concept]

    def _slide(self, concept: int) -> None:
        if not self._following:
            self._sliding, self._moved_last = True, concept
            self._meter.wait()
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
        sliders = {concept: self._row(concept).value for concept in self.strengths}
        # A value set from Python may lie between two steps of its slider; it stays until the slider is moved.
        moved = {c: round(v, 2) if v != self.strengths[c] else v for c, v in sliders.items()}
        with self._reverting():
            self.strengths = moved

    def _take_image(self, number: int) -> None:
        with self._reverting():
            self.picture = None
            self.image = number

    def _choose(self, number: int) -> None:
        """Steer a picture of the strip; that before it stays beside it."""
        with self._reverting():
            if number != self.image:
                kept = [one for one in (self.image, *self.beside) if one != number][:MOST_BESIDE]
                with self.hold_trait_notifications():
                    self.picture = None
                    self.image = number
                    self.beside = kept

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

    @traitlets.validate("beside")
    def _valid_beside(self, proposal: Any) -> list[int]:
        self._live.check_free()
        found, last = list(proposal["value"]), len(self.gallery.images) - 1
        wrong = next((number for number in found if not 0 <= number <= last), None)
        if wrong is not None or len(set(found)) < len(found) or len(found) > MOST_BESIDE:
            raise traitlets.TraitError(
                f"beside={found} must be up to {MOST_BESIDE} different numbers of images between 0 and {last}."
            )
        return found

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
        self._images.take_own(self.picture)
        self.refresh()

    def _show_image(self, change: Any) -> None:
        if change["new"] in self.beside:  # it changes places with the one that was steered
            self.beside = [change["old"] if number == change["new"] else number for number in self.beside]
        else:
            self.refresh()
        self.share(image=change["new"])

    @property
    def _keys(self) -> list[int | None]:
        """What is shown: the image that is steered, and those beside it."""
        return [self._key, *(number for number in self.beside if number != self._key)]

    @property
    def _key(self) -> int | None:
        return None if self.picture is not None else self.image

    def refresh(self) -> None:
        """Compute and paint what the sliders do to the image."""
        if self._silent:
            return
        began = time.perf_counter()
        self._live.split = self.gallery.split  # which may have other names
        with self.guarded():
            every = [self._live.steer(self._images.look(key), self.strengths) for key in self._keys]
            steered = every[0]
            before, after = self._nearest(steered.before), self._nearest(steered.after)
            self.set_trait("steered", steered)
            self.set_trait("edit", self._live.edit(self.strengths))
            both = [before.assign(when="before"), after.assign(when="after")]
            self.set_trait("neighbours", pd.concat(both, ignore_index=True)[["when", *before.columns]])
            self.set_trait("probabilities", steered.probabilities)
            self._paint(every, before, after)
            self._follow()
            same = len(set(before["image"]) & set(after["image"]))
            self.say(
                f"{same} of {len(before)} neighbours are the same; {self.describe_images()}. "
                f"Computed in {time.perf_counter() - began:.2f} s."
            )

    def _nearest(self, vector: Tensor) -> pd.DataFrame:
        labels = self.gallery.images.labels or self.gallery.images.names
        itself = self._key if self._key is not None and self._key < self.gallery.ready else None
        return rank_neighbours(vector, self.gallery.features, labels, self._count, leave_out=itself)

    def _by_presence(self) -> list[int]:
        maps = self.gallery.concept_maps
        return order_by_presence(self._images.look(self._key).concepts.to(maps), maps.amax(1), self._live.steerable)

    def _follow(self) -> None:
        """Have the controls show what is shown, whoever changed it."""
        with parts.holding(self, "_following"):
            self._image.value = self.image
            self._image.description = _plain(f"image {self.image}: {words(self._images.label(self.image), 40)}")
            self._strip.pictures = self._images.strip(self._strip.pictures)
            self._strip.chosen = [key for key in self._keys if key is not None]
            for concept, value in self.strengths.items():
                if not self._sliding:  # else a repaint would move the slider under the user's hand
                    self._row(concept).value = value
            rows = tuple(map(self._row, self.strengths))
            if rows != self._sliders.children:
                self._sliders.children = rows
            listed = self._key, frozenset(self.strengths), self.gallery.split
            if listed != self._listed:  # else a choice that was made already would be lost
                free = [concept for concept in self._by_presence() if concept not in self.strengths]
                self._concept.options = [(self._name(concept), concept) for concept in free]
                self._concept.index = 0 if free else None  # ipywidgets chooses none of a list that was empty
                self._listed = listed
            self._add.disabled = not self._concept.options

    def _paint(self, every: Sequence[Steered], before: pd.DataFrame, after: pd.DataFrame) -> None:
        steered, ratio = every[0], self._images.seen[self._key][2]
        shown = list(zip(every, map(self._images.describe, self._keys), strict=True))
        colours = self._images.fit_colours(self._keys)
        self._own.value = shown_images(shown[:1], colours, ratio=ratio, main=True)
        self._beside.value = shown_images(shown[1:], colours, ratio=ratio, main=False)
        self._moved.value = parts.fill("moved.html", steered=steered)
        self._bars.value = "" if steered.probabilities.empty else probability_bars(steered.probabilities)
        rows = (("before", before.to_dict("records")), ("after", after.to_dict("records")))
        known = set(before["image"])
        self._near.value = parts.fill(
            "neighbours.html", rows=rows, known=known, tile=self._images.tile, colour=PALETTE[3]
        )
        self._copy.text = f"from elude_nb import Edit\n\nedit = {self.edit.code()}"
        self._code.value = parts.fill("code.html", code=self._copy.text)
        self._paint_dose()

    # -------------------------------------------------------------------- doses

    @property
    def _in_hand(self) -> int | None:
        """The concept whose doses are shown: that whose slider was moved last, or else the first."""
        moved = self._moved_last
        return moved if moved in self.strengths else next(iter(self.strengths), None)

    def measure(self, concept: int | str | None = None) -> pd.DataFrame:
        """Measure what fading a concept does to each class of the gallery's images at five doses, and return the table.

        One pass for each image, and what follows the site once more for each dose.

        Parameters
        ----------
        concept
            Which concept; by default that whose slider was moved last. It gets a slider.

        Raises
        ------
        ValueError
            If the panel has no head, or the images have fewer than two of its classes.
        EditError
            If there is no such concept, or an edit is active on the model.
        """
        number = self._in_hand if concept is None else self._live.number(concept)
        if number is None:
            raise ValueError("No concept has a slider; say which to measure.")
        if number not in self.strengths:
            self.strengths = {**self.strengths, number: UNCHANGED}
        self._moved_last = number
        found = self._meter.measure(number)
        self._paint_dose()
        return found

    def _paint_dose(self) -> None:
        concept = self._in_hand
        if concept is None or self._live.head is None or self.gallery.images.labels is None:
            self.set_trait("doses", None)
            self._dose.value = ""
            return
        found, name = self._meter.tables.get(concept), self._name(concept)
        self.set_trait("doses", found)
        if found is None:
            self._dose.value = parts.fill("dose.html", name=name, why=self._meter.begin(concept))
        else:
            images = len(self._meter.curve(concept).images)
            self._dose.value = dose_chart(name, found, self.strengths[concept], images)

    def static_html(self) -> Markup:
        """Return what the sliders do to the image."""
        strengths = [(self._name(concept), value) for concept, value in self.strengths.items()]
        shown = {"own": self._own, "beside": self._beside, "moved": self._moved, "bars": self._bars, "near": self._near}
        places = {**shown, "doses": self._dose, "code": self._code}
        made = {name: Markup(place.value) for name, place in places.items()}  # noqa: S704 - by templates
        return parts.fill("steering.html", strengths=strengths, **made)


def _plain(name: str) -> str:
    """Return a name in which a page that sets mathematics finds none."""
    return name.replace("$", "\uff04")
