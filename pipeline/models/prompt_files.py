"""Save and load prompts: the two files that people take home.

It trains nothing (`learner` does), runs nothing (`classifier` does) and fetches nothing but the files of a hub id.

Shapes: M slots, L blocks, D width, B images, C names, E embedding.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as bytes_from_tensors
from torch import Tensor

from teachonce.core.digests import canonical_digest
from teachonce.core.documents import json_in
from teachonce.core.files import atomic_write_bytes
from teachonce.core.hub import fetch, hub_id_of
from teachonce.core.outside import read_plain, tensor_header
from teachonce.core.strict import decode
from teachonce.core.sums import AGAIN, SUMS_FILE, require_unchanged
from teachonce.data.vocabulary import shown
from teachonce.errors import (
    FingerprintError,
    IncompleteError,
    IntegrityError,
    TeachOnceError,
    UsageError,
)
from teachonce.heads.heads import head_of, scored_images
from teachonce.heads.verbs import Head
from teachonce.models.prompt_names import CHECKPOINTS_FOLDER, CONFIG_FILE, EXPORTED, META_FILE, TENSORS_FILE
from teachonce.models.prompts import PromptMeta
from teachonce.models.spec import unlike
from teachonce.phrases import option
from teachonce.towers.slots import SlotPrompts
from teachonce.towers.structures import REPLACING, Structure

if TYPE_CHECKING:
    from teachonce.models.classifier import PromptsAtWork
    from teachonce.models.clip import LoadedClip

_FORMAT = "teachonce-prompts-2"  # tensors `text.context`, `text.key`, ..., `image.context`, ...
_FIRST_FORMAT = "teachonce-prompts-1"  # text prompts only, tensors without a tower's name

OF_HEAD = "head."  # what the names of a head's tensors begin with
_MOST_BYTES = 1 << 30  # of either file; prompts of the largest towers have some 10 MB
_MOST_HEADER = 1 << 20

LONGEST_NAME = 255  # characters between two slashes; no file system takes more

_PLACE = (
    f"give a folder with {TENSORS_FILE} and {META_FILE}: a run of `teachonce train`, or an export of one; or "
    "OWNER/NAME, OWNER/NAME@REVISION on the hub"
)


@dataclass(frozen=True)
class LoadedPrompts:
    """Prompts that are whole and unchanged since they were saved."""

    text: SlotPrompts | None
    image: SlotPrompts | None
    meta: PromptMeta
    model: str
    """The student that `classifier` loads."""
    tensors_digest: str
    """SHA-256 (hex) of prompts.safetensors."""
    student: LoadedClip | None = None
    """The student, where it is loaded already."""
    head: Head | None = None
    """What was trained behind the towers."""

    def classifier(self, names: Sequence[str]) -> Tensor:
        """Unit text features of class names, [C, E] float32. The first call loads the student.

        Prompts of the image tower alone go with the names in the hand-written context, in front of them. A head that
        is class vectors is in them: of names that it knows they are moved, of all others they are as without it. A
        handicap of the names that it knows is in `scoring_classes` and `logits` only; a warning says so where both
        kinds of names compete.

        Raises:
            FingerprintError: the student's weights are not the ones the prompts were trained on.
            UsageError: no list of names; a name that is no text, blank or too long; a head that is no class vectors.
        """
        if self.meta.head is not None and not self.meta.head.is_class_vectors:
            raise UsageError(
                f"no class vectors stand for the head '{self.meta.head.kind}' of these prompts: it changes image "
                "features or logits",
                hint="logits(image_features, names) gives what these prompts and their head make of images",
            )
        return self._at_work.unit_features(names)

    def logits(self, image_features: Tensor, names: Sequence[str]) -> Tensor:
        """The logits of images among class names with prompts and head, whatever the head is, [B, C] float32.

        Args:
            image_features: [B, E] of unit length, as `image_features` or the student's own image tower gives them.
            names: C class names; the first call loads the student.

        Raises:
            FingerprintError, UsageError: as `classifier`; a head that is no class vectors is no reason here.
        """
        return self._at_work.logits(image_features, names)

    def scoring_classes(self, names: Sequence[str]) -> Tensor:
        """Vectors of class names that go with `scoring_images`, [C, S] float32; raises as `logits`.

        The logits are the student's scale times their products. Without a head, and with heads that are class vectors,
        they are `classifier`'s; other heads have entries of their own behind the embedding's.
        """
        return self._at_work.class_features(names)

    def scoring_images(self, image_features: Tensor) -> Tensor:
        """Vectors of images that go with `scoring_classes`, [B, S] float32; no student is loaded.

        Args:
            image_features: [B, E] of unit length, as `image_features` or the student's own image tower gives them.
        """
        return image_features if self.head is None else scored_images(self.head, image_features)

    def image_features(self, pixels: Tensor) -> Tensor:
        """Unit image features of prepared images [B, 3, H, W], [B, E] float32. The first call loads the student.

        Raises:
            FingerprintError: the student's weights are not the ones the prompts were trained on.
        """
        return self._at_work.image_features(pixels)

    def bound_to(self, clip: LoadedClip) -> LoadedPrompts:
        """The same prompts on a student that is loaded already.

        Raises:
            FingerprintError: its weights, tokenizer, preprocessing or pooling are not those that the prompts were
                trained with.
        """
        if clip.digest != self.meta.student_digest:
            raise FingerprintError(
                f"these prompts belong to a student with weights {self.meta.student_digest} ({self.meta.student}), "
                f"but '{clip.spec}' has weights {clip.digest}",
                hint=f"load the student they were trained on: {self.meta.student}",
            )
        parts = unlike(self.meta.student_behaviour, clip.behaviour)
        if parts:
            raise FingerprintError(
                f"these prompts were trained on {self.meta.student} with another {parts} than '{clip.spec}' has; the "
                "weights are the same",
                hint="load the model as it was in training, with its own configuration and tokenizer files",
            )
        return dataclasses.replace(self, student=clip)

    @cached_property
    def _at_work(self) -> PromptsAtWork:
        from teachonce.models.classifier import PromptsAtWork  # brings open_clip: only for those who ask for features

        return PromptsAtWork(self)


def save_prompts(
    folder: Path, text: SlotPrompts | None, image: SlotPrompts | None, meta: PromptMeta, head: Head | None = None
) -> None:
    """Write `prompts.safetensors` (float32) and `prompts.json` into a folder, each in one piece.

    The JSON goes last and holds the digest of the tensors: if it is there and agrees, both are whole.

    Raises:
        IncompleteError, EnvironmentFault: the folder cannot be written to.
        TeachOnceError: the metadata do not describe the prompts.
    """
    towers = {"text": text, "image": image}
    tensors = {
        f"{tower}.{name}": x.detach().float().cpu().contiguous().clone()  # letters of one state are each kept
        for tower, prompts in towers.items()
        if prompts is not None
        for name, x in prompts.tensors().items()
    }
    of_head = {} if head is None else head.tensors()
    tensors |= {f"{OF_HEAD}{name}": x.detach().float().cpu().contiguous() for name, x in of_head.items()}
    if _shapes(tensors) != _expected_shapes(meta):
        raise TeachOnceError(f"prompts of shapes {_shapes(tensors)} are not what {meta} describes")
    data = bytes_from_tensors(tensors)
    body = {"format": _FORMAT, "tensors_sha256": hashlib.sha256(data).hexdigest(), "meta": _written(meta)}
    document = {**body, "document_sha256": canonical_digest(body)}
    atomic_write_bytes(folder / TENSORS_FILE, data)
    atomic_write_bytes(folder / META_FILE, (json.dumps(document, indent=2) + "\n").encode())


def load_prompts(folder: str | Path, model: str | None = None) -> LoadedPrompts:
    """Read saved prompts and check that they are whole. No model is loaded; the network is used for a hub id only.

    Args:
        folder: a run folder or an exported one; or `OWNER/NAME`, `OWNER/NAME@REVISION` on the Hugging Face hub, where
            no such folder is here (`hf-hub:` before it says so outright).
        model: where the student is, if not where it was in training; its weights must be the same.

    Raises:
        UsageError: no prompts in the folder, no such folder or repository.
        IncompleteError: the run in the folder is not finished.
        IntegrityError: a file was changed, cut short, or is not one of this project.
        EnvironmentFault: the hub cannot be reached.
    """
    folder = _folder_of(folder)
    _require_finished(folder)
    require_unchanged(folder, EXPORTED)
    document = _read_document(folder / META_FILE)
    meta = decode(PromptMeta, document["meta"], f"{folder / META_FILE}: meta", IntegrityError)
    tensors = _tensors(folder / TENSORS_FILE, document, meta)
    text, image = (_prompts_of(tower, tensors, meta.structure) for tower in ("text", "image"))
    return LoadedPrompts(
        text, image, meta, model or meta.student, document["tensors_sha256"], head=_head_of(meta, tensors)
    )


def _written(meta: PromptMeta) -> dict[str, Any]:
    """The metadata as the file has them; files of prompts without a head are those of versions that knew none."""
    fields = dataclasses.asdict(meta)
    return fields if meta.head is not None else {key: value for key, value in fields.items() if key != "head"}


def _head_of(meta: PromptMeta, tensors: dict[str, Tensor]) -> Head | None:
    if meta.head is None:
        return None
    of_head = {name.removeprefix(OF_HEAD): x for name, x in tensors.items() if name.startswith(OF_HEAD)}
    return head_of(meta.head).load(of_head).requires_grad_(False)


def _tensors(file: Path, document: dict[str, Any], meta: PromptMeta) -> dict[str, Tensor]:
    """The tensors of a file, which is read and unpacked only where its size and its header are as described."""
    wanted, tower = _expected_shapes(meta) or {}, "text." if document["format"] == _FIRST_FORMAT else ""
    most = min(_MOST_BYTES, sum(4 * math.prod(shape) for shape in wanted.values()) + _MOST_HEADER)
    data = _read(file, most)
    _compare(file, document["tensors_sha256"], hashlib.sha256(data).hexdigest())
    try:
        header = {tower + name: spec for name, spec in tensor_header(file).items()}
        if {name: (spec.dtype, spec.shape) for name, spec in header.items()} != {
            name: ("F32", shape) for name, shape in wanted.items()
        }:
            raise IntegrityError(f"{file} holds {header}, which is not what {META_FILE} describes: {meta}")
        return {tower + name: x for name, x in tensors_from_bytes(data).items()}
    except (SafetensorError, ValueError, OSError) as problem:
        raise IntegrityError(f"{file} is not a safetensors file: {problem}") from problem


def _folder_of(place: str | Path) -> Path:
    hub_id = hub_id_of(place)
    if hub_id is not None:
        return fetch(hub_id, (META_FILE, TENSORS_FILE, SUMS_FILE))
    if not str(place) or not os.path.isdir(place):  # also of names that no system takes: too long, with a NUL
        no_id = ", nor is it an id OWNER/NAME of the Hugging Face hub" if isinstance(place, str) else ""
        raise UsageError(f"cannot read prompts from {_quoted(str(place))}: there is no such folder{no_id}", hint=_PLACE)
    return Path(place)


def _quoted(place: str) -> str:
    """Return a path in quotes, whole, so that it can be copied; text too long to be a path anywhere loses its end."""
    too_long = max(map(len, place.split("/"))) > LONGEST_NAME
    return shown(place) if too_long else repr(place)


def _require_finished(folder: Path) -> None:
    """Refuse a run that was stopped: it has checkpoints and no prompts yet."""
    begun = (folder / CHECKPOINTS_FOLDER).is_dir() and (folder / CONFIG_FILE).is_file()
    if begun and not (folder / META_FILE).exists():
        raise IncompleteError(
            f"{folder} is a run that is not finished: it has no prompts yet",
            hint=f"teachonce status {folder} says where it is; `train " + option("resume") + "` ends it",
        )


def _prompts_of(tower: str, tensors: dict[str, Tensor], structure: Structure) -> SlotPrompts | None:
    tower_tensors = {name.removeprefix(f"{tower}."): x for name, x in tensors.items() if name.startswith(f"{tower}.")}
    return SlotPrompts(**{"context": None, **tower_tensors}, replace=structure in REPLACING) if tower_tensors else None


def _read_document(file: Path) -> dict[str, Any]:
    try:
        document = json_in(_read(file))
    except ValueError as problem:
        raise IntegrityError(f"{file} is not valid JSON: {problem}", hint=AGAIN) from problem
    keys = {"format", "tensors_sha256", "meta", "document_sha256"}
    known = (_FORMAT, _FIRST_FORMAT)
    if not isinstance(document, dict) or set(document) != keys or document["format"] not in known:
        raise IntegrityError(
            f"{file} is not a description of prompts: expected the format {' or '.join(known)}", hint=AGAIN
        )
    body = {key: value for key, value in document.items() if key != "document_sha256"}
    _compare(file, document["document_sha256"], canonical_digest(body))
    return document


def _read(file: Path, most: int = _MOST_BYTES) -> bytes:
    try:
        return read_plain(file, most)
    except OSError as problem:
        raise UsageError(
            f"cannot read {file}: {problem.strerror or problem}",
            hint=_PLACE,
        ) from problem


def _compare(file: Path, expected: object, actual: str) -> None:
    if expected != actual:
        raise IntegrityError(
            f"{file} is not what was written: its SHA-256 should be {expected} and is {actual}",
            hint=AGAIN,
        )


def _expected_shapes(meta: PromptMeta) -> dict[str, tuple[int, ...]] | None:
    """Exactly the tensors, of exactly the shapes, that the metadata tell of; None if no tower could be so."""
    try:
        return meta.shapes()
    except UsageError:
        return None


def _shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(x.shape) for name, x in tensors.items()}
