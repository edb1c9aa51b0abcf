"""Live steering: one forward pass an image, and from then on a few milliseconds for each position of the sliders.

No two concepts share a sub-unit, so what scalings about the mean do to the channels adds up: the change of each concept
is worked out once an image, and a slider only weighs it. Then what follows the site is run again. The model itself is
not changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from elude_nb._util.arithmetic import own_arithmetic
from elude_nb.core.edit import Edit
from elude_nb.core.plan import Plan, concept_number, look_up, plan_edit
from elude_nb.core.result import Disentanglement
from elude_nb.core.routing import NO_CONCEPT
from elude_nb.core.steer import moved_output
from elude_nb.errors import EditError
from elude_nb.models.forward import FeaturesAndPatches, Read, Rest
from elude_nb.models.hooks import evaluating, for_analysis
from elude_nb.steering.controls import edited_units
from elude_nb.steering.heads import Head, LinearProbe, NearestNeighbours
from elude_nb.steering.interventions import all_channels, capture_sources, change_of
from elude_nb.steering.patches import distance

UNCHANGED = 1.0
_PLANS = 12  # are kept: 7 MB each for a concept of all blocks of a ViT-S


@dataclass(frozen=True, eq=False)
class Seen:
    """One image as the model saw it.

    Attributes
    ----------
    batch
        The prepared image, (1, 3, h, w).
    captured
        What the site's exit module put out, in its own shape.
    sources
        The sources of each term, (1, t, s_term * kernel).
    outputs
        The `elude_nb.models.forward.features`, (1, e).
    head_outputs
        What the head looks at, (1, f), or ``None`` without a head.
    concepts
        The read-out of each concept at its strongest patch, (g,).
    patches
        The patch tokens after the last block, (h, w, e), or ``None`` if the model has none there.
    """

    batch: Tensor
    captured: Tensor
    sources: list[Tensor]
    outputs: Tensor
    head_outputs: Tensor | None
    concepts: Tensor
    patches: Tensor | None = None
    _changes: dict[int, Tensor] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, eq=False)
class Steered:
    """What came of one edit on one image.

    Attributes
    ----------
    before, after
        The `elude_nb.models.forward.features` without and with the edit, (e,).
    cosine
        Between the two; exactly 1.0 if nothing moved.
    largest
        The largest absolute change of any of them; exactly 0.0 if nothing moved.
    probabilities
        With a head, one row a class: ``before``, ``after`` and ``change``; else empty.
    patches
        The patch tokens after the last block without and with the edit, (h, w, e) each, or ``None``.
    """

    before: Tensor = field(repr=False)
    after: Tensor = field(repr=False)
    cosine: float
    largest: float
    probabilities: pd.DataFrame = field(repr=False)
    patches: tuple[Tensor, Tensor] | None = field(default=None, repr=False)

    @property
    def distance(self) -> Tensor | None:
        """How far each patch token moved, (h, w): 1 - cosine similarity; ``None`` without patches."""
        return None if self.patches is None else distance(*self.patches)


class LiveSteering:
    """Concepts of one split, turned up and down on one image after the other.

    Parameters
    ----------
    split
        The split; its sub-units belong to concepts.
    head
        What tells classes apart, as from `elude_nb.fit_head`; without one there are no probabilities.
    tokens
        Which tokens are edited, as in `Edit.scale`.

    Raises
    ------
    EditError
        If the split has no concepts or no such tokens, or an edit is active on its model.

    Examples
    --------
    >>> LiveSteering.__name__  # live = LiveSteering(split); live.steer(live.see(image), {12: 0.0}).cosine
    'LiveSteering'
    """

    def __init__(self, split: Disentanglement, *, head: Head | None = None, tokens: str = "all") -> None:
        self.split, self.head, self.tokens = split, head, tokens
        self.steerable = tuple(sorted(set(split.routing.concepts.unique().tolist()) - {NO_CONCEPT}))
        if not self.steerable:
            raise EditError(
                "This split has no concepts that go through all channels, so there is nothing to put a slider on; "
                "disentangle with routing='concepts'."
            )
        self.check_free()
        look_up(split, self.edit({self.steerable[0]: 0.0}))  # tokens that are not there are reported at once
        self._plans: dict[int, Plan] = {}
        self._read = FeaturesAndPatches(split.site.layout)
        self._rest = Rest(split.model, split.site, self._read)
        self._head_rest = None if self.read_head is None else Rest(split.model, split.site, self.read_head)

    @property
    def read_head(self) -> Read | None:
        """What the head reads of the model, where it is something else than its `elude_nb.models.forward.features`."""
        # Probes and k-NN look at the features that neighbours are found by; other heads may look at something else.
        on_features = self.head is None or isinstance(self.head, LinearProbe | NearestNeighbours)
        return None if on_features or self.head is None else self.head.read

    def check_free(self) -> None:
        """Raise `EditError` if an edit is active: what is shown as "before" would not be the model as it is."""
        self.split.check_model("live steering")

    def number(self, concept: int | str) -> int:
        """Return the number of a concept from its number or name.

        Raises
        ------
        EditError
            If there is none, or no channel has a sub-unit of it.
        """
        edited_units(self.split, Edit.ablate(concept=concept))  # raises if there are none
        return concept_number(self.split, concept)

    def edit(self, strengths: Mapping[int, float]) -> Edit:
        """Return the edit that multiplies each concept by its strength; those at 1 are left out."""
        made = Edit()
        for concept, strength in strengths.items():
            if strength != UNCHANGED:
                made += Edit.scale(concept=concept, by=strength, tokens=self.tokens)
        return made

    @own_arithmetic()
    def see(self, image: Image.Image) -> Seen:
        """Run the model on an image as it is, and keep what steering it takes.

        Raises
        ------
        EditError
            If an edit is active on the model.
        """
        self.check_free()
        model, layout = self.split.model, self.split.site.layout
        with evaluating(model.network):
            batch = model.prepare([image])
            captured, outputs, sources = capture_sources(self._rest, batch)
            outputs, patches = self._read.parts(for_analysis(outputs))
            head_outputs = self._head_outputs(batch, captured, outputs)
        readout = self.split.concept_readout()
        where = layout.positions("all" if layout.grid is None else "patch").to(batch.device)
        joined = for_analysis(torch.cat([part[0, where] for part in sources], dim=-1)).to(readout.matrix)
        strongest = (joined @ readout.matrix + readout.offset).amax(0)
        return Seen(batch, captured, sources, outputs, head_outputs, strongest, None if patches is None else patches[0])

    @own_arithmetic()
    def steer(self, seen: Seen, strengths: Mapping[int, float]) -> Steered:
        """Return what the model makes of an image with each concept multiplied by its strength.

        The same, up to rounding, as reading the outputs inside ``with split.edit(self.edit(strengths)):``.

        Raises
        ------
        EditError
            If an edit is active on the model.
        """
        self.check_free()
        moving = {concept: strength for concept, strength in strengths.items() if strength != UNCHANGED}
        outputs, head_outputs = seen.outputs, seen.head_outputs
        patches = seen.patches
        if moving:
            network, site = self.split.model.network, self.split.site
            with evaluating(network):
                faded = [(1 - strength) * self._fading(seen, concept) for concept, strength in moving.items()]
                change = torch.stack(faded).sum(0)
                moved = moved_output(network, site, all_channels(self.split), change, seen.captured)
                outputs, found = self._read.parts(for_analysis(self._rest(seen.batch, moved)))
                patches = None if found is None else found[0]
                head_outputs = self._head_outputs(seen.batch, moved, outputs)
        both = None if seen.patches is None or patches is None else (seen.patches, patches)
        return replace(_compared(self.head, seen, outputs, head_outputs), patches=both)

    def _head_outputs(self, batch: Tensor, captured: Tensor, outputs: Tensor) -> Tensor | None:
        """Return what the head looks at, (1, f), for what the site's exit put out."""
        if self._head_rest is not None:
            return for_analysis(self._head_rest(batch, captured))
        return None if self.head is None else outputs

    def _fading(self, seen: Seen, concept: int) -> Tensor:
        """Return what fading a concept out adds to the channels, (1, t, d)."""
        if concept not in seen._changes:
            plan = self._plan(concept).to(seen.batch.device)
            change = change_of(plan, self.split.site, seen.sources)
            empty = change.new_zeros(1, seen.sources[0].shape[1], self.split.site.channels)
            seen._changes[concept] = plan.added(change, empty)
        return seen._changes[concept]

    def _plan(self, concept: int) -> Plan:
        """Return the plan of fading a concept out; those used last are kept."""
        found = self._plans.pop(concept, None)
        if found is None:
            found = plan_edit(self.split, self.edit({concept: 0.0}))
        self._plans[concept] = found
        if len(self._plans) > _PLANS:
            del self._plans[next(iter(self._plans))]
        return found


