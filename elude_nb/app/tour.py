"""The tour: run the notebooks in fresh kernels and leave HTML pages that open offline."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from elude_nb._util.checks import near_matches
from elude_nb._util.files import atomic_write, check_writable
from elude_nb._util.html import render
from elude_nb._util.progress import TEXT_BARS, announced, progress_bar, say
from elude_nb._util.words import counted
from elude_nb.errors import TourError

if TYPE_CHECKING:
    from nbformat import NotebookNode

_WIDGET = "application/vnd.jupyter.widget-view+json"
_PLOTLY = "application/vnd.plotly.v1+json"


def find_notebooks(only: Sequence[str] | None = None) -> list[Path]:
    """Return the notebooks of this installation in order, or those whose names start with one of ``only``.

    Raises
    ------
    ValueError
        If a name in ``only`` fits no notebook.
    """
    package = Path(__file__).parent.parent
    folders = [folder for folder in (package / "notebooks", package.parent / "notebooks") if folder.is_dir()]
    found = sorted(folders[0].glob("[0-9]*.ipynb")) if folders else []
    if not found:
        raise TourError("The notebooks are missing from this installation; install elude-nb anew.")
    if only is None:
        return found
    for wanted in only:
        if not any(path.stem.startswith(wanted.strip()) for path in found) or not wanted.strip():
            names = [path.stem for path in found]
            raise ValueError(f"No notebook starts with {wanted!r}; there are {names}.{near_matches(wanted, names)}")
    return [path for path in found if any(path.stem.startswith(wanted.strip()) for wanted in only)]


def run_tour(out: Path, *, only: Sequence[str] | None = None, progress: bool = True) -> Path:
    """Run notebooks and write one page each and an index to the folder ``out``; return the index.

    Parameters
    ----------
    out
        The folder; it is made if needed.
    only
        Beginnings of names, as in ``["01", "02"]``; all by default.
    progress
        Show a progress bar over all cells, with the bar of what runs inside the cell behind it.

    Raises
    ------
    TourError
        If a cell fails (the pages before it are kept), or a notebook named in ``only`` needs packages that are not
        installed. Without ``only`` such a notebook is left out, and the index says so.
    """
    import nbformat

    every = [(path, nbformat.read(path, as_version=4)) for path in find_notebooks(only)]
    skipped = [f"{path.stem}: {lacking}" for path, notebook in every if (lacking := lacking_packages(notebook))]
    if only is not None and skipped:
        raise TourError("; ".join(skipped))
    notebooks = [(path, notebook) for path, notebook in every if not lacking_packages(notebook)]
    out.mkdir(parents=True, exist_ok=True)
    check_writable(out)  # found out now, not after minutes
    cells = sum(cell.cell_type == "code" for _, notebook in notebooks for cell in notebook.cells)
    pages = []
    with progress_bar(description="tour", total=cells, show=progress, unit="cell") as bar:
        what = f"tour: {counted(len(notebooks), 'notebook')}"
        for path, notebook in announced(notebooks, what, lambda first: first * len(notebooks), show=progress):
            bar.set_description(path.stem)
            _execute(notebook, path, bar)
            page = out / f"{path.stem}.html"
            _write(page, _page(notebook))
            pages.append((page, notebook))
    index = out / "index.html"
    _write(index, _index(pages, skipped))
    for line in skipped:
        say(f"tour: left out {line}")
    return index


def lacking_packages(notebook: NotebookNode) -> str:
    """Say which packages a notebook lacks, as its metadata names them, and what to type; nothing if it has all."""
    needs = notebook.metadata.get("elude_nb", {})
    lacking = [name for name in needs.get("packages", []) if find_spec(name) is None]
    return f"it needs {', '.join(lacking)}: pip install 'elude-nb[{needs['extra']}]'" if lacking else ""


def _execute(notebook: NotebookNode, path: Path, bar: Any) -> None:
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    class Client(NotebookClient):
        """Sends progress bars of the kernel to the terminal instead of the page."""

        def output(self, outs: list[Any], msg: dict[str, Any], display_id: str | None, cell_index: int) -> Any:
            content = msg["content"]
            if msg["msg_type"] == "stream" and content["name"] == "stderr":
                inner = last_bar(content["text"])
                if inner:
                    bar.set_postfix_str(inner)
                if inner or not content["text"].strip():
                    return None
            return super().output(outs, msg, display_id, cell_index)

    def cell_done(cell: Any, cell_index: int, execute_reply: Any) -> None:  # noqa: ARG001 - nbclient names them
        if cell.cell_type == "code":
            bar.set_postfix_str("")
            bar.update()

    client = Client(notebook, timeout=3600, kernel_name="python3", on_cell_executed=cell_done)
    try:
        client.execute(env={**os.environ, TEXT_BARS: "1"})  # widgets could not be sent on
    except CellExecutionError as error:
        raise TourError(f"{path.name} failed.\n{error}") from error
    except OSError as error:
        raise TourError(
            f"No kernel can be started for {path.name} ({error}). Jupyter writes files of its own: set the variables "
            "JUPYTER_RUNTIME_DIR and IPYTHONDIR to folders that can be written."
        ) from error


def last_bar(text: str) -> str:
    """Return the newest progress bar in what a kernel wrote, shortened; nothing if there is none.

    Examples
    --------
    >>> last_bar("forward passes:  10%|#         | 15/150 [00:02<00:21,  6.3image/s]")
    'forward passes 15/150, 00:21 to go'
    """
    bars = re.findall(r"(\w[^:\r\n]*):\s*\d+%\|[^|]*\| *(\S+) \[[^<]*<([^,\]]*)", text)
    if not bars:
        return ""
    name, done, left = bars[-1]
    return f"{name} {done}, {left} to go"


def _page(notebook: NotebookNode) -> str:
    from nbconvert import HTMLExporter

    notebook = _make_static(notebook)
    # Empty addresses: the page asks no server for scripts, and opens offline.
    exporter = HTMLExporter(template_name="lab", mathjax_url="", require_js_url="", exclude_input_prompt=True)
    exporter.exclude_output_prompt = True
    body, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": _title(notebook)}})
    return re.sub(r'<script src="">\s*</script>', "", str(body))


def _make_static(notebook: NotebookNode) -> NotebookNode:
    """Return a copy in which widgets show their static fallback, and all plotly figures share one script."""
    notebook = copy.deepcopy(notebook)
    notebook.metadata.pop("widgets", None)  # their state would only make the page larger
    script = True
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if _WIDGET in data and "text/html" in data:
                del data[_WIDGET]
            if _PLOTLY in data:
                import plotly.io

                figure = dict(data.pop(_PLOTLY))
                data["text/html"] = plotly.io.to_html(
                    {name: figure[name] for name in ("data", "layout")},
                    config=figure.get("config"),
                    include_plotlyjs=script,
                    full_html=False,
                    validate=False,
                )
                script = False  # 5 MB: once a page is enough
    return notebook


def _index(pages: Sequence[tuple[Path, NotebookNode]], skipped: Sequence[str]) -> str:
    entries = [
        {"name": page.name, "title": _title(notebook), "picture": _first_picture(notebook)} for page, notebook in pages
    ]
    return str(render("elude_nb.app", "tour.html", pages=entries, skipped=skipped))


def _title(notebook: NotebookNode) -> str:
    first = next((cell.source for cell in notebook.cells if cell.cell_type == "markdown"), "notebook")
    return str(first).partition("\n")[0].lstrip("# ")


def _first_picture(notebook: NotebookNode) -> Markup:
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            found = str(output.get("data", {}).get("text/html", ""))
            if found.startswith("<img"):
                return Markup(found)  # noqa: S704 - it stands in the page of the notebook as well
    return Markup()


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8")
