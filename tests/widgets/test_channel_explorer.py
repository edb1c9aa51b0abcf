from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
import traitlets

from elude_nb import disentangle, score
from elude_nb.core.strategies import ConceptRouting
from elude_nb.interpret.gallery import Gallery
from elude_nb.interpret.ranking import rank_channels
from elude_nb.scores import mixed_channels
from elude_nb.widgets.appearance import appearance
from elude_nb.widgets.channel_explorer import BEST, ChannelExplorer
from elude_nb.widgets.concept_atlas import ConceptAtlas
from elude_nb.widgets.image_inspector import ImageInspector
from elude_nb.widgets.panel import Panel
from elude_nb.widgets.parts import debounce
from tests.markup import Page
from tests.tiny import random_images


@pytest.fixture(scope="module")
def gallery(split, images) -> Gallery:
    return Gallery(split.with_names({1: "edge", 2: "corner <b>"}), images[:10]).fill(progress=False)


@pytest.fixture
def explorer(gallery) -> ChannelExplorer:
    return ChannelExplorer(gallery, count=4)


def tiles(text: str) -> list[str]:
    return re.findall(r"<img alt=\"([^\"]*)\"", text)


def test_first_paint(explorer) -> None:
    assert explorer.channel == next(iter(explorer.orders.values()))[0]
    assert len(tiles(explorer._grid.value)) == 4 * len(explorer.exemplars.rows)
    assert f"Channel {explorer.channel}" in explorer._grid.value
    assert explorer.view.channel == explorer.channel
    assert "10 images" in explorer.message


def test_it_opens_on_what_comes_apart_best_and_says_how_far(explorer, gallery) -> None:
    ranked = rank_channels(gallery, k=4).index.tolist()
    assert explorer.order == BEST
    assert explorer.orders[BEST][: len(ranked)] == ranked
    assert sorted(explorer.orders[BEST]) == list(range(24))
    found: Any = explorer.exemplars
    after = [alike for unit, alike in zip(found.units, found.similarity, strict=True) if unit > 0]
    change = f"similarity {found.similarity[0]:.2f} → {sum(after) / len(after):.2f}"
    assert f"{change} on 10 images, all seen in discovery" in explorer._grid.value


def test_with_scores_it_opens_on_the_best_by_them(gallery, split, images) -> None:
    scores = score(split, images, k=4, progress=False)
    explorer = ChannelExplorer(gallery, scores=scores)
    mixed = mixed_channels(scores).index.tolist()
    assert explorer.orders[BEST][: len(mixed)] == mixed
    assert explorer.channel == mixed[0]


@pytest.mark.parametrize("touched", [False, True])
def test_once_all_images_are_ready_the_best_comes_first_unless_another_was_chosen(split, touched) -> None:
    async def use() -> ChannelExplorer:
        explorer = ChannelExplorer(split, random_images(30, 32), count=3)
        assert BEST not in explorer.orders
        if touched:
            explorer.channel = 7
        assert explorer._task is not None
        await explorer._task
        return explorer

    explorer = asyncio.run(use())
    best = rank_channels(explorer.gallery, k=3).index[0]
    assert explorer.orders[BEST][0] == best != 7
    assert explorer.channel == (7 if touched else best)
    assert explorer.order == ("how unlike its concepts are" if touched else BEST)
    assert explorer._order.value == explorer.order
    assert f"Channel {explorer.channel}" in explorer._grid.value
    assert "on 30 images" in explorer.message


def test_the_sliders_and_the_traits_follow_each_other(explorer) -> None:
    before = explorer._grid.value
    explorer._place.value = 3
    assert explorer.channel == explorer.orders[explorer.order][2]
    assert explorer._grid.value != before
    explorer.channel = explorer.orders[explorer.order][5]
    assert explorer._place.value == 6
    explorer._k.value = 2
    assert explorer.units == 2
    assert len(explorer.view.units) <= 3
    explorer.shared = 0.35
    assert explorer._rho.value == pytest.approx(0.35)
    explorer._rho.value = None
    assert explorer.shared is None
    explorer.shared = 0.35
    explorer._rho.value = 0.8  # 0.35 is no longer offered then
    assert (explorer.shared, explorer._rho.value) == (0.8, 0.8)
    explorer.shared = 0.2
    assert (explorer.shared, explorer._rho.value) == (0.2, 0.2)
    assert explorer.view.routing.routes.equal(
        explorer.gallery.channel(explorer.channel, units=2, shared=0.2).routing.routes
    )


