"""The names of the files that prompts are kept in, for code that looks for such files and need not load torch."""

from __future__ import annotations

TENSORS_FILE = "prompts.safetensors"
META_FILE = "prompts.json"
CONFIG_FILE = "config.toml"
"""The training config. It lies beside the prompts of a run and of an export."""
LINEAR_FOLDER = "linear"
"""The folder in a run that keeps its linear reference, as prompts are kept: a head alone."""
REFERENCE_FILE = "reference.json"
"""The file in that folder that says what the reference was fitted on, and what it came to on held-out samples."""
RESULTS_FILE = "results.json"
"""The last file of a run: what came out."""
CHECKPOINTS_FOLDER = "checkpoints"
"""A folder that has this one and `CONFIG_FILE`, and no `META_FILE`, is a run that has not come to its end."""

EXPORTED = (
    TENSORS_FILE,
    META_FILE,
    CONFIG_FILE,
    "class_weights.npy",
    "class_weights.safetensors",
    "classes.tsv",
    "export.json",
)
"""What an export holds besides its card."""
