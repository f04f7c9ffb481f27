"""Small documents beside a store, for other terminals and other machines that see its place.

Every read and write of them is here, so that a store in another kind of place needs no other change. They are a
courtesy: one that is missing, half written or damaged is taken for none, and nothing of the store depends on it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from teachonce.core.documents import json_in, plain, read_object
from teachonce.core.files import is_remote, neighbour, write_failed
from teachonce.objects.places import open_objects

WORKERS = ".workers.json"
STOP = ".stop"


def write_beside(store: Path, ending: str, document: Mapping[str, Any]) -> None:
    """Put a document beside a store in place of the one that is there; readers see the old one or the new one.

    It is not synced to the disk: after a power cut it is worth nothing.

    Raises:
        IncompleteError, EnvironmentFault: it cannot be written.
    """
    content = json.dumps(plain(document), allow_nan=False)
    if is_remote(store):
        open_objects(store.parent).put(store.name + ending, content.encode())
        return
    path, draft = neighbour(store, ending), neighbour(store, f"{ending}.new")
    try:
        draft.write_text(content, encoding="utf-8")
        os.replace(draft, path)
    except OSError as problem:
        raise write_failed(path, problem) from problem


def read_beside(store: Path, ending: str) -> dict[str, Any] | None:
    """The document that lies beside a store; None where there is none that is whole."""
    if not is_remote(store):
        return read_object(neighbour(store, ending))
    stored = open_objects(store.parent).get(store.name + ending)
    try:
        document = None if stored is None else json_in(stored.data)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def remove_beside(store: Path, ending: str) -> None:
    """Remove a document from beside a store; one that is not there, or may not be removed, is no error."""
    if is_remote(store):
        open_objects(store.parent).delete(store.name + ending)
        return
    for name in (ending, f"{ending}.new"):
        with suppress(OSError):
            neighbour(store, name).unlink(missing_ok=True)
