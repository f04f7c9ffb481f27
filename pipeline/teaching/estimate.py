"""Ranges for what a run of stage one will take, computed from a rehearsal or from a stated rate.

This module opens nothing and measures nothing; `rehearsal` does.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teachonce.core.documents import json_in, mapping
from teachonce.core.outside import read_plain
from teachonce.errors import DataError
from teachonce.models.spec import LOCAL_DIR, UNSAID, EmbeddingKind, parse_spec

if TYPE_CHECKING:
    from teachonce.teaching.rehearsal import Rehearsal

# Outcomes beside the rehearsals of some fifty runs on two machines would be worth more than these; they are guesses at
# what a probe of seconds misses: other photos, a busy machine, overlap between chunks.
SLOWER, FASTER = 0.75, 1.25
SHARED = 0.8  # workers of one machine reach at least this share of the sum of their rates
BYTES_SPREAD = 0.08  # small chunks compress a little worse than large ones, and few photos are not all photos
MOST_CONFIG = 1 << 20  # bytes of a model's configuration
MOST_SHOWN = 40  # characters of a value in a message
# Fields of a store's label fingerprint that say which job it was, and those without which it is another one entirely.
JOB = (
    "manifest",
    "manifest_digest",
    "split",
    "vocabulary_digest",
    "views",
    "resize",
    "shots",
    "top_k",
    "precision",
    "templates",
    "teacher_digest",
)
ANOTHER = {"manifest", "manifest_digest", "split", "teacher_digest"}


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One figure of a plan."""

    what: str
    low: float
    high: float
    unit: str


def row_rates(probe: Rehearsal) -> tuple[float, float]:
    """Return the rows a second of one worker, low and high.

    Low is the rehearsal's own rate, chunk after chunk. High is what its phases allow where reading and decoding go on
    beside the model, as they do in a run: on a GPU whatever is slowest; on a CPU all of them share the cores.
    """
    feeding = (probe.phases["read"] + probe.phases["decode"]) / probe.threads
    model = probe.phases["forward"] + probe.phases["top_k"]
    busy = max(feeding, model, probe.phases["write"]) if probe.device != "cpu" else feeding + model
    plain = probe.rows / probe.seconds
    return plain * SLOWER, max(plain, probe.rows / max(busy, 1e-9)) * FASTER


def all_workers(rates: tuple[float, float], workers: int) -> tuple[float, float]:
    """Return the rates of several workers that share a machine; each was rehearsed with its share of the cores."""
    return rates[0] * workers * (SHARED if workers > 1 else 1.0), rates[1] * workers


def store_bytes(probe: Rehearsal, rows: int) -> list[Estimate]:
    """Estimate the bytes of each part of the store, as `labels.size.bytes_per_row` names them."""
    spread = {"index": 4 * BYTES_SPREAD}  # the index of the probe holds names and places of a few archives, not of all
    if not probe.named:  # top classes of a made-up matrix are closer to each other than real ones
        spread["labels"] = 4 * BYTES_SPREAD
    parts = [
        _bytes(
            part, rows * each * (1 - spread.get(part, BYTES_SPREAD)), rows * each * (1 + spread.get(part, BYTES_SPREAD))
        )
        for part, each in probe.bytes_per_row.items()
        if each
    ]
    return [*parts, _bytes("fixed", 0.9 * probe.fixed_bytes, 1.5 * probe.fixed_bytes + rows / 16)]


def stated_bytes(
    rows: int, top_k: int, widths: Mapping[str, int | None], embeddings: EmbeddingKind | None, classes: int
) -> list[Estimate]:
    """Estimate the same without a rehearsal: at best as on real teachers (docs/label-store.md), at worst uncompressed.

    Args:
        widths: embedding width by `teacher` and by student; None where only the model would tell.
    """
    labels = (17 + 1.1 * top_k, 30 + 3.2 * top_k) if classes <= 65_535 else (17 + 1.1 * top_k, 30 + 5.2 * top_k)
    parts = [_bytes("labels", rows * labels[0], rows * labels[1]), _bytes("index", rows * 4.0, rows * 60.0)]
    for name, width in widths.items():
        unknown = (256, 1280) if width is None else (width, width)
        if name != "teacher":
            parts.append(_bytes("features", rows * 1.7 * unknown[0], rows * 2.05 * unknown[1]))
        elif embeddings is not None:
            size = 1.0 if embeddings == "int8" else 2.0
            parts.append(_bytes("embeddings", rows * 0.8 * size * unknown[0], rows * 1.05 * size * unknown[1]))
    return parts


def job_of(fingerprint: Mapping[str, Any], groups: Iterable[str]) -> dict[str, Any]:
    """Return what a plan keeps of its planned store, to be compared with the store that was taught.

    Args:
        fingerprint: the fingerprint of the labels, as far as it is known.
        groups: the column groups that the run fills; none if they are not known.
    """
    fields = {name: fingerprint[name] for name in JOB if name in fingerprint}
    return {"shots": None, **UNSAID, **fields, "groups": sorted(groups)}


def differences(planned: Mapping[str, Any], taught: Mapping[str, Any]) -> dict[str, str]:
    """Say in words, by field, how two results of `job_of` differ; a field that only one of them has is passed over."""
    differing = {}
    for name in (name for name in JOB if name in planned and name in taught):
        of_another_run = name == "top_k" and not planned[name]  # a student is added to what a teacher has labelled
        if planned[name] != taught[name] and not of_another_run:
            differing[name] = f"{name} {_in_message(planned[name])} planned, {_in_message(taught[name])} taught"
    planned_groups, taught_groups = set(planned.get("groups", ())), set(taught["groups"])
    for what, lacking in (
        ("not taught", planned_groups - taught_groups),
        ("not planned", taught_groups - planned_groups),
    ):
        if lacking and planned_groups:
            differing[what] = f"{', '.join(sorted(lacking))} {what}"
    return differing


def _in_message(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def _bytes(part: str, low: float, high: float) -> Estimate:
    return Estimate(what=f"bytes of {part}", low=float(round(low)), high=float(round(high)), unit="bytes")


def embedding_width_of(spec: str) -> int | None:
    """Return the width of a model's joint embedding as its configuration file says; None without such a file."""
    name, _ = parse_spec(spec)
    if name.startswith(LOCAL_DIR):
        path = Path(name[len(LOCAL_DIR) :]) / "open_clip_config.json"
        try:
            return _width(mapping(json_in(read_plain(path, MOST_CONFIG))).get("model_cfg"))
        except (OSError, ValueError) as problem:
            raise DataError(f"{path} cannot be read: {problem}", "give a folder as open_clip writes it") from problem
    package = importlib.util.find_spec("open_clip")  # find_spec does not run open_clip
    if package is None or package.origin is None:
        return None
    path = Path(package.origin).parent / "model_configs" / f"{name}.json"
    return _width(json_in(path.read_bytes())) if path.is_file() else None


def _width(config: object) -> int | None:
    width = config.get("embed_dim") if isinstance(config, dict) else None
    return width if isinstance(width, int) else None
