"""Text towers at the size of their releases, with random weights: the same features as open_clip's, once, slowly.

Only the text towers are of that size. Token tables of tokenizers from elsewhere have the rows of the small ones here.
"""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import torch
from text_families import family_clip
from torch import nn
from tower_reference import CONTEXT, VISION, random_prompts

from teachonce.towers.slots import SlotPrompts
from teachonce.towers.text_tower import TextTower

NAMES = ["shark", "great white shark", "Red Fox", "red fox", "ice cream!", "blue jay"]
# architecture of open_clip: the family whose tokenizer it has
RELEASED = {
    "PE-Core-T-16-384": "mobileclip",
    "EVA02-B-16": "mobileclip",
    "MobileCLIP2-S2": "mobileclip",
    "coca_ViT-B-32": "coca",
    "ViT-B-16-SigLIP2": "siglip2",
    "ViT-SO400M-14-SigLIP": "siglip",
    "ViT-H-14-CLIPA": "clipa",
    "ViT-L-14-worldwide": "metaclip2-mt5",
    "ViT-H-14-worldwide": "metaclip2-xlm",
}


def released(name: str) -> tuple[nn.Module, Any]:
    """A random model with the text tower of a release, a small image tower, and a tokenizer of its class."""
    config = open_clip.get_model_config(name)
    text, (_, words) = dict(config["text_cfg"]), family_clip(RELEASED[name])
    if hasattr(words, "tokenizer"):
        text["vocab_size"] = len(words.tokenizer)
    torch.manual_seed(0)
    if "multimodal_cfg" in config:
        pooled = {**VISION, "attentional_pool": True, "output_tokens": True}
        model: nn.Module = open_clip.CoCa(config["embed_dim"], {"width": 32, "heads": 2, "layers": 1}, text, pooled)
    else:
        made = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
        model = made(config["embed_dim"], dict(VISION), text)
    return model.eval().requires_grad_(False), words


@pytest.mark.slow
@pytest.mark.parametrize("name", RELEASED)
def test_features_equal_encode_text_and_gradients_are_there(name: str) -> None:
    model, words = released(name)
    tower = TextTower.from_clip(model, words)
    names = tower.tokenise(NAMES, slots=4)
    tokens = words([f"{CONTEXT} {name}." for name in NAMES], context_length=tower.context_length)
    with torch.no_grad():
        ours = names.expand(tower.features(SlotPrompts(tower.embed_words(CONTEXT)), names))
        theirs = model.encode_text(tokens, normalize=True)  # type: ignore[operator]
    assert (ours - theirs).abs().max() <= 1e-5
    for structure in ("unshared", "unshared-replace"):
        prompts = random_prompts(tower, structure, 2)  # type: ignore[arg-type]
        tower.features(prompts, names)[:, 0].sum().backward()
        assert all(x.grad is not None and bool(x.grad.isfinite().all()) for x in prompts.tensors().values())
