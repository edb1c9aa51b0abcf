"""The analysis runs on the model's device: a GPU where there is one, and one that is worked out on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import elude_nb as en
from elude_nb.core import density, elude
from elude_nb.core.one_pass import plan_pass, run_pass
from elude_nb.core.strategies import RandomRouting
from tests.second_device import Away, second_device

OnDevice = Callable[[en.Model], AbstractContextManager[Any]]


@pytest.fixture(params=["worked out on the CPU", "cuda"])
def on_device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> OnDevice:
    """Return a context in which a model is on a device."""
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no GPU here")

        @contextmanager
        def moved(model: en.Model) -> Iterator[None]:
            model.network.cuda()
            try:
                yield
            finally:
                model.network.cpu()

        return moved
    # What intercepts torch's calls does so in one thread.
    monkeypatch.setattr(elude, "_in_threads", lambda work, number, _: map(work, range(number)))
    return lambda model: second_device(model.network)


def test_the_device_that_is_worked_out_keeps_tensors_apart() -> None:
    with second_device(torch.nn.Identity()) as watch:
        here = torch.ones(3, 2).to("cuda")
        assert isinstance(here, Away)
        assert torch.equal((here.T @ here).cpu(), torch.full((2, 2), 3.0))
        assert watch.bytes_back == 16
        with pytest.raises(RuntimeError, match="same device"):
            here + torch.ones(2)
        with pytest.raises(RuntimeError, match="same device"):
            torch.ones(3)[here[:, 0].long()]
        with pytest.raises(RuntimeError, match="numpy"):
            here.numpy()


PUBLISHED = en.EludeRouting(top_k=0.6, min_cluster_size=4, min_samples=1)


@pytest.mark.parametrize(
    ("site", "routing"),
    [
        ("stream", "concepts"),
        ("blocks.2.mlp.fc2", "channel-clusters"),
        ("blocks.2.mlp.fc2", PUBLISHED),
        ("stream", RandomRouting(replace(PUBLISHED, rule="signed", instances="micro-clusters"))),
    ],
    ids=["concepts", "channel-clusters", "published", "random"],
)
def test_a_split_and_its_scores_are_those_of_the_cpu(
    vit32: en.Model, images: en.ImageSet, on_device: OnDevice, site: str, routing: Any
) -> None:
    how: dict[str, Any] = {"routing": routing, "concepts": 8, "units": 3, "tokens_per_image": 6, "progress": False}
    expected = en.disentangle(vit32, images, site, **how)
    table = en.score(expected, images, k=4)
    with on_device(vit32):
        found = en.disentangle(vit32, images, site, **how)
        scores = en.score(found, images, k=4)
    tensors = found.routing.routes, found.book.source_sums, found.channel_variance, found.weight
    assert {each.device.type for each in tensors} == {"cpu"}
    assert expected.routing.live().any()
    same = (found.routing.routes == expected.routing.routes).float().mean()
    assert same == 1 if not torch.cuda.is_available() else same > 0.99  # a GPU rounds otherwise
    torch.testing.assert_close(found.book.source_sums, expected.book.source_sums, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.unit_shares, expected.unit_shares, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(scores.top_similarity, table.top_similarity, atol=1e-3)


@pytest.mark.parametrize("name", ["split", "elude_split", "conv_split"])
def test_what_is_read_checked_and_edited_is_that_of_the_cpu(
    request: pytest.FixtureRequest, on_device: OnDevice, name: str
) -> None:
    split: en.Disentanglement = request.getfixturevalue(name)
    inputs = request.getfixturevalue("small_images" if name == "conv_split" else "images")[:4]
    live = split.live_units.iloc[0]
    edit = en.Edit.ablate(concept=int(live["concept"]))

    def read() -> list[torch.Tensor]:
        with split.edit(edit):
            edited = split.model(split.model.prepare(list(inputs))).cpu()
        few = split.recording(inputs)
        return [split.activations(inputs, [(int(live["channel"]), int(live["unit"]))]), split.encode(few), edited]

    expected = read()
    with on_device(split.model):
        torch.testing.assert_close(read(), expected, rtol=1e-6, atol=1e-6)
        certificate = en.verify(split, inputs, images_float64=1)
    assert certificate.lens.max_abs_diff == 0
    assert not certificate.problems()


def test_few_bytes_of_the_sources_come_to_the_cpu(vit32: en.Model, images: en.ImageSet) -> None:
    planned = plan_pass(
        vit32, images, "stream", purpose="a test", concepts=2, units=2, tokens="all", tokens_per_image=None,
        max_memory=0.001, batch_size=2, progress=False,
    )  # fmt: skip
    expected = run_pass(planned)
    assert expected.cells is not None  # tokens are counted in cells, and not kept
    with second_device(vit32.network) as watch:
        found = run_pass(planned)
    torch.testing.assert_close(found.moments.products, expected.moments.products, rtol=1e-3, atol=1e-3)
    assert found.micro is not None
    assert expected.micro is not None
    assert torch.equal(found.micro.counts, expected.micro.counts)
    weights = sum(each.nbytes for each in vit32.network.state_dict().values())  # hashed
    sums = sum(each.nbytes for each in found.tensors().values())
    recorded = 4 * found.tokens * planned.place.sources
    channels = 4 * found.tokens * planned.place.channels  # of the sample, which the cells are made from
    assert watch.bytes_back < weights + sums + channels + 0.02 * recorded


@pytest.mark.parametrize("kept", [density.MOST_KEPT, 0])
def test_clusters_are_those_of_the_cpu(monkeypatch: pytest.MonkeyPatch, kept: int) -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(6, 12, generator=generator).repeat_interleave(20, dim=0)
    vectors = torch.nn.functional.normalize(centres + 0.2 * torch.randn(120, 12, generator=generator), dim=1)
    monkeypatch.setattr(density, "MOST_KEPT", kept)
    expected = density.cluster_by_density(vectors, min_cluster_size=8)
    with second_device(torch.nn.Identity()):
        found = [each.cpu() for each in density.cluster_by_density(vectors.to("cuda"), min_cluster_size=8)]
    assert int(expected[0].max()) == 5
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], atol=1e-4, rtol=0)
