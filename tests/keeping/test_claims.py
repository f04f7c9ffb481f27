"""However the requests of several drivers interleave, and whoever stops between two of them: a chunk that is in the
ledger has the files of one delivery, and they are those of its record.

The drivers are threads that take turns by a seed, one request at a time, on objects in memory; some are killed between
two requests. After each request the whole state is looked at.
"""

from __future__ import annotations

import builtins
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import teachonce.keeping.bucket as module
from teachonce.errors import IncompleteError, IntegrityError
from teachonce.keeping.bucket import BucketKeeper
from teachonce.keeping.claims import Claim, StagedFile
from teachonce.objects.seam import Entry, Stored, Version

STORE = Path("x.zarr")
TARGETS = ("a/c/0", "b/c/0", "c/c/0")
RECORD = "ledger/labels/c/0/0"
Hook = Callable[[], None]


class Killed(BaseException):
    """kill -9 between two requests."""


class Memory:
    """`Objects` in memory; `hook` is called before each request."""

    def __init__(self, held: dict[str, tuple[bytes, int]], hook: Hook = lambda: None) -> None:
        self.held, self.hook, self.place = held, hook, "memory"

    def get(self, key: str) -> Stored | None:
        self.hook()
        return Stored(self.held[key][0], Version(str(self.held[key][1]))) if key in self.held else None

    def put(self, key: str, data: bytes) -> Version:
        self.hook()
        return self._put(key, data)

    def put_new(self, key: str, data: bytes) -> Version | None:
        self.hook()
        return None if key in self.held else self._put(key, data)

    def put_if(self, key: str, data: bytes, version: Version) -> Version | None:
        self.hook()
        if key not in self.held or str(self.held[key][1]) != version.mark:
            return None
        return self._put(key, data)

    def copy(self, source: str, target: str) -> bool:
        self.hook()
        if source in self.held:
            self._put(target, self.held[source][0])
        return source in self.held

    def list(self, folder: str = "") -> builtins.list[Entry]:
        self.hook()
        return [Entry(key, len(self.held[key][0])) for key in sorted(self.held) if key.startswith(f"{folder}/")]

    def delete(self, key: str) -> None:
        self.hook()
        self.held.pop(key, None)

    def _put(self, key: str, data: bytes) -> Version:
        Memory.writes += 1
        self.held[key] = (data, Memory.writes)
        return Version(str(Memory.writes))

    writes = 0


@pytest.fixture(autouse=True)
def in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests of one delivery follow each other: the seed decides the order of all requests."""
    monkeypatch.setattr(module, "parallel", lambda work, items: [work(item) for item in items])


def claim_of(name: str, files: tuple[StagedFile, ...]) -> Claim:
    """The claim of a driver of this name."""
    return Claim(
        group="labels", chunk=0, fingerprint="f", by=name, record_key=RECORD, record=name.encode().hex(), files=files
    )


def stage(keeper: BucketKeeper, name: str) -> Claim:
    """What a worker of a driver of this name leaves: every driver's files differ."""
    files = {target: f"{target} of {name}".encode() for target in TARGETS}
    return claim_of(name, keeper.hand_over(int(name[1:]), 0, files)[1])


def drive(objects: Memory, name: str, takes_over: bool) -> None:
    """One driver: it settles what others left where it takes over, and delivers the chunk unless it is there."""
    keeper = BucketKeeper(STORE, objects)
    if takes_over:
        keeper.settle(lambda claim: claim.fingerprint == "f")
        recorded = keeper.read(RECORD) is not None
        keeper.clear(lambda _: recorded)
    if keeper.read(RECORD) is None:
        keeper.deliver(stage(keeper, name))


def require_whole(held: dict[str, tuple[bytes, int]]) -> None:
    """A record vouches for the files of its own delivery."""
    record = held.get(f"x.zarr/{RECORD}")
    if record is not None:
        for target in TARGETS:
            assert held[f"x.zarr/{target}"][0] == f"{target} of {record[0].decode()}".encode()


