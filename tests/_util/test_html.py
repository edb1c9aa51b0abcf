"""Templates escape text, and JSON in a page can be nothing but data."""

from __future__ import annotations

import json

import jinja2
import pytest
from markupsafe import Markup

from elude_nb._util.html import _environment, render

TEXTS = [
    "</script><script>",
    '"><img src=x onerror="f()">',
    "<!--<script>\u2028'",
    "]]>",
    "\ud800",
    "é ü 猫",
    "$x {{ y }}",
]


def tile(**values: object) -> str:
    return render(
        "elude_nb.figures", "tile.html", **{"src": "data:,", "alt": "a", "colour": "red", "side": 9, **values}
    )


def test_text_is_escaped_and_markup_is_not() -> None:
    assert 'alt="&lt;b&gt; &#34;"' in tile(alt='<b> "')
    assert 'alt="<b>"' in tile(alt=Markup("<b>"))


def test_a_value_that_is_missing_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError, match="side"):
        render("elude_nb.figures", "tile.html", src="data:,", alt="a", colour="red")


@pytest.mark.parametrize("text", TEXTS)
def test_json_comes_back_as_it_was(text: str) -> None:
    template = _environment("elude_nb.app").from_string("{{ data | tojson }}")
    data = {"z": text, text: [text, None, 1.5], "a": 0}
    packed = template.render(data=data)
    assert json.loads(packed) == data
    assert list(json.loads(packed)) == list(data)
    assert not set(packed) & set("<>&\u2028\u2029")


def test_numbers_that_json_has_not_are_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        _environment("elude_nb.app").from_string("{{ data | tojson }}").render(data=float("nan"))
