"""Plain tar archives, read by their headers alone: members, links inside, where archives end, samples of shards.

Nothing is extracted. Archives are opened through `objects.remote`, so an archive need not lie on a
local disk.
"""

from __future__ import annotations

import posixpath
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

from teachonce.data.formats import HEAD, PLAIN_ENDINGS, extension, image_endings, is_leftover
from teachonce.data.places import Part, Tally
from teachonce.errors import DataError
from teachonce.objects.remote import opened

BLOCK = 1 << 20  # bytes that are read at a time behind the end mark
MOST_IN_A_GROUP = 256  # members of a WebDataset group without an image that are kept until the group ends
MOST_BESIDE = 6  # names that a message lists


class Member(NamedTuple):
    """A file in a tar. Offsets count from the start of the archive, also where the tar is only a part of it."""

    name: str
    header: int
    """Where the member's headers begin."""
    offset: int
    """Where the member's bytes begin."""
    size: int
    head: bytes
    """The first HEAD bytes."""
    linked: bool = False
    """The name is that of a link, all else is that of the member that the link names."""


def plain_members(part: Part) -> Iterator[Member]:
    """Yield the regular members of a tar, one at a time; links, devices and sparse files are left out.

    Raises:
        DataError: the tar cannot be read, is damaged or cut off.
    """
    for entry, file in _entries(part):
        if entry.isreg() and entry.sparse is None:
            yield _member(entry, file)


def tar_members(part: Part, tally: Tally) -> Iterator[Member]:
    """Yield the files of a tar, one at a time, and behind them the links to files of the same tar, by the links' names.

    All else is counted in the tally: other links, devices, sparse files, and what systems leave behind.

    Raises:
        DataError: the tar cannot be read, is damaged or cut off, or goes on behind its end mark.
    """
    links: dict[str, str] = {}
    for entry, file in _entries(part, to_the_end=True):
        if entry.isdir():
            continue
        if is_leftover(entry.name):
            tally.pass_over("leftovers", entry.name)
        elif entry.sparse is not None:
            tally.pass_over("sparse", entry.name)
        elif entry.isreg():
            yield _member(entry, file)
        elif entry.issym():
            links[entry.name] = _normal(posixpath.join(posixpath.dirname(entry.name), entry.linkname))
        elif entry.islnk():
            links[entry.name] = _normal(entry.linkname)
        else:
            tally.pass_over("devices", entry.name)
    if links:
        yield from _linked(part, links, tally)


def linked_names(archive: Path) -> dict[int, set[str]]:
    """Return the names of all links to files inside an archive, by the byte where such a file's bytes begin.

    Tars inside the archive are looked into as well.

    Raises:
        DataError: the archive cannot be read.
    """
    names: dict[int, set[str]] = {}
    inner: list[Part] = []

    def look(part: Part) -> None:
        for member in tar_members(part, Tally()):
            if member.linked:
                names.setdefault(member.offset, set()).add(member.name)
            elif extension(member.name) == "tar" and part.end is None:
                inner.append(Part(archive, member.name, member.offset, member.offset + member.size))

    look(Part(archive, archive.stem))
    for part in inner:
        with suppress(DataError):  # a member that is called a tar need not be one
            look(part)
    return names


def _member(entry: tarfile.TarInfo, file: IO[bytes]) -> Member:
    file.seek(entry.offset_data)  # right behind the header, and so in the buffer already
    return Member(entry.name, entry.offset, entry.offset_data, entry.size, file.read(min(HEAD, entry.size)))


def _linked(part: Part, links: Mapping[str, str], tally: Tally) -> Iterator[Member]:
    """Read the archive once more for the files that links name; a link may come before its file."""
    ends = _ends({_normal(name): target for name, target in links.items()})
    wanted = set(filter(None, ends.values()))
    targets: dict[str, Member] = {}
    for entry, file in _entries(part):
        if entry.isreg() and entry.sparse is None and (name := _normal(entry.name)) in wanted:
            targets[name] = _member(entry, file)
    for name in links:
        target = targets.get(ends[_normal(name)] or "")
        if target is None:
            tally.pass_over("links", name)
        else:
            yield target._replace(name=name, linked=True)


