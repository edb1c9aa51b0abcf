"""Programs beside the package, as modules: those of `benchmarks` and `docs`, which are no package themselves."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def load_program(file: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the program in a file of this repository as a module of its own, which is forgotten after the test."""
    path = ROOT / file
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, found)  # dataclasses look there
    spec.loader.exec_module(found)
    return found
