"""Steering: what an edit does at each strength, which classes it hits, and an image's neighbours before and after."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from elude_nb._util.checks import check_count, check_kind
from elude_nb._util.words import counted
from elude_nb.figures.html import change_layer
from elude_nb.figures.images import show_image, square_thumbnail
from elude_nb.figures.theme import (
    Picture,
    diverging,
    drawing,
    finish,
    house_style,
    readable_on,
    shade,
    words,
)
from elude_nb.interpret.neighbours import Neighbours
from elude_nb.steering.controls import CONTROLS
from elude_nb.steering.effects import Effect
from elude_nb.steering.patches import PatchChange
from elude_nb.text.similarity import SimilarityEffect

_COLOURS = {
    "edit": "blue",
    "random sub-units": "orange",
    "random concept": "yellow",
    "same channels": "grey",
    "best channel": "ink",
    "mean direction": "green",
    "SAE latent": "red",
    "difference of means": "green",
    "linear SVM": "red",
    "LEACE": "purple",
}
_LEARNED = {"difference of means", "linear SVM", "LEACE"}  # from labels: dashed
_BESIDE = ("sky", "purple", "yellow", "green", "red")  # other edits, in order
_TILE = 1.1  # inches
_LEAST_DROP = 0.005


def _colour_of(method: str) -> str:
    return shade(_COLOURS.get(method, "purple"))


def _looks(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return how the line of each method is drawn: edits wide and in front, what is learned from labels dashed."""
    beside = [method for method in methods if method != "edit" and method not in CONTROLS]
    colours = {method: shade(_BESIDE[place % len(_BESIDE)]) for place, method in enumerate(beside)}
    return {
        method: {
            "color": colours.get(method, _colour_of(method)),
            "linewidth": 1.4 if method in CONTROLS else 2.4,
            "linestyle": "--" if method in _LEARNED else "-",
            "zorder": 2 if method in CONTROLS else 3,
        }
        for method in methods
    }


def dose_response(effect: Effect) -> Picture:
    """Show how far the probability of the true class falls with the strength of an edit and of its controls.

    At the left for the images of the target class, at the right for all others (the mean over their classes).
    Strength 0 is the model as it is.
    """
    check_kind("effect", effect, Effect, "an Effect, from effect(...)")
    with house_style():
        picture = Picture(figsize=(8.4, 3.4))
        axes = picture.subplots(1, 2, sharey=True, gridspec_kw={"wspace": 0.08})
        panels = (("drop", "", f"{words(effect.target)}: the target"), ("others", "others_", "all other classes, mean"))
        for place, (column, prefix, title) in zip(axes, panels, strict=True):
            for method, look in _looks(list(dict.fromkeys(effect.curve["method"]))).items():
                rows = effect.curve[effect.curve["method"] == method].sort_values("strength")
                dose, drop = [0.0, *rows["strength"]], [0, *(100 * rows[column])]
                place.plot(dose, drop, marker="o", markersize=3, label=words(method), **look)
                if method == "edit":
                    low, high = ([0, *(100 * rows[f"{prefix}{end}"])] for end in ("low", "high"))
                    place.fill_between(dose, low, high, color=shade("blue"), alpha=0.12)
            place.set_title(title)
            place.axhline(0, color=shade("faint"), linewidth=0.8)
            place.set_xlabel("strength of the edit")
            place.grid(axis="y", color=shade("faint"), alpha=0.2)
        axes[0].set_ylabel("fall of the true class's\nprobability, points")
        picture.legend(*axes[0].get_legend_handles_labels(), loc="center left", bbox_to_anchor=(0.91, 0.5), fontsize=9)
    picture.alt = f"Fall of the probability of {effect.target} and of the others over strengths. {effect}"
    return picture


