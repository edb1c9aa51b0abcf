"""Words of labels and pages, a sentence each: shown on hovering, at the end of pages, and in docs/glossary.md."""

from __future__ import annotations

GLOSSARY = {
    "activation": "The number that a channel or sub-unit has at one patch of an image; panels count it from its mean.",
    "certificate": "What was checked of the split: with it attached the model's outputs are the same, bit for bit.",
    "channel": "One of the numbers that a layer of the model has at every patch of an image, such as 384 in DINOv2-S.",
    "concept": "A group of patches whose channels point in one direction; sub-units of many channels belong to it.",
    "contribution": "What one source adds to a channel: the source's value times its weight.",
    "copies": "How many sub-units of other channels are active on the same patches and so mean the same.",
    "discovery": "The images on which concepts and sub-units were found; scores on others, the unseen images, count.",
    "dose": "How far a concept is faded: 0 % leaves its sub-units as they are, 100 % takes them away.",
    "G": "How many concepts the discovery looks for.",
    "K": "How many sub-units a channel is split into at most.",
    "monosemantic": "A unit is monosemantic if the images on which it is most active show one thing.",
    "outline": "The line around the patches where an activation is above half of its highest value in the image.",
    "random routes": "The control: as many sub-units of the same sizes, but with contributions drawn at random.",
    "rest (unit 0)": "What no sub-unit has: the bias, what enters the site, and what is left over.",
    "rho": "Left over is a contribution whose second concept has more than rho times the share of its first.",
    "separation": "Similarity after the split, less the larger of that before and that between the sub-units.",
    "share of variance": "How much of a channel's variance a unit carries; the shares of a channel add up to 1.",
    "similarity": "How alike a unit's best images are to the model: the mean cosine of their outputs, 1 at most.",
    "source": "A part of the model that adds to channels: a neuron of an MLP or a value of an attention head.",
    "specificity": "What the target class loses, divided by the mean change of the other classes; higher is better.",
    "sub-unit": "A part of a channel: its contributions to one concept. The parts add up to the channel again.",
    "tokens": "Patches of the images of the discovery.",
    "variance": "How much a channel differs from patch to patch, over the patches of the discovery.",
}
"""From each word to one sentence."""
