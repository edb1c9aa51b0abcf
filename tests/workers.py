"""What tests run in processes of their own: forked from one that has imported torch already, so they start at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any, Self

import sklearn.cluster  # noqa: F401 - here, that is before the processes are forked
import torch

from elude_nb import Model, compare, disentangle, load_images, score, verify
from elude_nb._util import ranks
from elude_nb.app.cli import main
from elude_nb.baselines import PCA, SubUnits
from elude_nb.baselines.compare import Compared
from elude_nb.core.one_pass import collect
from tests.tiny import random_images, tiny_vit, to_tensor


def context() -> ForkServerContext:
    return multiprocessing.get_context("forkserver")


def start(work: Callable[..., object], *arguments: Any) -> ForkServerProcess:
    process = context().Process(target=work, args=arguments, daemon=True)
    process.start()
    return process


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def model_that_dies(after: int) -> Model:
    """Return the tiny transformer; its process is killed when it prepares one more image than so many."""
    left = [after]

    def prepare(image: Any) -> torch.Tensor:
        left[0] -= 1
        if left[0] < 0:
            _die()
        return to_tensor(image)

    return replace(tiny_vit(), preprocess=prepare)


def collect_until(after: int, saves: int, count: int, path: Path, shard: tuple[int, int], how: dict[str, Any]) -> None:
    """Collect a shard of so many images; be killed after so many images, or in the midst of writing so many files."""
    torch.set_num_threads(1)
    written = [0]

    def fsync(_: int) -> None:
        written[0] += 1
        if written[0] > saves:
            _die()

    os.fsync = fsync  # type: ignore[assignment]
    collect(model_that_dies(after), random_images(count, 32), shard=shard, out=path, **how)


def in_group(rank: int, count: int, folder: Path, work: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    """Do some work in one process of a group of so many; print to files, and leave an error's text in one."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=count)
    try:
        work(rank, folder, *arguments)
    except Exception as error:
        (folder / f"error-{rank}").write_text(f"{type(error).__name__}: {error}")
        raise SystemExit(2) from error
    dist.destroy_process_group()


def run_group(count: int, folder: Path, work: Callable[..., object], *arguments: Any) -> list[int | None]:
    """Run some work in so many processes; return their exit codes."""
    processes = [start(in_group, rank, count, folder, work, arguments) for rank in range(count)]
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def disentangle_in_group(rank: int, folder: Path, count: int, site: str | None, how: dict[str, Any]) -> None:
    split = disentangle(tiny_vit(), random_images(count, 32), site, **how)
    split.save(folder / f"split-{rank}.safetensors")


def score_in_group(rank: int, folder: Path, count: int) -> None:
    split = disentangle(tiny_vit(), random_images(20, 32, seed=1), concepts=8, units=3, progress=False)
    score(split, random_images(count, 32), k=4, progress=False).to_pickle(folder / f"scores-{rank}")
    judged = score(split, random_images(count, 32), k=4, progress=False, embeddings=split.model)
    judged.to_pickle(folder / f"judged-{rank}")
    found = verify(split, random_images(count, 32), max_images=None, batch_size=8, progress=False)
    (folder / f"certificate-{rank}").write_text(found.to_json())


class Unfit(PCA):
    """Principal components that cannot be fitted."""

    def __init__(self) -> None:
        super().__init__(4)
        self.name = "unfit"

    def fit(self, *_: Any) -> Self:
        raise ValueError("This method cannot be fitted.")


def compare_images(methods: list[Any], how: dict[str, Any]) -> Compared:
    images, held_out = random_images(40, 32), how.get("held_out")
    how = how | {"held_out": held_out and random_images(held_out, 32, seed=1)}
    return compare(tiny_vit(torch.float32), images, methods=methods, **how)


def compare_in_group(rank: int, folder: Path, methods: list[Any], how: dict[str, Any]) -> None:
    found = compare_images(methods, how)
    found.table.to_pickle(folder / f"table-{rank}")
    found.units.to_pickle(folder / f"units-{rank}")
    models = {method.split_.model.name for method in found.methods.values() if isinstance(method, SubUnits)}
    (folder / f"methods-{rank}").write_text(f"{[*found.methods]} {models}")


def die_comparing(rank: int, folder: Path, how: dict[str, Any]) -> None:
    """Be killed as the second of the processes after some images."""
    compare(model_that_dies(9 if rank == 1 else 999), random_images(70, 32), methods=["PCA"], **how)


def die_in_group(rank: int, folder: Path, who: int, after: int, how: dict[str, Any]) -> None:
    """Be killed as one of the processes after so many images."""
    disentangle(model_that_dies(after if rank == who else 999), random_images(70, 32), **how)


def call_alone_in_group(rank: int, folder: Path, how: dict[str, Any]) -> None:
    """Make a call in the first process only."""
    ranks.MEETING = timedelta(seconds=0.5)
    if rank == 0:
        disentangle(tiny_vit(), random_images(20, 32), **how)
    while not (folder / "error-0").exists():
        time.sleep(0.05)


def fail_in_group(rank: int, folder: Path, how: dict[str, Any]) -> None:
    """Find a broken image in the second process, which does not end because of it."""
    images = random_images(70, 32)
    path = folder / "broken.png"
    path.write_bytes(b"no image")
    images = load_images([*images][:60] + [path] * 10)
    try:
        disentangle(tiny_vit(), images, **how)
    except Exception:
        time.sleep(1 if rank == 1 else 0)
        raise


def run_as_torchrun(rank: int, count: int, port: int, folder: Path, words: list[str]) -> None:
    """Run a command as one of the processes that torchrun starts; what it prints goes to files."""
    os.chdir(folder)
    for name, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(f"{name}-{rank}", os.O_CREAT | os.O_WRONLY), number)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    numbers = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    os.environ.update({"TORCHELASTIC_RUN_ID": "test", **address, **numbers})
    torch.set_num_threads(1)
    main(words)