def selectivity_curves(effect: Effect, *, axes: Axes | None = None) -> Any:
    """Show what an edit does to the other classes against what it does to the target, from strength 0 on.

    One line an edit and control, one point a strength. At equal drop of the target, the lower line is the more
    selective one, whatever strength each needs for it. With ``axes`` it is drawn there, and they are returned; else a
    new `Picture` is.
    """
    check_kind("effect", effect, Effect, "an Effect, from effect(...)")
    with drawing(axes, (6.2, 3.6)) as place:
        for method, look in _looks(list(dict.fromkeys(effect.curve["method"]))).items():
            rows = effect.curve[effect.curve["method"] == method].sort_values("strength")
            target, others = ([0, *(100 * rows[column])] for column in ("drop", "others"))
            place.plot(target, others, marker="o", markersize=3, label=words(method), **look)
        place.axhline(0, color=shade("faint"), linewidth=0.8)
        place.set_xlabel(f"fall of {words(effect.target)}'s probability, points")
        place.set_ylabel("fall of the others', points")
        place.set_title("What the others lose, at equal drop of the target")
        place.grid(color=shade("faint"), alpha=0.2)
        place.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)
    alt = f"Fall of the other classes against that of {effect.target} as the strength grows. {effect}"
    return finish(place, axes, alt)


def side_effects(effect: Effect, *, axes: Axes | None = None) -> Any:
    """Show for an edit and its controls at full strength the fall on the target, on the others, and on the worst hit.

    A good edit has a long first bar and short ones below. The specificity is written beside it where the drop is
    clearly above 0. With ``axes`` it is drawn there, and they are returned; else a new `Picture` is.
    """
    check_kind("effect", effect, Effect, "an Effect, from effect(...)")
    table = effect.table.iloc[::-1].reset_index(drop=True)
    columns = ["drop", "low", "high", "others", "worst"]
    table[columns] *= 100
    with drawing(axes, (7.6, 0.9 + 0.52 * len(table))) as place:
        target = f"{words(effect.target)} (the target)"
        _draw_methods(
            place, table, (("drop", 1.0, target), ("others", 0.55, "others, mean"), ("worst", None, "worst hit"))
        )
        rows = np.arange(len(table)) + 0.27
        place.hlines(rows, table["low"], table["high"], color=shade("ink"), linewidth=1)
        right = max(float(table[["drop", "high", "worst"]].max().max()), 1.0)
        for row, values in zip(rows, table.to_dict("records"), strict=True):
            if values["low"] > 100 * _LEAST_DROP:  # a ratio of two zeros says nothing
                end = max(values["drop"], values["high"], 0) + 0.02 * right
                text = f"specificity {values['specificity']:.1f}"
                place.text(end, row, text, va="center", fontsize=9, color=shade("faint"))
        place.set_xlim(right=1.25 * right)
        place.set_xlabel("fall of the true class's probability, points")
        _grey_legend(place, loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=3)
    alt = f"Bars of what an edit and its controls do to {effect.target} and to the others. {effect}"
    return finish(place, axes, alt)


def similarity_bars(effect: SimilarityEffect, *, axes: Axes | None = None) -> Any:
    """Show by how much an edit and its controls moved similarities: within the target, across, and elsewhere.

    A good edit has a long first bar and short ones below. Lines are the intervals over inputs. With ``axes`` it is
    drawn there, and they are returned; else a new `Picture` is.
    """
    table = effect.table.iloc[::-1].reset_index(drop=True)
    looks = (
        ("within", 1.0, f"two of {words(effect.target)} (the target)"),
        ("across", 0.6, f"one of {words(effect.target)}, one other"),
        ("elsewhere", 0.3, "two others"),
    )
    with drawing(axes, (7.6, 0.9 + 0.6 * len(table))) as place:
        _draw_methods(place, table, looks)
        for shift, (kind, _, _) in zip((0.27, 0.0, -0.27), looks, strict=True):
            rows = np.arange(len(table)) + shift
            place.hlines(rows, table[f"{kind}_low"], table[f"{kind}_high"], color=shade("ink"), linewidth=1)
        place.set_xlabel("change of the mean cosine similarity")
        _grey_legend(place, loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=3)  # bars may fill the axes
    return finish(place, axes, f"Bars of what an edit and its controls do to similarities. {effect}")


