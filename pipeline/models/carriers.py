"""Which towers of a model can carry prompts, and what keeps them out of the others."""

from __future__ import annotations

from dataclasses import dataclass

from teachonce.errors import UnsupportedModelError
from teachonce.models.clip import LoadedClip
from teachonce.towers.image_tower import image_obstacle
from teachonce.towers.text_tower import TextTower, text_obstacle


@dataclass(frozen=True)
class Carriers:
    """What keeps prompts out of a model's towers, as `it has ...` goes on; None where they can enter."""

    text: str | None
    image: str | None

    @property
    def none(self) -> bool:
        """Whether prompts can enter neither tower."""
        return self.text is not None and self.image is not None

    def __str__(self) -> str:
        """Both towers in words: `in its text tower, not in its image tower (a tower of class ...)`."""
        if self.text is None and self.image is None:
            return "in both towers"
        if self.none:
            return f"in neither tower (text: {self.text}; image: {self.image})"
        here, there, obstacle = ("image", "text", self.text) if self.text else ("text", "image", self.image)
        return f"in its {here} tower, not in its {there} tower ({obstacle})"


def carriers_of(clip: LoadedClip) -> Carriers:
    """Find out which towers of a loaded model can carry prompts; the structure is looked at before the tokenizer."""
    text = text_obstacle(clip.model)
    if text is None:
        try:
            TextTower.from_clip(clip.model, clip.tokenizer)
        except UnsupportedModelError as problem:
            text = (problem.message.partition(": it has ")[2] or problem.message).partition("; supported")[0]
    return Carriers(text, image_obstacle(clip.model))
