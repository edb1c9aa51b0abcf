from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open

from elude_nb import Disentanglement, disentangle, find_exemplars, score, verify
from elude_nb._util.files import load_result, save_result
from elude_nb.core.routing import NO_CONCEPT, Routing
from elude_nb.errors import ModelMismatchError, StoreError
from tests.tiny import hook_count, owners_of, tiny_vit

CLOSE: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}


@pytest.fixture(params=["split", "elude_split", "conv_split", "mlp_split"])
def case(request):
    """A result at a stream, at a convolution with BatchNorm, and at a layer with one vector an image."""
    images = {"split": "images", "elude_split": "images", "conv_split": "small_images", "mlp_split": "smallest_images"}[
        request.param
    ]
    found: Disentanglement = request.getfixturevalue(request.param)
    assert found.routing.is_split().sum() >= 2
    return found, request.getfixturevalue(images)[:4]


def channels_of(split: Disentanglement, images, tokens: str) -> Any:
    """Return the channels as recorded, (n, t, d)."""
    return split.recording(images, tokens=tokens).channels.unflatten(0, (len(images), -1))


def summed(split: Disentanglement, units: torch.Tensor) -> torch.Tensor:
    """Literal loop: add every unit to its channel."""
    total = torch.zeros(*units.shape[:-1], split.site.channels, dtype=units.dtype)
    for column, channel in enumerate(split.units["channel"]):
        total[..., channel] += units[..., column]
    return total


def test_units_add_up_to_the_channel(case) -> None:
    split, images = case
    units = split.activations(images, tokens="all")
    if units.ndim == 2:
        units = units[:, None]
    torch.testing.assert_close(summed(split, units), channels_of(split, images, "all"), **CLOSE)


@pytest.mark.parametrize(("tokens", "count"), [("class", 1), ("registers", 2), ("patch", 16), ("all", 19)])
def test_shapes_for_each_kind_of_token(split, images, tokens, count) -> None:
    middle = () if count == 1 else (count,)
    assert split.activations(images[:3], tokens=tokens).shape == (3, *middle, len(split.units))
    assert split.activations(images[:3], [(0, 0)], tokens=tokens).shape == (3, *middle, 1)
    assert split.concept_activations(images[:3], tokens=tokens).shape == (3, *middle, len(split.book))


def test_batch_size_does_not_change_activations(split, images) -> None:
    one, other = (split.activations(images[:7], tokens="all", batch_size=size) for size in (2, 7))
    torch.testing.assert_close(one, other, **CLOSE)


def test_chosen_units_come_in_the_order_asked(split, images) -> None:
    pairs = list(zip(split.units["channel"], split.units["unit"], strict=True))
    every = split.activations(images[:2])
    for wanted in (pairs[5:1:-2], [pairs[3], pairs[3]]):
        columns = [pairs.index(pair) for pair in wanted]
        torch.testing.assert_close(split.activations(images[:2], wanted), every[..., columns], **CLOSE)


def test_units_may_be_rows_of_the_table_and_come_one_by_one(split, images) -> None:
    table = split.units[["channel", "unit"]].iloc[2:6]
    expected = split.activations(images[:2], list(table.itertuples(index=False, name=None)))
    rows = [row for _, row in table.iterrows()]
    tensors = torch.tensor(table.to_numpy())
    pairs = zip(table["channel"], table["unit"], strict=True)
    for wanted in (table.to_numpy(), list(table.to_numpy()), rows, tensors, pairs):
        assert torch.equal(split.activations(images[:2], wanted), expected)
    for wrong in ([17], [(1, 2, 3)], ["12"], [{1, 2}], [(True, 1)], [(1.0, 2)]):
        with pytest.raises(TypeError, match="A unit is a pair"):
            split.activations(images[:2], wrong)


def test_sub_units_are_their_contributions_and_centred(case) -> None:
    """Literal second implementation: W[j, i] (a[i] - mean a[i]) over the sources routed to the unit."""
    split, images = case
    seen = split.recording(images, tokens="all")
    units = split.activations(images, tokens="all").reshape(len(seen), -1)
    kernel = split.site.kernel
    weight = split.site.weight(split.model.network)
    mean = split.book.source_sums.sum(0) / split.book.counts.sum()
    for column, (channel, unit) in enumerate(zip(split.units["channel"], split.units["unit"], strict=True)):
        if unit == 0 or column > 40:
            continue
        total = torch.zeros(len(seen), dtype=torch.float64)
        for source in range(split.site.sources):
            owners = owners_of(split.routing, channel, source)
            if unit in owners:
                for place in range(source * kernel, (source + 1) * kernel):
                    total += weight[channel, place] / len(owners) * (seen.sources[:, place] - mean[place])
        torch.testing.assert_close(units[:, column], total, **CLOSE)


