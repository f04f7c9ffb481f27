"""Stand-ins for the stages: same requests and results, no work. Run as a script it is `teachonce` on top of them.

It imports no stage, so the command line is tested without torch, a store or an image.

`STUB_ACT` says what a stub does before it returns: `sleep` until a signal comes, `print` where it must not,
`progress` through 100 rows, `progress-then-fail`. `STUB_MARK` names a file that its `finally` writes.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from teachonce.config import TrainConfig
from teachonce.errors import DataError
from teachonce.views import ViewPolicy


@dataclass(frozen=True, kw_only=True)
class TeachRequest:
    manifest: str
    root: Path | None
    split: str = "train"
    labels: Path
    teacher: str | None
    students: tuple[str, ...] = ()
    vocabulary: str | None = None
    templates: tuple[str, ...] = ("a photo of a {}.",)
    top_k: int | None = None
    embeddings: Literal["int8", "float16"] | None = None
    workers: int | None = None
    scheduler: str | None = None
    cluster: Path | None = None
    threads: int | None = None
    batch_size: int = 128
    chunk_rows: int | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compiled: bool = False
    class_tile: int | None = None
    views: ViewPolicy = ViewPolicy()
    shots: int | None = None
    seed: int = 0
    retry_failed: bool = False
    max_failed_share: float = 0.01
    force_unlock: bool = False


@dataclass(frozen=True, kw_only=True)
class TeachResult:
    rows_ok: int = 1200
    rows_failed: int = 0
    rows_per_second: float = 12.5
    chunks_written: int = 3
    chunks_skipped: int = 0
    seconds: float = 96.0
    bytes_per_row: dict[str, float] = field(default_factory=lambda: {"labels": 152.5, "total": 152.5})
    labels: str = "labels.zarr"
    store_id: str = "f00d"


@dataclass(frozen=True, kw_only=True)
class InspectRequest:
    labels: Path
    samples: int = 3


SPREAD = {"mean": 2e-4, "p50": 1e-4, "p90": 3e-4, "p99": 8e-4, "max": 1e-3}
RULES = {"ghost": 9e-5, "residual-uniform": 0.43, "renormalise": 0.2, "to-label": None}
FIDELITY = {
    "rows": 48,
    "k": 10,
    "value_kl": SPREAD,
    "mass": {**SPREAD, "mean": 0.625},
    "topk_kl": {rule: SPREAD for rule in RULES},
    "embedding_kl": {"own scale": SPREAD},
    "by_k": [{"k": 1, "mass": 0.25, **RULES}, {"k": 10, "mass": 0.625, **RULES}],
}


@dataclass(frozen=True, kw_only=True)
class InspectResult:
    rows: int = 1200
    chunks: int = 3
    chunks_committed: int = 3
    rows_failed: int = 0
    top_k: int = 10
    vocabulary_size: int = 120
    bytes_per_row: dict[str, float] = field(default_factory=lambda: {"total": 152.5})
    fingerprint: dict[str, Any] = field(default_factory=lambda: {"teacher": {"name": "stub", "precision": "fp32"}})
    students: tuple[dict[str, Any], ...] = ()
    embeddings: dict[str, Any] = field(default_factory=lambda: {"kind": "int8", "width": 8, "chunks_committed": 3})
    fidelity: dict[str, Any] = field(default_factory=lambda: dict(FIDELITY))
    statistics: dict[str, float] = field(default_factory=lambda: {"entropy": float("nan")})
    examples: tuple[dict[str, Any], ...] = ({"key": "[red]a.jpg", "classes": ("tench", "eel")},)


@dataclass(frozen=True, kw_only=True)
class VerifyRequest:
    labels: Path
    repair: bool = False
    teacher: str | None = None
    sample: int | None = None
    seed: int = 0
    root: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Fault:
    where: str
    expected: str
    found: str


@dataclass(frozen=True, kw_only=True)
class VerifyResult:
    ok: bool = True
    chunks_checked: int = 3
    faults: tuple[Fault, ...] = ()
    exit_code: int = 0


@dataclass(frozen=True, kw_only=True)
class RelabelRequest:
    parent: Path
    labels: Path
    vocabulary: str | None = None
    templates: tuple[str, ...] | None = None
    top_k: int | None = None
    temperatures: tuple[float, ...] | None = None
    classes: Path | None = None
    teacher: str | None = None
    root: Path | None = None
    threads: int | None = None
    force_unlock: bool = False


@dataclass(frozen=True, kw_only=True)
class RelabelResult:
    rows_ok: int = 1200
    rows_failed: int = 0
    classes: int = 120
    top_k: int = 10
    temperatures: tuple[float, ...] = (1.0, 2.0, 4.0)
    templates: tuple[str, ...] = ("a photo of a {}.",)
    chunks_written: int = 3
    chunks_skipped: int = 0
    seconds: float = 2.5
    bytes_per_row: dict[str, float] = field(default_factory=lambda: {"total": 152.5})
    parent: str = "labels.zarr"
    labels: str = "new.zarr"
    store_id: str = "f00d"


@dataclass(frozen=True, kw_only=True)
class MergeRequest:
    parents: tuple[Path, ...]
    labels: Path
    weights: tuple[float, ...] | None = None
    top_k: int | None = None
    calibrate: bool = True
    threads: int | None = None
    force_unlock: bool = False


@dataclass(frozen=True, kw_only=True)
class MergeResult:
    rows_ok: int = 1200
    rows_failed: int = 0
    top_k: int = 10
    teachers: tuple[dict[str, Any], ...] = ({"labels": "first.zarr", "weight": 0.5, "scale": 80.0},)
    chunks_written: int = 3
    chunks_skipped: int = 0
    seconds: float = 2.5
    bytes_per_row: dict[str, float] = field(default_factory=lambda: {"total": 152.5})
    labels: str = "both.zarr"
    store_id: str = "f00d"


@dataclass(frozen=True, kw_only=True)
class SubsetRequest:
    labels: Path
    out: Path
    shots: int | None = None
    seed: int = 0
    top_k: int | None = None
    classes: Path | None = None
    all_names: bool = False


@dataclass(frozen=True, kw_only=True)
class SubsetResult:
    samples: int = 160
    rows: int = 160
    classes: int = 10
    classes_short: int = 1
    short: dict[str, int] = field(default_factory=lambda: {"n01": 3})
    digest: str = "f00d"
    out: str = "few.json"


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    labels: Path
    student: str
    out: Path
    config: TrainConfig
    resume: bool = False
    threads: int | None = None
    selection: Path | None = None
    manifest: str | None = None
    split: str | None = None
    vocabulary: str | None = None
    root: Path | None = None
    init: Path | None = None
    log: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    steps: int = 600
    trainable_parameters: int = 98304
    seconds: float = 60.0
    final_loss: float = float("inf")
    held_out_top1: float | None = None
    out: Path = Path("run")


@dataclass(frozen=True, kw_only=True)
class ImportRequest:
    checkpoint: Path
    student: str
    out: Path
    position: Literal["before", "around", "after"] = "before"


@dataclass(frozen=True, kw_only=True)
class ImportResult:
    slots: int = 4
    width: int = 512
    position: str = "before"
    epoch: int | None = 50
    student_proved: bool = True
    checkpoint: str = "model.pth.tar-50"
    checkpoint_digest: str = "f00d"
    out: str = "runs/coop"
    prompts_digest: str = "f00d"


@dataclass(frozen=True, kw_only=True)
class StatusRequest:
    folder: Path


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
class ExportRequest:
    run: Path
    out: Path
    classes: str | None = None
    student: str | None = None
    licence: str | None = None
    push: str | None = None


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
class PackRequest:
    source: Path
    out: Path | None = None
    check: bool = False
    unpack: bool = False


@dataclass(frozen=True, kw_only=True)
class PackResult:
    kind: str = "label-store"
    name: str = "labels.zarr"
    id: str = "f00d"
    files: int = 664
    bytes: int = 1000
    digest: str = "f00d"
    out: str | None = "labels.tar"


@dataclass(frozen=True, kw_only=True)
class CacheRequest:
    action: Literal["list", "clear"]
    labels: Path | None = None


@dataclass(frozen=True, kw_only=True)
class CacheEntry:
    path: str = "labels.zarr.working/f00d"
    kind: str = "working set"
    store: str = "labels.zarr"
    bytes: int = 3056
    rows: int | None = 1200
    created: str = "2026-01-01T00:00:00Z"
    in_use: bool = False


@dataclass(frozen=True, kw_only=True)
class CacheResult:
    action: str = "list"
    entries: tuple[CacheEntry, ...] = (CacheEntry(),)
    bytes: int = 3056
    freed: int = 0
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest:
    run: Path | None
    student: str
    manifest: str
    root: Path | None
    split: str = "val"
    vocabulary: str | None = None
    template: str | None = None
    wise: float = 1.0
    classes: str | None = None
    among: str = "classes"
    without: Path | None = None
    per_class: Path | None = None
    credits: Path | None = None
    cache: bool = True
    batch_size: int = 128
    threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class ProtocolRequest:
    protocol: str
    run: Path | None
    student: str
    root: Path | None
    manifest: str | None = None
    split: str | None = None
    vocabulary: str | None = None
    classes: str | None = None
    without: Path | None = None
    template: str | None = None
    wise: float = 1.0
    per_class: Path | None = None
    credits: Path | None = None
    skip_missing: bool = False
    cache: bool = True
    batch_size: int = 128
    threads: int | None = None


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
class AblateRequest:
    grid: Path
    labels: Path
    student: str
    out: Path
    dry_run: bool = False
    retry_failed: bool = False
    cluster: Any = None
    root: Path | None = None
    force_unlock: bool = False


@dataclass(frozen=True, kw_only=True)
class AblateResult:
    cells: dict[str, int] = field(default_factory=lambda: {"finished": 3, "failed": 1, "skipped": 2, "missing": 0})
    failures: tuple[dict[str, str], ...] = ({"name": "steps=5 seed=0", "message": "the loss became nan"},)
    exit_code: int = 5


@dataclass(frozen=True, kw_only=True)
class ReportRequest:
    folder: Path
    out: Path
    labels: Path | None = None
    root: Path | None = None
    student: str | None = None


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


@dataclass(frozen=True, kw_only=True)
class ShowRequest:
    path: Path


SHOWN = {
    "number": 1, "setting": "[red]base", "is_base": True, "seeds": [0, 1], "changes": {}, "seconds": 61.0,
    "trainable_parameters": 12288, "final_loss": 2.0, "loss": [3.0, 2.5, 2.0],
    "measures": {"held_out": {"top1": 0.4, "spread": 0.01, "difference": None, "verdict": "base"}},
}  # fmt: skip


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
    headline: tuple[str, ...] = ("2 runs of 1 setting.",)
    not_counted: tuple[dict[str, str], ...] = ({"name": "r3", "kind": "damaged", "why": "cut short", "hint": ""},)
    config: dict[str, Any] = field(default_factory=lambda: {"steps": 60})
    figures: dict[str, Any] = field(default_factory=dict)
    next: str = "teachonce report runs --out report.html"


@dataclass(frozen=True, kw_only=True)
class DemoRequest:
    out: Path
    seeds: int = 1
    workers: int = 1
    train_models: Path | None = None


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    table: tuple[dict[str, Any], ...] = ({"prompts": "none", "top1": 0.5}, {"prompts": "unshared", "top1": 0.75})
    paths: dict[str, str] = field(default_factory=lambda: {"labels": "demo/labels.zarr"})
    seconds: float = 30.0


@dataclass(frozen=True, kw_only=True)
class IndexRequest:
    manifest: str
    root: Path | None
    split: str | None = None
    digests: bool = False


@dataclass(frozen=True, kw_only=True)
class IndexResult:
    manifest: str = "m"
    splits: tuple[dict[str, Any], ...] = ({"split": "train", "images": 1200},)
    faults: tuple[dict[str, Any], ...] = ()
    seconds: float = 1.5
    exit_code: int = 0


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    teach: TeachRequest
    rate: float | None = None
    seconds: float = 30.0
    out: Path | None = None


@dataclass(frozen=True, kw_only=True)
class PlanResult:
    rows: int = 1200
    estimates: tuple[dict[str, Any], ...] = ({"what": "bytes", "low": 1.0, "high": 2.0, "unit": "bytes"},)
    fits: bool = True
    exit_code: int = 0


STAGES = ("index", "plan", "teach", "inspect", "verify", "relabel", "merge", "subset", "train", "cache", "evaluate")
NAMES = (
    *STAGES,
    "ablate",
    "status",
    "export",
    "pack",
    "report",
    "show",
    "import_",
    "demo",
    "rehearse",
    "evaluate_protocol",
)


class Stubs:
    """Stub stages that remember what they were asked, and can be told how to end.

    Attributes:
        requests: every request, in order.
        problem: raised by the next stage instead of returning.
        result: returned instead of the usual result.
    """

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.problem: BaseException | None = None
        self.result: Any = None

    def module(self, name: str) -> types.ModuleType:
        """The stub of one stage, as `teachonce.stages.<name>`."""
        made = types.ModuleType(f"teachonce.stages.{name}")
        if name == "rehearse":
            made.rehearse_half = lambda *asked: self._asked(*asked)  # type: ignore[attr-defined]
            return made
        if name == "evaluate_protocol":
            made.ProtocolRequest = ProtocolRequest  # type: ignore[attr-defined]
            made.evaluate_protocol = self._protocol  # type: ignore[attr-defined]
            return made
        if name == "plan":
            made.compare = lambda *asked: self._asked(*asked)  # type: ignore[attr-defined]
        request = f"{name.strip('_').capitalize()}Request"
        result_type = globals()[f"{name.strip('_').capitalize()}Result"]

        def stage(request: Any, reporter: Any) -> Any:
            self.requests.append(request)
            act(reporter)
            if self.problem is not None:
                raise self.problem
            return result_type() if self.result is None else self.result

        setattr(made, request, globals()[request])
        setattr(made, name, stage)
        return made

    def _protocol(self, request: Any, reporter: Any) -> Any:
        self.requests.append(request)
        return ProtocolResult()

    def _asked(self, *asked: Any) -> Any:
        """A stage that takes something else than one request."""
        self.requests.append(asked[:-1])
        return PlanResult()


def act(reporter: Any) -> None:
    """Do what STUB_ACT says."""
    what = os.environ.get("STUB_ACT", "")
    mark = os.environ.get("STUB_MARK")
    try:
        if what == "print":
            sys.stdout.write("a library prints\n")
            os.system("echo a child prints")
        if what.startswith("progress"):
            for done in range(0, 60 if what.endswith("fail") else 101, 20):
                reporter.progress("labels", done, 100, "rows", failed=1)
        if what.endswith("fail"):
            raise DataError("no such archive: a.tar", "check --root")
        if what == "sleep":
            reporter.note("sleeping")
            time.sleep(60)
    finally:
        if mark:
            Path(mark).write_text("cleaned up")


def main() -> None:
    """`teachonce` with all stages replaced."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests themselves run in the background
    stubs = Stubs()
    for name in NAMES:
        sys.modules[f"teachonce.stages.{name}"] = stubs.module(name)
    from teachonce.cli import main as run

    run()


if __name__ == "__main__":
    main()
