"""The vision tower of a model that answers in text: split and edited while the whole model generates.

The classes are the real ones of transformers, with tiny random configurations: no weights were at hand.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import elude_nb as en

transformers = pytest.importorskip("transformers")

SIDE, PATCH, IMAGE = 56, 14, 199
VISION: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
VISION |= {"image_size": SIDE, "patch_size": PATCH, "model_type": "siglip_vision_model"}
TEXT: dict[str, Any] = {"vocab_size": 200, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
TEXT |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}


def llava() -> tuple[Any, dict[str, Any]]:
    """LLaVA-OneVision, which looks at a whole image and at crops of it."""
    config = transformers.LlavaOnevisionConfig(
        vision_config=VISION, text_config={**TEXT, "model_type": "qwen2"}, image_token_index=IMAGE,
        image_grid_pinpoints=[[SIDE, SIDE]], vision_feature_layer=-1, vision_feature_select_strategy="full",
    )  # fmt: skip
    model = transformers.LlavaOnevisionForConditionalGeneration(config).eval()
    return model, {"crops": 2, "tokens": 36, "more": {"image_sizes": torch.tensor([[SIDE, SIDE]])}}


def paligemma() -> tuple[Any, dict[str, Any]]:
    """PaliGemma, whose tower is a SigLIP, too."""
    config = transformers.PaliGemmaConfig(
        vision_config=VISION, text_config={**TEXT, "model_type": "gemma", "head_dim": 8}, image_token_index=IMAGE,
        projection_dim=32,
    )  # fmt: skip
    return transformers.PaliGemmaForConditionalGeneration(config).eval(), {"crops": 1, "tokens": 16, "more": {}}


def preprocess(image: Any) -> Tensor:
    from torchvision.transforms.v2.functional import pil_to_tensor, resize

    found: Tensor = pil_to_tensor(resize(image, [SIDE, SIDE])) / 127.5 - 1
    return found


@pytest.mark.parametrize("make", [llava, paligemma])
def test_an_edit_is_active_while_the_whole_model_generates(make) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole, how = make()
    tower = en.wrap_network(whole.model.vision_tower, preprocess=preprocess, input_size=(3, SIDE, SIDE), name="tower")
    images = en.load_images("photographs", count=24)
    split = en.disentangle(tower, images, concepts=6, units=3, progress=False)
    assert split.site.layout.grid == (4, 4)
    pixels = tower.prepare([images[0]])
    pixels = pixels if how["crops"] == 1 else pixels[:, None].expand(-1, how["crops"], -1, -1, -1)
    ids = torch.tensor([[1, 5, *[IMAGE] * how["tokens"], 7, 8]])
    asked = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels, **how["more"]}

    def answer() -> tuple[Tensor, Tensor]:
        made = whole.generate(
            **asked, max_new_tokens=6, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        return made.sequences, torch.cat(made.logits)

    words, logits = answer()
    with split.lens():
        assert torch.equal(answer()[1], logits)  # lossless, bit for bit
    concept = int(split.units["concept"].dropna().iloc[0])
    changed = []
    for edit in (
        en.Edit.ablate(concept=concept),
        en.Edit.scale(concept=concept, by=2, tokens="patch", strongest=3),
    ):
        with split.edit(edit):
            changed.append(answer()[1])
    assert all(float((each - logits).abs().max()) > 1e-3 for each in changed)
    assert not torch.equal(changed[0], changed[1])
    again = answer()
    assert torch.equal(again[0], words)
    assert torch.equal(again[1], logits)
