from __future__ import annotations

import sys

import pytest

from elude_nb._util.progress import TEXT_BARS, progress_bar


@pytest.fixture(params=["text", "auto"])
def _each_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "text":
        monkeypatch.setenv(TEXT_BARS, "1")
    else:
        monkeypatch.delenv(TEXT_BARS, raising=False)


@pytest.mark.usefixtures("_each_kind")
def test_a_bar_hands_the_items_through_and_shows_what_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress_bar([3, 1, 2], description="crops", file=sys.stderr, delay=0)) == [3, 1, 2]
    shown = capsys.readouterr()
    assert "crops" in shown.err
    assert "3/3" in shown.err
    assert not shown.out


@pytest.mark.usefixtures("_each_kind")
def test_what_is_over_in_a_moment_shows_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress_bar([3, 1, 2], description="crops", file=sys.stderr)) == [3, 1, 2]
    assert "crops" not in capsys.readouterr().err


@pytest.mark.usefixtures("_each_kind")
def test_a_silent_bar_shows_nothing_and_still_works(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress_bar(iter("ab"), description="crops", show=False)) == ["a", "b"]
    with progress_bar(description="steps", total=2, show=False) as bar:
        bar.update()
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "")


def test_a_manual_bar_counts_steps(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TEXT_BARS, "1")
    with progress_bar(description="fetch", total=3, file=sys.stderr, delay=0) as bar:
        bar.update(2)
        bar.update()
        assert (bar.n, bar.total) == (3, 3)
    assert "3/3" in capsys.readouterr().err


def test_the_environment_asks_for_text_where_a_page_has_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    import tqdm
    import tqdm.auto

    class Widget(tqdm.tqdm):  # type: ignore[misc]
        """Stands for the widget that tqdm.auto chooses in a notebook."""

    monkeypatch.setattr(tqdm.auto, "tqdm", Widget)
    monkeypatch.delenv(TEXT_BARS, raising=False)
    assert isinstance(progress_bar([], description="", show=False), Widget)
    monkeypatch.setenv(TEXT_BARS, "1")
    assert type(progress_bar([], description="", show=False)) is tqdm.tqdm