def test_encode_and_decode_give_the_channels_back(case) -> None:
    split, images = case
    seen = split.recording(images, tokens="all")
    units = split.encode(seen)
    torch.testing.assert_close(units, split.activations(images, tokens="all").reshape(units.shape), **CLOSE)
    torch.testing.assert_close(split.decode(units), seen.channels, **CLOSE)


def test_decode_refuses_another_number_of_units(split) -> None:
    with pytest.raises(ValueError, match=rf"decode takes \(t, {len(split.units)}\)"):
        split.decode(torch.zeros(2, 3))


def test_concept_read_out_is_the_weighted_sum_of_its_sub_units(case) -> None:
    """Literal second implementation of the method, step 5: (sub-unit) x (its mean on the concept) / variance."""
    split, images = case
    units = split.activations(images, tokens="all").reshape(-1, len(split.units))
    expected = torch.zeros(len(units), len(split.book), dtype=torch.float64)
    table = split.units.reset_index()
    for row in table[table["concept"].notna()].to_dict("records"):
        factor = row["mean_on_concept"] / float(split.channel_variance[row["channel"]])
        expected[:, int(row["concept"])] += units[:, row["index"]] * factor
    found = split.concept_activations(images, tokens="all").reshape(expected.shape)
    torch.testing.assert_close(found, expected, **CLOSE)
    assert found.abs().max() > 0


def test_mean_on_concept_is_the_mean_over_the_concepts_tokens(case) -> None:
    """Literal loop over sources; and the sum over all units is the channel's mean on the concept."""
    split, _ = case
    weight, means = split.site.weight(split.model.network), split.book.mean_sources()
    for row in split.units[split.units["concept"].notna()].to_dict("records"):
        products = (weight[row["channel"]] * means[int(row["concept"])]).unflatten(0, (-1, split.site.kernel)).sum(1)
        owners = [owners_of(split.routing, row["channel"], source) for source in range(split.site.sources)]
        expected = sum(float(p) / len(o) for p, o in zip(products, owners, strict=True) if row["unit"] in o)
        assert row["mean_on_concept"] == pytest.approx(expected, rel=1e-9)
    assert split.units.loc[split.units["unit"] == 0, "concept"].isna().all()


def test_shares_are_covariances_over_the_tokens_recorded(case, images, small_images, smallest_images) -> None:
    split, _ = case
    chosen = split.settings
    every = {32: images, 16: small_images, 8: smallest_images}[split.model.input_size[-1]]
    seen = split.recording(every, tokens=chosen.tokens, tokens_per_image=chosen.tokens_per_image, seed=chosen.seed)
    units, channels = split.encode(seen).numpy(), seen.channels.numpy()
    torch.testing.assert_close(split.unit_shares.sum(1), torch.ones(split.site.channels, dtype=torch.float64))
    for column, row in enumerate(split.units.to_dict("records")):
        h = channels[:, row["channel"]]
        expected = np.mean((units[:, column] - units[:, column].mean()) * (h - h.mean())) / h.var()
        assert row["share_of_variance"] == pytest.approx(expected, rel=1e-6, abs=1e-8)
    np.testing.assert_allclose(split.channels["variance"], channels.var(0), rtol=1e-9)


def test_tables_agree_with_the_routing(case) -> None:
    split, _ = case
    table = split.units
    shared = split.routing.owner_sets is not None
    assert table.columns.tolist() == [
        "channel", "unit", "concept", "sources", "share_of_variance", "mean_on_concept",
        *(["exclusive_sources"] if shared else []),
    ]  # fmt: skip
    for (channel, unit), row in table.set_index(["channel", "unit"]).iterrows():
        owners = [owners_of(split.routing, channel, source) for source in range(split.site.sources)]
        assert row["sources"] == sum(unit in each for each in owners)
        assert not shared or row["exclusive_sources"] == sum(each == [unit] for each in owners)
    assert table.groupby("channel").size().sub(1).tolist() == split.channels["units"].tolist()
    assert split.channels["split"].tolist() == split.routing.is_split().tolist()
    assert (split.channels["reason"] == "split").tolist() == split.channels["split"].tolist()


@pytest.mark.parametrize("name", ["units", "channels"])
def test_changing_a_table_changes_no_later_one(split, name) -> None:
    before = getattr(split, name).copy()
    handed_out = getattr(split, name)
    handed_out["channel"] = 0
    handed_out.insert(0, "more", 1)
    pd.testing.assert_frame_equal(getattr(split, name), before)


