"""Where in a picture an edit moves the representation: patch tokens after the last block, before and after."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from elude_nb._util.arithmetic import own_arithmetic
from elude_nb._util.checks import check_kind
from elude_nb._util.words import counted
from elude_nb.core.edit import Edit
from elude_nb.core.result import Disentanglement, check_split
from elude_nb.data.images import Images
from elude_nb.errors import SiteError
from elude_nb.models.forward import FeaturesAndPatches, Rest
from elude_nb.models.hooks import evaluating
from elude_nb.steering.controls import check_fixed_edit, describe_edit
from elude_nb.steering.interventions import run_interventions

_TAIL = 0.02  # of the patches on either side of the colours' scale


@dataclass(frozen=True, eq=False)
class PatchColours:
    """Three directions among patch tokens, and what is black and full colour on each: red, green and blue.

    Attributes
    ----------
    mean
        Of the tokens it was fitted on, (e,).
    directions
        Their first three principal components, (e, 3); the largest entry of each is positive.
    low, high
        The 2 % and 98 % quantiles on each component, (3,): colour 0 and colour 1.
    """

    mean: Tensor = field(repr=False)
    directions: Tensor = field(repr=False)
    low: Tensor
    high: Tensor

    @classmethod
    @own_arithmetic()
    def fit(cls, tokens: Tensor) -> PatchColours:
        """Fit on tokens (..., e) of one or several images.

        Raises
        ------
        ValueError
            If they are not finite, or fewer than three tokens or channels.
        """
        rows = _rows(tokens)
        if min(rows.shape) < 3:
            raise ValueError(f"Three components need three tokens and channels at least, not {tuple(tokens.shape)}.")
        mean = rows.mean(0)
        directions = torch.linalg.eigh((rows - mean).T @ (rows - mean)).eigenvectors[:, -3:].flip(1)  # (e, 3)
        largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
        directions = directions * largest.sign()
        low, high = ((rows - mean) @ directions).quantile(torch.tensor([_TAIL, 1 - _TAIL]).to(rows), dim=0)
        return cls(mean, directions, low, high)

    @own_arithmetic()
    def encode(self, tokens: Tensor) -> Tensor:
        """Return the colours (..., 3) of tokens (..., e), in [0, 1]; what lies beyond the scale is clipped.

        Raises
        ------
        ValueError
            If tokens are not finite, or have another number of channels.
        """
        rows = _rows(tokens)
        if rows.shape[1] != len(self.mean):
            raise ValueError(f"tokens={tuple(tokens.shape)} need {len(self.mean)} channels, as those of the fit have.")
        scores = (rows - self.mean) @ self.directions
        spread = (self.high - self.low).clamp(min=1e-12)
        return ((scores - self.low) / spread).clamp(0, 1).float().view(*tokens.shape[:-1], 3)


def patch_colours(tokens: Tensor, fit: Tensor | PatchColours | None = None) -> Tensor:
    """Return patch tokens as colours: their first three principal components as red, green and blue.

    Parameters
    ----------
    tokens
        Patch tokens (..., e), such as ``patch_change(...).after``.
    fit
        What the components and the scale are fitted on: tokens (..., e), or fitted `PatchColours`; by default
        ``tokens``. With ``fit=before`` the colours of ``before`` and ``after`` can be compared.

    Returns
    -------
    Tensor
        (..., 3) in [0, 1], float32.

    Raises
    ------
    ValueError
        If tokens are not finite, too few, or have another number of channels than those of the fit.

    Examples
    --------
    >>> patch_colours(torch.randn(2, 16, 16, 384)).shape
    torch.Size([2, 16, 16, 3])
    """
    fitted = fit if isinstance(fit, PatchColours) else PatchColours.fit(tokens if fit is None else fit)
    return fitted.encode(tokens)


def _rows(tokens: Tensor) -> Tensor:
    check_kind("tokens", tokens, Tensor, "patch tokens (..., e)")
    rows = tokens.detach().cpu().double().flatten(0, -2) if tokens.ndim > 1 else tokens[None].double()
    if not bool(rows.isfinite().all()):
        raise ValueError("tokens are NaN or infinite in places; find the image and leave it out.")
    return rows


def distance(before: Tensor, after: Tensor) -> Tensor:
    """Return 1 - cosine similarity of tokens (..., e) before and after, (...); exactly 0 where nothing moved.

    Examples
    --------
    >>> distance(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, 2.0], [0.0, 0.0]]))
    tensor([1., 0.])
    """
    turned = (1 - torch.nn.functional.cosine_similarity(before, after, dim=-1)).clamp(min=0)
    return torch.where((before == after).all(-1), 0, turned)


@dataclass(frozen=True, eq=False)
class PatchChange:
    """Patch tokens after the last block, without and with an edit.

    Attributes
    ----------
    edit
        The edit.
    before, after
        (n, h, w, e).
    pictures
        What the model sees of each image, (n, height, width, 3) in [0, 1].
    """

    edit: Edit
    before: Tensor = field(repr=False)
    after: Tensor = field(repr=False)
    pictures: Tensor = field(repr=False)

    @property
    def distance(self) -> Tensor:
        """How far each patch token moved, (n, h, w): 1 - cosine similarity, so 0 is not at all."""
        return distance(self.before, self.after)

    @property
    def colours(self) -> tuple[Tensor, Tensor]:
        """`patch_colours` before and after, (n, h, w, 3) each, both by the components of the tokens before."""
        fitted = PatchColours.fit(self.before)
        return fitted.encode(self.before), fitted.encode(self.after)

    def __repr__(self) -> str:
        moved = f"mean {float(self.distance.mean()):.3f}, largest {float(self.distance.max()):.3f}"
        return f"PatchChange({self.edit!r} on {counted(len(self.before), 'image')}: 1 - cosine {moved})"


@own_arithmetic()
def patch_change(
    split: Disentanglement, edit: Edit, images: Images, *, batch_size: int | None = None, progress: bool | None = None
) -> PatchChange:
    """Return the patch tokens of images after the model's last block, without and with an edit.

    They are what the model pools: after the norm that follows the last block, if there is one. `patch_colours` and
    `elude_nb.figures.patch_changes` show them.

    Parameters
    ----------
    split, edit
        The split and the edit.
    images
        Which images; all tokens are kept, (n, h, w, e) twice.
    batch_size, progress
        In place of the model's own settings.

    Raises
    ------
    EditError, ModelMismatchError
        If the split cannot carry out the edit, or it has a schedule.
    SiteError
        If the model has no patch tokens there.
    ValueError
        If there are no images.

    Examples
    --------
    ``patch_change(split, Edit.ablate(concept=12), held_out[:4]).distance``
    """
    split = split.using(batch_size=batch_size, progress=progress)
    check_split(split, "patch_change")
    check_fixed_edit(split, edit, "patch_change")
    photos = split.model.inputs(images)
    if not len(photos):
        raise ValueError("There are no images; give one at least.")
    read = FeaturesAndPatches(split.site.layout)
    with evaluating(split.model.network):
        rest = Rest(split.model, split.site, read)
        found = run_interventions(split, rest, photos, [describe_edit(split, edit)])
    before, after = (read.parts(rows)[1] for rows in (found.before, found.after[0, 1.0][0]))
    if before is None or after is None:
        raise SiteError(f"{split.model.name!r} has no patch tokens after its last block, or does not say where.")
    pictures = torch.stack([split.model.picture(image) for image in photos])
    return PatchChange(edit, before, after, pictures)
