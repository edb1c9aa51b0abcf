from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from elude_nb import Disentanglement
from elude_nb._util.files import load_result, save_result
from elude_nb.core.edit import Edit
from elude_nb.core.names import UniqueNames
from elude_nb.errors import EditError, StoreError


def test_at_first_there_are_no_names(split) -> None:
    assert split.names == {}
    assert "name" not in split.units.columns


def test_naming_makes_a_new_object_and_merges(split) -> None:
    one = split.with_names({3: "cat", 5: " dog "})
    assert split.names == {}
    assert one.names == {3: "cat", 5: "dog"}
    other = one.with_names({3: "tiger", np.int64(0): "sky"})
    assert one.names == {3: "cat", 5: "dog"}
    assert list(other.names.items()) == [(0, "sky"), (3, "tiger"), (5, "dog")]
    assert other.with_names({5: "", 0: "  "}).names == {3: "tiger"}
    assert other.with_names({}).names == other.names
    assert other.with_names({3: "dog", 5: "tiger"}).names == {0: "sky", 3: "dog", 5: "tiger"}  # swapped at once


def test_all_else_is_the_same(split) -> None:
    named = split.with_names({3: "cat"})
    assert named.identity == split.identity
    assert named.routing is split.routing
    assert named.model is split.model
    assert named.units.drop(columns="name").equals(split.units)


@pytest.mark.parametrize(
    ("error", "names"),
    [
        (ValueError, {8: "cat"}),
        (ValueError, {-1: "cat"}),
        (ValueError, {1: "cat", 2: "cat"}),
        (ValueError, {1: "cat", 2: " cat"}),
        (TypeError, {1: 3}),
        (TypeError, {1: None}),
        (TypeError, {"1": "cat"}),
        (TypeError, {True: "cat"}),
        (TypeError, {1.0: "cat"}),
    ],
)
def test_names_that_make_no_sense(split, error, names) -> None:
    with pytest.raises(error):
        split.with_names(names)


def test_a_name_that_is_taken_is_refused(split) -> None:
    named = split.with_names({3: "cat"})
    with pytest.raises(ValueError, match=r"\[3, 5\] would all be called 'cat'"):
        named.with_names({5: "cat"})


def test_the_table_of_units_has_the_names(split) -> None:
    table = split.with_names({3: "cat"}).units
    assert list(table.columns[:4]) == ["channel", "unit", "concept", "name"]
    assert set(table.loc[(table["concept"] == 3).fillna(value=False), "name"]) == {"cat"}
    assert set(table.loc[~(table["concept"] == 3).fillna(value=False), "name"]) == {""}
    assert (table["concept"] == 3).any()


def saved(split: Disentanglement, tmp_path) -> Any:
    path = tmp_path / "result.safetensors"
    split.save(path)
    return path


def damaged(path: Any, names: Any) -> None:
    tensors, manifest = load_result(path, "disentanglement")
    manifest["names"] = names
    save_result(path, "disentanglement", tensors, manifest)


def test_names_may_be_a_series(split) -> None:
    assert split.with_names(pd.Series({3: "cat", 1: "dog"})).names == {1: "dog", 3: "cat"}


def test_names_are_saved_with_the_rest(split, tmp_path) -> None:
    named = split.with_names({3: "Katze, grün", 5: "dog"})
    back = Disentanglement.load(saved(named, tmp_path), split.model)
    assert back.names == named.names
    assert back.identity == split.identity
    assert back.units.equals(named.units)
    assert Disentanglement.load(saved(split, tmp_path), split.model).names == {}


@pytest.mark.parametrize(
    "names",
    [
        {"8": "cat"},
        {"-1": "cat"},
        {"one": "cat"},
        {"1.0": "cat"},
        {"1": 3},
        {"1": None},
        {"1": ["cat"]},
        {"1": "cat", "2": "cat"},
        ["cat"],
        "cat",
        3,
    ],
)
def test_damaged_names_are_a_store_error(split, tmp_path, names) -> None:
    path = saved(split, tmp_path)
    damaged(path, names)
    with pytest.raises(StoreError, match="names of its concepts are damaged"):
        Disentanglement.load(path, split.model)


