"""The command `teach`: its options become one request for the stage that runs the teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from teachonce.cli import options, places, settings
from teachonce.cli.console import Output
from teachonce.cli.jobs import Job, job
from teachonce.errors import UsageError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from teachonce.stages.teach import TeachRequest

TEMPLATE = "a photo of a {}."


def teach(
    labels: places.LabelsOption,
    manifest: options.ManifestArgument = None,
    manifest_option: options.ManifestOption = None,
    root: places.Root = None,
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
    retry_failed: options.RetryFailed = False,
    force_unlock: options.ForceUnlock = False,
    dry_run_io: options.DryRunIo = False,
    dummy_images: options.DummyImages = False,
    set_: options.TeachSet = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> Job:
    """Run the teacher once over the images and keep its soft labels in a Zarr store.

    The same command continues a store that is not complete; rows that are there are never computed again.
    """
    source = options.one_manifest(manifest, manifest_option, "teach")
    how = settings.settings(settings.TeachSettings, set_ or ())
    half = _half(dry_run_io, dummy_images)

    data = {"manifest": source, "root": root, "split": split, "vocabulary": vocabulary, "shots": shots}
    store = {"labels": labels, "top_k": top_k, "embeddings": embeddings, "chunk_rows": chunk_rows}
    place = {"scheduler": scheduler, "cluster": cluster, "workers": workers, "force_unlock": force_unlock}

    def run_stage(output: Output) -> DataclassInstance:
        from teachonce.stages import teach as stage

        models = {"teacher": teacher, "retry_failed": retry_failed}
        request = teach_request(how, views, template, student, **models, **data, **store, **place)
        if half is None:
            return stage.teach(request, output)
        from teachonce.stages.teach import rehearse

        return rehearse.rehearse_half(request, half, how.rehearsal_seconds, output)

    return job("teach", json, quiet, run_stage)


def _half(dry_run_io: bool, dummy_images: bool) -> Literal["images", "models"] | None:
    """The half of the pipeline that is tried alone; None: all of it works."""
    if dry_run_io and dummy_images:
        raise UsageError("--dry-run-io and --dummy-images exclude each other: one runs no model, the other no image")
    if dry_run_io:
        return "images"
    return "models" if dummy_images else None


def teach_request(
    how: settings.TeachSettings, views: int, template: list[str] | None, student: list[str] | None, **given: Any
) -> TeachRequest:
    """What `teach` and `plan` are asked: their options, with the settings of `--set` put in."""
    from teachonce.data.views import ViewPolicy
    from teachonce.stages.teach import TeachRequest

    return TeachRequest(
        **given,
        students=tuple(student or ()),
        templates=tuple(template or (TEMPLATE,)),
        seed=how.seed,
        views=ViewPolicy(views=views, seed=how.seed, scale=(how.view_scale, 1.0), randaugment=how.randaugment),
        compiled=how.compile,
        class_tile=how.class_tile,
        threads=how.threads,
        batch_size=how.batch_size,
        precision=how.precision,
        max_failed_share=how.max_failed_share,
    )
