"""Prompts on the Hugging Face hub: fetch the few files that loading needs, and upload an exported folder on request.

Nothing here runs unless a hub id is asked for. huggingface_hub keeps its own cache and finds the user's token itself.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from teachonce.errors import EnvironmentFault, UsageError

SCHEME = "hf-hub:"
MOST_LETTERS = 200  # of an id; the hub takes fewer
OPTION = "--"  # of another program: hf
_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[^\s@]+))?")


@dataclass(frozen=True)
class HubId:
    """A repository on the hub."""

    repo: str
    """OWNER/NAME."""
    revision: str | None = None
    """Branch, tag or commit; None: the newest."""

    def __str__(self) -> str:
        return self.repo + (f"@{self.revision}" if self.revision else "")


def parse_hub_id(text: str) -> HubId:
    """Read `OWNER/NAME`, `OWNER/NAME@REVISION`, both with or without `hf-hub:` before them.

    Raises:
        UsageError: it is none of these.
    """
    match = _ID.fullmatch(text.removeprefix(SCHEME))
    if match is None or len(text) > MOST_LETTERS:
        raise UsageError(
            f"{text[:MOST_LETTERS]!r} is no id of the Hugging Face hub: expected OWNER/NAME or OWNER/NAME@REVISION",
            hint="copy it from the head of the repository's page",
        )
    return HubId(match["repo"], match["revision"])


def hub_id_of(place: str | Path) -> HubId | None:
    """The hub id that a person means, or None for a path: what exists here is a path, and so is any `Path`.

    Raises:
        UsageError: it begins with `hf-hub:` and goes on as no id does, or is no text.
    """
    if isinstance(place, Path):
        return None
    if not isinstance(place, str):
        raise UsageError(f"{place!r} is no place of prompts", hint="give a run folder or a hub id OWNER/NAME, as text")
    if place.startswith(SCHEME):
        return parse_hub_id(place)
    is_id = len(place) <= MOST_LETTERS and _ID.fullmatch(place) is not None
    return parse_hub_id(place) if is_id and not os.path.exists(place) else None


@contextlib.contextmanager
def offline_where_unreachable() -> Iterator[None]:
    """Inside, huggingface_hub serves from its cache alone where the hub's host name has no address.

    It would ask for every file six times, half a minute long, before it looks there. A proxy finds the address itself.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    if not before and not urllib.request.getproxies():
        try:
            socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
        except socket.gaierror:
            constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def fetch(hub_id: HubId, names: Sequence[str]) -> Path:
    """Download the named files of a repository, or find them in the hub's cache; returns their folder.

    Raises:
        UsageError: there is no such repository or revision, or it may not be read; it lacks the first file.
        EnvironmentFault: no answer, and nothing in the cache.
    """
    import huggingface_hub
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        folder = Path(
            huggingface_hub.snapshot_download(hub_id.repo, revision=hub_id.revision, allow_patterns=list(names))
        )
    except (RepositoryNotFoundError, RevisionNotFoundError) as problem:
        raise UsageError(
            f"neither a folder here nor a repository on the hub that can be read: '{hub_id}' ({_first_line(problem)})",
            hint="check the path, or the id; for a private repository: hf auth login",
        ) from problem
    except _faults() as problem:
        raise EnvironmentFault(
            f"no folder '{hub_id}' is here, and it cannot be had from the Hugging Face hub: {_first_line(problem)}",
            hint="check the path; for a hub id check the network and HF_HUB_OFFLINE",
        ) from problem
    if not (folder / names[0]).is_file():
        raise UsageError(f"the hub's '{hub_id}' holds no {names[0]}: it was not made by `teachonce export`")
    return folder


def push(folder: Path, repo: str, message: str) -> str:
    """Upload a folder as it is; a repository that is not there is made first, as a private one.

    Returns:
        Its address.

    Raises:
        EnvironmentFault: no network, no token, or no permission; the folder here stays.
    """
    import huggingface_hub

    api = huggingface_hub.HfApi()
    try:
        address = str(api.create_repo(repo, private=True, exist_ok=True))
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message)
    except _faults() as problem:
        raise EnvironmentFault(
            f"{folder} is whole and stays, but could not be pushed to the hub as '{repo}': {_first_line(problem)}",
            hint=f"hf auth login, check the network, then: hf upload {repo} {folder} {OPTION}private",
        ) from problem
    return address


def _faults() -> tuple[type[BaseException], ...]:
    """What huggingface_hub raises: its own errors, an id it does not take, and those of the HTTP client below it."""
    from huggingface_hub.errors import HfHubHTTPError

    return OSError, ValueError, HfHubHTTPError.__bases__[0]  # the client's base error; the client differs by version


def _first_line(problem: BaseException) -> str:
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0]
