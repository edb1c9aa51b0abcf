"""Bad arguments for `fuzz`: methods compared, profiles, neighbours, and figures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from fuzz_calls import Call, family  # type: ignore[import-not-found]  # beside this file
from fuzz_watch import Family, Ground  # type: ignore[import-not-found]

import elude_nb as en
from elude_nb import baselines, figures, scores
from elude_nb.interpret import profiles
from elude_nb.interpret.concept_map import lay_out
from elude_nb.interpret.gallery import Gallery
from elude_nb.interpret.neighbours import find_neighbours
from elude_nb.scores.planted import planted_network
from elude_nb.steering.transplant import transplant


def _method_calls(ground: Ground) -> dict[str, Call]:
    """Return calls that make a method, fit it and use it."""
    recording = ground.split.recording(ground.images)
    site, model = ground.split.site, ground.model
    weight = ground.split.weight

    def through(kind: Callable[..., Any]) -> Callable[..., object]:
        def fit_and_use(recording: Any, labels: Any = None, **settings: Any) -> object:
            method = kind(**settings).fit(recording, labels)
            found = method.encode(recording)
            return method.reconstruct(recording) if hasattr(method, "reconstruct") else found

        return fit_and_use

    common: dict[str, Any] = {"recording": recording, "labels": ["a", "b"] * (len(recording) // 2), "name": "x"}
    training = {
        "width": 8,
        "steps": 2,
        "batch_size": 16,
        "learning_rate": 0.01,
        "patience": 1,
        "revive": True,
        "seed": 0,
    }
    from_weights = {"weight": weight, "bias": torch.zeros(len(weight)), "kernel": 1}
    makers: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
        "PCA": (baselines.PCA, {"n_units": 4, "seed": 0}),
        "ICA": (baselines.ICA, {"n_units": 4, "iterations": 3, "max_tokens": 50, "seed": 0}),
        "NMF": (baselines.NMF, {"n_units": 4, "iterations": 3, "encode_iterations": 3, "max_tokens": 50, "seed": 0}),
        "KMeansDirections": (baselines.KMeansDirections, {"n_units": 4, "seed": 0}),
        "Channels": (baselines.Channels, {"n_units": 4}),
        "HiddenUnits": (baselines.HiddenUnits, {"columns": slice(0, 8), "n_units": 4}),
        "SubUnits": (
            baselines.SubUnits,
            {"model": model, "site": site, "concepts": 4, "units": 2, "shared": 0.8, "tokens": "patch", "seed": 0},
        ),
        "TwoClassSplit": (baselines.TwoClassSplit, {**from_weights, "tau": 0.03, "gamma": 0.5, "rho": 0.8}),
        "OverlappingGroups": (baselines.OverlappingGroups, {**from_weights, "n_groups": 2}),
        "VirtualNeurons": (
            baselines.VirtualNeurons,
            {**from_weights, "units_per_channel": 2, "strongest": 5, "channels": [0, 1], "seed": 0},
        ),
        "TopK": (baselines.TopK, {"k": 2, **training}),
        "BatchTopK": (baselines.BatchTopK, {"k": 2, **training}),
        "ReLU": (baselines.ReLU, {"l1": 0.1, **training}),
        "Matryoshka": (baselines.Matryoshka, {"k": 2, "prefixes": (0.5, 1.0), **training}),
    }
    calls: dict[str, Call] = {
        name: (through(kind), {**common, **settings}) for name, (kind, settings) in makers.items()
    }
    sizes = {"n_units": 6, "concepts": 4, "sub_units": 2, "shared": 0.8, "sparsity": 2, "k": 4, "fidelity_images": 2}
    drawn = {"tokens": "patch", "tokens_per_image": 4, "seed": 0, "batch_size": 4, "max_memory": 1.0, "blocks": 1}
    few = {"methods": ["sub-units", "PCA"], "site": "stream", "held_out": ground.images, "progress": False}
    calls["compare"] = en.compare, {"model": model, "images": ground.images[:8], **few, **sizes, **drawn}
    return calls


def _look_calls(ground: Ground) -> dict[str, Call]:
    """Return calls that look at a split: profiles, neighbours, figures."""
    split, images = ground.split, ground.images
    channel = int(split.channels.query("split").channel.iloc[0])
    own = int(split.units.query("channel == @channel and unit > 0").unit.iloc[0])
    gallery = Gallery(split, images).fill(progress=False)
    exemplars = en.find_exemplars(split, images, channel, count=3, units=2, progress=False)
    edit = en.Edit.scale(concept=0, by=0.5)
    effect = en.effect(split, edit, images, head="knn", controls=["random sub-units"], draws=1, progress=False)
    compared = en.compare(
        split.model,
        images,
        held_out=images,
        methods=["PCA", "channels"],
        n_units=6,
        concepts=4,
        sub_units=2,
        k=4,
        progress=False,
    )
    among = find_neighbours(split, images[0], images, {"faded": edit}, k=2)
    activations = split.activations(images).amax(1)
    trials = scores.make_trials(activations, size=3, top=4, trials_per_unit=1)[:3]
    pixels, heat = np.random.default_rng(0).random((32, 32, 3)), np.random.default_rng(0).random((4, 4))
    maps = split.concept_activations(images)
    labels = np.arange(12) % 3
    return {
        "depth_profile": (profiles.depth_profile, {"split": split, "concept": 0}),
        "route_table": (profiles.route_table, {"split": split, "channel": channel, "detail": "part"}),
        "part_table": (profiles.part_table, {"split": split, "channel": channel, "by": "contribution"}),
        "spatial_profile": (profiles.spatial_profile, {"split": split, "maps": maps[:, :, 0]}),
        "lay_out": (lay_out, {"split": split, "gallery": gallery, "count": 2, "side": 20, "seed": 0}),
        "find_neighbours": (
            find_neighbours,
            {"split": split, "image": images[0], "among": images, "edits": {"faded": edit}, "k": 2, "batch_size": 4},
        ),
        "transplant": (
            transplant,
            {"split": split, "image": images[0], "concept": 0, "share": 0.25, "strength": 1.0, "mask": np.ones((4, 4))},
        ),
        "planted_network": (
            planted_network,
            {
                "concepts": 4,
                "channels": 6,
                "concepts_per_channel": 2,
                "sources_per_concept": 3,
                "images": 8,
                "noise": 0.1,
            },
        ),
        "Gallery": (Gallery, {"split": split, "images": images, "max_memory": 0.1}),
        "Gallery.channel": (gallery.channel, {"channel": channel, "units": 3, "shared": 0.8}),
        "Gallery.maps_of": (gallery.maps_of, {"units": [(channel, 0)]}),
        "Gallery.pictures_of": (gallery.pictures_of, {"image": 0}),
        "Gallery.images_of_unit": (gallery.images_of_unit, {"channel": channel, "unit": 0}),
        "activation_map": (figures.activation_map, {"image": pixels, "heat": heat, "limit": 1.0, "title": "x"}),
        "before_after": (figures.before_after, {"exemplars": exemplars, "crops": 0.5, "beside": False}),
        "concept_profile": (figures.concept_profile, {"of": gallery, "concept": 0}),
        "contact_sheet": (figures.contact_sheet, {"images": images, "count": 4, "columns": 2}),
        "contributions_by_block": (
            figures.contributions_by_block,
            {"split": split, "channel": channel, "units": [own]},
        ),
        "dose_response": (figures.dose_response, {"effect": effect}),
        "side_effects": (figures.side_effects, {"effect": effect}),
        "class_drops": (figures.class_drops, {"effect": effect}),
        "factor_heatmap": (
            figures.factor_heatmap,
            {"information": scores.mutual_information(activations, _factors(labels), normalised=True), "count": 3},
        ),
        "neighbour_grid": (figures.neighbour_grid, {"neighbours": among, "columns": 2}),
        "routing_bars": (figures.routing_bars, {"split": split, "channel": channel, "most": 4, "shared": False}),
        "routing_sankey": (figures.routing_sankey, {"split": split, "channel": channel, "most": 4, "most_blocks": 2}),
        "score_intervals": (
            figures.score_intervals,
            {"compared": compared, "scores": ["top_similarity"], "size": "equal"},
        ),
        "tradeoff": (figures.tradeoff, {"compared": compared, "score": "top_similarity", "size": "equal"}),
        "trial_sheet": (figures.trial_sheet, {"trials": trials, "images": images, "answers": [0] * len(trials)}),
        "unit_maps": (figures.unit_maps, {"gallery": gallery, "image": 0, "channel": channel, "units": 2}),
        "theme": (_theme, {"name": "dark"}),
    }


def _factors(labels: Any) -> Any:
    import pandas as pd

    return pd.DataFrame({"label": labels})


def _theme(name: Any) -> None:
    with figures.theme(name):
        pass


FAMILIES: dict[str, tuple[Family, float]] = {
    "calls: methods compared": (family(_method_calls), 0.04),
    "calls: profiles and figures": (family(_look_calls), 0.04),
}