def _draw_methods(place: Axes, table: pd.DataFrame, looks: tuple[tuple[str, float | None, str], ...]) -> None:
    """Draw three bars a method, of a column, an opacity (or ``None``: striped) and a label each."""
    rows, colours = np.arange(len(table)), [_colour_of(method) for method in table["method"]]
    for shift, (column, opacity, label) in zip((0.27, 0.0, -0.27), looks, strict=True):
        look: Any = {"color": colours, "alpha": opacity}
        if opacity is None:
            look = {"color": shade("paper"), "edgecolor": shade("faint"), "hatch": "////"}
        place.barh(rows + shift, table[column], height=0.25, label=label, **look)
    details = [words(detail, 34) for detail in table["detail"]]
    place.set_yticks(
        rows, [f"{words(method)}\n{detail}" for method, detail in zip(table["method"], details, strict=True)]
    )
    place.tick_params(axis="y", length=0, labelsize=9)
    place.axvline(0, color=shade("faint"), linewidth=0.8)


def _grey_legend(place: Axes, **settings: Any) -> None:
    handles: list[Any] = place.legend(fontsize=9, **settings).legend_handles
    for handle in handles:
        if not handle.get_hatch():
            handle.set_color(shade("faint"))


def class_drops(effect: Effect, *, axes: Axes | None = None) -> Any:
    """Show the fall of each class's probability as a table in colours, one row a method.

    With ``axes`` it is drawn there, and they are returned; else a new `Picture` is.
    """
    check_kind("effect", effect, Effect, "an Effect, from effect(...)")
    table = 100 * effect.by_class
    largest = max(float(table.abs().to_numpy().max()), 1e-9)
    with drawing(axes, (2.2 + 0.62 * table.shape[1], 1.1 + 0.34 * len(table))) as place:
        colours = diverging()
        place.imshow(table, cmap=colours, vmin=-largest, vmax=largest, aspect="auto")
        for (row, column), value in np.ndenumerate(table.to_numpy()):
            colour = readable_on(colours(0.5 + 0.5 * value / largest))
            place.text(column, row, f"{value + 0:.0f}".replace("-0", "0"), ha="center", va="center", color=colour)
        place.set_yticks(range(len(table)), [words(name) for name in table.index])
        place.set_xticks(range(table.shape[1]), [words(name) for name in table.columns], rotation=35, ha="right")
        for label, name in zip(place.get_xticklabels(), table.columns, strict=True):
            label.set_fontweight("bold" if name == effect.target else "normal")
        place.tick_params(length=0)
        place.spines[:].set_visible(False)
        place.set_title("fall of each class's probability, points")
    return finish(place, axes, f"Fall of each class's probability for {len(table)} methods; {effect}")


def neighbour_grid(neighbours: Neighbours, columns: int = 6) -> Picture:
    """Show an image and its nearest neighbours, one row as the model is and one for each edit."""
    check_kind("neighbours", neighbours, Neighbours, "what find_neighbours returns")
    check_count("columns", columns)
    shown = min(columns, *(len(found) for found in neighbours.found.values()))
    labels = neighbours.among.labels or neighbours.among.names
    left, row_height = 1.35 + 1.15 * _TILE, _TILE + 0.22  # at the left are the image and the names of rows
    with house_style():
        picture = Picture(figsize=(left + shown * _TILE, len(neighbours.found) * row_height))
        query = picture.add_box(0, 0.2, _TILE, _TILE)
        show_image(query, square_thumbnail(neighbours.image), title="the image", size=9)
        for row, (name, found) in enumerate(neighbours.found.items()):
            top = row * row_height + 0.2
            wide, high = picture.get_size_inches()
            where = (1.25 * _TILE / wide, 1 - (top + 0.5 * _TILE) / high)
            text = "\n".join(textwrap.wrap(words(name), 17))
            picture.text(*where, text, va="center", fontsize=9, color=shade("blue" if row else "ink"))
            for column, (number, cosine) in enumerate(zip(found[:shown], neighbours.cosines[name], strict=False)):
                place = picture.add_box(left + column * _TILE, top, 0.96 * _TILE, 0.96 * _TILE)
                title = f"{words(labels[number], 14)} {cosine:.2f}"
                show_image(place, square_thumbnail(neighbours.among[number]), title=title, size=9)
    picture.alt = f"Nearest neighbours of an image, by edit: {neighbours.labels.to_dict('index')}"
    return picture


