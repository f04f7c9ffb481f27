"""Clients of object stores: one a bucket and process, with the credentials and the server that the environment names.

For s3:// these are AWS_ENDPOINT_URL, the region and the credentials as boto3 finds them: environment, AWS_PROFILE and
~/.aws, web identities, the instance's own. Buckets are named in the path of a request where an endpoint is given, which
MinIO, SeaweedFS and Ceph expect. gs:// and az:// are left to obstore's own ways to find credentials.
"""

from __future__ import annotations

import functools
import os
from datetime import timedelta
from typing import Any

from teachonce.errors import EnvironmentFault
from teachonce.objects.faults import CREDENTIALS

SCHEMES = {"s3": "s3", "gs": "gs", "az": "az"}  # of a URL: the extra that reads it
ENVIRONMENT = ("AWS_", "GOOGLE_", "AZURE_")
DEFAULT_REGION = "us-east-1"  # what servers that know no regions expect in a signature
# obstore itself tries a request again within a second; `patience` is for outages.
RETRIES: Any = {"max_retries": 2, "backoff": {"init_backoff": timedelta(seconds=0.1)}}
TIMES = {"connect_timeout": "10s", "read_timeout": "60s", "timeout": "15m"}


def client(scheme: str, bucket: str, prefix: str = "") -> Any:
    """obstore's client of a bucket, or of a folder in it.

    Raises:
        EnvironmentFault: no credentials, or settings of the environment that fit no server.
    """
    settings = tuple(sorted(item for item in os.environ.items() if item[0].startswith(ENVIRONMENT)))
    return _client(scheme, bucket, prefix, settings, os.getpid())


def server(scheme: str, bucket: str) -> str:
    """What a request for a bucket goes to, for messages: the endpoint where one is set."""
    endpoint = _endpoint() if scheme == "s3" else ""
    return f"{scheme}://{bucket} at {endpoint}" if endpoint else f"{scheme}://{bucket}"


def _endpoint() -> str:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


@functools.lru_cache(maxsize=32)
def _client(scheme: str, bucket: str, prefix: str, settings: tuple[tuple[str, str], ...], pid: int) -> Any:
    from obstore.store import from_url

    if scheme == "s3":
        return _s3(bucket, prefix)
    try:
        return from_url(f"{scheme}://{bucket}/{prefix}", retry_config=RETRIES, client_options=TIMES)
    except Exception as problem:
        raise EnvironmentFault(f"{scheme}://{bucket} cannot be opened: {problem}") from problem


def _s3(bucket: str, prefix: str) -> Any:
    import boto3
    from botocore.exceptions import BotoCoreError
    from obstore.auth.boto3 import Boto3CredentialProvider
    from obstore.store import S3Store

    where, endpoint = f"s3://{bucket}", _endpoint()
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or ""
    try:
        session = boto3.Session(region_name=region or None)
        if session.get_credentials() is None:
            raise EnvironmentFault(f"{where} may not be read: no credentials were found", hint=CREDENTIALS)
        provider = Boto3CredentialProvider(session)
    except BotoCoreError as problem:
        raise EnvironmentFault(f"{where} may not be read: {problem}", hint=CREDENTIALS) from problem
    # The provider names the session's region; what is passed here in addition would be refused as a second one.
    provider.config = {"region": session.region_name or DEFAULT_REGION}
    more: Any = {"endpoint": endpoint} if endpoint else {}
    more["prefix"] = prefix or None
    more["disable_bulk_delete"] = True  # one request an object, which every server knows
    options: Any = {**TIMES, "allow_http": endpoint.startswith("http://")}
    try:
        return S3Store(bucket, credential_provider=provider, client_options=options, retry_config=RETRIES, **more)
    except Exception as problem:
        raise EnvironmentFault(
            f"{where} cannot be opened: {problem}", hint="AWS_ENDPOINT_URL is http://HOST:PORT or https://HOST"
        ) from problem
