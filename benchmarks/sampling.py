"""Gradients of the prompts from sampled classes against the exact one over all classes, on a label store, in one run.

    python benchmarks/sampling.py --labels STORE --student MODEL [--rows 256 --top 8 --fills 256,1000 --drawn 500,2000]

One batch of rows is kept; only the draw of classes varies. `sampled` takes labels, each row's best teacher classes and
a uniform fill, with each correction; `log10, labels alone` is POMP's rule. `all-sampled` computes the loss over all
classes and pulls back a Poisson sample of names, drawn for each loss by itself. Bias is the distance of the mean draw
from the exact gradient, less what its spread explains; spread is the root mean square around the mean. Both are of the
whole gradient and relative to it. The soft loss is the KL to the teacher, exact from its stored embeddings.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from teachonce.core.devices import pick_device
from teachonce.core.progress import Silent
from teachonce.labels.store import LabelStore
from teachonce.losses.candidates import Candidates, Correction, all_candidates, sampled_candidates
from teachonce.losses.row_losses import dense_rows, hard_rows
from teachonce.losses.targets import embedding_columns
from teachonce.models.clip import load_clip
from teachonce.models.learner import SlotLearner, text_learner
from teachonce.models.prompts import Prompts
from teachonce.rows.working_set import open_working_set
from teachonce.towers.text_tower import TextTower
from teachonce.towers.tokens import NameTokens
from teachonce.training.two_pass import PoissonSample, TextPass

LOSSES = ("hard", "soft")


@dataclass(frozen=True, eq=False)
class Problem:
    """One batch and the student. B rows, V classes, E and D the embeddings of student and teacher."""

    tower: TextTower
    learner: SlotLearner
    names: NameTokens
    images: Tensor  # [B, E]
    labels: Tensor  # [B]
    best: np.ndarray  # [B, k]
    teacher: Tensor  # [B, D]
    teacher_classes: Tensor  # [V, D]
    student_scale: float
    teacher_scale: float
    chunk: int

    def forward(self, candidates: Candidates) -> TextPass:
        """Compute the features of the candidates."""
        return TextPass(self.tower, self.learner, self.names, candidates.classes, self.chunk)

    def on_features(self, text: TextPass, candidates: Candidates) -> list[Tensor]:
        """Compute the gradient of each of `LOSSES` with respect to the distinct features."""
        device = self.tower.device
        logits = self.student_scale * self.images @ text.features[text.place].T
        weight, classes = candidates.log_weight.to(device), candidates.classes.to(device)
        place = candidates.columns().to(device)[self.labels]
        groups = self.names.inverse[candidates.classes].to(device)
        hard = hard_rows(logits, weight, torch.where(self.labels >= 0, place, -1), groups)
        log_p = embedding_columns(self.teacher, self.teacher_classes, self.teacher_scale, 1.0, classes)
        losses = [hard.sum() / max(1, int((self.labels >= 0).sum())), dense_rows(log_p, logits, weight, 1.0).mean()]
        return [torch.autograd.grad(loss, text.features, retain_graph=True)[0] for loss in losses]

    def pull_back(self, text: TextPass, gradients: list[Tensor], sample: PoissonSample | None = None) -> list[Tensor]:
        """Compute the prompts' whole gradient for each of these gradients."""
        pulled = text.pull_back(list(self.learner.parameters()), gradients, sample)
        return [torch.cat([part.flatten() for part in one]).double() for one in pulled]

    def draw(self, correction: Correction, fill: int, top: int, step: int) -> tuple[list[Tensor], int]:
        """Compute both gradients of one draw of candidates, and the names whose features it needed."""
        labels, names = self.labels.cpu().numpy(), self.names.inverse.numpy()
        candidates = sampled_candidates(labels, self.best[:, :top], fill, len(names), 0, step, correction, names)
        text = self.forward(candidates)
        return self.pull_back(text, self.on_features(text, candidates)), len(text.features)


