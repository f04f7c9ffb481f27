"""A survey compares what is on disk with what a manifest says, and lists every fault before an hour of a GPU is spent.

It reads headers, and whole files only where digests are asked for. It decodes no image.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from teachonce.core.outside import open_plain
from teachonce.core.progress import Reporter
from teachonce.data.index import Collected, SampleIndex, collect, doubled_keys, split_classes, unseen_remark
from teachonce.data.manifests import Manifest, Split
from teachonce.data.places import Part, PassedOver, name_bytes, printable
from teachonce.data.spelling import one_form
from teachonce.data.vocabulary import Vocabulary
from teachonce.errors import DataError

LISTED = 5  # names in a message; the message also says how many there are
BLOCK = 1 << 24


@dataclass(frozen=True, kw_only=True)
class IndexFault:
    """Something that differs from what the manifest says."""

    split: str
    where: str
    expected: str
    found: str


@dataclass(frozen=True, kw_only=True)
class SplitSurvey:
    """What a split holds."""

    split: str
    format: str
    archives: int
    """Archives; tars inside a tar and class folders count one by one."""
    images: int
    classes: int
    """Number of classes in the class list."""
    classes_seen: int
    """Number of classes with at least one image."""
    unlabelled: int
    empty: int
    """Number of images of zero bytes: they will fail, and count as failures."""
    foreign: dict[str, int]
    """Images whose first bytes are of no image format, by what the bytes are: they will fail. Of parquet files
    only rows without bytes are counted."""
    foreign_examples: dict[str, tuple[str, ...]]
    empty_parts: int
    """Number of archives and class folders without any image."""
    empty_part_examples: tuple[str, ...]
    passed_over: PassedOver
    """What lies there and is no sample."""
    known_bad: int
    """How many keys of the manifest's list of known bad images the split holds."""
    image_bytes: int
    """Bytes of all images; 0 where only reading the images would tell."""
    digest: str
    """Digest of the sample index; a store's fingerprint holds it under `samples`."""
    remarks: tuple[str, ...] = ()
    """What a person should know of the classes and their names; nothing of it is a fault."""


def survey_split(
    manifest: Manifest, name: str, root: Path, reporter: Reporter
) -> tuple[SplitSurvey | None, list[IndexFault]]:
    """Scan a split and list all that is wrong with it; there is no survey where there is nothing to scan."""
    split = manifest.split(name)
    try:
        classes = split_classes(manifest, name, root)
        collected = collect(manifest, name, root, reporter, stop=False)
    except DataError as problem:
        where = str(root / split.path)
        return None, [IndexFault(split=name, where=where, expected=_declared(split), found=str(problem))]
    faults = [
        IndexFault(split=name, where=_place(problem), expected="a sound archive", found=str(problem))
        for problem in collected.faults
    ]
    faults += _count_faults(name, split, collected, classes, root)
    index = collected.index
    for doubled in doubled_keys(index, most=LISTED):
        faults.append(
            IndexFault(
                split=name,
                where=f"the key '{doubled.key}'",
                expected="every key once",
                found=f"in {doubled.first} and {doubled.second}",
            )
        )
    return _survey(name, split, collected, classes), faults


def _survey(name: str, split: Split, collected: Collected, classes: Vocabulary) -> SplitSurvey:
    index = collected.index
    labelled = index.label >= 0
    return SplitSurvey(
        split=name,
        format=split.format,
        archives=len(collected.parts),
        images=len(index),
        classes=len(classes),
        classes_seen=len(np.unique(index.label[labelled])),
        unlabelled=int((~labelled).sum()),
        empty=0 if split.format == "parquet" else int((index.size == 0).sum()),
        foreign=collected.foreign,
        foreign_examples=collected.foreign_examples,
        empty_parts=len(collected.empty_parts),
        empty_part_examples=tuple(map(printable, collected.empty_parts[:LISTED])),
        passed_over=collected.passed_over,
        known_bad=_known_bad(split, index),
        image_bytes=int(index.size.sum()),
        digest=index.digest,
        remarks=(*classes.remarks(), *unseen_remark(split, classes, index)),
    )


