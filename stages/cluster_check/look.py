"""What the worker does: it says where it is, and tries the store's disk, the data and the models. It keeps nothing."""

from __future__ import annotations

import getpass
import os
import random
import socket
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from teachonce import __version__
from teachonce.cluster.worker_memory import memory_limit
from teachonce.core.files import is_remote
from teachonce.core.machine import allowed_cores, package_versions
from teachonce.core.outside import open_plain
from teachonce.errors import TeachOnceError
from teachonce.objects.places import open_objects
from teachonce.objects.remote import is_folder, location, read_range
from teachonce.stages.cluster_check.request import WorkerLook
from teachonce.stages.doctor import machine, software
from teachonce.stages.doctor.request import Finding

TOKEN = "token"
RANGE_BYTES = 128 << 10  # an image of ImageNet
READERS = 8
READ_SECONDS = 3.0
MOST_RANGES = 512
MOST_LOOKED_AT = 2000  # names below the data's folder: enough to meet archives, few enough for a slow file system
MOST_FILES = 32
SYNCS = 20


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the worker shall try; all paths are absolute."""

    trial: str | None
    """A folder beside the store that the driver has made, with the file TOKEN in it; or its URL."""
    token: str
    root: str | None
    models: tuple[str, ...]


def look(asked: Asked) -> WorkerLook:
    """Say and try everything; whatever fails is a finding."""
    findings = [machine.cores(), machine.open_files()]
    fsync = rate = None
    if asked.trial is not None:
        store = location(asked.trial)
        tried, fsync = (store_bucket if is_remote(store) else store_disk)(store, asked.token)
        findings += tried
    if asked.root is not None:
        finding, rate = data(asked.root)
        findings.append(finding)
    findings.append(software.tried("torch", software.torch_works))
    findings += [software.tried("model", partial(software.model_works, spec)) for spec in asked.models]
    limit, by = memory_limit()
    return WorkerLook(
        host=socket.gethostname(),
        user=_user(),
        folder=os.getcwd(),
        executable=sys.executable,
        versions={"teachonce": __version__, **package_versions()},
        cores=allowed_cores(),
        cuda_visible_devices=os.environ.get("CUDA_VISIBLE_DEVICES"),
        gpus=gpus(),
        memory_limit=limit,
        memory_limit_by=by,
        memory_used=int(psutil.Process().memory_info().rss),
        data_mb_per_second=rate,
        fsync_ms=fsync,
        findings=tuple(findings),
    )


def store_disk(trial: Path, token: str) -> tuple[list[Finding], float | None]:
    """Whether this is the folder that the driver sees, may be written to, and keeps what is written, and how fast."""
    folder = trial.parent
    try:
        there = (trial / TOKEN).read_text(encoding="ascii")
    except OSError as problem:
        text = f"{folder}, where the command sees it, is not what {socket.gethostname()} has there: {problem.strerror}"
        return [_fail("store", text, "put the store on a disk that all machines mount at the same path")], None
    if there != token:
        return [_fail("store", f"{trial} holds something else than the command wrote", "is this disk shared?")], None
    try:
        fsync = sync_ms(trial)
        (trial / socket.gethostname()).write_text(token, encoding="ascii")
    except OSError as problem:
        text = f"{folder} cannot be written by {_user()}: {problem.strerror}"
        return [_fail("store", text, "mend who may write there, or give another folder")], None
    seen = Finding(what="store", standing="OK", found=f"{folder} is seen and written; {fsync:.1f} ms until synced")
    return [seen, machine.space(folder), machine.speed(trial), machine.locks(trial)], fsync


def store_bucket(trial: Path, token: str) -> tuple[list[Finding], float | None]:
    """Whether this is the bucket that the driver sees, may be written to, and how long a small object takes."""
    try:
        bucket = open_objects(trial)
        there = bucket.get(TOKEN)
        if there is None or there.data != token.encode():
            text = f"{trial} is not what the command wrote there: {socket.gethostname()} asks another server"
            return [_fail("store", text, "AWS_ENDPOINT_URL and AWS_PROFILE must be the same on workers")], None
        took = []
        for _ in range(SYNCS):
            began = time.monotonic()
            bucket.put(socket.gethostname(), token.encode())
            took.append(1000 * (time.monotonic() - began))
    except TeachOnceError as problem:
        return [_fail("store", problem.message, str(problem.hint))], None
    put = statistics.median(took)
    text = f"{trial.parent} is seen and written; {put:.1f} ms until a small object is there"
    return [Finding(what="store", standing="OK", found=text)], put


def sync_ms(folder: Path) -> float:
    """Milliseconds until a small new file is on the disk, in the median.

    Raises:
        OSError: it cannot be written.
    """
    took = []
    for number in range(SYNCS):
        file = folder / f"sync-{os.getpid()}-{number}"
        began = time.monotonic()
        with open(file, "wb") as opened:
            opened.write(b"x" * 4096)
            opened.flush()
            os.fsync(opened.fileno())
        took.append(1000 * (time.monotonic() - began))
        file.unlink()
    return statistics.median(took)


def data(root: str) -> tuple[Finding, float | None]:
    """Whether the data is there, and the megabytes a second that come of it in small ranges."""
    try:
        path = location(root)
        if not is_folder(path):
            return _fail("data", f"{root} is not there on {socket.gethostname()}", "mount the data there, too"), None
        files = some_files(path)
        if not files:
            return Finding(what="data", standing="WARN", found=f"{root} holds no file that is read"), None
        rate, ranges = read_rate(files)
    except TeachOnceError as problem:
        return _fail("data", problem.message, str(problem.hint)), None
    except OSError as problem:
        return _fail("data", f"{root} cannot be read by {_user()}: {problem}", "mend who may read it"), None
    text = f"{root}: {rate:.0f} MB/s, {ranges:.0f} ranges of {RANGE_BYTES >> 10} KiB a second by {READERS} threads"
    return Finding(what="data", standing="OK", found=text), rate


def some_files(root: Path) -> list[tuple[Path, int]]:
    """Some large files below a folder, with their sizes, without looking at all there is."""
    files: list[tuple[Path, int]] = []
    folders, looked = [root], 0
    while folders and looked < MOST_LOOKED_AT:
        for entry in folders.pop(0).iterdir():
            looked += 1
            if entry.is_dir():
                folders.append(entry)
            elif entry.is_file() and (size := entry.stat().st_size):
                files.append((entry, size))
            if looked >= MOST_LOOKED_AT:
                break
    return sorted(files, key=lambda file: file[1], reverse=True)[:MOST_FILES]


def read_rate(files: list[tuple[Path, int]]) -> tuple[float, float]:
    """Megabytes and ranges a second, read at random places for some seconds at most.

    Raises:
        OSError: a file cannot be read.
    """
    draw = random.Random(0)
    until = time.monotonic() + READ_SECONDS

    def read(_: int) -> int:
        if time.monotonic() > until:
            return 0
        path, size = draw.choice(files)
        return len(_range(path, draw.randrange(max(1, size - RANGE_BYTES))))

    began = time.monotonic()
    with ThreadPoolExecutor(READERS) as pool:
        sizes = [size for size in pool.map(read, range(MOST_RANGES)) if size]
    seconds = max(1e-6, time.monotonic() - began)
    return sum(sizes) / 1e6 / seconds, len(sizes) / seconds


def _range(path: Path, offset: int) -> bytes:
    if is_remote(path):
        return read_range(path, offset, RANGE_BYTES)
    with open_plain(path) as file:
        if hasattr(os, "posix_fadvise"):  # what this machine still has in its memory says nothing of the disk
            os.posix_fadvise(file.fileno(), offset, RANGE_BYTES, os.POSIX_FADV_DONTNEED)
        return os.pread(file.fileno(), RANGE_BYTES, offset)


def gpus() -> tuple[str, ...]:
    """Name and memory of each GPU that torch sees."""
    import torch

    if not torch.cuda.is_available():
        return ()
    every = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return tuple(f"{one.name}, {one.total_memory / 2**30:.0f} GiB" for one in every)


def _fail(what: str, text: str, remedy: str) -> Finding:
    return Finding(what=what, standing="FAIL", found=text, remedy=remedy)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a number without an entry in the system's list
        return str(os.getuid())
