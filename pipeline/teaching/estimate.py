"""What a run of stage one will take, as ranges: arithmetic on a rehearsal, or on a stated rate.

It opens nothing and measures nothing; `rehearsal` does.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teachonce.models.spec import LOCAL_DIR, EmbeddingKind, parse_spec

if TYPE_CHECKING:
    from teachonce.teaching.rehearsal import Rehearsal

# Outcomes beside the rehearsals of some fifty runs on two machines would be worth more than these; they are guesses at
# what a probe of seconds misses: other photos, a busy machine, overlap between chunks.
SLOWER, FASTER = 0.75, 1.25
SHARED = 0.8  # of their sum, that workers of one machine reach at least
BYTES_SPREAD = 0.08  # small chunks compress a little worse than large ones, and few photos are not all photos
MOST_SHOWN = 40  # characters of a value in a message
# Fields of a store's label fingerprint that say which job it was, and those without which it is another one entirely.
JOB = (
    "manifest",
    "manifest_digest",
    "split",
    "vocabulary_digest",
    "views",
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
    """Rows a second of one worker, low and high.

    Low is the rehearsal's own rate, chunk after chunk. High is what its phases allow where reading and decoding go on
    beside the model, as they do in a run: on a GPU whatever is slowest; on a CPU all of them share the cores.
    """
    feeding = (probe.phases["read"] + probe.phases["decode"]) / probe.threads
    model = probe.phases["forward"] + probe.phases["top_k"]
    busy = max(feeding, model, probe.phases["write"]) if probe.device != "cpu" else feeding + model
    plain = probe.rows / probe.seconds
    return plain * SLOWER, max(plain, probe.rows / max(busy, 1e-9)) * FASTER


def all_workers(rates: tuple[float, float], workers: int) -> tuple[float, float]:
    """The same for several workers that share a machine; each was rehearsed with its share of the cores."""
    return rates[0] * workers * (SHARED if workers > 1 else 1.0), rates[1] * workers


def store_bytes(probe: Rehearsal, rows: int) -> list[Estimate]:
    """Bytes of each part of the store, as `store_size.bytes_per_row` names them."""
    spread = {"index": 4 * BYTES_SPREAD}  # names and places of a few archives, beside those of all
    if not probe.named:  # top classes of a made-up matrix are closer to each other than real ones
        spread["labels"] = 4 * BYTES_SPREAD
    found = [
        _bytes(
            part, rows * each * (1 - spread.get(part, BYTES_SPREAD)), rows * each * (1 + spread.get(part, BYTES_SPREAD))
        )
        for part, each in probe.bytes_per_row.items()
        if each
    ]
    return [*found, _bytes("fixed", 0.9 * probe.fixed_bytes, 1.5 * probe.fixed_bytes + rows / 16)]


def stated_bytes(
    rows: int, top_k: int, widths: Mapping[str, int | None], embeddings: EmbeddingKind | None, classes: int
) -> list[Estimate]:
    """The same without a rehearsal, from the format: at best as on real teachers (docs/label-store.md), at worst raw.

    Args:
        widths: embedding width by `teacher` and by student; None where only the model would tell.
    """
    labels = (17 + 1.1 * top_k, 30 + 3.2 * top_k) if classes <= 65_535 else (17 + 1.1 * top_k, 30 + 5.2 * top_k)
    found = [_bytes("labels", rows * labels[0], rows * labels[1]), _bytes("index", rows * 4.0, rows * 60.0)]
    for name, width in widths.items():
        unknown = (256, 1280) if width is None else (width, width)
        if name != "teacher":
            found.append(_bytes("features", rows * 1.7 * unknown[0], rows * 2.05 * unknown[1]))
        elif embeddings is not None:
            size = 1.0 if embeddings == "int8" else 2.0
            found.append(_bytes("embeddings", rows * 0.8 * size * unknown[0], rows * 1.05 * size * unknown[1]))
    return found


def job_of(fingerprint: Mapping[str, Any], groups: Iterable[str]) -> dict[str, Any]:
    """What a plan keeps of the store that it is for, to be held against the one that was taught.

    Args:
        fingerprint: of the labels, as far as it is known.
        groups: the column groups that the run fills; none where they are not known.
    """
    known = {name: fingerprint[name] for name in JOB if name in fingerprint}
    return {"shots": None, **known, "groups": sorted(groups)}


def differences(planned: Mapping[str, Any], taught: Mapping[str, Any]) -> dict[str, str]:
    """In words, by field, what `job_of` tells otherwise; fields that only one of them knows are passed over."""
    found = {}
    for name in (name for name in JOB if name in planned and name in taught):
        of_another_run = name == "top_k" and not planned[name]  # a student is added to what a teacher has labelled
        if planned[name] != taught[name] and not of_another_run:
            found[name] = f"{name} {_told(planned[name])} planned, {_told(taught[name])} taught"
    ours, theirs = set(planned.get("groups", ())), set(taught["groups"])
    for what, lacking in (("not taught", ours - theirs), ("not planned", theirs - ours)):
        if lacking and ours:
            found[what] = f"{', '.join(sorted(lacking))} {what}"
    return found


def _told(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def _bytes(part: str, low: float, high: float) -> Estimate:
    return Estimate(what=f"bytes of {part}", low=float(round(low)), high=float(round(high)), unit="bytes")


def embedding_width_of(spec: str) -> int | None:
    """Width of a model's joint embedding as its configuration file says; None where that is not at hand."""
    name, _ = parse_spec(spec)
    if name.startswith(LOCAL_DIR):
        path = Path(name[len(LOCAL_DIR) :]) / "open_clip_config.json"
        return _width(json.loads(path.read_text(encoding="utf-8")).get("model_cfg"))
    found = importlib.util.find_spec("open_clip")  # does not run it
    if found is None or found.origin is None:
        return None
    path = Path(found.origin).parent / "model_configs" / f"{name}.json"
    return _width(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def _width(config: object) -> int | None:
    width = config.get("embed_dim") if isinstance(config, dict) else None
    return width if isinstance(width, int) else None
