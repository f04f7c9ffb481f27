"""What every worker process that is started here does first: it leaves Ctrl-C to the driver.

A terminal sends Ctrl-C to all processes of a command. The driver decides what it means, lets work in flight end and
then closes its workers; a worker that obeyed Ctrl-C itself would end in the middle of a chunk or a cell.
"""

from __future__ import annotations

import signal


def dask_setup(worker: object) -> None:
    """Ignore Ctrl-C. Dask calls this in the main thread of a new worker, as its `preload` settings ask."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
