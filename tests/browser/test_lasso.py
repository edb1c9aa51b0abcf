"""The lasso of the concept map, drawn with a finger and with a mouse, on a page of its own."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import pytest

pytestmark = pytest.mark.browser
# Places on the map: the lasso below goes around the first two, and past the third, which lies in its dent.
CONCEPTS = [(0.1, 0.1), (0.9, 0.1), (0.5, 0.1), (0.1, 0.9), (0.9, 0.9)]
AROUND = [(0.01, 0.01), (0.3, 0.01), (0.5, 0.4), (0.7, 0.01), (0.99, 0.01), (0.99, 0.5), (0.01, 0.5)]


@pytest.fixture
def area(page) -> dict[str, float]:
    """A page with the map; return where it is."""
    script, style = (
        files("elude_nb.figures").joinpath(f"concept_map.{kind}").read_text("utf-8") for kind in ("js", "css")
    )
    page.set_content(f"<style>{style}</style><main></main><script>{script}</script>")
    page.evaluate(
        """(places) => {
            window.chosen = [];
            const concepts = places.map(([x, y], i) => ({ name: `concept ${i}`, x, y }));
            window.map = drawConceptMap(document.querySelector("main"), concepts, {
                node: ({ name }) => make("button", { type: "button", "aria-label": name }),
                choose: (numbers) => { chosen = numbers; map.mark(numbers); },
            });
        }""",
        CONCEPTS,
    )
    found = page.locator(".elude-map").bounding_box()
    assert found is not None
    return dict(found)


def path(area: dict[str, float]) -> list[tuple[float, float]]:
    return [(area["x"] + x * area["width"], area["y"] + y * area["height"]) for x, y in AROUND]


def chosen(page: Any) -> Any:
    return page.evaluate("chosen")


def draw(page: Any, points: list[tuple[float, float]]) -> None:
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point, steps=4)
    page.mouse.up()


def test_with_a_mouse(page, area) -> None:
    draw(page, path(area))
    assert chosen(page) == []  # the map was moved
    page.get_by_role("button", name="Show the whole map").click()
    toggle = page.get_by_role("button", name="Lasso")
    toggle.click()
    assert toggle.get_attribute("aria-pressed") == "true"
    draw(page, path(area))
    assert chosen(page) == [0, 1]
    page.get_by_role("button", name="concept 3").click()  # with the lasso a click chooses one, too
    assert chosen(page) == [3]
    toggle.click()
    page.keyboard.down("Shift")
    draw(page, path(area))
    page.keyboard.up("Shift")
    assert chosen(page) == [0, 1]


def test_by_keyboard(page, area) -> None:
    page.get_by_role("button", name="concept 0").focus()
    page.keyboard.press("Space")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    assert chosen(page) == [0, 3]
    page.keyboard.press("Space")
    assert chosen(page) == [0]


def test_with_a_finger(page, area) -> None:
    page.get_by_role("button", name="Lasso").click()
    assert page.locator(".elude-map").evaluate("map => getComputedStyle(map).touchAction") == "none"
    touch = page.context.new_cdp_session(page)
    for kind, (x, y) in zip(["touchStart", *["touchMove"] * (len(AROUND) - 1)], path(area), strict=True):
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    page.wait_for_function("chosen.length > 0")
    assert chosen(page) == [0, 1]
