"""What `import-model` is asked for and what it answers. It computes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ImportModelRequest:
    """Which model to convert; see `teachonce import-model --help`."""

    source: Path
    """A folder of transformers' CLIPModel, or a file of weights."""
    out: Path
    release: str | None = None
    """For a file of weights: the model of open_clip, NAME/TAG, whose weights, or further trained ones, these are."""
    tokenizer: Path | None = None
    """For a release whose tokenizer is not CLIP's own: the folder with the tokenizer's files."""


@dataclass(frozen=True, kw_only=True)
class ImportModelResult:
    """Which model was written, and what decides its features besides the weights."""

    model: str
    """As every command takes it: local-dir:PATH."""
    source: str
    source_digest: str
    """SHA-256 over the files of weights, in the order of their names."""
    release: str | None
    parameters: int
    activation: str
    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    resize_mode: str
    text_prompts: str
    """"yes", or what in the text tower stands in the way."""
    image_prompts: str
    """"yes", or what in the image tower stands in the way."""
    digest: str
    """The identity of the model: SHA-256 over its modules and weights."""
    out: str