def test_k_and_rho_route_anew_and_come_back(explorer) -> None:
    as_discovered = explorer.view.routing.routes.clone()
    explorer.units, explorer.shared = 5, 1.0
    assert not explorer.view.routing.routes.equal(as_discovered)
    assert explorer.view.routing.routes.equal(
        explorer.gallery.channel(explorer.channel, units=5, shared=1.0).routing.routes
    )
    explorer._reset.click()
    assert (explorer.units, explorer.shared) == (3, None)
    assert explorer.view.routing.routes.equal(as_discovered)


def test_channels_are_sorted(explorer, split) -> None:
    explorer._order.value = "variance"
    assert explorer.order == "variance"
    variances = split.channels["variance"]
    chosen = explorer.orders["variance"]
    whole = ~split.channels["split"]
    assert chosen[0] == variances[~whole].idxmax()
    assert sorted(chosen) == list(range(24))
    assert explorer.channel == chosen[0]
    assert explorer.orders["number"] == list(range(24))


def test_scores_can_be_sorted_by(gallery) -> None:
    scores = score(gallery.split, gallery.images, progress=False)
    explorer = ChannelExplorer(gallery, scores=scores, count=3)
    explorer.order = "gain in top similarity"
    units = scores[scores["kind"] == "sub-unit"].groupby("channel")["top_similarity"].mean()
    gain = units - scores[scores["kind"] == "channel"].groupby("channel")["top_similarity"].mean()
    assert explorer.channel == gain.idxmax()


def test_search_by_number_and_by_name(explorer, split) -> None:
    explorer._search.value = "7"
    assert explorer.channel == 7
    explorer._search.value = "EDGE"
    rows = split.units[split.units["concept"] == 1]
    assert set(explorer._listed) == set(rows["channel"])
    assert explorer.channel in set(rows["channel"])
    assert f"{len(explorer._listed)} channels" in explorer.message
    explorer._place.value = explorer._place.max
    assert explorer.channel == explorer._listed[-1]
    explorer._search.value = ""
    assert len(explorer._listed) == 24


@pytest.mark.parametrize(("text", "message"), [("24", "24"), ("zebra", "corner <b>, edge")])
def test_what_is_not_found_is_reported_and_nothing_changes(explorer, text, message) -> None:
    before = explorer.channel, explorer._grid.value, list(explorer._listed)
    explorer.search(text)
    assert message in explorer.message
    assert 'role="alert"' in explorer._status.value
    assert (explorer.channel, explorer._grid.value, explorer._listed) == before


@pytest.mark.parametrize(
    ("name", "value"), [("channel", 24), ("channel", -1), ("units", 1), ("shared", 1.5), ("order", "beauty")]
)
def test_wrong_traits_are_refused_and_nothing_changes(explorer, name, value) -> None:
    before = getattr(explorer, name), explorer._grid.value
    with pytest.raises(traitlets.TraitError, match=name):
        setattr(explorer, name, value)
    assert (getattr(explorer, name), explorer._grid.value) == before


def test_a_channel_that_is_not_split_says_why(vit, images) -> None:
    one = ConceptRouting(one_meaning=-1.0)  # every channel is then of one meaning
    split = disentangle(vit, images, concepts=8, units=3, tokens_per_image=6, routing=one, progress=False)
    explorer = ChannelExplorer(split, images[:6], count=3)
    view: Any = explorer.view
    assert view.reason in explorer._grid.value
    assert "not split" in explorer.message
    found: Any = explorer.exemplars
    assert len(found.rows) == 1
    assert "whole channel" in explorer._table.value


def test_a_routing_that_cannot_be_changed_says_why(vit, images) -> None:
    routing = "channel-clusters"
    split = disentangle(vit, images, concepts=8, units=3, routing=routing, tokens_per_image=6, progress=False)
    explorer = ChannelExplorer(split, images[:6], count=3)
    assert explorer._k.disabled
    assert explorer._rho.disabled
    assert explorer._reset.disabled
    assert routing in explorer._fixed.value
    for name, value in (("units", 5), ("shared", 0.5)):
        before = getattr(explorer, name)
        with pytest.raises(traitlets.TraitError, match=f"{name}.*{routing}"):
            setattr(explorer, name, value)
        assert getattr(explorer, name) == before
    explorer.reset()
    explorer.channel = explorer.orders["number"][3]
    view: Any = explorer.view
    assert view.channel == 3


