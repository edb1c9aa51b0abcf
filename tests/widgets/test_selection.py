"""One selection for all panels on a gallery."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import ipywidgets
import numpy as np
import pytest
import traitlets
from PIL import Image

from elude_nb.interpret.gallery import Gallery
from elude_nb.widgets import ChannelExplorer, ConceptAtlas, ImageInspector, IntruderQuiz, SteeringPanel, Workbench
from elude_nb.widgets.selection import Selection, State, selection_of


@pytest.fixture
def gallery(split, images) -> Gallery:
    return Gallery(split, images[:12]).fill(progress=False)


@pytest.fixture
def panels(gallery) -> Any:
    """All panels, each in a cell of its own."""
    return (
        ChannelExplorer(gallery, count=3),
        ConceptAtlas(gallery, count=2),
        ImageInspector(gallery, count=4),
        SteeringPanel(gallery, concepts=[0]),
    )


def peak(gallery: Gallery, concept: int) -> tuple[int, tuple[int, int]]:
    """Return the image on which a concept is strongest, and the patch there."""
    maps = gallery.concept_maps[..., concept]
    image = int(maps.amax(1).argmax())
    row, column = divmod(int(maps[image].argmax()), gallery.grid[1])
    return image, (row, column)


def channels_of(gallery: Gallery, concepts: list[int]) -> set[int]:
    units = gallery.split.units
    return set(units.loc[units["concept"].isin(concepts), "channel"].tolist())


def test_opening_panels_chooses_nothing(panels) -> None:
    assert all(panel.selection.state == State() for panel in panels)
    assert not panels[0].selection.can_go_back


def test_a_concept_on_the_map_leads_the_other_panels(panels, gallery) -> None:
    explorer, atlas, inspector, steering = panels
    atlas.map.chosen = [3]  # a click
    allowed = channels_of(gallery, [3])
    assert explorer._listed == [channel for channel in explorer.orders[explorer.order] if channel in allowed]
    assert explorer.channel == explorer._listed[0]
    assert f"Channel {explorer.channel}" in explorer._grid.value
    assert explorer._place.value == 1
    assert explorer._place.max == len(allowed)
    assert "with sub-units of concept 3" in explorer._some.label
    image, patch = peak(gallery, 3)
    assert (inspector.image, (inspector.row, inspector.column)) == (image, patch)
    assert inspector._picker.alt.startswith(f"image {image}")
    assert inspector.unit[0] == explorer.channel
    assert gallery.split.routing.concepts[inspector.unit[0], inspector.unit[1] - 1] == 3
    assert (steering.image, steering.strengths) == (image, {0: 1.0, 3: 1.0})
    assert steering._in_hand == 3
    state = atlas.selection.state
    assert state == State(explorer.channel, inspector.unit, (3,), image, patch)
    explorer._some._handle_custom_msg({"press": 0}, [])
    assert len(explorer._listed) == 24
    assert explorer._some.options == []
    assert explorer.channel == state.channel
    assert explorer._place.value == explorer._listed.index(explorer.channel) + 1


def test_a_concept_that_is_clicked_once_more_leads_once_more(panels, gallery) -> None:
    _, atlas, inspector, _ = panels
    atlas.selected = [3]
    inspector.image = (peak(gallery, 3)[0] + 1) % 12
    atlas.map._handle_custom_msg({"again": True}, [])
    assert (inspector.image, (inspector.row, inspector.column)) == peak(gallery, 3)


def test_sliders_of_concepts_that_were_only_looked_at_go_again(panels) -> None:
    _, atlas, _, steering = panels
    atlas.selected = [3]
    atlas.selected = [5]
    assert steering.strengths == {0: 1.0, 5: 1.0}
    steering.strengths = {0: 1.0, 5: 0.5}
    atlas.selected = [6]
    assert steering.strengths == {0: 1.0, 5: 0.5, 6: 1.0}
    atlas.selected = [0]
    assert steering.strengths == {0: 1.0, 5: 0.5}
    assert steering._in_hand == 0
    steering.strengths = {0: 0.0, 5: 0.5, 7: 2.0}
    assert atlas.selected == [0]  # sliders choose nothing


def test_several_concepts_keep_the_image(panels, gallery) -> None:
    explorer, atlas, inspector, steering = panels
    inspector.image = 4
    atlas.map.chosen = [1, 5]  # with the lasso
    assert set(explorer._listed) == channels_of(gallery, [1, 5])
    assert (inspector.image, steering.image) == (4, 4)
    assert steering.strengths == {0: 1.0}
    assert set(atlas.sub_units["concept"]) <= {1, 5}
    atlas.map.chosen = []
    assert len(explorer._listed) == 24
    assert atlas.selected == []


def test_a_patch_leads_to_its_channel_and_the_concept_of_the_sub_unit_to_the_map(panels, gallery) -> None:
    explorer, atlas, inspector, steering = panels
    atlas.selected = [3]
    inspector._choice.value = 7
    assert (steering.image, inspector.selection.unit) == (7, None)
    inspector._picker.row, inspector._picker.column = 0, 3
    channel = inspector.unit[0]
    assert explorer.channel == channel
    assert channel in explorer._listed
    other = inspector._list.options[2][1]
    inspector._list.value = other
    assert explorer.channel == other[0]
    assert inspector.unit == other
    concept = int(gallery.split.routing.concepts[other[0], other[1] - 1])
    inspector._concept._handle_custom_msg({"press": 0}, [])
    assert atlas.selected == [concept]
    assert (inspector.image, inspector.row, inspector.column, inspector.unit) == (7, 0, 3, other)  # it stays
    assert explorer.channel == other[0]
    assert concept in steering.strengths


def test_a_sub_unit_of_the_channel_leads_to_its_concept(panels, gallery) -> None:
    explorer, atlas, inspector, _ = panels
    explorer.channel = 5
    assert inspector.selection.state == State(channel=5)
    row = explorer._owned[1]
    assert explorer._concepts.options[1].startswith(f"{row['unit']}: ")
    explorer._concepts._handle_custom_msg({"press": 1}, [])
    assert atlas.selected == [row["concept"]]
    assert explorer.channel == 5
    assert inspector.unit == (5, row["unit"])
    assert (inspector.image, (inspector.row, inspector.column)) == peak(gallery, row["concept"])


def test_images_of_ones_own_stay_where_they_are(panels) -> None:
    explorer, atlas, inspector, steering = panels
    inspector.show(Image.fromarray(np.zeros((32, 32, 3), np.uint8)), "mine")
    inspector._picker.row = 1
    assert explorer.channel == inspector.unit[0]
    assert (inspector.image, inspector.selection.image, steering.image) == (-1, None, 0)
    explorer.channel = 3
    assert inspector.image == -1
    atlas.selected = [2]  # which is strongest in an image of the gallery
    assert inspector.image == inspector.selection.image >= 0


def test_it_is_set_from_python(panels, gallery) -> None:
    explorer, atlas, inspector, steering = panels
    chosen = explorer.selection
    assert chosen is inspector.selection is selection_of(gallery)
    chosen.concepts = [4]
    assert atlas.selected == [4]
    chosen.choose(image=9, patch=(2, 1), channel=11)
    assert (inspector.image, inspector.row, inspector.column, steering.image, explorer.channel) == (9, 2, 1, 9, 11)
    chosen.unit = (6, 1)
    assert (explorer.channel, inspector.unit) == (6, (6, 1))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ({"channel": 24}, "no channel 24; there are 24"),
        ({"concepts": [1, 8]}, "no concept 8"),
        ({"image": 12}, "no image 12"),
        ({"patch": (0, 4)}, "no column 4"),
        ({"unit": (3, 9)}, "no sub-unit 9"),
    ],
)
def test_what_does_not_exist_is_refused_and_nothing_changes(gallery, what, message) -> None:
    chosen = Selection(gallery)
    chosen.channel = 2
    with pytest.raises(traitlets.TraitError, match=message):
        chosen.choose(**what)
    ((name, value),) = what.items()
    with pytest.raises(traitlets.TraitError, match=message):
        setattr(chosen, name, value)
    assert (chosen.state, chosen.channel, chosen.concepts, chosen.image) == (State(channel=2), 2, [], None)
    with pytest.raises(TypeError, match="'row' cannot be chosen"):
        chosen.choose(row=1)


def test_back_and_forward(panels) -> None:
    explorer, atlas, inspector, steering = panels
    chosen = explorer.selection
    first = explorer.channel, list(atlas.selected), inspector.image, inspector.row, inspector.column
    seen = list[State]()
    chosen.observe(lambda change: seen.append(change["new"]), "state")
    atlas.selected = [3]
    inspector.image = 5
    explorer.channel = 20
    after = chosen.state
    assert seen[-1] == after
    assert len(seen) == 3
    assert (chosen.can_go_back, chosen.can_go_forward) == (True, False)
    for _ in range(3):
        chosen.back()
    assert chosen.state == State()
    assert (explorer.channel, list(atlas.selected), inspector.image, inspector.row, inspector.column) == first
    assert len(explorer._listed) == 24
    assert (chosen.can_go_back, chosen.can_go_forward) == (False, True)
    chosen.back()  # nothing is before
    for _ in range(4):
        chosen.forward()
    assert chosen.state == after
    assert (explorer.channel, atlas.selected, inspector.image, steering.image) == (20, [3], 5, 5)
    chosen.back()
    explorer.channel = 1
    assert not chosen.can_go_forward


def test_the_history_is_bounded(gallery) -> None:
    chosen = Selection(gallery)
    for number in range(450):
        chosen.channel = number % 24
    assert len(chosen._past) == 200


def test_the_line_of_code_chooses_the_same(panels, gallery, split, images) -> None:
    panels[1].selected = [3]
    line = panels[0].selection.code()
    assert line.startswith("selection.choose(channel=")
    other = Gallery(split, images[:12]).fill(progress=False)
    restored = eval(line, {"selection": selection_of(other)})  # noqa: S307 - made above
    assert restored.state == panels[0].selection.state


def test_a_panel_that_is_opened_later_shows_what_is_chosen(panels, gallery) -> None:
    panels[1].selected = [3]
    panels[2].image = 6
    chosen = panels[0].selection.state
    explorer, inspector = ChannelExplorer(gallery, count=3), ImageInspector(gallery, count=4)
    steering, atlas = SteeringPanel(gallery), ConceptAtlas(gallery)
    assert explorer.channel == chosen.channel
    assert set(explorer._listed) == channels_of(gallery, [3])
    assert (inspector.image, steering.image, atlas.selected) == (6, 6, [3])
    assert 3 in steering.strengths
    assert explorer.selection.state == chosen


def test_an_explorer_that_is_opened_later_says_which_channel_is_the_best(gallery) -> None:
    atlas, inspector = ConceptAtlas(gallery), ImageInspector(gallery)
    atlas.selected = [3]
    assert (atlas.selection.channel, atlas.selection.unit) == (None, None)
    explorer = ChannelExplorer(gallery, count=3)
    assert explorer.channel == explorer._listed[0] == atlas.selection.channel
    assert inspector.unit == atlas.selection.unit
    assert inspector.unit[0] == explorer.channel
    assert len(atlas.selection._past) == 1


def test_a_hidden_panel_computes_when_it_is_seen(panels, monkeypatch) -> None:
    explorer, atlas, _, steering = panels
    explorer.hide()
    before = explorer._grid.value
    monkeypatch.setattr(explorer.gallery, "channel", None)
    atlas.selected = [3]
    assert explorer._grid.value == before
    assert steering.image == atlas.selection.image
    monkeypatch.undo()
    explorer.hide(hidden=False)
    assert explorer.channel == atlas.selection.channel
    assert f"Channel {explorer.channel}" in explorer._grid.value


def test_a_panel_whose_cell_has_run_again_computes_nothing(panels) -> None:
    explorer, atlas, _, _ = panels
    before = explorer.channel
    explorer._presence.views = 1  # as the page says
    explorer._presence.views = 0
    atlas.selected = [3]
    assert explorer.channel == before
    explorer._presence.views = 1
    assert explorer.channel == explorer._listed[0] == atlas.selection.channel


def test_panels_that_are_not_linked_show_two_channels_side_by_side(panels, gallery) -> None:
    explorer, atlas, _, _ = panels
    other = ChannelExplorer(gallery, count=3)
    other.linked = False
    explorer.channel = 3
    other.channel = 9
    assert (explorer.channel, other.channel, explorer.selection.channel) == (3, 9, 3)
    atlas.selected = [3]
    assert other.channel == 9
    other.linked = True
    assert other.channel == explorer.channel


def test_in_a_kernel_one_choice_is_one_step_and_nothing_bounces(gallery) -> None:
    async def use() -> tuple[Any, ...]:
        panels = ChannelExplorer(gallery, count=3), ConceptAtlas(gallery), ImageInspector(gallery)
        explorer, atlas, inspector = panels
        seen = list[State]()
        explorer.selection.observe(lambda change: seen.append(change["new"]), "state")
        atlas.map.chosen = [3]
        await asyncio.sleep(0.4)
        inspector._picker.row = (inspector.row + 1) % 4
        await asyncio.sleep(0.4)
        place = explorer._place.value % explorer._place.max + 1
        explorer._place.value = place
        await asyncio.sleep(0.4)
        return len(seen), seen[-1].channel, explorer.channel, explorer._place.value, place

    steps, chosen, channel, shown, place = asyncio.run(use())
    assert steps == 3
    assert chosen == channel
    assert shown == place


def test_what_is_set_from_python_is_there_in_the_same_cell(gallery) -> None:
    async def use() -> None:
        explorer, inspector = ChannelExplorer(gallery, count=3), ImageInspector(gallery)
        explorer.selection.choose(channel=11, image=4)
        assert explorer.view is not None
        assert (explorer.view.channel, inspector.image) == (11, 4)
        explorer.selection.back()
        assert inspector.image == 0

    asyncio.run(use())


def test_a_second_key_press_soon_after_the_first_counts(gallery) -> None:
    async def use() -> tuple[int, int]:
        inspector = ImageInspector(gallery)
        inspector._picker.row = 3
        while inspector.row != 3:
            await asyncio.sleep(0.01)
        inspector._picker.row = 0  # before the panel follows the selection
        await asyncio.sleep(0.5)
        return inspector.row, inspector._picker.row

    assert asyncio.run(use()) == (0, 0)


def test_names_change_nothing_that_is_chosen(panels) -> None:
    explorer, atlas, inspector, _ = panels
    atlas.selected = [3]
    before = atlas.selection.state
    atlas.name(2, "edge")
    atlas.name(3, "corner")
    assert explorer._some.label.endswith("with sub-units of concept 3: corner")
    assert atlas.selection.state == before
    assert not atlas.selection._future
    assert len(atlas.selection._past) == 1
    assert inspector.unit == before.unit


def test_a_gallery_that_nobody_has_is_forgotten(split, images) -> None:
    gallery = Gallery(split, images[:9]).fill(progress=False)
    chosen, kept = selection_of(gallery), weakref.ref(gallery)
    chosen.channel = 3
    del gallery
    gc.collect()
    assert kept() is None
    with pytest.raises(ReferenceError):
        chosen.channel = 4


@pytest.mark.parametrize(
    "kind", [ChannelExplorer, ConceptAtlas, ImageInspector, IntruderQuiz, SteeringPanel, Workbench]
)
def test_no_method_of_a_panel_takes_the_place_of_one_of_a_widget(kind) -> None:
    own = {name for each in kind.__mro__ if each.__module__.startswith("elude_nb") for name in vars(each)}
    wanted = {"_repr_mimebundle_", "_traits", "_all_trait_default_generators", "_trait_default_generators"}
    wanted |= {"_static_immutable_initial_values", "_instance_inits", "_descriptors", "_states_to_send"}
    shadowed = {name for name in own if hasattr(ipywidgets.VBox, name) and not name.startswith("__")}
    assert shadowed <= wanted
