"""Image sets kept as parquet files, as the Hugging Face hub keeps them: an image and a label in each row.

pyarrow reads the files and is an optional dependency, so this module is imported only for such a set.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from teachonce.core.documents import json_in, mapping
from teachonce.data.manifests import Split
from teachonce.data.places import UNKNOWN, ImagePlace, Part, Tally
from teachonce.data.vocabulary import Vocabulary
from teachonce.errors import DataError, EnvironmentFault
from teachonce.objects.remote import open_table

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError as missing:
    raise EnvironmentFault(
        f"reading parquet files needs pyarrow: {missing}", hint="pip install 'teachonce[parquet]'"
    ) from missing

USUAL_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp")
NO_BYTES = "none: the rows hold no bytes"
KEPT_GROUPS = 4  # row groups in memory at a time: the hub writes some 100 images into each
_PROBLEMS = (pa.ArrowException, OSError)


def class_names(path: Path, column: str) -> tuple[str, ...]:
    """Return the class names that the `datasets` library wrote into a file's schema.

    The names of the column are taken; without any, those of the first column that has names.

    Raises:
        DataError: the schema holds no class names.
    """
    with _open_file(path) as file:
        text = (file.schema_arrow.metadata or {}).get(b"huggingface", b"{}")
    try:
        features = mapping(mapping(mapping(json_in(text)).get("info")).get("features"))
    except ValueError as problem:
        raise DataError(f"{path}: what `datasets` wrote into its schema cannot be read: {problem}") from problem
    named = [feature["names"] for feature in features.values() if isinstance(feature, dict) and "names" in feature]
    if not named:
        raise DataError(
            f"{path} names no classes: expected a ClassLabel feature in its schema",
            hint='give the manifest a class list: classes = "classes.tsv"',
        )
    of_column = features.get(column)
    return tuple(map(str, of_column["names"] if isinstance(of_column, dict) and "names" in of_column else named[0]))


def image_column(schema: Any, path: Path) -> str:
    """Find the column of the images: one with a usual name, else the only column of bytes or of structs with `bytes`.

    Raises:
        DataError: there is no such column, or there are several and none has a usual name.
    """
    kinds = {field.name: field.type for field in schema}
    able = [
        name
        for name, kind in kinds.items()
        if pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)
    ]
    usual = [name for name in USUAL_NAMES if name in able]
    if not usual and len(able) != 1:
        raise DataError(
            f"{path}: expected one column of images, found {able or 'none'} among {sorted(kinds)}",
            hint=f"a column named {' or '.join(USUAL_NAMES)} is taken first",
        )
    return (usual or able)[0]


def scan_parquet(part: Part, split: Split, classes: Vocabulary, tally: Tally) -> Iterator[ImagePlace]:
    """Yield one sample for each row. Only labels and image names are read; the bytes of the images stay in the file.

    Rows are samples of their own also where their images have one name: the number of the row then tells their keys
    apart, but for the first, whose key is as it would be alone.

    Raises:
        DataError: the file cannot be read, lacks a column, or holds a label that the class list lacks.
    """
    with _open_file(part.archive) as file:
        image = image_column(file.schema_arrow, part.archive)
        leaves, path_column = set(_leaves(file)), f"{image}.path"
        label_columns = [] if split.unlabelled else [split.label]
        if set(label_columns) - leaves:
            raise DataError(
                f"{part}: no column '{split.label}'; there are {sorted(leaves)}",
                hint="`label` of the manifest's split names the column of the labels",
            )
        _count_absent(file, image, part, tally)
        columns = label_columns + ([path_column] if path_column in leaves else [])
        row, names = 0, set[str]()
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            table = _read(part.archive, lambda group=group: file.read_row_group(group, columns=columns))
            labels = table[split.label].to_pylist() if label_columns else [UNKNOWN] * count
            paths = [value["path"] for value in table[image].to_pylist()] if path_column in leaves else []
            for place in range(count):
                name = _name(paths[place] if paths else None, row, names)
                label = labels[place] if split.unlabelled else _label(labels[place], part, row, classes)
                yield ImagePlace(f"{part.name}/{name}", row, 0, label)
                row += 1


def _count_absent(file: Any, image: str, part: Part, tally: Tally) -> None:
    """Count rows without the bytes of an image, as where rows only name files, if the file's statistics tell."""
    for place, leaf in enumerate(_leaves(file)):
        if leaf not in (image, f"{image}.bytes"):
            continue
        for group in range(file.num_row_groups):
            statistics = file.metadata.row_group(group).column(place).statistics
            if statistics is not None and statistics.has_null_count:
                tally.note_foreign(NO_BYTES, part.archive.name, statistics.null_count)