def patch_changes(change: PatchChange, *, count: int = 4) -> Picture:
    """Show where in pictures an edit moved the representation, and the patch tokens before and after as colours.

    One row an image: the picture; the picture under a layer of magenta, clear where a patch token did not move and
    fullest where 1 - cosine similarity is 0.5 or more; and `elude_nb.steering.patch_colours` before and after, by the
    components of the tokens before of all images of ``change``.

    Parameters
    ----------
    change
        From `elude_nb.steering.patch_change`.
    count
        How many of its images are shown.
    """
    check_kind("change", change, PatchChange, "what patch_change returns")
    count = min(check_count("count", count), len(change.before))
    distance, (before, after) = change.distance.float().numpy(), change.colours
    titles = ("image", "how far patches moved", "patches before", "patches after")
    with house_style():
        picture = Picture(figsize=(4 * 1.75, count * 1.95 + 0.2))
        for number in range(count):
            seen, moved = change.pictures[number].numpy(), distance[number]
            extent = (0.0, float(seen.shape[1]), float(seen.shape[0]), 0.0)
            for column, name in enumerate(titles):
                place = picture.add_box(column * 1.75, number * 1.95 + 0.3, 1.68, 1.68)
                if column < 2:
                    show_image(place, seen)
                else:
                    place.imshow((before, after)[column - 2][number].numpy(), extent=extent)
                if column == 1:
                    place.imshow(change_layer(moved), extent=extent, interpolation="bilinear")
                title = f"moved: up to {moved.max():.2f}" if column == 1 else name
                place.set_title(title, fontsize=9, loc="center", pad=3)
                place.set(xticks=[], yticks=[])
                place.spines[:].set_visible(False)
    picture.alt = (
        f"Where {counted(count, 'image')} moved under {change.edit!r}: 1 - cosine of patch tokens up to "
        f"{', '.join(f'{value:.2f}' for value in distance[:count].max((1, 2)))}; and their colours before and after"
    )
    return picture


def accuracy_bars(accuracies: pd.DataFrame, *, title: str = "", axes: Axes | None = None) -> Any:
    """Show shares in [0, 1] as grouped bars: one group a row of the table, one bar a column, with the value on it.

    With ``axes`` they are drawn there, and they are returned; else a new `Picture` is.
    """
    rows, columns = accuracies.shape
    colours = [shade(name) for name in ("sky", "red", "green", "purple", "yellow", "orange", "blue")]
    with drawing(axes, (1.6 + 1.2 * rows, 3.0)) as place:
        for number, name in enumerate(accuracies.columns):
            places = np.arange(rows) + (number - (columns - 1) / 2) * 0.8 / columns
            heights, colour = 100 * accuracies[name], colours[number % len(colours)]
            bars = place.bar(places, heights, width=0.74 / columns, color=colour, label=words(name))
            place.bar_label(bars, fmt="%.0f", fontsize=9, color=shade("ink"))
        wrapped = ["\n".join(textwrap.wrap(words(name), 14)) for name in accuracies.index]
        place.set_xticks(range(rows), wrapped, fontsize=9)
        place.set(ylim=(0, 118), ylabel="% right", title=words(title))
        place.legend(loc="upper center", bbox_to_anchor=(0.5, 1.0), ncols=columns, fontsize=9)
        place.tick_params(axis="x", length=0)
    return finish(place, axes, f"{title}: {accuracies.round(2).to_dict('index')}")