def test_an_edit_finds_a_concept_by_its_name(split, images) -> None:
    batch = split.model.prepare(list(images[:2]))
    named = split.with_names({3: "cat"})
    with split.edit(Edit.scale(concept=3, by=0.0)):
        expected = split.model(batch)
    with named.edit(Edit.scale(concept="cat", by=0.0)):
        assert named.model(batch).equal(expected)
    assert not expected.equal(split.model(batch))


def test_what_was_worked_out_is_kept(split) -> None:
    identity, weight = split.identity, split.weight
    named = split.with_names({2: "sky"})
    assert named.weight is weight
    assert vars(named)["identity"] == identity
    assert "name" in named.units
    assert "name" not in split.units


def test_namesakes_are_found_together(split) -> None:
    named = split.with_names({1: "cat", 3: "cat (2)", 4: "cat (x)", 5: "cats"}, labels={3: "cat"})
    assert named.concepts_named("cat") == [1, 3]
    assert named.concepts_named("cat (2)") == [3]
    assert named.concepts_named("cats") == [5]
    assert named.labels == {1: "cat", 3: "cat", 4: "cat (x)", 5: "cats"}
    with pytest.raises(ValueError, match=r"Did you mean .*'cats'"):
        named.concepts_named("catz")


@pytest.mark.parametrize("label", ["cat (2)", "Apollo (11)", "poster (2021)", "4K (3840)"])
def test_a_number_that_belongs_to_the_label_stays(split, label) -> None:
    """Also beside the label without it: fading cranes must not fade the other class, "crane (2)"."""
    plain = label.rpartition(" ")[0]
    named = split.with_names({1: plain, 3: label})
    assert named.concepts_named(label) == [3]
    assert named.concepts_named(plain) == [1]
    with pytest.raises(ValueError, match=plain.replace("(", r"\(")):
        split.with_names({3: label}).concepts_named(plain)


def test_a_label_goes_before_a_name_of_the_same_text(split) -> None:
    named = split.with_names({1: "cat", 3: "cat (2)", 5: "tabby"}, labels={3: "cat", 5: "cat (2)"})
    assert named.concepts_named("cat (2)") == [5]


def test_labels_travel_with_the_names(split, tmp_path) -> None:
    named = split.with_names(UniqueNames({1: "cat", 3: "cat (2)", 4: "dog"}, {1: "cat", 3: "cat", 4: "dog"}))
    for same in (
        named,
        named.using(batch_size=3),
        split.with_names(named.names),
        Disentanglement.load(saved(named, tmp_path), split.model),
    ):
        assert same.names == {1: "cat", 3: "cat (2)", 4: "dog"}
        assert same.labels == {1: "cat", 3: "cat", 4: "dog"}
        assert same.concepts_named("cat") == [1, 3]
    assert named.with_names({3: "tiger"}).labels == {1: "cat", 3: "tiger", 4: "dog"}
    assert named.with_names({3: ""}).labels == {1: "cat", 4: "dog"}


def test_files_of_version_02_have_no_labels_and_guess_none(split, tmp_path) -> None:
    """Whether "cat (2)" is the second concept of cats or a label of its own, they do not say."""
    path = saved(split.with_names({1: "cat", 3: "cat (2)", 4: "Apollo (11)"}), tmp_path)
    tensors, manifest = load_result(path, "disentanglement")
    del manifest["labels"]
    save_result(path, "disentanglement", tensors, manifest)
    old = Disentanglement.load(path, split.model)
    assert old.names == {1: "cat", 3: "cat (2)", 4: "Apollo (11)"}
    assert old.concepts_named("Apollo (11)") == [4]
    assert old.concepts_named("cat (2)") == [3]
    with pytest.warns(UserWarning, match=r"cat \(2\)"):
        assert old.concepts_named("cat") == [1]
    told = old.with_names(old.names, labels={3: "cat"})
    assert told.concepts_named("cat") == [1, 3]
    again = Disentanglement.load(saved(old, tmp_path), split.model)  # saved anew it knows no more
    with pytest.warns(UserWarning, match=r"cat \(2\)"):
        again.concepts_named("cat")


