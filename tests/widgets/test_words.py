"""People's words in panels: labels, names of concepts and of uploaded files, whatever they are."""

from __future__ import annotations

from typing import Any

import ipywidgets
import pytest

from elude_nb.interpret.gallery import Gallery
from elude_nb.widgets import ChannelExplorer, ConceptAtlas, ImageInspector, IntruderQuiz, SteeringPanel
from elude_nb.widgets.panel import Panel
from tests.figures.test_words import WORDS, gallery  # noqa: F401 - a fixture


def every_widget(top: Any) -> list[Any]:
    found = [top]
    for child in getattr(top, "children", ()):
        found += every_widget(child)
    return found


@pytest.mark.parametrize("kind", [ChannelExplorer, ConceptAtlas, ImageInspector, IntruderQuiz, SteeringPanel])
def test_words_can_be_sent_and_are_no_markup(kind: Any, gallery: Gallery) -> None:  # noqa: F811
    panel: Panel = kind(gallery)
    if isinstance(panel, ImageInspector):
        panel.show(gallery.images[0], WORDS[3] + WORDS[6])
    if isinstance(panel, SteeringPanel):
        panel.strengths = dict.fromkeys(range(len(WORDS)), 1.0)
    for widget in every_widget(panel):
        assert "$" not in getattr(widget, "description", "")
        for value in widget.get_state().values():
            repr(value).encode("utf-8")
            if isinstance(value, str):
                value.encode("utf-8")
                if isinstance(widget, ipywidgets.HTML):
                    assert "<b>100" not in value
    data: Any = panel._repr_mimebundle_()
    page = (data[0] if isinstance(data, tuple) else data)["text/html"]
    page.encode("utf-8")
    assert "<b>100" not in page
