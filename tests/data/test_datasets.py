"""Data sets of other libraries, by what they have; torchvision's folder for real, the others as small fakes."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from torchvision import transforms
from torchvision.datasets import FakeData, ImageFolder

from elude_nb import disentangle, find_exemplars, load_images, record
from elude_nb.data.images import ImageSet
from elude_nb.errors import ImageError

NORMALISE = transforms.Normalize((0.5,) * 3, (0.5,) * 3)


def grey(number: int, side: int = 16) -> Image.Image:
    return Image.new("RGB", (side, side), (number, number, number))


def greys(images: ImageSet) -> list[int]:
    return [int(np.asarray(image)[0, 0, 0]) for image in images]


class Pairs(Dataset[Any]):
    """Ten grey pictures with labels, which counts what it opens."""

    def __init__(self, classes: list[str] | None = None) -> None:
        self.opened: list[int] = []
        if classes is not None:
            self.classes = classes

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Any:
        self.opened.append(index)
        return grey(index), index % 2


class Listed(Pairs):
    """The same, whose labels are listed."""

    targets = torch.arange(10) % 2


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return (Pairs()[i] for i in range(4))


class Column:
    names = ("ant", "bee")


class Table:
    """What a data set of Hugging Face has: features, columns by name, and rows as dictionaries by number."""

    def __init__(self, image: str = "image") -> None:
        self.image, self.rows = image, list[int]()
        self.features = {image: object(), "label": Column()}

    def __len__(self) -> int:
        return 4

    def __getitem__(self, key: Any) -> Any:
        if key == "label":
            return [0, 1, 1, -1]
        self.rows.append(key)
        return {self.image: grey(key), "label": self["label"][key]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, label in enumerate(["cat", "cat", "dog", "dog", "dog"]):
        path = tmp_path / "set" / label / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        grey(number).save(path)
    return tmp_path / "set"


def test_a_folder_of_torchvision_is_what_the_folder_is(folder: Path) -> None:
    found, expected = load_images(ImageFolder(str(folder))), load_images(folder)
    assert found.names == expected.names
    assert found.labels == expected.labels == ("cat", "cat", "dog", "dog", "dog")
    assert greys(found) == [0, 1, 2, 3, 4]
    assert repr(found) == "ImageSet(5 images from data set ImageFolder, 2 labels)"
    scaled = ImageFolder(str(folder), transform=transforms.Compose([transforms.Resize(8), transforms.ToTensor()]))
    assert load_images(scaled)[4].size == (8, 8)
    assert load_images(ImageFolder(str(folder), target_transform=lambda kind: f"no {kind}")).labels == (
        *("no 0", "no 0"),
        *("no 1", "no 1", "no 1"),
    )


def test_parts_and_joined_sets_keep_names_and_labels(folder: Path) -> None:
    whole = ImageFolder(str(folder))
    part = load_images(Subset(whole, [4, 0]))
    assert part.labels == ("dog", "cat")
    assert [Path(name).name for name in part.names] == ["4.png", "0.png"]
    joined = load_images(Subset(ConcatDataset([whole, Subset(whole, [2])]), [5, 1]))
    assert joined.labels == ("dog", "cat")
    assert greys(joined) == [2, 1]
    assert load_images(ConcatDataset([Pairs(["a", "b"]), Pairs(["a", "b"])])).labels == ("a", "b") * 10


def test_items_are_opened_one_at_a_time_and_labels_are_read_off_a_list_where_there_is_one() -> None:
    listed = Listed(["even", "odd"])
    images = load_images(listed)
    assert images.labels == ("even", "odd") * 5
    assert set(listed.opened) <= {0, 1, 2}
    listed.opened.clear()
    assert greys(images.subset([7])) == [7]
    assert listed.opened == [7]
    unlisted = Pairs()
    assert load_images(unlisted).labels == ("0", "1") * 5
    assert set(unlisted.opened) == set(range(10))
    wrong = Listed()
    wrong.targets = torch.ones(10)  # not what the items say
    assert load_images(wrong).labels == ("0", "1") * 5
    assert load_images(Pairs(), labels=list("abcdefghij")).labels == tuple("abcdefghij")


@pytest.mark.parametrize("image", ["image", "img"])
def test_a_table_of_hugging_face_has_its_classes_read_from_the_column(image: str) -> None:
    table = Table(image)
    images = load_images(table)
    assert images.labels == ("ant", "bee", "bee", "-1")
    assert max(table.rows) <= 2
    assert greys(images) == [0, 1, 2, 3]
    with pytest.raises(TypeError, match="choose one of its parts: 'train', 'test'"):
        load_images({"train": table, "test": table})
    with pytest.raises(TypeError, match="Item 0 of Table has no 'image' among 'pixels', 'label'"):
        load_images(Table("pixels"))


def test_lists_of_pairs_and_sets_of_tensors_are_taken_too() -> None:
    assert load_images(list(Stream())).labels == ("0", "1", "0", "1")
    assert load_images(Pairs()[i] for i in range(10)).labels == ("0", "1") * 5
    pictures = torch.rand(4, 3, 16, 16)
    assert load_images(TensorDataset(pictures)).labels is None
    assert load_images(TensorDataset(pictures, torch.arange(4))).labels == ("0", "1", "2", "3")
    assert load_images(TensorDataset(pictures * 2 - 1), value_range=(-1, 1))[3].size == (16, 16)
    assert len(load_images(FakeData(4, (3, 16, 16)))) == 4
    images = load_images(Listed())
    assert load_images(images) is images
    assert load_images(images, count=4).labels == images.sample(4).labels


def test_of_a_loader_its_data_set_is_taken() -> None:
    for loader in (DataLoader(Pairs(), batch_size=4), DataLoader(Pairs(), shuffle=True, drop_last=True)):
        assert greys(load_images(loader)) == list(range(10))
    for chosen in (
        DataLoader(Pairs(), sampler=SubsetRandomSampler([1, 2])),
        DataLoader(Pairs(), sampler=WeightedRandomSampler([1.0] * 10, 10)),
        DataLoader(Pairs(), batch_sampler=[[0, 1], [2]]),
    ):
        with pytest.raises(ValueError, match=r"chooses among its images.*Subset\(loader.dataset, indices\)"):
            load_images(chosen)


class HuggingFaceStream:
    """Neither torch's, nor with items by number."""

    features = None

    def __iter__(self) -> Any:
        return iter(())


