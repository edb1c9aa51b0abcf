"""compare: one table, the same images and tokens for all methods, equal numbers of live units, honest fidelity."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from elude_nb import compare, find_site, record
from elude_nb.app.compare_page import write_comparison
from elude_nb.baselines import PCA, Channels, SubUnits, TopK
from elude_nb.baselines.compare import DEFAULT_METHODS, table_of_methods
from elude_nb.baselines.evaluate import most_selective
from elude_nb.core.distinct import choose_covering, standardise
from elude_nb.core.recording import Recording
from elude_nb.figures import score_intervals, tradeoff
from elude_nb.scores.verdict import HIGHER_IS_BETTER
from tests.baselines import AVAILABLE
from tests.tiny import hook_count, random_images, tiny_vit

QUICK: dict[str, Any] = {
    "n_units": 12,
    "concepts": 6,
    "sub_units": 3,
    "sparsity": 3,
    "k": 4,
    "tokens_per_image": 8,
    "progress": False,
}
LOSSLESS = {"sub-units", "concepts", "channels", "random routes", "hidden units", "virtual neurons"}
ELUDE = ["ELUDe as published", "signed rule", "random groups"]  # HDBSCAN needs more tokens than the others
METHODS = [name for name in AVAILABLE if name not in ELUDE]


@pytest.fixture(scope="module")
def compared():
    return compare(tiny_vit(torch.float32), random_images(48, 32), methods=list(METHODS), **QUICK)


def test_every_method_has_a_row_of_each_size(compared) -> None:
    assert list(compared.methods) == list(METHODS)
    rows = compared.table.groupby("size")["method"].apply(list)
    assert rows["own"] == rows["equal"] == rows["distinct"] == list(METHODS)
    equal = compared.table.loc[compared.table["size"] != "own", "units"]
    assert set(equal) == {compared.settings["equal_units"]}
    own = compared.table[compared.table["size"] == "own"]
    assert (own["units"] >= compared.settings["equal_units"]).all()
    counts = compared.units.groupby(["size", "method"]).size()
    for row in compared.table.itertuples():
        assert counts[row.size, row.method] == row.units


def test_lossless_methods_change_nothing_and_the_others_do(compared) -> None:
    table = compared.table.drop_duplicates("method").set_index("method")
    for method in METHODS:
        if method in LOSSLESS:
            assert table.loc[method, "output_change"] == 0.0
            assert table.loc[method, "unexplained_variance"] == 0.0
        else:
            assert table.loc[method, "output_change"] > 0.0
    for method in ("PCA", "ICA", "NMF", "k-means", "TopK SAE"):
        assert table.loc[method, "unexplained_variance"] > 0.01
    assert table.loc["overlapping groups", "output_change"] < 1e-4  # rounding, of terms that cancel
    assert table.loc["k-means", "output_change"] > 1e-3


def test_no_score_is_silently_missing(compared) -> None:
    scores = [name for name in HIGHER_IS_BETTER if name in compared.table]
    assert len(scores) >= 12
    assert compared.table[scores].notna().all().all()
    for name in ("top_similarity", "redundancy", "best_unit_precision"):
        low, mean, high = (compared.table[f"{name}{end}"] for end in ("_low", "", "_high"))
        assert ((low <= mean) & (mean <= high)).all()


def test_it_is_deterministic_and_leaves_the_model_alone() -> None:
    model, images = tiny_vit(torch.float32), random_images(40, 32)
    before = model.fingerprint()
    methods = ["sub-units", "PCA", "k-means", "TopK SAE"]
    one, other = (compare(model, images, methods=methods, **QUICK).table for _ in range(2))
    scores = [name for name in HIGHER_IS_BETTER if name in one]
    pd.testing.assert_frame_equal(one[scores], other[scores])
    assert model.fingerprint() == before
    assert hook_count(model.network) == 0


def test_discovery_and_scored_images_are_apart() -> None:
    """What is fitted does not depend on the images that are scored."""
    model, images = tiny_vit(torch.float32), random_images(40, 32)
    first, second = images[:20], images[20:]
    fitted = [
        compare(model, first, held_out=held_out, methods=["PCA"], **QUICK).methods["PCA"]
        for held_out in (second, second[:12])
    ]
    assert torch.equal(fitted[0].project_, fitted[1].project_)  # type: ignore[attr-defined]


@pytest.mark.parametrize("given", [False, True])
def test_methods_are_fitted_on_images_that_are_not_scored(vit32, monkeypatch, given) -> None:
    runs: list[set[str]] = []

    def spy(model, images, *places, **how):
        runs.append(set(images.names))
        return record(model, images, *places, **how)

    monkeypatch.setattr("elude_nb.baselines.compare.record", spy)
    images = random_images(40, 32)
    where: dict[str, Any] = {"held_out": images[25:]} if given else {}
    found = compare(vit32, images[:25] if given else images, methods=["channels", "sub-units"], **QUICK, **where)
    discovery, scored = runs
    assert not discovery & scored
    assert discovery | scored == set(images.names)
    assert (found.settings["discovery_images"], found.settings["scored_images"]) == (len(discovery), len(scored))
    assert (len(discovery), len(scored)) == ((25, 15) if given else (20, 20))


def test_rows_of_equal_size_have_the_most_selective_of_the_live_units(vit32) -> None:
    found = compare(vit32, random_images(40, 32), methods=["channels", "PCA"], **{**QUICK, "n_units": 6})
    assert found.settings["equal_units"] == 6
    for method in ("channels", "PCA"):
        rows = found.units[found.units["method"] == method]
        own, equal = (rows[rows["size"] == size].set_index("unit") for size in ("own", "equal"))
        assert set(equal.index) < set(own.index) or len(own) == 6
        assert equal["density"].equals(own.loc[equal.index, "density"])  # the same unit, wherever it is scored


def test_distinct_units_are_chosen_on_images_of_the_discovery_for_every_method_alike(vit32) -> None:
    images = random_images(40, 32)
    found = compare(vit32, images, methods=["channels", "sub-units", "PCA"], **{**QUICK, "n_units": 6})
    first = images.split(0.5, seed=0)[0]
    seen = Recording.join(list(record(vit32, first, find_site(vit32, "stream"), tokens="patch", tokens_per_image=8)))
    for name, method in found.methods.items():
        rows = found.units[found.units["method"] == name]
        live = sorted(rows.loc[rows["size"] == "own", "unit"])
        values = method.encode(seen)[:, live].view(20, -1, len(live)).amax(1)  # of 20 images
        chosen = torch.tensor(live)[choose_covering(standardise(values.float()), 6)]
        assert rows.loc[rows["size"] == "distinct", "unit"].tolist() == chosen.tolist()


def test_the_published_method_its_rival_rule_and_its_control_are_there_by_name(vit32) -> None:
    settings = {**QUICK, "tokens_per_image": None}
    found = compare(vit32, random_images(120, 32), methods=["channels", *ELUDE], **settings)
    strategies = {name: found.methods[name].strategy for name in ELUDE}  # type: ignore[attr-defined]
    assert [(each.rule, each.groups) for each in strategies.values()] == [
        ("published", "hdbscan"), ("signed", "hdbscan"), ("signed", "random"),
    ]  # fmt: skip
    published = found.methods["ELUDe as published"].split_  # type: ignore[attr-defined]
    own = found.units[(found.units["method"] == "ELUDe as published") & (found.units["size"] == "own")]
    assert 0 < len(own) <= len(published.live_units)
    assert set(found.table.loc[found.table["size"] == "distinct", "units"]) == {found.settings["equal_units"]}
    assert found.table[["ms_score", "label_share_over_chance"]].notna().all().all()
    assert not set(ELUDE) & set(DEFAULT_METHODS)


def slow_ms_score(values: np.ndarray, vectors: np.ndarray, count: int) -> float:
    """One unit: values and vectors of every image's tokens, (n, t) and (n, t, e)."""
    highest, places = values.max(1), values.argmax(1)
    best = np.argsort(-highest)[:count]
    weights = (highest[best] - highest.min()) / (highest.max() - highest.min())
    unit = np.stack([vectors[i, places[i]] / np.linalg.norm(vectors[i, places[i]]) for i in best])
    pairs = [(i, j) for i in range(len(best)) for j in range(len(best)) if i < j]
    above = sum(weights[i] * weights[j] * unit[i] @ unit[j] for i, j in pairs)
    return float(above / sum(weights[i] * weights[j] for i, j in pairs))


