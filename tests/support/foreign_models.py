"""Small models as transformers and other projects leave them on disk. It tests nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

TEXT = {
    "hidden_size": 30,
    "intermediate_size": 50,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "max_position_embeddings": 19,
    "eos_token_id": 49407,
}
VISION = {
    "hidden_size": 44,
    "intermediate_size": 62,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 30,
    "patch_size": 6,
}
PREPROCESSOR = {
    "do_resize": True,
    "size": {"shortest_edge": 30},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 30, "width": 30},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.3, 0.2, 0.25],
}
TINY = {  # in the place of an architecture that is released
    "embed_dim": 18,
    "vision_cfg": {"image_size": 30, "layers": 2, "width": 44, "head_width": 11, "patch_size": 6},
    "text_cfg": {"context_length": 19, "vocab_size": 49408, "width": 30, "heads": 3, "layers": 2},
}


def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with weights so large that every part of it shows in the features."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name == "logit_scale":
                weight.fill_(2.0)
            elif weight.ndim >= 2:
                spread = 0.5 if "embedding" in name else 1.5 / weight[0].numel() ** 0.5
                weight.normal_(0, spread, generator=generator)
            else:
                weight.normal_(1.0 if "norm" in name and "weight" in name else 0.0, 0.3, generator=generator)
    return model.eval()


def transformers_clip(
    folder: Path, text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None, **saving: Any
) -> Any:
    """Save a small random CLIPModel with its preprocessing to a folder; returns it."""
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig(
        text_config={**TEXT, **(text or {})}, vision_config={**VISION, **(vision or {})}, projection_dim=18
    )
    model = shaken(CLIPModel(config))
    model.save_pretrained(folder, **saving)
    preprocessor(folder)
    return model


def preprocessor(folder: Path, **changes: Any) -> None:
    """Write preprocessor_config.json."""
    (folder / "preprocessor_config.json").write_text(json.dumps({**PREPROCESSOR, **changes}))


def open_clip_model(config: dict[str, Any], seed: int = 0) -> Any:
    """A small random model of open_clip."""
    import open_clip

    plain = {name: value for name, value in config.items() if name != "custom_text"}
    kind = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
    return shaken(kind(**plain), seed)


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of a model's weights."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}
