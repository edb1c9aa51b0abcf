from __future__ import annotations

import math

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elude_nb import embed, load_images, score
from elude_nb.core.routing import shuffled
from elude_nb.scores import (
    label_share_over_chance,
    mixed_channels,
    score_means,
    sibling_similarity,
    top_centres,
    top_purity,
    top_similarity,
)
from tests.tiny import hook_count, random_images


def drawn(n: int, u: int, e: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    activations = torch.randn(n, u, generator=generator, dtype=torch.float64)
    return activations, torch.randn(n, e, generator=generator, dtype=torch.float64)


def slow_similarity(activations: torch.Tensor, embeddings: torch.Tensor, k: int) -> list[float]:
    """Mean over pairs i < j of the k best images of cos(e_i, e_j); a vector of zeros is like no other."""

    def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
        norms = float(a.norm() * b.norm())
        return float(a @ b) / norms if norms else 0.0

    found = []
    for unit in range(activations.shape[1]):
        best = sorted(range(len(activations)), key=lambda i: -float(activations[i, unit]))[:k]
        pairs = [(i, j) for i in best for j in best if i < j]
        found.append(sum(cosine(embeddings[i], embeddings[j]) for i, j in pairs) / len(pairs))
    return found


@settings(deadline=None, max_examples=40)
@given(n=st.integers(2, 12), u=st.integers(0, 4), e=st.integers(1, 5), k=st.integers(2, 12), seed=st.integers(0, 1000))
def test_similarity_is_the_mean_over_pairs(n, u, e, k, seed) -> None:
    activations, embeddings = drawn(n, u, e, seed)
    embeddings[seed % n] = 0
    k = min(k, n)
    found = top_similarity(activations, embeddings, k)
    assert found.tolist() == pytest.approx(slow_similarity(activations, embeddings, k), abs=1e-12)


def test_identical_images_give_one_and_orthogonal_ones_zero_and_opposite_ones_minus_one() -> None:
    activations = drawn(8, 3, 1)[0]
    same = torch.tensor([[1.0, -2.0, 3.0]]) * torch.arange(1.0, 9.0)[:, None]  # lengths do not matter
    assert top_similarity(activations, same.double(), 5).tolist() == pytest.approx([1.0] * 3)
    assert top_similarity(activations, 7 * torch.eye(8).double(), 5).tolist() == pytest.approx([0.0] * 3, abs=1e-15)
    opposite = torch.tensor([[1.0], [-1.0]])
    assert top_similarity(torch.tensor([[1.0], [2.0]]), opposite, 2).tolist() == [-1.0]


def test_similarity_does_not_depend_on_the_order_of_images() -> None:
    activations, embeddings = drawn(30, 6, 4)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    pd.testing.assert_series_equal(
        top_similarity(activations, embeddings, 7), top_similarity(activations[order], embeddings[order], 7)
    )


def test_similarity_does_not_depend_on_scale_or_offset_of_a_unit() -> None:
    activations, embeddings = drawn(30, 6, 4)
    scaled = activations * torch.tensor([0.1, 1, 3, 50, 1000, 1e-6]) + torch.arange(6)
    pd.testing.assert_series_equal(top_similarity(activations, embeddings, 7), top_similarity(scaled, embeddings, 7))


def test_a_constant_unit_scores_nothing() -> None:
    activations, embeddings = drawn(10, 3, 4)
    activations[:, 1] = 2.5
    assert top_similarity(activations, embeddings, 4).isna().tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("shape", "other", "k", "message"),
    [
        ((5, 2), (5, 3), 6, "k=6 best of 5 images"),
        ((5, 2), (5, 3), 1, "k=1 "),
        ((5, 2), (4, 3), 2, r"must be \(n, u\), \(n, e\)"),
        ((5,), (5, 3), 2, r"activations must be \(n, u\)"),
        ((5, 2), (5, 3, 1), 2, r"embeddings must be \(n, e\)"),
    ],
)
def test_similarity_of_what_does_not_fit_is_refused(shape, other, k, message) -> None:
    with pytest.raises(ValueError, match=message):
        top_similarity(torch.rand(shape), torch.rand(other), k)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(wrong) -> None:
    activations, embeddings = drawn(6, 2, 3)
    for tensor in (activations, embeddings):
        kept = tensor[2, 0].item()
        tensor[2, 0] = wrong
        with pytest.raises(ValueError, match="NaN or infinite"):
            top_similarity(activations, embeddings, 3)
        tensor[2, 0] = kept