def load(args: argparse.Namespace) -> Problem:
    """Open the store's first labels of a seeded choice of rows, and the student with its hand-written prompts."""
    clip = load_clip(args.student, pick_device())
    rows = open_working_set(LabelStore.open(args.labels), clip.digest, Silent(), embeddings=True)
    batch = rows.batch(np.sort(np.random.default_rng(0).choice(len(rows), min(args.rows, len(rows)), replace=False)))
    if batch.features is None or batch.embedding is None:
        raise SystemExit(f"{args.labels} lacks student features or teacher embeddings")
    tower = TextTower.from_clip(clip.model, clip.tokenizer)
    learner = text_learner(tower, Prompts(structure=args.structure)).to(clip.device)
    return Problem(
        tower=tower,
        learner=learner,
        names=tower.tokenise(rows.vocabulary.names, slots=learner().slots),
        images=torch.from_numpy(batch.features).float().to(clip.device),
        labels=torch.from_numpy(batch.label).to(clip.device),
        best=batch.class_ids,
        teacher=torch.from_numpy(batch.embedding).to(clip.device),
        teacher_classes=torch.from_numpy(rows.class_embeddings).to(clip.device),
        student_scale=clip.logit_scale,
        teacher_scale=rows.teacher_scale,
        chunk=args.chunk,
    )


def line(way: str, names: list[int], draws: list[list[Tensor]], exact: list[Tensor]) -> str:
    """Return a row of the table."""
    cells = [way, f"{np.mean(names):,.0f}"]
    for number, reference in enumerate(exact):
        stacked = torch.stack([draw[number] for draw in draws])
        mean, size = stacked.mean(0), float(reference.norm())
        variance = float((stacked - mean).square().sum()) / max(1, len(stacked) - 1)
        bias = math.sqrt(max(0.0, float((mean - reference).square().sum()) - variance / len(stacked)))
        cells += [f"{bias / size:.3f}", f"{math.sqrt(variance) / size:.3f}"]
    return f"| {' | '.join(cells)} |"


def ways(top: int) -> dict[str, tuple[Correction, int]]:
    """Return the corrections, and how many best classes of each row are certain."""
    return {"ln": ("ln", top), "log10": ("log10", top), "log10, labels alone": ("log10", 0), "none": ("none", top)}


def main() -> None:
    """Compute the exact gradient once, then try every way of drawing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=Path, required=True, help="store with embeddings and this student's features")
    parser.add_argument("--student", required=True)
    parser.add_argument("--structure", default="unshared")
    for name, default in (("rows", 256), ("top", 8), ("draws", 8), ("chunk", 1024), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, sizes in (("fills", "256,1000"), ("drawn", "500,2000")):
        parser.add_argument(f"--{name}", type=lambda text: [int(x) for x in text.split(",")], default=sizes)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    problem = load(args)
    began = time.perf_counter()
    everything = all_candidates(len(problem.names.inverse))
    text = problem.forward(everything)
    on_features = problem.on_features(text, everything)
    exact = problem.pull_back(text, on_features)
    seconds = time.perf_counter() - began
    heads = " | ".join(f"{loss}: bias | spread of a draw" for loss in LOSSES)
    lines = [
        f"{len(problem.images)} rows, {len(problem.names.inverse):,} classes, {problem.names.count:,} names, "
        f"top {args.top}, {args.draws} draws; the exact gradient took {seconds:.0f} s",
        "",
        f"| way | names with a graph | {heads} |",
        "|---|---|" + "---|" * 2 * len(LOSSES),
    ]
    for fill in args.fills:
        for way, (correction, top) in ways(args.top).items():
            draws, names = zip(*(problem.draw(correction, fill, top, step) for step in range(args.draws)), strict=True)
            lines.append(line(f"sampled, fill {fill:,}, {way}", list(names), list(draws), exact))
    for expected in args.drawn:
        samples = [PoissonSample(expected, 0, step) for step in range(args.draws)]
        drawn = [[problem.pull_back(text, [one], sample)[0] for one in on_features] for sample in samples]
        lines.append(line(f"all-sampled, {expected:,} expected", [expected], drawn, exact))
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
