"""Right answers are said to be right, and each typical mistake gets the sentence that is meant for it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from elude_nb import course
from elude_nb.course import answers
from elude_nb.course.answers import Right, check_choice_of, check_function, check_numbers
from elude_nb.course.routing import winning_sets
from elude_nb.errors import AnswerError

ROOMS = [
    importlib.import_module(f"elude_nb.course.{name}")
    for name in ("sums", "routing", "scoring", "maps", "edits", "tradeoff", "quizzes", "naming")
]
generator = torch.Generator().manual_seed(0)
W, B, Q = (torch.randn(*size, generator=generator) for size in ((5, 30), (5,), (8, 30)))
GROUP = torch.randint(0, 3, (30,), generator=generator)
C = W[1] * Q[0]
CLUSTERS = torch.tensor([0, 0, 1, 1, 1, -1, 2, 2])
MEMBERS = torch.rand(7, 30, generator=generator) > torch.tensor([0.0] + [0.4] * 6)[:, None]
PARTS = W[1] * MEMBERS / MEMBERS.sum(0)
OUT = torch.randn(9, 6, generator=generator) + 3
E_ = torch.nn.functional.normalize(OUT - OUT.mean(0), dim=1)
MAPS = torch.randn(3, 4, 4, generator=generator) - 1
UNITS = torch.randn(4, 40, generator=generator) * torch.tensor([[0.1], [1.0], [2.0], [0.5]]) + 1
CODES = torch.tensor([0, 1, 2, 0, 1, 2])
P1, P2 = (torch.randn(6, 3, generator=generator).softmax(1) for _ in range(2))
DROPS = torch.tensor([0.02, -0.05, 0.6, 0.1])
CURVES = {
    name: pd.DataFrame({"strength": [0.0, 0.5, 1.0], "drop": [0.0, drop, 0.8], "others": [0.0, 0.1, last]})
    for name, drop, last in (("a", 0.2, 0.3), ("b", 0.5, 0.9))
}
QUIZ = course.practice_answers(seed=1)
PRECISIONS = torch.rand(2, 4, 20, generator=generator)
HIDDEN, REAL = torch.randn(3, 5, 4, generator=generator), torch.arange(5) < torch.tensor([[2], [4], [3]])
RAW = np.array([[0.04, 0.3], [0.001, 0.001], [0.6, 0.01]])


def whole(answer: Any, count: int) -> Any:
    """Return a single number as often as the check asks for numbers."""
    return [answer] * count if isinstance(answer, float) else answer


def pair(answer: Any) -> tuple[Any, Any]:
    """Return the two numbers of an answer."""
    first, second = answer if isinstance(answer, list) else (answer, answer)
    return first, second


CASES: dict[str, Callable[[Any], Right]] = {
    "sizes": lambda a: course.check_sizes(*pair(a), W),
    "contributions": lambda a: course.check_contributions(a, W, Q[0], 1),
    "channel value": lambda a: course.check_channel_value(a, W, B, Q[0], 1),
    "channel": lambda a: course.check_channel(a, W, B, Q, 1),
    "strongest": lambda a: course.check_strongest(whole(a, 5), C, W, Q[0], 1),
    "group sums": lambda a: course.check_group_sums(a, C, GROUP, 0.7),
    "why groups": course.check_why_groups,
    "by block": lambda a: course.check_by_block(a, W, Q[0], 1, GROUP + 1),
    "instances": lambda a: course.check_instances(a, Q[:, 0], 3),
    "unit contributions": lambda a: course.check_unit_contributions(a, W[1], Q),
    "representatives": lambda a: course.check_representatives(a, Q, CLUSTERS),
    "route": course.check_route,
    "parts": lambda a: course.check_parts(a, W[1], MEMBERS),
    "missing": lambda a: course.check_missing(a, PARTS, W[1]),
    "image activations": lambda a: course.check_image_activations(a, Q.flatten(), 8),
    "top images": lambda a: course.check_top_images(a, Q[:, 0], 3),
    "directions": lambda a: course.check_directions(a, OUT),
    "top similarity": lambda a: course.check_top_similarity(a, E_, torch.tensor([1, 4, 6])),
    "monosemanticity": course.check_monosemanticity,
    "gain": lambda a: course.check_gain(a, Q[:, 0], Q[:, 1]),
    "verdict": lambda a: course.check_verdict(a, 0.1, 0.2),
    "grid": lambda a: course.check_grid(a, Q[0, :12], 3, 4),
    "unit maps": lambda a: course.check_unit_maps(a, W[1], 0.7, Q, GROUP),
    "shares": lambda a: course.check_shares(a, UNITS, UNITS.sum(0)),
    "limit": lambda a: course.check_limit(a, MAPS),
    "outline": lambda a: course.check_outline(a, MAPS[0], -0.9),
    "patch box": lambda a: course.check_patch_box(whole(a, 4), torch.eye(4)[[1, 0]] * torch.tensor([[2.0], [1.0]]), 14),
    "reading": course.check_reading,
    "ablation": lambda a: course.check_ablation(a, Q[:, 0], Q[:, 1], 0.3, 0.2),
    "drops": lambda a: course.check_drops(a, P1, P2, CODES),
    "bystanders": lambda a: course.check_bystanders(whole(a, 4), DROPS, 2),
    "strength": course.check_strength_for,
    "equal drop": lambda a: course.check_at_equal_drop(a, CURVES, 0.3),
    "control": course.check_control,
    "top k": course.check_top_k,
    "unexplained": course.check_unexplained,
    "why nothing lost": course.check_why_nothing_lost,
    "redundancy": lambda a: course.check_redundancy(a, OUT + Q[:1, :6] * torch.arange(9.0)[:, None]),
    "average precision": course.check_average_precision,
    "two halves": lambda a: course.check_two_halves(a, *PRECISIONS),
    "chance": lambda a: course.check_chance(a, 5),
    "right shares": lambda a: course.check_right_shares(
        a if a is ... else dict(zip(("channel", "sub-unit"), whole(a, 2), strict=True)), QUIZ
    ),
    "wilson": course.check_wilson,
    "paired": lambda a: course.check_paired(a, QUIZ),
    "sign flip": course.check_sign_flip,
    "kappa": lambda a: course.check_kappa(a, QUIZ),
    "why mixed": course.check_why_mixed,
    "pooled": lambda a: course.check_pooled(a, HIDDEN, REAL),
    "cosines": lambda a: course.check_cosines(a, OUT),
    "label counts": lambda a: course.check_label_counts(a, Q[:6, 0], CODES, 3),
    "chance of": course.check_chance_of,
    "holm": course.check_holm,
    "named": lambda a: course.check_named(a, RAW * [[1, 1], [1, 1], [1, 9]], RAW),
    "why unseen": course.check_why_unseen,
}


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Listen to what a check compares an answer with."""
    heard: dict[str, Any] = {}

    def numbers(answer: Any, right: Any, sentence: str, **how: Any) -> Right:
        heard.setdefault("right", right)
        heard.setdefault("mistakes", how.get("mistakes") or {})
        return check_numbers(answer, right, sentence, **how)

    def function(given: Any, cases: Any, rule: Any, sentence: str, **how: Any) -> Right:
        heard.setdefault("right", rule)
        heard.setdefault("mistakes", {said: ("rule", wrong) for said, wrong in (how.get("mistakes") or {}).items()})
        return check_function(given, cases, rule, sentence, **how)

    def choice(answer: Any, right: str, sentence: str, wrong: Any) -> Right:
        heard.setdefault("right", right)
        heard.setdefault("mistakes", {said: letter for letter, said in wrong.items()})
        return check_choice_of(answer, right, sentence, wrong)

    for room in ROOMS:
        for name, listen in (("check_numbers", numbers), ("check_function", function), ("check_choice_of", choice)):
            monkeypatch.setattr(room, name, listen, raising=False)
    return heard


