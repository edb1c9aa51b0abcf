"""Pairs of units side by side: which is more coherent? The protocol of ELUDe's rank by vision-language models."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import combinations
from typing import Protocol, runtime_checkable

import numpy as np
import pandas as pd
from PIL import Image
from torch import Tensor

from elude_nb._util.checks import check_count, check_kind
from elude_nb._util.progress import progress_bar
from elude_nb.data.images import Images, ImageSet, as_image_set
from elude_nb.scores.inputs import Array, as_numbers, check_table
from elude_nb.scores.intervals import mean_interval
from elude_nb.scores.judges import Choice

_OPEN = 64  # units whose images are held open
_QUESTION = ("first", "second", "draw", "pair")


@runtime_checkable
class PairJudge(Protocol):
    """Says which of two sets of images is more coherent: `EmbeddingJudge` offline, `ChatJudge` by a chat model."""

    def prefer(self, left: Sequence[Image.Image], right: Sequence[Image.Image]) -> Choice | None:
        """Return ``"left"`` or ``"right"``, or ``None`` if there is no usable answer."""
        ...  # pragma: no cover


def judge_pairs(
    best: Mapping[str, Array],
    images: Images,
    judges: PairJudge | Sequence[PairJudge],
    *,
    pairs: int = 50,
    draws: int = 3,
    seed: int = 0,
    progress: bool = False,
) -> pd.DataFrame:
    """Ask judges about pairs of units of different methods, each pair in both orders (arXiv 2605.31304, LLM rank).

    For each two methods and each draw, ``pairs`` units of the one are put beside units of the other, drawn at random.
    Every judge sees a unit's best images on the left and the other's on the right, and again exchanged; the majority
    of their usable answers decides. Which units are drawn depends on the seed and the two methods' names alone.

    Parameters
    ----------
    best
        By method the numbers of each unit's best images, (top, u), from ``best_images(activations, 9)``. Leave out
        dead units beforehand.
    images
        The images that these numbers mean.
    judges
        One `PairJudge` or several. The paper asks three vision-language models.
    pairs, draws
        How many pairs of units of each two methods, and how many times. The paper has 50 and 3.
    seed
        Of the draws.
    progress
        Show a progress bar over the questions.

    Returns
    -------
    DataFrame
        One row a question: ``first``, ``second`` (the methods), ``draw``, ``pair``, ``first_unit``, ``second_unit``,
        ``left`` (the method on the left), ``winner`` (a method; missing if the judges were divided or none gave a
        usable answer), ``judges`` and ``bad_answers`` (how many answers were unusable; these are never guessed).

    Raises
    ------
    ValueError
        If there are fewer than two methods, their numbers of images differ or lie outside the images, or a judge
        answers something else than left, right or ``None``.

    Examples
    --------
    >>> import torch
    >>> from elude_nb.scores import EmbeddingJudge
    >>> images = [Image.new("RGB", (8, 8), colour) for colour in ("red", "red", "blue")]
    >>> judge = EmbeddingJudge(lambda shown: torch.tensor([image.getpixel((0, 0)) for image in shown]).float())
    >>> asked = judge_pairs({"a": torch.tensor([[0], [1]]), "b": torch.tensor([[0], [2]])}, images, judge, pairs=1)
    >>> win_rates(asked)["win_rate"].tolist()
    [1.0, 0.0]
    """
    check_count("pairs", pairs)
    check_count("draws", draws)
    check_count("seed", seed, 0)
    photos = as_image_set(images)
    numbers = _checked(best, len(photos))
    panel = list(judges) if isinstance(judges, Sequence) else [judges]
    if not panel:
        raise ValueError("judges is empty; give at least one, such as EmbeddingJudge.of(model, images).")
    for judge in panel:
        check_kind("A judge", judge, PairJudge, "an object with prefer(left, right), such as a ChatJudge")

    @lru_cache(_OPEN)
    def shown(method: str, unit: int) -> tuple[Image.Image, ...]:
        return _opened(photos, numbers[method][:, unit])

    planned = _plan(numbers, pairs, draws, seed)
    rows = []
    for first, second, draw, pair, first_unit, second_unit in progress_bar(planned, description="pairs", show=progress):
        sides = [(first, first_unit), (second, second_unit)]
        for (left, left_unit), (right, right_unit) in (sides, sides[::-1]):
            answers = [judge.prefer(shown(left, left_unit), shown(right, right_unit)) for judge in panel]
            choice = _majority(answers)
            winner = {"left": left, "right": right, None: None}[choice]
            bad = sum(answer is None for answer in answers)
            rows.append((first, second, draw, pair, first_unit, second_unit, left, winner, len(panel), bad))
    columns = [*_QUESTION, "first_unit", "second_unit", "left", "winner", "judges", "bad_answers"]
    return pd.DataFrame(rows, columns=columns)


def win_rates(asked: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Return how often each method wins, with a 95 % bootstrap over the pairs of units, and its rank.

    A pair counts once: the share of its decided questions, one in each order, that the method wins. So a judge that
    always says left gives 0.5. Pairs without a decided question are left out.

    Parameters
    ----------
    asked
        From `judge_pairs`, or several concatenated.
    seed
        Of the bootstrap.

    Returns
    -------
    DataFrame
        One row a method, the best first: ``win_rate`` with ``low`` and ``high``, in [0, 1], higher is better;
        ``rank``, 1 is best, ties share it; ``pairs`` decided; ``questions``, ``undecided`` of them, and
        ``bad_answers``.
    """
    check_table("asked", asked, *_QUESTION, "winner", "bad_answers")
    names = list(dict.fromkeys([*asked["first"], *asked["second"]]))
    decided = asked[asked["winner"].notna()]
    share = (decided["winner"] == decided["first"]).groupby([decided[name] for name in _QUESTION]).mean()
    rows = []
    for name in names:
        ours = pd.concat(
            [
                share[share.index.get_level_values("first") == name],
                1 - share[share.index.get_level_values("second") == name],
            ]
        )
        found = mean_interval(ours, seed=seed)
        mine = asked[(asked["first"] == name) | (asked["second"] == name)]
        undecided, bad = int(mine["winner"].isna().sum()), int(mine["bad_answers"].sum())
        rows.append((name, found.mean, found.low, found.high, found.count, len(mine), undecided, bad))
    columns = ["method", "win_rate", "low", "high", "pairs", "questions", "undecided", "bad_answers"]
    table = pd.DataFrame(rows, columns=columns).set_index("method")
    table.insert(3, "rank", table["win_rate"].rank(ascending=False, method="min"))
    return table.sort_values("win_rate", ascending=False, kind="stable")