def test_the_ms_score_is_of_recorded_tokens_of_the_scored_images(vit32) -> None:
    images = random_images(40, 32)
    found = compare(vit32, images, methods=["channels"], **QUICK)
    scored = images.split(0.5, seed=0)[1]
    new = Recording.join(list(record(vit32, scored, find_site(vit32, "stream"), tokens="patch", tokens_per_image=8)))
    values = found.methods["channels"].encode(new).view(20, 8, -1).double().numpy()
    vectors = new.channels.view(20, 8, -1).double().numpy()
    own = found.units[found.units["size"] == "own"].set_index("unit")
    for unit in own.index:
        if values[..., unit].max() > 0:
            expected = slow_ms_score(values[..., unit], vectors, count=4)
            assert own.loc[unit, "ms_score"] == pytest.approx(expected, abs=1e-4)


def test_labels_can_be_given_for_the_scored_images(vit32) -> None:
    images, first = random_images(40, 32), ["channels"]
    own = compare(vit32, images, methods=first, **QUICK).table["labels"]
    given = compare(vit32, images, methods=first, labels=[*"abcd"] * 5, **QUICK).table["labels"]
    assert own.tolist() == [3, 3, 3]
    assert given.tolist() == [4, 4, 4]


def test_a_method_that_fails_half_way_leaves_no_hook(vit32, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no channels")

    monkeypatch.setattr(PCA, "decode", fail)
    with pytest.raises(RuntimeError, match="no channels"):
        compare(vit32, random_images(40, 32), methods=["channels", "PCA"], **QUICK)
    assert hook_count(vit32.network) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"methods": ["sub-unit"]}, "'sub-unit'.*'sub-units'"),
        ({"methods": [Channels(), Channels()]}, r"\['channels', 'channels'\]"),
        ({"methods": ["PCA", "PCA"]}, r"\['PCA', 'PCA'\]"),
        ({"methods": []}, r"\[\]"),
        ({"methods": "PCA"}, "method='P'"),
        ({"k": 3}, "k=3"),
        ({"seed": -1}, "seed=-1"),
        ({"concepts": 1}, "concepts=1"),
        ({"sub_units": 1, "methods": ["sub-units"]}, "units=1"),
        ({"shared": 1.5, "methods": ["concepts"]}, "shared=1.5"),
        ({"fidelity_images": 1}, "fidelity_images=1"),
        ({"labels": ["a"] * 3}, "3 labels .* 20 images"),
        ({"tokens": "patches"}, "'patches'.*'patch'"),
        ({"k": 30}, "20 images .* k=30"),
        ({"max_memory": 1e-6}, "max_memory=1e-06"),
        ({"n_units": 1}, "n_units=1"),
    ],
)
def test_bad_input_is_refused_before_tokens_are_recorded(vit32, monkeypatch, settings, message) -> None:
    monkeypatch.setattr("elude_nb.baselines.compare.record", lambda *_, **__: pytest.fail("the model was run"))
    with pytest.raises(ValueError, match=message):
        compare(vit32, random_images(40, 32), **{**QUICK, **settings})


