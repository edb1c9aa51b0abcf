from __future__ import annotations

import pytest
import torch

from elude_nb import load_images
from elude_nb.core.edit import Edit
from elude_nb.errors import EditError
from elude_nb.interpret.neighbours import find_neighbours
from elude_nb.models.hooks import is_intercepted
from elude_nb.steering.heads import read_outputs


def literal(query: torch.Tensor, outputs: torch.Tensor, k: int) -> list[int]:
    mean = outputs.mean(0)
    cosines = [float((query - mean) @ (row - mean) / ((query - mean).norm() * (row - mean).norm())) for row in outputs]
    return sorted(range(len(outputs)), key=lambda i: -cosines[i])[:k]


def test_neighbours_are_the_nearest_with_and_without_the_edit(split, images) -> None:
    among, image = images[:12], images[15]
    edit = Edit.scale(concept=2, by=-4.0)
    found = find_neighbours(split, image, among, {"turned": edit}, k=4)
    outputs = read_outputs(split.model, among)
    assert list(found.found["as it is"]) == literal(read_outputs(split.model, [image])[0], outputs, 4)
    with split.edit(edit):
        query = read_outputs(split.model, [image])[0]
    assert list(found.found["turned"]) == literal(query, outputs, 4)
    assert list(found.cosines["turned"]) == sorted(found.cosines["turned"], reverse=True)
    assert found.cosines["turned"] != found.cosines["as it is"]


def test_an_image_is_its_own_nearest_neighbour(split, images) -> None:
    found = find_neighbours(split, images[3], images[:8], {}, k=1)
    assert found.found == {"as it is": (3,)}
    assert found.cosines["as it is"][0] == pytest.approx(1)


def test_labels_are_counted(split, images) -> None:
    found = find_neighbours(split, images[3], images[:9], {"nothing": Edit()}, k=9)
    assert found.labels.loc["nothing"].to_dict() == {"label 0": 3, "label 1": 3, "label 2": 3}
    unlabelled = load_images([images[i] for i in range(3)])
    assert find_neighbours(split, images[1], unlabelled, {}, k=1).labels.columns.tolist() == ["image 1"]


def test_outputs_at_hand_are_taken(split, images) -> None:
    outputs = read_outputs(split.model, images[:6])
    given = find_neighbours(split, images[8], images[:6], {}, k=3, outputs=outputs)
    assert given.found == find_neighbours(split, images[8], images[:6], {}, k=3).found
    with pytest.raises(ValueError, match=r"5 .* 6 "):
        find_neighbours(split, images[8], images[:6], {}, outputs=outputs[:5])
    with pytest.raises(ValueError, match="take read_outputs"):
        find_neighbours(split, images[8], images[:6], {}, outputs=outputs[:, :5])


def test_a_wrong_edit_is_found_before_anything_runs(split, images) -> None:
    passes = []
    handle = split.model.network.register_forward_pre_hook(lambda *_: passes.append(1))
    try:
        with pytest.raises(EditError):
            find_neighbours(split, images[0], images[:6], {"wrong": Edit.scale(concept=99, by=0.0)})
        with pytest.raises(ValueError, match="k=7"):
            find_neighbours(split, images[0], images[:6], {}, k=7)
    finally:
        handle.remove()
    assert not passes
    assert not is_intercepted(split.model.network)