def _checked(best: Mapping[str, Array], count: int) -> dict[str, Tensor]:
    found = {name: as_numbers(f"best[{name!r}]", numbers).long() for name, numbers in best.items()}
    if len(found) < 2:
        raise ValueError(f"best has {list(found)}; at least two methods are needed.")
    tops = {len(numbers) for numbers in found.values()}
    for name, numbers in found.items():
        if numbers.ndim != 2 or not numbers.numel() or len(tops) > 1:
            raise ValueError(
                f"best[{name!r}] is {tuple(numbers.shape)}: it must be (top, u), top the same for all methods "
                f"({sorted(tops)}), from best_images(activations, 9)."
            )
        if int(numbers.min()) < 0 or int(numbers.max()) >= count:
            raise ValueError(f"best[{name!r}] names image {int(numbers.max())} of {count}; give the same images.")
    return found


def _plan(
    numbers: Mapping[str, Tensor], pairs: int, draws: int, seed: int
) -> list[tuple[str, str, int, int, int, int]]:
    """Return the pairs of units: both methods, draw, number, and a unit of each."""
    planned = []
    for first, second in combinations(numbers, 2):
        for draw in range(draws):
            rng = np.random.default_rng([seed, draw, zlib.crc32(f"{first}\0{second}".encode())])
            several = [numbers[name].shape[1] for name in (first, second)]
            units = [rng.choice(count, pairs, replace=pairs > count).tolist() for count in several]
            planned += [(first, second, draw, pair, *both) for pair, both in enumerate(zip(*units, strict=True))]
    return planned


def _majority(answers: Sequence[Choice | None]) -> Choice | None:
    """Return what more judges say, ``None`` if as many say the other or none says anything."""
    for answer in answers:
        if answer not in {"left", "right", None}:
            raise ValueError(f"A judge answered {answer!r}; prefer() must return 'left', 'right' or None.")
    left, right = answers.count("left"), answers.count("right")
    return None if left == right else "left" if left > right else "right"


def _opened(photos: ImageSet, numbers: Tensor) -> tuple[Image.Image, ...]:
    return tuple(photos[int(number)] for number in numbers)
