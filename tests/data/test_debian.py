"""Sets that Debian packages: fetched once, checked, cached, and refused whole if they are not the ones expected."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

import elude_nb as en
from elude_nb.data import debian
from elude_nb.errors import ImageError

apt = pytest.mark.skipif(not shutil.which("apt-get"), reason="this machine has no apt-get")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ELUDE_NB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> Path:
    """A package of five pictures, which `apt-get download` gives; returned is its file."""
    root = tmp_path / "tree"
    pictures = root / "usr/share/tuxpaint/stamps"
    for place, size, colour in (
        ("animals/birds/robin", 400, "red"),
        ("animals/birds/robin_again", 400, "red"),  # an exact copy
        ("animals/birds/cartoon/duck", 200, "yellow"),
        ("animals/birds/tiny", 20, "blue"),
        ("symbols/letters/a", 200, "black"),  # has no label
        ("plants/flowers/rose", 200, (255, 0, 0, 0)),
    ):
        path = pictures / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGBA", (size, size), colour).save(path)
    (root / "DEBIAN").mkdir()
    control = "Package: tuxpaint-stamps-default\nVersion: 1\nArchitecture: all\nMaintainer: nobody <n@example.org>\n"
    (root / "DEBIAN/control").write_text(f"{control}Description: a test\n", encoding="utf-8")
    built = tmp_path / "tuxpaint-stamps-default_1_all.deb"
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", root, built], check=True, capture_output=True)
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "apt-get").write_text(f'#!/bin/sh\necho x >> "{tmp_path}/asked"\ncp "{built}" .\n', encoding="utf-8")
    (programs / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    known = debian.PACKAGES["stamps"]._replace(sha256=debian.sha256_of_file(built))
    monkeypatch.setitem(debian.PACKAGES, "stamps", known)
    return built


@apt
def test_a_package_becomes_a_folder_of_labelled_pictures_once(package: Path, cache: Path) -> None:
    images = en.load_images("stamps")
    assert images.labels == ("bird", "bird", "flower")
    assert images.source == "stamps (GPL-2 and public domain)"
    assert {max(image.size) for image in images} == {320, 200}
    assert images[2].getpixel((5, 5)) == (255, 255, 255)  # transparent parts are white
    assert list(en.load_images("stamps")) == list(images)
    assert (package.parent / "asked").read_text() == "x\n"
    assert [path.name for path in (cache / "pictures").iterdir()] == ["stamps"]


@apt
def test_another_version_is_refused_and_nothing_is_kept(
    package: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = debian.PACKAGES["stamps"]._replace(sha256="0" * 64)
    monkeypatch.setitem(debian.PACKAGES, "stamps", known)
    with pytest.raises(ImageError, match=r"tuxpaint-stamps-default_1_all\.deb has SHA-256 .* not the one of Debian"):
        en.load_images("stamps")
    assert list((cache / "pictures").iterdir()) == []


def test_without_apt_it_is_said(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ImageError, match="openclipart-png is a Debian package, and this machine has no apt-get"):
        en.load_images("clipart")
    monkeypatch.setattr("torchvision.datasets.FashionMNIST.mirrors", [])
    with pytest.raises(ImageError, match="Fashion-MNIST cannot be downloaded"):
        en.load_images("fashion")


def test_a_package_that_apt_does_not_know_is_said(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "apt-get").write_text("#!/bin/sh\necho 'E: Unable to locate' >&2\nexit 100\n", encoding="utf-8")
    (tmp_path / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ImageError, match="E: Unable to locate; try apt-get update"):
        en.load_images("clipart")


@apt
def test_fashion_has_70000_labelled_photographs(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = en.load_images("fashion", count=100_000)
    assert (len(images), len(set(images.labels or ()))) == (70_000, 10)
    assert images[0].size == (28, 28)
    assert (images.labels or ())[0] == "Ankle boot"
    few = en.load_images("fashion", count=40, seed=3)
    assert len(few) == 40
    assert set(map((few.labels or ()).count, few.labels or ())) == {4}
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("it was fetched again"))
    assert len(en.load_images("fashion", count=7)) == 7


@apt
def test_another_fashion_is_refused_and_nothing_is_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(debian.FASHION_FILES, "t10k-labels-idx1-ubyte", "0" * 64)
    with pytest.raises(ImageError, match="t10k-labels-idx1-ubyte of Fashion-MNIST has SHA-256"):
        en.load_images("fashion")
    assert list((cache / "FashionMNIST/raw").iterdir()) == []
