"""Live steering shows what `with split.edit(...)` would show, and leaves the model as it is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from elude_nb import Disentanglement, Edit, ImageSet, disentangle, fit_head
from elude_nb.errors import EditError
from elude_nb.interpret.gallery import Gallery
from elude_nb.interpret.neighbours import find_neighbours, rank_neighbours
from elude_nb.steering.heads import OwnClassifier, predict, read_outputs
from elude_nb.steering.live import LiveSteering, order_by_presence
from tests.tiny import hook_count, sites_of

STRENGTHS = {0: 0.0, 2: 1.6, 3: 1.0, 5: 0.35}
EDIT = Edit.scale(concept=0, by=0.0) + Edit.scale(concept=2, by=1.6) + Edit.scale(concept=5, by=0.35)


def steered(split: Disentanglement, images: ImageSet, edit: Edit, number: int = 3) -> torch.Tensor:
    with split.edit(edit):
        return read_outputs(split.model, [images[number]])[0]


@pytest.mark.parametrize("tokens", ["all", "class", "patch"])
def test_it_shows_what_the_edited_model_puts_out(split, images, tokens) -> None:
    live = LiveSteering(split, tokens=tokens)
    found = live.steer(live.see(images[3]), STRENGTHS)
    edit = live.edit(STRENGTHS)
    assert len(edit.changes) == 3
    torch.testing.assert_close(found.after, steered(split, images, edit), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.before, read_outputs(split.model, [images[3]])[0], rtol=0, atol=0)
    assert found.largest == float((found.after - found.before).abs().max()) > 1e-3
    assert found.cosine == pytest.approx(
        float(torch.nn.functional.cosine_similarity(found.before, found.after, dim=0)), abs=1e-12
    )
    assert found.cosine < 1


def test_it_holds_at_every_site_with_concepts(vit, images) -> None:
    for site in sites_of(vit)[:4]:
        split = disentangle(vit, images, site, concepts=6, units=3, tokens_per_image=6, progress=False)
        live = LiveSteering(split)
        strengths = dict.fromkeys(live.steerable[:3], 0.25)
        found = live.steer(live.see(images[3]), strengths)
        torch.testing.assert_close(found.after, steered(split, images, live.edit(strengths)), rtol=1e-11, atol=1e-11)


def test_it_holds_behind_a_batch_norm(conv_split, small_images) -> None:
    live = LiveSteering(conv_split)
    strengths = {live.steerable[0]: 0.0, live.steerable[1]: 2.0}
    found = live.steer(live.see(small_images[3]), strengths)
    expected = steered(conv_split, small_images, live.edit(strengths))
    torch.testing.assert_close(found.after, expected, rtol=1e-11, atol=1e-11)
    assert found.largest > 0


def test_nothing_moves_when_all_sliders_are_at_one(split, images) -> None:
    live = LiveSteering(split)
    found = live.steer(live.see(images[0]), {0: 1.0, 4: 1.0})
    assert (found.largest, found.cosine) == (0.0, 1.0)
    assert live.edit({0: 1.0, 4: 1.0}) == Edit()


@pytest.mark.parametrize("kind", ["probe", "knn"])
def test_probabilities_are_those_of_the_edited_model(split, images, kind) -> None:
    head = fit_head(split.model, images, kind, k=3)
    live = LiveSteering(split, head=head)
    table = live.steer(live.see(images[3]), STRENGTHS).probabilities
    with split.edit(EDIT):
        after = head.probabilities(read_outputs(split.model, [images[3]]))[0]
        said = predict(head, split.model, [images[3]])
    assert table.index.tolist() == list(head.classes)
    torch.testing.assert_close(torch.tensor(table["after"].to_numpy()), after.double(), rtol=1e-10, atol=1e-10)
    assert table["after"].idxmax() == said["predicted"][0]
    assert (table["change"] == table["after"] - table["before"]).all()


def test_a_head_that_looks_at_something_else_is_read_beside_the_features(split, images) -> None:
    head = OwnClassifier(tuple("abcde"))
    live = LiveSteering(split, head=head)
    found = live.steer(live.see(images[3]), STRENGTHS)
    with split.edit(EDIT):
        expected = head.probabilities(split.model(split.model.prepare([images[3]])))[0]
    torch.testing.assert_close(torch.tensor(found.probabilities["after"].to_numpy()), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.after, steered(split, images, EDIT), rtol=1e-12, atol=1e-12)


def test_the_model_is_left_as_it_is(split, images) -> None:
    before, hooks = split.model.fingerprint(), hook_count(split.model.network)
    plain = read_outputs(split.model, [images[0]])
    live = LiveSteering(split)
    live.steer(live.see(images[0]), STRENGTHS)
    assert split.model.fingerprint() == before
    assert hook_count(split.model.network) == hooks
    assert torch.equal(read_outputs(split.model, [images[0]]), plain)
    assert not any("forward" in vars(module) for module in split.model.network.modules())


def test_one_order_of_the_sliders_is_as_good_as_another(split, images, monkeypatch) -> None:
    monkeypatch.setattr("elude_nb.steering.live._PLANS", 2)
    live, strengths = LiveSteering(split), {concept: 0.1 * concept for concept in range(8)}
    for number in (0, 3):
        seen = live.see(images[number])
        for concept in range(8):
            live.steer(seen, {concept: 0.0})
        backwards = dict(reversed(strengths.items()))
        found, other = live.steer(seen, strengths), live.steer(seen, backwards)
        torch.testing.assert_close(found.after, other.after, rtol=1e-12, atol=1e-12)
        expected = steered(split, images, live.edit(backwards), number)
        torch.testing.assert_close(found.after, expected, rtol=1e-11, atol=1e-11)
    assert len(live._plans) == 2


def test_an_active_edit_is_refused(split, images) -> None:
    live = LiveSteering(split)
    seen = live.see(images[0])
    with split.edit(EDIT):
        for act in (
            lambda: LiveSteering(split),
            lambda: live.see(images[0]),
            lambda: live.steer(seen, {0: 0.0}),
            lambda: live.steer(seen, {}),
        ):
            with pytest.raises(EditError, match="live steering"):
                act()
    assert live.steer(seen, {}).largest == 0.0


def test_concepts_are_found_by_number_and_by_name(split) -> None:
    live = LiveSteering(split.with_names({2: "stripes"}))
    assert (live.number("stripes"), live.number(2)) == (2, 2)
    with pytest.raises(EditError, match=r"'strips'.*'stripes'"):
        live.number("strips")
    with pytest.raises(EditError, match=r"99.* 7"):
        live.number(99)


def test_without_concepts_there_is_nothing_to_steer(split) -> None:
    without = replace(split, routing=replace(split.routing, concepts=torch.full_like(split.routing.concepts, -1)))
    with pytest.raises(EditError, match="concepts"):
        LiveSteering(without)


def test_tokens_that_are_not_there_are_reported_at_once(conv_split) -> None:
    with pytest.raises(EditError):
        LiveSteering(conv_split, tokens="class")


def test_neighbours_are_ranked_as_the_library_does(split, images) -> None:
    outputs = read_outputs(split.model, images)
    live = LiveSteering(split)
    found = live.steer(live.see(images[3]), STRENGTHS)
    expected = find_neighbours(split, images[3], images, {"edited": EDIT}, k=5, outputs=outputs)
    labels = images.labels or ()
    for vector, name in ((found.before, "as it is"), (found.after, "edited")):
        table = rank_neighbours(vector, outputs, labels, 5)
        assert tuple(table["image"]) == expected.found[name]
        assert table["cosine"].tolist() == pytest.approx(expected.cosines[name], abs=1e-12)
        assert table["label"].tolist() == [labels[i] for i in table["image"]]
    without = rank_neighbours(found.before, outputs, labels, 30, leave_out=3)
    assert sorted(without["image"]) == [i for i in range(len(images)) if i != 3]
    assert without["cosine"].is_monotonic_decreasing


def test_concepts_that_stand_out_come_first(split, images) -> None:
    gallery = Gallery(split, images).fill(progress=False)
    live = LiveSteering(split)
    present, elsewhere = live.see(images[3]).concepts, gallery.concept_maps.amax(1)
    torch.testing.assert_close(present.to(elsewhere), elsewhere[3], rtol=1e-4, atol=1e-4)
    order = order_by_presence(present.to(elsewhere), elsewhere, live.steerable)
    score = (elsewhere[3] - elsewhere.mean(0)) / elsewhere.std(0, correction=0)
    assert order[0] == int(score.argmax())
    assert sorted(order) == list(live.steerable)
