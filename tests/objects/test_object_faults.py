"""What an object store refuses is called by its name, and only what may pass by itself is tried again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from object_servers import KEY, SECRET, moto_server, seaweed_server

from teachonce.errors import DataError, EnvironmentFault, TeachOnceError
from teachonce.objects.faults import explained, may_pass
from teachonce.objects.remote import exists, location, read_bytes

URL = "s3://photos/a.tar"


def answer(kind: str, status: str = "", code: str = "", words: str = "words") -> Exception:
    """An error as obstore raises it for an answer of a server."""
    from obstore import exceptions

    text = "Generic S3 error: Error performing GET http://h/photos/a.tar in 1ms - "
    text += f"Server returned non-2xx status code: {status} X: " if status else "HTTP error: error sending request"
    text += f"<Error><Code>{code}</Code><Message>{words}</Message></Error>" if code else ""
    error: Exception = getattr(exceptions, kind)(text + "\n\nDebug source:\nGeneric {}")
    return error


ANSWERS: list[tuple[Exception, type[TeachOnceError], str, bool]] = [
    (answer("GenericError"), EnvironmentFault, "cannot be reached", True),
    (answer("GenericError", "500", "InternalError"), EnvironmentFault, "cannot be reached: InternalError: words", True),
    (answer("GenericError", "503", "SlowDown"), EnvironmentFault, "SlowDown", True),
    (answer("GenericError", "429", "TooMany"), EnvironmentFault, "TooMany", True),
    (answer("GenericError", "501", "NotImplemented"), EnvironmentFault, "NotImplemented", False),
    (answer("GenericError", "404", "NoSuchBucket"), DataError, "there is no bucket 'photos'", False),
    (FileNotFoundError("Object at location a.tar not found: 404"), DataError, f"{URL} does not exist", False),
    (answer("GenericError", "403", "AccessDenied"), EnvironmentFault, "may not be read: AccessDenied", False),
    (answer("PermissionDeniedError", "403", "InvalidAccessKeyId"), EnvironmentFault, "refuses the key", False),
    (answer("PermissionDeniedError", "403", "SignatureDoesNotMatch"), EnvironmentFault, "refuses the secret", False),
    (answer("GenericError", "400", "ExpiredToken"), EnvironmentFault, "refuses the session token", False),
    (answer("GenericError", "400", "AuthorizationHeaderMalformed"), EnvironmentFault, "another region", False),
    (answer("GenericError", "301", "PermanentRedirect"), EnvironmentFault, "another region", False),
    (answer("InvalidPathError"), DataError, "a name that cannot be read", False),
]


@pytest.mark.parametrize(("problem", "kind", "words", "passes"), ANSWERS)
def test_answers_are_called_by_their_names(problem: Exception, kind: Any, words: str, passes: bool) -> None:
    error = explained(problem, URL)
    assert type(error) is kind and words in error.message and error.hint
    assert "Debug source" not in error.message and "\n" not in error.message
    assert may_pass(problem) == passes


def test_bugs_are_not_tried_again() -> None:
    assert not may_pass(TypeError("a bug")) and not may_pass(EnvironmentFault("no"))


def test_without_credentials_nothing_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with moto_server(tmp_path) as server:
        server.use(monkeypatch)
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        with pytest.raises(EnvironmentFault, match="no credentials were found") as caught:
            exists(location(URL))
        assert "AWS_PROFILE" in caught.value.hint


@pytest.mark.parametrize("how", ["profile", "file"])
def test_credentials_and_region_come_from_files(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS_PROFILE names a profile of ~/.aws; without it the default one holds."""
    with moto_server(tmp_path) as server:
        server.use(monkeypatch)
        server.make_bucket("photos")
        server.client().put_object(Bucket="photos", Key="a.tar", Body=b"1")
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        name = "lab" if how == "profile" else "default"
        secrets, config = tmp_path / "credentials", tmp_path / "config"
        secrets.write_text(f"[{name}]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n")
        config.write_text(f"[{'profile lab' if how == 'profile' else name}]\nregion = eu-central-1\n")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(secrets))
        monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
        if how == "profile":
            monkeypatch.setenv("AWS_PROFILE", "lab")
        from teachonce.objects.clients import client

        assert read_bytes(location(URL)) == b"1"
        assert client("s3", "photos").config["region"] == "eu-central-1"


@pytest.mark.parametrize("scheme", ["gs", "az"])
def test_other_clouds_are_opened_by_obstore(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Untested against a server: that the URL is taken and a client made is all that is known."""
    from teachonce.objects.clients import client

    monkeypatch.setenv("GOOGLE_SKIP_SIGNATURE", "true")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    assert str(location(f"{scheme}://place/a/b")) == f"{scheme}://place/a/b"
    assert client(scheme, "place") is not None


@pytest.mark.slow
def test_a_real_server_names_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with seaweed_server(tmp_path) as server:
        server.use(monkeypatch)
        with pytest.raises(DataError, match="there is no bucket 'nowhere'"):
            exists(location("s3://nowhere/a"))
        server.make_bucket("photos")
        assert not exists(location(URL))
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "wrong")
        with pytest.raises(EnvironmentFault, match="the server refuses the key"):
            exists(location(URL))
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        with pytest.raises(EnvironmentFault, match="the server refuses the secret"):
            exists(location(URL))
