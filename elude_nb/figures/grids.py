"""Grids of photographs: contact sheets, and what a channel likes before and after."""

from __future__ import annotations

from matplotlib.axes import Axes
from PIL import Image

from elude_nb.checks import check_count, check_flag, check_fraction, check_kind
from elude_nb.exemplars import Exemplar, Exemplars
from elude_nb.figures.theme import FAINT, INK, SEQUENCE, Picture, house_style
from elude_nb.images import ImageSet, as_image_set
from elude_nb.tiles import crop_at, lightened

_TILE = 1.05  # inches
_LABEL = 1.75  # inches for the names at the left


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
        picture = Picture(figsize=(columns * _TILE, rows * (_TILE + 0.2)))
        axes = picture.subplots(rows, columns, squeeze=False, gridspec_kw={"wspace": 0.05, "hspace": 0.25})
        for index, place in enumerate(axes.flat):
            place.axis("off")
            if index < count:
                place.imshow(square_thumbnail(images[index]))
                if images.labels is not None:
                    place.set_title(images.labels[index], fontsize=8, loc="center", pad=2)
    picture.alt = f"{count} images from {images.source}"
    return picture


def before_after(exemplars: Exemplars, *, crops: float | None = None, beside: bool = False) -> Picture:
    """Show what a whole channel likes, and below it what each of its sub-units likes.

    Where a unit is active the photograph keeps its colours; elsewhere it is darkened. The scale goes from 0 (a
    unit's mean) to the row's largest activation.

    Parameters
    ----------
    exemplars
        From `elude_nb.find_exemplars`.
    crops
        Show, instead of whole photographs under heat maps, what surrounds the patch at which a unit is highest: so much
        of the photograph's side, as 0.4 (0.43 is 96 pixels of 224).
    beside
        Show both: each crop at the right of its photograph.

    Raises
    ------
    ValueError
        If ``crops`` is not between 0 and 1, or missing with ``beside``.
    """
    check_kind("exemplars", exemplars, Exemplars, "what find_exemplars returns")
    check_flag("beside", beside)
    if crops is not None:
        check_fraction("crops", crops, open_ends=True)
    elif beside:
        raise ValueError("beside=True shows crops beside photographs; say how large, as in crops=0.4.")
    tiles = (None, crops) if beside else (crops,)  # of each exemplar
    rows, columns = len(exemplars.rows), len(tiles) * len(exemplars.rows[0])
    gap = 0.16  # between the whole channel and its parts
    width, height = _LABEL + columns * _TILE, rows * _TILE + gap + 0.3
    with house_style():
        picture = Picture(figsize=(width, height))
        for row, name in enumerate(exemplars.names):
            colour = INK if row == 0 else SEQUENCE[(row - 1) % len(SEQUENCE)]
            top = 1 - (0.3 + row * _TILE + (gap if row else 0)) / height
            _write_name(picture, name, exemplars.similarity[row], top - 0.5 * _TILE / height, colour)
            brightest = max(exemplar.value for exemplar in exemplars.rows[row])
            for column in range(columns):
                number, part = divmod(column, len(tiles))
                left = _LABEL + (column - 0.03 * part) * _TILE  # a crop is near its photograph
                box = (left / width, top - 0.96 * _TILE / height, 0.96 * _TILE / width, 0.96 * _TILE / height)
                draw_exemplar(picture.add_axes(box), exemplars.rows[row][number], brightest, colour, crop=tiles[part])
        picture.text(0, 1, f"Channel {exemplars.channel}", fontsize=12, fontweight="bold", va="top")
    shown = "; ".join(name.replace("\n", ": ") for name in exemplars.names)
    what = "Images" if crops is None else "Images and crops of them" if beside else "Crops of images"
    picture.alt = f"{what} that channel {exemplars.channel} likes, whole and by sub-unit. {shown}"
    return picture


def draw_exemplar(
    axes: Axes, exemplar: Exemplar, brightest: float, colour: str = INK, *, crop: float | None = None
) -> Axes:
    """Draw one photograph under its heat map: full colour at ``brightest``, dark at 0 and below.

    With ``crop``, so much of its side around the highest patch is drawn, and no heat.
    """
    image = exemplar.image
    if crop is not None:
        rows, columns = exemplar.heat.shape
        axes.imshow(crop_at(image, int(exemplar.heat.argmax()), (rows, columns), crop).clip(0, 1))
        return _framed(axes, colour)
    axes.imshow(lightened(image, exemplar.heat, brightest))
    return _framed(axes, colour)


def _framed(axes: Axes, colour: str) -> Axes:
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=True, color=colour, linewidth=1.6)
    return axes


def _write_name(picture: Picture, name: str, similarity: float, middle: float, colour: str) -> None:
    title, _, labels = name.partition("\n")
    title = title.replace(", ", "\n")
    lines = title.count("\n") + 1
    line = 0.165 / picture.get_figheight()
    start = middle + line * (lines + (1 if labels else 0) + 1) / 2
    picture.text(0, start, title, fontsize=9, fontweight="bold", color=colour, va="top", linespacing=1.25)
    below = start - lines * line * 1.05
    wrapped = labels.replace(", ", "\n", 1) if len(labels) > 24 else labels
    picture.text(
        0,
        below,
        f"{wrapped}\nalike: {similarity:.2f}" if labels else f"alike: {similarity:.2f}",
        fontsize=7.5,
        color=FAINT,
        va="top",
        linespacing=1.3,
    )


def square_thumbnail(image: Image.Image) -> Image.Image:
    """Return the middle square of an image, 160 pixels a side."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side)).resize((160, 160), Image.Resampling.BILINEAR)
