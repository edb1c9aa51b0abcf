from __future__ import annotations

import pytest
import traitlets

from elude_nb import Disentanglement, disentangle
from elude_nb.interpret.gallery import Gallery
from elude_nb.widgets.concept_atlas import ConceptAtlas
from tests.markup import Page


@pytest.fixture
def atlas(split, images) -> ConceptAtlas:
    return ConceptAtlas(Gallery(split, images[:10]).fill(progress=False), count=4)


def test_first_paint(atlas, split) -> None:
    assert atlas.selected == [int(split.book.counts.argmax())]
    assert len(atlas.map.concepts) == len(split.book)
    assert atlas._concepts.value.count("<img") == 4
    assert f"concept {atlas.selected[0]}" in atlas._concepts.value
    assert "10 images" in atlas.message


def test_the_map_has_each_concept_at_its_place_with_a_picture_and_its_numbers(atlas, split) -> None:
    units = split.units[split.units["concept"] == 3]
    label = atlas.map.concepts[3]["label"]
    assert label.startswith("concept 3;")
    assert f"{len(units)} sub-units in {units['channel'].nunique()} channels" in label
    assert f"{int(split.book.counts[3]):,} tokens" in label
    assert all(concept["src"].startswith("data:image/jpeg;base64,") for concept in atlas.map.concepts)
    for axis in ("x", "y"):
        places = [concept[axis] for concept in atlas.map.concepts]
        assert (min(places), max(places)) == (0, 1)


def test_choosing_several_lists_their_sub_units(atlas, split) -> None:
    atlas.map.chosen = [1, 5]  # as the script of the map sets it
    assert atlas.selected == [1, 5]
    expected = split.units[split.units["concept"].isin([1, 5])].reset_index(drop=True)
    assert atlas.sub_units.equals(expected)
    assert atlas._concepts.value.count("<img") == 8
    assert atlas._choice.value is None
    assert f"2 concepts, {len(expected)} sub-units" in atlas.message
    strongest = expected.loc[expected["mean_on_concept"].abs().idxmax()]
    assert Page(atlas._table.value).rows[1][:2] == [f"{strongest[name]:g}" for name in ("channel", "unit")]


def test_the_map_and_the_list_choose_one(atlas) -> None:
    atlas.map.chosen = [3]
    assert atlas.selected == [3]
    assert atlas._choice.value == 3
    atlas._choice.value = 6
    assert atlas.selected == [6]
    assert atlas.map.chosen == [6]
    atlas.map.chosen = []
    assert (atlas.selected, len(atlas.sub_units), atlas._concepts.value.strip()) == ([], 0, "")


def test_a_concept_is_named_and_saved(atlas, split, vit, tmp_path) -> None:
    atlas.selected = [2]
    atlas._name.value = " cat's <eye> "
    atlas._rename.click()
    assert atlas.names == {2: "cat's <eye>"}
    assert atlas.split.names == {2: "cat's <eye>"}
    assert split.names == {}
    assert "'cat\\'s <eye>'" in atlas.message or "cat's <eye>" in atlas.message
    shown = Page(atlas.static_html())
    assert "concept 2: cat's <eye>" in shown.text
    assert "eye" not in {tag for tag, _ in shown.tags}
    assert atlas.map.concepts[2]["name"] == "cat's <eye>"
    assert ("concept 2: cat's <eye>", 2) in atlas._choice.options
    assert atlas.selected == [2]
    atlas._path.value = str(tmp_path / "named.safetensors")
    atlas._save.click()
    assert "named.safetensors" in atlas.message
    assert Disentanglement.load(tmp_path / "named.safetensors", vit).names == {2: "cat's <eye>"}
    atlas._name.value = ""
    atlas._rename.click()
    assert atlas.names == {}
    assert atlas.map.concepts[2]["name"] == ""


def test_other_panels_on_the_gallery_know_the_name(atlas) -> None:
    atlas.name(1, "edge")
    assert atlas.gallery.split.names == {1: "edge"}


def test_an_impossible_action_is_reported(atlas, tmp_path) -> None:
    atlas.name(1, "edge")
    atlas.selected = [2]
    atlas._name.value = "edge"
    atlas._rename.click()
    assert "'edge'" in atlas.message
    assert 'role="alert"' in atlas._status.value
    assert atlas.names == {1: "edge"}
    atlas.selected = [1, 2]
    atlas._rename.click()
    assert "2" in atlas.message
    assert atlas.names == {1: "edge"}
    (tmp_path / "file").write_text("not a folder")
    atlas._path.value = str(tmp_path / "file" / "named.safetensors")
    atlas._save.click()
    assert 'role="alert"' in atlas._status.value
    assert (tmp_path / "file").read_text() == "not a folder"


def test_wrong_concepts_are_refused(atlas) -> None:
    before = list(atlas.selected)
    with pytest.raises(traitlets.TraitError, match="8"):
        atlas.selected = [1, 8]
    assert (atlas.selected, atlas.map.chosen) == (before, before)


def test_without_concepts_there_is_no_map(vit, images) -> None:
    split = disentangle(vit, images, concepts=8, units=3, routing="channel-clusters", progress=False)
    with pytest.raises(ValueError, match="no map"):
        ConceptAtlas(split, images[:4])


def test_the_static_fallback_has_the_map_the_images_and_the_table(atlas) -> None:
    page = Page(atlas.static_html())
    alts = [image["alt"] for image in page.find("img")]
    assert len(alts) == len(atlas.map.concepts) + 4
    assert alts[:2] == [concept["label"] for concept in atlas.map.concepts[:2]]
    assert all(alts)
    assert len(page.rows) == 1 + min(12, len(atlas.sub_units))