def _ends(links: Mapping[str, str]) -> dict[str, str | None]:
    """Return where each link ends when links to links are followed; None for links that lead to each other."""
    ends: dict[str, str | None] = {}
    for name in links:
        trail: dict[str, None] = {}
        place = name
        while place in links and place not in ends and place not in trail:
            trail[place] = None
            place = links[place]
        end = None if place in trail else ends.get(place, place)
        ends |= dict.fromkeys(trail, end)
    return ends


def _normal(name: str) -> str:
    return posixpath.normpath(name)


def _entries(part: Part, to_the_end: bool = False) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    """Yield everything that a tar lists, each with the open archive.

    Args:
        to_the_end: also refuse a tar that goes on behind its end mark.
    """
    path = part.archive
    try:
        with opened(path) as file:
            end = path.stat().st_size if part.end is None else part.end
            file.seek(part.start)
            # tarfile's offsets count from the start of the file.
            with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
                for entry in tar:
                    tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise: gigabytes for ImageNet-21K
                    if entry.isreg() and entry.sparse is None and entry.offset_data + entry.size > end:
                        raise DataError(
                            f"{part} is cut off: '{entry.name}' should end at byte "
                            f"{entry.offset_data + entry.size}, it ends at {end}"
                        )
                    yield entry, file
                _require_end(file, part, tar.offset)
                if to_the_end:
                    _require_nothing_more(file, part, tar.offset, end)
    except (tarfile.TarError, OSError, OverflowError, MemoryError, ValueError) as problem:
        # The last three come from headers that claim absurd sizes.
        raise DataError(
            f"{part} is not a readable tar archive: {problem}",
            hint="fetch the archive again; compressed tars must be unpacked to plain .tar first",
        ) from problem


def _require_end(file: IO[bytes], part: Part, offset: int) -> None:
    """Refuse an archive without its end mark, a block of zeros.

    tarfile takes a damaged header, or the end of the file, for the end of the archive.
    """
    file.seek(offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise DataError(
            f"{part} is cut off or damaged at byte {offset}: expected a header or the end mark there",
            hint="fetch the archive again",
        )


def _require_nothing_more(file: IO[bytes], part: Part, offset: int, end: int) -> None:
    """Refuse an archive with anything but zeros behind its end mark: a scan would lose what lies there in silence."""
    file.seek(offset)
    while offset < end and (block := file.read(min(BLOCK, end - offset))):
        rest = block.lstrip(b"\0")
        if rest:
            raise DataError(
                f"{part} goes on behind its end mark at byte {offset + len(block) - len(rest)}: what follows the mark "
                "would be lost",
                hint="if `cat` joined archives: keep them apart, or join them with `tar -Af FIRST.tar SECOND.tar`",
            )
        offset += len(block)


class Sample(NamedTuple):
    """An image of a WebDataset shard with its label."""

    key: str
    image: Member
    label: Member | None
    """The member that holds the label; None where no member of the whole shard does, or where none is asked for."""
    beside: tuple[str, ...]
    """Names of the members that lie beside the image and hold neither image nor label."""


def shard_samples(part: Part, suffix: str, tally: Tally) -> Iterator[Sample]:
    """Yield the samples of a WebDataset shard.

    Members of one sample share the name up to the first dot, and are adjacent as a rule. Where that name has no image,
    an image whose name has further dots is a sample by itself, with the key up to the last dot. A label that lies
    elsewhere in the shard is found at the end of the shard.

    Args:
        suffix: the ending of the members that hold labels; empty: no label is looked for.

    Raises:
        DataError: the tar is damaged, or a sample has two images.
    """
    shard = _Shard(part, suffix, tally)
    for member in tar_members(part, tally):
        key = _group_key(member.name)
        if not shard.continues_with(key):
            yield from shard.close_group()
        shard.add(member, key)
    yield from shard.close_group()
    yield from shard.rest()


def _group_key(name: str) -> str:
    """Return the name up to the first dot of its last part."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


@dataclass
class _Group:
    """Adjacent members that share the name up to the first dot."""

    key: str = ""
    image: Member | None = None
    """The member with nothing but an image's ending behind that name."""
    dotted: dict[str, Member] = field(default_factory=dict)
    """Images with further dots in their names, by the name up to the last dot."""
    labels: dict[str, Member] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)


