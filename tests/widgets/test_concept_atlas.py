from __future__ import annotations

import pytest
import traitlets

from elude_nb import Disentanglement, disentangle
from elude_nb.core.names import UniqueNames
from elude_nb.interpret.gallery import Gallery
from elude_nb.widgets import concept_atlas
from elude_nb.widgets.channel_explorer import ChannelExplorer
from elude_nb.widgets.concept_atlas import ConceptAtlas
from elude_nb.widgets.image_inspector import ImageInspector
from elude_nb.widgets.steering_panel import SteeringPanel
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
    assert label.startswith(f"{atlas.split.concept_title(3, number=True)};")
    assert "-like, 2 of 2 images;" in label
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
    shown = atlas.sub_units
    assert shown is not None
    assert shown[expected.columns].equals(expected)
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


def test_open_panels_on_the_gallery_show_the_name_at_once(atlas) -> None:
    steering = SteeringPanel(atlas.gallery, concepts=[1, 2])
    inspector = ImageInspector(atlas.gallery)
    explorer = ChannelExplorer(atlas.gallery)
    other = ConceptAtlas(atlas.gallery, count=2)
    assert inspector.contributors is not None
    concepts = inspector.contributors["concept"].tolist()
    explorer.channel = int(atlas.split.units.loc[atlas.split.units["concept"] == concepts[0], "channel"].iloc[0])
    for concept in {1, concepts[0]}:
        atlas.name(concept, f"edge {concept}")
    assert steering._sliders.children[0].description == "concept 1: edge 1"
    steering.add(f"edge {concepts[0]}")  # by its name
    assert concepts[0] in steering.strengths
    assert f"edge {concepts[0]}" in inspector._list.options[0][0]
    assert f"edge {concepts[0]}" in explorer._table.value
    assert other.names == atlas.names == atlas.gallery.split.names
    assert ("concept 1: edge 1", 1) in other._choice.options


def test_where_nothing_has_a_name_the_labels_of_the_images_describe(atlas, split) -> None:
    assert atlas.names == split.names == {}
    titles = [title for title, _ in atlas._choice.options]
    assert titles == [atlas.split.concept_title(concept, number=True) for concept in range(8)]
    assert all("-like, 2 of 2 images" in title or title.endswith(f"concept {i}") for i, title in enumerate(titles))
    named = split.with_names(UniqueNames(descriptions={3: "of the discovery"}))
    kept = ConceptAtlas(Gallery(named, atlas.gallery.images).fill(progress=False))
    assert kept.split.names.descriptions == {3: "of the discovery"}


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


def test_a_page_without_a_kernel_has_the_largest_concepts_only(atlas, split, monkeypatch) -> None:
    monkeypatch.setattr(concept_atlas, "_MOST_STORED", 3)
    smallest = int(split.book.counts.argmin())
    atlas.selected = [smallest]
    page = Page(atlas.static_html())
    assert len(page.find("img")) == 4 + 4  # the chosen one is among them
    assert "and 4 concepts with fewer tokens" in page.text
