"""What the commands can be given, with the bounds of each value: found wrong before anything heavy is imported."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

TOKENS = ("class", "registers", "patch", "all")
ROUTINGS = ("elude", "elude-signed", "concepts", "channel-clusters", "random")
METHODS = (
    "sub-units", "concepts", "random routes", "ELUDe as published", "signed rule", "random groups", "channels",
    "hidden units", "PCA", "ICA", "NMF", "k-means", "virtual neurons", "two-class split", "overlapping groups",
    "TopK SAE", "Matryoshka SAE", "transcoder", "ReLU SAE", "BatchTopK SAE", "JumpReLU SAE", "matching pursuit SAE",
    "archetypal SAE", "relaxed archetypal SAE",
)  # fmt: skip
"""What the library takes, by name (tests hold these equal to the library's): importing it takes seconds."""
USUAL_METHODS = (
    "sub-units", "concepts", "channels", "random routes", "hidden units", "PCA", "ICA", "k-means", "TopK SAE",
)  # fmt: skip
_MOST_CHANNELS = 1 << 20


def _near(text: str, allowed: Sequence[str]) -> str:
    from elude_nb._util.checks import near_matches  # which imports NumPy

    return near_matches(text, allowed)


def _one_of(allowed: Sequence[str]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in allowed:
            names = ", ".join(map(repr, allowed))
            raise typer.BadParameter(f"{text!r} is not known; choose one of {names}.{_near(text, allowed)}")
        return text

    return read


def _whole(low: int = 1, high: int | None = None) -> Callable[[Any], int]:
    def read(text: str | int) -> int:  # a default is a number already
        bounds = f"from {low}" if high is None else f"from {low} to {high}"
        (number,) = _numbers(str(text), 1)
        if not (number.is_integer() and low <= number <= (high or number)):
            raise typer.BadParameter(f"{text!s:.80}; give a whole number {bounds}.")
        return int(number)

    return read


def _number_or_all(text: str) -> int | Literal["all"]:
    if text == "all":
        return "all"
    if not text.isdecimal() or not int(text):
        raise typer.BadParameter(f"{text!r}; give a whole number from 1, or 'all'.")
    return int(text)


def _image_size(text: str) -> int | tuple[int, ...]:
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise typer.BadParameter(f"{text!r}; give a whole number, or two as in 224x336 (height and width).")
    return int(text) if len(sides) == 1 else tuple(map(int, sides))


def _numbers(text: str, count: int) -> list[float]:
    """Return numbers with commas between; as many NaN, which lie in no range, where these are others."""
    try:
        found = [float(number) for number in text.split(",")]
    except ValueError:
        found = []
    return found if len(found) == count else [math.nan] * count


def _value_range(text: str) -> tuple[float, float]:
    low, high = _numbers(text, 2)
    if not -math.inf < low < high < math.inf:
        raise typer.BadParameter(f"{text!r}; give two numbers, the lower first, as in 0,4095.")
    return low, high


def _memory(text: str | float) -> float:
    (size,) = _numbers(str(text), 1)  # a default is a number already
    if not size > 0:
        raise typer.BadParameter(f"{text!r}; give a positive number of GiB.")
    return size


def _share(text: str) -> float:
    (share,) = _numbers(text, 1)
    if not 0 <= share <= 1:
        raise typer.BadParameter(f"{text!r}; give a number from 0 to 1.")
    return share


def _held_out(text: str | float) -> float:
    (share,) = _numbers(str(text), 1)  # a default is a number already
    if not 0 <= share < 1:
        raise typer.BadParameter(f"{text!r}; give a share below 1, or 0 to hold out none.")
    return share


def _shard(text: str | tuple[int, int]) -> tuple[int, int]:
    """Return ``3/64`` as (3, 64)."""
    parts = re.fullmatch(r"(\d+)/(\d+)", str(text)) if isinstance(text, str) else None
    index, count = (int(parts[1]), int(parts[2])) if parts else (0, 0)
    if not 1 <= index <= count:
        raise typer.BadParameter(f"{text!r}; give the number of the shard and of how many, from 1/64 to 64/64.")
    return index, count


def _site(text: str) -> str:
    if not re.fullmatch(r"stream(:[1-9]\d*)?|(?!stream:)[^\s:]+", text):
        raise typer.BadParameter(f"{text!r}; give 'stream', 'stream:8', or the path of a layer (see `elude-nb sites`).")
    return text


def _methods(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in METHODS:
            raise typer.BadParameter(f"{name!r} is not known.{_near(name, METHODS)} `elude-nb methods` lists all.")
        if names.count(name) > 1:
            raise typer.BadParameter(f"{name!r} is there twice.")
    return names


def _list_of_channels(text: str) -> list[int]:
    """Return ``3,17,40-42`` as ``[3, 17, 40, 41, 42]``."""
    found = list[int]()
    for part in text.strip(",").split(","):
        ends = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        first, last = (int(ends[1]), int(ends[2] or ends[1])) if ends else (1, 0)
        if not first <= last < _MOST_CHANNELS:
            raise typer.BadParameter(f"{text!r}; give channels from 0 as in 3,17,40-47.")
        found += range(first, last + 1)
    return list(dict.fromkeys(found))


def _channels(text: str | int) -> int | list[int]:
    """Return how many channels, or which: a single number with a comma after it is a channel; ``all`` has no bound."""
    text = str(text)  # a default is a number already
    if text == "all":
        return _MOST_CHANNELS
    return int(text) if text.isdecimal() else _list_of_channels(text)


def _parsed(read: Callable[[Any], Any], metavar: str, what: str) -> Any:
    return typer.Option(parser=read, metavar=metavar, help=what)


def seed_option(of: str) -> Any:
    """Return the option of a seed: ``of`` what."""
    return whole_option(of, 0, 2**32 - 1)  # what scikit-learn takes


def whole_option(what: str, low: int = 1, high: int | None = None) -> Any:
    """Return the option of a whole number within bounds."""
    return _parsed(_whole(low, high), "N", what)


def choice_option(allowed: Sequence[str], what: str) -> Any:
    """Return the option of one of some words."""
    return _parsed(_one_of(allowed), "NAME", f"{', '.join(allowed)}: {what}")


FileArgument = Annotated[Path, typer.Argument(help="A file that `elude-nb disentangle` wrote.")]
ModelOption = Annotated[str, typer.Option(help="'dinov2-small', 'efficientnet-lite0', a timm name, or a checkpoint.")]
NamedModelOption = Annotated[
    str | None, typer.Option(help="In place of the model that the file names, such as a checkpoint that has moved.")
]
JudgeOption = Annotated[
    str | None,
    typer.Option(
        help="A network that judges how alike images are, such as 'efficientnet-lite0'; by default the model."
    ),
]
ArchitectureOption = Annotated[
    str | None, typer.Option(help="For a checkpoint: timm's name of its architecture; see `elude-nb models`.")
]
ImageSizeOption = Annotated[Any, _parsed(_image_size, "SIDE", "Side of the model's images in pixels, or HEIGHTxWIDTH.")]
DeviceOption = Annotated[str | None, typer.Option(help="'cpu' (by default), 'cuda', 'cuda:1', 'mps', ...")]
DtypeOption = Annotated[Any, choice_option(("float32", "float64", "float16", "bfloat16"), "float32 by default.")]
PretrainedOption = Annotated[
    bool | None, typer.Option("--pretrained/--no-pretrained", help="Random weights with --no-pretrained.")
]
ImagesOption = Annotated[str, typer.Option(help="A folder, or photographs, shapes, fashion, stamps or clipart.")]
CountOption = Annotated[Any, whole_option("Take only so many images (for the named sets: how many).")]
SkipBrokenOption = Annotated[bool, typer.Option("--skip-broken", help="Leave out broken images, and name them.")]
RangeOption = Annotated[
    Any,
    _parsed(_value_range, "LOW,HIGH", "Black and white of files of more than 8 bits, such as 0,4095."),
]
HoldOutOption = Annotated[
    Any, _parsed(_held_out, "SHARE", "Share of the images that the discovery does not see; they are for scores.")
]
SeenOption = Annotated[bool, typer.Option("--seen", help="Take the images that the discovery saw, too.")]
SiteOption = Annotated[
    Any, _parsed(_site, "SITE", "'stream' (by default, if there is one), 'stream:8', or the path of a layer.")
]
BlocksOption = Annotated[Any, _parsed(_number_or_all, "N|all", "How many blocks bring the sources, or 'all'.")]
ConceptsOption = Annotated[Any, whole_option("Number of concepts; by default it follows the data.", 2)]
TokensPerImageOption = Annotated[Any, whole_option("Tokens drawn of each image.")]
BatchOption = Annotated[Any, whole_option("Images in one forward pass.")]
WorkersOption = Annotated[Any, whole_option("Processes that open images while the network runs.", 0)]
MethodsOption = Annotated[Any, _parsed(_methods, "NAME,NAME", "Names with commas between; see `elude-nb methods`.")]
ChannelsOption = Annotated[
    Any,
    _parsed(_channels, "N|3,17,40-47|all", "How many channels can be opened, the best; or which."),
]
SomeChannelsOption = Annotated[Any, _parsed(_list_of_channels, "3,17,40-47", "Which channels; by default all.")]
VerifyImagesOption = Annotated[
    Any, _parsed(_number_or_all, "N|all", "How many of them are run; by default 16, or as many as --count says.")
]
SharedOption = Annotated[
    Any,
    _parsed(_share, "SHARE", "Leave over what has a second owner above this share of the best."),
]
ShardOption = Annotated[Any, _parsed(_shard, "N/OF", "Which share of the images, such as 3/64; from 1 on.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print what was found as JSON, and nothing else.")]


def memory_option(of: str) -> Any:
    """Return the option of an upper bound in GiB: ``of`` what."""
    return _parsed(_memory, "GIB", f"Upper bound for {of}, in GiB.")


def with_options(shared: Callable[..., None]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Have a command take the options of ``shared`` as well, as keywords, between its own with and without defaults."""

    def add(command: Callable[..., None]) -> Callable[..., None]:
        own, more = (signature(each, eval_str=True).parameters.values() for each in (command, shared))
        named = [each for each in own if each.kind is not Parameter.VAR_KEYWORD]
        needed = [each for each in named if each.default is Parameter.empty]
        every = [*needed, *more, *(each for each in named if each not in needed)]
        command.__signature__ = Signature(every)  # type: ignore[attr-defined] # where typer looks
        return command

    return add


def input_options(
    model: ModelOption = "dinov2-small",
    architecture: ArchitectureOption = None,
    image_size: ImageSizeOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    pretrained: PretrainedOption = None,
    images: ImagesOption = "photographs",
    count: CountOption = None,
    skip_broken: SkipBrokenOption = False,
    value_range: RangeOption = None,
) -> None:
    """Hold the options of a model and of the images that it is to see."""


@with_options(input_options)
def discovery_options(
    hold_out: HoldOutOption = 0.5,
    site: SiteOption = None,
    blocks: BlocksOption = "all",
    concepts: ConceptsOption = None,
    units: Annotated[Any, whole_option("Sub-units of a channel, at most.", 2, 255)] = 8,
    shared: SharedOption = None,
    routing: Annotated[Any, choice_option(ROUTINGS, "how contributions find their sub-unit.")] = "concepts",
    tokens: Annotated[Any, choice_option(TOKENS, "by default all for elude, else patch.")] = None,
    tokens_per_image: TokensPerImageOption = 24,
    batch_size: BatchOption = None,
    workers: WorkersOption = 0,
    seed: Annotated[Any, seed_option("Of sampling and clustering.")] = 0,
    max_memory: Annotated[Any, memory_option("the analysis")] = None,
    **options: Any,
) -> None:
    """Hold the options of what is split, and how: those that `disentangle` and `collect` share by `with_options`."""


def check_paths(
    *,
    file: Path | None = None,
    images: str | None = None,
    out: Path | None = None,
    folder: Path | None = None,
    model: str | None = None,
    parts: Sequence[Path] = (),
) -> None:
    """Raise what is wrong with the paths of a command: within a moment, since nothing heavy is imported for it.

    ``file`` is a split, ``out`` a file to write, ``folder`` a folder to write to; ``parts`` are files of statistics.
    """
    from elude_nb._util.files import check_result, check_target, check_writable
    from elude_nb.data.folders import IMAGE_SETS, list_pictures

    if out is not None:
        check_target(out)
    if folder is not None:
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(f"--out {str(folder)!r} is a file, not a folder.")
        check_writable(folder)
    if file is not None:
        check_result(file, "disentanglement")
    for part in parts:
        check_result(part, "statistics")
    target = out or folder
    files = [("FILE", each) for each in (file, *parts)]
    for option, given in (*files, ("--images", images), ("--model", model)):
        if target is not None and given is not None and target.exists() and Path(given).resolve() == target.resolve():
            raise ValueError(f"--out {str(target)!r} is {option} as well; name another.")
    if images is not None and images not in IMAGE_SETS:
        list_pictures(Path(images))
