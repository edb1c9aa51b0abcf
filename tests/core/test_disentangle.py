from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import elude_nb
from elude_nb import Disentanglement, disentangle, find_site, record, wrap_network
from elude_nb.core.concepts import suggest_concepts
from elude_nb.core.disentangle import unit_shares
from elude_nb.core.estimate import estimate
from elude_nb.core.routing import NO_CONCEPT, Routing
from elude_nb.core.strategies import ConceptRouting
from elude_nb.errors import SiteError
from tests.tiny import hook_count, tiny_vit, to_tensor

QUICK: dict[str, Any] = {"concepts": 6, "units": 3, "tokens_per_image": 6, "progress": False}


def tensors_of(split: Disentanglement) -> list[torch.Tensor]:
    return [
        split.routing.routes,
        split.routing.concepts,
        split.book.counts,
        split.book.channel_sums,
        split.book.source_sums,
        split.channel_variance,
        split.unit_shares,
    ]


def same(one: Disentanglement, other: Disentanglement) -> bool:
    return all(a.equal(b) for a, b in zip(tensors_of(one), tensors_of(other), strict=True))


@pytest.mark.parametrize("routing", ["concepts", "channel-clusters", "random"])
def test_the_same_seed_gives_the_same_result(vit, images, routing) -> None:
    one, other = (disentangle(vit, images, routing=routing, seed=3, **QUICK) for _ in range(2))
    assert same(one, other)
    assert one.settings == other.settings


def test_another_seed_gives_another_result(vit, images) -> None:
    assert not same(*(disentangle(vit, images, seed=seed, **QUICK) for seed in (0, 1)))


def test_the_global_random_state_has_no_say(vit, images) -> None:
    one = disentangle(vit, images, **QUICK)
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    assert same(one, disentangle(vit, images, **QUICK))


def test_labels_are_not_looked_at(vit, images) -> None:
    assert same(disentangle(vit, images, **QUICK), disentangle(vit, list(images), **QUICK))


def test_batch_size_does_not_change_groups_or_routes(vit, images) -> None:
    one, other = (disentangle(vit, images, batch_size=size, **QUICK) for size in (3, 16))
    assert one.book.counts.equal(other.book.counts)
    assert one.routing.routes.equal(other.routing.routes)
    torch.testing.assert_close(one.unit_shares, other.unit_shares, rtol=1e-8, atol=1e-8)


def test_settings_say_how_it_was_made(split) -> None:
    assert dataclasses.asdict(split.settings) == {
        "site": "stream:3",
        "blocks": "all",
        "concepts": 8,
        "units": 3,
        "shared": None,
        "routing": "concepts",
        "strategy": "ConceptRouting(one_meaning=0.8, both_signs=False, unlike=False, name='concepts')",
        "tokens": "patch",
        "tokens_per_image": 6,
        "seed": 0,
        "images": 20,
        "images_from": "an array (20, 32, 32, 3)",
    }
    assert int(split.book.counts.sum()) == 20 * 6


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"units": 1}, ValueError),
        ({"units": 256}, ValueError),
        ({"units": 2.5}, TypeError),
        ({"shared": 1.5}, ValueError),
        ({"shared": "much"}, TypeError),
        ({"routing": "concept"}, ValueError),
        ({"routing": 3}, TypeError),
        ({"concepts": 1}, ValueError),
        ({"concepts": 2.0}, TypeError),
        ({"batch_size": 0}, ValueError),
        ({"tokens_per_image": 0}, ValueError),
        ({"tokens": "patches"}, ValueError),
        ({"seed": -1}, ValueError),
        ({"seed": 0.5}, TypeError),
        ({"max_memory": 0}, ValueError),
        ({"max_memory": -1.0}, ValueError),
        ({"max_memory": float("nan")}, ValueError),
    ],
)
def test_settings_are_checked_before_any_forward_pass(images, wrong, error) -> None:
    model = tiny_vit()
    passes: list[object] = []
    model.network.register_forward_pre_hook(lambda *args: passes.append(args))
    with pytest.raises(error, match=next(iter(wrong))):
        disentangle(model, images, **(QUICK | wrong))
    assert passes == []


def test_no_images_are_refused(vit) -> None:
    with pytest.raises(ValueError, match="list of images is empty"):
        disentangle(vit, [], **QUICK)


def test_too_few_tokens_are_refused_with_the_numbers(vit, images) -> None:
    message = "2 images with 6 patch tokens each: 12 tokens, too few for concepts=13"
    with pytest.raises(ValueError, match=message):
        disentangle(vit, images[:2], **(QUICK | {"concepts": 13}))
    assert len(disentangle(vit, images[:2], **(QUICK | {"concepts": 12})).book) <= 12


def test_tokens_that_the_site_lacks_are_refused(mlp, smallest_images) -> None:
    with pytest.raises(ValueError, match=r"tokens='patch': this site has none; it has \['class', 'all'\]"):
        disentangle(mlp, smallest_images, "3", tokens="patch", **QUICK)


