"""What a person sees of `index`: the figures of each split, and below them what is no sample, or no image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from teachonce.data.places import REASONS


def by_split(values: dict[str, Any]) -> dict[str, Any]:
    """Move what a split has beside its figures into tables of their own, a line for each reason."""
    splits = values.get("splits", [])
    moved = {
        "passed_over": [line for split in splits for line in _passed_over(split)],
        "no_images": [line for split in splits for line in _no_images(split)],
        "remarks": [{"split": split["split"], "on": text} for split in splits for text in split.get("remarks", ())],
    }
    hidden = ("passed_over", "foreign", "foreign_examples", "empty_parts", "empty_part_examples", "remarks")
    figures = [{name: value for name, value in split.items() if name not in hidden} for split in splits]
    return {**values, "splits": figures, **{name: lines for name, lines in moved.items() if lines}}


def _passed_over(split: dict[str, Any]) -> Iterator[dict[str, Any]]:
    passed_over = split.get("passed_over", {})
    endings = ", ".join(f"{ending} {count:,}" for ending, count in passed_over.get("endings", {}).items())
    for reason, count in passed_over.get("counts", {}).items():
        words = f"{REASONS[reason]} ({endings})" if reason == "other_endings" else REASONS[reason]
        examples = passed_over["examples"][reason]
        yield {"split": split["split"], "number": count, "what": words, "for_example": examples}


def _no_images(split: dict[str, Any]) -> Iterator[dict[str, Any]]:
    name = split["split"]
    for kind, count in split.get("foreign", {}).items():
        yield {
            "split": name,
            "number": count,
            "what": f"their bytes are {kind}",
            "for_example": split["foreign_examples"][kind],
        }
    if split.get("empty_parts"):
        examples = split["empty_part_examples"]
        yield {"split": name, "number": split["empty_parts"], "what": "without any image", "for_example": examples}
