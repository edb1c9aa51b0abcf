"""What a call says of an argument that it does not take: where it belongs, or how it is spelled."""

from __future__ import annotations

import difflib
import functools
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from pkgutil import resolve_name
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])
_SAME_WORD = 0.8  # two spellings that are as alike as this are one word
_MOST = 3


@typing.overload
def knows_arguments(function: F) -> F: ...
@typing.overload
def knows_arguments(**instead: str) -> Callable[[F], F]: ...
def knows_arguments(function: Any = None, **instead: str) -> Any:
    """Let a public function say of an argument that it does not take where it belongs, or what to do ``instead``.

    Only the message is another: it is a ``TypeError``, and signature and help are those of the function.
    """
    if function is None:
        return functools.partial(knows_arguments, **instead)
    parameters = inspect.signature(function).parameters.values()
    known = {each.name for each in parameters if each.kind in {each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY}}
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return function

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not kwargs.keys() <= known:
            raise TypeError(_message(function, next(name for name in kwargs if name not in known), instead))
        return function(*args, **kwargs)

    return call


def _message(function: Callable[..., Any], name: str, instead: Mapping[str, str]) -> str:
    own = [each for each in inspect.signature(function).parameters if each != "self"]
    start = f"{function.__name__}() takes no {name}="
    if name in instead:
        return f"{start}; {instead[name]}."
    spelled = difflib.get_close_matches(name, own, n=1, cutoff=_SAME_WORD)
    elsewhere = [] if spelled else _where(function, name)
    if elsewhere:
        *first, last = [f"{each}(..., {name}=...)" for each in elsewhere[:_MOST]]
        others = f" and {len(elsewhere) - _MOST} more" if len(elsewhere) > _MOST else ""
        return f"{start}; it belongs to {' or '.join(filter(None, [', '.join(first), last]))}{others}."
    spelled = spelled or difflib.get_close_matches(name, own, n=1)
    if spelled:
        return f"{start}. Did you mean {spelled[0]}=?"
    return f"{start}; it takes {', '.join(own) or 'none'}."


def _where(function: Callable[..., Any], name: str) -> list[str]:
    """Return the public calls that take ``name``, those of one kind.

    First come functions that make what this one takes (as `load_model` does for `disentangle`), then those that take
    what this one makes, then other functions, then other methods.
    """
    takes, makes = _types(function)
    kinds: dict[int, list[str]] = {}
    for said, other in _public_calls():
        if name in inspect.signature(other).parameters:
            its_takes, its_makes = _types(other)
            kind = 0 if its_makes & takes else 1 if its_takes & makes else 3 if "." in said else 2
            kinds.setdefault(kind, []).append(said)
    return sorted(kinds[min(kinds)], key=lambda said: "." in said) if kinds else []  # functions first


def _public_calls() -> Iterator[tuple[str, Any]]:
    """Yield the functions and methods of the front door, and the classes that can be made without arguments."""
    door = resolve_name("elude_nb")  # looked up by name: this room is below all others
    for name in door.__all__:
        found = getattr(door, name)
        if inspect.isfunction(found):
            yield name, found
        elif inspect.isclass(found):
            if all(each.default is not each.empty for each in inspect.signature(found).parameters.values()):
                yield name, found
            for method in vars(found):
                if method[0] != "_" and inspect.isfunction(getattr(found, method)):
                    yield f"{name}.{method}", getattr(found, method)


def _types(function: Callable[..., Any]) -> tuple[set[Any], set[Any]]:
    """Return the classes that a function takes, and those that it returns."""
    target = inspect.unwrap(function)
    try:
        hints = typing.get_type_hints(target)
    except (NameError, TypeError):  # a name that only type checkers import
        hints = {}
    made = _flat(hints.pop("return", None))
    taken = {each for hint in hints.values() for each in _flat(hint)}
    owner = getattr(target, "__qualname__", "").rpartition(".")[0]
    if owner and "<" not in owner:
        taken.add(resolve_name(f"{target.__module__}:{owner}"))
    return {each for each in taken if _is_ours(each)}, {each for each in made if _is_ours(each)}


def _flat(hint: Any) -> set[Any]:
    """Return a type, or those that a union is of."""
    inner = hint if isinstance(hint, list) else typing.get_args(hint)  # a list: what a callable takes
    return {each for part in inner for each in _flat(part)} if inner else {hint}


def _is_ours(kind: Any) -> bool:
    return str(getattr(kind, "__module__", "")).startswith("elude_nb")
