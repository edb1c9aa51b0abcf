"""The commands for work in many jobs: each runs a share of the images, and one adds them up."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Annotated, Any

import typer

from elude_nb._util.words import counted
from elude_nb.app.inputs import figures_of, load_model, model_options, take_discovery, take_images, tell
from elude_nb.app.options import (
    ROUTINGS,
    TOKENS,
    ArchitectureOption,
    BatchOption,
    BlocksOption,
    ConceptsOption,
    CountOption,
    DeviceOption,
    DtypeOption,
    HoldOutOption,
    ImageSizeOption,
    ImagesOption,
    JsonOption,
    ModelOption,
    NamedModelOption,
    PretrainedOption,
    RangeOption,
    ShardOption,
    SharedOption,
    SiteOption,
    SkipBrokenOption,
    TokensPerImageOption,
    WorkersOption,
    check_paths,
    choice_option,
    memory_option,
    seed_option,
    whole_option,
)


def collect(
    out: Annotated[Path, typer.Option(help="The safetensors file to write; if it is there, it is continued.")],
    shard: ShardOption,
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
    units: Annotated[Any, whole_option("Sub-units of a channel, at most.", 2, 255)] = 8,
    shared: SharedOption = None,
    routing: Annotated[Any, choice_option(ROUTINGS, "how contributions find their sub-unit.")] = "concepts",
    tokens: Annotated[Any, choice_option(TOKENS, "by default all for elude, else patch.")] = None,
    tokens_per_image: TokensPerImageOption = 24,
    batch_size: BatchOption = None,
    workers: WorkersOption = 0,
    seed: Annotated[Any, seed_option("Of sampling and clustering.")] = 0,
    max_memory: Annotated[Any, memory_option("the analysis")] = None,
    every: Annotated[Any, whole_option("After how many images the file is written.")] = 10_000,
    json: JsonOption = False,
) -> None:
    """Run one share of the images and save what `merge` splits the channels by; options as of disentangle."""
    check_paths(images=images, out=out, model=model)
    from elude_nb.core import one_pass

    loaded = load_model(model, architecture, image_size, device, dtype, pretrained)
    found = one_pass.collect(
        loaded.using(workers=workers) if workers else loaded,
        take_discovery(take_images(images, count, skip_broken=False, value_range=value_range), hold_out, seed),
        site,
        shard=shard,
        out=out,
        every=every,
        skip_broken=skip_broken,
        blocks=blocks,
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
    figures = {"file": str(out), "images": len(found), "of": found.settings.images, "tokens": found.tokens}
    typer.echo(dumps(figures, indent=1) if json else f"{found!r}\nSaved to {out}")


def merge(
    files: Annotated[list[Path], typer.Argument(help="The files that `elude-nb collect` wrote, all of them.")],
    out: Annotated[Path, typer.Option(help="The safetensors file of the split to write.")],
    json: JsonOption = False,
    model: NamedModelOption = None,
    architecture: ArchitectureOption = None,
    image_size: ImageSizeOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    pretrained: PretrainedOption = None,
) -> None:
    """Add up all shares of the images, split the channels and save the result: what `disentangle` would have saved."""
    check_paths(out=out, parts=files, model=model)
    from elude_nb.core.disentangle import build_split
    from elude_nb.core.one_pass import load_shards
    from elude_nb.core.saving import load_named_model

    found = load_shards(files)
    found.check_complete()  # before the model is loaded
    if len(found.left_out):
        tell(f"{counted(len(found.left_out), 'image')} cannot be opened and were left out", {})
    how = model_options(architecture, image_size, device, dtype, pretrained)
    split = build_split(found, load_named_model(dict(found.origin), str(files[0]), model, **how))
    split.save(out)
    typer.echo(dumps({"file": str(out), **figures_of(split)}, indent=1) if json else f"{split!r}\nSaved to {out}")