def test_contributions_add_up_to_the_units_mean_on_its_concept(case) -> None:
    split, _ = case
    for row in split.units[split.units["concept"].notna()].head(10).to_dict("records"):
        table = split.contributions(row["channel"], row["unit"])
        assert len(table) == row["sources"]
        assert table["contribution"].sum() == pytest.approx(row["mean_on_concept"], rel=1e-9)
        assert table["contribution"].abs().is_monotonic_decreasing
        assert all(row["unit"] in owners_of(split.routing, row["channel"], source) for source in table.index)


def test_contributions_on_images_add_up_to_the_units_mean_there(case) -> None:
    split, images = case
    channel = int(split.routing.is_split().nonzero()[0])
    for unit in split.units.loc[split.units["channel"] == channel, "unit"]:
        table = split.contributions(channel, unit, images, tokens="all")
        expected = float(split.activations(images, [(channel, unit)], tokens="all").mean())
        if unit == 0:  # which also has the bias, what enters, and the sub-units' means
            rest = split.routing.masked(split.weight, torch.tensor([channel]), torch.tensor([0]))[0]
            seen = split.recording(images, tokens="all").sources.mean(0) - split.book.source_mean()
            expected = float(rest @ seen)
        assert table["contribution"].sum() == pytest.approx(expected, rel=1e-8, abs=1e-10)


def test_contributions_of_the_shared_unit_need_images(split) -> None:
    channel = int(split.routing.is_split().nonzero()[0])
    with pytest.raises(ValueError, match="has no concept; say on which images"):
        split.contributions(channel, 0)


def test_unknown_units_are_refused_with_those_there_are(split, images) -> None:
    channel = int(split.routing.is_split().nonzero()[0])
    with pytest.raises(ValueError, match=rf"no unit \({channel}, 99\); channel {channel} has units \[0, "):
        split.activations(images[:1], [(channel, 99)])
    with pytest.raises(ValueError, match=r"no unit \(99, 1\); channels go from 0 to 23"):
        split.contributions(99, 1)


def test_explicit_network_can_have_chosen_channels_only(split, images) -> None:
    chosen = split.routing.is_split().nonzero().flatten()[:2].tolist()
    made = split.explicit(channels=chosen)
    units = sum(int((split.routing.sizes()[channel, 1:] > 0).sum()) for channel in chosen)
    split_layer = made.get_submodule("blocks.2.block.mlp.fc2.split")
    assert isinstance(split_layer, torch.nn.Linear)
    assert split_layer.out_features == split.site.channels + units
    batch = split.model.prepare(list(images[:3]))
    torch.testing.assert_close(made(batch), split.model(batch), rtol=1e-12, atol=1e-12)
    assert split.explicit(channels=[]) is not split.model.network


@pytest.mark.parametrize(("wrong", "error"), [([24], ValueError), ([-1], ValueError), ([1.0], TypeError)])
def test_explicit_network_of_channels_that_are_not_there_is_refused(split, wrong, error) -> None:
    with pytest.raises(error, match="channel"):
        split.explicit(channels=wrong)


def test_routing_without_concepts_has_no_concept_read_outs(mlp, smallest_images) -> None:
    split = disentangle(
        mlp,
        smallest_images,
        "3",
        concepts=5,
        units=2,
        tokens="class",
        routing="channel-clusters",
        progress=False,
    )
    assert split.routing.is_split().any()
    with pytest.raises(ValueError, match="use routing='concepts'"):
        split.concept_activations(smallest_images[:2], tokens="class")
    channel = int(split.routing.is_split().nonzero()[0])
    with pytest.raises(ValueError, match="has no concept"):
        split.contributions(channel, 1)
    assert split.units["concept"].isna().all()


def test_reprs_are_short_and_escape(split) -> None:
    assert repr(split).startswith("Disentanglement('VisionTransformer', stream:3: ")
    named = dataclasses.replace(split, model=dataclasses.replace(split.model, name="<b>"))
    assert "&lt;b&gt;" in named._repr_html_()
    assert "<b>" not in named._repr_html_()


