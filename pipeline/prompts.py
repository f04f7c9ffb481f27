"""Learn, save and load prompts: the trainable parametrisation, and the two files that people take home.

It does not run the text tower's blocks (`text_tower` does) and fetches nothing except the student model itself.

Shapes: M slots, L blocks, D width, C names, E embedding.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as bytes_from_tensors
from torch import Tensor, nn

from teachonce.errors import FingerprintError, IntegrityError, TeachOnceError, UsageError
from teachonce.files import atomic_write_bytes
from teachonce.strict import decode
from teachonce.text_tower import SlotPrompts, TextTower

Structure = Literal["shared", "unshared"]
TENSORS_FILE = "prompts.safetensors"
META_FILE = "prompts.json"
_FORMAT = "teachonce-prompts-1"


def prompt_layers(structure: Structure, layers: int, depth: int) -> tuple[int, int]:
    """Blocks with a query prompt, and blocks with a key and a value prompt.

    The last block's slots are read through their keys and values only, so a query prompt there would be dead.

    Args:
        layers: L.
        depth: unshared: the first `depth` blocks carry prompts; 0 means all.

    Raises:
        UsageError: the tower has fewer blocks than `depth`.
    """
    if not 0 <= depth <= layers:
        raise UsageError(f"depth {depth} is out of range: the student's text tower has {layers} blocks (0 means all)")
    if structure == "shared":
        return 0, 0
    carrying = depth or layers
    return min(carrying, layers - 1), carrying


def expected_parameters(structure: Structure, slots: int, width: int, layers: int, depth: int) -> int:
    """How many numbers are trained: M D for `shared`; M D (1 + live query blocks + 2 depth) for `unshared`."""
    query_layers, carrying = prompt_layers(structure, layers, depth)
    return slots * width * (1 + query_layers + 2 * carrying)


class PromptLearner(nn.Module):
    """Trainable prompts on a frozen text tower. Before the first step they equal the hand-written context exactly.

    Every parameter starts at zero and is measured in units of sigma_l, the size of the hand-written slot states at
    its block, which differ a hundredfold between blocks; so one step size suits all of them:
    context = words + sigma_0 * delta, P[l] = sigma_l * parameter[l].

    Args:
        tower: the student's.
        structure: shared: the context at the input only (CoOp, POMP). unshared: besides, query, key and value prompts
            in the first `depth` blocks (RPP, arXiv 2409.06166, carried).
        context: words whose tokens are the slots.
        depth: 0 means all blocks; without effect for `shared`.

    Raises:
        UsageError: an empty or too long context, a depth beyond the tower.
    """

    words: Tensor
    scales: Tensor

    def __init__(self, tower: TextTower, structure: Structure, context: str, depth: int = 0) -> None:
        super().__init__()
        query_layers, carrying = prompt_layers(structure, tower.layers, depth)
        # Both follow from the student and the context: a checkpoint need not hold them.
        self.register_buffer("words", tower.embed_words(context).detach().clone(), persistent=False)
        self.register_buffer("scales", tower.slot_scales(context), persistent=False)
        slots, width = self.words.shape
        self.context = nn.Parameter(torch.zeros_like(self.words))
        self.query = self._stack(query_layers)
        self.key = self._stack(carrying)
        self.value = self._stack(carrying)
        expected = expected_parameters(structure, slots, width, tower.layers, depth)
        if self.trainable_parameters() != expected:
            raise TeachOnceError(f"{self.trainable_parameters()} parameters were made where {expected} were expected")

    def forward(self) -> SlotPrompts:
        """The prompts in the tower's own units, in the autograd graph of the parameters."""
        context = self.words + self.scales[0] * self.context
        return SlotPrompts(context, self._scaled(self.query), self._scaled(self.key), self._scaled(self.value))

    def trainable_parameters(self) -> int:
        """The exact number of numbers that are trained."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)

    def _stack(self, layers: int) -> nn.Parameter | None:
        if layers == 0:
            return None
        return nn.Parameter(self.words.new_zeros(layers, *self.words.shape))

    def _scaled(self, stack: Tensor | None) -> Tensor | None:
        if stack is None:
            return None
        return self.scales[: len(stack), None, None] * stack


@dataclass(frozen=True, kw_only=True)
class PromptMeta:
    """What prompts were made for, and with."""

    structure: Structure
    context: str  # the words that the slots began as
    slots: int  # M
    depth: int  # blocks that carry prompts, 0 for `shared`
    width: int  # D
    layers: int  # L
    student: str  # model spec, as `load_clip` takes it
    student_digest: str  # of the student's weights, as `load_clip` gives it
    suffix: str  # what follows a name
    version: str  # of this project


@dataclass(frozen=True)
class LoadedPrompts:
    """Prompts that are whole and unchanged since they were saved."""

    prompts: SlotPrompts
    meta: PromptMeta
    model: str
    """The student that `classifier` loads."""

    def classifier(self, names: Sequence[str]) -> Tensor:
        """Unit text features of class names, [C, E] float32. The first call loads the student.

        Raises:
            FingerprintError: the student's weights are not the ones the prompts were trained on.
            UsageError: no names; a name that is empty or too long.
        """
        from teachonce.zeroshot import prompted_features  # brings open_clip, as the student does

        tokens = self._tower.tokenise(names, self.meta.suffix, self.meta.slots)
        return prompted_features(self._tower, self.prompts, tokens)

    @cached_property
    def _tower(self) -> TextTower:
        from teachonce.clip_models import load_clip  # models are loaded only by those who ask for features

        clip = load_clip(self.model)
        if clip.digest != self.meta.student_digest:
            raise FingerprintError(
                f"these prompts belong to a student with weights {self.meta.student_digest} ({self.meta.student}), "
                f"but '{self.model}' has weights {clip.digest}",
                hint=f"load the student they were trained on: {self.meta.student}",
            )
        return TextTower.from_clip(clip.model, clip.tokenizer)


def save_prompts(folder: Path, prompts: SlotPrompts, meta: PromptMeta) -> None:
    """Write `prompts.safetensors` (float32) and `prompts.json` into a folder, each in one piece.

    The JSON goes last and holds the digest of the tensors: if it is there and agrees, both are whole.

    Raises:
        EnvironmentFault: the folder cannot be written to.
        TeachOnceError: the metadata do not describe the prompts.
    """
    tensors = {name: x.detach().float().cpu().contiguous() for name, x in vars(prompts).items() if x is not None}
    if not _fits(tensors, meta):
        raise TeachOnceError(f"prompts of shapes {_shapes(tensors)} are not what {meta} describes")
    data = bytes_from_tensors(tensors)
    body = {"format": _FORMAT, "tensors_sha256": hashlib.sha256(data).hexdigest(), "meta": dataclasses.asdict(meta)}
    document = {**body, "document_sha256": _document_digest(body)}
    atomic_write_bytes(folder / TENSORS_FILE, data)
    atomic_write_bytes(folder / META_FILE, (json.dumps(document, indent=2) + "\n").encode())


def load_prompts(folder: str | Path, model: str | None = None) -> LoadedPrompts:
    """Read saved prompts and check that they are whole. No model is loaded and no network is used.

    Args:
        folder: a run folder or an exported one.
        model: where the student is, if not where it was in training; its weights must be the same.

    Raises:
        UsageError: no prompts in the folder.
        IntegrityError: a file was changed, cut short, or is not one of this project.
    """
    folder = Path(folder)
    document = _read_document(folder / META_FILE)
    meta = decode(PromptMeta, document["meta"], f"{folder / META_FILE}: meta", IntegrityError)
    file = folder / TENSORS_FILE
    data = _read(file)
    _compare(file, document["tensors_sha256"], hashlib.sha256(data).hexdigest())
    try:
        tensors = tensors_from_bytes(data)
    except SafetensorError as problem:
        raise IntegrityError(f"{file} is not a safetensors file: {problem}") from problem
    if not _fits(tensors, meta):
        raise IntegrityError(f"{file} holds {_shapes(tensors)}, which is not what {META_FILE} describes: {meta}")
    return LoadedPrompts(SlotPrompts(**tensors), meta, model or meta.student)


def _read_document(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(_read(file))
    except ValueError as problem:
        raise IntegrityError(f"{file} is not valid JSON: {problem}") from problem
    keys = {"format", "tensors_sha256", "meta", "document_sha256"}
    if not isinstance(document, dict) or set(document) != keys or document["format"] != _FORMAT:
        raise IntegrityError(f"{file} is not a description of prompts: expected the format {_FORMAT}")
    body = {key: value for key, value in document.items() if key != "document_sha256"}
    _compare(file, document["document_sha256"], _document_digest(body))
    return document


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as problem:
        raise UsageError(
            f"cannot read {file}: {problem.strerror or problem}",
            hint=f"give a folder with {TENSORS_FILE} and {META_FILE}: a run of `teachonce train`, or an export of one",
        ) from problem


def _compare(file: Path, expected: object, found: str) -> None:
    if expected != found:
        raise IntegrityError(
            f"{file} is not what was written: its SHA-256 should be {expected} and is {found}",
            hint="copy it again, or export it again from its run",
        )


def _document_digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _fits(tensors: dict[str, Tensor], meta: PromptMeta) -> bool:
    """Whether there are exactly the tensors, of exactly the shapes, that the metadata tell of."""
    query_layers, carrying = prompt_layers(meta.structure, meta.layers, meta.depth)
    stacks = {"query": query_layers, "key": carrying, "value": carrying}
    expected = {name: (layers, meta.slots, meta.width) for name, layers in stacks.items() if layers}
    return _shapes(tensors) == {"context": (meta.slots, meta.width), **expected}


def _shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(x.shape) for name, x in tensors.items()}
