"""Activation maps: where in an image a unit speaks, on one scale, against speaking and against silence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from PIL import Image

from elude_nb.figures.theme import FAINT, INK, SEQUENCE, Picture, house_style
from elude_nb.gallery import Gallery

_COLOURS = "RdBu_r"  # red above the mean, blue below; told apart by colour-blind people


def activation_map(
    image: np.ndarray[tuple[int, ...], np.dtype[Any]],
    heat: np.ndarray[tuple[int, ...], np.dtype[Any]],
    *,
    limit: float | None = None,
    title: str = "",
    axes: Axes | None = None,
) -> Picture | Axes:
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
        What stands above.
    axes
        Where to draw (then without a scale); by default a new picture, which is returned.

    Raises
    ------
    ValueError
        If shapes are wrong or a value is not finite.
    """
    heat = np.asarray(heat, dtype=np.float64)
    if image.ndim != 3 or image.shape[2] != 3 or heat.ndim != 2:
        raise ValueError(f"image must be (h, w, 3) and heat (rows, columns), not {image.shape} and {heat.shape}.")
    if not np.isfinite(heat).all():
        raise ValueError("heat has values that are not finite.")
    limit = float(np.abs(heat).max()) if limit is None else limit
    with house_style():
        picture = None
        if axes is None:
            picture = Picture(figsize=(3.9, 3.2))
            axes = picture.subplots()
        grey = np.asarray(image, dtype=np.float64).mean(axis=2) / (255 if image.dtype == np.uint8 else 1)
        extent = (0.0, float(image.shape[1]), float(image.shape[0]), 0.0)
        axes.imshow(0.25 + 0.75 * grey, cmap="gray", vmin=0, vmax=1, extent=extent)
        share = np.clip(np.abs(heat) / max(limit, 1e-12), 0, 1)
        # Smooth opacity, exact colours: the eye sees where, the scale says how much.
        opacity, enlarged = (_enlarged(values, image.shape[:2]) for values in (share, heat))
        axes.imshow(
            enlarged,
            cmap=_COLOURS,
            vmin=-max(limit, 1e-12),
            vmax=max(limit, 1e-12),
            alpha=0.85 * opacity.clip(0, 1),
            extent=extent,
        )
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        if title:
            axes.set_title(title, fontsize=8.5, loc="center", color=INK)
        if picture is not None:
            bar: Any = picture.colorbar(_scale(limit), ax=axes, shrink=0.85)
            bar.outline.set_visible(False)
            bar.ax.tick_params(labelsize=7.5, color=FAINT)
            bar.set_label("above the mean", fontsize=8)
    if picture is None:
        return axes
    picture.alt = f"Activation over an image, from {heat.min():.2f} to {heat.max():.2f}. {title}".strip()
    return picture


def unit_maps(gallery: Gallery, image: int, channel: int, *, units: Sequence[int] | int = 6) -> Picture:
    """Show where in one image a whole channel speaks, and where each of its sub-units does, on one scale.

    The maps of all units add up to that of the channel.

    Parameters
    ----------
    gallery, image
        Images that are ready, and the number of one.
    channel
        The channel.
    units
        Which sub-units, or how many: those that vary most over this image.

    Raises
    ------
    ValueError
        If the image is not ready, or there is no such channel or unit.
    """
    if not 0 <= image < len(gallery):
        raise ValueError(f"image={image}: the gallery has {len(gallery)} that are ready, from 0.")
    view = gallery.channel(channel)
    maps = view.maps[image]
    known = view.units["unit"].tolist()
    if isinstance(units, int):
        order = maps.var(0).argsort(descending=True).tolist()
        chosen = sorted([known[place] for place in order if known[place] > 0][:units])
    else:
        chosen = list(units)
        unknown = [unit for unit in chosen if unit not in known]
        if unknown:
            raise ValueError(f"Channel {channel} has no unit {unknown[0]}; it has {known}.")
    whole = maps.sum(-1) - float(gallery.split.book.channel_mean()[channel])
    parts = [(_name(view.units, unit), maps[:, known.index(unit)]) for unit in chosen]
    shown = [("the image", None), ("whole channel", whole), *parts]
    limit = max(float(heat.abs().max()) for _, heat in shown if heat is not None)
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    seen = gallery.pictures_of(image)
    with house_style():
        picture = Picture(figsize=(2.0 * columns + 1.0, 2.0 * rows + 0.5))
        places = picture.subplots(rows, columns, squeeze=False, gridspec_kw={"wspace": 0.06, "hspace": 0.12}).flat
        for number, place in enumerate(places):
            if number >= len(shown):
                place.axis("off")
                continue
            title, heat = shown[number]
            if heat is None:
                place.imshow(seen)
                place.set(xticks=[], yticks=[])
                place.set_title(title, fontsize=8.5, loc="center")
                continue
            activation_map(seen, heat.view(*gallery.grid).numpy(), limit=limit, title=title, axes=place)
            if number > 1:
                place.spines[:].set(visible=True, color=SEQUENCE[(number - 2) % len(SEQUENCE)], linewidth=1.6)
        bar: Any = picture.colorbar(_scale(limit), ax=picture.axes, shrink=0.6, pad=0.02)
        bar.outline.set_visible(False)
        bar.set_label("activation above the mean", fontsize=8)
        picture.suptitle(f"Channel {channel} over image {image}", x=0.125, ha="left", fontsize=11)
    picture.alt = f"Where channel {channel} and {len(chosen)} of its sub-units are active over image {image}"
    return picture


def _enlarged(values: np.ndarray[Any, Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    small = Image.fromarray(values.astype(np.float32))
    return np.asarray(small.resize((shape[1], shape[0]), Image.Resampling.BICUBIC))


def _name(units: Any, unit: int) -> str:
    row = units[units["unit"] == unit].iloc[0]
    meaning = str(row["name"]) or ("" if pd.isna(row["concept"]) else f"concept {row['concept']}")
    return (f"sub-unit {unit}" if unit else "shared unit") + (f", {meaning}" if meaning else "")


def _scale(limit: float) -> Any:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    return ScalarMappable(Normalize(-max(limit, 1e-12), max(limit, 1e-12)), cmap=_COLOURS)
