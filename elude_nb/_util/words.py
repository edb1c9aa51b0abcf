"""People's words, such as names of files and labels, brought to a form that can be written anywhere."""

from __future__ import annotations

import re

_SURROGATES = re.compile("[\ud800-\udfff]")  # Python keeps such bytes as halves of a pair
# Control characters, line breaks of all kinds, and marks that would reverse the direction of what comes after them.
_BREAKS = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")


def as_text(text: object) -> str:
    r"""Return words that UTF-8 can hold: bytes of a file's name that are no UTF-8 are written as in addresses.

    Different names stay different.

    Examples
    --------
    >>> as_text(b"caf\xe9.png".decode("utf-8", "surrogateescape"))
    'caf%E9.png'
    """
    return _SURROGATES.sub(lambda found: f"%{ord(found[0]):X}".replace("%DC", "%"), str(text))


def one_line(text: object) -> str:
    r"""Return words as one line that UTF-8 can hold.

    Examples
    --------
    >>> one_line("two\nlines\x07 ")
    'two lines'
    """
    return _BREAKS.sub(" ", as_text(text)).strip()


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural where there are several or none.

    Examples
    --------
    >>> counted(1, "image"), counted(1200, "batch")
    ('1 image', '1,200 batches')
    """
    plural = "es" if noun.endswith("ch") else "s"
    return f"{number:,} {noun}{'' if number == 1 else plural}"
