"""demo: all of it in minutes, offline, on a CPU: made-up images, small shipped models, every stage, one table.

It calls the same stages as the other commands, with their files in one folder; run again, it continues.
"""

from __future__ import annotations

from teachonce.core.progress import Reporter
from teachonce.stages.demo.request import DemoRequest, DemoResult

__all__ = ["DemoRequest", "DemoResult", "demo"]


def demo(request: DemoRequest, reporter: Reporter) -> DemoResult:
    """Make the world and the models, then teach, verify, train four cells, evaluate them and report.

    Raises:
        UsageError: the folder holds something else.
        IntegrityError: the store does not verify.
        TeachOnceError: what the stages raise.
    """
    from teachonce.stages.demo import work

    return work.demo(request, reporter)
