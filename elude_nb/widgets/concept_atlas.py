"""ConceptAtlas: a map of all concepts; brush and click to see their images and sub-units, and give them names."""

from __future__ import annotations

import html
import os
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import traitlets

from elude_nb.core.result import Disentanglement
from elude_nb.data.images import Images
from elude_nb.figures.html import PALETTE, best_images
from elude_nb.interpret.concept_map import lay_out
from elude_nb.interpret.gallery import Gallery
from elude_nb.widgets.panel import GalleryPanel, open_gallery, picture

_MOST_SVG_POINTS = 2000  # above that plotly draws with WebGL
_MOST_SHOWN = 6  # concepts of a brush whose images are shown


class ConceptAtlas(GalleryPanel):
    """A map of concepts, near each other if alike: click one or brush several, see what they like, and name them.

    Parameters
    ----------
    gallery
        A `Gallery`, or a `Disentanglement` (then ``images`` are needed). Its sub-units must belong to concepts.
    images
        Images to look at, if ``gallery`` is a split.
    count
        How many images of each concept.
    seed
        Of the layout.

    Attributes
    ----------
    selected
        The chosen concepts (trait, settable).
    names
        Names of concepts (trait, read-only); see `name`.
    split
        The split with these names.
    sub_units
        A table of the sub-units of the chosen concepts (trait, read-only): rows of ``split.units``.

    Raises
    ------
    ValueError
        If sub-units belong to no concepts across channels.

    Examples
    --------
    ``atlas = ConceptAtlas(split, held_out)``; ``atlas.name(12, "cat's eye")``; ``atlas.save("named.safetensors")``
    """

    selected = traitlets.List(traitlets.Int(), help="the chosen concepts")
    names: Any = traitlets.Dict(key_trait=traitlets.Int(), value_trait=traitlets.Unicode(), read_only=True)
    sub_units = traitlets.Instance(pd.DataFrame, allow_none=True, read_only=True)

    def __init__(
        self, gallery: Gallery | Disentanglement, images: Images | None = None, *, count: int = 8, seed: int = 0
    ) -> None:
        super().__init__(open_gallery(gallery, images))
        if not self.gallery.has_concepts:
            raise ValueError("These sub-units belong to no concepts across channels; there is no map of them.")
        self._count, self._seed = count, seed
        self.split = self.gallery.split
        self.set_trait("names", dict(self.split.names))
        self._build()
        self.observe(self._show, "selected")
        self.selected = [int(self.split.book.counts.argmax())]
        self.begin()

    def _build(self) -> None:
        label = {"description_width": "70px"}
        self.figure = self._map()
        self._choice = ipywidgets.Dropdown(
            options=self._options(), description="concept", style=label, layout={"width": "320px"}
        ).add_class("elude-concept")
        self._name = ipywidgets.Text(
            description="name",
            placeholder="what is it?",
            continuous_update=False,
            style=label,
            layout={"width": "260px"},
        ).add_class("elude-name")
        self._rename = ipywidgets.Button(description="name it", layout={"width": "90px"}).add_class("elude-rename")
        self._path = ipywidgets.Text(
            "named.safetensors", description="save as", continuous_update=False, style=label, layout={"width": "320px"}
        ).add_class("elude-path")
        self._save = ipywidgets.Button(description="save", layout={"width": "90px"}).add_class("elude-save")
        self._concepts, self._table = picture("elude-concepts"), picture("elude-sub-units")
        self._choice.observe(lambda change: self._choose(change["new"]), "value")
        self._rename.on_click(lambda _: self._named())
        self._save.on_click(lambda _: self._saved())
        trace = self.figure.data[0]
        trace.on_click(lambda _, points, __: self._brush(points.point_inds))
        trace.on_selection(lambda _, points, __: self._brush(points.point_inds))
        self.children = (
            ipywidgets.HBox([self._choice, self._name, self._rename], layout={"flex_flow": "row wrap"}),
            ipywidgets.HBox([self._path, self._save], layout={"flex_flow": "row wrap"}),
            self._status,
            self._bar,
            self.figure,
            self._concepts,
            self._table,
        )

    # ------------------------------------------------------------------ actions

    def name(self, concept: int, name: str) -> None:
        """Give a concept a name, or take it away with ``""``.

        Raises
        ------
        TypeError, ValueError
            If there is no such concept, or another bears the name.
        """
        self.split = self.split.with_names({concept: name})
        self.gallery.split = self.split  # so that other panels on this gallery know the name
        self.set_trait("names", dict(self.split.names))
        chosen = list(self.selected)
        self._choice.options = self._options()
        self.selected = chosen
        trace = self.figure.data[0]
        with self.figure.batch_update():
            trace.text = self._texts()
            trace.hovertext = self._hovers()
        self.refresh()

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Save the split with its names; return the path.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        self.split.save(path)
        return Path(path)

    def _named(self) -> None:
        with self.guarded():
            if len(self.selected) != 1:
                raise ValueError(f"Choose one concept to name; {len(self.selected)} are chosen.")
            concept, text = self.selected[0], self._name.value.strip()
            self.name(concept, text)
            self.say(f"Concept {concept} is called {text!r} now." if text else f"Concept {concept} has no name now.")

    def _saved(self) -> None:
        with self.guarded():
            path = self.save(self._path.value.strip() or "named.safetensors")
            self.say(f"Saved {path}; concepts with a name: {len(self.names)}.")

    def _choose(self, concept: int | None) -> None:
        if concept is not None and [concept] != self.selected:
            self.selected = [concept]

    def _brush(self, points: list[int]) -> None:
        if points:
            self.selected = sorted(points)

    @traitlets.validate("selected")
    def _valid_selection(self, proposal: Any) -> list[int]:
        g = len(self.split.book)
        wrong = [concept for concept in proposal["value"] if not 0 <= concept < g]
        if wrong:
            raise traitlets.TraitError(f"There is no concept {wrong[0]}; there are {g}, from 0.")
        return list(proposal["value"])

    # -------------------------------------------------------------------- paint

    def _show(self, _: object) -> None:
        with self.guarded():
            self.refresh()

    def refresh(self) -> None:
        """Paint the chosen concepts."""
        chosen = list(self.selected)
        self._choice.value = chosen[0] if len(chosen) == 1 else None
        self._name.value = self.names.get(chosen[0], "") if len(chosen) == 1 else ""
        table = self.split.units[self.split.units["concept"].isin(chosen)].reset_index(drop=True)
        self.set_trait("sub_units", table)
        self.figure.data[0].selectedpoints = chosen or None
        if self.gallery.ready:
            rows = [self._row(concept, place) for place, concept in enumerate(chosen[:_MOST_SHOWN])]
            more = len(chosen) - _MOST_SHOWN
            self._concepts.value = "".join(rows) + (f"<p>and {more} more</p>" if more > 0 else "")
        self._table.value = _sub_units(table)
        self.say(f"{len(chosen)} concept{'s' * (len(chosen) != 1)}, {len(table)} sub-units.")

    def _row(self, concept: int, place: int) -> str:
        maps, colour = self.gallery.concept_maps[..., concept], PALETTE[place % len(PALETTE)]
        tiles = best_images(self.gallery, maps, self._count, colour=colour)
        return f'<h4 style="margin:0.5em 0 0.2em">{html.escape(self._title(concept))}</h4><div>{tiles}</div>'

    def _title(self, concept: int) -> str:
        name = self.names.get(concept)
        return f"concept {concept}" + (f": {name}" if name else "")

    def _options(self) -> list[tuple[str, int]]:
        return [(self._title(concept), concept) for concept in range(len(self.split.book))]

    # ---------------------------------------------------------------------- map

    def _texts(self) -> list[str]:
        return [self.names.get(concept, "") for concept in range(len(self.split.book))]

    def _hovers(self) -> list[str]:
        owners = self.split.units.groupby("concept")["unit"].count()
        counts = self.split.book.counts.tolist()
        return [
            f"{html.escape(self._title(concept))}<br>{owners.get(concept, 0)} sub-units, {counts[concept]:,} tokens"
            for concept in range(len(counts))
        ]

    def _map(self) -> Any:
        """Return the map; data and layout are handed over at once, since later changes are lost on a page's reload."""
        positions = lay_out(self.split, seed=self._seed).positions
        counts = self.split.book.counts.double().numpy()
        kind = go.Scatter if len(counts) <= _MOST_SVG_POINTS else go.Scattergl
        trace = kind(
            x=positions[:, 0],
            y=positions[:, 1],
            mode="markers+text",
            text=self._texts(),
            textposition="top center",
            textfont={"size": 10},
            hovertext=self._hovers(),
            hoverinfo="text",
            marker={
                "size": 8 + 16 * np.sqrt(counts / counts.max()),
                "color": PALETTE[0],
                "opacity": 0.75,
                "line": {"width": 0},
            },
            selected={"marker": {"color": PALETTE[3], "opacity": 1.0}},
            unselected={"marker": {"opacity": 0.55}},
        )
        layout = {
            "height": 420,
            "margin": {"l": 10, "r": 10, "t": 10, "b": 10},
            "xaxis": {"visible": False},
            "yaxis": {"visible": False, "scaleanchor": "x"},
            "dragmode": "select",
            "clickmode": "event",
            "showlegend": False,
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(128,128,128,0.08)",
            "font": {"color": "#888888"},
        }
        return go.FigureWidget(data=[trace], layout=layout)

    def static_html(self) -> str:
        """Return the chosen concepts and their sub-units, as they are."""
        return f"{self._concepts.value}{self._table.value}"


def _sub_units(table: pd.DataFrame, most: int = 12) -> str:
    """Return the strongest of some sub-units as an HTML table."""
    order = table["mean_on_concept"].abs().sort_values(ascending=False).index[:most]
    shown = table.loc[order, ["channel", "unit", "concept", "sources", "share_of_variance", "mean_on_concept"]]
    more = len(table) - len(shown)
    note = f"<p><small>and {more} more, in .sub_units</small></p>" if more > 0 else ""
    found: str = shown.to_html(index=False, float_format="{:.3f}".format, border=0)
    return found + note
