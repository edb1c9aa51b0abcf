"""Panels, the report, permanent and exported edits on a split by the published method."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from elude_nb import Edit, verify
from elude_nb.app.report import write_report
from elude_nb.core.routing import NO_CONCEPT
from elude_nb.steering import make_permanent, save_program
from elude_nb.widgets import ChannelExplorer, ConceptAtlas, ImageInspector, IntruderQuiz, SteeringPanel
from tests.tiny import hook_count


def concept_of(split) -> int:
    concepts = split.routing.concepts
    return int(concepts[concepts != NO_CONCEPT][0])


@pytest.mark.parametrize("kind", [ChannelExplorer, ConceptAtlas, ImageInspector, SteeringPanel])
def test_panels_show_it(kind, elude_split, images) -> None:
    panel = kind(elude_split, images[:10])
    assert panel.static_html()
    assert hook_count(elude_split.model.network) == 0


def test_the_quiz_asks_about_live_units(elude_split, images) -> None:
    assert IntruderQuiz(elude_split, images).static_html()


def test_the_report_has_its_channels(elude_split, images, tmp_path: Path) -> None:
    page = write_report(elude_split, images[:12], tmp_path / "report.html", progress=False)
    assert "rest (unit 0), " in Path(page).read_text(encoding="utf-8")


@pytest.mark.parametrize("exclusive", [None, 0.8])
def test_permanent_and_exported_edits_are_the_live_one(elude_split, images, tmp_path: Path, exclusive) -> None:
    edit = Edit.scale(concept=concept_of(elude_split), by=0.2, exclusive=exclusive)
    batch = elude_split.model.prepare([images[0], images[1]])
    with elude_split.edit(edit), torch.no_grad():
        live = elude_split.model(batch)
    made = make_permanent(elude_split, edit)
    with torch.no_grad():
        torch.testing.assert_close(made(batch), live, rtol=1e-10, atol=1e-10)
        assert not live.equal(elude_split.model(batch))
    save_program(made, tmp_path / "edited.pt2", like=elude_split.model)
    found = torch.export.load(tmp_path / "edited.pt2").module()(batch)
    torch.testing.assert_close(found, live, rtol=1e-9, atol=1e-9)


def test_the_certificate_holds(elude_split, images) -> None:
    found = verify(elude_split, images[:4], progress=False)
    assert found.lens.max_abs_diff == 0.0
    assert found.weights_partition_exact
    units = elude_split.units
    assert units.loc[units["unit"] == 0, "share_of_variance"].abs().max() < 0.01
