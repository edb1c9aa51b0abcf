"""How long something takes is said after its first step; on a clock on which preparing an image takes a second."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import elude_nb as en
from elude_nb._util.progress import announced
from elude_nb.app.report import write_report
from elude_nb.interpret import Gallery, find_exemplars
from tests.tiny import random_images, tiny_vit, to_tensor


@dataclass
class Clock:
    """Counts the images that were prepared, and keeps what was said at which of them."""

    prepared: int = 0
    said: list[tuple[str, int]] = field(default_factory=list)

    def prepare(self, image: Any) -> Any:
        self.prepared += 1
        return to_tensor(image)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    for module in ("_util.progress", "scores.overview"):
        monkeypatch.setattr(f"elude_nb.{module}.perf_counter", lambda: float(made.prepared))
    for module in ("_util.progress", "core.disentangle", "app.report.build"):
        monkeypatch.setattr(f"elude_nb.{module}.say", lambda text: made.said.append((text, made.prepared)))
    ticks = iter(range(0, 10**9, 4))  # of verify's own clock: each pass of a batch takes four seconds
    monkeypatch.setattr("elude_nb.core.verify._now", lambda _: float(next(ticks)))
    return made


@pytest.fixture
def split(clock: Clock) -> en.Disentanglement:
    model = tiny_vit()
    model = en.wrap_network(model.network, preprocess=clock.prepare, input_size=(3, 32, 32)).using(batch_size=4)
    found = en.disentangle(model, random_images(20, 32), concepts=8, units=3, tokens_per_image=6, progress=False)
    clock.prepared = 0
    return found


QUICK: dict[str, Any] = {"methods": ["channels", "PCA"], "n_units": 4, "concepts": 4, "k": 4}
CALLS: dict[str, tuple[str, Callable[[en.Disentanglement, en.ImageSet, Path], object], Callable[[int], float]]] = {
    "verify": ("verify: {n} images", lambda split, images, _: en.verify(split, images, max_images=None),
               lambda n: 17.2 * n + 4),  # from one image, which takes as long as a batch on this clock; and float64
    "score": ("score: {n} images", lambda split, images, _: en.score(split, images, k=4), lambda n: n),
    "compare": ("compare: 2 methods on {n} images",
                lambda split, images, _: en.compare(split.model, images, **QUICK),
                lambda n: 3.5 * n / 2 + n / 2 + 2 * (n / 2 + 10)),
    "report": ("report: {n} images, 2 channels",  # each image is a picture, too
               lambda split, images, path: write_report(split, images, path / "r.html", channels=2),
               lambda n: 2 * (n + 50 + 0.3 * 2)),
    "gallery": ("gallery: {n} images", lambda split, images, _: Gallery(split, images).fill(), lambda n: 2 * n),
    "exemplars": ("forward passes: {n} images", lambda split, images, _: find_exemplars(split, images, 0, count=2),
                  lambda n: n),
    "embed": ("forward passes: {n} images", lambda split, images, _: en.embed(split.model, images), lambda n: n),
}  # fmt: skip


@pytest.mark.parametrize("count", [24, 48])
@pytest.mark.parametrize("name", CALLS)
def test_the_time_is_said_beforehand_and_grows_with_the_images(
    name: str, count: int, clock: Clock, split: en.Disentanglement, tmp_path: Path
) -> None:
    what, call, expected = CALLS[name]
    call(split, random_images(count, 32), tmp_path)
    what = what.format(n=count)
    (seconds, prepared), *others = [
        (60 * int(found[1] or 0) + int(found[2]), at)
        for text, at in clock.said
        if (found := re.fullmatch(rf"{what}, about (?:(\d+) min )?(\d+) s", text))
    ]
    assert not others, "said twice"
    assert seconds == pytest.approx(expected(count), abs=1)
    assert prepared < clock.prepared, "said when all was over"
    begun = {"compare": 4, "verify": 2, "report": 8, "gallery": 8}
    assert prepared == begun.get(name, 4)
    clock.said.clear()
    call(split.using(progress=False), random_images(count, 32), tmp_path)
    assert not clock.said


def test_what_is_over_soon_is_not_announced(clock: Clock, split: en.Disentanglement) -> None:
    en.embed(split.model, random_images(4, 32))
    assert not clock.said
    assert list(announced([], "nothing", float)) == []


def test_disentangle_says_it_once(clock: Clock, split: en.Disentanglement) -> None:
    en.disentangle(split.model, random_images(40, 32), concepts=8, units=3, tokens_per_image=6)
    assert [text.partition(":")[0] for text, _ in clock.said] == ["disentangle"]


def test_verify_takes_a_sample_and_says_so(split: en.Disentanglement, clock: Clock) -> None:
    many = random_images(40, 32)
    found = en.verify(split, many)
    assert (found.images, found.images_given, found.to_dict()["images_given"]) == (16, 40, 40)
    assert "measured on: 16 of 40 images (4 in float64)" in str(found)
    assert clock.said[0][0].startswith("verify: 16 of 40 images, about")
    assert en.verify(split, many, max_images=None, progress=False).images == 40
    assert "measured on: 3 images (3 in float64)" in str(en.verify(split, many, max_images=3)).replace("3 of 40", "3")
    with pytest.raises(ValueError, match="max_images=0"):
        en.verify(split, many, max_images=0)
