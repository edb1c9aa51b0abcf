"""What a saved split holds beside its model, checked piece by piece before any of it is believed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pkgutil import resolve_name
from typing import Any, Literal

import torch
from torch import Tensor

from elude_nb._util.checks import check_choice, check_count, check_fraction
from elude_nb._util.files import load_result, save_result
from elude_nb.core.concepts import ConceptBook
from elude_nb.core.names import UniqueNames
from elude_nb.core.routing import NO_CONCEPT, Routing
from elude_nb.errors import ModelMismatchError, StoreError
from elude_nb.models.find_sites import find_site
from elude_nb.models.hooks import check_pristine, evaluating, for_analysis
from elude_nb.models.load import Model, check_model, load_model
from elude_nb.models.marks import weight_marks
from elude_nb.models.sites import TOKENS, Site


@dataclass(frozen=True)
class Settings:
    """How a disentanglement was made; enough to make it again."""

    site: str
    blocks: int | Literal["all"]
    concepts: int
    units: int
    shared: float | None
    routing: str
    strategy: str
    tokens: str
    tokens_per_image: int | None
    seed: int
    images: int
    images_from: str


KIND = "disentanglement"
_TEXTS = ("site", "routing", "strategy", "images_from")
_COUNTS = ("concepts", "units", "images")
_WHOLE = {"routes": torch.uint8, "concepts": torch.int64, "counts": torch.int64}
_FRACTIONS = ("channel_sums", "source_sums", "channel_variance", "unit_shares")


def read_settings(found: Any) -> Settings:
    """Return the settings that a file holds.

    Raises
    ------
    TypeError, ValueError
        If one is missing, not known, or not what it should be.
    """
    if not isinstance(found, dict):
        raise TypeError(f"settings must be an object, not {found!r:.80}")
    names = {field.name for field in fields(Settings)}
    wrong = sorted(names ^ found.keys())
    if wrong:
        raise ValueError(f"settings lack or are too many: {', '.join(wrong)[:200]}")
    for name in _TEXTS:
        if not isinstance(found[name], str):
            raise TypeError(f"{name} must be text, not {found[name]!r:.80}")
    for name in _COUNTS:
        check_count(name, found[name])
    if found["blocks"] != "all":
        check_count("blocks", found["blocks"])
    if found["tokens_per_image"] is not None:
        check_count("tokens_per_image", found["tokens_per_image"])
    check_count("seed", found["seed"], 0)
    if found["shared"] is not None:
        check_fraction("shared", found["shared"])
    check_choice("tokens", found["tokens"], TOKENS)
    return Settings(**found)


def read_reasons(found: Any) -> tuple[str, ...]:
    """Return why each channel was split or not; raise ``TypeError`` if a file says it in another way."""
    if not isinstance(found, list) or not all(isinstance(reason, str) for reason in found):
        raise TypeError(f"reasons must be a list of texts, not {found!r:.80}")
    return tuple(found)


def check_tensors(tensors: Mapping[str, Tensor], site: Site, dtype: torch.dtype) -> None:
    """Raise ``ValueError`` unless all tensors of a split of this site are there, with the right dtypes and shapes.

    And with values that can be: finite, and concepts that there are. The routing itself checks the routes. ``dtype`` is
    that of the analysis, see `elude_nb.models.hooks.for_analysis`.
    """
    missing = [name for name in (*_WHOLE, *_FRACTIONS) if name not in tensors]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    for name, whole in _WHOLE.items():
        if tensors[name].dtype != whole:
            raise ValueError(f"{name} is of {tensors[name].dtype}, not of {whole}")
    for name in _FRACTIONS:
        wanted = torch.float64 if name == "channel_sums" else dtype
        if tensors[name].dtype != wanted:
            raise ValueError(f"{name} is of {tensors[name].dtype}, not of {wanted}")
        if not bool(tensors[name].isfinite().all()):
            raise ValueError(f"{name} holds NaN or infinite values")
    counts, concepts = tensors["counts"], tensors["concepts"]
    if counts.ndim != 1 or not len(counts) or int(counts.min()) < 1:
        raise ValueError(f"counts must be (g,) and 1 at least, not {tuple(counts.shape)}")
    d, s, g = site.channels, site.sources * site.kernel, len(counts)
    k = concepts.shape[1] if concepts.ndim == 2 else 0
    shapes = {
        "routes": (d, site.sources),
        "concepts": (d, k),
        "channel_sums": (g, d),
        "source_sums": (g, s),
        "channel_variance": (d,),
        "unit_shares": (d, k + 1),
    }
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensors[name].shape)}, not {shape}")
    if concepts.numel() and not (int(concepts.min()) >= NO_CONCEPT and int(concepts.max()) < g):
        low, high = int(concepts.min()), int(concepts.max())
        raise ValueError(f"concepts of sub-units go from {low} to {high}; there are {g}, and {NO_CONCEPT} is none")


def check_seen(seen: Tensor | None, images: int) -> None:
    """Raise ``ValueError`` unless there is one hash for each image of the discovery, or none at all (version 0.2)."""
    if seen is not None and (seen.shape != (images,) or seen.dtype != torch.int64):
        raise ValueError(f"seen must be ({images},) of int64, not {tuple(seen.shape)} of {seen.dtype}")


def write_split(
    path: str | os.PathLike[str],
    model: Model,
    settings: Settings,
    routing: Routing,
    book: ConceptBook,
    names: UniqueNames,
    more: dict[str, Tensor],
) -> None:
    """Write a split to one safetensors file, and the identity of its model with it; ``more`` are its other tensors."""
    tensors = {
        "routes": routing.routes,
        "concepts": routing.concepts,
        "counts": book.counts,
        "channel_sums": book.channel_sums,
        "source_sums": book.source_sums,
        "probe": probe_of(model),
        **({} if routing.owner_sets is None else {"owner_sets": routing.owner_sets}),
        **more,
    }
    manifest = {
        **identity_of(model),
        "settings": asdict(settings),
        "reasons": list(routing.reasons),
        "names": {str(concept): name for concept, name in names.items()},
        "labels": {str(concept): label for concept, label in names.labels.items()},
        "descriptions": {str(concept): text for concept, text in names.descriptions.items()},
    }
    save_result(path, KIND, tensors, manifest)


def read_split(path: str | os.PathLike[str], model: Model | None) -> dict[str, Any]:
    """Return the parts of a saved split, by the names of `elude_nb.Disentanglement`'s attributes, each checked."""
    tensors, manifest = load_result(path, KIND)
    if model is None:
        model = load_named_model(manifest, os.fspath(path))
    check_model(model)
    check_pristine(model.network, "load")
    difference = difference_of_models(model, manifest, tensors.get("probe"))
    if difference:
        raise ModelMismatchError(
            f"{os.fspath(path)!r} was made with {manifest.get('model')!r} ({manifest.get('architecture')}), not "
            f"with this {model.name!r}: {difference}. Load that model, or disentangle this one."
        )
    try:
        settings = read_settings(manifest.get("settings"))
        site = find_site(model, settings.site, blocks=settings.blocks)
        check_tensors(tensors, site, for_analysis(torch.empty(0, dtype=model.dtype)).dtype)
        check_seen(tensors.get("seen"), settings.images)
        reasons = read_reasons(manifest.get("reasons"))
        routing = Routing(tensors["routes"], tensors["concepts"], reasons, tensors.get("owner_sets"))
    except (TypeError, ValueError) as error:  # a SiteError is one, too
        raise StoreError(f"{os.fspath(path)!r} holds no disentanglement of this model ({error})") from error
    book = ConceptBook(tensors["counts"], tensors["channel_sums"], tensors["source_sums"])
    names = _read_names(manifest, len(book), os.fspath(path))
    rest = {name: tensors[name] for name in ("channel_variance", "unit_shares")}
    return {
        "model": model,
        "site": site,
        "routing": routing,
        "book": book,
        "settings": settings,
        "names": names,
        "seen": tensors.get("seen"),
        **rest,
    }