def test_unknown_site_is_refused(vit, images) -> None:
    with pytest.raises(SiteError, match=r"blocks\.0\.mlp\.fc2"):
        disentangle(vit, images, "blocks.0.mlp.fc3", **QUICK)


def test_max_memory_that_is_too_little_is_refused_with_what_is_needed(vit, images) -> None:
    with pytest.raises(ValueError, match="needs at least") as caught:
        disentangle(vit, images, max_memory=1e-6, **QUICK)
    needed = float(re.findall(r"at least (\S+) GiB", str(caught.value))[0])
    settings: dict[str, Any] = {"concepts": 6, "units": 3, "tokens_per_image": 6}
    assert estimate(vit, images, max_memory=1.01 * needed, **settings).capacity == 12
    with pytest.raises(ValueError, match="needs at least"):
        estimate(vit, images, max_memory=0.99 * needed, **settings)


def test_less_memory_makes_a_smaller_buffer_and_still_works(vit, images) -> None:
    settings: dict[str, Any] = {"concepts": 6, "tokens_per_image": 16}
    free = estimate(vit, images, **settings)
    for fraction in (0.95, 0.85, 0.8):
        limit = free.memory * fraction / 2**30
        tight = estimate(vit, images, **settings, max_memory=limit)
        assert tight.memory <= limit * 2**30
        assert (tight.capacity, tight.micro_clusters) < (free.capacity, free.micro_clusters)
        assert tight.tokens == free.tokens == 320
    split = disentangle(vit, images, **settings, units=3, max_memory=limit, progress=False)
    assert int(split.book.counts.sum()) == 320
    seen = split.recording(images, tokens="patch", tokens_per_image=16)
    torch.testing.assert_close(split.book.source_mean(), seen.sources.mean(0), rtol=1e-11, atol=1e-11)


def test_estimate_says_what_is_needed(vit, images) -> None:
    found = estimate(vit, images, concepts=6, tokens_per_image=6)
    assert (found.tokens, found.sources) == (120, 360)
    assert found.seconds > 0
    assert found.memory > 120 * 360 * 8  # at the least the tokens themselves, in float64
    assert found.capacity == 120
    assert str(found).startswith("120 tokens with 360 sources each, 6 concepts of 20 tokens on average: about ")


@pytest.mark.parametrize("tokens", [1, 16])
def test_the_number_of_concepts_follows_the_data(vit, images, tokens, capsys) -> None:
    expected = suggest_concepts(20 * tokens)
    assert estimate(vit, images, tokens_per_image=tokens).concepts == expected
    split = disentangle(vit, images, tokens_per_image=tokens, units=2, progress=True)
    assert split.settings.concepts == len(split.book) == expected
    assert f"{expected} concepts of {20 * tokens / expected:.0f} tokens" in capsys.readouterr().err


def test_estimate_counts_the_tokens_there_are(vit, conv, images, small_images) -> None:
    assert estimate(vit, images, concepts=6, tokens="class").tokens == 20
    assert estimate(vit, images, concepts=6, tokens_per_image=None).tokens == 320
    assert estimate(vit, images, concepts=6, tokens_per_image=99, tokens="registers").tokens == 40
    found = estimate(conv, small_images, "stem", concepts=6, tokens_per_image=None)
    assert (found.tokens, found.sources) == (30 * 64, 27)


def test_the_estimate_is_shown_beforehand(vit, images, capsys, monkeypatch) -> None:
    monkeypatch.setattr("elude_nb._util.progress._EVERY", 1e-9)
    disentangle(vit, images, **(QUICK | {"progress": True}))
    shown = capsys.readouterr()
    assert "disentangle: 120 tokens with 360 sources each" in shown.out + shown.err
    assert "forward passes" in shown.err
    disentangle(vit, images, **QUICK)
    assert capsys.readouterr() == ("", "")


class EverySecond:
    """A strategy of the user's own."""

    name = "every second"

    def route(self, weight, book, fine, *, units, shared) -> Routing:
        self.seen = tuple(weight.shape), len(book), units, shared
        routes = (torch.arange(weight.shape[1]) % 2 + 1).to(torch.uint8).expand(len(weight), -1).clone()
        return Routing(routes, torch.full((len(weight), 2), NO_CONCEPT), ("split",) * len(weight))


def test_a_strategy_of_ones_own(conv, small_images) -> None:
    mine = EverySecond()
    split = disentangle(conv, small_images, "stem", routing=mine, shared=0.5, **QUICK)
    assert mine.seen == ((8, 3, 9), 6, 3, 0.5)
    assert split.settings.routing == "every second"
    assert split.routing.sizes().tolist() == [[0, 2, 1]] * 8
    elude_nb.verify(split, small_images[:3], progress=False)


