"""TeachOnce: pre-train CLIP prompts from a teacher that runs only once.

The rooms of this package, from the ground floor up: core, objects, watching, data, towers, heads, models, foreign,
keeping, labels, batch, cluster, softening, teaching, rows, recipe, losses, training, memory, evaluation, search, runs,
reports, audit, sharing; `demo` is a guest room. Each room's docstring says what it holds and where to begin.
`teachonce.stages` holds one verb each, `teachonce.cli` parses and renders.

This module imports nothing heavy: what it offers loads torch when it is asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from teachonce.models.prompt_files import load_prompts
    from teachonce.sharing.adapter import prompted_model

__version__ = "0.1.0"
__all__ = ["__version__", "load_prompts", "prompted_model"]

_LAZY = {  # name: the module that holds it, which is imported when the name is first asked for
    "load_prompts": "teachonce.models.prompt_files",
    "prompted_model": "teachonce.sharing.adapter",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'teachonce' has no attribute '{name}'")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    """What people may use, whether it is loaded yet or not; modules of rooms are imported by their own names."""
    return sorted(__all__)
