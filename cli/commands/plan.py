"""The command `plan`: what `teach` would take, and how an estimate compares with the outcome."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from teachonce.cli import options, settings
from teachonce.cli.commands.teach import teach_request
from teachonce.cli.jobs import Job, job
from teachonce.cluster.description import ClusterSpec
from teachonce.stages import plan as stage
from teachonce.stages.teach import Kept, TaughtData

PlanLabels = Annotated[Path, typer.Option("--labels", metavar="OUT.zarr", help="Label store that teach would write.")]
Rate = Annotated[
    float | None,
    typer.Option("--rate", metavar="R", help="Images a second of all workers, where known: no model is loaded then."),
]
PlanOut = Annotated[Path | None, typer.Option("--out", metavar="PLAN.json", help="Keep the plan, to compare later.")]
Compare = Annotated[
    Path | None,
    typer.Option("--compare", metavar="PLAN.json", help="Set this plan beside what --labels holds now; nothing else."),
]


def plan(
    labels: PlanLabels,
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
    rate: Rate = None,
    out: PlanOut = None,
    compare: Compare = None,
    set_: options.TeachSet = None,
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> Job:
    """Say what a teach would take in rows, bytes, time and memory; takes the same options, and writes nothing.

    Some images are taught for half a minute on this machine. Exit 6 when disk or memory would not suffice.
    """
    if compare is not None:
        return job("plan", json, quiet, lambda output: stage.compare(compare, labels, output))
    how = settings.settings(settings.TeachSettings, set_ or ())
    source = options.one_manifest(manifest, manifest_option, "plan")
    data = TaughtData(manifest=source, root=root, split=split, vocabulary=vocabulary, shots=shots, seed=how.seed)
    sentences, policy = tuple(template or Kept.templates), how.view_policy(views)
    kept = Kept(templates=sentences, top_k=top_k, embeddings=embeddings, views=policy, chunk_rows=chunk_rows)
    place = ClusterSpec(workers=workers, scheduler=scheduler, file=cluster)
    asked = teach_request(how, labels, teacher, student, data, kept, place, device)
    request = stage.PlanRequest(teach=asked, rate=rate, seconds=how.rehearsal_seconds, out=out)
    return job("plan", json, quiet, lambda output: stage.plan(request, output))
