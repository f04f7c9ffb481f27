"""Hub ids: when the network is asked, for what, and what is said when it does not answer. The hub is a stand-in."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors as hub_errors
from share_runs import make_run
from worlds import NAMES

import teachonce
from teachonce.core.hub import HubId, hub_id_of, parse_hub_id, push
from teachonce.core.sums import write_sums
from teachonce.errors import EnvironmentFault, IntegrityError, UsageError

NETWORK = hub_errors.HfHubHTTPError.__bases__[0]("no route to host")  # as the HTTP client raises it
ANSWER: Any = SimpleNamespace(headers={}, request=None, status_code=404)
NO_REPOSITORY = hub_errors.RepositoryNotFoundError("404: no such repository", response=ANSWER)
NO_REVISION = hub_errors.RevisionNotFoundError("404: no such revision", response=ANSWER)
OFFLINE = hub_errors.OfflineModeIsEnabled("offline mode is enabled")
NOT_CACHED = hub_errors.LocalEntryNotFoundError("no cached snapshot")
NO_TOKEN = hub_errors.LocalTokenNotFoundError("a token is required")


@pytest.fixture(scope="module")
def shared(student: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported folder, as far as the hub is concerned."""
    torch.set_num_threads(1)
    folder = make_run(tmp_path_factory.mktemp("hub") / "shared", student)
    (folder / "README.md").write_text("card")
    write_sums(folder, ["prompts.safetensors", "prompts.json", "README.md", "config.toml"])
    return folder


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], list[dict[str, Any]]]:
    """Put a stand-in where the download is: it gives a folder or raises; returns what it was asked."""

    def install(answer: Any) -> list[dict[str, Any]]:
        calls: list[dict[str, Any]] = []

        def download(repo_id: str, **options: Any) -> str:
            calls.append({"repo": repo_id, **options})
            if isinstance(answer, BaseException):
                raise answer
            return str(answer)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        return calls

    return install


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("user/repo", HubId("user/repo")),
        ("hf-hub:user/repo", HubId("user/repo")),
        ("user/repo@v1.0", HubId("user/repo", "v1.0")),
        ("hf-hub:a-b/c_d.e@refs/pr/1", HubId("a-b/c_d.e", "refs/pr/1")),
    ],
)
def test_ids_are_read(text: str, wanted: HubId) -> None:
    assert parse_hub_id(text) == wanted and hub_id_of(text) == wanted


@pytest.mark.parametrize("text", ["repo", "a/b/c", "/a/b", "../b", "./b", "a/..", "a b/c", "a/b@", "a/b@x@y", "", "a/"])
def test_what_is_no_id_is_a_path(text: str) -> None:
    """With the scheme before it, it is an error instead."""
    assert hub_id_of(text) is None
    with pytest.raises(UsageError, match="expected OWNER/NAME"):
        hub_id_of(f"hf-hub:{text}")


@pytest.mark.parametrize("place", [None, 7, b"user/repo"])
def test_what_is_no_text_is_refused(place: Any) -> None:
    """From Python anything can come."""
    with pytest.raises(UsageError, match="is no place of prompts"):
        teachonce.load_prompts(place)


