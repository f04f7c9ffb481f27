"""Without a network, files of the hub come from the cache or not at all, and at once."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest
from huggingface_hub import constants

from teachonce.core.hub import offline_where_unreachable


def no_address(*_: object) -> list[object]:
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


@pytest.mark.parametrize(("lookup", "offline"), [(no_address, True), (lambda *_: [], False)])
def test_the_hub_is_not_asked_where_its_name_has_no_address(
    lookup: Callable[..., list[object]], offline: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six tries a file, half a minute long, would be in vain. Afterwards it may be asked again."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    with offline_where_unreachable():
        assert offline is constants.HF_HUB_OFFLINE
    assert constants.HF_HUB_OFFLINE is False


def test_a_proxy_finds_the_address_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("urllib.request.getproxies", lambda: {"https": "proxy:3128"})
    monkeypatch.setattr(socket, "getaddrinfo", no_address)
    with offline_where_unreachable():
        assert constants.HF_HUB_OFFLINE is False