def _read_names(manifest: dict[str, Any], n_concepts: int, path: str) -> UniqueNames:
    """Return the names of a file; those of version 0.2 have no labels, and no descriptions."""
    kinds = manifest.get("names"), manifest.get("labels", {}), manifest.get("descriptions", {})
    try:
        # Whatever is no mapping is damaged: it has no items.
        names, labels, texts = ({int(c): text for c, text in kind.items()} for kind in kinds)  # type: ignore[union-attr]
        found = UniqueNames().updated(UniqueNames(names, None, texts), labels, n_concepts)
    except (AttributeError, TypeError, ValueError) as error:
        raise StoreError(f"{path!r}: the names of its concepts are damaged ({error}); make the file anew.") from error
    return UniqueNames(found, {concept: found.labels[concept] for concept in labels}, found.descriptions)


class Stamp:
    """What tells cheaply that the weights of a network are still those of a split.

    It holds for each parameter and buffer its identity, its version (torch counts changes in place), where it lies, and
    a few of its values, since what is written through ``.data`` is not counted. Only where one of them differs, or
    where `check` is ``thorough``, the SHA-256 of all weights is worked out again.

    Attributes
    ----------
    fingerprint
        SHA-256 over all parameters and buffers, as `Model.fingerprint` gives it.
    """

    def __init__(self, model: Model) -> None:
        self.fingerprint = model.fingerprint()
        self._marks = weight_marks(model.network)

    def check(self, model: Model, *, thorough: bool = False) -> None:
        """Raise `ModelMismatchError` if the weights of ``model`` are others than they were.

        Parameters
        ----------
        model
            The model that was stamped.
        thorough
            Whether to work out the SHA-256 in any case: before something is written, or certified.
        """
        marks = weight_marks(model.network)
        if marks == self._marks and not thorough:
            return
        if model.fingerprint() == self.fingerprint:  # moved to another device, or the same values loaded again
            self._marks = marks
            return
        for name, mark in self._marks.items():
            before, now = mark.dtype, marks[name].dtype if name in marks else mark.dtype
            if before != now:
                raise ModelMismatchError(
                    f"{model.name!r} was split in {before}, and {name!r} is now in {now}. Move it back, load it again "
                    f"if that rounded its weights, or disentangle a model in {now}: model.to(dtype={now})."
                )
        changed = sorted(name for name in marks.keys() | self._marks.keys() if marks.get(name) != self._marks.get(name))
        named = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
        raise ModelMismatchError(
            f"The weights of {model.name!r} are not those that were split{': ' + named if named else ''} changed "
            "afterwards. Put the old ones back (load_state_dict), or disentangle the model as it is now."
        )


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


