"""The columns of a training step where the student computes: of all rows at once, or read a step ahead.

On the CPU a step's rows are read when they are asked for, and no thread is begun. On a GPU all rows of the set lie in
its memory and a step picks its own by number; where they do not fit, a thread reads the next step's rows into pinned
memory while the GPU works. All three ways give the same bits.

Shapes: N rows of the set, B rows of a step, k classes a row, E the student's embedding, D the teacher's.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from teachonce.rows.order import Places
from teachonce.rows.working_set import Batch, WorkingSet

SHARE_OF_MEMORY = 0.4  # of what is free; the rest is for the names' graphs, whose number follows what is left
_ROWS_AT_ONCE = 16_384  # that are decoded and copied to the device together
_GB = 1e9


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a run reads of its rows, beyond their labels."""

    features: bool = False
    """The student's image features."""
    soft: bool = False
    """The teacher's stored classes."""
    temperature: int | None = None
    """The column of `log_residual`; None: none."""
    embedding: bool = False
    """The teacher's image embeddings."""
    best: int = 0
    """How many of each row's best classes the host looks at."""
    best_probs: bool = False
    """Whether the host looks at their probabilities, and at all classes that are stored."""


@dataclass(frozen=True, eq=False)
class Columns:
    """Columns of some rows, on one device; None for those that are not read."""

    label: Tensor  # [B] whole numbers, -1 for none
    features: Tensor | None  # [B, E] float16
    class_ids: Tensor | None  # [B, k] whole numbers, -1 for none
    log_probs: Tensor | None  # [B, k] float32
    log_tail: Tensor | None  # [B] float32
    embedding: Tensor | None  # [B, D] float32

    @classmethod
    def of(cls, batch: Batch, wanted: Wanted) -> Columns:
        """Columns of a batch, on the CPU; they share its memory."""

        def tensor(column: npt.NDArray[np.generic] | None, is_read: bool) -> Tensor | None:
            return None if column is None or not is_read else torch.from_numpy(column)

        soft, tau = wanted.soft and batch.class_ids.shape[1] > 0, wanted.temperature
        return cls(
            torch.from_numpy(batch.label),
            tensor(batch.features, wanted.features),
            tensor(batch.class_ids, soft),
            tensor(batch.log_probs, soft),
            None if tau is None else tensor(batch.log_residual[:, tau], soft),
            tensor(batch.embedding, wanted.embedding),
        )

    def changed(self, change: Callable[[Tensor], Tensor]) -> Columns:
        """The same with a function applied to every column that there is."""
        columns: dict[str, Tensor | None] = vars(self)
        return Columns(**{name: None if x is None else change(x) for name, x in columns.items()})  # type: ignore[arg-type]

    def narrow(self, classes: int) -> Columns:
        """The same numbers in the smallest types that hold them.

        Args:
            classes: of the vocabulary.
        """
        ids = self.class_ids
        if ids is not None and classes <= torch.iinfo(torch.int16).max:
            ids = ids.to(torch.int16)
        return replace(self, label=self.label.to(torch.int32), class_ids=ids)

    @property
    def bytes(self) -> int:
        """Of all columns together."""
        return sum(x.numel() * x.element_size() for x in vars(self).values() if x is not None)


@dataclass(frozen=True, eq=False)
class StepRows:
    """The rows of a step: what the host decides by, and what the student's device computes with."""

    label: npt.NDArray[np.int64]  # [B] class of the vocabulary, -1 for none
    best: npt.NDArray[np.signedinteger]  # [B, m] the teacher's best classes, -1 for none
    row: npt.NDArray[np.int64]  # [B] row of the store
    columns: Columns
    best_probs: npt.NDArray[np.float32] | None = None  # [B, m] ln p of the best classes, where that was asked for


class RowSource:
    """Rows of a working set, read when they are asked for."""

    def __init__(self, rows: WorkingSet, wanted: Wanted, device: torch.device) -> None:
        self._rows, self._wanted, self._device = rows, wanted, device

    def take(self, places: Places) -> StepRows:
        """The rows with these numbers in the set, in this order."""
        return self._moved(self._read(places))

    def prefetch(self, places: Callable[[], Places]) -> None:
        """Begin with rows that `take` will ask for next, where that helps; only there it is asked which these are."""

    @property
    def whereabouts(self) -> str:
        """Where the rows are, for a note; empty where there is nothing to say."""
        return ""

    def _read(self, places: Places) -> StepRows:
        batch = self._rows.batch(places)
        best = batch.class_ids if self._wanted.best_probs else batch.class_ids[:, : self._wanted.best]
        probs = batch.log_probs if self._wanted.best_probs else None
        return StepRows(batch.label, best, batch.row, Columns.of(batch, self._wanted), probs)

    def _moved(self, read: StepRows) -> StepRows:
        return replace(read, columns=read.columns.changed(lambda x: _sent(x, self._device)))