# ------------------------------------------------------------------ half precision


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_everything_works_in_lower_precision(images, dtype) -> None:
    split = disentangle(tiny_vit(dtype), images, concepts=6, units=3, tokens_per_image=6, progress=False)
    assert split.book.source_sums.dtype == split.unit_shares.dtype == torch.float32
    seen = split.recording(images[:3], tokens="all")
    largest = seen.channels.abs().max()
    rounding = torch.finfo(dtype).eps
    assert (split.decode(split.encode(seen)) - seen.channels).abs().max() < 16 * rounding * largest
    units = split.activations(images[:3], tokens="all")
    assert (summed(split, units).flatten(0, 1) - seen.channels).abs().max() < 16 * rounding * largest
    assert split.concept_activations(images[:3]).isfinite().all()
    assert len(split.units) == len(split.routing.rows()[0])
    assert split.channels["variance"].gt(0).all()
    channel = int(split.routing.is_split().nonzero()[0])
    assert len(split.contributions(channel, 1, images[:2]))
    assert score(split, images, k=4, progress=False)["top_similarity"].notna().any()
    assert find_exemplars(split, images, channel, count=3, progress=False).rows


# ------------------------------------------------------------------ the model is as it was


def test_the_model_is_untouched_by_the_whole_of_it(images, tmp_path) -> None:
    model = tiny_vit()
    model.network.get_submodule("blocks.1").train()
    network = model.network
    parameters = {name: (id(p), p.detach().clone(), p.requires_grad) for name, p in network.named_parameters()}
    modules = {name: (id(module), module.training) for name, module in network.named_modules()}
    hooks, random, numpy_random = hook_count(network), torch.get_rng_state(), str(np.random.get_state())  # noqa: NPY002
    gradients, threads = torch.is_grad_enabled(), torch.get_num_threads()
    split = disentangle(model, images, concepts=6, units=3, tokens_per_image=6, progress=False)
    verify(split, images[:3], progress=False)
    score(split, images, k=4, progress=False)
    channel = int(split.routing.is_split().nonzero()[0])
    find_exemplars(split, images, channel, count=3, progress=False)
    split.save(tmp_path / "result.safetensors")
    Disentanglement.load(tmp_path / "result.safetensors", model)
    assert model.network is network
    assert {name: (id(module), module.training) for name, module in network.named_modules()} == modules
    for name, parameter in network.named_parameters():
        was, value, wanted_gradient = parameters[name]
        assert id(parameter) == was
        assert parameter.equal(value)
        assert parameter.requires_grad == wanted_gradient
        assert parameter.grad is None
    assert hook_count(network) == hooks
    assert torch.get_rng_state().equal(random)
    assert str(np.random.get_state()) == numpy_random  # noqa: NPY002
    assert (torch.is_grad_enabled(), torch.get_num_threads()) == (gradients, threads)


# ------------------------------------------------------------------ save, load


def saved(split: Disentanglement, tmp_path):
    path = tmp_path / "result.safetensors"
    split.save(path)
    return path


def test_a_loaded_result_is_the_saved_one(case, tmp_path) -> None:
    split, images = case
    back = Disentanglement.load(saved(split, tmp_path), split.model)
    assert back.settings == split.settings
    assert back.site == split.site
    assert back.routing.reasons == split.routing.reasons
    for one, other in [
        (back.routing.routes, split.routing.routes),
        (back.routing.concepts, split.routing.concepts),
        (back.book.counts, split.book.counts),
        (back.book.channel_sums, split.book.channel_sums),
        (back.book.source_sums, split.book.source_sums),
        (back.channel_variance, split.channel_variance),
        (back.unit_shares, split.unit_shares),
    ]:
        assert one.dtype == other.dtype
        assert one.equal(other)
    assert back.units.equals(split.units)
    assert back.activations(images, tokens="all").equal(split.activations(images, tokens="all"))
    assert back.concept_activations(images, tokens="all").equal(split.concept_activations(images, tokens="all"))


def test_a_result_with_a_window_of_blocks_comes_back(vit, images, tmp_path) -> None:
    split = disentangle(vit, images, "stream:2", blocks=1, concepts=6, units=3, tokens_per_image=6, progress=False)
    assert Disentanglement.load(saved(split, tmp_path), vit).site == split.site


def test_other_weights_are_refused(split, tmp_path) -> None:
    path = saved(split, tmp_path)
    with pytest.raises(ModelMismatchError, match="Load that model"):
        Disentanglement.load(path, tiny_vit(seed=1))
    nearly = copy.deepcopy(split.model.network)
    with torch.no_grad():
        nearly.get_parameter("blocks.0.mlp.fc1.bias")[0] += 1e-12
    with pytest.raises(ModelMismatchError):
        Disentanglement.load(path, dataclasses.replace(split.model, network=nearly))


def test_another_architecture_and_another_dtype_are_refused(split, conv, tmp_path) -> None:
    path = saved(split, tmp_path)
    for other in (conv, tiny_vit(registers=0), tiny_vit(torch.float32)):
        with pytest.raises(ModelMismatchError):
            Disentanglement.load(path, other)


