"""How panels show an activation on a photograph: one choice for all panels of the kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import ipywidgets
import traitlets

from elude_nb.figures.html import WAYS
from elude_nb.widgets import parts

if TYPE_CHECKING:
    from elude_nb.widgets.panel import GalleryPanel


class Appearance(traitlets.HasTraits):
    """What all panels look like. There is one: `appearance`.

    Attributes
    ----------
    activation
        How an activation is shown on a photograph (trait, settable): one of `elude_nb.figures.html.WAYS`.
    """

    activation = traitlets.Enum(list(WAYS), "outline")

    def __init__(self) -> None:
        super().__init__()
        self._followers: WeakSet[GalleryPanel] = WeakSet()  # a panel nobody shows any more can be freed

    def make_choice(self, panel: GalleryPanel) -> Any:
        """Return a menu of the ways for a panel, which is painted anew when another one is chosen in any panel."""
        choice = parts.make(
            ipywidgets.Dropdown,
            "activation shown",
            "activation",
            lambda way: self.set_trait("activation", way),
            options=[(name, way) for way, name in WAYS.items()],
            value=self.activation,
            layout={"width": "260px"},
            style={"description_width": "115px"},
        )
        panel.activation_choice = choice
        self._followers.add(panel)
        return choice

    @traitlets.observe("activation")
    def _repaint(self, _: object) -> None:
        for panel in list(self._followers):
            with panel.guarded(), panel.unshared():
                panel.activation_choice.value = self.activation
                panel.retitle()


appearance = Appearance()
