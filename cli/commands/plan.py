"""The command `plan`: what `teach` would take, and how an estimate compares with the outcome."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from teachonce.cli import options, places, settings
from teachonce.cli.commands.teach import teach_request
from teachonce.cli.console import Output
from teachonce.cli.jobs import Job, job

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def plan(
    labels: options.PlanLabels,
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
    rate: options.Rate = None,
    out: options.PlanOut = None,
    compare: options.Compare = None,
    set_: options.TeachSet = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> Job:
    """Say what a teach would take in rows, bytes, time and memory; takes the same options, and writes nothing.

    Some images are taught for half a minute on this machine. Exit 6 when disk or memory would not suffice.
    """
    if compare is not None:
        return _compare(compare, labels, json, quiet)
    source = options.one_manifest(manifest, manifest_option, "plan")
    how = settings.settings(settings.TeachSettings, set_ or ())

    data = {"manifest": source, "root": root, "split": split, "vocabulary": vocabulary, "shots": shots}
    store = {"labels": labels, "top_k": top_k, "embeddings": embeddings, "chunk_rows": chunk_rows}
    place = {"scheduler": scheduler, "cluster": cluster, "workers": workers}

    def run_stage(output: Output) -> DataclassInstance:
        from teachonce.stages import plan as stage

        request = teach_request(how, views, template, student, teacher=teacher, **data, **store, **place)
        return stage.plan(stage.PlanRequest(teach=request, rate=rate, seconds=how.rehearsal_seconds, out=out), output)

    return job("plan", json, quiet, run_stage)


def _compare(plan_file: Path, labels: Path, json: bool, quiet: bool) -> Job:
    def run_stage(output: Output) -> DataclassInstance:
        from teachonce.stages import plan as stage

        return stage.compare(plan_file, labels, output)

    return job("plan", json, quiet, run_stage)
