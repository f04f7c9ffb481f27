"""The command `teach`: its options become one request for the stage that runs the teacher."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from teachonce.cli import options, settings
from teachonce.cli.jobs import Job, job
from teachonce.cli.views.workers import taught
from teachonce.cluster.description import ClusterSpec
from teachonce.errors import UsageError
from teachonce.stages import teach as stage
from teachonce.stages.teach import Half, Kept, TaughtData, TeachRequest

REHEARSAL = "Rehearsals"
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Compute the chunks again in which images failed.")]
FeaturesOnly = Annotated[
    bool,
    typer.Option("--features-only", help="Keep the features of students that can carry no prompts: for evaluate only."),
]
DryRunIo = Annotated[
    bool,
    typer.Option(
        "--dry-run-io",
        help="Only read and decode images for half a minute: how fast? Writes nothing.",
        rich_help_panel=REHEARSAL,
    ),
]
DummyImages = Annotated[
    bool,
    typer.Option(
        "--dummy-images",
        help="Only run the models on made-up pixels for half a minute. Writes nothing.",
        rich_help_panel=REHEARSAL,
    ),
]


def teach(
    labels: options.LabelsOption,
    manifest: options.ManifestArgument = None,
    manifest_option: options.ManifestOption = None,
    root: options.Root = None,
    split: options.Split = "train",
    teacher: options.Teacher = None,
    student: options.TeachStudents = None,
    vocabulary: options.Vocabulary = None,
    template: options.Templates = None,
    top_k: options.TopK = None,
    views: options.Views = 1,
    shots: options.TeachShots = None,
    embeddings: options.Embeddings = None,
    workers: options.TeachWorkers = None,
    scheduler: options.Scheduler = None,
    cluster: options.Cluster = None,
    chunk_rows: options.ChunkRows = None,
    features_only: FeaturesOnly = False,
    retry_failed: RetryFailed = False,
    force_unlock: options.ForceUnlock = False,
    dry_run_io: DryRunIo = False,
    dummy_images: DummyImages = False,
    set_: options.TeachSet = None,
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> Job:
    """Run the teacher once over the images and keep its soft labels in a Zarr store.

    The same command continues a store that is not complete; rows that are there are never computed again.
    """
    how = settings.settings(settings.TeachSettings, set_ or ())
    source = options.one_manifest(manifest, manifest_option, "teach")
    data = TaughtData(manifest=source, root=root, split=split, vocabulary=vocabulary, shots=shots, seed=how.seed)
    sentences, policy = tuple(template or Kept.templates), how.view_policy(views)
    kept = Kept(templates=sentences, top_k=top_k, embeddings=embeddings, views=policy, chunk_rows=chunk_rows)
    place = ClusterSpec(workers=workers, scheduler=scheduler, file=cluster)
    asked = teach_request(how, labels, teacher, student, data, kept, place, device)
    request = dataclasses.replace(
        asked, features_only=features_only, retry_failed=retry_failed, force_unlock=force_unlock
    )
    half = _half(dry_run_io, dummy_images)
    if half is None:
        return job("teach", json, quiet, lambda output: stage.teach(request, output), taught)
    return job("teach", json, quiet, lambda output: stage.rehearse_half(request, half, how.rehearsal_seconds, output))


def teach_request(
    how: settings.TeachSettings,
    labels: Path,
    teacher: str | None,
    students: list[str] | None,
    data: TaughtData,
    kept: Kept,
    place: ClusterSpec,
    device: str,
) -> TeachRequest:
    """The request that the options of `teach` and `plan` make, with the settings of `--set` put in."""
    return TeachRequest(
        labels=labels,
        data=data,
        teacher=teacher,
        students=tuple(students or ()),
        kept=dataclasses.replace(kept, resize=how.resize),
        cluster=place,
        computing=how.computing(device),
        max_failed_share=how.max_failed_share,
    )


def _half(dry_run_io: bool, dummy_images: bool) -> Half | None:
    """The half of the pipeline that a rehearsal runs; None where the whole pipeline runs."""
    if dry_run_io and dummy_images:
        raise UsageError("--dry-run-io and --dummy-images exclude each other: one runs no model, the other no image")
    if dry_run_io:
        return "images"
    return "models" if dummy_images else None
