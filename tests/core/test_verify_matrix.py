"""The exactness matrix: a representative part here, the whole with ``-m slow``; and the pages that it has written."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from elude_nb import find_site
from elude_nb.core.explicit import explicit_network
from elude_nb.models.sites import Site

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
matrix: Any = importlib.import_module("exactness_matrix")
zoo: Any = importlib.import_module("architecture_zoo")
sys.path.remove(str(ROOT / "benchmarks"))

ENTRIES = {entry.name: entry for entry in zoo.zoo()}
QUICK = [name for name, entry in ENTRIES.items() if entry.quick]
pytestmark = pytest.mark.filterwarnings("ignore")  # other people's networks


def prove(name: str, *, everything: bool) -> tuple[Any, list[Any]]:
    if name.startswith("transformers"):
        pytest.importorskip("transformers", reason="transformers is optional and absent")
    table, rows = matrix.measure(ENTRIES[name], everything=everything)
    assert rows
    assert [problem for row in rows for problem in row.problems()] == []
    for row in rows:
        assert all(cell.lens.max_abs_diff == 0.0 for cell in row.cells.values())
        assert row.cells["float64"].explicit.max_rel_diff <= 1e-12
        assert row.cells["float32"].bound_used <= 1
    return table, rows


@pytest.mark.parametrize("name", QUICK)
def test_a_representative_part_is_exact(name) -> None:
    prove(name, everything=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(ENTRIES))
def test_the_whole_is_exact_under_all_conditions(request, name) -> None:
    if request.config.option.markexpr != "slow":
        pytest.skip("the whole takes about 10 minutes: pytest -m slow tests/core/test_verify_matrix.py")
    prove(name, everything=True)


@pytest.mark.parametrize("name", ["timm resnet18", "timm vit_small_patch14_reg4_dinov2, depth=3"])
def test_other_conditions(name) -> None:
    """Batch sizes, odd images and channels-last; torch.compile is left to the slow test."""
    entry = ENTRIES[name]
    quick = zoo.Entry(entry.name, entry.family, entry.make, entry.side, entry.sites, entry.odd)
    model = zoo.build(quick)
    found = matrix._conditions(quick, model, matrix._chosen(quick, matrix.find_sites(model))[0], 0)
    assert {"1 image", "7 images", "channels last"} < found.keys()
    assert any("pixels" in condition for condition in found)
    assert [cell.problem for cell in found.values() if cell.problem] == []


def toy() -> tuple[nn.Module, Site, nn.Module]:
    model = zoo.build(ENTRIES["plain transformer"])
    site = find_site(model, "layers.1.down")
    return model.network, site, explicit_network(model.network, site, matrix.random_routing(site))


@pytest.mark.parametrize("harm", ["weight", "bias"])
def test_a_mistake_leaves_the_bound(harm) -> None:
    """The bound is not so wide that nothing could leave it: one lost weight of 64 sources does."""
    network, site, explicit = toy()
    batch = matrix.images(ENTRIES["plain transformer"], 2, 0)
    assert matrix.compare(network, explicit, site, batch, units=3).bound_used <= 1
    with torch.no_grad():
        split: Any = explicit.get_submodule("layers.1.down.split")
        getattr(split, harm)[0] += 0.01
    cell = matrix.compare(network, explicit, site, batch, units=3)
    assert cell.bound_used > 1
    assert "times its bound" in cell.problem


def test_bound_against_its_formula() -> None:
    """Literal second implementation at one channel and one token."""
    network, site, explicit = toy()
    batch = matrix.images(ENTRIES["plain transformer"], 1, 0)
    layer: Any = network.get_submodule("layers.1.down")
    inputs: list[torch.Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with matrix._listening(network, site) as plain, matrix._listening(explicit, site) as apart:
        network(batch), explicit(batch)
    handle.remove()
    n, u = 64 + 1 + 3 + 4, 2.0**-24
    gamma = n * u / (1 - n * u)
    ratios = []
    for token in range(16):
        for channel in range(32):
            size = abs(float(layer.bias[channel])) + sum(
                abs(float(layer.weight[channel, i])) * abs(float(inputs[0][0, token, i])) for i in range(64)
            )
            difference = abs(float(plain[0][0, token, channel]) - float(apart[0][0, token, channel]))
            ratios.append(difference / (2 * gamma * size))
    assert matrix.compare(network, explicit, site, batch, units=3).bound_used == pytest.approx(max(ratios), rel=1e-9)


def test_a_lens_that_changes_anything_is_a_problem() -> None:
    network, site, explicit = toy()
    cell = matrix.compare(network, explicit, site, matrix.images(ENTRIES["plain transformer"], 1, 0))
    changed = matrix.Cell(cell.explicit, cell.explicit)
    assert not cell.problem
    assert "the lens changed the outputs" in changed.problem


def test_program_writes_both_pages_in_one_order(tmp_path, monkeypatch, capsys) -> None:
    pages = []
    for number in range(2):
        out, families = tmp_path / f"exactness{number}.md", tmp_path / f"families{number}.md"
        words = ["matrix", "--only", "plain", "--out", str(out), "--families", str(families), "--quick"]
        monkeypatch.setattr(sys, "argv", words)
        assert matrix.main() == 0
        command = f"--out {out} --families {families}"
        pages.append(out.read_text(encoding="utf-8").replace(command, "") + families.read_text(encoding="utf-8"))
    assert pages[0] == pages[1]
    assert "| plain convolutions | `0` |" in pages[0]
    assert "0 problems" in capsys.readouterr().out


def test_committed_pages_hold_every_network() -> None:
    exactness = (ROOT / "docs/exactness.md").read_text(encoding="utf-8")
    families = (ROOT / "docs/architectures.md").read_text(encoding="utf-8")
    proven = [line.split(" | ") for line in exactness.partition("## Every site")[2].splitlines() if "` | " in line]
    assert {line[0].removeprefix("| ") for line in proven} == set(ENTRIES)
    assert {line[5] for line in proven if len(line) == 15} == {"0.0"}
    assert all(f"| {entry.family} | {name} |" in families for name, entry in ENTRIES.items())