class _Shard:
    """The members of a shard as they come, and what waits for its other half."""

    def __init__(self, part: Part, suffix: str, tally: Tally) -> None:
        self._part, self._suffix, self._tally = part, suffix, tally
        self._endings = image_endings()
        self._group = _Group()
        self._waiting: dict[str, Sample] = {}
        self._labels: dict[str, Member] = {}

    def continues_with(self, key: str) -> bool:
        """Whether a member with this name up to the first dot belongs to the group that is open."""
        group = self._group
        return key == group.key and (group.image is not None or len(group.dotted) + len(group.others) < MOST_IN_A_GROUP)

    def add(self, member: Member, key: str) -> None:
        """Take a member into the open group, which gets this key."""
        group, name = self._group, member.name
        group.key = key
        ending = name[len(key) + 1 :]
        if ending.lower() in self._endings:
            self._add_image(member, ending.lower())
        elif self._suffix and (ending == self._suffix or ending.endswith(f".{self._suffix}")):
            group.labels[name[: -len(self._suffix) - 1]] = member
        elif "." in ending and extension(name) in self._endings:
            if group.dotted.setdefault(name.rpartition(".")[0], member) is not member:
                self._tally.pass_over("side_images", name)
        else:
            group.others.append(name)

    def _add_image(self, member: Member, ending: str) -> None:
        """Take an image; one with a plain ending comes before one with any other."""
        group, side = self._group, member
        if group.image is None:
            group.image = member
            return
        if ending in PLAIN_ENDINGS:
            if extension(group.image.name) in PLAIN_ENDINGS:
                raise DataError(f"{self._part}: the sample '{group.key}' has two images; keys must be unique")
            side, group.image = group.image, member
        self._tally.pass_over("side_images", side.name)

    def close_group(self) -> Iterator[Sample]:
        """Yield the whole samples of the group that ends here; what lacks its other half waits."""
        group, self._group = self._group, _Group()
        beside = tuple(group.others[:MOST_BESIDE])
        if group.image is not None:
            yield from self._ready(group.key, group.image, group, beside)
        alone = [key for key in group.dotted if key not in group.labels]
        for key, image in group.dotted.items():
            if self._suffix and key in group.labels:
                yield Sample(key, image, group.labels.pop(key), beside)
            elif group.image is not None:
                self._tally.pass_over("side_images", image.name)
            elif self._suffix and group.key in group.labels and len(alone) == 1:
                yield Sample(key, image, group.labels.pop(group.key), beside)
            else:
                yield from self._ready(key, image, group, beside)
        if group.image is None and not group.dotted:
            for name in group.others:
                self._tally.pass_over_ending(name)
        self._labels |= group.labels

    def _ready(self, key: str, image: Member, group: _Group, beside: tuple[str, ...]) -> Iterator[Sample]:
        label = group.labels.pop(key, None)
        sample = Sample(key, image, label, beside)
        if label is not None or not self._suffix:
            yield sample
        elif key in self._waiting:
            raise DataError(f"{self._part}: the sample '{key}' has two images; keys must be unique")
        else:
            self._waiting[key] = sample

    def rest(self) -> Iterator[Sample]:
        """Yield the samples whose labels lie elsewhere in the shard, and those without any."""
        unlabelled = []
        for key, sample in self._waiting.items():
            label = self._labels.pop(key, None)
            if label is None and key != _group_key(key):
                unlabelled.append(sample)
            else:
                yield sample._replace(label=label)
        groups = Counter(_group_key(sample.key) for sample in unlabelled)
        for sample in unlabelled:
            key = _group_key(sample.key)
            if groups[key] == 1 and key in self._labels:
                yield sample._replace(label=self._labels.pop(key))
            else:
                self._tally.pass_over("no_label", sample.image.name)
        for label in self._labels.values():
            self._tally.pass_over("no_image", label.name)
