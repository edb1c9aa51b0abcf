"""What a disentanglement found: sub-units, their tables and activations; saved to and loaded from one file."""

from __future__ import annotations

import hashlib
import html
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from elude_nb._util.arguments import knows_arguments
from elude_nb._util.arithmetic import own_arithmetic
from elude_nb._util.checks import check_count, check_fraction, check_kind, check_unit
from elude_nb._util.files import sha256_of_tensors
from elude_nb._util.progress import say
from elude_nb._util.tables import Table
from elude_nb._util.warn import warn_caller
from elude_nb._util.words import counted
from elude_nb.core.concepts import ConceptBook
from elude_nb.core.distinct import THRESHOLD, choose_covering, choose_unlike, count_copies, spread, standardise
from elude_nb.core.edit import Edit
from elude_nb.core.explicit import check_explicit, explicit_network
from elude_nb.core.names import UniqueNames
from elude_nb.core.plan import check_splittable
from elude_nb.core.readout import Lens, Readout, is_flat, read_largest, read_out
from elude_nb.core.recording import Recording, record
from elude_nb.core.routing import NO_CONCEPT, Routing, means_on_concepts, values_on_groups
from elude_nb.core.saving import Settings, Stamp, read_split, write_split
from elude_nb.core.seen import Seen
from elude_nb.core.steer import Steering
from elude_nb.core.tables import (
    channel_table,
    concepts_of,
    contribution_table,
    distinct_table,
    summary,
    top_table,
    unit_table,
)
from elude_nb.data.copies import check_enough
from elude_nb.data.images import Images, ImageSet
from elude_nb.models.forward import overheard
from elude_nb.models.hooks import check_pristine, for_analysis
from elude_nb.models.load import Model
from elude_nb.models.sites import STREAM, Site

_NAMELESS = {
    "weight",
    "identity",
    "means_on_concepts",
    "signs",
    "_all_concepts",
    "_all_units",
    "copies",
    "_on_groups",
    "_places",
}


