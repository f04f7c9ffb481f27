"""What `evaluate` refuses before a student is loaded: options without effect, missing data. It loads no torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from teachonce.core.progress import Reporter
from teachonce.data.manifests import load_manifest, require_data, require_root
from teachonce.data.vocabulary import require_template
from teachonce.errors import DataError, UsageError
from teachonce.evaluation.choice import TABLE_HEADER, SetChoice
from teachonce.evaluation.protocols import Protocol, ProtocolSet, filled_in, load_protocol, require_any
from teachonce.evaluation.sets import EvaluationSet, open_set
from teachonce.models.spec import require_model
from teachonce.phrases import option, phrase
from teachonce.stages.evaluate.request import EvaluateRequest, Files, ProtocolRequest

SHOWN = 8  # splits in a hint


def checked_set(request: EvaluateRequest, reporter: Reporter) -> EvaluationSet:
    """The set of a request that can be done.

    Raises:
        UsageError, DataError: as `check` and `open_set`.
    """
    check(request)
    with next_step(phrase("{vocabulary} takes a TSV file of ids and names, or timm:NAME")):
        return open_set(request.data, reporter)


def check(request: EvaluateRequest) -> None:
    """Refuse a request whose options are wrong whatever the data hold.

    Raises:
        UsageError: no such model, template or run, a mixture without prompts, or a file that would be overwritten.
    """
    entrant = request.entrant
    require_model(entrant.student)
    for template in entrant.templates:
        require_template(template)
    if entrant.run is None and entrant.wise != 1:
        raise UsageError(
            phrase("{wise} mixes prompts with the template, and no RUN was given"), hint="give a run folder"
        )
    if entrant.run is not None and not entrant.run.is_dir():
        raise UsageError(
            f"{entrant.run} is not a run folder", hint=phrase("give the {out} folder of `teachonce train`")
        )
    with next_step(phrase("{manifest} takes a TOML file, or the name of a shipped manifest")):
        manifest = load_manifest(request.data.manifest)
    with next_step(option("split") + f" {' or '.join(list(manifest.splits)[:SHOWN])}"):
        manifest.split(request.data.split)
    if request.files.per_class is not None:
        _require_ours(request.files.per_class)


def _require_ours(table: Path) -> None:
    """Refuse to replace a file that is no table of classes by one."""
    head = b""
    if table.is_file():
        with open(table, "rb") as file:
            head = file.readline(len(TABLE_HEADER) + 2)
    if table.exists() and head.strip() != TABLE_HEADER.encode():
        raise UsageError(
            option("per_class") + f" {table}: this is there already, and no table of classes; nothing was changed",
            hint="give the path of a new .csv",
        )


@contextlib.contextmanager
def next_step(hint: str) -> Iterator[None]:
    """Give an error of a module that does not know the options of `evaluate` a hint that names them."""
    try:
        yield
    except UsageError as problem:
        if problem.hint:
            raise
        raise problem.reworded(hint=hint) from problem


@dataclass(frozen=True)
class ReadySets:
    """The sets of a protocol that can be evaluated, and what is said of the others."""

    protocol: Protocol
    requests: dict[str, EvaluateRequest]
    """The checked sets by their names, in the order of the protocol; sets that are missing or damaged are not in it."""
    parts: dict[str, str]
    missing: list[dict[str, str]]
    left_out: list[str]
    damaged: list[dict[str, str]]


def ready_sets(request: ProtocolRequest, reporter: Reporter) -> ReadySets:
    """What a protocol asks for, checked, as far as its data are there.

    Raises:
        UsageError: no such protocol, an option that it has no use for, or what `check` refuses.
        DataError: no set is there.
    """
    protocol = load_protocol(request.protocol)
    wanted, left_out = filled_in(protocol, _options(request))
    for name in left_out:
        reporter.note(f"{name} is left out: it needs an option that was not given")
    requests = {item.name: _request_of(item, protocol, request) for item in wanted}
    damaged = _damaged(requests)
    for line in damaged:
        reporter.note(f"{line['set']}: " + line["problem"])
    wanted = [item for item in wanted if item.name not in {line["set"] for line in damaged}]
    ready, missing = _there(wanted, requests)
    for line in missing:
        reporter.note(f"{line['set']}: " + line["problem"])
    if not wanted and damaged:
        raise DataError(damaged[0]["problem"], hint=damaged[0]["next"])
    require_any(missing, ready)
    return ReadySets(
        protocol=protocol,
        requests={item.name: requests[item.name] for item in ready},
        parts={item.name: item.part for item in ready},
        missing=missing,
        left_out=left_out,
        damaged=damaged,
    )


def _damaged(requests: dict[str, EvaluateRequest]) -> list[dict[str, str]]:
    """What is said of the sets whose manifests cannot be read: the others can be evaluated all the same."""
    damaged = []
    for name, one in requests.items():
        try:
            check(one)
        except DataError as problem:
            damaged.append({"set": name, "problem": problem.message, "next": problem.hint})
    return damaged


def _options(request: ProtocolRequest) -> dict[str, str | None]:
    names = ("manifest", "split", "vocabulary", "classes", "without")
    return {name: None if (value := getattr(request.given, name)) is None else str(value) for name in names}


def _request_of(item: ProtocolSet, protocol: Protocol, request: ProtocolRequest) -> EvaluateRequest:
    tables, credits = request.files.per_class, request.files.credits
    declared = () if item.template is None else (item.template,)
    return EvaluateRequest(
        entrant=replace(request.entrant, templates=request.entrant.templates or declared),
        data=SetChoice(
            manifest=item.manifest,
            root=request.given.root,
            split=item.split,
            vocabulary=item.vocabulary,
            classes=item.classes,
            among=item.among,
            without=None if item.without is None else Path(item.without),
        ),
        files=Files(
            per_class=None if tables is None else tables / f"{item.name}.csv",
            credits=None if credits is None else credits / f"{item.name}.top1.npy",
        ),
        work=request.work,
        protocol=protocol.name,
    )


def _there(
    sets: Sequence[ProtocolSet], requests: dict[str, EvaluateRequest]
) -> tuple[list[ProtocolSet], list[dict[str, str]]]:
    """The sets whose data are there, and what is said of the others."""
    ready, missing = [], []
    for item in sets:
        manifest = load_manifest(item.manifest)
        root = require_root(manifest, requests[item.name].data.root)
        try:
            require_data(manifest, item.split, root)
        except DataError as problem:
            missing.append({"set": item.name, "problem": problem.message, "get": problem.hint})
        else:
            ready.append(item)
    return ready, missing
