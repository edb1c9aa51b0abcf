"""Transplant a concept: its activations in one image, as an edit for any other."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

from PIL import Image

from elude_nb._util.checks import check_fraction, check_kind
from elude_nb.core.edit import Edit
from elude_nb.core.plan import concept_number
from elude_nb.core.result import Disentanglement, check_split
from elude_nb.errors import EditError
from elude_nb.steering.controls import edited_units


def transplant(
    split: Disentanglement,
    image: Image.Image,
    concept: int | str | Sequence[int | str],
    *,
    share: float = 0.25,
    mask: Any = None,
    strength: float = 1.0,
) -> Edit:
    """Return the edit that sets a concept's sub-units to their activations in ``image``, where it is strongest there.

    Parameters
    ----------
    split
        The split.
    image
        The image to take the concept from.
    concept
        Its number or name, or several.
    share
        The share of the image's patches, those with the highest read-out of the concept, that are averaged.
    mask
        Where to put it, as in `Edit.scale`; by default at all patches.
    strength
        How much of the way is gone.

    Returns
    -------
    Edit
        For each concept a change for the patches, and without a mask one for the class token, if the site has one:
        there the sub-units are set to what they are at the image's own class token.

    Raises
    ------
    EditError
        If there is no such concept, or no channel has a sub-unit of it.
    """
    check_split(split)
    check_fraction("share", share)
    several = [concept] if isinstance(concept, int | str) else list(concept)
    if not several:
        raise EditError("concept is empty; name one.")
    for each in several:
        check_kind("concept", each, Integral | str, "the number or the name of a concept")
    units = {concept_number(split, each): edited_units(split, Edit.ablate(concept=each)) for each in several}
    pairs = [pair for mine in units.values() for pair in mine]
    layout = split.site.layout
    kind = "patch" if layout.grid else "class"
    values = split.activations([image], pairs, tokens=kind).reshape(-1, len(pairs))  # (t, u)
    readouts = split.concept_activations([image], tokens=kind).reshape(len(values), -1)  # (t, g)
    at_class = kind == "patch" and layout.classes > 0 and mask is None
    class_token = (
        split.activations([image], pairs, tokens="class").reshape(-1, len(pairs)).mean(0) if at_class else None
    )
    edit, start = Edit(), 0
    for number, mine in units.items():
        stop = start + len(mine)
        best = readouts[:, number].topk(max(1, round(share * len(values)))).indices
        to = values[best, start:stop].mean(0).tolist()
        edit += Edit.ablate(unit=mine, to=to, tokens=kind, mask=mask, strength=strength)
        if class_token is not None:
            edit += Edit.ablate(unit=mine, to=class_token[start:stop].tolist(), tokens="class", strength=strength)
        start = stop
    return edit
