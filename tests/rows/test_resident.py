"""However a step's rows come to the device, they are the same bits; and which way is taken follows from sizes alone."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from teachonce.errors import IntegrityError
from teachonce.rows import resident
from teachonce.rows.resident import ResidentRows, RowsAhead, RowSource, StepRows, Wanted, source_of, stay_on_device
from teachonce.rows.working_set import Batch, WorkingSet

ROWS, CPU = 50, torch.device("cpu")
EVERYTHING = Wanted(features=True, soft=True, temperature=1, embedding=True, best=2)
WANTED = {
    "everything": EVERYTHING,
    "soft labels without a tail": Wanted(features=True, soft=True),
    "labels alone": Wanted(),
    "embeddings": Wanted(features=True, embedding=True, best=3),
    "all stored classes with their probabilities": Wanted(features=True, best_probs=True),
}
WAYS = [ResidentRows, RowsAhead]


def some_rows(classes: int = 100, k: int = 4) -> WorkingSet:
    """Made-up rows, some of which have no label or fewer classes than others."""
    random = np.random.default_rng(0)
    ids = random.integers(0, classes, (ROWS, k)).astype(np.int32)
    log_probs = np.log(random.random((ROWS, k))).astype(np.float32)
    ids[::5, -1:], log_probs[::5, -1:] = -1, -np.inf
    columns = Batch(
        features=random.normal(size=(ROWS, 8)).astype(np.float16),
        label=random.integers(-1, classes, ROWS),
        class_ids=ids,
        log_probs=log_probs,
        log_residual=random.normal(size=(ROWS, 3)).astype(np.float32),
        row=3 * np.arange(ROWS),
        embedding=random.normal(size=(ROWS, 6)).astype(np.float32),
    )

    class Rows:
        vocabulary, records, label_column = range(classes), {"row": columns.row}, columns.label.astype(np.int32)

        def __len__(self) -> int:
            return ROWS

        def batch(self, places: Any) -> Batch:
            return Batch(**{name: column[places] for name, column in vars(columns).items()})

    return cast(WorkingSet, Rows())


def require_same(ours: StepRows, plain: StepRows) -> None:
    """The same numbers: whole numbers as int64, all others in their type and to the bit."""
    for name in ("label", "best", "row", "best_probs"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(plain, name))
    for name, column in vars(plain.columns).items():
        read = getattr(ours.columns, name)
        assert (read is None) == (column is None), name
        if column is not None and column.is_floating_point():
            assert read.dtype == column.dtype and torch.equal(read, column), name
        elif column is not None:
            assert torch.equal(read.long(), column.long()), name


@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_the_bits_of_a_plain_read(
    way: type[RowSource], wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In any order, with rows twice; copied to the device in parts that do not divide the rows."""
    monkeypatch.setattr(resident, "_ROWS_AT_ONCE", 7)
    rows, random = some_rows(), np.random.default_rng(1)
    ours, plain = (kind(rows, WANTED[wanted], CPU) for kind in (way, RowSource))
    for size in (1, 9, ROWS, 3):
        places = random.integers(0, ROWS, size)
        require_same(ours.take(places), plain.take(places))


@pytest.mark.parametrize("classes", [32_767, 32_768, 200_000])
def test_class_numbers_are_whole_in_the_smaller_type(classes: int) -> None:
    """Up to the last class that 16 bits hold, and beyond."""
    rows = some_rows(classes)
    require_same(*(kind(rows, EVERYTHING, CPU).take(np.arange(ROWS)) for kind in (ResidentRows, RowSource)))
    kept = ResidentRows(rows, EVERYTHING, CPU).take(np.arange(3)).columns.class_ids
    assert kept is not None and kept.dtype == (torch.int16 if classes < 2**15 else torch.int32)


