"""README.md of an export: a model card with the front matter that the Hugging Face hub reads.

The card holds only what `facts` has gathered, and says so where something was not recorded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined

from teachonce.core.documents import visible
from teachonce.models.spec import LOCAL_DIR
from teachonce.sharing.facts import ExportFacts

_TEMPLATE = "model_card.md.jinja"
_KNOWN_LICENCES = re.compile(
    r"apache-2\.0|mit|isc|unlicense|wtfpl|bsd(-[23]-clause)?|cc0-1\.0|cc-by(-nc|-nd|-sa|-nc-nd|-nc-sa)?-[1-4]\.\d|"
    r"(a|l)?gpl-[23]\.[01]|mpl-2\.0|openrail|cdla-(permissive|sharing)-[12]\.0"
)
"""Ids that the hub knows; other texts are `other`."""
LOSS = "loss, mean of the last 5 logged steps"  # as `train` takes it
_SPECIAL = re.compile(r"([\\`*_\[\]<>|])")


def model_card(facts: ExportFacts, place: str) -> str:
    """The text of README.md.

    Args:
        facts: of the export.
        place: what readers give to `load_prompts`: a hub id, or words for the folder.
    """
    page = Environment(undefined=StrictUndefined, trim_blocks=False, keep_trailing_newline=True, autoescape=False)
    page.filters |= {"md": markdown, "code": code, "yaml": json.dumps, "json": json.dumps}
    source = (resources.files("teachonce.sharing") / "assets" / _TEMPLATE).read_text(encoding="utf-8")
    text = page.from_string(source).render(
        facts=facts,
        place=place,
        licence_id=licence_id(facts.licence),
        base_model=base_model(facts.student),
        local_student=facts.student.startswith(LOCAL_DIR),
        tower=facts.structure["tower"],
        origin_text=_ORIGIN[facts.origin],
        structure_rows=[*_structure_rows(facts.structure), *_head_rows(facts.head)],
        head_limit=_head_limit(facts.head),
        training_rows=list(_training_rows(facts.training)),
        data_rows=list(_data_rows(facts)),
        score_rows=[_score_row(row) for row in facts.evaluations],
        held_out=_held_out(facts.training),
        limits=list(_limits(facts)),
        licence_text=facts.licence or "not stated by who exported them",
        data_licence=facts.data.licence or "not recorded here; the terms of the training data hold",
    )
    return re.sub(r"\n{3,}", "\n\n", text)


_USUAL = ("all rows", "of the config")  # what `train` records where no selection and no other start was given
_ORIGIN = {
    "train": "Prompts that TeachOnce trained from a teacher's stored soft labels.",
    "import": "Prompts of a CoOp or POMP checkpoint, imported by TeachOnce, which did not train them.",
    "unknown": "Prompts in TeachOnce's format; how they were made is not recorded.",
}


def markdown(text: object) -> str:
    """Text from outside as one line of Markdown that says just that."""
    return _SPECIAL.sub(r"\\\1", visible(" ".join(str(text).split())))


def code(text: object) -> str:
    """Text from outside as it stands between the backticks of Markdown."""
    return visible(" ".join(str(text).split())).replace("`", "'")


def licence_id(licence: str | None) -> str:
    """The hub's id of a licence: `unknown` where none was stated, `other` for one that it has no id for."""
    if licence is None:
        return "unknown"
    return licence.lower() if _KNOWN_LICENCES.fullmatch(licence.lower()) else "other"


def base_model(student: str) -> str | None:
    """The student's id on the hub; None for a student that the hub does not have."""
    if student.startswith("hf-hub:"):
        return student.removeprefix("hf-hub:")
    if student.startswith(LOCAL_DIR):
        return None
    import open_clip  # open_clip knows where its pretrained weights are

    name, _, tag = student.partition("/")
    place = str((open_clip.get_pretrained_cfg(name, tag) or {}).get("hf_hub") or "")
    return place.rstrip("/") or None


def _structure_rows(structure: dict[str, Any]) -> list[tuple[str, str]]:
    words = {"suffix": "behind each name", "context": "began as the words"}
    rows = [(words.get(key, key.replace("_", " ")), value) for key, value in structure.items() if value != ""]
    return [(name, "all" if name.endswith("depth") and value == 0 else str(value)) for name, value in rows]


