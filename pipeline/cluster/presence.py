"""Which workers a scheduler knows, and what a worker says of itself. What they are asked for is no business of it."""

from __future__ import annotations

import asyncio
import os
import queue
import socket
from concurrent.futures import CancelledError
from typing import Any

import psutil
from distributed import Client, get_worker

from teachonce.core.devices import device_words
from teachonce.watching.workers import Presence, WorkerMark

ANSWER_SECONDS = 5.0


def present_workers(client: Client) -> dict[str, Presence] | None:
    """The workers by name, for any thread; None where the scheduler does not answer within seconds."""
    try:
        question = client.scheduler.identity(n_workers=-1)
        answer = asyncio.run_coroutine_threadsafe(question, client.loop.asyncio_loop).result(ANSWER_SECONDS)
    except (OSError, TimeoutError, CancelledError, AttributeError, RuntimeError):  # a client that is being closed
        return None
    return {str(worker["name"]): _presence(worker) for worker in answer["workers"].values()}


def _presence(worker: dict[str, Any]) -> Presence:
    memory = (worker.get("metrics") or {}).get("memory")
    return Presence(host=str(worker.get("host", "")), memory_bytes=memory, beat=float(worker.get("last_seen") or 0.0))


def mark_of_this_worker(device: str) -> WorkerMark:
    """Who runs the task that asks; outside Dask, this process.

    Args:
        device: what the task computed on, as torch names it.
    """
    try:
        name = str(get_worker().name)
    except ValueError:  # the caller is no Dask worker
        name = f"process {os.getpid()}"
    return WorkerMark(
        name=name,
        host=socket.gethostname(),
        pid=os.getpid(),
        device=device_words(device),
        memory_bytes=psutil.Process().memory_info().rss,
    )


def messages(client: Client, topic: str) -> queue.SimpleQueue[dict[str, Any]]:
    """What workers log under a topic from now on; Dask's client puts it there in a thread of its own."""
    came: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    client.subscribe_topic(topic, lambda event: came.put(event[1]))
    return came
