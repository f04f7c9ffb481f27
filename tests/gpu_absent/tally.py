"""What a fake GPU counts while product code runs on it: kernels, bytes, waits of the host, and copies to the device."""

from __future__ import annotations

import collections
from dataclasses import dataclass, field

WAITS_FOR_A_NUMBER = "a number is asked for"
WAITS_FOR_A_SHAPE = "a shape depends on values"
WAITS_FOR_A_TENSOR = "a tensor is copied to the host"
WAITS_FOR_AN_EVENT = "an event is waited for"
HIDDEN_COPY = "a CPU tensor is used as an index"


@dataclass(frozen=True)
class Copy:
    """A copy from the host to the device."""

    line: str
    """Of the product, that asked for it."""
    pinned: bool
    """Whether the source lies in pinned memory; else the driver copies it there first, and the host waits."""
    non_blocking: bool

    @property
    def blocks(self) -> bool:
        """Whether the host waits until everything queued before the copy is done."""
        return not (self.pinned and self.non_blocking)


@dataclass(eq=False)
class Tally:
    """Counts since the last `clear`."""

    kernels: collections.Counter[str] = field(default_factory=collections.Counter)
    """By operation, without views and without what launches nothing; an operation may launch more than one kernel."""
    lines: collections.Counter[str] = field(default_factory=collections.Counter)
    """Kernels by the line of the product; those of the engine's own thread are `backward`."""
    waits: collections.Counter[tuple[str, str]] = field(default_factory=collections.Counter)
    """What the host waits for, and the line that asks."""
    copies: collections.Counter[Copy] = field(default_factory=collections.Counter)
    copied: int = 0
    """Bytes from the host to the device."""
    late: collections.Counter[str] = field(default_factory=collections.Counter)
    """Copies to the host that nobody waits for, by line."""
    traffic: collections.Counter[str] = field(default_factory=collections.Counter)
    """Bytes that kernels read and write, by operation."""
    types: collections.Counter[tuple[str, str]] = field(default_factory=collections.Counter)
    """Kernels by operation and type of their result."""

    def clear(self) -> None:
        """Begin anew."""
        for counter in (self.kernels, self.lines, self.waits, self.copies, self.late, self.types, self.traffic):
            counter.clear()
        self.copied = 0

    @property
    def launches(self) -> int:
        """Kernels in all."""
        return self.kernels.total()

    @property
    def moved(self) -> int:
        """Bytes that kernels read and write."""
        return self.traffic.total()

    @property
    def blocking(self) -> int:
        """Copies to the device for which the host waits, those of indices on the CPU among them."""
        hidden = sum(times for (what, _), times in self.waits.items() if what == HIDDEN_COPY)
        return hidden + sum(times for copy, times in self.copies.items() if copy.blocks)

    @property
    def asked(self) -> collections.Counter[str]:
        """Waits by what is waited for."""
        total: collections.Counter[str] = collections.Counter()
        for (what, _), times in self.waits.items():
            total[what] += times
        return total

    def text(self, most: int = 10) -> str:
        """Everything in lines, the largest first."""
        kernels = ", ".join(f"{name} {times}" for name, times in self.kernels.most_common(most))
        traffic = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in self.traffic.most_common(most))
        lines = [f"{self.launches} kernels: {kernels}", f"{self.moved / 1e9:.2f} GB read and written by kernels: {traffic}"]
        lines += [f"wait x{times}: {what} ({line})" for (what, line), times in self.waits.most_common()]
        for copy, times in self.copies.most_common():
            kind = "blocking" if copy.blocks else "free"
            lines.append(f"copy x{times}: {kind}, {'pinned' if copy.pinned else 'pageable'} ({copy.line})")
        return "\n".join(lines)
