"""The steering panel shows what the edited model does, follows its traits, and says what is wrong."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
import torch
import traitlets
from PIL import Image

from elude_nb import Edit, fit_head
from elude_nb.errors import EditError, ImageError
from elude_nb.figures.html import change_layer, pixels_uri
from elude_nb.interpret.gallery import Gallery
from elude_nb.interpret.neighbours import find_neighbours
from elude_nb.steering import effect, patch_change, patch_colours
from elude_nb.steering.heads import read_outputs
from elude_nb.widgets.controls import CopyButton
from elude_nb.widgets.steering_panel import SteeringPanel
from tests.markup import Page


@pytest.fixture(scope="module")
def gallery(split, images) -> Gallery:
    return Gallery(split, images).fill(progress=False)


@pytest.fixture
def panel(gallery) -> SteeringPanel:
    return SteeringPanel(gallery, concepts=[0, 2], neighbours=5)


def slider(panel: SteeringPanel, concept: int) -> Any:
    return panel._rows[concept]


def test_a_slider_moves_what_the_edited_model_moves(panel, split, images) -> None:
    panel.image = 4
    slider(panel, 0).value = 0.0
    slider(panel, 2).value = 1.55
    expected = Edit.scale(concept=0, by=0.0) + Edit.scale(concept=2, by=1.55)
    assert panel.edit == expected
    assert panel.strengths == {0: 0.0, 2: 1.55}
    with split.edit(expected):
        after = read_outputs(split.model, [images[4]])[0]
    torch.testing.assert_close(panel.steered.after, after, rtol=1e-11, atol=1e-11)
    assert panel.steered.largest > 0
    assert f"{panel.steered.cosine:.4f}" in panel._moved.value


def test_neighbours_are_those_of_the_library(panel, split, images) -> None:
    panel.image = 4
    panel.strengths = {0: 0.0, 2: 2.0}
    expected = find_neighbours(split, images[4], images, {"edited": panel.edit}, k=6)
    for when, name in (("before", "as it is"), ("after", "edited")):
        found = panel.neighbours[panel.neighbours["when"] == when]
        pairs = [(i, c) for i, c in zip(expected.found[name], expected.cosines[name], strict=True) if i != 4][:5]
        assert found["image"].tolist() == [image for image, _ in pairs]
        assert found["cosine"].tolist() == pytest.approx([cosine for _, cosine in pairs], abs=1e-10)
        assert found["rank"].tolist() == [1, 2, 3, 4, 5]
        assert found["label"].tolist() == [images.labels[image] for image, _ in pairs]
    shown = Page(panel._near.value)
    alts = [image["alt"] for image in shown.find("img")]
    assert alts == [f"image {i}, {images.labels[i]}" for i in panel.neighbours["image"]]
    before = set(panel.neighbours["image"][:5])
    assert shown.text.count("(new)") == sum(image not in before for image in panel.neighbours["image"][5:])


def test_probabilities_are_those_of_the_head(gallery, split, images) -> None:
    head = fit_head(split.model, images)
    panel = SteeringPanel(gallery, head=head, concepts=[1])
    slider(panel, 1).value = 0.0
    with split.edit(Edit.scale(concept=1, by=0.0)):
        expected = head.probabilities(read_outputs(split.model, [images[0]]))[0]
    assert panel.probabilities.loc[list(head.classes), "after"].tolist() == pytest.approx(expected.tolist(), abs=1e-10)
    shown = Page(panel._bars.value).text
    for name, row in panel.probabilities.iterrows():
        assert f"{name}{row['before']:.3f}{row['after']:.3f}" in shown.replace("\n", "")


def test_without_a_head_there_are_no_probabilities(panel) -> None:
    assert panel.probabilities.empty
    assert panel._bars.value == ""


def test_all_sliders_at_one_move_nothing_at_all(panel) -> None:
    assert (panel.steered.largest, panel.steered.cosine, panel.edit) == (0.0, 1.0, Edit())
    assert "largest change <b>0.0</b>" in panel._moved.value
    panel.strengths = {0: 0.5}
    assert panel.steered.largest > 0
    panel._reset.click()
    assert (panel.steered.largest, panel.edit, panel.strengths) == (0.0, Edit(), {0: 1.0})
    assert slider(panel, 0).value == 1.0


def test_sliders_come_and_go(panel, caplog) -> None:
    free = [number for _, number in panel._concept.options]
    assert sorted(free) == [1, 3, 4, 5, 6, 7]
    assert panel._concept.value == free[0]
    panel._concept.value = 5
    panel._add.click()
    assert panel.strengths == {0: 1.0, 2: 1.0, 5: 1.0}
    titles = [panel.gallery.split.concept_title(concept, number=True) for concept in (0, 2, 5)]
    assert [row.description for row in panel._sliders.children] == titles
    assert "-like, " in titles[0]
    assert 5 not in [number for _, number in panel._concept.options]
    slider(panel, 5).value = 0.25
    slider(panel, 5)._handle_custom_msg("remove", [])
    assert (panel.strengths, panel.edit) == ({0: 1.0, 2: 1.0}, Edit())
    panel.add(5)
    assert slider(panel, 5).value == 1.0
    for concept in (1, 3, 4, 6, 7):
        panel.add(concept)
    assert (panel._concept.value, panel._add.disabled) == (None, True)
    panel.remove(7)
    assert (panel._concept.value, panel._add.disabled) == (7, False)
    panel._add.click()
    assert len(panel.strengths) == 8
    assert not caplog.records


def test_traits_move_the_controls(panel) -> None:
    panel.strengths = {3: 0.123, 6: 1.9}
    assert [slider(panel, concept).value for concept in (3, 6)] == [0.123, 1.9]
    assert len(panel._sliders.children) == 2
    panel.image = 7
    assert panel._image.value == 7
    slider(panel, 6).value = 0.4
    assert panel.strengths == {3: 0.123, 6: 0.4}  # 0.123 lies between two steps, and stays
    panel._image.value = 2
    assert panel.image == 2


def test_the_code_makes_the_same_edit(panel) -> None:
    panel.strengths = {0: 0.0, 2: 1.35}
    box = Page(panel._code.value)
    assert box.tags[0][0] == "textarea"
    assert "readonly" in box.tags[0][1]
    assert box.text == panel._copy.text
    scope: dict[str, Any] = {}
    exec(panel._copy.text, scope)  # noqa: S102
    assert scope["edit"] == panel.edit
    assert panel.edit.code() in panel._copy.text


def test_a_picture_of_ones_own_is_read_as_a_file_is(panel) -> None:
    deep = np.full((32, 32), 128 * 257, np.uint16)  # PIL alone would make it white
    panel.picture = Image.fromarray(deep)
    assert panel.picture.getpixel((0, 0)) == (128, 128, 128)
    with pytest.raises(ImageError, match="'picture' has 4 x 4 pixels"):
        panel.picture = Image.new("L", (4, 4))


def test_a_picture_of_ones_own(panel, split, images) -> None:
    own = images[11].convert("RGBA")
    panel.strengths = {0: 0.0}
    panel.picture = own
    with split.edit(panel.edit):
        after = read_outputs(split.model, [images[11]])[0]
    torch.testing.assert_close(panel.steered.after, after, rtol=1e-11, atol=1e-11)
    assert panel.neighbours["image"][0] == 11  # it is not in the gallery by number, so its twin is its nearest
    assert "an image of your own" in panel._own.value
    panel.picture = images[12]
    assert panel.neighbours["image"][0] == 12
    panel._image.value = 6
    assert panel.picture is None
    assert f'alt="image 6, {images.labels[6]}"' in panel._own.value


@pytest.mark.parametrize(
    ("strengths", "message"),
    [
        ({0: 2.5}, "concept 0"),
        ({0: -0.1}, "concept 0"),
        ({0: float("nan")}, "concept 0"),
        ({0: "much"}, "concept 0"),
        ({0: True}, "concept 0"),
        ({99: 1.0}, "99"),
        ({"stripes": 1.0}, "stripes"),
    ],
)
def test_wrong_strengths_change_nothing(panel, strengths, message) -> None:
    panel.strengths = {0: 0.5}
    before = panel.steered
    with pytest.raises((traitlets.TraitError, EditError), match=message):
        panel.strengths = strengths
    assert panel.strengths == {0: 0.5}
    assert panel.steered is before


def test_wrong_images_change_nothing(panel) -> None:
    for number in (-1, 20):
        with pytest.raises(traitlets.TraitError, match=f"image={number}"):
            panel.image = number
    with pytest.raises(traitlets.TraitError):
        panel.picture = "cat.jpg"
    assert (panel.image, panel.picture) == (0, None)


def test_what_cannot_be_added_is_reported(panel) -> None:
    panel.add(99)
    assert "99" in panel.message
    assert 'role="alert"' in panel._status.value
    panel.add(0)
    assert "concept 0" in panel.message
    assert 'role="alert"' in panel._status.value
    assert panel.strengths == {0: 1.0, 2: 1.0}


def test_an_active_edit_is_reported_and_nothing_moves(panel, split, gallery, caplog) -> None:
    panel.strengths = {0: 0.5, 2: 1.0}
    before = panel.steered
    with split.edit(Edit.scale(concept=1, by=0.0)):
        slider(panel, 2).value = 0.0
        assert 'role="alert"' in panel._status.value
        assert slider(panel, 2).value == 1.0
        panel._reset.click()
        panel._image.value = 3
        panel.refresh()
        assert 'role="alert"' in panel._status.value
        with pytest.raises(EditError):
            SteeringPanel(gallery)
    assert (panel.strengths, panel.image, panel._image.value) == ({0: 0.5, 2: 1.0}, 0, 0)
    assert panel.steered is before
    assert not caplog.records
    slider(panel, 2).value = 0.0
    assert panel.strengths == {0: 0.5, 2: 0.0}


def test_names_are_shown_and_understood(split, images) -> None:
    named = split.with_names({4: "<stripes>"})
    panel = SteeringPanel(Gallery(named, images), concepts=["<stripes>"])
    assert panel.strengths == {4: 1.0}
    assert slider(panel, 4).description == "concept 4: <stripes>"
    panel.strengths = {"<stripes>": 0.0}  # type: ignore[dict-item]
    assert panel.edit == Edit.scale(concept=4, by=0.0)
    assert "&lt;stripes&gt;: 0" in panel.static_html()


def test_by_default_the_concepts_that_stand_out_have_sliders(split, images) -> None:
    panel = SteeringPanel(split, images)
    assert len(panel.strengths) == 3
    assert set(panel.strengths.values()) == {1.0}
    first = panel._concept.options
    panel.image = 9
    assert panel._concept.options != first  # another image, other concepts first


def test_a_head_that_does_not_fit_is_refused_at_once(gallery, conv, small_images) -> None:
    with pytest.raises(RuntimeError):
        SteeringPanel(gallery, head=fit_head(conv, small_images))


def test_the_last_images_are_cached(panel) -> None:
    panel.beside = []
    for number in range(10):
        panel.image = number
    assert list(panel._images.seen) == [4, 5, 6, 7, 8, 9]
    kept = panel._images.seen[5]
    panel.image = 5
    assert panel._images.seen[5] is kept


def test_the_static_fallback(panel, images) -> None:
    panel.strengths = {0: 0.0}
    bundle = panel._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    shown = Page(data["text/html"])
    pictures = shown.find("img")
    assert len(pictures) == 3 * 4 + 10  # each image, its map, its patches before and after; neighbours
    assert all(attributes["alt"] for attributes in pictures)
    assert panel.edit.code() in shown.text
    assert not [tag for tag, _ in shown.tags if tag in {"script", "link"}]


def test_sliders_rest_before_anything_is_computed(gallery) -> None:
    async def drag() -> tuple[int, SteeringPanel]:
        panel = SteeringPanel(gallery, concepts=[0])
        seen = []
        panel.observe(lambda change: seen.append(change["new"]), "steered")
        for value in (0.9, 0.7, 0.5, 0.3):
            slider(panel, 0).value = value
        assert panel.strengths == {0: 1.0}
        await asyncio.sleep(0.4)
        return len(seen), panel

    painted, panel = asyncio.run(drag())
    assert painted == 1
    assert panel.strengths == {0: 0.3}


def test_a_repaint_does_not_move_a_slider_that_is_dragged(gallery) -> None:
    async def drag(*, reset: bool) -> SteeringPanel:
        panel = SteeringPanel(gallery, concepts=[0])
        panel.strengths = {0: 0.8}
        slider(panel, 0).value = 0.6
        panel.refresh()  # as when more images have come
        assert slider(panel, 0).value == 0.6
        if reset:
            panel.reset()
        await asyncio.sleep(0.3)
        return panel

    assert asyncio.run(drag(reset=False)).strengths == {0: 0.6}
    panel = asyncio.run(drag(reset=True))
    assert (panel.strengths, slider(panel, 0).value) == ({0: 1.0}, 1.0)


def test_a_gallery_that_fills_while_a_panel_is_there(split, images) -> None:
    async def wait() -> SteeringPanel:
        panel = SteeringPanel(split, images, concepts=[0])
        assert panel.gallery.ready < 20
        assert "of 20 images" in panel.message
        while panel.gallery.ready < 20 or "coming" in panel.message:
            await asyncio.sleep(0.02)
        return panel

    panel = asyncio.run(asyncio.wait_for(wait(), 20))
    assert panel.neighbours["image"].max() > 8
    assert "20 images" in panel.message


def test_every_control_has_a_name(panel) -> None:
    assert panel._strip.label
    assert all(one["name"] for one in panel._strip.pictures)
    for control in (panel._image, panel._concept, panel._add, panel._reset, slider(panel, 0)):
        assert control.description


def test_the_copy_button_carries_its_text() -> None:
    button = CopyButton(text="Edit()", label="copy the code")
    assert (button.text, button.label) == ("Edit()", "copy the code")
    assert 'setAttribute("role", "status")' in str(button._esm)


def test_the_maps_are_those_of_the_library(panel, images, split) -> None:
    panel.image, panel.beside = 4, [1, 6]
    panel.strengths = {0: 0.0, 2: 1.5}
    expected = patch_change(split, panel.edit, [images[number] for number in (4, 1, 6)])
    shown = Page(panel._own.value + panel._beside.value).find("img")
    assert [one["alt"] for one in shown[::4]] == [f"image {i}, {images.labels[i]}" for i in (4, 1, 6)]
    colours = [patch_colours(tokens, fit=expected.before) for tokens in (expected.before, expected.after)]
    for number in range(3):
        layer, before, after = (one["src"] for one in shown[4 * number + 1 : 4 * number + 4])
        assert layer == pixels_uri(change_layer(expected.distance[number].numpy()))
        assert [before, after] == [pixels_uri(found[number].numpy()) for found in colours]
        assert f"up to {float(expected.distance[number].max()):.2f}" in shown[4 * number + 1]["alt"]


def test_images_beside_the_first(gallery) -> None:
    panel = SteeringPanel(gallery, concepts=[0])
    labels = gallery.images.labels
    assert sorted(labels[number] for number in panel.beside) == ["label 1", "label 2"]  # the first is "label 0"
    panel._choose(9)  # a click in the strip
    assert (panel.image, panel.beside[0], panel._strip.chosen[:2]) == (9, 0, [9, 0])
    panel.image = 0  # it changes places
    assert (panel.image, panel.beside[0]) == (0, 9)
    for wrong in ([1, 1], [20], [-1], [1, 2, 3, 4]):
        with pytest.raises(traitlets.TraitError, match="beside="):
            panel.beside = wrong
    assert len(panel._strip.pictures) == 20
    with pytest.raises(traitlets.TraitError):
        SteeringPanel(gallery, beside=[99])


def test_without_patches_there_are_no_maps(conv_split, small_images) -> None:
    panel = SteeringPanel(conv_split, small_images)
    assert "no maps are drawn" in panel._own.value
    assert len(Page(panel._own.value + panel._beside.value).find("img")) == len(panel._keys)


def test_doses_are_what_the_effect_measures(gallery, split, images) -> None:
    head = fit_head(split.model, images)
    panel = SteeringPanel(gallery, head=head, concepts=[1])
    assert "panel.measure()" in panel._dose.value
    table = panel.measure()
    edit, target = Edit.scale(concept=1, by=0.0), table["target"].iloc[0]
    expected = effect(split, edit, images, head=head, target=target, fit=images, controls=(), progress=False)
    assert panel.doses is table
    assert table["drop"].tolist()[1:] == pytest.approx(expected.curve["drop"].tolist(), abs=1e-9)
    assert "Not faded" in panel._dose.value
    slider(panel, 1).value = 0.45  # nearest is half
    shown = Page(panel._dose.value).text
    assert f"Faded by 50 %: {target} {-100 * table['drop'][2]:+.1f} points" in shown
    slider(panel, 1).value = 1.5
    assert "It is amplified" in panel._dose.value
    panel.add(3)
    slider(panel, 3).value = 0.5  # the concept that was moved last
    assert panel.doses is None


def test_doses_are_measured_between_moves_in_a_kernel(gallery, split, images, monkeypatch) -> None:
    monkeypatch.setattr("elude_nb.widgets.dose_meter.REST", 0.01)

    async def wait() -> SteeringPanel:
        panel = SteeringPanel(gallery, head=fit_head(split.model, images), concepts=[1])
        assert "being measured" in panel._dose.value
        while panel.doses is None:
            await asyncio.sleep(0.02)
        return panel

    panel = asyncio.run(asyncio.wait_for(wait(), 20))
    before = panel.doses
    assert before is not None
    assert panel.measure().equals(before)
