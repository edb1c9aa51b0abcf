"""Numbers and pictures made small and harmless: rounded, quantised, and written so that no text can become markup."""

from __future__ import annotations

import json
import math
from pathlib import PurePath
from typing import Any

import numpy as np

LEVELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
"""One letter for each of 64 degrees of brightness; an eye cannot tell more of them apart in a heat map."""

_DANGEROUS = {ord(letter): f"\\u{ord(letter):04x}" for letter in "<>&\u2028\u2029"}


def pack_heat(heat: Any, brightest: float) -> str:
    """Return a heat map as one letter a patch, row by row: "A" for 0 and below, "/" for ``brightest`` and above.

    Examples
    --------
    >>> pack_heat([[0.0, 1.0], [2.0, -3.0]], 2.0)
    'Ag/A'
    """
    share = np.clip(np.asarray(heat, dtype=np.float64).ravel() / max(brightest, 1e-12), 0, 1)
    return "".join(LEVELS[level] for level in np.rint(share * (len(LEVELS) - 1)).astype(int))


def rounded(value: Any, digits: int = 4) -> float | None:
    """Return a number with so many significant digits, or ``None`` where there is none (JSON has no NaN).

    Examples
    --------
    >>> rounded(0.123456), rounded(float("nan"))
    (0.1235, None)
    """
    number = math.nan if value is None else float(value)
    return float(f"{number:.{digits}g}") if math.isfinite(number) else None


def json_for_html(data: Any) -> str:
    r"""Return JSON that can stand inside a ``<script>``: no text in it can end the element or open another.

    Examples
    --------
    >>> json_for_html({"name": "</script>"})
    '{"name":"\\u003c/script\\u003e"}'
    """
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate(_DANGEROUS)


def short_name(name: str) -> str:
    """Return a file's own name: the folders it lies in are nobody's business but its owner's."""
    return PurePath(name.replace("\\", "/")).name or name
