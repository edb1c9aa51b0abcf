"""What goes wrong in the background, where no cell waits for it, is shown."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from elude_nb import load_images
from elude_nb.data.images import ImageSet
from elude_nb.widgets import ChannelExplorer, ConceptAtlas, ImageInspector, IntruderQuiz, SteeringPanel
from elude_nb.widgets.panel import GalleryPanel, Panel

PANELS = (ChannelExplorer, ConceptAtlas, ImageInspector, IntruderQuiz, SteeringPanel)


@pytest.fixture(scope="module")
def broken(images: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """Fourteen files of which number 10 is no picture."""
    folder: Path = tmp_path_factory.mktemp("pictures")
    for number, image in enumerate(images[:14]):
        image.save(folder / f"{number:02}.png")
    (folder / "10.png").write_text("a letter")
    return load_images(folder)


def in_a_kernel(make: Callable[[], GalleryPanel], use: Callable[[GalleryPanel], object] = lambda panel: None) -> Any:
    """Make a panel where an event loop is running, wait for its task, and use it."""

    async def run() -> GalleryPanel:
        panel = make()
        assert "8 of 14 images are ready; the others are coming" in panel.message
        assert panel._task is not None
        await asyncio.wait([panel._task])
        use(panel)
        await asyncio.sleep(0.2)
        return panel

    return asyncio.run(run())


@pytest.mark.parametrize("kind", PANELS)
def test_a_broken_picture_after_the_first_eight_is_named(kind: type[GalleryPanel], split, broken: ImageSet) -> None:
    panel = in_a_kernel(lambda: kind(split, broken))
    assert "8 of 14 images are ready; the others were not run" in panel.message
    assert "10.png" in panel.message
    assert 'role="alert"' in panel._status.value
    assert panel._bar.layout.display == "none"
    panel.refresh()  # the panel goes on with what it has, and says so each time
    assert "8 of 14 images are ready; the others were not run" in panel.message


@pytest.mark.parametrize("kind", PANELS)
def test_a_fault_of_the_program_is_shown_and_raised(
    kind: type[GalleryPanel], split, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(panel: GalleryPanel) -> None:
        raise AssertionError("fault of the program")

    def make() -> GalleryPanel:
        panel = kind(split, images[:14])
        monkeypatch.setattr(kind, "refresh", fault)
        return panel

    panel = in_a_kernel(make)
    assert "AssertionError('fault of the program')" in panel.message
    with pytest.raises(AssertionError):
        panel._task.result()


def test_a_task_that_is_cancelled_says_so(split, images: ImageSet) -> None:
    def make() -> GalleryPanel:
        panel = ChannelExplorer(split, images[:14])
        assert panel._task is not None
        asyncio.get_running_loop().call_later(0.01, panel._task.cancel)
        return panel

    assert "the others were not run: CancelledError" in in_a_kernel(make).message


def test_an_error_of_a_debounced_control_is_shown(split, images: ImageSet) -> None:
    """Without a loop at once; in a loop nobody but the loop's log would hear of it."""
    panel = in_a_kernel(
        lambda: ChannelExplorer(split, images[:14]), lambda panel: panel.later(panel._listed.__getitem__)(10_000)
    )
    assert panel.message == "list index out of range"
    other = Panel()
    other.later({}.__getitem__)("name")
    assert other.message == "KeyError('name')"
