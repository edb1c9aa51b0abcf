"""What a notebook keeps of a panel for when it has no kernel: its pictures as they were last.

A panel is displayed as two outputs: the widget, and the HTML of its static fallback. Where the widget lives, a rule of
style hides the other; where it does not, the page says "Error displaying widget" in its place, which a rule hides, too.
In notebooks that are not trusted, pages leave rules out; then the HTML is seen, which is what is wanted.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from IPython.display import display, update_display
from markupsafe import Markup

from elude_nb.widgets import parts

PAUSE = 3.0  # seconds for which a panel must rest before it is stored anew


class Stored:
    """The second output of a panel.

    Parameters
    ----------
    name
        Of the panel, unlike all others: the widget has the class ``elude-live-{name}``.
    kind
        What it is, for pages that show text only.
    make
        Makes the HTML.
    """

    def __init__(self, name: str, kind: str, make: Callable[[], Markup]) -> None:
        self._name, self._kind, self._make = name, kind, make
        self._shown = False
        self.soon = parts.debounce(self.update, PAUSE)

    def show(self) -> None:
        """Display it; voila keeps no outputs."""
        if not os.environ.get("SERVER_SOFTWARE", "").startswith("voila"):
            self._shown = True
            display(self._bundle(), raw=True, display_id=f"elude-{self._name}")

    def update(self) -> None:
        """Have it show what the panel shows now, if it was displayed."""
        if self._shown:
            update_display(self._bundle(), raw=True, display_id=f"elude-{self._name}")

    def _bundle(self) -> dict[str, Any]:
        text = parts.fill("stored.html", name=self._name, content=self._make())
        plain = f"{self._kind}: a panel of elude_nb, for notebooks that are looked at in a browser"
        return {"text/html": str(text), "text/plain": plain}