def test_k_and_rho_of_a_split_by_concepts_can_be_changed(explorer) -> None:
    assert not explorer._k.disabled
    assert not explorer._rho.disabled
    assert explorer._fixed.value == ""


def test_a_sample_is_reported_as_one(split, images) -> None:
    room = 9.5 * 2 * split.site.sources * 16 / (1 << 30)
    explorer = ChannelExplorer(Gallery(split, images, max_memory=room).fill(progress=False), count=3)
    assert "9 images, all seen in discovery (9 of 20 fit into memory)" in explorer.message


def test_names_are_escaped(explorer) -> None:
    explorer.search("corner")
    page = Page(explorer.static_html())
    assert "corner <b>" in page.text
    assert "b" not in {tag for tag, _ in page.tags}


def test_the_static_fallback(explorer) -> None:
    bundle: Any = explorer._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert "application/vnd.jupyter.widget-view+json" in data
    assert "<img alt=" in data["text/html"]
    assert "http" not in re.sub(r"data:image/jpeg;base64,[^\"]*", "", data["text/html"])


def test_everything_has_a_name(explorer) -> None:
    for control in (explorer._order, explorer._place, explorer._search, explorer._k, explorer._rho, explorer._reset):
        assert control.description
    assert all(tiles(explorer._grid.value))


def test_a_split_and_images_do_as_well(split, images) -> None:
    explorer = ChannelExplorer(split, images[:9], count=3)
    assert explorer.gallery.ready == 9
    with pytest.raises(TypeError, match="Disentanglement"):
        ChannelExplorer(split)
    with pytest.raises(TypeError):
        ChannelExplorer(explorer.gallery, images)


def test_in_a_running_kernel_it_paints_before_all_images_are_there(split) -> None:
    photos = random_images(30, 32)

    async def use() -> tuple[int, str, int, str]:
        explorer = ChannelExplorer(split, photos, count=3)
        early, said = explorer.gallery.ready, explorer.message
        assert explorer._grid.value
        assert explorer._task is not None
        await explorer._task
        return early, said, explorer.gallery.ready, explorer.message

    early, said, late, after = asyncio.run(use())
    assert early == 8
    assert "8 of 30 images" in said
    assert late == 30
    assert "on 30 images" in after


def test_only_the_last_of_many_quick_calls_counts() -> None:
    calls: list[int] = []

    async def use() -> None:
        call = debounce(calls.append, seconds=0.05)
        for value in range(20):
            call(value)
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.2)

    asyncio.run(use())
    assert calls == [19]
    debounce(calls.append)(7)  # without a loop at once
    assert calls == [19, 7]


def test_only_expected_errors_become_messages() -> None:
    panel = Panel()
    _fail_inside(panel, ValueError("count=<3>"))
    assert panel.message == "count=<3>"
    with pytest.raises(ZeroDivisionError):
        _fail_inside(panel, ZeroDivisionError())


def _fail_inside(panel: Panel, error: Exception) -> None:
    with panel.guarded():
        raise error


def test_how_activations_are_shown_is_one_choice_for_all_panels(split, images) -> None:
    gallery = Gallery(split, images[:6]).fill(progress=False)
    panels = [ChannelExplorer(gallery), ConceptAtlas(gallery), ImageInspector(gallery)]
    places = [panels[0]._grid, panels[1]._concepts, panels[2]._others]
    try:
        before = [place.value for place in places]
        panels[1].activation_choice.value = "heat"
        assert [panel.activation_choice.value for panel in panels] == ["heat"] * 3
        assert all(place.value != old for place, old in zip(places, before, strict=True))
        assert ChannelExplorer(gallery).activation_choice.value == "heat"
        with pytest.raises(traitlets.TraitError, match="outlin"):
            appearance.activation = "outlin"
    finally:
        appearance.activation = "outline"
    assert [place.value for place in places] == before
