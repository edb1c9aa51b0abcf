"""A real browser: Debian's Chromium (or what is installed), driven by Playwright."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.servers import FLAGS, find_chromium

SHOTS = "ELUDE_NB_SHOTS"  # a folder, for pictures of pages at the end of each test


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium, closed after each file: Playwright's event loop counts as running as long as it is open.

    Widgets that are tested in the same process afterwards would take themselves to be in a kernel.
    """
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium is installed; on Debian: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, headless=True, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def page(browser, request) -> Iterator[Any]:
    """A page in which an uncaught script error fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 1400}, accept_downloads=True)
    page = context.new_page()
    page.set_default_timeout(90_000)  # a busy machine draws JupyterLab's menus late
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    if os.environ.get(SHOTS):  # to look at what a failed test saw
        page.screenshot(path=Path(os.environ[SHOTS]) / f"{request.node.name}.png")
    context.close()
    assert not errors, errors
