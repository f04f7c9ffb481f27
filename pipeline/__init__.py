"""TeachOnce: pre-train CLIP prompts from a teacher that runs only once.

Reading order: manifests, vocabulary, images (what is taught on); clip_models, teacher (who teaches);
label_codec, label_store, ledger (what is kept); structures, slot_prompts, text_tower, image_tower, prompts,
candidates, losses (what learns); prompt_files (what people take home); zeroshot (what it is worth).
`teachonce.stages` puts them in order, `teachonce.cli` parses and renders.

This module imports nothing heavy: `teachonce.load_prompts` loads torch when it is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "load_prompts"]

if TYPE_CHECKING:
    from teachonce.prompt_files import load_prompts as load_prompts


def __getattr__(name: str) -> Any:
    if name == "load_prompts":
        from teachonce.prompt_files import load_prompts

        return load_prompts
    raise AttributeError(f"module 'teachonce' has no attribute '{name}'")
