"""What axe-core finds on a page."""

from __future__ import annotations

from typing import Any

RULES = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}}


def serious(page: Any) -> list[tuple[str, str]]:
    """Return the serious and critical findings by the rules of WCAG 2.1 A and AA: names, contrast, structure."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page, options=RULES).response["violations"]
    return [(each["id"], each["nodes"][0]["html"][:160]) for each in found if each["impact"] in {"serious", "critical"}]
