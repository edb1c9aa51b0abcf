"""What all widgets have in common: a spoken status line, calm sliders, clear messages, and a face without a kernel."""

from __future__ import annotations

import asyncio
import html
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ipywidgets
import traitlets

from elude_nb.core.result import Disentanglement
from elude_nb.data.images import Images
from elude_nb.interpret.gallery import Gallery

FIRST_IMAGES = 8  # are run before the first paint: about a second for a ViT-S on two cores
PAUSE = 0.12  # seconds for which a slider must rest before anything is computed
_EXPECTED = (ValueError, TypeError, LookupError, OSError, RuntimeError, traitlets.TraitError)


class Panel(ipywidgets.VBox):
    """A widget with a status line, and with a static face for pages that have no kernel.

    Subclasses say what they show without a kernel in `static_html`.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._status = ipywidgets.HTML()
        self._status.add_class("elude-status")
        self.say("")

    def say(self, text: str, *, error: bool = False) -> None:
        """Show a message; screen readers read it aloud."""
        colour = "color:var(--jp-error-color1,#b00020)" if error else "color:var(--jp-ui-font-color2,#666)"
        role = "alert" if error else "status"
        self._status.value = f'<div role="{role}" style="min-height:1.4em;{colour}">{html.escape(text)}</div>'

    @property
    def message(self) -> str:
        """Return what the status line says."""
        return html.unescape(self._status.value.partition('">')[2].rpartition("</div>")[0])

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Turn the errors that input can cause into a message; others are bugs and go on their way."""
        try:
            yield
        except _EXPECTED as error:
            self.say(str(error), error=True)

    def static_html(self) -> str:
        """Return what is to be seen without a kernel."""
        raise NotImplementedError

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        found = super()._repr_mimebundle_(**kwargs)
        bundle, metadata = found if isinstance(found, tuple) else (found, {})
        if bundle is not None:
            note = "<p><small>This is a still picture of a widget; with a running kernel it can be used.</small></p>"
            bundle = {**bundle, "text/html": self.static_html() + note}
        return (bundle, metadata) if isinstance(found, tuple) else bundle


class GalleryPanel(Panel):
    """A panel over a `Gallery` that may still be filling: it paints at once and again when all images are there.

    In a running kernel the images are run a few at a time between other work; elsewhere all at once.
    """

    def __init__(self, gallery: Gallery, **settings: Any) -> None:
        super().__init__(**settings)
        self.gallery = gallery
        self._bar = ipywidgets.IntProgress(
            max=len(gallery.images), description="images", layout={"width": "60%", "display": "none"}
        )
        self._bar.add_class("elude-progress")
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Have enough images for a first paint, paint, and see to the others."""
        steps = self.gallery.steps(4)
        while self.gallery.ready < min(FIRST_IMAGES, len(self.gallery.images)):
            next(steps)
        self.refresh()
        if self.gallery.ready == len(self.gallery.images):
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.gallery.fill(progress=False)
            self.refresh()
        else:
            self._task = loop.create_task(self._fill())

    def refresh(self) -> None:
        """Paint anew; called when more images are there."""
        raise NotImplementedError

    async def _fill(self) -> None:
        self._bar.layout.display = ""
        for _ in self.gallery.steps(4):  # each step is about half a second, and the kernel answers in between
            self._bar.value = self.gallery.ready
            await asyncio.sleep(0.02)
        self._bar.layout.display = "none"
        self.refresh()


class Calm:
    """Call a function only when its caller has been quiet for a moment, with the last arguments.

    Without a running event loop (in a script, in a test) it is called at once.
    """

    def __init__(self, function: Callable[..., object], seconds: float = PAUSE) -> None:
        self._function, self._seconds = function, seconds
        self._waiting: asyncio.TimerHandle | None = None

    def __call__(self, *args: Any) -> None:
        """Call soon, and forget an earlier call that still waits."""
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._function(*args)
        else:
            self._waiting = loop.call_later(self._seconds, self._function, *args)


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


def picture(cls: str) -> ipywidgets.HTML:
    """Return an empty place for HTML, with a class by which style sheets and tests find it."""
    place = ipywidgets.HTML()
    place.add_class(cls)
    return place
