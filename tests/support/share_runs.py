"""Small runs with prompts that have moved, for tests of what is shared. It tests nothing."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from worlds import NAMES, World


def make_run(folder: Path, student: str, **config: Any) -> Path:
    """A finished run without its training: every tensor of the prompts differs from its start."""
    import tomli_w

    from teachonce.models.clip import load_clip
    from teachonce.models.prompt_files import load_prompts, save_prompts
    from teachonce.recipe.config import TrainConfig
    from teachonce.training.student import PromptedStudent

    settings = TrainConfig.of(**({"image_length": 2} | config))
    ours = PromptedStudent(settings, load_clip(student), NAMES)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(3)
        for parameter in ours.learners.parameters():
            parameter.copy_(torch.randn(parameter.shape))
        text, image = (None if x is None else x() for x in (ours.learner("text"), ours.learner("image")))
    folder.mkdir(parents=True)
    save_prompts(folder, text, image, ours.meta())
    (folder / "config.toml").write_text(tomli_w.dumps(settings.to_dict()))
    fields = {
        "schema": 1,
        "steps": 60,
        "trainable_parameters": 12,
        "final_loss": 0.5,
        "held_out_top1": 0.25,
        "prompts_digest": load_prompts(folder).tensors_digest,
        "store_id": "f00d",
        "out": str(folder),
        "selection_digest": "all rows",
        "start": "of the config",
        "vocabulary_digest": "abcd",
    }
    (folder / "results.json").write_text(json.dumps(fields))
    return folder


def record_accuracy(run: Path, world: World, student: str) -> dict[str, Any]:
    """Evaluate a run on the tiny world and keep the result in it, as `evaluate --json` gives it."""
    from requests_of import evaluate_request

    from teachonce.core.progress import Silent
    from teachonce.stages.evaluate import evaluate

    request = evaluate_request(run=run, student=student, manifest=world.manifest("tars"), root=world.root, threads=1)
    document = json.loads(json.dumps({"schema": 1, "command": "evaluate", **asdict(evaluate(request, Silent()))}))
    (run / "evaluations").mkdir(exist_ok=True)
    (run / "evaluations" / "val.json").write_text(json.dumps(document))
    return dict(document)
