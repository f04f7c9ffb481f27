"""The keys of `[loss]`: what a step minimises.

At each key stand its range, the source of its default, and when it does nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from teachonce.core.strict import (
    LATER,
    OURS,
    Above,
    AtLeast,
    AtMost,
    Between,
    Idle,
    Source,
    Table,
    idle,
    idle_unless,
)
from teachonce.models.prompts import NOT_IMAGE

NO_SOFT_LOSS = idle(supervision="hard")
WEIGHT_0 = idle(soft_weight=0)  # of the soft loss
BETWEEN_TEMPLATES = "|"
"""What stands between the templates of `bare_templates`."""


def _no_bare_student(values: Mapping[str, Any]) -> bool:
    """Whether nothing is held near the bare student."""
    anchored = values["anchor_weight"] > 0 and values["tower"] in ("text", "both")
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
    soft_loss: Annotated[
        Literal["kl", "reverse-kl", "js", "symmetric", "ranking"],
        NO_SOFT_LOSS,
        WEIGHT_0,
        Source("Hinton et al. (arXiv 1503.02531); KDPL: symmetric"),
        LATER,
    ] = "kl"
    """How the student is compared with the teacher. kl: KL(teacher || student). reverse-kl: KL(student || teacher). js:
    Jensen-Shannon. symmetric: half of each KL (KDPL, arXiv 2407.03056). ranking: the teacher's order, weighted by its
    probabilities (PLD, arXiv 2506.12542). All over the same rows, candidates and tails, times tau^2."""
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
    hard_loss: Annotated[Literal["ce", "gce"], idle(supervision="soft"), OURS, LATER] = "ce"
    """ce: cross-entropy with the label. gce: generalised cross-entropy (arXiv 1805.07836), in which a label pulls the
    less, the less the student believes it."""
    gce_q: Annotated[
        float,
        Above(0),
        AtMost(1),
        idle_unless(hard_loss="gce"),
        idle(supervision="soft"),
        Source("the value of arXiv 1805.07836"),
        LATER,
    ] = 0.7
    """q in (1 - p^q) / q: near 0 as cross-entropy, at 1 as the mean absolute error, which outliers pull least."""
    label_smoothing: Annotated[float, Between(0, 1), OURS] = 0.0
    """Share of the hard label that is spread over the whole vocabulary."""
    hard_over: Annotated[Literal["all", "seen"], idle(supervision="soft"), OURS] = "all"
    """seen: only classes with samples compete in the hard loss; other names take part in the soft loss and in what
    follows, so that cross-entropy does not teach that they never occur."""
    image_noise: Annotated[float, AtLeast(0), Source("ours; Bishop 1995, CapDec (arXiv 2211.00575)"), LATER] = 0.0
    """Expected length of the normal noise that each step adds to the unit image features behind the hard and soft
    losses, which are made unit again. What is evaluated has none."""
    name_noise: Annotated[float, AtLeast(0), Source("ours; Bishop 1995, CapDec (arXiv 2211.00575)"), LATER] = 0.0
    """Likewise of the unit features of names."""
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
    def power(self) -> float:
        """q of generalised cross-entropy; 0: plain cross-entropy."""
        return self.gce_q if self.hard_loss == "gce" else 0.0

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
