"""Which model a result belongs to: what is written of it into a file, and whether the model at hand is that one."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from elude_nb.models import Model, load_model
from elude_nb.recording import for_analysis
from elude_nb.store import StoreError
from elude_nb.taps import evaluating
from elude_nb.text_models import load_text_model


class ModelMismatchError(ValueError):
    """A result that belongs to another model."""


def identity_of(model: Model) -> dict[str, Any]:
    """Return all that a file says of the model it was made with, as JSON has it."""
    return {
        "model": model.name,
        "architecture": model.architecture,
        "image_size": model.input_size[-1],
        "weights": asdict(model.provenance),
        "fingerprint": model.fingerprint(),
        "dtype": str(model.dtype),
        "input_size": list(model.input_size),
        "versions": _versions(),
    }


def probe_of(model: Model) -> Tensor:
    """Return what the network makes of one fixed input: up to 4,096 of its outputs."""
    with evaluating(model.network):
        return for_analysis(model(model.noise())).flatten()[:4096]


def difference_of_models(model: Model, manifest: dict[str, Any], probe: Tensor | None) -> str:
    """Say how a model differs from the one that a manifest tells of; nothing if it does not."""
    settings = {"dtype": str(model.dtype), "input_size": list(model.input_size)}
    for name, here in settings.items():
        if manifest.get(name) != here:
            return f"its {name} is {here}, not {manifest.get(name)}"
    fingerprint = model.fingerprint()
    if manifest.get("fingerprint") != fingerprint:
        return f"its weights have SHA-256 {fingerprint[:12]}, not {str(manifest.get('fingerprint'))[:12]}"
    found = probe_of(model)
    if probe is None or probe.shape != found.shape or probe.dtype != found.dtype:
        return "its output has another shape or dtype"
    if not bool(probe.isfinite().all()):  # anything would be near enough to infinity
        return "the output noted in the file is not finite"
    # Other machines and versions round otherwise; another architecture is far away.
    allowed = 10 * torch.finfo(model.dtype).eps ** 0.5 * float(probe.abs().max())
    moved = float((probe - found).abs().max())
    return "" if moved <= allowed else f"with the same weights its output on noise differs by {moved:.2g}"


def load_named_model(manifest: dict[str, Any], path: str) -> Model:
    """Load the model that a manifest names; raise if no name leads back to it."""
    try:
        if manifest["weights"]["sha256"] is None:
            raise ValueError(
                f"{path!r} was made with weights that no name leads back to ({manifest['weights']['source']}); "
                "pass that model: Disentanglement.load(path, model)."
            )
        name, architecture = str(manifest["model"]), str(manifest["architecture"])
        size, inputs = manifest["image_size"], manifest["input_size"]
        dtype = getattr(torch, str(manifest["dtype"]).removeprefix("torch."))
    except (KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{path!r} does not say which model it belongs to ({error}); pass the model.") from error
    if isinstance(inputs, list) and len(inputs) == 1:  # so many tokens; images have three lengths
        return load_text_model(name, length=size, dtype=dtype)
    return load_model(name, architecture=architecture, image_size=size, dtype=dtype)


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("elude-nb", "torch", "timm", "safetensors")}
