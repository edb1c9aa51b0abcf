"""Weights of sparse autoencoders from other libraries: which tensor has which role, and the order of its axes."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import Tensor

from elude_nb._util.checks import check_choice, check_count, check_kind
from elude_nb._util.files import existing_file, read_tensors
from elude_nb.errors import StoreError

_LAYOUTS = {
    "encoder": {"encoder.weight": "ud", "W_enc": "du", "encoder": ""},
    "decoder": {"decoder.weight": "du", "W_dec": "ud", "dictionary._weights": "ud", "decoder": ""},
    "bias": {"encoder.bias": "u", "b_enc": "u", "latent_bias": "u"},
    "centre": {"decoder.bias": "d", "b_dec": "d", "pre_bias": "d", "bias": "d"},
    "threshold": {"threshold": "u"},
    "k": {"k": ""},
}
"""Tensor names and axes in OpenAI's sparse_autoencoder, SAELens, dictionary_learning, sparsify and overcomplete."""
_IGNORED = {"stats_last_nonzero", "latents_activation_frequency", "latents_mean_square", "group_sizes"}


def read_weights(
    weights: str | os.PathLike[str] | Mapping[str, Tensor],
    *,
    names: Mapping[str, str] | None = None,
    channels: int | None = None,
) -> dict[str, Tensor]:
    """Return an autoencoder's weights of any common layout in ours, in float32; see `TopK.load_pretrained`.

    Returns
    -------
    dict
        ``encoder`` (d, u), ``bias`` (u,), ``decoder`` (u, d), ``centre`` (d,), zeros for a missing bias or centre; and
        ``threshold`` and ``k`` if they are there.

    Examples
    --------
    >>> found = read_weights({"W_enc": torch.ones(2, 3), "W_dec": torch.ones(3, 2), "b_dec": torch.ones(2)})
    >>> {name: tuple(tensor.shape) for name, tensor in found.items()}
    {'encoder': (2, 3), 'decoder': (3, 2), 'centre': (2,), 'bias': (3,)}
    """
    tensors = (
        dict(weights)
        if isinstance(weights, Mapping)
        else read_tensors(existing_file(weights, "mend the path"), StoreError)[0]
    )
    check_kind("names", names, Mapping | None, "a mapping of roles to tensors, such as {'encoder': 'W_enc'}")
    where = _match(tensors, dict(names or {}))
    found = {role: _finite(role, tensors[name]) for role, name in where.items()}
    axes = {role: _LAYOUTS[role].get(name, "") for role, name in where.items()}
    d = found["centre"].numel() if "centre" in found else None
    d = d if channels is None else check_count("channels", channels)
    u = found["bias"].numel() if "bias" in found else None
    found["encoder"] = _orient("encoder", found["encoder"], axes["encoder"], d, u, first="d")
    d, u = found["encoder"].shape
    found["decoder"] = _orient("decoder", found["decoder"], axes["decoder"], d, u, first="u")
    found.setdefault("bias", torch.zeros(u))
    found.setdefault("centre", torch.zeros(d))
    for role, allowed in (("bias", [(u,)]), ("centre", [(d,)]), ("threshold", [(u,), ()]), ("k", [()])):
        if role in found and tuple(found[role].shape) not in allowed:
            raise ValueError(f"{role} {tuple(found[role].shape)} does not fit the encoder: it must be {allowed[0]}.")
    return {role: tensor.contiguous() for role, tensor in found.items()}


def _match(tensors: Mapping[str, Tensor], names: dict[str, str]) -> dict[str, str]:
    """Return the name of the tensor for each role."""
    for role, name in names.items():
        check_choice("a key of names", role, _LAYOUTS)
        check_choice(f"names[{role!r}]", name, tensors)
    found = dict(names)
    for role, known in _LAYOUTS.items():
        present = [name for name in known if name in tensors and role not in names and name not in names.values()]
        if len(present) > 1:
            raise ValueError(f"{present} could each be the {role}; give names={{{role!r}: ...}}.")
        found |= {role: present[0]} if present else {}
    missing = [role for role in ("encoder", "decoder") if role not in found]
    unknown = sorted(set(tensors) - set(found.values()) - _IGNORED)
    if missing:
        raise ValueError(
            f"No {' and no '.join(missing)} among the tensors {sorted(tensors)}; give names={{{missing[0]!r}: ...}}."
        )
    if unknown and not names:  # without a gate or a second bias units would be wrong
        raise ValueError(
            f"The roles of {unknown} are not known; give names for the tensors to use, or leave these out."
        )
    return found


def _orient(role: str, matrix: Tensor, axes: str, d: int | None, u: int | None, *, first: str) -> Tensor:
    """Return a matrix with axis ``first`` ("d" or "u") first: by the known sizes, or else by the tensor's name."""
    if matrix.ndim != 2:
        raise ValueError(f"The {role} must be a matrix, not {tuple(matrix.shape)}.")
    shape, sizes = tuple(matrix.shape), {"d": d, "u": u}
    fits = [way for way in ("du", "ud") if all(sizes[axis] in {None, n} for axis, n in zip(way, shape, strict=True))]
    if not fits:
        raise ValueError(f"The {role} {shape} does not fit d={d} channels and u={u} latents.")
    way = fits[0] if len(fits) == 1 else axes
    if not way:
        known = [name for name, order in _LAYOUTS[role].items() if order]
        cure = "give channels=" if shape[0] != shape[1] else f"use a name that determines it, one of {known}"
        raise ValueError(f"Which axis of the {role} {shape} is the channels is not known; {cure}.")
    return matrix if way[0] == first else matrix.T


def _finite(role: str, tensor: Tensor) -> Tensor:
    check_kind(f"The {role}", tensor, Tensor, "a tensor")
    if not tensor.is_complex():
        try:
            found = tensor.detach().cpu().float()  # first: torch cannot check 8-bit floats
        except (NotImplementedError, RuntimeError) as error:
            raise ValueError(f"The {role} ({tensor.dtype}) cannot be read as numbers; save it as float32.") from error
        if bool(found.isfinite().all()):
            return found
    raise ValueError(f"The {role} ({tensor.dtype}) contains complex, NaN or infinite values.")
