"""A split as one interactive page: opened from disk, with no kernel, no network and nothing beside it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from elude_nb._util.arithmetic import own_arithmetic
from elude_nb._util.checks import check_count, check_kind
from elude_nb._util.files import atomic_write, check_target
from elude_nb._util.progress import say
from elude_nb._util.words import counted
from elude_nb.app.report.entries import best_entries, channel_entries, channel_table, concept_entries
from elude_nb.app.report.images import run_images
from elude_nb.app.report.page import fill_page
from elude_nb.core.result import Disentanglement, check_split
from elude_nb.core.saving import identity_of
from elude_nb.core.verify import verify
from elude_nb.data.images import Images, ImageSet, as_image_set
from elude_nb.errors import ExactnessError, SiteError
from elude_nb.interpret.descriptions import described
from elude_nb.interpret.profiles import places_of_sources
from elude_nb.scores.similarity import of_few
from elude_nb.scores.verdict import verdict


@own_arithmetic()
def write_report(
    split: Disentanglement,
    images: Images,
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
    channels: int | Sequence[int] | None = 40,
    count: int = 6,
    max_units: int = 8,
    k: int = 10,
    verify_on: int = 4,
    seed: int = 0,
    max_memory: float = 1.0,
    progress: bool | None = None,
) -> Path:
    """Write one self-contained HTML page: the map of concepts, channels before and after, scores, the certificate.

    The page holds its pictures, style and script, and its policy forbids it the network. Each image is stored once;
    heat maps are stored as one letter a patch and drawn by the page.

    Parameters
    ----------
    split
        What to report on.
    images
        The images to show and to score on, best those that discovery did not see. If they do not all fit into
        ``max_memory``, a sample is drawn.
    path
        The file; its folder must exist. An existing file is replaced when the new one is complete.
    title
        Heading of the page; by default the names of model and site.
    channels
        How many channels can be opened (those that mixed most and were separated best), or which; ``None`` for all. The
        others are in the list with their scores.
    count
        Images in a row, at most.
    max_units
        Sub-units whose images are shown, at most: the strong ones that are unlike each other. The table has all.
    k
        Top images of each unit that `elude_nb.score` compares; fewer where there are few images.
    verify_on
        On how many of the images the certificate is made.
    seed
        Of the random routes that are the control.
    max_memory
        Bound of the sources that are kept while the page is made, in GiB.
    progress
        In place of the model's own settings.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    FileNotFoundError, IsADirectoryError
        If there is no such folder, or ``path`` is a folder itself.
    TypeError, ValueError
        If a number is out of range, a channel does not exist, or there are not two images.
    ImageError
        If an image is broken.
    OSError
        If the page cannot be written, such as on a full disk; an old one is then as it was.
    """
    check_split(split, "report")
    split = split.using(progress=progress)
    target = check_target(path)
    check_count("max_units", max_units)
    check_kind("title", title, str | None, "text")
    check_count("k", k, 2)
    check_count("verify_on", verify_on)
    photos = as_image_set(images)
    check_count("count", count, 2)
    wanted = _wanted(channels, split.site.channels)
    number = min(wanted, split.site.channels) if isinstance(wanted, int) else len(wanted)
    seen = run_images(split, photos, max_memory=max_memory, seed=seed, channels=number)
    shown, show_bars = seen.images, split.model.progress
    if seen.concept_maps is not None:
        split = described(split, seen.concept_maps.amax(1), seen.distinct, shown)
    if len(shown) < len(photos) and show_bars:
        say(f"report: {len(shown)} of {counted(len(photos), 'image')} fit into max_memory={max_memory:g} GiB")
    count = min(count, len(shown))
    k = of_few(k, len(seen.distinct))
    scores = seen.scores(k)
    table = channel_table(split, scores)
    opened = table["channel"].head(wanted).tolist() if isinstance(wanted, int) else wanted
    certificate, problems = _certify(split, shown[:verify_on])
    blocks, parts, _ = places_of_sources(split)
    page = fill_page(
        title=title or f"{split.model.name}, {split.site.name}: channels split into sub-units",
        split=split,
        source=shown.source,
        given=len(photos),
        counted=split.count_seen(shown),
        identity=identity_of(split.model),
        made_on=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        certificate=certificate,
        problems=problems,
        images=shown,
        pictures=seen.pictures,
        scores=scores,
        k=k,
        channels=table,
        verdicts=[verdict(scores, distinct=distinct) for distinct in (False, True)],
        data={
            "best": best_entries(table, opened, 3, k),
            "grid": seen.grid,
            "blocks": blocks,
            "parts": parts,
            "concepts": concept_entries(split, seen, count=8),
            "channels": channel_entries(split, seen, scores, opened, count=count, max_units=max_units),
        },
    )
    with atomic_write(target) as part:
        part.write_text(page, encoding="utf-8", newline="\n")  # newlines as the policy's digests have counted them
    return target


def _wanted(channels: int | Sequence[int] | None, there: int) -> int | list[int]:
    if channels is None:
        return there
    if isinstance(channels, int):
        return check_count("channels", channels, 0)
    return [check_count("channel", channel, 0, there - 1) for channel in dict.fromkeys(channels)]


def _certify(split: Disentanglement, images: ImageSet) -> tuple[list[list[str]], list[str]]:
    """Return the certificate's lines and its problems; blocks that cannot be made explicit are one."""
    try:
        found = verify(split, images, images_float64=1, strict=False)
    except (SiteError, ExactnessError) as error:
        return [], [f"It could not be made: {error}"]
    return [line.split(": ", 1) for line in str(found).splitlines()], found.problems()
