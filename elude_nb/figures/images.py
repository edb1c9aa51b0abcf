"""Grids of photographs: contact sheets, top-activating images before and after, and activation maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D
from PIL import Image
from torch import Tensor

from elude_nb._util.checks import (
    check_choice,
    check_count,
    check_flag,
    check_fraction,
    check_kind,
    check_number,
    check_whole,
)
from elude_nb._util.words import counted, one_line
from elude_nb.data.arrays import as_rgb
from elude_nb.data.images import ImageSet, as_image_set
from elude_nb.figures.html import WAYS, draw_activation, enlarge
from elude_nb.figures.theme import Picture, diverging, drawing, finish, house_style, nth_colour, shade, words
from elude_nb.interpret.exemplars import REST, Exemplar, Exemplars, crop_at
from elude_nb.interpret.gallery import ChannelView, Gallery

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]
_CELL, _LABEL = 1.05, 2.0  # inches: a photograph, and the names at the left
_TILE, _GAP, _TITLE = 1.8, 0.24, 0.42  # inches, of an activation map
_LEAST = 1e-12


def show_image(place: Axes, image: Any, *, title: str = "", size: float = 9, frame: str | None = None) -> None:
    """Show an image on axes, with a title above it and a coloured frame around it, or none."""
    place.imshow(image)
    place.set(xticks=[], yticks=[])
    place.spines[:].set(visible=frame is not None, color=frame or "none", linewidth=1.6)
    if title:
        place.set_title(title, fontsize=size, loc="center", pad=2)


def square_thumbnail(image: Image.Image) -> Image.Image:
    """Return the middle square of an image, 160 pixels a side."""
    image = as_rgb(image)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side)).resize((160, 160), Image.Resampling.BILINEAR)


def contact_sheet(images: ImageSet, count: int = 20, columns: int = 10) -> Picture:
    """Show the first images of a set, with their labels.

    Parameters
    ----------
    images
        The set.
    count, columns
        How many images, and how many in a row.
    """
    images = as_image_set(images)
    if not len(images):
        raise ValueError("There are no images to show.")
    count = min(check_count("count", count), len(images))
    columns = min(check_count("columns", columns), count)
    rows = -(-count // columns)
    with house_style():
        picture = Picture(figsize=(columns * _CELL, rows * (_CELL + 0.2)))
        axes = picture.subplots(rows, columns, squeeze=False, gridspec_kw={"wspace": 0.05, "hspace": 0.25}).flat
        for index in range(count):
            title = "" if images.labels is None else words(images.labels[index], 14)
            show_image(axes[index], square_thumbnail(images[index]), title=title)
        for place in axes[count:]:
            place.axis("off")
    picture.alt = f"{counted(count, 'image')} from {one_line(images.source)}"
    return picture


def before_after(
    exemplars: Exemplars, *, activation: str = "outline", crops: float | None = None, beside: bool = False
) -> Picture:
    """Show the top-activating images of a whole channel, and below them those of each of its sub-units.

    Parameters
    ----------
    exemplars
        From `elude_nb.find_exemplars`.
    activation
        How it is shown where in a photograph a unit is active: ``"outline"``, around where it is above half of its
        highest value there; ``"dark"``, the rest darkened; ``"heat"``, in colours; ``"crop"``, half of the photograph's
        side around the highest patch; or ``"none"``. The scale of ``"dark"`` and ``"heat"`` goes from 0 (a unit's mean)
        to the row's largest activation.
    crops
        Show, instead of whole photographs, what surrounds the patch at which a unit is highest: so much
        of the photograph's side, as 0.4 (0.43 is 96 pixels of 224).
    beside
        Show both: each crop at the right of its photograph.

    Raises
    ------
    ValueError
        If ``crops`` is not between 0 and 1, or missing with ``beside``, or there is no such ``activation``.
    """
    check_kind("exemplars", exemplars, Exemplars, "what find_exemplars returns")
    check_choice("activation", activation, WAYS)
    check_flag("beside", beside)
    if crops is not None:
        check_fraction("crops", crops, open_ends=True)
    elif beside:
        raise ValueError("beside=True shows crops beside photographs; say how large, as in crops=0.4.")
    parts = (None, crops) if beside else (crops,)  # of each exemplar
    rows = len(exemplars.rows)
    columns = len(parts) * len(exemplars.rows[0])
    gap = 0.16  # between the whole channel and its sub-units
    with house_style():
        picture = Picture(figsize=(_LABEL + columns * _CELL, rows * _CELL + gap + 0.3))
        for row, name in enumerate(exemplars.names):
            rest = exemplars.units[row] == 0
            colour = shade("grey") if rest else nth_colour(row - 1) if row else shade("ink")
            top = 0.3 + row * _CELL + (gap if row else 0)
            _write_name(picture, name, exemplars.similarity[row], top + 0.5 * _CELL, colour)
            brightest = max((exemplar.value for exemplar in exemplars.rows[row]), default=1.0)
            for column in range(len(parts) * len(exemplars.rows[row])):
                number, part = divmod(column, len(parts))
                left = _LABEL + (column - 0.03 * part) * _CELL  # a crop is near its photograph
                place = picture.add_box(left, top, 0.96 * _CELL, 0.96 * _CELL)
                exemplar = exemplars.rows[row][number]
                draw_exemplar(place, exemplar, brightest, colour, activation=activation, crop=parts[part])
        picture.text(0, 1, f"Channel {exemplars.channel}", fontsize=12, fontweight="bold", va="top")
    shown = "; ".join(name.replace("\n", ": ") for name in exemplars.names)
    what = "images" if crops is None else "images, and crops of them," if beside else "crops of images"
    picture.alt = f"Top-activating {what} of channel {exemplars.channel}, whole and by sub-unit. {shown}"
    return picture


def draw_exemplar(
    axes: Axes,
    exemplar: Exemplar,
    brightest: float,
    colour: str = "#222222",
    *,
    activation: str = "outline",
    crop: float | None = None,
) -> None:
    """Draw one photograph with its activation, as `elude_nb.figures.html.draw_activation` does it.

    With ``crop``, so much of its side around the highest patch is drawn, and nothing else.
    """
    image, heat = exemplar.image, exemplar.heat
    if crop is None:
        shown = draw_activation(image, heat, brightest, activation)
    else:
        shown = crop_at(image, int(heat.argmax()), (heat.shape[0], heat.shape[1]), crop).clip(0, 1)
    show_image(axes, shown, frame=colour)


def _write_name(picture: Picture, name: str, similarity: float, middle: float, colour: str) -> None:
    """Write the name of a row at the left, its labels and similarity below it; ``middle`` is in inches from the top."""
    title, _, labels = name.partition("\n")
    title = "\n".join(words(part, 28) for part in title.split(", "))  # the photographs begin beside it
    lines, line, high = title.count("\n") + 1, 0.165, picture.get_figheight()
    start = middle - line * (lines + (1 if labels else 0) + 1) / 2
    # The colour of the frames is a bar: words in it could not be read by everybody.
    left, top, end = 0.1 / picture.get_figwidth(), 1 - start / high, 1 - (start + lines * line) / high
    picture.add_artist(Line2D([0, 0], [end, top], color=colour, linewidth=3, solid_capstyle="butt"))
    picture.text(left, top, title, fontsize=9, fontweight="bold", va="top", linespacing=1.25)
    wrapped = labels.replace(", ", "\n", 1) if len(labels) > 24 else labels
    wrapped = "\n".join(words(line, 28) for line in wrapped.split("\n"))
    below = "\n".join(
        text for text in (wrapped, "" if math.isnan(similarity) else f"similarity {similarity:.2f}") if text
    )
    under = 1 - (start + 1.05 * lines * line) / high
    picture.text(left, under, below, fontsize=9, color=shade("faint"), va="top", linespacing=1.3)


def activation_map(
    image: Array, heat: Array, *, limit: float | None = None, title: str = "", axes: Axes | None = None
) -> Any:
    """Show one activation over a grey image: red above the unit's mean, blue below it, with a scale.

    Parameters
    ----------
    image
        (h, w, 3), uint8 or in [0, 1].
    heat
        The activation at each patch, (rows, columns), counted from the mean.
    limit
        What is full colour; by default the largest absolute value.
    title
        What is written above.
    axes
        Where to draw (then without a scale); by default a new `Picture`.

    Returns
    -------
    Picture or Axes
        The new picture, or ``axes``.

    Raises
    ------
    ValueError
        If shapes are wrong, a value is not finite, or ``limit`` is not above 0.
    """
    check_kind("image", image, np.ndarray, "an array (h, w, 3)")
    check_kind("title", title, str, "text")
    heat = np.asarray(heat, dtype=np.float64)
    if image.ndim != 3 or image.shape[2] != 3 or heat.ndim != 2 or not heat.size:
        raise ValueError(f"image must be (h, w, 3) and heat (rows, columns), not {image.shape} and {heat.shape}.")
    if not np.isfinite(heat).all():
        raise ValueError("heat has values that are not finite.")
    if limit is not None and not check_number("limit", limit) > 0:
        raise ValueError(f"limit={limit} must be above 0; without it the largest absolute value is taken.")
    limit = max(float(np.abs(heat).max()) if limit is None else limit, _LEAST)
    with drawing(axes, (3.9, 3.2)) as place:
        _draw_heat(place, image, heat, limit)
        place.set_title(words(title), fontsize=9, loc="center")
        if axes is None:
            _draw_scale(place, limit, "activation above the mean", ax=place, shrink=0.9)
    alt = f"Activation over an image, from {heat.min():.2f} to {heat.max():.2f}. {title}".strip()
    return finish(place, axes, alt)


def unit_maps(gallery: Gallery, image: int, channel: int, *, units: Sequence[int] | int = 5) -> Picture:
    """Show where in one image a whole channel is active, and where each of its sub-units is, on one scale.

    The maps add up: after those asked for come that of all other sub-units and that of unit 0.
    Each title has the map's value at the patch where the whole channel is strongest; these add up too.

    Parameters
    ----------
    gallery, image
        Images that are ready, and the number of one. (For an image of your own: ``Gallery(split, [image]).fill()``.)
    channel
        The channel.
    units
        Which sub-units, or how many: those that vary most over this image.

    Raises
    ------
    ValueError
        If the image is not ready, or there is no such channel or unit.
    """
    check_kind("gallery", gallery, Gallery, "a Gallery of images")
    check_count("image", image, 0, len(gallery) - 1)
    view = gallery.channel(channel)
    chosen = _choose_units(view, view.maps[image], units)
    shown = _find_summands(gallery, view, image, chosen)
    limit = max(_LEAST, *(float(heat.abs().max()) for _, heat, _ in shown))
    peak = int(shown[0][1].abs().argmax())
    columns = min(4, len(shown) + 1)
    rows = -(-(len(shown) + 1) // columns)
    width, height = columns * (_TILE + _GAP) + 0.75, rows * (_TILE + _TITLE) + 0.3
    seen = gallery.pictures_of(image)
    with house_style():
        picture = Picture(figsize=(width, height))
        boxes = [
            picture.add_box(column * (_TILE + _GAP) + 0.1, 0.3 + row * (_TILE + _TITLE) + _TITLE, _TILE, _TILE)
            for row, column in (divmod(number, columns) for number in range(len(shown) + 1))
        ]
        show_image(boxes[0], seen, title="the image", size=9, frame=shade("faint"))
        for number, (place, (name, heat, colour)) in enumerate(zip(boxes[1:], shown, strict=True)):
            _draw_heat(place, seen, heat.view(*gallery.grid).numpy(), limit)
            _mark_patch(place, seen.shape, divmod(peak, gallery.grid[1]), gallery.grid)
            place.spines[:].set(visible=True, color=colour, linewidth=1.6)
            place.set_title(f"{name}\n{float(heat[peak]):+.2f}", fontsize=9, loc="center", pad=4, color=colour)
            if number:
                sign, at = "=" if number == 1 else "+", -0.5 * _GAP / _TILE
                place.text(at, 0.5, sign, transform=place.transAxes, ha="center", va="center", fontsize=12)
        scale = picture.add_axes((1 - 0.6 / width, 0.02, 0.13 / width, min(1, 2.6 / height) - 0.04))
        _draw_scale(scale, limit, "above the mean", cax=scale)
        title = f"Channel {channel} over image {image} is the sum of its units (numbers: at the marked patch)"
        picture.text(0.1 / width, 1, title, fontsize=10.5, fontweight="bold", va="top")
    parts = ", ".join(f"{name.replace(chr(10), ' ')} {float(heat[peak]):+.2f}" for name, heat, _ in shown)
    picture.alt = f"Where channel {channel} and {len(chosen)} of its sub-units are active over image {image}: {parts}"
    return picture


def _choose_units(view: ChannelView, maps: Tensor, units: Sequence[int] | int) -> list[int]:
    known = view.units["unit"].tolist()
    if isinstance(units, int):
        check_count("units", units)
        order = maps.var(0).argsort(descending=True).tolist()
        return sorted([known[place] for place in order if known[place] > 0][:units])
    units = [check_whole("unit", unit) for unit in units]
    unknown = [unit for unit in units if unit not in known]
    if unknown or len(set(units)) < len(units):
        wrong = f"no unit {unknown[0]}" if unknown else f"no unit twice, as in {list(units)}"
        raise ValueError(f"Channel {view.channel} has {wrong}; it has {known}.")
    return units


def _find_summands(gallery: Gallery, view: ChannelView, image: int, chosen: list[int]) -> list[tuple[str, Tensor, str]]:
    """Return a name, a map (t,) and a colour for the whole channel, for each chosen unit, and for the rest."""
    table = view.units.set_index("unit")
    maps = dict(zip(table.index, view.maps[image].unbind(-1), strict=True))
    # Sub-units are counted from their mean already; the channel's mean is all in unit 0.
    maps[0] = maps[0] - float(gallery.split.book.channel_mean()[view.channel])
    whole = sum(maps.values(), torch.zeros(()))
    found = [("whole channel", whole, shade("ink"))]
    found += [(_name_unit(table, unit), maps[unit], nth_colour(number)) for number, unit in enumerate(chosen)]
    others = [unit for unit in table.index if unit and unit not in chosen]
    if others:
        name = _name_unit(table, others[0]) if len(others) == 1 else f"{len(others)} other sub-units"
        found.append((name, sum((maps[unit] for unit in others), torch.zeros(())), shade("faint")))
    if 0 not in chosen:
        found.append((_name_unit(table, 0), maps[0], shade("grey")))
    return found


def _name_unit(table: pd.DataFrame, unit: int) -> str:
    meaning = words(table["title"].loc[unit], 18)
    return (f"sub-unit {unit}" if unit else REST) + (f", {meaning}" if meaning else "")


def _draw_heat(place: Axes, image: Array, heat: Array, limit: float) -> None:
    """Draw a heat map over a grey image; where it is 0 the image is seen unchanged."""
    grey = np.asarray(image, dtype=np.float64).mean(axis=2) / (255 if image.dtype == np.uint8 else 1)
    extent = (0.0, float(image.shape[1]), float(image.shape[0]), 0.0)
    # A pale image on a light page, a dim one on a dark page: colours stand out from either.
    low, high = (0.25, 1.0) if shade("paper") == "#FFFFFF" else (0.05, 0.7)
    place.imshow(low + (high - low) * grey, cmap="gray", vmin=0, vmax=1, extent=extent)
    large = np.clip(enlarge(heat, image.shape) / limit, -1, 1)
    strong = np.sign(large) * (0.3 + 0.7 * np.abs(large))  # the pale middle of the scale would hide the image
    opacity = 0.85 * np.abs(large) ** 0.7
    place.imshow(strong, cmap=diverging(), vmin=-1, vmax=1, alpha=opacity, extent=extent)
    place.set(xticks=[], yticks=[])
    place.spines[:].set_visible(False)


def _mark_patch(place: Axes, shape: tuple[int, ...], patch: tuple[int, int], grid: tuple[int, int]) -> None:
    high, wide = shape[0] / grid[0], shape[1] / grid[1]
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]) + np.array(patch[::-1])
    for colour, width in (("black", 2.4), ("white", 1.0)):  # visible on anything
        place.plot(corners[:, 0] * wide, corners[:, 1] * high, color=colour, linewidth=width)


def _draw_scale(owner: Axes, limit: float, label: str, **where: Any) -> None:
    picture: Any = owner.figure
    bar = picture.colorbar(ScalarMappable(Normalize(-limit, limit), cmap=diverging()), **where)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=9, color=shade("faint"))
    bar.set_label(label, fontsize=9)
