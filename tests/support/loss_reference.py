"""Losses and targets of one row in plain Python and float64, as the words of their docstrings say; and random cases.

Nothing here shares code with what it is compared to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from teachonce.losses.targets import SoftTargets

INF = math.inf
ROWS = 5


@dataclass(frozen=True)
class Case:
    """A random batch over a random candidate set. Logits and weights are float64."""

    classes: Tensor  # [K]
    columns: Tensor  # [V]
    logits: Tensor  # [B, K]
    log_weight: Tensor  # [K] or [B, K]
    labels: Tensor  # [B] columns or -1
    groups: Tensor  # [K]
    targets: SoftTargets
    tau: float
    teacher_tau: float

    @property
    def label_classes(self) -> Tensor:
        """[B] classes or -1."""
        return torch.where(self.labels >= 0, self.classes[self.labels.clamp(min=0)], -1)

    def weights(self, row: int) -> list[float]:
        """ln w of one row, [K]."""
        values: list[float] = self.log_weight.expand(ROWS, -1)[row].tolist()
        return values

    def with_targets(self, **changes: Tensor) -> Case:
        """Other stored values."""
        return replace(self, targets=SoftTargets(**{**vars(self.targets), **changes}))


def make_case(seed: int, vocabulary: int = 30, k: int = 6, everything: bool = False, row_weights: bool = False) -> Case:
    """Temperatures differ; some rows have no label; `own` gives every row weights of its own, some of them -inf."""
    generator = torch.Generator().manual_seed(seed)
    tau, teacher_tau = [1.0, 2.0, 0.7, 4.0][seed % 4], [1.0, 2.0, 0.5][seed % 3]
    teacher = (4 * torch.randn(ROWS, vocabulary, generator=generator, dtype=torch.float64)).log_softmax(1)
    top = teacher.topk(k, 1)
    outside = torch.ones_like(teacher, dtype=torch.bool).scatter(1, top.indices, False)
    tail = (teacher / teacher_tau).masked_fill(~outside, -INF).logsumexp(1)
    keep = torch.ones(vocabulary) if everything else (torch.rand(vocabulary, generator=generator) < 0.5).float()
    keep[0] = 1
    classes = keep.nonzero().flatten()
    columns = torch.full((vocabulary,), -1)
    columns[classes] = torch.arange(len(classes))
    labels = torch.randint(-1, len(classes), (ROWS,), generator=generator)
    shape = (ROWS, len(classes)) if row_weights else (len(classes),)
    weight = torch.where(torch.rand(shape, generator=generator, dtype=torch.float64) < 0.5, 0.0, 1.3)
    if row_weights:
        weight[torch.rand(shape, generator=generator) < 0.3] = -INF
        for row, label in enumerate(labels.tolist()):
            weight[row, label if label >= 0 else 0] = 0.0
    return Case(
        classes=classes,
        columns=columns,
        logits=5 * torch.randn(ROWS, len(classes), generator=generator, dtype=torch.float64),
        log_weight=torch.zeros(len(classes), dtype=torch.float64) if everything else weight,
        labels=labels,
        groups=torch.randint(0, max(1, len(classes) // 2), (len(classes),), generator=generator),
        targets=SoftTargets(top.indices, top.values, tail),
        tau=tau,
        teacher_tau=teacher_tau,
    )


def log_sum(values: Sequence[float]) -> float:
    """ln of the sum of exp."""
    top = max(values, default=-INF)
    return top if top == -INF else top + math.log(sum(math.exp(x - top) for x in values))


def plain_hard(case: Case, row: int, groups: Sequence[int] | None, smoothing: float = 0.0, power: float = 0.0) -> float:
    """Cross-entropy of one row, or generalised cross-entropy."""
    label = int(case.labels[row])
    if label < 0:
        return 0.0
    s, weight = case.logits[row].tolist(), case.weights(row)
    total = log_sum([a + b for a, b in zip(s, weight, strict=True)])
    mine = [label] if groups is None else [i for i, group in enumerate(groups) if group == groups[label]]
    loss = total - log_sum([s[i] + weight[i] for i in mine])
    w = [math.exp(x) for x in weight]
    if power:
        return (1 - math.exp(-loss) ** power) / power
    spread = sum(a * (total - b) for a, b in zip(w, s, strict=True)) / sum(w)
    return (1 - smoothing) * loss + smoothing * spread


def plain_teacher(case: Case, row: int, rule: str) -> list[float]:
    """The teacher's probability of every class of the vocabulary by a tail rule, [V]."""
    vocabulary = len(case.columns)
    stored = {
        int(c): math.exp(x / case.teacher_tau)
        for c, x in zip(case.targets.class_ids[row].tolist(), case.targets.log_probs[row].tolist(), strict=True)
        if c >= 0
    }
    mass = [stored.get(c, 0.0) for c in range(vocabulary)]
    tail, label = math.exp(float(case.targets.log_tail[row])), int(case.label_classes[row])
    if rule == "residual-uniform":
        others = [c for c in range(vocabulary) if c not in stored]
        for c in others:
            mass[c] += tail / len(others)
    elif label >= 0:
        mass[label] += tail
    total = sum(mass)
    return [x / total if total else 0.0 for x in mass]


