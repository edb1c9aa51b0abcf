"""Which site is split if none is named: the residual stream, or else the deepest layer that is worth splitting."""

from __future__ import annotations

from contextlib import suppress
from typing import Literal

from elude_nb._util.progress import say
from elude_nb.errors import SiteError
from elude_nb.models.find_sites import Run, describe_layer, find_site, run_once
from elude_nb.models.layers import layer_names
from elude_nb.models.load import Model
from elude_nb.models.sites import STREAM, Site

ENOUGH_SOURCES = 16
"""A channel with fewer sources has little to be split into."""
_NAMED = 3


def choose_site(
    model: Model, name: str | None, *, blocks: int | Literal["all"] = "all", tokens: str | None = None, purpose: str
) -> Site:
    """Return the site that is named; without a name the residual stream, or the best layer where there is none.

    Parameters
    ----------
    model
        The model. With ``progress`` it is said which layer was chosen.
    name, blocks
        As `find_site` takes them. Who names ``blocks`` means the stream: no other site is chosen then.
    tokens
        Which tokens of it are wanted.
    purpose
        The call that needs the site; the message begins with it.

    Raises
    ------
    SiteError
        If there is no such site; of a stream, the message names the best layers instead.
    """
    try:
        return find_site(model, name or STREAM, blocks=blocks)
    except SiteError as error:
        no_stream = name in {None, STREAM} or (str(name).startswith(STREAM) and not run_once(model).blocks)
        best = best_layers(model, tokens) if no_stream and blocks == "all" else []
        if name is None:
            for number, layer in enumerate(best):
                with suppress(SiteError):
                    site = find_site(model, layer)
                    _say_choice(model, purpose, best[number : number + _NAMED])
                    return site
        if not best:
            raise
        *first, last = map(repr, best[:_NAMED])
        named = f"{', '.join(first)} or {last}" if first else last
        raise SiteError(f"{error} The best layers here: site={named}.") from error


def _say_choice(model: Model, purpose: str, layers: list[str]) -> None:
    if model.progress:
        others = f" Others: {', '.join(map(repr, layers[1:]))}." if layers[1:] else ""
        say(f"{purpose}: {model.name} has no residual stream that can be split; site={layers[0]!r} is taken.{others}")


def best_layers(model: Model, tokens: str | None = None) -> list[str]:
    """Return the layers that can be split, the best first: the deepest of those that are worth it.

    Before all others come layers that have the ``tokens`` (without a choice of tokens: patches, more than one of them)
    and at least ``ENOUGH_SOURCES`` sources a channel; among equals the last that runs is first. The classifier is none.
    """
    run = run_once(model)
    order = {name: number for number, name in enumerate(run.calls)}
    ranks: list[tuple[tuple[bool, bool, int], str]] = []
    classifier = _classifier(model, run)
    for name in layer_names(model.network):
        if name not in order or name == classifier:
            continue
        try:
            site = describe_layer(model, name, run)
        except SiteError:
            continue
        groups = getattr(model.network.get_submodule(name), "groups", 1)
        ranks.append(((_has(site, tokens), site.sources // groups >= ENOUGH_SOURCES, order[name]), name))
    return [name for _, name in sorted(ranks, reverse=True)]


def _classifier(model: Model, run: Run) -> str | None:
    """Return the last layer, if nothing with weights comes after it and the network has as many outputs an image."""
    modules, output = dict(model.network.named_modules()), run.shapes.get("", ())
    weighted = [name for name in run.calls if modules[name]._parameters and not [*modules[name].children()]]
    if not weighted or weighted[-1] in run.norms or len(output) != 2:
        return None
    shape = run.shapes[weighted[-1]]
    channels = shape[1] if len(shape) == 4 else shape[-1]
    return weighted[-1] if channels == output[1] else None


def _has(site: Site, tokens: str | None) -> bool:
    if tokens in {None, "all", "patch"}:
        return site.layout.grid is not None and site.layout.grid != (1, 1)
    return bool(site.layout.classes if tokens == "class" else site.layout.registers)
