"""HTML from templates that escape every text."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from elude_nb._util.glossary import GLOSSARY
from elude_nb._util.words import as_text


@cache
def _environment(package: str) -> Environment:
    made = Environment(
        loader=PackageLoader(package), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.globals |= {"look": look_css, "term": term, "glossary": GLOSSARY}
    # JSON inside a <script>: in the order given, without NaN, which JSON has not.
    made.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return made


def render(package: str, template: str, **values: Any) -> Markup:
    """Return a template from the folder ``templates`` of a package, filled in; text is escaped, `Markup` is not.

    Examples
    --------
    >>> render("elude_nb.figures", "tile.html", src="data:,", alt="<b>", colour="red", side=96)  # doctest: +ELLIPSIS
    Markup('<img alt="&lt;b&gt;" title="&lt;b&gt;" ... src="data:,">')
    """
    return Markup(as_text(_environment(package).get_template(template).render(values)))  # noqa: S704 - escaped there


@cache
def look_css() -> Markup:
    """Return the style of all panels and pages, for a ``<style>``; what has the class ``elude-look`` has it."""
    return Markup(files("elude_nb._util").joinpath("look.css").read_text(encoding="utf-8"))  # noqa: S704 - our own file


def term(word: str, shown: str = "") -> Markup:
    """Return a word of the glossary, or ``shown`` in its place, with what it means on hovering.

    Examples
    --------
    >>> term("rho", "left over")  # doctest: +ELLIPSIS
    Markup('<abbr class="elude-term" title="...">left over</abbr>')
    """
    return Markup('<abbr class="elude-term" title="{}">{}</abbr>').format(GLOSSARY[word], shown or word)
