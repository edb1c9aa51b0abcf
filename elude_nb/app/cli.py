"""The command line: each command is one call of the library."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import traceback
import warnings
from json import dumps
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from elude_nb.app import shards
from elude_nb.app.class_commands import hand_out, put_together
from elude_nb.app.inputs import (
    load_model,
    load_split,
    model_to_split,
    named_images,
    named_model,
    print_split,
    take_discovery,
    take_images,
    take_unseen,
    take_whole,
    tell,
)
from elude_nb.app.options import (
    METHODS,
    TOKENS,
    USUAL_METHODS,
    ArchitectureOption,
    BatchOption,
    BlocksOption,
    ChannelsOption,
    ConceptsOption,
    CountOption,
    DeviceOption,
    DtypeOption,
    FileArgument,
    ImageSizeOption,
    ImagesOption,
    JsonOption,
    JudgeOption,
    MethodsOption,
    ModelOption,
    NamedModelOption,
    PretrainedOption,
    RangeOption,
    SeenOption,
    SiteOption,
    SkipBrokenOption,
    SomeChannelsOption,
    TokensPerImageOption,
    VerifyImagesOption,
    check_paths,
    choice_option,
    discovery_options,
    input_options,
    memory_option,
    seed_option,
    whole_option,
    with_options,
)
from elude_nb.app.processes import check_shared, own_device, process_group

if TYPE_CHECKING:
    from elude_nb.baselines.compare import Compared

USAGE_ERROR: Any = typer.BadParameter.__mro__[2]
"""What typer raises of wrong use, which it has no public name for."""

app = typer.Typer(
    name="elude-nb",
    help="Take the channels of a pretrained vision model apart, without changing its outputs.",
    epilog="Exit codes: 0 done; 1 `verify` found a difference; 2 wrong use, or an error that one line explains; "
    "70 a fault of elude-nb, with a traceback; 130 interrupted; 141 what reads the output has stopped.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from elude_nb import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001 - its callback prints it
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    check_shared(context.invoked_subcommand)


@app.command()
def tour(
    out: Annotated[Path, typer.Option(help="Folder for the pages.")] = Path("tour"),
    only: Annotated[str | None, typer.Option(help="Notebooks by number, as in 01,02.")] = None,
    json: JsonOption = False,
) -> None:
    """Run the notebooks on the embedded model and photographs; leave HTML pages with pictures."""
    from elude_nb.app.tour import run_tour

    start = perf_counter()
    check_paths(folder=out)
    index = run_tour(out, only=None if only is None else only.split(","))
    _show_page(index, start, json)


app.command("class")(hand_out)
app.command("answers")(put_together)


@app.command()
@with_options(discovery_options)
def disentangle(
    out: Annotated[Path, typer.Option(help="The safetensors file to write.")],
    json: JsonOption = False,
    **options: Any,
) -> None:
    """Split the channels of a model and save the result."""
    check_paths(images=options["images"], out=out, model=options["model"])
    import elude_nb as en

    with process_group() as first:
        loaded, settings = model_to_split(options | {"device": own_device(options["device"])})
        discover = take_discovery(named_images(options), options["hold_out"], options["seed"])
        split = en.disentangle(loaded, discover, **settings)
    if first:
        split.save(out)
        print_split(split, out, json=json)


@app.command()
def verify(
    file: FileArgument,
    images: ImagesOption = "photographs",
    count: CountOption = None,
    skip_broken: SkipBrokenOption = False,
    value_range: RangeOption = None,
    verify_images: VerifyImagesOption = None,
    batch_size: BatchOption = 8,
    json: JsonOption = False,
    model: NamedModelOption = None,
    architecture: ArchitectureOption = None,
    image_size: ImageSizeOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    pretrained: PretrainedOption = None,
) -> None:
    """Compare lens and explicit network with the original model; exit with 1 where they are not what they should be."""
    check_paths(file=file, images=images, model=model)
    import elude_nb as en

    most = verify_images or (16 if count is None else "all")
    with process_group() as first:
        split = load_split(file, model, architecture, image_size, own_device(device), dtype, pretrained)
        taken = take_images(images, count, skip_broken, value_range)
        of_these = None if most == "all" else int(most)
        found = en.verify(split, taken, max_images=of_these, batch_size=batch_size, strict=False)
    if not first:
        return
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
    channels: SomeChannelsOption = None,
    k: Annotated[Any, whole_option("Best images of each unit; by default 10, or a quarter of few images.", 2)] = None,
    seed: Annotated[Any, seed_option("Of the random routes.")] = 0,
    judge: JudgeOption = None,
    json: JsonOption = False,
    model: NamedModelOption = None,
    architecture: ArchitectureOption = None,
    image_size: ImageSizeOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    pretrained: PretrainedOption = None,
) -> None:
    """Score sub-units beside their channels and random routes of the same sizes."""
    check_paths(file=file, images=images, model=model)
    import elude_nb as en
    from elude_nb._util.checks import check_count
    from elude_nb.scores import score_means, verdict
    from elude_nb.scores.similarity import of_few

    with process_group() as first:
        split = load_split(file, model, architecture, image_size, own_device(device), dtype, pretrained)
        taken = take_unseen(split, seen, images, count, skip_broken, value_range)
        k = k or of_few(10, len(taken))
        scores = en.score(split, taken, k=k, seed=seed, embeddings=judge)
    if not first:
        return
    if channels is not None:
        check_count("channels", max(channels), 0, split.site.channels - 1)
        scores = scores[scores["channel"].isin(channels)]
    means = score_means(scores)
    if json:
        typer.echo(means.to_json(orient="records", indent=1))
        return
    typer.echo(means.round(3).to_string(index=False))
    sub_units = scores[scores["kind"] == "sub-unit"]
    for distinct, there in ((False, len(sub_units)), (True, sub_units["distinct"].sum())):
        if there:  # of few channels, none may be split, or none distinct
            typer.echo(str(verdict(scores, distinct=distinct)))


@app.command()
@with_options(input_options)
def compare(
    out: Annotated[Path, typer.Option(help="Folder for compare.csv, compare.json and compare.html.")],
    methods: MethodsOption = None,
    site: SiteOption = None,
    blocks: BlocksOption = "all",
    units: Annotated[Any, whole_option("Units that each method is asked for.", 2)] = 128,
    concepts: ConceptsOption = None,
    sparsity: Annotated[Any, whole_option("Active latents a token of sparse autoencoders.")] = 8,
    tokens: Annotated[Any, choice_option(TOKENS, "by default patch, where there are any.")] = None,
    tokens_per_image: TokensPerImageOption = 24,
    batch_size: BatchOption = None,
    k: Annotated[Any, whole_option("Best images of each unit.", 4)] = 10,
    seed: Annotated[Any, seed_option("Of halves, sampling, clustering and training.")] = 0,
    max_memory: Annotated[Any, memory_option("the recorded tokens")] = 8.0,
    judge: JudgeOption = None,
    json: JsonOption = False,
    **options: Any,
) -> None:
    """Fit methods on one half of the images, score them on the other; write one table and a page."""
    check_paths(images=options["images"], folder=out, model=options["model"])
    import elude_nb as en
    from elude_nb.app.compare_page import as_records, write_comparison

    with process_group() as first:
        loaded = named_model(options | {"device": own_device(options["device"])})
        compared = en.compare(
            loaded,
            named_images(options),
            site,
            methods=methods or USUAL_METHODS,
            blocks=blocks,
            n_units=units,
            concepts=concepts,
            sparsity=sparsity,
            tokens=tokens,
            tokens_per_image=tokens_per_image,
            batch_size=batch_size,
            k=k,
            seed=seed,
            max_memory=max_memory,
            embeddings=judge,
        )
    if not first:
        return
    paths = write_comparison(compared, out)
    if json:
        found = {**as_records(compared), "verdicts": [str(each) for each in compared.verdicts()]}
        typer.echo(dumps({**found, "notes": compared.notes(), "files": [str(path) for path in paths]}, indent=1))
        return
    typer.echo(_overview(compared))
    typer.echo(f"Written: {', '.join(map(str, paths))}")


@app.command()
def report(
    file: FileArgument,
    out: Annotated[Path, typer.Option(help="The HTML page to write.")],
    images: ImagesOption = "photographs",
    count: Annotated[Any, whole_option("Images to show and to score on; the page holds them all.", 2)] = 48,
    skip_broken: SkipBrokenOption = False,
    value_range: RangeOption = None,
    seen: SeenOption = False,
    channels: ChannelsOption = 40,
    title: Annotated[str | None, typer.Option(help="Heading of the page.")] = None,
    seed: Annotated[Any, seed_option("Of the random routes.")] = 0,
    max_memory: Annotated[Any, memory_option("what is kept of the images")] = 1.0,
    json: JsonOption = False,
    model: NamedModelOption = None,
    architecture: ArchitectureOption = None,
    image_size: ImageSizeOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    pretrained: PretrainedOption = None,
) -> None:
    """Write one interactive page, with concepts, channels, scores and certificate, that opens offline by itself."""
    start = perf_counter()
    check_paths(file=file, images=images, out=out, model=model)
    from elude_nb.app.report.build import write_report

    split = load_split(file, model, architecture, image_size, device, dtype, pretrained)
    taken = take_unseen(split, seen, images, count, skip_broken, value_range)
    written = write_report(split, taken, out, title=title, channels=channels, seed=seed, max_memory=max_memory)
    _show_page(written, start, json)


@app.command()
def sites(
    model: ModelOption = "dinov2-small",
    architecture: ArchitectureOption = None,
    image_size: ImageSizeOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    pretrained: PretrainedOption = None,
    blocks: BlocksOption = "all",
    json: JsonOption = False,
) -> None:
    """List the places of a model where channels can be split, and why not at the others."""
    import elude_nb as en

    loaded = load_model(model, architecture, image_size, device, dtype, pretrained)
    found = en.find_sites(loaded, blocks=blocks)
    typer.echo(found.to_json(orient="records", indent=1) if json else found.to_string(index=False))


@app.command()
def models(
    pattern: Annotated[str, typer.Argument(help="Such as 'vit_*dinov2*'.")] = "", json: JsonOption = False
) -> None:
    """List the names of architectures that timm knows."""
    import timm

    names = timm.list_models(pattern)
    typer.echo(dumps(names, indent=1) if json else "\n".join(names))


@app.command()
def methods(json: JsonOption = False) -> None:
    """List the methods that `compare` knows."""
    if json:
        typer.echo(dumps([{"name": name, "by_default": name in USUAL_METHODS} for name in METHODS], indent=1))
        return
    for name in METHODS:
        typer.echo(f"{name}{' (by default)' if name in USUAL_METHODS else ''}")


app.command()(shards.collect)
app.command()(shards.merge)


def _show_page(page: Path, start: float, json: bool) -> None:
    """Print where a page is that was begun at ``start``."""
    found = {"path": str(page.resolve()), "seconds": round(perf_counter() - start, 1)}
    typer.echo(dumps(found, indent=1) if json else f"Done. Open {page.resolve()}")


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
    json: JsonOption = False,
    model: NamedModelOption = None,
    architecture: ArchitectureOption = None,
    image_size: ImageSizeOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    pretrained: PretrainedOption = None,
) -> None:
    """Name concepts after labels or words, with the evidence for each name, and why others have none."""
    check_paths(file=file, images=images, model=model)
    if out is not None:
        check_paths(out=out)  # which may be the file itself
    from elude_nb.interpret import describe_concepts, name_concepts, name_concepts_by_text, transformers_encoder

    texts = [] if words is None else [line for line in words.read_text(encoding="utf-8").split("\n") if line.strip()]
    split = load_split(file, model, architecture, image_size, device, dtype, pretrained)
    taken = take_whole(images, count, skip_broken, value_range)
    tell(f"names rest on {split.count_seen(taken)}", {})
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


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line and exit; the codes are in its help and in docs/shell.md.

    The library's errors name Python's arguments; here the options of the command stand in their place.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # paths that are not UTF-8 are printed as they are
    return sys.exit(_run(sys.argv[1:] if arguments is None else arguments))


def _run(words: list[str]) -> int:  # noqa: PLR0911 - one for each code
    """Run a command and return its exit code; an expected error becomes one line on standard error."""
    command, options = typer.main.get_command(app), _options_of(words)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda said, *_, **__: tell(f"warning: {said}", options)
            # Not app(...), which exits with 1 of its own accord where a pipe is closed.
            with command.make_context("elude-nb", list(words)) as context:
                command.invoke(context)
    except typer.Exit as asked:
        return int(asked.exit_code)
    except USAGE_ERROR as error:
        if words:  # else the help has been printed
            tell(error.format_message(), options)
        return int(error.exit_code)
    except KeyboardInterrupt:
        tell("interrupted.", options)
        return 130
    except BrokenPipeError:  # as of `elude-nb models | head`
        _hush()
        return 141
    except (ValueError, TypeError, OSError, RuntimeError, ImportError) as error:
        tell(str(error), options)
        return 2
    except Exception:  # noqa: BLE001 - whatever it is, it is not verify's 1
        traceback.print_exc()
        tell("this is a fault of elude-nb; please report it with the lines above.", {})
        return 70
    return 0


def _hush() -> None:
    """Send what is still to be written nowhere, or Python would complain at its end that nobody reads it."""
    with contextlib.suppress(OSError), Path(os.devnull).open("w") as nowhere:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere.fileno(), stream.fileno())


def _options_of(words: list[str]) -> dict[str, str]:
    """Return the options of the command that was called, by the names that Python has for them."""
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    command = next((commands[word] for word in words if word in commands), None)
    options = {each.name: each.opts[0] for each in command.params if each.opts[0][:2] == "--"} if command else {}
    other = {"name_or_path": "model", "n_units": "units", "max_images": "verify_images"}
    return options | {name: options[option] for name, option in other.items() if option in options}
