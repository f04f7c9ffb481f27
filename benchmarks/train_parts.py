"""What the benchmarks of stage two share: turns, FLOP counts, differences, made-up models, names and rows.

This module measures nothing by itself. Processes that it is asked to start import it from the script's own folder.

Shapes: B rows, k stored classes a row, V classes, E embedding.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import open_clip
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from teachonce.data.vocabulary import Vocabulary, load_vocabulary
from teachonce.models.clip import LoadedClip
from teachonce.recipe.config import TrainConfig
from teachonce.rows.working_set import Batch, WorkingSet
from teachonce.training.trainer import Trainer

NAMES = "timm:imagenet22k/first-lemma"
GIGA = 1e9
TOP_K = 100
CONTEXT = "a photo of a"


def say(line: str = "") -> None:
    """Print one line of the report at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table."""
    say()
    for row in (head, ["---"] * len(head), *rows):
        say(f"| {' | '.join(row)} |")
    say()


def finished(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Measure how long a piece of work takes, to its very end."""
    finished(device)
    began = time.perf_counter()
    work()
    finished(device)
    return time.perf_counter() - began


def by_turns(ways: dict[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, float]:
    """Return the median seconds of each way; every turn runs all of them, every other turn in reverse order."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats):
        for name in ways if turn % 2 == 0 else reversed(ways):
            seconds[name].append(seconds_of(ways[name], device))
    return {name: statistics.median(values) for name, values in seconds.items()}


def count_flops(work: Callable[[], object]) -> int:
    """Count the floating-point operations of all matrix products and convolutions, forward and backward.

    A multiply-add counts as two.

    Attention is made of products while it is counted: PyTorch's counter passes over the fused kernels of the CPU.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            work()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops())


def apart(computed: Tensor, exact: Tensor) -> float:
    """Return |computed - exact| / |exact|, of the whole tensors."""
    return float((computed - exact).double().norm() / exact.double().norm())


def most_apart(computed: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """Return the largest `apart` of pairs."""
    return max(apart(a, b) for a, b in zip(computed, exact, strict=True))


def some_names(count: int) -> tuple[str, ...]:
    """Return first lemmas of ImageNet-21K, spread evenly over its list, so that their lengths are typical."""
    names = load_vocabulary(NAMES).names
    if count > len(names):
        raise SystemExit(f"there are {len(names)} names, and {count} are wanted")
    return tuple(names[index * len(names) // count] for index in range(count))


def made_up_clip(width: int = 512, layers: int = 12, device: str = "cpu") -> LoadedClip:
    """Make a CLIP with random weights: an OpenAI-style text tower of ViT-B/16's size, and a token of an image tower."""
    torch.manual_seed(0)
    vision = open_clip.CLIPVisionCfg(layers=1, width=64, head_width=32, patch_size=16, image_size=32)
    text = open_clip.CLIPTextCfg(width=width, heads=width // 64, layers=layers)
    model = open_clip.CLIP(width, vision, text, quick_gelu=True).to(device).eval().requires_grad_(False)
    return LoadedClip("made up", model, open_clip.SimpleTokenizer(), None, "", torch.device(device))


class MadeUpRows:
    """Rows of no store, in the place of a working set: random unit features, labels, and top k of a teacher."""

    def __init__(self, names: Sequence[str], width: int, rows: int) -> None:
        random, classes = np.random.default_rng(0), len(names)
        self.vocabulary = Vocabulary(tuple(map(str, range(classes))), tuple(names))
        self.records = np.zeros(rows, [("row", np.int64)])
        self.records["row"] = np.arange(rows)
        self.label_column = random.integers(0, classes, rows).astype(np.int32)
        self.temperatures = (1.0,)
        self.store = SimpleNamespace(layout=SimpleNamespace(views=1))
        features = random.normal(size=(rows, width))
        self._features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float16)
        top_k = min(TOP_K, classes - 1)
        self._ids = np.argpartition(random.random((rows, classes)), top_k)[:, :top_k].astype(np.int32)
        logits = -np.sort(-3 * random.normal(size=(rows, top_k)))
        mass = 0.8 * np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        self._log_probs = np.log(mass).astype(np.float32)

    def __len__(self) -> int:
        return len(self.records)

    def batch(self, places: np.ndarray) -> Batch:
        """Return rows, as a working set does."""
        residual = np.full((len(places), 1), np.log(0.2), np.float32)
        label = self.label_column[places].astype(np.int64)
        return Batch(self._features[places], label, self._ids[places], self._log_probs[places], residual, places)


def made_up_trainer(config: TrainConfig, clip: LoadedClip, names: Sequence[str]) -> Trainer:
    """Make a run over as many made-up rows as one step has."""
    model = cast(Any, clip.model)
    with torch.no_grad():
        width = model.encode_text(clip.tokenizer(["a"]).to(clip.device)).shape[1]
    return Trainer(config, clip, cast(WorkingSet, MadeUpRows(names, int(width), config.loop.batch_size)))


@dataclass(frozen=True, eq=False)
class StepResult:
    """What a step computed. Its update is left out of comparisons, because Adam makes much of small differences."""

    loss: float
    gradients: list[Tensor]
    candidates: int

    def apart(self, other: StepResult) -> tuple[float, float]:
        """Return the relative difference of the loss, and the largest relative difference of the gradients."""
        return abs(self.loss / other.loss - 1), most_apart(self.gradients, other.gradients)


def step_of(trainer: Trainer, step: int) -> StepResult:
    """Do one whole step, update included."""
    result = trainer.step(step)
    gradients = [cast(Tensor, parameter.grad).detach().cpu() for parameter in trainer.learners.parameters()]
    return StepResult(result["loss"], gradients, int(result["candidates"]))


def same_prompts(trainers: Sequence[Trainer]) -> None:
    """Give all runs the prompts of the first, so that their next steps can be compared."""
    state = trainers[0].learners.state_dict()
    for trainer in trainers[1:]:
        trainer.learners.load_state_dict(state)
