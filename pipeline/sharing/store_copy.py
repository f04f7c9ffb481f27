"""A whole label store copied between a folder and a bucket, so that a reader meets no half of it.

The order is: arrays and their metadata, then the ledger, then the root's metadata, without which nobody opens the
store. While a copy is not finished, a note beside it names the store that is being copied: a second copy of the same
store goes on with it, and one of another store is refused.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from teachonce.core.documents import json_in
from teachonce.core.files import is_draft
from teachonce.core.progress import Reporter
from teachonce.core.strict import decode_known
from teachonce.errors import DataError, FingerprintError, IncompleteError, UsageError
from teachonce.labels.access import METADATA
from teachonce.labels.store import LabelStore
from teachonce.objects.folder import FolderObjects
from teachonce.objects.places import open_objects
from teachonce.objects.seam import Entry, Objects
from teachonce.objects.transfer import Sent, send

NOTE = ".copy.json"  # its name is the store's, and this
LEDGER = "ledger/"


@dataclass(frozen=True)
class CopyNote:
    """What is being copied to a place."""

    store_id: str


def copy_store(source: Path, target: Path, reporter: Reporter) -> tuple[str, Sent]:
    """Copy a store that was verified; returns its id and what was sent.

    Raises:
        UsageError: the target lies at the top of a bucket.
        FingerprintError: another store is there, or a part of one.
        DataError: what is there is no label store.
        IncompleteError: the source changed meanwhile.
        IntegrityError: the copy is not what was sent.
        EnvironmentFault: what a server or a disk refuses.
    """
    store_id = LabelStore.open(source).store_id()
    places = open_objects(source), open_objects(target)
    beside, note = open_objects(target.parent), target.name + NOTE
    if str(target.parent) == str(target):
        raise UsageError(f"{target} is a whole bucket", hint=f"give the store a name in it: {target}/{source.name}")
    if isinstance(places[1], FolderObjects):
        places[1].clear_drafts()
    there = {entry.key: entry for entry in places[1].list()}
    entries = store_files(places[0])
    _require_place(source, target, store_id, entries, there, beside.get(note) if there else None)
    beside.put(note, json.dumps(asdict(CopyNote(store_id))).encode())
    done = Sent()
    for part in _in_order(entries):
        done = send(*places, part, there, len(entries), done, reporter)
    _require_copied(places[0], places[1], entries)
    if LabelStore.open(source).store_id() != store_id:
        raise IncompleteError(
            f"{source} was written to while it was copied", hint="run the same command again when nothing writes it"
        )
    copied = LabelStore.open(target).store_id()
    if copied != store_id:
        raise FingerprintError(f"{target} holds store {copied}, and {store_id} was sent: somebody else writes there")
    beside.delete(note)
    return store_id, done


def store_files(place: Objects) -> list[Entry]:
    """The files of a store; what is half written belongs to none."""
    return [entry for entry in place.list() if not is_draft(entry.key.rpartition("/")[2])]


def _in_order(entries: list[Entry]) -> tuple[list[Entry], list[Entry], list[Entry]]:
    """The arrays, the ledger, the root's metadata: whoever finds the last one finds all."""
    root = [entry for entry in entries if entry.key == METADATA]
    ledger = [entry for entry in entries if entry.key.startswith(LEDGER)]
    return [entry for entry in entries if entry not in root and not entry.key.startswith(LEDGER)], ledger, root


def _require_place(
    source: Path,
    target: Path,
    store_id: str,
    entries: list[Entry],
    there: dict[str, Entry],
    note: object,
) -> None:
    """Refuse a target where something else is than this store, or a part of it."""
    if not there:
        return
    other = f"give another place, or remove what is at {target} if nobody needs it"
    if METADATA in there:
        _require_same_store(source, target, other)
    else:
        begun = _store_of(note)
        if begun != store_id:
            what = f"a part of store {begun}" if begun else "something"
            raise FingerprintError(f"{target} holds {what}, and {source} is store {store_id}", hint=other)
    strangers = sorted(there.keys() - {entry.key for entry in entries})
    if strangers:
        raise FingerprintError(
            f"{target} holds {len(strangers)} files that {source} lacks, such as {strangers[0]}", hint=other
        )


def _store_of(note: object) -> str:
    data = getattr(note, "data", b"")
    try:
        return decode_known(CopyNote, dict(json_in(data)), "note of a copy", ValueError).store_id
    except (ValueError, TypeError):
        return ""


def _require_same_store(source: Path, target: Path, other: str) -> None:
    """Refuse a store at the target that is not the source, or an earlier state of it."""
    try:
        here, there = LabelStore.open(source), LabelStore.open(target)
    except DataError as problem:
        raise problem.reworded(hint=other) from problem
    for name, group in there.groups.items():
        if name not in here.groups or here.groups[name].digest != group.digest:
            raise FingerprintError(f"{target} holds another store than {source}: its '{name}' differs", hint=other)
        for chunk, (mine, theirs) in enumerate(zip(here.records(name), there.records(name), strict=True)):
            if theirs is not None and (mine is None or mine.digests != theirs.digests):
                raise FingerprintError(
                    f"{target} holds another store than {source}: chunk {chunk} of '{name}' differs", hint=other
                )


def _require_copied(source: Objects, target: Objects, entries: list[Entry]) -> None:
    """Compare the listing of the copy with what was sent."""
    listed = {entry.key: entry.size for entry in target.list()}
    for entry in entries:
        if listed.get(entry.key) != entry.size:
            raise IncompleteError(
                f"{target.place}/{entry.key} has {listed.get(entry.key, 'no')} bytes, and {source.place} has "
                f"{entry.size}",
                hint="run the same command again: it sends what lacks",
            )
