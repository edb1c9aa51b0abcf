"""Forward passes: outputs of a model, features of its patches, and passes that run again from a site on."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from elude_nb._util.arguments import knows_arguments
from elude_nb._util.arithmetic import own_arithmetic, run_network
from elude_nb._util.ranks import Ranks
from elude_nb.data.copies import distinct_numbers, find_originals, sketch
from elude_nb.data.images import Images, ImageSet
from elude_nb.errors import ImageError
from elude_nb.models.hooks import evaluating, for_analysis, intercept, is_intercepted, listen
from elude_nb.models.load import Model, check_model, load_model
from elude_nb.models.outputs import first_tensor, main_tensor, with_first
from elude_nb.models.sites import STREAM, Site, TokenLayout


@knows_arguments
@own_arithmetic()
def embed(model: Model, images: Images) -> Tensor:
    """Return the model's output for each image less the mean over the images, (n, e).

    Any model from `load_model` can be the reference encoder; one that is not the model under study is the fairer judge.
    """
    outputs = outputs_of(model, images)
    return outputs - outputs.mean(0)


def judge(name: str) -> Model:
    """Load a network as a reference encoder: of a classifier, what its last layer looks at is the output.

    Raises what `load_model` raises.
    """
    model = load_model(name)
    network: Any = model.network
    if getattr(network, "num_classes", 0) and hasattr(network, "reset_classifier"):  # timm's networks
        network.reset_classifier(0)
    return replace(model, network=network.eval(), provenance=replace(model.provenance, taken="without its classifier"))


def name_of_judge(embeddings: Any) -> str:
    """Return in words what judges how alike images are; see `reference`."""
    if isinstance(embeddings, Model):
        return embeddings.name
    return embeddings if isinstance(embeddings, str) else "the model itself" if embeddings is None else "embeddings"


@own_arithmetic()
def reference(embeddings: Any, images: ImageSet, progress: bool | None = None, ranks: Ranks | None = None) -> Any:
    """Return reference embeddings of images (n, e): those given, or what a `Model` or the network of a name makes.

    Of a network that is named, it is what its classifier looks at (`judge`); of a `Model`, its output. Of several
    processes each gives the images that are its share, and all get the embeddings of all.
    """
    if isinstance(embeddings, str):
        embeddings = judge(embeddings)
    if not isinstance(embeddings, Model):
        return embeddings
    own = [outputs_of(embeddings.using(progress=progress), images)] if len(images) else []
    outputs = torch.cat((ranks or Ranks()).join(own))
    return outputs - outputs.mean(0)


@own_arithmetic()
def outputs_of(model: Model, images: Images) -> Tensor:
    """Return the model's output for each image, (n, e), on the CPU and in at least float32."""
    check_model(model)
    with evaluating(model.network):
        return torch.cat([_rows(model(batch)) for batch in model.batches(model.inputs(images))])


def check_finite(values: Tensor, inputs: Sequence[Any], numbers: Sequence[int] | Tensor, what: str) -> None:
    """Raise `ImageError` that names the first input whose row of values, (n, ...), is not finite.

    ``numbers`` are the rows' inputs, (n,), and ``what`` is what the values are.
    """
    bad = (~values.isfinite()).flatten(1).any(1).nonzero()
    if len(bad):
        number = int(numbers[int(bad[0])])
        name = inputs.names[number] if isinstance(inputs, ImageSet) else f"image {number}"
        raise ImageError(
            f"{what} are NaN or infinite for {name!r}, though its pixels are not; in half precision try "
            "dtype=torch.float32, otherwise leave it out."
        )


