"""A comparison on disk: whole files, the same numbers in all of them, and a page that asks no server for anything."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from elude_nb.app.compare_page import comparison_page, write_comparison
from elude_nb.baselines import PCA, Channels
from elude_nb.baselines.compare import Compared
from tests.markup import Page

ADDRESSES = {"src", "href", "action", "data", "srcset"}
FILES = ["compare.csv", "units.csv", "compare.json", "compare.html"]


def made(*, labelled: bool = True) -> Compared:
    scores = {
        "top_similarity": [0.3, 0.4, 0.5, 0.6],
        "redundancy": [0.2, 0.1, float("nan"), 0.4],
        "best_unit_precision": [0.5, 0.6, 0.7, 0.8],
    }
    if not labelled:
        del scores["best_unit_precision"]
    columns = {f"{name}{end}": values for name, values in scores.items() for end in ("", "_low", "_high")}
    table = pd.DataFrame(
        {
            "method": ["channels", "channels", "<PCA>", "<PCA>"],
            "size": ["own", "equal"] * 2,
            "units": [12, 4, 6, 4],
            **columns,
            "unexplained_variance": [0.0, 0.0, 1 / 3, 1 / 3],
            "output_change": [0.0, 0.0, 1.25e-15, 1.25e-15],
        }
    )
    units = pd.DataFrame({"unit": [0, 1], "method": ["channels", "<PCA>"], "size": "own", "redundancy": [0.2, 0.4]})
    settings = {"model": "tiny", "blocks": None, "equal_units": 4, "images": "a <folder>", "seed": 0}
    return Compared(table, units, settings, {"channels": Channels(), "<PCA>": PCA(name="<PCA>")})


def test_all_four_files_hold_the_same_numbers_to_the_last_bit(tmp_path: Path) -> None:
    compared = made()
    paths = write_comparison(compared, tmp_path / "new" / "out")
    assert paths == [tmp_path / "new" / "out" / name for name in FILES]
    assert sorted(path.name for path in (tmp_path / "new" / "out").iterdir()) == sorted(FILES)
    table = pd.read_csv(paths[0])
    pd.testing.assert_frame_equal(table, compared.table, check_exact=True)
    pd.testing.assert_frame_equal(pd.read_csv(paths[1]), compared.units)
    found = json.loads(paths[2].read_text(), parse_constant=pytest.fail)  # NaN is not JSON
    assert found["settings"] == compared.settings
    assert found["rows"][2]["redundancy"] is None
    for row, expected in zip(found["rows"], compared.table.to_dict(orient="records"), strict=True):
        assert {key: value for key, value in row.items() if value is not None} == {
            str(key): value for key, value in expected.items() if not pd.isna(value)
        }
    assert found["rows"][3]["output_change"] == 1.25e-15  # next to nothing is lost, and not nothing
    assert paths[3].read_text(encoding="utf-8") == comparison_page(compared)


def test_a_page_that_cannot_be_made_leaves_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.read_bytes() for path in write_comparison(made(), tmp_path)}

    def fail(*_: object) -> str:
        raise RuntimeError("no page")

    monkeypatch.setattr("elude_nb.app.compare_page.comparison_page", fail)
    with pytest.raises(RuntimeError, match="no page"):
        write_comparison(made(labelled=False), tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_file_that_cannot_be_finished_is_not_there_by_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.read_bytes() for path in write_comparison(made(), tmp_path)}
    write = Path.write_text

    def half(self: Path, text: str, **how: str) -> int:
        write(self, text[: len(text) // 2], **how)
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="disk full"):
        write_comparison(made(labelled=False), tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("labelled", [True, False])
def test_the_page_opens_without_a_network(labelled: bool) -> None:
    text = comparison_page(made(labelled=labelled))
    page = Page(text)
    assert not re.search(r"https?://", text)
    names = [tag for tag, _ in page.tags]
    assert not {"script", "link", "iframe"} & set(names)
    assert "@import" not in text
    assert "url(" not in text
    addresses = [(tag, name) for tag, attributes in page.tags for name in attributes if name in ADDRESSES]
    assert addresses == [("img", "src")] * 2 * (2 + labelled)  # for light and for dark pages
    for picture in page.find("img"):
        kind, data = picture["src"].split(",")
        assert kind == "data:image/png;base64"
        Image.open(io.BytesIO(base64.b64decode(data))).verify()
        assert any(score in picture["alt"] for score in ("top similarity", "best unit precision"))
    assert names.count("table") == 2
    assert "At 4 units each" in page.text
    assert ("best unit precision" in page.text) == labelled


def test_names_are_text_and_not_markup() -> None:
    page = Page(comparison_page(made()))
    assert not {"pca", "folder"} & {tag for tag, _ in page.tags}
    assert "<PCA>" in page.text
    assert "a <folder>" in page.text
