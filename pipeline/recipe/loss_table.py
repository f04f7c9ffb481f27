"""The keys of `[loss]`: what a step minimises.

At each key stand its range, the source of its default, and when it does nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from teachonce.core.strict import LATER, OURS, Above, AtLeast, Between, Idle, Source, Table, idle
from teachonce.models.prompts import NOT_IMAGE

NO_SOFT_LOSS = idle(supervision="hard")
WEIGHT_0 = idle(soft_weight=0)  # of the soft loss
BETWEEN_TEMPLATES = "|"
"""What stands between the templates of `bare_templates`."""


def _no_bare_student(values: Mapping[str, Any]) -> bool:
    """Whether nothing is held near the bare student."""
    anchored = values["anchor_weight"] > 0 and values["tower"] != "image"
    return not (anchored or values["consistency_weight"] > 0 or values["prograd"])


def _no_kl(values: Mapping[str, Any]) -> bool:
    """Whether no divergence counts."""
    soft = values["supervision"] != "hard" and values["soft_weight"] > 0
    return not (soft or values["consistency_weight"] > 0)


@dataclass(frozen=True, kw_only=True)
class Loss(Table):
    """What a step minimises."""

    supervision: Annotated[
        Literal["hard", "hard+soft", "soft"],
        Source("RPP: soft labels of a zero-shot teacher in addition to the hard ones"),
    ] = "hard+soft"
    """hard: cross-entropy with the label. soft: KL to the stored teacher. hard+soft: their weighted sum."""
    soft_weight: Annotated[float, AtLeast(0), NO_SOFT_LOSS, OURS] = 1.0
    """lambda in CE + lambda * tau^2 * KL."""
    soft_schedule: Annotated[Literal["constant", "rise", "fall"], NO_SOFT_LOSS, WEIGHT_0, OURS] = "constant"
    """lambda over the run: as it is, linearly from 0, or linearly to 0."""
    temperature: Annotated[float, Above(0), NO_SOFT_LOSS, WEIGHT_0, OURS] = 1.0
    """tau: softens the student, and the teacher where `teacher_temperature` is 0, in the KL term."""
    teacher_temperature: Annotated[float, AtLeast(0), NO_SOFT_LOSS, WEIGHT_0, Source("ours: as temperature")] = 0.0
    """Softens the teacher; 0: as `temperature`. From stored top k it must be one that the store holds a tail for."""
    targets: Annotated[Literal["top-k", "embedding"], NO_SOFT_LOSS, WEIGHT_0, Source("ours: what every store has")] = (
        "top-k"
    )
    """top-k: the stored classes and a tail rule. embedding: exact teacher logits of any class, at any temperature."""
    tail: Annotated[
        Literal["ghost", "residual-uniform", "to-label", "renormalise"],
        NO_SOFT_LOSS,
        WEIGHT_0,
        idle(targets="embedding"),
        Source("ours: one lumped class for what the store does not name"),
    ] = "ghost"
    """top-k: what the teacher's mass outside its stored classes means: one lumped class; spread over all others; added
    to the label; or nothing (teacher and student over the stored classes only)."""
    label_smoothing: Annotated[float, Between(0, 1), OURS] = 0.0
    """Share of the hard label that is spread over the whole vocabulary."""
    hard_over: Annotated[Literal["all", "seen"], idle(supervision="soft"), OURS] = "all"
    """seen: only classes with samples compete in the hard loss; other names take part in the soft loss and in what
    follows, so that cross-entropy does not teach that they never occur."""
    anchor_weight: Annotated[
        float,
        AtLeast(0),
        NOT_IMAGE,
        Source("ours; KgCoOp (arXiv 2303.13283) uses 8. Holds unseen classes: docs/study.md"),
    ] = 5.0
    """mu: times the mean squared distance of class features from those of the template (KgCoOp, arXiv 2303.13283)."""
    anchor_form: Annotated[
        Literal["squared", "l1"], NOT_IMAGE, idle(anchor_weight=0), Source("KgCoOp; PromptSRC: l1"), LATER
    ] = "squared"
    """squared: as above. l1: the mean over names and dimensions of the absolute difference (PromptSRC, arXiv
    2307.06948, as its code has it; the paper's equation 2 sums over dimensions)."""
    bare_templates: Annotated[
        str,
        Idle(("anchor_weight", "consistency_weight", "prograd"), _no_bare_student),
        Source("ours: the one that the context makes; PromptSRC: 60 of CLIP's"),
        LATER,
    ] = ""
    """Templates with one {} each and | between them: what is held near the bare student is held near the mean of these
    (PromptSRC's textual diversity). Empty: the context's."""
    kl_mean: Annotated[
        Literal["rows", "rows-and-classes"],
        Idle(("supervision", "consistency_weight"), _no_kl),
        Source("ours; the codes of PromptSRC and PromptKD divide by classes as well"),
        LATER,
    ] = "rows"
    """What divergences are means over. rows-and-classes: they are divided by the number of candidates besides, as the
    codes of PromptSRC and PromptKD do it, whose weights are meant for that."""
    consistency_weight: Annotated[float, AtLeast(0), Source("PromptSRC (arXiv 2307.06948); off")] = 0.0
    """beta: times KL from the frozen student's own zero-shot softmax (PromptSRC, arXiv 2307.06948)."""
    prograd: Annotated[bool, Source("ProGrad (arXiv 2205.14865); off")] = False
    """Drop the part of the hard loss's gradient that opposes the frozen student's (ProGrad, arXiv 2205.14865)."""

    @property
    def uses_frozen(self) -> bool:
        """Whether the frozen student's own zero-shot softmax takes part."""
        return self.prograd or self.consistency_weight > 0

    @property
    def bare_sentences(self) -> tuple[str, ...]:
        """`bare_templates` one by one; empty where they are the context's."""
        parts = (part.strip() for part in self.bare_templates.split(BETWEEN_TEMPLATES))
        return tuple(part for part in parts if part)

    @property
    def tau_teacher(self) -> float:
        """The temperature of the teacher."""
        return self.teacher_temperature or self.temperature
