"""The site: `python docs/build_site.py` builds it offline with Sphinx; nothing is fetched."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import elude_nb  # noqa: E402 - from this checkout

project, author, copyright = "elude_nb", "the authors of elude_nb", "Apache-2.0"  # noqa: A001 - Sphinx names it
version = release = elude_nb.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["attrs_inline"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"elude_nb {release}"
html_static_path: list[str] = []
html_copy_source = False
exclude_patterns = ["images/**", "site/**"]
# In docstrings, a name between single backticks is a link where it can be resolved, and code where it cannot.
default_role = "py:obj"
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True  # attributes as a list, and not each as an entry beside the panel's trait of that name
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {
    "members": True,
    "imported-members": True,
    "show-inheritance": True,
    "exclude-members": "set",
}
suppress_warnings = ["ref.python", "myst.xref_missing"]  # build_site.py follows all links of the pages it has made

ROOMS = {
    "scores": "Scores", "steering": "Steering", "interpret": "Interpretation", "baselines": "Baselines",
    "figures": "Figures", "widgets": "Panels", "text": "Sentences", "course": "A course", "errors": "Errors",
}  # fmt: skip


def _write_api(_: Any) -> None:
    """Write a page for the front door and one for each room."""
    folder = HERE / "api"
    folder.mkdir(exist_ok=True)
    parts = [
        "# The front door",
        "",
        "What `import elude_nb as en` has, as in `en.disentangle`. Rooms have pages of their own.",
    ]
    rooms = [importlib.import_module(f"elude_nb.{room}") for room in ROOMS]
    elsewhere = {id(getattr(room, name)) for room in rooms for name in getattr(room, "__all__", ())}
    for name in elude_nb.__all__:
        thing = getattr(elude_nb, name)
        kind = "autoclass" if isinstance(thing, type) else "autofunction"
        twice = "   :no-index:\n" if id(thing) in elsewhere else ""  # its entry is on the room's page
        parts.append(f"\n```{{eval-rst}}\n.. {kind}:: {thing.__module__}.{thing.__qualname__}\n{twice}```")
    (folder / "front_door.md").write_text("\n".join(parts) + "\n", encoding="utf-8")
    described: set[int] = set()
    for room, (name, title) in zip(rooms, ROOMS.items(), strict=True):
        things = {each: id(getattr(room, each)) for each in room.__all__}
        again = ", ".join(each for each, thing in things.items() if thing in described)
        described |= set(things.values())
        page = (
            f"# {title}\n\n```{{eval-rst}}\n.. automodule:: elude_nb.{name}\n   :exclude-members: set, {again}\n```\n"
        )
        (folder / f"{name}.md").write_text(page, encoding="utf-8")


def setup(app: Any) -> None:
    """Have the pages of the API written before the sources are looked for."""
    app.connect("builder-inited", _write_api)
