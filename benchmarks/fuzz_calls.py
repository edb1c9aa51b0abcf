"""Bad arguments for `fuzz`: public functions with wrong types, numbers, shapes and dtypes in one or two places."""

from __future__ import annotations

import datetime as dt
import inspect
import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from fuzz_watch import Case, Family, Ground  # type: ignore[import-not-found]  # beside this file
from PIL import Image

import elude_nb as en
from elude_nb import scores
from elude_nb.app.report.build import write_report
from elude_nb.baselines.sae import TopK
from elude_nb.core.disentangle import estimate
from elude_nb.errors import ExportError
from elude_nb.interpret.gallery import Gallery
from elude_nb.interpret.quiz import make_questions
from elude_nb.steering.export import save_onnx, save_program
from elude_nb.steering.permanent import make_permanent, save_permanent

NAN = float("nan")
LARGE = 10**30
LEGAL_IF_LARGE = {
    "resamples",
    "trees",
    "draws",
    "steps",
    "trials_per_unit",
    "count",
    "verify_on",
    "width",
    "candidates",
}
"""Numbers that may be as large as one likes, and then simply take their time or memory."""

Call = tuple[Callable[..., object], dict[str, Any]]


def hostile(ground: Ground) -> dict[str, Any]:
    """Return values that hardly any argument can be, by a name for each; the same in every run."""
    named: dict[str, Any] = {}
    for value in _hostile_values(ground):
        size = f" {tuple(value.shape)} {value.dtype}" if isinstance(value, np.ndarray | torch.Tensor) else ""
        text = re.sub(r" at 0x\w+", "", str(value))[:50]  # an address is another in every run
        name = f"{type(value).__name__}{size} {text!r}"
        if name in named:
            raise ValueError(f"Two hostile values are called {name}; only one would be tried.")
        named[name] = value
    return named


def _hostile_values(ground: Ground) -> list[Any]:
    drawn = partial(torch.rand, generator=torch.Generator().manual_seed(0))
    values: list[Any] = [None, True, False, -1, 0, 1, 2, 7, LARGE, -LARGE, 0.5, 1.5, NAN, float("inf"), -1e308, 3 + 4j]
    values += [
        "",
        "x",
        "\0",
        "../../x",
        "9" * 5000,
        "auto",
        "all",
        "class",
        "stream",
        "stream:x",
        "stream:99",
        "head",
        b"x",
    ]
    values += [
        [],
        [None],
        [[]],
        [0],
        [-1],
        [10**6],
        ["x"],
        [0, 0],
        [[1, 2], [3]],
        (0,),
        (0, 1),
        (),
        {},
        {0: 1},
        {"a": 1},
    ]
    values += [{None}, set(), range(0), range(3), slice(None), object(), object, len, Decimal(1), Path("gone"), ...]
    values += [
        dt.date(2020, 1, 1),
        Image.new("RGB", (32, 32)),
        [Image.new("L", (1, 1))],
        np.int64(2),
        np.float32(0.5),
    ]
    values += [
        np.array([]),
        np.array(3),
        np.array(["a", "b"]),
        np.array([None, 1]),
        np.zeros((2, 3)),
        np.full((12, 4), NAN),
    ]
    values += [
        np.zeros((12, 4), complex),
        np.zeros((12, 4), int),
        np.zeros((3, 2, 2, 2)),
        np.zeros((0, 4)),
        np.zeros((4, 0)),
    ]
    values += [np.zeros(12), np.zeros((2, 4, 4, 3), np.uint8), np.array([[1, 2], [3, 4]], object), torch.tensor(NAN)]
    values += [
        torch.zeros(0),
        torch.zeros(12),
        torch.zeros(12, 4),
        drawn(12, 4),
        drawn(11, 4),
        torch.zeros(12, 0),
    ]
    values += [torch.zeros(12, 4, dtype=torch.complex64), torch.ones(12, 4, dtype=torch.bool), drawn(12, 4).half()]
    values += [drawn(12, 4, requires_grad=True), drawn(12, 4).to_sparse(), torch.zeros(12, 4, device="meta")]
    values += [
        torch.arange(12),
        drawn(2, 3, 32, 32),
        pd.DataFrame(),
        pd.DataFrame({"a": [1, "x"]}),
        pd.Series([1.0, NAN]),
    ]
    values += [
        pd.DataFrame(np.random.default_rng(0).random((12, 4))),
        torch.nn.Linear(2, 2),
        ground.model,
        ground.split,
    ]
    values += [
        ground.images,
        ground.images[:1],
        ground.split.site,
        ground.split.routing,
        en.Edit(),
        (n for n in range(3)),
    ]
    return values


