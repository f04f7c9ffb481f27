"""Requests of stages from flat keywords: tests say what they change, and this module knows where it belongs."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from teachonce.cluster.description import ClusterSpec
from teachonce.evaluation.choice import Entrant, SetChoice, Work
from teachonce.stages.evaluate import EvaluateRequest, Files, Given, ProtocolRequest
from teachonce.stages.teach import Computing, Kept, TaughtData, TeachRequest


def _entrant(options: dict[str, Any]) -> Any:
    """Who is evaluated; `template` is short for one of `templates`."""
    if "template" in options:
        options["templates"] = (options.pop("template"),)
    return part(Entrant, options)


def part(kind: type[Any], options: dict[str, Any]) -> Any:
    """The dataclass `kind` from those of the options that are its fields; they are taken out."""
    return kind(**{field.name: options.pop(field.name) for field in fields(kind) if field.name in options})


def evaluate_request(*, root: Path | None = None, **options: Any) -> EvaluateRequest:
    """An EvaluateRequest; a keyword that nothing takes is refused."""
    options["root"] = root
    parts = {"entrant": _entrant(options), "data": part(SetChoice, options), "files": part(Files, options)}
    return EvaluateRequest(**parts, work=part(Work, options), **options)


def teach_request(**options: Any) -> TeachRequest:
    """A TeachRequest; a keyword that nothing takes is refused."""
    parts = {"data": part(TaughtData, options), "kept": part(Kept, options), "computing": part(Computing, options)}
    cluster = {"file": options.pop("cluster", None)} | {
        name: options.pop(name) for name in ("workers", "scheduler") if name in options
    }
    return TeachRequest(**parts, cluster=ClusterSpec(**cluster), **options)


def protocol_request(**options: Any) -> ProtocolRequest:
    """A ProtocolRequest; a keyword that nothing takes is refused."""
    parts = {"entrant": _entrant(options), "given": part(Given, options), "files": part(Files, options)}
    return ProtocolRequest(**parts, work=part(Work, options), **options)
