"""What the machine and other people's libraries raise and no stage has explained: each becomes an error of ours.

An error that this module does not know is a bug of this project.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import TracebackType

from teachonce.core.devices import device_fault
from teachonce.core.files import write_failed
from teachonce.core.machine import CACHE_VARIABLE, pip_line
from teachonce.errors import DataError, EnvironmentFault, TeachOnceError, UsageError

DEBUG_VARIABLE = "TEACHONCE_DEBUG"
OURS = "teachonce"
READERS = (
    *("PIL", "pyarrow", "safetensors", "zarr", "numcodecs", "h5py"),
    *("json.decoder", "tomllib", "tarfile", "zipfile", "gzip", "zlib", "bz2", "lzma"),
    *("numpy.lib.format", "numpy.lib._format_impl", "numpy.lib.npyio", "numpy.lib._npyio_impl"),
    *("obstore", "botocore"),
)
"""Libraries that read what comes from outside: when one of them raises, its input is at fault before we are."""
_AGAIN = "then run the same command again"
REMEDIES = {
    errno.EACCES: "check who may read and write there",
    errno.EMFILE: f"allow more open files with `ulimit -n 65536`, or use fewer workers, {_AGAIN}",
    errno.ELOOP: "the links there lead in a circle, or one stands where a file should: remove it",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EINVAL: "the file system there may not take such a name, or may not be able to do this: use another place",
    errno.EIO: f"the disk or the network's file system fails: look at `dmesg`, {_AGAIN}",
    errno.ENOMEM: f"free some memory, use fewer workers or a smaller batch, {_AGAIN}",
    errno.EAGAIN: f"end other processes or raise their limit (`ulimit -u`), {_AGAIN}",
    errno.ECONNREFUSED: f"check the network and the address, {_AGAIN}",
    errno.ENOENT: "check the path",
}
"""What to do, by the system's number; `_ALIKE` has the numbers that ask for the same."""
_ALIKE = {
    errno.EPERM: errno.EACCES,
    errno.EROFS: errno.EACCES,
    errno.ENFILE: errno.EMFILE,
    errno.EILSEQ: errno.EINVAL,
    errno.EOPNOTSUPP: errno.EINVAL,
    errno.ENOSYS: errno.EINVAL,
    errno.ENOLCK: errno.EINVAL,
    errno.ENXIO: errno.EIO,
    errno.ENODEV: errno.EIO,
    errno.ESTALE: errno.EIO,
    errno.ENOTCONN: errno.EIO,
    errno.EPIPE: errno.ECONNREFUSED,
    errno.ECONNRESET: errno.ECONNREFUSED,
    errno.ETIMEDOUT: errno.ECONNREFUSED,
    errno.EADDRINUSE: errno.ECONNREFUSED,
    errno.EHOSTUNREACH: errno.ECONNREFUSED,
    errno.ENETUNREACH: errno.ECONNREFUSED,
    errno.EEXIST: errno.ENOENT,
    errno.ENOTDIR: errno.ENOENT,
    errno.EISDIR: errno.ENOENT,
}


def explained(problem: BaseException) -> TeachOnceError | None:
    """The error of ours that an exception stands for; None where only a bug explains it."""
    if isinstance(problem, OSError) and problem.errno is not None:
        return _of_the_system(problem)
    if isinstance(problem, TimeoutError):
        return EnvironmentFault(
            f"something did not answer in time{_place(problem)}: {problem or 'a busy machine, or the network'}",
            f"wait until the machine is less busy, {_AGAIN}: nothing finished is lost",
        )
    if isinstance(problem, ImportError):
        return _of_a_package(problem)
    return device_fault(problem) or _of_memory(problem) or _of_a_name(problem) or _of_a_reader(problem)


def _of_the_system(problem: OSError) -> TeachOnceError:
    number = problem.errno or 0
    where = problem.filename if problem.filename is not None else problem.filename2
    name = os.fsdecode(where) if isinstance(where, (str, bytes, os.PathLike)) else ""
    if number in (errno.ENOSPC, errno.EDQUOT) and name:
        return write_failed(Path(name), problem)
    if number in (errno.ENOSPC, errno.EDQUOT):
        place = "standard output, or a file that the system does not name"
        return EnvironmentFault(f"no space left to write {place}", "free some space, then run the same command")
    reason = (problem.strerror or os.strerror(number)).lower()
    hint = REMEDIES.get(_ALIKE.get(number, number), f"look at what is there, {_AGAIN}")
    return EnvironmentFault(f"{reason}: {name}" if name else f"{reason}{_place(problem)}", hint)


def _of_a_package(problem: ImportError) -> TeachOnceError | None:
    name = (problem.name or "").partition(".")[0]
    if name in ("", OURS):
        return None
    if isinstance(problem, ModuleNotFoundError):
        return EnvironmentFault(f"the package '{problem.name}' is not installed", pip_line(name))
    return EnvironmentFault(f"the package '{name}' cannot be imported: {problem}", pip_line(name))


def _of_memory(problem: BaseException) -> TeachOnceError | None:
    """Python's, NumPy's and torch's words for it; `device_fault` knows those of GPUs."""
    kind, text = type(problem).__name__, str(problem)
    if isinstance(problem, MemoryError) or "can't allocate memory" in text:
        return EnvironmentFault(f"no memory is left{_place(problem)}: {text or kind}", REMEDIES[errno.ENOMEM])
    return None


def _of_a_name(problem: BaseException) -> TeachOnceError | None:
    """Names that no system takes, and a user without a home."""
    text = str(problem)
    if isinstance(problem, ValueError) and text.startswith("embedded null"):
        return UsageError(f"a name holds a zero byte, which no file system takes{_place(problem)}", "correct the name")
    if isinstance(problem, UnicodeEncodeError) and "surrogates not allowed" in text:
        return UsageError(f"no file system takes the name {str(problem.object)[:80]!r}", "correct the name")
    if isinstance(problem, RuntimeError) and text.startswith("Could not determine home directory"):
        return EnvironmentFault("this user has no home folder", f"set HOME, or {CACHE_VARIABLE} to a folder of yours")
    return None


def _of_a_reader(problem: BaseException) -> TeachOnceError | None:
    kind = type(problem)
    modules = _modules(problem.__traceback__)
    library = next((reader for reader in READERS for name in (kind.__module__, *modules[-1:]) if _in(name, reader)), "")
    if not library:
        return None
    return DataError(
        f"{library.partition('.')[0]} cannot read what it was given{_place(problem)}: {kind.__name__}: {problem}",
        f"check the files that this command reads; {DEBUG_VARIABLE}=1 before the same command shows where it happened",
    )


def _in(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def _place(problem: BaseException) -> str:
    """The innermost module of ours on the way to an exception, as words; empty where there is none."""
    rooms = [name for name in _modules(problem.__traceback__) if name.startswith(f"{OURS}.") and ".cli." not in name]
    return f" (in {rooms[-1]})" if rooms else ""


def _modules(traceback: TracebackType | None) -> list[str]:
    """The modules whose code an exception came through, the innermost last."""
    modules = []
    while traceback is not None:
        modules.append(str(traceback.tb_frame.f_globals.get("__name__", "")))
        traceback = traceback.tb_next
    return modules
