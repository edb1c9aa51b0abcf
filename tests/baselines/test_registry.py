"""Every method by its name, on the sites of real networks: fitted, encoded, repeatable, and never half ready."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from elude_nb import ImageSet, find_site, record
from elude_nb.baselines import METHODS, Method, Plan
from elude_nb.core.recording import Recording
from elude_nb.errors import NotFittedError
from tests.baselines import AVAILABLE
from tests.tiny import hook_count, random_images

SITES = {
    "stream": ("vit32", "images", "stream", "patch"),
    "convolution with BatchNorm": ("conv", "small_images", "stem", "patch"),
    "vector an image": ("mlp", "smallest_images", "3", "class"),
}
TRAINED = {"transcoder", *(name for name in AVAILABLE if "SAE" in name)}  # each fit takes a second: on one site
ELUDE = {"ELUDe as published", "signed rule", "random groups"}  # HDBSCAN needs more tokens than the others
CASES = [(place, name) for place in SITES for name in AVAILABLE if place == "stream" or name not in TRAINED | ELUDE]


@dataclass(frozen=True)
class Case:
    """A method that has been fitted on what was recorded of a tiny network."""

    name: str
    plan: Plan
    images: ImageSet
    seen: Recording
    labels: list[str]
    method: Method


@pytest.fixture(scope="module", params=CASES, ids=" / ".join)
def case(request) -> Case:
    kind, name = request.param
    model, pictures, place, tokens = SITES[kind]
    model, images = request.getfixturevalue(model), request.getfixturevalue(pictures)
    site, each = find_site(model, place), None if name in ELUDE else 4
    images = random_images(60, 32) if name in ELUDE else images
    seen = Recording.join(list(record(model, images, site, tokens=tokens, tokens_per_image=each)))
    plan = Plan(model, site, n_units=8, concepts=5, sub_units=3, sparsity=2, tokens=tokens, seed=3)
    assert images.labels is not None
    labels = [images.labels[number] for number in seen.images.tolist()]
    return Case(name, plan, images, seen, labels, METHODS[name](plan).fit(seen, labels))


def test_it_has_its_name_and_gives_finite_units(case) -> None:
    assert isinstance(case.method, Method)
    assert case.method.name == case.name
    assert repr(case.name) in repr(case.method)
    units = case.method.encode(case.seen)
    assert len(units) == len(case.seen)
    assert units.isfinite().all()
    assert (units.amax(0) > units.amin(0)).any()
    assert case.method.size_in_bytes() > 0


def test_reconstructions_have_the_channels_shape_and_sums_are_the_channels(case) -> None:
    made = case.method.reconstruct(case.seen)
    assert made.shape == case.seen.channels.shape
    assert made.isfinite().all()
    tolerance = 1e-4 if made.dtype == torch.float32 else 1e-9
    sums = {"sub-units", "random routes", "channels", "virtual neurons", "two-class split", "overlapping groups"}
    if case.name in sums | ELUDE:
        torch.testing.assert_close(made, case.seen.channels, rtol=tolerance, atol=tolerance)


def test_before_the_fit_it_says_so(case) -> None:
    with pytest.raises(NotFittedError, match=f"'{case.name}'"):
        METHODS[case.name](case.plan).encode(case.seen)


def test_the_seed_settles_it_and_it_looks_at_no_more_than_it_says(case) -> None:
    """Fitted again, without sources and labels where it needs none: the same units, bit for bit."""
    seen = case.seen
    if not case.method.needs_sources:
        seen = Recording(seen.channels, seen.sources[:, :0], seen.entering, seen.images, seen.positions)
    if case.method.needs_labels:
        with pytest.raises(ValueError, match=f"'{case.name}' needs labels"):
            METHODS[case.name](case.plan).fit(seen)
    again = METHODS[case.name](case.plan).fit(seen, case.labels if case.method.needs_labels else None)
    assert torch.equal(again.encode(seen), case.method.encode(case.seen))


def test_beside_the_model_it_changes_no_bit(case) -> None:
    model, network = case.plan.model, case.plan.model.network
    batch = model.prepare(list(case.images[:4]))
    with torch.no_grad():
        before = model(batch)
        with case.method.beside(network, case.plan.site):
            assert hook_count(network) > 0
            assert torch.equal(model(batch), before)
    assert hook_count(network) == 0
