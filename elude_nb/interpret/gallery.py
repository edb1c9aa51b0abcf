"""A gallery: images whose sources at every patch are cached, so that any unit, under any routing, is seen at once.

Widgets ask for one channel after the other, with other numbers of sub-units each time. A forward pass over all images
takes seconds, a product of cached sources with one row of weights takes milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from elude_nb._util.arithmetic import own_arithmetic
from elude_nb._util.checks import check_count, check_number
from elude_nb._util.progress import announced, progress_bar
from elude_nb._util.words import counted
from elude_nb.core.result import Disentanglement, check_split
from elude_nb.core.routing import NO_CONCEPT, Routing, means_on_concepts
from elude_nb.core.seen import Seen
from elude_nb.core.strategies import check_routing_settings, read_strategy, route_channel, why_not_route_channel
from elude_nb.data.copies import distinct_numbers, find_originals, sketch
from elude_nb.data.images import Images, ImageSet, as_image_set
from elude_nb.errors import SiteError
from elude_nb.interpret.descriptions import described
from elude_nb.interpret.exemplars import Exemplars, Pixels, add_rest, arrange_exemplars, choose_among, name_of_unit
from elude_nb.interpret.profiles import Places, mean_contributions, places_of_sources, sum_by_place
from elude_nb.models.forward import check_finite, output_and_patches
from elude_nb.models.hooks import Tap, evaluating, for_analysis
from elude_nb.models.load import Model

_GIB = 1 << 30

Pictures = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


@dataclass(frozen=True, eq=False)
class Sight:
    """What the model made of a few images at every patch.

    Attributes
    ----------
    pictures
        As the model sees them, (n, h, w, 3), uint8.
    sources
        Sources less their mean over the discovery, (n, t, s * kernel).
    channels
        (n, t, d).
    outputs
        The model's outputs, (n, e).
    features
        Its `elude_nb.models.forward.features`: the output, and beside it the mean patch token if it has any.
    sketches
        Of the prepared images, by which copies are told (`elude_nb.data.copies.sketch`).
    """

    pictures: Pictures
    sources: Tensor
    channels: Tensor
    outputs: Tensor
    features: Tensor
    sketches: Tensor


@dataclass(frozen=True, eq=False)
class ChannelView:
    """One channel under one routing, on the images of a gallery.

    Attributes
    ----------
    channel
        Its number.
    units
        One row a unit: ``unit``, ``concept``, ``name``, ``title`` (of the concept), ``sources``,
        ``share_of_variance`` (over the gallery's patches) and ``mean_on_concept``. Without sub-units, unit 0 is
        the whole channel.
    maps
        Activations of these units at every patch, (n, t, u), in the order of the rows. Sub-units are counted from their
        mean over the discovery; unit 0 holds the rest, so that the sum is the channel.
    reason
        ``"split"``, or why the channel was not split.
    routing
        Routes of this channel alone.
    """

    channel: int
    units: pd.DataFrame = field(repr=False)
    maps: Tensor = field(repr=False)
    reason: str
    routing: Routing


class Gallery:
    """Cached images, with all that is needed to look at any unit.

    Sources are kept in bfloat16, in which pictures lose nothing that an eye could see (rounding is 0.4 % of a value).
    All else is in float32. It can be filled step by step: `fill`, or one batch at a time with `steps`.

    Parameters
    ----------
    split
        The disentanglement; its site needs patch tokens, or positions of a map.
    images
        Which images. If they do not all fit into ``max_memory``, a sample is drawn, spread over the labels.
    max_memory
        Bound of the kept sources in GiB.
    watch
        Called with what was found at each batch, in float32, and the number of its first image.

    Attributes
    ----------
    images
        Those that are taken.
    total
        How many were given; more than ``len(images)`` if only a sample fits.
    ready
        How many of them have run already.

    Raises
    ------
    SiteError
        If the site has no patches.
    ValueError
        If there is no image, or not even two fit into the memory.
    """

    @own_arithmetic()
    def __init__(
        self,
        split: Disentanglement,
        images: Images,
        *,
        max_memory: float = 1.0,
        watch: Callable[[Sight, int], None] | None = None,
    ) -> None:
        check_split(split, "a gallery")
        photos = as_image_set(images)
        layout = split.site.layout
        if layout.grid is None:
            raise SiteError(f"{split.site.name!r} has no patches to look at; choose another site.")
        tokens, width = len(layout.positions("patch")), split.site.sources * split.site.kernel
        fit = int(max_memory * _GIB / (2 * width * tokens)) if check_number("max_memory", max_memory) > 0 else 0
        if fit < 2 or not len(photos):
            raise ValueError(
                f"A gallery of {counted(len(photos), 'image')} within max_memory={max_memory} GiB: {fit} fit; "
                "give images, and room for two at least."
            )
        self.split, self.grid = split, layout.grid
        self.total = len(photos)
        self.images: ImageSet = photos.sample(fit, seed=0)
        self.ready, self._watch = 0, watch
        count = len(self.images)
        self._sources = torch.empty(count, tokens, width, dtype=torch.bfloat16)
        self._channels = torch.empty(count, tokens, split.site.channels)
        self._concepts = torch.empty(count, tokens, len(split.book) if self.has_concepts else 0)
        self._pictures: list[Pictures] = []
        self._sketches: list[Tensor] = []
        self._distinct = torch.arange(0), 0  # and of how many images
        self._outputs: list[Tensor] = []
        self._features: list[Tensor] = []

    @property
    def has_concepts(self) -> bool:
        """Whether sub-units belong to concepts that go through all channels."""
        return bool((self.split.routing.concepts != NO_CONCEPT).any())

    @property
    def pictures(self) -> Pictures:
        """Return what the model sees of each image that is ready, (n, h, w, 3), uint8."""
        return np.stack(self._pictures)

    @property
    def distinct(self) -> Tensor:
        """Return the numbers of the ready images that are no copies of earlier ones, (m,): only these are top images.

        A warning counts the others once all images are ready.
        """
        if self._distinct[1] != self.ready:
            whole = self.ready == len(self.images)
            numbers = distinct_numbers(find_originals(torch.cat(self._sketches)), self.images.names, warn=whole)
            self._distinct = numbers, self.ready
        return self._distinct[0]

    @property
    def seen(self) -> Seen:
        """Return how many images are ready, and how many of them the discovery saw."""
        return self.split.count_seen(self.images[: self.ready])

    @property
    def outputs(self) -> Tensor:
        """Return the model's outputs for the images that are ready, (n, e)."""
        return torch.cat(self._outputs)

    @property
    def features(self) -> Tensor:
        """Return what heads and neighbours look at (see `read_outputs`) of the images that are ready, (n, f)."""
        return torch.cat(self._features)

    @property
    def concept_maps(self) -> Tensor:
        """Return the read-out of each concept at every patch of the images that are ready, (n, t, g)."""
        return self._concepts[: self.ready]

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Return the labels of the images that are ready."""
        return None if self.images.labels is None else tuple(self.images.labels[: self.ready])

    @own_arithmetic()
    def fill(self, *, batch_size: int | None = None, progress: bool | None = None) -> Gallery:
        """Run all images that have not run yet, by default with the model's own settings; return the gallery."""
        model = self.split.model.using(batch_size=batch_size, progress=progress)
        left = len(self.images) - self.ready
        with progress_bar(description="gallery", total=left, show=model.progress, unit="image") as bar:
            steps = announced(
                self.steps(model.batch_size),
                f"gallery: {counted(left, 'image')}",
                lambda first: first * -(-left // model.batch_size),
                show=model.progress,
            )
            for done in steps:
                bar.update(done)
        return self

    def steps(self, batch_size: int = 4) -> Iterator[int]:
        """Run the images ``batch_size`` at a time; yield after each batch how many it was."""
        check_count("batch_size", batch_size)
        while self.ready < len(self.images):
            stop = min(self.ready + batch_size, len(self.images))
            with own_arithmetic():  # each step by itself: a decorator would not reach into a generator
                seen = look(self.split, self.images[self.ready : stop])
                if self._watch is not None:
                    self._watch(seen, self.ready)
                rows = slice(self.ready, stop)
                self._sources[rows], self._channels[rows] = seen.sources, seen.channels
                if self.has_concepts:
                    self._concepts[rows] = seen.sources @ self.split.concept_readout().matrix
                self._pictures += list(seen.pictures)
                self._sketches.append(seen.sketches)
                self._outputs.append(seen.outputs)
                self._features.append(seen.features)
                self.ready = stop
                if stop == len(self.images) and self.has_concepts:
                    self.split = described(self.split, self._concepts.amax(1), self.distinct, self.images)
            yield len(seen.pictures)

    # ------------------------------------------------------------- one channel

    @property
    def can_reroute(self) -> bool:
        """Whether `channel` takes other K and rho than the split's; if not, `why_not_reroute` says why."""
        return not self.why_not_reroute

    @cached_property
    def why_not_reroute(self) -> str:
        """Why a channel cannot be routed with other K and rho, in words; ``""`` if it can."""
        try:
            return why_not_route_channel(read_strategy(self.split.settings.strategy))
        except ValueError as error:  # a strategy of one's own
            return str(error)

    def channel(self, channel: int, *, units: int | None = None, shared: float | None = None) -> ChannelView:
        """Return a channel taken apart, on all images that are ready.

        Parameters
        ----------
        channel
            Its number.
        units, shared
            Without both, the channel is as it was split. Otherwise it alone is routed anew, by the strategy of the
            split: ``units`` is K (by default the split's), ``shared`` is rho, or ``None`` to leave nothing over.

        Raises
        ------
        ValueError
            If there is no such channel, K or rho is out of range, no image is ready, or the strategy cannot route a
            channel anew (see `can_reroute`).
        """
        self._check_ready()
        check_count("channel", channel, 0, self.split.site.channels - 1)
        routing = self._routing(channel, units, shared)
        return _view(
            self.split, channel, routing, self._sources[: self.ready], self._channels[: self.ready, :, channel]
        )

    def exemplars(self, view: ChannelView, *, count: int = 6, units: int = 5) -> Exemplars:
        """Return the top-activating images of a channel and of its units: of sub-units the strong and unlike ones.

        Raises
        ------
        ValueError
            If fewer than ``count`` images are ready.
        """
        check_count("count", count, 2, self.ready)
        table = view.units
        live = view.routing.live()[0, table["unit"].tolist()].numpy()
        chosen = add_rest(choose_among(table[live], self.split.book, check_count("units", units)))
        mean = float(self.split.book.channel_mean()[view.channel])
        maps, names = [view.maps.sum(-1) - mean], ["whole channel"]
        as_split = view.routing.routes.equal(self.split.routing.of_channel(view.channel).routes)
        of_images = float(table["share_of_variance"].iloc[0])
        share = float(self.split.unit_shares[view.channel, 0]) if as_split else of_images
        for unit in chosen:
            row = table["unit"].tolist().index(unit)
            concept = table["concept"].fillna(NO_CONCEPT).tolist()[row]
            low = table["mean_on_concept"].tolist()[row] < 0  # not if there is no concept: NaN
            maps.append(view.maps[..., row] * (-1 if low else 1) - (mean if unit == 0 else 0))
            names.append(name_of_unit(unit, concept, self.split.names, low=low, share=share))
        return arrange_exemplars(
            view.channel,
            chosen,
            names,
            maps,
            grid=self.grid,
            picture=self._in_colours,
            labels=self.labels,
            embeddings=self.outputs - self.outputs[self.distinct].mean(0),
            count=count,
            distinct=self.distinct,
        )

    def pictures_of(self, image: int) -> Pictures:
        """Return what the model sees of one image, (h, w, 3), uint8."""
        return self._pictures[check_count("image", image, 0, self.ready - 1)]

    def sources_of(self, image: int) -> Tensor:
        """Return the sources of one image at every patch, less their mean over the discovery, (t, s * kernel)."""
        return self._sources[check_count("image", image, 0, self.ready - 1)]

    def maps_of(self, units: Sequence[tuple[int, int]]) -> Tensor:
        """Return activations of sub-units of the split at every patch of the images that are ready, (n, t, u).

        They are counted from their mean over the discovery; number 0 is here the whole channel, counted the same way.

        Raises
        ------
        ValueError
            If no image is ready, or there is no such unit.
        """
        self._check_ready()
        matrix = self.split.unit_readout(units).matrix  # raises if there is no such unit
        channels, numbers = torch.tensor(units, dtype=torch.int64).reshape(-1, 2).T
        maps = self._channels[: self.ready, :, channels] - self.split.book.channel_mean()[channels].float()
        parts = numbers > 0
        maps[..., parts] = (self._sources[: self.ready] @ matrix[:, parts].to(self._sources.dtype)).float()
        return maps

    def images_of_unit(self, channel: int, unit: int) -> Tensor:
        """Return one unit of `maps_of`, (n, t), turned round where it is low on its concept."""
        return self.maps_of([(channel, unit)])[..., 0] * int(self.split.signs[channel, unit])

    def depths(self, view: ChannelView) -> dict[int, pd.DataFrame]:
        """Return for each sub-unit of a view where its contributions arise: one row a block, one column a part.

        Contributions are means over the tokens of the sub-unit's concept, above the mean over all tokens. Sub-units
        without a concept are not in it.
        """
        rows = view.units[view.units["concept"].notna()]
        units, concepts = rows["unit"].tolist(), torch.tensor(rows["concept"].tolist(), dtype=torch.int64)
        mine = view.routing.fractions(0)[units].to(self.split.weight)
        contributions = mean_contributions(self.split, view.channel, concepts) * mine
        return dict(zip(units, sum_by_place(contributions, self._places), strict=True))

    @cached_property
    def _places(self) -> Places:
        return places_of_sources(self.split)

    # ----------------------------------------------------------------- routing

    def _routing(self, channel: int, units: int | None, shared: float | None) -> Routing:
        settings, mine = self.split.settings, self.split.routing
        if (units is None and shared is None) or (units, shared) == (settings.units, settings.shared):
            return mine.of_channel(channel)
        k, rho = check_routing_settings(settings.units if units is None else units, shared)
        weight = self.split.weight.unflatten(1, (-1, self.split.site.kernel))
        strategy = read_strategy(settings.strategy)
        return route_channel(strategy, weight, self.split.book, channel, units=k, shared=rho)

    def _in_colours(self, index: int) -> Pixels:
        found: Pixels = np.divide(self._pictures[index], 255, dtype=np.float32)
        return found

    def _check_ready(self) -> None:
        if not self.ready:
            raise ValueError("No image is ready; call .fill() first.")

    def __len__(self) -> int:
        return self.ready

    def __repr__(self) -> str:
        size = self._sources.numel() * 2 / _GIB
        sample = f", a sample of {self.total:,}" if len(self.images) < self.total else ""
        return f"Gallery({self.ready} of {counted(len(self.images), 'image')} ready{sample}, {size:.2f} GiB)"


def look(split: Disentanglement, images: Sequence[Image.Image]) -> Sight:
    """Run a few images and return what is at every patch.

    Raises
    ------
    SiteError
        If the site has no patches.
    EditError
        If an edit of any split of this model is active.
    """
    model, site = split.model, split.site
    if site.layout.grid is None:
        raise SiteError(f"{site.name!r} has no patches to look at; choose another site.")
    split.check_model("a gallery")
    positions = site.layout.positions("patch").to(model.device)
    sources: dict[int, Tensor] = {}
    channels: list[Tensor] = []
    with (
        evaluating(model.network),
        Tap(
            model.network,
            site,
            on_source=lambda number, a: sources.__setitem__(number, for_analysis(a[:, positions])),
            on_channels=lambda h: channels.append(for_analysis(h[:, positions])),
        ),
    ):
        batch = model.prepare(images)
        output, mean_patch = output_and_patches(model, batch)
    outputs = for_analysis(output)
    check_finite(outputs, images, range(len(images)), "The model's outputs")
    features = outputs if mean_patch is None else torch.cat([outputs, for_analysis(mean_patch)], dim=1)
    joined = torch.cat([sources.pop(number) for number in range(len(site.terms))], dim=-1).sub_(
        split.book.source_mean()
    )
    pictures = np.stack([picture_of(model, image) for image in images])
    return Sight(pictures, joined, channels[-1], outputs, features, sketch(batch))


def picture_of(model: Model, image: Image.Image) -> Pictures:
    """Return what a model sees of an image, (h, w, 3), uint8."""
    return (model.picture(image).numpy() * 255).round().astype(np.uint8)


def _view(split: Disentanglement, channel: int, routing: Routing, sources: Tensor, whole: Tensor) -> ChannelView:
    """Return a view from the routing of one channel and sources (n, t, s * kernel) and channels (n, t)."""
    row = split.weight[channel : channel + 1]
    sizes = routing.sizes()[0]
    numbers = [0, *(sizes[1:] > 0).nonzero().flatten().add(1).tolist()]
    matrix = routing.masked(row, torch.zeros(len(numbers) - 1, dtype=torch.int64), torch.tensor(numbers[1:])).T
    parts = (sources @ matrix.to(sources.dtype)).float()
    maps = torch.cat([(whole - parts.sum(-1))[..., None], parts], dim=-1)
    moved = maps.flatten(0, 1) - maps.mean((0, 1))
    variance = moved.sum(1).square().mean().clamp(min=1e-12)
    concepts = [NO_CONCEPT, *routing.concepts[0, [unit - 1 for unit in numbers[1:]]].tolist()]
    owned = pd.Series(concepts) != NO_CONCEPT
    means = pd.Series(means_on_concepts(row, routing, split.book)[0, numbers].double().numpy())
    units = pd.DataFrame(
        {
            "unit": numbers,
            "concept": pd.Series(concepts, dtype="Int64").where(owned),
            "name": [split.names.get(concept, "") for concept in concepts],
            "title": ["" if concept == NO_CONCEPT else split.concept_title(concept) for concept in concepts],
            "sources": sizes[numbers].tolist(),
            "share_of_variance": ((moved * moved.sum(1, keepdim=True)).mean(0) / variance).tolist(),
            "mean_on_concept": means.where(owned),
        }
    )
    return ChannelView(channel, units, maps, routing.reasons[0], routing)
