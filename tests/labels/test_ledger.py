"""The ledger binds content to its place: a record is bound to group, array, chunk and bytes."""

from __future__ import annotations

import time

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from teachonce.labels.ledger import COMMITTED, Record, chunk_digest, from_row, to_row


@given(
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**40),
    st.integers(0, 2**40),
    st.lists(st.binary(min_size=16, max_size=16)),
)
def test_a_record_comes_back_from_its_row(token: int, ok: int, failed: int, digests: list[bytes]) -> None:
    """Token, counts and digests survive as 64-bit words; an empty row is no record."""
    row = to_row(token, ok, failed, digests)
    record = from_row(row)
    assert isinstance(record, Record)
    assert (record.token, record.rows_ok, record.rows_failed, record.digests) == (token, ok, failed, tuple(digests))
    assert abs(record.time_us / 1e6 - time.time()) < 60
    assert from_row(np.zeros_like(row)) is None and int(row[0]) == COMMITTED


def test_a_digest_binds_all_that_a_chunk_is() -> None:
    """Another fingerprint, array, chunk, type, shape or value: another digest."""
    data = np.arange(6, dtype=np.uint16).reshape(3, 2)
    changed = data.copy()
    changed[2, 1] += 1
    digests = [
        chunk_digest("f", "gaps", 0, data),
        chunk_digest("g", "gaps", 0, data),
        chunk_digest("f", "ids", 0, data),
        chunk_digest("f", "gaps", 1, data),
        chunk_digest("f", "gaps", 0, data.astype(np.uint32)),
        chunk_digest("f", "gaps", 0, data.reshape(2, 3)),
        chunk_digest("f", "gaps", 0, changed),
        chunk_digest("f", "gaps", 0, data.view(np.int16)),
    ]
    assert len(set(digests)) == len(digests)
    assert chunk_digest("f", "gaps", 0, np.asfortranarray(data)) == digests[0]
    assert all(len(digest) == 16 for digest in digests)
