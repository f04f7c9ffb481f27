"""Files that hold prompts of both towers, replaced block by block: MaPLe and PromptSRC.

MaPLe: arXiv 2210.03117; PromptSRC: arXiv 2307.06948, whose structure is independent prompts in both towers (IVLP).

The state dict is that of the whole model: `prompt_learner.*`, and the frozen student's own weights, which prove the
student, as `text_encoder.*` and `image_encoder.*`. The text slots hold `prompt_learner.ctx` at the input, and block i
of the first J replaces their states:
    MaPLe      by `prompt_learner.compound_prompts_text.{i-1}`. The image slots are linear maps of the same prompts,
               `prompt_learner.proj` of the first and `prompt_learner.compound_prompt_projections.{i-1}` of the others.
    PromptSRC  by `text_encoder.transformer.resblocks.{i}.VPT_shallow`. The image slots are `image_encoder.VPT` at the
               input and `image_encoder.transformer.resblocks.{i}.VPT_shallow`.
In both, image slots at the input pass through the tower's first norm (`ln_pre`), later ones do not.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from teachonce.errors import DataError
from teachonce.foreign.checkpoint import Checkpoint, is_plain, shape_of
from teachonce.foreign.prompts import ForeignPrompts, Method

_LEARNER = "prompt_learner."
_CONTEXT = _LEARNER + "ctx"
_FROZEN_COPY = _LEARNER + "ZS_image_encoder."  # PromptSRC's second, unprompted image tower, for its losses alone
_TEXT_MAPPED = _LEARNER + "compound_prompts_text.{}"
_MAP = _LEARNER + "compound_prompt_projections.{}"
_FIRST_MAP = _LEARNER + "proj"
_FIRST_IMAGE = "image_encoder.VPT"
_DEEPER = "{}.transformer.resblocks.{}.VPT_shallow"
# The student's own names: both projects take an OpenAI CLIP apart.
_STUDENT = {"image_encoder.": "visual.", "text_encoder.": "", "logit_scale": "logit_scale"}
_HALF = 2.0**-10  # relative; what was kept in float16 is off by half of it
_SUMMED = 2.0**-7  # PromptSRC adds its model up over epochs in float16, frozen weights and all


def is_whole_model(checkpoint: Checkpoint) -> bool:
    """Whether the state dict is that of a whole model with a context, not of a prompt learner alone."""
    towers = ("text_encoder.", "image_encoder.")
    return _CONTEXT in checkpoint.state and any(str(name).startswith(towers) for name in checkpoint.state)


def both_towers(checkpoint: Checkpoint) -> ForeignPrompts:
    """Read the prompts of MaPLe or PromptSRC.

    Raises:
        DataError: as `read_foreign` has it; or a block's prompts are missing between others.
    """
    mapped = _FIRST_MAP + ".weight" in checkpoint.state
    method: Method = "MaPLe" if mapped else "PromptSRC"
    context = checkpoint.slots(_CONTEXT)
    names, deeper, image = _mapped(checkpoint, context) if mapped else _independent(checkpoint, context)
    weights = {here: value for _, here, value in _of_student(checkpoint, names)}
    used = [name for name in checkpoint.state if _own_name(str(name)) in weights or str(name).startswith(_FROZEN_COPY)]
    around = [_LEARNER + "token_prefix", _LEARNER + "token_suffix"]
    checkpoint.require_used([*used, *names, *around, _CONTEXT], f"the prompts of {method}")
    start, positions = checkpoint.around(context, _LEARNER)
    return ForeignPrompts(
        method=method,
        context=context,
        deeper=tuple(deeper),
        image=tuple(image),
        start=start,
        positions=positions,
        weights=weights,
        rounding=_HALF if mapped else _SUMMED,
        epoch=checkpoint.epoch,
        digest=checkpoint.digest,
    )


def _mapped(checkpoint: Checkpoint, context: Tensor) -> tuple[list[str], list[Tensor], list[Tensor]]:
    """MaPLe: names of what is used, text prompts behind the first block, image prompts."""
    blocks = _counted(checkpoint, _TEXT_MAPPED, 0)
    texts = [_TEXT_MAPPED.format(i) for i in blocks]
    maps = [_FIRST_MAP, *(_MAP.format(i) for i in blocks)]
    missing = [name for linear in maps for part in _parts(linear) if (name := part) not in checkpoint.state]
    if missing:
        raise DataError(
            f"{checkpoint.file}: the linear maps of MaPLe's prompts are not whole: {', '.join(missing)} missing"
        )
    deeper = [checkpoint.slots(name, *context.shape) for name in texts]
    image = [_linear(checkpoint, linear, prompt) for linear, prompt in zip(maps, [context, *deeper], strict=True)]
    if len({prompt.shape for prompt in image}) != 1:
        raise DataError(f"{checkpoint.file}: MaPLe's linear maps lead to widths {[x.shape[1] for x in image]}")
    return [*texts, *(part for linear in maps for part in _parts(linear))], deeper, image


def _independent(checkpoint: Checkpoint, context: Tensor) -> tuple[list[str], list[Tensor], list[Tensor]]:
    """PromptSRC: the same."""
    texts = [_DEEPER.format("text_encoder", i) for i in _counted(checkpoint, _DEEPER.format("text_encoder", "{}"), 1)]
    images = [
        _DEEPER.format("image_encoder", i) for i in _counted(checkpoint, _DEEPER.format("image_encoder", "{}"), 1)
    ]
    deeper = [checkpoint.slots(name, *context.shape) for name in texts]
    if _FIRST_IMAGE not in checkpoint.state:
        if images:
            raise DataError(f"{checkpoint.file} holds {images[0]!r} and lacks {_FIRST_IMAGE!r}, the first block's")
        return texts, deeper, []
    first = checkpoint.slots(_FIRST_IMAGE)
    return [*texts, _FIRST_IMAGE, *images], deeper, [first, *(checkpoint.slots(name, *first.shape) for name in images)]


def _counted(checkpoint: Checkpoint, name: str, first: int) -> range:
    """The numbers for which entries exist, which follow each other.

    Raises:
        DataError: a number is left out.
    """
    start, _, end = name.partition("{}")
    middle = [str(n)[len(start) : len(str(n)) - len(end)] for n in checkpoint.state if _has_number(str(n), start, end)]
    numbers = sorted(map(int, middle))
    if numbers != list(range(first, first + len(numbers))):
        raise DataError(
            f"{checkpoint.file}: expected {name.format('N')!r} for N = {first}, {first + 1}, ... without a gap, "
            f"found N = {', '.join(map(str, numbers))}"
        )
    return range(first, first + len(numbers))


def _has_number(name: str, start: str, end: str) -> bool:
    middle = name[len(start) : len(name) - len(end)]
    fits = name.startswith(start) and name.endswith(end)
    return fits and middle.isdecimal() and middle.isascii() and str(int(middle)) == middle


def _parts(linear: str) -> tuple[str, str]:
    return f"{linear}.weight", f"{linear}.bias"


def _linear(checkpoint: Checkpoint, linear: str, prompt: Tensor) -> Tensor:
    """A prompt through one of MaPLe's linear maps, [M, W]."""
    weight, bias = (checkpoint.prompt(name) for name in _parts(linear))
    if weight.ndim != 2 or weight.shape[1] != prompt.shape[1] or bias.shape != weight.shape[:1]:
        raise DataError(
            f"{checkpoint.file}: expected '{linear}' from width {prompt.shape[1]}, found {shape_of(weight)} with a "
            f"bias of {shape_of(bias)}"
        )
    return prompt @ weight.T + bias


def _of_student(checkpoint: Checkpoint, prompts: Iterable[str]) -> Iterable[tuple[str, str, Tensor]]:
    """The frozen student's weights in the file: name there, the student's own name, numbers."""
    taken = set(prompts)
    for name, value in checkpoint.state.items():
        here = _own_name(str(name))
        if here and name not in taken and "VPT" not in name:
            yield str(name), here, _plain(checkpoint, str(name), value)


def _plain(checkpoint: Checkpoint, name: str, value: Any) -> Tensor:
    if not is_plain(value):
        raise DataError(f"{checkpoint.file}: '{name}' is no tensor of floating-point numbers: found {shape_of(value)}")
    weights: Tensor = value
    return weights


def _own_name(name: str) -> str:
    """What the student itself calls a weight of the file; empty for what is none."""
    for start, here in _STUDENT.items():
        if name.startswith(start):
            return here + name[len(start) :]
    return ""