def _calls(ground: Ground) -> dict[str, Call]:
    """Return calls of the functions that work on models, images and splits, with arguments that work."""
    model, images, split = ground.model, ground.images[:8], ground.split
    channel = int(split.channels.query("split").channel.iloc[0])
    unit = (channel, int(split.units.query("channel == @channel").unit.iloc[-1]))
    edit = en.Edit.scale(concept=0, by=0.5)
    quick = {"tokens_per_image": 4, "batch_size": 4, "progress": False}
    book = {"concepts": 4, "units": 2, "shared": 0.8, "blocks": "all", "tokens": "patch", "seed": 0, "max_memory": 1.0}
    return {
        "disentangle": (
            en.disentangle,
            {"model": model, "images": images, "site": "stream", "routing": "concepts", **book, **quick},
        ),
        "estimate": (
            estimate,
            {"model": model, "images": images, "site": "stream", "concepts": 4, "units": 2, "tokens_per_image": 4},
        ),
        "find_site": (en.find_site, {"model": model, "name": "stream", "blocks": 1}),
        "find_sites": (en.find_sites, {"model": model, "blocks": 1}),
        "record": (
            _record,
            {"model": model, "images": images, "site": split.site, "tokens": "patch", "seed": 0, **quick},
        ),
        "embed": (en.embed, {"model": model, "images": images}),
        "load_images": (en.load_images, {"source": "shapes", "count": 3, "seed": 0}),
        "load_images, list": (en.load_images, {"source": list(images), "labels": ["a"] * 8, "count": 3}),
        "load_model": (
            en.load_model,
            {
                "name_or_path": "test_vit",
                "pretrained": False,
                "image_size": 32,
                "seed": 0,
                "dtype": torch.float32,
                "device": "cpu",
            },
        ),
        "wrap_network": (en.wrap_network, {"network": model.network, "input_size": (3, 32, 32), "name": "x"}),
        "score": (
            en.score,
            {
                "split": split,
                "images": images,
                "tokens": "patch",
                "tokens_per_image": 4,
                "k": 3,
                "seed": 0,
                "embeddings": torch.rand(8, 4),
                "progress": False,
            },
        ),
        "find_exemplars": (
            en.find_exemplars,
            {
                "split": split,
                "images": images,
                "channel": channel,
                "count": 3,
                "units": 2,
                "embeddings": torch.rand(8, 4),
                "batch_size": 4,
                "progress": False,
            },
        ),
        "find_units": (
            en.find_units,
            {
                "split": split,
                "positive": images[:4],
                "negative": images[4:],
                "kind": "concepts",
                "tokens": "patch",
                "pool": "max",
                "fraction": 0.5,
                "level": 0.05,
                "seed": 0,
                "batch_size": 4,
            },
        ),
        "name_concepts": (
            en.name_concepts,
            {"split": split, "images": images, "tokens": "patch", "top": 3, "level": 0.05, "batch_size": 4},
        ),
        "fit_head": (
            en.fit_head,
            {"model": model, "images": images, "kind": "probe", "labels": list("aabbccdd"), "k": 2, "batch_size": 4},
        ),
        "attribute": (
            en.attribute,
            {
                "split": split,
                "images": images[:1],
                "output": 0,
                "methods": ["gradient"],
                "tokens": "all",
                "steps": 2,
                "ablate_units": 2,
                "batch_size": 2,
            },
        ),
        "effect": (
            en.effect,
            {
                "split": split,
                "edit": edit,
                "images": images,
                "head": "knn",
                "target": "label 0",
                "fit": ground.images,
                "controls": ["random sub-units"],
                "strengths": [1.0],
                "draws": 1,
                "seed": 0,
                "batch_size": 8,
                "progress": False,
            },
        ),
        "verify": (en.verify, {"split": split, "images": images[:2], "batch_size": 2, "progress": False}),
        "split.activations": (
            split.activations,
            {"images": images[:2], "units": [unit], "tokens": "patch", "batch_size": 2},
        ),
        "split.concept_activations": (
            split.concept_activations,
            {"images": images[:2], "tokens": "all", "batch_size": 2},
        ),
        "split.contributions": (
            split.contributions,
            {"channel": unit[0], "unit": unit[1], "images": images[:1], "tokens": "patch", "batch_size": 1},
        ),
        "split.with_names": (split.with_names, {"names": {0: "cat"}}),
        "split.concepts_named": (split.with_names({0: "cat"}).concepts_named, {"name": "cat"}),
        "split.lens": (split.lens, {"units": [unit]}),
        "split.explicit": (split.explicit, {"channels": [channel]}),
        "split.decode": (split.decode, {"units": torch.zeros(3, len(split.units))}),
        "split.edit": (_edited, {"split": split, "edit": edit}),
        "Disentanglement.load": (en.Disentanglement.load, {"path": "gone", "model": model}),
        "images.subset": (images.subset, {"indices": [0, 1]}),
        "images.split": (images.split, {"fraction": 0.5, "seed": 0}),
        "images.sample": (images.sample, {"count": 3, "seed": 0}),
        "images.with_labels": (images.with_labels, {"labels": ["a"] * 8}),
        "images.only": (images.only, {"labels": "label 0"}),
        "make_questions": (
            make_questions,
            {"gallery": Gallery(split, ground.images).fill(progress=False), "per_kind": 1, "size": 3, "seed": 0},
        ),
        "make_permanent": (make_permanent, {"split": split, "edit": edit}),
        "save_permanent": (_and_away(save_permanent), {"split": split, "edit": edit, "path": "x.pt2"}),
        "write_report": (
            _and_away(write_report),
            {
                "split": split,
                "images": images,
                "path": "x.html",
                "title": "x",
                "channels": 1,
                "count": 2,
                "units": 2,
                "k": 2,
                "verify_on": 1,
                "seed": 0,
                "max_memory": 1.0,
                "progress": False,
            },
        ),
        "TopK": (
            TopK,
            {"width": 4, "k": 2, "steps": 2, "batch_size": 4, "learning_rate": 0.1, "patience": 2, "seed": 0},
        ),
        "TopK.fit": (TopK(4, 2, steps=2).fit, {"recording": split.recording(images)}),
    }


