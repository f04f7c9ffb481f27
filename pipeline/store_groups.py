"""The column groups of a store: what is committed together, and which groups a hierarchy holds.

It reads attributes, never rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import zarr

from teachonce import store_format
from teachonce.ledger import fingerprint_digest
from teachonce.store_format import EMBEDDING, ArraySpec, Layout


@dataclass(frozen=True)
class Group:
    """A column group: what is committed together, chunk by chunk."""

    name: str
    fingerprint: dict[str, Any]
    arrays: tuple[ArraySpec, ...]

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the fingerprint without `about`, which is for people."""
        return fingerprint_digest({field: value for field, value in self.fingerprint.items() if field != "about"})


def group_arrays(name: str, body: dict[str, Any], layout: Layout) -> tuple[ArraySpec, ...]:
    """The arrays of a column group other than `labels`, from its attributes."""
    width = int(body["width"])
    if name == EMBEDDING:
        return store_format.embedding_arrays(body["fingerprint"]["kind"], width, layout)
    return store_format.student_arrays(name, width)


def other_groups(root: zarr.Group) -> list[tuple[str, dict[str, Any]]]:
    header: Any = root["ledger"].attrs["header"]
    students = root["students"].group_keys() if "students" in root else ()  # type: ignore[union-attr]
    names = [EMBEDDING, *(f"students/{name}" for name in sorted(students))]
    # Only what the header knows: a run may have died while it made a group.
    return [(name, dict(root[name].attrs["teachonce"])) for name in names  # type: ignore[arg-type]
            if f"{name}/zarr.json" in header["files"]]  # fmt: skip
