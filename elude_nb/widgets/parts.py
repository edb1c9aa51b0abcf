"""Controls with a label and a class by which style sheets and tests find them, and what they have in common."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import ipywidgets
import traitlets

from elude_nb._util.html import render

PAUSE = 0.12  # seconds for which a slider must rest before anything is computed

fill = partial(render, "elude_nb.widgets")  # in a template of this room


@contextmanager
def holding(owner: object, flag: str, *, value: bool = True) -> Iterator[None]:
    """Have a flag of ``owner`` be ``value`` inside the block; afterwards it is what it was before."""
    before = getattr(owner, flag)
    setattr(owner, flag, value)
    try:
        yield
    finally:
        setattr(owner, flag, before)


def debounce(function: Callable[..., object], seconds: float = PAUSE) -> Callable[..., None]:
    """Return a function that calls ``function`` with its last arguments, once it was not called for some time.

    Without a running event loop (in a script, in a test) it calls at once.
    """
    waiting: asyncio.TimerHandle | None = None

    def call(*arguments: Any) -> None:
        nonlocal waiting
        if waiting is not None:
            waiting.cancel()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            function(*arguments)
        else:
            waiting = loop.call_later(seconds, function, *arguments)

    return call


Change = Callable[[Any], object]


def make(kind: Callable[..., Any], description: str, name: str, change: Change | None = None, **settings: Any) -> Any:
    """Return a control with a label and the class ``elude-{name}``; ``change`` is called with each new value."""
    usual: dict[str, Any] = {"layout": {"width": "340px"}}
    if hasattr(kind, "style"):  # our own controls have none
        usual["style"] = {"description_width": "90px"}
    control = kind(description=description, **{**usual, **settings}).add_class(f"elude-{name}")
    if change is not None:
        control.observe(lambda event: change(event["new"]), "value")
    return control


def make_button(description: str, name: str, press: Callable[[], object], **settings: Any) -> Any:
    """Return a button with the class ``elude-{name}``."""
    button = ipywidgets.Button(description=description, **settings).add_class(f"elude-{name}")
    button.on_click(lambda _: press())
    return button


def make_place(name: str) -> Any:
    """Return an empty place for HTML with the class ``elude-{name}``."""
    return ipywidgets.HTML().add_class(f"elude-{name}")


def make_row(*controls: Any) -> Any:
    """Return controls beside each other, or below each other on a narrow page."""
    return ipywidgets.HBox(controls, layout={"flex_flow": "row wrap"})


def make_closed(title: str, *children: Any) -> Any:
    """Return controls in a part that opens with a click on its title."""
    return ipywidgets.Accordion([ipywidgets.VBox(children)], titles=(title,), selected_index=None)


def check_range(proposal: Any, low: float, high: float) -> Any:
    """Return the value that a trait is to take, for a validator; raise ``TraitError`` if it is out of range."""
    name, value = proposal["trait"].name, proposal["value"]
    if not low <= value <= high:
        raise traitlets.TraitError(f"{name}={value} is out of range: it must be between {low} and {high}.")
    return value
