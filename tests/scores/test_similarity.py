"""Scores over a reference embedding, against literal loops over pairs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elude_nb.scores import (
    best_images,
    localised_monosemanticity,
    monosemanticity,
    ms_score,
    polysemanticity,
    top_similarity,
)


def drawn(n: int, u: int, e: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(size, generator=generator, dtype=torch.float64) for size in ((n, u), (n, e)))  # type: ignore


def slow_monosemanticity(a: np.ndarray, e: np.ndarray) -> float:
    a = (a - a.min()) / (a.max() - a.min())
    above = below = 0.0
    for i in range(len(a)):
        for j in range(i):
            above += a[i] * a[j] * float(e[i] @ e[j] / np.linalg.norm(e[i]) / np.linalg.norm(e[j]))
            below += a[i] * a[j]
    return above / below


@settings(deadline=None, max_examples=30)
@given(n=st.integers(3, 14), u=st.integers(1, 4), e=st.integers(1, 5), seed=st.integers(0, 1000))
def test_linear_time_is_the_sum_over_pairs(n, u, e, seed) -> None:
    activations, embeddings = drawn(n, u, e, seed)
    found = monosemanticity(activations, embeddings)
    expected = [slow_monosemanticity(activations[:, k].numpy(), embeddings.numpy()) for k in range(u)]
    assert found.tolist() == pytest.approx(expected, abs=1e-9)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000))
def test_order_of_images_and_scale_of_units_do_not_matter(seed) -> None:
    activations, embeddings = drawn(20, 5, 4, seed)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(seed))
    scaled = activations * torch.tensor([0.1, 2, 30, 1, 7]) + torch.arange(5)
    for score in (monosemanticity, lambda a, e: polysemanticity(a, e, 6)):
        expected = score(activations, embeddings)
        pd.testing.assert_series_equal(score(activations[order], embeddings[order]), expected)
        pd.testing.assert_series_equal(score(scaled, embeddings * 3), expected)


def test_hand_cases() -> None:
    activations = torch.rand(6, 2, generator=torch.Generator().manual_seed(0))
    assert monosemanticity(activations, torch.ones(6, 3)).tolist() == pytest.approx([1.0, 1.0])
    assert monosemanticity(activations, torch.eye(6)).tolist() == pytest.approx([0.0, 0.0], abs=1e-6)
    # two kinds of best images, at a right angle: the centres of the two clusters have cosine 0
    two = torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0]] * 3)
    assert polysemanticity(activations, two, 6).tolist() == pytest.approx([1.0, 1.0])
    assert polysemanticity(activations, torch.ones(6, 2), 6).tolist() == pytest.approx([0.0, 0.0], abs=1e-6)


def test_two_clusters_are_those_of_k_means_where_they_are_clear() -> None:
    from sklearn.cluster import KMeans

    generator = torch.Generator().manual_seed(3)
    activations = torch.randn(60, 8, generator=generator)
    centres = torch.nn.functional.normalize(torch.randn(2, 6, generator=generator), dim=1)
    embeddings = centres[torch.arange(60) % 2] + 0.1 * torch.randn(60, 6, generator=generator)
    found = polysemanticity(activations, embeddings, 20)
    unit = torch.nn.functional.normalize(embeddings, dim=1)
    for u in range(8):
        best = unit[activations[:, u].topk(20).indices].numpy()
        a, b = KMeans(2, n_init=5, random_state=0).fit(best).cluster_centers_
        assert found[u] == pytest.approx(1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-4)


def test_top_similarity_is_the_clarity_of_semanticlens() -> None:
    activations, embeddings = drawn(20, 4, 5)
    unit = torch.nn.functional.normalize(embeddings, dim=1)
    best = unit[activations[:, 2].topk(6).indices]
    expected = (float(best.mean(0).square().sum()) - 1 / 6) * 6 / 5
    assert top_similarity(activations, embeddings, 6)[2] == pytest.approx(expected)


def test_localised_score_sees_places_where_random_ones_do_not() -> None:
    """Every image has one patch of a common kind among others of its own; one unit looks there, one elsewhere."""
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(30, 9, 16, generator=generator)
    where = torch.randint(9, (30,), generator=generator)
    patches[torch.arange(30), where] = 4 * torch.ones(16)
    heat = torch.zeros(30, 9, 2)
    heat[torch.arange(30), where, 0] = 1
    heat[torch.arange(30), (where + 1) % 9, 1] = 1
    table = localised_monosemanticity(heat, patches, seed=0)
    assert table["c2"].tolist()[0] == pytest.approx(1.0, abs=1e-5)
    assert table["random"].tolist()[0] < 0.5
    assert abs(table["c2"].tolist()[1]) < 0.2
    by_hand = patches[torch.arange(30), (where + 1) % 9] - patches.mean((0, 1))
    assert table.loc[1, "c2"] == pytest.approx(
        slow_monosemanticity(np.r_[np.ones(30), 0], np.r_[by_hand, by_hand[:1]]), abs=1e-5
    )


def test_constant_units_and_lone_images_have_no_score() -> None:
    activations, embeddings = drawn(8, 3, 4)
    activations[:, 1] = 2.0
    activations[:, 2] = 0.0
    activations[3, 2] = 1.0
    assert monosemanticity(activations, embeddings).isna().tolist() == [False, True, True]
    assert polysemanticity(activations, embeddings, 4).isna().tolist() == [False, True, False]


@pytest.mark.parametrize("score", [monosemanticity, polysemanticity, top_similarity])
def test_bad_input_is_refused(score) -> None:
    activations, embeddings = drawn(8, 3, 4)
    activations[2, 1] = torch.nan
    with pytest.raises(ValueError, match="row 2, column 1"):
        score(activations, embeddings)
    with pytest.raises(ValueError, match="over the same images"):
        score(torch.rand(8, 3), embeddings[:5])
    if score is not monosemanticity:
        with pytest.raises(ValueError, match="8 images"):
            score(torch.rand(8, 3), embeddings, 9)
    with pytest.raises(ValueError, match=r"must be \(n, p, u\) and \(n, p, e\)"):
        localised_monosemanticity(torch.rand(3, 4, 2), torch.rand(3, 5, 6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("small", [1e-4, 1e-8, 1e-12, 1e-20])
def test_a_unit_that_one_image_raises_far_above_the_rest_keeps_its_score(small, dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    activations = small * torch.rand(30, 1, generator=generator, dtype=dtype)
    activations[:5] = 0
    activations[7] = 1
    embeddings = torch.randn(30, 4, generator=generator, dtype=dtype)
    expected = slow_monosemanticity(activations[:, 0].double().numpy(), embeddings.double().numpy())
    assert monosemanticity(activations, embeddings)[0] == pytest.approx(expected, abs=1e-5)


def test_scores_stay_in_their_range_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    activations = torch.rand(200, 40, generator=generator).repeat(1, 2)  # every unit has a copy
    same = torch.randn(1, 64, generator=generator).expand(200, 64)
    assert monosemanticity(activations, same).max() <= 1


@settings(deadline=None, max_examples=20)
@given(n=st.integers(2, 6), p=st.integers(1, 4), u=st.integers(1, 3), seed=st.integers(0, 1000))
def test_localised_score_is_the_sum_over_pairs_of_heat_weighted_means(n, p, u, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    heat = torch.randn(n, p, u, generator=generator) + 0.3
    patches = torch.randn(n, p, 5, generator=generator)
    found = localised_monosemanticity(heat, patches)
    hot, places = heat.clamp(min=0).double().numpy(), (patches - patches.mean((0, 1))).double().numpy()
    for unit in range(u):
        means = np.einsum("np,npe->ne", hot[:, :, unit], places)
        weights = hot[:, :, unit].max(1)
        raised = weights > 0
        if raised.sum() < 2:
            assert np.isnan(found["c2"][unit])
        else:
            weights, means = np.r_[weights[raised], 0], np.r_[means[raised], means[raised][:1]]
            assert found["c2"][unit] == pytest.approx(slow_monosemanticity(weights, means), abs=1e-4)
    if p == 1:  # one place: nowhere else to deal the heat
        pd.testing.assert_series_equal(found["random"], found["c2"], check_names=False)
    pd.testing.assert_frame_equal(localised_monosemanticity(7 * heat, patches), found, atol=1e-4)
    pd.testing.assert_series_equal(
        localised_monosemanticity(heat.flip(0), patches.flip(0))["c2"], found["c2"], atol=1e-4
    )


def test_localised_score_takes_arrays_gradients_and_no_units_and_its_seed_decides() -> None:
    generator = torch.Generator().manual_seed(0)
    heat, patches = torch.rand(6, 9, 2, generator=generator), torch.randn(6, 9, 5, generator=generator)
    found = localised_monosemanticity(heat, patches)
    frozen = heat.numpy().copy()
    frozen.flags.writeable = False
    pd.testing.assert_frame_equal(localised_monosemanticity(frozen, patches), found)
    pd.testing.assert_frame_equal(localised_monosemanticity(heat.clone().requires_grad_(), patches), found)
    other = localised_monosemanticity(heat, patches, seed=1)
    assert other["c2"].tolist() == found["c2"].tolist()
    assert other["random"].tolist() != found["random"].tolist()
    assert localised_monosemanticity(heat[:, :, :0], patches).shape == (0, 2)
    heat[1, 2, 0] = torch.nan
    with pytest.raises(ValueError, match="heat"):
        localised_monosemanticity(heat, patches)
    with pytest.raises(ValueError, match=r"must be \(n, p, u\) and \(n, p, e\)"):
        localised_monosemanticity(torch.rand(0, 4, 2), torch.rand(0, 4, 6))


@pytest.mark.parametrize(("score", "least"), [(top_similarity, 2), (polysemanticity, 2)])
def test_too_few_best_images_to_compare_are_refused(score, least) -> None:
    activations, embeddings = drawn(8, 3, 4)
    assert len(score(activations, embeddings, least)) == 3
    with pytest.raises(ValueError, match=f"k={least - 1} "):
        score(activations, embeddings, least - 1)


@settings(deadline=None, max_examples=30)
@given(n=st.integers(1, 9), u=st.integers(0, 3), k=st.integers(1, 9), seed=st.integers(0, 1000))
def test_best_images_are_the_highest_of_each_unit(n, u, k, seed) -> None:
    (activations, _), k = drawn(n, u, 1, seed), min(k, n)
    expected = [sorted(range(n), key=[-value for value in column].__getitem__)[:k] for column in activations.T.tolist()]
    assert best_images(activations, k).T.tolist() == expected
    assert [best_images(column, k).tolist() for column in activations.T] == expected
    assert best_images(activations.numpy() > 10, k).shape == (k, u)  # whether a unit fires
    for wrong in (torch.zeros(()), torch.zeros(n, u, 1)):
        with pytest.raises(ValueError, match="activations"):
            best_images(wrong, k)
    with pytest.raises(ValueError, match="image 1 are NaN"):
        best_images(torch.tensor([0.0, torch.nan, 2.0]), 1)


@pytest.mark.parametrize("centred", [False, True])
def test_the_ms_score_is_the_papers_formula(centred) -> None:
    """Pair by pair, in NumPy, over a few units, images and tokens."""
    generator = torch.Generator().manual_seed(0)
    activations = torch.randn(30, 5, 4, generator=generator, dtype=torch.float64)
    representations = torch.randn(30, 5, 6, generator=generator, dtype=torch.float64) + 1
    activations[:, :, 3] = -1 - activations[:, :, 3].abs()  # never fires
    found = ms_score(activations, representations, count=8, centred=centred)
    a, r = activations.numpy(), representations.numpy()
    r = r - r.mean((0, 1)) if centred else r
    for unit in range(3):
        highest = a[:, :, unit].max(1)
        best = sorted(range(30), key=lambda image: -highest[image])[:8]
        weights = [(highest[image] - highest.min()) / (highest.max() - highest.min()) for image in best]
        vectors = [r[image, a[image, :, unit].argmax()] for image in best]
        vectors = [vector / np.sqrt((vector**2).sum()) for vector in vectors]
        pairs = [(i, j) for i in range(8) for j in range(8) if i != j]
        above = sum(weights[i] * weights[j] * (vectors[i] @ vectors[j]) for i, j in pairs)
        below = sum(weights[i] * weights[j] for i, j in pairs)
        assert found[unit] == pytest.approx(above / below)
    assert np.isnan(found[3])


def test_the_ms_score_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"\(3, 2\)"):
        ms_score(torch.zeros(3, 2), torch.zeros(3, 2, 4))
    with pytest.raises(ValueError, match="count"):
        ms_score(torch.rand(3, 2, 1), torch.rand(3, 2, 4), count=1)
