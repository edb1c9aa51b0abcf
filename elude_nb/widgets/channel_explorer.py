"""ChannelExplorer: pick a channel and see it come apart; turn K and rho and see what they do."""

from __future__ import annotations

import html
from typing import Any

import ipywidgets
import pandas as pd
import torch
import traitlets

from elude_nb.core.result import Disentanglement
from elude_nb.core.strategies import agreement_of, strongest_concepts
from elude_nb.data.images import Images
from elude_nb.figures.html import PALETTE, depth_chart, exemplar_grid
from elude_nb.interpret.exemplars import Exemplars
from elude_nb.interpret.gallery import ChannelView, Gallery
from elude_nb.widgets.panel import Calm, GalleryPanel, open_gallery, picture

MOST_UNITS = 16  # more rows of pictures than that nobody looks at


class ChannelExplorer(GalleryPanel):
    """Pick a channel and see it come apart: images, heat maps, where its contributions arise, and how alike they are.

    Parameters
    ----------
    gallery
        A `Gallery`, or a `Disentanglement` (then ``images`` are needed).
    images
        Images to look at, if ``gallery`` is a split.
    scores
        From `elude_nb.score`; its scores of channels can then be sorted by.
    count, rows
        How many images of each unit, and at most how many sub-units.

    Attributes
    ----------
    channel
        The channel that is shown (trait, settable).
    units, shared
        K and rho (traits, settable); the channel that is shown is routed anew with them.
    order
        What the channels are sorted by (trait, settable): one of `orders`.
    view
        The `ChannelView` that is shown (trait, read-only).
    exemplars
        Its `Exemplars` (trait, read-only), or None if it was left alone.

    Examples
    --------
    ``ChannelExplorer(split, held_out)``
    """

    channel = traitlets.Int(help="the channel that is shown")
    units = traitlets.Int(8, help="K: at most so many sub-units")
    shared = traitlets.Float(0.8, help="rho: where the second best owner exceeds rho times the best, it is shared")
    order = traitlets.Unicode(help="what the channels are sorted by")
    view = traitlets.Instance(ChannelView, allow_none=True, read_only=True)
    exemplars = traitlets.Instance(Exemplars, allow_none=True, read_only=True)

    def __init__(
        self,
        gallery: Gallery | Disentanglement,
        images: Images | None = None,
        *,
        scores: pd.DataFrame | None = None,
        count: int = 6,
        rows: int = 5,
    ) -> None:
        super().__init__(open_gallery(gallery, images))
        self._count, self._rows = count, rows
        split = self.gallery.split
        self.orders: dict[str, list[int]] = _orders(split, scores)
        self._listed: list[int] = []
        self._build()
        self.set_trait("units", split.settings.units)
        self.set_trait("shared", split.settings.shared)
        self.order = next(iter(self.orders))
        self.channel = self._listed[0]
        self.observe(self._show, ["channel", "units", "shared"])
        self.begin()

    # ------------------------------------------------------------------- parts

    def _build(self) -> None:
        settings = self.gallery.split.settings
        wide, label = ipywidgets.Layout(width="340px"), {"description_width": "90px"}
        self._order = ipywidgets.Dropdown(
            options=list(self.orders), description="sorted by", layout=wide, style=label
        ).add_class("elude-order")
        self._place = ipywidgets.IntSlider(
            description="place", min=1, max=len(self.gallery.split.channels), layout=wide, style=label
        ).add_class("elude-place")
        self._search = ipywidgets.Text(
            description="search",
            placeholder="a channel's number, or a concept's name",
            continuous_update=False,
            layout=wide,
            style=label,
        ).add_class("elude-search")
        self._k = ipywidgets.IntSlider(
            settings.units, 2, max(MOST_UNITS, settings.units), description="K: units", layout=wide, style=label
        ).add_class("elude-k")
        self._rho = ipywidgets.FloatSlider(
            settings.shared, min=0, max=1, step=0.05, description="rho: shared", layout=wide, style=label
        ).add_class("elude-rho")
        self._reset = ipywidgets.Button(description="as discovered", tooltip="K and rho as in the split").add_class(
            "elude-reset"
        )
        self._grid, self._table = picture("elude-channel"), picture("elude-units")
        calm_place = Calm(lambda place: self.set_trait("channel", self._listed[place - 1]))
        calm_k = Calm(lambda value: self.set_trait("units", value))
        calm_rho = Calm(lambda value: self.set_trait("shared", round(value, 4)))
        self._order.observe(lambda change: self.set_trait("order", change["new"]), "value")
        self._place.observe(lambda change: calm_place(change["new"]), "value")
        self._k.observe(lambda change: calm_k(change["new"]), "value")
        self._rho.observe(lambda change: calm_rho(change["new"]), "value")
        self._search.observe(lambda change: self.search(change["new"]), "value")
        self._reset.on_click(lambda _: self.reset())
        self.children = (
            ipywidgets.HBox([self._order, self._place], layout={"flex_flow": "row wrap"}),
            ipywidgets.HBox([self._search, self._k], layout={"flex_flow": "row wrap"}),
            ipywidgets.HBox([self._rho, self._reset], layout={"flex_flow": "row wrap"}),
            self._status,
            self._bar,
            self._grid,
            self._table,
        )

    # ------------------------------------------------------------------ actions

    def search(self, text: str) -> None:
        """Go to the channel of that number, or list the channels with sub-units of a concept of that name.

        An empty text lists all channels again. What is not found is said in the status line.
        """
        text = text.strip()
        split = self.gallery.split
        if text.isdecimal():
            if int(text) >= split.site.channels:
                self.say(f"There is no channel {text}; there are {split.site.channels}, from 0.", error=True)
            else:
                self.channel = int(text)
            return
        allowed = set(range(split.site.channels))
        if text:
            concepts = [c for c, name in split.names.items() if text.lower() in name.lower()]
            rows = split.units[split.units["concept"].isin(concepts)]
            allowed = set(rows["channel"].tolist())
            if not allowed:
                known = ", ".join(sorted(set(split.names.values()))) or "none; see with_names and name_concepts"
                self.say(f"No concept with a name like {text!r} has sub-units. Names: {known}.", error=True)
                return
        self._list([channel for channel in self.orders[self.order] if channel in allowed])
        self.channel = self._listed[0]
        self.say(f"{len(self._listed)} channels" + (f" with sub-units of {text!r}" if text else ""))

    def reset(self) -> None:
        """Take K and rho back to what they were in the discovery."""
        settings = self.gallery.split.settings
        with self.hold_trait_notifications():
            self.units, self.shared = settings.units, settings.shared

    def _list(self, channels: list[int]) -> None:
        self._listed = channels
        self._place.max = len(channels)

    @traitlets.validate("channel")
    def _valid_channel(self, proposal: Any) -> int:
        d = self.gallery.split.site.channels
        if not 0 <= proposal["value"] < d:
            raise traitlets.TraitError(f"channel={proposal['value']}: there are {d}, from 0.")
        return int(proposal["value"])

    @traitlets.validate("units")
    def _valid_units(self, proposal: Any) -> int:
        if not 2 <= proposal["value"] <= self._k.max:
            raise traitlets.TraitError(f"units={proposal['value']} must be between 2 and {self._k.max}.")
        return int(proposal["value"])

    @traitlets.validate("shared")
    def _valid_shared(self, proposal: Any) -> float:
        if not 0 <= proposal["value"] <= 1:
            raise traitlets.TraitError(f"shared={proposal['value']} must be between 0 and 1.")
        return float(proposal["value"])

    @traitlets.validate("order")
    def _valid_order(self, proposal: Any) -> str:
        if proposal["value"] not in self.orders:
            raise traitlets.TraitError(f"order={proposal['value']!r} must be one of {list(self.orders)}.")
        return str(proposal["value"])

    @traitlets.observe("order")
    def _sort(self, change: Any) -> None:
        self._order.value = change["new"]
        kept = set(self._listed) or set(range(self.gallery.split.site.channels))
        self._list([channel for channel in self.orders[change["new"]] if channel in kept])
        if change["old"]:
            self.channel = self._listed[0]

    # -------------------------------------------------------------------- paint

    def _show(self, _: object = None) -> None:
        with self.guarded():
            self.refresh()

    def refresh(self) -> None:
        """Paint the channel anew."""
        view = self.gallery.channel(self.channel, units=self.units, shared=self.shared)
        self.set_trait("view", view)
        whole = len(view.units) == 1
        count = min(self._count, self.gallery.ready)
        found = self.gallery.exemplars(view, count=count, units=self._rows)
        self.set_trait("exemplars", found)
        colours = ["currentColor", *(PALETTE[i % len(PALETTE)] for i in range(len(found.units) - 1))]
        self._grid.value = (
            f'<h4 style="margin:0.4em 0">Channel {self.channel}{": " + view.reason if whole else ""}</h4>'
            + exemplar_grid(found, colours)
        )
        self._table.value = _table(view, self.gallery.depths(view), found, dict(zip(found.units, colours, strict=True)))
        self._follow()
        if self.gallery.ready < len(self.gallery.images):
            self.say(f"{self.gallery.ready} of {len(self.gallery.images)} images are there; the others are coming.")
        else:
            parts = "left whole" if whole else f"{len(view.units) - 1} sub-units"
            self.say(f"Channel {self.channel}: {parts}, on {self.gallery.ready} images.")

    def _follow(self) -> None:
        """Have the controls say what is shown, whoever changed it."""
        if self.channel in self._listed:
            self._place.value = self._listed.index(self.channel) + 1
        self._k.value, self._rho.value = self.units, self.shared

    def static_html(self) -> str:
        """Return the channel that is shown, as it is."""
        return f"{self._grid.value}{self._table.value}"


