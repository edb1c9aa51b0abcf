"""Which images the discovery saw: figures on those are optimistic."""

from __future__ import annotations

from dataclasses import dataclass

from elude_nb._util.words import counted


@dataclass(frozen=True)
class Seen:
    """How many of some images the discovery of a split saw, from `Disentanglement.count_seen`.

    Attributes
    ----------
    count
        How many it saw, or ``None`` if that is not known, as for files of version 0.2.
    total
        How many images there are.

    Examples
    --------
    >>> print(Seen(0, 48), Seen(12, 48), Seen(48, 48), sep="; ")
    48 images, none seen in discovery; 48 images, 12 seen in discovery; 48 images, all seen in discovery
    """

    count: int | None
    total: int

    def __str__(self) -> str:
        images = counted(self.total, "image")
        if self.count is None:
            return f"{images}, not known which were seen in discovery"
        count = {0: "none", self.total: "all"}.get(self.count, f"{self.count:,}")
        return f"{images}, {count} seen in discovery"

    @property
    def warning(self) -> str:
        """What to say before figures on images that were seen; ``""`` if none was, or it is not known."""
        if not self.count:
            return ""
        cure = "split.unseen(images) leaves them out"
        if self.count == self.total:
            cure = "set some aside before disentangle, as images.split(0.5) does"
        return f"{self}: figures on these are optimistic; {cure}"
