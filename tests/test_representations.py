"""What a result prints in a shell fits on a screen and holds no arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import elude_nb as en
from elude_nb import interpret, scores
from elude_nb.interpret.concept_map import lay_out
from elude_nb.interpret.gallery import Gallery
from elude_nb.interpret.trace import trace_channel
from elude_nb.steering.live import LiveSteering
from tests.tiny import random_images, tiny_vit


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    model, images = tiny_vit(), random_images(24, 32).with_labels(list("ab") * 12)
    split = en.disentangle(model, images, concepts=6, units=3, tokens_per_image=6, progress=False)
    edit = en.Edit.scale(concept=int(split.units["concept"].dropna().iloc[0]), by=0.0)
    return {"model": model, "images": images, "split": split, "edit": edit, "head": en.fit_head(model, images)}


CHANNEL: dict[str, Any] = {"units": 2, "count": 3, "progress": False}
RESULTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "model": lambda m: m["model"],
    "images": lambda m: m["images"],
    "split": lambda m: m["split"],
    "routing": lambda m: m["split"].routing,
    "book": lambda m: m["split"].book,
    "settings": lambda m: m["split"].settings,
    "edit": lambda m: m["edit"],
    "site": lambda m: m["split"].site,
    "recording": lambda m: m["split"].recording(m["images"]),
    "readout": lambda m: m["split"].unit_readout(),
    "certificate": lambda m: en.verify(m["split"], m["images"][:2], progress=False),
    "verdict": lambda m: scores.verdict(en.score(m["split"], m["images"], k=4, progress=False)),
    "compared": lambda m: en.compare(m["model"], m["images"], methods=["channels", "sub-units"], k=4, progress=False),
    "exemplars": lambda m: en.find_exemplars(m["split"], m["images"], _split_channel(m), **CHANNEL),
    "exemplar": lambda m: en.find_exemplars(m["split"], m["images"], _split_channel(m), **CHANNEL).rows[0][0],
    "names": lambda m: en.name_concepts(m["split"], m["images"]),
    "attribution": lambda m: en.attribute(m["split"], m["images"][:2], 0),
    "effect": lambda m: en.effect(
        m["split"], m["edit"], m["images"], fit=m["images"], target="a", controls=(), progress=False
    ),
    "head": lambda m: m["head"],
    "neighbours": lambda m: interpret.find_neighbours(m["split"], m["images"][0], m["images"], {"faded": m["edit"]}),
    "gallery": lambda m: Gallery(m["split"], m["images"]),
    "atlas": lambda m: lay_out(m["split"]),
    "trace": lambda m: trace_channel(
        m["model"], m["images"], 0, "blocks.2.mlp.fc2", routing=en.EludeRouting(top_k=0.6, min_cluster_size=4)
    ),
    "steered": lambda m: _steered(LiveSteering(m["split"], head=m["head"]), m["images"][0]),
}  # fmt: skip


def _split_channel(made: dict[str, Any]) -> int:
    return int(made["split"].routing.is_split().nonzero()[0])


def _steered(live: LiveSteering, image: Any) -> Any:
    return live.steer(live.see(image), {0: 0.5})


@pytest.mark.parametrize("name", RESULTS)
def test_it_prints_at_most_ten_lines_without_arrays(made, name) -> None:
    shown = repr(RESULTS[name](made))
    assert len(shown.splitlines()) <= 10
    assert max(map(len, shown.splitlines())) < 400
    assert not any(word in shown for word in ("tensor(", "array(", " object at 0x"))