def test_too_few_images_to_score_on_are_refused(vit32) -> None:
    with pytest.raises(ValueError, match=r"7 images .* k=4"):
        compare(vit32, random_images(14, 32), methods=["channels"], **QUICK)
    assert len(compare(vit32, random_images(16, 32), methods=["channels"], **QUICK).table) == 3


def test_methods_that_need_labels_say_so(vit32) -> None:
    images = np.random.default_rng(0).random((30, 32, 32, 3))
    with pytest.raises(ValueError, match="'two-class split'"):
        compare(vit32, images, methods=["two-class split"], **QUICK)
    table = compare(vit32, images, methods=["channels"], **QUICK).table
    assert "best_unit_precision" not in table


def test_the_old_name_of_the_number_of_units_warns(vit32) -> None:
    settings_ = {name: value for name, value in QUICK.items() if name != "n_units"}
    with pytest.warns(DeprecationWarning, match="n_units"):
        found = compare(vit32, random_images(40, 32), methods=["PCA"], units=6, **settings_)
    assert found.settings["equal_units"] == found.settings["units"] == 6


def test_methods_can_be_objects(vit32) -> None:
    site = find_site(vit32, "stream")
    methods = [SubUnits(vit32, site, concepts=6, units=k, name=f"K {k}") for k in (2, 3)]
    found = compare(vit32, random_images(40, 32), methods=[*methods, TopK(8, 2)], **QUICK)
    assert list(found.methods) == ["K 2", "K 3", "TopK SAE"]


