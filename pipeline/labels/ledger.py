"""The ledger: a Zarr array a column group, one commit record a chunk; a row exists only if its chunk is in it.

This module writes no data. A record binds each array's decoded bytes to the group's fingerprint, the array's name and
the chunk's index, so that a swapped, stale or foreign chunk file is as visible as a flipped bit.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import zarr

from teachonce.data.index import SampleIndex
from teachonce.errors import DataError, FingerprintError
from teachonce.labels.format import FORMAT_VERSION, ArrayForm
from teachonce.models.spec import UNSAID, Behaviour, Resize, unlike
from teachonce.phrases import phrase

COMMITTED = 1
RESIZES: tuple[Resize, ...] = get_args(Resize)
PHASES = ("read", "decode", "wait", "forward", "top_k", "write")
BEHAVIOURS = {"teacher": "teacher_behaviour", "student": "student_behaviour"}
"""The field of a fingerprint that holds the behaviour of each model; stores of early versions have none."""
IN_TURN = (
    "wait",
    "forward",
    "top_k",
    "write",
)  # the phases of a task that follow each other; the others run beside them
PLAIN_HEAD = 5  # state, run token, time in microseconds, rows ok, rows failed; before format version 3 that was all
HEAD = PLAIN_HEAD + len(PHASES)  # then two words of digest an array


@dataclass(frozen=True)
class Record:
    """One committed chunk."""

    token: int
    """Of the run that wrote it."""
    time_us: int
    rows_ok: int
    rows_failed: int
    digests: tuple[bytes, ...]
    """16 bytes an array, in the order of the group's arrays."""
    phases: Mapping[str, float] = field(default_factory=dict)
    """Seconds that the chunk took in each of PHASES; empty where the writer did not measure them. Reading and decoding
    are summed over threads."""

    @property
    def seconds(self) -> float:
        """Seconds that the chunk took: those of the phases that follow each other."""
        return sum(self.phases.get(phase, 0.0) for phase in IN_TURN)