def _edit_calls(ground: Ground) -> dict[str, Call]:
    """Return calls that make edits, each carried out afterwards."""
    channel = int(ground.split.channels.query("split").channel.iloc[0])
    unit = (channel, int(ground.split.units.query("channel == @channel").unit.iloc[-1]))
    most = {"concept": 0, "tokens": "patch", "mask": np.ones((4, 4)), "strength": 1.0}
    of_unit = {"unit": unit, "tokens": "all", "strength": [0.5, 1.0]}
    makers: dict[str, tuple[Callable[..., en.Edit], dict[str, Any]]] = {}
    for name, about in (("of concepts", most), ("of units", of_unit)):
        makers[f"Edit.scale {name}"] = en.Edit.scale, {"by": 0.5, "about": "mean", **about}
        makers[f"Edit.ablate {name}"] = en.Edit.ablate, {"to": "zero", **about}
        makers[f"Edit.clamp {name}"] = en.Edit.clamp, {"low": 0.0, "high": 1.0, **about}
        makers[f"Edit.add {name}"] = en.Edit.add, {"by": 1.0, **about}

    def made(maker: Callable[..., en.Edit]) -> Callable[..., object]:
        return lambda **more: _edited(ground.split, maker(**more))

    calls: dict[str, Call] = {name: (made(maker), arguments) for name, (maker, arguments) in makers.items()}
    calls["Edit.at"] = en.Edit.scale(concept=0, by=0.5).at, {"strength": 0.5}
    calls["Edit.from_json"] = en.Edit.from_json, {"text": "{}"}
    calls["Edit.from_dict"] = en.Edit.from_dict, {"found": {}}
    return calls


