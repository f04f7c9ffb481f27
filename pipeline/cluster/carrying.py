"""Functions on their way to a worker: inside a message that every worker of Dask can read, with or without teachonce.

Dask decodes a message before it knows whose task is in it. A worker that cannot import what the message names loses its
connection and ends, then the next worker does, and nobody is told why. Here the message names functions of Dask alone,
and the task lies in it as bytes that are decoded when the task runs: what is missing then is an error of this task.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

from distributed.protocol import deserialize_bytes, serialize_bytes
from toolz import pipe


def carried(function: Callable[..., Any], *arguments: Any) -> tuple[Any, ...]:
    """What `Client.submit` or `Client.run` is to be given in place of `function` and its arguments.

    On a worker that lacks a module which they need, the task raises ImportError; with another version of that module
    it raises AttributeError or TypeError.
    """
    return pipe, serialize_bytes(partial(function, *arguments)), deserialize_bytes, operator.call
