"""The command line: each command is one call of the library."""

from __future__ import annotations

import io
import sys
import warnings
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from elude_nb.app.shell import in_shell_words

if TYPE_CHECKING:
    from elude_nb import Disentanglement, ImageSet, Model
    from elude_nb.baselines.compare import Compared

app = typer.Typer(
    name="elude-nb",
    help="Take the channels of a pretrained vision model apart, without changing its outputs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ImagesOption = Annotated[str, typer.Option(help="A folder, or 'photographs' or 'shapes'.")]
RangeOption = Annotated[
    str | None, typer.Option(help="Black and white in pictures of more than 8 bits, such as 0,4095 for 12 bits in 16.")
]
SkipBrokenOption = Annotated[bool, typer.Option("--skip-broken", help="Leave out broken images, and name them.")]
HoldOutOption = Annotated[
    float,
    typer.Option(min=0, max=0.99, help="Share of the images that the discovery does not see; they are for scores."),
]
SeenOption = Annotated[bool, typer.Option("--seen", help="Take the images that the discovery saw, too.")]
CountOption = Annotated[int | None, typer.Option(help="Take only so many images (for the named sets: how many).")]
FileArgument = Annotated[Path, typer.Argument(help="A file that `elude-nb disentangle` wrote.")]
ModelOption = Annotated[str, typer.Option(help="'dinov2-small', a timm name, or a checkpoint.")]
NamedModelOption = Annotated[
    str | None, typer.Option(help="In place of the model that the file names, such as a checkpoint that has moved.")
]
ArchitectureOption = Annotated[
    str | None, typer.Option(help="For a checkpoint: timm's name of its architecture; see `elude-nb models`.")
]
ImageSizeOption = Annotated[str | None, typer.Option(help="Side of the model's images in pixels, or HEIGHTxWIDTH.")]
DeviceOption = Annotated[str | None, typer.Option(help="'cpu' (by default), 'cuda', 'cuda:1', 'mps', ...")]
DtypeOption = Annotated[str | None, typer.Option(help="'float32' (by default), 'float64', 'bfloat16', ...")]
PretrainedOption = Annotated[
    bool | None, typer.Option("--pretrained/--no-pretrained", help="Random weights with --no-pretrained.")
]
TokensOption = Annotated[int, typer.Option(help="Tokens drawn of each image.")]
BatchOption = Annotated[int | None, typer.Option(help="Images in one forward pass.")]
SiteOption = Annotated[
    str | None,
    typer.Option(help="'stream' (by default, if there is one), 'stream:8', or the path of a layer."),
]
ConceptsOption = Annotated[int | None, typer.Option(help="Number of concepts; by default it follows the data.")]
BlocksOption = Annotated[str, typer.Option(help="How many blocks bring the sources, or 'all'.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        from elude_nb import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass


@app.command()
def tour(
    out: Annotated[Path, typer.Option(help="Folder for the pages.")] = Path("tour"),
    only: Annotated[str | None, typer.Option(help="Notebooks by number, as in 01,02.")] = None,
) -> None:
    """Run the notebooks on the embedded model and photographs; leave HTML pages with pictures."""
    from elude_nb.app.tour import run_tour

    index = run_tour(out, only=None if only is None else only.split(","))
    typer.echo(f"Done. Open {index.resolve()}")


@app.command()
def disentangle(
    out: Annotated[Path, typer.Option(help="The safetensors file to write.")],
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
    hold_out: HoldOutOption = 0.5,
    site: SiteOption = None,
    blocks: BlocksOption = "all",
    concepts: ConceptsOption = None,
    units: Annotated[int, typer.Option(help="Sub-units of a channel, at most.")] = 8,
    shared: Annotated[
        float | None,
        typer.Option(help="Leave over what has a second owner above this share of the best; by default nothing."),
    ] = None,
    routing: Annotated[
        str, typer.Option(help="elude, elude-signed, concepts, channel-clusters or random.")
    ] = "concepts",
    tokens: Annotated[
        str | None, typer.Option(help="class, registers, patch or all; by default all for elude, else patch.")
    ] = None,
    tokens_per_image: TokensOption = 24,
    batch_size: BatchOption = None,
    seed: Annotated[int, typer.Option(help="Of sampling and clustering.")] = 0,
    max_memory: Annotated[float | None, typer.Option(help="Upper bound for the analysis, in GiB.")] = None,
) -> None:
    """Split the channels of a model and save the result."""
    import elude_nb as en
    from elude_nb._util.files import check_writable

    window = _number_or_all("--blocks", blocks)
    if not out.parent.is_dir():  # found out now, not after minutes
        raise FileNotFoundError(f"--out {str(out)!r}: there is no folder {str(out.parent)!r}.")
    check_writable(out.parent)
    taken = _discovery(_images(images, count, skip_broken, value_range), hold_out, seed)
    split = en.disentangle(
        _load_model(model, architecture, image_size, device, dtype, pretrained),
        taken,
        site,
        blocks=window,
        concepts=concepts,
        units=units,
        shared=shared,
        routing=routing,
        tokens=tokens,
        tokens_per_image=tokens_per_image,
        batch_size=batch_size,
        seed=seed,
        max_memory=max_memory,
    )
    split.save(out)
    typer.echo(f"{split!r}\nSaved to {out}")


@app.command()
def verify(
    file: FileArgument,
    images: ImagesOption = "photographs",
    count: CountOption = None,
    skip_broken: SkipBrokenOption = False,
    value_range: RangeOption = None,
    verify_images: Annotated[
        str | None, typer.Option(help="How many of them are run, or 'all'; by default 16, or as many as --count says.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images in one forward pass.")] = 8,
    json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
    model: NamedModelOption = None,
    architecture: ArchitectureOption = None,
    image_size: ImageSizeOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    pretrained: PretrainedOption = None,
) -> None:
    """Compare lens and explicit network with the original model; exit with 1 where they are not what they should be."""
    import elude_nb as en

    most = _number_or_all("--verify-images", verify_images or ("16" if count is None else "all"))
    split = _load_split(file, model, architecture, image_size, device, dtype, pretrained)
    taken = _images(images, count, skip_broken, value_range)
    found = en.verify(split, taken, max_images=None if most == "all" else most, batch_size=batch_size, strict=False)
    typer.echo(found.to_json() if json else str(found))
    for problem in found.problems():
        typer.echo(f"problem: {problem}", err=True)
    if found.problems():
        raise typer.Exit(1)


@app.command()
def score(
    file: FileArgument,
    images: ImagesOption = "photographs",
    count: CountOption = None,
    skip_broken: SkipBrokenOption = False,
    value_range: RangeOption = None,
    seen: SeenOption = False,
    k: Annotated[int, typer.Option(help="Best images of each unit.")] = 10,
    seed: Annotated[int, typer.Option(help="Of the random routes.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print the means and intervals as JSON.")] = False,
    model: NamedModelOption = None,
    architecture: ArchitectureOption = None,
    image_size: ImageSizeOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    pretrained: PretrainedOption = None,
) -> None:
    """Score sub-units beside their channels and random routes of the same sizes."""
    import elude_nb as en
    from elude_nb.scores import score_means, verdict

    split = _load_split(file, model, architecture, image_size, device, dtype, pretrained)
    scores = en.score(split, _unseen(split, seen, images, count, skip_broken, value_range), k=k, seed=seed)
    means = score_means(scores)
    if json:
        typer.echo(means.to_json(orient="records", indent=1))
        return
    typer.echo(means.round(3).to_string(index=False))
    for distinct in (False, True):
        typer.echo(str(verdict(scores, distinct=distinct)))


@app.command()
def compare(
    out: Annotated[Path, typer.Option(help="Folder for compare.csv, compare.json and compare.html.")],
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
    methods: Annotated[str | None, typer.Option(help="Names with commas between; see `elude-nb methods`.")] = None,
    site: SiteOption = None,
    blocks: BlocksOption = "all",
    units: Annotated[int, typer.Option(help="Units that each method is asked for.")] = 128,
    concepts: ConceptsOption = None,
    sparsity: Annotated[int, typer.Option(help="Active latents a token of sparse autoencoders.")] = 8,
    tokens: Annotated[
        str | None, typer.Option(help="class, registers, patch or all; by default patch, where there are any.")
    ] = None,
    tokens_per_image: TokensOption = 24,
    batch_size: BatchOption = None,
    k: Annotated[int, typer.Option(help="Best images of each unit.")] = 10,
    seed: Annotated[int, typer.Option(help="Of halves, sampling, clustering and training.")] = 0,
    max_memory: Annotated[float, typer.Option(help="Upper bound for the recorded tokens, in GiB.")] = 8.0,
) -> None:
    """Fit methods on one half of the images, score them on the other; write one table and a page."""
    import elude_nb as en
    from elude_nb._util.files import check_writable
    from elude_nb.app.compare_page import write_comparison
    from elude_nb.baselines.compare import DEFAULT_METHODS

    if out.exists() and not out.is_dir():  # found out now, not after minutes
        raise NotADirectoryError(f"--out {str(out)!r} is a file, not a folder.")
    check_writable(out)
    chosen = DEFAULT_METHODS if methods is None else [name.strip() for name in methods.split(",")]
    compared = en.compare(
        _load_model(model, architecture, image_size, device, dtype, pretrained),
        _images(images, count, skip_broken, value_range),
        site,
        methods=chosen,
        blocks=_number_or_all("--blocks", blocks),
        n_units=units,
        concepts=concepts,
        sparsity=sparsity,
        tokens=tokens,
        tokens_per_image=tokens_per_image,
        batch_size=batch_size,
        k=k,
        seed=seed,
        max_memory=max_memory,
    )
    paths = write_comparison(compared, out)
    typer.echo(_overview(compared))
    typer.echo(f"Written: {', '.join(map(str, paths))}")


@app.command()
def report(
    file: FileArgument,
    out: Annotated[Path, typer.Option(help="The HTML page to write.")],
    images: ImagesOption = "photographs",
    count: Annotated[int, typer.Option(help="Images to show and to score on; the page holds them all.")] = 48,
    skip_broken: SkipBrokenOption = False,
    value_range: RangeOption = None,
    seen: SeenOption = False,
    channels: Annotated[
        int | None, typer.Option(help="Channels that can be opened; by default all, which takes most of the time.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Heading of the page.")] = None,
    seed: Annotated[int, typer.Option(help="Of the random routes.")] = 0,
    max_memory: Annotated[float, typer.Option(help="Upper bound for what is kept of the images, in GiB.")] = 1.0,
    model: NamedModelOption = None,
    architecture: ArchitectureOption = None,
    image_size: ImageSizeOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    pretrained: PretrainedOption = None,
) -> None:
    """Write one interactive page, with concepts, channels, scores and certificate, that opens offline by itself."""
    from elude_nb.app.report.build import check_target, write_report

    check_target(out)  # found out now, not after the model is loaded
    split = _load_split(file, model, architecture, image_size, device, dtype, pretrained)
    taken = _unseen(split, seen, images, count, skip_broken, value_range)
    written = write_report(split, taken, out, title=title, channels=channels, seed=seed, max_memory=max_memory)
    typer.echo(f"Done. Open {written.resolve()}")


@app.command()
def sites(
    model: ModelOption = "dinov2-small",
    architecture: ArchitectureOption = None,
    image_size: ImageSizeOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    pretrained: PretrainedOption = None,
    blocks: BlocksOption = "all",
) -> None:
    """List the places of a model where channels can be split, and why not at the others."""
    import elude_nb as en

    loaded = _load_model(model, architecture, image_size, device, dtype, pretrained)
    typer.echo(en.find_sites(loaded, blocks=_number_or_all("--blocks", blocks)).to_string(index=False))


@app.command()
def models(pattern: Annotated[str, typer.Argument(help="Such as 'vit_*dinov2*'.")] = "") -> None:
    """List the names of architectures that timm knows."""
    import timm

    for name in timm.list_models(pattern):
        typer.echo(name)


@app.command()
def methods() -> None:
    """List the methods that `compare` knows."""
    from elude_nb.baselines import METHODS
    from elude_nb.baselines.compare import DEFAULT_METHODS

    for name in METHODS:
        typer.echo(f"{name}{' (by default)' if name in DEFAULT_METHODS else ''}")


@app.command()
def name(
    file: FileArgument,
    out: Annotated[Path | None, typer.Option(help="Where to save the split with its names; may be FILE.")] = None,
    images: ImagesOption = "photographs",
    count: CountOption = None,
    skip_broken: SkipBrokenOption = False,
    value_range: RangeOption = None,
    words: Annotated[
        Path | None, typer.Option(help="A text file, one word or phrase a line, in place of the images' labels.")
    ] = None,
    encoder: Annotated[
        str, typer.Option(help="With --words: a CLIP or SigLIP model of transformers, a folder or a name.")
    ] = "openai/clip-vit-base-patch32",
    json: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False,
    model: NamedModelOption = None,
    architecture: ArchitectureOption = None,
    image_size: ImageSizeOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    pretrained: PretrainedOption = None,
) -> None:
    """Name concepts after labels or words, with the evidence for each name, and why others have none."""
    from elude_nb._util.files import check_writable
    from elude_nb.interpret import describe_concepts, name_concepts, name_concepts_by_text, transformers_encoder

    if out is not None:  # found out now, not after minutes
        check_writable(out.parent)
    texts = [] if words is None else [line for line in words.read_text(encoding="utf-8").split("\n") if line.strip()]
    split = _load_split(file, model, architecture, image_size, device, dtype, pretrained)
    taken = _images(images, count, skip_broken, value_range)
    if words is None and taken.labels is None:
        names = describe_concepts(split, taken)
        rows: list[Any] = [{"concept": concept, "description": text} for concept, text in names.descriptions.items()]
        said = "The images have no labels, and --words is not given: concepts are described, not named."
        lines = [said, *(f"{row['concept']:>7}  {row['description']}" for row in rows)]
    else:
        by_text = None if words is None else transformers_encoder(encoder)
        found = name_concepts_by_text(split, taken, texts, by_text) if by_text else name_concepts(split, taken)
        names, rows = found.names, found.table.to_dict("records")
        table = found.table.assign(why=found.table["evidence"].where(found.table["name"] != "", found.table["reason"]))
        lines = [repr(found), table[["concept", "name", "description", "why"]].to_string(index=False)]
    typer.echo(dumps(rows, indent=1) if json else "\n".join(lines))
    if out is not None:
        split.with_names(names).save(out)
        typer.echo(f"Saved to {out}", err=json)


def _overview(compared: Compared) -> str:
    """Return what a terminal shows of a comparison: few columns at equal numbers of units, and the verdicts."""
    from elude_nb.baselines.compare import IN_WORDS, SIZES

    table = compared.table[compared.table["size"] == "equal"]
    fidelity = ("redundancy", "unexplained_variance", "output_change")
    shown = [name for name in ("method", "units", *IN_WORDS, *fidelity) if name in table]
    title = SIZES["equal"].format(**compared.settings)
    rows = table[shown].round(3).to_string(index=False)
    return "\n".join([f"{title}:", rows, *map(str, compared.verdicts()), *compared.notes()])


def _images(images: str, count: int | None, skip_broken: bool, value_range: str | None) -> ImageSet:
    import elude_nb as en
    from elude_nb.data.images import IMAGE_SETS

    limits: dict[str, Any] = {} if value_range is None else {"value_range": _value_range(value_range)}
    if not skip_broken or images in IMAGE_SETS:
        return en.load_images(images, count=count, **limits)
    whole = en.load_images(images, **limits).without_broken()  # before counting, so that there are enough
    return whole if count is None else whole.sample(count)


def _discovery(images: ImageSet, hold_out: float, seed: int) -> ImageSet:
    """Return the images that the discovery sees, and say how many it does not."""
    found, held_out = images.split(1 - hold_out, seed=seed) if hold_out else (images, images[:0])
    labels = "" if images.labels is None else f", {len(set(images.labels))} labels"
    _say(f"{len(images):,} images{labels}: {len(found):,} for the discovery, {len(held_out):,} held out", {})
    return found


def _unseen(split: Disentanglement, seen: bool, images: str, count: int | None, *how: Any) -> ImageSet:
    """Return images that the discovery did not see, if there are any and ``seen`` ones are not wanted."""
    from elude_nb.data.images import IMAGE_SETS

    if seen:
        return _images(images, count, *how)
    whole = _images(images, max(400, 3 * (count or 0)) if images in IMAGE_SETS else None, *how)
    size = len(whole) if count is None else 3 * count  # of a large folder not all are opened
    while True:
        pool = whole.sample(size)
        counted = split.count_seen(pool)
        if count is None or counted.total - (counted.count or 0) >= count or counted.total == len(whole):
            break
        size *= 2
    if counted.count and counted.count < counted.total:
        _say(f"{counted}, and left out; --seen takes them in", {})
        pool = split.unseen(pool)
    return pool if count is None else pool.sample(count)


def _value_range(text: str) -> tuple[float, float]:
    try:
        low, high = (float(number) for number in text.split(","))
    except ValueError:
        raise ValueError(f"--value-range {text!r}: give two numbers, as in 0,4095.") from None
    return low, high


def _number_or_all(option: str, given: str) -> int | Literal["all"]:
    if given != "all" and not given.isdecimal():
        raise ValueError(f"{option} {given!r}: give a whole number or 'all'.")
    return "all" if given == "all" else int(given)


def _load_model(name: str | None, *how: Any, of: Path | None = None) -> Model:
    """Load a model with the options that were given; ``of``: the one that a split's file names, where they are not."""
    import elude_nb as en
    from elude_nb.core.saving import load_model_of

    names = ("architecture", "image_size", "device", "dtype", "pretrained")
    given = {key: value for key, value in zip(names, how, strict=True) if value is not None}
    readers = {"image_size": _image_size, "dtype": _dtype}
    given |= {key: read(given[key]) for key, read in readers.items() if key in given}
    return load_model_of(of, name, **given) if of else en.load_model(str(name), **given)


def _load_split(file: Path, model: str | None, *how: Any) -> Disentanglement:
    """Load a split, with the model that its file names unless options say otherwise."""
    import elude_nb as en

    if model is None and all(option is None for option in how):
        return en.Disentanglement.load(file)
    return en.Disentanglement.load(file, _load_model(model, *how, of=file))


def _image_size(text: str) -> int | tuple[int, ...]:
    sides = text.lower().split("x")
    if not all(side.isdecimal() for side in sides) or len(sides) > 2:
        raise ValueError(f"--image-size {text!r}: give a whole number, or two as in 224x336 (height and width).")
    return int(text) if len(sides) == 1 else tuple(int(side) for side in sides)


def _dtype(text: str) -> Any:
    import torch

    found = getattr(torch, text, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"--dtype {text!r}: give float32, float64, float16 or bfloat16.")
    return found


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line; an expected error becomes one line on standard error and exit status 2.

    The library's errors name Python's arguments; here the options of the command stand in their place.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # paths that are not UTF-8 are printed as they are
    words = sys.argv[1:] if arguments is None else arguments
    options = _options_of(words)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda said, *_, **__: _say(f"warning: {said}", options)
            return app(words, prog_name="elude-nb")
    except (ValueError, TypeError, OSError, RuntimeError, ImportError) as error:
        _say(str(error), options)
        return sys.exit(2)


def _say(message: str, options: dict[str, str]) -> None:
    typer.echo(f"elude-nb: {in_shell_words(message, options)}", err=True)


def _options_of(words: list[str]) -> dict[str, str]:
    """Return the options of the command that was called, by the names that Python has for them."""
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    command = next((commands[word] for word in words if word in commands), None)
    options = {each.name: each.opts[0] for each in command.params if each.opts[0][:2] == "--"} if command else {}
    other = {"name_or_path": "model", "n_units": "units", "max_images": "verify_images"}
    return options | {name: options[option] for name, option in other.items() if option in options}