def test_purity_of_a_hand_case() -> None:
    labels = ["cat", "dog", "cat", "dog", "owl"]
    activations = torch.tensor([[5.0, 1.0, 5.0], [1.0, 5.0, 4.0], [4.0, 0.0, 1.0], [0.0, 4.0, 0.0], [3.0, 3.0, 3.0]])
    # best three: cat cat owl; dog dog owl; cat dog owl
    assert top_purity(activations, labels, 3).tolist() == pytest.approx([2 / 3, 2 / 3, 1 / 3])
    assert top_purity(activations, labels, 2).tolist() == pytest.approx([1.0, 1.0, 0.5])
    assert top_purity(activations, ["cat"] * 5, 4).tolist() == [1.0] * 3
    assert top_purity(activations[:, :0], labels, 2).shape == (0,)


def test_purity_needs_a_label_for_each_image() -> None:
    with pytest.raises(ValueError, match=r"4 labels .* 5 images"):
        top_purity(torch.rand(5, 2), ["a"] * 4, 2)
    with pytest.raises(ValueError, match="k=6 "):
        top_purity(torch.rand(5, 2), ["a"] * 5, 6)


def test_embeddings_are_the_outputs_less_their_mean(vit, images) -> None:
    found = embed(vit, images)
    outputs = torch.cat([vit(vit.prepare([image])) for image in images])
    torch.testing.assert_close(found, outputs - outputs.mean(0), rtol=1e-10, atol=1e-10)
    assert not found.requires_grad


def slow_score(split, images, tokens: str, k: int, seed: int) -> dict[tuple[str, int, int], float]:
    """Literal second implementation: each unit's largest activation in each image, then pairs of images."""
    n = len(images)
    seen = split.recording(images, tokens=tokens)
    weight = split.site.weight(split.model.network).unflatten(1, (-1, split.site.kernel))
    products = (seen.sources - split.book.source_mean()).unflatten(1, (-1, split.site.kernel))
    embeddings = embed(split.model, images)
    found = {}

    def put(kind: str, channel: int, unit: int, values: torch.Tensor) -> None:
        found[kind, channel, unit] = slow_similarity(values.view(n, -1).amax(1)[:, None], embeddings, k)[0]

    for channel in range(split.site.channels):
        put("channel", channel, 1, seen.channels[:, channel])
        put("channel", channel, -1, -seen.channels[:, channel])
        for kind, routing in (("sub-unit", split.routing), ("random route", shuffled(split.routing, seed))):
            for unit in sorted(set(routing.routes[channel].tolist()) - {0}):
                mine = routing.routes[channel] == unit
                of_concept = split.book.mean_sources()[routing.concepts[channel, unit - 1]].view(-1, split.site.kernel)
                turn = -1 if float((weight[channel, mine] * of_concept[mine]).sum()) < 0 else 1
                put(kind, channel, unit, turn * torch.einsum("tsp,sp->t", products[:, mine], weight[channel, mine]))
    return found


@pytest.mark.parametrize(
    ("name", "pictures", "tokens"), [("split", "images", "patch"), ("conv_split", "small_images", "patch")]
)
def test_scores_are_those_of_a_literal_loop(request, name, pictures, tokens) -> None:
    split, images = request.getfixturevalue(name), request.getfixturevalue(pictures)
    table = score(split, images, tokens=tokens, tokens_per_image=None, k=4, seed=2, progress=False)
    expected = slow_score(split, images, tokens, k=4, seed=2)
    found = table.set_index(["kind", "channel", "unit"])["top_similarity"].to_dict()
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=1e-9), key


def test_every_unit_has_a_row(split, images) -> None:
    table = score(split, images, k=4, progress=False)
    assert table["kind"].unique().tolist() == ["channel", "sub-unit", "random route"]
    scores = ["top_similarity", "monosemanticity", "ms_score", "redundancy", "redundancy_distinct",
              "sibling_similarity", "top_purity", "label_share_over_chance"]  # fmt: skip
    assert sorted(table.columns) == sorted(["kind", "channel", "unit", "distinct", *scores])
    assert table.loc[table["kind"] == "channel", "sibling_similarity"].isna().all()
    assert (table["kind"] == "channel").sum() == 2 * 24
    real, random = (
        set(zip(*(table.loc[table["kind"] == kind, column] for column in ("channel", "unit")), strict=True))
        for kind in ("sub-unit", "random route")
    )
    assert real == random
    units = split.units[split.units["unit"] > 0]
    assert real == set(zip(units["channel"], units["unit"], strict=True))
    assert table["top_similarity"].between(-1, 1).all()
    assert table["top_purity"].between(1 / 4, 1).all()
    assert hook_count(split.model.network) == 0


