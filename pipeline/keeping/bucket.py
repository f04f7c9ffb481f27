"""A store's files in a bucket: how a chunk gets into its place, and how an empty store appears whole.

Workers leave objects under names of their own in the staging folder beside the store. The driver copies those that a
claim names to their fixed keys, reads the copies back, writes the ledger's record where none is, and removes what was
staged. `claims` says why this is safe with several drivers, however late one of them is.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from teachonce.core.files import is_remote
from teachonce.errors import DataError, IncompleteError, IntegrityError
from teachonce.keeping.claims import CLAIMS, CREATING, PROBE, Claim, StagedFile, claim_key, digest_of, staging_key
from teachonce.objects.places import open_objects
from teachonce.objects.remote import exists
from teachonce.objects.seam import Objects, Stored, Version

T = TypeVar("T")
R = TypeVar("R")
PARALLEL = 16  # requests at a time of one delivery; each mostly waits for the server
MOST_ROUNDS = 20  # in which a claim is neither won nor finished, because others come and go
ROOT = "zarr.json"
GO_ON = "run the same command again"


def is_made(store: Path) -> bool:
    """Whether there is a store, or anything else in a folder's place; a killed creation leaves no store in a bucket.

    Raises:
        DataError: there is no such bucket.
        EnvironmentFault: no answer, or no permission to ask.
    """
    return exists(store / ROOT if is_remote(store) else store)


def parallel(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """The results of some requests that are made at once, in their order.

    Raises:
        Exception: that of the first request that failed; all others have ended by then.
    """
    with ThreadPoolExecutor(PARALLEL) as pool:
        return list(pool.map(work, items))


class BucketKeeper:
    """The files of one store in a bucket; instances may be used by several threads.

    Args:
        store: the place of the store, a URL.
        objects: of the folder that the store lies in; by default as the URL says.
    """

    def __init__(self, store: Path, objects: Objects | None = None) -> None:
        self.store, self.name = store, store.name
        self.objects = open_objects(store.parent) if objects is None else objects

    def hand_over(self, token: int, chunk: int, files: Mapping[str, bytes]) -> tuple[str, tuple[StagedFile, ...]]:
        """Leave a chunk's files where the driver will fetch them, and prove that they arrived.

        Args:
            token: of the run.
            chunk: its number.
            files: by their key below the store.

        Returns:
            A name for `discard`, and what lies where, in the order of `files`.

        Raises:
            IntegrityError: the server gives back something else than it was given.
            IncompleteError: another run has removed it, since the chunk has its record.
            EnvironmentFault: it does not answer, or refuses.
        """
        folder = f"{token:x}/{chunk}-{secrets.token_hex(4)}"

        def leave(item: tuple[str, bytes]) -> StagedFile:
            target, data = item
            key = staging_key(self.name, folder, target)
            self.objects.put(key, data)
            there = self._digest(key)
            if there is None:
                raise IncompleteError(
                    f"{self.objects.place}/{key} was removed: another run has delivered this chunk", hint=GO_ON
                )
            if there != digest_of(data):
                raise IntegrityError(
                    f"{self.objects.place}/{key} reads back different from what was written",
                    hint="the server, or what lies between, is faulty",
                )
            return StagedFile(target, f"{folder}/{target}", digest_of(data))

        return folder, tuple(parallel(leave, files.items()))

    def discard(self, folder: str) -> None:
        """Remove what `hand_over` left under a name."""
        self._remove(entry.key for entry in self.objects.list(staging_key(self.name, folder)))

    def deliver(self, claim: Claim) -> bool:
        """Bring a staged chunk into its place and enter it into the ledger, unless another delivery was first.

        Returns:
            Whether it was this delivery; if not, another one is in the ledger now.

        Raises:
            IncompleteError: others come and go all the time.
            IntegrityError: what was staged is no longer there, or no longer what it was.
        """
        for _ in range(MOST_ROUNDS):
            if self._is_recorded(claim):
                return False
            version = self._won(claim)
            if version is None:
                continue
            if self._is_recorded(claim):  # the former claim went away between the look and the new claim
                self._close(claim)
                return False
            if self._finish(claim):
                return True
            if self._is_recorded(claim):  # another driver finished this claim, and has cleaned up already
                return True
            self._withdraw(claim, version)
            raise IntegrityError(
                f"{self.store}: what a worker left of chunk {claim.chunk} of {claim.group} is no longer there, or "
                "no longer what it was",
                hint=GO_ON,
            )
        raise IncompleteError(
            f"{self.store}: chunk {claim.chunk} of {claim.group} is claimed by others again and again", hint=GO_ON
        )

    def settle(self, is_current: Callable[[Claim], bool]) -> int:
        """Finish what an earlier driver had claimed and not entered; done by the owner before it looks at the ledger.

        Args:
            is_current: whether a claim belongs to this store, and not to one that lay here earlier.

        Returns:
            The number of chunks that were entered into the ledger.
        """
        finished = 0
        for entry in self.objects.list(staging_key(self.name, CLAIMS)):
            stored = self.objects.get(entry.key)
            claim = None if stored is None else _claim_in(stored)
            if stored is None or claim is None or claim.is_withdrawn:
                continue
            if is_current(claim):
                if self._is_recorded(claim):
                    self._close(claim)
                    continue
                if self._finish(claim):
                    finished += 1
                    continue
            self._withdraw(claim, stored.version)
        return finished

    def clear(self, is_done: Callable[[int], bool]) -> None:
        """Remove what workers left of chunks that have records, what was withdrawn of them, and a creation's mark.

        Anything else stays: a driver that stands still may have claimed it, and would find a part of it only.

        Args:
            is_done: whether all column groups of the chunk of this number have records.
        """
        top = staging_key(self.name) + "/"
        for entry in self.objects.list(staging_key(self.name)):
            head, _, rest = entry.key[len(top) :].partition("/")
            number = rest.partition("-")[0]
            if head == CLAIMS:
                stored = self.objects.get(entry.key)
                claim = None if stored is None else _claim_in(stored)
                if claim is not None and claim.is_withdrawn and self._is_recorded(claim):
                    self.objects.delete(entry.key)
            elif head == CREATING or (number.isdecimal() and is_done(int(number))):
                self.objects.delete(entry.key)

    def read(self, name: str) -> Stored | None:
        """A file of the store with its version, by its key below the store."""
        return self.objects.get(f"{self.name}/{name}")

    def write(self, name: str, data: bytes) -> None:
        """Write a file of the store, which the caller owns."""
        self.objects.put(f"{self.name}/{name}", data)

    def replace(self, name: str, data: bytes, version: Version) -> None:
        """Replace a file of the store that is still as it was read.

        Raises:
            IncompleteError: another process has changed it.
        """
        if self.objects.put_if(f"{self.name}/{name}", data, version) is None:
            raise IncompleteError(f"{self.store}/{name}: another process has changed it meanwhile", hint=GO_ON)

    def remove(self, name: str) -> None:
        """Remove a file of the store, such as a record that is no longer true."""
        self.objects.delete(f"{self.name}/{name}")

    def create(self, folder: Path) -> None:
        """Send a whole store that lies in a folder of this machine; its root metadata come last.

        What a killed creation has left is removed: an object in the staging folder says that there was one. Whoever
        still sends such a store, late, writes the same bytes or loses.

        Raises:
            DataError: there is something else.
            IncompleteError: there is a store, or another process makes one.
        """
        if self.read(ROOT) is not None:
            raise IncompleteError(f"{self.store}: another process has made the store meanwhile", hint=GO_ON)
        mark = staging_key(self.name, CREATING)
        left = [entry.key for entry in self.objects.list(self.name)]
        if left and self.objects.get(mark) is None:
            raise DataError(
                f"{self.store} is not a label store: {self.objects.place}/{left[0]} lies there",
                hint="give the new store a place of its own",
            )
        mine = self.objects.put(mark, secrets.token_hex(16).encode())
        kept = (mark, staging_key(self.name, PROBE))
        left += [entry.key for entry in self.objects.list(staging_key(self.name)) if not entry.key.startswith(kept)]
        self._remove(left)
        names = [file.relative_to(folder).as_posix() for file in sorted(folder.rglob("*")) if file.is_file()]
        parallel(lambda name: self._send(folder, name), (name for name in names if name != ROOT))
        now = self.objects.get(mark)
        if now is None or now.version != mine:
            raise IncompleteError(f"{self.store}: another process makes a store here", hint=GO_ON)
        self._send(folder, ROOT)
        self.objects.delete(mark)

    def _send(self, folder: Path, name: str) -> None:
        key, data = f"{self.name}/{name}", (folder / name).read_bytes()
        self.objects.put_new(key, data)
        if self._digest(key) != digest_of(data):
            raise IncompleteError(f"{self.objects.place}/{key}: another process makes a store here", hint=GO_ON)

    def _won(self, claim: Claim) -> Version | None:
        """The version of this claim where it stands now; None where there was another, which is finished or gone."""
        key = claim_key(self.name, claim.group, claim.chunk)
        version = self.objects.put_new(key, claim.to_bytes())
        if version is not None:
            return version
        stored = self.objects.get(key)
        if stored is None:
            return None
        other = _claim_in(stored)
        if self._is_recorded(claim):  # a claim that came after its record is never finished
            return None
        if other is not None and not other.is_withdrawn:
            if other.fingerprint == claim.fingerprint and self._finish(other):
                return None
            self._remove_staged(other)
        return self.objects.put_if(key, claim.to_bytes(), stored.version)

    def _finish(self, claim: Claim) -> bool:
        """Copy what a claim names, prove it, enter it and clean up; False where its objects are gone or damaged."""
        copied = parallel(
            lambda file: self.objects.copy(staging_key(self.name, file.staged), f"{self.name}/{file.target}"),
            claim.files,
        )
        if not all(copied):
            return False
        proved = parallel(lambda file: self._digest(f"{self.name}/{file.target}") == file.digest, claim.files)
        if not all(proved):
            return False
        # Whoever else finishes the same claim writes a record of the same digests: one of them stays.
        self.objects.put_new(f"{self.name}/{claim.record_key}", bytes.fromhex(claim.record))
        self._close(claim)
        return True

    def _close(self, claim: Claim) -> None:
        """Remove what was staged and then the claim, whose chunk has a record."""
        self._remove_staged(claim)
        self.objects.delete(claim_key(self.name, claim.group, claim.chunk))

    def _withdraw(self, claim: Claim, version: Version) -> None:
        """Free a chunk: first the objects of its claim go, so that nobody copies them late, then the claim is emptied.

        The claim stays as an empty one: whoever has the chunk anew replaces it on the condition that it is still this.
        """
        self._remove_staged(claim)
        empty = Claim(
            group=claim.group,
            chunk=claim.chunk,
            fingerprint=claim.fingerprint,
            by=f"{claim.by}, withdrawn {secrets.token_hex(4)}",
            record_key=claim.record_key,
            record="",
        )
        self.objects.put_if(claim_key(self.name, claim.group, claim.chunk), empty.to_bytes(), version)

    def _is_recorded(self, claim: Claim) -> bool:
        return self.read(claim.record_key) is not None

    def _digest(self, key: str) -> str | None:
        stored = self.objects.get(key)
        return None if stored is None else digest_of(stored.data)

    def _remove_staged(self, claim: Claim) -> None:
        self._remove(staging_key(self.name, file.staged) for file in claim.files)

    def _remove(self, keys: Iterable[str]) -> None:
        parallel(self.objects.delete, keys)


def _claim_in(stored: Stored) -> Claim | None:
    try:
        return Claim.from_bytes(stored.data)
    except (ValueError, TypeError, KeyError):
        return None