def _compared(head: Head | None, seen: Seen, outputs: Tensor, head_outputs: Tensor | None) -> Steered:
    before, after = seen.outputs[0], outputs[0]
    still = torch.equal(before, after)  # the cosine of a vector with itself may round to less than 1
    cosine = 1.0 if still else float(torch.nn.functional.cosine_similarity(before, after, dim=0))
    table = pd.DataFrame(columns=["before", "after", "change"], dtype=float)
    if head is not None and seen.head_outputs is not None and head_outputs is not None:
        first, second = (head.probabilities(found)[0].double().numpy() for found in (seen.head_outputs, head_outputs))
        table = pd.DataFrame(
            {"before": first, "after": second, "change": second - first}, index=pd.Index(head.classes, name="class")
        )
    return Steered(before, after, cosine, float((after - before).abs().max()), table)


def order_by_presence(present: Tensor, elsewhere: Tensor, concepts: Iterable[int]) -> list[int]:
    """Return concepts in the order in which they stand out in an image.

    Parameters
    ----------
    present
        The read-out of each concept at its strongest patch of the image, (g,).
    elsewhere
        The same in other images, (n, g): it is compared with their mean, in their standard deviations.
    concepts
        Which concepts.

    Examples
    --------
    >>> order_by_presence(torch.tensor([1.0, 9.0]), torch.tensor([[0.0, 8.9], [0.2, 9.1]]), [0, 1])
    [0, 1]
    """
    spread = elsewhere.std(0, correction=0).clamp(min=1e-12)
    score = ((present - elsewhere.mean(0)) / spread).tolist()
    return sorted(concepts, key=lambda concept: (-score[concept], concept))
