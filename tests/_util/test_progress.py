from __future__ import annotations

import io
import sys

import pytest
from tqdm import tqdm

from elude_nb._util.progress import TEXT_BARS, progress_bar, reporting, say


class Terminal(io.StringIO):
    """What is written to it is kept; it says that it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(params=["text", "auto"])
def _each_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "text":
        monkeypatch.setenv(TEXT_BARS, "1")
    else:
        monkeypatch.delenv(TEXT_BARS, raising=False)


@pytest.mark.usefixtures("_each_kind")
def test_a_bar_hands_the_items_through_and_shows_what_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal()
    assert list(progress_bar([3, 1, 2], description="crops", file=terminal, delay=0)) == [3, 1, 2]
    assert "crops: 100%" in terminal.getvalue()
    assert "3/3" in terminal.getvalue()
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("_each_kind")
@pytest.mark.parametrize("kind", [Terminal, io.StringIO])
def test_what_is_over_in_a_moment_shows_no_bar(kind: type[io.StringIO]) -> None:
    written = kind()
    assert list(progress_bar([3, 1, 2], description="crops", file=written)) == [3, 1, 2]
    assert "crops" not in written.getvalue()


def test_in_a_file_there_is_a_line_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TEXT_BARS, raising=False)
    clock, written = [0.0], io.StringIO()
    monkeypatch.setattr("tqdm.std.time", lambda: clock[0])
    for number in progress_bar(range(5), description="score", unit="image", file=written):
        clock[0] += 8
        if number == 2:
            tqdm.write("said", file=written)
    expected = """\
score: 2 of 5 images, 16 s, about 24 s left
said
score: 4 of 5 images, 32 s, about 8 s left
score: 5 of 5 images, 40 s
"""
    assert written.getvalue() == expected
    written.truncate(0)
    with progress_bar(description="score", total=1500, unit="batch", file=written) as bar:
        bar.set_description("all", refresh=False)
        clock[0] += 100
        bar.update(1000)
        bar.set_postfix_str("inner")
    assert "all: 1,000 of 1,500 batches, 100 s, about 50 s left\n" in written.getvalue()


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


def test_who_asks_for_reports_gets_them_instead_of_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock, told = [0.0], list[tuple[str, float | None]]()
    monkeypatch.setattr("tqdm.std.time", lambda: clock[0])

    def report(text: str, share: float | None) -> None:
        told.append((text, share))
        if share == 0.75:
            raise RuntimeError("enough")

    def work() -> None:
        say("a line")
        for _ in progress_bar(range(4), description="score", unit="image"):
            clock[0] += 8

    with reporting(report), pytest.raises(RuntimeError, match="enough"):
        work()
    assert told == [
        ("a line", None),
        ("score: 1 of 4 images, about 24 s left", 0.25),
        ("score: 2 of 4 images, about 16 s left", 0.5),
        ("score: 3 of 4 images, about 8 s left", 0.75),
    ]
    assert capsys.readouterr() == ("", "")
    with tqdm(total=1, file=io.StringIO()) as bar:  # a report that raised left no lock behind
        bar.update()


def test_nothing_is_reported_of_what_is_not_shown() -> None:
    told = list[str]()
    with reporting(lambda text, share: told.append(text)):
        assert list(progress_bar(range(3), description="score", show=False)) == [0, 1, 2]
    assert told == []
