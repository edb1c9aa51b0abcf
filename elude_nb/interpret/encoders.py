"""Encoders that put images and texts into one space, for names from a vocabulary."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from typing import Any, Protocol

from PIL import Image
from torch import Tensor

from elude_nb.scores.judges import ClipJudge

_PHRASES = ("an image",)  # a judge needs phrases to describe by; as an encoder it does not describe


class TextImageEncoder(Protocol):
    """Whatever puts images and texts into one space; `ClipJudge` and `open_clip_encoder` do."""

    def encode_images(self, images: Sequence[Image.Image], /) -> Tensor:
        """Return embeddings of images, (n, e)."""

    def encode_texts(self, texts: Sequence[str], /) -> Tensor:
        """Return embeddings of texts, (m, e)."""


def open_clip_encoder(name: str, pretrained: str | None = None) -> TextImageEncoder:
    """Return an encoder of the open_clip library, for `name_concepts_by_text`; its weights are fetched if need be.

    Parameters
    ----------
    name
        Such as ``"ViT-B-32"``; or with weights of its own, ``"hf-hub:..."`` or ``"local-dir:..."``.
    pretrained
        Which weights: a tag such as ``"openai"``, or the path of a file.

    Raises
    ------
    ImportError
        If open_clip is not installed.
    ValueError
        If no weights are named: the model would be random, and so would the names.
    """
    open_clip = _imported("open_clip", "open_clip_torch")
    if pretrained is None and ":" not in name:
        tags = [tag for model, tag in open_clip.list_pretrained() if model == name]
        known = f"one of {tags}" if tags else "see open_clip.list_pretrained()"
        raise ValueError(f"{name!r} without weights is random; give pretrained=, {known}.")
    model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=pretrained)
    return ClipJudge.from_open_clip(model.eval(), preprocess, open_clip.get_tokenizer(name), _PHRASES)


def transformers_encoder(name: str | os.PathLike[str]) -> TextImageEncoder:
    """Return a CLIP or SigLIP model of transformers as an encoder, for `name_concepts_by_text`.

    Parameters
    ----------
    name
        A folder with the model and its processor, or a name on the Hugging Face hub, such as
        ``"openai/clip-vit-base-patch32"``; its weights are fetched if need be.

    Raises
    ------
    ImportError
        If transformers is not installed.
    OSError
        If there is no such folder or name, or it lacks the processor.
    ValueError
        If the model does not read both images and texts.
    """
    transformers = _imported("transformers", "transformers")
    model = transformers.AutoModel.from_pretrained(name)
    if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
        kind = type(model).__name__
        raise ValueError(f"{os.fspath(name)!r} is a {kind}, which does not read both images and texts, as CLIP does.")
    processor = transformers.AutoProcessor.from_pretrained(name)
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", processor.tokenizer.model_max_length)
    processor.tokenizer.model_max_length = min(processor.tokenizer.model_max_length, longest)  # not all files say it
    return ClipJudge.from_transformers(model.eval(), processor, _PHRASES)


def _imported(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{module}_encoder needs {module} ({error}): pip install {package}") from error
