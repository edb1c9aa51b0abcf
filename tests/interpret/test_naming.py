from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from elude_nb import disentangle, load_images
from elude_nb.interpret.descriptions import describe_concepts
from elude_nb.interpret.naming import ConceptNames, _choose, _enrichment, _usual_top, _without_doubles, name_concepts
from tests.interpret.test_find_units import holm_literal
from tests.tiny import hook_count, random_images

COUNT = 60


@pytest.fixture(scope="module")
def pictures():
    return random_images(COUNT, 32, seed=9)


def highest(split, images) -> np.ndarray[Any, Any]:
    """Return each concept's activation of each image, (n, g), at its highest token."""
    values = split.concept_activations(images)
    found: np.ndarray[Any, Any] = (values if values.ndim == 2 else values.amax(1)).numpy()
    return found


def labels_for(split, images, concept: int, count: int, word: str = "cat") -> list[str]:
    """Label the best images of a concept with a word, and the others with two words in turn."""
    best = set(highest(split, images)[:, concept].argsort()[::-1][:count].tolist())
    return [word if i in best else ("sky", "sea")[i % 2] for i in range(len(images))]


def test_the_tail_is_that_of_all_draws() -> None:
    """Draw 3 of 7 images in every possible way and count the label's."""
    labels = [0, 0, 1, 1, 1, 1, 2]
    totals = np.bincount(labels)
    draws = [Counter(some) for some in itertools.combinations(labels, 3)]
    for counts in itertools.product(range(4), repeat=3):
        found = _enrichment(np.array([counts]), totals, 7, 3)[0]
        for label, count in enumerate(counts):
            assert found[label] == pytest.approx(np.mean([drawn[label] >= count for drawn in draws]), abs=1e-12)


def fewest_literal(total: int, corrected: list[float]) -> int:
    """Return how many of 10 top images a label must have for a p-value below the next bound of Holm's procedure."""
    bound = 0.05 / (len(corrected) - sum(p <= 0.05 for p in corrected))
    return next(
        c for c in range(1, 12) if c > total or _enrichment(np.array([c]), np.array([total]), COUNT, 10)[0] <= bound
    )


@pytest.mark.parametrize(("name", "side"), [("split", 32), ("elude_split", 32), ("conv_split", 16), ("mlp_split", 8)])
def test_every_number_is_that_of_a_literal_search(request, name, side) -> None:
    split = request.getfixturevalue(name)
    images = random_images(COUNT, side, seed=9)
    labels = labels_for(split, images, concept=2, count=12)
    found = name_concepts(split, images, labels=labels, top=10)
    assert len(found.table) == len(split.book)
    values, words, p, rows = highest(split, images), ["cat", "sea", "sky"], [], []
    for concept in range(len(split.book)):
        best = sorted(range(COUNT), key=lambda i: -values[i, concept])[:10]
        for word in words:
            count = sum(labels[i] == word for i in best)
            lift = (count / 10) / (labels.count(word) / COUNT)
            p.append(float(_enrichment(np.array([[count]]), np.array([labels.count(word)]), COUNT, 10)[0, 0]))
            rows.append((concept, word, count, lift))
    corrected = holm_literal(p)
    for concept, shown in enumerate(found.table.to_dict("records")):
        mine = [i for i, row in enumerate(rows) if row[0] == concept]
        sure = [i for i in mine if corrected[i] <= 0.05]
        best_row = max(sure, key=lambda i: rows[i][2:]) if sure else min(mine, key=lambda i: p[i])
        _, word, count, lift = rows[best_row]
        assert shown["concept"] == concept
        assert shown["label"] == word
        assert shown["images"] == count
        assert shown["share"] == count / 10
        assert shown["lift"] == pytest.approx(lift)
        assert shown["p"] == pytest.approx(p[best_row])
        assert shown["p_corrected"] == pytest.approx(corrected[best_row])
        assert shown["name"].startswith(word if sure else "")
        assert bool(shown["name"]) == bool(sure)
        evidence = f"{count} of 10 top images, {lift:.1f} times the base rate"
        assert shown["evidence"] == evidence
        assert (shown["reason"] == "") == bool(sure)
        needed = fewest_literal(labels.count(word), corrected)
        short = f"{needed} needed" if needed <= min(10, labels.count(word)) else "too rare a label to tell"
        assert (
            sure
            or f"no label commoner than by chance: best {word!r}, {count} of 10 top images, {short}" in shown["reason"]
        )
    assert found.names[2] == "cat"
    assert found.table.loc[2, "images"] == 10


