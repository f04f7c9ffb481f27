"""What holds for every test: no network, one name for the package, no colour settings from outside; the tiny world.

What the tiny world is made of stands in `worlds`, which is imported only by tests that use it.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub; child processes inherit it
# The models of tests are tiny: a second thread costs more than it gives, and ten times as much on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ONE_NAME_ONLY = ("pipeline", "stages", "cli", "data_manifests", "configs")
COLOUR_SETTINGS = ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "NO_COLOR", "CLICOLOR_FORCE", "COLUMNS")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests on a fake GPU go first: PyTorch's engine counts the devices once, at the first backward of a process."""
    items.sort(key=lambda item: "gpu_absent" not in item.path.parts)


@pytest.fixture(scope="session")
def project() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def one_name_only() -> Iterator[None]:
    """After all tests: no folder was also imported under its own name, which would make second copies of classes."""
    yield
    imported = [name for name in ONE_NAME_ONLY if name in sys.modules]
    assert not imported, f"imported as top-level modules: {imported}; import them as teachonce or teachonce.<name>"


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Tests reach this machine only.

    Datagram sockets pass: Dask connects one to learn its own address, which sends nothing.
    """
    connect, connect_ex, getaddrinfo = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def guarded_connect(self: socket.socket, address: Any) -> None:
        _refuse_remote(self, address)
        connect(self, address)

    def guarded_connect_ex(self: socket.socket, address: Any) -> int:
        _refuse_remote(self, address)
        return connect_ex(self, address)

    def guarded_getaddrinfo(host: Any, *args: Any, **options: Any) -> Any:
        if not (_is_local(host) or _is_address(host)):
            raise RuntimeError(f"tests use no network; something looked up {host!r}")
        return getaddrinfo(host, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded_connect)
        patch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
        patch.setattr(socket, "getaddrinfo", guarded_getaddrinfo)
        yield


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    """A stage that ran in this process may have left PyTorch with more threads, which slow tiny models tenfold."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(autouse=True)
def plain_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """Colours and widths that a CI machine forces would change what is printed."""
    for name in COLOUR_SETTINGS:
        monkeypatch.delenv(name, raising=False)


def _refuse_remote(connection: socket.socket, address: Any) -> None:
    # RuntimeError and no OSError: code that retries or falls back on connection errors must not hide it.
    if connection.family in (socket.AF_INET, socket.AF_INET6) and connection.type == socket.SOCK_STREAM:
        host = address[0]
        if not _is_local(host):
            raise RuntimeError(f"tests use no network; something connected to {host!r}")


def _is_local(host: Any) -> bool:
    name = host.decode() if isinstance(host, bytes) else host
    if name in (None, "", "localhost", socket.gethostname()):
        return True
    return _is_address(name) and ipaddress.ip_address(name).is_loopback


def _is_address(host: Any) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Seventy photos of seven classes in three layouts."""
    import worlds

    return worlds.session_world(tmp_path_factory)


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random CLIP of width 16."""
    import worlds

    return worlds.session_clip(tmp_path_factory, "teacher")


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Another one, of width 12."""
    import worlds

    return worlds.session_clip(tmp_path_factory, "student")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished store; never change it, copy it."""
    import worlds

    return worlds.session_store(tmp_path_factory)
