"""The tour: run the notebooks in fresh kernels and leave HTML pages that open offline."""

from __future__ import annotations

import copy
import math
import os
import re
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from elude_nb._util.checks import near_matches
from elude_nb._util.files import atomic_write, check_writable, installed_notebooks
from elude_nb._util.html import render
from elude_nb._util.progress import TEXT_BARS, announced, progress_bar, say
from elude_nb._util.words import counted
from elude_nb.errors import TourError
from elude_nb.examples.finished import example

if TYPE_CHECKING:
    from nbformat import NotebookNode

_WIDGET = "application/vnd.jupyter.widget-view+json"
_PLOTLY = "application/vnd.plotly.v1+json"
_EVERY = 5.0  # seconds from one page of a running notebook to the next
_AGAIN = Markup('<meta http-equiv="refresh" content="5">')
_MEANWHILE = (
    "Meanwhile, a finished example: made beforehand, with the same model and photographs. Your own pages come above."
)


def find_notebooks(only: Sequence[str] | None = None) -> list[Path]:
    """Return the notebooks of this installation in order, or those whose names start with one of ``only``.

    Raises
    ------
    ValueError
        If a name in ``only`` fits no notebook.
    """
    found = installed_notebooks()
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

    The index is there at once, with a finished example, and pages are written whenever a picture comes.

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
        If a cell fails (the pages before it are kept, and the index says which failed), or a notebook named in ``only``
        needs packages that are not installed. Without ``only`` such a notebook is left out, and the index says so.
    """
    import nbformat

    every = [(path, nbformat.read(path, as_version=4)) for path in find_notebooks(only)]
    skipped = [f"{path.stem}: {lacking}" for path, notebook in every if (lacking := lacking_packages(notebook))]
    if only is not None and skipped:
        raise TourError("; ".join(skipped))
    notebooks = [(path, notebook) for path, notebook in every if not lacking_packages(notebook)]
    out.mkdir(parents=True, exist_ok=True)
    check_writable(out)  # found out now, not after minutes
    pages = _Pages(out, notebooks, skipped)
    if progress:
        say(f"tour: open {pages.index}; it fills while the notebooks run")
    cells = sum(cell.cell_type == "code" for _, notebook in notebooks for cell in notebook.cells)
    with pages, progress_bar(description="tour", total=cells, show=progress, unit="cell") as bar:
        what = f"tour: {counted(len(notebooks), 'notebook')}"
        shares = [_stated(notebook) for _, notebook in notebooks]
        expect = sum(shares) / shares[0] if shares and all(shares) else len(shares)
        for path, notebook in announced(notebooks, what, lambda first: first * expect, show=progress):
            bar.set_description(path.stem)
            pages.start(path)
            _execute(notebook, path, bar, pages.hear)
            pages.finish()
    for line in skipped:
        say(f"tour: left out {line}")
    return pages.index


class _Pages:
    """The pages of a tour: written at once, and anew as pictures come in.

    While the tour runs, its pages have themselves loaded again every few seconds.
    """

    def __init__(self, out: Path, notebooks: Sequence[tuple[Path, NotebookNode]], skipped: Sequence[str]) -> None:
        self._out, self._notebooks, self._skipped = out, dict(notebooks), skipped
        self._states = dict.fromkeys(self._notebooks, "waiting")
        self._now: Path | None = None
        self._new = False  # whether a picture has come since the page was written
        self._written = -math.inf
        self.index = out / "index.html"

    def __enter__(self) -> _Pages:
        self._write_index()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            for path, state in self._states.items():
                if state == "running":
                    self._states[path] = "stopped"
                    self._place(path).unlink(missing_ok=True)  # half a page would look like a whole one
                elif state == "waiting":
                    self._states[path] = "not run"
        self._now = None
        self._write_index(running=False)

    def start(self, path: Path) -> None:
        """Say in the index that a notebook runs."""
        self._now, self._states[path] = path, "running"
        self._new, self._written = False, -math.inf
        self._place(path).unlink(missing_ok=True)  # of another tour
        self._write_index()

    def hear(self, *, picture: bool) -> None:
        """Write what there is of the notebook that runs if a picture has come, but not more often than `_EVERY`."""
        self._new |= picture
        if self._new and self._now is not None and perf_counter() - self._written >= _EVERY:
            self._write_page(self._now)
            self._write_index()
            self._new, self._written = False, perf_counter()

    def finish(self) -> None:
        """Write the notebook that has run."""
        if self._now is not None:
            self._states[self._now] = "done"
            self._write_page(self._now)
            self._write_index()

    def _place(self, path: Path) -> Path:
        return self._out / f"{path.stem}.html"

    def _write_page(self, path: Path) -> None:
        notebook, page = self._notebooks[path], _page(self._notebooks[path])
        if self._states[path] == "running":
            cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
            done = sum(cell.get("execution_count") is not None for cell in cells)
            strip = render("elude_nb.app", "tour_running.html", done=done, cells=len(cells))
            page = page.replace("<head>", f"<head>{_AGAIN}", 1)
            page = re.sub(r"<body[^>]*>", lambda found: found[0] + str(strip), page, count=1)
        _write(self._place(path), page)

    def _write_index(self, *, running: bool = True) -> None:
        shown = {path: state in {"running", "done"} for path, state in self._states.items()}
        entries = [
            {
                "name": self._place(path).name if shown[path] and self._place(path).exists() else "",
                "title": _title(notebook),
                "picture": _first_picture(notebook) if shown[path] else "",
                "state": "" if self._states[path] == "done" else self._states[path],
            }
            for path, notebook in self._notebooks.items()
        ]
        again, meanwhile = (_AGAIN, example().html(_MEANWHILE, most=2)) if running else ("", "")
        page = render(
            "elude_nb.app", "tour.html", pages=entries, skipped=self._skipped, again=again, meanwhile=meanwhile
        )
        _write(self.index, str(page))


def lacking_packages(notebook: NotebookNode) -> str:
    """Say which packages a notebook lacks, as its metadata names them, and what to type; nothing if it has all."""
    needs = notebook.metadata.get("elude_nb", {})
    lacking = [name for name in needs.get("packages", []) if find_spec(name) is None]
    return f"it needs {', '.join(lacking)}: pip install 'elude-nb[{needs['extra']}]'" if lacking else ""


def _stated(notebook: NotebookNode) -> float:
    """Return how many seconds a notebook says at its head that it takes on two cores; 0 if it does not say."""
    head = notebook.cells[0].source if notebook.cells else ""
    found = re.search(r"\*\*Time\*\*: about ([\d.]+) (second|minute)", head)
    return float(found[1]) * {"second": 1, "minute": 60}[found[2]] if found else 0.0


def _execute(notebook: NotebookNode, path: Path, bar: Any, heard: Callable[..., object]) -> None:
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

        def process_message(self, msg: dict[str, Any], cell: NotebookNode, cell_index: int) -> Any:
            found = super().process_message(msg, cell, cell_index)
            data = msg["content"].get("data", {})
            heard(picture="image/png" in data or "<img" in data.get("text/html", ""))  # shown, or drawn anew
            return found

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
