"""What a lecturer hands out: exercises with and without solutions, slides, a sheet, a report page, an environment."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from elude_nb import __version__
from elude_nb._util.files import atomic_write, check_writable
from elude_nb._util.html import render
from elude_nb._util.progress import say
from elude_nb.course.exercises import clear_solutions, find_exercises
from elude_nb.examples.finished import example

ENVIRONMENT = """\
# For conda: `conda env create -f environment.yml`, then `conda activate elude-nb` and `jupyter lab students`.
# pytorch-cpu is torch without CUDA: some 0.3 GB to download and not several GB. pip finds it there already.
# Write the path of a wheel or folder for "elude-nb", which PyPI lacks.
name: elude-nb
channels:
  - conda-forge
dependencies:
  - python=3.11
  - pip
  - pytorch-cpu>=2.6
  - torchvision>=0.21
  - pip:
      - elude-nb[classroom,text]
"""
REQUIREMENTS = """\
# For pip: `pip install -r requirements.txt`. The first line is PyTorch's own index of CPU builds; on macOS and Windows
# PyPI has them too, and the line does no harm. Write the path of a wheel or folder for "elude-nb", which PyPI lacks.
--extra-index-url https://download.pytorch.org/whl/cpu
torch>=2.6
torchvision>=0.21
elude-nb[classroom,text]
"""


@dataclass(frozen=True)
class Handout:
    """One exercise as the sheet and the index name it.

    Attributes
    ----------
    file
        Its name.
    title
        Its heading.
    minutes
        How long students take.
    seconds
        How long it computes on two cores.
    """

    file: str
    title: str
    minutes: int
    seconds: int


def write_class(out: Path, *, report: bool = True, seed: int = 0) -> Path:
    """Write everything that a lecturer hands out into a folder; return its index.

    Parameters
    ----------
    out
        The folder; it is made if needed, and files of these names in it are replaced.
    report
        Whether to make the report page: the model runs on 100 photographs, which takes minutes. All else takes
        seconds.
    seed
        Of the split that the report shows.

    Raises
    ------
    CourseError
        If the exercises are missing from this installation.
    OSError
        If something cannot be written.
    """
    import nbformat

    for folder in (out, out / "students", out / "solutions"):
        folder.mkdir(parents=True, exist_ok=True)
        check_writable(folder)
    handouts = []
    for path in find_exercises():
        notebook = nbformat.read(path, as_version=4)
        for name, version in (("solutions", notebook), ("students", clear_solutions(notebook))):
            _write(out / name / path.name, nbformat.writes(version) + "\n")
        handouts.append(_handout(path.name, notebook.cells[0].source))
    _write(out / "environment.yml", ENVIRONMENT)
    _write(out / "requirements.txt", REQUIREMENTS)
    shown, wheel = example(), f"elude_nb-{__version__}-py3-none-any.whl"
    _write(out / "slides.html", render("elude_nb.app", "class_slides.html", example=shown, channel=shown.channels[0]))
    _write(out / "sheet.html", render("elude_nb.app", "class_sheet.html", handouts=handouts, wheel=wheel))
    if report:
        say(f"class: all but the report is in {out}")
        _write_report(out / "report.html", seed)
    there = (out / "report.html").exists()
    _write(out / "index.html", render("elude_nb.app", "class_index.html", handouts=handouts, report=there))
    return out / "index.html"


def _handout(file: str, head: str) -> Handout:
    title = head.partition("\n")[0].lstrip("# ")
    times = re.search(r"about (\d+) seconds on two cores, and (\d+) minutes", head)
    seconds, minutes = times.groups() if times else (0, 0)
    return Handout(file, title, int(minutes), int(seconds))


def _write_report(path: Path, seed: int) -> None:
    import elude_nb as en
    from elude_nb.app.report.build import write_report

    discover, unseen = en.load_images("photographs", count=100).split(0.5, seed=seed)
    split = en.disentangle(en.load_model("dinov2-small"), discover, concepts=32, seed=seed)
    split = split.with_names(en.name_concepts(split, discover).names)
    write_report(split, unseen, path, title="For those whose laptop fails: a finished split", seed=seed)


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as part:
        part.write_text(str(text), encoding="utf-8")
