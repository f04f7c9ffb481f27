"""The work of `audit`. The docstring of the package says what the stage promises."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from teachonce.audit import findings as listed
from teachonce.audit.classes import by_class
from teachonce.audit.confusions import confusions
from teachonce.audit.drift import Drift, compare
from teachonce.audit.duplicates import pairs_between, pairs_within, usual_distance
from teachonce.audit.evidence import Evidence, Floats, Ids, gather
from teachonce.audit.findings import Finding
from teachonce.audit.neighbours import nearest
from teachonce.audit.wrong_labels import NEIGHBOURS, Judgement, confident_joint, judge
from teachonce.core.files import atomic_write_bytes
from teachonce.core.progress import Reporter
from teachonce.errors import FingerprintError, UsageError
from teachonce.labels.store import LabelStore
from teachonce.phrases import command_line, option, phrase
from teachonce.stages.audit.request import AuditRequest, AuditResult
from teachonce.stages.audit.tables import write_tables
from teachonce.stages.audit.words import sentences


@dataclasses.dataclass(frozen=True, eq=False)
class _Looked:
    """A store with the neighbours of its samples."""

    evidence: Evidence
    neighbours: Ids
    cosines: Floats


def audit(request: AuditRequest, reporter: Reporter, spell: Callable[[str], str] = str) -> AuditResult:
    """Look through a store. The stage's `audit` says what is raised."""
    from teachonce.audit.page import Audited, build  # brings jinja2

    began = time.monotonic()
    _check(request)
    taught = _look(request.labels, reporter)
    evidence = taught.evidence
    judgement = judge(evidence, taught.neighbours, taught.cosines, reporter)
    findings = _findings(taught, judgement, request.confidence)
    findings += listed.outside(evidence, judgement, taught.neighbours, {finding.place for finding in findings})
    new, drift = None, None
    if request.against is not None:
        new, drift, more = _against(request.against, taught, reporter)
        findings += more
    figures, calibration = by_class(evidence) if _has_teacher(evidence) else (None, None)
    result = _result(request, evidence, judgement, findings)
    result = dataclasses.replace(
        result, calibration={} if calibration is None else dataclasses.asdict(calibration), drift=_plain(drift)
    )
    result = dataclasses.replace(result, headline=tuple(sentences(result)))
    audited = Audited(
        evidence=evidence,
        new=new,
        findings=findings,
        sentences=[spell(sentence) for sentence in result.headline],
        classes=figures,
        wrong_by_class=_wrong_by_class(evidence, judgement),
        calibration=calibration,
        confusions=confusions(evidence),
        drift=drift,
        without_photos=_without_photos(evidence),
        facts=_facts(request, evidence, new, judgement),
    )
    page = build(audited, (request.root, request.against_root), spell(_command(request)))
    atomic_write_bytes(request.out, page.encode(), reporter)
    atomic_write_bytes(request.out.with_suffix(".csv"), listed.to_csv(findings), reporter)
    write_tables(_beside(request.out), evidence, figures, audited.wrong_by_class, audited.confusions, reporter)
    return dataclasses.replace(result, seconds=time.monotonic() - began)


def _findings(taught: _Looked, judgement: Judgement, confidence: float) -> list[Finding]:
    """What a store by itself is found to have and `subset` leaves out."""
    evidence = taught.evidence
    pairs = pairs_within(evidence, taught.neighbours, taught.cosines)
    return [
        *listed.wrong_labels(evidence, judgement, taught.neighbours, confidence),
        *listed.duplicates(evidence, judgement, pairs),
    ]


def _result(
    request: AuditRequest, evidence: Evidence, judgement: Judgement, findings: Sequence[Finding]
) -> AuditResult:
    return AuditResult(
        headline=(),
        samples=len(evidence),
        labelled=int(np.isfinite(judgement.p_wrong).sum()),
        found={kind: sum(finding.finding == kind for finding in findings) for kind in listed.MEANINGS},
        left_out=len({finding.sample for finding in findings if finding.leave_out}),
        share_wrong=judgement.share if judgement.weights else None,
        confident_learning=_joint(evidence, judgement),
        classes_without_photos=len(_without_photos(evidence)),
        compared_by=evidence.source,
        out=str(request.out),
        list=str(request.out.with_suffix(".csv")),
        files=str(_beside(request.out)),
    )


def left_out_of(store: LabelStore, reporter: Reporter) -> listed.LeftOut:
    """What an audit with all settings at their defaults leaves out of a store, without writing a file.

    Raises:
        DataError, IncompleteError: as `audit`.
    """
    looked = _look(store.path, reporter)
    judgement = judge(looked.evidence, looked.neighbours, looked.cosines, reporter)
    findings = _findings(looked, judgement, AuditRequest.confidence)
    return listed.left_out([finding.sample for finding in findings if finding.leave_out])


