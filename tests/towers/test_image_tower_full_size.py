"""Image towers of released architectures at their full size, with random weights."""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import torch
from image_reference import M, plain_features, prompts_of, randomise

from teachonce.models.learner import image_learner
from teachonce.towers.image_tower import ImageTower

TEXT = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1}
NAMES = ("PE-Core-T-16-384", "EVA02-B-16", "ViT-B-16-SigLIP2", "MobileCLIP2-B", "PE-Core-B-16")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_tower_of_full_size_is_the_plain_one(name: str) -> None:
    """Without prompts it is `encode_image`; with prompts it is the reference that runs every token."""
    config: dict[str, Any] = open_clip.get_model_config(name)
    torch.manual_seed(0)
    model: Any = open_clip.CustomTextCLIP(config["embed_dim"], config["vision_cfg"], dict(TEXT))
    model.eval()
    randomise(model.visual)
    tower = ImageTower.from_clip(model)
    pixels = torch.randn(2, 3, *tower.image_size)
    with torch.no_grad():
        frozen, theirs = tower.features(None, pixels), model.encode_image(pixels, normalize=True)
        assert torch.allclose(frozen, theirs, rtol=0, atol=1e-5)
        assert float(theirs[0] @ theirs[1]) < 0.99, "the weights are too small for this test to tell images apart"
        closed = image_learner(tower, prompts_of("unshared", 0, init="template"))
        assert torch.equal(tower.features(closed(), pixels), frozen)
        learner = image_learner(tower, prompts_of("qkvr", 0, init="words"))
        for parameter in learner.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape))
        prompted = tower.features(learner(), pixels)
        assert torch.allclose(prompted, plain_features(model, learner(), pixels), rtol=0, atol=1e-5)
        assert (prompted - frozen).abs().max() > 1e-3
        assert tower.block_inputs(learner()).shape == (tower.layers, M, tower.width)