def test_a_file_that_is_not_there_is_named(vit, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.safetensors"):
        Disentanglement.load(tmp_path / "nothing.safetensors", vit)


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_a_truncated_file_is_refused(split, tmp_path, kept) -> None:
    path = saved(split, tmp_path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(StoreError):
        Disentanglement.load(path, split.model)


@pytest.mark.parametrize(
    "name", ["routes", "concepts", "counts", "channel_sums", "source_sums", "channel_variance", "unit_shares"]
)
@pytest.mark.parametrize("harm", ["missing", "shorter", "narrower"])
def test_a_tampered_file_is_refused(split, tmp_path, name, harm) -> None:
    path = saved(split, tmp_path)
    tensors, manifest = load_result(path, "disentanglement")
    if harm == "missing":
        del tensors[name]
    elif harm == "shorter":
        tensors[name] = tensors[name][:-1].clone()
    elif tensors[name].ndim > 1:
        tensors[name] = tensors[name][:, :-1].clone()
    else:
        tensors[name] = tensors[name][:, None]
    save_result(path, "disentanglement", tensors, manifest)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - StoreError, or what Routing says
        Disentanglement.load(path, split.model)
    assert isinstance(caught.value, StoreError)
    assert str(path) in str(caught.value)


def test_concepts_that_are_not_in_the_book_are_refused(split, tmp_path) -> None:
    path = saved(split, tmp_path)
    tensors, manifest = load_result(path, "disentanglement")
    tensors["concepts"][int(split.routing.is_split().nonzero()[0]), 0] = len(split.book)
    save_result(path, "disentanglement", tensors, manifest)
    with pytest.raises(StoreError, match="concept"):
        Disentanglement.load(path, split.model)


@pytest.mark.parametrize("key", ["settings", "reasons", "fingerprint"])
def test_a_manifest_that_lacks_a_part_is_refused(split, tmp_path, key) -> None:
    path = saved(split, tmp_path)
    tensors, manifest = load_result(path, "disentanglement")
    del manifest[key]
    save_result(path, "disentanglement", tensors, manifest)
    with pytest.raises((StoreError, ModelMismatchError)):
        Disentanglement.load(path, split.model)


def test_the_models_weights_are_not_in_the_file(split, tmp_path) -> None:
    with safe_open(saved(split, tmp_path), framework="pt") as file:
        assert len(file.keys()) == 9


def test_a_channel_with_no_concept_contributes_to_no_read_out(split) -> None:
    """A strategy may leave units without a concept: they are in no concept's read-out."""
    routes, concepts = split.routing.routes.clone(), split.routing.concepts.clone()
    channel = int(split.routing.is_split().nonzero()[0])
    concepts[channel] = NO_CONCEPT
    without = dataclasses.replace(split, routing=Routing(routes, concepts, split.routing.reasons))
    routes[channel] = 0
    whole = dataclasses.replace(split, routing=Routing(routes, concepts, split.routing.reasons))
    torch.testing.assert_close(without.concept_readout().matrix, whole.concept_readout().matrix)


def test_the_same_weights_in_another_architecture_are_refused(split, tmp_path) -> None:
    """With one head instead of two no weight has another shape, but the network is another."""
    path = saved(split, tmp_path)
    other = tiny_vit()
    for number in range(3):
        block: Any = other.network.get_submodule(f"blocks.{number}")
        block.attn.num_heads, block.attn.head_dim = 1, 24
        block.attn.scale = 24**-0.5
    assert other.fingerprint() == split.model.fingerprint()
    with pytest.raises(ModelMismatchError, match="with the same weights its output on noise differs"):
        Disentanglement.load(path, other)


def test_the_lens_gives_units_beside_an_untouched_pass(split, images) -> None:
    batch = split.model.prepare(list(images[:2]))
    plain = split.model(batch)
    pairs = [(int(c), int(u)) for c, u in split.units[["channel", "unit"]].to_numpy()[:4]]
    with split.lens(pairs) as lens:
        assert torch.equal(split.model(batch), plain)
    torch.testing.assert_close(lens.values, split.activations(images[:2], pairs, tokens="all"))
    with split.lens() as lens:
        split.model(batch)
    torch.testing.assert_close(lens.values, split.concept_activations(images[:2], tokens="all"))


def test_tokens_are_those_of_the_discovery_unless_said_otherwise(split, mlp_split, images, smallest_images) -> None:
    assert split.concept_activations(images[:2]).shape[1] == 16
    assert mlp_split.concept_activations(smallest_images[:2]).ndim == 2