def _score_calls(ground: Ground) -> dict[str, Call]:
    """Return calls of all functions in `elude_nb.scores`, with arguments that work."""
    rng = np.random.default_rng(0)
    activations, embeddings, labels = rng.random((24, 4)), rng.random((24, 3)), list("abc") * 8
    factors = pd.DataFrame({"shape": labels, "size": rng.random(24)})
    trials = scores.make_trials(activations, size=3, top=4, trials_per_unit=1)
    table = scores.auroc(activations, labels)
    information = scores.mutual_information(activations, factors, normalised=True)
    scored = en.score(ground.split, ground.images[:6], k=2, progress=False)
    known: dict[str, Any] = {
        **dict.fromkeys(
            (
                "activations",
                "original",
                "changed",
                "reconstruction",
                "first",
                "second",
                "train",
                "test",
                "units",
                "channels",
                "held_out_units",
                "held_out_channels",
            ),
            activations,
        ),
        "embeddings": embeddings,
        "labels": labels,
        "train_labels": labels,
        "test_labels": labels,
        "factors": factors,
        "k": 3,
        "threshold": 0.0,
        "seed": 0,
        "removed": 1,
        "added": 2,
        "candidates": 3,
        "size": 3,
        "top": 4,
        "bins": 4,
        "max_units": 4,
        "trees": 3,
        "trials_per_unit": 1,
        "trials": trials,
        "answers": [0] * len(trials),
        "level": 0.9,
        "resamples": 10,
        "values": activations[:, 0],
        "scores": scored,
        "information": information,
        "table": table,
        "heat": rng.random((12, 6, 4)),
        "patches": rng.random((12, 6, 3)),
        "strength": 0.1,
        "ranks": (1, 2),
        "found_routes": rng.integers(0, 3, (4, 9)),
        "true_groups": rng.integers(0, 3, (4, 9)),
        "normalised": True,
        "images": ground.images.subset([*range(12)] * 2),
        "judge": scores.EmbeddingJudge(lambda photos: torch.rand(len(photos), 3)),
        "centres": torch.rand(4, 3),
        "accuracies": pd.Series([0.5, 1.0]),
    }
    calls: dict[str, Call] = {}
    for name in scores.__all__:
        function = getattr(scores, name)
        if not inspect.isfunction(function) or name in {"score", "rank_scores"}:
            continue
        arguments = {key: known[key] for key in inspect.signature(function).parameters if key in known}
        if name in {"make_trials", "judge_units"}:
            arguments["units"] = [0, 1]
        if name == "sibling_similarity":
            arguments["channels"] = torch.tensor([0, 0, 1, 1])
        if name == "best_images":
            arguments["activations"] = torch.from_numpy(activations)
        calls[name] = function, arguments
    return calls


def _export_calls(ground: Ground) -> dict[str, Call]:
    """Return calls that write networks for other programs; those for ONNX only where its packages are."""
    given = {"network": ground.model, "like": ground.model}
    calls: dict[str, Call] = {"save_program": (_and_away(save_program), {**given, "path": "x.pt2"})}
    if find_spec("onnxscript") is not None:
        calls["save_onnx"] = _and_away(lambda **more: save_onnx(**more).path), {**given, "path": "x.onnx"}
    return calls


def _and_away(write: Callable[..., Path]) -> Callable[..., object]:
    """Return the same function, after whose success the file is taken away."""
    return lambda **arguments: write(**arguments).unlink()


def _record(**arguments: Any) -> object:
    return list(en.record(**arguments))


def _edited(split: Any, edit: Any) -> object:
    if not isinstance(split, en.Disentanglement):
        return make_permanent(split, edit)
    with split.edit(edit):
        return split.model(torch.zeros(2, 3, 32, 32))


def family(make: Callable[[Ground], dict[str, Call]]) -> Family:
    """Return the family of calls with one or two arguments replaced."""

    def cases(ground: Ground) -> Iterator[Case]:
        calls = make(ground)
        for name, (function, arguments) in calls.items():  # as they are, they must work: else the fuzz is about nothing
            if name not in UNFINISHED:
                function(**arguments)
        while True:
            name = ground.pick(calls)
            function, arguments = calls[name]
            chosen = [ground.pick(arguments) for _ in range(2)]
            replaced = {key: ground.pick(hostile(ground).items()) for key in dict.fromkeys(chosen)}
            if ground.rng.random() < 0.7:
                replaced = dict([ground.pick(replaced.items())])
            if name == "load_model" and replaced.get("pretrained", ("", None))[1] is True:
                continue  # it would be fetched
            if name == "attribute" and isinstance(replaced.get("output", ("", None))[1], torch.nn.Module):
                continue  # what a function of the user's raises is theirs
            if any(
                key in LEGAL_IF_LARGE and value is not None and str(LARGE) in said
                for key, (said, value) in replaced.items()
            ):
                continue
            told = ", ".join(f"{key}={said}" for key, (said, _) in replaced.items())
            more = {key: value for key, (_, value) in replaced.items()}
            yield Case(
                f"{name}({told})",
                lambda function=function, given={**arguments, **more}: function(**given),
                reader=False,
                also=ALSO.get(name, ()),
            )  # type: ignore[misc]

    return cases


UNFINISHED = {"Disentanglement.load", "Edit.from_json", "Edit.from_dict"}
"""Calls that are refused as they are, so that they take no time."""

ALSO: dict[str, tuple[type[Exception], ...]] = {
    "images.subset": (IndexError,),  # as a list's
    **dict.fromkeys(("save_permanent", "save_program", "save_onnx"), (ExportError,)),
}
"""What calls may raise beside the errors that all may."""

FAMILIES: dict[str, tuple[Family, float]] = {
    "calls: models, images, splits": (family(_calls), 0.08),
    "calls: edits": (family(_edit_calls), 0.05),
    "calls: scores": (family(_score_calls), 0.08),
    "calls: exports": (family(_export_calls), 0.01),
}
