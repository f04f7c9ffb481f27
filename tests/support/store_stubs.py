"""Results of the stages that make and keep label stores, as the command line uses them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

WORKER = {
    "name": "gpu-3",
    "host": "node7",
    "pid": 12,
    "device": "cuda:0 NVIDIA H200",
    "state": "working",
    "chunks": 3,
    "rows": 1200,
    "rows_per_second": 12.5,
    "shares": {"wait": 0.25, "forward": 0.75},
    "memory_bytes": 3 * 2**30,
    "seconds_since_sign": 4.0,
    "slow": True,
}


@dataclass(frozen=True, kw_only=True)
class TeachResult:
    rows_ok: int = 1200
    rows_failed: int = 0
    rows_per_second: float = 12.5
    chunks_written: int = 3
    chunks_skipped: int = 0
    seconds: float = 96.0
    bytes_per_row: dict[str, float] = field(default_factory=lambda: {"labels": 152.5, "total": 152.5})
    workers: tuple[dict[str, Any], ...] = (WORKER,)
    labels: str = "labels.zarr"
    store_id: str = "f00d"


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
class StopResult:
    labels: str = "labels.zarr"
    process: dict[str, Any] = field(default_factory=lambda: {"host": "box", "pid": 7, "alive": True})
    workers: int | None = 2
    ended: bool = False
    chunks: int | None = None
    chunks_committed: int | None = None
    seconds: float = 0.5
    said: str = "process 7 on box ends"


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
class Finding:
    what: str = "open files"
    standing: str = "WARN"
    found: str = "512 a process"
    remedy: str = "ulimit -n 65536"


@dataclass(frozen=True, kw_only=True)
class DoctorResult:
    findings: tuple[Finding, ...] = (Finding(), Finding(what="zarr", standing="OK", found="3.1.6", remedy=""))
    warnings: int = 1
    failures: int = 0
    path: str = "."
    model: str | None = None
    exit_code: int = 0


@dataclass(frozen=True, kw_only=True)
class ClusterCheckResult:
    findings: tuple[Finding, ...] = (Finding(what="memory", standing="OK", found="48.0 GB by SLURM", remedy=""),)
    warnings: int = 0
    failures: int = 0
    worker: None = None
    seconds: float = 12.5
    exit_code: int = 0


@dataclass(frozen=True, kw_only=True)
class ClusterScriptResult:
    script: str = "#!/usr/bin/env bash\n"
    workers: int = 8
    out: str | None = "teach.sh"


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
class SubsetResult:
    samples: int = 160
    rows: int = 160
    classes: int = 10
    classes_short: int = 1
    short: dict[str, int] = field(default_factory=lambda: {"n01": 3})
    left_out: int = 0
    digest: str = "f00d"
    out: str = "few.json"


@dataclass(frozen=True, kw_only=True)
class AuditResult:
    headline: tuple[str, ...] = ("12 of 160 labels are probably wrong.",)
    samples: int = 160
    labelled: int = 160
    found: dict[str, int] = field(default_factory=lambda: {"label": 12, "duplicate": 3})
    left_out: int = 15
    share_wrong: float | None = 0.08
    confident_learning: float | None = 0.1
    classes_without_photos: int = 1
    calibration: dict[str, float] = field(default_factory=lambda: {"ece": 0.1})
    drift: dict[str, float] = field(default_factory=dict)
    compared_by: str = "the teacher's image embeddings"
    out: str = "audit.html"
    list: str = "audit.csv"
    files: str = "audit-files"
    seconds: float = 5.0


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
class IndexResult:
    manifest: str = "m"
    splits: tuple[dict[str, Any], ...] = ({"split": "train", "images": 1200},)
    faults: tuple[dict[str, Any], ...] = ()
    seconds: float = 1.5
    exit_code: int = 0


@dataclass(frozen=True, kw_only=True)
class PlanResult:
    rows: int = 1200
    estimates: tuple[dict[str, Any], ...] = ({"what": "bytes", "low": 1.0, "high": 2.0, "unit": "bytes"},)
    fits: bool = True
    exit_code: int = 0


@dataclass(frozen=True, kw_only=True)
class PushResult:
    labels: str = "labels.zarr"
    target: str = "s3://bucket/labels.zarr"
    store_id: str = "f00d"
    files: int = 90
    bytes: int = 1_000_000
    sent_files: int = 90
    sent_bytes: int = 1_000_000
    seconds: float = 2.0


@dataclass(frozen=True, kw_only=True)
class PullResult:
    source: str = "s3://bucket/labels.zarr"
    labels: str = "labels.zarr"
    store_id: str = "f00d"
    files: int = 90
    bytes: int = 1_000_000
    fetched_files: int = 90
    fetched_bytes: int = 1_000_000
    seconds: float = 2.0
