"""Prompts that are no longer what they began as, without training, for tests. It tests nothing."""

from __future__ import annotations

from pathlib import Path

import torch

from teachonce.models.clip import load_clip
from teachonce.models.prompt_files import save_prompts
from teachonce.recipe.config import TrainConfig
from teachonce.training.student import PromptedStudent


def save_moved_prompts(folder: Path, student: str) -> Path:
    """Text prompts of the standard structure, each tensor with some noise on it; returns the folder."""
    ours = PromptedStudent(TrainConfig(), load_clip(student), ["x"])
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in ours.learners.parameters():
            parameter.add_(0.6 * torch.randn(parameter.shape))
        text = ours.learner("text")()
    save_prompts(folder, text, None, ours.meta())
    return folder
