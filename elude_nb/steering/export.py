"""Export: explicit and permanently edited networks as files that run without this library.

`save_program` writes what torch loads (``.pt2``), `save_onnx` what ONNX runtimes load. Both take the network as it is,
weights included. A lens is not part of it; a live edit is refused.

In ONNX, a sum of several numbers at one index (a channel that gathers its units) is a ``ScatterND`` that adds, and
onnxruntime runs it from several threads at once (microsoft/onnxruntime #18048): where an index occurs often, numbers
are lost now and then. So each such node is written as several, one after the other, in none of which an index occurs
twice.
"""

from __future__ import annotations

import io
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from elude_nb._util.files import atomic_write, library_version
from elude_nb.errors import ExportError
from elude_nb.models.hooks import check_pristine, clean_copy, evaluating
from elude_nb.models.load import Model

_IN_FLOAT32 = "load the model in float32"
_INSTALL = "pip install 'elude-nb[export]'"
_PROTOBUF_LIMIT = (2 << 30) - (64 << 20)  # bytes: a message may have 2 GiB, and the graph itself takes some


@dataclass(frozen=True)
class OnnxFile:
    """What `save_onnx` wrote.

    Attributes
    ----------
    path
        The file, weights included.
    size
        In bytes.
    opset
        Version of ONNX's operators that the file asks for.
    outputs
        How many outputs it has.
    difference, largest
        Largest difference between ONNX Runtime's outputs and torch's, on noise, and the largest output; ``None`` where
        the package onnxruntime is missing, or cannot run this dtype.
    """

    path: Path
    size: int
    opset: int
    outputs: int
    difference: float | None
    largest: float | None

    def __str__(self) -> str:
        missing = find_spec("onnxruntime") is None
        why = "onnxruntime is not installed" if missing else f"onnxruntime cannot run this dtype; {_IN_FLOAT32}"
        compared = f"not compared with torch: {why}"
        if self.difference is not None and self.largest is not None:
            share = self.difference / max(self.largest, 1e-30)
            compared = (
                f"in onnxruntime, outputs differ from torch's by {self.difference:.2g} ({share:.1g} of the largest)"
            )
        return f"{self.path.name}: {self.size / 1e6:.1f} MB, opset {self.opset}; {compared}"

    def __repr__(self) -> str:
        return f"OnnxFile({self})"


def export_program(network: nn.Module | Model, like: Model) -> torch.export.ExportedProgram:
    """Return a network as a program of torch, for any batch size; the network is not changed.

    Parameters
    ----------
    network
        What ``split.explicit()`` or `make_permanent` returned, or a network as it was loaded.
    like
        The model whose inputs it takes.

    Raises
    ------
    TypeError
        If these are no network and no model.
    EditError
        If an edit is active on the network; write ``make_permanent(split, edit)`` instead.
    ExportError
        If torch cannot trace it (the reason is given).
    """
    made = network.network if isinstance(network, Model) else network
    if not isinstance(made, nn.Module):
        raise TypeError(f"A network is needed, such as split.explicit(), not {network!r:.80}.")
    if not isinstance(like, Model):
        raise TypeError(f"like= must be the Model whose inputs the network takes, not {like!r:.80}.")
    check_pristine(made, "export (make_permanent(split, edit) has an edit in the network)")
    made = clean_copy(made)  # a lens is not copied
    any_batch = ({0: torch.export.Dim.DYNAMIC},)
    try:
        with evaluating(made), warnings.catch_warnings():
            for category in (DeprecationWarning, FutureWarning):  # of torch, about torch
                warnings.simplefilter("ignore", category)
            return torch.export.export(made, (like.noise(2),), dynamic_shapes=any_batch, strict=False)
    except Exception as error:
        raise ExportError(f"torch.export cannot trace {type(made).__name__}: {_first_line(error)}") from error


