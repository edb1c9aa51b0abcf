"""The report: every number in the page is the library's, no text becomes markup, and a file is whole or not there."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from elude_nb import Disentanglement, Edit, ImageSet, disentangle, score, verify
from elude_nb._util.words import one_line
from elude_nb.app.report import build as report
from elude_nb.app.report.build import write_report
from elude_nb.app.report.charts import KINDS, LEFT, WIDTH, draw_distribution
from elude_nb.app.report.entries import LEVELS, channel_table, pack_heat, round_to
from elude_nb.app.report.images import run_images
from elude_nb.app.report.page import SCRIPTS, file_name
from elude_nb.errors import SiteError
from elude_nb.figures.concept_map import fill_square
from elude_nb.figures.theme import in_words
from elude_nb.interpret.concept_map import lay_out
from elude_nb.interpret.exemplars import WHOLE_CHANNEL
from elude_nb.interpret.gallery import Gallery
from elude_nb.scores import score_means
from elude_nb.scores.overview import DISTINCT
from tests.markup import Page
from tests.tiny import random_images

HOSTILE = (
    "</script><script>window.hacked = 1</script>",
    '"><img src=x onerror="window.hacked = 1">',
    "<!--<script>\u2028' onfocus='window.hacked=1",
    "$data ${title} &lt;b&gt; \\u003c",
)


def data_of(page: Page) -> dict[str, Any]:
    """Return what the script draws from."""
    found: dict[str, Any] = json.loads(page.scripts[0])
    return found


def written_page(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def named(split: Disentanglement) -> Disentanglement:
    return split.with_names({concept: f"{concept} {name}" for concept, name in enumerate(HOSTILE)})


@pytest.fixture(scope="module")
def shown(images: ImageSet) -> ImageSet:
    """Images whose names and labels are hostile too."""
    names = tuple(f"secret folder/{i} {HOSTILE[i % 4].replace('/', '|')}.png" for i in range(len(images)))
    return replace(images, names=names).with_labels([HOSTILE[i % 3] for i in range(len(images))])


@pytest.fixture(scope="module")
def written(named: Disentanglement, shown: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("report") / "report.html"
    assert write_report(named, shown, file, title=HOSTILE[0], count=4, max_units=2, progress=False) == file
    return file.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(written: str) -> Page:
    return Page(written)


@pytest.fixture(scope="module")
def gallery(named: Disentanglement, shown: ImageSet) -> Gallery:
    return Gallery(named, shown).fill(progress=False)


@pytest.fixture(scope="module")
def scores(named: Disentanglement, shown: ImageSet) -> pd.DataFrame:
    return score(named, shown, k=5, progress=False)  # of 20 images the best quarter


def levels(heat: Any, brightest: float) -> list[int]:
    """Return what a packed map should hold, written out."""
    return [round(63 * min(max(float(value) / brightest, 0), 1)) for value in np.asarray(heat).ravel()]


def unpacked(text: str) -> list[int]:
    return [LEVELS.index(letter) for letter in text]


# ------------------------------------------------------------------ the numbers


def test_concepts_are_those_of_the_book_with_their_best_images(page: Page, named, gallery) -> None:
    concepts = data_of(page)["concepts"]
    assert [entry["concept"] for entry in concepts] == list(range(len(named.book)))
    assert [entry["tokens"] for entry in concepts] == named.book.counts.tolist()
    assert [entry["name"] for entry in concepts] == [named.names.get(i, "") for i in range(len(named.book))]
    for entry in concepts:
        maps = gallery.concept_maps[..., entry["concept"]]
        values, order = maps.amax(1).sort(descending=True)
        assert [image[0] for image in entry["images"]] == order[:8].tolist()
        assert [image[1] for image in entry["images"]] == pytest.approx(values[:8].tolist(), rel=1e-3)
        for index, _, heat in entry["images"]:
            assert np.abs(np.subtract(unpacked(heat), levels(maps[index], float(values[0])))).max() <= 1


def test_a_concept_lists_its_units_and_its_likes(page: Page, named) -> None:
    directions = named.book.directions().numpy()
    for entry in data_of(page)["concepts"]:
        mine = named.units[named.units["concept"] == entry["concept"]]
        found = {(channel, unit): (mean, share) for channel, unit, mean, share in entry["units"]}
        expected = {
            (row["channel"], row["unit"]): (row["mean_on_concept"], row["share_of_variance"])
            for _, row in mine.iterrows()
        }
        assert found.keys() == expected.keys()
        for key, pair in expected.items():
            assert found[key] == pytest.approx(pair, rel=1e-3)
        shares = [unit[3] for unit in entry["units"]]
        assert shares == sorted(shares, reverse=True)
        cosines = {other: directions[other] @ directions[entry["concept"]] for other in range(len(directions))}
        del cosines[entry["concept"]]
        assert entry["alike"] == sorted(cosines, key=lambda other: -cosines[other])[:5]


def test_a_concepts_depth_is_the_sum_over_its_units(page: Page, named) -> None:
    """By the tables of contributions, one unit after the other."""
    blocks, parts = data_of(page)["blocks"], data_of(page)["parts"]
    assert (blocks, parts) == ([1, 2, 3], ["attention", "mlp"])
    for entry in data_of(page)["concepts"][:3]:
        expected = np.zeros((len(blocks), len(parts)))
        for channel, unit, *_ in entry["units"]:
            factor = float(named.means_on_concepts[channel, unit] / named.channel_variance[channel])
            table = named.contributions(channel, unit)
            for (block, part), total in table.groupby(["block", "part"])["contribution"].sum().items():
                expected[blocks.index(block), parts.index(part)] += factor * total
        assert entry["depth"] == pytest.approx(expected.ravel().tolist(), rel=6e-3, abs=1e-6)


def test_positions_fill_the_unit_square_and_are_the_same_each_time(named: Disentanglement) -> None:
    places = fill_square(lay_out(named).positions)
    assert places.shape == (len(named.book), 2)
    assert np.allclose(places.min(0), 0)
    assert np.allclose(places.max(0), 1)
    assert np.array_equal(places, fill_square(lay_out(named).positions))


def test_channels_come_apart_as_the_gallery_shows_them(page: Page, named, gallery) -> None:
    assert list(data_of(page)["channels"]) == [str(c) for c in channel_order(page)]
    assert len(data_of(page)["channels"]) == named.site.channels
    for channel in (0, 7, 23):
        rows = data_of(page)["channels"][str(channel)]["rows"]
        expected = gallery.exemplars(gallery.channel(channel), count=4, units=2)
        assert [row["unit"] for row in rows] == list(expected.units)
        assert rows[0]["unit"] == WHOLE_CHANNEL
        assert [f"{row['title']}\n{row['labels']}" for row in rows] == list(expected.names)
        assert [row["alike"] for row in rows] == pytest.approx(list(expected.similarity), rel=1e-3, abs=1e-6)
        for row, images in zip(rows, expected.rows, strict=True):
            assert [image[0] for image in row["images"]] == [image.index for image in images]
            for (_, value, heat), image in zip(row["images"], images, strict=True):
                assert value == pytest.approx(image.value, rel=1e-3)
                assert np.abs(np.subtract(unpacked(heat), levels(image.heat, images[0].value))).max() <= 1


def test_heat_is_the_activation_that_the_split_reads(page: Page, named, shown) -> None:
    """Past the gallery, whose sources are rounded."""
    channel = 7
    for row in data_of(page)["channels"][str(channel)]["rows"][1:]:
        values = named.activations(shown, [(channel, row["unit"])], tokens="patch")[..., 0]
        values = values * int(named.signs[channel, row["unit"]])
        values = values - named.book.channel_mean()[channel] * (row["unit"] == 0)
        assert row["images"][0][1] == pytest.approx(float(values.max()), rel=0.02)


def test_the_table_of_units_is_the_splits(page: Page, named, scores) -> None:
    tops = scores[scores["kind"] == "sub-unit"].set_index(["channel", "unit"])["top_similarity"]
    for channel, entry in data_of(page)["channels"].items():
        table = named.units[named.units["channel"] == int(channel)]
        assert [unit["unit"] for unit in entry["units"]] == table["unit"].tolist()
        for unit, (_, row) in zip(entry["units"], table.iterrows(), strict=True):
            assert unit["sources"] == row["sources"]
            assert unit["share"] == pytest.approx(row["share_of_variance"], rel=1e-3)
            if unit["unit"] == 0:
                assert (unit["concept"], unit["mean"], unit["top"], unit["depth"]) == (None, None, None, [])
                continue
            assert unit["concept"] == row["concept"]
            assert unit["mean"] == pytest.approx(row["mean_on_concept"], rel=1e-3)
            assert unit["top"] == pytest.approx(tops[int(channel), unit["unit"]], rel=1e-3)
            assert unit["copies"] == int(named.copies[int(channel), unit["unit"]])
            assert sum(unit["depth"]) == pytest.approx(row["mean_on_concept"], rel=0.02, abs=0.02)


def channel_order(page: Page) -> list[int]:
    return [int(attributes["data-channel"]) for _, attributes in page.tags if "data-channel" in attributes]


def test_the_list_of_channels_has_their_scores_and_the_best_first(page: Page, named, scores) -> None:
    table = channel_table(named, scores)
    assert channel_order(page) == table["channel"].tolist()
    separations = table["separation"].dropna().tolist()
    assert separations == sorted(separations, reverse=True)
    rows = {row[0]: row for row in page.rows if len(row) == 8}
    for _, row in table.iterrows():
        cells = rows[str(row["channel"])]
        sub = scores[(scores["kind"] == "sub-unit") & (scores["channel"] == row["channel"])]["top_similarity"].mean()
        random = scores[(scores["kind"] == "random route") & (scores["channel"] == row["channel"])]
        own = scores[(scores["kind"] == "channel") & (scores["channel"] == row["channel"]) & (scores["unit"] == 1)]
        assert cells[1] == str(row["units"])
        assert cells[7] == row["reason"]
        assert float(cells[2]) == pytest.approx(float(named.channel_variance[row["channel"]]), rel=1e-2)
        assert float(cells[3]) == pytest.approx(own["top_similarity"].item(), rel=1e-2)
        assert float(cells[4]) == pytest.approx(sub, rel=1e-2)
        assert float(cells[5]) == pytest.approx(random["top_similarity"].mean(), rel=1e-2)


def test_the_means_are_those_of_score(page: Page, scores) -> None:
    rows = {row[0]: row[1:] for row in page.rows if row}
    for found in score_means(scores).to_dict("records"):
        of = ", distinct units" if found["kind"].startswith(DISTINCT) else ""
        cell = rows[in_words(found["score"]) + of][list(KINDS).index(found["kind"].removeprefix(DISTINCT))]
        said = f"{found['mean']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
        assert cell == f"{said}{found['units']:,} units"


def test_each_distribution_says_its_means_and_draws_them_in_place(written: str, scores) -> None:
    for column in ("top_similarity", "monosemanticity", "redundancy", "sibling_similarity"):
        drawn = draw_distribution(scores, column)
        assert drawn in written
        shown = re.findall(r'<line class="mean" x1="([\d.]+)"', drawn)
        means = [scores.loc[scores["kind"] == kind, column].mean() for kind in KINDS]
        means = [mean for mean in means if not np.isnan(mean)]
        for mean in means:
            assert f": {mean:.3f}" in drawn
        every = scores[column].dropna()
        share = [(mean - every.min()) / (every.max() - every.min()) for mean in means]
        assert [(float(x) - LEFT) / (WIDTH - 2 * LEFT) for x in shown] == pytest.approx(share, abs=1e-3)


def test_scores_that_are_all_the_same_can_be_drawn() -> None:
    table = pd.DataFrame({"kind": ["channel", "sub-unit"], "channel": 0, "unit": 1, "top_similarity": [0.5, 0.5]})
    assert "channels, before: 0.500; sub-units, after: 0.500" in draw_distribution(table, "top_similarity")


def test_the_certificate_and_the_provenance_stand_in_the_page(page: Page, named, shown) -> None:
    said = page.text
    assert "largest change of the output (lens)0.0" in said
    assert "outputs unchanged: largest change of the lens 0.0" in said
    assert "4 images (1 in float64)" in said
    assert named.model.fingerprint() in said
    assert named.model.provenance.licence in said
    assert named.settings.strategy in said
    assert f"{len(named.book)} concepts" in said
    assert f"20, from {shown.source}" in said


def test_each_image_stands_in_the_page_once(page: Page, shown) -> None:
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == len(shown)
    assert len({picture["src"] for picture in pictures}) == len(shown)
    for index, picture in enumerate(pictures):
        assert picture["alt"].startswith(f"image {index}, ")
        assert picture["src"].startswith("data:image/jpeg;base64,")
        assert "secret folder" not in picture["alt"]


# ------------------------------------------------------------------ no harm


def test_hostile_text_stays_text(page: Page, written: str) -> None:
    assert [tag for tag, _ in page.tags].count("script") == 2
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert "<b" not in written.replace("<br>", "").replace("<body>", "").split("<main")[1].split("<script")[0]
    assert page.text.count(HOSTILE[0]) >= 2  # the title and the name of a concept
    names = [entry["name"] for entry in data_of(page)["concepts"][:4]]
    assert names == [f"{concept} {name}" for concept, name in enumerate(HOSTILE)]
    for number, name in enumerate(names):
        assert f"concept {number}: {one_line(name)}" in page.text
    others = [entry["title"] for entry in data_of(page)["concepts"][4:]]  # without a name: described by the images
    assert others
    assert all(re.fullmatch(r"concept \d: .+-like, \d of 5 images", title) for title in others)
    data = written.split('id="data">')[1].split("</script>", maxsplit=1)[0]
    assert not set(data) & set("<>&\u2028\u2029")


def test_the_policy_allows_this_script_and_style_and_nothing_else(page: Page, written: str) -> None:
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split(";")}
    assert rules["default-src"] == ["'none'"]
    assert rules["img-src"] == ["data:"]
    style = written.split("<style>")[1].split("</style>", maxsplit=1)[0]
    for rule, text in (("script-src", page.scripts[1]), ("style-src", style)):
        assert rules[rule] == [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"]
    assert not [a for _, a in page.tags if "style" in a]  # the policy would leave them out


def test_the_page_names_no_address_outside_itself(page: Page, written: str) -> None:
    for _, attributes in page.tags:
        for name in ("src", "href", "action", "data", "srcset", "poster"):
            assert attributes.get(name, "#").startswith(("#", "data:image/jpeg;base64,"))
    assert "@import" not in written
    assert "url(" not in written
    assert set(re.findall(r"https?://[^\s\"'<]+", written)) <= {"http://www.w3.org/2000/svg"}


def test_the_script_writes_text_and_never_markup() -> None:
    for name in SCRIPTS:
        script = files("elude_nb").joinpath(name).read_text(encoding="utf-8")
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "fetch("):
            assert word not in script, name
        assert "</script" not in script
        assert "<!--" not in script


def test_heat_has_64_degrees() -> None:
    heat = np.linspace(-1, 2, 301)
    found = np.array(unpacked(pack_heat(heat, 1.5)))
    assert np.abs(found / 63 - np.clip(heat / 1.5, 0, 1)).max() <= 0.5 / 63 + 1e-12
    assert unpacked(pack_heat([1.0, 0.0, -1.0], -2.0)) == [63, 0, 0]  # a map that is low everywhere has no bright end


def test_numbers_are_rounded_and_what_is_none_is_null() -> None:
    assert [round_to(1.23456), round_to(float("inf")), round_to(None), round_to(0)] == [1.235, None, None, 0.0]


@pytest.mark.parametrize(
    ("name", "short"), [("/home/me/a b.png", "a b.png"), ("C:\\me\\cat.jpg", "cat.jpg"), ("/", "/")]
)
def test_of_a_path_the_name_is_shown(name: str, short: str) -> None:
    assert file_name(name) == short


def test_names_of_files_that_are_no_text_do_not_stop_it(
    split: Disentanglement, images: ImageSet, tmp_path: Path
) -> None:
    odd = replace(images[:6], names=tuple(f"\udcff{i}.png" for i in range(6)))
    text = write_report(split, odd, tmp_path / "r.html", channels=1, progress=False).read_text(encoding="utf-8")
    assert "%FF3.png" in text


# ------------------------------------------------------------------ other splits


def test_chosen_channels_open_and_the_others_are_listed(
    split: Disentanglement, images: ImageSet, tmp_path: Path
) -> None:
    few = images[:8]
    best = written_page(write_report(split, few, tmp_path / "a.html", channels=3, progress=False))
    assert [int(channel) for channel in data_of(best)["channels"]] == channel_order(best)[:3]
    these = written_page(write_report(split, few, tmp_path / "b.html", channels=[5, 2], progress=False))
    assert list(data_of(these)["channels"]) == ["5", "2"]
    assert len(channel_order(these)) == split.site.channels
    links = {a["href"] for _, a in these.tags if a.get("href", "").startswith("#channel-")}
    assert links == {"#channel-5", "#channel-2"}


def test_sub_units_of_single_channels_have_no_map(vit, images: ImageSet, tmp_path: Path) -> None:
    made = disentangle(vit, images, concepts=8, units=3, routing="channel-clusters", tokens_per_image=6, progress=False)
    page = written_page(write_report(made, images, tmp_path / "r.html", progress=False))
    assert data_of(page)["concepts"] == []
    assert "no concepts that go through all channels" in page.text
    channel = next(str(c) for c in channel_order(page) if made.routing.is_split()[c])
    assert (
        len(data_of(page)["channels"][channel]["rows"])
        == 2
        + int(  # the whole channel and unit 0
            (made.routing.sizes()[int(channel), 1:] > 0).sum()
        )
    )
    assert all(unit["concept"] is None for unit in data_of(page)["channels"][channel]["units"])


def test_a_convolution_has_maps_and_one_block(conv_split: Disentanglement, small_images, tmp_path: Path) -> None:
    page = written_page(write_report(conv_split, small_images, tmp_path / "r.html", progress=False))
    assert data_of(page)["grid"] == [8, 8]
    assert len(data_of(page)["concepts"][0]["images"][0][2]) == 64
    assert len(data_of(page)["blocks"]) == 1


def test_without_patches_an_image_is_shown_as_a_whole(
    mlp_split: Disentanglement, smallest_images, tmp_path: Path
) -> None:
    page = written_page(write_report(mlp_split, smallest_images, tmp_path / "r.html", progress=False))
    assert data_of(page)["grid"] == [1, 1]
    values = mlp_split.concept_activations(smallest_images)
    for entry in data_of(page)["concepts"]:
        mine = values[:, entry["concept"]]
        assert entry["images"][0][0] == int(mine.argmax())
        assert entry["images"][0][1] == pytest.approx(float(mine.max()), rel=1e-3)
    channels, units = mlp_split.routing.rows()
    every = mlp_split.activations(smallest_images)
    for channel in range(mlp_split.site.channels):
        for row in data_of(page)["channels"][str(channel)]["rows"]:
            if row["unit"] == WHOLE_CHANNEL:
                mine = every[:, channels == channel].sum(1) - mlp_split.book.channel_mean()[channel]
            else:
                mine = every[:, (channels == channel) & (units == row["unit"])][:, 0]
                mine = mine * int(mlp_split.signs[channel, row["unit"]])
            if row["unit"] == 0 and mlp_split.routing.is_split()[channel]:
                assert "the same in every image" in row["labels"]  # the bias
                assert not row["images"]
                continue
            assert row["images"][0][0] == int(mine.argmax())
            assert row["images"][0][1] == pytest.approx(float(mine.max()), rel=1e-3)


def test_a_certificate_that_fails_is_said_first(split, images, tmp_path: Path, monkeypatch) -> None:
    bad = replace(verify(split, images[:2], progress=False), weights_partition_exact=False)
    monkeypatch.setattr(report, "verify", lambda *_, **__: bad)
    text = write_report(split, images[:6], tmp_path / "r.html", channels=1, progress=False).read_text("utf-8")
    assert 'class="status bad"' in text
    assert "weights do not add up" in Page(text).text
    assert 'class="status good"' not in text


def test_blocks_that_cannot_be_made_explicit_leave_the_rest_of_the_page(
    split, images, tmp_path: Path, monkeypatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise SiteError("these <blocks> are not plain")

    monkeypatch.setattr(report, "verify", refuse)
    page = written_page(write_report(split, images[:6], tmp_path / "r.html", channels=1, progress=False))
    assert "It could not be made: these <blocks> are not plain" in page.text
    assert len(data_of(page)["concepts"]) == len(split.book)


def test_images_that_do_not_fit_are_counted(split, images, tmp_path: Path, capsys) -> None:
    room = 9.5 * 2 * split.site.sources * 16 / (1 << 30)
    page = written_page(write_report(split, images, tmp_path / "r.html", channels=1, max_memory=room))
    assert "9 of 20 given" in page.text
    assert "9 of 20 images fit" in capsys.readouterr().err


# ------------------------------------------------------------------ the file


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(report, "run_images", lambda *_, **__: pytest.fail("minutes went by"))
    return iter(())


@pytest.mark.usefixtures("nothing_runs")
def test_a_page_that_cannot_be_written_is_found_out_first(split, images, tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match=re.escape(str(tmp_path))):
        write_report(split, images, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"report\.html"):
        write_report(split, images, tmp_path / "no" / "report.html")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": -1}, "channels=-1"),
        ({"channels": [99]}, "channel=99"),
        ({"count": 1}, "count=1"),
        ({"max_units": 0}, "max_units=0"),
        ({"k": 1}, "k=1"),
        ({"verify_on": 0}, "verify_on=0"),
    ],
)
def test_settings_out_of_range_are_found_out_first(split, images, tmp_path: Path, settings, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        write_report(split, images, tmp_path / "r.html", **settings)


def test_one_image_is_too_few(split, images, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1"):
        write_report(split, images[:1], tmp_path / "r.html")
    with pytest.raises(ValueError, match="max_memory"):
        write_report(split, images, tmp_path / "r.html", max_memory=1e-9, progress=False)
    with pytest.raises(ValueError, match="1"):
        run_images(split, images[:1], max_memory=1.0)
    assert not list(tmp_path.iterdir())


def test_two_images_are_enough(split, images, tmp_path: Path) -> None:
    page = written_page(write_report(split, images[:2], tmp_path / "r.html", channels=1, progress=False))
    assert "the 2 best images" in page.text


@pytest.mark.parametrize("error", [RuntimeError("no page"), KeyboardInterrupt()])
def test_on_failure_the_old_page_stays_and_nothing_else(split, images, tmp_path: Path, monkeypatch, error) -> None:
    file = tmp_path / "report.html"
    file.write_text("the old page")

    def fail(**_: object) -> str:
        raise error

    monkeypatch.setattr(report, "fill_page", fail)
    with pytest.raises(type(error)):
        write_report(split, images[:4], file, count=2, channels=1, progress=False)
    assert file.read_text() == "the old page"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    monkeypatch.undo()
    write_report(split, images[:4], file, count=2, channels=1, progress=False)
    assert file.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_the_model_is_as_it_was(split: Disentanglement, images: ImageSet, tmp_path: Path) -> None:
    batch = split.model.prepare(images[:2])
    before = split.model(batch)
    write_report(split, images[:4], tmp_path / "r.html", count=2, channels=1, progress=False)
    assert torch.equal(split.model(batch), before)
    with split.edit(Edit.scale(concept=1, by=0.0)):
        assert not torch.equal(split.model(batch), before)


def test_bars_are_shown_unless_they_are_not_wanted(split, images, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("elude_nb._util.progress._EVERY", 1e-9)
    write_report(split, images[:4], tmp_path / "r.html", count=2, channels=1, progress=False)
    assert capsys.readouterr().err == ""
    write_report(split, images[:4], tmp_path / "r.html", count=2, channels=1)
    printed = capsys.readouterr().err
    assert all(word in printed for word in ("gallery", "verify", "channels"))


def test_few_concepts_stand_in_a_row(vit, images: ImageSet) -> None:
    two = disentangle(vit, random_images(6, 32), concepts=2, units=2, tokens_per_image=4, progress=False)
    assert sorted(fill_square(lay_out(two).positions).tolist()) == [[0.0, 0.5], [1.0, 0.5]]