def _head_rows(head: dict[str, Any] | None) -> list[tuple[str, str]]:
    if head is None:
        return []
    words = {"kind": "head behind the towers"}
    rows = [(words.get(key, f"its {key}"), str(value)) for key, value in head.items() if key != "names"]
    return [*rows, ("classes that it knows", f"{len(head['names']):,}")] if head["names"] else rows


def _head_limit(head: dict[str, Any] | None) -> str:
    """How a head that is no class vectors is used; empty for all others."""
    if head is None or head["kind"] in ("linear", "projection"):
        return ""
    return (
        f"The head '{head['kind']}' changes image features or logits: no matrix of class weights stands for it; "
        "take `prompts.logits(image_features, names)`."
    )


def _training_rows(training: dict[str, Any]) -> Iterator[tuple[str, str]]:
    words = {
        "steps": "training steps",
        "trainable_parameters": "trained numbers",
        "final_loss": LOSS,
        "checkpoint_digest": "imported checkpoint, SHA-256",
        "epoch": "its epoch",
        "student_proved": "whether it holds the student's own start token",
        "selection_digest": "selection of rows, SHA-256",
        "start": "started from the prompts, SHA-256",
    }
    for key, name in words.items():
        if key in training and training[key] not in _USUAL:
            value = training[key]
            yield name, f"{value:.4g}" if isinstance(value, float) else str(value)


def _data_rows(facts: ExportFacts) -> Iterator[tuple[str, str]]:
    data = facts.data
    if not data.manifest:
        return
    yield "data release", f"{data.title or 'not recorded'} (manifest {data.manifest}, split {data.split})"
    yield "licence of the data", data.licence or "not recorded"
    yield "rows", f"{data.rows:,} ({data.views} views of each image)" if data.views > 1 else f"{data.rows:,}"
    yield "class names", f"{data.classes:,} of {data.vocabulary or 'the data'}, SHA-256 {data.vocabulary_digest}"
    if data.top_k:
        yield "teacher", data.teacher or "several, merged"
        yield "teacher's weights, SHA-256", data.teacher_digest or "not recorded"
        yield "teacher's templates", " / ".join(data.templates)
        yield "soft labels", f"the best {data.top_k} classes of each row, and the mass outside"
    else:
        yield "teacher", "none: hard labels only"
    yield "label store", data.store_id


def _score_row(row: dict[str, Any]) -> list[str]:
    low, high = row.get("top1_interval") or (None, None)
    baseline, linear = row.get("baseline") or {}, row.get("linear") or {}
    mixed = f", {row['wise']:g} of the prompts mixed with the template" if row.get("wise", 1) != 1 else ""
    where = f"{row.get('manifest') or 'not recorded'}, {row.get('split') or 'split not recorded'}"
    return [
        f"{row.get('protocol') or row['name']}{mixed}",
        f"{where}{', ' + row['chosen'] if row.get('chosen') else ''}",
        str(row.get("classes", "")),
        str(row.get("n", "")),
        percent(row["top1"]),
        f"{percent(low)} to {percent(high)}" if low is not None else "",
        percent(row.get("macro")),
        f"{row['ece']:.3f}" if "ece" in row else "",
        f"{percent(baseline['top1'])} ({baseline.get('template', '')})" if "top1" in baseline else "",
        percent(linear.get("top1")),
    ]


def percent(share: float | None) -> str:
    """A fraction as people read it."""
    return "" if share is None else f"{100 * share:.2f} %"


def _held_out(training: dict[str, Any]) -> str:
    return percent(training.get("held_out_top1"))


def _limits(facts: ExportFacts) -> Iterator[str]:
    yield "They belong to this student's weights and to no other model; loading compares the digest."
    names = f"these {facts.data.classes:,} names" if facts.data.classes else "the names they were trained on"
    if facts.head is not None and facts.head["names"]:
        yield (
            f"The head knows the {len(facts.head['names']):,} classes that had photos, by the names in prompts.json; "
            "it changes no other name."
        )
    yield f"Prompts that were trained on few classes can lose on others: expect the accuracy above on {names} only."
    if not facts.evaluations:
        yield "Their accuracy was not measured, on any data."
    yield (
        "Not tested, unless a line above says so: classes and images of other kinds, other languages, other templates, "
        "detection and segmentation, calibration, fairness between groups of people, deliberate attacks."
    )
    yield "Class names are taken as they are: what two classes are called the same cannot be told apart."
    yield "Not for decisions about people."
