"""The models of a request, and what every chunk task of it has in common."""

from __future__ import annotations

from collections.abc import Mapping

from teachonce.cluster.client import threads_of
from teachonce.core.devices import AUTO, DeviceFacts, device_facts
from teachonce.core.machine import choose_threads
from teachonce.core.progress import Reporter
from teachonce.errors import UnsupportedModelError, UsageError
from teachonce.labels.format import EMBEDDING, LABELS, student_group
from teachonce.models import clip as clip_models
from teachonce.models.carriers import carriers_of
from teachonce.models.clip import LoadedClip
from teachonce.models.spec import absolute_spec, unlike
from teachonce.objects.remote import absolute
from teachonce.phrases import phrase
from teachonce.stages.teach.request import TeachRequest
from teachonce.teaching.chunk import TeachJob
from teachonce.teaching.store import WantedStore


def load_models(request: TeachRequest, reporter: Reporter, device: str) -> dict[str, LoadedClip]:
    """The models by the column group they fill.

    Args:
        request: names them.
        reporter: receives what a person should know.
        device: what they run on here; a driver takes the CPU, because GPUs belong to its workers.
    """
    clip_models.tune_process(choose_threads(request.computing.threads).count)
    models, resize = {}, request.kept.resize
    if request.teacher is not None:
        reporter.note(f"loading the teacher {request.teacher}")
        models[LABELS] = clip_models.load_clip(request.teacher, device).resized_by(resize)
        if request.kept.embeddings:
            models[EMBEDDING] = models[LABELS]
    for spec in request.students:
        reporter.note(f"loading the student {spec}")
        student = clip_models.load_clip(spec, device).resized_by(resize)
        group = student_group(student.digest)
        parts = unlike(models[group].image_behaviour, student.image_behaviour) if group in models else ""
        if parts:
            raise UsageError(
                f"the students '{models[group].spec}' and '{spec}' have the same weights and another {parts}: one "
                "store keeps the features of one of them",
                hint=phrase("write the other's features to another {labels} store"),
            )
        models.setdefault(group, student)
    return models


def say_what_carries(models: Mapping[str, LoadedClip], reporter: Reporter, features_only: bool) -> None:
    """Say which towers of every student can carry prompts, before days are spent on its features.

    Args:
        models: by the column group they fill.
        reporter: is told.
        features_only: the features are wanted whatever can be trained.

    Raises:
        UnsupportedModelError: neither tower of a student can, and that was not accepted.
    """
    for group, student in models.items():
        if group in (LABELS, EMBEDDING):
            continue
        carriers = carriers_of(student)
        if carriers.none and not features_only:
            raise UnsupportedModelError(
                f"the student '{student.spec}' can carry prompts {carriers}: `train` would refuse it",
                hint=phrase("{features_only} keeps its image features all the same; or {another student}"),
            )
        said = phrase(f"the student {student.spec} can carry prompts {carriers}".replace("{", "{{").replace("}", "}}"))
        if carriers.none:
            said += phrase(": its features serve `evaluate`, and `teach` takes it with {features_only}")
        reporter.note(said)


def here(request: TeachRequest, wanted: WantedStore, reporter: Reporter) -> tuple[DeviceFacts, WantedStore]:
    """The device of this process for work without workers, and the store that it would make.

    Raises:
        UsageError, DeviceFault: this machine has no such device.
    """
    facts = device_facts(request.computing.device)
    wanted = wanted.settled(facts.bf16)
    say_where(facts, wanted, request.computing.threads, reporter)
    return facts, wanted


def say_where(facts: DeviceFacts, wanted: WantedStore, asked: int | None, reporter: Reporter) -> None:
    """One line: what computes, in which number format, with how many threads, and why so many."""
    threads = choose_threads(asked)
    where = "the device of each worker" if facts.device == AUTO else facts.device
    reporter.note(f"computing on {where} in {wanted.precision}; threads: {threads.count} ({threads.why})")


def teach_job(request: TeachRequest, wanted: WantedStore, token: int, models: Mapping[str, LoadedClip]) -> TeachJob:
    """What the chunk tasks of a request have in common; a rehearsal sets a store, a root and a token of its own."""
    computing = request.computing
    return TeachJob(
        store=absolute(request.labels),
        root=absolute(wanted.root),
        token=token,
        models=tuple((group, absolute_spec(clip.spec), clip.digest) for group, clip in models.items()),
        behaviours={absolute_spec(clip.spec): dict(clip.behaviour) for clip in models.values()},
        logit_scale=models[LABELS].logit_scale if LABELS in models else 0.0,
        precision=wanted.number_format,
        batch_size=computing.batch_size,
        views=request.kept.views,
        device=computing.device,
        compiled=computing.compiled,
        class_tile=computing.class_tile,
        resize=wanted.resize,
        threads=computing.threads or threads_of(request.cluster),
    )
