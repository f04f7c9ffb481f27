"""Servers of S3 on this machine, for tests: one inside this process, and SeaweedFS where it is installed.

Each can be stopped and started again at the same address, with the same objects.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

KEY, SECRET = "key", "secret"
NOT_OURS = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION", "AWS_REGION", "AWS_ENDPOINT_URL_S3")


@dataclass
class Server:
    """A server of S3.

    Attributes:
        port: on 127.0.0.1.
        home: an empty folder of its own.
        running: what `stop` ends.
    """

    port: int
    home: Path
    running: Any = field(default=None)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def use(self, patch: pytest.MonkeyPatch) -> None:
        """Make it the server of this process and of those that it starts."""
        for name in NOT_OURS:
            patch.delenv(name, raising=False)
        nothing = str(self.home / "none")
        for name, value in {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": nothing,
            "AWS_SHARED_CREDENTIALS_FILE": nothing,
        }.items():
            patch.setenv(name, value)

    def client(self) -> Any:
        """boto3's client of it."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
        )

    def make_bucket(self, name: str) -> None:
        self.client().create_bucket(Bucket=name)

    def start(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError


class MotoServer(Server):
    """moto in a thread of this process: its objects outlive a stop, since they belong to the process."""

    def start(self) -> None:
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line a request
        self.running = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self.running.start()
        self.port = self.running.get_host_and_port()[1]

    def stop(self) -> None:
        self.running.stop()


class SeaweedServer(Server):
    """SeaweedFS as a process; `stop` is kill -9."""

    def start(self) -> None:
        weed = shutil.which("weed")
        assert weed is not None
        config = self.home / "s3.json"
        rights = ["Admin", "Read", "List", "Tagging", "Write"]
        credentials = [{"accessKey": KEY, "secretKey": SECRET}]
        config.write_text(json.dumps({"identities": [{"name": "t", "credentials": credentials, "actions": rights}]}))
        (self.home / "data").mkdir(exist_ok=True)
        ports = [f"-{name}={self.port + more}" for name, more in _SEAWEED_PORTS.items()]
        self.running = subprocess.Popen(
            [weed, "server", f"-dir={self.home / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", *ports]
            + ["-volume.max=100", "-master.volumeSizeLimitMB=64", "-filer", "-s3", f"-s3.config={config}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._wait()

    def _wait(self) -> None:
        """Until it stores an object."""
        from botocore.exceptions import BotoCoreError, ClientError

        end, client = time.monotonic() + 60, self.client()
        while True:
            try:
                client.create_bucket(Bucket="started")
                client.put_object(Bucket="started", Key="x", Body=b"x")
                return
            except client.exceptions.BucketAlreadyExists:
                return
            except (BotoCoreError, ClientError):
                assert self.running.poll() is None, "SeaweedFS ended while it started"
                if time.monotonic() > end:
                    raise
                time.sleep(0.5)

    def stop(self) -> None:
        os.killpg(self.running.pid, signal.SIGKILL)
        self.running.wait()


_SEAWEED_PORTS = {"s3.port": 0, "master.port": 1, "volume.port": 2, "filer.port": 3}  # each takes one 10,000 above, too
_SEAWEED_PORTS |= {"s3.port.iceberg": 4, "s3.port.lance": 5}


@contextmanager
def moto_server(home: Path) -> Iterator[Server]:
    """moto at a free port."""
    pytest.importorskip("moto.server")
    yield from _started(MotoServer(0, home))


@contextmanager
def seaweed_server(home: Path) -> Iterator[Server]:
    """SeaweedFS at free ports; the test is skipped where its program `weed` is not installed."""
    if shutil.which("weed") is None:
        pytest.skip("SeaweedFS is not installed: no program `weed`")
    yield from _started(SeaweedServer(_free_ports(), home))


def _started(server: Server) -> Iterator[Server]:
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _free_ports() -> int:
    """The first of some ports in a row that are free, as are those 10,000 above."""
    for first in range(22000, 30000, 10):
        if all(_is_free(first + more + high) for more in range(len(_SEAWEED_PORTS)) for high in (0, 10_000)):
            return first
    raise RuntimeError("no free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
