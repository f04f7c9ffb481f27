"""The configurations in which a whole training step is tested: each value of each key that changes a step."""

from __future__ import annotations

from typing import Any

STEP, STEPS = 5, 8
BASE = {"steps": STEPS, "batch_size": 24, "seed": 3, "warmup_steps": 2, "image_length": 2, "learning_rate": 0.1}
# Three samples: their labels and best classes leave some of the eight classes out, so that a draw decides something.
DRAWN = {"candidates": "sampled", "batch_size": 3, "sampled_top": 1, "sampled_fill": 2}
TEACHER = {"candidates": "teacher", "batch_size": 3, "teacher_names": 4}
ALL_SAMPLED = {"candidates": "all-sampled", "class_chunk": 2, "sampled_backward": 3}
EVERYTHING = {
    "label_smoothing": 0.2,
    "soft_weight": 0.6,
    "soft_schedule": "fall",
    "temperature": 2.0,
    "teacher_temperature": 4.0,
    "anchor_weight": 3.0,
    "consistency_weight": 0.7,
}
CASES: dict[str, dict[str, Any]] = {
    "hard": {"supervision": "hard"},
    "soft": {"supervision": "soft"},
    "soft at two temperatures": {"supervision": "soft", "temperature": 2.0, "teacher_temperature": 4.0},
    "lambda": {"soft_weight": 0.4},
    "lambda rises": {"soft_weight": 0.4, "soft_schedule": "rise"},
    "lambda falls": {"soft_weight": 0.4, "soft_schedule": "fall"},
    "lambda begins at zero": {"soft_schedule": "rise", "step": 0},
    "residual-uniform": {"tail": "residual-uniform", "temperature": 2.0},
    "residual-uniform at two temperatures": {"tail": "residual-uniform", "teacher_temperature": 2.0},
    "to-label": {"tail": "to-label", "temperature": 2.0},
    "to-label at two temperatures": {"tail": "to-label", "teacher_temperature": 2.0},
    "renormalise": {"tail": "renormalise", "temperature": 3.0, "teacher_temperature": 1.5},
    "embedding": {"targets": "embedding", "temperature": 2.0},
    "embedding at two temperatures": {"targets": "embedding", "temperature": 1.5, "teacher_temperature": 3.0},
    "smoothing": {"supervision": "hard", "label_smoothing": 0.2},
    "anchor": {"anchor_weight": 3.0},
    "no anchor": {"anchor_weight": 0.0},
    "hard over seen classes": {"hard_over": "seen", "anchor_weight": 0.0},
    "hard over seen classes, sampled": {**DRAWN, "hard_over": "seen"},
    "self-consistency": {"consistency_weight": 0.7},
    "PromptSRC's regularisers": {
        "supervision": "hard",
        "anchor_form": "l1",
        "anchor_weight": 25.0,
        "bare_templates": "a photo of a {}. | a drawing of the {}. | {} in a box",
        "kl_mean": "rows-and-classes",
        "consistency_weight": 1.0,
    },
    "PromptSRC's regularisers, sampled": {**DRAWN, "anchor_form": "l1", "kl_mean": "rows-and-classes"},
    "two views": {"views_per_step": 2},
    "parameters in the tower's own units": {"layer_scale": False},
    "replace": {"structure": "unshared-replace", **EVERYTHING},
    "replace in the first block only": {"structure": "unshared-replace", "depth": 1},
    "slots around the name": {"structure": "shared", "position": "around", "init": "words", "length": 6},
    "image tower": {"tower": "image", "label_smoothing": 0.2, "consistency_weight": 0.7, "micro_batch": 7},
    "image tower in its own units": {"tower": "image", "layer_scale": False, "init": "normal"},
    "both towers": {"tower": "both", "micro_batch": 7, "views_per_step": 2, **EVERYTHING},
    "both towers replaced": {"tower": "both", "structure": "unshared-replace", "init": "normal", "image_depth": 1},
    "micro-batches": {"micro_batch": 5, "class_chunk": 2, **EVERYTHING},
    "all but ProGrad": EVERYTHING,
    "ProGrad for the hard loss alone": {"prograd": True, "supervision": "hard"},
    "ProGrad while lambda is zero": {"prograd": True, "soft_schedule": "rise", "step": 0},
    "ProGrad for the image tower": {"prograd": True, "tower": "image", "micro_batch": 7},
    "sampled ln": {**DRAWN, **EVERYTHING},
    "sampled ln with embeddings": {**DRAWN, **EVERYTHING, "targets": "embedding"},
    "sampled ln with a uniform tail": {**DRAWN, "tail": "residual-uniform", "micro_batch": 2},
    "sampled none": {**DRAWN, **EVERYTHING, "label_smoothing": 0.0, "correction": "none"},
    "sampled log10": {**DRAWN, "correction": "log10", "anchor_weight": 3.0, "micro_batch": 1},
    "sampled log10 with embeddings": {**DRAWN, "correction": "log10", "targets": "embedding", "temperature": 2.0},
    "sampled for the image tower": {**DRAWN, "tower": "image"},
    "the teacher's classes": {**TEACHER, "anchor_weight": 3.0, "temperature": 2.0, "micro_batch": 2},
    "the teacher's classes with embeddings": {**TEACHER, "targets": "embedding", "temperature": 2.0},
    "the teacher's classes without labels": {**TEACHER, "supervision": "soft", "targets": "embedding"},
    "all-sampled": {**ALL_SAMPLED, **EVERYTHING},
    "all-sampled in both towers": {**ALL_SAMPLED, "tower": "both", "micro_batch": 10},
}
