import os
import re
from pathlib import Path

import nbformat
import pytest

from elude_nb._util.progress import TEXT_BARS
from elude_nb.app import tour
from elude_nb.app.tour import find_notebooks, last_bar, run_tour
from elude_nb.errors import TourError


def write_notebook(folder: Path, *cells: str) -> Path:
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [
        nbformat.v4.new_markdown_cell("# 9. A small one\nwith text"),
        *map(nbformat.v4.new_code_cell, cells),
    ]
    path = folder / "09_small.ipynb"
    nbformat.write(notebook, path)
    return path


def test_find_notebooks_in_order_and_by_number() -> None:
    names = [path.stem for path in find_notebooks()]
    assert names == sorted(names)
    assert names[:2] == ["01_model_loading", "02_disentangle"]
    assert [path.stem for path in find_notebooks(["02"])] == ["02_disentangle"]


def test_an_unknown_notebook_is_named() -> None:
    with pytest.raises(ValueError, match=r"'77'.*01_model_loading"):
        find_notebooks(["77"])
    with pytest.raises(ValueError, match="''"):
        find_notebooks([""])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\rverify:  50%|#####     | 8/16 [00:04<00:04,  2.0image/s]", "verify 8/16, 00:04 to go"),
        ("a: 10%|#| 1/10 [00:01<00:09, 1it/s]\ra: 20%|##| 2/10 [00:02<00:08, 1it/s]", "a 2/10, 00:08 to go"),
        ("UserWarning: 3 of 10 images were left out", ""),
        ("", ""),
    ],
)
def test_last_bar(text: str, expected: str) -> None:
    assert last_bar(text) == expected


def test_a_page_has_the_pictures_and_asks_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_notebook(
        tmp_path,
        "from matplotlib.figure import Figure\nfrom elude_nb.figures import Picture\n"
        "picture = Picture(figsize=(1, 1)); picture.alt = 'a white square'\npicture",
        "import os; print(os.environ['ELUDE_NB_TEXT_BARS'], 'as text')\n"
        "from elude_nb._util.progress import progress_bar\n"
        "import sys\n_ = list(progress_bar(range(3), description='inner'))\nprint('done'); sys.stderr.write('careful')",
    )
    monkeypatch.setattr(tour, "find_notebooks", lambda only: [path])
    index = run_tour(tmp_path / "out", progress=False)
    page = (tmp_path / "out" / "09_small.html").read_text(encoding="utf-8")
    assert 'alt="a white square"' in page
    assert "data:image/png;base64," in page
    assert "1 as text" in page
    assert "done" in page
    assert "careful" in page  # what is no progress bar stays on the page
    assert "inner:" not in page
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"(?:https?:|//|\")", page)
    front = index.read_text(encoding="utf-8")
    assert 'href="09_small.html">9. A small one<' in front
    assert 'alt="a white square"' in front
    assert TEXT_BARS not in os.environ


def test_a_failing_cell_is_shown_and_leaves_no_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_notebook(tmp_path, "1 / 0")
    monkeypatch.setattr(tour, "find_notebooks", lambda only: [path])
    with pytest.raises(TourError, match=r"09_small\.ipynb failed[\s\S]*ZeroDivisionError"):
        run_tour(tmp_path / "out", progress=False)
    assert [page.name for page in (tmp_path / "out").iterdir()] == ["index.html"]
    front = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "(stopped)" in front
    assert "http-equiv" not in front  # nothing comes any more
    assert TEXT_BARS not in os.environ


def test_pages_show_what_there_is_while_the_notebooks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last cell copies the pages as they are: a picture was drawn anew before."""
    path = write_notebook(
        tmp_path,
        "from elude_nb.figures import Picture\nfirst, second = Picture(figsize=(1, 1)), Picture(figsize=(1, 1))\n"
        "first.alt, second.alt = 'of 32 images', 'of all images'\n"
        "shown = display(first, display_id=True); shown.update(second)",
        f"import shutil, time; time.sleep(0.5); shutil.copytree({str(tmp_path / 'out')!r}, {str(tmp_path / 'seen')!r})",
    )
    monkeypatch.setattr(tour, "find_notebooks", lambda only: [path])
    monkeypatch.setattr(tour, "_EVERY", 0.0)
    index = run_tour(tmp_path / "out", progress=False)
    seen, done = tmp_path / "seen", tmp_path / "out"
    page, front = ((seen / name).read_text(encoding="utf-8") for name in ("09_small.html", "index.html"))
    assert "1 of 2 cells are done" in page or "0 of 2 cells are done" in page
    assert 'alt="of all images"' in page
    assert 'alt="of 32 images"' not in page
    assert 'alt="of all images"' in front
    assert "(running)" in front
    assert "finished example" in front
    for text in (page, front):
        assert text.count('<meta http-equiv="refresh" content="5">') == 1
    for text in ((done / "09_small.html").read_text(encoding="utf-8"), index.read_text(encoding="utf-8")):
        assert "http-equiv" not in text
        assert "running" not in text.partition("<body")[2]
        assert "finished example" not in text


def test_a_kernel_that_cannot_write_its_files_names_the_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "/.local/share/jupyter/runtime")

    path = write_notebook(tmp_path, "1 + 1")
    monkeypatch.setattr(tour, "find_notebooks", lambda only: [path])
    monkeypatch.setattr("nbclient.NotebookClient.execute", refused)
    with pytest.raises(TourError, match=r"Permission denied.*JUPYTER_RUNTIME_DIR"):
        run_tour(tmp_path / "out", progress=False)


def test_a_notebook_whose_packages_are_missing_is_left_out_or_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_notebook(tmp_path, "1 + 1")
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata["elude_nb"] = {"packages": ["torch", "not_to_be_had"], "extra": "some"}
    nbformat.write(notebook, path)
    monkeypatch.setattr(tour, "find_notebooks", lambda only: [path])
    with pytest.raises(TourError, match=r"09_small.*not_to_be_had.*elude-nb\[some\]"):
        run_tour(tmp_path / "named", only=["09"], progress=False)
    assert not (tmp_path / "named").exists()
    index = run_tour(tmp_path / "out", progress=False)
    assert "09_small: it needs not_to_be_had" in index.read_text(encoding="utf-8")
    assert not (tmp_path / "out" / "09_small.html").exists()
    assert "09_small" in "".join(capsys.readouterr())