def _table(view: ChannelView, depths: dict[int, pd.DataFrame], exemplars: Exemplars, colours: dict[int, str]) -> str:
    """Return the table of a channel's units, with a small chart of the blocks in which each arises."""
    alike = dict(zip(exemplars.units, exemplars.similarity, strict=True))
    rows = []
    columns = [view.units[name].tolist() for name in ("unit", "concept", "name", "sources", "share_of_variance")]
    for unit, concept, name, sources, share in zip(*columns, strict=True):
        title = str(unit) if unit else "whole channel" if len(view.units) == 1 else "shared unit"
        meaning = "" if pd.isna(concept) else html.escape(f"{concept} {name}")
        similarity = f"{alike[unit]:.2f}" if unit in alike else ""
        chart = depth_chart(depths[unit]) if unit in depths else ""
        rows.append(
            f'<tr><th scope="row" style="color:{colours.get(unit, "inherit")}">{title}</th>'
            f"<td>{meaning}</td><td>{sources:,}</td><td>{share:.2f}</td><td>{similarity}</td><td>{chart}</td></tr>"
        )
    head = "".join(
        f'<th scope="col">{text}</th>'
        for text in ("unit", "concept", "sources", "share_of_variance", "alike", "contributions by block")
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<div style="overflow-x:auto">{table}</div>'


def _orders(split: Disentanglement, scores: pd.DataFrame | None) -> dict[str, list[int]]:
    """Return the channels in different orders; those that were left alone come last."""
    whole = ~split.channels["split"]
    orders = {
        "how unlike its concepts are": _sorted(_unlikeness(split), whole),
        "variance": _sorted(split.channels["variance"], whole),
        "number": list(range(split.site.channels)),
    }
    if scores is not None:
        mine, before = (
            scores[scores["kind"] == kind].groupby("channel").mean(numeric_only=True)
            for kind in ("sub-unit", "channel")
        )
        for column in before.columns:
            if column in mine.columns and pd.api.types.is_float_dtype(before[column]):
                gain = (mine[column] - before[column]).reindex(range(split.site.channels))
                orders[f"gain in {column}"] = _sorted(gain.fillna(-float("inf")), whole)
    return orders


def _sorted(values: pd.Series[Any], last: pd.Series[bool]) -> list[int]:
    table = pd.DataFrame({"last": last.to_numpy(), "value": -values.to_numpy()})
    return [int(channel) for channel in table.sort_values(["last", "value"], kind="stable").index]


def _unlikeness(split: Disentanglement) -> pd.Series[float]:
    """Return for each channel 1 less the agreement of the concepts that drive it, as the routing weighs them."""
    directions = split.book.directions()
    found = []
    for values, concepts in zip(*strongest_concepts(split.book, split.settings.units), strict=True):
        strength = values.clamp(min=0)
        enough = int((strength > 0).sum()) > 1
        found.append(1 - agreement_of(strength, directions[concepts]) if enough else 0.0)
    return pd.Series(torch.tensor(found).numpy())