def test_a_title_is_the_name_else_the_description_else_the_number(split) -> None:
    described = split.with_names(
        UniqueNames(descriptions={3: "cat-like,\n4 of 6 images", 5: "cat-like, 2 of 6 images"})
    )
    named = described.with_names({5: "cat", 6: "sky"})
    titles = [named.concept_title(concept) for concept in (3, 5, 6, 7)]
    assert titles == ["cat-like, 4 of 6 images", "cat", "sky", "concept 7"]
    numbered = [named.concept_title(concept, number=True) for concept in (3, 5, 7)]
    assert numbered == ["concept 3: cat-like, 4 of 6 images", "concept 5: cat", "concept 7"]
    assert named.with_names({5: ""}).concept_title(5) == "cat-like, 2 of 6 images"
    with pytest.raises(ValueError, match="8"):
        named.concept_title(8)


def test_descriptions_are_no_names(split, images) -> None:
    described = split.with_names(UniqueNames(descriptions={3: "cat", 5: "cat"}))  # several may be the same
    assert described.names == {}
    assert described.labels == {}
    assert described.identity == split.identity
    with pytest.raises(ValueError, match="'cat'"):
        described.concepts_named("cat")
    with pytest.raises(EditError, match="'cat'"), described.edit(Edit.scale(concept="cat", by=0.0)):
        pass
    table = described.units
    assert list(table.columns[:4]) == ["channel", "unit", "concept", "description"]
    assert set(table.loc[(table["concept"] == 3).fillna(value=False), "description"]) == {"cat"}
    with pytest.raises(ValueError, match="8"):
        split.with_names(UniqueNames(descriptions={8: "cat"}))


def test_descriptions_are_saved_and_older_files_have_none(split, tmp_path) -> None:
    path = saved(split.with_names(UniqueNames({1: "cat"}, descriptions={3: "dog-like, 4 of 6 images"})), tmp_path)
    back = Disentanglement.load(path, split.model)
    assert (back.names, back.names.descriptions) == ({1: "cat"}, {3: "dog-like, 4 of 6 images"})
    tensors, manifest = load_result(path, "disentanglement")
    for wrong in ({"8": "cat"}, {"1": 3}, ["cat"], None):
        save_result(path, "disentanglement", tensors, manifest | {"descriptions": wrong})
        with pytest.raises(StoreError, match="names of its concepts are damaged"):
            Disentanglement.load(path, split.model)
    del manifest["descriptions"]
    save_result(path, "disentanglement", tensors, manifest)
    assert Disentanglement.load(path, split.model).names.descriptions == {}


@pytest.mark.parametrize("labels", [{"1": 3}, {"one": "cat"}, {"5": "cat"}, {"1": ""}, ["cat"], None])
def test_damaged_labels_are_a_store_error(split, tmp_path, labels) -> None:
    path = saved(split.with_names({1: "cat"}), tmp_path)
    tensors, manifest = load_result(path, "disentanglement")
    manifest["labels"] = labels
    save_result(path, "disentanglement", tensors, manifest)
    with pytest.raises(StoreError):
        Disentanglement.load(path, split.model)


@pytest.mark.parametrize(
    ("error", "labels"),
    [(TypeError, {1: 3}), (TypeError, ["cat"]), (ValueError, {2: "cat"}), (ValueError, {1: " "})],
)
def test_labels_that_make_no_sense(split, error, labels) -> None:
    with pytest.raises(error):
        split.with_names({1: "cat"}, labels=labels)