@pytest.mark.parametrize("name", CASES)
def test_each_mistake_gets_its_sentence(name: str, known: dict[str, Any]) -> None:
    check = CASES[name]
    with pytest.raises(AnswerError):  # nothing fits it; the check says what it would have compared it with
        check(12345.678)
    if not known:  # a function is asked for
        with pytest.raises(AnswerError):
            check(lambda *_: 12345.678)
    assert isinstance(check(known["right"]), Right)
    assert known["mistakes"]
    for said, wrong in known["mistakes"].items():
        answer = wrong[1] if isinstance(wrong, tuple) and wrong[0] == "rule" else wrong() if callable(wrong) else wrong
        with pytest.raises(AnswerError) as told:
            check(answer)
        assert str(told.value) == said
        assert said.count(". ") == 0  # one sentence
        assert said.endswith((".", "?"))


@pytest.mark.parametrize("name", CASES)
def test_no_answer_is_said_to_be_none(name: str) -> None:
    with pytest.raises(AnswerError, match=r"no answer yet|returns nothing yet|is asked for"):
        CASES[name](...)


def test_every_check_is_tested() -> None:
    others = {
        "by_hand", "certificate", "deal", "exact", "interval", "lens", "random_routes", "rounding", "undone",
    }  # fmt: skip
    tested = {name.replace(" ", "_") for name in CASES} | others
    aliases = {"strength_for": "strength", "at_equal_drop": "equal_drop"}
    there = {name.removeprefix("check_") for name in course.__all__ if name.startswith("check_")}
    assert {aliases.get(name, name) for name in there} == tested


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ([1.0, 2.0], r"shape of your answer is \(2,\); it should be \(3,\), one a source"),
        ([-1.0, -2.0, -4.0], "sign is turned round"),
        ([2.0, 4.0, 8.0], "2 times too large"),
        ([0.5, 1.0, 2.0], "2 times too small"),
        ([1.5, 2.5, 4.5], "off by one and the same amount"),
        ([4.0, 1.0, 2.0], "in another order"),
        ([1.0, 2.0, 9.0], "1 of 3 numbers are wrong; the first of them has the index 2"),
        ([1.0, 2.0, float("nan")], "1 of your numbers are NaN"),
        ("four", "made of numbers"),
        ([1, ..., 4], "no answer yet"),
    ],
)
def test_what_differs(answer: Any, said: str) -> None:
    with pytest.raises(AnswerError, match=said):
        check_numbers(answer, [1.0, 2.0, 4.0], "", shape="one a source")