def difference_of_weights(model: Model, manifest: Mapping[str, Any], fingerprint: str) -> str:
    """Say how a model of that fingerprint differs from a manifest's in dtype, input or weights, if it does."""
    settings = {"dtype": str(model.dtype), "input_size": list(model.input_size)}
    for name, here in settings.items():
        if manifest.get(name) != here:
            return f"its {name.replace('_', ' ')} is {here}, not {manifest.get(name)}"
    if manifest.get("fingerprint") != fingerprint:
        return f"its weights have SHA-256 {fingerprint[:12]}, not {str(manifest.get('fingerprint'))[:12]}"
    return ""


def difference_of_models(model: Model, manifest: dict[str, Any], probe: Tensor | None) -> str:
    """Say how a model differs from the one that a manifest tells of, also in what it computes, if it does."""
    difference = difference_of_weights(model, manifest, model.fingerprint())
    if difference:
        return difference
    found = probe_of(model)
    if probe is None or probe.shape != found.shape or probe.dtype != found.dtype:
        return "its output has another shape or dtype"
    if not bool(probe.isfinite().all()):  # anything would be near enough to infinity
        return "the output noted in the file is not finite"
    # Other machines and versions round otherwise; another architecture is far away.
    allowed = 10 * torch.finfo(model.dtype).eps ** 0.5 * float(probe.abs().max())
    moved = float((probe - found).abs().max())
    return "" if moved <= allowed else f"with the same weights its output on noise differs by {moved:.2g}"


def load_model_of(path: str | os.PathLike[str], name: str | None = None, **how: Any) -> Model:
    """Load the model that a saved split names, or another ``name``; ``how`` are arguments of `load_model` that differ.

    Raises
    ------
    StoreError, ValueError, WeightsError
        If the file cannot be read, or no name leads back to its model.
    """
    return load_named_model(load_result(path, KIND)[1], os.fspath(path), name, **how)


def load_named_model(manifest: dict[str, Any], path: str, instead: str | None = None, **how: Any) -> Model:
    """Load the model that a manifest names, or ``instead``; raise if no name leads back to it."""
    try:
        if manifest["weights"]["sha256"] is None and how.get("pretrained") is False:
            instead = instead or str(manifest["architecture"])  # random weights, as the caller says
        if manifest["weights"]["sha256"] is None and instead is None:
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
        # text is a wing on top of the core: it is looked up by name, and only for a file that says it is needed
        load_text_model = resolve_name("elude_nb.text.models:load_text_model")
        found: Model = load_text_model(instead or name, **{"length": size, "dtype": dtype, **how})
        return found
    image_size = tuple(inputs[-2:]) if isinstance(inputs, list) else size
    stated = {"architecture": architecture, "image_size": image_size, "dtype": dtype}
    return load_model(instead or name, **{**stated, **how})


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("elude-nb", "torch", "timm", "safetensors")}
