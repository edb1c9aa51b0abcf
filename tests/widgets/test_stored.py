"""What a notebook keeps of a panel for when it has no kernel."""

from __future__ import annotations

import asyncio

import pytest

from elude_nb.interpret.gallery import Gallery
from elude_nb.widgets import ChannelExplorer, stored

WIDGET = "application/vnd.jupyter.widget-view+json"


@pytest.fixture
def gallery(split, images) -> Gallery:
    return Gallery(split, images[:10]).fill(progress=False)


def test_a_panel_is_displayed_as_a_widget_and_beside_it_as_pictures(gallery, displayed) -> None:
    explorer = ChannelExplorer(gallery, count=3)
    assert not displayed
    explorer._ipython_display_()
    widget, kept = displayed
    assert widget[WIDGET]["model_id"] == explorer.model_id
    assert "text/html" not in widget  # it is kept once
    assert WIDGET not in kept
    html = kept["text/html"]
    assert f"Channel {explorer.channel}" in html
    assert "Pictures as they were" in html
    assert f"elude-live-{explorer.model_id}" in explorer._dom_classes
    assert f":root:has(.elude-live-{explorer.model_id})" in html  # hidden where the widget lives
    assert kept["text/plain"].startswith("ChannelExplorer: ")


def test_it_is_stored_anew_when_the_panel_rests(gallery, displayed, monkeypatch) -> None:
    monkeypatch.setattr(stored, "PAUSE", 0.1)

    async def use() -> None:
        explorer = ChannelExplorer(gallery, count=3)
        explorer._ipython_display_()
        for channel in range(5, 9):
            explorer.channel = channel
        assert len(displayed) == 2
        await asyncio.sleep(0.4)

    asyncio.run(use())
    assert len(displayed) == 3
    assert displayed[2]["display_id"] == displayed[1]["display_id"]
    assert "Channel 8" in displayed[2]["text/html"]


def test_voila_keeps_nothing(gallery, displayed, monkeypatch) -> None:
    monkeypatch.setenv("SERVER_SOFTWARE", "voila/0.5")
    ChannelExplorer(gallery, count=3)._ipython_display_()
    assert [WIDGET in bundle for bundle in displayed] == [True]


def test_the_style_of_a_stopped_kernel_comes_with_the_panel(gallery) -> None:
    explorer = ChannelExplorer(gallery, count=3)
    assert "elude-panel" in explorer._dom_classes
    assert "Kernel stopped" in explorer.children[0].value
    explorer.set_trait("children", explorer.children[:])  # it is there once
    assert sum(child is explorer.children[0] for child in explorer.children) == 1
