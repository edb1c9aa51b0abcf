"""One progress bar for the whole library.

``tqdm.auto`` picks a widget in a notebook and text in a terminal. A page that is exported without a
kernel cannot show a widget, so `elude-nb tour` asks for text through the environment.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any

from elude_nb._util.checks import check_flag

TEXT_BARS = "ELUDE_NB_TEXT_BARS"
_DELAY = 1.0  # seconds


def say(text: str) -> None:
    """Write a line without tearing a bar that is being drawn."""
    from tqdm import tqdm

    tqdm.write(text, file=sys.stderr)


def progress_bar(
    iterable: Iterable[Any] | None = None, *, description: str, total: int | None = None, show: bool = True, **more: Any
) -> Any:
    """Return a tqdm bar over ``iterable`` (or a manual one with ``total`` steps); ``show=False`` is silent.

    Raises
    ------
    TypeError
        If ``show`` is neither ``True`` nor ``False``.
    """
    check_flag("progress", show)
    if os.environ.get(TEXT_BARS):
        from tqdm import tqdm
    else:
        from tqdm.auto import tqdm
    # What is over in a moment shows no bar.
    return tqdm(iterable, desc=description, total=total, disable=not show, **{"delay": _DELAY, **more})