@pytest.mark.parametrize(
    "answer", [[1, 2, 4], (1.0, 2.0, 4.0), np.array([1, 2, 4]), pd.Series([1, 2, 4]), torch.tensor([1, 2, 4])]
)
def test_any_kind_of_numbers_will_do(answer: Any) -> None:
    assert check_numbers(answer, torch.tensor([1.0, 2.0, 4.0]), "So it is.").sentence == "So it is."


def test_a_function_may_fail_return_nothing_or_change_what_it_is_given() -> None:
    cases = [(torch.ones(2),)]
    for wrong, said in (
        (lambda x: 1 / 0, "fails .* ZeroDivisionError"),
        (lambda x: None, "returns nothing yet"),
        (lambda x: x.mul_(2), "changes what it is given"),
        (3, "is a function"),
    ):
        with pytest.raises(AnswerError, match=said):
            check_function(wrong, cases, lambda x: x * 2, "")


def test_by_hand() -> None:
    r = torch.tensor([[0.90, 0.60, 0.30, -0.80], [0.20, 0.50, 0.28, 0.10], [0.10, 0.10, 0.25, 0.30]])
    right: list[Any] = [{1}, {1, 2}, {1, 2, 3}, {1, 2, 3}]
    assert isinstance(course.check_by_hand(right, r, 0.5), Right)
    for place, wrong, said in (
        (1, {1}, "Source 2 is wrong. Each source goes to its strongest cluster alone"),
        (2, set(), "Source 3 is wrong. Where not exactly one set wins, you give the source to nobody"),
        (3, {1}, "Source 4 is wrong. Each source goes"),
        (3, {1, 3}, "Source 4 is wrong. Where several sets win you take the largest"),
        (0, {4}, "Source 1: a set of the clusters 1 to 3"),
        (0, ..., "no answer yet"),
    ):
        with pytest.raises(AnswerError, match=said):
            course.check_by_hand([wrong if i == place else each for i, each in enumerate(right)], r, 0.5)
    with pytest.raises(AnswerError, match="Look at the signs"):
        course.check_by_hand([{2, 3}], torch.tensor([[-0.9], [0.3], [0.2]]), 0.5)
    assert winning_sets(torch.tensor([0.8, 0.1, 0.3]), 0.5) == [{0}, {0, 2}]


