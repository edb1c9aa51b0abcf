"""Arguments that a call does not take: where they belong is read off the signatures of the front door."""

from __future__ import annotations

import inspect
import pydoc

import pytest
from PIL import Image
from torch import nn

import elude_nb as en
from elude_nb.core.estimate import estimate
from elude_nb.scores import suggest_settings

FUNCTIONS = [getattr(en, name) for name in en.__all__ if inspect.isfunction(getattr(en, name))]
METHODS = [
    getattr(en.Disentanglement, name)
    for name, value in vars(en.Disentanglement).items()
    if not name.startswith("_") and isinstance(value, staticmethod | type(lambda: 0))
]


@pytest.mark.parametrize("function", [*FUNCTIONS, *METHODS, estimate, suggest_settings], ids=lambda f: f.__qualname__)
def test_every_public_call_answers_an_argument_that_it_does_not_take(function) -> None:
    needed = [each for each in inspect.signature(function).parameters.values() if each.default is each.empty]
    if function is en.Disentanglement.recording:  # which hands its settings to `record`
        return
    with pytest.raises(TypeError, match=rf"^{function.__name__}\(\) takes no of_no_call=(; |\. Did you )"):
        function(*needed, of_no_call=1)


@pytest.mark.parametrize(
    ("function", "name", "answer"),
    [
        (en.disentangle, "device", "disentangle() takes no device=; it belongs to load_model(..., device=...)."),
        (en.disentangle, "labels", "it belongs to load_images(..., labels=...)."),
        (en.disentangle, "min_cluster_size", "it belongs to EludeRouting(..., min_cluster_size=...)."),
        (en.disentangle, "concept", "disentangle() takes no concept=. Did you mean concepts=?"),
        (en.disentangle, "batchsize", "Did you mean batch_size=?"),
        (en.load_model, "images", "compare(..., images=...) or disentangle(..., images=...) and "),
        (en.load_model, "preprocess", "it belongs to wrap_network(..., preprocess=...)."),
        (en.load_images, "batch_size", "disentangle(..., batch_size=...)"),
        (en.load_images, "near", "it belongs to ImageSet.without_copies(..., near=...)."),
        (en.score, "routing", "score() takes no routing=; it belongs to disentangle(..., routing=...)."),
        (en.Disentanglement.activations, "dtype", "activations() takes no dtype=; it belongs to load_model("),
        (en.Disentanglement.edit, "by", "edit() takes no by=; it belongs to Edit.scale(..., by=...) or Edit.add("),
        (en.Disentanglement.recording, "device", "record() takes no device=; it belongs to load_model("),
        (en.Edit.scale, "strenght", "Did you mean strength=?"),
    ],
)
def test_an_argument_of_another_call_is_answered_with_where_it_belongs(function, name, answer, split, images) -> None:
    given = {en.Disentanglement.recording: (split, images)}.get(function, ("x", "y"))
    with pytest.raises(TypeError) as caught:
        function(*given, **{name: 1})
    assert answer in str(caught.value)


def test_signature_and_help_are_those_of_the_function() -> None:
    assert list(inspect.signature(en.load_images).parameters)[:2] == ["source", "labels"]
    assert "load_images(source: " in pydoc.plain(pydoc.render_doc(en.load_images))
    assert en.load_images.__module__ == "elude_nb.data.images"


def test_warnings_point_at_the_line_of_the_caller(tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.warns(UserWarning, match="left out") as of_images:
        en.load_images(tmp_path)
    with pytest.warns(UserWarning, match="assumed") as of_network:
        en.wrap_network(nn.Linear(2, 2))
    assert [each[0].filename for each in (of_images, of_network)] == [__file__] * 2


def test_a_folder_given_to_another_call_warns_at_the_line_of_the_caller_too(vit, images, tmp_path) -> None:
    for number in range(3):
        images[number].save(tmp_path / f"{number}.png")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.warns(UserWarning, match="left out: notes.txt") as found:
        en.disentangle(vit, tmp_path, concepts=2, progress=False)
    assert found[0].filename == __file__


def test_what_a_wrapped_network_does_not_take_is_said_with_what_to_do_instead() -> None:
    with pytest.raises(TypeError, match=r"takes no device=; move the network first: network.to\('cuda'\)."):
        en.wrap_network(nn.Linear(2, 2), device="cuda")  # type: ignore[call-arg]
