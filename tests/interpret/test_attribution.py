from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from elude_nb import Disentanglement, disentangle
from elude_nb.core.edit import Edit
from elude_nb.errors import EditError
from elude_nb.interpret.attribution import METHODS, attribute
from elude_nb.models.forward import Rest, features
from elude_nb.models.hooks import evaluating, is_intercepted
from elude_nb.steering.heads import LinearProbe, fit_head
from tests.tiny import hook_count, tiny_mlp


def first_output(outputs: Tensor) -> Tensor:
    return outputs[:, 1]


def sub_units(split: Disentanglement) -> list[tuple[int, int]]:
    rows = split.units[split.units["unit"] > 0]
    return list(zip(rows["channel"].tolist(), rows["unit"].tolist(), strict=True))


def in_captum(split: Disentanglement, images, method: str, steps: int = 16) -> dict[tuple[int, int], float]:
    """Ask captum, with the activations of all sub-units as inputs and their means as the baseline."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of captum's own imports
        from captum.attr import InputXGradient, IntegratedGradients
    pairs, model, site = sub_units(split), split.model, split.site
    channels = torch.tensor([channel for channel, _ in pairs])
    batch = model.prepare(list(images))
    rest = Rest(model, site)
    with evaluating(model.network):
        captured, _ = rest.capture(batch)
    values = split.activations(images, pairs, tokens="all").reshape(len(batch), -1, len(pairs))  # (n, t, u)
    parts = torch.zeros(*values.shape[:2], site.channels, dtype=values.dtype).index_add(-1, channels, values)
    h = site.outputs(model.network, captured) if site.norm is None else None
    assert h is not None
    base = h - parts.reshape(h.shape)

    def output(x: Tensor, base: Tensor, batch: Tensor) -> Tensor:
        moved = torch.zeros(*x.shape[:2], site.channels, dtype=x.dtype).index_add(-1, channels, x)
        return first_output(rest(batch, base + moved.reshape(base.shape)))

    more = {"additional_forward_args": (base, batch)}
    if method == "gradient":
        found = InputXGradient(output).attribute(values.requires_grad_(), **more)
    else:
        found = IntegratedGradients(output).attribute(
            values, baselines=torch.zeros_like(values), n_steps=steps, method="gausslegendre", **more
        )
    return dict(zip(pairs, found.detach().sum(1).mean(0).tolist(), strict=True))


def rows_of(table: Any) -> Any:
    return table.itertuples()


def by_unit(table, method: str) -> dict[tuple[int, int], float]:
    return {(int(r.channel), int(r.unit)): float(getattr(r, method)) for r in rows_of(table)}


@pytest.mark.parametrize("method", ["gradient", "integrated"])
@pytest.mark.parametrize("which", ["split", "elude_split", "mlp_split"])
def test_captum_finds_the_same(request, which, method) -> None:
    split = request.getfixturevalue(which)
    images = request.getfixturevalue("smallest_images" if which == "mlp_split" else "images")[:3]
    ours = by_unit(attribute(split, images, 1, methods=[method], steps=16).units, method)
    theirs = in_captum(split, images, method)
    assert set(ours) == set(theirs)
    for unit, value in theirs.items():
        assert ours[unit] == pytest.approx(value, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("tokens", ["all", "patch", "class"])
def test_ablation_is_what_the_live_edit_takes_away(split, images, tokens) -> None:
    found = attribute(split, images[:3], 2, tokens=tokens, batch_size=2, ablate_units=4)
    batch = split.model.prepare(list(images[:3]))
    plain = features(split.model, batch)[:, 2]
    for row in rows_of(found.concepts):
        with split.edit(Edit.ablate(concept=int(row.concept), tokens=tokens)):
            lost = float((plain - features(split.model, batch)[:, 2]).mean())
        assert row.ablation == pytest.approx(lost, rel=1e-9, abs=1e-12)
    measured = found.units.dropna(subset="ablation")
    assert len(measured) == 4
    for row in rows_of(measured):
        with split.edit(Edit.ablate(unit=(int(row.channel), int(row.unit)), tokens=tokens)):
            lost = float((plain - features(split.model, batch)[:, 2]).mean())
        assert row.ablation == pytest.approx(lost, rel=1e-9, abs=1e-12)


def test_integrated_gradients_are_complete_and_gradients_are_not(split, images) -> None:
    found = attribute(split, images[:3], 1, steps=48)
    gaps = found.completeness["gap"].abs()
    assert gaps["integrated"] < 1e-12
    assert gaps["gradient"] > 1e-6
    assert found.completeness.loc["integrated", "sum"] == pytest.approx(float(found.units["integrated"].sum()))
    assert not found.exact


def test_concepts_are_the_sums_of_their_sub_units(split, images) -> None:
    found = attribute(split, images[:2], 1, methods=("gradient", "integrated"))
    sums: Any = found.units.groupby("concept")[["gradient", "integrated"]].sum()
    for row in rows_of(found.concepts):
        assert row.gradient == pytest.approx(sums.loc[row.concept, "gradient"])
        assert row.integrated == pytest.approx(sums.loc[row.concept, "integrated"])
    torch.testing.assert_close(
        found.per_image["gradient"].mean(0)[found.concepts["concept"].tolist()],
        torch.tensor(found.concepts["gradient"].tolist(), dtype=torch.float64),
    )


def test_where_the_rest_is_linear_all_methods_are_equal(smallest_images) -> None:
    model = tiny_mlp()
    split = disentangle(model, smallest_images, "5", concepts=5, units=3, tokens="class", progress=False)
    found = attribute(split, smallest_images[:4], 2, ablate_units=100)
    assert found.exact
    for table in (found.units, found.concepts):
        torch.testing.assert_close(
            torch.tensor(table["gradient"]), torch.tensor(table["ablation"]), rtol=1e-9, atol=1e-12
        )
    assert found.completeness["gap"].abs().max() < 1e-12
    assert found.agreement["pearson"].dropna().min() > 1 - 1e-12


def test_a_convolution_with_a_batchnorm_after_it(conv_split, small_images) -> None:
    found = attribute(conv_split, small_images[:3], 1, steps=64)
    whole: Any = found.completeness.loc["integrated"]
    assert abs(whole["gap"]) < 0.02 * abs(whole["difference"])
    row = found.agreement.query("of == 'concepts' and first == 'integrated' and second == 'ablation'").iloc[0]
    assert row["pearson"] > 0.9


def test_batches_make_no_difference(split, images) -> None:
    one = attribute(split, images[:4], 1, batch_size=1).concepts.sort_values("concept", ignore_index=True)
    all_at_once = attribute(split, images[:4], 1, batch_size=4).concepts.sort_values("concept", ignore_index=True)
    for method in METHODS:
        torch.testing.assert_close(torch.tensor(one[method]), torch.tensor(all_at_once[method]), rtol=1e-9, atol=1e-12)


def test_a_probe_is_explained(split, images) -> None:
    probe = fit_head(split.model, images)
    assert isinstance(probe, LinearProbe)
    found = attribute(split, images[:3], probe.margin("label 0", "label 1"))
    other = attribute(split, images[:3], probe.margin("label 1", "label 0"))
    first = found.concepts.set_index("concept")["integrated"]
    second = other.concepts.set_index("concept")["integrated"]
    torch.testing.assert_close(torch.tensor(first.sort_index().tolist()), -torch.tensor(second.sort_index().tolist()))


def test_agreement_is_printed(split, images) -> None:
    found = attribute(split.with_names({2: "edge"}), images[:2], 1)
    assert "concepts, gradient and ablation: r = " in str(found)
    assert "gap" in str(found)
    assert "edge" in found._repr_html_()


def test_nothing_is_left_behind_after_success_and_failure(split, images) -> None:
    flags = [module.training for module in split.model.network.modules()]
    attribute(split, images[:2], 1)

    def fails(outputs: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attribute(split, images[:2], fails)
    assert hook_count(split.model.network) == 0
    assert not is_intercepted(split.model.network)
    assert [module.training for module in split.model.network.modules()] == flags


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (99, "output=99"),
        (lambda outputs: outputs, r"\(1,\)"),
        (lambda outputs: 3.0, r"\(1,\).*float"),
        (lambda outputs: outputs[:, 0] / 0, "finite"),
        (lambda outputs: outputs[:, 0].detach().requires_grad_(), "detach"),
    ],
)
def test_wrong_outputs_are_named(split, images, output, message) -> None:
    with pytest.raises(ValueError, match=message):
        attribute(split, images[:1], output)


def test_wrong_settings_are_named(split, images) -> None:
    with pytest.raises(ValueError, match=r"'gradent'.*'gradient'"):
        attribute(split, images[:1], 0, methods="gradent")
    with pytest.raises(ValueError, match="image"):
        attribute(split, images[:0], 0)
    with pytest.raises(ValueError, match="tokens='pach'"):
        attribute(split, images[:1], 0, tokens="pach")


def test_half_precision_is_never_called_exact(smallest_images) -> None:
    model = tiny_mlp(torch.bfloat16)
    split = disentangle(model, smallest_images, "5", concepts=5, units=3, tokens="class", progress=False)
    found = attribute(split, smallest_images[:4], 2)
    assert not found.exact


def test_an_active_edit_is_not_attributed_a_second_time(split, images) -> None:
    with split.edit(Edit.ablate(concept=2)), pytest.raises(EditError, match="attribute"):
        attribute(split, images[:1], 0)


def test_numpy_numbers_and_inference_mode(split, images) -> None:
    expected = attribute(split, images[:2], 1).concepts
    number: Any = np.int64(1)
    with torch.inference_mode():
        found = attribute(split, images[:2], number).concepts
    pd.testing.assert_frame_equal(found, expected)


def test_images_one_by_one_have_the_tables_as_means(split, images) -> None:
    found = attribute(split, images[:3], 1, ablate_units=5)
    for method in METHODS:
        mean = found.per_image_units[method].mean(0)
        torch.testing.assert_close(mean, torch.tensor(found.units[method].tolist(), dtype=mean.dtype), equal_nan=True)
    assert found.completeness["relative_gap"]["integrated"] < 1e-9


def test_what_no_sub_unit_owns_is_reported(split, images) -> None:
    found = attribute(split, images[:2], 1, methods="gradient")
    every = [(channel, 0) for channel in sorted({channel for channel, _ in sub_units(split)})]
    small = 1e-4
    batch = split.model.prepare(list(images[:2]))
    plain = features(split.model, batch)[:, 1]
    with split.edit(Edit.scale(unit=every, by=1 - small)):
        moved = features(split.model, batch)[:, 1]
    slope = float((plain - moved).mean()) / small
    whole = float(found.units["gradient"].sum())
    assert found.shared == pytest.approx(slope, rel=1e-2, abs=1e-3 * abs(whole))
