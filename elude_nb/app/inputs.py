"""What several commands begin with: images, models and splits by the options that were given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from elude_nb._util.words import counted
from elude_nb.app.processes import process_number
from elude_nb.app.shell import in_shell_words

if TYPE_CHECKING:
    from elude_nb import Disentanglement, ImageSet, Model


_HOW = ("architecture", "image_size", "device", "dtype", "pretrained")
_SETTINGS = (
    "site", "blocks", "concepts", "units", "shared", "routing", "tokens", "tokens_per_image", "batch_size", "seed",
    "max_memory",
)  # fmt: skip


def tell(message: str, options: dict[str, str]) -> None:
    """Print a line on standard error, in the words of the shell."""
    typer.echo(f"elude-nb: {in_shell_words(message, options)}", err=True)


def take_images(images: str, count: int | None, skip_broken: bool, value_range: tuple[float, float] | None) -> ImageSet:
    """Return the images that the options name; with ``skip_broken`` without those that cannot be opened."""
    import elude_nb as en
    from elude_nb.data.folders import IMAGE_SETS

    limits: dict[str, Any] = {} if value_range is None else {"value_range": value_range}
    if not skip_broken or images in IMAGE_SETS:
        return en.load_images(images, count=count, **limits)
    # Before counting, so that there are enough.
    whole = en.load_images(images, **limits).without_broken(progress=True)
    return whole if count is None else whole.sample(count)


def take_discovery(images: ImageSet, hold_out: float, seed: int) -> ImageSet:
    """Return the images that the discovery sees, and say how many it does not."""
    found, held_out = images.split(1 - hold_out, seed=seed) if hold_out else (images, images[:0])
    labels = "" if images.labels is None else f", {counted(len(set(images.labels)), 'label')}"
    said = f"{len(found):,} for the discovery, {len(held_out):,} held out"
    if process_number()[0] == 0:
        tell(f"{counted(len(images), 'image')}{labels}: {said}", {})
    return found


def take_unseen(
    split: Disentanglement,
    seen: bool,
    images: str,
    count: int | None,
    skip_broken: bool,
    value_range: tuple[float, float] | None,
) -> ImageSet:
    """Return images that the discovery did not see, if there are any and ``seen`` ones are not wanted."""
    from elude_nb.data.folders import IMAGE_SETS

    if seen:
        return take_whole(images, count, skip_broken, value_range)
    most = max(400, 3 * (count or 0)) if images in IMAGE_SETS else None
    whole = take_images(images, most, skip_broken, value_range)
    size = len(whole) if count is None else 3 * count  # of a large folder not all are opened
    while True:
        pool = whole.sample(size)
        if not skip_broken:
            check_whole(pool)
        known = split.count_seen(pool)
        if count is None or known.total - (known.count or 0) >= count or known.total == len(whole):
            break
        size *= 2
    if known.count and known.count < known.total:
        tell(f"{known}, and left out; --seen takes them in", {})
        pool = split.unseen(pool)
    return pool if count is None else pool.sample(count)


def take_whole(images: str, count: int | None, skip_broken: bool, value_range: tuple[float, float] | None) -> ImageSet:
    """Return images that can all be opened; with ``skip_broken`` they have been opened already."""
    taken = take_images(images, count, skip_broken, value_range)
    if not skip_broken:
        check_whole(taken)
    return taken


def check_whole(images: ImageSet) -> None:
    """Raise `ImageError` if there is a broken image: found out now, not after minutes of forward passes.

    A picture takes about a tenth of the time of a forward pass of DINOv2 on a CPU.
    """
    from elude_nb.errors import ImageError

    rank, count = process_number()
    mine = images.subset(range(rank, len(images), count)) if count > 1 else images
    broken = list(mine.find_broken(progress=rank == 0).values())
    if len(broken) > 1:
        raise ImageError(
            f"{len(broken)} of {counted(len(images), 'image')} cannot be used; --skip-broken leaves them out. The "
            f"first: {broken[0]}"
        )
    if broken:
        raise ImageError(broken[0])


def load_model(name: str | None, *how: Any, of: Path | None = None) -> Model:
    """Load a model with the options that were given; ``of``: the one that a split's file names, where they are not."""
    import elude_nb as en
    from elude_nb.core.saving import load_model_of

    given = model_options(*how)
    return load_model_of(of, name, **given) if of else en.load_model(str(name), **given)


def model_to_split(options: Mapping[str, Any]) -> tuple[Model, dict[str, Any]]:
    """Return the model that `elude_nb.app.options.discovery_options` name, and the settings of its split."""
    loaded = named_model(options).using(workers=options["workers"] or None)
    return loaded, {name: options[name] for name in _SETTINGS}


def named_model(options: Mapping[str, Any]) -> Model:
    """Return the model that `elude_nb.app.options.input_options` name."""
    return load_model(options["model"], *(options[name] for name in _HOW))


def named_images(options: Mapping[str, Any]) -> ImageSet:
    """Return the images that `elude_nb.app.options.input_options` name; all of them can be opened."""
    return take_whole(*(options[name] for name in ("images", "count", "skip_broken", "value_range")))


def model_options(*how: Any) -> dict[str, Any]:
    """Return the options of a model that were given, in the order of the commands, as `load_model` takes them."""
    given = {key: value for key, value in zip(_HOW, how, strict=True) if value is not None}
    if "dtype" in given:
        import torch

        given["dtype"] = getattr(torch, given["dtype"])
    return given


def load_split(file: Path, model: str | None, *how: Any) -> Disentanglement:
    """Load a split, with the model that its file names unless options say otherwise."""
    import elude_nb as en

    if model is None and all(option is None for option in how):
        return en.Disentanglement.load(file)
    return en.Disentanglement.load(file, load_model(model, *how, of=file))


def print_split(split: Disentanglement, file: Path, *, json: bool) -> None:
    """Print what a split is that was saved to a file, in words or in numbers."""
    typer.echo(dumps({"file": str(file), **_figures_of(split)}, indent=1) if json else f"{split!r}\nSaved to {file}")


def _figures_of(split: Disentanglement) -> dict[str, Any]:
    """Return what a split is, in numbers: its settings, how many there are of each, and shares of the variance."""
    of_unit_0 = split.units.loc[split.units["unit"] == 0].merge(split.channels, on="channel")
    variance = of_unit_0["share_of_variance"] * of_unit_0["variance"]
    return {
        "model": split.model.name,
        "settings": asdict(split.settings),
        "channels": split.site.channels,
        "split_channels": int(split.routing.is_split().sum()),
        "sub_units": len(split.live_units),
        "sources": split.site.sources,
        "concepts": len(split.book),
        "tokens": int(split.book.counts.sum()),
        "share_of_unit_0": float(variance.sum() / of_unit_0["variance"].sum()),
    }
