from __future__ import annotations

import asyncio
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from elude_nb._util.progress import TEXT_BARS, progress_bar
from elude_nb.data.images import ImageSet
from elude_nb.interpret.gallery import Gallery
from elude_nb.widgets import background, stored, workbench
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


@pytest.fixture
def slow(vit, images, monkeypatch) -> Any:
    """A bench whose model loads once ``go`` is set, and where it may fail."""
    world = SimpleNamespace(go=threading.Event(), thread=None, fault=None, loops=0)

    def load_model(name: str) -> Any:
        world.thread = threading.current_thread()
        for _ in progress_bar(range(1000), description="weights", unit="part"):
            if world.go.wait(0.01):
                break
        if world.fault is not None:
            raise world.fault
        return vit.using(progress=False)

    monkeypatch.setattr(workbench, "load_model", load_model)
    monkeypatch.setattr(workbench, "load_images", lambda source, count: images[:count])
    monkeypatch.delenv(TEXT_BARS, raising=False)
    return world


async def until(condition: Any) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("It does not come.")


def bench() -> Any:
    return Workbench("tiny", "here", count=16, concepts=4, units=3)


def test_in_a_kernel_it_shows_an_example_until_the_readers_own_is_ready(slow) -> None:
    async def use() -> None:
        start = time.monotonic()
        app = bench().run()
        assert time.monotonic() - start < 1
        assert app._tabs.titles == ("Example",)
        shown = app._tabs.children[0].value
        assert "This is a finished example: dinov2-small on the photographs. Yours is being made: tiny on here" in shown
        assert shown.count("<img") == 80
        assert "Yours is being made" in app.static_html()
        assert app._bar.layout.display == ""
        await until(lambda: app.message.startswith("weights: "))
        assert 0 < app._bar.value < 1
        assert slow.thread is not threading.main_thread()
        assert app.run() is app  # a second time
        assert "running already" in app.message
        slow.go.set()
        await app._task
        assert app._tabs.titles[0] == "Channels"
        assert len(app.gallery.images) == 8
        assert "Channels" in app.panels
        assert app._bar.layout.display == "none"
        assert app._go.description == "disentangle"
        assert "8 images from" in app.message

    asyncio.run(use())


def test_what_a_saved_notebook_keeps_is_the_readers_own(slow, displayed, monkeypatch) -> None:
    monkeypatch.setattr(stored, "PAUSE", 0.05)

    async def use() -> None:
        slow.go.set()
        app = bench().run()
        app._ipython_display_()
        await app._task
        app.show("Concepts")
        await until(lambda: "<h3>Concepts</h3>" in displayed[-1]["text/html"])

    asyncio.run(use())
    first, *_, last = [bundle["text/html"] for bundle in displayed if "text/html" in bundle]
    assert "This is a finished example" in first
    assert "<h3>Channels</h3>" in last
    assert "This is a finished example" not in last


def test_the_button_stops_what_is_running_and_begins_anew(slow) -> None:
    async def use() -> None:
        app = bench()
        app._go.click()
        assert app._go.description == "stop"
        await until(lambda: app.message.startswith("weights: "))
        app._go.click()
        await app._task
        assert "Stopped" in app.message
        assert app.gallery is None
        assert "Press “disentangle”" in app._finished.value
        slow.go.set()
        app._go.click()
        await app._task
        assert app.gallery is not None

    asyncio.run(use())


@pytest.mark.parametrize("fault", [OSError("no such folder"), AssertionError("fault of the program")])
def test_what_goes_wrong_in_the_background_is_shown(slow, fault) -> None:
    async def use() -> None:
        slow.fault = fault
        slow.go.set()
        app = bench().run()
        await asyncio.wait([app._task])
        assert str(fault) in app.message
        assert 'role="alert"' in app._status.value
        assert app._go.description == "disentangle"
        assert app._tabs.titles == ("Example",)
        assert isinstance(app._task.exception(), type(fault) if isinstance(fault, AssertionError) else type(None))

    asyncio.run(use())


def test_panels_stay_while_another_is_made(slow, app) -> None:
    async def use() -> None:
        before = dict(app.panels)
        app.run()
        await until(lambda: app.message.startswith("weights: "))
        assert app.panels == before
        assert app._tabs.titles[0] == "Channels"
        app._work.stop()
        await app._task
        assert app.panels == before

    asyncio.run(use())


def test_it_can_be_told_to_wait(slow) -> None:
    async def use() -> None:
        slow.go.set()
        app = bench().run(wait=True)
        assert app.gallery is not None
        assert slow.thread is threading.main_thread()

    asyncio.run(use())


