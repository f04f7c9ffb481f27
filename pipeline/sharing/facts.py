"""What an export says of its prompts, gathered from the run: data, teacher, student, training, accuracy.

An export says only what was recorded, and no path of this machine: a local file or folder appears by its last name.
`model_card` writes the facts for people, export.json for programs.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from teachonce.core.documents import JSON_BYTES, fault_of, json_in, plain, read_toml
from teachonce.core.outside import read_plain
from teachonce.core.strict import decode
from teachonce.data.manifests import load_manifest, shipped_manifests
from teachonce.errors import FingerprintError, IntegrityError, TeachOnceError, UsageError
from teachonce.evaluation.result import EvaluateResult, decode_result
from teachonce.labels.format import LABELS
from teachonce.labels.store import LabelStore
from teachonce.models.prompt_files import LoadedPrompts
from teachonce.models.spec import LOCAL_DIR
from teachonce.phrases import another, option, phrase
from teachonce.recipe.config import config_digest
from teachonce.recipe.config_file import flat
from teachonce.runs.folder import RunFolder
from teachonce.runs.log import RunLog

FACTS_FILE = "export.json"
_RUN_KEYS = ("steps", "trainable_parameters", "final_loss", "held_out_top1", "selection_digest", "start")
_IMPORT_KEYS = ("checkpoint_digest", "epoch", "student_proved")
_SCORE_KEYS = (
    "n",
    "classes",
    "failed",
    "tied_names",
    "top1_interval",
    "wise",
    "protocol",
    "split",
    "chosen",
    "templates",
    "names_digest",
    "digests",
    "baseline",
    "paired",
    "linear",
)


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """What the prompts were trained on, and who taught. Fields are empty where the label store is gone."""

    store_id: str = ""
    manifest: str = ""
    split: str = ""
    title: str = ""
    """Of the data release."""
    licence: str = ""
    """Of the data, as the manifest says."""
    rows: int = 0
    views: int = 0
    top_k: int = 0
    classes: int = 0
    vocabulary: str = ""
    vocabulary_digest: str = ""
    teacher: str = ""
    teacher_digest: str = ""
    templates: tuple[str, ...] = ()
    """Of the teacher."""


@dataclass(frozen=True, kw_only=True)
class ExportFacts:
    """Everything that export.json holds."""

    schema: int = 1
    teachonce: str
    licence: str | None
    prompts_digest: str
    """SHA-256 of prompts.safetensors."""
    student: str
    student_digest: str
    structure: dict[str, Any]
    """Tower, structure, slots, depth, position, context, ending."""
    origin: str
    """`train`, `import` or `unknown`."""
    training: dict[str, Any]
    data: DataFacts
    evaluations: tuple[dict[str, Any], ...]
    head: dict[str, Any] | None = None
    """Kind, numbers and known names of the head behind the towers; None without."""
    class_weights: dict[str, Any] | None = field(default=None)
    """Classes, width, tied names and digest of classes.tsv; None where no names were given."""

    def to_json(self) -> str:
        """The document, with sorted keys."""
        return json.dumps(plain(asdict(self)), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def public(spec: str) -> str:
    """A model spec or a path without the folders of this machine."""
    if spec.startswith(LOCAL_DIR):
        return LOCAL_DIR + Path(spec[len(LOCAL_DIR) :]).name
    return Path(spec).name if Path(spec).is_absolute() or spec.endswith((".toml", ".tsv")) else spec


def gather(run: Path, prompts: LoadedPrompts, licence: str | None, version: str) -> ExportFacts:
    """Read what a run folder, or an export, records.

    Raises:
        IntegrityError: a file of the run is damaged, or its config was changed after the run.
        FingerprintError: results or an evaluation in the folder belong to other prompts.
    """
    meta = prompts.meta
    _require_own_config(run)
    if (run / FACTS_FILE).is_file():  # an export made from an export: the first one holds the facts of the run
        origin, training, data, evaluations, recorded = _recorded(run / FACTS_FILE)
        licence = licence or recorded
    else:
        file = RunFolder(run).results
        fault = fault_of(file)
        if fault:
            raise IntegrityError(f"{file} {fault}", hint="restore it; or train again with " + another("out"))
        results = _read(file) if file.is_file() else {}
        if results.get("prompts_digest", prompts.tensors_digest) != prompts.tensors_digest:
            raise FingerprintError(
                f"{file} is about other prompts than those beside it",
                hint=phrase("finish the run with `teachonce train {resume}`"),
            )
        origin = "import" if "checkpoint_digest" in results else "train" if "steps" in results else "unknown"
        training = {key: results[key] for key in (*_RUN_KEYS, *_IMPORT_KEYS) if results.get(key) is not None}
        data, evaluations = _data(run, results), _evaluations(run, prompts)
    return ExportFacts(
        teachonce=version,
        licence=licence,
        prompts_digest=prompts.tensors_digest,
        student=public(meta.student),
        student_digest=meta.student_digest,
        structure=meta.public(),
        head=None if meta.head is None else {**meta.head.public(), "names": list(meta.head.names)},
        origin=origin,
        training=training,
        data=data,
        evaluations=evaluations,
    )


def _require_own_config(run: Path) -> None:
    """What stands in config.toml must be what the run began with, where its log still tells."""
    file = RunFolder(run).config
    if not file.is_file():  # an imported checkpoint has none
        return
    hint = phrase("put it back as it was, from a backup or an earlier export; or train again with another {out}")
    try:
        config = flat(read_toml(file), str(file))
    except (OSError, ValueError, UsageError) as problem:
        raise IntegrityError(f"{file} cannot be read: {problem}", hint=hint) from problem
    log = RunFolder(run).events
    try:
        starts = RunLog(log).read("start")
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise IntegrityError(f"{log} cannot be read: {problem}", hint="put it back from a backup") from problem
    digest = config_digest(config)
    if starts and starts[0].get("config_digest", digest) != digest:
        raise IntegrityError(f"{file} is not what the run began with: {log} has another digest of it", hint=hint)


def _recorded(file: Path) -> tuple[str, dict[str, Any], DataFacts, tuple[dict[str, Any], ...], str | None]:
    """Origin, training, data, evaluations and licence that an export tells of."""
    document = _read(file)
    data, training, evaluations = document.get("data"), document.get("training"), document.get("evaluations")
    if (
        document.get("schema") != 1
        or not isinstance(data, dict)
        or not isinstance(training, dict)
        or not isinstance(evaluations, list)
    ):
        raise IntegrityError(f"{file} is not what `teachonce export` writes", hint="export again from the run")
    facts = decode(DataFacts, data, f"{file}: data", IntegrityError)
    return str(document.get("origin")), training, facts, tuple(evaluations), document.get("licence")


def _data(run: Path, results: dict[str, Any]) -> DataFacts:
    """What the run's label store says of the data; only two digests where that store is no longer at its path."""
    store_id = str(results.get("store_id", ""))
    known = DataFacts(store_id=store_id, vocabulary_digest=str(results.get("vocabulary_digest", "")))
    starts = RunFolder(run).log().read("start")
    if not starts or not store_id:
        return known
    try:
        store = LabelStore.open(Path(str(starts[-1].get("labels"))))
        if store.store_id() != store_id:
            return known
    except (TeachOnceError, OSError):
        return known
    fingerprint = store.groups[LABELS].fingerprint
    facts = dict(fingerprint.get("about") or {})
    name, split = str(fingerprint.get("manifest", "")), str(fingerprint.get("split", ""))
    title, licence = _release(name, split, str(fingerprint.get("manifest_digest", "")))
    return DataFacts(
        store_id=store_id,
        manifest=name,
        split=split,
        title=title,
        licence=licence,
        rows=store.layout.rows,
        views=store.layout.views,
        top_k=store.layout.top_k,
        classes=store.layout.classes,
        vocabulary=public(str(facts.get("vocabulary") or "")),
        vocabulary_digest=known.vocabulary_digest,
        teacher=public(str(facts.get("teacher") or "")),
        teacher_digest=str(fingerprint.get("teacher_digest", "")),
        templates=tuple(fingerprint.get("templates", ())),
    )


