"""A gallery whose images are scored by the pass that fills it, and can be looked at while they come in."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
import torch

from elude_nb._util.arithmetic import own_arithmetic
from elude_nb._util.checks import check_count
from elude_nb._util.progress import announced, progress_bar
from elude_nb._util.words import counted
from elude_nb.core.recording import Recording, draw_tokens
from elude_nb.core.result import Disentanglement
from elude_nb.data.copies import check_enough
from elude_nb.data.images import Images
from elude_nb.interpret.descriptions import described
from elude_nb.interpret.gallery import Gallery, Sight
from elude_nb.scores.overview import N_DISTINCT, TOKENS_PER_IMAGE, Scoring, score


class ScoredGallery(Gallery):
    """A gallery that is scored by the pass that fills it.

    Parameters
    ----------
    split, images, max_memory
        As for `Gallery`.
    seed
        Of the random routes and of the draw of tokens, as in `elude_nb.score`.

    Examples
    --------
    >>> import elude_nb as en
    >>> from elude_nb.interpret import ScoredGallery
    >>> model = en.load_model("vit_tiny_patch16_224", pretrained=False)
    >>> images = en.load_images("shapes", count=24)
    >>> split = en.disentangle(model, images[:12], concepts=8, units=2, progress=False)
    >>> gallery = ScoredGallery(split, images[12:])
    >>> list(gallery.growing(first=4))
    [4, 8, 12]
    >>> sorted(gallery.scores(k=3).kind.unique())
    ['channel', 'random route', 'sub-unit']
    """

    def __init__(self, split: Disentanglement, images: Images, *, max_memory: float = 1.0, seed: int = 0) -> None:
        super().__init__(split, images, max_memory=max_memory, watch=self._score)
        self._seed = seed
        # Where the tokens of the split are none of the gallery's, the score needs a pass of its own.
        self._scoring = Scoring(split, seed=seed) if split.settings.tokens == "patch" else None

    def _score(self, seen: Sight, first: int) -> None:
        if self._scoring is None:
            return
        numbers = range(first, first + len(seen.sources))
        every = torch.arange(seen.sources.shape[1])
        rows, places = draw_tokens(every, None, TOKENS_PER_IMAGE, numbers, self._seed)
        channels = seen.channels[rows, places]
        sources = seen.sources[rows, places] + self.split.book.source_mean()
        self._scoring.add(Recording(channels, sources, torch.zeros_like(channels), first + rows, places))

    def growing(self, first: int = 16) -> Iterator[int]:
        """Run the images; yield how many are ready: ``first``, twice as many, and so on, and in the end all.

        Whenever it yields, the concepts are described by the images that are ready.

        Raises
        ------
        ValueError
            If ``first`` is no number of images.
        """
        check_count("first", first)
        total, show = len(self.images), self.split.model.progress
        size = min(self.split.model.batch_size, first)
        steps = self.steps(size)
        what = f"gallery: {counted(total, 'image')}"
        steps = announced(steps, what, lambda one: one * -(-total // size), show=show)
        with progress_bar(description="gallery", total=total, show=show, unit="image") as bar:
            for done in steps:
                bar.update(done)
                if self.ready < min(first, total):
                    continue
                plain = shown = self.split
                if self.ready < total and self.has_concepts:
                    self.split = shown = described(plain, self.concept_maps.amax(1), self.distinct, self.images)
                yield self.ready
                if self.ready < total and self.split is shown:
                    self.split = plain  # more images describe the concepts anew
                first = 2 * self.ready

    @own_arithmetic()
    def scores(self, k: int = 10, *, n_distinct: int = N_DISTINCT) -> pd.DataFrame:
        """Return the table of `elude_nb.score` on these images; no forward pass is made if its tokens are patches.

        Raises
        ------
        ValueError
            If not all images are ready, or there are fewer than ``k``.
        """
        if self.ready < len(self.images):
            raise ValueError(f"{self.ready} of {counted(len(self.images), 'image')} are ready; run the others first.")
        check_count("k", k, 2, self.ready)
        check_count("n_distinct", n_distinct, 0)
        if self._scoring is None:
            return score(self.split, self.images, k=k, n_distinct=n_distinct, seed=self._seed)
        check_enough("k", k, len(self.distinct), self.ready)
        embeddings = self.outputs - self.outputs[self.distinct].mean(0)
        return self._scoring.table(self.images, self.distinct, embeddings, k=k, n_distinct=n_distinct)
