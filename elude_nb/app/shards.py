"""The commands for work in many jobs: each runs a share of the images, and one adds them up."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Annotated, Any

import typer

from elude_nb._util.words import counted
from elude_nb.app.inputs import model_options, model_to_split, print_split, take_discovery, take_images, tell
from elude_nb.app.options import (
    ArchitectureOption,
    DeviceOption,
    DtypeOption,
    ImageSizeOption,
    JsonOption,
    NamedModelOption,
    PretrainedOption,
    ShardOption,
    check_paths,
    discovery_options,
    whole_option,
    with_options,
)


@with_options(discovery_options)
def collect(
    out: Annotated[Path, typer.Option(help="The safetensors file to write; if it is there, it is continued.")],
    shard: ShardOption,
    every: Annotated[Any, whole_option("After how many images the file is written.")] = 10_000,
    json: JsonOption = False,
    **options: Any,
) -> None:
    """Run one share of the images and save what `merge` splits the channels by; options as of disentangle."""
    check_paths(images=options["images"], out=out, model=options["model"])
    from elude_nb.core import one_pass

    loaded, settings = model_to_split(options)
    images = take_images(options["images"], options["count"], skip_broken=False, value_range=options["value_range"])
    discover = take_discovery(images, options["hold_out"], options["seed"])
    skip_broken = options["skip_broken"]
    found = one_pass.collect(loaded, discover, shard=shard, out=out, every=every, skip_broken=skip_broken, **settings)
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
    print_split(split, out, json=json)