def require_fingerprint(path: Path, group: str, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse a store that was made from something else; the key `about` is information and may differ.

    A model's behaviour is compared part by part, as far as both sides know the part.

    Raises:
        FingerprintError: names each differing field with both values.
    """
    fields = sorted((set(stored) | set(wanted)) - {"about"})
    different = [
        f"{f}: stored {stored.get(f, UNSAID.get(f))!r}, asked for {wanted.get(f, UNSAID.get(f))!r}"
        for f in fields
        if stored.get(f) != wanted.get(f) and f not in BEHAVIOURS.values()
    ]
    for role, field_name in BEHAVIOURS.items():
        parts = unlike(stored.get(field_name, {}), wanted.get(field_name, {}))
        different += [f"the {role} has the same weights and another {parts}"] if parts else []
    if different:
        raise FingerprintError(
            f"{path} ({group}) was made from something else:\n  " + "\n  ".join(different),
            hint=phrase(
                "use another {labels} path, or the options the store was made with (teachonce inspect shows them)"
            ),
        )


def resize_of(stored: Mapping[str, Any]) -> Resize:
    """Who resized the images of a store or of a column group, by its fingerprint.

    Raises:
        DataError: in a way that this version does not know.
    """
    resized_by = stored.get("resize", UNSAID["resize"])
    for known in RESIZES:
        if resized_by == known:
            return known
    raise DataError(
        f"its images were resized by {resized_by!r}, which this version does not know: {', '.join(RESIZES)}",
        hint="use the version of teachonce that made the store",
    )


def require_behaviour(path: Path, group: str, stored: Mapping[str, Any], here: Behaviour) -> None:
    """Refuse a student whose weights are those of a column group and whose images or texts go another way.

    Args:
        path: of the store.
        group: the column group of the student's features; where the student is the teacher, that of its embeddings.
        stored: its fingerprint.
        here: the behaviour of the student that is loaded.

    Raises:
        FingerprintError: names the parts that differ.
    """
    known = stored.get(BEHAVIOURS["student"]) or stored.get(BEHAVIOURS["teacher"], {})
    parts = unlike(known, here)
    if parts:
        raise FingerprintError(
            f"{path} ({group}) holds features of a student with the same weights and another {parts}",
            hint=phrase("load the student as it was then, or write its features to another {labels} store"),
        )


def chunk_digest(group_fingerprint: str, array: str, chunk: int, data: npt.NDArray[Any]) -> bytes:
    """BLAKE2b-128 over (group fingerprint, array name, chunk index, dtype, shape, decoded bytes)."""
    head = json.dumps([group_fingerprint, array, chunk, data.dtype.str, list(data.shape)]).encode()
    digest = hashlib.blake2b(head, digest_size=16)
    digest.update(np.ascontiguousarray(data).view(np.uint8).reshape(-1).data)
    return digest.digest()


def ledger_path(group: str) -> str:
    """Where a column group's ledger array lies in the store."""
    return "ledger/" + group.replace("/", "-")


def record_file(store: Path, group: str, chunk: int) -> Path:
    """The file that holds the record of a chunk."""
    return store / ledger_path(group) / "c" / str(chunk) / "0"


def ledger_form(chunks: int, arrays: int, version: int = FORMAT_VERSION) -> ArrayForm:
    """The form of the ledger of a column group with so many arrays, in a store of this format version."""
    width = (HEAD if version > 2 else PLAIN_HEAD) + 2 * arrays
    return ArrayForm(np.dtype(np.uint64), (chunks, width), (1, width), packed=False, required=False)


def create_ledger(root: zarr.Group, group: str, chunks: int, arrays: int) -> None:
    """Create the empty ledger of a column group: one small file a record, so that a commit is one atomic rename."""
    from zarr.codecs import Crc32cCodec

    form = ledger_form(chunks, arrays)
    root.create_array(
        ledger_path(group),
        shape=form.shape,  # type: ignore[arg-type]  # every length is fixed
        dtype=form.dtype,
        chunks=form.chunks,
        compressors=(Crc32cCodec(),),
        fill_value=0,
        config={"write_empty_chunks": True},
    )


def to_row(
    token: int, rows_ok: int, rows_failed: int, digests: Sequence[bytes], phases: Mapping[str, float] | None = None
) -> npt.NDArray[np.uint64]:
    """A record as the ledger holds it; phases in seconds, kept in microseconds."""
    words = np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)
    spent = [round(1e6 * max(0.0, (phases or {}).get(phase, 0.0))) for phase in PHASES]
    head = np.array([COMMITTED, token, time.time_ns() // 1000, rows_ok, rows_failed, *spent], dtype=np.uint64)
    return np.concatenate([head, words])


def from_row(row: npt.NDArray[np.uint64], version: int = FORMAT_VERSION) -> Record | None:
    """The record in a row of the ledger of a store of this format version; None where nothing is committed."""
    if int(row[0]) != COMMITTED:
        return None
    head = HEAD if version > 2 else PLAIN_HEAD
    spent = {PHASES[i]: int(word) / 1e6 for i, word in enumerate(row[PLAIN_HEAD:head])}
    data = row[head:].astype("<u8").tobytes()
    digests = tuple(data[i : i + 16] for i in range(0, len(data), 16))
    return Record(int(row[1]), int(row[2]), int(row[3]), int(row[4]), digests, spent if any(spent.values()) else {})


def key_digest(index: SampleIndex) -> npt.NDArray[np.uint64]:
    """BLAKE2b-128 over the keys of a chunk's samples and where each ends, as two little-endian words, [1, 2]."""
    digest = hashlib.blake2b(np.ascontiguousarray(index.key_ends, dtype="<u8").tobytes(), digest_size=16)
    digest.update(np.ascontiguousarray(index.key_bytes).tobytes())
    return np.frombuffer(digest.digest(), dtype="<u8").astype(np.uint64)[None]
