"""Edits and what they do: heads, controls, effects, live steering, permanent edits, export.

>>> from elude_nb import steering
>>> sorted(name for name in steering.__all__ if name.startswith("save"))
['save_onnx', 'save_permanent', 'save_program']
"""

from elude_nb.steering.controls import CONTROLS, edited_concepts, edited_units
from elude_nb.steering.effects import Effect, effect
from elude_nb.steering.export import OnnxFile, export_program, save_onnx, save_program
from elude_nb.steering.heads import (
    Head,
    LinearProbe,
    NearestNeighbours,
    OwnClassifier,
    fit_head,
    fit_on_outputs,
    predict,
    read_outputs,
)
from elude_nb.steering.live import LiveSteering
from elude_nb.steering.patches import PatchChange, PatchColours, patch_change, patch_colours
from elude_nb.steering.permanent import make_permanent, save_permanent
from elude_nb.steering.transplant import transplant

__all__ = [
    "CONTROLS",
    "Effect",
    "Head",
    "LinearProbe",
    "LiveSteering",
    "NearestNeighbours",
    "OnnxFile",
    "OwnClassifier",
    "PatchChange",
    "PatchColours",
    "edited_concepts",
    "edited_units",
    "effect",
    "export_program",
    "fit_head",
    "fit_on_outputs",
    "make_permanent",
    "patch_change",
    "patch_colours",
    "predict",
    "read_outputs",
    "save_onnx",
    "save_permanent",
    "save_program",
    "transplant",
]
