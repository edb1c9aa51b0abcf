"""How far two sets of outputs lie apart, gathered batch by batch."""

from __future__ import annotations

import functools
import html
import json
import math
import operator
import statistics
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from elude_nb._util.arguments import knows_arguments
from elude_nb._util.arithmetic import own_arithmetic, run_network
from elude_nb._util.checks import check_count
from elude_nb._util.progress import announced
from elude_nb._util.ranks import together
from elude_nb._util.words import counted
from elude_nb.core.explicit import weights_add_up
from elude_nb.core.one_pass import own_share
from elude_nb.core.readout import Lens, Readout
from elude_nb.core.result import Disentanglement, check_split
from elude_nb.core.routing import NO_CONCEPT
from elude_nb.data.images import Images
from elude_nb.errors import ExactnessError
from elude_nb.models.forward import check_finite
from elude_nb.models.hooks import Tap, as_dtype, as_tokens, clean_copy, evaluating, listen
from elude_nb.models.layers import quantised_layers
from elude_nb.models.load import Model
from elude_nb.models.outputs import first_tensor, output_tensor
from elude_nb.models.sites import Site


@dataclass(frozen=True)
class Difference:
    """How far one set of outputs is from another.

    Attributes
    ----------
    identical
        Whether all values are equal.
    max_abs_diff
        Largest absolute difference.
    max_rel_diff
        The same over the largest absolute value of the reference.
    max_ulp_diff
        Largest distance in units in the last place (floating-point numbers between two values; at values that cancel
        to nearly 0 it is large for tiny differences).
    top1_agreement
        Share of outputs whose largest entry is the same one.
    values
        How many values were compared.
    """

    identical: bool
    max_abs_diff: float
    max_rel_diff: float
    max_ulp_diff: int
    top1_agreement: float
    values: int


class Comparison:
    """Gathers differences over batches."""

    def __init__(self) -> None:
        self._identical, self._abs, self._largest, self._ulp = True, 0.0, 0.0, 0
        self._same_top, self._rows, self._values = 0, 0, 0

    def add(self, reference: Tensor, other: Tensor) -> None:
        """Take in the outputs of one batch, (n, ...) each."""
        self._identical &= torch.equal(reference, other)
        apart = (reference.double() - other.double()).abs().nan_to_num(torch.inf, posinf=torch.inf)
        self._abs = max(self._abs, float(apart.masked_fill(reference == other, 0).max()))  # inf equals inf
        self._largest = max(self._largest, float(reference.abs().max()))
        self._ulp = max(self._ulp, _ulps(reference, other))
        same = reference.argmax(-1) == other.argmax(-1)
        self._same_top += int(same.sum())
        self._rows += same.numel()
        self._values += reference.numel()

    def __add__(self, other: Comparison) -> Comparison:
        """Return what both have taken in."""
        found = Comparison()
        found._identical = self._identical and other._identical
        for name in ("_abs", "_largest", "_ulp"):
            setattr(found, name, max(getattr(self, name), getattr(other, name)))
        for name in ("_same_top", "_rows", "_values"):
            setattr(found, name, getattr(self, name) + getattr(other, name))
        return found

    def result(self) -> Difference:
        """Return the difference over all that was taken in."""
        relative = self._abs / self._largest if self._largest else self._abs
        agreement = self._same_top / self._rows
        return Difference(self._identical, self._abs, relative, self._ulp, agreement, self._values)


def _ulps(reference: Tensor, other: Tensor) -> int:
    """Return the largest distance in units in the last place; numbers of unlike sign would overflow a difference."""
    a, b = ordered(reference), ordered(other)
    alike = (a < 0) == (b < 0)
    return int(torch.where(alike, (a - b).abs().double(), a.double().abs() + b.double().abs()).max())


def ordered(values: Tensor) -> Tensor:
    """Map floats to whole numbers so that neighbours differ by 1: the distance is one in units in the last place."""
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[values.dtype.itemsize]
    bits = values.contiguous().view(whole).long()
    return torch.where(bits >= 0, bits, torch.iinfo(whole).min - bits)


CONFIDENCE = 8.0
"""lambda of the rounding bound; Higham and Mary bound its failure by about 2 s exp(-lambda^2 / 2) = 6e-10 a sum."""

_LENS_AND_BOUND = 2.3
"""Time of a pass with a lens and of one that gathers the rounding bound, over the model's alone; of DINOv2 on a CPU."""

FLOAT64_LIMIT = 1e-12
"""Largest difference of the explicit network's outputs in float64, relative to the largest output."""


