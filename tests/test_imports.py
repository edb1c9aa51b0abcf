"""The one-way rule: a module imports only from modules that come before it, so there are no circles."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import elude_nb

ORDER = (
    "checks",
    "progress",
    "aside",
    "formats",
    "store",
    "weights",
    "scenes",
    "opening",
    "images",
    "sentences",
    "cues",
    "models",
    "sites",
    "taps",
    "text_models",
    "layers",
    "blocks",
    "layouts",
    "watching",
    "observing",
    "interception",
    "finding",
    "recording",
    "concepts",
    "routing",
    "lens",
    "explicit",
    "exporting",
    "identity",
    "edits",
    "plans",
    "steering",
    "contents",
    "disentanglement",
    "scores.inputs",
    "scores.coherence",
    "choosing",
    "discovery",
    "differences",
    "exactness",
    "embedding",
    "scores.intervals",
    "scores.semantics",
    "scores.labels",
    "scores.factors",
    "scores.health",
    "scores.intruder",
    "scores.judging",
    "scores.adapters",
    "scores.fidelity",
    "scores.overview",
    "scores",  # its front door, after its rooms
    "exemplars",
    "readings",
    "replacing",
    "profiles",
    "gallery",
    "quiz",
    "speaking",
    "tiles",
    "atlas",
    "before_after",
    "planted",
    "handles",
    "naming",
    "vocabulary",
    "resuming",
    "attribution",
    "rivals.base",
    "rivals.linear",
    "rivals.split",
    "rivals.parents",
    "rivals.training",
    "rivals.layouts",
    "rivals.sparse",
    "rivals.registry",
    "rivals",  # its front door, after its rooms
    "heads",
    "interventions",
    "trials",
    "controls",
    "effects",
    "similarity",
    "text",
    "permanent",
    "neighbours",
    "live",
    "transplanting",
    "entrants",
    "tables",
    "comparison",
    "figures.theme",
    "figures.plotly_theme",
    "figures.bars",
    "figures.grids",
    "figures.methods",
    "figures.scoring",
    "figures.steering",
    "figures.routes",
    "figures.flows",
    "figures.maps",
    "figures.profiles",
    "figures.atlas",
    "figures",  # its front door, after its rooms
    "widgets.panel",
    "widgets.copying",
    "widgets.patch_picker",
    "widgets.channel_explorer",
    "widgets.concept_atlas",
    "widgets.image_inspector",
    "widgets.steering_panel",
    "widgets.intruder_quiz",
    "widgets.workbench",
    "widgets",  # its front door, after its rooms
    "pages",
    "reporting",  # its rooms are one program's parts
    "reporting.packing",
    "reporting.looks",
    "reporting.concepts",
    "reporting.channels",
    "reporting.charts",
    "reporting.page",
    "report",
    "errors",
    "tour",
    "cli",
)
"""Every module of the package, in the order in which data flow through them. A new module goes where it belongs."""

ROOT = Path(elude_nb.__file__).parent


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__").replace("__init__", "")


FILES = {
    name: file
    for file in sorted(ROOT.rglob("*.py"))
    if "notebooks" not in file.parts and (name := module_name(file)) not in {"", "__main__"}
}


def imported_from(file: Path) -> set[str]:
    """Return the package's modules that a file imports, anywhere in it, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name}:{node.lineno}: import by the full name, not relatively"
            # `from elude_nb import x` may mean a module x; so may `from elude_nb.figures import x`
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    ours = {name.removeprefix("elude_nb").removeprefix(".") for name in found if name.split(".")[0] == "elude_nb"}
    return {name for name in ours if name in FILES or name == ""}


def test_every_module_has_a_place_in_the_order() -> None:
    unknown = sorted(set(FILES) - set(ORDER))
    assert not unknown, f"Add {unknown} to ORDER in {Path(__file__).name}, after all that they import."


@pytest.mark.parametrize("name", [name for name in ORDER if name in FILES])
def test_a_module_imports_only_from_earlier_ones(name) -> None:
    known = [module for module in imported_from(FILES[name]) if module in ORDER]
    later = [module for module in known if ORDER.index(module) >= ORDER.index(name)]
    assert not later, f"{name} imports {later}, which come after it: move what both need into an earlier module."


@pytest.mark.parametrize("name", [name for name in ORDER if name in FILES])
def test_no_module_but_the_last_imports_the_front_door(name) -> None:
    assert "" not in imported_from(FILES[name]) or name in {"cli", "tour"}, (
        f"{name} imports elude_nb itself, which imports everything: import the module that you mean."
    )


def test_names_in_the_order_are_unique() -> None:
    assert len(ORDER) == len(set(ORDER))
