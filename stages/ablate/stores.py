"""The label stores of a grid: the one that the command was given, and those that cells name."""

from __future__ import annotations

from pathlib import Path

from teachonce.errors import IncompleteError
from teachonce.labels.derived import content_id
from teachonce.labels.format import LABELS
from teachonce.labels.store import LabelStore
from teachonce.runs.cells import Cell


class Stores:
    """Opens each store once.

    Args:
        grid: the grid's own store.

    Raises:
        DataError: it is no label store.
        IncompleteError: chunks are missing.
    """

    def __init__(self, grid: Path) -> None:
        self.grid = _whole(grid)
        self._opened: dict[Path, LabelStore] = {}
        self._contents: dict[Path, str] = {}

    def of(self, cell: Cell) -> LabelStore:
        """The store that a cell is trained from.

        Raises:
            DataError, IncompleteError: as for the grid's own.
        """
        if cell.labels is None:
            return self.grid
        if cell.labels not in self._opened:
            self._opened[cell.labels] = _whole(cell.labels)
        return self._opened[cell.labels]

    def content(self, cell: Cell) -> str:
        """Digest of the labels and the embeddings of the cell's store."""
        return self._digest(self.of(cell))

    def source(self, cell: Cell) -> str | None:
        """The same where the store is another than the grid's own; None where it is that, or a copy of it."""
        content = self.content(cell)
        return None if content == self._digest(self.grid) else content

    def _digest(self, store: LabelStore) -> str:
        if store.path not in self._contents:
            self._contents[store.path] = content_id(store)
        return self._contents[store.path]


def _whole(path: Path) -> LabelStore:
    store = LabelStore.open(path)
    missing = store.layout.chunks - len(store.committed(LABELS))
    if missing:
        raise IncompleteError(
            f"{store.path}: {missing} of {store.layout.chunks} chunks are not committed",
            hint=f"run the same `{store.maker}` again to complete the store",
        )
    return store