def _name(path: str | None, row: int, names: set[str]) -> str:
    """Return a name that no earlier row of the file has, and remember the name."""
    if not path:
        return f"{row:08d}"
    file = path.rpartition("/")[2]
    name = file.rpartition(".")[0] or file
    if name in names:
        name = f"{name}~{row}"
    names.add(name)
    return name


def _label(value: Any, part: Part, row: int, classes: Vocabulary) -> int:
    if isinstance(value, str) and value in classes.index:
        return classes.index[value]
    if isinstance(value, int) and value == UNKNOWN:  # the hub writes test splits so
        return UNKNOWN
    if isinstance(value, int) and 0 <= value < len(classes):
        return value
    raise DataError(f"{part}, row {row}: the label is {value!r}: expected a class id or a number below {len(classes)}")


class ParquetRows:
    """Read images of parquet files by row number; threads may share one reader.

    The format allows only whole row groups to be read; the last few are kept, since rows come nearly in order.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: OrderedDict[Path, Any] = OrderedDict()
        self._groups: OrderedDict[tuple[Path, int], Any] = OrderedDict()

    def read(self, path: Path, row: int) -> bytes:
        """Return the bytes of the image in a row.

        Raises:
            DataError: the file is gone, damaged, or has fewer rows than when it was indexed.
        """
        with self._lock:
            column, place = self._place(path, row)
            value = column[place].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        return data if isinstance(data, bytes) else b""  # an empty image is a fault of the sample, not of the file

    def close(self) -> None:
        """Close all files."""
        with self._lock:
            self._groups.clear()
            while self._files:
                self._files.popitem()[1].close(force=True)

    def _place(self, path: Path, row: int) -> tuple[Any, int]:
        if path not in self._files:
            self._files[path] = _opened(path)
            if len(self._files) > KEPT_GROUPS:
                self._files.popitem(last=False)[1].close(force=True)
        self._files.move_to_end(path)
        metadata, first = self._files[path].metadata, 0
        for group in range(metadata.num_row_groups):
            count = metadata.row_group(group).num_rows
            if row < first + count:
                return self._group(path, group), row - first
            first += count
        raise DataError(
            f"{path} has {first} rows; row {row} was there when it was indexed",
            hint="the file changed since it was indexed; restore it",
        )

    def _group(self, path: Path, group: int) -> Any:
        if (path, group) not in self._groups:
            file = self._files[path]
            image = image_column(file.schema_arrow, path)
            self._groups[path, group] = _read(path, lambda: file.read_row_group(group, columns=[image]))[image]
            if len(self._groups) > KEPT_GROUPS:
                self._groups.popitem(last=False)
        self._groups.move_to_end((path, group))
        return self._groups[path, group]


def _opened(path: Path) -> Any:
    """Open a ParquetFile. Close it with `force`, since we opened the file below it ourselves."""
    stream = open_table(path)
    try:
        return _read(path, lambda: pq.ParquetFile(stream))
    except DataError:
        stream.close()
        raise


@contextmanager
def _open_file(path: Path) -> Iterator[Any]:
    file = _opened(path)
    try:
        yield file
    finally:
        file.close(force=True)


def _read(path: Path, action: Any) -> Any:
    try:
        return action()
    except _PROBLEMS as problem:
        raise DataError(f"cannot read {path} as a parquet file: {problem}", hint="fetch the file again") from problem


def _leaves(file: Any) -> list[str]:
    schema = file.schema
    return [schema.column(number).path for number in range(len(schema))]
