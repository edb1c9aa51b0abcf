from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import elude_nb

HEAVY = ("matplotlib", "plotly", "ipywidgets", "anywidget", "sklearn", "skimage", "onnx", "timm", "torchvision")

PROGRAM = """
import json, sys, warnings
import torch
before = torch.get_rng_state()
threads = torch.get_num_threads()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import elude_nb
print(json.dumps({
    "modules": sorted({name.partition(".")[0] for name in sys.modules}),
    "warnings": [str(warning.message) for warning in caught],
    "random": bool(torch.get_rng_state().equal(before)),
    "threads": torch.get_num_threads() == threads,
}))
"""


def test_importing_is_quick_and_without_side_effects() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert set(found["modules"]).isdisjoint(HEAVY)
    assert found["warnings"] == []
    assert found["random"]
    assert found["threads"]
    assert done.stderr == ""


def test_every_name_at_the_front_door_is_there() -> None:
    for name in elude_nb.__all__:
        assert getattr(elude_nb, name).__doc__, f"{name} has no docstring"
    assert elude_nb.__all__ == sorted(elude_nb.__all__)
    assert len(set(elude_nb.__all__)) == len(elude_nb.__all__)


def test_the_front_door_has_at_most_25_names() -> None:
    assert len(elude_nb.__all__) <= 25


def test_nothing_public_is_left_out() -> None:
    """What is imported into the front door by name is announced there."""
    public = {
        name
        for name, value in vars(elude_nb).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("elude_nb")
    }
    assert public | {"errors"} == set(elude_nb.__all__)


def test_errors_derive_from_pythons_own() -> None:
    found = [getattr(elude_nb.errors, name) for name in elude_nb.errors.__all__]
    assert all(issubclass(error, ValueError | TypeError | RuntimeError) for error in found)


def test_every_error_of_the_package_has_its_name_among_the_errors() -> None:
    package = Path(elude_nb.__file__).parent
    defined = {
        node.name
        for file in package.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and node.name.endswith("Error")
    }
    assert defined - {"TourError"} == set(elude_nb.errors.__all__)  # that one is the command line's


def test_version_is_one() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", elude_nb.__version__)