class RowsAhead(RowSource):
    """Rows of a working set, read by a thread into pinned memory while the device is at the step before."""

    def __init__(self, rows: WorkingSet, wanted: Wanted, device: torch.device) -> None:
        super().__init__(rows, wanted, device)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rows")  # which ends with this object
        self._begun: tuple[Places, Future[StepRows]] | None = None

    def take(self, places: Places) -> StepRows:
        """The rows with these numbers in the set, in this order."""
        if self._begun is not None and np.array_equal(self._begun[0], places):
            read, self._begun = self._begun[1].result(), None
            return self._moved(read)
        return self._moved(self._pinned(places))

    def prefetch(self, places: Callable[[], Places]) -> None:
        """Begin with rows that `take` will ask for next; a problem with them shows there."""
        wanted = places()
        if self._begun is None or not np.array_equal(self._begun[0], wanted):
            self._begun = (wanted, self._thread.submit(self._pinned, wanted))

    @property
    def whereabouts(self) -> str:
        """Where the rows are, for a note."""
        return "the rows do not stay on the GPU: each step's are read while it works on the step before"

    def _pinned(self, places: Places) -> StepRows:
        read = self._read(places)
        return replace(read, columns=read.columns.changed(lambda x: pinned(x, self._device)))


class ResidentRows(RowSource):
    """Rows of a working set that all lie on the device; a step picks its own there."""

    def __init__(self, rows: WorkingSet, wanted: Wanted, device: torch.device) -> None:
        super().__init__(rows, wanted, device)
        self._label = np.array(rows.label_column, np.int64)
        self._row = np.array(rows.records["row"], np.int64)
        one = self._read(np.zeros(1, np.int64)).columns.narrow(len(rows.vocabulary))
        self._columns = one.changed(lambda x: torch.empty((len(rows), *x.shape[1:]), dtype=x.dtype, device=device))
        placed = [self._place(start) for start in range(0, len(rows), _ROWS_AT_ONCE)]
        self._best = np.concatenate([best for best, _ in placed])
        self._probs = np.concatenate([probs for _, probs in placed if probs is not None]) if wanted.best_probs else None

    def take(self, places: Places) -> StepRows:
        """The rows with these numbers in the set, in this order."""
        index = _sent(pinned(torch.from_numpy(places), self._device), self._device)
        columns = self._columns.changed(lambda x: x.index_select(0, index))
        probs = None if self._probs is None else self._probs.take(places, axis=0)
        best = self._best.take(places, axis=0)
        return StepRows(self._label.take(places), best, self._row.take(places), columns, probs)

    @property
    def whereabouts(self) -> str:
        """Where the rows are, for a note."""
        return f"all {len(self._row)} rows stay on the GPU: {self._columns.bytes / _GB:.1f} GB"

    def _place(self, start: int) -> tuple[npt.NDArray[np.signedinteger], npt.NDArray[np.float32] | None]:
        """Copy the columns of some rows to the device; returns the rows' best classes, and their ln p where asked."""
        read = self._read(np.arange(start, min(start + _ROWS_AT_ONCE, len(self._row))))
        part = read.columns.narrow(len(self._rows.vocabulary))
        for target, source in zip(vars(self._columns).values(), vars(part).values(), strict=True):
            if target is not None and source is not None:
                copied = pinned(source, self._device)
                target[start : start + len(source)].copy_(copied, non_blocking=_never_waits(self._device))
        return read.best.copy(), None if read.best_probs is None else read.best_probs.copy()


def source_of(rows: WorkingSet, wanted: Wanted, device: torch.device, taken: int) -> RowSource:
    """The way in which a run gets its rows.

    Args:
        device: of the student.
        taken: rows that all steps of the run take together.
    """
    if device.type != "cuda":
        return RowSource(rows, wanted, device)
    one = Columns.of(rows.batch(np.zeros(1, np.int64)), wanted).narrow(len(rows.vocabulary))
    if stay_on_device(len(rows), one.bytes, free_bytes(device), taken):
        return ResidentRows(rows, wanted, device)
    return RowsAhead(rows, wanted, device)


def stay_on_device(rows: int, bytes_of_row: int, free: int, taken: int) -> bool:
    """Whether all rows are put on a device: they fit into a share of its free memory, and pay for their reading.

    Args:
        free: bytes.
        taken: rows that all steps of the run take together; a run that takes few would read most rows for nothing.
    """
    return rows * bytes_of_row <= SHARE_OF_MEMORY * free and 2 * taken >= rows


def free_bytes(device: torch.device) -> int:
    """What a CUDA device has free, with what PyTorch holds of it and does not use."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def pinned(x: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor in memory from which it travels to the device while the host goes on."""
    return x.pin_memory() if device.type == "cuda" else x


def _sent(x: Tensor, device: torch.device) -> Tensor:
    return x.to(device, non_blocking=_never_waits(device))


def _never_waits(device: torch.device) -> bool:
    """Whether copies to a device may be under way while the host goes on: they come from pinned memory."""
    return device.type == "cuda"
