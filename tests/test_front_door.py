from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import elude_nb

ROOMS = {"baselines", "errors", "figures", "interpret", "scores", "steering", "text", "widgets"}
HEAVY = (
    "torch",
    "pandas",
    "numpy",
    "matplotlib",
    "plotly",
    "ipywidgets",
    "anywidget",
    "sklearn",
    "skimage",
    "onnx",
    "timm",
    "torchvision",
)

PROGRAM = """
import json, sys, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import elude_nb, elude_nb.app.cli
    modules = sorted({name.partition(".")[0] for name in sys.modules})
    import elude_nb.app.class_files
    class_without_torch = "torch" not in sys.modules
    import torch
    before = torch.get_rng_state()
    threads = torch.get_num_threads()
    elude_nb.disentangle
print(json.dumps({
    "modules": modules,
    "class_without_torch": class_without_torch,
    "warnings": [str(warning.message) for warning in caught],
    "random": bool(torch.get_rng_state().equal(before)),
    "threads": torch.get_num_threads() == threads,
}))
"""


def test_importing_is_quick_and_without_side_effects() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert set(found["modules"]).isdisjoint(HEAVY)
    assert found["class_without_torch"]
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


def test_the_stub_promises_what_the_front_door_has() -> None:
    """Type checkers read the stub, Python follows it: both have the same names."""
    stub = ast.parse((Path(elude_nb.__file__).with_suffix(".pyi")).read_text(encoding="utf-8"))
    imported = {alias.name for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    (promised,) = (node.value for node in stub.body if isinstance(node, ast.Assign))
    assert imported - ROOMS == set(elude_nb.__all__) == set(ast.literal_eval(promised))


def test_errors_derive_from_pythons_own_and_from_one_of_ours() -> None:
    base = elude_nb.errors.EludeError
    for name in set(elude_nb.errors.__all__) - {"EludeError"}:
        error = getattr(elude_nb.errors, name)
        assert issubclass(error, ValueError | TypeError | RuntimeError)
        assert issubclass(error, base)


def test_every_error_is_defined_among_the_errors() -> None:
    package = Path(elude_nb.__file__).parent
    elsewhere = {
        node.name
        for file in package.rglob("*.py")
        if file.name != "errors.py"
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and node.name.endswith("Error")
    }
    assert not elsewhere


def test_rooms_come_with_the_front_door() -> None:
    assert set(dir(elude_nb)) == {*elude_nb.__all__, "__version__", *ROOMS}
    for room in ROOMS:
        assert getattr(elude_nb, room).__doc__
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        elude_nb.nothing_of_the_kind  # type: ignore[attr-defined]  # noqa: B018


def test_the_package_has_at_most_16_rooms() -> None:
    package = Path(elude_nb.__file__).parent
    rooms = [path for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    assert len([path for path in rooms if path.stem != "__main__"]) <= 16


@pytest.mark.parametrize(
    ("old", "name"),
    [("permanent", "make_permanent"), ("transplanting", "transplant"), ("planted", "planted_network"),
     ("neighbours", "find_neighbours"), ("gallery", "Gallery"), ("exporting", "save_onnx"), ("rivals", "TopK"),
     ("rivals.sparse", "SparseAutoencoder"), ("interventions", "edited_units"), ("heads", "predict"),
     ("quiz", "make_questions"), ("cues", "add_cue"), ("report", "write_report"), ("images", "photograph")],
)  # fmt: skip
def test_import_paths_of_version_02_work_and_warn(old, name) -> None:
    sys.modules.pop(f"elude_nb.{old}", None)
    with pytest.warns(DeprecationWarning, match=f"elude_nb.{old} is now"):
        module = importlib.import_module(f"elude_nb.{old}")
    assert getattr(module, name)


def test_a_name_that_left_the_front_door_warns() -> None:
    with pytest.warns(DeprecationWarning, match="core.estimate"):
        assert elude_nb.estimate  # type: ignore[attr-defined]


def test_version_is_one() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", elude_nb.__version__)