def test_labels_of_the_images_are_the_default(split, pictures) -> None:
    labels = labels_for(split, pictures, concept=1, count=12)
    one = name_concepts(split, pictures, labels=labels, top=10)
    for other in (
        name_concepts(split, pictures.with_labels(labels), top=10),
        name_concepts(split, pictures, labels=np.array(labels), top=10),
        name_concepts(split, pictures, labels=pd.Series([f" {label} " for label in labels]), top=10),
    ):
        pd.testing.assert_frame_equal(one.table, other.table)
    numbers = torch.tensor([int(label == "cat") for label in labels])
    assert name_concepts(split, pictures, labels=numbers, top=10).names[1] == "1"


def test_labels_that_mean_nothing_name_nothing(split) -> None:
    """Random labels, 30 times: a name at level 0.05 should come up in one or two of them."""
    rng = np.random.default_rng(0)
    images = random_images(COUNT, 32, seed=10)
    named = [
        bool(name_concepts(split, images, labels=rng.choice(list("abcd"), COUNT), top=10).names) for _ in range(30)
    ]
    assert sum(named) <= 4


def test_a_common_label_is_no_evidence(split, pictures) -> None:
    """Nearly all images bear it, and so do nearly all top images: lift 1, no name."""
    labels = ["photo"] * (COUNT - 2) + ["drawing"] * 2
    found = name_concepts(split, pictures, labels=labels, top=10)
    assert found.names == {}
    assert (found.table["name"] == "").all()
    assert found.table["reason"].eq("no label can be told from chance with 60 images").all()


def test_a_label_that_is_empty_gives_no_name(split, pictures) -> None:
    labels = labels_for(split, pictures, concept=1, count=12, word=" ")
    found = name_concepts(split, pictures, labels=labels, top=10)
    assert 1 not in found.names
    assert set(found.table["label"]) <= {"sea", "sky"}
    share = found.table.loc[found.table["label"] == "sky", ["share", "lift"]].iloc[0]
    assert share["lift"] == pytest.approx(share["share"] / (labels.count("sky") / COUNT))  # of all images


def test_names_can_be_taken_over(split, pictures) -> None:
    """Every concept whose top images are all cats bears a name of its own, and `with_names` takes them."""
    values = highest(split, pictures)
    cats = {i for concept in (0, 1, 2) for i in values[:, concept].argsort()[::-1][:8].tolist()}
    labels = ["cat" if i in cats else "dog" for i in range(COUNT)]
    found = name_concepts(split, pictures, labels=labels, top=8, level=0.2)
    assert {0, 1, 2} <= set(found.names)
    by_p = found.table[found.table["label"] == "cat"].sort_values(["p", "concept"])
    by_p = by_p[by_p["name"] != ""]
    assert by_p["name"].tolist() == ["cat", *(f"cat ({i})" for i in range(2, len(by_p) + 1))]
    named = split.with_names(found.names)
    assert named.names == found.names
    assert all(type(concept) is int for concept in found.names)
    assert named.concepts_named("cat") == sorted(by_p["concept"])


def test_concepts_of_a_label_are_those_that_were_named_after_it(split, pictures) -> None:
    """With labels "crane" and "crane (2)", the concepts of the one are none of the other's."""
    values = highest(split, pictures)
    cranes = {i for concept in (0, 1) for i in values[:, concept].argsort()[::-1][:8].tolist()}
    others = set(values[:, 2].argsort()[::-1][:8].tolist()) - cranes
    labels = ["crane" if i in cranes else "crane (2)" if i in others else "sky" for i in range(COUNT)]
    found = name_concepts(split, pictures, labels=labels, top=8, level=0.2)
    named = split.with_names(found.names)
    for label in ("crane", "crane (2)"):
        mine = found.table.loc[(found.table["label"] == label) & (found.table["name"] != ""), "concept"].tolist()
        assert mine
        assert named.concepts_named(label) == mine


