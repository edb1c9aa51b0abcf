"""Workbench: all panels on one model and one folder of images, chosen in the page; an app in one cell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipywidgets
import traitlets
from markupsafe import Markup

from elude_nb._util.words import counted
from elude_nb.core.disentangle import disentangle
from elude_nb.core.result import Disentanglement
from elude_nb.data.images import ImageSet, load_images
from elude_nb.interpret.gallery import Gallery
from elude_nb.interpret.naming import name_concepts
from elude_nb.models.load import load_model
from elude_nb.steering.heads import fit_on_outputs
from elude_nb.widgets import parts
from elude_nb.widgets.channel_explorer import ChannelExplorer
from elude_nb.widgets.concept_atlas import ConceptAtlas
from elude_nb.widgets.image_inspector import ImageInspector
from elude_nb.widgets.intruder_quiz import IntruderQuiz
from elude_nb.widgets.panel import Panel, open_gallery
from elude_nb.widgets.steering_panel import SteeringPanel


class Workbench(Panel):
    """Choose a model and images, have the model disentangled, and look at it in five panels that share one gallery.

    Parameters
    ----------
    model, images
        What the form is filled in with: a model's name, a folder or the name of a set.
    count
        How many images are taken: half of them for the discovery, half to look at.
    concepts, units
        G and K of the discovery.
    gallery
        An existing `Gallery`; then nothing is run and the panels are shown at once.
    seed
        Of the halves and the discovery.

    Attributes
    ----------
    gallery
        What the panels show (trait, read-only), or None before the first discovery.
    panels
        The panels by title, those that were opened so far.

    Examples
    --------
    ``Workbench("dinov2-small", "photographs").run()``
    """

    gallery = traitlets.Instance(Gallery, allow_none=True, read_only=True)

    def __init__(
        self,
        model: str = "dinov2-small",
        images: str = "photographs",
        *,
        count: int = 200,
        concepts: int = 64,
        units: int = 8,
        gallery: Gallery | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self._seed = seed
        self.panels: dict[str, Panel] = {}
        self._model = parts.make(ipywidgets.Text, "model", "model", value=model, continuous_update=False)
        self._images = parts.make(ipywidgets.Text, "images", "images", value=images, continuous_update=False)
        number = ipywidgets.BoundedIntText
        self._count = parts.make(number, "how many", "count", value=count, min=4, max=100_000)
        self._concepts = parts.make(number, "G: concepts", "g", value=concepts, min=2, max=4096)
        self._units = parts.make(number, "K: units", "max-units", value=units, min=2, max=64)
        self._go = parts.make_button(
            "disentangle", "disentangle", self.run, button_style="primary", tooltip="load both and split the channels"
        )
        self._log = ipywidgets.Output().add_class("elude-log")
        self._tabs = ipywidgets.Tab().add_class("elude-tabs")
        self._tabs.observe(lambda change: self._open_tab(change["new"]), "selected_index")
        form = [
            parts.make_row(self._model, self._images),
            parts.make_row(self._count, self._concepts),
            parts.make_row(self._units, self._go),
        ]
        self._form = ipywidgets.VBox(form).add_class("elude-form")
        self.children = (self._form, self._status, self._log, self._tabs)
        if gallery is not None:
            self.take(gallery)
        else:
            self.say("Choose a model and images, then press “disentangle”.")

    def run(self) -> Workbench:
        """Load the model and the images that the form names, disentangle, and show the panels.

        An error is reported in the status line; then the panels stay as they were.
        """
        self._go.disabled = True
        self.say(f"{self._model.value}: loading …")
        self._log.clear_output()
        try:
            with self._log, self.guarded():  # in this order: an Output shows errors itself and keeps them
                model = load_model(self._model.value)
                photos = load_images(self._images.value, count=self._count.value)
                discover, held_out = photos.without_copies().split(0.5, seed=self._seed)
                self.say(f"{model.name}: disentangling on {counted(len(discover), 'image')} …")
                split = disentangle(
                    model, discover, concepts=self._concepts.value, units=self._units.value, seed=self._seed
                )
                gallery = self._prepare(split, discover, held_out)
                self._log.clear_output()
                self.take(gallery)
        finally:
            self._go.disabled = False
        return self

    def _prepare(self, split: Disentanglement, discover: ImageSet, held_out: ImageSet) -> Gallery:
        """Return a filled gallery of a split whose concepts are named after the labels, if there are labels."""
        if discover.labels is not None and len(set(discover.labels)) > 1:
            self.say("Naming concepts after the labels …")
            split = split.with_names(name_concepts(split, discover).names)
        self.say(f"Running {counted(len(held_out), 'image')} to look at …")
        return Gallery(split, held_out).fill()

    def take(self, gallery: Gallery) -> None:
        """Show the panels on a gallery."""
        self.set_trait("gallery", open_gallery(gallery, None))
        self.panels = {}
        makers = self._makers()
        self._tabs.children = tuple(ipywidgets.VBox() for _ in makers)
        self._tabs.titles = tuple(makers)
        self._tabs.selected_index = 0
        self._open_tab(0)
        self.say(f"{gallery.split.model.name}, {counted(len(gallery.images), 'image')} from {gallery.images.source}")

    def _makers(self) -> dict[str, Callable[[], Panel]]:
        gallery: Any = self.gallery
        return {
            "Channels": lambda: ChannelExplorer(gallery),
            "Concepts": lambda: ConceptAtlas(gallery),
            "Image": lambda: ImageInspector(gallery),
            "Steering": lambda: SteeringPanel(gallery, head=_fit_head(gallery)),
            "Intruder quiz": lambda: IntruderQuiz(gallery),
        }

    def _open_tab(self, index: int | None) -> None:
        """Make a panel when it is looked at for the first time: five at once would hold up the page."""
        makers = self._makers() if self.gallery is not None else {}
        if index is None or index >= len(makers):
            return
        title = list(makers)[index]
        if title not in self.panels:
            with self.guarded():
                self.panels[title] = makers[title]()
                self._tabs.children[index].children = (self.panels[title],)

    def static_html(self) -> Markup:
        """Return the panels that were opened, one below the other."""
        panels = [(title, panel.static_html()) for title, panel in self.panels.items()]
        return parts.fill("workbench.html", panels=panels, message=self.message)


def _fit_head(gallery: Gallery) -> Any:
    """Return a probe fitted on the gallery's own images, or None without labels."""
    if gallery.labels is None or len(set(gallery.labels)) < 2:
        return None
    return fit_on_outputs(gallery.features, list(gallery.labels))
