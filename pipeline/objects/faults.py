"""What an object store refuses, as errors of ours; and which of its errors may pass by themselves."""

from __future__ import annotations

import re

from teachonce.errors import DataError, EnvironmentFault, TeachOnceError

WAITING_HELPS = {"408", "425", "429"}  # of the answers that blame the request: too slow, too early, too many
CREDENTIALS = (
    "credentials come from AWS_PROFILE, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws; workers need them too"
)
WRONG_KEY = {"InvalidAccessKeyId", "InvalidClientTokenId", "UnrecognizedClientException"}
WRONG_SECRET = {"SignatureDoesNotMatch", "InvalidSignature"}
OLD_TOKEN = {"ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired"}
WRONG_REGION = {
    "AuthorizationHeaderMalformed",
    "PermanentRedirect",
    "IllegalLocationConstraintException",
    "TemporaryRedirect",
}
CLIENTS = {"obstore", "botocore"}  # the packages whose errors stand for a request that failed
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")


def status_of(problem: Exception) -> str:
    """The number of the server's answer; empty where it gave none."""
    match = _STATUS.search(str(problem))
    return match[1] if match else ""


def code_of(problem: Exception) -> str:
    """The server's own word for what is wrong, such as NoSuchBucket; empty where it gave none."""
    match = _CODE.search(str(problem))
    return match[1] if match else ""


def may_pass(problem: Exception) -> bool:
    """Whether the same request may succeed later: no answer came, or one that blames the server."""
    if isinstance(problem, FileNotFoundError | PermissionError):
        return False
    if not isinstance(problem, OSError) and type(problem).__module__.partition(".")[0] not in CLIENTS:
        return False  # no request's failure at all
    if type(problem).__name__ in _ANSWERS or _names_region(problem):
        return False
    status = status_of(problem)
    return status == "" or (status[0] == "5" and status != "501") or status in WAITING_HELPS


def is_missing(problem: Exception) -> bool:
    """Whether an object is not there, in a bucket that may be."""
    return isinstance(problem, FileNotFoundError) and code_of(problem) != "NoSuchBucket"


def words(problem: Exception) -> str:
    """What a client or server said, in one line."""
    text = str(problem).split("\n\nDebug source", 1)[0]
    said = re.search(r"<Message>(.*?)</Message>", text, re.DOTALL)
    if said is not None:
        return f"{code_of(problem)}: {said[1].strip()}" if code_of(problem) else said[1].strip()
    return " ".join(text.split()) or type(problem).__name__


def explained(problem: Exception, where: str) -> TeachOnceError:
    """One of our errors for what a client of an object store raised.

    Args:
        problem: its error.
        where: the URL that was asked for.
    """
    if isinstance(problem, TeachOnceError):
        return problem
    code, bucket = code_of(problem), where.partition("://")[2].partition("/")[0]
    if code == "NoSuchBucket":
        return DataError(
            f"{where}: there is no bucket '{bucket}'",
            hint="look at its name, and at AWS_ENDPOINT_URL: another server has other buckets",
        )
    if isinstance(problem, FileNotFoundError):
        return DataError(f"{where} does not exist", hint="look at the bucket and the path")
    if type(problem).__name__ == "InvalidPathError":
        return DataError(f"{where}: an object there has a name that cannot be read: {words(problem)}", "rename it")
    if code in WRONG_REGION or _names_region(problem):
        return EnvironmentFault(
            f"{where} lies in another region: {words(problem)}", hint="AWS_DEFAULT_REGION must be that of the bucket"
        )
    for codes, what in ((WRONG_KEY, "key"), (WRONG_SECRET, "secret"), (OLD_TOKEN, "session token")):
        if code in codes:
            return EnvironmentFault(
                f"{where} may not be read: the server refuses the {what} ({words(problem)})", hint=CREDENTIALS
            )
    if isinstance(problem, PermissionError) or type(problem).__name__ in _REFUSALS or status_of(problem) == "403":
        return EnvironmentFault(f"{where} may not be read: {words(problem)}", hint=CREDENTIALS)
    return EnvironmentFault(
        f"{where} cannot be reached: {words(problem)}",
        hint="is the network up, and is AWS_ENDPOINT_URL right? Then run the same command again",
    )


def _names_region(problem: Exception) -> bool:
    return "incorrectly configured region" in str(problem)


_REFUSALS = {"PermissionDeniedError", "UnauthenticatedError"}  # by name: their module is imported on demand
_ANSWERS = _REFUSALS | {
    "AlreadyExistsError",
    "InvalidPathError",
    "NotModifiedError",
    "NotSupportedError",
    "PreconditionError",
    "UnknownConfigurationKeyError",
}