def test_scores_are_deterministic_and_the_seed_deals_the_random_routes(split, images) -> None:
    tables = [
        score(split, images, k=4, tokens_per_image=None, seed=seed, progress=False).set_index("kind")["top_similarity"]
        for seed in (0, 0, 1)
    ]
    assert tables[0].equals(tables[1])
    for kind in ("channel", "sub-unit"):
        assert tables[0][kind].equals(tables[2][kind])
    assert not tables[0]["random route"].equals(tables[2]["random route"])


def test_images_without_labels_have_no_purity(split, images) -> None:
    table = score(split, load_images(list(images)), k=4, progress=False)
    assert not {"top_purity", "label_share_over_chance"} & set(table)


def test_embeddings_of_another_encoder_are_used(split, images) -> None:
    same = torch.ones(len(images), 3)
    table = score(split, images, k=4, embeddings=same, progress=False)
    assert table["top_similarity"].tolist() == pytest.approx([1.0] * len(table))


def test_too_few_images_are_refused(split) -> None:
    with pytest.raises(ValueError, match=r"k=10 .*2 and 6"):
        score(split, random_images(6, 32), progress=False)


def slow_ms(split, images, tokens: str, channel: int, unit: int, count: int) -> float:
    """The paper's score of one unit, image by image and pair by pair."""
    n = len(images)
    seen = split.recording(images, tokens=tokens)
    vectors = seen.channels.view(n, -1, split.site.channels)
    weight = split.routing.masked(split.weight, torch.tensor([channel]), torch.tensor([unit]))[0]
    values = int(split.signs[channel, unit]) * ((seen.sources - split.book.source_mean()) @ weight).view(n, -1)
    highest = [float(values[i].max()) for i in range(n)]
    places = [int(values[i].argmax()) for i in range(n)]
    low, high = min(highest), max(highest)
    best = sorted(range(n), key=lambda i: -highest[i])[:count]
    above = below = 0.0
    for a in best:
        for b in best:
            if a != b:
                pair = (highest[a] - low) * (highest[b] - low) / (high - low) ** 2
                one, other = vectors[a, places[a]], vectors[b, places[b]]
                above += pair * float(one @ other / (one.norm() * other.norm()))
                below += pair
    return above / below


def test_the_ms_score_is_that_of_a_literal_loop_at_the_very_token(split, images) -> None:
    table = score(split, images, tokens_per_image=None, k=4, progress=False)
    rows = table[table["kind"] == "sub-unit"].sample(12, random_state=0)
    for row in rows.to_dict("records"):
        expected = slow_ms(split, images, "patch", row["channel"], row["unit"], count=4)
        assert row["ms_score"] == pytest.approx(expected, abs=1e-9)


def slow_label_share(activations: torch.Tensor, labels: list[str], k: int) -> list[float]:
    """Draw every pair of two different images: of a unit's best, and of all."""

    def share(chosen: list[int]) -> float:
        pairs = [(i, j) for i in chosen for j in chosen if i != j]
        return sum(labels[i] == labels[j] for i, j in pairs) / len(pairs)

    best = [activations[:, u].argsort(descending=True)[:k].tolist() for u in range(activations.shape[1])]
    return [share(each) / share(list(range(len(labels)))) for each in best]


@pytest.mark.parametrize("k", [2, 5])
def test_how_often_two_best_images_share_a_label_is_that_of_all_pairs(k) -> None:
    activations, _ = drawn(14, 6, 1)
    labels = ["cat", "dog", "cat", "owl", "dog", "cat", "fox"] * 2
    found = label_share_over_chance(activations, labels, k)
    assert found.tolist() == pytest.approx(slow_label_share(activations, labels, k))


def test_label_share_has_no_value_where_chance_is_zero_or_a_unit_constant() -> None:
    activations = torch.tensor([[1.0, 3.0], [1.0, 2.0], [1.0, 1.0]])
    assert label_share_over_chance(activations, ["a", "b", "c"], 2).isna().all()
    assert label_share_over_chance(activations, ["a", "a", "c"], 2).isna().tolist() == [True, False]
    assert float(label_share_over_chance(activations, ["a", "a", "c"], 2)[1]) == pytest.approx(3.0)
    with pytest.raises(ValueError, match="k=4 "):
        label_share_over_chance(activations, ["a"] * 3, 4)


