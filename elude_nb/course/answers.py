"""What a check does with an answer: it says that it is right, or in one sentence what is wrong with it."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from markupsafe import Markup
from torch import Tensor

from elude_nb._util.checks import shortly
from elude_nb._util.html import look_css
from elude_nb.errors import AnswerError

Mistakes = Mapping[str, Any]
"""Sentences about typical mistakes, each with what somebody gets who makes it, or a function that returns it."""

_NOTHING = "There is no answer yet: write yours in place of the three dots."


@dataclass(frozen=True)
class Right:
    """An answer that is right; as the last line of a cell it is shown in green.

    Attributes
    ----------
    sentence
        What the answer shows.
    """

    sentence: str

    def __repr__(self) -> str:
        return f"Right. {self.sentence}"

    def _repr_html_(self) -> str:
        box = Markup(
            '<style>{}</style><div class="elude-look" style="border-left:4px solid var(--elude-good);padding:.4em 1em;'
            'background:color-mix(in srgb, var(--elude-good) 12%, transparent)"><b style="color:var(--elude-good)">'
            "✓ Right.</b> {}</div>"
        )
        return str(box.format(look_css(), self.sentence))


def check_numbers(
    answer: object,
    right: Any,
    sentence: str,
    *,
    shape: str = "",
    mistakes: Mistakes | None = None,
    places: float = 1e-3,
) -> Right:
    """Compare numbers with the right ones.

    Parameters
    ----------
    answer, right
        Numbers, sequences, arrays or tensors of any shape.
    sentence
        What a right answer shows.
    shape
        In words what an answer of the right shape is, such as "one number for each source".
    mistakes
        Typical wrong answers and the sentences meant for them; the first that fits is said.
    places
        How far the answer may be from the right one, as a share of its largest number.

    Raises
    ------
    AnswerError
        If it is wrong. The message is one sentence that does not contain the answer.
    """
    given, wanted = as_numbers(answer), as_numbers(right)

    def fits(found: Any) -> bool:
        found = as_numbers(found() if callable(found) else found)
        return found.shape == given.shape and bool(((given - found).abs() <= _near(found, places)).all())

    if fits(wanted):
        return Right(sentence)
    for said, wrong in (mistakes or {}).items():
        if fits(wrong):
            raise AnswerError(said)
    raise AnswerError(_what_differs(given, wanted, _near(wanted, places), shape))


def check_choice_of(answer: object, right: str, sentence: str, wrong: Mapping[str, str]) -> Right:
    """Compare a letter with the right one; ``wrong`` has a sentence for each other letter.

    Raises
    ------
    AnswerError
        If it is another letter, or none.
    """
    need(answer)
    letter = answer.strip().lower() if isinstance(answer, str) else answer
    if letter == right:
        return Right(sentence)
    allowed = ", ".join(f'"{each}"' for each in sorted([right, *wrong]))
    raise AnswerError(wrong.get(str(letter), f"The answer is one of the letters {allowed}, and not {shortly(answer)}."))


def check_function(
    function: object,
    cases: Sequence[tuple[Any, ...]],
    rule: Callable[..., Any],
    sentence: str,
    *,
    shape: str = "",
    mistakes: Mapping[str, Callable[..., Any]] | None = None,
    places: float = 1e-3,
) -> Right:
    """Call a student's function on some cases and compare what it returns with a rule.

    Parameters
    ----------
    function
        The student's.
    cases
        The arguments of each call.
    rule
        Returns the right values.
    sentence, shape, places
        As in `check_numbers`.
    mistakes
        Sentences, each with a rule that makes the mistake.

    Raises
    ------
    AnswerError
        If it fails, returns nothing, or is wrong for one of the cases.
    """
    for case in cases:
        copies = [each.clone() if isinstance(each, Tensor) else each for each in case]
        found = call(function, *copies)
        if any(isinstance(a, Tensor) and not torch.equal(a, b) for a, b in zip(case, copies, strict=True)):
            raise AnswerError("Your function changes what it is given; work on a copy, or make new tensors.")
        wrong = {said: rule_of(*case) for said, rule_of in (mistakes or {}).items()}
        check_numbers(found, rule(*case), sentence, shape=shape, mistakes=wrong, places=places)
    return Right(sentence)


def call(function: object, *arguments: Any) -> Any:
    """Return what a student's function returns.

    Raises
    ------
    AnswerError
        If it is none, fails, or returns nothing.
    """
    need(function)
    if not callable(function):
        raise AnswerError(f"The answer is a function, and not {shortly(function)}.")
    try:
        found = function(*arguments)
    except Exception as error:  # noqa: BLE001 - whatever a student's function may raise
        line = traceback.extract_tb(error.__traceback__)[-1].lineno
        said = str(error).partition("\n")[0] or "no message"
        raise AnswerError(f"Your function fails (line {line}) with {type(error).__name__}: {said}") from None
    if found is None or found is ...:
        raise AnswerError("Your function returns nothing yet: its last line is `return` and the result.")
    return found


def need(answer: object) -> None:
    """Raise `AnswerError` if there is no answer yet."""
    if answer is ... or answer is None:
        raise AnswerError(_NOTHING)


def as_numbers(answer: Any) -> Tensor:
    """Return an answer as a float64 tensor.

    Raises
    ------
    AnswerError
        If there is none, or it has no numbers.
    """
    need(answer)
    if isinstance(answer, Sequence | set | tuple) and any(each is ... or each is None for each in answer):
        raise AnswerError(_NOTHING)
    try:
        found = answer.detach().cpu() if isinstance(answer, Tensor) else torch.tensor(_plain(answer))
    except (TypeError, ValueError, RuntimeError):
        raise AnswerError(f"The answer is made of numbers, and not {shortly(answer)}.") from None
    return found.double()


def _near(values: Tensor, places: float) -> float:
    """Return how far off a number may be: a share of the largest."""
    return places * max(float(values.abs().max()) if values.numel() else 0.0, 1e-12)


def _plain(answer: Any) -> Any:
    """Return pandas objects as arrays, and numbers in lists as they are."""
    if hasattr(answer, "to_numpy"):
        answer = answer.to_numpy()
    if isinstance(answer, np.ndarray):
        return answer.copy()  # torch takes none that cannot be written, or that is turned round
    if isinstance(answer, list | tuple):
        return [each.tolist() if hasattr(each, "tolist") else each for each in answer]
    return answer


def _what_differs(given: Tensor, wanted: Tensor, near: float, shape: str) -> str:  # noqa: PLR0911 - one for each
    """Say in which of the usual ways numbers are wrong."""
    if given.shape != wanted.shape:
        meant = f", {shape}" if shape else ""
        return f"The shape of your answer is {_shape(given)}; it should be {_shape(wanted)}{meant}."
    if not bool(given.isfinite().all()):
        return f"{int((~given.isfinite()).sum())} of your numbers are NaN or infinite: was something divided by 0?"
    if bool(((given + wanted).abs() <= near).all()):
        return "The sign is turned round."
    factor = float((given * wanted).sum() / wanted.square().sum().clamp(min=1e-300))
    if given.numel() > 1 and factor > 0 and bool(((given - factor * wanted).abs() <= near * factor).all()):
        too, by = ("large", factor) if factor > 1 else ("small", 1 / factor)
        return f"All your numbers are {by:.3g} times too {too}."
    shift = float((given - wanted).mean())
    if given.numel() > 1 and bool(((given - wanted - shift).abs() <= near).all()):
        return "All your numbers are off by one and the same amount: something was added, or left out."
    if given.numel() > 1 and bool(((given.flatten().sort()[0] - wanted.flatten().sort()[0]).abs() <= near).all()):
        return "These are the right numbers in another order."
    wrong = (given - wanted).abs() > near
    if given.numel() == 1:
        low = float(given) < float(wanted)
        return f"That is too {'low' if low else 'high'}." if math.isfinite(float(wanted)) else "That is not right."
    first = [int(place) for place in wrong.nonzero()[0]]
    place = first[0] if len(first) == 1 else tuple(first)
    return f"{int(wrong.sum())} of {given.numel()} numbers are wrong; the first of them has the index {place}."


def _shape(found: Tensor) -> str:
    return str(tuple(found.shape)) if found.ndim else "() (a single number)"