def _known_bad(split: Split, index: SampleIndex) -> int:
    """Count the known bad images that the index holds: a byte search finds a key, and the ends of keys confirm it."""
    data, ends = index.key_bytes.tobytes(), index.key_ends
    count = 0
    for key in map(name_bytes, split.known_bad):
        place = data.find(key)
        while place >= 0:
            row = int(np.searchsorted(ends, place + len(key)))
            if int(ends[row]) == place + len(key) and place == (int(ends[row - 1]) if row else 0):
                count += 1
                break
            place = data.find(key, place + 1)
    return count


def _place(problem: DataError) -> str:
    return str(problem).partition(": ")[0].partition(" is ")[0]


def _declared(split: Split) -> str:
    declared = [f"{split.archives:,} archives"] if split.archives is not None else []
    declared += [f"{split.samples:,} images"] if split.samples is not None else []
    return f"{split.format}" + (f": {', '.join(declared)}" if declared else "")


def _count_faults(
    name: str, split: Split, collected: Collected, classes: Vocabulary, root: Path
) -> Iterator[IndexFault]:
    where = str(root / split.path)
    if split.archives is not None and split.archives != len(collected.parts):
        yield IndexFault(
            split=name,
            where=where,
            expected=f"{split.archives:,} archives",
            found=f"{len(collected.parts):,}{_missing(split, collected.parts, classes)}",
        )
    images = len(collected.index)
    if split.samples is not None and split.samples != images:
        yield IndexFault(
            split=name,
            where=where,
            expected=f"{split.samples:,} images",
            found=f"{images:,}: {abs(images - split.samples):,} "
            + ("too few" if images < split.samples else "too many"),
        )
    elif not images:
        yield IndexFault(split=name, where=where, expected="images", found="none")


def _missing(split: Split, parts: tuple[Part, ...], classes: Vocabulary) -> str:
    """Say which archives are missing, where names tell: those of some classes, or some numbered shards."""
    part_names = {one_form(part.name) for part in parts}
    if split.format in ("class-tars", "nested-tars", "image-folder"):
        absent = [class_id for class_id in classes.ids if one_form(class_id) not in part_names]
        if split.archives != len(classes):  # a part of the class list: which part, no list says
            return f"; {len(absent):,} classes of the list have none" if len(parts) < (split.archives or 0) else ""
    else:
        shown = [match[1] for part in parts if (match := re.search(r"(\d+)(?:-of-\d+)?$", part.name))]
        numbers, width = set(map(int, shown)), max(map(len, shown), default=1)
        absent = [f"number {number:0{width}d}" for number in range(split.archives or 0) if number not in numbers]
    if not absent:
        return ""
    more = f" and {len(absent) - LISTED:,} more" if len(absent) > LISTED else ""
    return f"; missing: {', '.join(absent[:LISTED])}{more}"


def check_digests(manifest: Manifest, root: Path, reporter: Reporter) -> Iterator[IndexFault]:
    """Compare the released files that exist with their published digests; the files are read whole."""
    for relative, published in manifest.digests.items():
        kind, _, expected = published.partition(":")
        path = root / relative
        if not path.is_file():
            reporter.note(f"{path} is not there (any more): its digest cannot be compared")
            continue
        digest_here = _digest(path, kind, reporter)
        if digest_here != expected.lower():
            yield IndexFault(split="", where=str(path), expected=published, found=f"{kind}:{digest_here}")


def _digest(path: Path, kind: str, reporter: Reporter) -> str:
    sha, done, size = hashlib.new(kind, usedforsecurity=False), 0, path.stat().st_size
    with open_plain(path) as file:
        while block := file.read(BLOCK):
            sha.update(block)
            done += len(block)
            reporter.progress(f"digest of {path.name}", done, max(size, done), "bytes")
    return sha.hexdigest()