@dataclass(frozen=True, eq=False)
class Disentanglement:
    """The channels of one site, split into sub-units; the model is as it was.

    A unit is named by a pair (channel, number). Number 0 is the channel's rest; 1 to k are its sub-units. All
    units of a channel add up to the channel.

    Attributes
    ----------
    model, site, routing, book
        The model, the site, which contribution goes where, and the concept book.
    settings
        How this was made.
    channel_variance
        Variance of each channel over the recorded tokens, (d,).
    unit_shares
        Share of its channel's variance that each unit carries, (d, k + 1): the covariance of unit and channel over the
        variance of the channel. Shares of a channel add up to 1; a share is negative where the covariance is.
    names
        Names of concepts, from `with_names`; empty at first. They are saved with the rest, and so are
        ``names.descriptions``, shown where a concept has no name.
    seen
        Hashes of the images of the discovery, (n,), or ``None`` if they are not known: see `count_seen`.
    stamp
        What tells that the model's weights are still those that were split; made if not given.
    """

    model: Model
    site: Site
    routing: Routing
    book: ConceptBook
    settings: Settings
    channel_variance: Tensor
    unit_shares: Tensor
    names: UniqueNames = field(default_factory=UniqueNames)
    seen: Tensor | None = None
    stamp: Stamp | None = None

    def __post_init__(self) -> None:
        if self.stamp is None:  # copies with other names or settings keep that of the original
            vars(self)["stamp"] = Stamp(self.model)

    @knows_arguments
    def check_model(self, purpose: str = "", *, thorough: bool = False) -> None:
        """Check that the model is still the one that was split, and with a ``purpose``, that no edit is active on it.

        Parameters
        ----------
        purpose
            What needs the model without an edit; the message names it. Empty for what may run inside an edit.
        thorough
            Whether to hash all weights, rather than look whether they were touched.

        Raises
        ------
        EditError
            If an edit is active on the model.
        ModelMismatchError
            If its weights changed after the split was made.
        """
        if purpose:
            check_pristine(self.model.network, purpose)
        if self.stamp is not None:
            self.stamp.check(self.model, thorough=thorough)

    @knows_arguments
    def count_seen(self, images: Images) -> Seen:
        """Return how many of these images the discovery saw; the same pixels in another file count as seen.

        Images that were not opened yet are opened.
        """
        chosen = self.model.inputs(images)
        return Seen(None if self.seen is None else int(self._is_seen(chosen).sum()), len(chosen))

    @knows_arguments
    def announce_seen(self, images: Images, what: str) -> Seen:
        """Return `count_seen`, and say on standard error if the discovery saw some: figures, ``what``, rest on them."""
        counted = self.count_seen(images)
        if counted.warning and self.model.progress:
            say(f"{what}: {counted.warning}")
        return counted

    @knows_arguments
    def unseen(self, images: Images) -> ImageSet:
        """Return those of these images that the discovery did not see.

        Raises
        ------
        ValueError
            If it saw all of them, or it is not known which, as for files of version 0.2.
        """
        chosen = self.model.inputs(images)
        if self.seen is None:
            raise ValueError("It is not known which images the discovery saw: this split does not say. Make it anew.")
        new = np.flatnonzero(~self._is_seen(chosen))
        if not len(new):
            raise ValueError(f"The discovery saw all of these {len(chosen)} images; give others.")
        return chosen.subset(new)

    def _is_seen(self, images: ImageSet) -> np.ndarray[Any, np.dtype[np.bool_]]:
        return np.isin(images.hashes(), () if self.seen is None else self.seen.numpy())

    # ---------------------------------------------------------------- tables

    @property
    @own_arithmetic()
    def units(self) -> pd.DataFrame:
        """One row a unit: ``channel``, ``unit``, ``concept``, ``sources``, ``share_of_variance``, ``mean_on_concept``.

        ``sources`` are those that the unit has a part in; where the published rule shares some, ``exclusive_sources``
        are those that it has alone, and a sub-unit without any is dead. ``mean_on_concept`` is the unit's mean (above
        its overall mean) on the tokens of its concept. Unit 0 of a channel is what no sub-unit owns, or the whole
        channel where it was not split; it has no concept.
        """
        return Table(self._unit_table.copy())

    @cached_property
    @own_arithmetic()
    def _unit_table(self) -> pd.DataFrame:
        return unit_table(self.routing, self.unit_shares, self.means_on_concepts, self.names)

    @property
    def live_units(self) -> pd.DataFrame:
        """The rows of `units` that are live sub-units: see `Routing.live`."""
        return self._unit_table[self.routing.live()[self.routing.rows()].numpy()].copy()

    @knows_arguments
    @own_arithmetic()
    def distinct_units(
        self,
        n: int | None = None,
        *,
        threshold: float = THRESHOLD,
        images: Images | None = None,
        tokens: str | None = None,
        tokens_per_image: int | None = None,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Return one sub-unit for each meaning that many channels share, with its copies in other channels.

        Parameters
        ----------
        n
            How many: those that together are high on as many images as possible, among those that five others resemble
            (`elude_nb.core.distinct.choose_covering`). Without it, as many as are unlike each other: sub-units are gone
            through by separation, the best first, and kept unless one kept before correlates above the threshold.
            Separation is the mean on the sub-unit's concept over the standard deviation of its means over all groups of
            tokens.
        threshold
            Correlation above which two sub-units mean the same, 0 to 1.
        images, tokens, tokens_per_image, seed
            Correlations are over these images, of the sub-unit's largest activation over an image's tokens (by default
            all of the discovery's kind; or as many as are drawn with ``seed``). Best are the images of the discovery.
            Without images, over the groups of tokens of the concept book: no forward pass is needed, but there are only
            as many groups as concepts.

        Returns
        -------
        DataFrame
            One row a distinct sub-unit, the best first: ``channel``, ``unit``, ``concept``, ``name`` (if any concept
            has one), ``copies`` (how many sub-units of other channels correlate with it above the threshold),
            ``copied_by`` (their pairs of channel and number; one may be in several lists) and ``coverage_gained``, the
            share of all that live sub-units cover that it adds to those above it.

        Raises
        ------
        ValueError
            If ``n`` is more than there are live sub-units, the threshold is no share, or there are fewer than two
            images.

        Examples
        --------
        ``split.distinct_units(40)``, or ``split.distinct_units(threshold=0.9, images=images)``.
        """
        check_fraction("threshold", threshold)
        live = self.live_units
        if n is not None:
            check_count("n", n, 1, len(live))
        rows = self.routing.live_rows()
        standard = standardise(self._on_groups, self.book.counts)
        if images is not None:
            self.check_model()
            readout = self.live_readout()
            how: dict[str, Any] = {"tokens": tokens or self.settings.tokens, "tokens_per_image": tokens_per_image}
            standard = standardise(read_largest(self.model, self.model.inputs(images), self.site, readout, seed, **how))
        if n is None:
            separation = self.means_on_concepts[rows].abs() / spread(self._on_groups, self.book.counts)
            chosen = choose_unlike(standard, separation, threshold)
        else:
            chosen = choose_covering(standard, n, threshold=threshold)
        return distinct_table(live, standard, chosen, threshold)

    @cached_property
    @own_arithmetic()
    def copies(self) -> Tensor:
        """How many sub-units of other channels copy each, (d, k + 1): see `distinct_units`, without images."""
        channels, numbers = self.routing.live_rows()
        counts = torch.zeros(self.routing.concepts.shape[0], self.routing.units + 1, dtype=torch.int64)
        counts[channels, numbers] = count_copies(standardise(self._on_groups, self.book.counts), channels)
        return counts

    @property
    def channels(self) -> pd.DataFrame:
        """One row a channel: ``split`` or not, ``units`` (unit 0 not counted), ``reason``, ``variance``."""
        return Table(self._channel_table.copy())

    @cached_property
    def _channel_table(self) -> pd.DataFrame:
        return channel_table(self.routing, self.channel_variance)

    @knows_arguments
    @own_arithmetic()
    def contributions(
        self,
        channel: int,
        unit: int,
        images: Images | None = None,
        *,
        tokens: str | None = None,
    ) -> pd.DataFrame:
        """Return the contributions behind one unit, the strongest first.

        Parameters
        ----------
        channel, unit
            The unit.
        images, tokens
            Average over these tokens (by default those of the discovery) of these images; without images, over the
            tokens of the unit's concept (unit 0 has none: images are needed).

        Returns
        -------
        DataFrame
            One row a source: ``layer``, ``block``, ``part``, ``index``, ``head``, and its mean ``contribution`` above
            the mean over all recorded tokens; of a source that several units share, the unit's part of it.
        """
        row = self._rows_of([(channel, unit)])[0]
        concept = int(concepts_of(self.routing, *(rows[row : row + 1] for rows in self.routing.rows())))
        if images is None and concept == NO_CONCEPT:
            raise ValueError(f"Unit {(channel, unit)} has no concept; say on which images: images=...")
        centre = self.book.source_mean()
        means = self.book.mean_sources()[concept] if images is None else self._mean_sources(images, tokens) - centre
        share = self.routing.fractions(channel)[unit].to(self.weight)
        return contribution_table(self.model.network, self.site, self.weight[channel] * means, share)

    # --------------------------------------------------------------- names

    @knows_arguments
    def using(
        self, *, batch_size: int | None = None, progress: bool | None = None, workers: int | None = None
    ) -> Disentanglement:
        """Return the same disentanglement whose model runs with other settings: see `Model.using`."""
        return self._with(model=self.model.using(batch_size=batch_size, progress=progress, workers=workers))

    @knows_arguments
    def with_names(self, names: Mapping[int, str], labels: Mapping[int, str] | None = None) -> Disentanglement:
        """Return the same disentanglement with these concepts named (or renamed); ``""`` takes a name away.

        Parameters
        ----------
        names
            One name for each of these concepts; such as ``name_concepts(...).names``, which bring descriptions of
            the other concepts along, or ``describe_concepts(...)``, which are descriptions alone.
        labels
            Which label a name stands for, where it is another text: see `concepts_named`. By default what ``names``
            brings along, as those of `name_concepts` do.

        Raises
        ------
        TypeError, ValueError
            If a concept does not exist, a name or label is no text, two concepts would have the same name, or a
            label is given for a concept that is not named here.

        Examples
        --------
        ``split = split.with_names({12: "cat"})``; then ``Edit.scale(concept="cat", by=0.0)``.
        """
        return self._with(names=self.names.updated(names, labels, len(self.book)))

    @knows_arguments
    def concept_title(self, concept: int, *, number: bool = False) -> str:
        """Return how a concept is called in menus, figures and tables: its name, else what describes it.

        Without either it is ``"concept 35"``; with ``number``, ``"concept 35: rocket-like, 4 of 6 images"``.

        Raises
        ------
        TypeError, ValueError
            If there is no such concept.
        """
        return self.names.title(check_count("concept", concept, 0, len(self.book) - 1), number=number)

    @property
    def labels(self) -> dict[int, str]:
        """Which label the name of each concept stands for; where no label is known, the name itself."""
        return self.names.all_labels

    def _with(self, **changed: Any) -> Disentanglement:
        """Return a copy with some fields changed that has all that was worked out of the others, which takes time."""
        made = replace(self, **changed)
        vars(made).update({name: value for name, value in vars(self).items() if name in _NAMELESS})
        return made

    @knows_arguments
    def concepts_named(self, name: str) -> list[int]:
        """Return the concepts whose name stands for this label: ``"cat"``, ``"cat (2)"`` and so on for ``"cat"``.

        What a name stands for is stored beside it (`labels`) and never read out of its text, since a number in brackets
        may belong to the label: "Apollo (11)". If nothing stands for this label, the concept of this very name is
        returned. Files of version 0.2 have names without labels: there only the very name counts, and a warning says
        which others look like it.

        Raises
        ------
        ValueError
            If there is none.
        """
        return self.names.concepts_of(name)

    # ----------------------------------------------------------- activations

    @knows_arguments
    @own_arithmetic()
    def activations(
        self,
        images: Images,
        units: Sequence[tuple[int, int]] | None = None,
        *,
        tokens: str | None = None,
        batch_size: int | None = None,
        progress: bool | None = None,
    ) -> Tensor:
        """Return the activations of chosen units (all, if ``None``, in the order of ``self.units``) on new images.

        ``tokens`` are by default those of the discovery. Routes found on patches can be read at the class token too;
        they are then as good as the two kinds of token are alike.

        Returns
        -------
        Tensor
            (n, u) for sites or choices with one token an image (``tokens="class"``), else (n, t, u). Sub-units are
            centred: 0 is their mean over the recorded tokens. Unit 0 holds the rest, so that the sum is the channel.
            Where a sentence has no token (padding) all are NaN.
            A unit whose `signs` entry is -1 is lowest on its concept.
        """
        readout = self.unit_readout(units)
        return self._read(readout, images, tokens, batch_size, progress)

    @knows_arguments
    @own_arithmetic()
    def top_images(
        self,
        channel: int,
        unit: int,
        images: Images,
        k: int = 9,
        *,
        tokens: str | None = None,
        batch_size: int | None = None,
        progress: bool | None = None,
    ) -> pd.DataFrame:
        """Return the images on which a unit is highest, or lowest if its `signs` entry is -1, the best first.

        Of images that are copies, the first counts; a warning says how many there are. `elude_nb.find_exemplars` finds
        the same images, with heat maps, if both look at patches.

        Parameters
        ----------
        channel, unit
            The unit.
        images
            Where to look.
        k
            How many.
        tokens
            At which tokens; by default those of the discovery.
        batch_size, progress
            In place of the model's own settings.

        Returns
        -------
        DataFrame
            One row an image: ``rank`` (1 is the best), ``image`` (its number in the set), ``file`` (its name),
            ``label`` (if there are any), ``value`` (the activation at the token where it is highest, or lowest),
            ``position`` (of that token among all of the image, as `Recording` has it), and its ``patch_row`` and
            ``patch_column``, if it is a patch. No rows, and a warning, if the unit is the same everywhere.

        Raises
        ------
        ValueError
            If there is no such unit, or there are fewer than ``k`` different images.

        Examples
        --------
        ``split.top_images(17, 3, images)``
        """
        self._rows_of([(channel, unit)])
        photos = self.model.inputs(images)
        check_count("k", k, 1, len(photos))
        which = self.settings.tokens if tokens is None else tokens
        every = [number for number in range(self.routing.units + 1) if (channel, number) in self._places]
        model = self.model.using(batch_size=batch_size, progress=progress)
        with overheard(model, wanted=False) as outputs:
            readout = self.unit_readout([(channel, number) for number in every])
            values = read_out(model, photos, self.site, readout, tokens=which)  # (n, t, u)
        own = values[..., every.index(unit)]
        if is_flat(own, values.sum(-1)):
            warn_caller(f"Unit {(channel, unit)} is the same in every image, so it has no best ones.")
            k = 0
        distinct = outputs.distinct(photos)
        check_enough("k", k, len(distinct), len(photos))
        return top_table(photos, distinct, own, int(self.signs[channel, unit]), self.site, which, k)

    @knows_arguments
    @own_arithmetic()
    def concept_activations(
        self, images: Images, *, tokens: str | None = None, batch_size: int | None = None, progress: bool | None = None
    ) -> Tensor:
        """Return the read-out of each concept, one number a token: (n, g) for one token an image, else (n, t, g).

        ``tokens`` are by default those of the discovery.
        A concept's sub-units across all channels, each weighted by its mean on the concept over the channel's
        variance (method, step 5).

        Raises
        ------
        ValueError
            If the routing has no concepts that go through all channels.
        """
        self.check_model()
        return self._read(self.concept_readout(), images, tokens, batch_size, progress)

    @knows_arguments
    @own_arithmetic()
    def unit_readout(self, units: Sequence[tuple[int, int]] | None = None) -> Readout:
        """Return the read-out of chosen units (all, if ``None``): a linear map of the sources."""
        self.check_model()
        channels, numbers = self.routing.rows()
        if units is not None:
            rows = self._rows_of(units)
            channels, numbers = channels[rows], numbers[rows]
        matrix = self.routing.masked(self.weight, channels, numbers).T  # (s * kernel, u)
        mean, is_rest = self.book.source_mean(), numbers == 0
        # The mean of a sub-unit is moved to the channel's unit 0, which also has the bias and what enters.
        all_of_channel = (self.weight @ mean + for_analysis(self.site.bias(self.model.network)))[channels]
        offset = torch.where(is_rest, all_of_channel, 0) - mean @ matrix
        entering = channels.masked_fill(~is_rest, -1)
        if self.site.kind != STREAM:
            entering = torch.full_like(entering, -1)
        return Readout(matrix, offset, entering)

    @knows_arguments
    @own_arithmetic()
    def live_readout(self) -> Readout:
        """Return the read-out of the live sub-units, in the order of `live_units`.

        0 is a sub-unit's mean over the discovery, and each is high on its concept: those that are low there are turned
        round.
        """
        rows = self.routing.live_rows()
        matrix = self.routing.masked(self.weight, *rows).T * self.signs[rows]  # (s * kernel, u)
        return Readout(matrix, -(self.book.source_mean() @ matrix), torch.full_like(rows[0], -1))

    @knows_arguments
    def concept_readout(self) -> Readout:
        """Return the read-out of all concepts, a linear map of the centred sources: the matrix is (s * kernel, g).

        Raises
        ------
        ValueError
            If the routing has no concepts that go through all channels.
        """
        return self._all_concepts

    @cached_property
    @own_arithmetic()
    def _all_concepts(self) -> Readout:
        if not bool((self.routing.concepts != NO_CONCEPT).any()):
            raise ValueError(
                f"routing={self.settings.routing!r} makes sub-units that belong to no concept across channels; "
                "use routing='concepts', or read single units with activations()."
            )
        matrix = torch.zeros(len(self.book), self.weight.shape[1], dtype=self.weight.dtype)
        factors = self.means_on_concepts / self.channel_variance.clamp(min=1e-12)[:, None]  # (d, k + 1)
        for channel in self.routing.is_split().nonzero().flatten().tolist():
            concepts = self.routing.concepts[channel]
            units = (concepts != NO_CONCEPT).nonzero().flatten() + 1
            rows = self.routing.masked(self.weight, torch.full_like(units, channel), units)  # (u, s * kernel)
            matrix.index_add_(0, concepts[units - 1], rows * factors[channel, units, None])
        matrix = matrix.T.contiguous()
        nothing = torch.full((len(self.book),), -1)
        return Readout(matrix, -(self.book.source_mean() @ matrix), nothing)

    @knows_arguments
    @own_arithmetic()
    def encode(self, recording: Recording) -> Tensor:
        """Return all units at the recorded tokens, (t, u), in the order of ``self.units``."""
        readout = self._all_units
        values = recording.sources @ readout.matrix + readout.offset
        return values + recording.entering[:, readout.entering.clamp(min=0)] * (readout.entering >= 0)

    @knows_arguments
    def decode(self, units: Tensor) -> Tensor:
        """Return the channels (t, d) that units (t, u) add up to; of `encode`, the model's own up to rounding."""
        channels, _ = self.routing.rows()
        check_kind("units", units, Tensor, "a tensor (t, u), such as encode returns")
        if not units.ndim or units.shape[-1] != len(channels):
            raise ValueError(
                f"decode takes (t, {len(channels)}), one column a row of .units; got {tuple(units.shape)}."
            )
        return units.new_zeros(*units.shape[:-1], self.site.channels).index_add(-1, channels, units)

    @knows_arguments
    @own_arithmetic()
    def explicit(self, channels: Sequence[int] | None = None) -> nn.Module:
        """Return a new network, without hooks, in which the site is split by ordinary modules.

        ``channels`` splits only these; ``None`` splits all that the routing splits.
        """
        self.check_model("explicit", thorough=True)
        routing = self.routing
        if channels is not None:
            for channel in channels:
                check_count("channel", channel, 0, self.site.channels - 1)
            routing = routing.only(torch.as_tensor(list(channels), dtype=torch.int64))
        made = explicit_network(self.model.network, self.site, routing)
        check_explicit(self.model, made, self.site)
        return made

    @knows_arguments
    @own_arithmetic()
    def lens(self, units: Sequence[tuple[int, int]] | None = None) -> Lens:
        """Return a `Lens`: in ``with split.lens() as lens:`` the model runs as it is; ``lens.values`` has the units.

        Chosen units, or without them all concepts, at all tokens of the last forward pass: (n, t, u) or (n, t, g).
        Batches of other sizes than the model's have as many tokens as the network makes of them.
        """
        self.check_model()
        readout = self.concept_readout() if units is None else self.unit_readout(units)
        return Lens(self.model.network, self.site, readout)

    @knows_arguments
    @own_arithmetic()
    def recording(self, images: Images, **settings: Any) -> Recording:
        """Record channels and sources of this site on new images, as one `Recording`.

        Takes what `record` takes; ``tokens`` are by default those of the discovery. All is held in memory, s * 4 bytes
        a token: for more than a few images, draw with ``tokens_per_image`` or go through `record` batch by batch.
        """
        self.check_model()
        chosen = {"tokens": self.settings.tokens, **settings}
        return Recording.join(list(record(self.model, self.model.inputs(images), self.site, **chosen)))

    @cached_property
    @own_arithmetic()
    def _all_units(self) -> Readout:
        return self.unit_readout()

    @cached_property
    @own_arithmetic()
    def weight(self) -> Tensor:
        """W of the site, (d, s * kernel), with layer scale and BatchNorm folded in; at least in float32."""
        self.check_model()
        return for_analysis(self.site.weight(self.model.network))

    @cached_property
    @own_arithmetic()
    def means_on_concepts(self) -> Tensor:
        """Mean of each unit (above its overall mean) on the tokens of its concept, (d, k + 1); 0 where it has none."""
        return means_on_concepts(self.weight, self.routing, self.book)

    @cached_property
    @own_arithmetic()
    def identity(self) -> str:
        """Which split an edit is meant for: 16 hexadecimal digits of a SHA-256 of all it holds."""
        tensors = {
            "routes": self.routing.routes,
            "concepts": self.routing.concepts,
            "counts": self.book.counts,
            "source_sums": self.book.source_sums,
        }
        if self.routing.owner_sets is not None:
            tensors["owner_sets"] = self.routing.owner_sets
        return hashlib.sha256(f"{self.site.name}|{sha256_of_tensors(tensors)}".encode()).hexdigest()[:16]

    # ------------------------------------------------------------- steering

    @knows_arguments
    @own_arithmetic()
    def edit(self, edit: Edit) -> Steering:
        """Return a context in which the model runs with an edit: ``with split.edit(en.Edit.scale(concept=12, by=0)):``.

        The model is as it was afterwards, whatever happens inside. Blocks can be nested: the inner edit is done after
        the outer one.

        Raises
        ------
        EditError
            If the split lacks the concept, the unit or the tokens, or a mask has another shape.
        ModelMismatchError
            If the edit is meant for another split.
        """
        self.check_model()
        return Steering(self, edit)

    # ----------------------------------------------------------- save, load

    @knows_arguments
    @own_arithmetic()
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything but the model to one safetensors file; the model's identity and hash go with it.

        Raises
        ------
        EditError
            If an edit is active on the model: the file would belong to the edited one.
        ModelMismatchError
            If the model's weights changed after the split was made.
        """
        self.check_model("save", thorough=True)
        write_split(path, self.model, self.settings, self.routing, self.book, self.names, {
            "channel_variance": self.channel_variance, "unit_shares": self.unit_shares,
            **({} if self.seen is None else {"seen": self.seen}),
        })  # fmt: skip

    @staticmethod
    @knows_arguments
    @own_arithmetic()
    def load(path: str | os.PathLike[str], model: Model | None = None) -> Disentanglement:
        """Read a saved result and attach it to its model; without ``model``, the one that the file names is loaded.

        Raises
        ------
        FileNotFoundError, StoreError
            If there is no such file, or it is damaged.
        ModelMismatchError
            If ``model`` is not the one that was split: its weights, its dtype or input size, or what it makes of one
            fixed input differ. (The same weights in another architecture give themselves away by the last.)
        """
        return Disentanglement(**read_split(path, model))

    # --------------------------------------------------------------- reprs

    def __repr__(self) -> str:
        split = int(self.routing.is_split().sum())
        return (
            f"Disentanglement({self.model.name!r}, {self.site.name}: {split} of {self.site.channels} channels in "
            f"{counted(int((self.routing.sizes()[:, 1:] > 0).sum()), 'sub-unit')} over {self.site.sources:,} sources, "
            f"{counted(len(self.book), 'concept')})"
        )

    def _repr_html_(self) -> str:
        rows = summary(self.model.name, self.site, self.routing, self.book, self.settings)
        body = "".join(f"<tr><th>{key}</th><td>{html.escape(value)}</td></tr>" for key, value in rows.items())
        return f"<table><caption>Disentanglement</caption>{body}</table>"

    # ------------------------------------------------------------- helpers

    def _read(
        self,
        readout: Readout,
        images: Images,
        tokens: str | None,
        batch_size: int | None,
        progress: bool | None,
    ) -> Tensor:
        values = read_out(
            self.model.using(batch_size=batch_size, progress=progress),
            self.model.inputs(images),
            self.site,
            readout,
            tokens=self.settings.tokens if tokens is None else tokens,
        )
        return values[:, 0] if values.shape[1] == 1 else values

    def _rows_of(self, units: Sequence[tuple[int, int]]) -> list[int]:
        place = self._places
        pairs = [check_unit(unit) for unit in units]
        for channel, number in pairs:
            if (channel, number) not in place:
                has = [unit for c, unit in place if c == channel]
                last = self.site.channels - 1
                hint = f"channel {channel} has units {has}" if has else f"channels go from 0 to {last}"
                raise ValueError(f"There is no unit {(channel, number)}; {hint}. See .units for all.")
        return [place[pair] for pair in pairs]

    @cached_property
    def _places(self) -> dict[tuple[int, int], int]:
        """Return the row of each unit, by its channel and number."""
        return {pair: row for row, pair in enumerate(zip(*(x.tolist() for x in self.routing.rows()), strict=True))}

    @cached_property
    @own_arithmetic()
    def signs(self) -> Tensor:
        """Whether each unit is high or low on its concept, (d, k + 1): -1 where it is low, else 1.

        A channel of a residual stream means one thing when it is high and another when it is low. A unit activates most
        on its concept where ``sign * activation`` is largest; that it adds up to the channel does not depend on it.
        """
        return torch.where(self.means_on_concepts < 0, -1, 1)

    @cached_property
    @own_arithmetic()
    def _on_groups(self) -> Tensor:
        """Mean of each live sub-unit over each group of the book, (g, u); high on its own concept."""
        return values_on_groups(self.weight, self.routing, self.book) * self.signs[self.routing.live_rows()]

    def _mean_sources(self, images: Images, tokens: str | None) -> Tensor:
        self.check_model()
        total, count = torch.zeros(self.weight.shape[1], dtype=torch.float64), 0
        which = self.settings.tokens if tokens is None else tokens
        for part in record(self.model, self.model.inputs(images), self.site, tokens=which):
            total += part.sources.sum(0).cpu()
            count += len(part)
        return (total / count).to(self.weight.dtype)


def check_split(split: object, purpose: str = "", *, thorough: bool = False) -> None:
    """Check that this is a disentanglement whose model is as it was, and with a ``purpose``, that no edit is active.

    Raises
    ------
    TypeError
        If ``split`` is no disentanglement, nor can stand in for one.
    EditError, ModelMismatchError
        As `Disentanglement.check_model` does.
    """
    check_splittable(split)
    check: Any = getattr(split, "check_model", None)
    if check is not None:
        check(purpose, thorough=thorough)
