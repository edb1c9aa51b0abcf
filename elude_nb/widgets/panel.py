"""What all panels have in common: a status line, messages instead of errors, a static fallback."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ipywidgets
import traitlets
from IPython.display import display
from markupsafe import Markup

from elude_nb._util.html import look_css
from elude_nb.core.result import Disentanglement
from elude_nb.data.images import Images
from elude_nb.interpret.gallery import Gallery
from elude_nb.widgets import parts
from elude_nb.widgets.controls import Presence
from elude_nb.widgets.selection import Selection, State, selection_of
from elude_nb.widgets.stored import Stored

FIRST_IMAGES = 8  # are run before the first paint: about a second for a ViT-S on two cores
_STOPPED = (Path(__file__).parent / "stopped.css").read_text("utf-8")
EXPECTED = (ValueError, TypeError, LookupError, OSError, RuntimeError, traitlets.TraitError)


class Panel(ipywidgets.VBox):
    """A widget with a status line, and with a static fallback for pages that have no kernel.

    Subclasses return the fallback from `static_html`. A saved notebook keeps it as the panel was last (`Stored`), and
    where a kernel has stopped the panel says so, by a rule of style.
    """

    _style = traitlets.Any()
    _presence = traitlets.Instance(Presence, ())

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.add_class("elude-look").add_class("elude-panel").add_class(f"elude-live-{self.model_id}")
        self.stored = Stored(self.model_id, type(self).__name__, self.static_html)
        self._status = parts.make_place("status")
        self.say("")

    @traitlets.validate("children")
    def _with_style(self, proposal: Any) -> tuple[Any, ...]:
        """Put the style of all panels, and what tells whether they are in the page, before what is shown."""
        before = self._style, self._presence
        shown = tuple(child for child in proposal["value"] if child not in before)
        return (*before, *shown) if shown else ()

    @traitlets.default("_style")
    def _make_style(self) -> Any:
        return ipywidgets.HTML(f"<style>{look_css()}{_STOPPED}</style>", layout={"display": "none"})

    def say(self, text: str, *, error: bool = False) -> None:
        """Show a message in the status line; screen readers read it aloud."""
        self.message = text
        self._status.value = parts.fill("status.html", text=text, error=error)
        self.stored.soon()  # a panel says something whenever it shows something else

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Show an error in the status line. What input can cause ends there; others are bugs and are raised, too."""
        try:
            yield
        except EXPECTED as error:
            self.say(_describe(error), error=True)
        except Exception as error:
            self.say(_describe(error), error=True)
            raise

    def later(self, function: Callable[..., object]) -> Callable[..., None]:
        """Return ``function`` debounced; nobody waits for it then, so its errors are shown in the status line."""

        def call(*arguments: Any) -> None:
            with self.guarded():
                function(*arguments)

        return parts.debounce(call)

    def static_html(self) -> Markup:
        """Return what a page without a kernel shows."""
        raise NotImplementedError

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        bundle = super()._repr_mimebundle_(**kwargs)
        return {**bundle, "text/html": str(parts.fill("fallback.html", content=self.static_html()))}

    def _ipython_display_(self) -> None:
        """Display the widget, and what is kept of it as an output of its own."""
        display({**super()._repr_mimebundle_(), "text/plain": ""}, raw=True)
        self.stored.show()