def test_of_labels_that_stand_out_the_largest_share_gives_the_name() -> None:
    p, lift = np.array([1e-3, 1e-9, 1e-6, 1e-7]), np.array([9.0, 30.0, 4.0, 5.0])
    counts = np.array([12, 5, 10, 10])
    assert _choose(p, np.array([False, True, True, True]), counts, lift) == 3  # of equal shares the larger lift
    assert _choose(p, np.array([True, True, True, True]), counts, lift) == 0
    assert _choose(p, np.zeros(4, dtype=bool), counts, lift) == 1  # none stands out: the smallest p is shown


def test_doubles_are_numbered_past_names_that_are_taken() -> None:
    words = ["cat", "", "cat", "cat (2)", "cat", ""]
    assert _without_doubles(words, np.array([2, 1, 0, 4, 3, 5])) == ["cat (3)", "", "cat", "cat (2)", "cat (4)", ""]
    assert _without_doubles(["a", "b"], np.array([1, 0])) == ["a", "b"]


def test_a_concept_that_never_changes_has_no_best_images(split, pictures) -> None:
    """Concept 3 loses all its sub-units, so its read-out is 0 everywhere and its 'top images' are the first ones."""
    routes = split.routing.routes.clone()
    concepts = split.routing.concepts.clone()
    for channel, unit in (concepts == 3).nonzero().tolist():
        routes[channel][routes[channel] == unit + 1] = 0
    silent = dataclasses.replace(split, routing=dataclasses.replace(split.routing, routes=routes))
    labels = ["first"] * 10 + ["other"] * (COUNT - 10)
    found = name_concepts(silent, pictures, labels=labels, top=10)
    assert 3 not in found.names
    assert found.table["reason"].eq("the same on all images").tolist() == [i == 3 for i in range(8)]
    assert found.table.loc[3, "p_corrected"] == 1
    assert found.names.descriptions.keys() == set(range(8)) - {3}
    assert silent.with_names(found.names).concept_title(3) == "concept 3"


def test_it_says_in_short_what_it_is(split, pictures) -> None:
    found = name_concepts(split, pictures, labels=labels_for(split, pictures, 1, 12, "<b>"), top=10)
    assert isinstance(found, ConceptNames)
    few = int((split.book.counts < 20).sum()) - int(split.book.counts[1] < 20)  # concept 1 has a name
    kinds = {"few tokens, no label commoner than by chance": few, "no label commoner than by chance": 7 - few}
    counted = [f"{count}: {kind}" for kind, count in sorted(kinds.items(), key=lambda pair: -pair[1]) if count]
    assert repr(found) == f"ConceptNames(1 of 8 concepts named by labels; {'; '.join(counted)})"
    page = found._repr_html_()
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert (found.source, found.top, found.level) == ("labels", 10, 0.05)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.top = 3  # type: ignore[misc]


def test_so_few_images_are_judged_by_fewer_of_them(split, pictures) -> None:
    """Of 24 images, 20 are nearly all, and no label can be commoner among them than among all."""
    few = pictures[:24].with_labels(labels_for(split, pictures[:24], concept=1, count=6))
    assert name_concepts(split, few).top == 6
    assert name_concepts(split, few).names[1] == "cat"
    assert name_concepts(split, few, top=20).table["reason"].eq("no label can be told from chance with 24 images").all()