def test_a_routing_that_splits_nothing_goes_through_everything(vit, images, tmp_path) -> None:
    split = disentangle(vit, images, routing=ConceptRouting(one_meaning=-1), **QUICK)
    assert not split.routing.is_split().any()
    assert split.unit_shares[:, 0].equal(torch.ones(24, dtype=torch.float64))
    seen = split.recording(images[:2], tokens="all")
    torch.testing.assert_close(split.decode(split.encode(seen)), seen.channels, rtol=1e-11, atol=1e-11)
    assert elude_nb.verify(split, images[:2], progress=False).lens.identical
    table = elude_nb.score(split, images, k=4, progress=False)
    assert set(table["kind"]) == {"channel"}
    split.save(tmp_path / "whole.safetensors")
    assert same(split, Disentanglement.load(tmp_path / "whole.safetensors", vit))


def test_images_by_the_name_of_a_set(vit) -> None:
    model = dataclasses.replace(vit, preprocess=lambda image: to_tensor(image.resize((32, 32))))
    split = disentangle(model, "shapes", concepts=6, units=3, tokens_per_image=2, progress=False)
    assert split.settings.images_from == "shapes"
    assert int(split.book.counts.sum()) == 2 * split.settings.images


def test_copies_of_one_image_do_not_break_it(vit, images) -> None:
    copies = [images[0]] * 12
    for tokens in ("patch", "class"):
        split = disentangle(vit, copies, tokens=tokens, **QUICK)
        assert split.unit_shares.isfinite().all()
        torch.testing.assert_close(split.unit_shares.sum(1), torch.ones(24, dtype=torch.float64))
        assert split.concept_activations(copies[:2]).isfinite().all() if split.routing.is_split().any() else True


def test_hooks_are_gone_when_an_image_is_broken(images, tmp_path) -> None:
    model = tiny_vit()
    paths = []
    for number in range(6):
        paths.append(tmp_path / f"{number}.png")
        images[number].save(paths[-1])
    paths[5].write_bytes(b"no image")
    with pytest.raises(elude_nb.errors.ImageError, match=r"5\.png"):
        disentangle(model, elude_nb.load_images(paths), batch_size=2, **QUICK)
    assert hook_count(model.network) == 0


@pytest.mark.parametrize("at_once", [1, 32])
def test_shares_of_hand_made_units(at_once, monkeypatch) -> None:
    """Channel 0 is a[0] + a[1] with variances 1 and 3; channel 1 never varies."""
    monkeypatch.setattr("elude_nb.core.disentangle._CHANNELS_AT_ONCE", at_once)
    weight = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    covariance = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.5, 0.0]])
    routing = Routing(torch.tensor([[1, 2, 0], [0, 0, 0]], dtype=torch.uint8), torch.full((2, 2), -1), ("split", ""))
    shares = unit_shares(weight, routing, covariance, torch.tensor([4.0, 0.0]))
    assert shares.tolist() == [[0.0, 0.25, 0.75], [1.0, 0.0, 0.0]]


def test_a_channel_is_split_along_the_concepts_that_raise_it(split, images) -> None:
    """The concepts of a channel's sub-units raise it, by the tokens themselves, and are among its strongest."""
    assert split.routing.is_split().any()
    values = split.book.mean_channels()
    for channel in split.routing.is_split().nonzero().flatten().tolist():
        concepts = set(split.routing.concepts[channel].tolist()) - {NO_CONCEPT}
        assert (values[sorted(concepts), channel] > 0).all()
        assert concepts <= set(values[:, channel].topk(3).indices.tolist())
    tokens = sum(len(part) for part in record(split.model, images, split.site, tokens="patch", tokens_per_image=6))
    assert tokens == int(split.book.counts.sum())


def test_the_seed_reaches_the_routing(vit, images) -> None:
    one, same_seed, other = (disentangle(vit, images, routing="random", seed=s, **QUICK) for s in (1, 1, 2))
    assert one.routing.routes.equal(same_seed.routing.routes)
    assert "seed=1" in one.settings.strategy
    assert not one.routing.routes.equal(other.routing.routes)


def test_numbers_of_numpy_are_taken_and_can_be_saved(vit, images, tmp_path) -> None:
    whole: dict[str, Any] = {name: np.int64(value) if type(value) is int else value for name, value in QUICK.items()}
    disentangle(vit, images, **(whole | {"seed": np.int64(0)})).save(tmp_path / "split.safetensors")
    assert (tmp_path / "split.safetensors").is_file()


def test_images_are_whatever_load_images_takes(vit, images) -> None:
    assert same(disentangle(vit, images, **QUICK), disentangle(vit, [image for image in images], **QUICK))  # noqa: C416


def test_an_input_of_another_size_is_another_model(images) -> None:
    """What one forward pass showed is remembered for a model, not for its network."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
    models = (wrap_network(network, preprocess=to_tensor, input_size=(3, side, side)) for side in (16, 32))
    sides = [find_site(model, "2").layout.grid for model in models]
    assert sides == [(16, 16), (32, 32)]
