"""Label stores in a bucket, compared with those in a folder; what killed and late processes leave there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import worlds
from object_servers import moto_server

from teachonce.core.progress import Silent
from teachonce.keeping.bucket import BucketKeeper
from teachonce.keeping.claims import Claim, claim_key
from teachonce.labels.direct import record_key
from teachonce.labels.format import LABELS, chunk_key
from teachonce.labels.store import LabelStore
from teachonce.objects.bucket import BucketObjects
from teachonce.objects.remote import location
from teachonce.stages.verify import VerifyRequest, verify


@contextmanager
def moto_bucket(home: Path) -> Iterator[BucketObjects]:
    """An empty bucket of a server inside this process."""
    with pytest.MonkeyPatch.context() as patch, moto_server(home) as server:
        server.use(patch)
        server.make_bucket("stores")
        yield BucketObjects("s3", "stores")


def differing(bucket: BucketObjects, name: str, whole: Path) -> list[str]:
    """Files outside the ledger's records that the two stores have not in common."""
    there = {entry.key.partition("/")[2] for entry in bucket.list(name)}
    here = {file.relative_to(whole).as_posix() for file in worlds.files_of(whole)}
    names = {key for key in there | here if not ("ledger/" in key and "/c/" in key)}
    other = []
    for key in names:
        stored = bucket.get(f"{name}/{key}")
        if stored is None or not (whole / key).is_file() or stored.data != (whole / key).read_bytes():
            other.append(key)
    return sorted(other)


def require_same(bucket: BucketObjects, name: str, whole: Path) -> None:
    """Equal ids, equal files, sound, and nothing left beside the store."""
    store = LabelStore.open(location(f"{bucket.place}/{name}"))
    assert store.store_id() == LabelStore.open(whole).store_id()
    assert differing(bucket, name, whole) == []
    assert verify(VerifyRequest(labels=store.path), Silent()).ok
    assert [entry.key for entry in bucket.list() if entry.key.startswith(f"{name}.")] == []


def claim_again(store: LabelStore, chunk: int) -> Claim:
    """Put a chunk of the labels back to where a driver was killed: claimed, half copied, and without a record."""
    keeper, record = BucketKeeper(store.path), record_key(LABELS, chunk)
    files, held = {}, keeper.read(record)
    assert held is not None
    for spec in store.groups[LABELS].arrays:
        stored = keeper.read(chunk_key(spec, chunk))
        assert stored is not None
        files[chunk_key(spec, chunk)] = stored.data
    claim = Claim(
        group=LABELS,
        chunk=chunk,
        fingerprint=store.groups[LABELS].digest,
        by="a driver that was killed",
        record_key=record,
        record=held.data.hex(),
        files=keeper.hand_over(1, chunk, files)[1],
    )
    keeper.objects.put(claim_key(keeper.name, LABELS, chunk), claim.to_bytes())
    keeper.remove(record)
    for file in claim.files[1:]:
        keeper.remove(file.target)
    return claim
