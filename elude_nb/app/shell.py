"""Errors of the library in the words of the command line: what Python calls an argument, the shell calls an option."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping

_NOT_HERE, _SPACE = "\0", "\1"
_CALLS = {"load_model": ("name_or_path",), "Disentanglement.load": ("path", "model")}
"""The calls that options of a command stand for, with the names of their positional arguments."""
_COMMANDS = {"find_sites": "`elude-nb sites`", "timm.list_models": "`elude-nb models`"}
"""The calls that are commands of their own."""
_FLAGS = {"images.without_broken": "skip_broken"}
"""The calls that one option stands for."""
_PLAIN = re.compile(r"[-\w.,:/+]+")
_QUOTED = r"""(?:'[^']*'|"[^"]*")"""
_CODE = re.compile(
    rf"""
    (?P<call>[A-Za-z_][\w.]*\((?:[^()'"]|{_QUOTED})*\)(?:\.\w+)*)             # load_model('resnet50', pretrained=False)
    | \b(?P<name>[a-z_]+)=(?P<value>{_QUOTED}|\([^()]*\)|\[[^\]]*\]|\.\.\.|[-\w.+]*\w|)  # max_memory=0.5
    | (?<!\w){_QUOTED}                                                          # a path, or what else the user wrote
    | \b(?P<word>[a-z]+(?:_[a-z]+)+)\b                                          # tokens_per_image
    """,
    re.VERBOSE,
)


def in_shell_words(message: str, options: Mapping[str, str]) -> str:
    """Return an error's message with options in place of arguments, and without advice that only Python can follow.

    Parameters
    ----------
    message
        As the library words it.
    options
        The options of the command, by the names that Python has for them: ``{"image_size": "--image-size"}``.

    Examples
    --------
    >>> options = {"architecture": "--architecture", "name_or_path": "--model"}
    >>> in_shell_words("Add architecture='...' with timm's name; or wrap it: wrap_network(network).", options)
    "Add --architecture with timm's name; or wrap it."
    """

    def translated(found: re.Match[str]) -> str:
        if found["call"]:
            return _call(found["call"], options)
        if found["name"]:
            return _setting(found["name"], found["value"], options)
        return options.get(found["word"] or "", found[0])

    words = _CODE.sub(translated, message).replace(" (str)", "")  # in a shell, all that is typed is text
    first, *rest = re.split(r"(?<=[.;:,])(?= )", words)
    kept = [first]  # what was wrong; the rest are reasons and advice
    for part in rest:
        if _NOT_HERE not in part:
            kept.append(part)
        elif part.endswith("."):
            kept[-1] = kept[-1].rstrip(".,:;") + "."
    return "".join(kept).replace(_NOT_HERE, "").replace(_SPACE, " ")


def _not_here(code: str) -> str:
    """Mark what cannot be typed in a shell, as one word."""
    return _NOT_HERE + code.replace(" ", _SPACE)


def _setting(name: str, value: str, options: Mapping[str, str]) -> str:
    """Return ``image_size=224`` as ``--image-size 224``, and a flag that is off as ``--no-...``."""
    option = options.get(name)
    if option is None:
        return _not_here(f"{name.replace('_', ' ')} {value}")
    bare = value.strip("'\"")
    if bare in {"", "...", "True"}:
        return option
    if bare == "False":
        return option.replace("--", "--no-", 1)
    return f"{option} {bare if _PLAIN.fullmatch(bare) else value}"


def _call(call: str, options: Mapping[str, str]) -> str:
    """Return ``load_model('resnet50', image_size=96)`` as ``--model resnet50 --image-size 96``."""
    name = call.partition("(")[0].removeprefix("elude_nb.").removeprefix("en.")
    if name in _COMMANDS:
        return _COMMANDS[name]
    if _FLAGS.get(name) in options:
        return options[_FLAGS[name]]
    try:
        parsed = ast.parse(call, mode="eval").body
    except SyntaxError:
        parsed = None
    if name not in _CALLS or not isinstance(parsed, ast.Call):
        return _not_here(call)
    given = dict(zip(_CALLS[name], parsed.args, strict=False))
    given |= {each.arg: each.value for each in parsed.keywords if each.arg}
    # A name, as in load_model(path), stands for a value that only the reader knows.
    values = {key: "..." if isinstance(value, ast.Name) else ast.unparse(value) for key, value in given.items()}
    words = [_setting(key, value, options) for key, value in values.items() if key in options]
    return " ".join(words) or _not_here(call)