def _release(name: str, split: str, digest: str) -> tuple[str, str]:
    """Title and licence of the data, where the manifest ships with this package and is the one that was used."""
    if name not in shipped_manifests():
        return "", ""
    manifest = load_manifest(name)
    same = split in manifest.splits and manifest.digest(split) == digest
    return (manifest.title, manifest.licence) if same else ("", "")


def _evaluations(run: Path, prompts: LoadedPrompts) -> tuple[dict[str, Any], ...]:
    """The results of `evaluate` in RUN/evaluations/*.json, by name."""
    evaluations = []
    for file in sorted(RunFolder(run).evaluations.glob("*.json")):
        result = _result(file)
        expected = {"student": prompts.meta.student_digest, "prompts": prompts.tensors_digest}
        for what, digest in expected.items():
            if result.digests.get(what, digest) != digest:
                raise FingerprintError(
                    f"{file} was measured with other {what}: {result.digests[what]}, here {digest}",
                    hint="evaluate these prompts again",
                )
        others = {key: getattr(result, key) for key in _SCORE_KEYS}
        recorded = {key: value for key, value in others.items() if value not in (None, "", ())}
        name = {"name": file.stem, "manifest": public(result.manifest)}
        evaluations.append({**result.figures, **recorded, **name})
    return tuple(evaluations)


def _result(file: Path) -> EvaluateResult:
    """A result of `evaluate` with prompts.

    Raises:
        IntegrityError: it is none.
    """
    document = _read(file)
    fault = fault_of(file)
    if fault:
        raise IntegrityError(f"{file} {fault}", hint="take it out, or evaluate again")
    with suppress(IntegrityError):
        result = decode_result(document, str(file))
        if "top1" in result.figures and result.digests and result.run:
            return result
    raise IntegrityError(
        f"{file} is no result of `teachonce evaluate RUN " + option("json") + "`",
        hint="take it out, or write it again",
    )


def _read(file: Path) -> dict[str, Any]:
    try:
        document = json_in(read_plain(file, JSON_BYTES))
    except (OSError, ValueError) as problem:
        raise IntegrityError(f"{file} cannot be read: {problem}") from problem
    if not isinstance(document, dict):
        raise IntegrityError(f"{file} holds no JSON object")
    return document
