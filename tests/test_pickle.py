"""What is handed to worker processes (spawn and forkserver, Python 3.14's default) comes back from its pickle whole."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from elude_nb import (
    Disentanglement,
    Edit,
    ImageSet,
    Model,
    find_exemplars,
    find_sites,
    fit_head,
    load_model,
    name_concepts,
    verify,
)
from elude_nb.errors import EditError
from elude_nb.interpret.gallery import Gallery
from elude_nb.models.hooks import is_intercepted
from elude_nb.scores import EmbeddingJudge, make_trials
from elude_nb.steering import LinearProbe
from tests.tiny import tiny_vit


def again(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))  # noqa: S301 - our own


def run(model: Model, images: ImageSet) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(model.prepare(list(images)))
    return found


def channel_of(split: Disentanglement) -> int:
    return int(split.routing.is_split().nonzero()[0])


def logit(model: Model, images: ImageSet) -> Any:
    head = fit_head(model, images, progress=False)
    assert isinstance(head, LinearProbe)
    return head.logit("label 1")


THINGS: dict[str, Callable[[Disentanglement, ImageSet], Any]] = {
    "edit": lambda split, images: Edit.scale(concept=1, by=0.5) + Edit.ablate(concept=2),
    "entered edit": lambda split, images: split.edit(Edit.ablate(concept=1)),
    "lens": lambda split, images: split.lens(),
    "explicit network": lambda split, images: split.explicit(),
    "routing": lambda split, images: split.routing,
    "concepts": lambda split, images: split.book,
    "sites": lambda split, images: find_sites(split.model),
    "gallery": lambda split, images: Gallery(split, images).fill(progress=False),
    "exemplars": lambda split, images: find_exemplars(split, images, channel_of(split), count=4, progress=False),
    "names": lambda split, images: name_concepts(split, images, top=3, progress=False),
    "head": lambda split, images: fit_head(split.model, images, progress=False),
    "a class's logit": lambda split, images: logit(split.model, images),
    "judge": lambda split, images: EmbeddingJudge.of(split.model, images),
    "certificate": lambda split, images: verify(split, images[:2], strict=False, progress=False),
    "trials": lambda split, images: make_trials(torch.rand(20, 3), size=4, top=5, trials_per_unit=1),
}


@pytest.mark.parametrize("name", THINGS)
def test_results_come_back(name: str, split: Disentanglement, images: ImageSet) -> None:
    thing = THINGS[name](split, images)
    back = again(thing)
    assert type(back) is type(thing)
    assert name == "lens" or repr(back) == repr(thing)  # a lens has none of its own
    if name == "edit":
        assert back == thing
    if name == "a class's logit":
        outputs = torch.randn(3, thing.func.__self__.weight.shape[1])
        assert torch.equal(back(outputs), thing(outputs))
    if name == "judge":
        assert torch.equal(back.describe(list(images[:2])), thing.describe(list(images[:2])))


def test_a_split_comes_back_and_does_what_it_did(split: Disentanglement, images: ImageSet) -> None:
    back = again(split)
    units = [(channel_of(split), unit) for unit in (0, 1)]
    assert torch.equal(back.activations(images[:3], units), split.activations(images[:3], units))
    for edit in (Edit.ablate(concept=1), Edit.scale(concept=2, by=1.5)):
        with back.edit(edit), split.edit(edit):
            assert torch.equal(run(back.model, images[:3]), run(split.model, images[:3]))
    assert torch.equal(run(back.model, images[:3]), run(split.model, images[:3]))


def test_the_preprocessing_of_a_loaded_model_comes_back(images: ImageSet) -> None:
    model = load_model("vit_tiny_patch16_224", pretrained=False)
    assert torch.equal(again(model.preprocess)(images[0]), model.preprocess(images[0]))
    back = again(model)
    assert torch.equal(run(back, images[:1]), run(model, images[:1]))
    assert vars(back).keys() == vars(model).keys()


def test_a_model_that_is_listened_to_is_pickled_without_its_listeners(split: Disentanglement, images: ImageSet) -> None:
    with split.lens():
        back = again(split.model)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in back.network.modules())
    assert torch.equal(run(back, images[:2]), run(split.model, images[:2]))


def test_an_edited_model_is_not_pickled_as_if_it_were_none(split: Disentanglement) -> None:
    with split.edit(Edit.ablate(concept=1)):
        for thing in (split.model, split):
            with pytest.raises(EditError, match="a pickle of the model needs the model as it is"):
                pickle.dumps(thing)
    assert not is_intercepted(again(split.model).network)


def test_a_copy_is_as_before(images: ImageSet) -> None:
    model = tiny_vit()
    assert copy.copy(model).network is model.network
    made = copy.deepcopy(model)
    assert made.network is not model.network
    assert torch.equal(run(made, images[:1]), run(model, images[:1]))


@pytest.mark.parametrize("kind", ["sub-units", "PCA", "TopK SAE", "virtual neurons"])
def test_fitted_methods_come_back(kind: str, vit32: Model, images: ImageSet) -> None:
    from elude_nb import compare

    found = compare(
        vit32,
        images,
        "blocks.1.mlp.fc2",
        methods=[kind],
        n_units=12,
        concepts=4,
        k=4,
        tokens_per_image=6,
        progress=False,
    )
    back = again(found)
    assert back.table.equals(found.table)


def in_a_worker(pipe: Any, split: Disentanglement, images: ImageSet, edit: Edit) -> None:
    with split.edit(edit):
        pipe.send(run(split.model, images).numpy())


def test_a_spawned_process_edits_as_this_one_does(split: Disentanglement, images: ImageSet) -> None:
    context, edit = multiprocessing.get_context("spawn"), Edit.ablate(concept=1)
    here, there = context.Pipe()
    worker = context.Process(target=in_a_worker, args=(there, split, images[:3], edit))
    worker.start()
    assert here.poll(120)
    with split.edit(edit):
        assert torch.allclose(torch.from_numpy(here.recv()), run(split.model, images[:3]), rtol=0, atol=1e-12)
    worker.join(30)
    assert worker.exitcode == 0