class Turns:
    """Lets one thread at a time make a request, in an order that a seed decides."""

    def __init__(self, seed: int, drivers: int) -> None:
        self.rng = random.Random(seed)
        self.held: dict[str, tuple[bytes, int]] = {}
        self.gates = [threading.Semaphore(0) for _ in range(drivers)]
        self.back = threading.Semaphore(0)
        self.over = [False] * drivers
        self.dies_after = [self.rng.choice([None, self.rng.randrange(40)]) for _ in range(drivers)]
        self.sound: list[int] = []

    def hook(self, number: int) -> Hook:
        def wait() -> None:
            self.back.release()
            self.gates[number].acquire()
            after = self.dies_after[number]
            if after is not None:
                if after <= 0:
                    raise Killed
                self.dies_after[number] = after - 1

        return wait

    def run(self) -> None:
        def one(number: int) -> None:
            try:
                drive(Memory(self.held, self.hook(number)), f"d{number}", takes_over=number > 0)
                self.sound.append(number)
            except (Killed, IncompleteError):
                self.sound.append(number)
            finally:
                self.over[number] = True
                self.back.release()

        threads = [threading.Thread(target=one, args=(number,), daemon=True) for number in range(len(self.gates))]
        for thread in threads:
            thread.start()
            self.back.acquire()
        favourite = 0
        while not all(self.over):
            alive = [number for number, over in enumerate(self.over) if not over]
            if favourite not in alive or self.rng.random() < 0.15:  # one goes on for a while, as the others stand still
                favourite = self.rng.choice(alive)
            self.gates[favourite].release()
            self.back.acquire()
            require_whole(self.held)
        for thread in threads:
            thread.join()
        assert len(self.sound) == len(self.gates), "a driver ended with an error"


@pytest.mark.parametrize("block", range(4))
def test_no_order_of_requests_mixes_two_deliveries(block: int) -> None:
    """Three drivers, of which two take over; then a last one: the chunk is there, and nothing but the store is left."""
    for seed in range(150 * block, 150 * (block + 1)):
        turns = Turns(seed, 3)
        turns.run()
        last = Memory(turns.held)
        drive(last, "d9", takes_over=True)
        require_whole(turns.held)
        BucketKeeper(STORE, last).settle(lambda _: True)
        BucketKeeper(STORE, last).clear(lambda _: True)
        wanted = {f"x.zarr/{name}" for name in (*TARGETS, RECORD)}
        assert set(turns.held) == wanted, f"seed {seed}"


def test_copies_before_a_record_alone_would_mix_two_deliveries() -> None:
    """Why claims are there: the loser's copies may come after the winner's record."""
    held: dict[str, tuple[bytes, int]] = {}
    objects = Memory(held)
    one, other = (stage(BucketKeeper(STORE, objects), name) for name in ("d1", "d2"))
    for file in one.files:
        objects.copy(f"x.zarr.staging/{file.staged}", f"x.zarr/{file.target}")
    objects.put_new(f"x.zarr/{RECORD}", bytes.fromhex(one.record))
    objects.copy(f"x.zarr.staging/{other.files[0].staged}", f"x.zarr/{other.files[0].target}")
    assert objects.put_new(f"x.zarr/{RECORD}", bytes.fromhex(other.record)) is None
    with pytest.raises(AssertionError):
        require_whole(held)


def test_a_claim_whose_objects_are_damaged_is_withdrawn() -> None:
    held: dict[str, tuple[bytes, int]] = {}
    keeper = BucketKeeper(STORE, Memory(held))
    claim = stage(keeper, "d1")
    held[f"x.zarr.staging/{claim.files[1].staged}"] = (b"other", 0)
    with pytest.raises(IntegrityError, match="no longer what it was") as caught:
        keeper.deliver(claim)
    assert caught.value.hint == "run the same command again" and f"x.zarr/{RECORD}" not in held
    assert keeper.deliver(stage(keeper, "d2"))
    require_whole(held)


def test_a_claim_of_a_store_that_lay_here_earlier_is_not_finished() -> None:
    held: dict[str, tuple[bytes, int]] = {}
    keeper = BucketKeeper(STORE, Memory(held))
    claim = stage(keeper, "d1")
    held["x.zarr.staging/claims/labels/0"] = (claim.to_bytes(), 0)
    assert keeper.settle(lambda _: False) == 0
    assert f"x.zarr/{RECORD}" not in held and not any(key.startswith("x.zarr/") for key in held)


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"group": 1}', b"\xff", b'{"files": 3}'])
def test_what_is_no_claim_is_replaced(text: bytes) -> None:
    """A file that anybody has put there neither stops a run nor gets into the store."""
    held = {"x.zarr.staging/claims/labels/0": (text, 0)}
    keeper = BucketKeeper(STORE, Memory(held))
    assert keeper.settle(lambda _: True) == 0
    assert keeper.deliver(stage(keeper, "d1"))
    require_whole(held)
