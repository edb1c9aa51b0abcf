"""Warnings that point at the user's own line."""

from __future__ import annotations

import sys
import warnings

_PASSED = {"elude_nb", "contextlib", "functools"}  # the library, and what its decorators are made of


def warn_caller(text: str) -> None:
    """Warn at the line outside this library that called it; Python shows that line below the warning."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in _PASSED:
        frame, level = frame.f_back, level + 1
    warnings.warn(text, stacklevel=level)
