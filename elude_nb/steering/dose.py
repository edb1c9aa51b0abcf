"""What fading one concept does to each class at several doses, a few images at a time, so that a panel can wait.

`elude_nb.steering.effects.effect` measures the same at once, chooses the class on other images, and has controls.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd
import torch
from torch import Tensor

from elude_nb._util.arithmetic import own_arithmetic
from elude_nb.data.images import ImageSet
from elude_nb.models.forward import Rest, features
from elude_nb.models.hooks import evaluating
from elude_nb.steering.controls import describe_edit
from elude_nb.steering.effects import Measure
from elude_nb.steering.heads import class_codes
from elude_nb.steering.interventions import run_interventions
from elude_nb.steering.live import LiveSteering

DOSES = (0.25, 0.5, 0.75, 1.0)


class DoseCurve:
    """The fall of each class's probability as a concept is faded out: 0 is the model as it is, 1 the concept gone.

    Parameters
    ----------
    live
        Live steering with a head.
    concept
        The concept.
    images
        Images with labels; those whose label the head does not know are left out.
    doses
        Which doses besides 0.

    Attributes
    ----------
    images
        Those that are measured.
    ready
        How many of them have run.

    Raises
    ------
    ValueError
        If there is no head, or the images have fewer than two of its classes.
    """

    def __init__(self, live: LiveSteering, concept: int, images: ImageSet, doses: Sequence[float] = DOSES) -> None:
        if live.head is None:
            raise ValueError("What becomes of the classes is measured with a head, as from fit_head.")
        known = set(live.head.classes)
        labels = images.labels or ()
        self.images = images.subset([number for number, label in enumerate(labels) if label in known])
        if len(set(self.images.labels or ())) < 2:
            raise ValueError(f"Specificity needs images of two classes at least that the head knows: {sorted(known)}.")
        self._live, self.concept, self.doses = live, concept, tuple(sorted(doses))
        self._head, self._rest = live.head, Rest(live.split.model, live.split.site, live.read_head or features)
        self._before: list[Tensor] = []
        self._after: dict[float, list[Tensor]] = {dose: [] for dose in self.doses}
        self.ready = 0

    def steps(self, batch_size: int = 2) -> Iterator[int]:
        """Run the images ``batch_size`` at a time; yield after each batch how many are ready.

        Raises
        ------
        EditError
            If an edit is active on the model.
        """
        live = self._live
        edit = describe_edit(live.split, live.edit({self.concept: 0.0}))
        while self.ready < len(self.images):
            live.check_free()
            stop = min(self.ready + batch_size, len(self.images))
            with own_arithmetic(), evaluating(live.split.model.network):
                batch = self.images[self.ready : stop]
                model = live.split.using(batch_size=batch_size, progress=False)
                found = run_interventions(model, self._rest, batch, [edit], self.doses)
            self._before.append(found.before)
            for dose in self.doses:
                self._after[dose].append(found.after[0, dose][0])
            self.ready = stop
            yield self.ready

    @property
    def table(self) -> pd.DataFrame:
        """One row a dose, 0 first, with ``target``, ``drop``, ``others``, ``worst``, ``worst_class``, ``specificity``.

        Drops are of the probability of the true class, means over a class's images, as in `effect`. The target is the
        class that falls most at the largest dose, chosen on these same images.

        Raises
        ------
        ValueError
            If images have not run yet.
        """
        if self.ready < len(self.images):
            raise ValueError(f"{self.ready} of {len(self.images)} images have run; finish steps() first.")
        codes = class_codes(self._head, self.images.labels or ())
        before = torch.cat(self._before)
        after = {dose: [torch.cat(parts)] for dose, parts in self._after.items()}
        falls = Measure(self._head, before, codes, 0).by_class(after[self.doses[-1]])
        target = list(self._head.classes).index(str(falls.idxmax()))
        measure = Measure(self._head, before, codes, target)
        rows = [
            {"dose": dose, "target": measure.target, **measure.of(outputs)}
            for dose, outputs in ((0.0, [before]), *after.items())
        ]
        columns = ["dose", "target", "drop", "others", "worst", "worst_class", "specificity"]
        return pd.DataFrame(rows)[columns]