@pytest.mark.parametrize("source", [Stream(), DataLoader(Stream()), HuggingFaceStream()])
def test_what_has_no_items_by_number_is_refused_with_the_cure(source: Any) -> None:
    with pytest.raises(TypeError, match=r"Stream has no items by number.*load_images\(dataset, count=5000\)"):
        load_images(source)


@pytest.mark.parametrize("source", [Stream(), DataLoader(Stream())])
def test_of_what_has_no_items_by_number_the_first_are_taken(source: Any) -> None:
    found = load_images(source, count=3)
    assert found.labels == ("0", "1", "0")
    assert np.array_equal(np.asarray(found[2]), np.asarray(load_images(list(Stream()))[2]))
    assert len(load_images(source, count=9)) == 4


def test_normalised_pictures_are_never_taken_for_pictures(folder: Path) -> None:
    steps = transforms.Compose([transforms.ToTensor(), NORMALISE])
    normalised = ImageFolder(str(folder), transform=steps)
    for source in (normalised, DataLoader(Subset(normalised, [1, 2]))):
        with pytest.raises(
            ImageError, match=r"normalises its images, and a model prepares them itself.*transform=None"
        ):
            load_images(source)
    pictures = torch.randn(4, 3, 16, 16)
    with pytest.raises(ImageError, match=r"'image 0' has values .* look normalised.*transform=None"):
        load_images(TensorDataset(pictures))  # where no transform tells
    with pytest.raises(ImageError, match=r"'image 0' has values .* look normalised"):
        load_images(pictures)[0]
    loader = DataLoader(TensorDataset(pictures, torch.arange(4)), batch_size=2)
    for batches in (list(loader), next(iter(loader))):
        with pytest.raises(TypeError, match=r"Item 0.* is a batch of shape \(2, 3, 16, 16\)"):
            load_images(batches)