def save_program(network: nn.Module | Model, path: str | os.PathLike[str], *, like: Model) -> Path:
    """Write a network that torch loads and runs without this library: ``torch.export.load(path).module()``.

    Parameters
    ----------
    network, like
        As in `export_program`, with the same errors.
    path
        The file, by custom with the ending ``.pt2``, written atomically. It is packed in memory first, which takes as
        much as the network.

    Raises
    ------
    OSError
        If the file cannot be written, such as on a full disk; an old one is then as it was.
    """
    packed = io.BytesIO()  # not to the file at once: torch ends the whole process if a disk is full
    program = export_program(network, like)
    with warnings.catch_warnings():
        # It tells of weights that share memory, which `export_program` has seen to be the same afterwards.
        warnings.filterwarnings("ignore", "No complete tensor found", UserWarning)
        torch.export.save(program, packed)
    with packed.getbuffer() as data:  # not even a write that failed leaves a view: Python 3.13 reports it
        return _written(path, data)


def save_onnx(network: nn.Module | Model, path: str | os.PathLike[str], *, like: Model) -> OnnxFile:
    """Write a network for ONNX runtimes, in one file with its weights, and compare what it computes there.

    Parameters
    ----------
    network, like
        As in `export_program`, with the same errors. The file takes any batch size at the model's input size.
    path
        The file, by custom with the ending ``.onnx``, written atomically.

    Returns
    -------
    OnnxFile
        With the largest difference to torch on noise, where the package onnxruntime is installed.

    Raises
    ------
    ImportError
        If the packages for it are missing; the message says what to type.
    ExportError
        If the network has over 2 GiB, which a file of ONNX cannot hold; if an operator has no counterpart; or if ONNX
        Runtime computes something else. Nothing is written then.
    OSError
        If the file cannot be written; an old one is then as it was.

    Examples
    --------
    ``save_onnx(split.explicit(), "split.onnx", like=model)``
    """
    if find_spec("onnxscript") is None:
        raise ImportError(f"Writing ONNX needs the package onnxscript: {_INSTALL}")
    program = export_program(network, like)
    weights = [*program.state_dict.values(), *program.constants.values()]
    size = sum(t.numel() * t.element_size() for t in weights if isinstance(t, Tensor))
    if size > _PROTOBUF_LIMIT:
        raise ExportError(
            f"The network has {size / (1 << 30):.1f} GiB, and a file of ONNX holds 2; split fewer channels "
            "(split.explicit(channels=[...])), or write it for torch with save_program, which has no limit."
        )
    proto = _translated(program)
    proto.metadata_props.add(key="elude_nb", value=library_version())
    proto.metadata_props.add(key="model", value=like.name)
    data = proto.SerializeToString()
    batch = like.noise(3)
    with torch.no_grad():
        expected = [leaf for leaf in tree_leaves(program.module()(batch)) if isinstance(leaf, Tensor)]
    difference, largest = _compared(data, batch, expected)
    opset = max(each.version for each in proto.opset_import if not each.domain)
    return OnnxFile(_written(path, data), len(data), opset, len(proto.graph.output), difference, largest)


def _translated(program: torch.export.ExportedProgram) -> Any:
    """Return a program as a checked message of ONNX."""
    import onnx

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter and its parts, about themselves
            found = torch.onnx.export(program, dynamo=True, verbose=False, external_data=False, input_names=["input"])
        if found is None:
            raise ExportError("torch.onnx returned nothing.")
        _add_in_turn(found.model.graph)
        proto = found.model_proto
        onnx.checker.check_model(proto)
    except (torch.onnx.errors.OnnxExporterError, onnx.checker.ValidationError, NotImplementedError) as error:
        raise ExportError(f"This network cannot be written as ONNX: {_first_line(error)}") from error
    return proto