def test_an_exact_split() -> None:
    assert isinstance(course.check_deal(lambda whole, n: [whole // n + (i < whole % n) for i in range(n)]), Right)
    for wrong, said in (
        (lambda whole, n: [whole / n] * n, "no whole numbers"),
        (lambda whole, n: [whole // n] * n, "the remainder is lost"),
        (lambda whole, n: [whole // n + whole % n] + [whole // n] * (n - 1), "whole remainder; deal it out"),
        (lambda whole, n: [whole] * n, "more than the whole"),
        (lambda whole, n: [whole], r"returns 1 numbers; there are 3 members"),
    ):
        with pytest.raises(AnswerError, match=said):
            course.check_deal(wrong)
    with pytest.raises(AnswerError, match=r"sources do not add up to their weight bit for bit"):
        course.check_exact(PARTS, W[1], MEMBERS)
    with pytest.raises(AnswerError, match=r"torch.float32, and yours are torch.float64"):
        course.check_exact(PARTS.double(), W[1], MEMBERS)
    halves = torch.ones(2, 30, dtype=torch.bool)
    assert isinstance(course.check_exact(W[1].expand(2, -1) / 2, W[1], halves), Right)


def test_a_certificate() -> None:
    h = Q @ W[1] + 0.7
    assert isinstance(course.check_certificate(1e-6, PARTS, Q, 0.7, h), Right)
    with pytest.raises(AnswerError, match="Off by the bias"):
        course.check_certificate(0.7, PARTS, Q, 0.7, h)
    assert isinstance(course.check_lens(torch.tensor(0.0)), Right)
    with pytest.raises(AnswerError, match="bit for bit"):
        course.check_lens(1e-9)


@pytest.mark.parametrize(
    ("gaps", "said"),
    [
        ((1e-7, 1e-7), "convert the contributions"),
        ((0, 0), "another order"),
        ((-1e-7, 0), "absolute"),
        ((1, 0), "more than rounding"),
    ],
)
def test_rounding(gaps: tuple[float, float], said: str) -> None:
    assert isinstance(course.check_rounding(1e-6, 1e-16), Right)
    with pytest.raises(AnswerError, match=said):
        course.check_rounding(*gaps)


def test_random_routes() -> None:
    owners = torch.arange(200) % 5
    drawn = torch.Generator().manual_seed(0)
    assert isinstance(course.check_random_routes(owners[torch.randperm(200, generator=drawn)], owners), Right)
    for wrong, said in (
        (torch.randint(0, 5, (200,), generator=drawn), "other sizes"),
        (owners, "Nothing has moved"),
        (torch.sort(owners)[0], "sorted"),
        (torch.cat([owners[:180], owners[180:].flip(0)]), "have kept their owner"),
        (owners[:-1], "200 contributions"),
    ):
        with pytest.raises(AnswerError, match=said):
            course.check_random_routes(wrong, owners)


def bootstrap(
    values: Any, *, replace: bool = True, size: int | None = None, ends: tuple[float, float] = (2.5, 97.5)
) -> Any:
    rng = np.random.default_rng(0)
    drawn = [rng.choice(values, size or len(values), replace=replace).mean() for _ in range(1000)]
    return np.percentile(drawn, ends)


def test_an_interval() -> None:
    assert isinstance(course.check_interval(bootstrap), Right)
    for wrong, said in (
        (lambda v: bootstrap(v, replace=False), "with replacement"),
        (lambda v: np.percentile(v, [2.5, 97.5]), "holds most of the numbers"),
        (lambda v: bootstrap(v, ends=(5, 95)), "a little too narrow"),
        (lambda v: bootstrap(v, size=10 * len(v)), "as many numbers as there are"),
        (lambda v: bootstrap(v)[::-1], "upper end comes first"),
        (lambda v: float(v.mean()), "two numbers"),
        (lambda v: v[1000], "fails .* with IndexError"),
    ):
        with pytest.raises(AnswerError, match=said):
            course.check_interval(wrong)


def test_an_edit_is_undone() -> None:
    assert isinstance(course.check_undone(0.3, 0.0), Right)
    for wrong, said in (
        ((0.0, 0.0), "nothing changes"),
        ((0.3, 1e-7), "outside the `with` block"),
        ((-1, 0), "absolute"),
    ):
        with pytest.raises(AnswerError, match=said):
            course.check_undone(*wrong)


def test_a_wrong_answer_is_one_line_in_a_notebook_and_a_right_one_green() -> None:
    error = AnswerError("The sign is turned round.")
    assert error._render_traceback_() == ["\x1b[31mNot yet.\x1b[0m The sign is turned round."]
    page = Right("a < b")._repr_html_()
    assert "✓ Right." in page
    assert "a &lt; b" in page
    assert answers.as_numbers([torch.tensor(1.0), 2]).tolist() == [1.0, 2.0]
