"""Schedulers that speak TLS: the settings of Dask that name this side's certificates, read before anything is sent.

Dask reads them from its own configuration (`distributed.comm.tls` in a file below ~/.config/dask, or variables of the
environment), on this side as on the scheduler's and the workers'. Without them it says little, or waits for a minute.
"""

from __future__ import annotations

from pathlib import Path

import dask
from distributed.security import Security

from teachonce.errors import EnvironmentFault

SETTINGS = ("distributed.comm.tls.ca-file", "distributed.comm.tls.client.cert", "distributed.comm.tls.client.key")
"""Where the authority's certificate lies, this side's certificate, and its key unless it stands in the same file."""
SECURE = ("tls://", "wss://")
HINT = (
    "docs/cluster.md, section TLS, has all variables; the scheduler and the workers need them too, with certificates "
    "of the same authority"
)
PLAIN_HINT = "if that scheduler speaks TLS, its address begins with tls://, and certificates are needed"


def variable(setting: str) -> str:
    """The variable of the environment that gives a setting of Dask."""
    return f"DASK_{setting.upper().replace('.', '__').replace('-', '_')}"


def require_certificates(address: str) -> None:
    """Refuse an address of a scheduler that speaks TLS, unless the certificates for it are there.

    Raises:
        EnvironmentFault: a setting is missing, names no file, or the files are no certificate and key.
    """
    if not address.startswith(SECURE):
        return
    files = {setting: dask.config.get(setting, None) for setting in SETTINGS}
    missing = [f"{setting} ({variable(setting)})" for setting in SETTINGS[:2] if not files[setting]]
    if missing:
        raise EnvironmentFault(
            f"the scheduler at {address} speaks TLS, and Dask is not told which certificates to use here: "
            f"{' and '.join(missing)} not set",
            hint=f"set {', '.join(map(variable, SETTINGS))} to PEM files; " + HINT,
        )
    for setting, file in files.items():
        if file and "\n" not in file and not Path(file).is_file():  # Dask takes the text of a certificate, too
            raise EnvironmentFault(
                f"{setting} ({variable(setting)}) names {file}, which is not there",
                hint="give the absolute path of a PEM file; " + HINT,
            )
    try:
        Security().get_connection_args("client")
    except (OSError, ValueError) as problem:  # ssl.SSLError is an OSError
        raise EnvironmentFault(
            f"the files of {', '.join(SETTINGS)} are no certificate of an authority and no certificate with its key: "
            f"{problem}",
            hint=f"look at {', '.join(str(file) for file in files.values() if file)}; " + HINT,
        ) from problem


def refusal_hint(address: str) -> str:
    """What to look at where a connection was refused or broken off, as far as TLS may be why; empty else."""
    if address.startswith(SECURE):
        return (
            "both sides must have certificates of one authority: compare "
            f"{', '.join(variable(setting) for setting in SETTINGS)} here with those of the scheduler"
        )
    return ""
