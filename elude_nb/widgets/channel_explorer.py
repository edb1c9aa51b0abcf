"""ChannelExplorer: pick a channel and see its sub-units; change how many there are and see what that does."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Sequence
from functools import partial
from typing import Any

import ipywidgets
import pandas as pd
import traitlets
from markupsafe import Markup

from elude_nb._util.glossary import GLOSSARY
from elude_nb._util.words import counted
from elude_nb.core.result import Disentanglement
from elude_nb.core.routing import NO_CONCEPT
from elude_nb.core.strategies import agreement_of, strongest_concepts
from elude_nb.data.images import Images
from elude_nb.figures.html import GREY, PALETTE, depth_chart, exemplar_grid
from elude_nb.figures.theme import in_words, words
from elude_nb.interpret.exemplars import Exemplars
from elude_nb.interpret.gallery import ChannelView, Gallery
from elude_nb.interpret.ranking import rank_channels
from elude_nb.scores.overview import mixed_channels
from elude_nb.widgets import parts
from elude_nb.widgets.appearance import appearance
from elude_nb.widgets.controls import Links, Slider
from elude_nb.widgets.panel import GalleryPanel
from elude_nb.widgets.selection import State

MOST_UNITS = 16  # more rows of pictures than anybody looks at
BEST = "how well it comes apart"


class ChannelExplorer(GalleryPanel):
    """Pick a channel and see its sub-units: top images, heat maps, where contributions arise, how alike the images are.

    It opens on the channel that comes apart best: by ``scores``, or else on the gallery's images once all are ready.

    Parameters
    ----------
    gallery
        A `Gallery`, or a `Disentanglement` (then ``images`` are needed).
    images
        Images to look at, if ``gallery`` is a split.
    scores
        From `elude_nb.score`; channels can then be sorted by what their sub-units gain.
    count
        How many images of each unit.
    max_units
        How many sub-units have their images shown, at most.

    Attributes
    ----------
    channel
        The channel that is shown (trait, settable).
    units, shared
        K and rho (traits, settable; rho may be ``None``: nothing is left over); the channel that is shown is routed
        anew with them. Where the split's routing cannot do that, they stay as they are and the panel says why. Their
        controls are in a part of the panel that is closed at first.
    order
        What the channels are sorted by (trait, settable): one of `orders`.
    view
        The `ChannelView` that is shown (trait, read-only).
    exemplars
        Its `Exemplars` (trait, read-only).

    Examples
    --------
    ``ChannelExplorer(split, held_out)``
    """

    channel = traitlets.Int(help="the channel that is shown")
    units = traitlets.Int(8, help="K: at most so many sub-units")
    shared = traitlets.Float(
        None, allow_none=True, help="rho: left over is what has a second owner above rho times the best; None: nothing"
    )
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
        max_units: int = 5,
    ) -> None:
        super().__init__(gallery, images)
        self._count, self._max_units = count, max_units
        self._settings = self.gallery.split.settings
        self._painting = False  # while the panel itself sets its controls
        self._of: Sequence[int] = ()  # the concepts whose channels are listed; all, if none
        self._owned: list[dict[Any, Any]] = []  # sub-units that are shown and have a concept
        self.orders = _orders(self.gallery.split, scores)
        self._listed = next(iter(self.orders.values()))
        self._build()
        self.set_trait("units", self._settings.units)
        self.set_trait("shared", self._settings.shared)
        self.order = next(iter(self.orders))
        self.channel = self._listed[0]
        self.begin()

    def listen(self) -> None:
        """Observe what is chosen by the controls or from Python."""
        self.observe(self._show, ["channel", "units", "shared"])
        self.observe(lambda change: self.share(channel=change["new"]), "channel")

    def take(self, state: State, changed: set[str]) -> None:
        """Show the channel that is chosen, and list those with sub-units of the concepts that are."""
        if "concepts" in changed:
            self._list_channels_of(state.concepts or ())
        if changed & {"channel", "concepts"}:
            channel = self._listed[0] if state.channel is None else state.channel
            if channel not in self._listed:
                self._list_all()
            self.channel = channel
            self._show_place()

    def retitle(self) -> None:
        """Paint what concepts are called now."""
        if self._of:
            self._list_channels_of(self._of)
        self.refresh()

    def best_channel(self, concepts: Sequence[int]) -> int | None:
        """Return the first channel, as they are sorted, that has sub-units of these concepts."""
        allowed = self._channels_of(concepts)
        return next((channel for channel in self.orders[self.order] if channel in allowed), None)

    def complete(self) -> None:
        """Paint anew, now that all images are ready; without scores, put first what comes apart best on them.

        Who has chosen another channel or order meanwhile keeps it.
        """
        first = next(iter(self.orders))
        ranked = [] if first == BEST else rank_channels(self.gallery, k=self._count).index.tolist()
        if not ranked:
            self.refresh()
            self.selection.settle()
            return
        kept = self.order, self.channel
        untouched = kept == (first, self._listed[0]) and self.selection.channel is None
        self.orders = {BEST: [*ranked, *(c for c in self.orders[first] if c not in ranked)], **self.orders}
        before = self.channel
        self._order.options = list(self.orders)  # which chooses the first of them
        if not untouched:
            self.order, self.channel = kept
        if self.channel == before:  # otherwise it was painted when it changed
            self.refresh()
        self.selection.settle()

    def _build(self) -> None:
        k, rho, fixed = self._settings.units, self._settings.shared, not self.gallery.can_reroute
        change_place = self._unless_painting(lambda place: self.set_trait("channel", self._listed[int(place) - 1]))
        change_k = self._unless_painting(lambda value: self.set_trait("units", int(value)))
        self._order = parts.make(
            ipywidgets.Dropdown, "sorted by", "order", partial(self.set_trait, "order"), options=list(self.orders)
        )
        self._place = parts.make(Slider, "place", "place", change_place, min=1, max=len(self._listed), value=1)
        hint = {"placeholder": "a channel's number, or a concept's name", "continuous_update": False}
        self._search = parts.make(ipywidgets.Text, "search", "search", self.search, **hint)
        self._some, self._concepts = (Links().add_class(f"elude-{name}") for name in ("some", "its-concepts"))
        self._some.on_press(lambda _: self._list_all())
        self._concepts.on_press(self._choose_concept)
        most = max(MOST_UNITS, k)
        about = {"hint": GLOSSARY["K"], "disabled": fixed}
        self._k = parts.make(Slider, "K: units", "k", change_k, value=k, min=2, max=most, **about)
        self._rho = parts.make(
            ipywidgets.Dropdown, "left over", "rho", self._choose_shared, options=_left_over(rho), value=rho,
            disabled=fixed, tooltip=GLOSSARY["rho"],
        )  # fmt: skip
        hint = {"tooltip": "as in the split"}
        self._reset = parts.make_button("as discovered", "reset", self.reset, disabled=fixed, **hint)
        self._fixed, self._grid, self._table = (parts.make_place(name) for name in ("fixed", "channel", "units"))
        self._fixed.value = parts.fill("fixed.html", reason=self.gallery.why_not_reroute) if fixed else ""
        self.children = (
            parts.make_row(self._order, self._place),
            parts.make_row(self._search, self._some, appearance.make_choice(self)),
            self._status,
            self._bar,
            self._grid,
            self._concepts,
            self._table,
            parts.make_closed(
                "Split this channel otherwise", parts.make_row(self._k, self._rho, self._reset), self._fixed
            ),
        )

    # ------------------------------------------------------------------ actions

    def search(self, text: str) -> None:
        """Go to the channel of that number, or list the channels with sub-units of a concept of that name.

        An empty text lists all channels again. What is not found is reported in the status line.
        """
        text, split = text.strip(), self.gallery.split
        if text.isdecimal():
            if int(text) >= split.site.channels:
                self.say(f"There is no channel {text}; there are {split.site.channels}, from 0.", error=True)
            else:
                self.channel = int(text)
            return
        allowed = set(range(split.site.channels))
        if text:
            concepts = [c for c, name in split.names.items() if text.lower() in name.lower()]
            allowed = self._channels_of(concepts)
            if not allowed:
                known = ", ".join(sorted(set(split.names.values()))) or "none; see with_names and name_concepts"
                self.say(f"No concept with a name like {text!r} has sub-units. Names: {known}.", error=True)
                return
        self._list(allowed, f"with sub-units of {text!r}" if text else "")
        self.channel = self._listed[0]
        self.say(counted(len(self._listed), "channel") + (f" with sub-units of {text!r}" if text else ""))

    def reset(self) -> None:
        """Set K and rho back to what they were in the discovery."""
        with self.hold_trait_notifications():
            self.units, self.shared = self._settings.units, self._settings.shared

    def _list(self, allowed: Container[int], which: str = "") -> None:
        """List the channels that are allowed, in their order; ``which`` says what they are, if they are not all."""
        self._of = ()
        self._listed = [channel for channel in self.orders[self.order] if channel in allowed]
        self._some.label = f"{counted(len(self._listed), 'channel')} {which}" if which else ""
        self._some.options = ["show all channels"] if which else []
        self._show_place()

    def _list_all(self) -> None:
        self._list(range(self.gallery.split.site.channels))

    def _list_channels_of(self, concepts: Sequence[int]) -> None:
        allowed, title = self._channels_of(concepts), self.gallery.split.concept_title
        which = words(title(concepts[0], number=True), 60) if len(concepts) == 1 else f"{len(concepts)} concepts"
        if allowed:
            self._list(allowed, f"with sub-units of {which}")
            self._of = concepts
        else:
            self._list_all()

    def _channels_of(self, concepts: Sequence[int]) -> set[int]:
        units = self.gallery.split.units
        return set(units.loc[units["concept"].isin(concepts), "channel"].tolist())

    def _choose_concept(self, number: int) -> None:
        """Choose the concept of one of the sub-units that are shown."""
        row = self._owned[number]
        with self.guarded():
            self.selection.choose(concepts=[row["concept"]], channel=self.channel, unit=(self.channel, row["unit"]))

    @traitlets.validate("channel")
    def _valid_channel(self, proposal: Any) -> Any:
        return parts.check_range(proposal, 0, self.gallery.split.site.channels - 1)

    @traitlets.validate("units")
    def _valid_units(self, proposal: Any) -> Any:
        return self._check_setting(proposal, self._settings.units, 2, self._k.max)

    @traitlets.validate("shared")
    def _valid_shared(self, proposal: Any) -> Any:
        return self._check_setting(proposal, self._settings.shared, 0, 1)

    def _check_setting(self, proposal: Any, discovered: float | None, low: float, high: float) -> Any:
        if not self.gallery.can_reroute and proposal["value"] != discovered:
            raise traitlets.TraitError(f"{proposal['trait'].name} stays {discovered}: {self.gallery.why_not_reroute}")
        return proposal["value"] if proposal["value"] is None else parts.check_range(proposal, low, high)

    @traitlets.validate("order")
    def _valid_order(self, proposal: Any) -> str:
        if proposal["value"] not in self.orders:
            raise traitlets.TraitError(f"order={proposal['value']!r} must be one of {list(self.orders)}.")
        return str(proposal["value"])

    @traitlets.observe("order")
    def _sort(self, change: Any) -> None:
        self._order.value = change["new"]
        kept = set(self._listed)
        self._listed = [channel for channel in self.orders[change["new"]] if channel in kept]
        if change["old"]:
            self.channel = self._listed[0]

    # -------------------------------------------------------------------- paint

    def _unless_painting(self, change: Callable[[Any], object]) -> Callable[[Any], None]:
        """Return what a control calls: ``change``, debounced, unless the panel itself has set it."""
        soon = self.later(change)
        return lambda value: None if self._painting else soon(value)

    def _show_place(self) -> None:
        with parts.holding(self, "_painting"):
            self._place.max = len(self._listed)
            if self.channel in self._listed:
                self._place.value = self._listed.index(self.channel) + 1

    def _choose_shared(self, rho: float | None) -> None:
        if not self._painting:
            self.shared = rho

    def _show(self, _: object = None) -> None:
        with self.guarded():
            self.refresh()

    def refresh(self) -> None:
        """Paint the channel anew."""
        gallery = self.gallery
        view = gallery.channel(self.channel, units=self.units, shared=self.shared)
        whole = len(view.units) == 1
        found = gallery.exemplars(view, count=min(self._count, gallery.ready), units=self._max_units)
        self.set_trait("view", view)
        self.set_trait("exemplars", found)
        colours = [
            "currentColor",
            *(PALETTE[i % len(PALETTE)] if unit else GREY for i, unit in enumerate(found.units[1:])),
        ]
        reason = f": {view.reason}" if whole else ""
        self._grid.value = parts.fill(
            "channel.html",
            title=f"Channel {self.channel}{reason}",
            caption=self._caption(found),
            grid=exemplar_grid(found, colours, activation=appearance.activation),
        )
        concepts = view.units["concept"].fillna(NO_CONCEPT).tolist()
        titles = [
            "" if c == NO_CONCEPT else gallery.split.concept_title(c, number=True)[len("concept ") :] for c in concepts
        ]
        self._table.value = parts.fill(
            "units.html",
            units=view.units.assign(title=titles).to_dict("records"),
            colours=dict(zip(found.units, colours, strict=True)),
            similarity={
                u: alike for u, alike, row in zip(found.units, found.similarity, found.rows, strict=True) if row
            },
            charts={unit: depth_chart(table) for unit, table in gallery.depths(view).items()},
        )
        self._owned = [row for row in view.units.to_dict("records") if row["unit"] and not pd.isna(row["concept"])]
        self._concepts.label = "Choose a concept of these sub-units, for all panels:" if self._owned else ""
        self._concepts.options = [f"{row['unit']}: {words(row['title'], 40)}" for row in self._owned]
        self._show_place()  # the controls show what is shown, whoever changed it
        with parts.holding(self, "_painting"):  # new options make one choose the first of them
            self._k.value = self.units
            self._rho.options, self._rho.value = _left_over(self.shared), self.shared
        what = "not split" if whole else counted(len(view.units) - 1, "sub-unit")
        self.say(f"Channel {self.channel}: {what}, on {self.describe_images()}.")

    def _caption(self, found: Exemplars) -> str:
        """Return in words how much more alike the best images of the sub-units are than those of the channel."""
        pairs = zip(found.units, found.similarity, strict=True)
        after = [alike for unit, alike in pairs if unit > 0 and not math.isnan(alike)]
        if not after or math.isnan(found.similarity[0]):
            return ""
        seen = self.gallery.seen
        where = "unseen images" if seen.count == 0 else str(seen)
        change = f"{found.similarity[0]:.2f} \N{RIGHTWARDS ARROW} {sum(after) / len(after):.2f}"
        return f"similarity {change} on {where}: of the channel's best, and of its sub-units' below"

    def static_html(self) -> Markup:
        """Return the channel that is shown."""
        return Markup(self._grid.value + self._table.value)  # noqa: S704 - made by templates


def _left_over(rho: float | None) -> list[tuple[str, float | None]]:
    """Return what can be chosen for rho, with the words for it; ``rho`` is among it."""
    numbers = {0.5, 0.6, 0.7, 0.8, 0.9, 1.0} | ({rho} if rho is not None else set())
    return [("nothing", None), *((f"unclear above rho = {value:g}", value) for value in sorted(numbers, reverse=True))]


def _orders(split: Disentanglement, scores: pd.DataFrame | None) -> dict[str, list[int]]:
    """Return the channels in different orders; those that are not split come last."""
    values = {} if scores is None else {BEST: mixed_channels(scores)["separation"].reindex(range(split.site.channels))}
    values |= {
        "how unlike its concepts are": _unlikeness(split),
        "variance": split.channels["variance"],
        "number": -split.channels["channel"],
    }
    if scores is not None:
        after, before = (
            scores[scores["kind"] == kind].groupby("channel").mean(numeric_only=True)
            for kind in ("sub-unit", "channel")
        )
        gains = (after - before).drop(columns="unit").dropna(axis=1, how="all").reindex(range(split.site.channels))
        values |= {f"gain in {in_words(str(column))}": gains[column] for column in gains}
    whole = ~split.channels["split"]
    return {
        name: pd.DataFrame({"whole": whole & (name != "number"), "value": -value.fillna(-float("inf"))})
        .sort_values(["whole", "value"], kind="stable")
        .index.tolist()
        for name, value in values.items()
    }


def _unlikeness(split: Disentanglement) -> pd.Series[float]:
    """Return for each channel 1 less the agreement of the concepts that drive it, as the routing weighs them."""
    directions = split.book.directions()
    found = []
    for values, concepts in zip(*strongest_concepts(split.book, split.settings.units), strict=True):
        strength = values.clamp(min=0)
        enough = int((strength > 0).sum()) > 1
        found.append(1 - float(agreement_of(strength, directions[concepts])) if enough else 0.0)
    return pd.Series(found)