def plain_apart(kind: str, entries: Sequence[tuple[float, float, float]]) -> float:
    """A divergence of one row from (p, ln q, w) of each entry that is there; 0 for a teacher without mass."""
    if not any(p for p, _, _ in entries):
        return 0.0
    total = 0.0
    for p, log_q, w in entries:
        q = math.exp(log_q)
        log_p = math.log(p) if p else math.log(1e-7)
        forward, backward = p * (log_p - log_q), q * (log_q - log_p)
        log_m = log_sum([log_p if p else -INF, log_q]) - math.log(2)
        js = (p * (log_p - log_m) + q * (log_q - log_m)) / 2
        total += w * {"kl": forward, "reverse-kl": backward, "symmetric": (forward + backward) / 2, "js": js}[kind]
    return total


def plain_ranking(entries: Sequence[tuple[float, float, float, float]]) -> float:
    """The list-wise loss of one row from (rank, p, s, w) of each entry that is there: the highest rank comes first."""
    total = 0.0
    for rank, p, s, w in entries:
        if p:
            behind = log_sum([other + math.log(v) for r, _, other, v in entries if r <= rank])
            total += w * p * (behind - s)
    return total


def plain_dense(case: Case, row: int, teacher: Sequence[float], kind: str = "kl") -> float:
    """tau^2 times the weighted sum, from the teacher's probability of every class."""
    s, weight = [x / case.tau for x in case.logits[row].tolist()], case.weights(row)
    total = log_sum([a + b for a, b in zip(s, weight, strict=True)])
    here = [i for i in range(len(s)) if weight[i] > -INF]
    p = [teacher[class_id] for class_id in case.classes.tolist()]
    if kind == "ranking":
        return case.tau**2 * plain_ranking([(p[i], p[i], s[i], math.exp(weight[i])) for i in here])
    return case.tau**2 * plain_apart(kind, [(p[i], s[i] - total, math.exp(weight[i])) for i in here])


def plain_top_k(case: Case, row: int, rule: str, kind: str = "kl") -> float:
    """tau^2 times the divergence of one row by `ghost` or `renormalise`."""
    weight = case.weights(row)
    s = [x / case.tau for x in case.logits[row].tolist()]
    single: dict[int, float] = {}  # candidate column: ln of the teacher's softened, unnormalised mass
    rest = [float(case.targets.log_tail[row])]
    for class_id, log_p in zip(case.targets.class_ids[row].tolist(), case.targets.log_probs[row].tolist(), strict=True):
        column = int(case.columns[class_id]) if class_id >= 0 else -1
        if column >= 0 and (weight[column] == 0 or (rule == "renormalise" and weight[column] > -INF)):
            single[column] = log_p / case.teacher_tau
        else:
            rest.append(log_p / case.teacher_tau)
    others = [s[i] + weight[i] for i in range(len(s)) if i not in single and weight[i] > -INF]
    pairs = [(mass, s[i]) for i, mass in single.items()]
    lump = rule == "ghost" and bool(others)
    if lump:
        pairs.append((log_sum(rest), log_sum(others)))
    of_teacher, of_student = log_sum([a for a, _ in pairs]), log_sum([b for _, b in pairs])
    if of_teacher == -INF:
        return 0.0
    if kind == "ranking":
        ranks = [a for a, _ in pairs]
        if lump and ranks[-1] > -INF:
            ranks[-1] = -1e300  # behind every stored class that has a mass
        return case.tau**2 * plain_ranking(
            [(rank, math.exp(a - of_teacher), b, 1.0) for rank, (a, b) in zip(ranks, pairs, strict=True)]
        )
    return case.tau**2 * plain_apart(kind, [(math.exp(a - of_teacher), b - of_student, 1.0) for a, b in pairs])