def test_rows_are_read_ahead_once_and_other_rows_than_announced_are_read_anew() -> None:
    """What was begun is used for the rows it was begun for, and for no others."""
    rows = some_rows()
    read, real = [], rows.batch
    rows.batch = lambda places: (read.append((places.tolist(), threading.current_thread())), real(places))[1]  # type: ignore[method-assign,assignment,func-returns-value]
    ahead, plain = RowsAhead(rows, EVERYTHING, CPU), RowSource(some_rows(), EVERYTHING, CPU)
    ahead.prefetch(lambda: np.arange(5))
    ahead.prefetch(lambda: np.arange(5))
    require_same(ahead.take(np.arange(5)), plain.take(np.arange(5)))
    assert [places for places, _ in read] == [list(range(5))] and read[0][1] is not threading.main_thread()
    ahead.prefetch(lambda: np.arange(9))
    require_same(ahead.take(np.arange(4)), plain.take(np.arange(4)))
    require_same(ahead.take(np.arange(9)), plain.take(np.arange(9)))


def test_what_goes_wrong_ahead_is_said_when_the_rows_are_taken() -> None:
    rows = some_rows()

    def broken(places: Any) -> Batch:
        raise IntegrityError("a file is gone")

    ahead = RowsAhead(rows, EVERYTHING, CPU)
    rows.batch = broken  # type: ignore[method-assign]
    ahead.prefetch(lambda: np.arange(2))
    with pytest.raises(IntegrityError, match="a file is gone"):
        ahead.take(np.arange(2))


def test_on_the_cpu_rows_are_read_when_asked_for_and_no_thread_begins() -> None:
    before = threading.active_count()
    source = source_of(some_rows(), EVERYTHING, CPU, taken=10**9)
    source.prefetch(lambda: pytest.fail("nothing is to be read ahead"))
    source.take(np.arange(3))
    assert type(source) is RowSource and not source.whereabouts and threading.active_count() == before


@pytest.mark.parametrize(
    ("rows", "bytes_of_row", "free", "taken", "stay"),
    [
        (1_000, 100, 250_000, 1_000, True),  # two fifths, to the byte
        (1_000, 100, 249_999, 1_000, False),
        (1_000, 100, 250_000, 500, True),
        (1_000, 100, 250_000, 499, False),  # most rows would be read for nothing
        (14_200_000, 1_024 + 100 * 6 + 8, int(78e9), 14_200_000, True),  # all of ImageNet-21K on 80 GB, one epoch
        (14_200_000, 1_024 + 100 * 6 + 8, int(40e9), 14_200_000, False),
        (167_200, 1_024 + 100 * 6 + 8, int(6e9), 600 * 256, True),  # 16 shots on a small card
    ],
)
def test_rows_stay_where_they_fit_and_are_taken_often_enough(
    rows: int, bytes_of_row: int, free: int, taken: int, stay: bool
) -> None:
    assert stay_on_device(rows, bytes_of_row, free, taken) is stay


@pytest.mark.parametrize(
    ("free", "taken", "kind"), [(9_000, 50, ResidentRows), (8_999, 50, RowsAhead), (10**6, 10, RowsAhead)]
)
def test_a_gpu_gets_the_way_that_its_memory_allows(
    free: int, taken: int, kind: type[RowSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row of everything takes 72 bytes here: features 16, label 4, classes 8, log-probabilities 16, tail 4, 24."""
    made = []
    for name in ("ResidentRows", "RowsAhead"):
        monkeypatch.setattr(resident, name, lambda *given, name=name: made.append(name))
    monkeypatch.setattr(resident, "free_bytes", lambda device: free)
    source_of(some_rows(), EVERYTHING, torch.device("cuda", 0), taken)
    assert made == [kind.__name__]


def test_the_size_of_rows_on_the_device_is_counted_to_the_byte() -> None:
    one = RowSource(some_rows(), EVERYTHING, CPU).take(np.zeros(1, np.int64)).columns.narrow(100)
    assert one.bytes == 16 + 4 + 2 * 4 + 4 * 4 + 4 + 4 * 6
    whole = ResidentRows(some_rows(), EVERYTHING, CPU)
    assert whole.whereabouts == f"all {ROWS} rows stay on the GPU: 0.0 GB"


def test_a_view_of_files_is_never_kept_by_the_host() -> None:
    """Labels and rows lie in memory of their own: a step never waits for the disk."""
    rows = some_rows()
    source = ResidentRows(rows, EVERYTHING, CPU)
    cast(SimpleNamespace, rows).label_column[:] = 77
    assert (source.take(np.arange(5)).label != 77).any()
