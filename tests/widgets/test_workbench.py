from __future__ import annotations

from typing import Any

import pytest

from elude_nb.data.images import ImageSet
from elude_nb.interpret.gallery import Gallery
from elude_nb.widgets import workbench
from elude_nb.widgets.workbench import Workbench


@pytest.fixture
def app(split, images) -> Workbench:
    return Workbench(gallery=Gallery(split, images[:12]).fill(progress=False))


def test_a_panel_is_made_when_its_tab_is_opened(app) -> None:
    assert list(app.panels) == ["Channels"]
    for index, title in enumerate(app._tabs.titles):
        app._tabs.selected_index = index
        assert title in app.panels, app.message
        assert app._tabs.children[index].children == (app.panels[title],)
    assert list(app.panels) == ["Channels", "Concepts", "Image", "Steering", "Intruder quiz"]
    first = app.panels["Channels"]
    app._tabs.selected_index = 0
    assert app.panels["Channels"] is first


def test_panels_share_the_gallery_and_its_names(app) -> None:
    app._tabs.selected_index = 1
    app.panels["Concepts"].name(2, "edge")
    app.panels["Channels"].search("edge")
    assert "'edge'" in app.panels["Channels"].message
    assert app.gallery is not None
    assert app.gallery.split.names == {2: "edge"}


def test_the_static_fallback(app) -> None:
    app._tabs.selected_index = 2
    text = app.static_html()
    assert "<h3>Channels</h3>" in text
    assert "<h3>Image</h3>" in text
    assert "disentangle" in Workbench().static_html()


@pytest.mark.parametrize(("model", "source", "message"), [("dinov2-smal", "photographs", "dinov2-small"), ("", "", "")])
def test_what_goes_wrong_is_reported_and_the_panels_stay(app, model, source, message) -> None:
    before = app.gallery, dict(app.panels)
    app._model.value, app._images.value = model, source
    app.run()
    assert 'role="alert"' in app._status.value
    assert message in app.message
    assert not app._go.disabled
    assert (app.gallery, app.panels) == before


def test_from_the_form_to_the_panels(vit, images, monkeypatch) -> None:
    asked = {}

    def load_images(source: str, count: int) -> ImageSet:
        asked["images"] = source, count
        found: ImageSet = images[:count]
        return found

    monkeypatch.setattr(workbench, "load_model", lambda name: asked.setdefault("model", name) and vit)
    monkeypatch.setattr(workbench, "load_images", load_images)
    app: Any = Workbench("tiny", "here", count=16, concepts=4, units=3)
    before = app.gallery
    assert before is None
    app._go.click()
    assert asked == {"model": "tiny", "images": ("here", 16)}
    assert app.gallery is not None, app.message
    assert len(app.gallery.images) == 8
    assert len(app.gallery.split.book) == 4
    assert app.gallery.split.settings.units == 3
    assert "Channels" in app.panels