class Overheard:
    """The outputs of a model for the batches that ran, in order, and sketches of these batches."""

    def __init__(self) -> None:
        self.parts: list[Tensor] = []
        self.sketches: list[Tensor] = []

    def join(self, ranks: Ranks) -> None:
        """Take in what other processes heard, in their order."""
        self.parts, self.sketches = ranks.join(self.parts), ranks.join(self.sketches)

    def embeddings(self, distinct: Tensor | slice = slice(None)) -> Tensor:
        """Return what `embed` would make of the images of all batches, (n, e), less the mean of the distinct ones."""
        outputs = torch.cat(self.parts)
        return outputs - outputs[distinct].mean(0)

    def distinct(self, inputs: ImageSet, *, warn: bool = True) -> Tensor:
        """Return the numbers of those inputs, (m,), that the network does not see as copies of earlier ones."""
        if sum(map(len, self.sketches)) != len(inputs):  # a network that is called in a way of its own
            return torch.arange(len(inputs))
        return distinct_numbers(find_originals(torch.cat(self.sketches)), inputs.names, warn=warn)


@contextmanager
def overheard(model: Model, *, wanted: bool = True) -> Iterator[Overheard]:
    """Keep the network's output, if ``wanted``, and a sketch of each batch that passes through it inside the block."""
    found = Overheard()

    def keep(_network: Any, inputs: Any, output: Any) -> None:
        if wanted:
            found.parts.append(_rows(model.output(output)))
        found.sketches += [sketch(batch) for batch in inputs[:1] if isinstance(batch, Tensor)]

    with ExitStack() as stack:
        stack.callback(listen(model.network, after=keep))
        yield found


def _rows(output: Tensor) -> Tensor:
    return for_analysis(output).flatten(1)


Read = Callable[[Model, Tensor], Tensor]
"""From a model and a prepared batch to its outputs, (n, e)."""


def features(model: Model, batch: Tensor) -> Tensor:
    """Return the model's output for a prepared batch, and beside it the mean of its patch tokens, if it has any.

    The two side by side are what DINOv2's linear evaluation takes (arXiv 2304.07193): a model that pools its class
    token alone would not notice if all patch tokens were lost.
    """
    output, patches = output_and_patches(model, batch)
    return output if patches is None else torch.cat([output, patches], dim=1)