@dataclass(frozen=True)
class Certificate:
    """What `verify` found.

    Attributes
    ----------
    lens
        Outputs with the lens attached, against the model alone. Must be identical.
    explicit
        Outputs of the explicit network against the model.
    explicit_site
        The channels at the site, at all tokens, in the explicit network against the model.
    site_bound_used
        Largest ratio of a difference at the site to its rounding bound; at most 1.
    lens_float64, explicit_float64
        The two comparisons of outputs once more, all networks in float64: tells a bug from rounding.
    weights_partition_exact
        Whether the units' weights add up to the original weights bit for bit.
    time_ratio
        Time of the explicit network over the model's, whole forward passes (median of the batches, one run).
    lens_time_ratio
        The same with the lens reading out ``lens_readouts`` numbers a token.
    layer_time_ratio
        Time of the site alone (its layer, or the blocks of its window), explicit over original.
    images, images_given, images_float64
        How many images were run, of how many that were given, and how many of them in float64.
    """

    lens: Difference
    explicit: Difference
    explicit_site: Difference
    site_bound_used: float
    lens_float64: Difference
    explicit_float64: Difference
    weights_partition_exact: bool
    time_ratio: float
    lens_time_ratio: float
    layer_time_ratio: float
    lens_readouts: int
    images: int
    images_given: int
    images_float64: int
    dtype: str
    device: str
    threads: int
    torch: str

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as plain numbers and dictionaries."""
        return asdict(self)

    def to_json(self) -> str:
        """Return all figures as JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def problems(self) -> list[str]:
        """Return what is not as it should be, in words; empty when all is well."""
        found = []
        for lens in (self.lens, self.lens_float64):
            if not lens.identical:
                found.append(f"the lens changed the outputs by up to {lens.max_abs_diff:.3g}; it must change nothing")
        if not self.weights_partition_exact:
            found.append("the units' weights do not add up to the original weights")
        if not self.site_bound_used <= 1:
            found.append(f"the explicit site left its rounding bound by a factor of {self.site_bound_used:.3g}")
        if not self.explicit_float64.max_rel_diff <= FLOAT64_LIMIT:
            found.append(
                f"in float64 the explicit network differs by {self.explicit_float64.max_rel_diff:.3g} of the largest "
                f"output (at most {FLOAT64_LIMIT:g}); that is no rounding"
            )
        return found

    def __str__(self) -> str:
        lines = [f"{name}: {value}" for name, value in self._lines()]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)

    def _lines(self) -> list[tuple[str, str]]:
        exact = "bit for bit" if self.weights_partition_exact else "NO"
        return [
            ("largest change of the output (lens)", f"{self.lens.max_abs_diff}"),
            (
                "explicit network, largest difference",
                f"{self.explicit.max_abs_diff:.2g} ({self.explicit.max_rel_diff:.1g} of the largest output, "
                f"{self.explicit.max_rel_diff / torch.finfo(getattr(torch, self.dtype)).eps:.1f} times its eps)",
            ),
            ("explicit network, equal top-1", f"{self.explicit.top1_agreement:.2%}"),
            (
                "at the site, largest difference",
                f"{self.explicit_site.max_abs_diff:.2g} ({self.site_bound_used:.1%} of the rounding bound)",
            ),
            (
                "both in float64",
                f"lens {self.lens_float64.max_abs_diff}, explicit network {self.explicit_float64.max_abs_diff:.2g}",
            ),
            ("split weights add up to the originals", exact),
            (
                "time, over the model alone",
                f"lens {self.lens_time_ratio:.2f} ({self.lens_readouts} read-outs a token), "
                f"explicit {self.time_ratio:.2f} (the site's blocks alone {self.layer_time_ratio:.2f})",
            ),
            (
                "measured on",
                f"{_some_of(self.images, self.images_given)} ({self.images_float64} in float64), {self.dtype}, "
                f"{self.device}, {self.threads} threads, torch {self.torch}",
            ),
        ]

    def _repr_html_(self) -> str:
        body = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
            for name, value in self._lines()
        )
        return f"<table><caption>Certificate of exactness</caption>{body}</table>"


