"""HTML as a browser reads it, for tests."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "img", "br", "input"}


class Page(HTMLParser):
    """The tags, texts, scripts and table rows of a page; an assertion fails if a tag is left open.

    Attributes
    ----------
    tags
        Each tag with its attributes.
    text
        All text but that of scripts and styles.
    scripts
        The text of each script.
    rows
        The rows of all tables, each a list of the texts of its cells.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.scripts: list[str] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(str(text))  # of markupsafe, slices would escape what they are added to
        assert not self._open

    def find(self, name: str) -> list[dict[str, str]]:
        """Return the attributes of all tags of a name."""
        return [attributes for tag, attributes in self.tags if tag == name]

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "script":
            self.scripts.append("")
        elif tag == "tr":
            self.rows.append([])
        elif tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_endtag(self, tag) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data) -> None:
        if self._open and self._open[-1] == "script":
            self.scripts[-1] += data
        elif not self._open or self._open[-1] != "style":
            self.text += data
            if {"td", "th"} & set(self._open):
                self.rows[-1][-1] += data
