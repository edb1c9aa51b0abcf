from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from elude_nb.widgets import panel, selection, stored


@pytest.fixture(autouse=True)
def nothing_is_chosen() -> Iterator[None]:
    """Galleries are shared between tests; what one test chooses is not."""
    yield
    selection._SELECTIONS.clear()


@pytest.fixture
def displayed(monkeypatch) -> list[dict[str, Any]]:
    """What was displayed, and displayed anew."""
    found = list[dict[str, Any]]()

    def take(bundle: dict[str, Any], *, raw: bool, display_id: str = "") -> None:
        found.append({**bundle, "display_id": display_id})

    monkeypatch.setattr(panel, "display", take)
    monkeypatch.setattr(stored, "display", take)
    monkeypatch.setattr(stored, "update_display", take)
    return found