@pytest.mark.parametrize(
    ("request_", "variables", "goes_on"),
    [
        ({"allow_stdin": True}, {}, True),  # JupyterLab
        ({"comm_id": "a button"}, {}, True),
        ({"allow_stdin": False}, {}, False),  # nbconvert, nbmake, papermill
        ({"allow_stdin": False}, {"SERVER_SOFTWARE": "voila/0.5"}, True),
        ({"allow_stdin": True}, {TEXT_BARS: "1"}, False),  # the tour
    ],
)
def test_work_goes_on_after_the_cell_only_where_the_kernel_does(request_, variables, goes_on, monkeypatch) -> None:
    shell = SimpleNamespace(kernel=SimpleNamespace(get_parent=lambda: {"content": request_}))
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    for name in ("SERVER_SOFTWARE", TEXT_BARS):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    async def found() -> bool:
        return background.find_loop() is not None

    assert asyncio.run(found()) is goes_on
    assert background.find_loop() is None  # in a script


def test_a_default_dtype_of_the_users_is_not_changed_beside_their_cells() -> None:
    async def found() -> bool:
        return background.find_loop() is None

    torch.set_default_dtype(torch.float64)
    try:
        assert asyncio.run(found())
    finally:
        torch.set_default_dtype(torch.float32)


def test_one_selection_leads_all_panels_and_only_the_one_that_is_seen_computes(app) -> None:
    channels = app.panels["Channels"]
    app.show("Concepts")
    before = channels._grid.value
    app.panels["Concepts"].map.chosen = [3]
    assert channels._grid.value == before
    app.show("Image")
    assert app.panels["Image"].image == app.selection.image
    app.show("Channels")
    assert channels.channel == app.selection.channel
    assert channels._grid.value != before
    assert "with sub-units of concept 3" in channels._some.label
    app.show("Steering")
    assert 3 in app.panels["Steering"].strengths


def test_back_and_forward_by_the_buttons(app) -> None:
    first = app.panels["Channels"].channel
    assert app._steps.layout.display == ""
    assert (app._back.disabled, app._forward.disabled) == (True, True)
    app.panels["Channels"].channel = other = 1 if first != 1 else 2
    assert (app._back.disabled, app._forward.disabled) == (False, True)
    app._back.click()
    assert app.panels["Channels"].channel == first
    assert (app._back.disabled, app._forward.disabled) == (True, False)
    app._forward.click()
    assert app.panels["Channels"].channel == other
    assert app._back.tooltip
    assert app._forward.tooltip
    assert bench()._steps.layout.display == "none"


CHOSEN: dict[str, Any] = {"channel": 5, "unit": (5, 1), "concepts": [2], "image": 3, "patch": (1, 3)}


def traits(app: Any) -> dict[str, Any]:
    """Return what the panels of a bench show, in each of them."""
    channels, concepts, image, steering = (app.show(title).panels[title] for title in list(app._tabs.titles)[:4])
    return {
        "channel": channels.channel,
        "unit": image.unit,
        "concepts": [*concepts.selected],
        "image": image.image,
        "steered": steering.image,
        "patch": (image.row, image.column),
    }


def test_a_line_of_code_opens_the_same_again(slow) -> None:
    slow.go.set()
    app = bench().run()
    app.selection.choose(**CHOSEN)
    assert traits(app) == {**CHOSEN, "steered": 3}
    app.show("Image")
    app._count.value = 20  # not what the result was made with
    line = app.code()
    assert line == (
        "Workbench('tiny', 'here', count=16, concepts=4, units=3, seed=0).run()"
        ".show('Image', channel=5, unit=(5, 1), concepts=[2], image=3, patch=(1, 3))"
    )
    assert app._line.text == line
    again = eval(line)  # noqa: S307 - made above
    assert again.code() == line
    assert traits(again) == traits(app)


def test_the_line_waits_for_a_result_that_is_being_made(slow) -> None:
    async def use() -> None:
        app = bench().run().show("Concepts", concepts=[3])
        assert app.selection is None
        assert app.code().endswith(".run().show('Concepts', concepts=[3])")
        slow.go.set()
        await app._task
        assert app._tabs.selected_index == 1
        assert app.panels["Concepts"].selected == [3]
        assert "image=" in app.code()

    asyncio.run(use())


def test_what_cannot_be_opened_is_reported(slow, app) -> None:
    with pytest.raises(ValueError, match="no panel 'Concept'; there are Channels, Concepts"):
        app.show("Concept")
    with pytest.raises(TypeError, match="'row' cannot be chosen"):
        bench().show("Image", row=3)
    slow.go.set()
    late = bench().show("Image", channel=99).run()
    assert "no channel 99" in late.message
    assert list(late.panels) == ["Image"]
    assert app.code() == "Workbench(gallery=gallery).show('Channels')"
