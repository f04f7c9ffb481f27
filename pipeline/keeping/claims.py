"""Claims: which of several deliveries of one chunk wins, where files cannot be moved into their place at once.

A chunk has several objects at fixed keys, so that plain Zarr reads them. Two drivers that copied their own objects
there at the same time could leave a mixture, whoever's record came first. So a delivery first writes a claim, which
only one can do, and only the objects that the claim names are ever copied. Whoever finds a claim without a record, a
second driver or the next one, finishes that claim and no other: the same objects, whoever copies them and how often.

A claim goes away after its record is there; so a driver looks for the record once more when it has won or seen a claim.
What workers left is removed after its chunk has a record, never before: else a driver that stood still between its last
copy and its record would write that record although another claim had taken its place. A claim whose objects are gone
all the same, or damaged, is replaced on the condition that it is still as it was read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from teachonce.core.documents import json_in
from teachonce.core.strict import decode_known

STAGING = ".staging"
CLAIMS = "claims"
PROBE = "probe-"
CREATING = "creating"  # is there from before the first file of a new store until after its last
MOST_CLAIM = 1 << 20  # bytes; a chunk with ten groups has a thousandth of it


@dataclass(frozen=True)
class StagedFile:
    """An object that a worker has left, and where it belongs."""

    target: str
    """Key below the store."""
    staged: str
    """Key below the store's staging folder."""
    digest: str
    """BLAKE2b-128 of its bytes."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The one delivery of a column group's chunk that may get into its place."""

    group: str
    chunk: int
    fingerprint: str
    """Digest of the group's fingerprint: a store that was made anew at this place has another one."""
    by: str
    """Who claims; different for every delivery, so that no two claims are equal."""
    record_key: str
    """Key of the ledger's record below the store."""
    record: str
    """The bytes of the record, as hex; empty: the claim was withdrawn, and holds nothing."""
    files: tuple[StagedFile, ...] = ()

    @property
    def is_withdrawn(self) -> bool:
        """Whether the next delivery may have the chunk."""
        return not self.record

    def to_bytes(self) -> bytes:
        """JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Claim:
        """Read `to_bytes` back.

        Raises:
            ValueError: it is no claim.
        """
        document = json_in(data, MOST_CLAIM)
        if not isinstance(document, Mapping):
            raise ValueError("it holds no table")
        files: Any = document.get("files", ())
        fields = {**document, "files": [decode_known(StagedFile, file, "file", ValueError) for file in files]}
        fields["files"] = tuple(fields["files"])
        claim = cls(**{name: fields[name] for name in cls.__dataclass_fields__})
        if not isinstance(claim.record, str) or not isinstance(claim.chunk, int):
            raise ValueError("its fields have other types")
        bytes.fromhex(claim.record)
        return claim


def staging_key(store: str, *parts: str) -> str:
    """Key of something in the staging folder of a store, which lies beside the store.

    Args:
        store: the last part of the store's place.
        parts: below the staging folder.
    """
    return "/".join((store + STAGING, *parts))


def claim_key(store: str, group: str, chunk: int) -> str:
    """Key of the claim of a column group's chunk."""
    return staging_key(store, CLAIMS, group.replace("/", "-"), str(chunk))


def digest_of(data: bytes) -> str:
    """BLAKE2b-128, as hex."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()