class GalleryPanel(Panel):
    """A panel over a `Gallery` that may still be filling: it paints at once, and again when all images are ready.

    In a running kernel the images are run a few at a time between other work; elsewhere all at once. All panels on a
    gallery share what is chosen, ``panel.selection``: subclasses hand what is chosen in them to `share`, and show in
    `take` what is chosen elsewhere.

    Attributes
    ----------
    linked
        Whether it shares what is chosen (trait, settable): set it to False to see two channels side by side.
    """

    linked = traitlets.Bool(default_value=True, help="whether what is chosen is shared with other panels")

    def __init__(self, gallery: Gallery | Disentanglement, images: Images | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        self.gallery = open_gallery(gallery, images)
        self.selection: Selection = selection_of(self.gallery)
        self._taken = State()  # what of the selection it shows
        self._hidden = False  # in a tab that is not open
        self._shares = False  # whether what changes in it is a choice of the user's
        self._choosing = False  # while it makes one
        self._follow_soon = self.later(self._take_selection)
        self._presence.observe(lambda _: self.follow(soon=True), "views")
        self.observe(lambda _: self.follow(), "linked")
        hidden = {"width": "60%", "display": "none"}
        self._bar = parts.make(
            ipywidgets.IntProgress, "images", "progress", max=len(self.gallery.images), layout=hidden
        )
        self._task: asyncio.Task[None] | None = None
        self._failure = ""  # why the task ended before all images were ready

    def rename(self, names: Mapping[int, str]) -> None:
        """Name concepts of the gallery's split, and paint all panels on the gallery anew."""
        self.gallery.split = self.gallery.split.with_names(names)
        for panel in list(self.selection.panels):
            if isinstance(panel, GalleryPanel):
                with panel.guarded(), panel.unshared():
                    panel.retitle()

    def retitle(self) -> None:
        """Paint what concepts are called now."""
        self.refresh()

    # ------------------------------------------------------- the shared selection

    def listen(self) -> None:
        """Observe the panel's own traits; called once it shows what is chosen."""

    def take(self, state: State, changed: set[str]) -> None:
        """Show what is chosen; ``changed`` has the names of what was not shown yet."""

    def best_channel(self, concepts: Sequence[int]) -> int | None:
        """Return the channel that it would show first of those with sub-units of these concepts, if it shows any."""

    def share(self, **what: Any) -> None:
        """Choose something for all panels, as a user did in this one; it shows that already."""
        if not self._shares or not self.linked:
            return
        with parts.holding(self, "_choosing"):
            self.selection.choose(**what, soon=True)
        # To follow its own choice would set its controls while the user moves them on.
        self._taken = replace(self._taken, **{name: getattr(self.selection.state, name) for name in what})
        self.follow(soon=True)

    def unshared(self) -> AbstractContextManager[None]:
        """Have what changes in the panel chosen for no other: nobody has chosen it."""
        return parts.holding(self, "_shares", value=False)

    def follow(self, *, soon: bool = False) -> None:
        """Show what is chosen now, or soon; a panel that nobody sees does it when it is seen."""
        if not self.linked or self._hidden or self._choosing or self._presence.views == 0:
            return
        if soon:
            self._follow_soon()
        else:
            with self.guarded():
                self._take_selection()

    def hide(self, *, hidden: bool = True) -> None:
        """Say whether the panel is hidden; it then computes nothing at choices in others."""
        self._hidden = hidden
        self.follow()

    def _take_selection(self) -> None:
        state = self.selection.state
        changed = {name for name, value in vars(state).items() if value != getattr(self._taken, name)}
        self._taken = state
        if changed:
            with self.unshared():
                self.take(state, changed)

    # --------------------------------------------------------- images and painting

    def begin(self) -> None:
        """Run enough images for a first paint, paint what is chosen, and run the others."""
        self.selection.panels.add(self)
        steps = self.gallery.steps(4)
        while self.gallery.ready < min(FIRST_IMAGES, len(self.gallery.images)):
            next(steps)
        self._take_selection()
        self.listen()
        self._paint_and_fill()
        self._shares = True

    def _paint_and_fill(self) -> None:
        if self.gallery.ready == len(self.gallery.images):
            self.complete()
            return
        self.refresh()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.gallery.fill(progress=False)
            self.complete()
        else:
            self._task = loop.create_task(self._fill())

    def refresh(self) -> None:
        """Paint anew; called when more images are ready."""
        raise NotImplementedError

    def complete(self) -> None:
        """Paint anew, now that all images are ready."""
        self.refresh()

    def describe_images(self) -> str:
        """Return how many images are shown, and how many of them the discovery saw, or whether more are coming.

        Where none will come, the error that ended the task is part of it.
        """
        gallery = self.gallery
        taken, given = len(gallery.images), gallery.total
        if gallery.ready < taken:
            others = f"the others were not run: {self._failure}" if self._failure else "the others are coming"
            return f"{gallery.ready} of {taken} images are ready; {others}"
        fits = "" if taken == given else f" ({taken} of {given:,} fit into memory)"
        return f"{gallery.seen}{fits}"

    async def _fill(self) -> None:
        self._bar.layout.display = ""
        error: BaseException | None = None
        try:
            for _ in self.gallery.steps(4):  # each step takes about half a second; the kernel answers in between
                self._bar.value = self.gallery.ready
                await asyncio.sleep(0.02)
        except (Exception, asyncio.CancelledError) as caught:  # noqa: BLE001 - raised below
            error, self._failure = caught, _describe(caught)
        self._bar.layout.display = "none"
        with self.guarded(), self.unshared():
            (self.complete if error is None else self.refresh)()
        if error is not None:
            self.say(self.describe_images(), error=True)
            if not isinstance(error, EXPECTED):
                raise error


def _describe(error: BaseException) -> str:
    """Return what a person reads of an error: its message, and its kind where the message says too little."""
    text = str(error).strip()
    return text if text and isinstance(error, EXPECTED) and not isinstance(error, KeyError) else f"{error!r:.300}"


def open_gallery(gallery: Gallery | Disentanglement, images: Images | None) -> Gallery:
    """Return a gallery as it is, or make one of a split and images.

    Raises
    ------
    TypeError
        If a split comes without images, or a gallery with images.
    """
    if isinstance(gallery, Gallery):
        if images is not None:
            raise TypeError("A gallery has its images already; give no others.")
        return gallery
    if images is None:
        raise TypeError(f"Give a gallery, or a split and images; not a {type(gallery).__name__} alone.")
    return Gallery(gallery, images)