def slow_most_selective(activations: torch.Tensor, groups: torch.Tensor) -> list[int]:
    a = activations.numpy()
    z = (a - a.mean(0)) / np.maximum(a.std(0, ddof=1), 1e-30)
    means = np.array([z[groups.numpy() == g].mean(0) for g in range(int(groups.max()) + 1)])
    home, worth = means.argmax(0), means.max(0)
    by_worth = sorted(range(a.shape[1]), key=lambda unit: -worth[unit])
    turn = {u: sum(home[o] == home[u] for o in by_worth[: by_worth.index(u)]) for u in by_worth}
    return sorted(by_worth, key=lambda unit: turn[unit])


@pytest.mark.parametrize("seed", range(4))
def test_the_most_selective_are_those_of_a_literal_search(seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    activations = torch.randn(200, 9, generator=generator, dtype=torch.float64)
    groups = torch.randint(4, (200,), generator=generator)
    assert most_selective(activations, groups).tolist() == slow_most_selective(activations, groups)


def test_leaders_name_the_best_and_ours(compared) -> None:
    leaders = compared.leaders()
    equal = compared.table[compared.table["size"] == "equal"].set_index("method")
    for score, row in leaders.iterrows():
        best = equal[score].max() if HIGHER_IS_BETTER[str(score)] else equal[score].min()
        assert row["its_score"] == best == equal.loc[row["leader"], score]
        assert row["ours"] in {"sub-units", "concepts"}
        assert row["ours_leads"] == (row["our_score"] == best)
    assert compared.best("unexplained_variance") in LOSSLESS
    for score in leaders.index:
        assert compared.best(str(score)) == leaders.loc[score, "leader"]
    with pytest.raises(ValueError, match=r"'redundance'.*'redundancy'"):
        compared.best("redundance")
    for ask in (lambda: compared.best("redundancy", "all"), lambda: compared.leaders("all")):
        with pytest.raises(ValueError, match=r"'all'.*'distinct', 'equal', 'own'"):
            ask()
    with pytest.raises(ValueError, match="nobody"):
        compared.leaders(ours=["nobody"])


def test_the_table_marks_the_best_of_each_column(compared) -> None:
    html = table_of_methods(compared.table, "equal")
    marked = re.findall(r'<td class="best">([^<]*)</td>', html)
    assert len(marked) >= len([name for name in HIGHER_IS_BETTER if name in compared.table])
    assert html.count("<tr>") == 1 + len(METHODS)
    assert "\N{EN DASH}" in table_of_methods(compared.table.assign(redundancy=float("nan")), "equal")


def test_four_files_are_written_and_agree(compared, tmp_path) -> None:
    paths = write_comparison(compared, tmp_path / "deep" / "out")
    assert [path.name for path in paths] == ["compare.csv", "units.csv", "compare.json", "compare.html"]
    assert sorted(path.name for path in (tmp_path / "deep" / "out").iterdir()) == sorted(p.name for p in paths)
    table = pd.read_csv(paths[0])
    found = json.loads(paths[2].read_text())
    assert [row["method"] for row in found["rows"]] == table["method"].tolist() == compared.table["method"].tolist()
    np.testing.assert_allclose(table["top_similarity"], compared.table["top_similarity"])
    assert found["settings"]["seed"] == 0
    page = paths[3].read_text(encoding="utf-8")
    assert not re.findall(r"(?:src|href)=\"?https?:", page)
    assert page.count("<img") == 6  # three, for light pages and for dark ones


def test_pictures_of_methods_say_in_words_what_they_show(compared) -> None:
    picture = tradeoff(compared, "top_similarity")
    assert "sub-units" in picture.alt
    assert len(picture.axes[0].texts) == 1 + len(METHODS)
    other = score_intervals(compared, ["redundancy", "effective_rank"])
    assert [place.get_title(loc="left")[:-2] for place in other.axes] == ["redundancy", "effective rank"]
    assert picture.png()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match=r"'redundance'.*'redundancy'"):
        tradeoff(compared, "redundance")
    with pytest.raises(ValueError, match=r"'all'.*'distinct', 'equal', 'own'"):
        tradeoff(compared, size="all")