def _add_in_turn(graph: Any) -> None:
    """Write sums at one index as additions one after the other, in the order in which torch does on a CPU."""
    import onnx_ir as ir

    for node in list(graph.all_nodes()):
        reduction = node.attributes.get("reduction") if node.op_type == "ScatterND" else None
        if reduction is None or reduction.value == "none" or node.inputs[1].const_value is None:
            continue
        places = node.inputs[1].const_value.numpy()
        turns = _turns(places.reshape(-1, places.shape[-1]).tolist())
        if len(turns) == 1:
            continue
        if places.ndim != 2 or node.graph is not graph:
            raise ExportError(f"{node.name!r} adds several numbers at one index, which onnxruntime gets wrong.")
        total, updates = node.inputs[0], node.inputs[2]
        for number, rows in enumerate(turns):
            name = f"{node.outputs[0].name}_turn_{number}"
            chosen, here = (
                ir.Value(name=f"{name}_{part}", const_value=ir.tensor(values, name=f"{name}_{part}"))
                for part, values in {"rows": np.array(rows), "places": places[rows]}.items()
            )
            for value in (chosen, here):
                graph.register_initializer(value)
            gathered = ir.node("Gather", [updates, chosen], {"axis": 0})
            added = ir.node("ScatterND", [total, here, gathered.outputs[0]], {"reduction": reduction.value}, name=name)
            graph.insert_before(node, [gathered, added])
            total = added.outputs[0]
        total.shape, total.type = node.outputs[0].shape, node.outputs[0].type
        ir.convenience.replace_all_uses_with(node.outputs[0], total, replace_graph_outputs=True)
        whole = node.inputs[1]
        graph.remove(node, safe=True)
        if not whole.uses():  # onnxruntime warns of what is not used
            graph.initializers.pop(whole.name, None)


def _turns(places: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return the rows of each turn: the first row of every index, then the second, and so on.

    Examples
    --------
    >>> _turns([[0], [0], [2], [0], [2]])
    [[0, 2], [1, 4], [3]]
    """
    turns: list[list[int]] = []
    seen: Counter[tuple[int, ...]] = Counter()
    for row, place in enumerate(map(tuple, places)):
        if seen[place] == len(turns):
            turns.append([])
        turns[seen[place]].append(row)
        seen[place] += 1
    return turns


def _compared(data: bytes, batch: Tensor, expected: Sequence[Tensor]) -> tuple[float | None, float | None]:
    """Return the largest difference of outputs between ONNX Runtime and torch, and the largest output."""
    if find_spec("onnxruntime") is None:
        return None, None
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel

    try:
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        found = session.run(None, {session.get_inputs()[0].name: batch.cpu().numpy()})
    except (NoKernel, TypeError):  # numpy has no bfloat16
        return None, None
    except Exception as error:
        cure = "" if batch.dtype == torch.float32 else f" Not all of it runs in {batch.dtype}; {_IN_FLOAT32}."
        raise ExportError(f"ONNX Runtime cannot run what was written: {_first_line(error)}{cure}") from error
    pairs = [(np.asarray(ours), theirs.cpu().double().numpy()) for ours, theirs in zip(found, expected, strict=True)]
    difference = max(float(np.abs(ours - theirs).max(initial=0)) for ours, theirs in pairs)
    largest = max(float(np.abs(theirs).max(initial=0)) for _, theirs in pairs)
    eps = max(torch.finfo(theirs.dtype).eps for theirs in expected if theirs.is_floating_point())
    if not difference <= largest * eps**0.5:  # far above rounding, far below another function
        raise ExportError(
            f"ONNX Runtime computes something else: its outputs on noise differ by {difference:.2g} (largest: "
            f"{largest:.2g}). Nothing was written; please report the network and the versions of torch and onnxscript."
        )
    return difference, largest


def _written(path: str | os.PathLike[str], data: bytes | memoryview) -> Path:
    with atomic_write(path) as part, part.open("wb") as file:  # write_bytes would hold a view of its own
        file.write(data)
    return Path(path)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
