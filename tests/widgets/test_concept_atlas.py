from __future__ import annotations

import re

import pytest
import traitlets

from elude_nb import Disentanglement, disentangle
from elude_nb.interpret.gallery import Gallery
from elude_nb.widgets.concept_atlas import ConceptAtlas


@pytest.fixture
def atlas(split, images) -> ConceptAtlas:
    return ConceptAtlas(Gallery(split, images[:10]).fill(progress=False), count=4)


def test_first_paint(atlas, split) -> None:
    assert atlas.selected == [int(split.book.counts.argmax())]
    assert len(atlas.figure.data[0].x) == len(split.book)
    assert atlas._concepts.value.count("<img") == 4
    assert f"concept {atlas.selected[0]}" in atlas._concepts.value


def test_brushing_lists_the_sub_units(atlas, split) -> None:
    trace = atlas.figure.data[0]
    points = type("Points", (), {"point_inds": [5, 1]})()
    for handler in trace._select_callbacks:
        handler(trace, points, None)
    assert atlas.selected == [1, 5]
    expected = split.units[split.units["concept"].isin([1, 5])].reset_index(drop=True)
    assert atlas.sub_units.equals(expected)
    assert atlas._concepts.value.count("<img") == 8
    assert list(trace.selectedpoints) == [1, 5]
    assert f"2 concepts, {len(expected)} sub-units." in atlas.message


def test_a_click_and_the_list_choose_one(atlas) -> None:
    trace = atlas.figure.data[0]
    for handler in trace._click_callbacks:
        handler(trace, type("Points", (), {"point_inds": [3]})(), None)
    assert atlas.selected == [3]
    assert atlas._choice.value == 3
    atlas._choice.value = 6
    assert atlas.selected == [6]
    for handler in trace._click_callbacks:
        handler(trace, type("Points", (), {"point_inds": []})(), None)  # beside all points
    assert atlas.selected == [6]


def test_a_concept_is_named_and_saved(atlas, split, vit, tmp_path) -> None:
    atlas.selected = [2]
    atlas._name.value = " cat's <eye> "
    atlas._rename.click()
    assert atlas.names == {2: "cat's <eye>"}
    assert atlas.split.names == {2: "cat's <eye>"}
    assert split.names == {}
    assert "called" in atlas.message
    assert "cat&#x27;s &lt;eye&gt;" in atlas._concepts.value
    assert "<eye>" not in atlas._concepts.value + atlas._table.value
    assert atlas.figure.data[0].text[2] == "cat's <eye>"
    assert ("concept 2: cat's <eye>", 2) in atlas._choice.options
    assert atlas.selected == [2]
    atlas._path.value = str(tmp_path / "named.safetensors")
    atlas._save.click()
    assert "concepts with a name: 1" in atlas.message
    assert Disentanglement.load(tmp_path / "named.safetensors", vit).names == {2: "cat's <eye>"}
    atlas._name.value = ""
    atlas._rename.click()
    assert atlas.names == {}


def test_other_panels_on_the_gallery_know_the_name(atlas) -> None:
    atlas.name(1, "edge")
    assert atlas.gallery.split.names == {1: "edge"}


def test_what_cannot_be_done_is_said(atlas, tmp_path) -> None:
    atlas.name(1, "edge")
    atlas.selected = [2]
    atlas._name.value = "edge"
    atlas._rename.click()
    assert "would all be called 'edge'" in atlas.message
    assert atlas.names == {1: "edge"}
    atlas.selected = [1, 2]
    atlas._rename.click()
    assert "2 are chosen" in atlas.message
    (tmp_path / "file").write_text("not a folder")
    atlas._path.value = str(tmp_path / "file" / "named.safetensors")
    atlas._save.click()
    assert 'role="alert"' in atlas._status.value
    assert (tmp_path / "file").read_text() == "not a folder"


def test_wrong_concepts_are_refused(atlas) -> None:
    before = list(atlas.selected)
    with pytest.raises(traitlets.TraitError, match="no concept 8"):
        atlas.selected = [1, 8]
    assert atlas.selected == before


def test_without_concepts_there_is_no_map(vit, images) -> None:
    split = disentangle(vit, images, concepts=8, units=3, routing="channel-clusters", progress=False)
    with pytest.raises(ValueError, match="no map"):
        ConceptAtlas(split, images[:4])


def test_a_face_without_a_kernel(atlas) -> None:
    text = atlas.static_html()
    assert text.count("<img") == 4
    assert "<table" in text
    assert all(re.findall(r'alt="([^"]*)"', text))
