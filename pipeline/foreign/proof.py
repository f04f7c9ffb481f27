"""Prove which student prompts from outside belong to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from teachonce.errors import DataError, FingerprintError
from teachonce.foreign.prompts import ForeignPrompts
from teachonce.phrases import phrase
from teachonce.towers.image_tower import ImageTower
from teachonce.towers.text_tower import TextTower


def prove_student(
    prompts: ForeignPrompts, tower: TextTower, file: Path, model: Any = None, image: ImageTower | None = None
) -> bool:
    """Refuse a student that the prompts were not trained on.

    Args:
        tower: the student's text tower.
        file: where the prompts are from, for messages.
        model: the student, an open_clip model; needed where the file holds weights.
        image: the student's image tower; needed where the file holds image prompts.

    Returns:
        Whether the start token in the file, or every weight in it, is the student's own. False: the file has neither,
        and only the width fits.

    Raises:
        FingerprintError: the width, the context length, the start token or a weight belongs to another student.
        DataError: the context has more slots than leave room for a name.
    """
    slots, width = prompts.context.shape
    sizes_in_file = {"width": width, "context length": prompts.positions}
    sizes_of_student = {"width": tower.width, "context length": tower.context_length}
    for what, number in sizes_in_file.items():
        if number not in (None, sizes_of_student[what]):
            raise _other_student(file, f"{what} {number} there, {sizes_of_student[what]} here")
    if slots > tower.most_slots:
        raise DataError(
            f"{file}: {slots} slots leave no room for a name; this student has room for {tower.most_slots}",
            hint="give a run with fewer slots (TRAINER.COOP.N_CTX)",
        )
    if prompts.start is not None:
        if tower.start_embedding is None:
            raise _other_student(file, "its texts begin with a start token, this student's do not")
        off = _off(prompts.start, tower.start_embedding)
        if not off <= prompts.rounding:
            raise _other_student(file, f"the start token's embedding differs by {off:.0%} of its largest entry")
    if prompts.weights:
        _prove_weights(prompts, model, file)
    _require_room(file, "text", 1 + len(prompts.deeper), tower.layers)
    if prompts.image and image is not None:
        _require_room(file, "image", len(prompts.image), image.layers)
        width_there = prompts.image[0].shape[1]
        if width_there != image.width:
            raise _other_student(file, f"image width {width_there} there, {image.width} here")
    return prompts.start is not None or bool(prompts.weights)


def _prove_weights(prompts: ForeignPrompts, model: Any, file: Path) -> None:
    """Compare every weight in the file with the student's of the same name.

    Raises:
        FingerprintError: one is missing here, has another shape or other numbers.
    """
    weights: dict[str, Tensor] = model.state_dict()
    for name, there in prompts.weights.items():
        here = weights.get(name, weights.get(f"text.{name}"))
        if here is None:
            raise _other_student(file, f"it holds '{name}', which this student does not have")
        if here.shape != there.shape:
            raise _other_student(file, f"'{name}' is {list(there.shape)} there, {list(here.shape)} here")
        off = _off(there, here)
        if not off <= prompts.rounding:
            raise _other_student(file, f"'{name}' differs by {off:.1%} of its largest entry")


def _require_room(file: Path, tower: str, blocks: int, layers: int) -> None:
    if blocks > layers:
        raise _other_student(file, f"prompts for {blocks} blocks of the {tower} tower there, {layers} blocks here")


def _off(there: Tensor, here: Tensor) -> float:
    """The largest difference of two tensors, relative to the largest entry of the student's own."""
    expected = here.detach().float().cpu()
    return float((there.detach().float() - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def _other_student(file: Path, difference: str) -> FingerprintError:
    return FingerprintError(
        f"{file} was trained on another student: {difference}",
        hint=phrase("give the model it was trained on, such as {student} ViT-B-16/openai"),
    )
