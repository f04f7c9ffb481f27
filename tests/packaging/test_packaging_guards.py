"""The guards that `tests/conftest.py` puts around every test do guard.

It opens no connection that leaves the machine.
"""

from __future__ import annotations

import socket

import pytest

NOWHERE = "192.0.2.1"  # reserved for documentation (RFC 5737): routed to nobody


def test_a_connection_that_leaves_the_machine_is_refused() -> None:
    with socket.socket() as connection, pytest.raises(RuntimeError, match="no network"):
        connection.connect((NOWHERE, 80))
    with socket.socket() as connection, pytest.raises(RuntimeError, match="no network"):
        connection.connect_ex((NOWHERE, 80))


def test_a_name_of_another_machine_is_not_looked_up() -> None:
    with pytest.raises(RuntimeError, match=r"example\.org"):
        socket.getaddrinfo("example.org", 443)


def test_this_machine_can_be_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()
