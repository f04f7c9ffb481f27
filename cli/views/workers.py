"""What `teach` and `status` show of the workers of a run: one line each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from teachonce.cli.console import duration


def worker_lines(workers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Workers as records of a table, from the keys of the JSON document; its last column says what is wrong."""
    lines = []
    for worker in workers:
        shares = sorted(worker["shares"].items(), key=lambda item: -item[1])
        time = ", ".join(f"{phase} {share:.0%}" for phase, share in shares if share >= 0.005)
        memory = worker["memory_bytes"]
        line = {
            "worker": worker["name"],
            "host": worker["host"],
            "device": worker["device"],
            "chunks": worker["chunks"],
            "rows/s": worker["rows_per_second"],
            "time": time or None,
            "memory": None if memory is None else f"{memory / 2**30:.1f} GiB",
            "last sign": f"{duration(worker['seconds_since_sign'])} ago",
            "state": "slow" if worker["slow"] and worker["state"] == "working" else worker["state"],
        }
        lines.append(line)
    return lines


def taught(values: dict[str, Any]) -> dict[str, Any]:
    """The values of the result of `teach` as a person sees them: the run is over, and so are signs of life."""
    lines = worker_lines(values.get("workers", ()))
    for line in lines:
        del line["last sign"]
    return {**values, "workers": lines}