def _check(request: AuditRequest) -> None:
    if not 0 < request.confidence < 1:
        raise UsageError(option("confidence") + f" must lie between 0 and 1, found {request.confidence:g}")
    if request.out.suffix != ".html":
        raise UsageError(option("out") + f" {request.out}: the name of the page ends in .html")
    if not request.out.parent.is_dir() or request.out.is_dir():
        raise UsageError(
            f"there is no folder {request.out.parent} to write {request.out.name} to",
            hint=phrase("make it, or {another out}"),
        )
    if request.against_root is not None and request.against is None:
        raise UsageError(phrase("{against_root} is the folder of the new photos, and there is no {against}"))
    if request.against is not None and request.against.resolve() == request.labels.resolve():
        raise UsageError(option("against") + f" {request.against} is the store itself")


def _look(path: Path, reporter: Reporter) -> _Looked:
    evidence = gather(LabelStore.open(path), reporter)
    return _Looked(evidence, *nearest(evidence.vectors, NEIGHBOURS, reporter))


def _has_teacher(evidence: Evidence) -> bool:
    return bool(evidence.store.layout.top_k) and bool((evidence.label >= 0).any())


def _against(path: Path, taught: _Looked, reporter: Reporter) -> tuple[Evidence, Drift, list[Finding]]:
    """Compare with a store of new photos."""
    other = _look(path, reporter)
    evidence, new = taught.evidence, other.evidence
    if (evidence.model, evidence.vectors.shape[1]) != (new.model, new.vectors.shape[1]):
        raise FingerprintError(
            f"{path} and {evidence.store.path} cannot be compared: the vectors come from other models: "
            f"{new.source}, {new.model[:12]}, and {evidence.source}, {evidence.model[:12]}",
            hint=phrase("teach the new photos with the same teacher and {embeddings} int8"),
        )
    neighbours, cosines = nearest(new.vectors, NEIGHBOURS, reporter, among=evidence.vectors)
    usual = usual_distance(taught.cosines), usual_distance(other.cosines)
    pairs = pairs_between(evidence, new, neighbours, cosines, *usual)
    drift = compare(evidence, new, taught.cosines[:, 0], cosines[:, 0])
    return new, drift, [*listed.across(evidence, new, pairs), *listed.far(new, drift.far, cosines[:, 0])]


def _joint(evidence: Evidence, judgement: Judgement) -> float | None:
    if "teacher" not in judgement.weights:
        return None
    judged = np.where(np.isfinite(judgement.p_wrong), evidence.label, -1)
    counts = np.bincount(judged[judged >= 0], minlength=len(evidence.photographed))
    return confident_joint(judged, judgement.confident, counts)


def _without_photos(evidence: Evidence) -> list[str]:
    """Ids of the classes of the data's own list that no sample with an image carries."""
    known = {evidence.vocabulary.ids[place] for place in evidence.photographed.tolist()}
    ids = evidence.store.label_classes().ids
    in_vocabulary = evidence.store.label_to_vocabulary[:-1] >= 0
    return [class_id for class_id, there in zip(ids, in_vocabulary, strict=True) if there and class_id not in known]


def _wrong_by_class(evidence: Evidence, judgement: Judgement) -> list[float]:
    """The expected share of wrong labels of each photographed class; NaN where none was judged."""
    judged = np.isfinite(judgement.p_wrong)
    label, size = evidence.label[judged], len(evidence.photographed)
    counts = np.bincount(label, minlength=size)
    sums = np.bincount(label, weights=judgement.p_wrong[judged].astype(np.float64), minlength=size)
    shares: list[float] = np.divide(sums, counts, out=np.full(size, np.nan), where=counts > 0).tolist()
    return shares


def _plain(drift: Drift | None) -> dict[str, Any]:
    if drift is None:
        return {}
    fields = dataclasses.asdict(drift)
    return {**fields, "far": len(drift.far), "classes": len(drift.classes)}


def _facts(request: AuditRequest, evidence: Evidence, new: Evidence | None, judgement: Judgement) -> dict[str, str]:
    store = evidence.store
    facts = {
        "store": store.path.name,
        "store id": store.store_id(),
        "samples with an image": f"{len(evidence):,}",
        "compared by": evidence.source,
        "listed from": f"a probability of {request.confidence:g} on that the label is wrong",
        "weights of the witnesses": ", ".join(f"{name} {w:.2f}" for name, w in judgement.weights.items()) or "none",
    }
    return facts if new is None else facts | {"against": new.store.path.name, "its id": new.store.store_id()}


def _command(request: AuditRequest) -> str:
    given = {
        "out": request.out,
        "root": request.root,
        "against": request.against,
        "against_root": request.against_root,
        "confidence": request.confidence if request.confidence != AuditRequest.confidence else None,
    }
    return command_line("audit", str(request.labels), **{key: str(v) for key, v in given.items() if v is not None})


def _beside(out: Path) -> Path:
    return out.with_name(f"{out.stem}-files")
