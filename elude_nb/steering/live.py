"""Live steering: one forward pass an image, and from then on a few milliseconds for each position of the sliders.

No two concepts share a sub-unit, so what scalings about the mean do to the channels adds up: the change of each concept
is worked out once an image, and a slider only weighs it. Then what follows the site is run again. The model itself is
left as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from elude_nb.core.edit import Edit
from elude_nb.core.plan import Accumulator, Plan, concept_number, plan_edit
from elude_nb.core.result import Disentanglement
from elude_nb.core.routing import NO_CONCEPT
from elude_nb.core.steer import moved_output
from elude_nb.errors import EditError
from elude_nb.models.forward import Rest, features
from elude_nb.models.hooks import Tap, evaluating, for_analysis
from elude_nb.models.load import Model
from elude_nb.steering.heads import Head, LinearProbe, NearestNeighbours

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
    judged
        What the head looks at, (1, f), or ``None`` without a head.
    concepts
        How strongly each concept speaks at its loudest patch, (g,).
    """

    batch: Tensor
    captured: Tensor
    sources: tuple[Tensor, ...]
    outputs: Tensor
    judged: Tensor | None
    concepts: Tensor
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
    """

    before: Tensor
    after: Tensor
    cosine: float
    largest: float
    probabilities: pd.DataFrame


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
        plan_edit(split, self.edit({self.steerable[0]: 0.0}))  # tokens that are not there are told at once
        # Probes and k-NN look at the features that neighbours are found by; other heads may look at something else.
        self._one_read = head is None or isinstance(head, LinearProbe | NearestNeighbours)
        self._site = split.site
        everywhere = torch.arange(self._site.channels, device=split.model.device)
        nothing = split.weight.new_zeros(0)
        self._all = Plan(nothing, nothing, everywhere, (), None, self._site.layout.count)
        self._plans: dict[int, Plan] = {}
        self._rest = Rest(split.model, self._site, self._read)

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
        found = concept_number(self.split, concept)
        if found not in self.steerable:
            raise EditError(f"No channel has a sub-unit of concept {concept!r}; those that have: {self.steerable}.")
        return found

    def edit(self, strengths: Mapping[int, float]) -> Edit:
        """Return the edit that multiplies each concept by its strength; those at 1 are left out."""
        made = Edit()
        for concept, strength in strengths.items():
            if strength != UNCHANGED:
                made += Edit.scale(concept=concept, by=strength, tokens=self.tokens)
        return made

    def see(self, image: Image.Image) -> Seen:
        """Run the model on an image as it is, and keep what steering it takes.

        Raises
        ------
        EditError
            If an edit is active on the model.
        """
        self.check_free()
        model, sources = self.split.model, dict[int, Tensor]()
        with evaluating(model.network):
            batch = model.prepare([image])
            with Tap(model.network, self._site, on_source=sources.__setitem__):
                captured, read = self._rest.capture(batch)
        parts = tuple(sources[number] for number in range(len(self._site.terms)))
        outputs, judged = self._parted(read)
        readout = self.split.concept_readout()
        layout = self._site.layout
        where = layout.positions("all" if layout.grid is None else "patch").to(batch.device)
        joined = for_analysis(torch.cat([part[0, where] for part in parts], dim=-1)).to(readout.matrix)
        loudest = (joined @ readout.matrix + readout.offset).amax(0)
        return Seen(batch, captured, parts, outputs, judged, loudest)

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
        outputs, judged = seen.outputs, seen.judged
        if moving:
            network = self.split.model.network
            with evaluating(network):
                change = sum(
                    ((1 - strength) * self._fading(seen, concept) for concept, strength in moving.items()),
                    start=seen.outputs.new_zeros(()),
                )
                moved = moved_output(network, self._site, self._all, change, seen.captured)
                outputs, judged = self._parted(self._rest(seen.batch, moved))
        return _compared(self.head, seen, outputs, judged)

    def _fading(self, seen: Seen, concept: int) -> Tensor:
        """Return what fading a concept out adds to the channels, (1, t, d)."""
        found = seen._changes.get(concept)
        if found is None:
            plan = self._plans.pop(concept, None)
            if plan is None:
                plan = plan_edit(self.split, self.edit({concept: 0.0})).to(seen.batch.device)
                for old in list(self._plans)[: max(len(self._plans) - _PLANS + 1, 0)]:
                    del self._plans[old]
            self._plans[concept] = plan  # at the end: used last
            gathered = Accumulator(plan, self._site)
            for number, tokens in enumerate(seen.sources):
                gathered.see_tokens(number, tokens)
            change = gathered.take()
            empty = change.new_zeros(1, seen.sources[0].shape[1], self._site.channels)
            found = seen._changes[concept] = plan.added(change, empty)
        return found

    def _read(self, model: Model, batch: Tensor) -> Tensor:
        """Return the features and, if the head looks at something else, that beside them."""
        found = features(model, batch)
        self._width = found.shape[1]
        if self._one_read or self.head is None:
            return found
        return torch.cat([found, self.head.read(model, batch)], dim=1)

    def _parted(self, read: Tensor) -> tuple[Tensor, Tensor | None]:
        found = for_analysis(read)
        outputs = found[:, : self._width]
        return outputs, None if self.head is None else outputs if self._one_read else found[:, self._width :]


def _compared(head: Head | None, seen: Seen, outputs: Tensor, judged: Tensor | None) -> Steered:
    before, after = seen.outputs[0], outputs[0]
    still = torch.equal(before, after)  # the cosine of a vector with itself may round to less than 1
    cosine = 1.0 if still else float(torch.nn.functional.cosine_similarity(before, after, dim=0))
    table = pd.DataFrame(columns=["before", "after", "change"], dtype=float)
    if head is not None and seen.judged is not None and judged is not None:
        first, second = (head.probabilities(found)[0].double().numpy() for found in (seen.judged, judged))
        table = pd.DataFrame(
            {"before": first, "after": second, "change": second - first}, index=pd.Index(head.classes, name="class")
        )
    return Steered(before, after, cosine, float((after - before).abs().max()), table)


def rank_neighbours(
    query: Tensor, among: Tensor, labels: Sequence[str], k: int, *, leave_out: int | None = None
) -> pd.DataFrame:
    """Return the nearest of ``among`` (n, e) to ``query`` (e,), as `elude_nb.interpret.neighbours.find_neighbours` ranks them.

    Parameters
    ----------
    query, among
        Features; the mean over ``among`` is taken away from both, then the cosine counts.
    labels
        One for each of ``among``.
    k
        How many; fewer if there are not so many.
    leave_out
        The number of the image itself, if it is among them.

    Returns
    -------
    DataFrame
        ``rank`` from 1, ``image``, ``label`` and ``cosine``.

    Examples
    --------
    >>> rank_neighbours(torch.tensor([1.0, 0.0]), torch.eye(2), ["a", "b"], 1)["label"].tolist()
    ['a']
    """
    mean = among.mean(0)
    cosines = torch.nn.functional.cosine_similarity((query - mean)[None], among - mean, dim=1)
    if leave_out is not None:
        cosines[leave_out] = -torch.inf
    best, places = cosines.topk(min(k, len(among) - (leave_out is not None)))
    numbers = places.tolist()
    return pd.DataFrame(
        {
            "rank": range(1, len(numbers) + 1),
            "image": numbers,
            "label": [labels[number] for number in numbers],
            "cosine": best.tolist(),
        }
    )


def order_by_presence(present: Tensor, elsewhere: Tensor, concepts: Iterable[int]) -> list[int]:
    """Return concepts in the order in which they stand out in an image.

    Parameters
    ----------
    present
        How strongly each concept speaks in the image at its loudest patch, (g,).
    elsewhere
        The same in other images, (n, g): from how strongly it speaks there, in standard deviations, it is judged.
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
