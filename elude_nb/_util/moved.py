"""Import paths of version 0.2, kept for one version: each warns and hands out the module that took its place."""

from __future__ import annotations

import importlib
import sys
import warnings
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_MODULES = {
    "atlas": "interpret.concept_map",
    "attribution": "interpret.attribution",
    "cues": "data.cues",
    "exporting": "steering.export",
    "gallery": "interpret.gallery",
    "handles": "interpret.find_units",
    "heads": "steering.heads",
    "images": "data.images",
    "interventions": "steering.controls",
    "neighbours": "interpret.neighbours",
    "permanent": "steering.permanent",
    "planted": "scores.planted",
    "profiles": "interpret.profiles",
    "quiz": "interpret.quiz",
    "recording": "core.recording",
    "report": "app.report",
    "rivals": "baselines",
    "rivals.sparse": "baselines.sae",
    "routing": "core.routing",
    "similarity": "text.similarity",
    "transplanting": "steering.transplant",
    "vocabulary": "interpret.naming",
}
_NAMES = {"estimate": "core.estimate"}
_PACKAGE = "elude_nb."


class _Moved(MetaPathFinder, Loader):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:  # noqa: ARG002
        old = name.removeprefix(_PACKAGE)
        return ModuleSpec(name, self) if old != name and old in _MODULES else None

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:  # noqa: ARG002
        return None

    def exec_module(self, module: ModuleType) -> None:
        new = _PACKAGE + _MODULES[module.__name__.removeprefix(_PACKAGE)]
        _warn(module.__name__, new)
        sys.modules[module.__name__] = importlib.import_module(new)  # what `import` then hands out


def install() -> None:
    """Let Python find the modules of 0.2; asked last, so that nothing else is slower or shadowed."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved())


def attribute(name: str) -> Any:
    """Return what ``elude_nb.<name>`` was in 0.2; raise ``AttributeError`` if it was nothing."""
    if name not in _NAMES:
        raise AttributeError(f"module 'elude_nb' has no attribute {name!r}")
    module = _PACKAGE + _NAMES[name]
    _warn(_PACKAGE + name, f"{module}.{name}")
    return getattr(importlib.import_module(module), name)


def _warn(old: str, new: str) -> None:
    warnings.warn(f"{old} is now {new}; the old name goes with version 0.4.", DeprecationWarning, stacklevel=3)
