"""The work of `pack`. The docstring of the package says what the stage promises."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from teachonce.core.files import is_remote, require_new
from teachonce.core.progress import Reporter
from teachonce.core.sums import SUMS_FILE, digest_of, is_plain, require_unchanged
from teachonce.errors import DataError, IncompleteError, IntegrityError, UsageError
from teachonce.models.prompt_names import EXPORTED, META_FILE, TENSORS_FILE
from teachonce.phrases import option, phrase
from teachonce.sharing.entries import files_of
from teachonce.sharing.packing import HEAD_FILE, TAR, PackHead, check_pack, require_no_file, unpack, write_pack
from teachonce.stages.pack.request import PackRequest, PackResult
from teachonce.stages.verify import VerifyRequest

STORE_FILE = "zarr.json"


def pack(request: PackRequest, reporter: Reporter) -> PackResult:
    """Verify, pack and read back; or only check; or unpack into a new folder.

    The stage's `pack` says what is raised.
    """
    if is_remote(request.source):
        raise UsageError(f"{request.source} is not on a disk of this machine", hint="copy it here, then pack it")
    if request.check and (request.out is not None or request.unpack):
        raise UsageError(phrase("{check} writes nothing: leave out {out} and {unpack}"))
    if request.out is None and not request.check:
        raise UsageError(phrase("Missing option '{out}'"), phrase("teachonce pack {help}"))
    if request.check or request.unpack:
        _require_pack(request.source)
    if request.out is None:
        return _result(*check_pack(request.source, reporter), None)
    if request.unpack:
        return _result(*unpack(request.source, request.out, _require_same, reporter), request.out)
    return _pack(request.source, request.out, reporter)


def _require_pack(source: Path) -> None:
    """Refuse a source that is no pack; the hint says how to make one of it."""
    if (source / HEAD_FILE).exists():
        return
    hint = f"teachonce pack {source} " + option("out") + f" {source.resolve().name}{TAR} makes one"
    if (source / STORE_FILE).is_file():
        what = "a label store"
    elif (source / META_FILE).is_file():
        exported = (source / SUMS_FILE).is_file()
        what = "an export" if exported else "a run"
        hint = hint if exported else f"teachonce export {source} " + option("out") + " DIR, then teachonce pack DIR"
    else:
        return
    raise UsageError(
        f"{source} is {what} and no pack: "
        + option("check")
        + " and "
        + option("unpack")
        + " take what `teachonce pack` wrote",
        hint,
    )


def _pack(source: Path, out: Path, reporter: Reporter) -> PackResult:
    if not source.is_dir():
        raise UsageError(f"{source} is no folder", hint="give a label store, or what `teachonce export` wrote")
    if out.absolute().is_relative_to(source.absolute()):
        raise UsageError(f"{out} lies in {source}", hint=phrase("give an {out} beside it"))
    (require_no_file if out.suffix == TAR else require_new)(out)
    kind: Literal["label-store", "prompts"]
    if (source / STORE_FILE).is_file():
        kind, identity = "label-store", _verified_store(source, reporter)
    elif (source / META_FILE).is_file():
        kind, identity = "prompts", _verified_export(source)
    else:
        raise DataError(
            f"{source} is neither a label store nor an export of prompts",
            hint=phrase("give LABELS.zarr, or the {out} folder of `teachonce export`"),
        )
    name = source.resolve().name
    if not is_plain(name):
        raise UsageError(f"other systems could not take the name {name!r}", hint="rename the folder")
    files = files_of(source)
    head = PackHead(kind=kind, name=name, id=identity, files=len(files), bytes=sum(size for _, size in files))
    digest = write_pack(source, head, out, reporter)
    if kind == "label-store" and _store_id(source) != identity:
        raise IntegrityError(
            f"{source} was written to while it was packed; {out} is not to be used",
            hint=f"remove {out}, and pack again when nothing writes the store",
        )
    read_back = check_pack(out, reporter)
    if read_back != (head, digest):
        raise IntegrityError(f"{out} reads back different from what was written", hint="the disk is faulty")
    return _result(head, digest, out)


def _verified_store(source: Path, reporter: Reporter) -> str:
    from teachonce.stages.verify.work import examine  # zarr

    checked, next_step = examine(VerifyRequest(labels=source), reporter)
    if checked.ok:
        return _store_id(source)
    first = checked.faults[0]
    problem = f"{first.where}: expected {first.expected}, found {first.found}"
    if checked.exit_code == IncompleteError.exit_code:
        raise IncompleteError(
            f"{source} is not complete: {checked.chunks_missing} chunks are missing; {problem}",
            hint=next_step + ", then pack",
        )
    raise IntegrityError(
        f"{source} is damaged: {len(checked.faults)} faults, the first: {problem}", hint=next_step + ", then pack"
    )


def _verified_export(source: Path) -> str:
    from teachonce.models.prompt_files import load_prompts  # torch

    if not (source / SUMS_FILE).is_file():
        raise DataError(
            f"{source} is a run, or an export that lost its {SUMS_FILE}",
            hint=f"teachonce export {source} " + option("out") + " DIR, then pack DIR",
        )
    require_unchanged(source, EXPORTED, whole=True)
    return load_prompts(source).tensors_digest


def _require_same(head: PackHead, folder: Path) -> None:
    """Refuse an unpacked folder that is not the store or the prompts that the pack names."""
    if head.kind == "prompts":
        identity = digest_of(folder / TENSORS_FILE) if (folder / TENSORS_FILE).is_file() else "none"
    else:
        identity = _store_id(folder)
    if identity != head.id:
        raise IntegrityError(
            f"the pack says that it holds {head.kind} {head.id}, and holds {identity}",
            hint="get the pack again from its source",
        )


def _store_id(folder: Path) -> str:
    from teachonce.labels.store import LabelStore

    return LabelStore.open(folder).store_id()


def _result(head: PackHead, digest: str, out: Path | None) -> PackResult:
    return PackResult(
        kind=head.kind,
        name=head.name,
        id=head.id,
        files=head.files,
        bytes=head.bytes,
        digest=digest,
        out=None if out is None else str(out),
    )