def test_verdicts_judge_the_best_of_ours_and_stand_under_each_table(compared) -> None:
    words, page = repr(compared), compared._repr_html_()
    for size in compared.table["size"].unique():
        for said in compared.verdicts(size):
            rows = compared.table[compared.table["size"] == size].set_index("method")[said.score]
            assert said.subject == compared.leaders(size)["ours"].to_dict()[said.score]
            assert said.mean.mean == pytest.approx(rows[said.subject])
            assert {name: mean.mean for name, (mean, _) in said.others.items()} == pytest.approx(
                rows.drop(said.subject).dropna().to_dict()
            )
            assert str(said) in words or size != "equal"
            assert said._repr_html_() in page
    with pytest.raises(ValueError, match="effective_rank"):  # no score of single units
        compared.verdict("effective_rank")


def test_fewer_units_than_asked_for_are_explained() -> None:
    model, images = tiny_vit(torch.float32), random_images(24, 32)
    found = compare(model, images, methods=["channels", "PCA"], **{**QUICK, "n_units": 500})
    own = found.table[found.table["size"] == "own"].set_index("method")["units"]
    assert own.min() == found.settings["equal_units"] < 500
    (note,) = found.notes()
    assert note.startswith(f"{own.min()} units each, though 500 were asked for: {own.idxmin()!r} has no more")
    assert note in repr(found)
    few = compare(model, images, methods=["channels", "PCA"], **{**QUICK, "n_units": 2})
    assert few.notes() == []


def test_without_a_method_of_ours_there_is_no_verdict() -> None:
    found = compare(tiny_vit(torch.float32), random_images(16, 32), methods=["channels", "PCA"], **QUICK)
    assert found.verdicts() == []
    assert "Compared(channels, PCA" in repr(found)


def test_stability_says_how_well_units_are_found_again(vit32) -> None:
    from elude_nb.baselines.registry import METHODS

    images, names = random_images(48, 32, seed=2), ["channels", "k-means", "sub-units"]
    settings: dict[str, Any] = {"n_units": 8, "concepts": 6, "k": 4, "fidelity_images": 8, "progress": False}
    found = compare(vit32, images, "blocks.2.mlp.fc2", methods=names, stability=True, **settings)
    table = found.table[found.table["size"] == "equal"].set_index("method")
    seeds, halves = (table[name].to_dict() for name in ("stability_seeds", "stability_halves"))
    assert (seeds["channels"], halves["channels"]) == pytest.approx((1, 1))
    assert table["stability_halves"].between(-1, 1).all()
    assert (table["stability_halves_low"] <= table["stability_halves"]).all()
    assert 0 < halves["k-means"] < 1
    plain = compare(vit32, images, "blocks.2.mlp.fc2", methods=names, **settings)
    assert "stability_seeds" not in plain.table
    shared = [name for name in map(str, plain.table) if "seconds" not in name]
    pd.testing.assert_frame_equal(found.table[shared], plain.table[shared])  # it changes nothing else
    with pytest.raises(ValueError, match="'k-means' by a name"):
        compare(vit32, images, "blocks.2.mlp.fc2", methods=[METHODS["k-means"](found_plan(vit32))], stability=True,
                **settings)  # fmt: skip


def found_plan(model: Any) -> Any:
    from elude_nb.baselines.registry import Plan

    return Plan(model, find_site(model, "blocks.2.mlp.fc2"))