def output_and_patches(model: Model, batch: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the two parts of `features`: the output (n, e), and the mean patch token or ``None``."""
    output, tokens = output_and_tokens(model, batch)
    return output, _mean_patch(model, tokens)


def output_and_tokens(model: Model, batch: Tensor) -> tuple[Tensor, Any]:
    """Return the output (n, e), and what the network made of its tokens before it pooled them, or ``None``.

    Of timm's networks these are `forward_features`: after the last block and the norm that follows it. Of others, the
    output's ``last_hidden_state``, where it has one.
    """
    network: Any = model.network
    if not _is_parted(model):
        found = run_network(network, batch)
        tokens = found.get("last_hidden_state") if isinstance(found, Mapping) else None
        return model.tensor_of(found, len(batch)).flatten(1), tokens
    tokens = run_network(network.forward_features, batch)
    return run_network(network.forward_head, tokens).flatten(1), tokens


def _is_parted(model: Model) -> bool:
    parted = hasattr(model.network, "forward_features") and hasattr(model.network, "forward_head")
    return parted and model.output is main_tensor  # the user's choice of an output is not that of forward_head


def _mean_patch(model: Model, tokens: Any) -> Tensor | None:
    if not _is_parted(model) or tokens.ndim != 3:
        return None
    mean: Tensor = tokens[:, getattr(model.network, "num_prefix_tokens", 1) :].mean(1)
    return mean


class FeaturesAndPatches:
    """Reads the `features` of a model and, beside them, its patch tokens after the last block, in one pass.

    Parameters
    ----------
    layout
        Of the tokens at the model's site: where the patches stand among as many tokens.

    Attributes
    ----------
    shape
        Rows, columns and channels (h, w, e) of the patch tokens that were read last; ``None`` if there were none.
    """

    def __init__(self, layout: TokenLayout) -> None:
        self._layout = layout
        self.shape: tuple[int, int, int] | None = None

    def __call__(self, model: Model, batch: Tensor) -> Tensor:
        """Return both as rows, (n, f) or (n, f + h * w * e)."""
        output, tokens = output_and_tokens(model, batch)
        mean, patches = _mean_patch(model, tokens), self._patches(model, tokens)
        self.shape = None if patches is None else (patches.shape[1], patches.shape[2], patches.shape[3])
        return torch.cat([output, *(part.flatten(1) for part in (mean, patches) if part is not None)], dim=1)

    def parts(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the features (n, f) and the patch tokens (n, h, w, e), or ``None``, of such rows."""
        if self.shape is None:
            return rows, None
        width = rows.shape[1] - math.prod(self.shape)
        return rows[:, :width], rows[:, width:].unflatten(1, self.shape)

    def _patches(self, model: Model, found: Any) -> Tensor | None:
        """Return tokens as patches (n, h, w, e); ``None`` where they are no patches or nothing says where these are."""
        if not isinstance(found, Tensor):
            return None
        tokens: Tensor = found
        if tokens.ndim == 4:
            channels_last = str(getattr(model.network, "output_fmt", "NCHW")).endswith("NHWC")
            return tokens if channels_last else tokens.permute(0, 2, 3, 1)
        if tokens.ndim != 3 or self._layout.grid is None or tokens.shape[1] != self._layout.count:
            return None
        rows, columns = self._layout.grid
        patches = tokens[:, self._layout.positions("patch").to(tokens.device)]
        return patches.reshape(len(patches), rows, columns, -1)


class Rest:
    """The network after a site, as a function of what the site's exit module put out.

    What comes before is left out, if on noise that gives the same outputs bit for bit; otherwise, and while an edit is
    active, whole forward passes are made with the exit's output put in. The network itself is not touched, and
    gradients flow from the outputs to what was put in, unless the caller switched them off.

    Of a residual stream, the blocks up to the site are left out. Of a layer, it is the modules before the one in a row
    that has the layer in it: that one runs on what entered it in `capture`, and for batches that were not captured
    whole passes are made.

    Parameters
    ----------
    model, site
        The model and the site.
    read
        What is read of the model: by default its `features`.

    Attributes
    ----------
    skips
        Whether what comes before the site is left out.
    """

    def __init__(self, model: Model, site: Site, read: Read = features) -> None:
        self.model, self.site, self._read = model, site, read
        self._feed, self._enter = _Feed(), _Feed()
        self._entry = None if site.kind == STREAM else _find_entry(model.network, site.exit)
        self._entered = WeakTensorKeyDictionary()  # for each batch that was captured, as long as it is kept elsewhere
        self._short: Model | None = None
        if site.kind == STREAM or self._entry is not None:
            self._short = _without_beginning(model, site, self._feed, self._entry, self._enter)
            if not self._is_right():
                self._short = None
        self.skips = self._short is not None

    def capture(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Run the model as it is; return what the exit module put out, in its own shape, and the outputs (n, e)."""
        seen, entered = list[Tensor](), list[Tensor]()
        network = self.model.network
        with ExitStack() as stack:
            stack.callback(intercept(network.get_submodule(self.site.exit), after=lambda out: _kept(out, seen)))
            if self._entry is not None:
                entry = network.get_submodule(self._entry)
                stack.callback(intercept(entry, before=lambda _, inputs: entered.append(inputs[0])))
            outputs = self._read(self.model, batch)
        if entered:
            self._entered[batch] = entered[-1]
        return seen[-1], outputs

    def __call__(self, batch: Tensor, captured: Tensor) -> Tensor:
        """Return the outputs (n, e) for a batch whose exit module would have put out ``captured``."""
        entered = self._entered.get(batch)
        known = self._entry is None or entered is not None
        if self._short is not None and known and not is_intercepted(self.model.network):  # edits would be lost half-way
            self._feed.value, self._feed.batch, self._enter.value = captured, batch, entered
            try:
                return self._read(self._short, batch)
            finally:
                self._feed.value = self._feed.batch = self._enter.value = None
        return self._whole(batch, captured)

    def _whole(self, batch: Tensor, captured: Tensor) -> Tensor:
        remove = intercept(
            self.model.network.get_submodule(self.site.exit),
            after=lambda out: with_first(out, captured),
        )
        try:
            return self._read(self.model, batch)
        finally:
            remove()

    def _is_right(self) -> bool:
        noise = self.model.noise()
        with evaluating(self.model.network):
            captured, outputs = self.capture(noise)
            other = captured.flip(-1)  # a network whose forward was replaced may not care what is put in
            try:
                return torch.equal(self(noise, captured), outputs) and torch.equal(
                    self(noise, other), self._whole(noise, other)
                )
            except (RuntimeError, TypeError, AttributeError, ValueError, IndexError):
                return False  # nothing can be left out here; whole passes can always be made


class _Feed(nn.Module):
    """Puts out what it was given, whatever comes in; ``batch`` is what the network runs on meanwhile."""

    value: Tensor | None = None
    batch: Tensor | None = None

    def forward(self, *_: Any, **__: Any) -> Tensor | None:
        return self.value


class _Skip(nn.Module):
    """Hands on what comes in."""

    def forward(self, inputs: Any, *_: Any, **__: Any) -> Any:
        return inputs


def _kept(output: Any, seen: list[Tensor]) -> Any:
    seen.append(first_tensor(output))
    return output


def _find_entry(network: nn.Module, exit_: str) -> str | None:
    """Return the innermost module on the way to a layer that follows others in a row, or at the top; ``None`` if none.

    Only in a row, or at the top, does what enters a module tell all that came before it.
    """
    parts = exit_.split(".")
    found = None
    for depth in range(len(parts)):
        owner = network.get_submodule(".".join(parts[:depth]))
        if _before(owner, parts[depth]) and (not depth or isinstance(owner, nn.Sequential | nn.ModuleList)):
            found = ".".join(parts[: depth + 1])
    return found


def _without_beginning(model: Model, site: Site, feed: _Feed, entry: str | None, enter: nn.Module) -> Model:
    """Return the model with the exit module fed and what comes before it skipped; its parameters are the model's own.

    With an ``entry`` that is what comes before the entry, which is fed by ``enter``.
    """
    path, _, last = site.exit.rpartition(".")
    owners = path.split(".") if path else []
    network = _shallow(model.network)
    owner, skipping = network, len(owners) + 1 if entry is None else entry.count(".") + 1
    for depth, name in enumerate([*owners, last]):
        before = _before(owner, name)
        if depth < skipping:
            for each in before:
                # At the top these are the embedding and the like, whose parts the network may use otherwise.
                once = None if depth else _once(owner._modules[each], feed, skips=entry is not None)
                owner._modules[each] = once or _Skip()
            if entry is not None and depth == skipping - 1:
                owner._modules[before[-1]] = enter
        inner = feed if depth == len(owners) else _shallow(owner._modules[name])
        owner._modules[name] = inner
        owner = inner
    return replace(model, network=network)


def _before(owner: nn.Module, name: str) -> list[str]:
    """Return the names of the modules of one that stand before another of its modules."""
    names = list(owner._modules)
    return [each for each in names[: names.index(name)] if owner._modules[each] is not None]


def _once(module: nn.Module | None, feed: _Feed, *, skips: bool) -> nn.Module:
    """Return a module that computes what it makes of a batch once, however often the network runs on the batch.

    On anything else it computes as ever or, if it ``skips``, hands on what comes in.
    """
    made, known = _shallow(module), WeakTensorKeyDictionary()  # for each batch, as long as it is kept elsewhere
    compute: Any = module.forward  # type: ignore[union-attr]

    def forward(*inputs: Any, **named: Any) -> Any:
        if named or len(inputs) != 1 or inputs[0] is not feed.batch:
            return inputs[0] if skips else compute(*inputs, **named)
        if feed.batch not in known:
            known[feed.batch] = compute(*inputs)
        return known[feed.batch]

    vars(made)["forward"] = forward
    return made


def _shallow(module: nn.Module | None) -> nn.Module:
    """Return a module with the same parameters whose submodules can be replaced without touching the original."""
    if module is None:
        raise TypeError("A module on the way to the site is None.")
    made = copy.copy(module)
    vars(made)["_modules"] = dict(module._modules)
    return made
