"""The command line: each command is one call of the library."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from elude_nb.data.images import ImageSet

app = typer.Typer(
    name="elude-nb",
    help="Take the channels of a pretrained vision model apart, without changing its outputs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ImagesOption = Annotated[str, typer.Option(help="A folder, or 'photographs' or 'shapes'.")]
SkipBrokenOption = Annotated[bool, typer.Option("--skip-broken", help="Leave out broken images, and name them.")]
CountOption = Annotated[int | None, typer.Option(help="Take only so many images (for the named sets: how many).")]
FileArgument = Annotated[Path, typer.Argument(help="A file that `elude-nb disentangle` wrote.")]
ModelOption = Annotated[str, typer.Option(help="'dinov2-small', a timm name, or a checkpoint.")]
SiteOption = Annotated[str, typer.Option(help="'stream', 'stream:8', or the path of a layer.")]
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
    images: ImagesOption = "photographs",
    count: CountOption = None,
    skip_broken: SkipBrokenOption = False,
    site: SiteOption = "stream",
    blocks: BlocksOption = "all",
    concepts: Annotated[int, typer.Option(help="Number of concepts.")] = 128,
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
    seed: Annotated[int, typer.Option(help="Of sampling and clustering.")] = 0,
    max_memory: Annotated[float | None, typer.Option(help="Upper bound for the analysis, in GiB.")] = None,
) -> None:
    """Split the channels of a model and save the result."""
    import elude_nb as en
    from elude_nb._util.files import check_writable

    taken = _number_or_all("--blocks", blocks)
    if not out.parent.is_dir():  # found out now, not after minutes
        raise FileNotFoundError(f"--out {str(out)!r}: there is no folder {str(out.parent)!r}.")
    check_writable(out.parent)
    split = en.disentangle(
        en.load_model(model),
        _images(images, count, skip_broken),
        site,
        blocks=taken,
        concepts=concepts,
        units=units,
        shared=shared,
        routing=routing,
        tokens=tokens,
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
    verify_images: Annotated[
        str | None, typer.Option(help="How many of them are run, or 'all'; by default 16, or as many as --count says.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images in one forward pass.")] = 8,
    json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
) -> None:
    """Compare lens and explicit network with the original model; exit with 1 where they are not what they should be."""
    import elude_nb as en

    most = _number_or_all("--verify-images", verify_images or ("16" if count is None else "all"))
    split = en.Disentanglement.load(file)
    taken = _images(images, count, skip_broken)
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
    k: Annotated[int, typer.Option(help="Best images of each unit.")] = 10,
    seed: Annotated[int, typer.Option(help="Of the random routes.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print the means and intervals as JSON.")] = False,
) -> None:
    """Score sub-units beside their channels and random routes of the same sizes."""
    import elude_nb as en
    from elude_nb.scores import score_means

    split = en.Disentanglement.load(file)
    means = score_means(en.score(split, _images(images, count, skip_broken), k=k, seed=seed))
    typer.echo(means.to_json(orient="records", indent=1) if json else means.round(3).to_string(index=False))


@app.command()
def compare(
    out: Annotated[Path, typer.Option(help="Folder for compare.csv, compare.json and compare.html.")],
    model: ModelOption = "dinov2-small",
    images: ImagesOption = "photographs",
    count: CountOption = None,
    skip_broken: SkipBrokenOption = False,
    methods: Annotated[str | None, typer.Option(help="Names with commas between; see `elude-nb methods`.")] = None,
    site: SiteOption = "stream",
    blocks: BlocksOption = "all",
    units: Annotated[int, typer.Option(help="Units that each method is asked for.")] = 128,
    concepts: Annotated[int | None, typer.Option(help="Number of concepts; by default from the data.")] = None,
    sparsity: Annotated[int, typer.Option(help="Active latents a token of sparse autoencoders.")] = 8,
    tokens: Annotated[str, typer.Option(help="class, registers, patch or all.")] = "patch",
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
        en.load_model(model),
        _images(images, count, skip_broken),
        site,
        methods=chosen,
        blocks=_number_or_all("--blocks", blocks),
        n_units=units,
        concepts=concepts,
        sparsity=sparsity,
        tokens=tokens,
        k=k,
        seed=seed,
        max_memory=max_memory,
    )
    for path in write_comparison(compared, out):
        typer.echo(path)


@app.command()
def report(
    file: FileArgument,
    out: Annotated[Path, typer.Option(help="The HTML page to write.")],
    images: ImagesOption = "photographs",
    count: Annotated[int, typer.Option(help="Images to show and to score on; the page holds them all.")] = 48,
    skip_broken: SkipBrokenOption = False,
    channels: Annotated[
        int | None, typer.Option(help="Channels that can be opened; by default all, which takes most of the time.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Heading of the page.")] = None,
    seed: Annotated[int, typer.Option(help="Of the random routes.")] = 0,
    max_memory: Annotated[float, typer.Option(help="Upper bound for what is kept of the images, in GiB.")] = 1.0,
) -> None:
    """Write one interactive page, with concepts, channels, scores and certificate, that opens offline by itself."""
    import elude_nb as en
    from elude_nb.app.report.build import check_target, write_report

    check_target(out)  # found out now, not after the model is loaded
    split = en.Disentanglement.load(file)
    taken = _images(images, count, skip_broken)
    written = write_report(split, taken, out, title=title, channels=channels, seed=seed, max_memory=max_memory)
    typer.echo(f"Done. Open {written.resolve()}")


@app.command()
def methods() -> None:
    """List the methods that `compare` knows."""
    from elude_nb.baselines import METHODS
    from elude_nb.baselines.compare import DEFAULT_METHODS

    for name in METHODS:
        typer.echo(f"{name}{' (by default)' if name in DEFAULT_METHODS else ''}")


def _images(images: str, count: int | None, skip_broken: bool) -> ImageSet:
    import elude_nb as en

    taken = en.load_images(images, count=count)
    return taken.without_broken() if skip_broken else taken


def _number_or_all(option: str, given: str) -> int | Literal["all"]:
    if given != "all" and not given.isdecimal():
        raise ValueError(f"{option} {given!r}: give a whole number or 'all'.")
    return "all" if given == "all" else int(given)


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line; an expected error becomes one line on standard error and exit status 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # paths that are not UTF-8 are printed as they are
    try:
        return app(arguments, prog_name="elude-nb")
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        typer.echo(f"elude-nb: {error}", err=True)
        return sys.exit(2)