@knows_arguments
@own_arithmetic()
def verify(
    split: Disentanglement,
    images: Images,
    *,
    max_images: int | None = 16,
    batch_size: int | None = None,
    images_float64: int = 4,
    strict: bool = True,
    progress: bool | None = None,
) -> Certificate:
    """Compare lens and explicit network with the original model over all outputs of ``images``, or of 16 of them.

    Parameters
    ----------
    split
        What to verify.
    images
        On which images.
    max_images
        How many of them are run at most, drawn with `ImageSet.sample`; ``None`` runs all. Each costs several forward
        passes, and the certificate hardly depends on how many there are.
    batch_size
        Images in one forward pass; the same for all networks, since it decides how sums are ordered.
    images_float64
        How many of the images are run in float64 too.
    strict
        Raise if a figure is not as it should be; otherwise only report (`Certificate.problems`).
    progress
        Say beforehand how long it takes, and show a progress bar.

    Returns
    -------
    Certificate

    Raises
    ------
    ImageError
        If the pixels or the model's outputs for an image are NaN or infinite; the message names it.
    ExactnessError
        If the lens is not bit-identical; if a channel of the explicit network differs from the model's by more than
        ``2 lambda sqrt(s) u`` times the sum of its contributions' absolute values, ``u`` the unit roundoff, ``s`` the
        length of the sum and lambda = 8 (Higham and Mary, SIAM J. Sci. Comput. 41, 2019, theorem 2.4, for each of two
        orders of summation); if the outputs differ by more than 1e-12 of the largest in float64; or if quantised
        layers cannot be run in float64.
    """
    check_split(split, "verify", thorough=True)
    check_count("images_float64", images_float64)
    given = split.model.inputs(images)
    if not len(given):
        raise ValueError("There are no images to verify on.")
    photos = given if max_images is None else given.sample(check_count("max_images", max_images))
    usual = min(8, split.model.batch_size)  # three networks are held at once
    model = split.model.using(batch_size=usual if batch_size is None else batch_size, progress=progress)
    network, site = model.network, split.site
    explicit = split.explicit()
    _check_float64(split.model)
    readout = _lens_readout(split)
    lens_found, outputs, channels = Comparison(), Comparison(), Comparison()
    clock = _Clock(min(model.batch_size, len(photos)))
    used, done = 0.0, 0
    with evaluating(network), together() as ranks:
        _, own = own_share(photos, ranks)
        if not ranks.first:
            model = model.using(progress=False)
        # CUDA chooses its kernels by the size of a batch; elsewhere one image warms up as well, and sooner.
        few = photos[: min(model.batch_size, len(photos)) if model.device.type == "cuda" else 1]
        passes = _seconds_to_compare(network, explicit, model.prepare(few)) / len(few) * len(own)
        doubles = announced(
            model.using(batch_size=1).batches(photos[:images_float64], ""),  # one at a time, to spare memory
            f"verify: {_some_of(len(photos), len(given))}",
            lambda one: one * min(images_float64, len(photos)) + passes,
            show=model.progress,
        )
        in_float64: Any = ranks.from_first(_in_float64(split, explicit, readout, doubles) if ranks.first else None)
        for batch in model.batches(own, "verify", announce=False):
            plain = clock.run("model", network, site, batch)
            check_finite(plain.output, own, range(done, done + len(batch)), "The model's outputs")
            done += len(batch)
            ranks.check()
            with Lens(network, site, readout):
                lensed = clock.run("lens", network, site, batch)
            apart = clock.run("explicit", explicit, site, batch)
            lens_found.add(plain.output, lensed.output)
            outputs.add(plain.output, apart.output)
            channels.add(plain.channels, apart.channels)
            bound = _rounding_bound(split, batch)
            used = max(used, float(((plain.channels - apart.channels).abs().double() / bound).max()))
        several = ranks.all((lens_found, outputs, channels, clock))
        lens_found, outputs, channels, clock = (
            functools.reduce(operator.add, each) for each in zip(*several, strict=True)
        )
        used, (lens_float64, explicit_float64) = max(ranks.all(used)), in_float64
    certificate = Certificate(
        lens=lens_found.result(),
        explicit=outputs.result(),
        explicit_site=channels.result(),
        site_bound_used=used,
        lens_float64=lens_float64,
        explicit_float64=explicit_float64,
        weights_partition_exact=weights_add_up(network, explicit, site),
        time_ratio=clock.ratio("explicit"),
        lens_time_ratio=clock.ratio("lens"),
        layer_time_ratio=clock.ratio("explicit", at_site=True),
        lens_readouts=readout.matrix.shape[1],
        images=len(photos),
        images_given=len(given),
        images_float64=min(images_float64, len(photos)),
        dtype=str(split.model.dtype).removeprefix("torch."),
        device=str(split.model.device),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
    )
    if strict and certificate.problems():
        raise ExactnessError("; ".join(certificate.problems()) + ".")
    return certificate


def _some_of(count: int, total: int) -> str:
    return f"{'' if count == total else f'{count:,} of '}{counted(total, 'image')}"


def _lens_readout(split: Disentanglement) -> Readout:
    """Return the concepts' read-outs, or where there are none as many units, for a lens at work."""
    if bool((split.routing.concepts != NO_CONCEPT).any()):
        return split.concept_readout()
    channels, units = (rows[: len(split.book)].tolist() for rows in split.routing.rows())
    return split.unit_readout(list(zip(channels, units, strict=True)))


@dataclass(frozen=True)
class _Pass:
    output: Tensor
    channels: Tensor


