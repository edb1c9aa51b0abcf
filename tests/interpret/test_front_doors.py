"""The front doors of three rooms: all that they promise is there, and nothing heavy comes along."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest

from elude_nb import interpret, steering, text


@pytest.mark.parametrize("room", [interpret, steering, text])
def test_what_is_promised_is_there_and_documented(room: ModuleType) -> None:
    assert room.__all__ == sorted(room.__all__)
    for name in room.__all__:
        assert getattr(room, name).__doc__, name


@pytest.mark.parametrize("room", ["interpret", "steering", "text"])
def test_a_room_can_be_imported_first_and_alone(room: str) -> None:
    heavy = {"sklearn", "timm", "onnx", "matplotlib", "transformers"}
    program = f"import sys, elude_nb.{room}; print(*({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
