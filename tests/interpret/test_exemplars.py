from __future__ import annotations

import pytest
import torch

from elude_nb import embed, find_exemplars, load_images
from elude_nb.errors import SiteError
from elude_nb.interpret.exemplars import WHOLE_CHANNEL, choose_units
from elude_nb.scores import top_similarity


def split_channel(split) -> int:
    """Return the channel with the most sub-units."""
    return int((split.routing.sizes()[:, 1:] > 0).sum(1).argmax())


@pytest.mark.parametrize(
    ("name", "pictures"), [("split", "images"), ("elude_split", "images"), ("conv_split", "small_images")]
)
def test_exemplars_are_the_best_of_a_literal_search(request, name, pictures) -> None:
    split, images = request.getfixturevalue(name), request.getfixturevalue(pictures)
    channel = split_channel(split)
    found = find_exemplars(split, images, channel, count=4, units=3, progress=False)
    assert found.channel == channel
    assert found.units[0] == WHOLE_CHANNEL
    assert len(found.units) == len(found.names) == len(found.rows) == len(found.similarity) > 2
    rows, columns = split.site.layout.grid
    for unit, row in zip(found.units, found.rows, strict=True):
        maps = []
        for image in range(len(images)):
            if unit == WHOLE_CHANNEL:
                heat = split.recording(images[image : image + 1], tokens="patch").channels[:, channel]
                heat = heat - split.book.channel_mean()[channel]  # as sub-units are: 0 is the mean
            else:
                heat = split.activations(images[image : image + 1], [(channel, unit)], tokens="patch")[0, :, 0]
                heat = heat - split.book.channel_mean()[channel] * (unit == 0)
                heat = heat * int(split.signs[channel, unit])
            maps.append(heat.view(rows, columns))
        best = sorted(range(len(images)), key=lambda i: -float(maps[i].max()))[:4]
        if unit == 0 and split.site.kind != "stream":  # the bias alone
            assert not row
            continue
        assert [exemplar.index for exemplar in row] == best
        for exemplar in row:
            torch.testing.assert_close(
                torch.from_numpy(exemplar.heat.copy()).double(), maps[exemplar.index], rtol=1e-4, atol=1e-4
            )
            assert exemplar.value == pytest.approx(float(maps[exemplar.index].max()), rel=1e-4)
            assert exemplar.heat.shape == (rows, columns)
            picture = split.model.picture(images[exemplar.index]).numpy()
            assert (exemplar.image == picture).all()
            assert exemplar.image.shape == (*split.model.input_size[1:], 3)
        if unit == WHOLE_CHANNEL:
            continue
        table = split.top_images(channel, unit, images, k=4, tokens="patch", progress=False)
        assert table["image"].tolist() == best
        assert table["rank"].tolist() == [1, 2, 3, 4]
        assert table["file"].tolist() == [images.names[i] for i in best]
        assert table["label"].tolist() == [images.labels[i] for i in best]
        own = split.activations(images, [(channel, unit)], tokens="patch")[..., 0]
        first = split.site.layout.positions("patch")[0]
        for place in table.to_dict("records"):
            values = own[place["image"]]
            lowest = split.signs[channel, unit] < 0
            assert place["value"] == pytest.approx(float(values.min() if lowest else values.max()), rel=1e-9)
            patch = place["patch_row"] * columns + place["patch_column"]
            assert place["value"] == pytest.approx(float(values[patch]), rel=1e-9)
            assert place["position"] == first + patch
    assert repr(found) == f"Exemplars(channel {channel}: {len(found.rows)} rows of 4 images)"


def test_the_top_images_of_a_unit_at_tokens_that_are_no_patches(split, images, mlp_split, smallest_images) -> None:
    unlabelled = load_images(list(images))
    at_class = split.top_images(split_channel(split), 1, unlabelled, tokens="class", progress=False)
    assert len(at_class) == 9
    assert set(at_class["position"]) == {0}
    assert at_class[["patch_row", "patch_column"]].isna().all(axis=None)
    assert "label" not in at_class
    of_vectors = mlp_split.top_images(split_channel(mlp_split), 1, smallest_images, k=3, progress=False)
    assert list(of_vectors) == ["rank", "image", "file", "label", "value", "position"]


