"""ConceptAtlas: a map of all concepts; choose some to see their images and sub-units, and give them names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import ipywidgets
import pandas as pd
import traitlets
from markupsafe import Markup

from elude_nb.core.result import Disentanglement
from elude_nb.data.images import Images
from elude_nb.figures.concept_map import fill_square
from elude_nb.figures.html import PALETTE, data_uri, top_images
from elude_nb.figures.theme import in_words, words
from elude_nb.interpret.concept_map import cut_thumbnails, lay_out
from elude_nb.interpret.gallery import Gallery
from elude_nb.widgets import parts
from elude_nb.widgets.appearance import appearance
from elude_nb.widgets.controls import ConceptMap
from elude_nb.widgets.panel import GalleryPanel
from elude_nb.widgets.selection import State

_MOST_CONCEPTS = 6  # of those chosen have their images shown
_MOST_UNITS = 12  # are listed
_MOST_STORED = 100  # thumbnails in a page without a kernel: each is 3 kB
_COLUMNS = ["channel", "unit", "concept", "sources", "share_of_variance", "mean_on_concept"]


class ConceptAtlas(GalleryPanel):
    """A map of concepts, near each other if alike: choose one or several, see their top images, and name them.

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
        super().__init__(gallery, images)
        if not self.gallery.has_concepts:
            raise ValueError("These sub-units belong to no concepts across channels; there is no map of them.")
        self._count = count
        self._atlas = lay_out(self.split, seed=seed)
        self._thumbnails: list[str] = []
        self._build()
        self._first = [int(self.split.book.counts.argmax())]
        self.selected = list(self._first)
        traitlets.link((self, "selected"), (self.map, "chosen"))
        self.begin()

    def listen(self) -> None:
        """Observe what is chosen on the map or from Python."""
        self.observe(self._show, "selected")

    def take(self, state: State, changed: set[str]) -> None:
        """Show the concepts that are chosen."""
        if "concepts" in changed:
            self.selected = list(self._first if state.concepts is None else state.concepts)

    @property
    def split(self) -> Disentanglement:
        """The split with these names, as all panels on the gallery have it."""
        return self.gallery.split

    def _build(self) -> None:
        narrow = {"style": {"description_width": "70px"}}
        text: dict[str, Any] = {"continuous_update": False, **narrow}
        self.map = ConceptMap()
        self.map.on_again(lambda: self.share(concepts=self.selected))  # other panels may show something else by now
        self._choice = parts.make(
            ipywidgets.Dropdown, "concept", "concept", self._choose, options=self._titles(), **narrow
        )
        self._name = parts.make(ipywidgets.Text, "name", "name", placeholder="what is it?", **text)
        self._path = parts.make(ipywidgets.Text, "save as", "path", value="named.safetensors", **text)
        self._rename = parts.make_button("name it", "rename", self._take_name, layout={"width": "90px"})
        self._save = parts.make_button("save", "save", self._take_path, layout={"width": "90px"})
        self._concepts, self._table = parts.make_place("concepts"), parts.make_place("sub-units")
        self.children = (
            parts.make_row(self._choice, self._name, self._rename),
            parts.make_row(self._path, self._save, appearance.make_choice(self)),
            self._status,
            self._bar,
            self.map,
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
        self.rename({concept: name})

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Save the split with its names; return the path.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        self.split.save(path)
        return Path(path)

    def _take_name(self) -> None:
        with self.guarded():
            if len(self.selected) != 1:
                raise ValueError(f"Choose one concept to name; {len(self.selected)} are chosen.")
            concept, text = self.selected[0], self._name.value.strip()
            self.name(concept, text)
            self.say(f"Concept {concept} is called {text!r} now." if text else f"Concept {concept} has no name now.")

    def _take_path(self) -> None:
        with self.guarded():
            path = self.save(self._path.value.strip() or "named.safetensors")
            self.say(f"Saved {path}; concepts with a name: {len(self.names)}.")

    def _choose(self, concept: int | None) -> None:
        if concept is not None and [concept] != self.selected:
            self.selected = [concept]

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
            self._paint_chosen()
        self.share(concepts=self.selected)

    def refresh(self) -> None:
        """Paint the map, with thumbnails from the images that are ready, and the chosen concepts."""
        self._thumbnails = [data_uri(crop, None) for crop in cut_thumbnails(self.gallery, 1, 64)[1]]
        self.retitle()

    def retitle(self) -> None:
        """Paint what concepts are called now."""
        self.set_trait("names", dict(self.split.names))
        chosen = list(self.selected)
        self._choice.options = self._titles()  # it then chooses one by itself
        self.selected = chosen
        self._paint_map()
        self._paint_chosen()

    def _paint_map(self) -> None:
        table: Any = self._atlas.concepts.assign(src=self._thumbnails)
        table[["x", "y"]] = fill_square(self._atlas.positions).round(4)
        counts = "{sub_units} sub-units in {channels} channels, {tokens:,} tokens"
        self.map.concepts = [
            {
                "name": words(self.names.get(concept, ""), 30),
                "label": f"{self._title(concept)}; {counts.format(**row)}",
                **{key: row[key] for key in ("x", "y", "src")},
            }
            for concept, row in enumerate(table.to_dict("records"))
        ]

    def _paint_chosen(self) -> None:
        chosen = list(self.selected)
        single = len(chosen) == 1
        self._choice.value = chosen[0] if single else None
        self._name.value = self.names.get(chosen[0], "") if single else ""
        table = self.split.units[self.split.units["concept"].isin(chosen)].reset_index(drop=True)
        self.set_trait("sub_units", table)
        concepts = [
            (self._title(concept), self._top_images(concept, place))
            for place, concept in enumerate(chosen[:_MOST_CONCEPTS])
        ]
        others = max(len(chosen) - _MOST_CONCEPTS, 0)
        self._concepts.value = parts.fill("concepts.html", concepts=concepts, more=others)
        strongest = table.sort_values("mean_on_concept", key=abs, ascending=False)[_COLUMNS].head(_MOST_UNITS)
        self._table.value = parts.fill(
            "sub_units.html",
            columns=[in_words(column) for column in _COLUMNS],
            rows=list(strongest.itertuples(index=False)),
            more=len(table) - len(strongest),
        )
        counted = f"{len(chosen)} concept{'' if single else 's'}"
        self.say(f"{counted}, {len(table)} sub-units; {self.describe_images()}.")

    def _top_images(self, concept: int, place: int) -> Markup:
        maps = self.gallery.concept_maps[..., concept]
        look = {"colour": PALETTE[place % len(PALETTE)], "activation": appearance.activation}
        return top_images(self.gallery, maps, self._count, **look)

    def _title(self, concept: int) -> str:
        return words(self.split.concept_title(concept, number=True), 75)

    def _titles(self) -> list[tuple[str, int]]:
        return [(self._title(concept), concept) for concept in range(len(self.split.book))]

    def static_html(self) -> Markup:
        """Return the map, the chosen concepts and their sub-units."""
        content = Markup(self._concepts.value + self._table.value)  # noqa: S704 - made by templates
        largest = set(self.split.book.counts.argsort(descending=True)[:_MOST_STORED].tolist()) | set(self.selected)
        shown = [concept for number, concept in enumerate(self.map.concepts) if number in largest]
        more = len(self.map.concepts) - len(shown)
        return parts.fill("concept_map.html", concepts=shown, more=more, content=content, side=40, height=360)
