"""Real servers on loopback, started by the tests and stopped after them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def find_chromium() -> str | None:
    """Return the program of an installed Chromium or Chrome."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((found for found in map(shutil.which, names) if found), None)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def jupyterlab(folder: Path) -> Iterator[str]:
    """Serve a folder with JupyterLab; yield its address."""
    port = free_port()
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", f"--port={port}", "--ServerApp.ip=127.0.0.1"),
        *("--allow-root", "--IdentityProvider.token=", "--ServerApp.password=", f"--ServerApp.root_dir={folder}"),
        *("--LabApp.extension_manager=readonly", "--LabApp.news_url=None"),
    ]
    with _running(command, folder, f"http://127.0.0.1:{port}/api") as address:
        yield address.removesuffix("/api")


@contextmanager
def voila(notebook: Path, theme: str = "light") -> Iterator[str]:
    """Serve one notebook with voila in a theme, light or dark; yield its address."""
    port = free_port()
    command = [sys.executable, "-m", "voila", str(notebook), "--no-browser", f"--port={port}", "--Voila.ip=127.0.0.1"]
    command.append(f"--theme={theme}")
    with _running(command, notebook.parent, f"http://127.0.0.1:{port}/voila/static/voila.js") as address:
        yield address.partition("/voila")[0] + "/"


@contextmanager
def _running(command: list[str], folder: Path, address: str) -> Iterator[str]:
    log = folder / "server.log"
    own = {"JUPYTER_CONFIG_DIR": str(folder / "config"), "JUPYTER_RUNTIME_DIR": str(folder / "runtime")}
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=out, env={**os.environ, **own})
        try:
            _wait(process, address, log)
            yield address
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: subprocess.Popen[bytes], address: str, log: Path, seconds: float = 120) -> None:
    """Wait until a server answers, whatever it says."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"The server did not come up:\n{log.read_text()[-3000:]}")
