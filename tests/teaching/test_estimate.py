"""Estimates are ranges from a rehearsal's figures, or from the format where nothing was tried."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from teachonce.errors import UsageError
from teachonce.teaching.estimate import (
    FASTER,
    SLOWER,
    all_workers,
    embedding_width_of,
    row_rates,
    stated_bytes,
    store_bytes,
)
from teachonce.teaching.rehearsal import Rehearsal

PROBE = Rehearsal(
    rows=100,
    failed=0,
    seconds=10.0,
    threads=2,
    image_bytes=1e5,
    fixed_bytes=1000,
    names_seconds=1.0,
    named=True,
    bytes_per_row={"labels": 200.0, "embeddings": 0.0, "features": 50.0, "index": 8.0},
    worker_bytes=10**9,
    device_bytes=0,
    device="cpu",
    phases={"read": 0.2, "decode": 7.8, "wait": 3.0, "forward": 4.0, "top_k": 1.0, "write": 0.5},
)


def test_a_range_holds_the_rate_that_was_measured() -> None:
    """Low: slower than the rehearsal. High: at least as fast as it."""
    low, high = row_rates(PROBE)
    assert low == pytest.approx(10 * SLOWER) and high == pytest.approx(100 / 9 * FASTER)
    assert low < 10 < high


def test_on_a_gpu_the_slowest_phase_decides() -> None:
    """Decoding goes on beside the model: 4 s of decoding on two threads, 5 s of the model."""
    gpu = dataclasses.replace(PROBE, device="cuda:0")
    assert row_rates(gpu)[1] == pytest.approx(100 / 5 * FASTER)
    slow_disk = dataclasses.replace(gpu, phases={**PROBE.phases, "read": 40.2})
    assert row_rates(slow_disk)[1] == pytest.approx(10 * FASTER), "not below what was measured"


def test_workers_add_up_to_no_more_than_their_sum() -> None:
    """Two reach between 80 and 100 per cent of twice one."""
    assert all_workers((10.0, 12.0), 1) == (10.0, 12.0)
    assert all_workers((10.0, 12.0), 2) == (16.0, 24.0)


def test_bytes_grow_with_rows_and_parts_without_rows_are_left_out() -> None:
    """8 per cent either way; the fixed part does not grow."""
    small, large = store_bytes(PROBE, 1000), store_bytes(PROBE, 10_000)
    assert [e.what for e in small] == ["bytes of labels", "bytes of features", "bytes of index", "bytes of fixed"]
    assert small[0].low < 200_000 < small[0].high and large[0].low == pytest.approx(10 * small[0].low, abs=10)
    assert large[-1].low == small[-1].low
    made_up = store_bytes(dataclasses.replace(PROBE, named=False), 1000)
    assert made_up[0].high > 1.2 * small[0].high and made_up[1] == small[1]


def test_bytes_without_a_rehearsal_hold_those_of_real_stores() -> None:
    """Figures of docs: 208 bytes a row of labels at k = 100 of 21,841; 474 of a student of width 256; int8 256 wide."""
    widths = {"teacher": 256, "student 0": 256}
    estimates = {e.what: e for e in stated_bytes(1000, 100, widths, "int8", 21_841)}
    for what, real in (
        ("bytes of labels", 208.2),
        ("bytes of features", 474.3),
        ("bytes of index", 7.9),
        ("bytes of embeddings", 256 * 0.93),
    ):
        assert estimates[what].low <= 1000 * real <= estimates[what].high, what
    unknown = {e.what: e for e in stated_bytes(1000, 100, {"student 0": None}, None, 21_841)}
    assert (
        "bytes of embeddings" not in unknown and unknown["bytes of features"].high > estimates["bytes of features"].high
    )
    wide = {e.what: e for e in stated_bytes(1000, 100, {}, None, 70_000)}
    assert wide["bytes of labels"].high > estimates["bytes of labels"].high


def test_widths_come_from_configuration_files(tmp_path: Path) -> None:
    """Of a folder, of an architecture that open_clip ships; nothing is loaded, and nobody guesses."""
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"embed_dim": 48}}))
    assert embedding_width_of(f"local-dir:{tmp_path}") == 48
    assert embedding_width_of("ViT-L-14/openai") == 768
    assert embedding_width_of("hf-hub:org/name") is None
    for spec in (f"local-dir:{tmp_path / 'gone'}", "NoSuch/tag"):
        with pytest.raises(UsageError):
            embedding_width_of(spec)