def test_equally_many_of_each_kind_are_distinct_and_means_are_given_of_both(split, images) -> None:
    table = score(split, images, k=4, n_distinct=7, progress=False)
    some = table[table["distinct"]]
    assert some.groupby("kind").size().to_dict() == {"channel": 7, "sub-unit": 7, "random route": 7}
    assert table["redundancy_distinct"].notna().equals(table["distinct"])
    mine = split.distinct_units(7)
    chosen = some[some["kind"] == "sub-unit"]
    assert set(zip(chosen["channel"], chosen["unit"], strict=True)) == set(
        zip(mine["channel"], mine["unit"], strict=True)
    )
    assert (some["redundancy_distinct"] <= some["redundancy"] + 1e-12).all()
    means = score_means(table).set_index(["kind", "score"])
    for kind in ("channel", "sub-unit", "random route"):
        of_all, of_some = table[table["kind"] == kind], some[some["kind"] == kind]
        assert means.loc[(kind, "redundancy"), "mean"] == pytest.approx(of_all["redundancy"].mean())
        found = (f"distinct {kind}", "redundancy")
        assert means.loc[found, "mean"] == pytest.approx(of_some["redundancy_distinct"].mean())
        assert means.loc[found, "units"] == 7
        assert means.loc[(f"distinct {kind}", "ms_score"), "mean"] == pytest.approx(of_some["ms_score"].mean())
    nothing = score(split, images, k=4, n_distinct=0, progress=False)
    assert not nothing["distinct"].any()
    assert set(score_means(nothing)["kind"]) == {"channel", "sub-unit", "random route"}


def test_dead_sub_units_of_the_published_rule_are_not_scored(elude_split, images) -> None:
    live = elude_split.live_units
    table = score(elude_split, images, k=4, progress=False)
    for kind in ("sub-unit", "random route"):
        rows = table[table["kind"] == kind]
        assert list(zip(rows["channel"], rows["unit"], strict=True)) == list(
            zip(live["channel"], live["unit"], strict=True)
        )
    assert len(live) < int((elude_split.units["unit"] > 0).sum())


COLUMNS = ["kind", "channel", "unit", "top_similarity", "sibling_similarity"]
NONE = float("nan")


def test_mixed_channels_of_a_hand_case() -> None:
    rows = [
        ("channel", 0, 1, 0.2, NONE), ("channel", 0, -1, 0.9, NONE),
        ("channel", 1, 1, 0.1, NONE), ("channel", 1, -1, 0.9, NONE),
        ("channel", 2, 1, 0.7, NONE), ("channel", 2, -1, 0.7, NONE),
        ("sub-unit", 0, 1, 0.3, 0.0), ("sub-unit", 0, 2, 0.5, 0.1),
        ("sub-unit", 1, 1, 0.6, 0.5), ("sub-unit", 1, 2, 0.8, 0.6),
        ("random route", 0, 1, 0.1, 0.3), ("random route", 0, 2, 0.2, 0.3), ("random route", 1, 1, 0.05, 0.3),
    ]  # fmt: skip
    table = mixed_channels(pd.DataFrame(rows, columns=COLUMNS))
    assert table.index.tolist() == [0, 1]  # channel 1 gains more, but its sub-units are alike; channel 2 was not split
    expected = {"before": 0.2, "after": 0.4, "random routes": 0.15, "siblings": 0.05, "separation": 0.2}
    assert table.loc[0].to_dict() == pytest.approx(expected)
    expected = {"before": 0.1, "after": 0.7, "random routes": 0.05, "siblings": 0.55, "separation": 0.15}
    assert table.loc[1].to_dict() == pytest.approx(expected)


def test_of_nothing_split_no_channel_is_mixed() -> None:
    table = mixed_channels(pd.DataFrame([("channel", 0, 1, 0.2, NONE), ("channel", 0, -1, 0.9, NONE)], columns=COLUMNS))
    assert len(table) == 0
    assert table.columns.tolist() == ["before", "after", "random routes", "siblings", "separation"]


def test_sibling_similarity_is_the_mean_over_pairs_of_images_of_two_units() -> None:
    activations, embeddings = drawn(9, 5, 4)
    channels = torch.tensor([7, 2, 7, 7, 3])
    found = sibling_similarity(top_centres(activations, embeddings, 3), channels)
    unit = embeddings / embeddings.norm(dim=1, keepdim=True)
    best = [activations[:, u].argsort(descending=True)[:3].tolist() for u in range(5)]
    for mine, siblings in {0: [2, 3], 2: [0, 3], 3: [0, 2]}.items():
        cosines = [float(unit[i] @ unit[j]) for other in siblings for i in best[mine] for j in best[other]]
        assert float(found[mine]) == pytest.approx(sum(cosines) / len(cosines), abs=1e-12)
    assert found[[1, 4]].isna().all()
    assert sibling_similarity(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)).shape == (0,)
