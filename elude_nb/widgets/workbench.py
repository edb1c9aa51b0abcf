"""Workbench: all panels on one model and one folder of images, chosen in the page; an app in one cell."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import ipywidgets
import traitlets
from markupsafe import Markup

from elude_nb._util.glossary import GLOSSARY
from elude_nb._util.progress import say
from elude_nb._util.words import counted
from elude_nb.core.disentangle import disentangle
from elude_nb.data.images import load_images
from elude_nb.examples.finished import example
from elude_nb.interpret.gallery import Gallery
from elude_nb.interpret.naming import name_concepts
from elude_nb.models.load import load_model
from elude_nb.steering.heads import fit_on_outputs
from elude_nb.widgets import parts
from elude_nb.widgets.background import Stopped, Work, find_loop
from elude_nb.widgets.channel_explorer import ChannelExplorer
from elude_nb.widgets.concept_atlas import ConceptAtlas
from elude_nb.widgets.controls import CopyButton
from elude_nb.widgets.image_inspector import ImageInspector
from elude_nb.widgets.intruder_quiz import IntruderQuiz
from elude_nb.widgets.panel import GalleryPanel, Panel, open_gallery
from elude_nb.widgets.selection import Selection, check_names, selection_of
from elude_nb.widgets.steering_panel import SteeringPanel

_GIVEN = "Workbench(gallery=gallery)"
_STORED = 3  # channels of the example in a page without a kernel: each is 60 kB


class Workbench(Panel):
    """Choose a model and images, have the model disentangled, and look at it in five panels that share one gallery.

    Until there is something to look at, it shows a finished example (`elude_nb.example`).

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

    selection
        What is chosen in all panels, a `Selection`; None before the first discovery.

    Examples
    --------
    ``Workbench("dinov2-small", "photographs").run()``
    ``Workbench("dinov2-small", "photographs").run().show("Concepts", concepts=[12])``
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
        self.panels: dict[str, GalleryPanel] = {}
        self._model = parts.make(ipywidgets.Text, "model", "model", value=model, continuous_update=False)
        self._images = parts.make(ipywidgets.Text, "images", "images", value=images, continuous_update=False)
        number = ipywidgets.BoundedIntText
        self._count = parts.make(number, "how many", "count", value=count, min=4, max=100_000)
        self._concepts = parts.make(number, "G: concepts", "g", value=concepts, min=2, max=4096, tooltip=GLOSSARY["G"])
        self._units = parts.make(number, "K: units", "max-units", value=units, min=2, max=64, tooltip=GLOSSARY["K"])
        self._go = parts.make_button(
            "disentangle",
            "disentangle",
            self._press,
            button_style="primary",
            tooltip="load both and split the channels",
        )
        self._bar = parts.make(
            ipywidgets.FloatProgress, "", "progress", max=1.0, layout={"width": "60%", "display": "none"}
        )
        self._work: Work | None = None
        self._task: asyncio.Task[None] | None = None
        self._log = ipywidgets.Output().add_class("elude-log")
        self._tabs = ipywidgets.Tab().add_class("elude-tabs")
        self._tabs.observe(lambda change: self._open_tab(change["new"]), "selected_index")
        form = [
            parts.make_row(self._model, self._images),
            parts.make_row(self._count, self._concepts),
            parts.make_row(self._units, self._go),
        ]
        self._form = ipywidgets.VBox(form).add_class("elude-form")
        self._finished = parts.make_place("finished")
        self._filling = False
        self._made_with: str | None = None  # the call that makes what is shown
        self._wanted: tuple[str, dict[str, Any]] | None = None  # to be opened when there are panels
        step = {"layout": {"width": "auto"}, "disabled": True}
        back, forward = lambda: self._step(Selection.back), lambda: self._step(Selection.forward)
        hint = "Back to what was chosen before, in all panels"
        self._back = parts.make_button("\N{LEFTWARDS ARROW} back", "back", back, tooltip=hint, **step)
        hint = "Forward again, after going back"
        self._forward = parts.make_button("forward \N{RIGHTWARDS ARROW}", "forward", forward, tooltip=hint, **step)
        self._line = CopyButton(label="copy the line that opens this").add_class("elude-line")
        self._steps = parts.make_row(self._back, self._forward, self._line).add_class("elude-steps")
        self._steps.layout.display = "none"
        self.children = (self._form, self._status, self._bar, self._log, self._steps, self._tabs)
        if gallery is not None:
            self._made_with = _GIVEN
            self.take(gallery)
        else:
            self._tabs.children, self._tabs.titles = (self._finished,), ("Example",)
            self._tabs.selected_index = 0
            self._introduce("Press “disentangle” to make yours.")
            self.say("Choose a model and images, then press “disentangle”.")

    def run(self, *, wait: bool | None = None) -> Workbench:
        """Load the model and the images that the form names, disentangle, and show the panels.

        An error is reported in the status line; then the panels stay as they were. So does everything if it is running
        already.

        Parameters
        ----------
        wait
            Whether to return only when the panels are there. By default not in a notebook that somebody looks at: the
            work goes on in a thread, the page answers and shows a finished example meanwhile. Scripts, and programs
            that run a notebook and close it, wait.
        """
        if self._work is not None:
            self.say("It is running already; press “stop” first to begin anew.", error=True)
            return self
        loop = None if wait else find_loop() if wait is None else asyncio.get_running_loop()
        make, call = self._maker(), self._call()
        if loop is not None:
            self._begin(make, call, loop)
            return self
        self._go.disabled = True
        self.say(f"{self._model.value}: loading …")
        self._log.clear_output()
        try:
            with self._log, self.guarded():  # in this order: an Output shows errors itself and keeps them
                gallery = make()
                self._log.clear_output()
                self._made_with = call
                self.take(gallery)
        finally:
            self._go.disabled = False
        return self

    def show(self, title: str = "Channels", **chosen: Any) -> Workbench:
        """Open a panel and choose what all panels show; at once, or when the result that is being made is there.

        Parameters
        ----------
        title
            Of the panel: ``"Channels"``, ``"Concepts"``, ``"Image"``, ``"Steering"`` or ``"Intruder quiz"``.
        **chosen
            ``channel``, ``unit``, ``concepts``, ``image``, ``patch``: see `Selection.choose`.

        Raises
        ------
        ValueError
            If there is no such panel.
        TypeError, TraitError
            If ``chosen`` names something else, or what does not exist; while a result is being made, the panel says so
            when it is there.
        """
        if title not in self._makers():
            raise ValueError(f"There is no panel {title!r}; there are {', '.join(self._makers())}.")
        check_names(chosen)
        if self.gallery is None or self._work is not None:
            self._wanted = title, chosen
        else:
            selection_of(self.gallery).choose(**chosen)
            self._show_tab(title)
        return self

    @property
    def selection(self) -> Selection | None:
        """What is chosen in all panels; None before the first discovery."""
        return None if self.gallery is None else selection_of(self.gallery)

    def code(self) -> str:
        """Return a line that opens the same again: the model, the images, the panel and what is chosen.

        K, rho and orders of a panel, sliders of the steering and pictures of one's own are not in it. Of a workbench
        that was given a ``gallery``, the line asks for a variable of that name.
        """
        title, chosen = self._wanted or ("Channels", {})
        if self.gallery is not None and self._tabs.selected_index is not None:
            title = self._tabs.titles[self._tabs.selected_index]
            chosen = selection_of(self.gallery).state.chosen()
        arguments = ", ".join([repr(title), *(f"{name}={value!r}" for name, value in chosen.items())])
        run = "" if self._made_with == _GIVEN else ".run()"
        return f"{self._made_with or self._call()}{run}.show({arguments})"

    def _call(self) -> str:
        """Return the call that makes a workbench with what the form says now."""
        numbers = {"count": self._count, "concepts": self._concepts, "units": self._units}
        written = [f"{name}={control.value}" for name, control in numbers.items()]
        return f"Workbench({self._model.value!r}, {self._images.value!r}, {', '.join(written)}, seed={self._seed})"

    def _step(self, go: Callable[[Selection], None]) -> None:
        with self.guarded():
            if self.selection is not None:
                go(self.selection)

    def _show_steps(self, _: object = None) -> None:
        """Have the buttons and the line of code say what is chosen now."""
        if self.selection is not None:
            self._back.disabled = not self.selection.can_go_back
            self._forward.disabled = not self.selection.can_go_forward
            self._line.text = self.code()

    def _press(self) -> None:
        if self._work is None:
            self.run()
        else:
            self._work.stop()
            self.say("Stopping …")

    def _maker(self) -> Callable[[], Gallery]:
        """Return what makes the gallery from what the form says now; it touches no widget, so that a thread may run it.

        The model is loaded anew each time: no other thread has it.
        """
        name, source, count = self._model.value, self._images.value, self._count.value
        settings = {"concepts": self._concepts.value, "units": self._units.value, "seed": self._seed}

        def make() -> Gallery:
            model = load_model(name)
            photos = load_images(source, count=count)
            discover, held_out = photos.without_copies().split(0.5, seed=self._seed)
            say(f"{model.name}: disentangling on {counted(len(discover), 'image')} …")
            split = disentangle(model, discover, **settings)
            if discover.labels is not None and len(set(discover.labels)) > 1:
                say("Naming concepts after the labels …")
                split = split.with_names(name_concepts(split, discover).names)
            say(f"Running {counted(len(held_out), 'image')} to look at …")
            return Gallery(split, held_out).fill()

        return make

    # ---------------------------------------------------------- in the background

    def _begin(self, make: Callable[[], Gallery], call: str, loop: asyncio.AbstractEventLoop) -> None:
        self._introduce(f"Yours is being made: {self._model.value} on {self._images.value}.")
        self._go.description, self._go.button_style = "stop", "warning"
        self._bar.value, self._bar.layout.display = 0.0, ""
        self.say(f"{self._model.value}: loading …")
        self._work = Work(make, self._show_progress, loop)
        self._task = loop.create_task(self._finish(self._work, call))

    async def _finish(self, work: Work, call: str) -> None:
        try:
            with self.guarded():
                try:
                    gallery = await work.result
                    self._made_with = call
                    self.take(gallery)
                except Stopped:
                    self.say("Stopped. Press “disentangle” to begin anew.")
                    self._introduce("Press “disentangle” to make yours.")
        finally:
            self._work = None
            self._go.description, self._go.button_style = "disentangle", "primary"
            self._bar.layout.display = "none"
        self.stored.update()

    def _show_progress(self, text: str, share: float | None) -> None:
        self.say(text)
        if share is not None:
            self._bar.value = share

    def _introduce(self, then: str) -> None:
        """Say above the example that it is one, and what becomes of the reader's own."""
        if self.gallery is None:
            shown = example()
            self._note = f"This is a finished example: {shown.model} on the {shown.source}. {then}"
            self._finished.value = shown.html(self._note)

    # ------------------------------------------------------------------- panels

    def take(self, gallery: Gallery) -> None:
        """Show the panels on a gallery."""
        if self.selection is not None:
            self.selection.unobserve(self._show_steps, "state")
        self.set_trait("gallery", open_gallery(gallery, None))
        self._finished.value = ""  # 1.5 MB that would be kept in the notebook
        self.panels = {}
        titles = tuple(self._makers())
        with parts.holding(self, "_filling"):  # new tabs choose the first of them
            self._tabs.children, self._tabs.titles = tuple(ipywidgets.VBox() for _ in titles), titles
        selection_of(gallery).observe(self._show_steps, "state")
        self._steps.layout.display = ""
        split, count = gallery.split, counted(len(gallery.images), "image")
        self.say(
            f"{split.model.name}: split on {counted(split.settings.images, 'image')}, and {count} from "
            f"{gallery.images.source} to look at"
        )
        (title, chosen), self._wanted = self._wanted or ("Channels", {}), None
        with self.guarded():  # what was asked for before may not exist
            selection_of(gallery).choose(**chosen)
        self._show_tab(title)

    def _show_tab(self, title: str) -> None:
        place = self._tabs.titles.index(title)
        if self._tabs.selected_index == place:  # else the tab is opened when this changes
            self._open_tab(place)
        self._tabs.selected_index = place

    def _makers(self) -> dict[str, Callable[[], GalleryPanel]]:
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
        if index is None or index >= len(makers) or self._filling:
            return
        title = list(makers)[index]
        for name, panel in self.panels.items():
            panel.hide(hidden=name != title)
        if title not in self.panels:
            with self.guarded():
                self.panels[title] = makers[title]()
                self.panels[title].stored = self.stored  # which has all panels that were opened
                self._tabs.children[index].children = (self.panels[title],)
        self._show_steps()
        self.stored.soon()

    def static_html(self) -> Markup:
        """Return the panels that were opened, one below the other."""
        if self.gallery is None:
            return example().html(self._note, most=_STORED)
        return parts.fill("workbench.html", panels=[(name, each.static_html()) for name, each in self.panels.items()])


def _fit_head(gallery: Gallery) -> Any:
    """Return a probe fitted on the gallery's own images, or None without labels."""
    if gallery.labels is None or len(set(gallery.labels)) < 2:
        return None
    return fit_on_outputs(gallery.features, list(gallery.labels))
