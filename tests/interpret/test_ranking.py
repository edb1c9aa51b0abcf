from __future__ import annotations

import pytest
import torch

from elude_nb import disentangle
from elude_nb.interpret.gallery import Gallery
from elude_nb.interpret.ranking import rank_channels


@pytest.fixture(scope="module")
def gallery(split, images) -> Gallery:
    return Gallery(split, images[:12]).fill(progress=False)


def slowly(gallery: Gallery, channel: int, k: int) -> tuple[float, float, float]:
    """Return what is compared for one channel, from its view and images two by two."""
    vectors = gallery.outputs[gallery.distinct] - gallery.outputs[gallery.distinct].mean(0)
    unit = torch.nn.functional.normalize(vectors.double(), dim=1)
    view = gallery.channel(channel)
    live = view.routing.live()[0]
    tops = []
    for number in view.units["unit"].tolist():
        if number and live[number]:
            values = gallery.images_of_unit(channel, number).amax(1)[gallery.distinct]
            tops.append(values.topk(k).indices.tolist())
    whole = view.maps.sum(-1).amax(1)[gallery.distinct].topk(k).indices.tolist()

    def alike(left: list[int], right: list[int], *, same: bool) -> float:
        pairs = [(i, j) for a, i in enumerate(left) for b, j in enumerate(right) if not same or a != b]
        return sum(float(unit[i] @ unit[j]) for i, j in pairs) / len(pairs)

    after = [alike(top, top, same=True) for top in tops]
    others = [alike(a, b, same=False) for i, a in enumerate(tops) for j, b in enumerate(tops) if i != j]
    return alike(whole, whole, same=True), sum(after) / len(after), sum(others) / len(others)


def test_it_is_what_each_channels_images_say(gallery) -> None:
    found = rank_channels(gallery, k=3, candidates=5)
    assert len(found) == 5
    for channel, row in found.iterrows():
        before, after, siblings = slowly(gallery, int(str(channel)), 3)
        assert row["before"] == pytest.approx(before, abs=1e-3)
        assert row["after"] == pytest.approx(after, abs=1e-3)
        assert row["siblings"] == pytest.approx(siblings, abs=1e-3)
        assert row["separation"] == pytest.approx(row["after"] - max(row["before"], row["siblings"]))
    assert found["separation"].is_monotonic_decreasing


def test_with_all_channels_as_candidates_the_best_is_the_best(gallery) -> None:
    every = rank_channels(gallery, k=3, candidates=1000)
    counts = gallery.split.live_units["channel"].value_counts()
    assert set(every.index) == set(counts[counts > 1].index)
    assert every["separation"].iloc[0] == every["separation"].max()


def test_too_few_images_rank_nothing(gallery) -> None:
    assert rank_channels(gallery, k=7).empty


def test_sub_units_without_concepts(vit, images) -> None:
    split = disentangle(vit, images[:16], concepts=6, units=3, routing="channel-clusters", progress=False)
    gallery = Gallery(split, images[:12]).fill(progress=False)
    assert not gallery.has_concepts
    found = rank_channels(gallery, k=3, candidates=4)
    assert len(found) == 4
    assert torch.tensor(found.to_numpy()).isfinite().all()
