"""Build the site: `python docs/build_site.py` (with the extra `docs`) writes ./site, offline, and follows its links.

With --tour the notebooks are run as well, which takes some twelve minutes, and their pages are part of the site.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

HERE = Path(__file__).parent
_LOADED = re.compile(r"<(?:script|img|link|iframe|source)\b[^>]*?\b(?:src|href)=\"([^\"]+)\"", re.IGNORECASE)
_FOLLOWED = re.compile(r"<a\b[^>]*?\bhref=\"([^\"]+)\"", re.IGNORECASE)


def find_faults(site: Path) -> list[str]:
    """Return what is wrong with the links of a site's pages: files and places that are not there, and requests."""
    texts = {page: page.read_text(encoding="utf-8") for page in sorted(site.rglob("*.html"))}
    places = {page: set(re.findall(r"\b(?:id|name)=\"([^\"]+)\"", text)) for page, text in texts.items()}
    faults = []
    for page, text in texts.items():
        name = page.relative_to(site)
        faults += [f"{name} loads {to}" for to in _LOADED.findall(text) if re.match(r"(https?:)?//", to)]
        for to in {*_LOADED.findall(text), *_FOLLOWED.findall(text)}:
            parts = urlsplit(to.replace("&amp;", "&"))
            if parts.scheme or parts.netloc or not (parts.path or parts.fragment):
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page.resolve()
            if not target.exists():
                faults.append(f"{name} leads to {to}, which is not there")
            elif (
                parts.fragment and target.suffix == ".html" and unquote(parts.fragment) not in places.get(target, set())
            ):
                faults.append(f"{name} leads to {to}; the page has no such place")
    return faults


def main() -> int:
    """Build, check, and say where the site is; 1 if a link leads nowhere."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("site"))
    parser.add_argument("--tour", action="store_true", help="run the notebooks, too")
    options = parser.parse_args()
    from sphinx.cmd.build import main as sphinx

    tour = ["-t", "tour"] if options.tour else []
    if sphinx(["-q", "-W", "--keep-going", *tour, str(HERE), str(options.out)]):
        return 1
    if options.tour:
        from elude_nb.app.tour import run_tour

        run_tour(options.out / "tour")
    faults = find_faults(options.out.resolve())
    print("\n".join(faults) or f"All links lead somewhere. Open {options.out / 'index.html'}")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
