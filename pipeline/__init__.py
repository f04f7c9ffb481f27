"""TeachOnce: pre-train CLIP prompts from a teacher that runs only once.

Reading order: manifests, vocabulary, images (what is taught on); clip_models, teacher (who teaches);
label_codec, label_store, ledger (what is kept); structures, slot_prompts, text_tower, image_tower, prompts,
candidates, losses (what learns); prompt_files (what people take home); zeroshot (what it is worth);
adapter, hub, packing (how others get it). `teachonce.stages` puts them in order, `teachonce.cli` parses and renders.

This module imports nothing heavy: what it offers loads torch when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "load_prompts", "prompted_model"]

if TYPE_CHECKING:
    from teachonce.models.prompt_files import load_prompts as load_prompts
    from teachonce.sharing.adapter import prompted_model as prompted_model


def __getattr__(name: str) -> Any:
    if name == "load_prompts":
        from teachonce.models.prompt_files import load_prompts

        return load_prompts
    if name == "prompted_model":
        from teachonce.sharing.adapter import prompted_model

        return prompted_model
    raise AttributeError(f"module 'teachonce' has no attribute '{name}'")