@pytest.mark.parametrize("totals", [[6] * 4, [16, 16, 16, 12], [6] * 10, [30, 30], [58, 2], [2] * 15])
def test_by_default_the_smallest_share_of_top_images_tells_labels_from_chance(totals) -> None:
    """All numbers up to a quarter of the images are tried, at the bound of Holm's first step for 8 concepts."""
    n, bound = sum(totals), 0.05 / (8 * len(totals))
    shares = {}
    for top in range(1, n // 4 + 1):
        found = []
        for total in totals:
            most = min(top, total)
            tails = [_enrichment(np.array([c]), np.array([total]), n, top)[0] for c in range(1, most + 1)]
            found.append(next((c / most for c, p in enumerate(tails, 1) if p <= bound), 1.05))
        shares[top] = np.mean(found)
    best = min(shares.values())
    assert _usual_top(np.array(totals), n, bound) == max(top for top, share in shares.items() if share <= best + 1e-12)


def test_images_without_a_label_are_a_reason(split, pictures) -> None:
    labels = labels_for(split, pictures, concept=1, count=12, word=" ")
    found = name_concepts(split, pictures, labels=labels, top=10)
    assert "most top images have no label: 10 of 10" in str(found.table.loc[1, "reason"])
    assert "most top images have no label" in repr(found)


# ------------------------------------------------------------- descriptions


def test_a_description_is_the_commonest_label_of_the_top_images_with_its_count(split, pictures) -> None:
    labels = labels_for(split, pictures, concept=2, count=12)
    best = highest(split, pictures).argsort(0)[::-1][:6]  # (6, g)
    found = name_concepts(split, pictures, labels=labels, top=10)
    for concept in range(8):
        label, count = Counter(labels[i] for i in best[:, concept].tolist()).most_common(1)[0]
        assert found.names.descriptions[concept] == f"{label}-like, {count} of 6 images"
    assert found.table["description"].tolist() == list(found.names.descriptions.values())
    alone = describe_concepts(split, pictures.with_labels(labels))
    assert (alone, alone.descriptions) == ({}, found.names.descriptions)


def test_without_labels_it_is_the_first_of_the_top_images(split, pictures) -> None:
    names = tuple(f"rockets/IMG_{i:04}.jpg" for i in range(COUNT))
    best = highest(split, pictures).argmax(0).tolist()
    unlabelled = dataclasses.replace(pictures, names=names, labels=None)
    like = {concept: f"like IMG_{i:04}" for concept, i in enumerate(best)}
    assert describe_concepts(split, unlabelled).descriptions == like
    for labels in (names, [" "] * COUNT, [None] * COUNT):  # no two alike, or none
        assert describe_concepts(split, unlabelled, labels=labels).descriptions == like
    whole = dataclasses.replace(unlabelled, names=tuple(f"a / b.c {'x' * 60} {i}" for i in range(COUNT)))
    assert describe_concepts(split, whole).descriptions[0] == f"like a / b.c {'x' * 31}…"  # not a file


@pytest.mark.parametrize(("labels", "message"), [(["a", "b"], "2 labels .* 60 images"), ([], "0 labels")])
def test_labels_that_do_not_fit_are_said(split, pictures, labels, message) -> None:
    with pytest.raises(ValueError, match=message):
        describe_concepts(split, pictures, labels=labels)


def test_the_model_is_left_as_it_was(vit, split, pictures) -> None:
    before = hook_count(vit.network)
    name_concepts(split, pictures[:12], labels=["a", "b"] * 6, top=4)
    assert hook_count(vit.network) == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": ["a"] * 12}, "'a'"),
        ({"labels": ["a", "b"]}, "2 .* 12"),
        ({"labels": ["a", None] * 6}, "6 "),
        ({"labels": ["a", float("nan")] * 6}, "6 "),
        ({"top": 12}, "top=12 .* 11"),
        ({"top": 0}, "top=0"),
        ({"level": 1}, "level=1.0"),
        ({"tokens": "pixels"}, "tokens='pixels'"),
    ],
)
def test_what_is_wrong_is_said(split, pictures, settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        name_concepts(split, pictures[:12], **{"labels": ["a", "b"] * 6, "top": 4, **settings})


def test_images_without_labels_say_so(split, pictures) -> None:
    with pytest.raises(ValueError, match="labels="):
        name_concepts(split, load_images(list(pictures[:12])), top=4)


def test_without_concepts_there_is_nothing_to_name(vit, images) -> None:
    split = disentangle(
        vit, images, concepts=8, units=3, tokens_per_image=6, routing="channel-clusters", progress=False
    )
    with pytest.raises(ValueError, match="channel-clusters"):
        name_concepts(split, images, top=4)
