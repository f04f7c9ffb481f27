"""Results of the stages that train prompts, measure them and hand them on, as the command line does."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    steps: int = 600
    trainable_parameters: int = 98304
    seconds: float = 60.0
    final_loss: float = float("inf")
    held_out_top1: float | None = None
    out: Path = Path("run")


@dataclass(frozen=True, kw_only=True)
class ImportResult:
    method: str = "CoOp"
    slots: int = 4
    width: int = 512
    depth: int = 1
    image_slots: int = 0
    image_depth: int = 0
    position: str = "before"
    epoch: int | None = 50
    student_proved: bool = True
    checkpoint: str = "model.pth.tar-50"
    checkpoint_digest: str = "f00d"
    out: str = "runs/coop"
    prompts_digest: str = "f00d"


@dataclass(frozen=True, kw_only=True)
class ImportModelResult:
    model: str = "local-dir:clip"
    source: str = "clip.safetensors"
    source_digest: str = "f00d"
    release: str | None = "ViT-B-32/openai"
    parameters: int = 151_277_313
    activation: str = "quick-GELU"
    image_size: tuple[int, int] = (224, 224)
    mean: tuple[float, ...] = (0.48, 0.46, 0.41)
    std: tuple[float, ...] = (0.27, 0.26, 0.28)
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    text_prompts: str = "yes"
    image_prompts: str = "yes"
    digest: str = "f00d"
    out: str = "clip"


@dataclass(frozen=True, kw_only=True)
class ModelsResult:
    open_clip: str = "3.3.0"
    timm: str = "1.0.31"
    models: tuple[dict[str, Any], ...] = (
        {
            "model": "ViT-B-16-SigLIP/webli",
            "family": "SigLIP",
            "teacher": True,
            "text_prompts": False,
            "image_prompts": True,
            "needs": "hf",
            "refused": {"text_prompts": "no causal mask"},
        },
    )
    families: tuple[dict[str, Any], ...] = (
        {
            "family": "SigLIP",
            "models": 1,
            "teachers": 1,
            "text_prompts": 0,
            "image_prompts": 1,
            "needs": "hf",
            "refused": ("text: no causal mask",),
        },
    )
    total: dict[str, Any] = field(
        default_factory=lambda: {
            "family": "all",
            "models": 1,
            "teachers": 1,
            "text_prompts": 0,
            "image_prompts": 1,
            "needs": "",
            "refused": (),
        }
    )


@dataclass(frozen=True, kw_only=True)
class StatusResult:
    kind: str = "train"
    path: str = "run"
    state: str = "finished"
    process: dict[str, Any] | None = None
    step: int = 600
    steps: int | None = 600
    losses: dict[str, float] = field(default_factory=lambda: {"loss": 1.25})
    learning_rate: float | None = 0.5
    gradient_norm: float | None = None
    held_out: dict[str, float] | None = None
    steps_per_second: float | None = 8.0
    checkpoint: int | None = 600
    resumed: int = 0
    last_sign: str | None = "2026-01-01T00:00:00Z"
    seconds_since_sign: float | None = 2.0
    seconds_left: float | None = None
    estimated_end: str | None = None


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    out: str = "shared"
    files: tuple[str, ...] = ("README.md", "SHA256SUMS")
    prompts_digest: str = "f00d"
    classes: int | None = 120
    width: int | None = 256
    tied_names: int | None = 0
    reloaded: bool = True
    pushed: str | None = None


@dataclass(frozen=True, kw_only=True)
class ProtocolResult:
    sets: tuple[dict[str, Any], ...] = ({"set": "pets", "top1": 0.25, "gain": -0.5},)
    details: dict[str, Any] = field(default_factory=lambda: {"pets": {"nll": 1.2345}})
    exit_code: int = 5


@dataclass(frozen=True, kw_only=True)
class EvaluateResult:
    top1: float = 0.625
    top5: float = 0.9
    n: int = 200
    classes: int = 10
    top1_interval: tuple[float, float] = (0.55, 0.69)
    tied_names: int = 0
    failed: int = 0
    template: str | None = None
    run: str | None = None
    per_class: str | None = None
    wise: float | None = None
    baseline: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class AblateResult:
    cells: dict[str, int] = field(
        default_factory=lambda: {"finished": 3, "failed": 1, "skipped": 2, "missing": 0, "damaged": 0}
    )
    failures: tuple[dict[str, str], ...] = ({"name": "steps=5 seed=0", "message": "the loss became nan"},)
    exit_code: int = 5


@dataclass(frozen=True, kw_only=True)
class ReportResult:
    headline: tuple[str, ...] = ("3 runs of 1 setting.",)
    runs: int = 3
    settings: int = 1
    not_counted: int = 0
    best: str = "base"
    out: str = "report.html"
    bytes: int = 300000
    files: str = "report-files"
    files_written: int = 12
    seconds: float = 5.0


SHOWN = {
    "number": 1,
    "setting": "[red]base",
    "is_base": True,
    "seeds": [0, 1],
    "changes": {},
    "seconds": 61.0,
    "trainable_parameters": 12288,
    "final_loss": 2.0,
    "loss": [3.0, 2.5, 2.0],
    "measures": {"held_out": {"top1": 0.4, "spread": 0.01, "difference": None, "verdict": "base"}},
}


@dataclass(frozen=True, kw_only=True)
class ShowResult:
    kind: str = "runs"
    path: str = "runs"
    title: str = "runs"
    question: str = ""
    runs: int = 2
    best: str | None = "base"
    measures: tuple[str, ...] = ("held_out",)
    settings: tuple[dict[str, Any], ...] = (SHOWN,)
    beside: tuple[dict[str, Any], ...] = ()
    headline: tuple[str, ...] = ("2 runs of 1 setting.",)
    not_counted: tuple[dict[str, str], ...] = ({"name": "r3", "kind": "damaged", "why": "cut short", "hint": ""},)
    config: dict[str, Any] = field(default_factory=lambda: {"steps": 60})
    figures: dict[str, Any] = field(default_factory=dict)
    next: str = "teachonce report runs --out report.html"


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    table: tuple[dict[str, Any], ...] = ({"prompts": "none", "top1": 0.5}, {"prompts": "unshared", "top1": 0.75})
    paths: dict[str, str] = field(default_factory=lambda: {"labels": "demo/labels.zarr"})
    seconds: float = 30.0