def test_what_is_here_is_never_looked_up(
    shared: Path, asked: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A folder of the same name, and any Path, wherever it leads."""
    calls = asked(AssertionError("the network was used"))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(shared, tmp_path / "user" / "repo")
    teachonce.load_prompts("user/repo")
    with pytest.raises(UsageError, match="cannot read"):
        teachonce.load_prompts(Path("other/repo"))
    assert calls == []


def test_three_lines_from_the_hub(shared: Path, asked: Any, tmp_path: Path) -> None:
    """The files that loading needs are fetched and no others; the classifier is the folder's."""
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for name in ("prompts.json", "prompts.safetensors", "SHA256SUMS"):
        shutil.copy(shared / name, snapshot)
    calls = asked(snapshot)
    prompts = teachonce.load_prompts("user/repo@v1")
    assert torch.equal(prompts.classifier(NAMES), teachonce.load_prompts(shared).classifier(NAMES))
    wanted = {"prompts.json", "prompts.safetensors", "SHA256SUMS"}
    assert [(c["repo"], c["revision"], set(c["allow_patterns"])) for c in calls] == [("user/repo", "v1", wanted)]
    model, tokenizer, _ = teachonce.prompted_model("hf-hub:user/repo")
    assert torch.equal(model.encode_text(tokenizer(NAMES)), prompts.classifier(NAMES))
    assert calls[1]["revision"] is None
    data = bytearray((snapshot / "prompts.safetensors").read_bytes())
    data[-1] ^= 1
    (snapshot / "prompts.safetensors").write_bytes(data)
    with pytest.raises(IntegrityError, match="prompts.safetensors is not what was exported"):
        teachonce.load_prompts("user/repo")


@pytest.mark.parametrize("problem", [NO_REPOSITORY, NO_REVISION], ids=lambda p: type(p).__name__)
def test_a_repository_that_is_not_there(problem: Exception, asked: Any) -> None:
    asked(problem)
    with pytest.raises(UsageError, match="neither a folder here nor a repository.*'user/repo' .404") as caught:
        teachonce.load_prompts("user/repo")
    assert "check the path" in caught.value.hint


@pytest.mark.parametrize("problem", [NETWORK, OFFLINE, NOT_CACHED], ids=lambda p: type(p).__name__)
def test_no_network_is_said(problem: Exception, asked: Any) -> None:
    asked(problem)
    with pytest.raises(EnvironmentFault, match="no folder 'runs/frist' is here, and it cannot be had") as caught:
        teachonce.load_prompts("runs/frist")
    assert "network" in caught.value.hint


def test_the_real_client_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """huggingface_hub itself, told to stay offline, with an empty cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(EnvironmentFault, match="cannot be had from the Hugging Face hub"):
        teachonce.load_prompts("user/repo")
    (tmp_path / "file").write_text("x")
    with pytest.raises(EnvironmentFault, match="is whole and stays, but could not be pushed"):
        push(tmp_path, "user/repo", "message")


def test_a_repository_of_something_else(asked: Any, tmp_path: Path) -> None:
    asked(tmp_path)
    with pytest.raises(UsageError, match="holds no prompts.json: it was not made by `teachonce export`"):
        teachonce.load_prompts("user/repo")


class FakeApi:
    """The two calls of the hub that `push` makes."""

    calls: list[tuple[str, dict[str, Any]]] = []
    problem: BaseException | None = None

    def create_repo(self, repo_id: str, **options: Any) -> str:
        self.calls.append(("create", {"repo_id": repo_id, **options}))
        if self.problem is not None:
            raise self.problem
        return f"https://hub.example/{repo_id}"

    def upload_folder(self, **options: Any) -> None:
        self.calls.append(("upload", options))


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> type[FakeApi]:
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    monkeypatch.setattr(FakeApi, "calls", [])
    return FakeApi


def test_a_push_makes_a_private_repository_and_uploads_the_folder(api: type[FakeApi], shared: Path) -> None:
    assert push(shared, "user/repo", "first") == "https://hub.example/user/repo"
    assert api.calls == [
        ("create", {"repo_id": "user/repo", "private": True, "exist_ok": True}),
        ("upload", {"repo_id": "user/repo", "folder_path": shared, "commit_message": "first"}),
    ]


@pytest.mark.parametrize("problem", [NETWORK, OFFLINE, NO_TOKEN, ValueError("bad id")], ids=lambda p: type(p).__name__)
def test_a_push_that_fails_leaves_the_folder(
    problem: Exception, api: type[FakeApi], shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "problem", problem)
    before = {file.name: file.read_bytes() for file in shared.iterdir() if file.is_file()}
    with pytest.raises(EnvironmentFault, match="is whole and stays") as caught:
        push(shared, "user/repo", "first")
    assert "hf upload user/repo" in caught.value.hint
    assert before == {file.name: file.read_bytes() for file in shared.iterdir() if file.is_file()}
