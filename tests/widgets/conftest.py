from __future__ import annotations

from collections.abc import Iterator

import pytest

from elude_nb.widgets import selection


@pytest.fixture(autouse=True)
def nothing_is_chosen() -> Iterator[None]:
    """Galleries are shared between tests; what one test chooses is not."""
    yield
    selection._SELECTIONS.clear()
