"""Bad words for the command line, for `fuzz`: each command with words left out, doubled, swapped and replaced."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from fuzz_eyes import take_away  # type: ignore[import-not-found]  # beside this file
from fuzz_networks import save_network  # type: ignore[import-not-found]
from fuzz_watch import Case, Family, Ground, Misbehaved  # type: ignore[import-not-found]
from PIL import Image

import elude_nb as en
from elude_nb.app.cli import main

WORDS = ["", " ", "-", "--", "x", "-1", "0", "1", "2", "7", "1.5", "nan", "inf", "1e999", "9" * 400, "9" * 5000, "auto"]
WORDS += ["all", "None", "[]", "{}", "\0", "a\0b", "\n", "\udcff", "é", "../x", "gone/x", "/proc/self/mem", "x" * 300]
WORDS += ["pictures", "split.safetensors", "network.safetensors", "stream:99", "stream", "head", "--help", "--version"]
WORDS += [
    "--no-such",
    "--out",
    "--seed=x",
    "$(touch pwned)",
    "; touch pwned",
    "`touch pwned`",
    "%s%n",
    "~",
    "*",
    "class",
]
"""None is the name of a network or of a notebook: its weights would be fetched, and it would run for minutes."""

NOWHERE = ["--only", "no such notebook"]


def _commands() -> dict[str, list[str]]:
    """Return command lines; all but the tour work as they are."""
    few, split = ["--images", "pictures", "--count", "16"], "split.safetensors"
    small = ["--model", "network.safetensors", "--site", "stream", "--blocks", "1", "--concepts", "3", "--seed", "0"]
    some = ["--units", "4", "--sparsity", "2", "--k", "4", "--methods", "channels,PCA"]
    return {
        "disentangle": ["disentangle", *small, *few, "--units", "2", "--shared", "0.8", "--out", "made"],
        "verify": ["verify", split, *few, "--batch-size", "2", "--json"],
        "score": ["score", split, *few, "--k", "4", "--seed", "0", "--json"],
        "compare": ["compare", *small, *few, *some, "--out", "made"],
        "report": ["report", split, *few, "--channels", "1", "--title", "x", "--out", "made"],
        "methods": ["methods"],
        "tour": ["tour", *NOWHERE, "--out", "made"],
    }


def _spoilt(words: list[str], ground: Ground) -> list[str]:
    """Return a command line in which one or two words are replaced, left out, doubled, swapped or new."""
    words = list(words)
    for _ in range(int(ground.rng.integers(1, 3))):
        place, other = (int(ground.rng.integers(0, len(words))) for _ in range(2))
        match int(ground.rng.integers(0, 8)):
            case 0:
                del words[place]
            case 1:
                words.insert(place, words[place])
            case 2:
                words[place], words[other] = words[other], words[place]
            case 3:
                words.insert(place, str(ground.pick(WORDS)))
            case _:
                words[place] = str(ground.pick(WORDS))
        if not words:
            break
    return words


def _is_quick(words: list[str]) -> bool:
    """Say whether no notebook would run, and no weights would be fetched because no model is named."""
    if words[:1] == ["tour"]:
        return any(words[i : i + 2] == NOWHERE for i in range(len(words)))
    return words[:1] not in (["disentangle"], ["compare"]) or "--model" in words


def _prepare(whole: Path, ground: Ground) -> None:
    """Make what the command lines name: pictures, a network, a split of it."""
    (whole / "pictures").mkdir(parents=True)
    for number in range(16):
        pixels = ground.rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(whole / "pictures" / f"{number}.png")
    save_network(whole / "network.safetensors")
    with contextlib.chdir(whole):
        model, images = en.load_model("network.safetensors"), en.load_images("pictures")
        en.disentangle(model, images, blocks=1, concepts=3, units=2, progress=False).save("split.safetensors")


def _run(words: list[str], whole: Path, here: Path) -> None:
    """Run a command as a shell would; a refusal must have said why, in words and not as a traceback."""
    # As outside: a terminal takes no half characters, but errors are shown whatever is in them.
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in ("strict", "backslashreplace"))
    code: object = 0
    with contextlib.chdir(here), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(words)
        except SystemExit as stop:
            code = stop.code or 0
        made = [Path(after).absolute() for word, after in pairwise(words) if word == "--out" and code == 0]
    said = "".join(_text(stream) for stream in (out, err))  # help, where no command is given, is no error
    if code == 0:
        for path in made:
            take_away(path)
        _anew(whole, here)  # what it replaced, as it was asked to
        return
    if code not in {1, 2} or not said.strip() or "Traceback" in said:
        raise Misbehaved(f"exit status {code!r}, and it said {said[-300:]!r}")
    raise RefusedError(said[-300:])


def _text(stream: io.TextIOWrapper) -> str:
    stream.flush()
    return stream.buffer.getvalue().decode()  # type: ignore[attr-defined] # it is a BytesIO


class RefusedError(ValueError):
    """A command line that was refused, with words."""


def _anew(whole: Path, here: Path) -> None:
    shutil.rmtree(here, ignore_errors=True)
    shutil.copytree(whole, here)


def command_lines(ground: Ground) -> Iterator[Case]:
    """Command lines with one or two words spoilt."""
    whole, here, commands = ground.folder / "whole", ground.folder / "here", _commands()
    _prepare(whole, ground)
    for name, words in commands.items():  # as they are, they must work: else the fuzz is about nothing
        _anew(whole, here)
        if name != "tour":
            _run(words, whole, here)
    while True:
        words = _spoilt(ground.pick(commands.values()), ground)
        if not _is_quick(words):
            continue
        _anew(whole, here)
        yield Case(f"elude-nb {str(words)[:600]}", partial(_run, words, whole, here), reader=False)


FAMILIES: dict[str, tuple[Family, float]] = {"command lines": (command_lines, 0.03)}