def test_pictures_that_are_others_each_time_are_refused(folder: Path) -> None:
    cropped = ImageFolder(str(folder), transform=lambda _: torch.rand(3, 16, 16))
    with pytest.raises(ImageError, match=r"ImageFolder draws its images at random .image 0 is another each time"):
        load_images(cropped)
    flipped = ImageFolder(str(folder), transform=torch.nn.Sequential(transforms.RandomHorizontalFlip()))
    with pytest.raises(ImageError, match="its transform has a RandomHorizontalFlip"):  # though plain pictures stay
        load_images(DataLoader(flipped))


def test_labels_of_other_kinds_and_broken_items_are_told_of() -> None:
    pictures = torch.rand(4, 3, 16, 16)
    with pytest.warns(UserWarning, match=r"labels of TensorDataset are left out: .*'image 0' tensor"):
        assert load_images(TensorDataset(pictures, torch.rand(4, 5))).labels is None
    with pytest.raises(TypeError, match=r"Item 0 of TensorDataset has .*a pair \(image, label\)"):
        load_images(TensorDataset(pictures, torch.arange(4), torch.arange(4)))
    with pytest.raises(ImageError, match="empty"):
        load_images(Subset(Pairs(), []))
    images = load_images(Broken())
    with pytest.raises(ImageError, match=r"'image 3' cannot be opened by Broken \(OSError: truncated\)"):
        images[3]
    with pytest.warns(UserWarning, match="1 of 10 images left out"):
        assert len(images.without_broken()) == 9


class Broken(Pairs):
    def __getitem__(self, index: int) -> Any:
        if index == 3:
            raise OSError("truncated")
        return super().__getitem__(index)[0]


def test_a_set_of_a_data_set_can_be_pickled_and_read_by_workers() -> None:
    images = load_images(Listed(["even", "odd"]))
    again = pickle.loads(pickle.dumps(images))  # noqa: S301 - our own
    assert (greys(again), again.labels) == (greys(images), images.labels)
    loader: Any = DataLoader(images, batch_size=None, num_workers=1)  # type: ignore[arg-type]
    assert [int(np.asarray(image)[0, 0, 0]) for image in loader] == list(range(10))


def test_calls_take_every_source(vit, split, images, tmp_path: Path) -> None:
    few = images[:4]
    expected = split.activations(few, [(0, 0)])
    paths = [str(tmp_path / f"{number}.png") for number in range(len(few))]
    for image, path in zip(few, paths, strict=True):
        image.save(path)
    items = [(image, "x") for image in few]
    arrays = [np.asarray(image) for image in few]
    sources: list[Any] = [paths, list(few), arrays, np.stack(arrays), items, DataLoader(items)]  # type: ignore[arg-type]
    for source in sources:
        assert split.activations(source, [(0, 0)]).equal(expected)
        seen = next(iter(record(vit, source, split.site)))
        assert seen.images.max() == 3
    for wrong in (5, None):
        with pytest.raises(
            TypeError, match=f"a folder, a list of images or paths, an array, or a data set, not {wrong}"
        ):
            split.activations(wrong)
    labelled = [(image, label) for image, label in zip(images, images.labels, strict=True)]
    again = disentangle(vit, labelled, concepts=8, units=3, tokens_per_image=6, progress=False)
    assert again.routing.routes.equal(split.routing.routes)
    channel = int(split.routing.is_split().nonzero()[0])
    one, other = (find_exemplars(split, each, channel, count=4, progress=False) for each in (labelled, images))
    assert one.names == other.names
    assert split.top_images(channel, 1, labelled, progress=False)["label"].isin(images.labels).all()
