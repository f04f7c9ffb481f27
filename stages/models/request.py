"""What `models` is asked for and what it answers. It computes nothing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ModelsRequest:
    """Which models to list."""

    word: str | None = None
    """Only models whose name or family holds this word, in any case; None: all."""


@dataclass(frozen=True, kw_only=True)
class ListedModel:
    """One released model of open_clip, and what it can be here."""

    model: str
    """As every command takes it: architecture/weights."""
    family: str
    teacher: bool
    text_prompts: bool
    image_prompts: bool
    needs: str
    """The extra of this package that it needs to be loaded, or nothing."""
    refused: dict[str, str]
    """By use (teacher, text_prompts, image_prompts): what stands in its way."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """How many models of a family can be what, and why the others cannot."""

    family: str
    models: int
    teachers: int
    text_prompts: int
    image_prompts: int
    needs: str
    refused: tuple[str, ...]
    """Each reason once, with its use in front."""


@dataclass(frozen=True, kw_only=True)
class ModelsResult:
    """The models, and their counts by family."""

    open_clip: str
    """The version whose models these are."""
    timm: str
    models: tuple[ListedModel, ...]
    families: tuple[Family, ...]
    total: Family