class _Clock:
    """Runs forward passes, times them whole and at the site, and keeps output and channels."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._whole: dict[str, list[float]] = {}
        self._site: dict[str, list[float]] = {}

    def run(self, name: str, network: nn.Module, site: Site, batch: Tensor) -> _Pass:
        marks: list[float] = []
        seen: list[Tensor] = []

        def leave(_: nn.Module, __: Any, output: Any) -> None:
            marks.append(_now(batch))
            found = first_tensor(output)
            seen.append(as_tokens(found, channels_last=site.kind != "convolution").clone())

        with ExitStack() as stack:
            entry, last = network.get_submodule(site.entry), network.get_submodule(site.exit)
            stack.callback(listen(entry, before=lambda *_: marks.append(_now(batch))))
            stack.callback(listen(last, after=leave))
            start = _now(batch)
            output = output_tensor(run_network(network, batch))
            if len(batch) == self._batch_size:  # a last, smaller batch would skew the medians
                self._whole.setdefault(name, []).append(_now(batch) - start)
                self._site.setdefault(name, []).append(marks[-1] - marks[0])
        return _Pass(output, seen[0])

    def __add__(self, other: _Clock) -> _Clock:
        """Return a clock with the times of both."""
        found = _Clock(self._batch_size)
        for times in ("_whole", "_site"):
            one, two = getattr(self, times), getattr(other, times)
            setattr(found, times, {name: one.get(name, []) + two.get(name, []) for name in one | two})
        return found

    def ratio(self, name: str, *, at_site: bool = False) -> float:
        """Return the median of ``name`` over the median of the model."""
        times = self._site if at_site else self._whole
        return statistics.median(times[name]) / statistics.median(times["model"])


def _now(batch: Tensor) -> float:
    """Return the time; a GPU first finishes what it was told to do."""
    if batch.device.type == "cuda":
        torch.cuda.synchronize(batch.device)
    return time.perf_counter()


def _seconds_to_compare(network: nn.Module, explicit: nn.Module, batch: Tensor) -> float:
    """Warm up both networks; return about how long a batch takes: both, the lens, and the bound on the rounding."""
    run_network(network, batch)
    start = _now(batch)
    run_network(network, batch)
    alone = _now(batch) - start
    run_network(explicit, batch)
    return _now(batch) - start + (_LENS_AND_BOUND * alone)


def _rounding_bound(split: Disentanglement, batch: Tensor) -> Tensor:
    """Return how far two orders of adding a channel's contributions can lie apart, (n, t, d), float64."""
    network, site = split.model.network, split.site
    unscaled = replace(site, norm=None)  # the layer's own output, before a BatchNorm
    weights = [weight.abs() for weight in unscaled.weights(network)]
    total: list[Tensor] = []

    def add(tensor: Tensor) -> None:
        total[:] = [total[0] + tensor.double() if total else tensor.double()]

    with Tap(
        network,
        unscaled,
        on_source=lambda number, sources: add(sources.abs() @ weights[number].T),
        on_entering=lambda entering: add(entering.abs()),
    ):
        run_network(network, batch)
    length = site.sources * site.kernel + 2 * len(site.terms) + split.routing.units + 2
    unit_roundoff = torch.finfo(split.model.dtype).eps / 2
    for term in site.terms:  # each bias by itself: those of several layers may cancel in the sum
        add(replace(unscaled, terms=(term,)).bias(network).abs())
    sizes = total[0]
    return 2 * CONFIDENCE * math.sqrt(length) * unit_roundoff * sizes.clamp(min=torch.finfo(torch.float32).tiny)


def _check_float64(model: Model) -> None:
    """Raise `ExactnessError` if quantised layers keep the network from running in float64."""
    whole = quantised_layers(model.network)
    if not whole:
        return
    try:
        with evaluating(model.network):
            run_network(clean_copy(model.network).cpu().double(), as_dtype(model.noise().cpu(), torch.float64))
    except RuntimeError as error:
        raise ExactnessError(
            f"verify runs the network in float64 too, which its quantised layers, such as {whole[0]!r}, do not take; "
            "verify a split of the network as it was before it was quantised."
        ) from error


def _in_float64(
    split: Disentanglement, explicit: nn.Module, readout: Readout, batches: Iterable[Tensor]
) -> tuple[Difference, Difference]:
    """Compare lens and explicit network with the model, all as float64 copies."""
    lensed, apart = Comparison(), Comparison()
    network, explicit = (clean_copy(x).cpu().double() for x in (split.model.network, explicit))
    readout = Readout(readout.matrix.double(), readout.offset.double(), readout.entering)
    for given in batches:
        batch = as_dtype(given.cpu(), torch.float64)  # on the CPU: not every device has float64
        plain = output_tensor(run_network(network, batch))
        with Lens(network, split.site, readout):
            lensed.add(plain, output_tensor(run_network(network, batch)))
        apart.add(plain, output_tensor(run_network(explicit, batch)))
    return lensed.result(), apart.result()