def test_the_top_images_of_what_cannot_have_any_are_told_of(split, conv_split, images, small_images) -> None:
    channel = split_channel(split)
    with pytest.raises(ValueError, match=rf"no unit \({channel}, 99\)"):
        split.top_images(channel, 99, images)
    with pytest.raises(ValueError, match=r"k=21 .*between 1 and 20"):
        split.top_images(channel, 1, images, k=21)
    with pytest.warns(UserWarning, match="the same in every image"):  # the bias alone
        assert not len(conv_split.top_images(split_channel(conv_split), 0, small_images))


def test_similarity_is_that_of_the_images_shown(split, images) -> None:
    found = find_exemplars(split, images, split_channel(split), count=4, progress=False)
    embeddings = embed(split.model, images)
    assert found.units[-1] == 0
    for row, value in zip(found.rows, found.similarity, strict=True):
        shown = embeddings[[exemplar.index for exemplar in row]]
        expected = top_similarity(torch.arange(4.0)[:, None], shown, 4)
        assert value == pytest.approx(expected.item(), abs=1e-9)


def test_names_say_unit_concept_and_labels(split, images) -> None:
    channel = split_channel(split)
    found = find_exemplars(split, images, channel, count=4, units=[1, 0], progress=False)
    assert found.units == (WHOLE_CHANNEL, 1, 0)
    concept = int(split.routing.concepts[channel, 0])
    first_lines = [name.split("\n")[0] for name in found.names]
    share = split.units.set_index(["channel", "unit"]).loc[(channel, 0), "share_of_variance"]
    rest = f"rest (unit 0), {share:.1%} of the variance"
    assert first_lines == ["whole channel", f"sub-unit 1, concept {concept}", rest]
    for name, row in zip(found.names, found.rows, strict=True):
        counted = name.split("\n")[1].split(", ")
        assert sum(int(part.rsplit(" ", 1)[1]) for part in counted) == 4
        commonest, number = counted[0].rsplit(" ", 1)
        assert images.labels is not None
        assert sum(images.labels[exemplar.index] == commonest for exemplar in row) == int(number)


def test_images_without_labels_have_no_second_line(split, images) -> None:
    found = find_exemplars(split, load_images(list(images)), split_channel(split), count=3, progress=False)
    assert all("\n" not in name for name in found.names)


def test_units_chosen_are_strong_and_unlike_each_other(split) -> None:
    """Literal second implementation: at each step the largest strength x (1 - largest cosine to those taken)."""
    channel = split_channel(split)
    table = split.units[(split.units["channel"] == channel) & (split.units["unit"] > 0)].set_index("unit")
    directions = split.book.directions()
    taken: list[int] = []
    for _ in range(len(table)):

        def worth(unit: int) -> float:
            own = directions[int(table.loc[unit, "concept"])]
            others = [float(own @ directions[int(table.loc[other, "concept"])]) for other in taken]
            return max(0.0, float(table.loc[unit, "mean_on_concept"])) * (1 - max([0.0, *others]))

        taken.append(max((unit for unit in table.index if unit not in taken), key=worth))
    for number in range(1, len(table) + 3):
        assert choose_units(split, channel, number) == taken[:number]


def test_units_asked_for_by_number_are_those(split, images) -> None:
    channel = split_channel(split)
    found = find_exemplars(split, images, channel, count=3, units=[2], progress=False)
    assert found.units == (WHOLE_CHANNEL, 2)


def test_a_channel_that_was_left_alone_is_refused_with_the_reason(split, images) -> None:
    whole = split.routing.only(split.routing.is_split().nonzero().flatten()[:1])
    import dataclasses

    alone = dataclasses.replace(split, routing=whole)
    channel = int((~whole.is_split()).nonzero()[0])
    with pytest.raises(ValueError, match=f"Channel {channel} ") as caught:
        find_exemplars(alone, images, channel)
    assert "see .channels" in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"channel": 24}, "channel=24"),
        ({"channel": -1}, "channel=-1"),
        ({"count": 21}, "count=21"),
        ({"count": 1}, "count=1"),
        ({"units": 0}, "units=0"),
        ({"units": [99]}, "unit 99"),
        ({"units": [-1]}, "unit -1"),
    ],
)
def test_what_is_not_there_is_refused(split, images, wrong, message) -> None:
    settings = {"channel": split_channel(split), "progress": False} | wrong
    with pytest.raises(ValueError, match=message):
        find_exemplars(split, images, **settings)


def test_a_site_without_patches_is_refused(mlp_split, smallest_images) -> None:
    with pytest.raises(SiteError, match=repr(mlp_split.site.name)):
        find_exemplars(mlp_split, smallest_images, split_channel(mlp_split))
